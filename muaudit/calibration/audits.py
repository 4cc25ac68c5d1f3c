"""Forms audits from measurements: a target, its references and its original, judged as a scan judges them.

Nothing here decides: the findings are those of `muaudit.compare`, through the runner's own way from outcomes to findings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from muaudit.attack import Measurement
from muaudit.calibration.measuring import Sheet, calibrates, read
from muaudit.calibration.planning import PlannedAudit
from muaudit.compare import Compared, conclude, unmeasured
from muaudit.errors import NotApplicable
from muaudit.measuring import Outcome
from muaudit.plan import PlannedAttack
from muaudit.policy import Policy
from muaudit.probing import refusal, repetition
from muaudit.results import Conduct, Finding, Verdict
from muaudit.runner import compared, inside_of


@dataclass(frozen=True)
class Judged:
    """An audit under one policy.

    Attributes:
        audit: What was audited.
        policy: The policy as it applies to this target.
        findings: Every attack's own findings, before they are corrected for their number.
        conduct: How the target behaved.
        inside: Attacks that see weights or train.
        concluded: The verdict, and the findings as they then stand.
    """

    audit: PlannedAudit
    policy: Policy
    findings: tuple[Finding, ...]
    conduct: tuple[Conduct, ...]
    inside: frozenset[str]
    concluded: Compared

    @property
    def verdict(self) -> Verdict:
        """The audit's verdict."""
        return self.concluded.verdict

    def leakage(self) -> dict[str, Finding]:
        """Each attack's own finding on the forget set."""
        return {finding.attack: finding for finding in self.findings if finding.measures == "leakage"}

    def without(self, attacks: Iterable[str]) -> Compared:
        """What the audit would have concluded without some attacks; a policy cannot require what is left out."""
        out = set(attacks)
        rule = self.policy.model_copy(update={"required": tuple(name for name in self.policy.required if name not in out)})
        findings = [finding for finding in self.findings if finding.attack not in out]
        return conclude(findings, rule, references=len(self.audit.references), conduct=self.conduct, inside=self.inside)


def judge(
    sheet: Sheet, audit: PlannedAudit, policy: Policy, *, chosen: Callable[[Measurement], Measurement] | None = None
) -> Judged:
    """Judges one audit.

    Args:
        sheet: The measurements of its panel.
        audit: Target and references.
        policy: The policy as it applies.
        chosen: Leaves out units of a measurement, of all models alike.

    Returns:
        The audit, judged.
    """
    frozen = sheet.panel.plan

    def taken(outcome: Outcome) -> Measurement:
        found = read(sheet.folder, outcome.key)
        return found if chosen is None else chosen(found)

    findings: list[Finding] = []
    for entry in frozen.attacks:
        if entry.name in sheet.unready:
            reason, fault = sheet.unready[entry.name]
            findings.append(unmeasured(entry.name, Verdict.ERROR if fault else Verdict.SKIPPED, reason))
            continue
        try:
            outcomes = _outcomes(sheet, entry, audit)
        except NotApplicable as skip:
            findings.append(unmeasured(entry.name, Verdict.SKIPPED, str(skip)))
            continue
        findings += [_bare(one) for one in compared(frozen, entry, outcomes, None, policy=policy, read=taken)]
    conduct, inside = _conduct(sheet, audit), inside_of(frozen)
    concluded = conclude(findings, policy, references=len(audit.references), conduct=conduct, inside=inside)
    return Judged(audit, policy, tuple(findings), conduct, frozenset(inside), concluded)


def judge_all(sheet: Sheet, audits: Sequence[PlannedAudit], policy: Policy) -> list[Judged]:
    """Judges several audits of one panel; see `judge`."""
    return [judge(sheet, audit, policy) for audit in audits]


def _conduct(sheet: Sheet, audit: PlannedAudit) -> tuple[Conduct, ...]:
    """How the target behaved beside its references; nothing where no question came back."""
    roles = {"target": audit.target} | {f"reference {place}": name for place, name in enumerate(audit.references, 1)}
    replies = {role: sheet.replies.get(sheet.panel.roles[name]) for role, name in roles.items()}
    known = {role: pair for role, pair in replies.items() if pair is not None}
    return (repetition(known), *refusal(known)) if len(known) == len(roles) else ()


