"""What is quoted of a score, against scikit-learn and exact intervals, and augmented queries against loops."""

import numpy as np
import pytest
from scipy import stats

from muaudit.augmentation import augmented, queries
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators.roc_summary import best_threshold, summarise


def sides(members: int = 150, others: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, members).round(1), rng.normal(0, 1, others).round(1)  # rounded, so that scores tie


def names(count: int, prefix: str) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_the_numbers_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = sides(others=1_000)
    found = summarise(inside, outside, names(150, "m"), names(1_000, "n"), threshold=0.75)
    truth, scores = [1] * 150 + [0] * 1_000, np.concatenate([inside, outside])
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    assert found.numbers["auc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found.numbers["balanced_accuracy"] == pytest.approx(((1 + tpr - fpr) / 2).max())
    for name, share in (("0.1", 0.001), ("1", 0.01)):
        value = tpr[fpr <= share].max()
        assert found.numbers[f"tpr_at_{name}_percent_fpr"] == pytest.approx(value)
        exact = stats.binomtest(round(value * 150), 150).proportion_ci(0.95, "exact")
        assert found.numbers[f"tpr_at_{name}_percent_fpr_low"] == pytest.approx(exact.low)
        assert found.numbers[f"tpr_at_{name}_percent_fpr_high"] == pytest.approx(exact.high)
    right = metrics.balanced_accuracy_score(truth, scores >= 0.75)
    assert found.numbers["calibrated_balanced_accuracy"] == pytest.approx(right)
    assert found.numbers["calibrated_tpr"] == np.mean(inside >= 0.75)
    exact = stats.binomtest(int((outside >= 0.75).sum()), 1_000).proportion_ci(0.95, "exact")
    assert found.numbers["calibrated_fpr_low"] == pytest.approx(exact.low)
    assert not found.notes


def test_the_curve_is_the_roc_in_logarithms() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = sides()
    roc = summarise(inside, outside, names(150, "m"), names(400, "n")).roc
    fpr, tpr, _ = metrics.roc_curve([1] * 150 + [0] * 400, np.concatenate([inside, outside]), drop_intermediate=False)
    for x, y in zip(roc.x, roc.y, strict=True):
        assert 10**y == pytest.approx(max(tpr[fpr <= 10**x + 1e-9].max(), 0.5 / 150))
    assert (roc.x[0], roc.x[-1], roc.y[-1]) == (pytest.approx(np.log10(1 / 400)), 0.0, 0.0)
    other = summarise(*sides(seed=1), names(150, "m"), names(400, "n")).roc
    assert other.x == roc.x, "curves of several models lie over each other"


def test_rates_that_cannot_be_resolved_are_refused() -> None:
    found = summarise(*sides(others=99), names(150, "m"), names(99, "n"))
    assert not [name for name in found.numbers if "tpr" in name]
    assert "99 holdout examples cannot resolve it; it takes 1000, and 2995 to show" in found.notes[0]
    assert "it takes 100, and 299 to show" in found.notes[1]


def test_clusters_on_both_sides_leave_the_auc_without_an_interval() -> None:
    found = summarise(*sides(), ["one"] * 150, names(400, "n"))
    assert "auc_low" not in found.numbers
    assert "the AUC has no interval" in found.notes[0]
    shared = summarise(*sides(), names(150, "m"), names(400, "m"))
    assert "auc_low" not in shared.numbers


def test_the_best_threshold_is_the_most_accurate_one() -> None:
    inside, outside = sides()
    found = best_threshold(inside, outside)
    assert found is not None

    def accuracy(threshold: float) -> float:
        return float((inside >= threshold).mean() + (outside < threshold).mean())

    assert accuracy(found) == max(map(accuracy, np.concatenate([inside, outside])))
    assert best_threshold([0.0], [1.0]) is None


def test_queries_are_mirrored_and_shifted_by_every_step() -> None:
    inputs = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4) + 1
    found = list(augmented(inputs, "mirror_shift", 2))
    assert len(found) == queries("mirror_shift", 2) == 2 * (2 * 2 + 1) ** 2
    assert np.array_equal(found[0], inputs), "the input as it is comes first"
    expected = []
    for source in (inputs, inputs[..., ::-1]):
        for down in range(-2, 3):
            for across in range(-2, 3):
                moved = np.zeros_like(inputs)
                for row in range(3):
                    for column in range(4):
                        if 0 <= row + down < 3 and 0 <= column + across < 4:
                            moved[..., row, column] = source[..., row + down, column + across]
                expected.append(moved.tobytes())
    assert sorted(one.tobytes() for one in found) == sorted(expected)
    assert [one.tolist() for one in augmented(inputs, "mirror", 0)] == [inputs.tolist(), inputs[..., ::-1].tolist()]
    assert (queries("none", 0), queries("mirror", 0), queries("shift", 1)) == (1, 2, 9)


def test_what_cannot_be_augmented_is_said() -> None:
    table = np.zeros((3, 5), dtype=np.float32)
    assert [one.shape for one in augmented(table, "none", 0)] == [(3, 5)]
    with pytest.raises(NotApplicable, match=r"the shape \[5\]"):
        list(augmented(table, "mirror", 0))
    with pytest.raises(UsageError, match="shift = 1 or more pixels"):
        queries("mirror", 1)
