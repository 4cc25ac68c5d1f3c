"""The worst cluster: could an honest model have given back this much of any one of them?

A mean over clusters hides one that is still remembered in full. Here each cluster's gap is judged by the largest gap that
would be seen among all clusters if the target were just another reference. Pure functions on arrays.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TAIL_FRACTION = 0.25
"""Share of the standardised null gaps from which the tail is fitted."""
TAIL_COUNT = 10
"""Null gaps from which the tail is fitted at least (up to half of them), and the most that its uncertainty is reckoned by.

More exceedances would narrow the extrapolation as if the tail were known to be exponential; simulation with skewed training
noise asks for the wider one (docs/statistics.md).
"""
SHIFTS = 32
"""With one reference, each cluster is set against at most this many others on either side."""
TILTS = np.geomspace(0.05, 2000, 72)
"""Exponents at which the Chernoff bound is evaluated; each gives a valid bound, the smallest is used."""
LEVELS = np.geomspace(1, 1e-15, 61)
"""Probabilities at which the null's quantile is evaluated to find the probability of a gap."""


def cluster_means(values: FloatArray, codes: IntArray, sizes: FloatArray) -> FloatArray:
    """Mean of each row within each cluster.

    Args:
        values: Numbers [rows, n].
        codes: Cluster of each unit [n], in 0..C-1.
        sizes: Units in each cluster [C], each at least 1.

    Returns:
        The means [rows, C].
    """
    return np.stack([np.bincount(codes, row, minlength=len(sizes)) / sizes for row in values])


@dataclass(frozen=True)
class Tail:
    """Exponential tail of standardised gaps, with the uncertainty of its mean excess.

    Beyond `start`, which a gap exceeds with probability `fraction`, the excess is taken as exponential. Its mean is known
    from `count` gaps only, so the predictive tail is `fraction * (1 + x / (count * excess)) ** -count`, a Lomax tail.
    """

    start: float
    excess: float
    count: int
    fraction: float

    @classmethod
    def fitted(cls, pool: FloatArray, independent: int) -> "Tail":
        """Fits the tail of a pool of null gaps [m], of which `independent` carry information of their own."""
        fraction = min(max(TAIL_FRACTION, TAIL_COUNT / independent), 0.5)
        start = float(np.quantile(pool, 1 - fraction))
        # Ties at the start count as excesses of zero: gaps made by a few whole guesses lie on a lattice.
        excess = float(np.maximum(pool - start, 0).mean()) / fraction
        return cls(start, excess, min(TAIL_COUNT, max(1, round(fraction * independent))), fraction)

    def quantile(self, probability: float) -> float:
        """The standardised gap, at least 0, that one further gap exceeds with this probability."""
        ratio = min(1.0, probability / self.fraction)
        return max(0.0, self.start + self.excess * self.count * (math.pow(ratio, -1 / self.count) - 1))


@dataclass(frozen=True)
class ClusterNull:
    """Distribution of one cluster's gap when the target is just another reference.

    A cluster's gap has two parts, whose quantiles are added in quadrature: training noise of whole clusters (a fitted tail,
    in units of its standard deviation), and chance at single units such as a confident wrong guess (a Chernoff bound for the
    mean of as many units as the cluster has, drawn from the references' units and one more that leaks fully: what was never
    seen in m units may have a probability of about 1/m).

    Attributes:
        between: Variance of the gap between clusters, beyond what its units bring.
        tail: Tail of the standardised gaps.
        cumulants: Log moment-generating function of one unit's gap, at each of `TILTS`.
    """

    between: float
    tail: Tail
    cumulants: FloatArray

    def quantile(self, probability: float, sizes: FloatArray) -> FloatArray:
        """The gap that clusters of `sizes` [C] units exceed with at most this probability [C]; may lie above 1."""
        units = ((self.cumulants - np.log(probability) / sizes[:, None]) / TILTS).min(1)
        clusters = self.tail.quantile(probability) * math.sqrt(self.between)
        gaps: FloatArray = np.hypot(clusters, np.maximum(0, units))
        return gaps

    def probability(self, gaps: FloatArray, sizes: FloatArray) -> FloatArray:
        """Probability that one cluster of such a size shows such a gap or a larger one [C], from 1e-15 to 1."""
        kinds, kind = np.unique(sizes, return_inverse=True)
        quantiles = np.stack([self.quantile(level, kinds) for level in LEVELS])
        result = np.empty_like(gaps)
        for index in range(len(kinds)):
            chosen = kind == index
            result[chosen] = np.exp(np.interp(gaps[chosen], quantiles[:, index], np.log(LEVELS)))
        return result


def _variances(values: FloatArray, means: FloatArray, codes: IntArray, sizes: FloatArray) -> tuple[float, float]:
    """Variances between and within clusters, by moments, of rows [K, n] that are centred on their means.

    The mean square between clusters is taken one (normal-theory) standard error above its estimate: a null from few clusters
    that happens to miss the noise between them would flag honest targets.
    """
    rows, units = values.shape
    spare, free = units - len(sizes), len(sizes) - 1
    within = float(np.sum((values - means[:, codes]) ** 2)) / (rows * spare) if spare else 0.0
    between = float(np.sum(sizes * means**2)) / (rows * free) * (1 + math.sqrt(2 / (free * max(1, rows - 1))))
    weight = units - float(np.sum(sizes**2)) / units
    return max(0.0, (between - within) * free / weight), within


def _standardised(gaps: FloatArray, variances: FloatArray) -> FloatArray:
    return np.divide(gaps, np.sqrt(variances), out=np.zeros_like(gaps), where=np.broadcast_to(variances > 0, gaps.shape))


