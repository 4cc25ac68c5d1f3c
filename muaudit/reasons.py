"""Why a verdict was given, in one sentence for a reader who knows no statistics. Derived from the finding alone."""

from collections.abc import Sequence

from muaudit.policy import Policy
from muaudit.results import ClaimTest, ClusterResult, Conduct, Finding, Verdict

NAMED = 3
"""Clusters and findings that a sentence names before it counts the rest."""


def points(share: float) -> str:
    """A share in hundredths, such as 0.412 as '41' and 0.034 as '3.4'."""
    hundredths = abs(share) * 100
    return f"{hundredths:.0f}" if hundredths >= 10 else f"{hundredths:.1f}".removesuffix(".0")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: all of a few, the first of many."""
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _of_clusters(flagged: Sequence[ClusterResult]) -> str:
    worst = flagged[0]
    which = listed([repr(one.cluster) for one in flagged])
    rates = f"leaks {points(worst.target)} % where models that never saw it leak {points(worst.references)} %"
    verb = "still remembered" if worst.gap > 0 else "told apart by an unnaturally low score"
    if len(flagged) == 1:
        return f"one cluster ({which}) is {verb}: it {rates}"
    return f"{len(flagged)} clusters ({which}) are {verb}: the worst {rates}"


def _of_mean(finding: Finding) -> str:
    gap = finding.gap or 0.0
    if finding.measures == "retention":
        return f"the target lost {points(gap)} points of the retain set that models retrained without the forget set keep"
    if gap < 0:
        return f"the target gives back {points(gap)} points less of the forget set than models that never saw it: it stands out"
    return f"the target gives back {points(gap)} points more of the forget set than models that never saw it"


def of_failure(finding: Finding, *, mean: bool, clusters: bool) -> str:
    """Why a finding failed: by its mean, by single clusters, or by both."""
    flagged = [one for one in finding.worst_clusters.clusters if one.flagged] if finding.worst_clusters else []
    sentences = ([_of_mean(finding)] if mean else []) + ([_of_clusters(flagged)] if clusters and flagged else [])
    return "; ".join(sentences)


def of_pass(finding: Finding) -> str:
    """Why a finding passed: the bound that was shown, beside the one allowed."""
    allowed = f"({points(finding.margin or 0.0)} are allowed)"
    if finding.informational:
        allowed += "; this attack sees part of what methods leave, so that alone says little"
    if finding.measures == "retention":
        lost = points(max(0.0, -(finding.lower_bound or 0.0)))
        return (
            f"the target lost at most {lost} points of the retain set against models retrained without the forget set {allowed}"
        )
    if finding.sided == "two":
        apart = max(abs(finding.lower_bound or 0.0), abs(finding.upper_bound or 0.0))
        return f"the target is within {points(apart)} points of models that never saw the forget set {allowed}"
    more = points(max(0.0, finding.upper_bound or 0.0))
    return f"the target gives back at most {more} points more of the forget set than models that never saw it {allowed}"


def of_undecided(finding: Finding) -> str:
    """Why a finding is inconclusive although its attack can see what it looks for."""
    if finding.needed_units is not None:
        what = "whether too much was lost" if finding.measures == "retention" else "whether a residue is left"
        return f"needs about {finding.needed_units - finding.units} more units to tell {what}"
    size, margin, floor = abs(finding.gap or 0.0), finding.margin or 0.0, finding.noise_floor or 0.0
    if margin < size <= floor:
        return (
            f"the difference of {points(size)} points is no larger than references differ among themselves "
            f"({points(floor)} points): more references would tell, more units would not"
        )
    detectable = points(finding.smallest_detectable_gap or 0.0)
    return f"too uncertain to tell: these units and references would have shown only a gap of {detectable} points or more"


def of_blind_attack(flagged_references: Sequence[str], *, blind: bool) -> str:
    """Why the controls leave an attack without a say."""
    if blind:
        return "this attack does not find the forget set in the original, which certainly knows it, so its answer means nothing"
    verb = "was" if len(flagged_references) == 1 else "were"
    return f"{listed(flagged_references)}, which never saw the forget set, {verb} flagged too, so a flag means nothing here"


def of_claim(claim: ClaimTest, verdict: Verdict, flagged_references: Sequence[str]) -> str:
    """What became of a claim about the target."""
    told = f"an epsilon of {claim.epsilon:.2f} ({claim.source}; {claim.game})"
    if flagged_references:
        verb = "refutes" if len(flagged_references) == 1 else "refute"
        return f"{listed(flagged_references)}, to which it does not apply, {verb} it too, so a refutation means nothing here"
    if verdict is Verdict.FAIL:
        return f"{told} is claimed, and at least {claim.lower_bound:.2f} was shown at {claim.confidence:.1%} confidence"
    if verdict is Verdict.INCONCLUSIVE:
        return f"{told} is claimed, and so few examples could not show more than {claim.detectable:.2f}: give more of them"
    shown = f"{claim.lower_bound:.2f} was shown, and up to {claim.detectable:.2f} could have been"
    return f"{told} is claimed and not refuted: {shown}"


def of_chance(claims: int) -> str:
    """Why a failed finding did not survive the correction for the number of claims."""
    return f"a difference was seen, but among the {claims} claims of this battery one such is to be expected by chance"


def of_audit_failure(failing: Sequence[Finding]) -> str:
    """Why an audit failed: its first failed finding in full, the others by name."""
    first = f"{failing[0].attack}: {failing[0].reason}"
    rest = [f"{one.attack} ({one.measures})" for one in failing[1:]]
    return first if not rest else f"{first}; {listed(rest)} {'fails' if len(rest) == 1 else 'fail'} too"


def of_missing(attack: str, finding: Finding | None) -> str:
    """Why a required attack stands in the way of a pass."""
    if finding is None:
        return f"{attack} was not run, and the policy requires it"
    if finding.verdict is Verdict.SKIPPED:
        return f"{attack} was skipped ({finding.reason}), and the policy requires it"
    if finding.verdict is Verdict.ERROR:
        return f"{attack} could not be measured ({finding.reason})"
    return f"{attack} is undecided ({finding.reason})"


def of_weak_pass(finding: Finding, policy: Policy) -> list[str]:
    """What a required attack's pass lacks of what its policy asks for; nothing where it is as good as asked."""
    weak = []
    for have, least, what in (
        (finding.clusters, policy.minimum_clusters, "clusters"),
        (finding.units, policy.minimum_units, "units"),
    ):
        if have < least:
            weak.append(f"{finding.attack} rests on {have} {what}, and the policy asks for {least}")
    if policy.positive_control and (finding.controls is None or finding.controls.positive is None):
        weak.append(f"{finding.attack} was not tried on the original, and the policy asks for that control")
    return weak


