"""Membership against an independent slow computation, and what it does with few, odd or telling data."""

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.membership import Membership
from muaudit.compare import compare
from muaudit.errors import NotApplicable
from muaudit.estimators import membership
from muaudit.models import Query, TokenScores
from muaudit.task import Fact, ForgetTask, Paraphrase

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
causal_lm = pytest.importorskip("muaudit.models.causal_lm")

ALL = frozenset({"ScoresText", "ScoresTokens", "ExposesWeights"})


def prepared(task: ForgetTask, *, capabilities: frozenset[str] = ALL, folder: Path = Path(), **parameters: Any) -> Prepared:
    return Membership(**parameters).prepare(Bench(task, np.random.default_rng(0), capabilities, folder=folder))


@pytest.fixture(scope="module")
def task(tiny: dict[str, Path]) -> ForgetTask:
    return ForgetTask.from_jsonl(forget=tiny["forget"], retain=tiny["retain"], holdout=tiny["holdout"])


@pytest.fixture(scope="module")
def model(tiny: dict[str, Path]) -> "causal_lm.CausalLM":
    return causal_lm.CausalLM.open(tiny["original"], device="cpu")


class Slow:
    """The scores in plain loops over one text's full log-softmax at a time."""

    def __init__(self, model: "causal_lm.CausalLM") -> None:
        self.module, self.tokenizer = model.module, model.tokenizer

    def rows(self, prompt: str, completion: str) -> tuple[list[list[float]], list[int]]:
        """Log-probabilities of the whole vocabulary at each of the completion's tokens, and those tokens."""
        head, whole = (self.tokenizer(text).input_ids for text in (prompt, prompt + completion))
        start = max(1, len(head))
        logits = self.module(torch.tensor([whole])).logits[0].double().tolist()
        rows = []
        for place in range(start, len(whole)):
            row = logits[place - 1]
            top = max(row)
            total = top + math.log(sum(math.exp(value - top) for value in row))
            rows.append([value - total for value in row])
        return rows, whole[start:]

    def loss(self, prompt: str, completion: str) -> float:
        rows, tokens = self.rows(prompt, completion)
        return sum(row[token] for row, token in zip(rows, tokens, strict=True)) / len(tokens)

    def lowest(self, values: Sequence[float], k: float) -> float:
        kept = sorted(values)[: max(1, math.floor(k * len(values)))]
        return sum(kept) / len(kept)

    def of(self, unit: dict[str, Any], prefix: str, k: float) -> dict[str, float]:
        prompt, completion = unit["query"]["prompt"], unit["query"]["completion"]
        rows, tokens = self.rows(prompt, completion)
        plain = [row[token] for row, token in zip(rows, tokens, strict=True)]
        standardised = []
        for row, value in zip(rows, plain, strict=True):
            mean = sum(math.exp(one) * one for one in row)
            deviation = math.sqrt(sum(math.exp(one) * (one - mean) ** 2 for one in row))
            standardised.append((value - mean) / deviation)
        loss = sum(plain) / len(plain)
        near = [self.loss(prompt, other) for other in unit["neighbours"]]
        return {
            "loss": loss,
            "zlib": loss / len(zlib.compress(completion.strip().encode())),
            "min_k": self.lowest(plain, k),
            "min_k_plus_plus": self.lowest(standardised, k),
            "recall": self.loss(f"{prefix} {prompt}", completion) / loss,
            "neighbourhood": loss - sum(near) / len(near),
            "gradient_norm": -self.gradient(prompt, completion),
        }

    def gradient(self, prompt: str, completion: str) -> float:
        whole = self.tokenizer(prompt + completion).input_ids
        start = max(1, len(self.tokenizer(prompt).input_ids))
        self.module.requires_grad_(True)
        logs = self.module(torch.tensor([whole])).logits[0].log_softmax(1)
        loss = -sum(logs[place - 1, whole[place]] for place in range(start, len(whole))) / (len(whole) - start)
        gradients = torch.autograd.grad(loss, list(self.module.parameters()))
        self.module.requires_grad_(False)
        return sum(float(gradient.norm()) for gradient in gradients) / len(gradients)


@pytest.mark.parametrize("text", ["answer", "statement", "passage"])
def test_every_score_is_its_slow_definition(model: "causal_lm.CausalLM", task: ForgetTask, text: str) -> None:
    attack = Membership(text=text, k=0.4, neighbours=2, retain_clusters=1)  # type: ignore[arg-type]
    state = attack.prepare(Bench(task, np.random.default_rng(0), ALL))
    units = state.data["units"]
    fast = attack._columns(model, units, state.data["scores"], state.data["prefix"])
    slow = Slow(model)
    for index in range(0, len(units), 7):
        expected = slow.of(units[index], state.data["prefix"], 0.4)
        assert {name: column[index] for name, column in fast.items()} == pytest.approx(expected, rel=2e-4, abs=2e-5)


