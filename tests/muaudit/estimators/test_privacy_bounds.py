"""Bounds of epsilon against exact coverage, simulated mechanisms and published values; accountants against Opacus's."""

import math
import sys

import numpy as np
import pytest
from scipy import integrate, stats

from muaudit.errors import EnvironmentFault, UsageError
from muaudit.estimators import membership
from muaudit.estimators import privacy_bounds as bounds


def responses(epsilon: float, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores of members and non-members of randomised response, an (epsilon, 0)-DP mechanism, with noise on top."""
    truth = 1 / (1 + math.exp(-epsilon))
    members, others = rng.random(size) < truth, rng.random(size) < 1 - truth
    return members + rng.uniform(0, 0.9, size), others + rng.uniform(0, 0.9, size)


@pytest.mark.parametrize(("members", "non_members", "delta"), [(1, 1, 0.0), (7, 12, 0.0), (20, 5, 0.05)])
def test_the_table_holds_every_threshold_s_bound(members: int, non_members: int, delta: float) -> None:
    table = bounds.epsilon_table(members, non_members, alpha=0.1, delta=delta)
    for hits in range(members + 1):
        for alarms in range(non_members + 1):
            one = membership.epsilon_lower_bound(hits, members, alarms, non_members, alpha=0.1, delta=delta)
            assert table[hits, alarms] == pytest.approx(one)
    low, high = bounds.rate_ends(members, 0.1)
    for hits in range(members + 1):
        assert (low[hits], high[hits]) == pytest.approx(membership.clopper_pearson(hits, members, 0.1))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_a_fixed_threshold_overstates_epsilon_no_more_often_than_it_says(epsilon: float, alpha: float) -> None:
    # Exact: over all outcomes of randomised response with 40 members and 30 non-members, at its own threshold.
    truth = 1 / (1 + math.exp(-epsilon))
    chance = np.outer(stats.binom.pmf(range(41), 40, truth), stats.binom.pmf(range(31), 30, 1 - truth))
    wrong = chance[bounds.epsilon_table(40, 30, alpha=alpha) > epsilon].sum()
    assert wrong <= alpha


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_bounds_over_thresholds_seldom_overstate_epsilon(epsilon: float) -> None:
    rng, trials, alpha = np.random.default_rng(0), 300, 0.1
    found = []
    for trial in range(trials):
        members, others = responses(epsilon, 80, rng)
        found.append(
            [
                bounds.bonferroni(members, others, alpha=alpha),
                bounds.multi_split(members, others, seed=trial, splits=15, alpha=alpha),
                membership.epsilon_by_split((members[:40], members[40:]), (others[:40], others[40:]), alpha=alpha),
            ]
        )
    wrong = (np.array(found) > epsilon).mean(0)
    assert (wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / trials)).all(), wrong


def test_bonferroni_is_the_best_threshold_at_its_share_of_alpha() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(1.5, 1, 60).round(1), rng.normal(0, 1, 50).round(1)
    best = 0.0
    for cut in np.arange(-6, 6, 0.05):
        for sign in (1, -1):
            hits, alarms = int((sign * members > sign * cut).sum()), int((sign * others > sign * cut).sum())
            best = max(best, membership.epsilon_lower_bound(hits, 60, alarms, 50, alpha=0.05 / 110))
    assert bounds.bonferroni(members, others) == pytest.approx(best)
    assert bounds.bonferroni(-members, -others) == pytest.approx(best), "low scores give members away as high ones do"


def test_one_split_is_the_split_bound() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(2, 1, 40), rng.normal(0, 1, 30)
    halves = np.random.default_rng(5)
    inner, outer = halves.permutation(members), halves.permutation(others)
    split = membership.epsilon_by_split((inner[:20], inner[20:]), (outer[:15], outer[15:]), alpha=0.05)
    assert bounds.multi_split(members, others, seed=5, splits=1, alpha=0.1) == pytest.approx(split)
    many = bounds.multi_split(members, others, seed=5)
    assert many == bounds.multi_split(members, others, seed=5)
    assert 0 < many < bounds.largest_detectable(20, 15)
    # A perfect attack reaches what its half can show at half the error rate.
    perfect = bounds.multi_split(members + 100, others, seed=5)
    assert perfect == pytest.approx(bounds.largest_detectable(20, 15, alpha=0.025))


def test_scores_without_spread_show_nothing() -> None:
    assert bounds.bonferroni(np.ones(9), np.ones(9)) == 0
    assert bounds.multi_split(np.ones(9), np.ones(9), seed=0) == 0
    with pytest.raises(UsageError, match="2 members and 2 non-members"):
        bounds.multi_split([1.0], [0.0, 1.0], seed=0)
    with pytest.raises(UsageError, match="not a finite number"):
        bounds.bonferroni([np.nan], [0.0])


def test_the_largest_detectable_epsilon_grows_with_the_design_and_shrinks_with_delta() -> None:
    sizes = [bounds.largest_detectable(size, size) for size in (4, 16, 64, 512)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(bounds.epsilon_table(512, 512).max())
    assert bounds.largest_detectable(64, 64, delta=0.1) < sizes[2]
    assert bounds.largest_detectable(3, 3) < math.log(2), "three models a side can refute next to nothing"


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_gaussian_delta_is_the_integral_it_stands_for(mu: float) -> None:
    for epsilon in (0.0, 0.5, 2.0, 6.0):

        def excess(x: float, epsilon: float = epsilon) -> float:
            return max(0.0, stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x))

        start = epsilon / mu + mu / 2  # below it, nothing exceeds
        exact = integrate.quad(excess, start, start + 12)[0]
        assert bounds.gaussian_delta(mu, epsilon) == pytest.approx(exact, rel=1e-6, abs=1e-14)
        if exact > 1e-12 and epsilon:
            assert bounds.gaussian_epsilon(mu, exact) == pytest.approx(epsilon, rel=1e-4)
    assert bounds.gaussian_epsilon(mu, 0.999) == 0
    assert bounds.gaussian_epsilon(60.0, 1e-5) == bounds.LARGEST_EPSILON
    assert bounds.gaussian_delta(0.0, 1.0) == 0


def test_a_gaussian_mechanism_is_not_overstated_more_often_than_said() -> None:
    # Exact over all outcomes at the threshold mu / 2, where FPR = FNR.
    mu, alpha, members, others = 1.0, 0.1, 40, 30
    rate = stats.norm.sf(mu / 2)
    chance = np.outer(stats.binom.pmf(range(members + 1), members, 1 - rate), stats.binom.pmf(range(others + 1), others, rate))
    found = np.array(
        [[bounds.gaussian_mu(h, members, a, others, alpha=alpha) for a in range(others + 1)] for h in range(members + 1)]
    )
    assert chance[found > mu].sum() <= alpha
    assert found.min() == 0
    by_hand = stats.norm.isf(membership.clopper_pearson(5, 30, alpha)[1]) - stats.norm.ppf(
        1 - membership.clopper_pearson(36, 40, alpha)[0]
    )
    assert found[36, 5] == pytest.approx(by_hand)


def test_the_gaussian_bound_is_tighter_than_the_general_one() -> None:
    general = membership.epsilon_lower_bound(450, 500, 50, 500, delta=1e-5)
    gaussian = bounds.gaussian_lower_bound(450, 500, 50, 500, delta=1e-5)
    assert gaussian > 3 * general > 0
    assert gaussian == pytest.approx(bounds.gaussian_epsilon(bounds.gaussian_mu(450, 500, 50, 500), 1e-5))
    assert gaussian < bounds.gaussian_epsilon(2 * stats.norm.isf(0.1), 1e-5), "above the point estimate it would be no bound"
    with pytest.raises(UsageError, match="no epsilon at delta"):
        bounds.gaussian_lower_bound(450, 500, 50, 500, delta=0.0)


@pytest.mark.parametrize(("epsilon", "delta", "size"), [(0.5, 1e-6, 1), (0.5, 1e-6, 5), (0.0, 1e-6, 7), (2.0, 0.0, 100)])
def test_group_privacy_is_its_sum(epsilon: float, delta: float, size: int) -> None:
    claim = bounds.group_claim(epsilon, delta, size)
    assert claim.epsilon == size * epsilon
    assert claim.delta == pytest.approx(delta * sum(math.exp(i * epsilon) for i in range(size)))
    assert claim.ceiling
    assert claim.warning is None


def test_group_privacy_of_a_large_group_says_nothing_and_says_so() -> None:
    claim = bounds.group_claim(2.0, 1e-5, 1000)
    assert (claim.epsilon, claim.delta) == (2000.0, 1.0)
    assert claim.warning is not None
    assert "says nothing" in claim.warning
    with pytest.raises(UsageError, match="make no claim"):
        bounds.group_claim(1.0, 1e-5, 0)


@pytest.mark.parametrize(("accountant", "epsilon"), [("rdp", 2.101), ("prv", 1.838), ("gdp", 1.618)])
def test_accountants_give_opacus_values(accountant: bounds.Accountant, epsilon: float) -> None:
    pytest.importorskip("opacus")
    claim = bounds.claimed_epsilon(accountant, noise_multiplier=1.0, sample_rate=0.01, steps=1000, delta=1e-5)
    assert claim.epsilon == pytest.approx(epsilon, abs=1e-3)
    assert claim.delta == 1e-5
    assert claim.ceiling == (accountant != "gdp")
    assert (claim.warning is None) == (accountant != "gdp")


def test_gdp_is_the_central_limit_formula() -> None:
    pytest.importorskip("opacus")
    claim = bounds.claimed_epsilon("gdp", noise_multiplier=1.2, sample_rate=0.02, steps=500, delta=1e-5)
    mu = 0.02 * math.sqrt(500 * math.expm1(1 / 1.2**2))
    assert claim.epsilon == pytest.approx(bounds.gaussian_epsilon(mu, 1e-5), rel=1e-4)


def test_claims_that_cannot_be_accounted_are_refused() -> None:
    pytest.importorskip("opacus")
    good = {"noise_multiplier": 1.0, "sample_rate": 0.01, "steps": 10, "delta": 1e-5}
    for name, value in (("noise_multiplier", 0.0), ("sample_rate", 1.5), ("steps", 0), ("delta", 1.0)):
        with pytest.raises(UsageError, match="describe no DP-SGD"):
            bounds.claimed_epsilon("rdp", **{**good, name: value})
    with pytest.raises(UsageError, match="take rdp"):
        bounds.claimed_epsilon("prv", noise_multiplier=0.05, sample_rate=1.0, steps=1000, delta=1e-5)
    with pytest.raises(UsageError, match="take rdp"):
        bounds.claimed_epsilon("gdp", noise_multiplier=0.05, sample_rate=1.0, steps=1000, delta=1e-5)


def test_accounting_without_opacus_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(EnvironmentFault, match=r"muaudit\[models\]"):
        bounds.claimed_epsilon("rdp", noise_multiplier=1.0, sample_rate=0.01, steps=10, delta=1e-5)
