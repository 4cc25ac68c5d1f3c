"""Intervals and tests on unit leakages: pure functions on arrays, which know nothing of attacks or verdicts.

Units of one cluster stand or fall together, so every standard error is taken over clusters; references share the
uncertainty of having been trained once each. docs/statistics.md derives the estimators and shows how they were chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DRAWS = 9_999
"""Bootstrap draws; beyond the largest of them, p-values follow the tail of Student's t."""
CHUNK = 4_000_000
"""Cells of the bootstrap's count matrix that are held at a time."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with its sampling distribution.

    Quantiles are those of Student's t or of the studentised bootstrap, whichever lies further out: the bootstrap follows
    skewness that t does not know, and t holds where resamples are too poor in non-zero clusters to show the spread.

    Attributes:
        value: The estimate.
        cluster_error: Standard error over clusters, not negative.
        reference_error: Standard error from the references' main effects, not negative; 0 with one reference.
        degrees: Satterthwaite's degrees of freedom of both together, positive.
        draws: Studentised bootstrap draws of (estimate - truth), sorted; empty where t alone is used.
    """

    value: float
    cluster_error: float
    reference_error: float
    degrees: float
    draws: FloatArray = field(default_factory=lambda: np.empty(0))

    @property
    def standard_error(self) -> float:
        """Standard error over clusters and references."""
        return math.hypot(self.cluster_error, self.reference_error)

    def mirrored(self) -> "Estimate":
        """The estimate of the same quantity with its sign turned."""
        return replace(self, value=-self.value, draws=-self.draws[::-1])

    def quantile(self, probability: float) -> float:
        """Quantile of (estimate - truth), for a probability in (0, 1)."""
        upper = probability > 0.5
        student = float(stats.t.ppf(probability, self.degrees))
        if self.draws.size:
            drawn = float(np.quantile(self.draws, probability, method="higher" if upper else "lower"))
            student = max(student, drawn) if upper else min(student, drawn)
        return student * self.standard_error

    def lower(self, confidence: float) -> float:
        """One-sided lower bound at a confidence in (0.5, 1)."""
        return self.value - self.quantile(confidence)

    def upper(self, confidence: float) -> float:
        """One-sided upper bound at a confidence in (0.5, 1)."""
        return self.value - self.quantile(1 - confidence)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided interval with equal tails at a confidence in (0, 1)."""
        tail = (1 - confidence) / 2
        return self.lower(1 - tail), self.upper(1 - tail)

    def p_value(self, threshold: float) -> float:
        """One-sided p-value of "the truth is at most the threshold", in [0, 1]."""
        if self.standard_error == 0:
            return 0.0 if self.value > threshold else 1.0
        statistic = (self.value - threshold) / self.standard_error
        student = float(stats.t.sf(statistic, self.degrees))
        if not self.draws.size:
            return student
        exceeding = len(self.draws) - int(np.searchsorted(self.draws, statistic, side="left"))
        drawn = (1 + exceeding) / (1 + len(self.draws))
        if not exceeding:
            drawn *= student / max(student, float(stats.t.sf(self.draws[-1], self.degrees)))
        return max(student, drawn)


def _cluster_ratio(values: FloatArray, codes: IntArray, sizes: FloatArray) -> tuple[float, float]:
    """Mean over units and its linearised (ratio estimator) standard error over clusters."""
    clusters, units = len(sizes), len(values)
    mean = float(values.mean())
    residuals = np.bincount(codes, values - mean, minlength=clusters)
    return mean, math.sqrt(clusters / (clusters - 1) * float(residuals @ residuals)) / units


def _bootstrap_t(
    values: FloatArray, codes: IntArray, sizes: FloatArray, resolution: float, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Sorted studentised draws of the mean over units, resampling clusters; each error is at least resolution / units."""
    clusters = len(sizes)
    mean = float(values.mean())
    sums = np.bincount(codes, values - mean, minlength=clusters)
    moments = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2], axis=1)
    result = np.empty(draws)
    step = max(1, CHUNK // clusters)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = rng.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        total, units, squares, products, units_squared = (counts @ moments).T
        shift = total / units
        variance = clusters / (clusters - 1) * (squares - 2 * shift * products + shift**2 * units_squared) / units**2
        error = np.sqrt(np.maximum(np.maximum(variance, (resolution / units) ** 2), np.finfo(float).tiny))
        result[start : start + rows] = np.divide(shift, error, out=np.zeros(rows), where=shift != 0)
    return np.sort(result)


def reference_variance(references: FloatArray, codes: IntArray) -> float:
    """Variance of the references' main effects: how far whole models differ beyond what their clusters' noise explains.

    The method of moments for crossed random effects (models by clusters): half the mean squared difference between two
    references' means, less the part that the clusters' disagreement brings.

    Args:
        references: Leakage [K, n].
        codes: Cluster of each unit [n], in 0..C-1, C >= 2.

    Returns:
        The variance, not negative; 0 with one reference or when the references agree as well as their noise allows.
    """
    sizes = np.bincount(codes).astype(np.float64)
    excess = []
    for first, second in combinations(references, 2):
        mean, error = _cluster_ratio(first - second, codes, sizes)
        excess.append((mean**2 - error**2) / 2)
    return max(0.0, float(np.mean(excess))) if excess else 0.0


def mean_gap(
    target: FloatArray,
    references: FloatArray,
    codes: IntArray,
    *,
    rng: np.random.Generator | None = None,
    resolution: float = 0.0,
    draws: int = DRAWS,
) -> Estimate:
    """Mean over units of target minus mean reference, with errors over clusters and over references.

    Clusters of unequal size make the mean over units a ratio of two sums over clusters; its linearised error is that of the
    cluster sums of residuals. The references' main effects add their variance over K (Satterthwaite 1946). The cluster part
    is studentised by the bootstrap over whole clusters (Efron and Tibshirani 1993, chapter 12; Cameron, Gelbach and Miller
    2008), which reaches its nominal coverage under skewness where t does not.

    Args:
        target: Score of each unit [n].
        references: The same for each reference [K, n], K >= 1.
        codes: Cluster of each unit [n], every one of 0..C-1 present, C >= 2.
        rng: Seeded generator of the bootstrap; without it, Student's t alone.
        resolution: Largest difference that one unit can show (1 for leakage). The standard error is at least this over n, so
            that identical models are not taken as known beyond the number of units looked at.
        draws: Bootstrap draws.

    Returns:
        The estimate.

    Raises:
        ValueError: There are fewer than two clusters.
    """
    sizes = np.bincount(codes).astype(np.float64)
    clusters, count = len(sizes), len(references)
    if clusters < 2:
        raise ValueError("an interval needs at least two clusters")
    differences = target - references.mean(0)
    value, error = _cluster_ratio(differences, codes, sizes)
    error = max(error, resolution / len(target))
    between = reference_variance(references, codes) / count
    degrees = float(clusters - 1)
    if between > 0:
        degrees = (error**2 + between) ** 2 / (error**4 / degrees + between**2 / (count - 1))
    studentised = np.empty(0)
    if rng is not None and error > 0:
        studentised = _bootstrap_t(differences, codes, sizes, resolution, draws, rng)
        # The bootstrap knows clusters only; fewer degrees of freedom stretch its tails as they stretch those of t.
        studentised *= float(stats.t.ppf(0.975, degrees) / stats.t.ppf(0.975, clusters - 1))
    return Estimate(value, error, math.sqrt(between), degrees, studentised)


def noise_floor(means: Sequence[float], confidence: float = 0.95) -> float | None:
    """How far one further reference may lie from the mean of these, by a Student-t prediction interval.

    Args:
        means: Mean leakage of each reference [K].
        confidence: Two-sided level, in (0, 1).

    Returns:
        The half-width `t * s * sqrt(1 + 1/K)`, or None with fewer than two references.
    """
    count = len(means)
    if count < 2:
        return None
    spread = float(np.std(means, ddof=1))
    return float(stats.t.ppf((1 + confidence) / 2, count - 1)) * spread * math.sqrt(1 + 1 / count)


@dataclass(frozen=True)
class Discernment:
    """How well an evaluator tells presence from absence: its sensitivity minus its false-positive rate, with the error of that.

    What it finds in a share p of images it finds in p * sensitivity + (1 - p) * false positives, so that a gap between two
    shares is shrunk by their difference, Youden's index (Rogan and Gladen 1978, Estimating prevalence from the results of a
    screening test).

    Attributes:
        index: Sensitivity minus false-positive rate, in (0, 1].
        error: Its standard error, not negative.
    """

    index: float
    error: float

    @classmethod
    def of(cls, present: int, found: int, absent: int, mistaken: int) -> "Discernment":
        """From counts on known images; two of either kind are added for the error, which else were 0 for a perfect score.

        Args:
            present: Images that show what was asked for, at least 1.
            found: Of these, those in which it was found.
            absent: Images that do not show it, at least 1.
            mistaken: Of these, those in which it was found all the same.

        Raises:
            ValueError: The index is not positive, so that finding says nothing of presence.
        """
        index = found / present - mistaken / absent
        if index <= 0:
            raise ValueError("the evaluators find the concept no more often where it is than where it is not")
        shares = [((hits + 2) / (total + 4), total + 4) for hits, total in ((found, present), (mistaken, absent))]
        return cls(index, math.sqrt(sum(share * (1 - share) / total for share, total in shares)))

    def corrected(self, estimate: Estimate) -> Estimate:
        """The gap between true shares, from a gap between found ones; its error has the index's in it (delta method)."""
        spread = abs(estimate.value) * self.error / self.index
        return replace(
            estimate,
            value=estimate.value / self.index,
            cluster_error=math.hypot(estimate.cluster_error, spread) / self.index,
            reference_error=estimate.reference_error / self.index,
        )


def detectable_gap(estimate: Estimate, threshold: float, confidence: float, power: float = 0.8) -> float:
    """The smallest true gap whose interval would lie above the threshold with the given power in this design.

    Args:
        estimate: The estimate, whose spread stands for that of any gap.
        threshold: What the interval must lie above.
        confidence: Two-sided level of the interval, in (0, 1).
        power: Probability of showing it, in (0.5, 1).

    Returns:
        The gap; it may be larger than any gap can be.
    """
    return threshold + estimate.quantile((1 + confidence) / 2) - estimate.quantile(1 - power)


def needed_units(estimate: Estimate, units: int, room: float, probability: float) -> int | None:
    """About how many units would shrink the distance from estimate to bound below a given room.

    The error over clusters shrinks with the square root of the units; that from the references stays.

    Args:
        estimate: The estimate from the units at hand.
        units: How many there are.
        room: Distance from the estimate to what the bound must not cross.
        probability: Quantile of (estimate - truth) that makes the bound.

    Returns:
        The number, or None where no number of units (or more than a hundred times as many) would do.
    """
    distance = abs(estimate.quantile(probability))
    if room <= 0 or distance == 0:
        return None
    share = (estimate.reference_error / estimate.standard_error) ** 2
    spare = room**2 - share * distance**2
    if spare <= 0:
        return None
    needed = math.ceil(units * (1 - share) * distance**2 / spare)
    return needed if needed <= 100 * units else None


def relative_similarity(
    target: FloatArray, references: FloatArray, original: FloatArray, codes: IntArray
) -> tuple[float, float]:
    """Is the target nearer to the references than to the original?

    The relative similarity test of Bounliphone et al. (2016) on unit leakages, paired by unit: mean squared distance to a
    reference minus squared distance to the original, with its asymptotic normality taken over clusters.

    Args:
        target: Leakage [n].
        references: Leakage [K, n].
        original: Leakage [n].
        codes: Cluster of each unit [n], every one of 0..C-1 present, C >= 2.

    Returns:
        The statistic (negative: nearer to the references) and the one-sided p-value of "no nearer".
    """
    distances = ((target - references) ** 2).mean(0) - (target - original) ** 2
    statistic, error = _cluster_ratio(distances, codes, np.bincount(codes).astype(np.float64))
    if error == 0:
        return statistic, 0.0 if statistic < 0 else 1.0
    return statistic, float(stats.t.cdf(statistic / error, int(codes.max())))


def holm(levels: Sequence[float]) -> list[bool]:
    """Holm's step-down procedure on p-values that are already divided by their own error rates.

    Args:
        levels: p over alpha of each claim, not negative; a claim is rejected alone where it is at most 1.

    Returns:
        Which claims survive, in the order given.
    """
    survives = [False] * len(levels)
    for rank, index in enumerate(np.argsort(levels, kind="stable")):
        if levels[index] * (len(levels) - rank) > 1:
            break
        survives[int(index)] = True
    return survives