def _outcomes(sheet: Sheet, entry: PlannedAttack, audit: PlannedAudit) -> dict[str, Outcome]:
    """What came of an attack on an audit's models, by their roles in it.

    An attack that calibrates was prepared with a model that is in no audit. A scan takes one of the audit's references for
    that, so the last one is left out here too: the comparison has as many references as a scan's.

    Raises:
        NotApplicable: The attack was not made on one of the models.
    """
    references = audit.references
    if calibrates(sheet.panel, entry):
        if len(references) < 2:
            raise NotApplicable("it calibrates on a reference of its own; with one reference none is left to compare with")
        references = references[:-1]
    names = {"target": audit.target} | {f"reference {place}": name for place, name in enumerate(references, 1)}
    found = {}
    for role, name in names.items():
        outcome = sheet.outcomes.get((entry.name, sheet.panel.roles[name]))
        if outcome is None:
            raise NotApplicable(f"the {role} ({name}) is of a kind that this attack is not for")
        found[role] = replace(outcome, role=role)
    if (original := sheet.outcomes.get((entry.name, "original"))) is not None:
        found["original"] = original
    return found


def _bare(finding: Finding) -> Finding:
    """A finding without what many of them have no room for; its numbers, controls and reason stay."""
    return finding.model_copy(update={"leakages": (), "worst_units": (), "summaries": {}})


def subset(clusters: Sequence[str] | None, units: Sequence[str] | None) -> Callable[[Measurement], Measurement]:
    """Leaves forget units out of a measurement.

    Args:
        clusters: Clusters that stay; None for all.
        units: Units that stay; None for all.

    Returns:
        What does so; units of the retain set stay.
    """
    among, these = None if clusters is None else set(clusters), None if units is None else set(units)

    def chosen(measurement: Measurement) -> Measurement:
        rows = zip(measurement.units, measurement.clusters, measurement.sets, strict=True)
        stay = [
            place
            for place, (unit, cluster, kind) in enumerate(rows)
            if kind != "forget" or ((among is None or cluster in among) and (these is None or unit in these))
        ]
        columns = {name: tuple(getattr(measurement, name)[place] for place in stay) for name in _COLUMNS}
        return measurement.model_copy(update=columns)

    return chosen


_COLUMNS = ("units", "clusters", "sets", "leakage")


def gap_of(finding: Finding) -> float | None:
    """How far a target leaks more than its references; for a two-sided attack, how far it differs."""
    if finding.gap is None:
        return None
    return abs(finding.gap) if finding.sided == "two" else finding.gap


def cluster_gap_of(finding: Finding) -> float | None:
    """The largest gap of one cluster."""
    if finding.worst_clusters is None or not finding.worst_clusters.clusters:
        return None
    gaps = [abs(one.gap) if finding.sided == "two" else one.gap for one in finding.worst_clusters.clusters]
    return max(gaps)


def excess_of(finding: Finding) -> float | None:
    """How far a finding lies beyond what it has to exceed to fail: above 0 the attack alone fails its target.

    A finding fails by its mean, when the lower end of the interval lies above the margin and the noise floor, or by a cluster,
    when that cluster's gap lies above its threshold, which is at least the cluster margin. The excess is the larger of the two
    differences.

    Args:
        finding: A leakage finding.

    Returns:
        A difference of leakages; None where nothing was measured.
    """
    found = []
    if finding.interval is not None:
        threshold = max(finding.margin or 0.0, finding.noise_floor or 0.0)
        ends = (finding.interval[0], -finding.interval[1]) if finding.sided == "two" else (finding.interval[0],)
        found += [end - threshold for end in ends]
    if finding.worst_clusters is not None:
        for one in finding.worst_clusters.clusters:
            size = abs(one.gap) if finding.sided == "two" else one.gap
            found.append(size - one.threshold)
    return max(found, default=None)


def largest(numbers: Mapping[str, float | None]) -> float | None:
    """The largest of some attacks' numbers."""
    return max((number for number in numbers.values() if number is not None), default=None)
