"""Runs an audit: plan, prepare, measure, compare, report."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from muaudit import compute, plan, series, store, workbench
from muaudit import registry as attacks
from muaudit.attack import Attack, Lineup, Measurement, Prepared
from muaudit.compare import compare, conclude, unmeasured
from muaudit.config import AuditConfig, ExamplesTask, ImagesTask
from muaudit.errors import EnvironmentFault, MuauditError, NotApplicable, ServerFault
from muaudit.examples import LabelledTask
from muaudit.image_task import ImageTask
from muaudit.manifest import content_digest, manifest, manifest_digest
from muaudit.model_config import WEIGHTLESS, ModelConfig
from muaudit.models import Model
from muaudit.models.meter import Books
from muaudit.opening import open_model
from muaudit.plan import Plan, PlannedAttack
from muaudit.results import AttackCard, AuditReport, DataRecord, Finding, ModelRecord, RunRecord, Verdict
from muaudit.store import Store
from muaudit.workbench import Workbench

Recorded = TypeVar("Recorded", ModelRecord, DataRecord)

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what was just done."""

LIMITS = (
    "A pass means that none of these attacks could tell the target from models that never saw the forget set, within the "
    "stated margins. It is not a proof of erasure: another attack, a longer one, or another form of the facts may find more.",
    "The references are taken to be honest retrains without the forget set; who made them is a matter of trust.",
)


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
    """What came of one attack on one model: nothing but where it is stored, or why it is not."""

    name: str
    role: str
    key: str
    error: str | None
    computed: bool
    model_seconds: float
    skipped: bool = False


def audit(source: str | Path | AuditConfig | Plan, *, progress: Progress | None = None) -> AuditReport:
    """Runs a whole audit, or what is left of an interrupted one, and writes plan.json and report.json.

    Args:
        source: The path of audit.toml or plan.json, a configuration, or a plan.
        progress: Told of every step.

    Returns:
        The report.

    Raises:
        UsageError: The configuration, a task file or a model cannot be used.
        EnvironmentFault: Something that the audit needs is not installed or not here.
    """
    frozen, base = plan.resolve(source)
    return run(frozen, base, progress=progress)


def run(frozen: Plan, base: Path, *, progress: Progress | None = None) -> AuditReport:
    """Runs exactly what a plan says.

    Args:
        frozen: The plan, as `muaudit.plan.resolve` gives it.
        base: The folder that its paths start from.
        progress: Told of every step.

    Returns:
        The report.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    plan.write(frozen, base)
    steps = {**{step.name: step.plan for step in frozen.steps}, series.LAST: frozen}
    works = {name: _Run(planned, base, progress or (lambda done, total, what: None)) for name, planned in steps.items()}
    models = _models(steps)
    books = Books(models.items(), plan.store_folder(frozen.config, base))
    torch_used = any(model.kind not in WEIGHTLESS for model in models.values())
    with compute.settled(frozen.config.run.threads, torch_used=torch_used):
        found = {name: work.findings() for name, work in works.items()}
    names = [step.name for step in frozen.steps]
    findings = [*found[series.LAST], *(one for name in names for one in series.labelled(found[name], name))]
    rule = series.policy_for(frozen.policy, names)
    concluded = conclude(findings, rule, references=min(len(step.config.references) for step in steps.values()))
    report = AuditReport(
        tool=frozen.tool,
        verdict=concluded.verdict,
        reason=concluded.reason,
        plan_sha256=frozen.content_digest(),
        plan=frozen.model_dump(mode="json"),
        policy=frozen.policy.model_dump(mode="json"),
        attacks=tuple(_card(entry) for entry in frozen.attacks),
        findings=concluded.findings,
        models=(*frozen.models, *(_of_step(one, step.name) for step in frozen.steps for one in step.plan.models)),
        data=(*frozen.data, *(_of_step(one, step.name) for step in frozen.steps for one in step.plan.data)),
        limits=(*LIMITS, *_limits(frozen)),
        run=_record(frozen, list(works.values()), started, time.perf_counter() - clock, books),
        series=series.curves(found),
        code=frozen.code,
    )
    store.write_atomically(plan.out_folder(frozen.config, base) / "report.json", report.canonical())
    return report


def _of_step(record: Recorded, step: str) -> Recorded:
    """A model's or file's record under the name of its step in the series."""
    return record.model_copy(update={"role": f"{step}: {record.role}"})


def _models(steps: dict[str, Plan]) -> dict[str, ModelConfig]:
    """Every model of every step by its role, as the report's records name it."""
    return {
        role if step == series.LAST else f"{step}: {role}": model
        for step, planned in reversed(steps.items())
        for role, model in planned.config.models()
    }


