"""Measures one attack on one model: opens it, attacks it, stores what came of it, or says why nothing did."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np

from muaudit import compute, isolation, plan, store, workbench
from muaudit import registry as attacks
from muaudit.attack import Attack, Measurement, Prepared
from muaudit.budgets import Allowance, OverBudget, Used
from muaudit.config import ExamplesTask, ImagesTask
from muaudit.errors import EnvironmentFault, MuauditError, NotApplicable, ServerFault, StorageFault
from muaudit.examples import LabelledTask
from muaudit.image_task import ImageTask
from muaudit.model_config import WEIGHTLESS, ModelConfig
from muaudit.models import Model
from muaudit.opening import open_model
from muaudit.plan import Plan, PlannedAttack
from muaudit.store import Store

MENDS = "lower the model's batch_size, choose a smaller dtype, use device_map, or raise run.memory_limit where the plan sets it"
"""What helps where memory runs out."""

MEMORY = f"out of memory; {MENDS}"
"""What is said of an attack that ran out of it."""

_LONGEST = 2000
"""Characters of an error that a finding shows."""


@dataclass(frozen=True)
class Job:
    """One attack on one model.

    Attributes:
        entry: The attack.
        prepared: Its prepared state.
        prepared_digest: Digest of that state, which every model's key shares.
        role: The model's role; the attack never learns it.
        config: The model.
        digests: Digests of its folder and of its base's, if it is an adapter.
    """

    entry: PlannedAttack
    prepared: Prepared
    prepared_digest: str
    role: str
    config: ModelConfig
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of one attack on one model: nothing but where it is stored, or why it is not.

    Attributes:
        name: The attack's name in the plan.
        role: The model's role.
        key: Where the measurement is stored.
        error: Why there is none.
        computed: Whether it was computed now.
        model_seconds: Seconds spent inside the model.
        skipped: Whether there is none because the attack is not for this model.
        record: SHA-256 of what is stored.
        fault: How an attack that failed ended.
        over_budget: Whether there is none because the attack did not fit into the budget; it is `skipped`, too.
        queries: What was asked of the model under a budget, where it is no endpoint.
        peak_memory: The most main memory that the process held that computed it, in bytes; 0 where nobody counts.
    """

    name: str
    role: str
    key: str
    error: str | None
    computed: bool
    model_seconds: float
    skipped: bool = False
    record: str | None = None
    fault: isolation.Fault | None = None
    over_budget: bool = False
    queries: int = 0
    peak_memory: int = 0


def lost_before(job: Job, outcomes: Iterable[Outcome]) -> str | None:
    """Which model an attack was lost on, if it was: a finding without that one is an error, whatever the others would show.

    Args:
        job: The attack, on a further model.
        outcomes: What is known so far.

    Returns:
        The role; None where the attack crashed, hung or ran out of memory nowhere.
    """
    same = (one for one in outcomes if one.name == job.entry.name)
    return next((one.role for one in same if one.over_budget or one.fault not in (None, "raised")), None)


def stored(frozen: Plan, base: Path, job: Job) -> bool:
    """Whether a measurement is there already."""
    return Store(plan.store_folder(frozen.config, base)).get(_key(frozen, base, job), Measurement) is not None


def measure(
    frozen: Plan, base: Path, job: Job, apart: bool = False, lost: str | None = None, allowance: Allowance | None = None
) -> Outcome:
    """Measures one attack on one model, unless it is stored already.

    Args:
        frozen: The plan.
        base: The folder that its paths start from.
        job: What to measure on which model.
        apart: Whether in a process of its own, which may crash, hang or run out of memory.
        lost: The model on which the attack did so before; then only what is stored is looked up.
        allowance: What it may take of the budget.

    Returns:
        Where the measurement is stored, or why there is none.

    Raises:
        ModelError: The model cannot be opened.
        EnvironmentFault: There is not enough memory to open the model, or nothing can be stored any more.
        ServerFault: The endpoint fails for good; every other measurement of it would too.
    """
    kept, key = Store(plan.store_folder(frozen.config, base)), _key(frozen, base, job)
    if kept.get(key, Measurement) is not None:
        return Outcome(job.entry.name, job.role, key, None, computed=False, model_seconds=0.0, record=kept.digest(key))
    if lost is not None:
        said = f"not tried, since the attack was lost on the {lost}"
        return Outcome(job.entry.name, job.role, key, said, computed=False, model_seconds=0.0, fault="untried")
    if not apart:
        return attacked(frozen, base, job, key, allowance)
    try:
        return isolation.call(attacked, limits(frozen), lambda *_: None, frozen, base, job, key, allowance)
    except isolation.Lost as gone:
        return Outcome(
            job.entry.name, job.role, key, f"the attack {gone}", computed=False, model_seconds=0.0, fault=gone.fault
        )  # fmt: skip


def limits(frozen: Plan) -> isolation.Limits:
    """What one attack on one model may take, by the plan."""
    return isolation.Limits(frozen.config.run.timeout, frozen.config.run.memory_limit)


def _original_of(frozen: Plan, entry: PlannedAttack) -> ModelConfig | None:
    return dict(frozen.config.models()).get("original") if attack_of(entry).reads_original else None


