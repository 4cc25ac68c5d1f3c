"""From measurements to findings, and from findings to a verdict: the only place where one is made.

The target's leakage is set against the references', in one way for every attack; the numbers come from
`muaudit.statistics` and `muaudit.worst_cluster`, the decision rule from the policy. docs/statistics.md explains both.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muaudit import evidence, reasons
from muaudit.attack import Measurement
from muaudit.errors import ModelError
from muaudit.evidence import Panel, roles
from muaudit.policy import Policy
from muaudit.results import AttackCard, Conduct, Control, Controls, Finding, RelativeTest, Verdict
from muaudit.statistics import (
    Discernment,
    Estimate,
    detectable_gap,
    holm,
    mean_gap,
    needed_units,
    noise_floor,
    relative_similarity,
)
from muaudit.worst_cluster import Maximum, judge_maximum

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """All findings after the correction for their number, and the audit's verdict."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Rule:
    """How one attack's numbers are judged: the part of the policy that concerns it."""

    margin: float
    cluster_margin: float
    confidence: float
    equivalence_confidence: float
    noise_confidence: float
    cluster_confidence: float
    two_sided: bool
    seed: int
    discernment: Discernment | None = None
    pictures: Literal["shown", "blurred", "left_out"] = "shown"

    @property
    def tail(self) -> float:
        """Error rate of one side of the two-sided interval."""
        return (1 - self.confidence) / 2


@dataclass(frozen=True)
class _Judged:
    """One model in the target's place."""

    estimate: Estimate
    sides: tuple[Estimate, ...]
    floor: float | None
    threshold: float
    verdict: Verdict
    maximum: Maximum | None

    @property
    def flagged(self) -> bool:
        return self.verdict is Verdict.FAIL or (self.maximum is not None and bool(self.maximum.flagged.any()))


def _check_alike(attack: str, models: Mapping[str, Measurement]) -> None:
    """Refuses measurements that are not of the same units: a gap between different units means nothing."""
    target = models["target"]
    for role, other in models.items():
        for what in ("units", "clusters", "sets"):
            if getattr(other, what) != getattr(target, what):
                raise ModelError(
                    f"{attack}: {role} was measured on other {what} than the target, so they cannot be compared; "
                    "an attack must score the same units in the same order on every model"
                )
        for name, curve in other.curves.items():
            # The original may be of another architecture, with other layers; its line is then left out.
            if role != "original" and name in target.curves and curve.x != target.curves[name].x:
                raise ModelError(f"{attack}: curve {name!r} of {role} has other budgets than the target's; use the same ones")


def _judge(panel: Panel, target: FloatArray, references: FloatArray, rule: _Rule, *, loss: bool = False) -> _Judged:
    """Puts one model in the target's place: fails, passes or neither by its mean, and by its clusters unless `loss`."""
    rng = np.random.default_rng(rule.seed)
    estimate = mean_gap(target, references, panel.codes, rng=rng, resolution=1.0)
    found_floor = floor = noise_floor([float(mean) for mean in references.mean(1)], rule.noise_confidence)
    if rule.discernment is not None:
        estimate = rule.discernment.corrected(estimate)
        floor = None if floor is None else floor / rule.discernment.index
    threshold = max(rule.margin, floor or 0.0)
    mirrored = estimate.mirrored()
    sides = (estimate, mirrored) if rule.two_sided else (mirrored,) if loss else (estimate,)
    verdict = Verdict.INCONCLUSIVE
    if any(side.lower(1 - rule.tail) > threshold for side in sides):
        verdict = Verdict.FAIL
    elif all(side.upper(rule.equivalence_confidence) < rule.margin for side in sides):
        verdict = Verdict.PASS
    maximum = None
    if not loss:
        maximum = judge_maximum(
            target,
            references,
            panel.codes,
            confidence=rule.cluster_confidence,
            margin=rule.cluster_margin,
            floor=found_floor or 0.0,
            two_sided=rule.two_sided,
        )
    return _Judged(estimate, sides, floor, threshold, verdict, maximum)


