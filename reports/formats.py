"""The formats that a report is rendered in, each by a module of its own that is imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

from muaudit.errors import UsageError

if TYPE_CHECKING:
    from muaudit.calibration.record import CalibrationRecord
    from muaudit.reports.sarif import Source
    from muaudit.results import AuditReport

SUFFIXES = {
    "html": ".html",
    "markdown": ".md",
    "junit": ".junit.xml",
    "sarif": ".sarif",
    "csv": ".units.csv",
    "json": ".json",
}
"""What a report's file is called in each format, after `report`."""

_MODULES = {"csv": "table"}


def render(report: "AuditReport", name: str, source: "Source | None" = None) -> bytes:
    """Renders a report.

    Args:
        report: The report.
        name: A key of `SUFFIXES`.
        source: What SARIF's results point at.

    Returns:
        The file's content; as JSON, the canonical form, which is what is signed.

    Raises:
        UsageError: The report cannot be shown in this format.
    """
    if name == "json":
        return report.canonical()
    module = import_module(f"muaudit.reports.{_MODULES.get(name, name)}")
    text: str = module.render(report, source) if name == "sarif" else module.render(report)
    return text.encode()


def render_calibration(record: "CalibrationRecord", name: str) -> bytes:
    """Renders a calibration.

    Args:
        record: The record.
        name: "html", "markdown" or "json".

    Returns:
        The file's content; as JSON, the canonical form.

    Raises:
        UsageError: A calibration is not shown in this format.
    """
    from muaudit.reports import calibration, calibration_markdown

    if name == "json":
        return record.canonical()
    if name not in ("html", "markdown"):
        raise UsageError(f"a calibration is not shown as {name}: give --format html, markdown or json")
    text = calibration.render(record) if name == "html" else calibration_markdown.render(record)
    return text.encode()
