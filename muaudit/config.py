"""audit.toml: the one configuration for shell, Python and pytest."""

import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from muaudit.errors import UsageError
from muaudit.results import Frozen
from muaudit.task import DEFAULT_TEMPLATE


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


class RecordedConfig(Frozen):
    """Per-item logs instead of weights."""

    kind: Literal["recorded"]
    path: str
    format: Literal["tofu", "open_unlearning"]


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


TaskConfig = Annotated[FactsTask | RecordedTask, Field(discriminator="kind")]
ModelConfig = Annotated[CausalLMConfig | GuardedConfig | RecordedConfig | EndpointConfig, Field(discriminator="kind")]

WEIGHTLESS = ("recorded", "endpoint")
"""Kinds of models that are not computed here: they need neither torch nor a device."""


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
        backend: joblib's back end.
        workers: How many measurements run at a time.
        out: Folder of plan, report and envelope.
        store: Folder of results by content, which several audits may share; `store` in `out` by default.
    """

    seed: str = "2026"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    backend: Literal["loky"] = "loky"
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
    """

    task: TaskConfig
    target: ModelConfig
    original: ModelConfig | None = None
    references: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    policy: PolicyConfig = PolicyConfig()
    preset: str | None = None
    attacks: dict[str, dict[str, Any]] = {}
    series: tuple[SeriesStep, ...] = ()
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
    def _one_kind(self) -> "AuditConfig":
        kinds = {model.kind for _, model in self.models()}
        if self.task.kind == "recorded" and kinds != {"recorded"}:
            raise ValueError(
                'task.kind = "recorded" needs every model to be recorded; give [task] kind = "facts" and its files'
            )
        if self.task.kind == "facts" and "recorded" in kinds:
            raise ValueError(
                'a recorded model brings its own items: use [task] kind = "recorded" and recorded models throughout'
            )
        return self

    def models(self) -> list[tuple[str, "ModelConfig"]]:
        """All models with their roles: target, reference 1 ..., original."""
        models: list[tuple[str, ModelConfig]] = [("target", self.target)]
        models += [(f"reference {number}", model) for number, model in enumerate(self.references, start=1)]
        if self.original is not None:
            models.append(("original", self.original))
        return models


def load(path: Path) -> AuditConfig:
    """Reads audit.toml.

    Args:
        path: The file.

    Returns:
        The configuration; its paths are still relative to the file's folder.

    Raises:
        UsageError: The file cannot be used; the message names the key and the mend.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); `muaudit init` writes one to start from") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    return parse(values, str(path))


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
    tag = {"task": 1, "target": 1, "original": 1, "references": 2}.get(str(next(iter(first["loc"]), "")))
    path = [str(part) for place, part in enumerate(first["loc"]) if place != tag]
    key = ".".join(path) or "the file"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it"
    if first["type"] == "extra_forbidden":
        known = sorted(_keys(AuditConfig))
        near = get_close_matches(path[-1], known, n=1)
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}")
    if first["type"] == "union_tag_not_found":
        return f"key {key + '.kind'!r} is missing; it says what this is"
    return f"key {key!r}: {first['msg'].removeprefix('Value error, ')}"


def _keys(model: type[BaseModel]) -> set[str]:
    """Every key that audit.toml knows, at any depth."""
    families: list[type[BaseModel]] = [
        FactsTask,
        RecordedTask,
        CausalLMConfig,
        GuardedConfig,
        RecordedConfig,
        EndpointConfig,
        PolicyConfig,
        RunConfig,
        SeriesStep,
        SigningConfig,
    ]
    return set(model.model_fields).union(*(family.model_fields for family in families))
