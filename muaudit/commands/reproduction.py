"""The command that makes an audit again from its report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muaudit.command_line import CONTROL, anywhere, as_json, console, existing, progress_bar, put_json, shown
from muaudit.commands.reports import read_report
from muaudit.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from muaudit.plan import Plan
    from muaudit.reproduction import Difference, Reproduction

SHOWN = 5
"""How many differences an error names."""


@click.command()
@click.argument("report", type=existing)
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="Rerun this attack alone; repeat.")
@click.option("--out", type=anywhere, help="Folder for the reproduction; `reproduction` beside the report by default.")
@click.option("--base", type=existing, help="Folder that the plan's paths start from; by default where the audit had it.")
@click.option(
    "--tolerance", type=click.FloatRange(0, 1), help="How far gap and leakages may lie apart; see below for the default."
)
@click.option("--device", help='Compute on this device instead of the plan\'s: "cpu", "cuda" ...')
@as_json
@shown
def reproduce(
    report: Path,
    attacks: tuple[str, ...],
    out: Path | None,
    base: Path | None,
    tolerance: float | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Make an audit again from its report, and say of every finding whether it comes to the same.

    Models, data and code must be those of the report. Without --tolerance, the same machine with the same versions must give
    the same bytes; elsewhere gap and leakages may lie 0.01 apart, and the verdict must be the same.

    Exits with 0 when every finding comes to the same, with 1 when one does not, and with 4 when models, data or code differ.
    """
    from muaudit import reproduction, runner

    path, read = read_report(report)
    frozen = reproduction.rebuild(read)
    start = base if base is not None else path.parent / frozen.base
    now = reproduction.plan_again(frozen, start, device=device)
    found = reproduction.differences(frozen, now)
    _refuse(found)
    same = reproduction.same_machine(read, found)
    allowed = tolerance if tolerance is not None else 0.0 if same else reproduction.TOLERANCE
    planned = reproduction.chosen(now, attacks, out or path.parent / "reproduction")
    _refuse_used(Path(planned.config.run.out), planned)
    with progress_bar() as progress:
        again = runner.run(planned, start, progress=progress, apart=True)
    result = reproduction.judge(read, again, frozen, tolerance=allowed)
    if as_json:
        told = [{"what": one.what, "then": one.then, "here": one.here} for one in found]
        put_json(
            {"same_machine": same, "differences": told, "report": str(Path(planned.config.run.out) / "report.json")}
            | result.model_dump(mode="json")
        )
    else:
        _say(result, found, same=same)
    sys.exit(0 if result.reproduced else 1)


def _refuse(found: "list[Difference]") -> None:
    """Refuses to reproduce an audit on other models, data or code."""
    others = [f"{one.what} was {one.then[:16]} and is {one.here[:16]}" for one in found if one.other]
    if others:
        further = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise VerificationError(
            f"what lies here is not what the report is about: {'; '.join(others[:SHOWN])}{further}; restore it, or say with "
            "--base where it lies"
        )


def _refuse_used(out: Path, planned: "Plan") -> None:
    """Refuses a folder that holds something else than an interrupted reproduction by this very plan."""
    from muaudit import plan

    if out.is_dir() and any(out.iterdir()):
        try:
            same = plan.Plan.read(out / "plan.json") == planned
        except UsageError:
            same = False
        if not same:
            raise UsageError(f"{out}: holds something else already, and a reproduction starts afresh; give another --out")


def _say(result: "Reproduction", found: "list[Difference]", *, same: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from muaudit.reports.text import named, signed

    table = Table(box=None, pad_edge=False)
    for head in ("finding", "answer", "gap then", "now", "verdict then", "now", ""):
        table.add_column(head, overflow="fold")
    for one in result.findings:
        gap = next((number for number in one.numbers if number.name == "gap"), None)
        values = (None, None) if gap is None else (gap.then, gap.now)
        then, now = ("" if value is None else signed(value, 4) for value in values)
        cells = (named(one.attack, one.measures), one.answer, then, now, str(one.then or "-"), str(one.now or "-"), one.told)
        table.add_row(*(Text(CONTROL.sub("?", cell)) for cell in cells))
    screen = console()
    for difference in found:
        line = f"! {difference.what}: the report has {difference.then[:60]}, here is {difference.here[:60]}"
        click.echo(CONTROL.sub("?", line))
    screen.print(table)
    where = "the same machine and versions" if same else "another machine or other versions"
    asked = "the same bytes" if result.tolerance == 0 else f"gap and leakages within {result.tolerance:g}, and the same verdict"
    click.echo(f"asked for {asked} ({where})\n{'reproduced' if result.reproduced else 'NOT reproduced'}")


COMMANDS = (reproduce,)
"""What the command line takes in."""