def of_suspicion(finding: Finding) -> str | None:
    """Why an undecided finding stands in the way of a pass though no policy requires it; None where it does not.

    It saw more than its margin allows, by controls that hold. So few units could not tell that from chance, but no audit passes
    over it either. An attack that flags references, or not the original, has no say.
    """
    if finding.verdict is not Verdict.INCONCLUSIVE or finding.gap is None or finding.margin is None:
        return None
    controls = finding.controls
    if controls is not None and any(one.flagged for one in controls.negative):
        return None
    if controls is not None and controls.positive is not None and not controls.positive.flagged:
        return None
    beyond = abs(finding.gap) if finding.sided == "two" else finding.gap
    if beyond <= finding.margin:
        return None
    return (
        f"{finding.attack} tells the target from models that never saw the forget set by {points(beyond)} points, where "
        f"{points(finding.margin)} are allowed, though not for certain"
    )


def of_shallow_passes(passing: Sequence[Finding]) -> str:
    """Why an audit cannot rest on what passed: it is nothing, or attacks that see only part of what methods leave."""
    if not passing:
        return "no attack could be run that would have found a residue"
    names = listed([finding.attack for finding in passing])
    return (
        f"only {names} passed, which alone {'sees' if len(passing) == 1 else 'see'} too little of what methods leave: "
        "add an attack that sees more (`muaudit attacks`)"
    )


def of_conduct(conduct: Sequence[Conduct], *, looked_inside: bool) -> tuple[str | None, str | None]:
    """What the models' conduct takes away from an audit.

    Args:
        conduct: What was seen of it.
        looked_inside: Whether an attack passes that sees weights or trains: refusals hide nothing from it.

    Returns:
        Why nothing holds at all (a model's files changed), and why the target cannot pass; None where there is no such reason.
    """
    changed = next((one.told for one in conduct if one.check == "files" and one.state in ("shown", "unknown")), None)
    for one in sorted(conduct, key=lambda one: one.check, reverse=True):
        decisive = ("shown", "unknown") if one.check == "repetition" else () if looked_inside else ("shown",)
        if one.check != "files" and one.model.endswith("target") and one.state in decisive:
            return changed, one.told
    return changed, None


def of_audit_pass(passing: Sequence[Finding], findings: Sequence[Finding], *, shallow: bool) -> str:
    """Why an audit passed, and what its pass does not cover."""
    names = listed([finding.attack for finding in passing])
    seen = f"{names} cannot tell the target from models that never saw the forget set, beyond the policy's margins"
    weak = "; no attack passed that sees deeper, and the policy asks for none" if shallow else ""
    return f"{seen}{weak}{of_left_out(findings)}"


def of_left_out(findings: Sequence[Finding]) -> str:
    """What a passing audit left out because it did not fit into the budget, to be added to why it passed."""
    left = list(dict.fromkeys(one.attack for one in findings if one.over_budget))
    return (
        f"; {listed(left)} did not fit into the budget, and what {'it' if len(left) == 1 else 'they'} would have found is open"
        if left
        else ""
    )