def _needed(judged: _Judged, units: int, rule: _Rule) -> int | None:
    """How many units would settle an inconclusive mean, if units would."""
    side = max(judged.sides, key=lambda one: one.value)
    if side.value < rule.margin:
        needed = needed_units(side, units, rule.margin - side.value, 1 - rule.equivalence_confidence)
    else:
        needed = needed_units(side, units, side.value - judged.threshold, 1 - rule.tail)
    return needed if needed is not None and needed > units else None


def _control(name: str, judged: _Judged, rule: _Rule) -> Control:
    gap, interval = judged.estimate.value, judged.estimate.interval(rule.confidence)
    return Control(model=name, flagged=judged.flagged, gap=gap, interval=_clipped(interval))


def _controls(panel: Panel, rule: _Rule) -> tuple[Controls, _Judged | None]:
    """The original must be flagged; no reference may be, when at least two others are left to judge it by."""
    _, references, original = panel.rows()
    positive = None if original is None else _judge(panel, original, references, rule)
    negative = []
    if len(references) >= 3:
        for index, reference in enumerate(references):
            judged = _judge(panel, reference, np.delete(references, index, axis=0), rule)
            negative.append(_control(f"reference {index + 1}", judged, rule))
    shown = None if positive is None else _control("original", positive, rule)
    return Controls(positive=shown, negative=tuple(negative)), positive


def _clipped(interval: tuple[float, float]) -> tuple[float, float]:
    """Gaps of leakages cannot leave [-1, 1]."""
    return max(-1.0, interval[0]), min(1.0, interval[1])


def _relative(panel: Panel) -> RelativeTest | None:
    target, references, original = panel.rows()
    if original is None:
        return None
    statistic, p_value = relative_similarity(target, references, original, panel.codes)
    return RelativeTest(statistic=statistic, p_value=p_value)


def _numbers(panel: Panel, judged: _Judged, rule: _Rule) -> dict[str, Any]:
    """The fields of a finding that its mean gives."""
    target, references, original = panel.rows()
    estimate = judged.estimate
    level = rule.equivalence_confidence
    lower, upper = _clipped((estimate.lower(level), estimate.upper(level)))
    return {
        "gap": _clipped((estimate.value, estimate.value))[estimate.value > 0],
        "interval": _clipped(estimate.interval(rule.confidence)),
        "upper_bound": upper,
        "lower_bound": lower,
        "noise_floor": judged.floor,
        "p_value": min(side.p_value(judged.threshold) for side in judged.sides),
        "target": float(target.mean()),
        "references": float(references.mean()),
        "original": None if original is None else float(original.mean()),
        "smallest_detectable_gap": max(detectable_gap(side, judged.threshold, rule.confidence) for side in judged.sides),
        "needed_units": _needed(judged, len(panel.units), rule) if judged.verdict is Verdict.INCONCLUSIVE else None,
    }


def _recovered_share(judged: _Judged, positive: _Judged | None, rule: _Rule) -> float | None:
    """Target's gap over original's, where the original's is positive beyond noise."""
    if positive is None or positive.estimate.lower(1 - rule.tail) <= 0:
        return None
    return judged.estimate.value / positive.estimate.value


def _settled(finding: Finding, verdict: Verdict, *, mean: bool, clusters: bool) -> Finding:
    """The finding with its verdict and the sentence that explains it; controls that err overrule any verdict."""
    flagged = [control.model for control in finding.controls.negative if control.flagged] if finding.controls else []
    positive = finding.controls.positive if finding.controls else None
    blind = positive is not None and not positive.flagged
    if blind or flagged:
        reason = reasons.of_blind_attack(flagged, blind=blind)
        return finding.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": reason, "needed_units": None})
    if verdict is Verdict.FAIL:
        reason = reasons.of_failure(finding, mean=mean, clusters=clusters)
        return finding.model_copy(update={"verdict": verdict, "reason": reason, "needed_units": None})
    reason = reasons.of_pass(finding) if verdict is Verdict.PASS else reasons.of_undecided(finding)
    return finding.model_copy(update={"verdict": verdict, "reason": reason})


