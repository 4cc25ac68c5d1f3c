"""Recorded outputs instead of weights: what an evaluation wrote down about each item.

Two formats: TOFU's `eval_log_aggregated.json` (locuslab/tofu) and open-unlearning's evaluation JSON (`TOFU_EVAL.json`). The
task is read from the records as well, so an auditor who was only given outputs can still audit. What was not recorded cannot be
asked: the attacks that need more are skipped with the reason.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Literal

from muaudit.errors import ModelError, NotApplicable
from muaudit.loaders.example_columns import half_character
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase

Format = Literal["tofu", "open_unlearning"]
UNRECORDED = "(text not recorded)"

_TOFU_SETS = {"forget": "eval_log_forget.json", "retain": "eval_log.json"}
_TOFU_UTILITY = ("eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json")
_OPEN_SETS = {"forget": "forget", "retain": "retain"}


@dataclass(frozen=True)
class Item:
    """What was recorded about one item; losses are mean negative log-probabilities a token, in nats.

    Attributes:
        prompt: The question as it was asked.
        answer: The gold answer.
        generated: What the model said; None where it was not recorded.
        losses: Mean loss by role, one entry an index.
        tokens: Number of tokens behind each loss.
        rouge_l_recall: As recorded, in [0, 1].
    """

    prompt: str
    answer: str
    generated: str | None
    losses: Mapping[str, tuple[float, ...]]
    tokens: Mapping[str, tuple[int, ...]]
    rouge_l_recall: float | None


class Recorded:
    """A model of which only outputs were recorded.

    Attributes:
        items: The records by unit id (`forget-17`), in recorded order.
    """

    def __init__(self, items: Mapping[str, Item], digest: str, utility: Mapping[str, float] | None = None) -> None:
        self.items = items
        self._digest = digest
        self._utility = dict(utility or {})
        self.model_seconds = 0.0

    @classmethod
    def open(cls, path: Path, form: Format) -> "Recorded":
        """Reads one model's records.

        Args:
            path: The JSON file.
            form: Which program wrote it.

        Returns:
            The model.

        Raises:
            ModelError: The file cannot be read, is not of that format, or holds a number that is none.
        """
        data = _load(path)
        try:
            items = _tofu_items(data) if form == "tofu" else _open_unlearning_items(data)
            utility = _tofu_utility(data) if form == "tofu" else {}
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError) as error:
            raise ModelError(f"{path}: not a {form} evaluation log: {type(error).__name__}: {error}; check `format`") from error
        if not any(unit.startswith("forget-") for unit in items):
            raise ModelError(f"{path}: no forget items in this {form} evaluation log; check `format` and that the run finished")
        _refuse_nan(path, items, utility)
        return cls(items, manifest_digest(manifest(path)), utility)

    @property
    def digest(self) -> str:
        """Digest of the recorded file."""
        return self._digest

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        """Looks up the recorded loss of each completion.

        Raises:
            ModelError: A completion was not recorded.
            NotApplicable: A prompt is an attack's own.
        """
        _refuse_probes(queries)
        scores = []
        for query in queries:
            losses = self._item(query).losses.get(query.role, ())
            if query.index >= len(losses):
                raise ModelError(f"unit {query.unit!r}: no {query.role} {query.index} was recorded; record it or leave it out")
            tokens = self.items[query.unit].tokens[query.role][query.index]
            scores.append(TextScore(log_probability=-losses[query.index] * tokens, tokens=tokens))
        return scores

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        """Looks up the recorded generations; `max_new_tokens` was the recorder's choice.

        Raises:
            ModelError: A generation was not recorded.
            NotApplicable: A prompt is an attack's own.
        """
        _refuse_probes(queries)
        texts = [self._item(query).generated for query in queries]
        for query, text in zip(queries, texts, strict=True):
            if text is None:
                raise ModelError(f"unit {query.unit!r}: no generation was recorded; record it or leave the unit out")
        return [text for text in texts if text is not None]

    def rouge_l_recall(self, units: Sequence[str]) -> list[float] | None:
        """The recorded ROUGE-L recall of each unit; None where any was not recorded."""
        values = [self.items[unit].rouge_l_recall for unit in units]
        return None if any(value is None for value in values) else [value for value in values if value is not None]

    def model_utility(self) -> dict[str, float]:
        """TOFU's model utility under both published truth ratios; empty where not all nine parts were recorded."""
        return self._utility

    def task(self, cluster_size: int) -> ForgetTask:
        """The forget task that these records answer.

        Args:
            cluster_size: How many items in a row make a cluster (20 in TOFU: one author).

        Returns:
            A task with the recorded questions and answers; texts that were not recorded are marked so.
        """
        sets: dict[str, list[Fact]] = {"forget": [], "retain": []}
        for unit, item in self.items.items():
            name, number = unit.split("-")
            facts = sets[name]
            facts.append(
                Fact(
                    id=unit,
                    cluster=f"{name} {len(facts) // cluster_size + 1:03d}",
                    question=item.prompt or f"item {number}",
                    answer=item.answer or UNRECORDED,
                    paraphrases=tuple(
                        Paraphrase(form="recorded", prompt=item.prompt or f"item {number}", completion=UNRECORDED)
                        for _ in item.losses.get("paraphrase", ())
                    ),
                    wrong_answers=tuple(
                        f"{UNRECORDED} {index + 1}" for index in range(len(item.losses.get("wrong_answer", ())))
                    ),
                )
            )
        return ForgetTask(forget=tuple(sets["forget"]), retain=tuple(sets["retain"]), template="{question}")

    def _item(self, query: Query) -> Item:
        if query.unit not in self.items:
            raise ModelError(
                f"unit {query.unit!r}: not among the recorded items; all models must be recorded on the same items"
            )
        return self.items[query.unit]