def _log_mean_exp(values: FloatArray) -> FloatArray:
    tilted = TILTS[:, None] * values
    top = tilted.max(1)
    result: FloatArray = top + np.log(np.exp(tilted - top[:, None]).mean(1))
    return result


def null_of_references(references: FloatArray, codes: IntArray, sizes: FloatArray) -> ClusterNull:
    """The null from references that are audited against each other.

    Args:
        references: Leakage [K, n] with K >= 2; negated for the null of gaps below the references.
        codes: Cluster of each unit [n], in 0..C-1.
        sizes: Units in each cluster [C].

    Returns:
        The null of the target's gap against the mean of the K references, beyond what sets whole models apart.
    """
    count = len(references)
    # Each reference against the mean of the others. With K = 2 the two rows mirror each other, but the upper tail of both
    # together holds each cluster once, so its members are as independent as those of one row.
    apart = (references - references.mean(0)) * count / (count - 1)
    # What sets whole models apart is no spread of clusters, and K models tell little of it: the noise floor answers for it.
    apart -= apart.mean(1, keepdims=True)
    means = cluster_means(apart, codes, sizes)
    between, within = _variances(apart, means, codes, sizes)
    pool = _standardised(means, between + within / sizes).ravel()
    # A gap against K models varies less than one against K - 1.
    ratio = (1 + 1 / count) / (1 + 1 / (count - 1))
    return ClusterNull(between * ratio, Tail.fitted(pool, pool.size), _log_mean_exp(np.append(apart, 1.0)))


def null_of_units(reference: FloatArray, codes: IntArray, sizes: FloatArray) -> ClusterNull:
    """The null from one reference alone: two models are taken to differ on a cluster as much as two of its clusters do.

    Args:
        reference: Leakage [n]; one minus it for the null of gaps below the reference.
        codes: Cluster of each unit [n], in 0..C-1.
        sizes: Units in each cluster [C], C >= 2.

    Returns:
        The null of the target's gap against this reference, wider than several references would give.
    """
    centred = (reference - reference.mean())[None, :]
    means = cluster_means(centred, codes, sizes)
    between, within = _variances(centred, means, codes, sizes)
    mean, variance = means[0], between + within / sizes
    shifts = np.arange(1, len(sizes)) if len(sizes) <= 2 * SHIFTS else np.r_[-SHIFTS:0, 1 : SHIFTS + 1]
    apart = np.stack([mean - np.roll(mean, shift) for shift in shifts])
    pool = _standardised(apart, np.stack([variance + np.roll(variance, shift) for shift in shifts])).ravel()
    cumulants = _log_mean_exp(np.append(reference, 1.0)) + _log_mean_exp(-reference)
    return ClusterNull(2 * between, Tail.fitted(pool, len(sizes)), cumulants)


@dataclass(frozen=True)
class Maximum:
    """Judgement of every cluster's gap by the null of the largest one.

    Attributes:
        gaps: Mean target leakage minus mean reference leakage [C].
        thresholds: Gap beyond which each cluster is flagged [C]; at least the margin, possibly more than any gap can be.
        flagged: Which clusters lie beyond their threshold [C].
        p_values: Bound of the probability under the null that any cluster is as extreme as this one [C], in (0, 1].
        smallest_detectable_gap: Threshold of a cluster of median size.
    """

    gaps: FloatArray
    thresholds: FloatArray
    flagged: NDArray[np.bool_]
    p_values: FloatArray
    smallest_detectable_gap: float


def judge_maximum(
    target: FloatArray,
    references: FloatArray,
    codes: IntArray,
    *,
    confidence: float = 0.99,
    margin: float = 0.25,
    floor: float = 0.0,
    two_sided: bool = False,
) -> Maximum:
    """Judges each cluster's gap by the largest gap that chance would show among all of them.

    Args:
        target: Leakage [n], in [0, 1].
        references: Leakage [K, n], in [0, 1], K >= 1.
        codes: Cluster of each unit [n], every one of 0..C-1 present, C >= 2.
        confidence: The quantile of the null of the maximum, in (0, 1); Bonferroni over clusters (and sides).
        margin: The smallest gap that is flagged whatever the null.
        floor: How far whole references lie apart; a mean gap up to this is taken off every cluster's gap before it is judged.
        two_sided: Whether gaps below the references count too; thresholds then hold for absolute gaps.

    Returns:
        The judgement.
    """
    sizes = np.bincount(codes).astype(np.float64)
    gaps = cluster_means((target - references.mean(0))[None, :], codes, sizes)[0]
    sides = (1, -1) if two_sided else (1,)
    tests = len(sizes) * len(sides)
    mean = float((target - references.mean(0)).mean())
    typical = np.array([np.median(sizes)])
    thresholds, p_values, detectable = np.full(len(sizes), np.inf), np.ones(len(sizes)), []
    for side in sides:
        turned = references if side > 0 else 1 - references
        null = null_of_references(turned, codes, sizes) if len(turned) > 1 else null_of_units(turned[0], codes, sizes)
        level = (1 - confidence) / tests
        shift = min(max(side * mean, 0.0), floor)
        here = side * gaps >= 0 if two_sided else np.ones(len(sizes), dtype=bool)
        thresholds[here] = np.maximum(margin, shift + null.quantile(level, sizes))[here]
        p_values[here] = np.minimum(1, tests * null.probability(side * gaps - shift, sizes))[here]
        detectable.append(float(max(margin, shift + null.quantile(level, typical)[0])))
    flagged = np.asarray((np.abs(gaps) if two_sided else gaps) > thresholds)
    return Maximum(gaps, thresholds, flagged, p_values, max(detectable))
