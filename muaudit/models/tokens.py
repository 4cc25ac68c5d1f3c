"""Texts to tokens: where a completion starts, and how a batch is padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: Token ids, with what the tokenizer adds at the beginning.
        targets: Ascending positions of the completion's tokens; each is at least 1, so each has a token before it.
    """

    ids: list[int]
    targets: list[int]


def encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
    """Tokenises prompts with their completions.

    Both are tokenised as one text, so that the boundary falls as it did in training; a token belongs to the completion if it
    reaches beyond the prompt. A tokenizer that cannot tell where its tokens come from takes the two parts one by one.

    Args:
        tokenizer: The model's tokenizer.
        pairs: Prompts and completions.

    Returns:
        One encoded text a pair, without an end-of-sequence mark unless it is written out.
    """
    if not pairs:
        return []
    if not tokenizer.is_fast:
        prompts = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
        completions = [tokenizer(completion, add_special_tokens=False).input_ids for _, completion in pairs]
        return [
            Encoded(head + tail, list(range(max(1, len(head)), len(head) + len(tail))))
            for head, tail in zip(prompts, completions, strict=True)
        ]
    texts = tokenizer([prompt + completion for prompt, completion in pairs], return_offsets_mapping=True)
    encoded = []
    for ids, offsets, (prompt, _) in zip(texts["input_ids"], texts["offset_mapping"], pairs, strict=True):
        # What the tokenizer adds has the empty span (0, 0), so it never counts as completion.
        targets = [place for place, (_, stop) in enumerate(offsets) if place and stop > len(prompt)]
        encoded.append(Encoded(ids[: targets[-1] + 1] if targets else ids, targets))
    return encoded


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Tokenises prompts that are to be continued: an end-of-sequence mark that the tokenizer adds is taken off again."""
    if not prompts:
        return []
    end = tokenizer.eos_token_id
    tail = list(tokenizer("").input_ids)
    adds_end = bool(tail) and tail[-1] == end and end != tokenizer.bos_token_id
    return [ids[:-1] if adds_end else ids for ids in tokenizer(list(prompts))["input_ids"]]


def pad(rows: Sequence[list[int]], fill: int, *, side: Literal["left", "right"], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both [N, longest], filled up on one side."""
    width = max(len(row) for row in rows)
    gaps = [width - len(row) for row in rows]
    left = side == "left"
    ids = [[fill] * gap + row if left else row + [fill] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) if left else [1] * (width - gap) + [0] * gap for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
