"""Membership inference: scores of one text, and what the scores of members and non-members say together.

Every score is oriented so that larger means "member", whatever its paper does. Members and non-members are told apart by
ranks; rates come with exact (Clopper-Pearson) intervals. Pure functions on numbers, which know nothing of models or attacks.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from muaudit.models import TokenScores

FloatArray = NDArray[np.float64]

SMALLEST_DEVIATION = 1e-3
"""Floor of a token's standard deviation in Min-K%++, in nats: below it the vocabulary's log-probabilities do not vary (the
model is certain), and float noise would be divided by nothing."""

SMALLEST_LOSS = 1e-6
"""Floor of the loss that ReCaLL divides by, in nats a token."""


# ---- scores of one text ------------------------------------------------------------------------------------------------


def loss(tokens: TokenScores) -> float:
    """Mean log-probability a token, in nats: the negative loss (Yeom et al. 2018)."""
    return float(np.mean(tokens.log_probabilities))


def zlib_ratio(tokens: TokenScores, text: str) -> float:
    """Mean log-probability a token over the bytes that zlib makes of the UTF-8 text (Carlini et al. 2021, as in MIMIR)."""
    return loss(tokens) / len(zlib.compress(text.encode("utf-8")))


def _lowest(values: ArrayLike, k: float) -> float:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[: max(1, int(k * len(ordered)))].mean())


def min_k(tokens: TokenScores, k: float = 0.2) -> float:
    """Min-K%: mean of the lowest log-probabilities (Shi et al. 2024, arXiv 2310.16789).

    Args:
        tokens: The text's T tokens.
        k: Share of the tokens, in (0, 1]: the lowest floor(kT), at least one.

    Returns:
        Nats a token.
    """
    return _lowest(tokens.log_probabilities, k)


def min_k_plus_plus(tokens: TokenScores, k: float = 0.2) -> float:
    """Min-K%++: the same on log-probabilities standardised by the vocabulary's (Zhang et al. 2025, arXiv 2404.02936).

    Args:
        tokens: The text's T tokens with mean and variance of the vocabulary's log-probabilities.
        k: Share of the tokens, as with `min_k`.

    Returns:
        Mean of the lowest (log p - mean) / max(deviation, `SMALLEST_DEVIATION`).
    """
    deviations = np.maximum(np.sqrt(tokens.variances), SMALLEST_DEVIATION)
    return _lowest((np.array(tokens.log_probabilities) - np.array(tokens.means)) / deviations, k)


def reference_ratio(tokens: TokenScores, reference: float) -> float:
    """Mean log-probability a token above that of a reference model (Carlini et al. 2021).

    Args:
        tokens: The text under the model.
        reference: Mean log-probability a token under the reference model, with its own tokens.
    """
    return loss(tokens) - reference


def recall(conditional: TokenScores, tokens: TokenScores) -> float:
    """ReCaLL: mean log-probability after a prefix that no model saw, over that without (Xie et al. 2024, arXiv 2406.15968).

    Args:
        conditional: The text after the prefix.
        tokens: The text alone.

    Returns:
        The ratio, 0 or more; the divisor is at least `SMALLEST_LOSS`.
    """
    return -loss(conditional) / max(-loss(tokens), SMALLEST_LOSS)


def neighbourhood(tokens: TokenScores, neighbours: Sequence[TokenScores]) -> float:
    """Mean log-probability a token above the neighbours' mean (Mattern et al. 2023, arXiv 2305.18462).

    Args:
        tokens: The text.
        neighbours: Texts that differ from it in a few words, at least one.
    """
    return loss(tokens) - float(np.mean([loss(neighbour) for neighbour in neighbours]))


# ---- members against non-members ---------------------------------------------------------------------------------------


def ranks(scores: ArrayLike, non_members: ArrayLike) -> FloatArray:
    """Each score's rank among the non-members' scores, in [0, 1]; ties count half.

    The mean over the members is the area under the ROC curve (Mann and Whitney).

    Args:
        scores: [n], larger means member.
        non_members: [m], m >= 1.

    Returns:
        [n]: the share of non-members that lie below, equal ones counted half.
    """
    ordered = np.sort(np.asarray(non_members, dtype=np.float64))
    values = np.asarray(scores, dtype=np.float64)
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    share: FloatArray = (below + upto) / (2 * len(ordered))
    return share


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """Area under the ROC curve, in [0, 1]: the probability that a member scores above a non-member, ties counted half."""
    return float(ranks(members, non_members).mean())


def auc_interval(
    members: ArrayLike, non_members: ArrayLike, member_clusters: Sequence[str], non_member_clusters: Sequence[str]
) -> tuple[float, float]:
    """95 % interval of the AUC where scores of one cluster depend on each other (Obuchowski 1997; DeLong et al. 1988).

    Args:
        members: [n], larger means member.
        non_members: [m].
        member_clusters: The members' clusters, at least two different ones.
        non_member_clusters: Likewise; no cluster is on both sides.

    Returns:
        Both ends, in [0, 1]: normal quantiles, standard error from the cluster sums of each side's placements.
    """
    variance = 0.0
    for placements, clusters in (
        (ranks(members, non_members), member_clusters),
        (1 - ranks(non_members, members), non_member_clusters),
    ):
        codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
        sums = np.bincount(codes, placements - placements.mean())
        variance += len(sums) / (len(sums) - 1) * float(sums @ sums) / len(placements) ** 2
    value, half = auc(members, non_members), float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    return max(0.0, value - half), min(1.0, value + half)


def clopper_pearson(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Exact two-sided interval of a binomial share at confidence 1 - alpha (Clopper and Pearson 1934)."""
    low, high = _clopper_pearson(np.array([successes]), trials, alpha)
    return float(low[0]), float(high[0])