def _bare(card: AttackCard, panel: Panel, margin: float, measures: Literal["leakage", "retention"]) -> Finding:
    """A finding before anything is judged; what it says holds where there are too few clusters to judge."""
    target, references, original = panel.rows()
    return Finding(
        attack=card.name,
        measures=measures,
        verdict=Verdict.INCONCLUSIVE,
        reason="all units belong to one cluster, so nothing tells chance from residue; give units of at least two clusters",
        sided=card.sided if measures == "leakage" else "one",
        margin=margin,
        units=len(panel.units),
        clusters=len(panel.names),
        gap=float((target - references.mean(0)).mean()),
        target=float(target.mean()),
        references=float(references.mean()),
        original=None if original is None else float(original.mean()),
        leakages=evidence.leakages(panel),
    )


def _leakage(card: AttackCard, panel: Panel, models: Mapping[str, Measurement], rule: _Rule) -> Finding:
    """The finding on the forget set."""
    bare = _bare(card, panel, rule.margin, "leakage").model_copy(
        update={
            "curves": evidence.curves(models),
            "heat_maps": evidence.heat_maps(panel),
            "worst_units": evidence.worst_units(panel, models, two_sided=rule.two_sided),
            "summaries": evidence.summaries(models),
            "evaluator": models["target"].evaluator,
            "pictures": evidence.pictures(panel, models, how=rule.pictures, two_sided=rule.two_sided),
            "notes": evidence.notes(models, len(panel.references)),
            "informational": bool(card.informational),
        }
    )
    if bare.clusters < 2:
        return bare
    target, references, _ = panel.rows()
    judged = _judge(panel, target, references, rule)
    controls, positive = _controls(panel, rule)
    clusters = judged.maximum is not None and bool(judged.maximum.flagged.any())
    scores, facets = evidence.scores(panel, rule.confidence, forget=True), models["target"].facets
    finding = bare.model_copy(
        update=_numbers(panel, judged, rule)
        | {
            "recovered_share": _recovered_share(judged, positive, rule),
            "relative": _relative(panel),
            "controls": controls,
            "scores": scores,
            "notes": (*evidence.worst_facets(scores, facets, two_sided=rule.two_sided), *bare.notes),
            "worst_clusters": judged.maximum
            and evidence.worst_clusters(panel, judged.maximum, margin=rule.cluster_margin, two_sided=rule.two_sided),
        }
    )
    verdict = Verdict.FAIL if clusters else judged.verdict
    powerless = next((one.powerless for role, one in models.items() if role != "original" and one.powerless), None)
    if verdict is Verdict.PASS and powerless is not None:
        return finding.model_copy(update={"reason": powerless})
    return _settled(finding, verdict, mean=judged.verdict is Verdict.FAIL, clusters=clusters)


def _retention(card: AttackCard, panel: Panel, rule: _Rule) -> Finding:
    """The finding on the retain set: what the target lost beyond what its references lost."""
    bare = _bare(card, panel, rule.margin, "retention")
    if bare.clusters < 2:
        return bare
    target, references, _ = panel.rows()
    judged = _judge(panel, target, references, rule, loss=True)
    finding = bare.model_copy(
        update=_numbers(panel, judged, rule) | {"scores": evidence.scores(panel, rule.confidence, forget=False)}
    )
    return _settled(finding, judged.verdict, mean=judged.verdict is Verdict.FAIL, clusters=False)


def _claim(card: AttackCard, models: Mapping[str, Measurement], rule: _Rule) -> Finding | None:
    """The finding on what is claimed of the target: refuted, not refuted, or not to be refuted by so few examples."""
    claim = models["target"].claim
    if claim is None:
        return None
    forget = [
        cluster for cluster, kind in zip(models["target"].clusters, models["target"].sets, strict=True) if kind == "forget"
    ]
    flagged = [
        role
        for role, one in models.items()
        if role.startswith("reference") and one.claim is not None and one.claim.p_value <= rule.tail
    ]
    verdict = Verdict.PASS
    if flagged:
        verdict = Verdict.INCONCLUSIVE
    elif claim.p_value <= rule.tail:
        verdict = Verdict.FAIL
    elif claim.detectable <= claim.epsilon:
        verdict = Verdict.INCONCLUSIVE
    return Finding(
        attack=card.name, measures="claim", verdict=verdict, reason=reasons.of_claim(claim, verdict, flagged),
        units=len(forget), clusters=len(set(forget)), p_value=claim.p_value, claim=claim,
    )  # fmt: skip


