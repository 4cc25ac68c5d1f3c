"""Tests of a privacy claim: a lower bound of epsilon by one of several strategies, and the p-value of the claim.

A claim is refuted at an error rate where the lower bound at that rate exceeds it. The smallest such rate is the p-value, so the
bound, the p-value and the verdict cannot disagree. Pure functions on numbers, which know nothing of models or attacks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muaudit.errors import UsageError
from muaudit.estimators.membership import epsilon_lower_bound, one_run_epsilon, one_run_p_value, sharpest_threshold
from muaudit.estimators.privacy_bounds import (
    bonferroni,
    epsilon_table,
    gaussian_lower_bound,
    largest_detectable,
    multi_split,
)

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Strategy = Literal["split", "multi_split", "bonferroni", "one_run", "gaussian_dp"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

LEAST_P_VALUE = 1e-15
"""Where the search for a p-value ends: one minus less than this is 1 in double precision."""

_FEWEST_HEADS = 1e-6
"""Two-sided p-value below which coins are not believed to have been fair."""


@dataclass(frozen=True)
class MembershipScores:
    """Membership scores of one model, larger for members, and how its thresholds are chosen.

    Attributes:
        members: [n], n >= 2.
        non_members: [m], m >= 2.
        choosing: Which members and which non-members choose a threshold, as masks [n] and [m]; the others judge it.
        delta: The delta of the claim, in [0, 1).
        alpha: Error rate of the bound, in (0, 1).
        guesses: For `one_run`: shares of the canaries that are guessed, fixed in advance; the rest is abstained from.
        seed: Of the random halvings of `multi_split`.
    """

    members: FloatArray
    non_members: FloatArray
    choosing: tuple[BoolArray, BoolArray]
    delta: float
    alpha: float
    guesses: Sequence[float] = (0.1, 0.3, 1.0)
    seed: int = 0


@dataclass(frozen=True)
class Bound:
    """A lower bound of epsilon.

    Attributes:
        at: The bound at an error rate alpha; never falls as alpha rises.
        perfect: What it would have been had the scores told all members from all non-members.
        p_value: Of the hypothesis that the true epsilon is at most so large.
    """

    at: Callable[[float], float]
    perfect: Callable[[float], float]
    p_value: Callable[[float], float]


def bound(strategy: Strategy, scored: MembershipScores) -> Bound:
    """The lower bound that a strategy gives.

    All but `one_run` take the examples of one model for independent trials. `one_run` does without, but needs canaries each of
    which was put into the training set, or left out, by its own fair coin.

    Args:
        strategy: `split`: the threshold is chosen on some examples and judged on the others. `multi_split`: median over 100
            random halvings. `bonferroni`: all thresholds, corrected for their number. `one_run`: Steinke et al. 2023.
            `gaussian_dp`: one split threshold tells all, if the mechanism is Gaussian.
        scored: The scores.

    Returns:
        The bound.

    Raises:
        UsageError: There are too few scores on a side, a score is not finite, or the strategy cannot take this delta.
    """
    for side in (scored.members, scored.non_members):
        if len(side) < 2 or not np.isfinite(side).all():
            raise UsageError("a bound of epsilon needs two finite scores of members and two of non-members at least")
    made = {
        "split": _split,
        "multi_split": _multi_split,
        "bonferroni": _bonferroni,
        "one_run": _one_run,
        "gaussian_dp": _gaussian,
    }
    return made[strategy](scored)


def p_value_of(at: Callable[[float], float], epsilon: float) -> float:
    """The smallest error rate at which a lower bound exceeds an epsilon.

    Args:
        at: The bound at an error rate; never falls as the rate rises.
        epsilon: The claim.

    Returns:
        In [`LEAST_P_VALUE`, 1], to a relative 1e-6 and never below the true one; 1 where no rate refutes the claim.
    """
    low, high = math.log(LEAST_P_VALUE), 0.0
    if not at(1.0) > epsilon:
        return 1.0
    if at(LEAST_P_VALUE) > epsilon:
        return LEAST_P_VALUE
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if at(math.exp(middle)) > epsilon else (middle, high)
    return math.exp(high)


def fair(heads: int, coins: int) -> bool:
    """Whether so many heads can come from fair coins: a two-sided exact p-value of at least 1e-6."""
    return bool(stats.binomtest(heads, coins).pvalue >= _FEWEST_HEADS)


def _bound(at: Callable[[float], float], perfect: Callable[[float], float]) -> Bound:
    return Bound(at, perfect, lambda epsilon: p_value_of(at, epsilon))


_Chooser = Callable[[FloatArray, FloatArray, MembershipScores], tuple[float, float]]
"""From scores of members and non-members to a direction and a threshold."""


def _sharpest(members: FloatArray, non_members: FloatArray, scored: MembershipScores) -> tuple[float, float]:
    return sharpest_threshold(members, non_members, alpha=scored.alpha, delta=scored.delta)


def _even(members: FloatArray, non_members: FloatArray, scored: MembershipScores) -> tuple[float, float]:
    """The threshold where both error rates are alike: any tells mu, and there it is known best."""
    sign = 1.0 if np.median(members) >= np.median(non_members) else -1.0
    seen = np.unique(sign * np.concatenate([members, non_members]))
    cuts = (seen[:-1] + seen[1:]) / 2 if len(seen) > 1 else seen
    hits, alarms = (1 - np.searchsorted(np.sort(sign * side), cuts, "right") / len(side) for side in (members, non_members))
    return sign, float(cuts[np.abs(1 - hits - alarms).argmin()])


def _counts(scored: MembershipScores, choose: _Chooser) -> tuple[int, int, int, int]:
    """Hits, members, alarms and non-members of the judging halves, at the threshold that the choosing halves set."""
    sides = (scored.members, scored.non_members)
    chosen = [side[mask] for side, mask in zip(sides, scored.choosing, strict=True)]
    judged = [side[~mask] for side, mask in zip(sides, scored.choosing, strict=True)]
    if any(len(half) < 1 for half in (*chosen, *judged)):
        raise UsageError("a threshold is chosen on some examples and judged on others: both need members and non-members")
    sign, threshold = choose(chosen[0], chosen[1], scored)
    hits, alarms = (int((sign * half > threshold).sum()) for half in judged)
    return hits, len(judged[0]), alarms, len(judged[1])


def _split(scored: MembershipScores) -> Bound:
    hits, members, alarms, others = _counts(scored, _sharpest)
    return _bound(
        lambda alpha: epsilon_lower_bound(hits, members, alarms, others, alpha=alpha, delta=scored.delta),
        lambda alpha: largest_detectable(members, others, alpha=alpha, delta=scored.delta),
    )


def _multi_split(scored: MembershipScores) -> Bound:
    members, others = len(scored.members), len(scored.non_members)
    return _bound(
        lambda alpha: multi_split(
            scored.members, scored.non_members, seed=scored.seed, alpha=alpha, delta=scored.delta, chosen_at=scored.alpha
        ),
        lambda alpha: largest_detectable(
            members - members // 2, others - others // 2, alpha=alpha / 2, delta=scored.delta
        ),
    )  # fmt: skip


def _bonferroni(scored: MembershipScores) -> Bound:
    members, others = len(scored.members), len(scored.non_members)

    def perfect(alpha: float) -> float:
        return float(epsilon_table(members, others, alpha=alpha / (members + others), delta=scored.delta)[members, 0])

    return _bound(lambda alpha: bonferroni(scored.members, scored.non_members, alpha=alpha, delta=scored.delta), perfect)


def _gaussian(scored: MembershipScores) -> Bound:
    if not scored.delta:
        raise UsageError("a Gaussian mechanism has no epsilon at delta = 0: give the claim's delta, or take another strategy")
    hits, members, alarms, others = _counts(scored, _even)
    return _bound(
        lambda alpha: gaussian_lower_bound(hits, members, alarms, others, delta=scored.delta, alpha=alpha),
        lambda alpha: gaussian_lower_bound(members, members, 0, others, delta=scored.delta, alpha=alpha),
    )


def guessed(members: FloatArray, non_members: FloatArray, share: float) -> tuple[int, int]:
    """Guesses and right ones of the one-run audit: the highest scores are called members, as many lowest ones non-members.

    Args:
        members: Scores of the canaries that were put in.
        non_members: Scores of those that were left out.
        share: Share of all canaries that is guessed, in (0, 1], an even number of them.

    Returns:
        Guesses r and right guesses v. Equal scores are ordered so that the guess is wrong.
    """
    total = len(members) + len(non_members)
    half = max(1, round(share * total) // 2)
    inside = np.concatenate([np.ones(len(members), dtype=bool), np.zeros(len(non_members), dtype=bool)])
    scores = np.concatenate([members, non_members])
    highest = np.lexsort((inside, -scores))[:half]
    left = np.setdiff1d(np.arange(total), highest)  # nobody is guessed twice, which equal scores would allow
    lowest = left[np.lexsort((~inside[left], scores[left]))[:half]]
    return 2 * half, int(inside[highest].sum() + (~inside[lowest]).sum())


def _one_run(scored: MembershipScores) -> Bound:
    """Several shares of guesses, all fixed in advance: each at its part of the error rate."""
    canaries, parts = len(scored.members) + len(scored.non_members), len(scored.guesses)
    tried = [guessed(scored.members, scored.non_members, share) for share in scored.guesses]

    def at(alpha: float, outcomes: Sequence[tuple[int, int]] = tried) -> float:
        return max(one_run_epsilon(canaries, *one, delta=scored.delta, alpha=alpha / parts) for one in outcomes)

    def p_value(epsilon: float) -> float:
        values = [one_run_p_value(epsilon, canaries, *one, scored.delta) for one in tried]
        return min(1.0, max(LEAST_P_VALUE, parts * min(values)))

    return Bound(at, lambda alpha: at(alpha, [(guesses, guesses) for guesses, _ in tried]), p_value)
