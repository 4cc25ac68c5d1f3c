"""Prepares an attack once for all models: its state, and the models that it is measured on."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from muaudit import compute, isolation, store
from muaudit.attack import Attack, Lineup, Prepared
from muaudit.errors import EnvironmentFault, MuauditError, NotApplicable, ServerFault, StorageFault
from muaudit.manifest import content_digest
from muaudit.measuring import MEMORY, attack_of, digests_of, limits, path_of, told
from muaudit.model_config import WEIGHTLESS, ModelConfig
from muaudit.plan import Plan, PlannedAttack
from muaudit.store import Store
from muaudit.workbench import Progress, Workbench


@dataclass(frozen=True)
class Ready:
    """An attack that can be measured.

    Attributes:
        entry: The attack.
        prepared: Its state.
        lineup: The models that an attack on a procedure is measured on; None for the audit's own.
        fits: The roles that it can be measured on.
        key: Where its state is stored.
        computed: Whether it was computed now.
    """

    entry: PlannedAttack
    prepared: Prepared
    lineup: Lineup | None
    fits: tuple[str, ...]
    key: str
    computed: bool


@dataclass(frozen=True)
class Unready:
    """An attack that cannot be measured, and why.

    Attributes:
        entry: The attack.
        reason: Why, for the finding.
        fault: How it failed; None where it is not for this audit.
    """

    entry: PlannedAttack
    reason: str
    fault: isolation.Fault | None


def prepare(bench: Workbench, entry: PlannedAttack) -> Ready | Unready:
    """Prepares an attack, or finds it prepared.

    Args:
        bench: The audit's workbench.
        entry: The attack.

    Returns:
        Its state and models, or why it has none.

    Raises:
        ServerFault: An endpoint fails for good.
        StorageFault: Nothing can be stored any more.
    """
    try:
        return _prepared(bench, entry)
    except (ServerFault, StorageFault):
        raise
    except NotApplicable as skip:
        return Unready(entry, str(skip), None)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one attack's fault must not lose the others
        memory = isolation.out_of_memory(error)
        return Unready(entry, MEMORY if memory else told(error), "memory" if memory else "raised")


def prepare_apart(frozen: Plan, base: Path, entry: PlannedAttack, progress: Progress) -> Ready | Unready:
    """Prepares an attack in a process of its own, which may crash, hang or run out of memory; see `prepare`."""
    try:
        return isolation.call(_prepare_here, limits(frozen), progress, frozen, base, entry)
    except isolation.Lost as lost:
        return Unready(entry, f"its preparation {lost}", lost.fault)


def look_apart(frozen: Plan, base: Path, progress: Progress) -> None:
    """Sees, in the process that attacks, that every model's family is known there.

    Raises:
        ModelError: A folder holds no model.
        EnvironmentFault: That process cannot start.
    """
    try:
        isolation.call(_look_here, isolation.Limits(memory=frozen.config.run.memory_limit), progress, frozen, base)
    except isolation.Lost as lost:
        raise EnvironmentFault(
            f"the process that attacks models cannot start: it {lost}; raise run.memory_limit, or free memory, and run the "
            "same command again"
        ) from lost


def spare_of(frozen: Plan, entry: PlannedAttack) -> str | None:
    """The reference that is set aside for an attack that calibrates: the last of two or more."""
    references = [role for role, _ in frozen.config.models() if role.startswith("reference")]
    return references[-1] if attack_of(entry).calibrates and len(references) > 1 else None


_BENCHES: dict[tuple[str, Path], Workbench] = {}


def _bench(frozen: Plan, base: Path) -> Workbench:
    """The workbench of the last audit that this process worked for: its task and shadow models are read once."""
    where = frozen.content_digest(), base
    if where not in _BENCHES:
        _BENCHES.clear()
        _BENCHES[where] = Workbench(frozen, base, isolation.tell)
    return _BENCHES[where]


def _look_here(frozen: Plan, base: Path) -> None:
    _ = _bench(frozen, base).capabilities


def _prepare_here(frozen: Plan, base: Path, entry: PlannedAttack) -> Ready | Unready:
    torch_used = any(model.kind not in WEIGHTLESS for _, model in frozen.config.models())
    _look_here(frozen, base)
    with suppress(MuauditError):  # of an attack that does not load, which `prepare` tells of
        attack_of(entry)
    isolation.begun()  # imports are not the attack's time
    with compute.settled(frozen.config.run.threads, torch_used=torch_used):
        return prepare(_bench(frozen, base), entry)


def _prepared(bench: Workbench, entry: PlannedAttack) -> Ready:
    attack, spare, kept = attack_of(entry), spare_of(bench.plan, entry), Store(bench.store)
    if not _has_lineup(attack):
        _refuse_unfit(bench, attack, bench.models)
    key = _key(
        bench, entry, what="prepared", calibration=digests_of(bench.plan, spare),
        files=[content_digest(bench.base / path) for path in attack.files()],
    )  # fmt: skip
    stored = kept.get(key, Prepared)
    computed = stored is None
    if stored is None:
        kept.put(key, attack.prepare(bench.of(entry.name, "prepare", spare)))
        stored = cast("Prepared", kept.get(key, Prepared))  # as every later run will read it
    lineup = _lineup(bench, entry, stored)
    models = bench.models if lineup is None else dict(lineup.models())
    fits = tuple(
        role
        for role, model in models.items()
        if not attack.missing(bench.family(model)) and not (lineup is None and role == spare)
    )
    return Ready(entry, stored, lineup, fits, key, computed)


def _lineup(bench: Workbench, entry: PlannedAttack, prepared: Prepared) -> Lineup | None:
    """The models that an attack on a procedure is measured on; None for the audit's own."""
    attack, kept = attack_of(entry), Store(bench.store)
    if not _has_lineup(attack):
        return None
    key = _key(bench, entry, what="lineup", prepared=prepared.content_digest())
    stored = kept.get(key, Lineup)
    if stored is None or not all((bench.base / path_of(model)).exists() for _, model in stored.models()):
        made = attack.lineup(bench.of(entry.name, "lineup", None), prepared)
        if made is None:
            _refuse_unfit(bench, attack, bench.models)
            return None
        kept.put(key, made)
        stored = cast("Lineup", kept.get(key, Lineup))
    _refuse_unfit(bench, attack, dict(stored.models()))
    return stored


def _key(bench: Workbench, entry: PlannedAttack, **parts: object) -> str:
    """A key over all that what is prepared for an attack can depend on."""
    frozen = bench.plan
    trained = frozen.config.model_dump(mode="json", include={"recipe", "procedure", "shadows"})
    return store.key_of(
        attack=entry.model_dump(mode="json"), task=frozen.task_digest, seed=frozen.config.run.seed,
        original=next((record.digest for record in frozen.models if record.role == "original"), None),
        capabilities=sorted(bench.capabilities), tool=frozen.tool, versions=frozen.versions,
        trained=trained, code=[one.sha256 for one in frozen.code], shadows=frozen.shadows, **parts,
    )  # fmt: skip


def _refuse_unfit(bench: Workbench, attack: Attack, models: Mapping[str, ModelConfig]) -> None:
    for role, model in models.items():
        if role != "original" and (missing := attack.missing(bench.family(model))):
            raise NotApplicable(
                f"the {role} is of kind {model.kind!r}, which lacks what this attack needs: {', '.join(missing)}"
            )


def _has_lineup(attack: Attack) -> bool:
    return type(attack).lineup is not Attack.lineup