def compare(
    card: AttackCard,
    target: Measurement,
    references: Sequence[Measurement],
    original: Measurement | None,
    policy: Policy,
    *,
    seed: int,
) -> list[Finding]:
    """Judges one attack's measurement of the target by those of the references.

    Args:
        card: The attack; its name in the plan picks the margin.
        target: The measurement of the model under audit.
        references: Those of at least one reference.
        original: That of the model before unlearning, for the positive control.
        policy: Margins and error rates.
        seed: Seeds the bootstrap; the same numbers and seed give the same findings.

    Returns:
        The leakage finding, the retention finding when there are retain units, and one on a claim that was tested. A `fail` is
        one attack's own: `conclude` corrects for their number.

    Raises:
        ModelError: There is no reference or no forget unit, or the measurements are not of the same units.
    """
    if not references:
        raise ModelError(f"{card.name}: there is no reference to compare the target with; give at least one retrained model")
    models = roles(references, target, original)
    _check_alike(card.name, models)
    kinds = np.array(target.sets)
    if "forget" not in target.sets:
        raise ModelError(f"{card.name}: no forget unit was measured, so there is nothing to judge; check the forget set")
    leakage = _Rule(
        margin=policy.margin_of(card.name, card.attack),
        cluster_margin=policy.cluster_margin_of(card.name, card.attack),
        confidence=policy.confidence,
        equivalence_confidence=policy.equivalence_confidence,
        noise_confidence=policy.noise_confidence,
        cluster_confidence=policy.cluster_confidence,
        two_sided=card.sided == "two",
        seed=abs(seed),
        discernment=None if target.evaluator is None else Discernment.of(**target.evaluator.model_dump()),
        pictures=policy.pictures,
    )
    panel = Panel.of(np.flatnonzero(kinds == "forget"), target, references, original)
    findings = [_leakage(card, panel, models, leakage)]
    if "retain" in target.sets:
        retention = replace(leakage, margin=policy.retention_margin, two_sided=False)
        findings.append(_retention(card, Panel.of(np.flatnonzero(kinds == "retain"), target, references, original), retention))
    claim = _claim(card, models, leakage)
    return findings if claim is None else [*findings, claim]


def unmeasured(attack: AttackCard | str, verdict: Verdict, reason: str) -> Finding:
    """The finding of an attack that did not run (`skipped`) or broke (`error`).

    Args:
        attack: The attack's card, or its name in the plan where there is none.
        verdict: `skipped` or `error`.
        reason: Why, in one sentence.

    Returns:
        A leakage finding without numbers.
    """
    if isinstance(attack, str):
        return Finding(attack=attack, measures="leakage", verdict=verdict, reason=reason)
    return Finding(attack=attack.name, measures="leakage", verdict=verdict, reason=reason, sided=attack.sided)


@dataclass(frozen=True)
class _Claim:
    """One claim of the battery: its p-value over its own error rate, infinite where it is not claimed."""

    finding: int
    kind: Literal["mean", "clusters", "claim"]
    level: float


def _claims(findings: Sequence[Finding], policy: Policy) -> list[_Claim]:
    """Every claim that could have been made, whether or not it was: two a leakage finding, one any other."""
    claims = []
    for index, finding in enumerate(findings):
        failed = finding.verdict is Verdict.FAIL
        if finding.interval is not None and finding.p_value is not None:
            threshold = max(finding.margin or 0.0, finding.noise_floor or 0.0)
            above = finding.measures == "leakage" and finding.interval[0] > threshold
            below = (finding.measures == "retention" or finding.sided == "two") and finding.interval[1] < -threshold
            level = finding.p_value * 2 / (1 - policy.confidence) if failed and (above or below) else math.inf
            claims.append(_Claim(index, "mean", level))
        if finding.worst_clusters is not None:
            claimed = failed and any(one.flagged for one in finding.worst_clusters.clusters)
            level = finding.worst_clusters.p_value / (1 - policy.cluster_confidence) if claimed else math.inf
            claims.append(_Claim(index, "clusters", level))
        if finding.claim is not None:
            level = finding.claim.p_value * 2 / (1 - policy.confidence) if failed else math.inf
            claims.append(_Claim(index, "claim", level))
    return claims


