"""What changed in one finding between two reports, with the interval of the difference of the gaps."""

import hashlib
from typing import Literal

import numpy as np

from muaudit.differences import Leakages, independent_difference, paired_difference
from muaudit.reports.comparability import Key
from muaudit.results import Finding, Frozen, UnitLeakage, Verdict
from muaudit.statistics import Discernment


class Change(Frozen):
    """One finding before and after.

    Attributes:
        attack: The attack's name in the plan.
        measures: What it measured.
        verdicts: Before and after; None where a report has no such finding.
        gaps: Before and after; None where nothing was measured.
        difference: The gap after minus the gap before.
        interval: Its two-sided interval.
        how: `paired` unit by unit, over clusters; `independent`, from the two gaps' own intervals; None without an interval.
        means: `worse`, `better` or `moved` where the interval excludes zero; `open` where it does not, `unknown` without one.
            Of leakage less is better, of the retain set more; of a two-sided attack, nearer to zero. `moved` is from one side
            of zero to the other.
        why: Why the difference is not paired, or has no interval; empty where it is.
        newly_flagged: Clusters that only the second report flags, where both may be set against each other: the mean, which
            `means` is about, can hide them.
        no_longer_flagged: Clusters that only the first does.
    """

    attack: str
    measures: Literal["leakage", "retention", "claim"]
    verdicts: tuple[Verdict | None, Verdict | None]
    gaps: tuple[float | None, float | None]
    difference: float | None
    interval: tuple[float, float] | None
    how: Literal["paired", "independent"] | None
    means: Literal["worse", "better", "moved", "open", "unknown"]
    why: str
    newly_flagged: tuple[str, ...] = ()
    no_longer_flagged: tuple[str, ...] = ()


def change(
    key: Key, before: Finding | None, after: Finding | None, unlike: str | None, *, same_references: bool, level: float
) -> Change:
    """Compares one finding of two reports.

    Args:
        key: The finding's attack and what it measures.
        before: The finding in the first report, or None.
        after: The finding in the second.
        unlike: Why the two may not be set against each other, or None.
        same_references: Whether both audits were measured against the same references.
        level: Level of the interval.

    Returns:
        The change.
    """
    one = before or after
    if one is None:
        raise ValueError(f"neither report has the finding {key}")
    bare = Change(
        attack=one.attack,
        measures=one.measures,
        verdicts=(before and before.verdict, after and after.verdict),
        gaps=(before and before.gap, after and after.gap),
        difference=None,
        interval=None,
        how=None,
        means="unknown",
        why=unlike or "",
    )
    if before is None or after is None:
        return bare.model_copy(update={"why": f"only the {'second' if before is None else 'first'} audit has it"})
    if before.gap is None or after.gap is None:
        why = "a claim has no gap" if one.measures == "claim" else "it was not measured in both"
        return bare.model_copy(update={"why": why})
    if unlike is not None:
        return bare
    flagged = _flagged(before), _flagged(after)
    bare = bare.model_copy(
        update={
            "newly_flagged": tuple(name for name in flagged[1] if name not in flagged[0]),
            "no_longer_flagged": tuple(name for name in flagged[0] if name not in flagged[1]),
        }
    )
    obstacle = _obstacle(before, after)
    if obstacle is None:
        difference, interval = _paired(before, after, same_references=same_references, level=level)
        known = {"difference": difference, "interval": interval, "how": "paired"}
    elif before.interval is None or after.interval is None:
        known = {"difference": after.gap - before.gap, "why": f"{obstacle}, and a gap has no interval of its own"}
    else:
        difference, interval = independent_difference(before.gap, before.interval, after.gap, after.interval)
        known = {"difference": difference, "interval": interval, "how": "independent", "why": obstacle}
    done = bare.model_copy(update=known)
    return done.model_copy(update={"means": _meaning(done, two_sided=one.sided == "two")})


def _flagged(finding: Finding) -> tuple[str, ...]:
    judged = finding.worst_clusters
    return () if judged is None else tuple(one.cluster for one in judged.clusters if one.flagged)


def _obstacle(before: Finding, after: Finding) -> str | None:
    """Why two findings cannot be compared unit by unit."""
    first, second = (_by_unit(finding) for finding in (before, after))
    if not before.leakages or not after.leakages:
        return "not every unit's leakage is in both reports"
    if first is None or second is None:
        return "two units of one finding have the same name"
    if first.keys() != second.keys():
        return f"the units differ ({len(first.keys() & second.keys())} of {len(first.keys() | second.keys())} are in both)"
    if any(first[unit].cluster != second[unit].cluster for unit in first):
        return "the clusters differ"
    if len({unit.cluster for unit in before.leakages}) < 2:
        return "all units belong to one cluster"
    if before.evaluator != after.evaluator:
        return "the evaluators err differently"
    return None


def _by_unit(finding: Finding) -> dict[str, UnitLeakage] | None:
    units = {unit.id: unit for unit in finding.leakages}
    return units if len(units) == len(finding.leakages) else None


def _paired(before: Finding, after: Finding, *, same_references: bool, level: float) -> tuple[float, tuple[float, float]]:
    second = {unit.id: unit for unit in after.leakages}
    names = list(dict.fromkeys(unit.cluster for unit in before.leakages))
    codes = np.array([names.index(unit.cluster) for unit in before.leakages])
    seed = hashlib.sha256(f"{before.attack}\n{before.measures}".encode()).digest()[:8]
    estimate = paired_difference(
        _leakages(before.leakages),
        _leakages(tuple(second[unit.id] for unit in before.leakages)),
        codes,
        same_references=same_references,
        rng=np.random.default_rng(int.from_bytes(seed)),
    )
    if before.evaluator is not None:
        estimate = Discernment.of(**before.evaluator.model_dump()).corrected(estimate)
    low, high = estimate.interval(level)
    return float(estimate.value), (max(-2.0, float(low)), min(2.0, float(high)))


def _leakages(units: tuple[UnitLeakage, ...]) -> Leakages:
    return Leakages(np.array([unit.target for unit in units]), np.array([unit.references for unit in units]).T)


def _meaning(found: Change, *, two_sided: bool) -> Literal["worse", "better", "moved", "open", "unknown"]:
    if found.interval is None or found.gaps[0] is None or found.gaps[1] is None:
        return "unknown"
    if found.interval[0] <= 0 <= found.interval[1]:
        return "open"
    more = found.interval[0] > 0
    if found.measures == "retention":
        return "better" if more else "worse"
    if two_sided and found.gaps[0] * found.gaps[1] < 0:
        return "moved"
    if two_sided:
        more = abs(found.gaps[1]) > abs(found.gaps[0])
    return "worse" if more else "better"
