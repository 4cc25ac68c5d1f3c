"""Model families, and what a model can do.

A family offers capabilities as small runtime-checkable protocols. An attack names the ones it needs; a model that lacks one is
skipped with that reason. Nothing here imports a family until a model of it is opened.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self, runtime_checkable

from pydantic import Field

from muaudit.results import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedModel

    from muaudit.diffusion.pipeline import Pipeline, PromptEncoder
    from muaudit.examples import Examples
    from muaudit.models.tokens import Encoded

Role = Literal["answer", "paraphrase", "wrong_answer", "text", "probe"]


@dataclass(frozen=True)
class Query:
    """What a text model is asked to score or to complete.

    Attributes:
        unit: The fact that it belongs to.
        role: Which of the fact's completions it is.
        prompt: What stands before the completion.
        completion: What is scored; with generation, the gold completion (never shown to the model).
        index: Which one, where a fact has several of that role.
        chat: Whether the prompt goes through the model's own chat template first.
    """

    unit: str
    role: Role
    prompt: str
    completion: str
    index: int = 0
    chat: bool = False


@dataclass(frozen=True)
class TextScore:
    """A completion's score under teacher forcing.

    Attributes:
        log_probability: Natural log-probability of the whole completion.
        tokens: Its number of tokens, at least 1.
        hits: For each token, whether it was the model's first choice; None where only sums were recorded.
    """

    log_probability: float
    tokens: int
    hits: tuple[bool, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean log-probability a token, in nats."""
        return self.log_probability / self.tokens


@dataclass(frozen=True)
class TokenScores:
    """A completion's tokens under teacher forcing, with what the whole vocabulary looked like at each.

    Attributes:
        log_probabilities: Natural log-probability of each token.
        means: Mean log-probability over the vocabulary at each token, weighted by probability (minus the entropy).
        variances: Variance of the log-probability over the vocabulary at each token, weighted by probability.
    """

    log_probabilities: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]


class Finetuning(Frozen):
    """How a model is fine-tuned.

    Attributes:
        budgets: Numbers of optimiser steps at which the model is handed out, ascending; one run serves them all.
        learning_rate: Peak rate of AdamW, constant after the warm-up.
        batch_size: Texts a step.
        warmup: Steps of linear warm-up.
        weight_decay: AdamW's decoupled weight decay.
        lora_rank: Rank of the LoRA adapters on all linear layers; 0 trains all weights.
        lora_alpha: LoRA's scale numerator.
        seed: Of batch order and adapter start.
    """

    budgets: tuple[int, ...]
    learning_rate: float
    batch_size: int
    warmup: int = 0
    weight_decay: float = 0.0
    lora_rank: int = 0
    lora_alpha: int = 16
    seed: int = 0


class Sampling(Frozen):
    """How images are sampled, alike for every model of an audit.

    Attributes:
        sampler: Which of the customary solvers.
        steps: Denoising steps an image.
    """

    sampler: Literal["ddim", "lms", "euler", "dpm_solver"] = "ddim"
    steps: Annotated[int, Field(ge=1, le=1000)] = 50


@dataclass(frozen=True)
class ImageQuery:
    """An image that a model is asked to draw.

    Attributes:
        unit: The prompt that it belongs to.
        prompt: What is asked for, as text.
        seed: Of its first noise, and of what noise the sampler adds; the same seed gives the same image in any batch.
        guidance: Scale of classifier-free guidance; 1 is none.
        sampling: Sampler and steps.
    """

    unit: str
    prompt: str
    seed: int
    guidance: float
    sampling: Sampling


@runtime_checkable
class Model(Protocol):
    """What every model has."""

    @property
    def digest(self) -> str:
        """Digest of everything that can change what the model does (weights, configuration, tokenizer, dtype)."""
        ...

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the model so far: scoring, generating, training."""
        ...


@runtime_checkable
class ScoresText(Protocol):
    """Gives log-probabilities of completions."""

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        """Scores each completion after its prompt, in the order given."""
        ...


@runtime_checkable
class GeneratesText(Protocol):
    """Completes prompts."""

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        """Completes each prompt greedily, in the order given."""
        ...


@runtime_checkable
class KeepsAnswers(Protocol):
    """Keeps what it was answered, so that nothing is asked twice; whoever wants to ask twice says on which occasion."""

    def asked_anew(self, occasion: str) -> Self:
        """The same model without the answers that were kept on other occasions."""
        ...


@runtime_checkable
class Finetunes(Protocol):
    """Can be trained further, as a copy."""

    def finetuned(self, texts: Sequence[Query], how: Finetuning) -> Iterator[tuple[int, ScoresText]]:
        """Trains a copy on the queries' completions after their prompts and hands it out at each budget.

        Each handed-out model is valid until the next is asked for. This model itself is not changed.
        """
        ...


@runtime_checkable
class ScoresTokens(Protocol):
    """Gives the log-probability of every token, with the moments of the whole vocabulary's."""

    def score_tokens(self, queries: Sequence[Query]) -> list[TokenScores]:
        """Scores each completion's tokens after its prompt, in the order given."""
        ...


