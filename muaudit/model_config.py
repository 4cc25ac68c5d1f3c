"""The models of an audit.toml: one class a kind."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from muaudit.results import Frozen


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


class DiffusionConfig(Frozen):
    """A local diffusers pipeline folder that draws images of prompts, with safetensors.

    Attributes:
        path: The folder with model_index.json.
        dtype: What it is computed in.
        batch_size: Images at a time.
        attention_slicing: Whether attention is computed in slices, which takes longer and less memory.
    """

    kind: Literal["diffusion"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Annotated[int, Field(ge=1)] = 16
    attention_slicing: bool = False


ModelConfig = Annotated[
    CausalLMConfig | GuardedConfig | RecordedConfig | EndpointConfig | ClassifierConfig | PopulationConfig | DiffusionConfig,
    Field(discriminator="kind"),
]

WEIGHTLESS = ("recorded", "endpoint")
"""Kinds of models that are not computed here: they need neither torch nor a device."""
