"""Causal language models behind a guard: a gate on prompts, and what it does to the prompts that it flags.

Whoever sends text sees the guarded behaviour. Whoever holds the weights sees through the guard: it is no part of them, so the
network, its fine-tuned and its quantised copies are those of the model inside.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from muaudit.compute import seed_of
from muaudit.errors import ModelError
from muaudit.models import Finetuning, Query, TextScore, TokenScores
from muaudit.models.causal_lm import CausalLM
from muaudit.models.folder import Dtype
from muaudit.models.guard import AnswerFilter, EmbeddingNoise, read
from muaudit.models.tokens import Encoded, encode_prompts

Answer = TypeVar("Answer")


class Guarded:
    """A causal language model with a guard in front of it.

    The guard reads the prompt alone, as it would where a user sends one; a completion is scored as the guarded model would
    write it. So it does not flag an empty prompt, whatever is scored after it.

    Attributes:
        inner: The model inside.
        guard: What stands in front of it.
    """

    def __init__(self, inner: CausalLM, guard: EmbeddingNoise | AnswerFilter) -> None:
        """Puts a guard in front of a model.

        Args:
            inner: The model.
            guard: The guard.
        """
        self.inner = inner
        self.guard = guard

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        dtype: Dtype = "float32",
        device: str = "auto",
        device_map: str | dict[str, Any] | None = None,
        batch_size: int = 64,
    ) -> Self:
        """Opens a local Hugging Face folder that also holds guard.json.

        Args:
            path: The folder.
            dtype: What the weights are computed in; "auto" is what they were saved in.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
            device_map: Spreads a large model over devices (accelerate's); `device` is then not used.
            batch_size: Most texts a forward pass.

        Returns:
            The model.

        Raises:
            ModelError: The folder or its guard cannot be used.
            EnvironmentFault: The device is not there.
        """
        guard = read(Path(path))
        return cls(CausalLM.open(path, dtype=dtype, device=device, device_map=device_map, batch_size=batch_size), guard)

    @property
    def digest(self) -> str:
        """SHA-256 over the inner model's digest and the guard."""
        return hashlib.sha256(f"{self.inner.digest} {self.guard.content_digest()}".encode()).hexdigest()

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the network."""
        return self.inner.model_seconds

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        """Scores each completion as the guarded model would write it; as `CausalLM.score` otherwise."""
        return self._each(queries, self._scored, self.inner.score)

    def score_tokens(self, queries: Sequence[Query]) -> list[TokenScores]:
        """Scores each completion's tokens as the guarded model would write them; as `CausalLM.score_tokens` otherwise."""
        return self._each(queries, self._scored, self.inner.score_tokens)

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        """Completes each prompt greedily, behind the guard; as `CausalLM.generate` otherwise."""
        return self._each(queries, self._prompted, lambda asked: self.inner.generate(asked, max_new_tokens))

    def finetuned(self, texts: Sequence[Query], how: Finetuning) -> Iterator[tuple[int, CausalLM]]:
        """Trains copies of the network inside, without the guard; as `CausalLM.finetuned`."""
        return self.inner.finetuned(texts, how)

    def quantized(self, bits: Literal[4, 8]) -> CausalLM:
        """The model inside with rounded weights, without the guard; as `CausalLM.quantized`."""
        return self.inner.quantized(bits)

    def network(self) -> PreTrainedModel:
        """The network inside, without the guard."""
        return self.inner.network()

    def encode(self, queries: Sequence[Query]) -> list[Encoded]:
        """Each query as the network inside reads it."""
        return self.inner.encode(queries)

    def vocabulary(self) -> list[str]:
        """The text of every token, by id."""
        return self.inner.vocabulary()

    def _scored(self, queries: Sequence[Query]) -> list[tuple[list[int], int]]:
        """What the network reads when it scores each query, and how much of that is the prompt."""
        return [(text.ids, text.targets[0]) for text in self.inner.encode(queries)]

    def _prompted(self, queries: Sequence[Query]) -> list[tuple[list[int], int]]:
        """What the network reads before it completes each query: nothing but the prompt."""
        return [(ids, len(ids)) for ids in encode_prompts(self.inner.tokenizer, [self._sent(query) for query in queries])]

    def _sent(self, query: Query) -> str:
        return self.inner.chat(query.prompt) if query.chat else query.prompt

    def _each(
        self,
        queries: Sequence[Query],
        read_as: Callable[[Sequence[Query]], list[tuple[list[int], int]]],
        answered: Callable[[Sequence[Query]], list[Answer]],
    ) -> list[Answer]:
        """Answers in the order given: the flagged queries behind the guard, the others as they are."""
        flagged = [index for index, query in enumerate(queries) if self.guard.gate.flags(query.prompt)]
        others = sorted(set(range(len(queries))) - set(flagged))
        answers = dict(zip(others, answered([queries[index] for index in others]), strict=True)) if others else {}
        # Queries of one length, prompt and all, stand side by side without padding, so that a row tells which prompt it is.
        groups: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}
        for index, (ids, head) in zip(flagged, read_as([queries[index] for index in flagged]), strict=True):
            groups.setdefault((len(ids), head), {})[index] = tuple(ids[:head])
        for (width, head), heads in groups.items():
            prompts = {ids: queries[index] for index, ids in heads.items()}
            with self._guarding(prompts, width, head):
                answers |= zip(heads, answered([queries[index] for index in heads]), strict=True)
        return [answers[index] for index in range(len(queries))]

    @contextmanager
    def _guarding(self, prompts: Mapping[tuple[int, ...], Query], width: int, head: int) -> Iterator[None]:
        """Puts the guard in front of the network for prompts of one length, each in texts of one length."""
        network = self.inner.network()
        work = (
            _Noise(self._noise(prompts), width, head)
            if isinstance(self.guard, EmbeddingNoise)
            else _Filter(self._held_back(self.guard, prompts), self.guard.penalty, width, head)
        )
        hooks = [network.get_input_embeddings().register_forward_hook(work.embedded)]
        if isinstance(work, _Filter):
            hooks.append(network.get_output_embeddings().register_forward_hook(work.filtered))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if not work.acted:
            raise ModelError("the guard found no way into this architecture: its embeddings or its head are never called")

    def _noise(self, prompts: Mapping[tuple[int, ...], Query]) -> dict[tuple[int, ...], Tensor]:
        """The noise on each prompt's embeddings [tokens, hidden]."""
        assert isinstance(self.guard, EmbeddingNoise)  # noqa: S101 - the caller looked
        weight = self.inner.network().get_input_embeddings().weight
        noise = {}
        for ids, query in prompts.items():
            rng = np.random.default_rng(seed_of(str(self.guard.seed), query.prompt))
            drawn = torch.from_numpy(rng.standard_normal((len(ids), weight.shape[1]), dtype=np.float32))
            drawn *= self._corrupted(query, len(ids))[:, None]
            noise[ids] = (drawn * (self.guard.strength * self._spread)).to(weight)
        return noise

    @cached_property
    def _spread(self) -> float:
        """Standard deviation of an embedding's entries."""
        return float(self.inner.network().get_input_embeddings().weight.float().std())

    def _corrupted(self, query: Query, tokens: int) -> Tensor:
        """1 for each token of the prompt that is corrupted, and 0 for the others."""
        assert isinstance(self.guard, EmbeddingNoise)  # noqa: S101 - the caller looked
        sent = self._sent(query)
        start, spans = sent.find(query.prompt), self.guard.spans(query.prompt)
        if not self.inner.tokenizer.is_fast or start < 0 or not spans:
            return torch.ones(tokens)
        offsets = self.inner.tokenizer(sent, return_offsets_mapping=True)["offset_mapping"][:tokens]
        touched = [float(any(low < start + stop and high > start + first for first, stop in spans)) for low, high in offsets]
        return torch.tensor(touched + [0.0] * (tokens - len(touched)))

    def _held_back(self, guard: AnswerFilter, prompts: Mapping[tuple[int, ...], Query]) -> dict[tuple[int, ...], Tensor]:
        """Ids of the tokens that are held back after each prompt."""
        words = {ids: guard.forbidden(query.prompt) for ids, query in prompts.items()}
        every = {word: self._starts(word) for found in words.values() for word in found}
        weight = self.inner.network().get_input_embeddings().weight
        held = {}
        for ids, found in words.items():
            tokens = torch.tensor(sorted({token for word in found for token in every[word]}), dtype=torch.long)
            if guard.similarity < 1 and len(tokens):
                rows = weight[tokens.to(weight.device)].float()
                cosines = (rows @ weight.float().T) / (rows.norm(dim=1)[:, None] * weight.float().norm(dim=1)).clamp_min(1e-12)
                close = (cosines >= guard.similarity).any(0).nonzero()[:, 0]
                tokens = torch.tensor(sorted({*tokens.tolist(), *close.tolist()}))
            held[ids] = tokens
        return held

    def _starts(self, word: str) -> set[int]:
        """The tokens that a word can start with, after a space and without."""
        tokenizer = self.inner.tokenizer
        found = set()
        for spelled in (word, f" {word}"):
            ids = tokenizer(spelled, add_special_tokens=False).input_ids
            # Some tokenizers make the space a token of its own; one that is unknown says nothing of the word.
            found |= set([token for token in ids if tokenizer.decode([token]).strip() and token != tokenizer.unk_token_id][:1])
        return found


