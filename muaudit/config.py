"""audit.toml: the one configuration for shell, Python and pytest."""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from muaudit.errors import UsageError
from muaudit.evaluators import EvaluatorConfig
from muaudit.loaders.example_files import Columns
from muaudit.model_config import (
    CausalLMConfig,
    ClassifierConfig,
    DiffusionConfig,
    EndpointConfig,
    GuardedConfig,
    ModelConfig,
    PopulationConfig,
    RecordedConfig,
)
from muaudit.results import Frozen
from muaudit.task import DEFAULT_TEMPLATE
from muaudit.training.recipes import Procedure, PythonRecipe, SklearnRecipe, TorchRecipe


class FactsTask(Frozen):
    """`[task]` of kind "facts": JSON Lines files."""

    kind: Literal["facts"]
    forget: str
    retain: str | None = None
    holdout: str | None = None
    template: str = DEFAULT_TEMPLATE


class RecordedTask(Frozen):
    """`[task]` of kind "recorded": the items are read from the recorded models."""

    kind: Literal["recorded"]
    cluster_size: Annotated[int, Field(ge=1)] = 1


class ExamplesTask(Frozen):
    """`[task]` of kind "classification" or "regression": files of labelled examples.

    Attributes:
        forget: npz, parquet or CSV file, image folder, or Hugging Face dataset on disk; likewise the other sets.
        retain: Examples that the target is to keep.
        holdout: Examples of the same kind that no model saw.
        columns: What the parts of an example are called there.
    """

    kind: Literal["classification", "regression"]
    forget: str
    retain: str | None = None
    holdout: str | None = None
    columns: Columns = Columns()


class ImagesTask(Frozen):
    """`[task]` of kind "text_to_image": files of prompts, and who says whether a concept is in an image.

    Attributes:
        forget: JSON Lines or CSV file of prompts whose images would show what was to be forgotten; I2P's columns will do.
        retain: Prompts of what the target is to keep.
        holdout: Prompts with images that no model saw.
        concept: What a forget prompt asks for where its file does not say.
        evaluators: Say whether a concept is in an image.
        agreement: Whether a concept is there when all evaluators say so, or when any does.
        known: File of images whose concept is known, by which the evaluators' errors are measured.
        sampler: How images are sampled.
        steps: Denoising steps an image.
        guidance: Scale of guidance where a file does not say.
        image_mode: "RGB", or "L" for pipelines of one channel.
        image_size: Height and width that image files are resized to; the pipelines' own size.
    """

    kind: Literal["text_to_image"]
    forget: str
    retain: str | None = None
    holdout: str | None = None
    concept: Annotated[str, Field(min_length=1)] | None = None
    evaluators: Annotated[tuple[EvaluatorConfig, ...], Field(min_length=1)]
    agreement: Literal["all", "any"] = "all"
    known: str | None = None
    sampler: Literal["ddim", "lms", "euler", "dpm_solver"] = "ddim"
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: Annotated[float, Field(ge=0, le=100)] = 7.5
    image_mode: Literal["L", "RGB"] = "RGB"
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None


TaskConfig = Annotated[FactsTask | RecordedTask | ExamplesTask | ImagesTask, Field(discriminator="kind")]
RecipeConfig = Annotated[TorchRecipe | SklearnRecipe | PythonRecipe, Field(discriminator="kind")]

_FITTING = {
    "facts": ("causal_lm", "guarded", "endpoint"),
    "recorded": ("recorded",),
    "classification": ("classifier", "recorded", "population"),
    "regression": ("regressor", "recorded"),
    "text_to_image": ("diffusion",),
}
"""Kinds of models by kind of task."""

_KINDS = {*_FITTING, *(kind for kinds in _FITTING.values() for kind in kinds), "torch", "sklearn", "python"}
"""Of tasks, models and recipes."""


class ShadowsConfig(Frozen):
    """`[shadows]`: models that are trained by the recipe on random halves of the task's examples.

    Attributes:
        count: How many; every example is in exactly half of them.
        path: A folder that `muaudit shadow` wrote, or an npz with logits [M, N, C], keep [M, N] and ids [N]; without it they
            are trained when an attack needs them.
    """

    count: Annotated[int, Field(ge=2)] = 64
    path: str | None = None


