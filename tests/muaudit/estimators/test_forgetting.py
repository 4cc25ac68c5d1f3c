"""The challenge's metric rule by rule, corrected epsilons by simulation, KLOM against closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import forgetting
from muaudit.estimators.privacy_bounds import largest_detectable


def published(unlearned: np.ndarray, retrained: np.ndarray, delta: float = 1e-5) -> float:
    """One example's epsilon by the published procedure, rule by rule."""
    positive, negative = (unlearned, retrained) if np.median(unlearned) >= np.median(retrained) else (retrained, unlearned)
    rules = []  # (TPR, FPR)
    both = np.concatenate([positive, negative])
    for cut in np.linspace(both.min(), both.max(), math.ceil((both.max() - both.min()) * 100)):
        rules.append(((positive >= cut).mean(), (negative >= cut).mean()))
    if np.ptp(positive) >= np.ptp(negative):
        positive, negative = negative, positive
    width = positive.max() - positive.min()
    low, high = positive.min() + width - 2.0, positive.max() + 2.0
    for right in np.linspace(low, high, math.ceil((high - low) * 100)):
        left = np.linspace(right - width - 2.0, right - width + 2.0, 400)
        inside = [((left[:, None] <= side) & (side <= right)).mean(1) for side in (positive, negative)]
        rules += list(zip(*inside, strict=True))
    epsilons = []
    for tpr, fpr in set(rules):
        fnr = 1 - tpr
        fnr = 0.0 if fnr < 1e-9 else fnr
        if fnr == 0 and fpr == 0:
            epsilons.append(math.inf)
        elif fnr and fpr:
            ratios = [math.log((1 - delta - a) / b) for a, b in ((fpr, fnr), (fnr, fpr)) if 1 - delta - a > 0]
            epsilons += [max(*ratios, 0.0)] if ratios else []
    return min(max(epsilons), 50.0)


@pytest.mark.parametrize(
    ("shift", "scale", "sizes"), [(0.0, 1.0, (16, 16)), (1.5, 1.0, (16, 16)), (-1.0, 0.4, (20, 12)), (0.0, 3.0, (12, 20))]
)
def test_epsilons_are_the_challenge_s(shift: float, scale: float, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    unlearned, retrained = rng.normal(shift, scale, (sizes[0], 3)), rng.normal(0, 1, (sizes[1], 3))
    found = forgetting.challenge(unlearned, retrained)
    expected = [published(unlearned[:, i], retrained[:, i]) for i in range(3)]
    assert found.epsilons == pytest.approx(expected, abs=1e-9)
    assert not found.degenerate.any()


def test_separated_populations_get_the_cap() -> None:
    rng = np.random.default_rng(0)
    far = rng.normal(30, 1, (16, 2)), rng.normal(0, 1, (16, 2))
    assert forgetting.challenge(*far).epsilons.tolist() == [50.0, 50.0]
    around = np.where(np.arange(16)[:, None] % 2, 10.0, -10.0) + rng.normal(0, 0.1, (16, 2))
    assert forgetting.challenge(rng.normal(0, 1, (16, 2)), around).epsilons.tolist() == [50.0, 50.0], "only an interval tells"


def test_populations_that_do_not_vary_are_marked() -> None:
    rng = np.random.default_rng(0)
    retrained = rng.normal(0, 1, (16, 4))
    unlearned = np.tile(np.median(retrained, axis=0), (16, 1))  # one deterministic run, sixteen times: right in the middle
    unlearned[:, 1] += rng.normal(0, 0.5, 16)
    retrained[:, 2:] = 7.0
    unlearned[:, 3] = 8.0
    unlearned[:, 2] = 7.0
    found = forgetting.challenge(unlearned, retrained)
    assert found.degenerate.tolist() == [True, False, True, True]
    assert found.epsilons[[0, 2, 3]].tolist() == [50.0, 0.0, 50.0]
    assert found.points[[0, 2, 3]].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(("models", "bins"), [(512, 14), (64, 10), (3, 2)])
def test_points_halve_with_each_bin(models: int, bins: int) -> None:
    rng = np.random.default_rng(0)
    assert forgetting.challenge(rng.normal(0, 1, (models, 1)), rng.normal(0, 1, (models, 1))).bins == bins
    by_hand = forgetting.Challenge(np.array([0.0, 0.49, 0.5, 1.2, 6.99, 7.0, 50.0]), np.zeros(7, dtype=bool), 14)
    assert by_hand.points.tolist() == [1, 1, 0.5, 0.25, 2**-13, 0, 0]
    assert by_hand.forgetting == pytest.approx((2.75 + 2**-13) / 7)
    assert by_hand.score(retain=(0.9, 0.8), test=(0.5, 0.6)) == pytest.approx(by_hand.forgetting * 9 / 8 * 5 / 6)
    with pytest.raises(UsageError, match="no accuracy"):
        by_hand.score(retain=(0.9, 0.0), test=(0.5, 0.6))


def test_the_plug_in_is_biased_where_the_corrected_epsilon_is_not() -> None:
    rng, alpha, examples = np.random.default_rng(1), 0.1, 400
    alike = rng.normal(0, 1, (32, examples)), rng.normal(0, 1, (32, examples))
    wrong = (forgetting.corrected(*alike, seed=0, alpha=alpha).lower > 0).mean()
    assert wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / examples)
    few = forgetting.challenge(alike[0][:, :20], alike[1][:, :20])
    assert few.epsilons.mean() > 1, "two populations that are alike"
    assert few.forgetting < 0.5


