"""Assertions for release tests: `assert_unlearned(report)` passes where the audit does, and else says why and what to do.

Nothing heavy is imported here, so that collecting the tests of a project stays as fast as it was.
"""

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from muaudit.errors import UsageError

if TYPE_CHECKING:
    from muaudit.results import AuditReport, Finding, UnitResult

_SHOWN = 200
"""Longest output that a message quotes: a failed test's log should stay readable."""

_CLUSTERS = 8
"""Most flagged clusters that a message lists; the report has them all."""

_NEXT = {
    (
        "fail",
        "leakage",
    ): "{attack}: the forget set can still be told from data that was never seen: unlearn again, or retrain without "
    "it, and audit the new model",
    (
        "fail",
        "retention",
    ): "{attack}: the target lost knowledge that it was to keep: unlearn more gently, or repair it on the retain set",
    (
        "inconclusive",
        "leakage",
    ): "{attack}: too little evidence for either answer: {more}; allow_inconclusive=True accepts that on record",
    ("fail", "claim"): "{attack}: the target shows more than is claimed of it: withdraw the claim, or look for what breaks it "
    "(noise, sampling, clipping, what else the data were used for)",
    ("inconclusive", "claim"): "{attack}: the claim was not put to the test: give more examples, best of all canaries, or "
    "see why its references refute it too; allow_inconclusive=True accepts that on record",
    ("skipped", "leakage"): "{attack}: did not run: give it the access that its reason names, or leave it out of `attacks`",
    ("error", "leakage"): "{attack}: did not finish: mend what its reason names and run again; what was measured is kept",
}


@dataclass(frozen=True)
class Judged:
    """The part of an audit that one test judges; the fixture `muaudit_finding` is one.

    Attributes:
        report: The audit's report.
        attack: The attack whose findings are judged, by its name in the plan; None for the audit's verdict under its policy.
    """

    report: "AuditReport"
    attack: str | None = None

    @property
    def findings(self) -> tuple["Finding", ...]:
        """The findings that are judged: on the forget set, on the retain set where there is one, and on a claim."""
        return tuple(one for one in self.report.findings if self.attack in (None, one.attack))


@dataclass(frozen=True)
class Marked:
    """What `@pytest.mark.muaudit(...)` says of the running test; it holds for the marker's own audit and no other.

    Attributes:
        attacks: Judge these attacks alone.
        allow_inconclusive: Accept too little evidence.
        reports: The report of the marker's audit, once it is there.
    """

    attacks: tuple[str, ...] | None = None
    allow_inconclusive: bool = False
    reports: list["AuditReport"] = field(default_factory=list)


marked: ContextVar[Marked | None] = ContextVar("muaudit_marked", default=None)
"""The running test's marker. The pytest plug-in sets it; without the plug-in there is none."""


def assert_unlearned(
    report: "AuditReport | Judged",
    *,
    attacks: Sequence[str] | None = None,
    allow_inconclusive: bool | None = None,
    units: int = 3,
) -> None:
    """Asserts that an audit found no residue of the forget set.

    Where the running test is marked with `@pytest.mark.muaudit`, the marker's `attacks` and `allow_inconclusive` hold for the
    marker's own audit, unless they are given here.

    Args:
        report: The audit's report, or the part of it that the fixture `muaudit_finding` gives.
        attacks: Judge these attacks alone, each by its own findings; by default the audit's verdict under its policy.
        allow_inconclusive: Accept too little evidence too. An attack that failed, was skipped or broke is never accepted.
        units: How many of the worst units a message shows for each failed attack.

    Raises:
        AssertionError: The audit does not show it; the message says what was found and what to do.
        UsageError: `attacks` is empty, or names an attack that the audit did not plan.
    """
    __tracebackhide__ = True
    part = report if isinstance(report, Judged) else Judged(report)
    if part is report and attacks is not None:
        raise UsageError(f"attacks={attacks!r}: a finding is of one attack already; leave it out, or give the whole report")
    said = _marked(part.report)
    if part.attack is not None:
        attacks = (part.attack,)
    elif part is not report and attacks is None:
        attacks = said.attacks
    if allow_inconclusive is None:
        allow_inconclusive = said.allow_inconclusive
    report = part.report
    accepted = {"pass", "inconclusive"} if allow_inconclusive else {"pass"}
    findings = _chosen(report, attacks)
    if attacks is None:
        # A broken attack counts even where its policy does not require it: it may have been the one that sees the residue.
        fine = report.verdict in accepted and not (
            allow_inconclusive and any(one.verdict in ("fail", "error") for one in findings)
        )
    else:
        # With files that changed during the audit, no finding is about the target.
        fine = report.verdict != "error" and all(finding.verdict in accepted for finding in findings)
    if not fine:
        raise AssertionError("\n".join(_message(report, findings, judged=attacks is not None, units=units)))


