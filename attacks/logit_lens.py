"""Logit lens: do hidden states below the last layer still hold the forgotten answers?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from muaudit.attack import Attack, Bench, Layers, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.language.rivals import Rivals
from muaudit.models import ExposesWeights, Model, Query
from muaudit.results import Transcript
from muaudit.task import Fact, ForgetTask

if TYPE_CHECKING:
    from torch import Tensor

    from muaudit.language.anatomy import Anatomy
    from muaudit.models.tokens import Encoded

WAYS = ("logit_lens", "tuned_lens")


class LogitLens(Attack):
    """Reads each layer's hidden state before the answer as if it were the last, and looks for the answer there.

    Two lenses: the logit lens is the model's own final norm and unembedding; the tuned lens first maps the layer's states to
    the last layer's by an affine map, fitted by ridge regression on the model's own states for retained facts. Both read the
    model by its own means, so that nothing has to be shared with any other model. The answer's first token competes with
    those of other answers of its kind; its share of their probability, above guessing and rescaled to [0, 1], is the leakage
    of that layer. An attacker takes the best, so the leakage of a fact is the largest over layers, lenses and forms. A model
    that refuses at its last layer only is seen through this way: a refusal is not among the competitors.

    The lens is nostalgebraist's (2020) and the tuned lens Belrose et al.'s, whose maps are trained by KL divergence on
    general text; ours is fitted in closed form, and competing answers are our choice.

    Attributes:
        rivals: At most so many competing answers a fact; guessing gives 1 / (rivals + 1).
        forms: At most so many restatements a fact, beside its question.
        fitted: The tuned lens is fitted on at most so many retained facts, drawn by the seed; 0 leaves it out.
        ridge: Its penalty, in units of the states' mean squared norm.
    """

    name: ClassVar = "logit_lens"
    version: ClassVar = "1"
    summary: ClassVar = "Reads hidden states of every layer as tokens, and looks for the forgotten answers among its like."
    source: ClassVar = "Logit lens: nostalgebraist 2020; tuned lens: Belrose et al. 2023 (arXiv 2303.08112)"
    access: ClassVar = "weights"
    needs: ClassVar = (ExposesWeights,)
    cost: ClassVar = "one forward pass a form and fact, and one reading a layer"

    rivals: Annotated[int, Field(ge=1)] = 19
    forms: Annotated[int, Field(ge=0)] = 2
    fitted: Annotated[int, Field(ge=0)] = 200
    ridge: Annotated[float, Field(gt=0)] = 0.1

    def prepare(self, bench: Bench) -> Prepared:
        """Draws each fact's competitors, and the retained facts that the tuned lens is fitted on."""
        found, notes = Rivals(bench.task), []
        units = []
        for fact in bench.task.forget:
            others = found.of(fact, self.rivals, bench.rng)
            prompts = [_prompted(fact, bench.task, self.forms, answer) for answer in (fact.answer, *others)]
            units.append({"id": fact.id, "cluster": fact.cluster, "answer": fact.answer, "prompts": prompts})
        if any(len(unit["prompts"]) < 2 for unit in units):
            raise NotApplicable(
                "the answers have nothing to compete with; give the facts wrong_answers, or more than one answer"
            )
        retain = bench.task.retain
        chosen = sorted(bench.rng.permutation(len(retain))[: self.fitted]) if retain else []
        if not chosen:
            notes.append("no tuned lens: it is fitted on retained facts, and there are none to fit it on")
        fit = [vars(query) for index in chosen for query in _asked(retain[index], bench.task, self.forms, retain[index].answer)]
        return Prepared(data={"units": units, "fit": fit, "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Reads the states; `rng` is not needed, since nothing here is drawn."""
        assert isinstance(model, ExposesWeights)  # noqa: S101 - the runner checked `needs`
        from muaudit.language.anatomy import Anatomy

        anatomy = Anatomy.of(model.network())
        contests, dropped = _contests(model, prepared.data["units"])
        units = [unit for unit in prepared.data["units"] if unit["id"] not in dropped]
        if not units:
            raise NotApplicable("every answer starts with the same token as all its competitors, so none can be told by it")
        notes = list(prepared.data["notes"])
        if dropped:
            notes.append(
                f"{len(dropped)} of {len(prepared.data['units'])} facts are not scored: their answers start with the same "
                f"token as every competitor, {', '.join(sorted(dropped)[:5])} among them"
            )
        fit = [_before_answer(text) for text in model.encode([Query(**query) for query in prepared.data["fit"]])]
        return _measurement(units, contests, _read(anatomy, contests, fit, self.ridge), model.vocabulary(), notes)


def _asked(fact: Fact, task: ForgetTask, forms: int, answer: str) -> list[Query]:
    """The fact's question and its restatements, each with an answer after it."""
    restated = [
        Query(fact.id, "paraphrase", form.prompt, form.completion.replace(fact.answer, answer), index)
        for index, form in enumerate(fact.restatements[:forms])
        if fact.answer in form.completion
    ]
    return [task.ask(fact, answer), *restated]


def _prompted(fact: Fact, task: ForgetTask, forms: int, answer: str) -> list[dict[str, Any]]:
    return [vars(query) for query in _asked(fact, task, forms, answer)]


@dataclass(frozen=True)
class _Contest:
    """One form of a fact: the text up to the answer's first token, and the tokens that compete there, the answer's first."""

    unit: str
    text: "Encoded"
    prompt: str
    tokens: list[int]


def _before_answer(text: "Encoded") -> "Encoded":
    """The text cut after the answer's first token, so that one state, the one before it, is looked at."""
    from muaudit.models.tokens import Encoded

    return Encoded(text.ids[: text.targets[0] + 1], text.targets[:1])


def _contests(model: ExposesWeights, units: Sequence[dict[str, Any]]) -> tuple[list[_Contest], set[str]]:
    """What competes in each form of each fact, and the facts in which nothing does."""
    contests: list[_Contest] = []
    asked = [[[Query(**query) for query in answer] for answer in unit["prompts"]] for unit in units]
    flat = iter(model.encode([query for unit in asked for answer in unit for query in answer]))
    for unit in asked:
        texts = [[_before_answer(next(flat)) for _ in answer] for answer in unit]
        for form, query in enumerate(unit[0]):
            right, *others = (answer[form] for answer in texts)
            tokens = dict.fromkeys(other.ids[-1] for other in others if other.ids[:-1] == right.ids[:-1])
            tokens.pop(right.ids[-1], None)
            if tokens:
                contests.append(_Contest(query.unit, right, query.prompt, [right.ids[-1], *tokens]))
    return contests, {unit["id"] for unit in units} - {contest.unit for contest in contests}


@dataclass(frozen=True)
class _Seen:
    """What one lens shows at one layer, for each of C contests.

    Attributes:
        share: The answer's share of the competitors' probability, above guessing, in [0, 1]; [C].
        probability: That of the answer's first token in the whole vocabulary; [C].
        rank: That token's rank there, from 1; [C].
        first: The tokens that come first; [C, 5].
    """

    share: "Tensor"
    probability: "Tensor"
    rank: "Tensor"
    first: "Tensor"


def _read(anatomy: "Anatomy", contests: Sequence[_Contest], fit: "Sequence[Encoded]", ridge: float) -> dict[str, list[_Seen]]:
    """What each lens shows, layer by layer."""
    states, known = _states(anatomy, [contest.text for contest in contests]), _states(anatomy, fit)
    read = {"logit_lens": [_look(anatomy, layer, contests) for layer in states]}
    if known:
        mapped = (translated(layer, kept, known[-1], ridge) for layer, kept in zip(states[:-1], known[:-1], strict=True))
        read["tuned_lens"] = [*(_look(anatomy, layer, contests) for layer in mapped), read["logit_lens"][-1]]
    return read


def _states(anatomy: "Anatomy", texts: "Sequence[Encoded]") -> "list[Tensor]":
    """Hidden states before the answers, [texts, width] by layer; nothing where there are no texts."""
    import torch

    from muaudit.language.anatomy import batches, log_probabilities, states_captured

    found: list[list[Tensor]] = [[] for _ in anatomy.layers] if texts else []
    for part in batches(texts):
        kept: dict[int, Tensor] = {}
        with states_captured(anatomy, texts[part], kept):
            log_probabilities(anatomy, texts[part])
        for layer, column in enumerate(found):
            column.append(kept[layer].float().cpu())
    return [torch.cat(column) for column in found]


def translated(states: "Tensor", known: "Tensor", last: "Tensor", ridge: float) -> "Tensor":
    """Maps a layer's states to the last layer's, by ridge regression with an intercept, in its dual form.

    Args:
        states: What is mapped, [N, width].
        known: The layer's states for the texts that the map is fitted on, [M, width].
        last: The last layer's states for these texts, [M, width].
        ridge: The penalty, in units of the mean squared norm of the centred `known`.

    Returns:
        [N, width]. The map itself (width by width) is never formed: only the M texts' inner products are.
    """
    import torch

    centre, target = known.double().mean(0), last.double().mean(0)
    centred = known.double() - centre
    products = centred @ centred.T
    penalty = ridge * products.diagonal().mean().clamp(min=1e-12)
    solved = torch.linalg.solve(products + penalty * torch.eye(len(known), dtype=torch.float64), last.double() - target)
    mapped: Tensor = (states.double() - centre) @ centred.T @ solved + target
    return mapped.float()


def _look(anatomy: "Anatomy", states: "Tensor", contests: Sequence[_Contest]) -> _Seen:
    """Reads states [C, width] as tokens."""
    import torch

    columns: list[tuple[Tensor, ...]] = []
    for start in range(0, len(contests), 64):
        logits = anatomy.read(states[start : start + 64].to(anatomy.device)).cpu()
        rows = list(zip(logits, contests[start : start + 64], strict=True))
        right = torch.stack([row[contest.tokens[0]] for row, contest in rows])
        odds = torch.stack([row[contest.tokens].softmax(0)[0] for row, contest in rows])
        chance = torch.tensor([1 / len(contest.tokens) for _, contest in rows])
        columns.append(
            (
                ((odds - chance) / (1 - chance)).clamp(0, 1),
                (right - logits.logsumexp(1)).exp().clamp(max=1),
                (logits > right[:, None]).sum(1) + 1,
                logits.topk(min(5, logits.shape[1])).indices,
            )
        )
    return _Seen(*(torch.cat(parts) for parts in zip(*columns, strict=True)))


def _measurement(
    units: Sequence[dict[str, Any]], contests: Sequence[_Contest], read: dict[str, list[_Seen]], words: Sequence[str],
    notes: Sequence[str],
) -> Measurement:  # fmt: skip
    """Puts the forms of each fact together, by the best of them."""
    shares = {way: np.stack([layer.share.numpy().astype(float) for layer in layers], 1) for way, layers in read.items()}
    lens = read["logit_lens"]
    probability = np.stack([layer.probability.numpy().astype(float) for layer in lens], 1)
    rank = np.stack([layer.rank.numpy().astype(float) for layer in lens], 1)
    best = np.max(list(shares.values()), axis=0)  # [contests, layers]
    own = [np.array([index for index, contest in enumerate(contests) if contest.unit == unit["id"]]) for unit in units]
    scores = {way: tuple(float(share[rows].max()) for rows in own) for way, share in shares.items()}
    said = {}
    for unit, rows in zip(units, own, strict=True):
        place, layer = np.unravel_index(int(best[rows].argmax()), best[rows].shape)
        contest = rows[place]
        seen = " ".join(repr(words[token].strip()) for token in lens[layer].first[contest].tolist())
        said[unit["id"]] = Transcript(
            prompt=contests[contest].prompt,
            expected=unit["answer"],
            output=f"layer {layer} of {len(lens)} reads {seen}; the answer's first token has rank {rank[contest, layer]:.0f}, "
            f"and {best[contest, layer]:.2f} of its competitors' probability above guessing (best lens)",
        )
    rows_of = tuple(f"layer {layer}" for layer in range(len(lens)))
    values = np.stack([best[rows].max(0) for rows in own], 1)  # [layers, units]
    return Measurement(
        units=tuple(unit["id"] for unit in units),
        clusters=tuple(unit["cluster"] for unit in units),
        sets=("forget",) * len(units),
        leakage=tuple(float(best[rows].max()) for rows in own),
        scores=scores
        | {
            "first_token_probability": tuple(float(probability[rows].max()) for rows in own),
            "first_token_reciprocal_rank": tuple(float(1 / rank[rows].min()) for rows in own),
        },
        facets={"lens": tuple(shares)},
        heat_maps={"answer in the hidden state": Layers(rows=rows_of, values=tuple(tuple(row) for row in values.tolist()))},
        transcripts=said,
        summaries={f"leakage_at_layer_{layer}": float(row.mean()) for layer, row in enumerate(values)},
        notes=tuple(notes),
    )
