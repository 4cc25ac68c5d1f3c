"""The plan: everything that decides an audit, frozen and hashed before any model is attacked."""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import rfc8785
from pydantic import ValidationError

from muaudit import config, evaluators, feasibility, model_config, policy, preset, series, store
from muaudit import registry as attacks
from muaudit.calibration import citing
from muaudit.compute import resolve_device
from muaudit.config import AuditConfig, ImagesTask, TrainingConfig
from muaudit.errors import UsageError
from muaudit.examples import LabelledTask
from muaudit.manifest import manifest, manifest_digest
from muaudit.model_config import ClassifierConfig, EndpointConfig
from muaudit.models.inspection import inspect
from muaudit.policy import Policy
from muaudit.results import Citation, CodeRecord, DataRecord, FileDigest, Frozen, ModelRecord
from muaudit.task_opening import Task, open_task
from muaudit.training import vendor
from muaudit.training.recipes import PythonRecipe
from muaudit.version import VERSION

LIBRARIES = (
    "numpy", "scipy", "torch", "transformers", "tokenizers", "peft", "rouge-score", "opacus", "scikit-learn", "skops",
    "onnxruntime", "adversarial-robustness-toolbox", "diffusers", "torchmetrics", "textattack",
)  # fmt: skip
"""Libraries whose version can change a measurement."""


class PlannedAttack(Frozen):
    """One section of `[attacks]`, with every parameter resolved; `broken` says why a registered attack cannot run."""

    name: str
    attack: str
    version: str
    package: str
    parameters: dict[str, Any]
    broken: str | None = None


class Plan(Frozen):
    """A frozen plan. Its hash is `content_digest()`.

    Attributes:
        tool: Program and version that made it and must run it.
        base: The folder that paths start from, relative to the folder of plan.json.
        config: The resolved configuration.
        policy: The resolved decision rule.
        policy_sha256: Digest of the policy's file, byte for byte.
        seed_drawn: Whether the seed was drawn when the plan was made; else audit.toml fixed it.
        attacks: What is run, in order.
        models: Digests of every model, by role.
        data: Digests of the task files.
        task_digest: Digest of all that is asked.
        code: Code from outside that the audit runs, by what it is for.
        shadows: Digest of the shadow models that were trained ahead, where `[shadows]` names them.
        versions: Versions of the libraries that can change a measurement.
        steps: The plans of the series' earlier steps, in order.
        calibration: The calibration record that the audit cites.
    """

    schema_version: Literal["1"] = "1"
    tool: str
    base: str
    config: AuditConfig
    policy: Policy
    policy_sha256: str = ""
    seed_drawn: bool = False
    attacks: tuple[PlannedAttack, ...]
    models: tuple[ModelRecord, ...]
    data: tuple[DataRecord, ...]
    task_digest: str
    versions: dict[str, str]
    code: tuple[CodeRecord, ...] = ()
    shadows: str | None = None
    steps: tuple["PlannedStep", ...] = ()
    calibration: Citation | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads plan.json.

        Raises:
            UsageError: It cannot be read or is no plan.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}); `muaudit plan audit.toml` writes it") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(
                f"{path}: not a muaudit plan: {where}: {first['msg']}; run `muaudit plan audit.toml` again"
            ) from error


class PlannedStep(Frozen):
    """An earlier step of a series, with its own plan."""

    name: str
    plan: Plan


def out_folder(settings: AuditConfig | TrainingConfig, base: Path) -> Path:
    """The audit's output folder."""
    return base / settings.run.out


def store_folder(settings: AuditConfig | TrainingConfig, base: Path) -> Path:
    """Where results are kept by content; audits that share references can share it."""
    return base / settings.run.store if settings.run.store else out_folder(settings, base) / "store"


def make(settings: AuditConfig, base: Path) -> Plan:
    """Freezes a configuration: resolves defaults, reads and hashes all inputs.

    Args:
        settings: The configuration.
        base: The folder that its paths start from.

    Returns:
        The plan.

    Raises:
        UsageError: A model, a file, an attack's parameters or the policy cannot be used.
        EnvironmentFault: The configured device is not here.
    """
    rule = policy.load(settings.policy.name, base)
    own = settings.policy
    margins, shallow = {**rule.margins, **own.margins}, rule.shallow_passes or own.shallow_passes
    rule = rule.model_copy(update={"margins": margins, "shallow_passes": shallow})
    rule = feasibility.applied(rule, settings, base)
    planned = tuple(_attack(name, dict(values)) for name, values in _sections(settings).items())
    if unknown := sorted(set(rule.margins) - {entry.name for entry in planned} - set(attacks.registered())):
        raise UsageError(f"policy.margins names {unknown[0]!r}, which is no attack of this audit; name one of [attacks]")
    models = tuple(_model_records(settings, base))
    weightless = all(model.kind in model_config.WEIGHTLESS for _, model in settings.models())
    device = "cpu" if weightless else resolve_device(settings.run.device)
    task = open_task(settings.model_copy(update={"run": settings.run.model_copy(update={"device": device})}), base)
    if not settings.policy.partial:
        feasibility.refuse(rule, feasibility.shortfalls(rule, settings, task, planned, base))
    seed = settings.run.seed or _drawn(settings, base, models, task.digest)
    resolved = settings.model_copy(update={"run": settings.run.model_copy(update={"device": device, "seed": seed})})
    return Plan(
        tool=f"muaudit {VERSION}",
        base=os.path.relpath(base, out_folder(settings, base)),
        config=resolved,
        policy=rule,
        policy_sha256=policy.digest(settings.policy.name, base),
        seed_drawn=not settings.run.seed,
        attacks=planned,
        models=models,
        data=task.records,
        task_digest=task.digest,
        versions=dict(_versions()),
        code=tuple(_code_records(settings, planned, base)),
        shadows=_shadows_digest(settings, task, base),
        steps=tuple(PlannedStep(name=name, plan=make(step, base)) for name, step in series.earlier(resolved)),
        calibration=_cited(settings, rule, planned, base),
    )


