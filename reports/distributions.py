"""What every unit's leakage shows beyond its mean: distributions, ROC curves, clusters and units side by side.

Numbers alone, each read from `Finding.leakages`; they decide nothing. How they are drawn is the business of `unit_figures`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from muaudit.results import Finding, UnitLeakage

FEW_VALUES = 8
"""With at most so many different leakages, each is a bar of its own, and a ROC curve would only be a staircase of them."""

FEWEST_UNITS = 20
"""Fewer units make no curve."""

POINTS = 24
"""At most so many false positive rates on a ROC curve."""

CLUSTERS = 16
"""At most so many clusters are shown one by one, those first that leak most."""

UNITS = 24
"""At most so many units are listed one by one."""

CELLS = 40
"""Steps from 0 to 1 in which units that lie together are drawn as one, where they are many."""


@dataclass(frozen=True)
class Histogram:
    """How the leakages of the target, of all references together and of the original are spread.

    Attributes:
        bins: Each bin's name: its ends, or the one value that it holds.
        edges: Ends of the bins, one more than bins; None where each bin is one value.
        shares: By role, the share of units in each bin, in [0, 1].
    """

    bins: tuple[str, ...]
    edges: tuple[float, ...] | None
    shares: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class RocPoint:
    """One false positive rate with the true positive rate that it allows.

    Attributes:
        fpr: Share of the references' leakages above the threshold.
        target: Share of the target's above it, the largest with at most this false positive rate.
        interval: 95 % interval of that share, for the threshold as it is.
        original: The same share of the original's; None without an original.
    """

    fpr: float
    target: float
    interval: tuple[float, float]
    original: float | None


@dataclass(frozen=True)
class RocOfUnits:
    """How well one unit's leakage tells the target from the references.

    Attributes:
        points: By rising false positive rate.
        auc: Probability that a unit leaks more from the target than some unit from some reference, ties counted half.
        units: Units of the target.
        references: Leakages of the references, all together.
    """

    points: tuple[RocPoint, ...]
    auc: float
    units: int
    references: int


@dataclass(frozen=True)
class Compared:
    """One unit, or the mean of one cluster: the target, each reference, their mean and the original."""

    name: str
    units: int
    target: float
    references: tuple[float, ...]
    original: float | None

    @property
    def mean(self) -> float:
        """Mean of the references."""
        return sum(self.references) / len(self.references)

    @property
    def gap(self) -> float:
        """The target minus the mean of the references."""
        return round(self.target - self.mean, 12) + 0.0  # no gap of -0.000 from rounding


def histogram(finding: Finding) -> Histogram | None:
    """The leakages' distributions.

    Args:
        finding: Any finding.

    Returns:
        Bars at the values where they are few, otherwise bins of equal width, half as many with fewer than 60 units; None
        where the finding keeps no leakages.
    """
    by_role = _by_role(finding)
    if not by_role:
        return None
    everything = [value for values in by_role.values() for value in values]
    distinct = sorted(set(everything))
    if len(distinct) <= FEW_VALUES:
        shares = {role: tuple(values.count(value) / len(values) for value in distinct) for role, values in by_role.items()}
        return Histogram(tuple(f"{value:.3g}" for value in distinct), None, shares)
    low, high = min(0.0, distinct[0]), max(1.0, distinct[-1])
    bins = 20 if len(finding.leakages) >= 60 else 10
    edges = tuple(low + (high - low) * step / bins for step in range(bins + 1))
    names = tuple(f"{left:.3g} to {right:.3g}" for left, right in pairwise(edges))
    return Histogram(names, edges, {role: _shares(values, low, (high - low) / bins, bins) for role, values in by_role.items()})


def roc(finding: Finding) -> RocOfUnits | None:
    """The ROC curve of the target's leakages against the references' together, for graded leakages of the forget set.

    Args:
        finding: Any finding.

    Returns:
        The curve; None where it would say nothing that the histogram does not: few units, few different values, the retain
        set.
    """
    by_role = _by_role(finding)
    graded = len({value for values in by_role.values() for value in values}) > FEW_VALUES
    if finding.measures != "leakage" or len(finding.leakages) < FEWEST_UNITS or not graded:
        return None
    from muaudit.estimators.likelihood_ratio import Roc

    curve = Roc.of(by_role["target"], by_role["references"])
    pooled = curve.non_members
    clusters = [unit.cluster for unit in finding.leakages]
    points = []
    for step in _steps(pooled):
        place = int(curve.fpr.searchsorted(step / pooled + 1e-12, "right")) - 1
        threshold = float(curve.thresholds[place])
        hits = [value >= threshold for value in by_role["target"]]
        original = by_role.get("original")
        points.append(
            RocPoint(
                fpr=step / pooled,
                target=sum(hits) / len(hits),
                interval=share_interval(hits, clusters) if step < pooled else (1.0, 1.0),  # all are called leaking
                original=sum(value >= threshold for value in original) / len(original) if original else None,
            )
        )
    return RocOfUnits(tuple(points), curve.auc, len(clusters), pooled)


def share_interval(hits: Sequence[bool], clusters: Sequence[str]) -> tuple[float, float]:
    """95 % interval of a share whose units stand or fall together by cluster.

    Clopper and Pearson's exact interval, at as many independent units as the clusters are worth (Korn and Graubard 1998, Survey
    Methodology 24:193); where all units agree, at as many as there are clusters. With one unit a cluster it is exact.

    Args:
        hits: Which units count, [n], n >= 1.
        clusters: Each unit's cluster, [n].

    Returns:
        Both ends, in [0, 1].
    """
    from scipy import stats

    n, share, groups = len(hits), sum(hits) / len(hits), len(set(clusters))
    worth = float(n)
    if groups < n:
        sums = dict.fromkeys(clusters, 0.0)
        for hit, cluster in zip(hits, clusters, strict=True):
            sums[cluster] += hit - share
        spread = sum(value * value for value in sums.values())
        if groups == 1 or share in (0, 1):
            worth = float(groups)
        elif spread > 0:
            variance = groups / (groups - 1) * spread / n**2
            fewer = (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, groups - 1)) ** 2
            worth = min(float(n), share * (1 - share) / variance * float(fewer))
    told, rest = share * worth, (1 - share) * worth
    low = float(stats.beta.ppf(0.025, told, rest + 1)) if share > 0 else 0.0
    high = float(stats.beta.ppf(0.975, told + 1, rest)) if share < 1 else 1.0
    return low, high


def clusters(finding: Finding) -> tuple[Compared, ...]:
    """The clusters' means, those first that leak most (of the retain set: that lost most); all of them."""
    members: dict[str, list[UnitLeakage]] = {}
    for unit in finding.leakages:
        members.setdefault(unit.cluster, []).append(unit)
    return _worst_first(finding, (_mean_of(name, inside) for name, inside in members.items()))


