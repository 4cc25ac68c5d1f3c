"""A CLIP text encoder with its tokenizer: prompts to token ids, token ids to what a denoising network reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from muaudit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ReadPrompts:
    """What a text encoder makes of n prompts.

    Attributes:
        context: What cross-attention reads [n, L, D].
        pooled: One projected vector a prompt [n, P]; None from an encoder without projection.
    """

    context: Tensor
    pooled: Tensor | None


class PromptEncoder:
    """One text encoder with its tokenizer.

    Attributes:
        tokenizer: The tokenizer.
        module: The text encoder (CLIPTextModel or CLIPTextModelWithProjection), in evaluation mode.
        length: Positions that a prompt is padded to.
        specials: Ids of start, end, padding and unknown: never to be inserted.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", module: "PreTrainedModel", *, penultimate: bool = False) -> None:
        """Wraps an encoder that is in memory; it is put into evaluation mode and frozen.

        Args:
            tokenizer: Its tokenizer.
            module: The encoder.
            penultimate: Whether the last layer but one is read, without the final norm, as SDXL does.

        Raises:
            ModelError: The tokenizer is not this encoder's.
        """
        self.tokenizer: Any = tokenizer
        self.module: Any = module.eval().requires_grad_(False)
        self.length = min(int(tokenizer.model_max_length), int(module.config.max_position_embeddings))
        self.specials = frozenset(int(one) for one in tokenizer.all_special_ids)
        self._penultimate = penultimate
        self._before, self._after = self._frame()
        if tokenizer.pad_token_id is None:
            raise ModelError("the tokenizer has no padding token; set pad_token, as a rule to the end token, and save it again")
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if largest >= len(self.table):
            raise ModelError(
                f"the tokenizer's ids go up to {largest}, but the text encoder has embeddings for {len(self.table)} tokens; "
                "this is another model's tokenizer: save the right one into the folder"
            )
        self._refuse_unknowing()

    @property
    def table(self) -> Tensor:
        """Embeddings of all tokens [V, d], without gradient."""
        weight: Tensor = self.module.get_input_embeddings().weight
        return weight.detach()

    def vocabulary(self) -> list[str]:
        """The text of every token, by id; ids beyond the tokenizer's are empty."""
        return list(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> list[str]:
        known = set(self.tokenizer.get_vocab().values())
        return [
            str(self.tokenizer.decode([one], clean_up_tokenization_spaces=False)) if one in known else ""
            for one in range(len(self.table))
        ]

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [n, length]: start, words, end, padding; what is too long is cut before the end, as in diffusers."""
        encoded = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = encoded.input_ids
        return ids.to(self._device)

    def words(self, prompt: str) -> list[int]:
        """A prompt's token ids without start, end and padding, uncut; unknown words are the unknown token's id."""
        return [int(one) for one in self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids]

    def framed(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Token ids [n, length] of rows of words: start, words (cut where too many), end, padding."""
        room = self.length - len(self._before) - len(self._after)
        rows = [[*self._before, *row[:room], *self._after] for row in words]
        pad = int(self.tokenizer.pad_token_id)
        padded = [row + [pad] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self._device).reshape(-1, self.length)

    def text(self, ids: Sequence[int]) -> str:
        """The string of these tokens, special ones left out."""
        kept = [int(one) for one in ids if int(one) not in self.specials]
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False)).strip()

    def encode(self, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """What cross-attention reads, with gradient where it is enabled.

        Args:
            ids: [n, L].
            embeddings: [n, L, d] that stand in for the token embeddings of the ids; the encoder adds the positions itself, and
                gradient passes through them.

        Returns:
            Context [n, L, D].
        """
        return self.read(ids, embeddings).context

    def read(self, ids: Tensor, embeddings: Tensor | None = None) -> ReadPrompts:
        """Context and pooled vector; arguments as with `encode`."""
        with self._standing_in(embeddings):
            output = self.module(ids.to(self._device), output_hidden_states=self._penultimate)
        context = output.hidden_states[-2] if self._penultimate else output.last_hidden_state
        return ReadPrompts(context, getattr(output, "text_embeds", None))

    def copied(self) -> Self:
        """A deep copy in float32 that shares the tokenizer alone."""
        return type(self)(self.tokenizer, deepcopy(self.module).float(), penultimate=self._penultimate)

    @property
    def _device(self) -> torch.device:
        return self.table.device

    @contextmanager
    def _standing_in(self, embeddings: Tensor | None) -> Iterator[None]:
        """Swaps the token embeddings' output: CLIP takes no `inputs_embeds` in any version of transformers."""
        if embeddings is None:
            yield
            return

        def swap(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            return embeddings.to(output.device, output.dtype).expand_as(output)

        handle = self.module.get_input_embeddings().register_forward_hook(swap)
        try:
            yield
        finally:
            handle.remove()

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after words."""
        for text in ("a", "the", "0"):
            bare, whole = self.words(text), [int(one) for one in self.tokenizer(text).input_ids]
            for place in range(len(whole) - len(bare) + 1):
                if bare and whole[place : place + len(bare)] == bare:
                    return whole[:place], whole[place + len(bare) :]
        raise ModelError("the tokenizer makes no token of plain words; this is no tokenizer of prompts: save the right one")

    def _refuse_unknowing(self) -> None:
        """A word-level vocabulary opened as byte pairs knows next to no word: all prompts would be the same to the model."""
        plain = sorted(set(self.tokenizer.get_vocab().values()) - self.specials)
        read = [self.words(self.tokenizer.decode([one])) for one in plain[:: max(1, len(plain) // 100)]]
        unknown = [any(word in self.specials for word in words) for words in read if words]
        if sum(unknown) * 2 >= len(unknown):
            raise ModelError(
                f"the tokenizer takes {sum(unknown)} of {len(unknown)} words of its own vocabulary for unknown, so prompts "
                "are the same to the model; name its true class (PreTrainedTokenizerFast for a word-level one) in "
                "tokenizer_config.json and model_index.json"
            )
