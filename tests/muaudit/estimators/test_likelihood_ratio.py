"""LiRA's scores against arbitrary precision, plain loops and scipy; ROC curves against scikit-learn."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import likelihood_ratio as lira
from muaudit.estimators import membership

metrics = pytest.importorskip("sklearn.metrics")

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)  # few values, so many ties


def exact_margin(logits: list[float], label: int) -> float:
    """log p_y - log of the sum of the others, in decimal arithmetic."""
    with localcontext() as context:
        context.prec = 600
        powers = [Decimal(value).exp() for value in logits]
        return float((powers[label] / (sum(powers) - powers[label])).ln())


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=6), st.data())
def test_margins_are_exact_where_probabilities_round(logits: list[float], data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(logits) - 1))
    found = lira.margins(np.array([logits]), np.array([label]))
    assert found[0] == pytest.approx(exact_margin(logits, label), rel=1e-12, abs=1e-12)


def test_margins_of_many_models_do_not_saturate() -> None:
    logits = np.zeros((3, 2, 4))
    logits[:, 0, 1], logits[:, 1, 2] = [60.0, 600.0, 6000.0], [-60.0, -600.0, -6000.0]
    expected = np.array([[60, -60], [600, -600], [6000, -6000]]) - math.log(3)
    assert lira.margins(logits, np.array([1, 2])) == pytest.approx(expected)
    assert lira.margins(logits + 1e3, np.array([1, 2])) == pytest.approx(expected)
    assert lira.margins(logits.astype(np.float32), np.array([1, 2])).dtype == np.float64


def test_what_no_margin_can_be_made_of_is_said() -> None:
    labels = np.array([0, 1])
    with pytest.raises(ModelError, match="2 logits are not finite"):
        lira.margins([[0.0, np.nan], [np.inf, 0.0]], labels)
    with pytest.raises(UsageError, match="two classes"):
        lira.margins([[0.0], [1.0]], labels)
    with pytest.raises(UsageError, match="one label for each example"):
        lira.margins([[0.0, 1.0]], labels)
    for wrong in ([0, 2], [-1, 0], [0.0, 1.0]):
        with pytest.raises(UsageError, match=r"whole numbers in 0\.\.1"):
            lira.margins([[0.0, 1.0], [1.0, 0.0]], np.array(wrong))


@pytest.mark.parametrize(("models", "share", "kept"), [(2, 0.5, 1), (7, 0.5, 3), (10, 0.3, 3), (100, 0.29, 29), (16, 0.75, 12)])
def test_every_example_is_in_equally_many_models(models: int, share: float, kept: int) -> None:
    chosen = lira.balanced_membership(models, 500, seed=3, share=share)
    assert chosen.shape == (models, 500)
    assert (chosen.sum(0) == kept).all()
    assert (chosen == lira.balanced_membership(models, 500, seed=3, share=share)).all()
    assert (chosen != lira.balanced_membership(models, 500, seed=4, share=share)).any()
    # LiRA's way: rank the same uniform numbers down the model axis, keep the low ranks.
    uniform = np.random.default_rng(3).random((models, 500))
    ranks = np.array([[(uniform[:, i] < value).sum() for i, value in enumerate(row)] for row in uniform])
    assert (chosen == (ranks < kept)).all()


def test_a_share_that_leaves_a_side_empty_is_refused() -> None:
    for models, share in ((1, 0.5), (4, 0.2), (4, 1.0)):
        with pytest.raises(UsageError, match="leaves no model on one side"):
            lira.balanced_membership(models, 10, seed=0, share=share)


def ragged(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores [12, 9, 2] and a membership that gives examples unequal numbers of models, at least two a side."""
    rng = np.random.default_rng(seed)
    member = rng.random((12, 9)) < 0.4
    member[:2], member[2:4] = True, False
    return rng.normal(2.0 * member[:, :, None], 1.5, (12, 9, 2)), member


@pytest.mark.parametrize("centre", ["median", "mean"])
def test_gaussians_are_numpys_on_each_examples_own_models(centre: lira.Centre) -> None:
    values, member = ragged()
    fit = lira.fit_hypotheses(values, member, centre=centre)
    assert fit.inside is not None
    assert len(set(fit.inside.models)) > 1, "the test needs unequal numbers"
    for example in range(9):
        for query in range(2):
            for side, mask in ((fit.inside, member), (fit.outside, ~member)):
                own = values[mask[:, example], example, query]
                assert side.models[example] == len(own)
                assert side.centre[example, query] == pytest.approx(getattr(np, centre)(own))
                assert side.spread[example, query] == pytest.approx(np.std(own))