TRAINING_SEED = "2026"
"""Of shadow models and references that the auditor trains, where audit.toml fixes no seed: it need not be secret."""


class PolicyConfig(Frozen):
    """`[policy]`: a shipped policy or a file, and margins that override its own.

    Attributes:
        name: A shipped policy, or the path of one.
        margins: Margins of single attacks, which override the policy's own; the report says so.
        shallow_passes: Whether the audit may pass by informational attacks alone, whatever the policy says of that.
        partial: Whether an audit that cannot pass under the policy, whatever the target has forgotten, is run all the same.
    """

    name: str = "standard"
    margins: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {}
    shallow_passes: bool = False
    partial: bool = False


class ConductConfig(Frozen):
    """`[conduct]`: how it is seen whether a model answers differently when it is asked again.

    Attributes:
        questions: Forget questions that every model is asked four times, and as many of the retain set; 0 asks none.
        images: The same of image generators, of the forget set alone.
        max_new_tokens: Longest answer.
    """

    questions: Annotated[int, Field(ge=0, le=1000)] = 12
    images: Annotated[int, Field(ge=0, le=1000)] = 7
    max_new_tokens: Annotated[int, Field(ge=1)] = 16


class BudgetConfig(Frozen):
    """`[budget]`: what an audit may take, over all its runs; an attack that does not fit is skipped, with the reason.

    Attributes:
        hours: Hours of scanning.
        queries: Questions put to models: prompts, examples and images; of endpoints the requests sent, retries included.
        money: What asking endpoints may cost, in the currency of their prices.
    """

    hours: Annotated[float, Field(gt=0)] | None = None
    queries: Annotated[int, Field(ge=1)] | None = None
    money: Annotated[float, Field(gt=0)] | None = None


class RunConfig(Frozen):
    """`[run]`: seed, device, spread and output folder.

    Attributes:
        seed: Any text; every random draw of the audit comes from it. Without it, one is drawn when the plan is made, and the
            plan records it: nobody can then know beforehand what the audit will ask.
        device: "auto", "cpu", "cuda", "cuda:1" ...
        threads: Threads a worker computes with; fixed, because it changes the last bits of sums.
        backend: joblib's back end: processes of this machine (loky), or a Ray or Dask cluster.
        address: The cluster's, such as "auto" or "ray://head:10001", or "tcp://scheduler:8786"; a cluster of this machine alone
            without it.
        workers: How many measurements run at a time.
        timeout: Seconds that an attack may take to prepare itself, training shadow models included, and to measure one model;
            one that takes longer is ended, and its finding is `error`. Opening a model may take as long again.
        memory_limit: GiB of main memory that one attack on one model may use; the finding of one that needs more is `error`.
        out: Folder of plan, report and envelope.
        store: Folder of results by content, which several audits may share; `store` in `out` by default.
    """

    seed: str = ""
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    backend: Literal["loky", "ray", "dask"] = "loky"
    address: str | None = None
    workers: Annotated[int, Field(ge=1)] = 1
    timeout: Annotated[float, Field(gt=0)] | None = None
    memory_limit: Annotated[float, Field(gt=0)] | None = None
    out: str = "audit"
    store: str | None = None


class SeriesStep(Frozen):
    """One of `[[series]]`: an earlier target, audited before the last; what it does not give stands as in the audit itself.

    Attributes:
        name: What reports call it, such as "first request" or "100 people".
        target: Its model.
        original: The model before its unlearning.
        references: Models retrained without its forget set.
        forget: Its forget set.
        retain: Its retain set.
        holdout: Its holdout set.
    """

    name: Annotated[str, Field(min_length=1)]
    target: ModelConfig
    original: ModelConfig | None = None
    references: tuple[ModelConfig, ...] = ()
    forget: str | None = None
    retain: str | None = None
    holdout: str | None = None


