"""Runs a calibration: plans, measures, forms audits, judges them, and writes the record."""

import platform
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from muaudit import compute, feasibility, policy, store
from muaudit.calibration import additions, measuring, planning, power, sensitivity, tables
from muaudit.calibration.audits import Judged, judge_all
from muaudit.calibration.config import CalibrationConfig
from muaudit.calibration.measuring import Progress, Sheet, config_of, read
from muaudit.calibration.own import BED
from muaudit.calibration.planning import PLAN, CalibrationPlan, PlannedAudit, PlannedMember
from muaudit.calibration.population import Population
from muaudit.calibration.record import AttackRates, AuditRow, CalibrationRecord, MemberRow, PolicyRates, PowerPoint, RunFacts
from muaudit.errors import UsageError
from muaudit.plan import PlannedAttack
from muaudit.policy import Policy
from muaudit.runner import card_of
from muaudit.task_opening import open_task

RECORD = "calibration.json"

LOT = 5
"""Audits that a process judges at a time."""

Made = Callable[[Progress], Population]
"""Makes the models, or finds them made."""


@dataclass(frozen=True)
class Applied:
    """A policy and what came of it: why it was not applied, or every audit judged by it, and what they lack to pass."""

    rule: Policy
    sha256: str
    left_out: str | None
    judged: tuple[Judged, ...] = ()
    short: str | None = None


def run(settings: CalibrationConfig, make: Made, base: Path, *, progress: Progress | None = None) -> CalibrationRecord:
    """Runs a whole calibration, or what is left of an interrupted one, and writes plan.json and calibration.json.

    Args:
        settings: The configuration.
        make: Makes the models.
        base: The folder that paths start from.
        progress: Told of every step.

    Returns:
        The record.

    Raises:
        UsageError: The configuration, a model or a policy cannot be used.
        EnvironmentFault: Another calibration is at work in the folder, or nothing can be stored any more.
    """
    tell = progress or (lambda done, total, what: None)
    out = base / settings.run.out
    with store.claimed(out):
        started, clock = datetime.now(UTC), time.perf_counter()
        settings = planning.seeded(settings, CalibrationPlan.read(out / PLAN), secrets.token_hex(16))
        population = make(tell)
        frozen = planning.make(settings, population, base)
        panels = measuring.panels(settings, population, frozen.audits, base)
        frozen = planning.with_task(frozen, panels[0].plan)
        store.write_atomically(out / PLAN, frozen.canonical())
        sheets = [measuring.measure(panel, base, tell) for panel in panels]
        record = _record(settings, population, frozen, sheets, base, tell, (started, clock))
        store.write_atomically(out / RECORD, record.canonical())
        return record