def test_a_fixed_spread_is_pooled_within_examples_and_unbiased() -> None:
    values, member = ragged()
    outside = lira.fit_gaussians(values, ~member, centre="mean", spread="fixed")
    residuals = np.concatenate([values[~member[:, i], i] - values[~member[:, i], i].mean(0) for i in range(9)])
    freedom = residuals.size - 9 * 2
    assert outside.spread == pytest.approx(np.full((9, 2), math.sqrt((residuals**2).sum() / freedom)))
    # TensorFlow Privacy divides by the number of residuals: with two models an example that is half of the variance.
    rng = np.random.default_rng(1)
    pairs = rng.normal(rng.normal(0, 50, (1, 4000, 1)), 3.0, (2, 4000, 1))
    assert lira.fit_gaussians(pairs, np.ones((2, 4000)), spread="fixed").spread[0, 0] == pytest.approx(3.0, rel=0.03)


def test_likelihood_ratios_are_scipys() -> None:
    values, member = ragged()
    fit, target = lira.fit_hypotheses(values, member), np.random.default_rng(5).normal(1, 2, (9, 2))
    assert fit.inside is not None
    inside = stats.norm.logpdf(target, fit.inside.centre, fit.inside.spread)
    outside = stats.norm.logpdf(target, fit.outside.centre, fit.outside.spread)
    assert lira.online(target, fit) == pytest.approx((inside - outside).mean(1))
    assert lira.offline_two_tailed(target, fit) == pytest.approx(-outside.mean(1))
    below = stats.norm.logcdf(target, fit.outside.centre, fit.outside.spread)
    assert lira.offline_one_sided(target, fit) == pytest.approx(below.mean(1))
    densities = np.exp(inside.mean(1)), np.exp(outside.mean(1))
    assert lira.posterior(target, fit) == pytest.approx(densities[0] / (densities[0] + densities[1]))
    rows = np.array([4, 1])
    part = lira.Hypotheses(fit.inside.take(rows), fit.outside.take(rows))
    assert lira.online(target[rows], part) == pytest.approx(lira.online(target, fit)[rows])


def test_scores_stay_finite_and_ordered_far_out() -> None:
    one = lira.Gaussians(np.zeros((4, 1)), np.ones((4, 1)), np.full(4, 8))
    far = lira.Hypotheses(lira.Gaussians(one.centre + 5, one.spread, one.models), one)
    target = np.array([[-200.0], [-100.0], [100.0], [200.0]])
    for score in (lira.online, lira.offline_one_sided):
        found = score(target, far)
        assert np.isfinite(found).all()
        assert (np.diff(found) >= 0).all()
    assert lira.offline_one_sided(target, far)[0] < lira.offline_one_sided(target, far)[1] < -4000
    assert lira.posterior(target, far) == pytest.approx([0, 0, 1, 1])
    assert lira.offline_two_tailed(target, far)[[0, 3]] == pytest.approx([20000.9, 20000.9], abs=0.1)


def test_copies_of_a_model_have_the_smallest_spread() -> None:
    fit = lira.fit_gaussians(np.ones((3, 2, 1)), np.ones((3, 2)))
    assert (fit.spread == lira.SMALLEST_SPREAD).all()
    assert np.isfinite(fit.log_density(np.full((2, 1), 40.0))).all()


def test_too_few_models_are_named() -> None:
    values, member = ragged()
    member[:, 3], member[0, 3] = False, True
    with pytest.raises(UsageError, match="1 examples have fewer than 2 models"):
        lira.fit_hypotheses(values, member)
    single = lira.fit_hypotheses(values, member, spread="fixed")
    assert single.inside is not None
    assert single.inside.centre[3] == pytest.approx(values[0, 3])
    alone = lira.fit_hypotheses(values, np.zeros_like(member))
    assert alone.inside is None
    with pytest.raises(UsageError, match="needs shadow models that were trained on the examples"):
        lira.online(values[0], alone)
    with pytest.raises(UsageError, match="two models of one example"):
        lira.fit_gaussians(values[:1], np.ones((1, 9)), spread="fixed")
    with pytest.raises(UsageError, match="do not fit"):
        lira.fit_gaussians(values[:, :, 0], member)
    with pytest.raises(ModelError, match="not a finite number"):
        lira.fit_gaussians(values * np.nan, member)


