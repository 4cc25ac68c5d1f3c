"""Rates, areas and correlations against closed forms and slow truths."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from muaudit.calibration import rates


def test_an_exact_interval_is_where_either_tail_holds_a_fortieth() -> None:
    low, high = rates.clopper_pearson(7, 40)
    assert stats.binom.sf(6, 40, low) == pytest.approx(0.025)
    assert stats.binom.cdf(7, 40, high) == pytest.approx(0.025)


def test_an_exact_interval_of_nothing_and_of_all_has_a_closed_form() -> None:
    assert rates.clopper_pearson(0, 100) == (0.0, pytest.approx(1 - 0.025**0.01))
    assert rates.clopper_pearson(100, 100) == (pytest.approx(0.025**0.01), 1.0)
    assert rates.clopper_pearson(0, 100, 0.9)[1] == pytest.approx(1 - 0.05**0.01)  # the upper bound of none in a hundred, 3 %


def test_an_exact_interval_covers_at_least_as_often_as_it_says() -> None:
    intervals = [rates.clopper_pearson(hits, 12) for hits in range(13)]
    for truth in np.linspace(0.01, 0.99, 99):
        covered = sum(stats.binom.pmf(hits, 12, truth) for hits, (low, high) in enumerate(intervals) if low <= truth <= high)
        assert covered >= 0.95


def test_a_rate_of_nothing_is_refused() -> None:
    for hits, total in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="no rate"):
            rates.clopper_pearson(hits, total)


def test_an_area_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, others = rng.integers(0, 6, 9), rng.integers(0, 5, 7)  # small numbers, for ties
        pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(ours, others)]
        assert rates.auc(ours, others) == pytest.approx(np.mean(pairs))


def test_the_curve_has_the_area_and_no_point_too_many() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        ours, others = rng.integers(0, 8, 15), rng.integers(0, 6, 12)
        false, true = rates.roc(ours, others)
        assert np.trapezoid(true, false) == pytest.approx(rates.auc(ours, others))
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        assert (np.diff(false) >= 0).all()
        assert (np.diff(true) >= 0).all()
    false, true = rates.roc([3, 4, 5], [0, 1, 2])
    assert (false.tolist(), true.tolist()) == ([0, 0, 1], [0, 1, 1])


def test_the_ends_of_an_area_s_interval_are_roots_of_the_score_equation() -> None:
    area, positives, negatives = 0.87, 25, 40
    inner = (positives + negatives) / 2 - 1
    for end in rates.auc_interval(area, positives, negatives):
        spread = end * (1 - end) * (1 + inner * ((1 - end) / (2 - end) + end / (1 + end))) / (positives * negatives)
        assert abs(area - end) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(spread), rel=1e-6)


def test_an_area_of_one_has_a_width_that_more_models_narrow() -> None:
    lows = [rates.auc_interval(1.0, count, count)[0] for count in (5, 20, 80)]
    assert lows == sorted(lows)
    assert 0.5 < lows[0] < lows[2] < 1
    assert rates.auc_interval(1.0, 20, 30)[1] == 1.0
    low, high = rates.auc_interval(0.0, 20, 30)
    assert (low, high) == (0.0, pytest.approx(1 - rates.auc_interval(1.0, 30, 20)[0], abs=1e-6))


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_an_area_s_interval_covers_where_it_is_to_be_trusted(shift: float) -> None:
    rng = np.random.default_rng(2)
    truth = stats.norm.cdf(shift / math.sqrt(2))
    covered = 0
    for _ in range(400):
        found = rates.auc(rng.normal(shift, 1, 20), rng.normal(0, 1, 20))
        low, high = rates.auc_interval(found, 20, 20)
        covered += low <= truth <= high
    assert covered / 400 > 0.92


def test_rank_correlation_is_scipy_s_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 5, 30)
    y = x + rng.normal(0, 2, 30)
    found = rates.spearman(x, y)
    assert found is not None
    assert found[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found[1][0] < found[0] < found[1][1]
    width = stats.norm.ppf(0.975) * math.sqrt((1 + found[0] ** 2 / 2) / 27)
    assert math.atanh(found[1][1]) - math.atanh(found[0]) == pytest.approx(width)
    assert rates.spearman([1, 2, 3], [1, 2, 3]) is None
    assert rates.spearman([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_what_changes_counts_in_both_directions_alike() -> None:
    assert rates.kept(0.4, 0.4) == 1
    assert rates.kept(0.2, 0.6) == rates.kept(0.6, 0.2) == pytest.approx(0.5)
    assert rates.kept(0.1, -0.1) == 0
    assert rates.kept(0.0, 0.0) == 1
    assert rates.harmonic([0.5, 1.0]) == pytest.approx(2 / 3)
    assert rates.harmonic([0.0, 1.0]) == 0


def test_a_standard_deviation_s_interval_covers_by_its_distribution() -> None:
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(2000):
        spread = float(np.std(rng.normal(0, 2, 4), ddof=1))
        low, high = rates.spread_interval(spread, 3)
        inside += low <= 2 <= high
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)