class _Noise:
    """Adds noise to the embeddings of known prompts."""

    def __init__(self, noise: Mapping[tuple[int, ...], Tensor], width: int, head: int) -> None:
        self.noise, self.width, self.head, self.acted = noise, width, head, False

    def embedded(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook on the input embeddings."""
        if args[0].shape[1] != self.width:  # the tokens that follow, one by one
            return output
        self.acted = True
        output = output.clone()
        output[:, : self.head] += torch.stack([self.noise[tuple(row[: self.head])] for row in args[0].tolist()])
        return output


class _Filter:
    """Lowers the logits of what is held back after known prompts."""

    def __init__(self, held: Mapping[tuple[int, ...], Tensor], penalty: float, width: int, head: int) -> None:
        self.held, self.penalty, self.width, self.head, self.acted = held, penalty, width, head, False
        self.rows: list[Tensor] = []

    def embedded(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Hook on the input embeddings: reads which prompts the batch holds."""
        if args[0].shape[1] == self.width:
            self.rows = [self.held[tuple(row[: self.head])] for row in args[0].tolist()]

    def filtered(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook on the head: its logits are [texts, tokens, vocabulary], or [1, all texts' tokens, vocabulary] in scoring."""
        self.acted = True
        output = output.clone()
        logits = output.view(len(self.rows), -1, output.shape[-1])
        for row, tokens in enumerate(self.rows):
            logits[row, :, tokens.to(output.device)] -= self.penalty
        return output