def test_lira_finds_members_that_a_global_threshold_does_not() -> None:
    # Examples differ far more among themselves than membership changes one: only per-example fits can tell.
    rng = np.random.default_rng(7)
    hardness, member = rng.normal(0, 10, 400), lira.balanced_membership(33, 400, seed=1)
    values = rng.normal(hardness + 2.0 * member, 1.0)[:, :, None]
    fit = lira.fit_hypotheses(values[1:], member[1:])
    inside = member[0]
    for score in (lira.online, lira.offline_one_sided):
        found = score(values[0], fit)
        assert membership.auc(found[inside], found[~inside]) > 0.85
    assert membership.auc(values[0, inside, 0], values[0, ~inside, 0]) < 0.7


@given(scores, scores)
def test_roc_curves_are_scikit_learns(members: list[float], others: list[float]) -> None:
    labels = [1] * len(members) + [0] * len(others)
    fpr, tpr, thresholds = metrics.roc_curve(labels, members + others, drop_intermediate=False)
    roc = lira.Roc.of(members, others)
    assert roc.fpr.tolist() == fpr.tolist()
    assert roc.tpr.tolist() == tpr.tolist()
    assert roc.thresholds.tolist() == thresholds.tolist()
    assert roc.auc == pytest.approx(metrics.roc_auc_score(labels, members + others))
    assert roc.auc == pytest.approx(membership.auc(members, others))
    assert roc.balanced_accuracy == pytest.approx(max(1 - (fpr + 1 - tpr) / 2))


@given(scores, st.lists(st.integers(-5, 5).map(float), min_size=10, max_size=40), st.sampled_from([0.1, 0.2, 0.25, 0.5]))
def test_rates_keep_to_their_convention(members: list[float], others: list[float], fpr: float) -> None:
    roc = lira.Roc.of(members, others)
    upto, below = roc.tpr_at(fpr), roc.tpr_at(fpr, "<")
    assert upto.value == max(roc.tpr[roc.fpr <= fpr])
    assert below.value == max(roc.tpr[roc.fpr < fpr])
    assert upto.value == pytest.approx(membership.tpr_at_fpr(members, others, fpr).value)
    exact = stats.binomtest(round(upto.value * len(members)), len(members)).proportion_ci(0.95, "exact")
    assert upto.interval == pytest.approx((exact.low, exact.high))
    assert upto.false_positive_interval[0] <= upto.false_positive_rate <= min(fpr, upto.false_positive_interval[1])


def test_the_conventions_differ_where_the_rate_is_reached() -> None:
    roc = lira.Roc.of([3.0, 1.5, 1.5, -9.0], np.arange(10) - 8.0)  # one of ten non-members lies at 1
    assert (roc.tpr_at(0.1).value, roc.tpr_at(0.1, "<").value) == (0.75, 0.75)
    roc = lira.Roc.of([3.0, 0.5, 0.5, -9.0], np.arange(10) - 8.0)
    assert (roc.tpr_at(0.1).value, roc.tpr_at(0.1, "<").value) == (0.75, 0.25)


def test_a_rate_that_cannot_be_resolved_is_not_quoted() -> None:
    rng = np.random.default_rng(0)
    few, enough = lira.Roc.of(rng.random(50), rng.random(999)), lira.Roc.of(rng.random(50), rng.random(1000))
    unseen = few.tpr_at(0.001)
    assert not unseen.resolved
    assert unseen.value is None
    assert unseen.interval is None
    assert enough.tpr_at(0.001).resolved
    assert enough.tpr_at(0.001).false_positive_interval[1] > 0.001, "resolved is not yet shown"
    assert unseen.needed == 2995
    # 2,995 non-members without a false positive, and no fewer, show 0.1 % with 95 % confidence.
    assert 0.999**2995 <= 0.05 < 0.999**2994
    assert lira.needed_non_members(0.01) == 299


def test_a_curve_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="one of the sets is empty"):
        lira.Roc.of([], [1.0])
    with pytest.raises(ModelError, match="NaN"):
        lira.Roc.of([1.0, np.nan], [1.0])
    with pytest.raises(UsageError, match="between 0 and 1"):
        lira.Roc.of([1.0], [0.0]).tpr_at(0.0)