def _clopper_pearson(successes: NDArray[np.int64], trials: int, alpha: float) -> tuple[FloatArray, FloatArray]:
    low = np.where(successes > 0, stats.beta.ppf(alpha / 2, np.maximum(successes, 1), trials - successes + 1), 0.0)
    failures = np.maximum(trials - successes, 1)
    high = np.where(successes < trials, stats.beta.ppf(1 - alpha / 2, successes + 1, failures), 1.0)
    return low, high


@dataclass(frozen=True)
class Rate:
    """A true positive rate at a threshold.

    Attributes:
        value: Share of members above the threshold.
        interval: Its exact 95 % interval, for the threshold as it is; that it was chosen on the same non-members is not in it.
        threshold: Scores above it are called members.
    """

    value: float
    interval: tuple[float, float]
    threshold: float


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float) -> Rate:
    """The largest true positive rate whose false positive rate is at most `fpr` (ML Privacy Meter's and ART's convention, <=).

    Args:
        members: [n], larger means member.
        non_members: [m].
        fpr: False positive rate, in [0, 1). Below 1/m no non-member may lie above the threshold.

    Returns:
        The rate at the threshold that is the highest non-member score left below.
    """
    values = np.asarray(members, dtype=np.float64)
    descending = np.sort(np.asarray(non_members, dtype=np.float64))[::-1]
    # The threshold is a non-member's score, so at most the floor(m * fpr) ranked before it can lie above.
    threshold = float(descending[math.floor(len(descending) * fpr + 1e-9)])
    hits = int((values > threshold).sum())
    return Rate(hits / len(values), clopper_pearson(hits, len(values)), threshold)


# ---- privacy leakage ---------------------------------------------------------------------------------------------------


def epsilon_lower_bound(
    true_positives: int, members: int, false_positives: int, non_members: int, *, alpha: float = 0.05, delta: float = 0.0
) -> float:
    """Lower bound of epsilon at one threshold that was fixed beforehand, at confidence 1 - alpha.

    (epsilon, delta)-indistinguishability forces TPR <= e^epsilon FPR + delta, and TNR <= e^epsilon FNR + delta; both rates are
    replaced by the unfavourable end of their Clopper-Pearson intervals (as in jax-privacy's auditing). With several thresholds,
    divide alpha by their number (Bonferroni), or choose one on other data.

    Args:
        true_positives: Members called members.
        members: All members.
        false_positives: Non-members called members.
        non_members: All non-members.
        alpha: Error rate of both bounds together: each rate's interval has alpha / 2 on a side.
        delta: The delta of the claim.

    Returns:
        Epsilon, 0 or more.
    """
    rates = np.array([true_positives]), members, np.array([false_positives]), non_members
    return float(_epsilon(*rates, alpha, delta)[0])


def _epsilon(
    hits: NDArray[np.int64], members: int, alarms: NDArray[np.int64], non_members: int, alpha: float, delta: float
) -> FloatArray:
    """The bound at every threshold: hits and alarms [n]."""
    tpr, fpr = _clopper_pearson(hits, members, alpha)[0], _clopper_pearson(alarms, non_members, alpha)[1]
    # TNR >= 1 - fpr and FNR <= 1 - tpr are the same two events, so alpha / 2 each suffices for both ratios.
    ratios = np.maximum((tpr - delta) / np.maximum(fpr, 1e-300), (1 - fpr - delta) / np.maximum(1 - tpr, 1e-300))
    bound: FloatArray = np.log(np.maximum(ratios, 1.0))
    return bound


