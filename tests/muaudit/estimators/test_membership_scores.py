"""Membership scores against plain loops, rates against scikit-learn and scipy, bounds against published values."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muaudit.estimators import membership as m
from muaudit.models import TokenScores

metrics = pytest.importorskip("sklearn.metrics")

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)  # few values, so many ties


def tokens(*log_probabilities: float) -> TokenScores:
    means = tuple(value - 1 for value in log_probabilities)
    return TokenScores(log_probabilities, means, tuple(0.25 for _ in log_probabilities))


def test_scores_by_hand() -> None:
    text = TokenScores((-1.0, -4.0, -2.0, -3.0, -0.5), (-2.0, -3.0, -2.0, -2.5, -0.1), (1.0, 4.0, 0.25, 1.0, 0.04))
    assert m.loss(text) == pytest.approx(-2.1)
    assert m.zlib_ratio(text, "née") == pytest.approx(-2.1 / len(zlib.compress("née".encode())))
    assert m.min_k(text, 0.4) == pytest.approx((-4 - 3) / 2)
    assert m.min_k_plus_plus(text, 0.4) == pytest.approx(
        (-0.4 / 0.2 - 0.5) / 2
    )  # standardised: 1, -0.5, 0, -0.5, -2, lowest two
    assert m.reference_ratio(text, -3.0) == pytest.approx(0.9)
    assert m.recall(tokens(-6.0, -8.0), tokens(-2.0, -2.0)) == pytest.approx(3.5)
    assert m.neighbourhood(tokens(-1.0), [tokens(-2.0, -4.0), tokens(-5.0)]) == pytest.approx(3.0)


@pytest.mark.parametrize(("length", "k", "kept"), [(1, 0.2, 1), (4, 0.2, 1), (10, 0.2, 2), (14, 0.2, 2), (5, 1.0, 5)])
def test_min_k_takes_at_least_one_token(length: int, k: float, kept: int) -> None:
    values = [float(-number) for number in range(length)]
    assert m.min_k(tokens(*values), k) == pytest.approx(sum(sorted(values)[:kept]) / kept)


def test_a_certain_model_divides_by_the_floor_and_nothing_is_infinite() -> None:
    certain = TokenScores((0.0, -2e-3), (0.0, -1e-3), (0.0, 0.0))
    assert m.min_k_plus_plus(certain, 1.0) == pytest.approx((0 - 1e-3 / m.SMALLEST_DEVIATION) / 2)
    assert math.isfinite(m.recall(tokens(-1.0), tokens(0.0)))


@given(scores, scores)
def test_auc_is_scikit_learns(members: list[float], others: list[float]) -> None:
    labels = [1] * len(members) + [0] * len(others)
    assert m.auc(members, others) == pytest.approx(metrics.roc_auc_score(labels, members + others))
    ranks = [sum((other < one) + (other == one) / 2 for other in others) / len(others) for one in members]
    assert m.ranks(members, others).tolist() == pytest.approx(ranks)


@given(scores, scores, st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5]))
def test_tpr_at_fpr_is_scikit_learns(members: list[float], others: list[float], fpr: float) -> None:
    labels = [1] * len(members) + [0] * len(others)
    alarms, hits, _ = metrics.roc_curve(labels, members + others, drop_intermediate=False)
    rate = m.tpr_at_fpr(members, others, fpr)
    assert rate.value == pytest.approx(max(hit for alarm, hit in zip(alarms, hits, strict=True) if alarm <= fpr))
    assert rate.interval[0] <= rate.value <= rate.interval[1]


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.05, 0.01]))
def test_clopper_pearson_is_scipys(count: tuple[int, int], alpha: float) -> None:
    exact = stats.binomtest(*count).proportion_ci(1 - alpha, "exact")
    assert m.clopper_pearson(*count, alpha) == pytest.approx((exact.low, exact.high))


def test_the_auc_interval_is_delongs_where_every_item_stands_alone() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0.5, 1, 30), rng.normal(0, 1, 20)
    placed = [[float(one > other) for other in outside] for one in inside]
    v10, v01 = np.mean(placed, axis=1), np.mean(placed, axis=0)
    half = stats.norm.ppf(0.975) * math.sqrt(v10.var(ddof=1) / 30 + v01.var(ddof=1) / 20)
    low, high = m.auc_interval(inside, outside, [f"a{i}" for i in range(30)], [f"b{i}" for i in range(20)])
    assert (low, high) == pytest.approx((v10.mean() - half, v10.mean() + half))
    twice = [np.repeat(inside, 2), np.repeat(outside, 2)]
    clustered = m.auc_interval(*twice, [f"a{i // 2}" for i in range(60)], [f"b{i // 2}" for i in range(40)])
    assert clustered == pytest.approx((low, high))  # copies of an item tell nothing new


def test_the_epsilon_bound_has_its_published_values() -> None:
    # jax-privacy's and TensorFlow Privacy's example: the ratio of the rates' unfavourable ends, TPR 100/110 over FPR 10/80.
    assert m.clopper_pearson(100, 110)[0] / m.clopper_pearson(10, 80)[1] == pytest.approx(3.851, abs=1e-3)
    assert m.epsilon_lower_bound(100, 110, 10, 80) >= math.log(3.851)
    for size, epsilon in ((16, 1.350), (64, 2.825), (512, 4.929)):
        assert m.epsilon_lower_bound(size, size, 0, size) == pytest.approx(epsilon, abs=1e-3)
    assert m.epsilon_lower_bound(5, 10, 5, 10) == 0
    assert m.epsilon_lower_bound(64, 64, 0, 64, delta=0.1) < 2.825


def test_the_other_ratio_counts_too() -> None:
    # All non-members called, and all members but for a few: only "not a member" tells anything.
    tnr, fnr = 1 - m.clopper_pearson(400, 1000)[1], 1 - m.clopper_pearson(1000, 1000)[0]
    assert m.epsilon_lower_bound(1000, 1000, 400, 1000) == pytest.approx(math.log(tnr / fnr))


def test_a_split_finds_leaks_on_either_side_and_seldom_where_there_is_none() -> None:
    rng = np.random.default_rng(1)

    def halves(shift: float) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(shift, 1, 60), rng.normal(shift, 1, 60)

    found = [m.epsilon_by_split(halves(0.0), halves(0.0)) for _ in range(200)]
    assert np.mean(np.array(found) > 0) <= 0.05
    ceiling = m.epsilon_lower_bound(60, 60, 0, 60)
    for shift in (-20.0, 20.0):
        assert m.epsilon_by_split(halves(shift), halves(0.0)) == pytest.approx(ceiling)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "epsilon"),
    [(1000, 100, 100, 0.0, 3.493), (1000, 100, 95, 1e-5, 2.165), (1000, 1000, 600, 0.0, 0.298), (10, 10, 5, 0.0, 0.0)],
)
def test_the_one_run_bound_has_its_published_values(
    canaries: int, guesses: int, correct: int, delta: float, epsilon: float
) -> None:
    assert m.one_run_epsilon(canaries, guesses, correct, delta=delta) == pytest.approx(epsilon, abs=1e-3)


def test_privacy_leakage_has_muses_range() -> None:
    # MUSE's retrained models: News .4772, Books .5393.
    assert m.privacy_leakage(0.0, 0.4772) == -100
    assert m.privacy_leakage(1.0, 0.4772) == pytest.approx(109.6, abs=0.05)
    assert m.privacy_leakage(1.0, 0.5393) == pytest.approx(85.4, abs=0.05)
    assert m.privacy_leakage(0.5393, 0.5393) == 0