class CitedConfig(Frozen):
    """`[calibration]`: a record of `muaudit calibrate`, whose measured error rates the report prints.

    Attributes:
        path: The calibration.json.
        sha256: The digest that it must have; whatever lies there otherwise.
    """

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class SigningConfig(Frozen):
    """`[signing]`: the auditor's private key."""

    key: str


class AuditConfig(Frozen):
    """A whole audit.toml.

    Attributes:
        preset: A named set of attacks; sections of `attacks` change its parameters or add to it.
        attacks: Parameters by section name; `attack = "relearning"` in a section gives a second entry of one attack.
        series: Earlier targets of a series; the last one is `target`.
        recipe: How the auditor trains shadow models and references.
        procedure: The vendor's unlearning procedure; it is run.
        shadows: Shadow models.
        conduct: Whether models answer differently when they are asked again.
        budget: Limits on time, queries and money.
        calibration: How often such audits err, as was measured before.
    """

    task: TaskConfig
    target: ModelConfig
    original: ModelConfig | None = None
    references: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    policy: PolicyConfig = PolicyConfig()
    preset: str | None = None
    attacks: dict[str, dict[str, Any]] = {}
    series: tuple[SeriesStep, ...] = ()
    recipe: RecipeConfig | None = None
    procedure: Procedure | None = None
    shadows: ShadowsConfig | None = None
    run: RunConfig = RunConfig()
    conduct: ConductConfig = ConductConfig()
    budget: BudgetConfig = BudgetConfig()
    signing: SigningConfig | None = None
    calibration: CitedConfig | None = None

    @model_validator(mode="after")
    def _some_attack(self) -> "AuditConfig":
        if not self.attacks and self.preset is None:
            raise ValueError('no attack is asked for: add a section such as [attacks.memorization], or preset = "language"')
        names = [step.name for step in self.series]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two steps of the series are called {twice!r}; give each a name of its own")
        return self

    @model_validator(mode="after")
    def _fitting_kinds(self) -> "AuditConfig":
        for role, model in self.models():
            if model.kind not in _FITTING[self.task.kind]:
                raise ValueError(
                    f"the {role} is of kind {model.kind!r}, and a task of kind {self.task.kind!r} is for models of kind "
                    f"{' or '.join(_FITTING[self.task.kind])}: change either; logs of language models bring their own items "
                    'and use [task] kind = "recorded"'
                )
            if isinstance(model, RecordedConfig) and (model.format == "logits") == (self.task.kind == "recorded"):
                raise ValueError(
                    f'the {role} has format = "{model.format}"; logs of language models need [task] kind = "recorded", and '
                    'logits of classifiers (format = "logits") need [task] kind = "classification" or "regression"'
                )
        return self

    @model_validator(mode="after")
    def _payable(self) -> "AuditConfig":
        if self.budget.money is None:
            return self
        asked = [(role, model) for role, model in self.models() if isinstance(model, EndpointConfig)]
        if not asked:
            raise ValueError("budget.money limits what asking endpoints costs, and no model is one: use hours or queries")
        for role, model in asked:
            if model.price_per_million_input is None:
                raise ValueError(
                    f"budget.money needs the prices of every endpoint: give the {role} price_per_million_input "
                    "and price_per_million_output"
                )
        return self

    @model_validator(mode="after")
    def _trainable(self) -> "AuditConfig":
        if self.recipe is None and self.procedure is not None:
            raise ValueError("a procedure is tried on models that the auditor trains: add [recipe]")
        if self.recipe is None and self.shadows is not None and self.shadows.path is None:
            raise ValueError("shadow models are trained by a recipe: add [recipe], or give shadows.path")
        return self

    def models(self) -> list[tuple[str, "ModelConfig"]]:
        """All models with their roles: target, reference 1 ..., original."""
        models: list[tuple[str, ModelConfig]] = [("target", self.target)]
        models += [(f"reference {number}", model) for number, model in enumerate(self.references, start=1)]
        if self.original is not None:
            models.append(("original", self.original))
        return models


