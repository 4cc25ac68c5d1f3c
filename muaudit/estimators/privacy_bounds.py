"""Empirical lower bounds of epsilon, and the upper bounds that accountants claim.

A lower bound comes from an attack's errors: (epsilon, delta)-differential privacy limits how well members can be told from
non-members. `membership` bounds epsilon at one threshold, by a split, and from one run; here are bounds over all thresholds,
over many splits and for Gaussian mechanisms. A bound above the claim refutes it; one below shows nothing, least of all where
so few models or examples were looked at that even a perfect attack would stay below (`largest_detectable`). Pure functions on
numbers, which know nothing of models or attacks.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from muaudit.errors import EnvironmentFault, UsageError
from muaudit.estimators.membership import epsilon_lower_bound

FloatArray = NDArray[np.float64]

Accountant = Literal["rdp", "prv", "gdp"]

LARGEST_EPSILON = 100.0
"""Where the search for an epsilon ends."""


# ---- bounds from scores ------------------------------------------------------------------------------------------------


def rate_ends(trials: int, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Both ends of the Clopper-Pearson interval for every possible number of successes.

    Args:
        trials: n, at least 1.
        alpha: One minus the confidence: alpha / 2 on a side.

    Returns:
        Lower and upper ends [n + 1], for 0..n successes.
    """
    successes = np.arange(trials + 1)
    high = np.ones(trials + 1)
    high[:-1] = stats.beta.ppf(1 - alpha / 2, successes[:-1] + 1, trials - successes[:-1])
    return 1 - high[::-1], high


def epsilon_table(members: int, non_members: int, *, alpha: float = 0.05, delta: float = 0.0) -> FloatArray:
    """`membership.epsilon_lower_bound` for every pair of counts at once.

    Args:
        members: n.
        non_members: m.
        alpha: Error rate of both rates' intervals together.
        delta: The delta of the claim.

    Returns:
        [n + 1, m + 1]: the bound where so many members and so many non-members were called members.
    """
    tpr, fpr = rate_ends(members, alpha)[0][:, None], rate_ends(non_members, alpha)[1][None, :]
    ratios = np.maximum((tpr - delta) / np.maximum(fpr, 1e-300), (1 - fpr - delta) / np.maximum(1 - tpr, 1e-300))
    table: FloatArray = np.log(np.maximum(ratios, 1.0))
    return table