def _refuse_probes(queries: Sequence[Query]) -> None:
    """A recording answers only what was recorded: its scores must never pass for answers to another prompt."""
    if any(query.role == "probe" for query in queries):
        raise NotApplicable("recorded outputs answer only what was recorded, and this attack asks prompts of its own")


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check `path`") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); a recorded model is one JSON file") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: a {type(data).__name__} where an object belongs; check `format`")
    if half_character(data):
        raise ModelError(f"{path}: holds half a character (\\ud800 to \\udfff alone); record whole characters")
    return data


def _tofu_items(data: Mapping[str, Any]) -> dict[str, Item]:
    items = {}
    for name, section in _TOFU_SETS.items():
        log = data[section] if name == "forget" else data.get(section, {"avg_gt_loss": {}})
        for key in sorted(log["avg_gt_loss"], key=int):
            said = log["generated_text"][key]
            items[f"{name}-{int(key)}"] = Item(
                prompt=str(said[0]),
                generated=str(said[1]),
                answer=str(said[2]),
                losses={
                    "answer": (float(log["avg_gt_loss"][key]),),
                    "paraphrase": (float(log["avg_paraphrased_loss"][key]),),
                    "wrong_answer": tuple(map(float, log["average_perturb_loss"][key])),
                },
                tokens={
                    "answer": (int(log["num_token_gt"][key]),),
                    "paraphrase": (int(log["num_token_paraphrased"][key]),),
                    "wrong_answer": tuple(map(int, log["num_token_perturb"][key])),
                },
                rouge_l_recall=float(log["rougeL_recall"][key]),
            )
    return items