def _corrected(findings: Sequence[Finding], policy: Policy) -> tuple[Finding, ...]:
    """The findings after Holm's correction over the battery's claims."""
    claims = _claims(findings, policy)
    survivors = [claim for claim, survives in zip(claims, holm([claim.level for claim in claims]), strict=True) if survives]
    corrected = []
    for index, finding in enumerate(findings):
        kinds = {claim.kind for claim in survivors if claim.finding == index}
        if finding.verdict is not Verdict.FAIL or "claim" in kinds:
            corrected.append(finding)
        elif kinds:
            reason = reasons.of_failure(finding, mean="mean" in kinds, clusters="clusters" in kinds)
            corrected.append(finding.model_copy(update={"reason": reason}))
        else:
            reason = reasons.of_chance(len(claims))
            corrected.append(finding.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": reason}))
    return tuple(corrected)


def verdict_of(findings: Sequence[Finding], policy: Policy, *, references: int) -> tuple[Verdict, str]:
    """The audit's verdict, from findings that are already corrected for their number.

    Args:
        findings: All findings.
        policy: Required attacks and the fewest references and clusters for a pass. Where it requires no attack by name,
            every leakage finding that was not skipped must pass. A pass rests on informational findings alone only where the
            policy says so.
        references: How many references the audit has.

    Returns:
        `fail`, `pass` or `inconclusive`, and why in one sentence.
    """
    failing = [finding for finding in findings if finding.verdict is Verdict.FAIL]
    if failing:
        return Verdict.FAIL, reasons.of_audit_failure(failing)
    leakage = {finding.attack: finding for finding in findings if finding.measures == "leakage"}
    required = policy.required or [name for name, finding in leakage.items() if finding.verdict is not Verdict.SKIPPED]
    missing = [f"{one.attack} could not be measured ({one.reason})" for one in findings if one.verdict is Verdict.ERROR]
    passing = [finding for finding in leakage.values() if finding.verdict is Verdict.PASS]
    for name in required:
        finding = leakage.get(name)
        skipped = finding is not None and finding.verdict is Verdict.SKIPPED and not finding.over_budget
        if not (skipped and name in policy.skippable) and (
            finding is None or finding.verdict not in (Verdict.PASS, Verdict.ERROR)
        ):
            missing.append(reasons.of_missing(name, finding))
        elif finding in passing and finding is not None:
            missing += reasons.of_weak_pass(finding, policy)
    missing += [why for name, one in leakage.items() if name not in required and (why := reasons.of_suspicion(one))]
    if references < policy.minimum_references:
        missing.append(f"the audit has {references} references, and the policy asks for {policy.minimum_references}")
    shallow = all(finding.informational for finding in passing)
    if shallow and not missing and not (passing and policy.shallow_passes):
        missing.append(reasons.of_shallow_passes(passing))
    if missing:
        return Verdict.INCONCLUSIVE, "; ".join(missing)
    return Verdict.PASS, reasons.of_audit_pass(passing, findings, shallow=shallow)


def conclude(
    findings: Sequence[Finding],
    policy: Policy,
    *,
    references: int,
    conduct: Sequence[Conduct] = (),
    inside: Collection[str] = (),
) -> Compared:
    """Corrects the findings for their number and gives the audit's verdict.

    Args:
        findings: All findings of the audit, in the plan's order, `unmeasured` ones among them.
        policy: Error rates, required attacks, fewest references and clusters.
        references: How many references the audit has.
        conduct: How the models behaved. With files that changed nothing holds (`error`); a target that answers differently
            when it is asked again never passes, nor does one that declines, unless an attack that looks inside it passes.
        inside: Names of the attacks that see weights or train: refusals hide nothing from them.

    Returns:
        The verdict, its reason, and the findings as they stand after Holm's correction.
    """
    corrected = _corrected(findings, policy)
    verdict, reason = verdict_of(corrected, policy, references=references)
    looked = any(one.verdict is Verdict.PASS and one.attack in inside for one in corrected)
    changed, told = reasons.of_conduct(conduct, looked_inside=looked)
    if changed is not None:
        return Compared(Verdict.ERROR, changed, corrected)
    if told is not None and verdict is not Verdict.FAIL:
        return Compared(Verdict.INCONCLUSIVE, told if verdict is Verdict.PASS else f"{told}; {reason}", corrected)
    return Compared(verdict, reason, corrected)
