"""Similarity of models against explicit loops, invariances and simulated levels; projections against their conditions."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.spatial.distance import pdist

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import similarity


def pair(inputs: int = 9, features: tuple[int, int] = (3, 5)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, (inputs, features[0])) + 3
    return first, first @ rng.normal(0, 1, features) + rng.normal(0, 1, (inputs, features[1]))


def biased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC by its definition as a V-statistic, over all quadruples."""
    k, m, size = first @ first.T, second @ second.T, len(first)
    total = sum(k[i, j] * m[i, j] for i in range(size) for j in range(size)) / size**2
    total += k.sum() * m.sum() / size**4
    return total - 2 * sum(k[i, j] * m[i, q] for i in range(size) for j in range(size) for q in range(size)) / size**3


def unbiased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC as a U-statistic: means over distinct indices only."""
    k, m, size = first @ first.T, second @ second.T, len(first)
    two = np.mean([k[i, j] * m[i, j] for i, j in permutations(range(size), 2)])
    three = np.mean([k[i, j] * m[i, q] for i, j, q in permutations(range(size), 3)])
    four = np.mean([k[i, j] * m[q, r] for i, j, q, r in permutations(range(size), 4)])
    return float(two + four - 2 * three)


@pytest.mark.parametrize("features", [(3, 5), (40, 60)])  # through features, and through inputs
def test_alignment_is_that_of_explicit_hsic(features: tuple[int, int]) -> None:
    first, second = pair(features=features)
    for debiased, hsic in ((False, biased_hsic), (True, unbiased_hsic)):
        expected = hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))
        assert similarity.linear_cka(first, second, debiased=debiased) == pytest.approx(expected)
        assert similarity.linear_cka(second, first, debiased=debiased) == pytest.approx(expected)


@pytest.mark.parametrize("debiased", [False, True])
def test_alignment_ignores_rotation_scale_and_shift(debiased: bool) -> None:
    first, second = pair(40)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(0, 1, (5, 5)))[0]
    value = similarity.linear_cka(first, second, debiased=debiased)
    assert similarity.linear_cka(first, 7 * second @ rotation - 2, debiased=debiased) == pytest.approx(value)
    assert similarity.linear_cka(second, 7 * second @ rotation - 2, debiased=debiased) == pytest.approx(1)
    assert value < 0.95


def test_unrelated_wide_representations_align_only_by_bias() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (50, 2000)), rng.normal(0, 1, (50, 2000))
    assert similarity.linear_cka(first, second, debiased=False) > 0.9
    assert abs(similarity.linear_cka(first, second)) < 0.1


def test_representations_without_meaning_are_refused() -> None:
    first, second = pair()
    with pytest.raises(UsageError, match="do not fit"):
        similarity.linear_cka(first[:5], second)
    with pytest.raises(UsageError, match="the same for all inputs"):
        similarity.linear_cka(first, np.full((9, 2), 0.1))
    with pytest.raises(ModelError, match="not a finite number"):
        similarity.linear_cka(first * np.nan, second)


def discrepancy(first: np.ndarray, second: np.ndarray, scale: float, apart: np.ndarray) -> float:
    """MMD^2 over pairs of different clusters, by loops."""
    total, pairs = 0.0, 0
    for i in range(len(first)):
        for j in range(len(first)):
            if apart[i, j]:
                pairs += 1
                for a, b, sign in ((first[i], first[j], 1), (second[i], second[j], 1), (first[i], second[j], -2)):
                    gap = ((a - b) ** 2).sum()
                    total += sign * np.mean([np.exp(-gap / (2 * (width * scale) ** 2)) for width in (0.5, 1, 2)])
    return total / pairs


def test_the_relative_statistic_is_a_difference_of_discrepancies() -> None:
    rng = np.random.default_rng(0)
    target, original = rng.normal(0, 1, (12, 3)), rng.normal(0.5, 1, (12, 3))
    references, codes = rng.normal(0.2, 1, (2, 12, 3)), np.arange(12) // 2
    apart = codes[:, None] != codes[None, :]
    every = [side[i] - side[j] for side in (target, original, *references) for i, j in zip(*np.nonzero(apart), strict=True)]
    scale = float(np.median(np.linalg.norm(every, axis=1)))
    expected = np.mean([discrepancy(target, one, scale, apart) for one in references])
    expected -= discrepancy(target, original, scale, apart)
    found = similarity.kernel_relative_test(target, references, original, codes)
    assert found.statistic == pytest.approx(expected)
    assert 0 < found.p_value < 1
    alone = similarity.kernel_relative_test(target, references[:1], original, np.arange(12))
    assert similarity.kernel_relative_test(target, references[:1], original, np.arange(12) + 5) == alone
    distances = np.concatenate([pdist(side) for side in (target, original, references[0])])
    everyone = ~np.eye(12, dtype=bool)
    assert alone.statistic == pytest.approx(
        discrepancy(target, references[0], float(np.median(distances)), everyone)
        - discrepancy(target, original, float(np.median(distances)), everyone),
        rel=1e-6,
    )


def simulated(kind: str, rng: np.random.Generator, clusters: int = 40, size: int = 2, references: int = 1) -> float:
    """p-value where three models' outputs share each example's own part, and examples of a cluster share theirs."""
    codes = np.repeat(np.arange(clusters), size)
    base = rng.normal(0, 1, (clusters, 3))[codes] + rng.normal(0, 0.5, (len(codes), 3))
    shift = np.array([1.0, 0.0, 0.0])
    moved = {"same": (0, 0), "as far": (shift, -shift), "nearer": (shift, 0), "farther": (0, shift)}[kind]
    target = base + rng.normal(0, 0.3, base.shape)
    original = base + moved[0] + rng.normal(0, 0.3, base.shape)
    others = base + moved[1] + rng.normal(0, 0.3, (references, *base.shape))
    return similarity.kernel_relative_test(target, others, original, codes).p_value


@pytest.mark.parametrize("kind", ["same", "as far", "farther"])
@pytest.mark.parametrize("references", [1, 3])
def test_the_relative_test_keeps_its_level(kind: str, references: int) -> None:
    rng, trials = np.random.default_rng(0), 300
    found = np.array([simulated(kind, rng, references=references) for _ in range(trials)])
    for level in (0.05, 0.1):
        assert (found <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / trials)
    if kind == "as far":
        assert (found <= 0.1).mean() > 0.04, "at the boundary it is not idle either"


def test_the_relative_test_finds_what_is_nearer() -> None:
    rng = np.random.default_rng(1)
    assert np.mean([simulated("nearer", rng) < 0.05 for _ in range(30)]) > 0.9


def test_copies_of_an_example_tell_nothing_new() -> None:
    rng = np.random.default_rng(0)
    target, original, references = rng.normal(0, 1, (12, 3)), rng.normal(0.5, 1, (12, 3)), rng.normal(0.2, 1, (2, 12, 3))
    once = similarity.kernel_relative_test(target, references, original, np.arange(12))
    copies = [np.repeat(side, 3, axis=-2) for side in (target, references, original)]
    thrice = similarity.kernel_relative_test(*copies, np.repeat(np.arange(12), 3))
    assert (thrice.statistic, thrice.p_value) == pytest.approx((once.statistic, once.p_value))


def test_models_that_are_equal_are_not_nearer() -> None:
    outputs = np.random.default_rng(0).normal(0, 1, (10, 2))
    for count in (1, 3, 7):
        same = similarity.kernel_relative_test(outputs, np.stack([outputs] * count), outputs, np.arange(10))
        assert same.statistic == pytest.approx(0, abs=1e-15)
        assert same.p_value == 1
    constant = similarity.kernel_relative_test(np.zeros((10, 2)), np.zeros((1, 10, 2)), np.ones((10, 2)), np.arange(10))
    assert constant.p_value == 0
    with pytest.raises(UsageError, match="three clusters"):
        similarity.kernel_relative_test(outputs, outputs[None], outputs, np.arange(10) % 2)
    with pytest.raises(UsageError, match="do not fit"):
        similarity.kernel_relative_test(outputs, outputs, outputs, np.arange(10))
    with pytest.raises(ModelError, match="not a finite number"):
        similarity.kernel_relative_test(outputs, outputs[None] * np.nan, outputs, np.arange(10))


def test_nomus_has_its_published_values() -> None:
    assert similarity.nomus(1.0, 0.5) == 1
    assert similarity.nomus(0.0, 1.0) == similarity.nomus(0.0, 0.0) == 0
    assert similarity.nomus(0.8, 0.6) == pytest.approx(0.8)
    with pytest.raises(UsageError, match="not percent"):
        similarity.nomus(88.0, 0.5)


def test_the_average_gap_is_over_the_same_metrics() -> None:
    retrained = {"UA": 0.05, "RA": 1.0, "TA": 0.94, "MIA": 0.13}
    found = similarity.average_gap({"UA": 0.03, "RA": 0.98, "TA": 0.95, "MIA": 0.20}, retrained)
    assert found == pytest.approx((0.02 + 0.02 + 0.01 + 0.07) / 4)
    with pytest.raises(UsageError, match="same ones"):
        similarity.average_gap({"UA": 0.03}, retrained)


def test_corrected_accuracy_counts_clean_labels_of_the_affected_only() -> None:
    assert similarity.corrected_accuracy([0, 1, 2, 0], [0, 1, 1, 1], [True, True, True, False]) == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="affected"):
        similarity.corrected_accuracy([0], [0], [False])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0, 1))
def test_the_projection_meets_its_conditions(weights: list[float], share: float) -> None:
    total = share * len(weights)
    values = np.array(weights)
    found = similarity.capped_simplex(values, total)
    assert ((found >= 0) & (found <= 1)).all()
    assert found.sum() == pytest.approx(total, abs=1e-9)
    # Karush-Kuhn-Tucker: one mu with w - mu = x inside, w - mu >= 1 where x = 1, and w - mu <= 0 where x = 0.
    inner = (found > 1e-9) & (found < 1 - 1e-9)
    above, below = values[found >= 1 - 1e-9] - 1, values[found <= 1e-9]
    lowest, highest = below.max(initial=-np.inf), above.min(initial=np.inf)
    if inner.any():
        mu = (values - found)[inner]
        assert np.ptp(mu) < 1e-8
        lowest, highest = max(lowest, mu.max()), min(highest, mu.min())
    assert lowest <= highest + 1e-8


def test_the_projection_is_the_nearest_point() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.4, 1, 8)
    found = similarity.capped_simplex(values, 3)
    slow = optimize.minimize(
        lambda point: ((point - values) ** 2).sum(),
        np.full(8, 3 / 8),
        bounds=[(0, 1)] * 8,
        constraints={"type": "eq", "fun": lambda point: point.sum() - 3},
        options={"ftol": 1e-14},
    )
    assert found == pytest.approx(slow.x, abs=1e-5)
    inside = np.array([0.2, 0.3, 0.5])
    assert similarity.capped_simplex(inside, 1) == pytest.approx(inside)
    assert similarity.capped_simplex(1e6 * np.arange(4.0), 2).tolist() == [0, 0, 1, 1]
    assert similarity.capped_simplex([7.0, -1.0], 0).tolist() == [0, 0]
    assert similarity.capped_simplex([7.0, -1.0], 2).tolist() == [1, 1]
    with pytest.raises(UsageError, match="can be chosen"):
        similarity.capped_simplex([0.5], 2)
    with pytest.raises(ModelError, match="not a finite number"):
        similarity.capped_simplex([np.nan], 1)