def _cited(settings: AuditConfig, rule: Policy, planned: tuple[PlannedAttack, ...], base: Path) -> Citation | None:
    """The calibration that the audit cites, if it does."""
    if settings.calibration is None:
        return None
    return citing.cite(
        settings.calibration.path, settings.calibration.sha256, base, family=settings.task.kind, policy=rule.name,
        policy_sha256=policy.digest(settings.policy.name, base), own=settings.policy, attacks=planned,
        references=len(settings.references),
    )  # fmt: skip


def _drawn(settings: AuditConfig, base: Path, models: tuple[ModelRecord, ...], task: str) -> str:
    """A fresh seed; that of the plan which lies in the output folder already, if it was drawn for these models and this task.

    So an interrupted scan of audit.toml goes on, and one with a further attack asks nothing twice. A seed is never kept from
    one model to another: who made the second could have read the first one's plan.
    """
    try:
        before = Plan.read(out_folder(settings, base) / "plan.json")
    except UsageError:
        before = None
    if before is not None and before.seed_drawn and (before.models, before.task_digest) == (models, task):
        return before.config.run.seed
    return secrets.token_hex(16)


def training_seed(plan: Plan) -> str:
    """The seed of what the audit trains by its own recipe: one that audit.toml fixes, or else always the same.

    What was trained ahead of the audit is then found again, and no vendor gains by knowing how references are trained.
    """
    return config.TRAINING_SEED if plan.seed_drawn else plan.config.run.seed


def _sections(settings: AuditConfig) -> dict[str, dict[str, Any]]:
    """The sections of `[attacks]`: the preset's, with what the configuration changes and adds."""
    sections = preset.attacks(settings.preset) if settings.preset is not None else {}
    for name, values in settings.attacks.items():
        sections[name] = sections.get(name, {}) | values
    return sections


def check(plan: Plan, base: Path) -> None:
    """Refuses to run a plan on anything but what it was made for.

    Args:
        plan: A plan that was read from disk.
        base: The folder that its paths start from.

    Raises:
        UsageError: A model, a task file, a version or the device is not the planned one.
    """
    now = _in_order(make(plan.config, base), plan).model_copy(update={"seed_drawn": plan.seed_drawn})
    for old, new in zip(plan.models, now.models, strict=True):
        if old.digest != new.digest:
            raise UsageError(f"{old.role}: {changed(old, new)}; the plan froze another model: restore it, or plan anew")
    for before, after in zip(plan.data, now.data, strict=False):
        if before != after:
            raise UsageError(f"{before.path}: changed since the plan was made; restore it, or run `muaudit plan` again")
    for name in {**plan.versions, **now.versions}:
        then, here = plan.versions.get(name, "not installed"), now.versions.get(name, "not installed")
        if then != here:
            raise UsageError(f"the plan was made with {name} {then}, here is {here}; install that version, or plan anew")
    if plan != now:
        different = next(key for key in Plan.model_fields if getattr(plan, key) != getattr(now, key))
        raise UsageError(f"the plan's {different!r} is not what this installation would plan; run `muaudit plan` again")


def _in_order(plan: Plan, like: Plan) -> Plan:
    """A plan with its attacks in another plan's order: plan.json sorts the configuration's sections, not what is planned."""
    places = {entry.name: place for place, entry in enumerate(like.attacks)}
    attacks = sorted(plan.attacks, key=lambda entry: places.get(entry.name, len(places)))
    before = {step.name: step.plan for step in like.steps}
    steps = [step.model_copy(update={"plan": _in_order(step.plan, before.get(step.name, step.plan))}) for step in plan.steps]
    return plan.model_copy(update={"attacks": tuple(attacks), "steps": tuple(steps)})