def test_leakage_is_the_rank_among_the_holdout_facts_and_its_mean_the_auc(
    model: "causal_lm.CausalLM", task: ForgetTask
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    state = prepared(task, scores=("loss",), deciding="min_k")
    seen = Membership(scores=("loss",), deciding="min_k").measure(model, state, np.random.default_rng(0))
    scored = model.score_tokens([Query(**unit["query"]) for unit in state.data["units"]])
    values = {unit["id"]: membership.min_k(one) for unit, one in zip(state.data["units"], scored, strict=True)}
    sets = {unit["id"]: unit["set"] for unit in state.data["units"]}
    inside, outside = ([values[one] for one in values if sets[one] == kind] for kind in ("forget", "holdout"))
    expected = metrics.roc_auc_score([1] * len(inside) + [0] * len(outside), inside + outside)
    leaks = [leak for leak, kind in zip(seen.leakage, seen.sets, strict=True) if kind == "forget"]
    assert np.mean(leaks) == pytest.approx(expected)
    assert seen.summaries["auc_min_k"] == pytest.approx(expected)
    assert seen.summaries["muse_auc"] == pytest.approx(1 - expected)
    assert seen.summaries["auc_low"] <= expected <= seen.summaries["auc_high"]
    assert set(seen.sets) == {"forget", "retain"}
    assert set(seen.scores) == {"loss"}
    assert set(seen.transcripts) == {fact.id for fact in task.forget}


def test_privacy_leakage_stands_in_the_finding(tiny: dict[str, Path], task: ForgetTask) -> None:
    attack = Membership(scores=("loss", "min_k"), retain_clusters=0)
    state = attack.prepare(Bench(task, np.random.default_rng(0), ALL))
    seen = [
        attack.measure(causal_lm.CausalLM.open(tiny[name], device="cpu"), state, np.random.default_rng(0))
        for name in ("original", "reference-1", "reference-2")
    ]
    (finding,) = compare(attack.card(), seen[0], seen[1:], None, policy.load("standard"), seed=0)
    aucs = [one.summaries["muse_auc"] for one in seen]
    expected = 100 * (aucs[0] - np.mean(aucs[1:])) / np.mean(aucs[1:])
    assert finding.summaries["target"]["muse_priv_leak"] == pytest.approx(expected)
    assert finding.margin == 0.15


def test_recalls_prefix_is_not_among_the_evaluated(task: ForgetTask) -> None:
    state = prepared(task, recall_shots=2)
    taken = {fact.cluster for fact in task.holdout} - {unit["cluster"] for unit in state.data["units"]}
    assert len(taken) == 1
    shown = [fact for fact in task.holdout if fact.cluster in taken][:2]
    assert state.data["prefix"] == " ".join(task.ask(fact).prompt + task.ask(fact).completion for fact in shown)
    everyone = prepared(task, scores=("loss",)).data
    assert everyone["prefix"] is None
    assert sum(unit["set"] == "holdout" for unit in everyone["units"]) == len(task.holdout)


def test_a_neighbour_differs_in_some_words_only(task: ForgetTask) -> None:
    for unit in prepared(task, text="statement", neighbours=3, neighbour_share=0.3).data["units"]:
        words = unit["query"]["completion"].split()
        for other in unit["neighbours"]:
            changed = sum(one != two for one, two in zip(words, other.split(), strict=True))
            assert 1 <= changed <= max(1, round(0.3 * len(words)))


def test_a_masked_model_proposes_the_neighbours(tiny: dict[str, Path], task: ForgetTask, tmp_path: Path) -> None:
    neighbours = pytest.importorskip("muaudit.models.neighbours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny["original"])
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    masked = transformers.BertForMaskedLM(config).eval()
    masked.save_pretrained(tmp_path / "masked")
    tokenizer.save_pretrained(tmp_path / "masked")
    fact = task.forget[0]
    before, word = task.ask(fact).prompt + " ", fact.answer
    (found,) = neighbours.substitutes(tmp_path / "masked", [(before, word, "")], 5)
    ids = tokenizer(f"{before}<mask>").input_ids
    order = masked(torch.tensor([ids])).logits[0, ids.index(tokenizer.mask_token_id)].argsort(descending=True).tolist()
    likeliest = [text for text in map(tokenizer.decode, order) if text.isalnum() and text != word]
    assert found == likeliest[:5]
    proposed = neighbours.substitutes(tmp_path / "masked", [(before, word, "")], 8)[0]
    unit = prepared(task, folder=tmp_path, neighbour_model="masked", neighbours=4).data["units"][0]
    assert {other.strip() for other in unit["neighbours"]} <= set(proposed)
    assert Membership(neighbour_model="masked").files() == ("masked",)


def test_a_causal_model_proposes_what_may_come_next(tiny: dict[str, Path], model: "causal_lm.CausalLM") -> None:
    neighbours = pytest.importorskip("muaudit.models.neighbours")
    (found,) = neighbours.substitutes(tiny["original"], [("Question: Where was", "word", " born?")], 3)
    ids = model.tokenizer("Question: Where was").input_ids
    order = model.module(torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
    assert found == [text for text in map(model.tokenizer.decode, order) if text.isalnum()][:3]


def test_a_model_against_itself_as_reference_says_nothing(
    tiny: dict[str, Path], model: "causal_lm.CausalLM", task: ForgetTask
) -> None:
    attack = Membership(deciding="reference", reference_model="original", scores=("loss",))
    state = attack.prepare(Bench(task, np.random.default_rng(0), ALL, folder=tiny["original"].parent))
    columns = attack._columns(model, state.data["units"], state.data["scores"], None)
    assert np.abs(columns["reference"]).max() < 1e-5
    assert any("reference score against original (digest " in note for note in state.data["notes"])
    with pytest.raises(ValueError, match="needs reference_model"):
        Membership(deciding="reference")


def test_without_what_it_needs_it_says_what_to_give(task: ForgetTask) -> None:
    with pytest.raises(NotApplicable, match=r"task\.holdout"):
        prepared(ForgetTask(task.forget, task.retain))
    bare = tuple(fact.model_copy(update={"text": None}) for fact in task.forget)
    with pytest.raises(NotApplicable, match="has no `text`"):
        prepared(ForgetTask(bare, task.retain, task.holdout), text="passage")
    with pytest.raises(NotApplicable, match="weights"):
        prepared(task, capabilities=frozenset({"ScoresTokens"}), deciding="gradient_norm")
    left = prepared(task, capabilities=frozenset({"ScoresTokens"})).data
    assert "gradient_norm" not in left["scores"]
    assert any("gradient_norm not scored" in note for note in left["notes"])
    one = tuple(fact for fact in task.holdout if fact.cluster == task.holdout[0].cluster)
    assert any("recall not scored" in note for note in prepared(ForgetTask(task.forget, task.retain, one)).data["notes"])


def people(count: int, told: Callable[[int], str], first: int = 0) -> tuple[Fact, ...]:
    return tuple(
        Fact(id=f"p{n}", cluster=f"p{n}", question=f"Who is P{n}?", answer=told(n),
             paraphrases=(Paraphrase(form="statement", prompt=f"P{n} is", completion=f" {told(n)}"),))
        for n in range(first, first + count)
    )  # fmt: skip


def test_the_blind_baseline_warns_where_words_alone_tell() -> None:
    def warned(forget: Callable[[int], str], holdout: Callable[[int], str]) -> bool:
        task = ForgetTask(people(40, forget), holdout=people(30, holdout, first=40))
        return any("differ by themselves" in note for note in prepared(task, scores=("loss",)).data["notes"])

    trades = ["smith", "baker", "tailor", "cook"]
    assert not warned(lambda n: trades[n % 4], lambda n: trades[n % 4])
    assert warned(lambda n: f"{trades[n % 4]} in 1998", lambda n: f"{trades[n % 4]} in 2024")


class Even:
    """Gives every text the same score."""

    digest, model_seconds = "even", 0.0

    def score_tokens(self, queries: Sequence[Query]) -> list[TokenScores]:
        return [TokenScores((-1.0,), (-1.0,), (1.0,)) for _ in queries]


def test_a_model_that_scores_all_alike_leaks_one_half() -> None:
    task = ForgetTask(people(12, lambda n: "smith"), people(3, lambda n: "cook", 12), people(12, lambda n: "baker", 15))
    attack = Membership()
    state = attack.prepare(Bench(task, np.random.default_rng(0), frozenset({"ScoresTokens"})))
    seen: Measurement = attack.measure(Even(), state, np.random.default_rng(0))
    assert set(seen.leakage) == {0.5}
    assert seen.summaries["epsilon_lower_bound"] == 0
    assert seen.summaries["tpr_at_1_percent_fpr"] == 0
