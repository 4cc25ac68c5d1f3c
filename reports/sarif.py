"""The report as SARIF 2.1.0, for the security tab of a code host: an attack is a rule, what is no pass is a result.

Results point at the line of the plan, or of audit.toml, at which the attack stands. OASIS, Static Analysis Results Interchange
Format (SARIF) Version 2.1.0 Plus Errata 01, 2023: https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import rfc8785

from muaudit.reports.numbers import numbers_of
from muaudit.reports.text import interval, name_of, remark, signed, visible
from muaudit.results import AttackCard, AuditReport, Finding, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

LEVELS = {Verdict.FAIL: "error", Verdict.INCONCLUSIVE: "warning", Verdict.ERROR: "warning", Verdict.SKIPPED: "warning"}
"""How loud a result is. What could not be settled is a warning, not SARIF's kind `open`: code hosts do not show that."""

WHOLE = "verdict"
"""The rule of the audit as a whole, whose result stands beside those of its attacks."""


@dataclass(frozen=True)
class Source:
    """The file that results point at.

    Attributes:
        uri: Where it lies, relative to the root of the repository.
        text: What stands in it: an audit.toml or a plan.json.
    """

    uri: str
    text: str


def render(report: AuditReport, source: Source | None = None) -> str:
    """Renders a report.

    Args:
        report: The report.
        source: What results point at; by default the plan.json that lies beside the report, whose text is the report's plan.

    Returns:
        A SARIF log of one run: a result for every finding that failed, was inconclusive or broke, and one for the audit where
        it did not pass.
    """
    source = source or Source("plan.json", _plan_text(report))
    rules = list(_rules(report))
    places = {rule["id"]: place for place, rule in enumerate(rules)}
    results = [
        _result(report, source, finding, places)
        for finding in report.findings
        if finding.verdict not in (Verdict.PASS, Verdict.SKIPPED)
    ]
    if report.verdict is not Verdict.PASS:
        results.append(_verdict(report, source, places[WHOLE]))
    tool, _, version = report.tool.partition(" ")
    driver = {"name": _plain(tool) or "muaudit", "rules": rules} | ({"version": _plain(version)} if version else {})
    counts = {verdict.value: sum(one.verdict is verdict for one in report.findings) for verdict in Verdict}
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "muaudit/"},
        "columnKind": "unicodeCodePoints",
        "artifacts": [_artifact(report, source)],
        "invocations": [_invocation(report)],
        "results": results,
        "properties": {
            "verdict": report.verdict.value,
            "planSha256": _plain(report.plan_sha256),
            "targetSha256": _plain(report.target.digest),
            "reportSha256": report.content_digest(),
            "findings": counts,
            "conduct": [_plain(f"{one.check}, {one.model}: {one.state}") for one in report.conduct],
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _plan_text(report: AuditReport) -> str:
    """The text of plan.json; empty where the report's plan is not what was hashed, so that nothing is known of its lines."""
    text = rfc8785.dumps(report.plan)
    return text.decode() if hashlib.sha256(text).hexdigest() == report.plan_sha256 else ""


def _artifact(report: AuditReport, source: Source) -> dict[str, Any]:
    artifact: dict[str, Any] = {"location": {"uri": source.uri}, "roles": ["userSpecifiedConfiguration"]}
    if source.text and hashlib.sha256(source.text.encode()).hexdigest() == report.plan_sha256:
        artifact["hashes"] = {"sha-256": report.plan_sha256}
    return artifact


def _invocation(report: AuditReport) -> dict[str, Any]:
    times = {"startTimeUtc": _utc(report.run.started), "endTimeUtc": _utc(report.run.finished)}
    known: dict[str, Any] = {key: value for key, value in times.items() if value is not None}
    return known | {"executionSuccessful": all(one.verdict is not Verdict.ERROR for one in report.findings)}


def _utc(time: str) -> str | None:
    try:
        return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return None


def _rules(report: AuditReport) -> Iterator[dict[str, Any]]:
    cards = {card.name: card for card in report.attacks}
    for name in dict.fromkeys([*cards, *(_attack_of(finding) for finding in report.findings)]):
        yield _rule(name, cards.get(name))
    yield {
        "id": WHOLE,
        "shortDescription": {"text": "The verdict of the whole unlearning audit"},
        "fullDescription": {"text": "By the policy that was fixed before the run, over all attacks."},
    }


def _rule(name: str, card: AttackCard | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": _rule_id(name), "shortDescription": {"text": _message(f"Unlearning attack {name}")}}
    if card is None:
        return rule
    about = f"{card.summary} Source: {card.source}. Judged against models retrained without the forget set."
    return rule | {
        "fullDescription": {"text": _message(about, limit=1_000)},
        "help": {"text": _message(f"{about} Access: {card.access}. Cost: {card.cost}.", limit=1_500)},
        "properties": {
            "tags": ["machine-unlearning", card.access],
            "attack": _plain(card.attack),
            "version": _plain(card.version),
        },
    }


def _result(report: AuditReport, source: Source, finding: Finding, places: dict[str, int]) -> dict[str, Any]:
    rule = _rule_id(_attack_of(finding))
    numbers = "" if finding.gap is None else f" Gap {signed(finding.gap)}"
    numbers += "" if finding.interval is None else f" {interval(finding.interval)}"
    numbers += "" if finding.margin is None or not numbers else f", margin {finding.margin:g}"
    told = f"; {remark(finding)}" if finding.verdict is Verdict.FAIL and remark(finding) else ""
    words = f"{name_of(finding)}: {finding.verdict.value}: {finding.reason}{told}.{numbers}{'.' if numbers else ''}"
    step = _step_of(finding)
    model = next((one for one in report.models if one.role == (f"{step}: target" if step else "target")), report.target)
    return {
        "ruleId": rule,
        "ruleIndex": places[rule],
        "level": LEVELS[finding.verdict],
        "message": {"text": _message(words)},
        "locations": [_location(source, _region(report, source, finding))],
        "partialFingerprints": _fingerprints(finding.attack, finding.measures, model.digest),
        "properties": {"verdict": finding.verdict.value, "measures": finding.measures} | numbers_of(finding),
    }


def _verdict(report: AuditReport, source: Source, place: int) -> dict[str, Any]:
    return {
        "ruleId": WHOLE,
        "ruleIndex": place,
        "level": LEVELS[report.verdict],
        "message": {"text": _message(f"Unlearning audit of {report.target.path}: {report.verdict.value}: {report.reason}.")},
        "locations": [_location(source, {"startLine": 1})],
        "partialFingerprints": _fingerprints(WHOLE, "audit", report.target.digest),
        "properties": {"verdict": report.verdict.value},
    }


def _fingerprints(attack: str, measures: str, model: str) -> dict[str, str]:
    """Hashes of attack and model: under our own name, and under the one by which GitHub tells alerts of one line apart."""
    digest = hashlib.sha256(json.dumps([attack, measures, model]).encode()).hexdigest()
    return {"attackAndModel/v1": digest, "primaryLocationLineHash": f"{digest[:16]}:1"}


def _location(source: Source, region: dict[str, int]) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": {"uri": source.uri, "index": 0}, "region": region}}


def _region(report: AuditReport, source: Source, finding: Finding) -> dict[str, int]:
    """Where the attack stands: its entry in a plan, which is one canonical line, or its section's line in audit.toml."""
    if not source.text.lstrip().startswith("{"):
        return {"startLine": _toml_line(source.text, _attack_of(finding))}
    plan, start = report.plan, 0
    if step := _step_of(finding):
        plans = [one["plan"] for one in plan.get("steps", ()) if isinstance(one, dict) and one.get("name") == step]
        plan = plans[0] if plans else {}
        start = max(0, source.text.find(rfc8785.dumps(plan).decode()))
    entries = plan.get("attacks", ())
    for entry in entries if isinstance(entries, list | tuple) else ():
        if isinstance(entry, dict) and entry.get("name") == _attack_of(finding):
            text = rfc8785.dumps(entry).decode()
            found = source.text.find(text, start)
            if found >= 0:
                line = source.text.count("\n", 0, found)
                column = found - (source.text.rfind("\n", 0, found) + 1)
                return {"startLine": line + 1, "startColumn": column + 1, "endColumn": column + len(text) + 1}
    return {"startLine": 1}


def _toml_line(text: str, name: str) -> int:
    """The line of an attack's section; else that of the preset which brings it, or of `[attacks]`; else the first."""
    quoted = rf"""["']?{re.escape(name)}["']?"""
    patterns = (
        rf"\[\s*attacks\s*\.\s*{quoted}\s*[\].]",
        rf"attacks\s*\.\s*{quoted}\s*[.=]",
        rf"{quoted}\s*=\s*\{{",
        r"preset\s*=",
        r"\[\s*attacks\b",
    )
    lines = text.split("\n")
    for pattern in patterns:
        for number, line in enumerate(lines, 1):
            if re.match(rf"\s*{pattern}", line):
                return number
    return 1


def _attack_of(finding: Finding) -> str:
    """The attack's name in its plan, without the step of a series."""
    return finding.attack.split(" @ ", 1)[0]


def _step_of(finding: Finding) -> str:
    return finding.attack.partition(" @ ")[2]


def _rule_id(name: str) -> str:
    """A rule's id: the attack's name, or, where that cannot be shown as it is or is taken, one with its hash."""
    shown = _plain(name)
    return shown if shown == name and name not in ("", WHOLE) else f"{shown} {hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _plain(text: str) -> str:
    return visible(text, lines=False, limit=200)


def _message(text: str, limit: int = 900) -> str:
    r"""A message in which nothing is a link (3.11.6: `[` is written `\[`) or a placeholder (3.11.5: `{` is written `{{`)."""
    shown = visible(text, lines=False, limit=limit)
    return re.sub(r"([\\\[\]])", r"\\\1", shown).replace("{", "{{").replace("}", "}}")