def _record(frozen: Plan, works: "Sequence[_Run]", started: datetime, seconds: float, books: Books) -> RunRecord:
    """What may differ between two runs of one plan, over all steps of a series."""
    reused = sum(work.reused for work in works)
    return RunRecord(
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed=reused > 0,
        computed=sum(work.computed for work in works),
        reused=reused,
        model_seconds=round(sum(work.model_seconds for work in works), 3),
        total_seconds=round(seconds, 3),
        host={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
        versions=frozen.versions,
        ledgers=books.closed(),
        peak_memory=compute.peak_memory(),
    )


class _Run:
    """One audit on its way from plan to findings."""

    def __init__(self, frozen: Plan, base: Path, progress: Progress) -> None:
        self.plan, self.base, self.progress = frozen, base, progress
        self.store = Store(plan.store_folder(frozen.config, base))
        self.store.sweep()
        self.models = dict(frozen.config.models())
        self.bench = Workbench(frozen, base, progress)
        self.computed = self.reused = 0
        self.model_seconds = 0.0

    def findings(self) -> list[Finding]:
        """Prepares, measures and compares every planned attack; what cannot be done becomes a row that says so."""
        _ = self.bench.capabilities  # a folder that holds no model ends the audit, before any attack is at fault
        ready: dict[str, tuple[PlannedAttack, Prepared, Lineup | None]] = {}
        rows: dict[str, list[Finding]] = {}
        for entry in self.plan.attacks:
            try:
                prepared = self._prepare(entry)
                ready[entry.name] = entry, prepared, self._lineup(entry, prepared)
            except ServerFault:
                raise
            except NotApplicable as skip:
                rows[entry.name] = [unmeasured(entry.name, Verdict.SKIPPED, str(skip))]
            except Exception as error:  # noqa: BLE001 - one attack's fault must not lose the others
                rows[entry.name] = [unmeasured(entry.name, Verdict.ERROR, _told(error))]
        outcomes = self._measure([job for known in ready.values() for job in self._jobs(*known)])
        for name, (entry, _, lineup) in ready.items():
            found = {outcome.role: outcome for outcome in outcomes if outcome.name == name}
            rows[name] = self._compare(entry, found, lineup)
        return [finding for entry in self.plan.attacks for finding in rows[entry.name]]

    def _prepare(self, entry: PlannedAttack) -> Prepared:
        attack, spare = _attack(entry), self._spare(entry)
        if not _has_lineup(attack):
            self._refuse_unfit(attack, self.models)
        key = self._key(
            entry, what="prepared", calibration=_digests(self.plan, spare),
            files=[content_digest(self.base / path) for path in attack.files()],
        )  # fmt: skip
        if (stored := self.store.get(key, Prepared)) is not None:
            return stored
        self.store.put(key, attack.prepare(self.bench.of(entry.name, "prepare", spare)))
        return cast("Prepared", self.store.get(key, Prepared))  # as every later run will read it

    def _lineup(self, entry: PlannedAttack, prepared: Prepared) -> Lineup | None:
        """The models that an attack on a procedure is measured on; None for the audit's own."""
        attack = _attack(entry)
        if not _has_lineup(attack):
            return None
        key = self._key(entry, what="lineup", prepared=prepared.content_digest())
        stored = self.store.get(key, Lineup)
        if stored is None or not all((self.base / _path(model)).exists() for _, model in stored.models()):
            made = attack.lineup(self.bench.of(entry.name, "lineup", None), prepared)
            if made is None:
                self._refuse_unfit(attack, self.models)
                return None
            self.store.put(key, made)
            stored = cast("Lineup", self.store.get(key, Lineup))
        self._refuse_unfit(attack, dict(stored.models()))
        return stored

    def _key(self, entry: PlannedAttack, **parts: object) -> str:
        """A key over all that what is prepared for an attack can depend on."""
        trained = self.plan.config.model_dump(mode="json", include={"recipe", "procedure", "shadows"})
        return store.key_of(
            attack=entry.model_dump(mode="json"), task=self.plan.task_digest, seed=self.plan.config.run.seed,
            original=next((record.digest for record in self.plan.models if record.role == "original"), None),
            capabilities=sorted(self.bench.capabilities), tool=self.plan.tool, versions=self.plan.versions,
            trained=trained, code=[one.sha256 for one in self.plan.code], shadows=self.plan.shadows, **parts,
        )  # fmt: skip

    def _refuse_unfit(self, attack: Attack, models: Mapping[str, ModelConfig]) -> None:
        for role, model in models.items():
            if role != "original" and (missing := attack.missing(self.bench.family(model))):
                raise NotApplicable(
                    f"the {role} is of kind {model.kind!r}, which lacks what this attack needs: {', '.join(missing)}"
                )

    def _jobs(self, entry: PlannedAttack, prepared: Prepared, lineup: Lineup | None) -> Iterator[Job]:
        digest, attack = prepared.content_digest(), _attack(entry)
        for role, model in self.models.items() if lineup is None else lineup.models():
            if attack.missing(self.bench.family(model)) or (lineup is None and role == self._spare(entry)):
                continue
            digests = _digests(self.plan, role) if lineup is None else [manifest_digest(manifest(self.base / _path(model)))]
            yield Job(entry, prepared, digest, role, model, tuple(digests))

    def _measure(self, jobs: list[Job]) -> list[Outcome]:
        # The attacks on one model follow each other, so that it is opened once.
        roles = [*self.models]
        jobs = sorted(jobs, key=lambda job: roles.index(job.role) if job.config == self.models.get(job.role) else len(roles))
        run = self.plan.config.run
        outcomes = []
        # Workers of a cluster were started in a folder of their own.
        base = self.base if run.workers == 1 else self.base.resolve()
        work = [(self.plan, base, job) for job in jobs]
        for outcome in compute.spread(measure, work, workers=run.workers, backend=run.backend, address=run.address):
            outcomes.append(outcome)
            self.computed += outcome.computed
            self.reused += not outcome.computed and outcome.error is None
            self.model_seconds += outcome.model_seconds
            self.progress(len(outcomes), len(jobs), f"{outcome.name}: {outcome.role}")
        return outcomes

    def _spare(self, entry: PlannedAttack) -> str | None:
        """The reference that is set aside for an attack that calibrates: the last of two or more."""
        references = [role for role in self.models if role.startswith("reference")]
        return references[-1] if _attack(entry).calibrates and len(references) > 1 else None

    def _compare(self, entry: PlannedAttack, outcomes: dict[str, Outcome], lineup: Lineup | None) -> list[Finding]:
        if skipped := [f"the {one.role}: {one.error}" for one in outcomes.values() if one.skipped and one.role != "original"]:
            return [unmeasured(entry.name, Verdict.SKIPPED, skipped[0])]
        # An original that this attack is not for leaves the finding without its positive control.
        unfit = [one for one in outcomes.values() if one.skipped]
        if failed := [f"{one.role}: {one.error}" for one in outcomes.values() if one.error and one not in unfit]:
            return [unmeasured(entry.name, Verdict.ERROR, failed[0])]
        outcomes = {role: one for role, one in outcomes.items() if one not in unfit}
        measured = {role: cast("Measurement", self.store.get(outcome.key, Measurement)) for role, outcome in outcomes.items()}
        try:
            findings = compare(
                _card(entry),
                measured["target"],
                [measurement for role, measurement in measured.items() if role.startswith("reference")],
                measured.get("original"),
                self.plan.policy,
                seed=compute.seed_of(self.plan.config.run.seed, entry.name, "compare"),
            )
            notes = (*(f"the {one.role} was not measured: {one.error}" for one in unfit), *(lineup.notes if lineup else ()))
            if lineup is None and (spare := self._spare(entry)) is not None:
                notes = (*notes, f"{spare} calibrates this attack and is not compared")
            return [finding.model_copy(update={"notes": (*finding.notes, *notes)}) for finding in findings]
        except Exception as error:  # noqa: BLE001 - one attack's fault must not lose the others
            return [unmeasured(entry.name, Verdict.ERROR, _told(error))]


def measure(frozen: Plan, base: Path, job: Job) -> Outcome:
    """Measures one attack on one model, unless it is stored already.

    Args:
        frozen: The plan.
        base: The folder that its paths start from.
        job: What to measure on which model.

    Returns:
        Where the measurement is stored, or why there is none.

    Raises:
        ModelError: The model cannot be opened.
        EnvironmentFault: There is not enough memory.
        ServerFault: The endpoint fails for good; every other measurement of it would too.
    """
    run, config, entry, prepared, role = frozen.config.run, job.config, job.entry, job.prepared, job.role
    kept = Store(plan.store_folder(frozen.config, base))
    original = dict(frozen.config.models()).get("original") if _attack(entry).reads_original else None
    task = frozen.config.task
    key = store.key_of(
        what="measurement", attack=entry.attack, version=entry.version, parameters=entry.parameters, model=job.digests,
        options={} if config.kind == "endpoint" else config.model_dump(mode="json", exclude={"path", "base"}),
        prepared=job.prepared_digest, task=frozen.task_digest if isinstance(task, ExamplesTask | ImagesTask) else None,
        drawn=workbench.targets(frozen, base)[0] if isinstance(task, ImagesTask) else None,
        code=[one.sha256 for one in frozen.code],
        seed=run.seed, device=run.device, threads=run.threads, tool=frozen.tool, versions=frozen.versions,
        original=None if original is None else [_digests(frozen, "original"), original.model_dump(mode="json")],
    )  # fmt: skip
    if kept.get(key, Measurement) is not None:
        return Outcome(entry.name, role, key, None, computed=False, model_seconds=0.0)
    # Without every model there is no audit, so a fault here ends it.
    model = _opened(config, base, run.device, kept.folder, job.digests, frozen.config.task.kind == "regression")
    before = model.model_seconds
    try:
        rng = np.random.default_rng(compute.seed_of(run.seed, entry.attack, "measure"))
        with compute.settled(run.threads, torch_used=config.kind not in WEIGHTLESS):
            prepared = prepared.with_folder(base)
            if isinstance(task, ExamplesTask | ImagesTask):
                prepared = prepared.with_task(_task(frozen, base))
            if original is not None:
                where = (original, base, run.device, kept.folder, tuple(_digests(frozen, "original")))
                prepared = prepared.with_original(lambda: _beside(*where))
            kept.put(key, _attack(entry).measure(model, prepared, rng))
    except ServerFault:
        raise
    except NotApplicable as skip:
        return Outcome(entry.name, role, key, str(skip), computed=False, model_seconds=0.0, skipped=True)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch has one of its own
            raise EnvironmentFault(
                f"{entry.name} on the {role}: out of memory; lower the model's batch_size, choose a smaller dtype, or use "
                "device_map; what was measured is kept"
            ) from error
        told = _told(error).replace(f"{base}/", "")  # a report names paths as the plan does
        return Outcome(entry.name, role, key, told, computed=False, model_seconds=0.0)
    return Outcome(entry.name, role, key, None, computed=True, model_seconds=model.model_seconds - before)


def _digests(frozen: Plan, role: str | None) -> list[str]:
    """The digests of a model's folder and of its base's, if it is an adapter."""
    return [record.digest for record in frozen.models if role is not None and record.role in (role, f"{role} base")]


def _path(config: ModelConfig) -> str:
    assert config.kind != "endpoint"  # noqa: S101 - no procedure makes an endpoint
    return config.path


def _has_lineup(attack: Attack) -> bool:
    return type(attack).lineup is not Attack.lineup


@lru_cache(maxsize=1)
def _opened(config: ModelConfig, base: Path, device: str, kept: Path, digests: tuple[str, ...], numbers: bool) -> Model:
    """The last opened model is kept, since the attacks on one model follow each other; never two, for memory."""
    return open_model(config, base, device, kept, numbers=numbers)


def _task(frozen: Plan, base: Path) -> LabelledTask | ImageTask:
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


def _attack(entry: PlannedAttack) -> Attack:
    found = attacks.find(entry.attack)
    if entry.broken or isinstance(found, attacks.Broken):
        raise MuauditError(entry.broken or cast("attacks.Broken", found).reason)
    return found.attack.model_validate(entry.parameters)


def _card(entry: PlannedAttack) -> AttackCard:
    found = attacks.find(entry.attack)
    if isinstance(found, attacks.Broken):
        return AttackCard(
            name=entry.name, attack=entry.attack, version="", summary="does not load", source="", access="text", sided="one",
            cost="", package=entry.package, parameters=entry.parameters,
        )  # fmt: skip
    return found.attack.model_validate(entry.parameters).card(entry.name, found.package)


def _told(error: Exception) -> str:
    """One line: our own errors speak for themselves, foreign ones need their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MuauditError) else f"{type(error).__name__}: {text}"


def _limits(frozen: Plan) -> Iterator[str]:
    """What this audit's own make-up leaves open."""
    if frozen.config.target.kind != "endpoint":
        yield (
            "The report is about the audited files, identified by their digests, and about nothing that the vendor runs "
            "elsewhere."
        )
    if frozen.config.target.kind == "guarded":
        yield (
            "The target stands behind a guard: attacks that send text met the guard, and cannot tell what it hides from them; "
            "attacks on weights met the network inside."
        )
    if len(frozen.config.references) == 1:
        yield "With one reference, the noise between two trainings was not estimated: more references make the verdict firmer."
    if frozen.config.original is None:
        yield "No original model was given: whether the attacks can see the knowledge where it certainly is was not checked."
    if frozen.code:
        names = ", ".join(f"{one.role}: {one.function}" for one in frozen.code)
        yield f"Code from outside muaudit was run ({names}); what it did beyond its task was not watched."
    if any(model.kind == "recorded" for _, model in frozen.config.models()):
        yield "The models were not there: recorded outputs were audited, and whoever recorded them is trusted."
    for role, model in frozen.config.models():
        if model.kind == "endpoint":
            yield (
                f"The {role} is an endpoint: its weights are not identified. The report is about what {model.shown} answered "
                "while it was asked; nothing shows what answers there at another time, or to somebody else."
            )