def changed(old: ModelRecord, new: ModelRecord) -> str:
    """Which file of a model is not what it was, in words."""
    before = {file.name: file.sha256 for file in old.files}
    after = {file.name: file.sha256 for file in new.files}
    for name in sorted({**before, **after}):
        if name not in after:
            return f"file {name!r} is missing from {old.path}"
        if name not in before:
            return f"file {name!r} was added to {old.path}"
        if before[name] != after[name]:
            return f"file {name!r} of {old.path} changed"
    return f"{old.path} changed"


def _model_records(settings: AuditConfig, base: Path) -> Iterator[ModelRecord]:
    for role, model in settings.models():
        if model.kind == "endpoint":
            yield _endpoint_record(role, model)
            continue
        adapted = model.base if model.kind == "causal_lm" else None
        yield _record(role, model.kind, model.path, base)
        if adapted is not None:
            yield _record(f"{role} base", model.kind, adapted, base)
        inspect(model.kind, base / model.path, None if adapted is None else base / adapted)


def _record(role: str, kind: str, path: str, base: Path) -> ModelRecord:
    try:
        there = (base / path).exists()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise UsageError(f"{role}: {path}: no such file or folder; check `path` (relative to the folder of audit.toml)")
    files = manifest(base / path)
    return ModelRecord(role=role, kind=kind, path=path, digest=manifest_digest(files), files=files)


def _code_records(settings: AuditConfig, planned: Iterable[PlannedAttack], base: Path) -> Iterator[CodeRecord]:
    """What the audit runs of other people's code: the report names it."""
    functions = {
        "recipe": settings.recipe.function if isinstance(settings.recipe, PythonRecipe) else None,
        "procedure": None if settings.procedure is None else settings.procedure.function,
    }
    if isinstance(settings.task, ImagesTask):
        functions |= evaluators.functions(settings.task.evaluators)
    for role, model in settings.models():
        functions[f"{role} factory"] = model.factory if isinstance(model, ClassifierConfig) else None
    for entry in planned:
        found = attacks.find(entry.attack)
        if isinstance(found, attacks.Registered):
            run = found.attack.model_validate(entry.parameters).functions()
            functions |= {f"{entry.name} {what}": function for what, function in run.items()}
    for role, function in functions.items():
        if function is not None:
            yield CodeRecord(role=role, function=function, sha256=vendor.code_digest(vendor.files(function, base)))


def _shadows_digest(settings: AuditConfig, task: Task, base: Path) -> str | None:
    if settings.shadows is None or settings.shadows.path is None:
        return None
    path, shown = base / settings.shadows.path, f"shadows.path {settings.shadows.path!r}"
    if not path.exists():
        raise UsageError(f"{shown}: no such file or folder; `muaudit shadow` writes one")
    if isinstance(task, LabelledTask):
        from muaudit.training.cohorts import refuse_others

        refuse_others(path, shown, task.pool)
    return manifest_digest(manifest(path))


def _endpoint_record(role: str, model: EndpointConfig) -> ModelRecord:
    """An endpoint has no files: what identifies it stands as the one file that describes it."""
    described = rfc8785.dumps(model.identity())
    files = (FileDigest(name="endpoint.json", sha256=hashlib.sha256(described).hexdigest(), bytes=len(described)),)
    return ModelRecord(role=role, kind=model.kind, path=model.shown, digest=manifest_digest(files), files=files)


def _attack(name: str, values: dict[str, Any]) -> PlannedAttack:
    found = attacks.find(str(values.pop("attack", name)))
    if isinstance(found, attacks.Broken):
        return PlannedAttack(
            name=name, attack=found.name, version="", package=found.package, parameters=values, broken=found.reason
        )
    kind = found.attack
    try:
        made = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        near = get_close_matches(key, kind.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and first["type"] == "extra_forbidden" else ""
        where = f"attacks.{name}.{key}" if key else f"attacks.{name}"
        raise UsageError(
            f"{where}: {first['msg'].removeprefix('Value error, ')}{hint}; see `muaudit attacks {kind.name}`"
        ) from error
    return PlannedAttack(
        name=name, attack=kind.name, version=kind.version, package=found.package, parameters=made.model_dump(mode="json")
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def resolve(source: str | Path | AuditConfig | Plan) -> tuple[Plan, Path]:
    """Makes a plan of whatever a user gives, and checks one that is given.

    Args:
        source: The path of audit.toml or plan.json, a configuration, or a plan (paths then start from the current folder).

    Returns:
        The plan, and the folder that its paths start from.

    Raises:
        UsageError: The source cannot be used, or a given plan no longer fits its inputs.
    """
    if isinstance(source, AuditConfig):
        return make(source, Path()), Path()
    if isinstance(source, Plan):
        check(source, Path())
        return source, Path()
    path = Path(source)
    if path.suffix == ".json":
        plan = Plan.read(path)
        base = path.parent / plan.base
        check(plan, base)
        return plan, base
    return make(config.load(path), path.parent), path.parent


def write(plan: Plan, base: Path) -> Path:
    """Writes plan.json, in canonical form, into the audit's output folder."""
    path = out_folder(plan.config, base) / "plan.json"
    store.write_atomically(path, plan.canonical())
    return path