def _record(
    settings: CalibrationConfig,
    population: Population,
    frozen: CalibrationPlan,
    sheets: Sequence[Sheet],
    base: Path,
    tell: Progress,
    since: tuple[datetime, float],
) -> CalibrationRecord:
    members = {one.name: one for one in frozen.members}
    asked = [audit for audit in frozen.audits if members[audit.target].copied is None]
    applied = [_applied(name, settings, population, sheets, asked, base, tell) for name in frozen.policies]
    used = [one for one in applied if one.left_out is None]
    if not used and population.bed == BED:
        # What such audits could see is to be told all the same, and what they lack with it.
        short, name = applied[0], next(iter(frozen.policies))
        applied[0] = replace(_applied(name, settings, population, sheets, asked, base, tell, force=True), short=short.left_out)
        used = [applied[0]]
    if not used:
        why = "; ".join(f"{one.rule.name}: {one.left_out}" for one in applied)
        raise UsageError(
            f"no policy fits these audits ({why}); change audits.references or the attacks, or name other policies"
        )
    rows = tables.rows({one.rule.name: one.judged for one in used}, members)
    first, leakage = used[0], _leakages(sheets)
    costs = _costs(sheets)
    trial = additions.Trial(
        first.judged,
        [row.truth for row in rows],
        {name: cost[0] or 0.0 for name, cost in costs.items() if any(name in row.gaps for row in rows)},
    )
    entries = sheets[0].panel.plan.attacks
    return CalibrationRecord(
        tool=frozen.tool,
        family=population.task.kind,
        bed=population.bed,
        plan_sha256=frozen.content_digest(),
        config=frozen.config,
        parameters={entry.name: entry.parameters for entry in entries},
        policies=tuple(_policy_rates(one, rows) for one in applied),
        attacks=tuple(_attack_rates(entry, first, rows, frozen, leakage, costs[entry.name]) for entry in entries),
        battery=tables.whole(rows),
        groups=tables.groups(first.judged, rows),
        power=tuple(_power(settings, sheets, first, rows, tell)),
        additions=additions.additions(trial),
        batteries=additions.batteries(trial),
        sensitivity=tuple(sensitivity.seen(sheets, [one.name for one in population.of("never_saw")], first.rule,
                                           settings.audits.references)),
        audits=rows,
        members=tuple(_member_row(one, leakage.get(one.name, {})) for one in frozen.members),
        data=frozen.data,
        versions=frozen.versions,
        limits=tuple(_limits(settings, population, used)),
        run=_facts(sheets, *since),
    )  # fmt: skip


def _attack_rates(
    entry: PlannedAttack,
    first: Applied,
    rows: Sequence[AuditRow],
    frozen: CalibrationPlan,
    leakage: Mapping[str, Mapping[str, float]],
    cost: tuple[float | None, float | None],
) -> AttackRates:
    own = {name: found[entry.name] for name, found in leakage.items() if entry.name in found}
    robustness = tables.robustness(own, frozen.members)
    return tables.attack_rates(first.judged, rows, entry.name, access=card_of(entry).access, robustness=robustness, cost=cost)


def _applied(
    name: str,
    settings: CalibrationConfig,
    population: Population,
    sheets: Sequence[Sheet],
    asked: Sequence[PlannedAudit],
    base: Path,
    tell: Progress,
    *,
    force: bool = False,
) -> Applied:
    """Applies one policy to every audit, where audits of this size can pass under it at all, or by force."""
    rule, sha256 = policy.load(name, base), policy.digest(name, base)
    rules: dict[str, Policy] = {}
    for sheet in sheets:
        audit = sheet.panel.audits[0]
        models = [population.member(one).model for one in (audit.target, *audit.references)]
        config = config_of(settings, population, models[0], models[1:], population.originals[audit.original])
        rules[sheet.panel.kind] = feasibility.applied(rule, config, base)
        if not force and sheet.panel.kind == population.of("never_saw")[0].model.kind:
            short = feasibility.shortfalls(
                rules[sheet.panel.kind], config, open_task(config, base), sheet.panel.plan.attacks, base
            )
            if short:
                return Applied(rule, sha256, "; ".join(short))
    wanted = {(audit.target, audit.references) for audit in asked}
    work, order = [], []
    for sheet in sheets:
        mine = [audit for audit in sheet.panel.audits if (audit.target, audit.references) in wanted]
        for start in range(0, len(mine), LOT):
            work.append((sheet, mine[start : start + LOT], rules[sheet.panel.kind]))
            order += mine[start : start + LOT]
    judged: dict[PlannedAudit, Judged] = {}
    for number, found in enumerate(compute.spread(judge_all, work, workers=settings.run.workers, backend="loky"), 1):
        judged |= {one.audit: one for one in found}
        tell(number, len(work), f"judging by {name}")
    return Applied(rule, sha256, None, tuple(judged[audit] for audit in asked))


def _policy_rates(one: Applied, rows: Sequence[AuditRow]) -> PolicyRates:
    if one.left_out is not None:
        return PolicyRates(policy=one.rule.name, sha256=one.sha256, left_out=one.left_out)
    return tables.policy_rates(one.rule, one.sha256, one.judged, rows)


