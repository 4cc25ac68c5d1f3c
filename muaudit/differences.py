"""How far two audits' gaps differ, with the interval of the difference: pure functions on numbers."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from muaudit.statistics import DRAWS, Estimate, FloatArray, IntArray, mean_gap, reference_variance


@dataclass(frozen=True)
class Leakages:
    """One audit's leakages by unit.

    Attributes:
        target: Of the target [n].
        references: Of each reference [K, n], K >= 1.
    """

    target: FloatArray
    references: FloatArray

    @property
    def gaps(self) -> FloatArray:
        """Target minus mean reference of each unit [n]."""
        return np.asarray(self.target - self.references.mean(0), dtype=np.float64)


def paired_difference(
    before: Leakages,
    after: Leakages,
    codes: IntArray,
    *,
    same_references: bool,
    rng: np.random.Generator | None = None,
    draws: int = DRAWS,
) -> Estimate:
    """The gap after minus the gap before, on the same units.

    Each unit is compared with itself, which takes out how hard units are to remember, and its error is taken over clusters
    as that of a gap is. References that both audits share drop out; where each audit has its own, their main effects add
    their variances (Satterthwaite 1946 for the degrees of freedom of the sum).

    Args:
        before: Leakages in the first audit, on n units.
        after: The same units' in the second, in the same order.
        codes: Cluster of each unit [n], every one of 0..C-1 present, C >= 2.
        same_references: Whether both audits were measured against the same references.
        rng: Seeded generator of the bootstrap; without it, Student's t alone.
        draws: Bootstrap draws.

    Returns:
        The estimate, in [-2, 2].

    Raises:
        ValueError: There are fewer than two clusters.
    """
    paired = mean_gap(after.gaps, before.gaps[None], codes, rng=rng, resolution=1.0, draws=draws)
    if same_references:
        return paired
    parts = [(reference_variance(one.references, codes) / len(one.references), len(one.references)) for one in (before, after)]
    between = sum(part for part, _ in parts)
    if between == 0:
        return paired
    error = paired.cluster_error
    spread = error**4 / paired.degrees + sum(part**2 / (count - 1) for part, count in parts if part > 0)
    degrees = (error**2 + between) ** 2 / spread
    stretch = float(stats.t.ppf(0.975, degrees) / stats.t.ppf(0.975, paired.degrees))
    return replace(paired, reference_error=math.sqrt(between), degrees=degrees, draws=paired.draws * stretch)


def independent_difference(
    before: float, before_interval: tuple[float, float], after: float, after_interval: tuple[float, float]
) -> tuple[float, tuple[float, float]]:
    """The gap after minus the gap before, from their own intervals, as if nothing bound the two audits together.

    The square-and-add interval (Zou and Donner 2008, Construction of confidence limits about effect measures: a general
    approach), which keeps intervals that are not symmetric as they are. What two audits share, references or units, makes the
    difference surer than this says.

    Args:
        before: The first gap.
        before_interval: Its two-sided interval.
        after: The second gap.
        after_interval: Its interval, at the same level.

    Returns:
        The difference and its interval at that level.
    """
    difference = after - before
    low = math.hypot(after - after_interval[0], before_interval[1] - before)
    high = math.hypot(after_interval[1] - after, before - before_interval[0])
    return difference, (difference - low, difference + high)
