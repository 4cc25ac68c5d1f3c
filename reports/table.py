"""Every unit's leakage as CSV (RFC 4180): one row a unit and finding, harmless in a spreadsheet."""

import csv
import io
import re
from collections.abc import Iterator

from muaudit.errors import UsageError
from muaudit.reports.text import visible
from muaudit.results import AuditReport, Finding

CELL = 30_000
"""Characters of a cell; spreadsheets take 32,767."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_FORMULA = re.compile(r"\s*[=+\-@\t\r＝＋－＠]")  # noqa: RUF001 - spreadsheets read the full-width signs too


def render(report: AuditReport) -> str:
    """Renders a report's units.

    Args:
        report: The report.

    Returns:
        CSV with a heading: attack, what it measures, verdict, unit, cluster, the target's leakage, each reference's, their
        mean, the original's and the gap. Numbers stand bare and in full precision, text in quotes.

    Raises:
        UsageError: The report was written before reports kept every unit's leakage.
    """
    measured = [finding for finding in report.findings if finding.gap is not None]
    if not all(finding.leakages for finding in measured):
        raise UsageError(
            "this report lacks units' leakages, because an earlier version wrote it; scan again with this version for a table"
        )
    references = max((len(unit.references) for finding in measured for unit in finding.leakages), default=0)
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    names = [f"reference {number}" for number in range(1, references + 1)]
    head = ["attack", "measures", "verdict", "unit", "cluster"]
    writer.writerow([*head, "target", *names, "references", "original", "gap"])
    for finding in measured:
        writer.writerows(_rows(finding, references))
    return out.getvalue()


def inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    Args:
        text: Any text.

    Returns:
        The text on one line, what is invisible shown by its code point; with an apostrophe before it where it starts, after
        blanks, with a sign that can start a formula and is no plain number.
    """
    shown = visible(text, lines=False, limit=CELL, whole=True)
    started = _FORMULA.match(shown) or text[:1] in ("\t", "\r")
    return f"'{shown}" if started and not _NUMBER.fullmatch(shown) else shown


def _rows(finding: Finding, references: int) -> Iterator[list[str | float]]:
    head = [inert(finding.attack), finding.measures, finding.verdict.value]
    for unit in finding.leakages:
        mean = sum(unit.references) / len(unit.references)
        blank: list[str | float] = [""] * (references - len(unit.references))
        yield [
            *head, inert(unit.id), inert(unit.cluster), unit.target, *unit.references, *blank, mean,
            "" if unit.original is None else unit.original, unit.target - mean,
        ]  # fmt: skip
