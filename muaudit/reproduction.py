"""Reproduction: an audit made again from its report alone, and finding by finding whether it comes to the same.

On the same machine with the same versions an audit gives the same bytes again, so there nothing else will do. Elsewhere other
processors and libraries change the last bits of sums, and long chains of them, such as a training, may grow that: there gap and
leakages may differ by a tolerance, 0.01 unless it is stated otherwise, and the verdict may not.
"""

import hashlib
import platform
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rfc8785
from pydantic import ValidationError

from muaudit import plan
from muaudit.compare import conclude
from muaudit.errors import UsageError, VerificationError
from muaudit.plan import Plan
from muaudit.results import AuditReport, Finding, Frozen, Verdict

TOLERANCE = 0.01
"""How far gap and leakages may lie apart on another machine or with other versions, on their scale from 0 to 1."""

NUMBERS = ("gap", "target", "references", "original")
"""What of a finding is compared."""


@dataclass(frozen=True)
class Difference:
    """What is not what the report says.

    Attributes:
        what: Of what, such as "torch" or "reference 1".
        then: What the report says.
        here: What is here.
        other: Whether the audit would be about something else: another model, other data or other code.
    """

    what: str
    then: str
    here: str
    other: bool


class Number(Frozen):
    """One number of a finding, then and now."""

    name: str
    then: float | None
    now: float | None
    difference: float | None


class Compared(Frozen):
    """One finding, then and now.

    Attributes:
        attack: The attack's name in the plan.
        measures: What it measures.
        answer: `identical` to the byte, `within` the tolerance, or `differs`.
        then: The verdict in the report; None where the report has no such finding.
        now: The verdict of the reproduction; None where it has no such finding.
        numbers: Gap and leakages.
        told: What differs, in one sentence; empty where nothing does.
    """

    attack: str
    measures: str
    answer: Literal["identical", "within", "differs"]
    then: Verdict | None
    now: Verdict | None
    numbers: tuple[Number, ...] = ()
    told: str = ""


class Reproduction(Frozen):
    """What became of a report that was made again.

    Attributes:
        reproduced: Whether every finding that was made again is the same, within the tolerance.
        tolerance: How far gap and leakages may lie apart; 0 asks for the same bytes.
        findings: One each.
    """

    reproduced: bool
    tolerance: float
    findings: tuple[Compared, ...]


def rebuild(report: AuditReport) -> Plan:
    """The plan that a report was made by.

    Args:
        report: The report.

    Returns:
        The plan.

    Raises:
        VerificationError: The plan in the report is not the one whose digest it gives.
        UsageError: The report is redacted, or another release wrote it, whose plans cannot be read here.
    """
    if report.redaction is not None:
        raise UsageError(
            "this report is redacted, so its plan lacks paths and seed; put it together with `muaudit reveal` first"
        )
    try:
        digest = hashlib.sha256(rfc8785.dumps(report.plan)).hexdigest()
    except rfc8785.CanonicalizationError:
        digest = ""
    if digest != report.plan_sha256:
        raise VerificationError("the plan in the report is not the one whose digest it gives: one of the two was changed")
    try:
        return Plan.model_validate(report.plan)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"the plan in the report cannot be read by this release: plan.{where}: {first['msg']}; reproduce it with the "
            f"release that made it ({report.tool})"
        ) from error


def plan_again(frozen: Plan, base: Path, *, device: str | None = None) -> Plan:
    """The plan that this installation makes of what lies here, with the seed and the decision rule of the first.

    Args:
        frozen: The plan of the report.
        base: The folder that its paths start from.
        device: What to compute on, where it is not the plan's.

    Returns:
        The plan.

    Raises:
        UsageError: A model or a file is not there, or an attack or a parameter is not known here.
        EnvironmentFault: The device is not here.
    """
    sections = {entry.name: {"attack": entry.attack, **entry.parameters} for entry in frozen.attacks}
    run = frozen.config.run if device is None else frozen.config.run.model_copy(update={"device": device})
    partial = frozen.config.policy.model_copy(update={"partial": True})
    settings = frozen.config.model_copy(update={"preset": None, "attacks": sections, "run": run, "policy": partial})
    now = plan.make(settings, base)
    if device is not None:
        run = run.model_copy(update={"device": now.config.run.device})
    return _ruled(now, frozen, run.model_dump())


