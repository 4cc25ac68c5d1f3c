"""Tables of a calibration: from judged audits to rates, areas and rows."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from muaudit.calibration import rates
from muaudit.calibration.audits import Judged, cluster_gap_of, excess_of, gap_of, largest
from muaudit.calibration.planning import PlannedMember
from muaudit.calibration.record import (
    Area,
    AttackRates,
    AuditRow,
    Correlation,
    Curve,
    Group,
    PolicyRates,
    Rate,
    Robustness,
    Truth,
    Whole,
)
from muaudit.policy import Policy
from muaudit.results import Finding, Verdict

KNOWING: tuple[Truth, ...] = ("knows", "gated")


def rate(flags: Iterable[bool]) -> Rate | None:
    """How often something happened; None of nothing."""
    seen = list(flags)
    if not seen:
        return None
    hits, total = sum(seen), len(seen)
    low, high = rates.clopper_pearson(hits, total)
    bound = rates.clopper_pearson(hits, total, 0.9)[1]
    return Rate(hits=hits, total=total, low=low, high=high, bound=bound)


def area(scores: Mapping[str, Sequence[float]], truths: Mapping[str, Truth]) -> Area | None:
    """How well a number tells models that know from models that never saw.

    Args:
        scores: The number of every audit, by its target's name.
        truths: What is known of each target.

    Returns:
        The area over all pairs of audits; its interval counts each model once. None where either kind is missing.
    """
    knowing = [name for name in scores if truths[name] in KNOWING]
    others = [name for name in scores if truths[name] == "never_saw"]
    if not knowing or not others:
        return None
    found = rates.auc([one for name in knowing for one in scores[name]], [one for name in others for one in scores[name]])
    low, high = rates.auc_interval(found, len(knowing), len(others))
    return Area(auc=found, low=low, high=high, knows=len(knowing), never_saw=len(others))


def curve(scores: Mapping[str, Sequence[float]], truths: Mapping[str, Truth]) -> Curve | None:
    """The ROC curve of a number; see `area`."""
    knowing = [one for name in scores if truths[name] in KNOWING for one in scores[name]]
    others = [one for name in scores if truths[name] == "never_saw" for one in scores[name]]
    if not knowing or not others:
        return None
    false, true = rates.roc(knowing, others)
    return Curve(false=tuple(map(float, false)), true=tuple(map(float, true)))


def rows(judged: Mapping[str, Sequence[Judged]], members: Mapping[str, PlannedMember]) -> tuple[AuditRow, ...]:
    """One row an audit.

    Args:
        judged: Every audit under every policy, in the same order.
        members: The models, by name.

    Returns:
        The rows; numbers are those under the first policy.
    """
    first = next(iter(judged.values()))
    found = []
    for place, one in enumerate(first):
        member, leakage = members[one.audit.target], one.leakage()
        found.append(
            AuditRow(
                target=member.name,
                truth=member.truth,
                group=member.group,
                strength=member.strength,
                share=member.share,
                seed=member.seed,
                references=one.audit.references,
                original=one.audit.original,
                gaps=_rounded({name: gap_of(finding) for name, finding in leakage.items()}),
                clusters=_rounded({name: cluster_gap_of(finding) for name, finding in leakage.items()}),
                excess=_rounded({name: excess_of(finding) for name, finding in leakage.items()}),
                flagged={
                    name: tuple(attack for attack, finding in every[place].leakage().items() if flags(finding))
                    for name, every in judged.items()
                },
                verdicts={name: str(every[place].verdict) for name, every in judged.items()},
            )
        )
    return tuple(found)


def flags(finding: Finding) -> bool:
    """Whether an attack's own finding fails its target."""
    return finding.verdict is Verdict.FAIL


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: round(number, 6) for name, number in numbers.items() if number is not None}


def by_target(audits: Sequence[AuditRow], number: Callable[[AuditRow], float | None]) -> dict[str, list[float]]:
    """A number of every audit that has it, by target."""
    found: dict[str, list[float]] = {}
    for audit in audits:
        if (value := number(audit)) is not None:
            found.setdefault(audit.target, []).append(value)
    return found


def attack_rates(
    judged: Sequence[Judged],
    audits: Sequence[AuditRow],
    attack: str,
    *,
    access: str,
    robustness: Robustness | None,
    cost: tuple[float | None, float | None],
) -> AttackRates:
    """What one attack's own finding tells, under the first policy.

    Args:
        judged: The audits.
        audits: Their rows.
        attack: Its name.
        access: What it needs.
        robustness: Of its leakage.
        cost: Seconds a model, and of its preparation.

    Returns:
        Its rates; where it never gave a number, the reason.
    """
    findings = [one.leakage().get(attack) for one in judged]
    if not any(attack in audit.gaps for audit in audits):
        why = Counter(finding.reason for finding in findings if finding is not None)
        return AttackRates(attack=attack, access=access, left_out=why.most_common(1)[0][0] if why else "it was not run")
    truths = {audit.target: audit.truth for audit in audits}
    pairs = [(audit, one) for audit, one in zip(audits, findings, strict=True) if one is not None and one.gap is not None]

    def share(*among: Truth, verdict: Verdict = Verdict.FAIL) -> Rate | None:
        return rate(one.verdict is verdict for audit, one in pairs if audit.truth in among)

    excess = by_target(audits, lambda audit: audit.excess.get(attack))
    return AttackRates(
        attack=attack,
        access=access,
        gap=area(by_target(audits, lambda audit: audit.gaps.get(attack)), truths),
        excess=area(excess, truths),
        roc=curve(excess, truths),
        false_alarm=share("never_saw"),
        detection=share("knows"),
        gated=share("gated"),
        passes=share("never_saw", verdict=Verdict.PASS),
        robustness=robustness,
        seconds=cost[0],
        preparation=cost[1],
    )