class TrainingConfig(Frozen):
    """The part of audit.toml that training ahead of the audit reads; there may be nothing to audit yet.

    Attributes:
        task: The examples.
        recipe: How to train.
        shadows: How many shadow models.
        run: Seed, device and spread.
    """

    task: ExamplesTask
    recipe: RecipeConfig
    shadows: ShadowsConfig = ShadowsConfig()
    run: RunConfig = RunConfig()


def load(path: Path) -> AuditConfig:
    """Reads audit.toml.

    Args:
        path: The file.

    Returns:
        The configuration; its paths are still relative to the file's folder.

    Raises:
        UsageError: The file cannot be used; the message names the key and the mend.
    """
    return parse(_values(path), str(path))


def load_training(path: Path) -> TrainingConfig:
    """Reads the tables of audit.toml that training needs: `[task]`, `[recipe]`, `[shadows]` and `[run]`.

    Args:
        path: The file; its other tables are not looked at.

    Returns:
        The configuration; its paths are still relative to the file's folder.

    Raises:
        UsageError: The file cannot be used.
    """
    values = {name: table for name, table in _values(path).items() if name in TrainingConfig.model_fields}
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_fault(error)}") from error


def _values(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); `muaudit init` writes one to start from") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}; mend the line, or start from `muaudit init`") from error
    _refuse_unwritable(values, str(path))
    return values


def _refuse_unwritable(values: dict[str, Any], name: str) -> None:
    """Refuses what no path can hold and no plan could be written with."""
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend((f"{key}.{part}" if key else part, one) for part, one in value.items())
        elif isinstance(value, list):
            waiting.extend((key, one) for one in value)
        elif isinstance(value, str) and "\0" in value:
            raise UsageError(f"{name}: key {key!r}: holds a NUL, which no path and no text here can; take it out")
        elif isinstance(value, int) and abs(value) >= 2**53:
            raise UsageError(f"{name}: key {key!r}: a whole number here is below 2**53 = {2**53}; write a smaller one")


def parse(values: dict[str, Any], name: str) -> AuditConfig:
    """Checks a configuration that was already read.

    Args:
        values: The tables and keys.
        name: What to call the source in an error.

    Returns:
        The configuration.

    Raises:
        UsageError: A key is unknown, missing or out of range.
    """
    try:
        return AuditConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{name}: {_fault(error)}") from error


def _fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    # A misspelt key is both unknown and missing; the first says more.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    # pydantic puts the chosen kind into the path of a tagged union; the user did not write it there.
    tag = {"task": 1, "target": 1, "original": 1, "references": 2, "recipe": 1}.get(str(next(iter(first["loc"]), "")))
    path = [str(part) for place, part in enumerate(first["loc"]) if place != tag or part not in _KINDS]
    key = ".".join(path) or "the file"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it"
    if first["type"] == "extra_forbidden":
        near = get_close_matches(path[-1], _keys(AuditConfig), n=1)
        known = sorted(AuditConfig.model_fields) if len(path) == 1 else []
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}" if known else ""
        return f"unknown key {key!r}{hint}"
    if first["type"] == "union_tag_not_found":
        return f"key {key + '.kind'!r} is missing; it says what this is"
    return f"key {key!r}: {first['msg'].removeprefix('Value error, ')}"


def _keys(model: type[BaseModel]) -> set[str]:
    """Every key that audit.toml knows, at any depth."""
    families: list[type[BaseModel]] = [
        FactsTask,
        RecordedTask,
        ExamplesTask,
        ImagesTask,
        Columns,
        CausalLMConfig,
        GuardedConfig,
        ClassifierConfig,
        PopulationConfig,
        RecordedConfig,
        EndpointConfig,
        DiffusionConfig,
        TorchRecipe,
        SklearnRecipe,
        PythonRecipe,
        Procedure,
        ShadowsConfig,
        PolicyConfig,
        ConductConfig,
        BudgetConfig,
        RunConfig,
        SeriesStep,
        SigningConfig,
        CitedConfig,
    ]
    return set(model.model_fields).union(*(family.model_fields for family in families))
