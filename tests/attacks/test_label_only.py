"""Robustness of labels where the boundary is known in closed form, and what a model that gives labels only is asked."""

import builtins
from dataclasses import replace
from typing import Any

import numpy as np
import parzen
import pytest

from muaudit.attacks.label_only import LabelOnly
from muaudit.errors import EnvironmentFault, NotApplicable
from muaudit.examples import Examples, LabelledTask

WAYS = ["boundary", "noise"]


@pytest.fixture(scope="module")
def given() -> LabelledTask:
    return parzen.task()


class Plane:
    """Two classes, divided by a plane: every distance to the boundary is known."""

    model_seconds, digest = 0.0, "plane"

    def __init__(self, factor: float = 1.0, columns: int = 6) -> None:
        normal = np.random.default_rng(1).normal(size=columns)
        self.normal, self.factor, self.asked = normal / np.linalg.norm(normal), factor, 0

    def logits_of(self, inputs: np.ndarray) -> np.ndarray:
        self.asked += len(inputs)
        side = inputs.reshape(len(inputs), -1).astype(np.float64) @ self.normal
        return self.factor * np.stack([-side, side], axis=1)

    def logits(self, examples: Examples) -> np.ndarray:
        return self.logits_of(examples.pictured())


@pytest.fixture(scope="module")
def flat() -> LabelledTask:
    """Examples on both sides of the plane, most of them with the plane's label."""
    rng, plane = np.random.default_rng(0), Plane()

    def part(name: str, count: int) -> Examples:
        inputs = rng.normal(size=(count, 6)).astype(np.float32)
        labels = plane.logits_of(inputs).argmax(1)
        labels[: count // 5] = 1 - labels[: count // 5]
        names = tuple(f"{name}-{number}" for number in range(count))
        return Examples(names, names, labels, inputs)

    return LabelledTask(part("forget", 20), part("retain", 10), part("holdout", 30))


def test_the_distance_found_is_near_the_true_one(flat: LabelledTask) -> None:
    pytest.importorskip("art")
    attack, plane = LabelOnly(iterations=8, evaluations=200), Plane()
    from muaudit.attacks.label_only import _Labels

    inputs = flat.pool.pictured()
    asked = _Labels(plane)
    called = asked(inputs)
    found = attack._distances(asked, inputs, called, np.ones(len(inputs), dtype=bool), seed=3)
    true = np.abs(inputs.astype(np.float64) @ plane.normal)
    assert (found >= true - 1e-5).all(), "nothing nearer than the boundary is on its other side"
    assert np.median(found / true) < 1.05
    coarse = LabelOnly(iterations=1, evaluations=10)._distances(asked, inputs, called, np.ones(len(inputs), dtype=bool), seed=3)
    assert coarse.mean() > found.mean()


def test_the_share_of_noisy_copies_is_their_probability(flat: LabelledTask) -> None:
    from scipy import stats

    from muaudit.attacks.label_only import LEVELS, _Labels

    plane, inputs = Plane(), flat.pool.pictured()
    own = plane.logits_of(inputs).argmax(1)
    found = LabelOnly(robustness="noise", copies=400)._shares(_Labels(plane), inputs, own, seed=3)
    distance, spread = np.abs(inputs.astype(np.float64) @ plane.normal), inputs.std()
    expected = np.mean([stats.norm.cdf(distance / (level * spread)) for level in LEVELS], axis=0)
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("robustness", WAYS)
def test_what_is_called_something_else_scores_nothing(flat: LabelledTask, robustness: Any) -> None:
    if robustness == "boundary":
        pytest.importorskip("art")
    attack, plane = LabelOnly(robustness=robustness, iterations=1, evaluations=10), Plane()
    seen = parzen.measured(attack, parzen.prepared(attack, parzen.bench(flat, 0)), plane)
    assert seen.summaries["queries_per_example"] == plane.asked / 60
    right = plane.logits(flat.forget).argmax(1) == flat.forget.labels
    wrong_in_holdout = np.mean(plane.logits(flat.holdout).argmax(1) != flat.holdout.labels)
    assert 0 < right.sum() < 20
    assert np.array(seen.leakage[:20])[~right] == pytest.approx(wrong_in_holdout / 2), "tied with every other one"
    assert (np.array(seen.leakage[:20])[right] >= wrong_in_holdout).all()


@pytest.mark.parametrize("robustness", WAYS)
def test_only_labels_are_looked_at_and_nothing_is_left_to_chance(flat: LabelledTask, robustness: Any) -> None:
    """Scores a thousand times as sure, in an audit that has drawn numbers of its own in between, change no byte."""
    if robustness == "boundary":
        pytest.importorskip("art")
    attack = LabelOnly(robustness=robustness)
    state = parzen.prepared(attack, parzen.bench(flat, 0))
    np.random.seed(1)  # what ART draws from
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    first = parzen.measured(attack, state, Plane())
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]
    np.random.seed(2)
    assert parzen.measured(attack, state, Plane(1000.0)).canonical() == first.canonical()
    assert parzen.prepared(attack, parzen.bench(flat, 0)).content_digest() == state.content_digest()


def test_a_model_that_calls_everything_the_same_has_no_boundary(flat: LabelledTask) -> None:
    pytest.importorskip("art")

    class Constant(Plane):
        def logits_of(self, inputs: np.ndarray) -> np.ndarray:
            return np.tile([1.0, 0.0], (len(inputs), 1))

    state = parzen.prepared(LabelOnly(), parzen.bench(flat, 0))
    seen = parzen.measured(LabelOnly(), state, Constant())
    assert len({leak for leak, label in zip(seen.leakage, flat.forget.labels, strict=False) if label == 0}) == 1


def test_holdout_and_retain_examples_are_drawn(given: LabelledTask) -> None:
    attack = LabelOnly(robustness="noise", retain_examples=10, holdout_examples=30, copies=2)
    state = parzen.prepared(attack, parzen.bench(given, 0))
    seen = parzen.measured(attack, state, parzen.trained(given, ["retain"], 11))
    assert seen.sets == ("forget",) * 40 + ("retain",) * 10
    assert len(state.data["holdout"]) == 30
    assert any("ranked among 30 of 100 holdout examples" in note for note in seen.notes)


def test_recorded_outputs_and_a_missing_toolbox_are_said(given: LabelledTask, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = {name: replace(part, inputs=None) for name, part in given.sets()}
    with pytest.raises(NotApplicable, match="give the inputs too"):
        LabelOnly(robustness="noise").prepare(parzen.bench(replace(given, **bare), 0))

    class Outputs:
        def logits(self, examples: Examples) -> np.ndarray:
            raise AssertionError

    assert LabelOnly().missing(Outputs) == ["ClassifiesInputs"]
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "art":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentFault, match=r"pip install 'muaudit\[vision\]'"):
        LabelOnly().prepare(parzen.bench(given, 0))


@pytest.mark.parametrize("robustness", WAYS)
def test_the_judge_flags_the_original_and_passes_honest_retrains(robustness: Any) -> None:
    if robustness == "boundary":
        pytest.importorskip("art")
    attack, given = LabelOnly(robustness=robustness, retain_examples=0), parzen.task(wrong=0.6)
    found = parzen.verdicts(attack, given, parzen.bench(given, 0), margin=0.1)
    assert found == {"original": ["fail"], "retrain": ["pass"], "references": ["not flagged"] * 3}