def _power(
    settings: CalibrationConfig, sheets: Sequence[Sheet], first: Applied, rows: Sequence[AuditRow], tell: Progress
) -> Sequence[PowerPoint]:
    by_audit = {audit: sheet for sheet in sheets for audit in sheet.panel.audits}
    samples = [
        power.Sample(by_audit[one.audit], one.audit, row.truth, one.policy)
        for one, row in zip(first.judged, rows, strict=True)
        if row.truth != "ladder"
    ]
    forget = next(one for one in sheets[0].panel.plan.data if one.role == "forget")
    drawn = len(samples[0].audit.references) + len(samples[0].audit.more)
    wanted = power.sizes(settings.power, forget.units, forget.clusters, drawn)
    found = []
    chosen = power.sampled(samples, settings.power.audits)
    for point in power.points(chosen, wanted, settings.run.seed, settings.run.workers):
        found.append(point)
        tell(len(found), len(wanted), "smaller and larger audits")
    return found


def _leakages(sheets: Sequence[Sheet]) -> dict[str, dict[str, float]]:
    """Each attack's mean leakage over forget units, by model."""
    found: dict[str, dict[str, float]] = {}
    for sheet in sheets:
        names = {role: name for name, role in sheet.panel.roles.items()}
        for (attack, role), outcome in sheet.outcomes.items():
            if role in names and outcome.error is None:
                measured = read(sheet.folder, outcome.key)
                values = [one for one, kind in zip(measured.leakage, measured.sets, strict=True) if kind == "forget"]
                found.setdefault(names[role], {}).setdefault(attack, round(statistics.fmean(values), 6))
    return found


def _costs(sheets: Sequence[Sheet]) -> dict[str, tuple[float | None, float | None]]:
    """Each attack's seconds a model, and of its preparation in all panels."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for entry in sheets[0].panel.plan.attacks:
        every = [one for sheet in sheets for one in sheet.seconds.get(entry.name, (0.0, ()))[1] if one > 0]
        prepared = sum(sheet.seconds.get(entry.name, (0.0, ()))[0] for sheet in sheets)
        found[entry.name] = (round(statistics.fmean(every), 3) if every else None, round(prepared, 3))
    return found


def _member_row(member: PlannedMember, leakage: Mapping[str, float]) -> MemberRow:
    kept = {"name", "truth", "group", "strength", "seed", "copy_of", "copied", "digest"}
    return MemberRow(**member.model_dump(include=kept), leakage=dict(leakage))


def _limits(settings: CalibrationConfig, population: Population, used: Sequence[Applied]) -> list[str]:
    """What the rates do not say: one sentence each."""
    found = [
        "The rates are those of models of this family, size and task; audits of other models may err more or less often.",
        "Audits share references and the attacks' own draws (which facts are held out, which prompts are tried), so they are "
        "less independent than the exact intervals take them to be.",
        "Units are left out of measurements that were made with all of them: attacks that learn from the forget set, such as "
        "relearning, had the whole of it to learn from.",
    ]
    found += [f"No audit of this kind can pass under {one.rule.name}: {one.short}." for one in used if one.short is not None]
    if population.bed == BED:
        return [
            *found,
            "All that is known of these models is that the retrains never saw the forget set and the originals did: nothing "
            "here tells how often a model that an approximate method made is detected.",
        ]
    found.append("The models are small and were made here; nothing here was trained on real people's data.")
    if not any(one.copied for one in population.members):
        found.append("No copies were made, so robustness under 4-bit weights and relearning was not measured.")
    return found


def _facts(sheets: Sequence[Sheet], started: datetime, clock: float) -> RunFacts:
    every = {one.key: one for sheet in sheets for one in sheet.outcomes.values()}
    return RunFacts(
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - clock, 3),
        measured=sum(one.computed for one in every.values()),
        reused=sum(not one.computed and one.error is None for one in every.values()),
        host={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
    )
