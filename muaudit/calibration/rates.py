"""Rates, areas and correlations with their intervals: pure functions on numbers, which know nothing of attacks or models."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

FloatArray = NDArray[np.float64]

SMALL = 1e-8
"""Keeps a relative change of nothing to nothing from being no number."""


def clopper_pearson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial rate (Clopper and Pearson 1934).

    Args:
        hits: How often it happened.
        total: Of how many, at least 1.
        confidence: Two-sided level, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1]; each side errs with at most half of what the level leaves.

    Raises:
        ValueError: The counts are not those of a rate.
    """
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"{hits} of {total} is no rate")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, total - hits + 1))
    high = 1.0 if hits == total else float(stats.beta.ppf(1 - tail, hits + 1, total - hits))
    return low, high


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting one half (Mann and Whitney 1947).

    Args:
        positives: Scores [m], m >= 1.
        negatives: Scores [n], n >= 1.

    Returns:
        The area under the ROC curve, in [0, 1].
    """
    ours, others = np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)
    ranks = stats.rankdata(np.concatenate([ours, others]))
    return float((ranks[: len(ours)].sum() - len(ours) * (len(ours) + 1) / 2) / (len(ours) * len(others)))


def auc_interval(area: float, positives: int, negatives: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an AUC by inverting the score test (Newcombe 2006, Statistics in Medicine 25:559, method 5).

    Unlike DeLong's, it has a width where the two samples do not overlap at all, and never leaves [0, 1]. The variance is that
    of Hanley and McNeil (1982) at the tested area, with both sample sizes in its inner terms replaced by their mean.

    Args:
        area: The AUC that was seen, in [0, 1].
        positives: Independent models that know, at least 1; several audits of one model count once.
        negatives: Independent models that never saw, at least 1.
        confidence: Two-sided level, in (0, 1).

    Returns:
        Lower and upper end, in [0, 1].
    """
    quantile, inner = float(stats.norm.ppf((1 + confidence) / 2)), (positives + negatives) / 2 - 1

    def excess(tested: float) -> float:
        spread = tested * (1 - tested) * (1 + inner * ((1 - tested) / (2 - tested) + tested / (1 + tested)))
        return (area - tested) ** 2 - quantile**2 * spread / (positives * negatives)

    # At either end of the range the variance is 0, so that the excess is positive there unless the area is that very end.
    low = 0.0 if area <= 0 else float(optimize.brentq(excess, 0.0, area)) if area < 1 else _crossing(excess, 0.0, 1.0)
    high = 1.0 if area >= 1 else float(optimize.brentq(excess, area, 1.0)) if area > 0 else _crossing(excess, 1.0, 0.0)
    return low, high


def _crossing(excess: Callable[[float], float], start: float, end: float) -> float:
    """Where the excess turns negative on the way from one end of the range to the other, which is a root itself."""
    return float(optimize.brentq(excess, start, end + (start - end) * 1e-9))


def roc(positives: ArrayLike, negatives: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The ROC curve: one point a threshold between scores, from (0, 0) to (1, 1).

    Args:
        positives: Scores [m], m >= 1.
        negatives: Scores [n], n >= 1.

    Returns:
        False-alarm rates and detection rates [points], both ascending; corners alone, so that straight stretches have two.
    """
    ours, others = np.sort(np.asarray(positives, dtype=np.float64)), np.sort(np.asarray(negatives, dtype=np.float64))
    cuts = np.unique(np.concatenate([ours, others]))[::-1]
    false = np.concatenate([[0.0], 1 - np.searchsorted(others, cuts, side="left") / len(others)])
    true = np.concatenate([[0.0], 1 - np.searchsorted(ours, cuts, side="left") / len(ours)])
    turns = np.ones(len(false), dtype=bool)
    turns[1:-1] = np.diff(false)[:-1] * np.diff(true)[1:] != np.diff(true)[:-1] * np.diff(false)[1:]
    return false[turns], true[turns]


def spearman(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> tuple[float, tuple[float, float]] | None:
    """Rank correlation with an interval (Bonett and Wright 2000, Psychometrika 65:23).

    Args:
        first: Numbers [n].
        second: Numbers [n].
        confidence: Two-sided level, in (0, 1).

    Returns:
        The correlation in [-1, 1] and its interval; None with fewer than four pairs, or where either does not vary.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    found = min(1.0, max(-1.0, found))
    if abs(found) == 1:
        return found, (found, found)
    width = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt((1 + found**2 / 2) / (len(x) - 3))
    return found, (math.tanh(math.atanh(found) - width), math.tanh(math.atanh(found) + width))


def kept(before: float, after: float) -> float:
    """How far a number stayed what it was: 1 - |after - before| / (|after| + |before|), in [0, 1].

    The symmetric form of the Unlearning Depth Score's meta-evaluation (arXiv 2605.24614, section 4.1): what destroys a
    score counts against it as much as what raises it.
    """
    return 1 - abs(after - before) / max(abs(after) + abs(before), SMALL)


def harmonic(numbers: Sequence[float]) -> float:
    """Harmonic mean of numbers of which none is negative; 0 where any is 0."""
    return 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / number for number in numbers)


def spread_interval(spread: float, degrees: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a standard deviation that was estimated from normal numbers, by the chi-squared distribution.

    Args:
        spread: The estimate, not negative.
        degrees: Its degrees of freedom, at least 1.
        confidence: Two-sided level, in (0, 1).

    Returns:
        Lower and upper end.
    """
    tail = (1 - confidence) / 2
    low, high = (math.sqrt(degrees / float(stats.chi2.ppf(level, degrees))) for level in (1 - tail, tail))
    return spread * low, spread * high