def _key(frozen: Plan, base: Path, job: Job) -> str:
    """A key over all that a measurement can depend on."""
    run, config, entry, task = frozen.config.run, job.config, job.entry, frozen.config.task
    original = _original_of(frozen, entry)
    return store.key_of(
        what="measurement", attack=entry.attack, version=entry.version, parameters=entry.parameters, model=job.digests,
        options={} if config.kind == "endpoint" else config.model_dump(mode="json", exclude={"path", "base"}),
        prepared=job.prepared_digest, task=frozen.task_digest if isinstance(task, ExamplesTask | ImagesTask) else None,
        drawn=workbench.targets(frozen, base)[0] if isinstance(task, ImagesTask) else None,
        code=[one.sha256 for one in frozen.code],
        seed=run.seed, device=run.device, threads=run.threads, tool=frozen.tool, versions=frozen.versions,
        original=None if original is None else [digests_of(frozen, "original"), original.model_dump(mode="json")],
    )  # fmt: skip


def attacked(frozen: Plan, base: Path, job: Job, key: str, allowance: Allowance | None = None) -> Outcome:
    """Attacks one model and stores what was measured; `measure` says what is raised.

    Args:
        frozen: The plan.
        base: The folder that its paths start from.
        job: What to measure on which model.
        key: Where to store it.
        allowance: What it may take of the budget.

    Returns:
        Where the measurement is stored, or why there is none.
    """
    run, config, entry, prepared, role = frozen.config.run, job.config, job.entry, job.prepared, job.role
    kept, task, original = Store(plan.store_folder(frozen.config, base)), frozen.config.task, _original_of(frozen, entry)
    model, used = _model(frozen, base, job, kept.folder), Used(allowance, config, kept.folder)
    isolation.begun()
    before, none = model.model_seconds, Outcome(entry.name, role, key, None, computed=False, model_seconds=0.0)
    try:
        rng = np.random.default_rng(compute.seed_of(run.seed, entry.attack, "measure"))
        with compute.settled(run.threads, torch_used=config.kind not in WEIGHTLESS), used.watching(model):
            prepared = prepared.with_folder(base)
            if isinstance(task, ExamplesTask | ImagesTask):
                prepared = prepared.with_task(task_of(frozen, base))
            if original is not None:
                where = (original, base, run.device, kept.folder, tuple(digests_of(frozen, "original")))
                prepared = prepared.with_original(lambda: _beside(*where))
            record = kept.put(key, attack_of(entry).measure(model, prepared, rng))
    except (ServerFault, StorageFault):
        raise
    except NotApplicable as skip:
        over = isinstance(skip, OverBudget)
        return replace(none, error=str(skip), skipped=True, over_budget=over, queries=used.local)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one attack's fault must not lose the others
        memory = isolation.out_of_memory(error)
        if memory:
            opened.cache_clear()  # to have room for the others
            _beside.cache_clear()
        said = MEMORY if memory else told(error).replace(f"{base}/", "")  # a report names paths as the plan does
        fault: isolation.Fault = "memory" if memory else "raised"
        return replace(none, error=said, fault=fault, queries=used.local)
    seconds, peak = model.model_seconds - before, compute.peak_memory() or 0
    return replace(none, computed=True, model_seconds=seconds, record=record, queries=used.local, peak_memory=peak)


def _model(frozen: Plan, base: Path, job: Job, kept: Path) -> Model:
    """Opens the model of a job. Without every model there is no audit, so a fault here ends it."""
    try:
        return opened(job.config, base, frozen.config.run.device, kept, job.digests, frozen.config.task.kind == "regression")
    except Exception as error:
        if not isolation.out_of_memory(error):
            raise
        raise EnvironmentFault(f"{job.role}: out of memory when it was opened; {MENDS}; what was measured is kept") from error


def digests_of(frozen: Plan, role: str | None) -> list[str]:
    """The digests of a model's folder and of its base's, if it is an adapter."""
    return [record.digest for record in frozen.models if role is not None and record.role in (role, f"{role} base")]


def path_of(config: ModelConfig) -> str:
    """Where a model of a lineup lies; no procedure makes an endpoint."""
    assert config.kind != "endpoint"  # noqa: S101 - said above
    return config.path


def attack_of(entry: PlannedAttack) -> Attack:
    """The attack of a plan's entry, with its parameters.

    Raises:
        MuauditError: It is registered but does not load.
    """
    found = attacks.find(entry.attack)
    if entry.broken or isinstance(found, attacks.Broken):
        raise MuauditError(entry.broken or cast("attacks.Broken", found).reason)
    return found.attack.model_validate(entry.parameters)


def told(error: BaseException) -> str:
    """One line: our own errors speak for themselves, foreign ones need their type. It may hold what a model said."""
    text = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
    return text if isinstance(error, MuauditError) else f"{type(error).__name__}: {text}"


@lru_cache(maxsize=1)
def opened(config: ModelConfig, base: Path, device: str, kept: Path, digests: tuple[str, ...], numbers: bool) -> Model:
    """The last opened model is kept, since the attacks on one model follow each other; never two, for memory."""
    return open_model(config, base, device, kept, numbers=numbers)


def task_of(frozen: Plan, base: Path) -> LabelledTask | ImageTask:
    """The task that goes to `measure` as it is; the last one is kept, read once a process."""
    where = frozen.task_digest, base, workbench.targets(frozen, base)[0]
    if where not in _TASKS:
        _TASKS.clear()
        _TASKS[where] = cast("LabelledTask | ImageTask", workbench.opened_task(frozen, base))
    return _TASKS[where]


_TASKS: dict[tuple[str, Path, str], LabelledTask | ImageTask] = {}


@lru_cache(maxsize=1)
def _beside(config: ModelConfig, base: Path, device: str, kept: Path, digests: tuple[str, ...]) -> Model:
    """The original, kept beside the model under attack while attacks read the one in the other."""
    return open_model(config, base, device, kept)