def _counts(members: FloatArray, non_members: FloatArray, cuts: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of each lie above each cut, in both directions: first scores above it, then scores below it."""
    above = [len(side) - np.searchsorted(np.sort(side), cuts, "right") for side in (members, non_members)]
    hits, alarms = (
        np.concatenate([count, len(side) - count]) for count, side in zip(above, (members, non_members), strict=True)
    )
    return hits, alarms


def _cuts(scores: FloatArray) -> FloatArray:
    """A threshold between any two neighbours."""
    seen = np.unique(scores)
    midway: FloatArray = (seen[:-1] + seen[1:]) / 2
    return midway if len(midway) else seen


def _scores(members: ArrayLike, non_members: ArrayLike, fewest: int) -> tuple[FloatArray, FloatArray]:
    inside, outside = (np.asarray(side, dtype=np.float64).ravel() for side in (members, non_members))
    if min(len(inside), len(outside)) < fewest:
        raise UsageError(f"a bound of epsilon needs {fewest} members and {fewest} non-members at least")
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise UsageError("a membership score is not a finite number, so no threshold can be set: see which model gave it")
    return inside, outside


def bonferroni(members: ArrayLike, non_members: ArrayLike, *, alpha: float = 0.05, delta: float = 0.0) -> float:
    """Lower bound of epsilon over all thresholds and both directions, with Bonferroni's correction.

    A Clopper-Pearson end at k successes is the quantile of the k-th order statistic's own distribution, so that thresholds may
    lie at the scores themselves: with n + m scores there are n + m ends in either direction, each at level
    alpha / (2 (n + m)), however many different scores there are (jax-privacy's `Bonferroni` divides by the thresholds left
    after pruning, which the data choose).

    Args:
        members: Scores [n].
        non_members: Scores [m].
        alpha: Error rate.
        delta: The delta of the claim.

    Returns:
        Epsilon, 0 or more.

    Raises:
        UsageError: A side is empty, or a score is not finite.
    """
    inside, outside = _scores(members, non_members, 1)
    table = epsilon_table(len(inside), len(outside), alpha=alpha / (len(inside) + len(outside)), delta=delta)
    return float(table[_counts(inside, outside, _cuts(np.concatenate([inside, outside])))].max())


def multi_split(
    members: ArrayLike,
    non_members: ArrayLike,
    *,
    seed: int,
    splits: int = 100,
    alpha: float = 0.05,
    delta: float = 0.0,
    chosen_at: float | None = None,
) -> float:
    """Median over random halvings of `membership.epsilon_by_split`, each at half the error rate.

    If epsilon were larger than claimed in half of the splits, the mean number of failing splits would be half of them at
    least; by Markov's inequality the median fails at most twice as often as one split (jax-privacy's `MultiSplit`).

    Args:
        members: Scores [n], n >= 2.
        non_members: Scores [m], m >= 2.
        seed: Seed of the halvings.
        splits: How many.
        alpha: Error rate of the median.
        delta: The delta of the claim.
        chosen_at: Error rate at which the choosing halves set their thresholds, where that is to stay while alpha changes, so
            that the bound rises with alpha; by default alpha.

    Returns:
        Epsilon, 0 or more; it does not hang on one lucky or unlucky split.

    Raises:
        UsageError: A side has fewer than two scores, or a score is not finite.
    """
    inside, outside = _scores(members, non_members, 2)
    rng = np.random.default_rng(seed)
    chosen, others = len(inside) // 2, len(outside) // 2
    choosing = epsilon_table(chosen, others, alpha=(alpha if chosen_at is None else chosen_at) / 2, delta=delta)
    judging = epsilon_table(len(inside) - chosen, len(outside) - others, alpha=alpha / 2, delta=delta)
    bounds = []
    for _ in range(splits):
        inner, outer = rng.permutation(inside), rng.permutation(outside)
        cuts = _cuts(np.concatenate([inner[:chosen], outer[:others]]))
        best = int(choosing[_counts(inner[:chosen], outer[:others], cuts)].argmax())
        hits, alarms = _counts(inner[chosen:], outer[others:], cuts)
        bounds.append(judging[hits[best], alarms[best]])
    return float(np.median(bounds))


def largest_detectable(members: int, non_members: int, *, alpha: float = 0.05, delta: float = 0.0) -> float:
    """The bound that a perfect attack would show: no design of this size can refute a claim of more.

    Args:
        members: How many judge; after a split, only the judging half.
        non_members: Likewise.
        alpha: Error rate.
        delta: The delta of the claim.

    Returns:
        Epsilon, 0 or more.
    """
    return epsilon_lower_bound(members, members, 0, non_members, alpha=alpha, delta=delta)


# ---- Gaussian mechanisms -----------------------------------------------------------------------------------------------


def gaussian_mu(hits: int, members: int, alarms: int, non_members: int, *, alpha: float = 0.05) -> float:
    """Lower bound of mu if the mechanism is Gaussian, at one threshold that was fixed beforehand.

    mu = Phi^-1(1 - FPR) - Phi^-1(FNR) (Dong, Roth and Su 2022, equation 6), both rates at the upper ends of their
    Clopper-Pearson intervals (Nasr et al. 2023, arXiv 2302.07956).

    Args:
        hits: Members called members.
        members: All members.
        alarms: Non-members called members.
        non_members: All non-members.
        alpha: Error rate of both rates' intervals together.

    Returns:
        mu, 0 or more.
    """
    fpr = float(rate_ends(non_members, alpha)[1][alarms])
    fnr = float(rate_ends(members, alpha)[1][members - hits])
    return max(0.0, float(stats.norm.isf(fpr) - stats.norm.ppf(fnr))) if max(fpr, fnr) < 1 else 0.0


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta that a Gaussian mechanism reaches at an epsilon (Dong, Roth and Su 2022, corollary 2.13).

    Args:
        mu: 0 or more.
        epsilon: 0 or more.

    Returns:
        Phi(-epsilon / mu + mu / 2) - e^epsilon Phi(-epsilon / mu - mu / 2), in [0, 1].
    """
    if mu <= 0:
        return 0.0
    first, second = stats.norm.logcdf([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu])
    return float(np.exp(first) * -np.expm1(min(0.0, epsilon + second - first)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of a Gaussian mechanism at a delta: the inverse of `gaussian_delta`.

    Args:
        mu: 0 or more.
        delta: In (0, 1).

    Returns:
        Epsilon in [0, `LARGEST_EPSILON`].

    Raises:
        UsageError: Delta lies outside (0, 1).
    """
    if not 0 < delta < 1:
        raise UsageError(f"a Gaussian mechanism has no epsilon at delta = {delta}: give the claim's delta, above 0 and below 1")
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if gaussian_delta(mu, LARGEST_EPSILON) >= delta:
        return LARGEST_EPSILON
    return float(optimize.brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, LARGEST_EPSILON, xtol=1e-9))


def gaussian_lower_bound(hits: int, members: int, alarms: int, non_members: int, *, delta: float, alpha: float = 0.05) -> float:
    """Lower bound of epsilon if the mechanism is Gaussian, as DP-SGD nearly is over many steps.

    One threshold tells the whole trade-off curve of a Gaussian mechanism, so that this bound is far tighter than the general
    one; of a mechanism that is not Gaussian it says nothing.

    Args:
        hits: As with `gaussian_mu`.
        members: Likewise.
        alarms: Likewise.
        non_members: Likewise.
        delta: The delta of the claim, in (0, 1).
        alpha: Error rate.

    Returns:
        Epsilon, 0 or more.
    """
    return gaussian_epsilon(gaussian_mu(hits, members, alarms, non_members, alpha=alpha), delta)


# ---- claims ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A differential privacy claim.

    Attributes:
        epsilon: 0 or more.
        delta: In [0, 1]; with 1 the claim says nothing.
        ceiling: Whether epsilon is an upper bound, so that an empirical lower bound above it refutes the claim.
        warning: What to know about it, or None.
    """

    epsilon: float
    delta: float
    ceiling: bool = True
    warning: str | None = None


def group_claim(epsilon: float, delta: float, size: int) -> Claim:
    """What a claim about one example says about several together (Vadhan 2017, lemma 2.2).

    A claim about training with one example more or less is not one about unlearning k of them: only this much follows.

    Args:
        epsilon: The claim about one example.
        delta: Likewise.
        size: How many examples k, at least 1.

    Returns:
        k epsilon, and delta (1 + e^epsilon + ... + e^((k - 1) epsilon)), 1 at most.
    """
    if epsilon < 0 or not 0 <= delta <= 1 or size < 1:
        raise UsageError(
            f"epsilon {epsilon}, delta {delta} and a group of {size} make no claim: give epsilon >= 0 and size >= 1"
        )
    total = size * epsilon
    # In logs: e^(k epsilon) overflows long before delta stops to matter.
    factor = math.log(size) if epsilon < 1e-12 else total + math.log(-math.expm1(-total)) - math.log(math.expm1(epsilon))
    grown = 0.0 if delta == 0 else math.exp(min(0.0, math.log(delta) + factor))
    vacuous = "delta has grown to 1: about so many examples together the claim says nothing" if grown >= 1 else None
    return Claim(total, grown, warning=vacuous)


def claimed_epsilon(accountant: Accountant, *, noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> Claim:
    """What an accountant of Opacus claims for DP-SGD with Poisson sampling.

    Args:
        accountant: `rdp` (Renyi), `prv` (numerical composition, Opacus's default: the upper end of its error) or `gdp`
            (central limit theorem).
        noise_multiplier: Noise over clipping norm, above 0.
        sample_rate: Chance of each example to be in a batch, in (0, 1]; shuffled batches of fixed size are not covered.
        steps: Optimiser steps, at least 1.
        delta: In (0, 1).

    Returns:
        The claim. That of `gdp` is no ceiling: the limit may understate epsilon.

    Raises:
        UsageError: A number lies outside its range, or the accountant has no answer for them.
        EnvironmentFault: Opacus is not installed.
    """
    if not (noise_multiplier > 0 and 0 < sample_rate <= 1 and steps >= 1 and 0 < delta < 1):
        raise UsageError(
            f"noise multiplier {noise_multiplier}, sample rate {sample_rate}, steps {steps}, delta {delta} describe no DP-SGD: "
            "give noise > 0, 0 < rate <= 1, steps >= 1 and 0 < delta < 1"
        )
    run = (noise_multiplier, sample_rate, int(steps))
    epsilon = _accounted("rdp", run, delta)
    if accountant == "rdp":
        return Claim(epsilon, delta)
    if accountant == "prv" and epsilon > LARGEST_EPSILON:
        # Its grid grows with epsilon over its error, to many gigabytes.
        raise UsageError(f"prv needs too much memory where epsilon is about {epsilon:.0f}: take rdp, which is just as vacuous")
    epsilon = _accounted(accountant, run, delta)
    if accountant == "gdp":
        return Claim(epsilon, delta, ceiling=False, warning="gdp rests on a limit and can understate epsilon: not a ceiling")
    return Claim(epsilon, delta)


def _accounted(accountant: Accountant, run: tuple[float, float, int], delta: float) -> float:
    try:
        from opacus.accountants import create_accountant
    except ImportError as error:
        raise EnvironmentFault("accounting needs Opacus, which is not installed: pip install 'muaudit[models]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gdp's is in the claim; rdp's says that more orders could be tighter, not larger
        counted = create_accountant(mechanism=accountant)
        counted.history = [run]
        try:
            epsilon = float(counted.get_epsilon(delta=delta))
        except (ValueError, RuntimeError, OverflowError) as error:
            raise UsageError(f"the accountant {accountant!r} has no epsilon for these numbers ({error}): take rdp") from error
    if not math.isfinite(epsilon):
        raise UsageError(f"the accountant {accountant!r} gives no finite epsilon: there is too little noise to claim any")
    return epsilon
