"""Power against the size of an audit: units, clusters and references of what was measured are left out; nothing is run anew."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from muaudit import compute
from muaudit.attack import Measurement
from muaudit.calibration.audits import Judged, judge, subset
from muaudit.calibration.config import PowerConfig
from muaudit.calibration.measuring import Sheet
from muaudit.calibration.planning import PlannedAudit
from muaudit.calibration.record import PowerPoint, Rate, Truth
from muaudit.calibration.tables import KNOWING, rate
from muaudit.policy import Policy
from muaudit.results import Verdict

Size = Literal["units", "clusters", "references"]
Point = tuple[Size, int]

LOT = 10
"""Audits that a process judges at a time."""


@dataclass(frozen=True)
class Sample:
    """An audit of which smaller and larger ones are formed.

    Attributes:
        sheet: The measurements of its panel.
        audit: The audit.
        truth: What is known of its target.
        policy: The policy as it applies to it.
    """

    sheet: Sheet
    audit: PlannedAudit
    truth: Truth
    policy: Policy


def sizes(config: PowerConfig, units: int, clusters: int, references: int) -> list[Point]:
    """The sizes that can be formed: units and clusters below all there are, references up to what was drawn."""
    found: list[Point] = [("clusters", size) for size in config.clusters if size < clusters]
    found += [("units", size) for size in config.units if size < units]
    return [*found, *(("references", size) for size in config.references if size <= references)]


def points(samples: Sequence[Sample], wanted: Sequence[Point], seed: str, workers: int) -> Iterator[PowerPoint]:
    """Judges every sample at every size.

    Args:
        samples: The audits.
        wanted: Sizes, from `sizes`.
        seed: Of the units and clusters that are left out, alike for all models of an audit and different from audit to audit.
        workers: Processes.

    Yields:
        One point a size.
    """
    lots = [samples[start : start + LOT] for start in range(0, len(samples), LOT)]
    work = [(lot, what, size, f"{seed} {number}") for what, size in wanted for number, lot in enumerate(lots)]
    spread = compute.spread(at_size, work, workers=workers, backend="loky")
    for what, size in wanted:
        yield _point(what, size, [one for _ in lots for one in next(spread)])


def at_size(samples: Sequence[Sample], what: Size, size: int, seed: str) -> list[tuple[Truth, Judged]]:
    """Judges audits with fewer units or clusters, or with another number of references."""
    found = []
    for number, one in enumerate(samples):
        audit = one.audit
        chosen = None
        if what == "references":
            audit = audit.model_copy(update={"references": (*audit.references, *audit.more)[:size]})
        else:
            chosen = _chooser(what, size, np.random.default_rng(compute.seed_of(seed, what, str(size), str(number))))
        found.append((one.truth, judge(one.sheet, audit, one.policy, chosen=chosen)))
    return found


def _chooser(what: str, size: int, rng: np.random.Generator) -> Callable[[Measurement], Measurement]:
    """Leaves the same units or clusters out of every model's measurement of an audit."""
    kept: dict[tuple[str, ...], Callable[[Measurement], Measurement]] = {}

    def chosen(measurement: Measurement) -> Measurement:
        # An attack may leave out units that it cannot score: what stays is drawn among its own, once for all models.
        if measurement.units not in kept:
            kept[measurement.units] = _chosen(measurement, what, size, rng)
        return kept[measurement.units](measurement)

    return chosen


def _chosen(measurement: Measurement, what: str, size: int, rng: np.random.Generator) -> Callable[[Measurement], Measurement]:
    rows = zip(measurement.units, measurement.clusters, measurement.sets, strict=True)
    forget = [(unit, cluster) for unit, cluster, kind in rows if kind == "forget"]
    clusters = list(dict.fromkeys(cluster for _, cluster in forget))
    if what == "clusters":
        return subset([clusters[place] for place in rng.permutation(len(clusters))[:size]], None)
    # Units go evenly, so that as many clusters as can be stay.
    order = [forget[place] for place in rng.permutation(len(forget))]
    ranked: dict[str, int] = {}
    turns = []
    for unit, cluster in order:
        ranked[cluster] = ranked.get(cluster, 0) + 1
        turns.append((ranked[cluster], unit))
    return subset(None, [unit for _, unit in sorted(turns, key=lambda one: one[0])[:size]])


def _point(what: Size, size: int, judged: Sequence[tuple[Truth, Judged]]) -> PowerPoint:
    def share(truths: tuple[Truth, ...], verdict: Verdict) -> Rate | None:
        return rate(one.verdict is verdict for known, one in judged if known in truths)

    gaps: dict[str, list[float]] = {}
    for known, one in judged:
        for name, finding in one.leakage().items():
            if known == "never_saw" and finding.smallest_detectable_gap is not None:
                gaps.setdefault(name, []).append(finding.smallest_detectable_gap)
    return PowerPoint(
        what=what,
        size=size,
        false_alarm=share(("never_saw",), Verdict.FAIL),
        passes=share(("never_saw",), Verdict.PASS),
        detection=share(KNOWING, Verdict.FAIL),
        detectable={name: round(min(1.0, statistics.median(found)), 6) for name, found in gaps.items()},
    )


def sampled(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many audits of either truth, spread evenly over them."""
    found: list[Sample] = []
    for truths in (("never_saw",), ("knows", "gated")):
        among = [one for one in samples if one.truth in truths]
        if among:
            places = np.unique(np.linspace(0, len(among) - 1, min(most, len(among))).round().astype(int))
            found += [among[place] for place in places]
    return found