def test_corrected_bounds_hold_where_epsilon_is_known() -> None:
    # Randomised response behind noise: epsilon is 1 at any rule.
    rng, alpha, examples, truth = np.random.default_rng(2), 0.1, 400, 1 / (1 + math.exp(-1))
    unlearned = (rng.random((64, examples)) < truth) + rng.uniform(0, 0.9, (64, examples))
    retrained = (rng.random((64, examples)) > truth) + rng.uniform(0, 0.9, (64, examples))
    found = forgetting.corrected(unlearned, retrained, seed=0, alpha=alpha)
    slack = 3 * math.sqrt(alpha * (1 - alpha) / examples)
    assert (found.lower > 1).mean() <= alpha + slack
    assert (found.lower <= found.estimate).all()
    assert (found.estimate <= found.upper).all()
    assert 0.5 < np.median(found.estimate) < 1.2
    assert (found.upper > np.log(truth / (1 - truth))).mean() > 0.8


@pytest.mark.parametrize(("shift", "scale"), [(30.0, 1.0), (-30.0, 1.0), (0.0, 1e-3)])
def test_corrected_rules_find_either_direction_and_intervals(shift: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    wide = np.where(np.arange(64)[:, None] % 2, 10.0, -10.0) if scale < 1 else np.zeros((64, 1))
    unlearned, retrained = rng.normal(shift, scale, (64, 5)), wide + rng.normal(0, 1, (64, 5))
    found = forgetting.corrected(unlearned, retrained, seed=4)
    turned = forgetting.corrected(retrained, unlearned, seed=4)
    ceiling = largest_detectable(32, 32, delta=forgetting.DELTA)
    assert found.largest == pytest.approx(ceiling)
    assert np.median(found.lower) == pytest.approx(ceiling)
    assert np.median(turned.lower) == pytest.approx(ceiling)
    assert (found.upper == forgetting.EPSILON_CAP).all()


def test_a_deterministic_procedure_is_judged_by_where_it_lands() -> None:
    # The challenge gives 50 everywhere; that copies are copies is found here too, so models must be runs of their own.
    rng = np.random.default_rng(0)
    retrained = rng.normal(0, 1, (64, 3))
    found = forgetting.corrected(np.zeros((64, 3)), retrained, seed=0)
    assert (found.lower > 1).all()
    again = forgetting.corrected(np.zeros((64, 3)), retrained, seed=0)
    assert found.lower.tolist() == again.lower.tolist()


def gaussian_divergence(mean: float, scale: float) -> float:
    """Kullback-Leibler divergence of N(mean, scale^2) from N(0, 1)."""
    return (scale**2 + mean**2 - 1) / 2 - math.log(scale)


@pytest.mark.parametrize("binning", ["equal_width", "equal_count"])
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.7)])
def test_klom_is_the_divergence_of_large_gaussian_populations(binning: forgetting.Binning, mean: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    unlearned, retrained = rng.normal(mean, scale, (100_000, 1)), rng.normal(0, 1, (100_000, 1))
    found = forgetting.klom(unlearned, retrained, bins=60, binning=binning)
    assert found[0] == pytest.approx(gaussian_divergence(mean, scale), abs=0.02)


def test_klom_is_its_published_formula() -> None:
    rng = np.random.default_rng(0)
    unlearned, retrained = rng.normal(0.5, 1, (40, 6)), rng.normal(0, 2, (30, 6))
    retrained[0], unlearned[0] = 150.0, 140.0  # both are cut to 100, the right edge of the last bin
    found = forgetting.klom(unlearned, retrained, bins=20)
    for example in range(6):
        p, q = np.clip(unlearned[:, example], -100, 100), np.clip(retrained[:, example], -100, 100)
        edges = np.linspace(min(p.min(), q.min()), 100, 21)
        first = np.array([((p >= a) & ((p < b) | (b == 100))).mean() for a, b in pairwise(edges)])
        second = np.array([((q >= a) & ((q < b) | (b == 100))).mean() for a, b in pairwise(edges)])
        assert first.sum() == pytest.approx(1), "no score falls out of the last bin"
        floored = np.where(first > 0, np.maximum(second, 1e-5), second)
        assert found[example] == pytest.approx(stats.entropy(first, floored))


def test_klom_is_finite_and_zero_for_the_same_population() -> None:
    rng = np.random.default_rng(0)
    same, far = rng.normal(0, 1, (50, 4)), rng.normal(500, 1, (50, 4))
    for binning in ("equal_width", "equal_count"):
        assert forgetting.klom(same, same, binning=binning) == pytest.approx(0, abs=1e-12)
        assert (forgetting.klom(far, same, binning=binning) <= math.log(1e5) + 1e-3).all()
        assert (forgetting.klom(far, same, binning=binning) > 10).all()
        assert forgetting.klom(np.ones((5, 2)), np.ones((7, 2)), binning=binning).tolist() == [0, 0]
    with pytest.raises(UsageError, match="two bins"):
        forgetting.klom(same, same, bins=1)


def test_populations_that_cannot_be_compared_are_refused() -> None:
    good = np.zeros((5, 3))
    for measure in (
        forgetting.challenge,
        forgetting.klom,
        lambda first, second: forgetting.corrected(first, second, seed=0),
    ):
        with pytest.raises(UsageError, match="do not fit"):
            measure(good, good[:, :2])
        with pytest.raises(UsageError, match="too few"):
            measure(good, good[:1])
        with pytest.raises(ModelError, match="not a finite number"):
            measure(good, good * np.nan)