def _ruled(now: Plan, frozen: Plan, run: dict[str, object]) -> Plan:
    """A plan of today with the first one's configuration, order of attacks and decision rule."""
    places = {entry.name: place for place, entry in enumerate(frozen.attacks)}
    before = {step.name: step.plan for step in frozen.steps}
    steps = tuple(
        step.model_copy(update={"plan": _ruled(step.plan, before[step.name], run)}) for step in now.steps if step.name in before
    )
    kept = {key: getattr(frozen.config.run, key) for key in ("seed", "out", "store")}
    settings = frozen.config.model_copy(update={"run": frozen.config.run.model_copy(update=run | kept)})
    attacks = tuple(sorted(now.attacks, key=lambda entry: places[entry.name]))
    return now.model_copy(
        update={
            "base": frozen.base, "config": settings, "attacks": attacks, "policy": frozen.policy, "steps": steps,
            "seed_drawn": frozen.seed_drawn,
        }
    )  # fmt: skip


def differences(frozen: Plan, now: Plan) -> list[Difference]:
    """What is not what the report's plan says.

    Args:
        frozen: The plan of the report.
        now: What `plan_again` made of it.

    Returns:
        Other models, data and code first, then other versions.
    """
    return sorted(_differences(frozen, now), key=lambda one: not one.other)


def _differences(frozen: Plan, now: Plan, prefix: str = "") -> Iterator[Difference]:
    digests = {
        "models": ({one.role: one.digest for one in frozen.models}, {one.role: one.digest for one in now.models}),
        "data": ({f"{one.role} set": one.sha256 for one in frozen.data}, {f"{one.role} set": one.sha256 for one in now.data}),
        "code": ({one.role: one.sha256 for one in frozen.code}, {one.role: one.sha256 for one in now.code}),
        "task": ({"task": frozen.task_digest}, {"task": now.task_digest}),
        "shadows": ({"shadow models": frozen.shadows or "none"}, {"shadow models": now.shadows or "none"}),
    }
    versions = {
        "tool": ({"muaudit": frozen.tool}, {"muaudit": now.tool}),
        "attacks": ({one.name: one.version for one in frozen.attacks}, {one.name: one.version for one in now.attacks}),
        "versions": (frozen.versions, now.versions),
        "device": ({"device": frozen.config.run.device}, {"device": now.config.run.device}),
        "policy file": ({"policy file": frozen.policy_sha256 or "none"}, {"policy file": now.policy_sha256 or "none"}),
    }
    for kinds, other in ((digests, True), (versions, False)):
        for then, here in kinds.values():
            for what in dict.fromkeys([*then, *here]):
                was, found = then.get(what, "not there"), here.get(what, "not there")
                if was != found:
                    yield Difference(prefix + what, was, found, other)
    planned = {step.name: step.plan for step in now.steps}
    for step in frozen.steps:
        if step.name in planned and not prefix:
            seen = _differences(step.plan, planned[step.name], f"{step.name}: ")
            yield from (one for one in seen if one.other)  # versions are the same in every step


def chosen(now: Plan, names: Collection[str], out: Path) -> Plan:
    """The plan of a reproduction: some attacks or all, with an output folder and a store of its own.

    Args:
        now: What `plan_again` made.
        names: Names of attacks in the plan; all where none is named.
        out: The folder.

    Returns:
        The plan.

    Raises:
        UsageError: The plan has no such attack.
    """
    known = [entry.name for entry in now.attacks]
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(f"--attack {unknown[0]}: the report's plan has no such attack; it has {', '.join(known)}")
    return _only(now, set(names) or set(known), str(out.resolve()))


