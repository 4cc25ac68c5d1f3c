"""Models that help an audit and are not audited: one that writes queries, one that judges answers."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from muaudit.manifest import manifest, manifest_digest
from muaudit.model_config import EndpointConfig
from muaudit.models import GeneratesText, Query, ScoresText
from muaudit.results import Frozen


class Assistant(Frozen):
    """Where a helping model is. The path of a folder alone will do, and so will the settings of an endpoint alone.

    Attributes:
        path: A local model's folder, from the folder that muaudit is run in.
        dtype: What a local model is computed in; "auto" is what it was saved in.
        endpoint: A model behind an OpenAI-compatible server; its key stays in the environment.
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    endpoint: EndpointConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the configuration holds
        if isinstance(values, str):
            return {"path": values}
        if isinstance(values, dict) and "url" in values:
            return {"endpoint": {"kind": "endpoint", **values}}
        return values

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.endpoint is None):
            raise ValueError("give either the path of a local model's folder, or the url and model of an endpoint")
        return self

    def identity(self) -> str:
        """What tells this model from another: the digest of the folder's files, or the endpoint's model and address.

        Raises:
            ModelError: The folder cannot be read.
        """
        if self.endpoint is not None:
            return self.endpoint.shown
        return f"the model with digest {manifest_digest(manifest(Path(self.path or '')))}"

    def open(self) -> "Helper":
        """Opens it; an endpoint's answers are kept while it is open.

        Raises:
            ModelError: The folder cannot be used.
            EnvironmentFault: What it needs is not installed, or the endpoint's key is not in the environment.
        """
        if self.endpoint is not None:
            from muaudit.models.endpoint import Endpoint

            kept = TemporaryDirectory(prefix="muaudit-")
            return Helper(Endpoint.open(self.endpoint, Path(kept.name)), kept=kept)
        from muaudit.models.causal_lm import CausalLM

        local = CausalLM.open(self.path or "", dtype=self.dtype)
        return Helper(local, chat=bool(local.tokenizer.chat_template))


class Helper:
    """An opened assistant.

    Attributes:
        model: The model.
        chat: Whether prompts go through its own chat template first.
    """

    def __init__(self, model: GeneratesText, *, chat: bool = False, kept: "TemporaryDirectory[str] | None" = None) -> None:
        """Wraps a model.

        Args:
            model: Completes text.
            chat: Whether prompts go through its own chat template first.
            kept: A folder that goes when this object goes.
        """
        self.model, self.chat, self._kept = model, chat, kept

    def replies(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """What the model says to each prompt.

        Args:
            prompts: What it is asked.
            max_new_tokens: Longest reply.
        """
        return self.model.generate([self._query(prompt, "") for prompt in prompts], max_new_tokens)

    def preferences(self, prompts: Sequence[str], completions: tuple[str, str]) -> list[float] | None:
        """How much likelier the first of two completions is than the second after each prompt.

        Args:
            prompts: What it is asked.
            completions: Two completions; the space before them is written here, where one is needed.

        Returns:
            Differences of mean token log-probabilities, in nats; None where the model gives text only.
        """
        if not isinstance(self.model, ScoresText):
            return None
        space = "" if self.chat else " "
        queries = [self._query(prompt, space + completion) for prompt in prompts for completion in completions]
        means = [score.mean for score in self.model.score(queries)]
        return [first - second for first, second in zip(means[::2], means[1::2], strict=True)]

    def _query(self, prompt: str, completion: str) -> Query:
        return Query("assistant", "probe", prompt, completion, 0, self.chat)
