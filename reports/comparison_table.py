"""A comparison for a terminal: leaderboard, every finding, what changed, and what to mind."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from muaudit.reports.changes import Change
from muaudit.reports.comparison import Cell, Comparison, Entry, Step
from muaudit.reports.terminal import STYLES, aligned, line, word
from muaudit.reports.text import interval, named, percent, signed
from muaudit.results import Verdict

TONES = {"worse": STYLES[Verdict.FAIL], "better": STYLES[Verdict.PASS], "moved": STYLES[Verdict.INCONCLUSIVE]}
MEANINGS = {
    "worse": "worse",
    "better": "better",
    "moved": "moved across zero",
    "open": "no change shown",
    "unknown": "cannot be said",
}
"""What a change means, in words."""

FEW = 3
"""Clusters that are named; the rest are counted, and all are in the JSON."""


def table(compared: Comparison, console: Console, *, page: Path | None = None) -> None:
    """Prints a comparison; lines are never cut to the terminal's width.

    Args:
        compared: The comparison.
        console: Where to.
        page: Where the page was written, for the line that says what to read.
    """
    judged = ", ".join(compared.judged_on) or "none"
    lines = [
        Text(f"{len(compared.entries)} reports by verdict, then by largest leakage gap; measured in all: {line(judged)}"),
        Text(),
        *aligned([_place(compared.entries[place]) for place in compared.ranking]),
        Text(),
        *_findings(compared),
    ]
    for step in compared.steps:
        lines += [Text(), *_step(compared, step)]
    if compared.warnings:
        lines += [Text(), *(Text(f"  ! {line(warning)}", style=STYLES[Verdict.INCONCLUSIVE]) for warning in compared.warnings)]
    if page is not None:
        lines += [Text(), Text(f"  read     {line(str(page))}")]
    for one in lines:
        console.print(one, soft_wrap=True)


def _place(entry: Entry) -> tuple[Text, ...]:
    largest = "no leakage gap in all of them" if entry.largest is None else f"largest gap {signed(entry.largest)}"
    where = "" if entry.largest_in is None else f"({line(entry.largest_in)})"
    facts = f"{line(entry.target)}   policy {line(entry.policy)}   references {entry.references}"
    return Text(f"{entry.rank}"), word(entry.verdict), Text(line(entry.label)), Text(f"{largest} {where}".strip()), Text(facts)


def _findings(compared: Comparison) -> list[Text]:
    head = (Text("finding"), *(Text(line(entry.label)) for entry in compared.entries), Text())
    remarks = [Text("" if row.alike is None else line(f"! {row.alike}")) for row in compared.rows]
    names = [Text(line(named(row.attack, row.measures))) for row in compared.rows]
    rows = [(name, *map(_cell, row.cells), remark) for name, row, remark in zip(names, compared.rows, remarks, strict=True)]
    return aligned([head, *rows])


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("not run")
    shown = word(cell.verdict)
    if cell.gap is not None:
        shown.append(f" {signed(cell.gap)}", style="not bold default")
    if cell.epsilon is not None:
        shown.append(f" epsilon at least {cell.epsilon:.2f}", style="not bold default")
    return shown


def _step(compared: Comparison, step: Step) -> list[Text]:
    first, second = (line(compared.entries[place].label) for place in (step.before, step.after))
    head = Text(f"  from {first} to {second}, differences with {percent(compared.level)} intervals, each for itself")
    return [head, *aligned([_change(one) for one in step.changes])]


def _change(one: Change) -> tuple[Text, ...]:
    before, after = (Text("not run") if verdict is None else word(verdict) for verdict in one.verdicts)
    numbers = "" if one.difference is None else signed(one.difference)
    numbers += "" if one.interval is None else f"  {interval(one.interval)}"
    meaning = Text(MEANINGS[one.means], style=TONES.get(one.means, ""))
    how = " ".join(words for words in (one.how, f"({line(one.why)})" if one.why else "", clusters(one)) if words)
    verdicts = before.append(" -> ", style="not bold default").append(after)
    return Text(line(named(one.attack, one.measures))), verdicts, Text(numbers), meaning, Text(how)


def clusters(one: Change) -> str:
    """Which clusters are flagged in one report alone, in words; empty where there are none."""
    told = []
    for what, names in (("newly flagged", one.newly_flagged), ("no longer flagged", one.no_longer_flagged)):
        if names:
            few = ", ".join(line(name) for name in names[:FEW])
            told.append(f"{what}: {few}{f' and {len(names) - FEW} more' if len(names) > FEW else ''}")
    return "; ".join(told)
