"""The report as JUnit XML: the battery is a suite, each finding a case, and the audit's verdict a case of its own.

A pipeline that looks at the cases alone must not see more than the verdict says: an audit in which each attack passes, but
which the policy calls inconclusive for want of references, has one case in error.
"""

import xml.etree.ElementTree as ET
from collections import Counter

from muaudit.reports.numbers import numbers_of
from muaudit.reports.text import interval, name_of, visible
from muaudit.results import AuditReport, Finding, Verdict

_ELEMENTS = {Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "error", Verdict.ERROR: "error", Verdict.SKIPPED: "skipped"}


def render(report: AuditReport) -> str:
    """Renders a report.

    Args:
        report: The report.

    Returns:
        An XML document that Jenkins' schema (junit-10.xsd) takes: `fail` is a failure, `inconclusive` and `error` are errors of
        that type, `skipped` is skipped with the reason. An audit whose verdict is `skipped` is in error: nothing was shown.
    """
    whole = Verdict.ERROR if report.verdict is Verdict.SKIPPED else report.verdict
    verdicts = [whole, *(finding.verdict for finding in report.findings)]
    kinds = Counter(_ELEMENTS.get(verdict, "passed") for verdict in verdicts)
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(kinds["failure"]),
        "errors": str(kinds["error"]),
        "time": f"{report.run.total_seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": "muaudit", **counts})
    about = {"name": _line(f"unlearning audit of {report.target.path}"), "timestamp": _line(report.run.started)}
    suite = ET.SubElement(root, "testsuite", about | counts | {"skipped": str(kinds["skipped"])})
    _properties(suite, report)
    case = ET.SubElement(suite, "testcase", {"classname": "muaudit.audit", "name": "verdict"})
    _outcome(case, whole, report.verdict, report.reason)
    if report.conduct:
        told = "\n".join(_line(f"{one.check}, {one.model}: {one.state}: {one.told}") for one in report.conduct)
        ET.SubElement(case, "system-out").text = told
    for finding in report.findings:
        _case(suite, finding)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _properties(suite: ET.Element, report: AuditReport) -> None:
    values = {
        "verdict": report.verdict.value,
        "reason": report.reason,
        "policy": str(report.policy.get("name", "unnamed")),
        "plan_sha256": report.plan_sha256,
        "target_sha256": report.target.digest,
        "report_sha256": report.content_digest(),
        "tool": report.tool,
    }
    properties = ET.SubElement(suite, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": name, "value": _line(value)})


def _case(suite: ET.Element, finding: Finding) -> None:
    case = ET.SubElement(
        suite, "testcase", {"classname": f"muaudit.{finding.measures}", "name": _line(name_of(finding), limit=300)}
    )
    _outcome(case, finding.verdict, finding.verdict, finding.reason)
    lines = [f"{name}: {_number(value)}" for name, value in numbers_of(finding).items()]
    lines += [f"note: {note}" for note in finding.notes]
    if lines:
        ET.SubElement(case, "system-out").text = visible("\n".join(lines))


def _outcome(case: ET.Element, counted: Verdict, verdict: Verdict, reason: str) -> None:
    element = _ELEMENTS.get(counted)
    if element is not None:
        ET.SubElement(case, element, {"type": verdict.value, "message": _line(reason)})


def _number(value: float | tuple[float, float]) -> str:
    return interval(value) if isinstance(value, tuple) else f"{value:g}"


def _line(text: str, limit: int = 2_000) -> str:
    """Text that XML can hold: control characters and what is no character at all are shown by their code points."""
    return visible(text, lines=False, limit=limit)