def whole(audits: Sequence[AuditRow]) -> Whole:
    """The battery as one detector."""
    truths = {audit.target: audit.truth for audit in audits}
    excess = by_target(audits, lambda audit: largest(audit.excess))
    gaps = by_target(audits, lambda audit: largest(audit.gaps))
    ladder = [(audit.share, largest(audit.gaps)) for audit in audits if audit.truth == "ladder" and audit.share is not None]
    known = [(share, gap) for share, gap in ladder if gap is not None]
    found = rates.spearman([share for share, _ in known], [gap for _, gap in known]) if known else None
    steps = []
    for share in sorted({share for share, _ in known}):
        values = [gap for other, gap in known if other == share]
        steps.append((share, statistics.fmean(values), min(values), max(values)))
    return Whole(
        excess=area(excess, truths),
        gap=area(gaps, truths),
        roc=curve(excess, truths),
        ladder=None if found is None else Correlation(value=found[0], low=found[1][0], high=found[1][1], models=len(known)),
        steps=tuple(steps),
    )


def groups(judged: Sequence[Judged], audits: Sequence[AuditRow]) -> tuple[Group, ...]:
    """By method and strength, in the order of the models."""
    found: dict[tuple[Truth, str, str], list[int]] = {}
    for place, audit in enumerate(audits):
        found.setdefault((audit.truth, audit.group, audit.strength), []).append(place)
    return tuple(_group(key, [judged[place] for place in places]) for key, places in found.items())


def _group(key: tuple[Truth, str, str], judged: Sequence[Judged]) -> Group:
    attacks: dict[str, list[Finding]] = {}
    for one in judged:
        for name, finding in one.leakage().items():
            if finding.gap is not None:
                attacks.setdefault(name, []).append(finding)
    detection = rate(one.verdict is Verdict.FAIL for one in judged)
    by_attack = {name: rate(map(flags, findings)) for name, findings in attacks.items()}
    assert detection is not None  # noqa: S101 - a group has an audit
    return Group(
        truth=key[0],
        group=key[1],
        strength=key[2],
        models=len({one.audit.target for one in judged}),
        detection=detection,
        by_attack={name: one for name, one in by_attack.items() if one is not None},
        gaps={
            name: round(statistics.fmean(gap_of(finding) or 0.0 for finding in findings), 6)
            for name, findings in attacks.items()
        },
    )


def policy_rates(policy: Policy, sha256: str, judged: Sequence[Judged], audits: Sequence[AuditRow]) -> PolicyRates:
    """The verdict's errors under one policy."""
    pairs = [(audit.truth, one.verdict) for audit, one in zip(audits, judged, strict=True)]
    why = Counter(
        one.concluded.reason
        for audit, one in zip(audits, judged, strict=True)
        if audit.truth == "never_saw" and one.verdict is not Verdict.PASS
    )

    def shares(*among: Truth) -> dict[str, Rate]:
        seen = [verdict for truth, verdict in pairs if truth in among]
        kinds = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.ERROR)
        found = {str(kind): rate(verdict is kind for verdict in seen) for kind in kinds}
        return {name: one for name, one in found.items() if one is not None and (one.hits or name != "error")}

    return PolicyRates(
        policy=policy.name,
        sha256=sha256,
        never_saw=shares("never_saw"),
        knows=shares("knows"),
        gated=shares("gated"),
        false_alarm=rate(verdict is Verdict.FAIL for truth, verdict in pairs if truth == "never_saw"),
        detection=rate(verdict is Verdict.FAIL for truth, verdict in pairs if truth == "knows"),
        missed=rate(verdict is Verdict.PASS for truth, verdict in pairs if truth in KNOWING),
        undecided=tuple(why.most_common(20)),
    )


def robustness(leakage: Mapping[str, float], members: Sequence[PlannedMember]) -> Robustness | None:
    """How stable one attack's mean leakage is under 4-bit weights and one epoch of relearning.

    The symmetric form of arXiv 2605.24614, section 4.1, over the models that know. What retrains gain by relearning is the mean
    over theirs.

    Args:
        leakage: Its mean leakage on each model that it was measured on, by name.
        members: The models.

    Returns:
        The shares; None where there are no copies.
    """
    known = set(leakage)
    copies = [one for one in members if one.copied and one.copy_of in known and one.name in known]

    def changes(kind: str, *truths: Truth) -> list[tuple[float, float]]:
        return [(leakage[one.copy_of or ""], leakage[one.name]) for one in copies if one.copied == kind and one.truth in truths]

    quantised = [rates.kept(before, after) for before, after in changes("four_bit", *KNOWING)]
    honest = [after - before for before, after in changes("relearned", "never_saw")]
    gained = [after - before for before, after in changes("relearned", *KNOWING)]
    if not quantised or not honest or not gained:
        return None
    relearned = [rates.kept(gain, statistics.fmean(honest)) for gain in gained]
    shares = statistics.fmean(quantised), max(0.0, statistics.fmean(relearned))
    return Robustness(quantised=shares[0], relearned=shares[1], harmonic=rates.harmonic(shares), models=len(gained))
