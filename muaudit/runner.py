"""Runs an audit: plan, prepare, measure, compare, report."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, cast

from muaudit import compute, isolation, plan, series, store
from muaudit import registry as attacks
from muaudit.attack import Lineup, Measurement
from muaudit.budgets import Account, Allowance
from muaudit.caveats import caveats
from muaudit.compare import compare, conclude, unmeasured
from muaudit.config import AuditConfig
from muaudit.errors import StorageFault
from muaudit.journal import NAME, Journal, findings_digest
from muaudit.manifest import manifest, manifest_digest
from muaudit.measuring import Job, Outcome, digests_of, lost_before, measure, path_of, stored, told
from muaudit.model_config import WEIGHTLESS, ModelConfig
from muaudit.models.meter import Books
from muaudit.plan import Plan, PlannedAttack
from muaudit.policy import Policy
from muaudit.preparing import Ready, Unready, look_apart, prepare, prepare_apart, spare_of
from muaudit.probing import Probe
from muaudit.results import AttackCard, AuditReport, Conduct, DataRecord, Finding, ModelRecord, RunRecord, Verdict
from muaudit.store import Store
from muaudit.workbench import Progress as Progress
from muaudit.workbench import Workbench

Recorded = TypeVar("Recorded", ModelRecord, DataRecord)

DERIVED = ("report.html", "audit.intoto.json", "target.manifest.json")
"""What is made of report.json and lies beside it."""

LIMITS = (
    "A pass means that none of these attacks could tell the target from models that never saw the forget set, within the "
    "stated margins. It is not a proof of erasure: another attack, a longer one, or another form of the facts may find more.",
    "The references are taken to be honest retrains without the forget set; who made them is a matter of trust.",
)


def audit(source: str | Path | AuditConfig | Plan, *, progress: Progress | None = None, apart: bool = False) -> AuditReport:
    """Runs a whole audit, or what is left of an interrupted one, and writes plan.json and report.json.

    Args:
        source: The path of audit.toml or plan.json, a configuration, or a plan.
        progress: Told of every step.
        apart: Whether attacks run in a process of their own; see `run`.

    Returns:
        The report.

    Raises:
        UsageError: The configuration, a task file or a model cannot be used.
        EnvironmentFault: Something that the audit needs is not installed or not here.
    """
    frozen, base = plan.resolve(source)
    return run(frozen, base, progress=progress, apart=apart)


def run(frozen: Plan, base: Path, *, progress: Progress | None = None, apart: bool = False) -> AuditReport:
    """Runs exactly what a plan says.

    Args:
        frozen: The plan, as `muaudit.plan.resolve` gives it.
        base: The folder that its paths start from.
        progress: Told of every step.
        apart: Whether attacks run in a process of their own, as `muaudit scan` has it: one that crashes is an error in the
            report and ends nothing else. A plan with a time or memory limit has it too. Attacks and models that exist in
            this process alone, such as those of a notebook, need it to be False.

    Returns:
        The report.

    Raises:
        EnvironmentFault: Another scan is at work in the output folder, or nothing can be stored any more.
        VerificationError: The journal in the output folder was changed.
    """
    out = plan.out_folder(frozen.config, base)
    with store.claimed(out):
        journal = Journal(out / NAME)
        try:
            apart = apart or frozen.config.run.timeout is not None or frozen.config.run.memory_limit is not None
            return _audited(frozen, base, progress or (lambda done, total, what: None), journal, apart)
        except BaseException as error:
            with suppress(StorageFault):
                journal.add("stopped", error=type(error).__name__)
            raise
        finally:
            isolation.close()


def _audited(frozen: Plan, base: Path, progress: Progress, journal: Journal, apart: bool) -> AuditReport:
    started, clock, digest = datetime.now(UTC), time.perf_counter(), frozen.content_digest()
    journal.add("resumed" if journal.resumed else "started", tool=frozen.tool, plan=digest, process=os.getpid(), apart=apart)
    plan.write(frozen, base)
    steps = {**{step.name: step.plan for step in frozen.steps}, series.LAST: frozen}
    account = Account(frozen, base)
    works = {name: _Run(planned, base, progress, journal, name, apart, account) for name, planned in steps.items()}
    models = _models(steps)
    books = Books(models.items(), plan.store_folder(frozen.config, base))
    torch_used = not apart and any(model.kind not in WEIGHTLESS for model in models.values())
    with compute.settled(frozen.config.run.threads, torch_used=torch_used):
        found = {name: work.findings() for name, work in works.items()}
    names = [step.name for step in frozen.steps]
    findings = [*found[series.LAST], *(one for name in names for one in series.labelled(found[name], name))]
    rule = series.policy_for(frozen.policy, names)
    conduct = _conduct(works)
    fewest, inside = min(len(step.config.references) for step in steps.values()), inside_of(frozen)
    concluded = conclude(findings, rule, references=fewest, conduct=conduct, inside=inside)
    verdict, bound = str(concluded.verdict), findings_digest(concluded.findings)
    journal.add("concluded", tool=frozen.tool, plan=digest, verdict=verdict, findings=bound)
    report = AuditReport(
        tool=frozen.tool,
        verdict=concluded.verdict,
        reason=concluded.reason,
        plan_sha256=digest,
        plan=frozen.model_dump(mode="json"),
        policy=frozen.policy.model_dump(mode="json"),
        attacks=tuple(card_of(entry) for entry in frozen.attacks),
        findings=concluded.findings,
        models=(*frozen.models, *(_of_step(one, step.name) for step in frozen.steps for one in step.plan.models)),
        data=(*frozen.data, *(_of_step(one, step.name) for step in frozen.steps for one in step.plan.data)),
        limits=(*LIMITS, *limits(frozen), *caveats(frozen, conduct, findings)),
        run=_record(frozen, list(works.values()), started, time.perf_counter() - clock, books, account),
        series=series.curves(found),
        code=frozen.code,
        policy_sha256=frozen.policy_sha256,
        conduct=conduct,
        journal=tuple(journal.entries),
        calibration=frozen.calibration,
    )
    _write(report, plan.out_folder(frozen.config, base), journal)
    return report


def _write(report: AuditReport, out: Path, journal: Journal) -> None:
    """Writes report.json; what was made of an older one goes first, so that nothing beside a report ever tells of another."""
    for name in DERIVED:
        (out / name).unlink(missing_ok=True)
    data = report.canonical()
    store.write_atomically(out / "report.json", data)
    journal.add("written", report=hashlib.sha256(data).hexdigest())


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


def _record(
    frozen: Plan, works: "Sequence[_Run]", started: datetime, seconds: float, books: Books, account: Account
) -> RunRecord:
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
        spent=account.spent() if account.limited else None,
        peak_memory=max([compute.peak_memory() or 0, *(work.peak_memory for work in works)]) or None,
    )


def _conduct(works: "Mapping[str, _Run]") -> tuple[Conduct, ...]:
    """How the models behaved, of every step of a series."""
    seen = {name: work.probe.seen() for name, work in reversed([*works.items()])}
    return tuple(
        one if name == series.LAST else one.model_copy(update={"model": f"{name}: {one.model}"})
        for name, every in seen.items()
        for one in every
    )


def inside_of(frozen: Plan) -> set[str]:
    """Names of the attacks that see weights or train, in every step of a series."""
    names = {entry.name for entry in frozen.attacks if card_of(entry).access in ("weights", "training")}
    return names | {f"{name} @ {step.name}" for name in names for step in frozen.steps}


class _Run:
    """One audit on its way from plan to findings."""

    def __init__(
        self, frozen: Plan, base: Path, progress: Progress, journal: Journal, step: str, apart: bool, account: Account
    ) -> None:
        self.account = account
        self.plan, self.base, self.progress, self.journal, self.step, self.apart = frozen, base, progress, journal, step, apart
        self.store = Store(plan.store_folder(frozen.config, base))
        self.store.sweep()
        self.models = dict(frozen.config.models())
        self.bench = Workbench(frozen, base, progress)
        self.probe = Probe(frozen, base, apart=apart, note=self._note, account=account)
        self.computed = self.reused = 0
        self.model_seconds, self.peak_memory = 0.0, 0

    def findings(self) -> list[Finding]:
        """Prepares, measures and compares every planned attack; what cannot be done becomes a row that says so."""
        self._look()
        self.probe.early()
        rows: dict[str, list[Finding]] = {}
        for batch in self.account.batches(self.plan.attacks):
            rows |= self._rows(batch)
        self.probe.late()
        return [finding for entry in self.plan.attacks for finding in rows[entry.name]]

    def _rows(self, batch: Sequence[PlannedAttack]) -> dict[str, list[Finding]]:
        """The findings of some attacks; under a budget, of one."""
        ready: dict[str, Ready] = {}
        rows: dict[str, list[Finding]] = {}
        left = self.account.left()
        for entry in batch:
            if (over := self.account.refusal(self._named(entry.name))) is not None:
                rows[entry.name] = [unmeasured(entry.name, Verdict.SKIPPED, over).model_copy(update={"over_budget": True})]
                self._unable(entry.name, None, over)
                continue
            state = self._prepare(entry)
            if isinstance(state, Ready):
                ready[entry.name] = state
            else:
                verdict = Verdict.SKIPPED if state.fault is None else Verdict.ERROR
                rows[entry.name] = [unmeasured(entry.name, verdict, state.reason)]
        outcomes = self._measure([job for state in ready.values() for job in self._jobs(state)])
        for name, state in ready.items():
            found = {outcome.role: outcome for outcome in outcomes if outcome.name == name}
            rows[name] = self._compare(state.entry, found, state.lineup)
            self._note("compared", attack=name, verdicts=[str(one.verdict) for one in rows[name]])
            if rows[name][0].over_budget:
                self.account.refuse(self._named(name), rows[name][0].reason, left)
            else:
                self.account.finish(self._named(name))
        self.account.took(0)
        return rows

    def _named(self, attack: str) -> str:
        """An attack's name in the whole audit."""
        return attack if self.step == series.LAST else f"{attack} @ {self.step}"

    def _look(self) -> None:
        """A folder that holds no model ends the audit, before any attack is at fault."""
        if self.apart:
            look_apart(self.plan, self.base, self.progress)
        else:
            _ = self.bench.capabilities

    def _prepare(self, entry: PlannedAttack) -> Ready | Unready:
        apart = self.apart
        state = prepare_apart(self.plan, self.base, entry, self.progress) if apart else prepare(self.bench, entry)
        if isinstance(state, Ready):
            digest = state.prepared.content_digest()
            self._note("prepared", attack=entry.name, key=state.key, prepared=digest, reused=not state.computed)
        else:
            self._unable(entry.name, state.fault, state.reason)
        return state

    def _note(self, event: str, **details: object) -> None:
        """Writes into the journal what was done in this step of the series."""
        self.journal.add(event, **details, **({} if self.step == series.LAST else {"step": self.step}))

    def _unable(self, attack: str, fault: str | None, reason: str, **details: object) -> None:
        # The reason may hold texts of the forget set: the finding has it, the journal what identifies it.
        reason = hashlib.sha256(reason.encode()).hexdigest()
        if fault is None:
            self._note("skipped", attack=attack, **details, reason_sha256=reason)
        else:
            self._note("failed", attack=attack, **details, fault=fault, reason_sha256=reason)

    def _jobs(self, state: Ready) -> Iterator[Job]:
        digest, lineup = state.prepared.content_digest(), state.lineup
        for role, model in self.models.items() if lineup is None else lineup.models():
            if role not in state.fits:
                continue
            digests = digests_of(self.plan, role) if lineup is None else [manifest_digest(manifest(self.base / path_of(model)))]
            yield Job(state.entry, state.prepared, digest, role, model, tuple(digests))

    def _measure(self, jobs: list[Job]) -> list[Outcome]:
        # The attacks on one model follow each other, so that it is opened once.
        roles = [*self.models]
        jobs = sorted(jobs, key=lambda job: roles.index(job.role) if job.config == self.models.get(job.role) else len(roles))
        run = self.plan.config.run
        outcomes: list[Outcome] = []
        # Workers of a cluster were started in a folder of their own.
        base = self.base if run.workers == 1 else self.base.resolve()
        shares = self._shares(jobs)
        work = (
            (self.plan, base, job, self.apart, lost_before(job, outcomes), self.account.timed(share))
            for job, share in zip(jobs, shares, strict=True)
        )
        spread = compute.spread(measure, work, workers=run.workers, backend=run.backend, address=run.address)
        for job, outcome in zip(jobs, spread, strict=True):
            outcomes.append(outcome)
            self._measured(job, outcome)
            self.account.took(outcome.queries)
            self.computed += outcome.computed
            self.reused += not outcome.computed and outcome.error is None
            self.model_seconds += outcome.model_seconds
            self.peak_memory = max(self.peak_memory, outcome.peak_memory)
            self.progress(len(outcomes), len(jobs), f"{outcome.name}: {outcome.role}")
        return outcomes

    def _shares(self, jobs: Sequence[Job]) -> list[Allowance | None]:
        """What each job may take of the budget; what is stored already takes nothing."""
        if not self.account.limited:
            return [None] * len(jobs)
        new = [job for job in jobs if not stored(self.plan, self.base, job)]
        shares = dict(zip(map(id, new), self.account.share([job.config for job in new]), strict=True))
        return [shares.get(id(job)) for job in jobs]

    def _measured(self, job: Job, outcome: Outcome) -> None:
        where = {"role": outcome.role, "model": list(job.digests)}
        if outcome.error is not None:
            self._unable(outcome.name, None if outcome.skipped else outcome.fault or "raised", outcome.error, **where)
        else:
            reused = not outcome.computed
            self._note("measured", attack=outcome.name, **where, key=outcome.key, record=outcome.record, reused=reused)

    def _compare(self, entry: PlannedAttack, outcomes: dict[str, Outcome], lineup: Lineup | None) -> list[Finding]:
        return compared(self.plan, entry, outcomes, lineup, policy=self.plan.policy, read=self._read)

    def _read(self, outcome: Outcome) -> Measurement:
        return cast("Measurement", self.store.get(outcome.key, Measurement))