def epsilon_by_split(
    members: tuple[ArrayLike, ArrayLike], non_members: tuple[ArrayLike, ArrayLike], *, alpha: float = 0.05, delta: float = 0.0
) -> float:
    """Lower bound of epsilon at a threshold chosen on one half of the data and judged on the other.

    Since the threshold does not depend on what it is judged by, no correction for the number of thresholds is due
    (jax-privacy's `Split`). High scores or low ones may give membership away: the direction is chosen with the threshold.

    Args:
        members: Scores of the half that chooses, and of the half that judges.
        non_members: Likewise.
        alpha: Error rate.
        delta: The delta of the claim.

    Returns:
        Epsilon, 0 or more.
    """
    inside, judged_inside = (np.asarray(half, dtype=np.float64) for half in members)
    outside, judged_outside = (np.asarray(half, dtype=np.float64) for half in non_members)
    sign, threshold = sharpest_threshold(inside, outside, alpha=alpha, delta=delta)
    right, wrong = (int((sign * half > threshold).sum()) for half in (judged_inside, judged_outside))
    return epsilon_lower_bound(right, len(judged_inside), wrong, len(judged_outside), alpha=alpha, delta=delta)


def sharpest_threshold(members: ArrayLike, non_members: ArrayLike, *, alpha: float, delta: float) -> tuple[float, float]:
    """The direction and threshold that give the largest bound of epsilon on these scores; to be judged on others.

    Args:
        members: Scores [n].
        non_members: Scores [m].
        alpha: Error rate of each threshold's bound.
        delta: The delta of the claim.

    Returns:
        Direction s, 1 or -1, and threshold t: who has s score > t is called a member.
    """
    inside, outside = (np.asarray(side, dtype=np.float64) for side in (members, non_members))
    best, sign, threshold = -1.0, 1.0, 0.0
    for direction in (1.0, -1.0):
        seen = np.unique(direction * np.concatenate([inside, outside]))
        cuts = (seen + np.append(seen[1:], seen[-1])) / 2  # midway between neighbours: at an edge the other half strays over
        hits, alarms = (len(half) - np.searchsorted(np.sort(direction * half), cuts, "right") for half in (inside, outside))
        bounds = _epsilon(hits, len(inside), alarms, len(outside), alpha, delta)
        if bounds.max() > best:
            best, sign, threshold = float(bounds.max()), direction, float(cuts[bounds.argmax()])
    return sign, threshold


def one_run_epsilon(canaries: int, guesses: int, correct: int, *, delta: float = 0.0, alpha: float = 0.05) -> float:
    """Lower bound of epsilon from one training (Steinke et al. 2023, arXiv 2305.08846, theorem 5.2).

    It holds for canaries of which each was put into the training set by its own fair coin; forget and holdout facts are not
    such canaries.

    Args:
        canaries: How many coins were thrown, m.
        guesses: On how many the attack did not abstain, r.
        correct: How many guesses were right, v.
        delta: The delta of the claim.
        alpha: The p-value at which an epsilon is rejected.

    Returns:
        The largest rejected epsilon, to 1e-9; 0 if none is.
    """
    low, high = 0.0, 64.0
    if one_run_p_value(low, canaries, guesses, correct, delta) >= alpha:
        return 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if one_run_p_value(middle, canaries, guesses, correct, delta) < alpha else (low, middle)
    return low


def one_run_p_value(epsilon: float, canaries: int, guesses: int, correct: int, delta: float) -> float:
    """p-value of an epsilon from one training: the bound of theorem 5.2 that `one_run_epsilon` inverts.

    Args:
        epsilon: The claim, 0 or more.
        canaries: As with `one_run_epsilon`, like all that follows.
        guesses: How many.
        correct: How many of them were right.
        delta: The delta of the claim.

    Returns:
        Probability of so many right guesses under the claim, at most.
    """
    right = 1 / (1 + math.exp(-epsilon))
    at_least = stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, right)  # P[Bin >= v - i] for i = 0..v
    tail = float(at_least[0])
    if not delta or not correct:
        return tail
    spread = float(((at_least[1:] - tail) / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * spread)


def privacy_leakage(target: float, reference: float) -> float:
    """MUSE's PrivLeak, in percent of the reference's AUC (Shi et al. 2024, arXiv 2407.06460, section 3.3).

    Args:
        target: The target's AUC in MUSE's orientation: the probability that a holdout text is likelier than a forget text.
        reference: That of a retrained model, above 0.

    Returns:
        0 where both agree; -100 at least (all forget texts likelier: still memorized); positive where unlearning overshot.
    """
    return 100 * (target - reference) / reference
