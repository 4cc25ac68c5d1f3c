"""Reports that hold a vendor's text in every place that takes any text."""

from functools import cache
from typing import Any

from sample import sample_report
from unit_leakages import leakages

from muaudit.results import AuditReport, ClaimTest, Conduct, Finding, Ledger, Transcript, Usage, Verdict

KEPT = {
    "repetition", "refusal", "files", "shown", "unknown", "clear",
    "1", "leakage", "retention", "claim", "one", "two", "text", "training", "target", "original",
    *(verdict.value for verdict in Verdict),
}  # fmt: skip
"""Values that decide what a report is, and so cannot be anybody's text."""


def full_report(**changes: Any) -> AuditReport:
    """The sample report with what else a report can hold: every unit's leakage, a claim, an endpoint's ledger, a series."""
    report = sample_report()
    kept = leakages(60, 12, lift=0.3)
    findings = [one.model_copy(update={"leakages": kept}) if one.gap is not None else one for one in report.findings]
    claim = ClaimTest(
        game="an example's in training", source="stated by the vendor", epsilon=1.0, delta=1e-5, lower_bound=2.3,
        confidence=0.95, p_value=0.001, detectable=4.0,
    )  # fmt: skip
    findings.append(
        Finding(
            attack="empirical_epsilon",
            measures="claim",
            verdict=Verdict.FAIL,
            reason="the claim is refuted",
            units=60,
            clusters=60,
            p_value=0.001,
            claim=claim,
        )
    )
    usage = Usage(
        requests=10, retries=1, failures=1, answers=9, reused=0, prompt_tokens=5, completion_tokens=5, unmetered=0, cost=None
    )
    ledger = Ledger(role="target", endpoint="model at address", run=usage, total=usage, served=("model-1", "model-2"))
    fields: dict[str, Any] = {
        "findings": tuple(findings),
        "run": report.run.model_copy(update={"ledgers": (ledger,)}),
        "conduct": tuple(
            Conduct(check=check, model="target", state=state, told="the target answered otherwise the second time")
            for check, state in (("repetition", "shown"), ("refusal", "unknown"), ("files", "clear"))
        ),
        "series": (report.findings[1].curves[0],),
    }
    return sample_report(**(fields | changes))


@cache
def _known() -> frozenset[str]:
    schema = AuditReport.model_json_schema()
    return frozenset(KEPT | {field for one in (schema, *schema["$defs"].values()) for field in one.get("properties", ())})


@cache
def everywhere(*texts: str) -> AuditReport:
    """A report with the texts, in turn, in every place that takes any text.

    Args:
        texts: What to put there.

    Returns:
        The report: as many findings, units and rows as `full_report` has, so that its pages are built alike.
    """
    known = _known()
    placed = 0

    def put(value: Any) -> Any:
        nonlocal placed
        if isinstance(value, dict):
            # Pages sort references by their roles, so other roles would be another page.
            kept = {key for key in value if key in known or key.startswith("reference ")}
            return {key if key in kept else put(key): put(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [put(entry) for entry in value]
        if not isinstance(value, str) or value in known:
            return value
        placed += 1
        return texts[placed % len(texts)]

    return AuditReport.model_validate(put(full_report().model_dump(mode="json")))


@cache
def said(*texts: str) -> AuditReport:
    """`everywhere`, and each of the texts as all that the models said about a unit of its own.

    Args:
        texts: What to put there.

    Returns:
        The report; those of as many different texts are built alike.
    """
    report = everywhere(*texts)
    finding = report.findings[1]
    units = [
        finding.worst_units[0].model_copy(
            update={
                "id": text,
                "cluster": text,
                "transcripts": {
                    role: Transcript(prompt=text, expected=text, output=text) for role in ("target", "reference 1")
                },
            }
        )
        for text in texts
    ]
    findings = list(report.findings)
    findings[1] = finding.model_copy(update={"worst_units": (*finding.worst_units, *units)})
    return report.model_copy(update={"findings": tuple(findings)})
