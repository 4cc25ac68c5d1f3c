"""Commands on finished reports."""

from pathlib import Path

import click

from muaudit.command_line import anywhere, as_json, existing, shown, wrote


@click.command()
@click.argument("report", type=existing)
@click.option("--out", type=anywhere, help="HTML file to write; beside the report by default.")
@as_json
@shown
def render(report: Path, out: Path | None, as_json: bool) -> None:
    """Make report.html of a report.json."""
    from muaudit.reports import html
    from muaudit.results import AuditReport
    from muaudit.store import write_atomically

    out = out or report.with_suffix(".html")
    write_atomically(out, html.render(AuditReport.from_json(report.read_bytes(), name=str(report))).encode())
    wrote(out, as_json)