def _only(one: Plan, names: set[str], out: str) -> Plan:
    run = one.config.run.model_copy(update={"out": out, "store": None})
    return one.model_copy(
        update={
            "attacks": tuple(entry for entry in one.attacks if entry.name in names),
            "config": one.config.model_copy(update={"run": run}),
            "steps": tuple(step.model_copy(update={"plan": _only(step.plan, names, out)}) for step in one.steps),
        }
    )


def same_machine(report: AuditReport, found: Sequence[Difference]) -> bool:
    """Whether this is, as far as the report tells, the machine and the installation that it was made with."""
    here = {"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()}
    return not found and report.run.host == here


def judge(report: AuditReport, again: AuditReport, frozen: Plan, *, tolerance: float) -> Reproduction:
    """Compares what was made again with what the report says.

    Where only some attacks were made again, chance is corrected for among all of the report's findings, as it was then.

    Args:
        report: The report.
        again: The report of the reproduction.
        frozen: The plan of the report.
        tolerance: How far gap and leakages may lie apart; 0 asks for the same bytes.

    Returns:
        The comparison, in the report's order.
    """
    names = {card.name for card in again.attacks}
    made = {_key(one): one for one in again.findings}
    expected = {_key(one): one for one in report.findings if one.attack.partition(" @ ")[0] in names}
    untouched = {_key(one): one for one in report.findings if _key(one) not in expected}
    order = list(dict.fromkeys([*(_key(one) for one in report.findings), *made]))
    battery = [{**untouched, **made}[key] for key in order if key in untouched or key in made]
    if untouched:
        corrected = conclude(battery, frozen.policy, references=len(frozen.config.references)).findings
        made = {_key(one): one for one in corrected if _key(one) in made}
    compared = tuple(
        _compared(key, expected.get(key), made.get(key), tolerance) for key in order if key in expected or key in made
    )
    return Reproduction(reproduced=all(one.answer != "differs" for one in compared), tolerance=tolerance, findings=compared)


def _key(finding: Finding) -> tuple[str, str]:
    return finding.attack, finding.measures


def _compared(key: tuple[str, str], then: Finding | None, now: Finding | None, tolerance: float) -> Compared:
    attack, measures = key
    if then is None or now is None:
        told = "the report has no such finding" if then is None else "the reproduction has no such finding"
        verdicts = {"then": then and then.verdict, "now": now and now.verdict}
        return Compared(attack=attack, measures=measures, answer="differs", **verdicts, told=told)
    numbers = tuple(_number(name, getattr(then, name), getattr(now, name)) for name in NUMBERS)
    common = {"attack": attack, "measures": measures, "then": then.verdict, "now": now.verdict, "numbers": numbers}
    if then.canonical() == now.canonical():
        return Compared(answer="identical", **common)
    told = _told(then, now, numbers, tolerance)
    return Compared(answer="differs" if told else "within", told=told, **common)


def _told(then: Finding, now: Finding, numbers: Sequence[Number], tolerance: float) -> str:
    """What lies beyond the tolerance, in words; empty where nothing does."""
    if then.verdict != now.verdict:
        return f"the verdict was {then.verdict} and is {now.verdict} now ({now.reason})"
    for one in numbers:
        if (one.then is None) != (one.now is None):
            return (
                f"{one.name} was {'not ' if one.then is None else ''}measured then, and {'not ' if one.now is None else ''}now"
            )
        if one.difference is not None and one.difference > tolerance:
            return f"{one.name} was {one.then:.4f} and is {one.now:.4f} now: {one.difference:.2g} apart, {tolerance:g} allowed"
    if tolerance == 0:
        fields = [name for name in Finding.model_fields if getattr(then, name) != getattr(now, name)]
        return f"not the same bytes: {', '.join(fields)} differ"
    return ""


def _number(name: str, then: float | None, now: float | None) -> Number:
    return Number(name=name, then=then, now=now, difference=None if then is None or now is None else abs(then - now))
