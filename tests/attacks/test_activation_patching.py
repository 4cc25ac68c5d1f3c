"""The depth score against its formula, and at its two anchors: the original leaks everything, the reference nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

causal_lm = pytest.importorskip("muaudit.models.causal_lm")

from muaudit import compute  # noqa: E402
from muaudit.attack import Bench, Measurement, Prepared  # noqa: E402
from muaudit.attacks.activation_patching import ActivationPatching, depth_score, erasure  # noqa: E402
from muaudit.errors import ModelError, NotApplicable  # noqa: E402
from muaudit.task import ForgetTask  # noqa: E402

Build = Callable[[str, Sequence[str]], dict[str, Path]]


def opened(path: Path) -> Any:
    return causal_lm.CausalLM.open(path, dtype="float32", device="cpu")


def task_of(folder: dict[str, Path]) -> ForgetTask:
    return ForgetTask.from_jsonl(forget=folder["forget"], retain=folder["retain"])


def bench(folder: dict[str, Path], original: str = "original", calibration: str | None = "reference-3") -> Bench:
    relative = None if calibration is None else (lambda: opened(folder[calibration]))
    return Bench(task_of(folder), np.random.default_rng(1), frozenset(), lambda: opened(folder[original]), relative)


@pytest.fixture(scope="module")
def prepared(lineage: dict[str, Path]) -> Prepared:
    with compute.settled(1):
        return ActivationPatching().prepare(bench(lineage)).with_original(lambda: opened(lineage["original"]))


def measured(prepared: Prepared, path: Path) -> Measurement:
    with compute.settled(1):
        return ActivationPatching().measure(opened(path), prepared, np.random.default_rng(1))


def test_the_score_is_the_papers_formula() -> None:
    """By hand: layers 1 and 2 encode; ratios 0.5 and, clipped, 1; weights 2 and 1."""
    first, second = np.array([[0.05, 2.0, 1.0]]), np.array([[9.0, 1.0, 3.0]])
    ratios = erasure(first, second, 0.05)
    assert np.isnan(ratios[0, 0])
    assert ratios[0, 1:].tolist() == [0.5, 1.0]
    assert depth_score(first, ratios)[0] == pytest.approx((2 * 0.5 + 1 * 1) / 3)
    assert depth_score(first, erasure(first, -second, 0.05))[0] == 0


def test_the_original_leaks_everything_and_the_reference_nothing(prepared: Prepared, lineage: dict[str, Path]) -> None:
    assert np.allclose(measured(prepared, lineage["original"]).leakage, 1.0, atol=1e-6)
    assert np.allclose(measured(prepared, lineage["reference-3"]).leakage, 0.0, atol=1e-5)


def test_another_reference_leaks_little_and_the_heat_map_says_where(prepared: Prepared, lineage: dict[str, Path]) -> None:
    seen = measured(prepared, lineage["reference-1"])
    assert np.mean(seen.leakage) < 0.35
    (shown,) = seen.heat_maps.values()
    costs = np.array([unit["costs"] for unit in prepared.data["units"]])
    for layer, row in enumerate(shown.values):
        assert [value is None for value in row] == (costs[:, layer] <= 0.05).tolist()
    assert "with this model's states at layer 0:" in seen.transcripts[seen.units[0]].output


def test_models_of_other_bases_are_refused(small: dict[str, Path]) -> None:
    with pytest.raises(NotApplicable, match=r"do not share a base: .* cost (9\d|100)% of the answer probability"):
        ActivationPatching().prepare(bench(small))


def test_it_needs_an_original_a_spare_reference_and_retained_facts(lineage: dict[str, Path]) -> None:
    with pytest.raises(NotApplicable, match="at least two references"):
        ActivationPatching().prepare(bench(lineage, calibration=None))
    facts = task_of(lineage)
    with pytest.raises(NotApplicable, match=r"give the audit \[original\]"):
        ActivationPatching().prepare(Bench(facts, np.random.default_rng(1), frozenset()))
    bare = bench(lineage)
    with pytest.raises(NotApplicable, match="retain set"):
        ActivationPatching().prepare(
            Bench(ForgetTask(facts.forget), bare.rng, frozenset(), bare.open_original, bare.open_calibration)
        )


def test_an_original_that_knows_nothing_is_said_so(lineage: dict[str, Path]) -> None:
    """Facts that no layer encodes are left out; with a threshold that nothing reaches, none is left."""
    with compute.settled(1), pytest.raises(NotApplicable, match=r"only 0 of .* it hardly knows them"):
        ActivationPatching(threshold=100.0).prepare(bench(lineage))
    with compute.settled(1):
        some = ActivationPatching(threshold=9.0).prepare(bench(lineage))
    assert 0 < len(some.data["units"]) < len(task_of(lineage).forget)
    assert "are not scored, since no layer encodes them" in some.data["notes"][0]


def test_another_architecture_is_an_error(prepared: Prepared, tiny: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="another architecture"):
        measured(prepared, tiny["original"])
