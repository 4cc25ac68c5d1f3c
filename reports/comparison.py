"""Several reports beside each other: who leaks least, what changed from one to the next, and what may not be compared.

Audits of other forget sets, or with no attack in common that ran with the same parameters, are refused. All else that differs,
and bears on what may be concluded, is said beside the numbers: a difference between two audits can come from the models, which
is what a reader looks for, or from how they were audited.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from muaudit.errors import UsageError
from muaudit.reports import comparability
from muaudit.reports.changes import Change, change
from muaudit.reports.comparability import Key, key_of
from muaudit.results import AuditReport, Finding, Frozen, Verdict

ORDER = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.SKIPPED, Verdict.ERROR, Verdict.FAIL)
"""Verdicts from the best to the worst: what was not shown stands between what was shown and what was refuted."""


class Entry(Frozen):
    """One report in the comparison.

    Attributes:
        label: What the reader calls it.
        rank: Its place, 1 for the best; equals share one.
        largest: The largest leakage gap among the findings that all reports share and could measure; of a two-sided attack,
            the gap without its sign. None where there is no such finding.
        largest_in: The attack that found it.
    """

    label: str
    rank: int
    verdict: Verdict
    reason: str
    target: str
    target_sha256: str
    plan_sha256: str
    report_sha256: str
    policy: str
    tool: str
    finished: str
    references: int
    largest: float | None
    largest_in: str | None


class Cell(Frozen):
    """What one report says of one finding; `epsilon` is the bound that was shown of a claim."""

    verdict: Verdict
    reason: str
    gap: float | None
    interval: tuple[float, float] | None
    margin: float | None
    epsilon: float | None


class Row(Frozen):
    """One finding in every report.

    Attributes:
        attack: The attack's name in the plan.
        measures: What it measured.
        cells: One a report, in order; None where the report has no such finding.
        alike: Why the reports' numbers may not be set against each other; None where they may.
    """

    attack: str
    measures: Literal["leakage", "retention", "claim"]
    cells: tuple[Cell | None, ...]
    alike: str | None


class Step(Frozen):
    """What changed from one report to another, by their places in the order given; one change a finding that either has."""

    before: int
    after: int
    changes: tuple[Change, ...]


class Comparison(Frozen):
    """All of a comparison.

    Attributes:
        entries: The reports, in the order given.
        ranking: Their places, best first.
        judged_on: The leakage findings that `largest` is taken over.
        rows: Every finding of any report.
        steps: From each report to the next; with three and more, from the first to the last too.
        level: Level of the intervals of differences.
        warnings: What else differs between the audits, one sentence each.
    """

    schema_version: Literal["1"] = "1"
    entries: tuple[Entry, ...]
    ranking: tuple[int, ...]
    judged_on: tuple[str, ...]
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    level: float
    warnings: tuple[str, ...]


def compare(labelled: Sequence[tuple[str, AuditReport]]) -> Comparison:
    """Compares reports.

    Args:
        labelled: Two reports or more with what to call them, in the order that makes sense to the reader, such as by release.

    Returns:
        The comparison; the same for the same reports.

    Raises:
        UsageError: There are fewer than two, one is given twice, or they cannot be compared.
    """
    labels = [label for label, _ in labelled]
    reports = [report for _, report in labelled]
    if len(reports) < 2:
        raise UsageError("one report cannot be compared with itself; give two or more")
    comparability.refuse(labels, reports)
    unlike = comparability.unlike(labels, reports)
    rows = tuple(_rows(reports, unlike))
    judged = [
        row
        for row in rows
        if row.measures == "leakage"
        and row.alike is None
        and " @ " not in row.attack
        and all(cell is not None and cell.gap is not None for cell in row.cells)
    ]
    two_sided = {finding.attack for report in reports for finding in report.findings if finding.sided == "two"}
    largest = [_largest(judged, place, two_sided) for place in range(len(reports))]
    keys = [(ORDER.index(report.verdict), found[0]) for report, found in zip(reports, largest, strict=True)]
    entries = tuple(
        _entry(label, report, found, 1 + sum(other < key for other in keys))
        for (label, report), found, key in zip(labelled, largest, keys, strict=True)
    )
    level = comparability.level(reports)
    pairs = [(place, place + 1) for place in range(len(reports) - 1)]
    pairs += [(0, len(reports) - 1)] * (len(reports) > 2)
    return Comparison(
        entries=entries,
        ranking=tuple(sorted(range(len(entries)), key=lambda place: entries[place].rank)),
        judged_on=tuple(row.attack for row in judged),
        rows=rows,
        steps=tuple(_step(labelled, first, second, level) for first, second in pairs),
        level=level,
        warnings=comparability.warnings(labels, reports),
    )


def _rows(reports: Sequence[AuditReport], unlike: dict[Key, str]) -> Iterator[Row]:
    found = [{key_of(finding): finding for finding in report.findings} for report in reports]
    for key in dict.fromkeys(key for one in found for key in one):
        findings = [one.get(key) for one in found]
        finding = next(one for one in findings if one is not None)
        yield Row(
            attack=finding.attack,
            measures=finding.measures,
            cells=tuple(None if one is None else _cell(one) for one in findings),
            alike=unlike.get(key),
        )


def _cell(finding: Finding) -> Cell:
    return Cell(
        verdict=finding.verdict,
        reason=finding.reason,
        gap=finding.gap,
        interval=finding.interval,
        margin=finding.margin,
        epsilon=None if finding.claim is None else finding.claim.lower_bound,
    )


def _largest(rows: Sequence[Row], place: int, two_sided: set[str]) -> tuple[float, str | None]:
    """The largest leakage gap of one report and where it was found; infinite where nothing was measured in all."""
    gaps = []
    for row in rows:
        cell = row.cells[place]
        if cell is not None and cell.gap is not None:
            gaps.append((abs(cell.gap) if row.attack in two_sided else cell.gap, row.attack))
    return max(gaps, default=(float("inf"), None), key=lambda found: found[0])


def _entry(label: str, report: AuditReport, largest: tuple[float, str | None], rank: int) -> Entry:
    return Entry(
        label=label,
        rank=rank,
        verdict=report.verdict,
        reason=report.reason,
        target=report.target.path,
        target_sha256=report.target.digest,
        plan_sha256=report.plan_sha256,
        report_sha256=report.content_digest(),
        policy=str(report.policy.get("name", "unnamed")),
        tool=report.tool,
        finished=report.run.finished,
        references=sum(model.role.startswith("reference") for model in report.models),
        largest=None if largest[1] is None else largest[0],
        largest_in=largest[1],
    )


def _step(labelled: Sequence[tuple[str, AuditReport]], first: int, second: int, level: float) -> Step:
    labels = [labelled[place][0] for place in (first, second)]
    reports = [labelled[place][1] for place in (first, second)]
    before, after = ({key_of(finding): finding for finding in report.findings} for report in reports)
    shared = comparability.references(reports[0]) == comparability.references(reports[1])
    unlike = comparability.unlike(labels, reports)
    changes = (
        change(key, before.get(key), after.get(key), unlike.get(key), same_references=shared, level=level)
        for key in dict.fromkeys([*before, *after])
    )
    return Step(before=first, after=second, changes=tuple(changes))
