"""audit.toml: the one configuration for shell, Python and pytest."""

import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from muaudit.errors import UsageError
from muaudit.loaders.example_files import Columns
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


class CausalLMConfig(Frozen):
    """A local Hugging Face folder with safetensors, or a PEFT adapter on a base."""

    kind: Literal["causal_lm"]
    path: str
    base: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64


class GuardedConfig(Frozen):
    """A local Hugging Face folder that also holds guard.json: a gate on prompts, and what it does to those that it flags.

    Attacks that send text see the guarded behaviour; those that read, train or round weights see the network inside. The same
    folder as kind "causal_lm" is the network inside alone.
    """

    kind: Literal["guarded"]
    path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64


class ClassifierConfig(Frozen):
    """A classifier, or a regressor: what lies at the path says of which make.

    Attributes:
        path: A folder with classifier.json and safetensors (as `muaudit reference` writes it), a Hugging Face
            image-classification folder, safetensors weights for `factory`, a scikit-learn estimator (.skops), or an ONNX file.
        factory: `file.py:function` or `module:function` that builds the network; it is run.
        dtype: What a network is computed in.
        batch_size: Inputs at a time.
    """

    kind: Literal["classifier", "regressor"]
    path: str
    factory: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    batch_size: Annotated[int, Field(ge=1)] = 512


class PopulationConfig(Frozen):
    """Many classifiers that were made alike with different seeds: a folder of stacks, or an npz of their logits."""

    kind: Literal["population"]
    path: str


class RecordedConfig(Frozen):
    """Outputs instead of weights: per-item logs of a language model, or a classifier's logits (npz or parquet)."""

    kind: Literal["recorded"]
    path: str
    format: Literal["tofu", "open_unlearning", "logits"]


class EndpointConfig(Frozen):
    """A model behind an OpenAI-compatible server.

    Attributes:
        url: The server's base address, as a rule ending in /v1; it holds no user, password or query.
        model: The model's name there.
        api: "chat" sends a prompt as the user's turn; "completions" sends it as it is.
        logprobs: Whether the server echoes prompts with their log-probabilities; only with api = "completions".
        stop: Texts that end an answer, at most four.
        key_env: Name of the environment variable that holds the key; without it none is sent.
        timeout: Most seconds for one whole answer.
        retries: How often a request that fails is sent again.
        requests_per_minute: Most requests a minute, evenly spread, over all workers.
        concurrency: Most requests at a time, of one worker.
        max_requests: Most requests that may ever be sent for this store, retries included.
        price_per_million_input: Price of a million prompt tokens, in any currency; for the ledger's estimate.
        price_per_million_output: The same, of generated tokens.
    """

    kind: Literal["endpoint"]
    url: str
    model: Annotated[str, Field(min_length=1)]
    api: Literal["chat", "completions"] = "chat"
    logprobs: bool = False
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4)] = ()
    key_env: str | None = None
    timeout: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    max_requests: Annotated[int, Field(ge=1)] | None = None
    price_per_million_input: Annotated[float, Field(ge=0)] | None = None
    price_per_million_output: Annotated[float, Field(ge=0)] | None = None

    @property
    def shown(self) -> str:
        """Model and address, as reports name the endpoint."""
        return f"{self.model} at {self.url}"

    def identity(self) -> dict[str, Any]:
        """All that identifies what answers; limits and prices do not."""
        return self.model_dump(mode="json", include={"url", "model", "api", "logprobs", "stop"})

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - raises where it is no number
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise ValueError('not the address of a server; write it out, such as "https://api.example.com/v1"')
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "an address here has no user, password, query or fragment, since reports show it; a key goes into the "
                "environment, and `key_env` names the variable"
            )
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError(
                "not the name of an environment variable (capital letters, digits and _); the key itself never goes into a file"
            )
        return name

    @model_validator(mode="after")
    def _fitting(self) -> "EndpointConfig":
        if self.logprobs and self.api != "completions":
            raise ValueError(
                'logprobs = true needs api = "completions", since a chat gives no log-probabilities of a prompt; set either'
            )
        if (self.price_per_million_input is None) != (self.price_per_million_output is None):
            raise ValueError("one price alone gives no cost; set price_per_million_input and price_per_million_output")
        return self


TaskConfig = Annotated[FactsTask | RecordedTask | ExamplesTask, Field(discriminator="kind")]
ModelConfig = Annotated[
    CausalLMConfig | GuardedConfig | RecordedConfig | EndpointConfig | ClassifierConfig | PopulationConfig,
    Field(discriminator="kind"),
]
RecipeConfig = Annotated[TorchRecipe | SklearnRecipe | PythonRecipe, Field(discriminator="kind")]

_FITTING = {
    "facts": ("causal_lm", "guarded", "endpoint"),
    "recorded": ("recorded",),
    "classification": ("classifier", "recorded", "population"),
    "regression": ("regressor", "recorded"),
}
"""Kinds of models by kind of task."""

_KINDS = {*_FITTING, *(kind for kinds in _FITTING.values() for kind in kinds), "torch", "sklearn", "python"}
"""Of tasks, models and recipes."""

WEIGHTLESS = ("recorded", "endpoint")
"""Kinds of models that are not computed here: they need neither torch nor a device."""


class ShadowsConfig(Frozen):
    """`[shadows]`: models that are trained by the recipe on random halves of the task's examples.

    Attributes:
        count: How many; every example is in exactly half of them.
        path: A folder that `muaudit shadow` wrote, or an npz with logits [M, N, C], keep [M, N] and ids [N]; without it they
            are trained when an attack needs them.
    """

    count: Annotated[int, Field(ge=2)] = 64
    path: str | None = None


class PolicyConfig(Frozen):
    """`[policy]`: a shipped policy or a file, and margins that override its own."""

    name: str = "standard"
    margins: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {}


class RunConfig(Frozen):
    """`[run]`: seed, device, spread and output folder.

    Attributes:
        seed: Any text; every random draw of the audit comes from it.
        device: "auto", "cpu", "cuda", "cuda:1" ...
        threads: Threads a worker computes with; fixed, because it changes the last bits of sums.
        backend: joblib's back end: processes of this machine (loky), or a Ray or Dask cluster.
        address: The cluster's, such as "auto" or "ray://head:10001", or "tcp://scheduler:8786"; a cluster of this machine alone
            without it.
        workers: How many measurements run at a time.
        out: Folder of plan, report and envelope.
        store: Folder of results by content, which several audits may share; `store` in `out` by default.
    """

    seed: str = "2026"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    backend: Literal["loky", "ray", "dask"] = "loky"
    address: str | None = None
    workers: Annotated[int, Field(ge=1)] = 1
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
    signing: SigningConfig | None = None

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
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); `muaudit init` writes one to start from") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


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
        Columns,
        CausalLMConfig,
        GuardedConfig,
        ClassifierConfig,
        PopulationConfig,
        RecordedConfig,
        EndpointConfig,
        TorchRecipe,
        SklearnRecipe,
        PythonRecipe,
        Procedure,
        ShadowsConfig,
        PolicyConfig,
        RunConfig,
        SeriesStep,
        SigningConfig,
    ]
    return set(model.model_fields).union(*(family.model_fields for family in families))
