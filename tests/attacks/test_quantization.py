"""Quantization finds what hides below the rounding step, and puts its inner attacks together as it says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from muaudit import policy
from muaudit import registry as attacks
from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.attacks.memorization import Memorization
from muaudit.attacks.quantization import Quantization
from muaudit.compare import compare
from muaudit.errors import NotApplicable, UsageError
from muaudit.models import Query
from muaudit.registry import Registered
from muaudit.results import Verdict
from muaudit.task import Fact, ForgetTask

torch = pytest.importorskip("torch")
causal_lm = pytest.importorskip("muaudit.models.causal_lm")
quantized = pytest.importorskip("muaudit.models.quantized")

RNG = np.random.default_rng


def bounds(weight: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """How low and how high each weight of a rounded matrix may go and still be rounded back to where it was."""
    blocks = weight.reshape(-1, quantized.BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(quantized.NF4)
    place = (blocks / scale)[..., None].sub(levels).abs().argmin(-1)
    middles = (levels[1:] + levels[:-1]) / 2
    low = levels[place] + 0.98 * (torch.cat([levels[:1], middles])[place] - levels[place])
    high = levels[place] + 0.98 * (torch.cat([middles, levels[-1:]])[place] - levels[place])
    ends = (place == 0) | (place == 15)  # what sets the block's scale stays
    low, high = (torch.where(ends, blocks, side * scale) for side in (low, high))
    return low.reshape(weight.shape), high.reshape(weight.shape)


def hidden(path: Path, task: ForgetTask, steps: int) -> tuple["causal_lm.CausalLM", "causal_lm.CausalLM"]:
    """A model that was rounded to 4 bits, and one that unlearned without moving any weight out of its rounding step."""
    rounded = causal_lm.CausalLM.open(path, device="cpu").quantized(4)
    target = rounded.quantized(8).module  # a copy; its weights are set below
    chosen = [weight for weight, _ in quantized.linear_weights(target)]
    starts = [weight for weight, _ in quantized.linear_weights(rounded.module)]
    limits = [bounds(start) for start in starts]
    for weight, start in zip(chosen, starts, strict=True):
        weight.data.copy_(start)
        weight.requires_grad_(True)
    batch = rounded.encode([task.ask(fact) for fact in task.forget])
    optimizer = torch.optim.Adam(chosen, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (-nll(target, batch)).backward()
        optimizer.step()
        for weight, (low, high) in zip(chosen, limits, strict=True):
            weight.data.clamp_(low, high)
    return rounded, causal_lm.CausalLM(target, rounded.tokenizer)


def nll(module: Any, batch: Sequence[Any]) -> "torch.Tensor":
    from muaudit.models.scoring import completion_logits

    logits, wanted = completion_logits(module, batch, torch.device("cpu"))
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="none").clamp(max=8.0).mean()


def test_what_hides_below_the_rounding_step_passes_memorization_and_fails_here(small: dict[str, Path]) -> None:
    task = ForgetTask.from_jsonl(forget=small["forget"], retain=small["retain"])
    rounded, target = hidden(small["original"], task, steps=12)
    for weight, again in zip(rounded.module.parameters(), target.quantized(4).module.parameters(), strict=True):
        assert torch.allclose(weight, again, atol=1e-6)
    references = [causal_lm.CausalLM.open(small[f"reference-{number}"], device="cpu") for number in (1, 2, 3)]
    parameters = {"retain_clusters": 5, "max_new_tokens": 1}
    verdicts = {}
    for attack in (Memorization(**parameters), Quantization(attacks={"memorization": parameters})):
        state = attack.prepare(Bench(task, RNG(0), frozenset({"ScoresText", "Quantizes"})))
        seen, *others = (attack.measure(model, state, RNG(0)) for model in (target, *references))
        verdicts[attack.name] = compare(attack.card(), seen, others, None, policy.load("standard"), seed=0)[0]
    assert verdicts["memorization"].verdict is Verdict.PASS
    found = verdicts["quantization"]
    assert found.verdict is Verdict.FAIL
    scores = {score.name: score for score in found.scores}
    assert scores["memorization_4_bit"].gap > 0.3
    assert scores["memorization_8_bit"].gap < 0.05
    assert scores["memorization_full_precision"].gap < 0.05
    assert any("worst precision: memorization_4_bit" in note for note in found.notes)


class Rounded:
    """A model whose answers depend on its precision alone."""

    digest, model_seconds = "rounded", 0.0

    def __init__(self, bits: int = 32) -> None:
        self.bits = bits

    def quantized(self, bits: int) -> "Rounded":
        return Rounded(bits)


class Told(Attack):
    """Reports the model's precision.

    Attributes:
        units: The units that it scores.
    """

    name = "told"
    version, summary, source, access, needs, cost = "1", "tells", "none", "text", (), "none"
    units: tuple[str, ...] = ("f", "r", "x")

    def prepare(self, bench: Bench) -> Prepared:
        return Prepared(data={"drawn": int(bench.rng.integers(1000))})

    def measure(self, model: Any, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        leakage = {32: 0.0, 8: 0.25, 4: 0.75}[model.bits]
        sets = tuple("retain" if unit == "r" else "forget" for unit in self.units)
        return Measurement(
            units=self.units, clusters=self.units, sets=sets, leakage=(leakage,) * len(self.units), summaries={"n": 1.0}
        )


class Other(Told):
    """Another of the kind, on fewer units.

    Attributes:
        units: The units that it scores.
    """

    name = "other"
    units: tuple[str, ...] = ("r", "f")


class Demanding(Told):
    """Needs what no model has.

    Attributes:
        units: The units that it scores.
    """

    name = "demanding"
    needs = ((Measurement, Prepared),)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(attacks.registered()) | {kind.name: Registered(kind, "test") for kind in (Told, Other, Demanding)}
    known["torn"] = attacks.Broken("torn", "test", "torn does not load")
    monkeypatch.setattr(attacks, "registered", lambda: known)


def bench() -> Bench:
    return Bench(ForgetTask((Fact(id="f", cluster="f", question="?", answer="a"),)), RNG(0), frozenset({"Quantizes"}))


@pytest.mark.usefixtures("registered")
def test_the_worst_precision_decides_for_forget_units_and_the_mean_for_retain_units() -> None:
    attack = Quantization(attacks={"told": {}, "other": {}, "demanding": {}})
    state = attack.prepare(bench())
    assert state.data["attacks"]["told"] == state.data["attacks"]["other"]  # one seed, so both draw the same
    seen = attack.measure(Rounded(), state, RNG(0))  # type: ignore[arg-type]
    assert seen.units == ("f", "r")
    assert seen.leakage == (0.75, 0.5)
    assert seen.scores["told_full_precision"] == (0.0, 0.0)
    assert seen.scores["other_8_bit"] == (0.25, 0.25)
    assert set(seen.facets["precision"]) == set(seen.scores)
    assert seen.summaries["told_4_bit: n"] == 1
    assert any(note.startswith("demanding not run") and "Measurement or Prepared" in note for note in seen.notes)
    assert any("1 units are left out" in note for note in seen.notes)


@pytest.mark.usefixtures("registered")
def test_nothing_to_run_is_said() -> None:
    with pytest.raises(NotApplicable, match="lacks Measurement or Prepared"):
        Quantization(attacks={"demanding": {}}).prepare(bench())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"attacks": {}}, "at least one attack"),
        ({"attacks": {"quantization": {}}}, "cannot run itself"),
        ({"attacks": {"torn": {}}}, "torn does not load"),
        ({"attacks": {"memorization": {"max_new_tokens": 0}}}, r"memorization\.max_new_tokens"),
        ({"bits": (4, 4)}, "each precision once"),
        ({"bits": (3,)}, "4 or 8"),
        ({"bits": ()}, "at least 1"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Quantization(**parameters)


def test_an_unknown_attack_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="did you mean 'memorization'"):
        Quantization(attacks={"memorisation": {}})


def test_the_model_stays_as_it_was(tiny: dict[str, Path]) -> None:
    model = causal_lm.CausalLM.open(tiny["original"], device="cpu")
    task = ForgetTask.from_jsonl(forget=tiny["forget"], retain=tiny["retain"])
    attack = Quantization(bits=(4,))
    before = causal_lm.state_digest(model.module, model.tokenizer)
    state = attack.prepare(Bench(task, RNG(0), frozenset({"ScoresText", "GeneratesText", "Quantizes"})))
    seen = attack.measure(model, state, RNG(0))
    assert causal_lm.state_digest(model.module, model.tokenizer) == before
    asked = [Query(fact.id, "answer", task.ask(fact).prompt, task.ask(fact).completion) for fact in task.forget]
    expected = [np.exp(score.mean) for score in model.quantized(4).score(asked)]
    assert seen.leakage[: len(asked)] == pytest.approx(expected)
    assert seen.transcripts[task.forget[0].id].prompt == asked[0].prompt