def _tofu_utility(data: Mapping[str, Any]) -> dict[str, float]:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over retain, real authors and world facts.

    locuslab/tofu averages the wrong answers' probabilities in its model utility (arithmetic) and their losses in its forget
    quality (geometric); both are in use, so both are given, by name.
    """
    if any(section not in data for section in _TOFU_UTILITY):
        return {}
    parts: dict[str, list[float]] = {"model_utility_arithmetic": [], "model_utility_geometric": []}
    for section in _TOFU_UTILITY:
        log = data[section]
        keys = list(log["avg_gt_loss"])
        right = [math.exp(-log["avg_gt_loss"][key]) for key in keys]
        wrong = [log["average_perturb_loss"][key] for key in keys]
        if section != "eval_log.json":  # outside the retain set, a probability among the options
            right = [p / (p + sum(math.exp(-loss) for loss in losses)) for p, losses in zip(right, wrong, strict=True)]
        recall = _mean([float(log["rougeL_recall"][key]) for key in keys])
        for name, average in (("model_utility_arithmetic", _log_mean_exp), ("model_utility_geometric", _mean)):
            shares = [
                max(0.0, 1 - math.exp(min(average([-loss for loss in losses]) + log["avg_paraphrased_loss"][key], 0.0)))
                for key, losses in zip(keys, wrong, strict=True)
            ]
            parts[name] += [_mean(right), recall, _mean(shares)]
    return {name: harmonic_mean(nine) for name, nine in parts.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log_mean_exp(values: Sequence[float]) -> float:
    """Logarithm of the mean of exponentials, without underflow."""
    top = max(values)
    return top + math.log(_mean([math.exp(value - top) for value in values]))


def _open_unlearning_items(data: Mapping[str, Any]) -> dict[str, Item]:
    items = {}
    for name, prefix in _OPEN_SETS.items():
        answers = _by_index(data, f"{prefix}_Q_A_Prob")
        spoken = _by_index(data, f"{prefix}_Q_A_ROUGE")
        paraphrases = _by_index(data, f"{prefix}_Q_A_PARA_Prob")
        wrongs = _by_index(data, f"{prefix}_Q_A_PERT_Prob")
        for key in sorted(answers, key=int):
            said = spoken.get(key, {})
            losses = {
                "answer": _losses(answers[key]),
                "paraphrase": _losses(paraphrases.get(key, {})),
                "wrong_answer": _losses(wrongs.get(key, {})),
            }
            items[f"{name}-{int(key)}"] = Item(
                prompt=str(said.get("input", "")),
                generated=None if said.get("generation") is None else str(said["generation"]),
                answer=str(said.get("ground_truth", "")),
                losses=losses,
                tokens={role: (1,) * len(values) for role, values in losses.items()},  # open-unlearning records means alone
                rouge_l_recall=None if said.get("rougeL_recall") is None else float(said["rougeL_recall"]),
            )
    return items


def _by_index(data: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return dict(data.get(metric, {}).get("value_by_index") or {})


def _losses(entry: Any) -> tuple[float, ...]:  # noqa: ANN401 - open-unlearning nests one record or a list of records an item
    """Mean losses of one item's record: `avg_loss` is a number, or a list where there are several completions."""
    if isinstance(entry, Mapping):
        loss = entry.get("avg_loss")
        return () if loss is None else tuple(map(float, loss)) if isinstance(loss, list) else (float(loss),)
    return tuple(loss for part in entry for loss in _losses(part))


def _refuse_nan(path: Path, items: Mapping[str, Item], utility: Mapping[str, float]) -> None:
    """Refuses numbers that no model can have given, which would otherwise turn into leakage."""
    for unit, item in items.items():
        if fault := _impossible(item):
            raise ModelError(f"{path}: unit {unit!r}: {fault}; mend the recording")
    for name, value in utility.items():
        if not math.isfinite(value):
            raise ModelError(
                f"{path}: {name} comes to {value}: a utility section holds a number that is none; mend the recording"
            )


def _impossible(item: Item) -> str | None:
    if not item.losses["answer"]:
        return "no answer loss was recorded"
    for role, losses in item.losses.items():
        if len(losses) != len(item.tokens[role]):
            return f"{len(losses)} {role} losses were recorded with {len(item.tokens[role])} token counts"
        for loss, tokens in zip(losses, item.tokens[role], strict=True):
            if not 0 <= loss < math.inf:
                return f"a recorded {role} loss is {loss}, which is no mean negative log-probability"
            if tokens < 1:
                return f"a recorded {role} has {tokens} tokens"
    if item.rouge_l_recall is not None and not 0 <= item.rouge_l_recall <= 1:
        return f"ROUGE-L recall {item.rouge_l_recall} is outside [0, 1]"
    return None
