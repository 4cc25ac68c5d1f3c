"""Commands on finished reports."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muaudit.command_line import anywhere, as_json, console, existing, put_json, shown, wrote
from muaudit.errors import UsageError

if TYPE_CHECKING:
    from muaudit.results import AuditReport

FORMATS = ("html", "markdown", "junit", "sarif", "csv", "json")
"""What a report can be rendered as; `muaudit.reports.formats` knows how."""

REPORT_LIMIT = 2**28
"""Bytes of a report.json beyond which it is not read: 256 MiB."""


@click.command()
@click.argument("report", type=existing)
@click.option("--format", "name", type=click.Choice(FORMATS), default="html", show_default=True)
@click.option("--out", type=anywhere, help="File to write, or - for the standard output; beside the report by default.")
@click.option(
    "--source", type=existing, help="The audit.toml or plan.json that SARIF's results point at; plan.json by default."
)
@as_json
@shown
def render(report: Path, name: str, out: Path | None, source: Path | None, as_json: bool) -> None:
    """Show a report.json as a page, for a pull request, for a pipeline, or as a table of units.

    A calibration.json is shown too: as html, markdown or json.
    """
    from muaudit.calibration.record import CalibrationRecord, is_record
    from muaudit.delivery import source_of
    from muaudit.reports import formats
    from muaudit.results import AuditReport
    from muaudit.store import write_atomically

    path, content = _content(report)
    if is_record(content):
        data = formats.render_calibration(CalibrationRecord.from_json(content, name=str(path)), name)
    else:
        read = AuditReport.from_json(content, name=str(path))
        data = formats.render(read, name, None if source is None else source_of(source))
    if out == Path("-"):
        sys.stdout.buffer.write(data)
        return
    out = out or path.with_suffix(formats.SUFFIXES[name])
    if out.resolve() == path.resolve():
        raise UsageError(f"{out}: this is the report itself, which is not written over; name another file with --out")
    write_atomically(out, data)
    wrote(out, as_json)


@click.command()
@click.argument("which", type=click.Choice(("report", "calibration")), default="report")
@click.option("--out", type=anywhere, help="File to write; the standard output by default.")
@shown
def schema(which: str, out: Path | None) -> None:
    """Print the JSON Schema of report.json, or of calibration.json."""
    from importlib import resources

    from muaudit.store import write_atomically

    text = (resources.files("muaudit.reports") / "schemas" / f"{which}-v1.schema.json").read_text(encoding="utf-8")
    if out is None:
        click.echo(text, nl=False)
        return
    write_atomically(out, text.encode())
    wrote(out, False)


@click.command()
@click.argument("reports", type=existing, nargs=-1, required=True)
@click.option("--out", type=anywhere, help="HTML file to write.")
@as_json
@shown
def compare(reports: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Set reports beside each other: vendors, releases or methods, in the order given.

    REPORTS are report.json files or the folders that hold them. Exits with 0 whatever the verdicts are.
    """
    from muaudit.reports import comparison

    read = [read_report(path) for path in reports]
    compared = comparison.compare([(_label(path), report) for path, (_, report) in zip(reports, read, strict=True)])
    if out is not None:
        from muaudit.reports import comparison_page
        from muaudit.store import write_atomically

        write_atomically(out, comparison_page.render(compared).encode())
    if as_json:
        put_json(compared.model_dump(mode="json"))
        return
    from muaudit.reports.comparison_table import table

    table(compared, console(), page=out)


def read_report(path: Path) -> "tuple[Path, AuditReport]":
    """Reads a report.json, or the one in a folder.

    Args:
        path: The file or the folder.

    Returns:
        The file's path and the report.

    Raises:
        UsageError: It cannot be read or is no report.
    """
    from muaudit.results import AuditReport

    file, data = _content(path)
    return file, AuditReport.from_json(data, name=str(file))


def _content(path: Path) -> tuple[Path, bytes]:
    """The bytes of a report.json or a calibration.json, or of the one in a folder."""
    names = [name for name in ("report.json", "calibration.json") if (path / name).exists()]
    file = path / (names[0] if names else "report.json") if path.is_dir() else path
    try:
        with file.open("rb") as handle:
            data = handle.read(REPORT_LIMIT + 1)
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read ({error.strerror}); give the report.json that `muaudit scan` wrote"
        ) from error
    if len(data) > REPORT_LIMIT:
        raise UsageError(f"{file}: has more than {REPORT_LIMIT} bytes, more than any report; give another file")
    return file, data


def _label(path: Path) -> str:
    """What a comparison calls a report: its folder where it bears the usual name."""
    named = path if path.name != "report.json" else path.parent
    return str(named) if named != Path() else str(path)


COMMANDS = (render, schema, compare)
"""What the command line takes in."""