def units(finding: Finding) -> tuple[Compared, ...]:
    """The units, those first that leak most (of the retain set: that lost most); all of them."""
    return _worst_first(finding, (_mean_of(unit.id, [unit]) for unit in finding.leakages))


def together(compared: Sequence[Compared]) -> tuple[tuple[float, float, int], ...]:
    """Where units lie by their references' mean and their target, as one where they lie at the same place.

    Args:
        compared: The units; places are rounded where there are more than 10 times `CELLS`.

    Returns:
        Mean of the references, target, and how many units, in order of place.
    """
    rounded: Callable[[float], float] = (
        partial(round, ndigits=6) if len(compared) <= 10 * CELLS else lambda value: round(value * CELLS) / CELLS
    )
    places = Counter((rounded(one.mean), rounded(one.target)) for one in compared)
    return tuple((x, y, count) for (x, y), count in sorted(places.items()))


def _worst_first(finding: Finding, compared: Iterable[Compared]) -> tuple[Compared, ...]:
    def key(one: Compared) -> tuple[float, str]:
        if finding.measures == "retention":
            return one.gap, one.name
        return -(abs(one.gap) if finding.sided == "two" else one.gap), one.name

    return tuple(sorted((one for one in compared if one.references), key=key))


def _mean_of(name: str, inside: Sequence[UnitLeakage]) -> Compared:
    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    known = [unit.original for unit in inside if unit.original is not None]
    return Compared(
        name=name,
        units=len(inside),
        target=mean([unit.target for unit in inside]),
        references=tuple(mean(values) for values in zip(*(unit.references for unit in inside), strict=False)),
        original=mean(known) if len(known) == len(inside) else None,
    )


def _by_role(finding: Finding) -> dict[str, list[float]]:
    """Leakages of the target, of all references and of the original; empty where none are kept."""
    references = [value for unit in finding.leakages for value in unit.references]
    if not references:
        return {}
    by_role = {"target": [unit.target for unit in finding.leakages], "references": references}
    original = [unit.original for unit in finding.leakages if unit.original is not None]
    return by_role | ({"original": original} if original else {})


def _shares(values: Sequence[float], low: float, width: float, bins: int) -> tuple[float, ...]:
    counts = Counter(min(int((value - low) / width + 1e-9), bins - 1) for value in values)
    return tuple(counts[place] / len(values) for place in range(bins))


def _steps(pooled: int) -> list[int]:
    """False alarms among so many, evenly spaced on a logarithmic scale."""
    return sorted({round(pooled ** (place / (POINTS - 1))) for place in range(POINTS)})