def shown(text: str, limit: int = _SHOWN) -> str:
    """A model's output as a test log can hold it: quoted, on one line, cut, and with whatever could hide or steer made visible.

    Args:
        text: Hostile text.
        limit: Longest text that is shown in full.

    Returns:
        One printable line.
    """
    from muaudit.reports.text import visible

    quoted = repr(visible(text[:limit], lines=False))
    return quoted if len(text) <= limit else f"{quoted}... ({len(text)} characters)"


def _marked(report: "AuditReport") -> Marked:
    """What the running test's marker says of a report; nothing where the report is another audit's."""
    said = marked.get()
    return said if said is not None and any(report is one for one in said.reports) else Marked()


def _chosen(report: "AuditReport", attacks: Sequence[str] | None) -> list["Finding"]:
    if attacks is None:
        return list(report.findings)
    if isinstance(attacks, str) or not attacks:
        raise UsageError(f"attacks={attacks!r}: give a list of attack names, such as ['memorization'], or leave it out for all")
    known = list(dict.fromkeys(finding.attack for finding in report.findings))
    for name in attacks:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"planned: {', '.join(known)}"
            raise UsageError(f"attack {name!r} is not in this audit's plan; {hint}")
    return [finding for finding in report.findings if finding.attack in attacks]


def _message(report: "AuditReport", findings: Sequence["Finding"], *, judged: bool, units: int) -> Iterator[str]:
    word = report.verdict if report.verdict == "inconclusive" else report.verdict.upper()
    yield f"the audit's verdict is {word}: {plain(report.reason)}" + ("; judged here by the attacks named" if judged else "")
    yield (
        f"  target {plain(report.target.path)} (sha256 {report.target.digest[:12]})   plan {report.plan_sha256[:12]}   "
        f"policy {plain(str(report.policy.get('name', '?')))}"
    )
    yield ""
    for finding in findings:
        yield from _finding(finding, units)
    yield ""
    yield "what to do:"
    for finding in findings:
        if finding.verdict != "pass":
            yield f"  {_advice(finding)}"
    if all(finding.verdict in ("pass", "skipped") for finding in findings):
        yield "  no attack that ran found anything, but the policy asks for more: give the audit what the first line names"
    out = report.plan.get("config", {}).get("run", {}).get("out", "audit")
    yield f"  read all that was found: `muaudit render {plain(str(out))}/report.json` in the folder of audit.toml"


def _finding(finding: "Finding", units: int) -> Iterator[str]:
    from muaudit.reports.text import name_of

    verdict = finding.verdict.upper() if finding.verdict in ("fail", "error") else str(finding.verdict)
    yield f"  {name_of(finding):<26} {verdict:<13}{_numbers(finding)}".rstrip()
    if finding.verdict == "pass":
        return
    yield f"    {plain(finding.reason)}"
    clusters = finding.worst_clusters.clusters if finding.worst_clusters is not None else ()
    flagged = [cluster for cluster in clusters if cluster.flagged]
    for cluster in flagged[:_CLUSTERS]:
        yield (
            f"    cluster {shown(cluster.cluster)}: gap {cluster.gap:+.3f} over {cluster.units} units, flagged above "
            f"{cluster.threshold:+.3f}"
        )
    if len(flagged) > _CLUSTERS:
        yield f"    and {len(flagged) - _CLUSTERS} further clusters"
    for unit in finding.worst_units[:units]:
        yield from _unit(unit)


def _numbers(finding: "Finding") -> str:
    from muaudit.reports.text import interval, signed

    if finding.gap is None or finding.interval is None:
        return ""
    line = f"gap {signed(finding.gap)}  {interval(finding.interval)}"
    if finding.margin is not None:
        line += f"  margin {finding.margin:g}"
    if finding.verdict == "inconclusive" and finding.smallest_detectable_gap is not None:
        line += f"  smallest gap that this design could have shown {finding.smallest_detectable_gap:.3f}"
    return line


def _unit(unit: "UnitResult") -> Iterator[str]:
    yield f"    unit {shown(unit.id)} of {shown(unit.cluster)}: leakage {unit.target:.3f}, references {unit.references:.3f}"
    if (said := unit.transcripts.get("target")) is not None:
        yield f"      asked    {shown(said.prompt)}"
        yield f"      expected {shown(said.expected)}"
        yield f"      output   {shown(said.output)}"


def _advice(finding: "Finding") -> str:
    template = _NEXT.get((finding.verdict, finding.measures)) or _NEXT[finding.verdict, "leakage"]
    more = "add facts, clusters or references"
    if finding.needed_units is not None and finding.needed_units > finding.units:
        more = f"about {finding.needed_units - finding.units} more units would settle it, and further references help"
    return template.format(attack=finding.attack, more=more)


def plain(text: str) -> str:
    """A sentence of ours on one line; it may quote a file name or a cluster, which are the vendor's words.

    Args:
        text: The sentence.

    Returns:
        One printable line.
    """
    from muaudit.reports.text import visible

    return visible(" ".join(text.split()), lines=False)
