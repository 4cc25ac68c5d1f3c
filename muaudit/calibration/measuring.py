"""Measures every attack once on every model that it is needed on, as a scan would, and keeps what was measured by content.

Audits that share an original and a kind of target share a panel: the plan of an audit that holds all models that they need.
Attacks are prepared once a panel, exactly as in a scan, and measured on each model once. What does not depend on the original
has the same key in every panel and is not measured again.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from muaudit import compute, measuring, plan, probing, registry, store
from muaudit.attack import Measurement
from muaudit.calibration.config import CalibrationConfig, audit_of
from muaudit.calibration.planning import PlannedAudit
from muaudit.calibration.population import Population
from muaudit.config import AuditConfig
from muaudit.measuring import Job, Outcome
from muaudit.model_config import WEIGHTLESS, ModelConfig
from muaudit.plan import Plan, PlannedAttack
from muaudit.preparing import Ready, Unready, prepare, prepare_apart, spare_of
from muaudit.probing import Reply
from muaudit.results import Frozen
from muaudit.store import Store
from muaudit.workbench import Workbench

Progress = Callable[[int, int, str], None]

PROCEDURE = (
    "it attacks a procedure and makes its own models, so its finding would be the same in every audit and says nothing of how "
    "often it errs on one model"
)
"""Why an attack with a lineup of its own is left out."""


NONE_SPARED = "it calibrates on a retrain of its own, and there are too few to spare one; train one more than the audits need"
"""Why an attack that calibrates is left out."""


class Cost(Frozen):
    """What one piece of work took, in seconds; kept, so that a resumed run knows it still."""

    seconds: float


@dataclass(frozen=True)
class Panel:
    """The models of all audits that share an original and a kind of target, as the plan of one audit.

    Attributes:
        original: The original's name.
        kind: The targets' kind.
        plan: A plan whose target and references are the models; only in name are they so.
        roles: Each model's role there, by the member's name.
        audits: The audits.
        spared: Whether the last reference is one that is in no audit.
    """

    original: str
    kind: str
    plan: Plan
    roles: Mapping[str, str]
    audits: tuple[PlannedAudit, ...]
    spared: bool


@dataclass(frozen=True)
class Sheet:
    """What came of a panel: everything that audits are formed of, and nothing that another process need not have.

    Attributes:
        panel: The panel.
        unready: Attacks that could not be prepared: why, and whether that is an error.
        outcomes: What came of each attack on each model, by attack and role.
        seconds: What each attack took: its preparation, and every model's measurement.
        replies: What each model answered when it was asked again, by role.
        folder: Where measurements are kept.
    """

    panel: Panel
    unready: Mapping[str, tuple[str, bool]]
    outcomes: Mapping[tuple[str, str], Outcome]
    seconds: Mapping[str, tuple[float, tuple[float, ...]]]
    replies: Mapping[str, tuple[Reply, Reply]]
    folder: Path


def panels(settings: CalibrationConfig, population: Population, audits: Sequence[PlannedAudit], base: Path) -> list[Panel]:
    """Groups the audits and plans each group's measurements.

    Args:
        settings: The calibration.
        population: The models.
        audits: The audits.
        base: The folder that paths start from.

    Returns:
        The panels.

    Raises:
        UsageError: A model, a task file or an attack's parameters cannot be used.
    """
    groups: dict[tuple[str, str], list[PlannedAudit]] = {}
    for audit in audits:
        groups.setdefault((audit.original, population.member(audit.target).model.kind), []).append(audit)
    return [_panel(settings, population, name, kind, group, base) for (name, kind), group in sorted(groups.items())]


def _panel(
    settings: CalibrationConfig, population: Population, name: str, kind: str, group: Sequence[PlannedAudit], base: Path
) -> Panel:
    targets = list(dict.fromkeys(audit.target for audit in group))
    needed = dict.fromkeys(reference for audit in group for reference in (*audit.references, *audit.more))
    names = [*targets, *(reference for reference in needed if reference not in targets)]
    models = [population.member(one).model for one in names]
    # The spare stands last, where a scan takes the reference from that an attack calibrates with.
    references = [*models[1:], *([] if population.spare is None else [population.spare])]
    roles = {one: "target" if place == 0 else f"reference {place}" for place, one in enumerate(names)}
    audit = config_of(settings, population, models[0], references, population.originals[name])
    return Panel(name, kind, plan.make(audit, base), roles, tuple(group), population.spare is not None)


def config_of(
    settings: CalibrationConfig,
    population: Population,
    target: ModelConfig,
    references: Sequence[ModelConfig],
    original: ModelConfig | None,
) -> AuditConfig:
    """The audit of one target, as audit.toml would have it.

    Args:
        settings: The calibration.
        population: The models.
        target: The target.
        references: Its references.
        original: Its original.

    Returns:
        The audit.
    """
    return audit_of(
        settings, task=population.task, target=target, references=tuple(references), original=original,
        recipe=population.recipe, procedure=population.procedure, shadows=population.shadows,
    )  # fmt: skip


def measure(panel: Panel, base: Path, progress: Progress) -> Sheet:
    """Prepares and measures every attack of a panel, or finds what was measured before.

    Args:
        panel: The panel.
        base: The folder that paths start from.
        progress: Told of every measurement.

    Returns:
        What came of it.

    Raises:
        ModelError: A model cannot be opened.
        EnvironmentFault: Nothing can be stored any more, or there is not enough memory.
    """
    frozen, run = panel.plan, panel.plan.config.run
    kept = Store(plan.store_folder(frozen.config, base))
    torch_used = any(model.kind not in WEIGHTLESS for _, model in frozen.config.models())
    apart = run.timeout is not None or run.memory_limit is not None
    bench = Workbench(frozen, base, progress)
    with compute.settled(run.threads, torch_used=torch_used):
        states = {entry.name: _prepared(panel, bench, entry, base, progress, apart=apart) for entry in frozen.attacks}
        jobs = [job for state, _ in states.values() if isinstance(state, Ready) for job in _jobs(panel, state)]
        # The attacks on one model follow each other, so that it is opened once.
        places = {role: place for place, role in enumerate(("original", *panel.roles.values()))}
        jobs.sort(key=lambda job: places[job.role])
        where = base if run.workers == 1 else base.resolve()
        work = ((frozen, where, job, apart) for job in jobs)
        spread = compute.spread(timed, work, workers=run.workers, backend=run.backend, address=run.address)
        outcomes: dict[tuple[str, str], Outcome] = {}
        for job, outcome in zip(jobs, spread, strict=True):
            outcomes[job.entry.name, job.role] = outcome
            progress(len(outcomes), len(jobs), f"{panel.original}: {job.entry.name}")
        replies = dict(_asked(panel, base, progress))
    spent = {
        name: (
            seconds,
            tuple(_cost(kept, one.key) for (attack, _), one in outcomes.items() if attack == name and not one.error),
        )
        for name, (_, seconds) in states.items()
    }
    unready = {
        name: (state.reason, state.fault is not None) for name, (state, _) in states.items() if isinstance(state, Unready)
    }
    return Sheet(panel, unready, outcomes, spent, replies, kept.folder)


def timed(frozen: Plan, base: Path, job: Job, apart: bool) -> Outcome:
    """Measures one attack on one model, unless it is stored already, and keeps how long it took; see `muaudit.measuring`."""
    if not apart and not measuring.stored(frozen, base, job):
        # What it takes to open a model is no attack's cost; whoever comes first would bear it.
        kept, numbers = plan.store_folder(frozen.config, base), frozen.config.task.kind == "regression"
        measuring.opened(job.config, base, frozen.config.run.device, kept, job.digests, numbers)
    start = time.perf_counter()
    outcome = measuring.measure(frozen, base, job, apart)
    if outcome.computed:
        _keep_cost(Store(plan.store_folder(frozen.config, base)), outcome.key, time.perf_counter() - start)
    return outcome


def _keep_cost(kept: Store, key: str, seconds: float) -> None:
    kept.put(store.key_of(what="cost", of=key), Cost(seconds=round(seconds, 4)))


def _cost(kept: Store, key: str) -> float:
    """What a measurement took; 0 where it was made by a scan that shares the store and counts no such thing."""
    found = kept.get(store.key_of(what="cost", of=key), Cost)
    return 0.0 if found is None else found.seconds


def _prepared(
    panel: Panel, bench: Workbench, entry: PlannedAttack, base: Path, progress: Progress, *, apart: bool
) -> tuple[Ready | Unready, float]:
    if not panel.spared and calibrates(panel, entry):
        return Unready(entry, NONE_SPARED, None), 0.0
    start = time.perf_counter()
    state = prepare_apart(bench.plan, base, entry, progress) if apart else prepare(bench, entry)
    if isinstance(state, Unready):
        return state, 0.0
    if state.computed:
        _keep_cost(Store(bench.store), state.key, time.perf_counter() - start)
    if state.lineup is not None:
        return Unready(entry, PROCEDURE, None), 0.0
    return state, _cost(Store(bench.store), state.key)


def _jobs(panel: Panel, state: Ready) -> Iterator[Job]:
    """The attack on every model of the panel that it fits, the original among them; the spare is in no audit."""
    models = dict(panel.plan.config.models())
    digest = state.prepared.content_digest()
    for role in (*panel.roles.values(), "original"):
        if role in state.fits and role in models:
            digests = tuple(measuring.digests_of(panel.plan, role))
            yield Job(state.entry, state.prepared, digest, role, models[role], digests)


def _asked(panel: Panel, base: Path, progress: Progress) -> Iterator[tuple[str, tuple[Reply, Reply]]]:
    """What every model answers to the questions that come back, by role; nothing where none is to come back."""
    frozen, models = panel.plan, dict(panel.plan.config.models())
    kept = Store(plan.store_folder(frozen.config, base))
    for place, role in enumerate(panel.roles.values(), 1):
        if not probing.asks(frozen, models[role]):
            continue
        found = []
        for stage in ("early", "late"):
            key = probing.key_of(frozen, role, stage)
            if kept.get(key, Reply) is None:
                probing.answered(frozen, base, role, stage, key)
            found.append(cast("Reply", kept.get(key, Reply)))
        progress(place, len(panel.roles), f"{panel.original}: questions that come back")
        yield role, (found[0], found[1])


def calibrates(panel: Panel, entry: PlannedAttack) -> bool:
    """Whether an attack is prepared with a reference of its own."""
    found = registry.find(entry.attack)
    return isinstance(found, registry.Registered) and spare_of(panel.plan, entry) is not None


@lru_cache(maxsize=4096)
def read(folder: Path, key: str) -> Measurement:
    """Reads a measurement, without what decides nothing: curves, maps, transcripts, pictures, further scores.

    Args:
        folder: The store.
        key: Where it is.

    Returns:
        The measurement.
    """
    whole = cast("Measurement", Store(folder).get(key, Measurement))
    bare: dict[str, object] = {"scores": {}, "facets": {}, "curves": {}, "heat_maps": {}, "transcripts": {}, "pictures": {}}
    return whole.model_copy(update=bare)