def compared(
    frozen: Plan,
    entry: PlannedAttack,
    outcomes: Mapping[str, Outcome],
    lineup: Lineup | None,
    *,
    policy: Policy,
    read: Callable[[Outcome], Measurement],
) -> list[Finding]:
    """One attack's findings, from what came of it on every model; what was not measured becomes a row that says so.

    Args:
        frozen: The plan.
        entry: The attack.
        outcomes: What came of it, by role: target, reference 1 and on, original.
        lineup: The models that it made itself, if it did.
        policy: Margins and error rates.
        read: Gives the measurement of an outcome that has one.

    Returns:
        Its findings.
    """
    if late := [one.error or "" for one in outcomes.values() if one.over_budget]:
        return [unmeasured(entry.name, Verdict.SKIPPED, late[0]).model_copy(update={"over_budget": True})]
    if skipped := [f"the {one.role}: {one.error}" for one in outcomes.values() if one.skipped and one.role != "original"]:
        return [unmeasured(entry.name, Verdict.SKIPPED, skipped[0])]
    # An original that this attack is not for leaves the finding without its positive control.
    unfit = [one for one in outcomes.values() if one.skipped]
    if failed := [f"{one.role}: {one.error}" for one in outcomes.values() if one.error and one not in unfit]:
        return [unmeasured(entry.name, Verdict.ERROR, failed[0])]
    measured = {role: read(one) for role, one in outcomes.items() if one not in unfit}
    try:
        findings = compare(
            card_of(entry),
            measured["target"],
            [measurement for role, measurement in measured.items() if role.startswith("reference")],
            measured.get("original"),
            policy,
            seed=compute.seed_of(frozen.config.run.seed, entry.name, "compare"),
        )
        notes = (*(f"the {one.role} was not measured: {one.error}" for one in unfit), *(lineup.notes if lineup else ()))
        if lineup is None and (spare := spare_of(frozen, entry)) is not None:
            notes = (*notes, f"{spare} calibrates this attack and is not compared")
        return [finding.model_copy(update={"notes": (*finding.notes, *notes)}) for finding in findings]
    except Exception as error:  # noqa: BLE001 - one attack's fault must not lose the others
        return [unmeasured(entry.name, Verdict.ERROR, told(error))]


def card_of(entry: PlannedAttack) -> AttackCard:
    """The card of a planned attack, with its parameters."""
    found = attacks.find(entry.attack)
    if isinstance(found, attacks.Broken):
        return AttackCard(
            name=entry.name, attack=entry.attack, version="", summary="does not load", source="", access="text", sided="one",
            cost="", package=entry.package, parameters=entry.parameters,
        )  # fmt: skip
    return found.attack.model_validate(entry.parameters).card(entry.name, found.package)


def limits(frozen: Plan) -> Iterator[str]:
    """What an audit's own make-up leaves open: one sentence for each thing that a reader must know."""
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
