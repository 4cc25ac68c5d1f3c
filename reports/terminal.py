"""The verdict table for a terminal; hostile text can neither colour it nor move its cursor."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from muaudit.reports.text import asked, controls, errs, interval, name_of, remark, signed, visible
from muaudit.results import AuditReport, Curve, Finding, Verdict

STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.SKIPPED: "dim",
    Verdict.ERROR: "magenta",
}

LIMIT = 300
"""Characters of one remark that are shown."""


def table(
    report: AuditReport,
    console: Console,
    *,
    folder: Path | None = None,
    signed_with: Path | None = None,
    model: Path | None = None,
) -> None:
    """Prints what was audited, every finding, the controls, the verdict and what to do next.

    Lines are never cut to the terminal's width: a number that is not seen is worse than a line that wraps.

    Args:
        report: The report.
        console: Where to.
        folder: Where report.html and audit.intoto.json lie, for the lines that say what to read and how to check it.
        model: Where the target lies as seen from here; by default its path in the report, which starts from audit.toml.
        signed_with: The private key; its .pub file is named in the command that checks. Without one there is nothing to check.
    """
    lines = [_heading(report), Text(), *aligned([_row(finding) for finding in report.findings]), Text()]
    if judged := controls(report):
        lines.append(Text(f"  controls {judged}"))
    lines += [Text(f"  series   {line(_along(curve))}") for curve in report.series]
    lines += [Text(f"  asked    {line(asked(ledger))}") for ledger in report.run.ledgers]
    lines.append(Text("  verdict  ").append(word(report.verdict)).append(f"   {line(report.reason)}"))
    if told := errs(report):
        lines.append(Text(f"  errs     {line(told[0])}"))
        lines += [Text(f"           but {line(one)}") for one in told[1:]]
    if folder is not None:
        lines.append(Text(f"  read     {line(str(folder / 'report.html'))}"))
    if folder is not None and signed_with is not None:
        paths = (str(folder / "audit.intoto.json"), str(signed_with.with_suffix(".pub")), str(model or report.target.path))
        envelope, public, target = (shlex.quote(line(path)) for path in paths)
        files = "" if report.target.kind == "endpoint" else f" --model {target}"
        lines.append(Text(f"  check    muaudit verify {envelope} --key {public}{files}"))
    for one in lines:
        console.print(one, soft_wrap=True)


def aligned(rows: Sequence[tuple[Text, ...]]) -> list[Text]:
    """Rows of cells as lines whose columns stand under each other; an empty cell takes no place.

    Args:
        rows: Rows of as many cells each.

    Returns:
        One line a row, indented by two.
    """
    widths = [max((cell.cell_len for cell in column), default=0) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        for cell, width in zip(row, widths, strict=True):
            cell.pad_right(width - cell.cell_len)
        lines.append(Text("   ").join(cell for cell in row if cell.plain.strip()))
        lines[-1].rstrip()
        lines[-1].pad_left(2)
    return lines


def word(verdict: Verdict) -> Text:
    """The verdict; a fail stands out without colour too."""
    return Text(verdict.value.upper() if verdict is Verdict.FAIL else verdict.value, style=STYLES[verdict])


def line(text: str) -> str:
    """Text that can neither colour a line nor break it."""
    return visible(text, lines=False, limit=LIMIT)


def _heading(report: AuditReport) -> Text:
    roles = [model.role.partition(" ")[0] for model in report.models]
    words = [
        f"plan {line(report.plan_sha256[:8])}",
        f"target {line(report.target.path)}",
        f"references {roles.count('reference')}",
        f"original {roles.count('original')}",
        f"policy {line(str(report.policy.get('name', 'unnamed')))}",
    ]
    return Text("   ".join(words))


def _row(finding: Finding) -> tuple[Text, ...]:
    """One finding as name, verdict, numbers and remark; `Text` is printed as it is, where a string could hold markup."""
    numbers = ""
    if finding.gap is not None:
        numbers = f"gap {signed(finding.gap)}  {interval(finding.interval) if finding.interval else ''}"
        numbers += "" if finding.margin is None else f"  margin {finding.margin:g}"
    name, note = Text(line(name_of(finding))), Text(line(remark(finding)))
    return name, word(finding.verdict), Text(numbers), note


def _along(curve: Curve) -> str:
    """The target's line of a series beside its references'."""
    means = [f"{one.model} {' '.join(f'{value:.3f}' for value in one.y)}" for one in curve.lines if one.model != "original"]
    return f"{curve.name}: {'; '.join(means)}"