@runtime_checkable
class ExposesWeights(Protocol):
    """Lets its network be read: weights, hidden states, gradients. Whoever reads must leave it as it was."""

    def network(self) -> "PreTrainedModel":
        """The network itself, in evaluation mode, its parameters frozen."""
        ...

    def encode(self, queries: Sequence[Query]) -> "list[Encoded]":
        """Each query as the network reads it when it scores it: token ids, and the places of the completion's tokens."""
        ...

    def vocabulary(self) -> list[str]:
        """The text of every token, by id."""
        ...


@runtime_checkable
class Quantizes(Protocol):
    """Can be had with its weights rounded, as a copy."""

    def quantized(self, bits: Literal[4, 8]) -> Self:
        """A copy whose linear layers hold weights rounded to so many bits. This model itself is not changed."""
        ...


@runtime_checkable
class ReportsUtility(Protocol):
    """Knows its own TOFU model utility."""

    def model_utility(self) -> dict[str, float]:
        """TOFU's harmonic mean of nine, in [0, 1], by definition of the truth ratio; empty where the nine are not known."""
        ...


@runtime_checkable
class Classifies(Protocol):
    """Gives class scores of the task's examples, computed or recorded."""

    def logits(self, examples: "Examples") -> "NDArray[np.float64]":
        """Logits [n, C], in the order given: scores whose softmax are the class probabilities (log-probabilities are)."""
        ...


@runtime_checkable
class ClassifiesInputs(Protocol):
    """Gives class scores of any inputs, such as augmented or perturbed ones."""

    def logits_of(self, inputs: "NDArray[np.float32]") -> "NDArray[np.float64]":
        """Logits [n, C] of inputs [n, ...]."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """Gives numbers for the task's examples: a regressor."""

    def predictions(self, examples: "Examples") -> "NDArray[np.float64]":
        """Predictions [n, d], in the order given."""
        ...


@runtime_checkable
class ExposesLayers(Protocol):
    """Lets what its layers make of inputs be read."""

    def layers(self) -> tuple[str, ...]:
        """Names of the layers, from input to output; the last one gives the logits."""
        ...

    def activations(self, inputs: "NDArray[np.float32]", layer: str) -> "NDArray[np.float32]":
        """One layer's output [n, d], flattened."""
        ...


@runtime_checkable
class HoldsModule(Protocol):
    """Is a torch network that can be copied and trained further, by an unlearning procedure for one."""

    def module(self) -> "nn.Module":
        """A copy of the network, in evaluation mode; whoever changes it changes nothing here."""
        ...


@runtime_checkable
class ClassifiesMany(Protocol):
    """Is a population of models that were made alike with different seeds."""

    def member_logits(self, examples: "Examples") -> "NDArray[np.float64]":
        """Logits [M, n, C] of every member."""
        ...


@runtime_checkable
class GeneratesImages(Protocol):
    """Draws images of prompts."""

    def images(self, queries: Sequence[ImageQuery]) -> "NDArray[np.float32]":
        """Images [n, channels, height, width] in [0, 1], in the order given."""
        ...


@runtime_checkable
class Denoises(Protocol):
    """Lets its denoising network be computed with. Whoever does must leave it as it was."""

    def pipeline(self) -> "Pipeline":
        """The networks, in evaluation mode, their parameters frozen; `copied()` gives one to train."""
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """Has one text encoder, whose tokens and token embeddings an attack can choose."""

    def prompt_encoder(self) -> "PromptEncoder":
        """The text encoder with its tokenizer, in evaluation mode, its parameters frozen."""
        ...


CAPABILITIES: tuple[type, ...] = (
    ScoresText, GeneratesText, ScoresTokens, Finetunes, ExposesWeights, Quantizes, ReportsUtility,
    Classifies, ClassifiesInputs, Predicts, ExposesLayers, HoldsModule, ClassifiesMany,
    GeneratesImages, Denoises, ReadsPrompts,
)  # fmt: skip
"""All that a family can offer."""
