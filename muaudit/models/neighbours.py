"""Words that a language model would put in another word's place: the neighbours of a text are made of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from muaudit.errors import ModelError
from muaudit.models.folder import load, pick_device
from muaudit.models.tokens import pad

_BATCH = 32

Gap = tuple[str, str, str]
"""A text with one word taken out: what stands before it, the word, what stands after it."""


def substitutes(path: Path, gaps: Sequence[Gap], count: int) -> list[list[str]]:
    """The likeliest other words in each gap.

    Args:
        path: A local folder with a masked language model, which sees both sides of the gap, or a causal one, which sees the
            left side only. Opened as safely as a model under audit.
        gaps: The gaps.
        count: Most words a gap.

    Returns:
        For each gap its words, likeliest first: whole words of one token that differ from the word taken out; a gap may have
        fewer than `count`, or none.

    Raises:
        ModelError: The folder cannot be used.
    """
    try:
        named = json.loads((path / "config.json").read_bytes()).get("architectures") or [""]
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: config.json cannot be read ({error}); a model is a local Hugging Face folder") from error
    masked = str(named[0]).endswith("ForMaskedLM")
    folder = load(path, base=None, dtype="float32", device_map=None, masked=masked)
    device = pick_device("auto")
    module = folder.module.to(device)
    texts = [_read(folder.tokenizer, gap, masked=masked) for gap in gaps]
    found: list[list[str]] = []
    for start in range(0, len(gaps), _BATCH):
        batch = texts[start : start + _BATCH]
        ids, mask = pad([text for text, _ in batch], folder.tokenizer.pad_token_id or 0, side="right", device=device)
        with torch.inference_mode():
            logits: Tensor = module(input_ids=ids, attention_mask=mask).logits
        likeliest = torch.stack([logits[row, place] for row, (_, place) in enumerate(batch)]).topk(
            min(8 * count, logits.shape[-1])
        )
        for (_, word, _), row in zip(gaps[start : start + _BATCH], likeliest.indices.tolist(), strict=True):
            found.append(_words(folder.tokenizer, row, word)[:count])
    return found


def _read(tokenizer: PreTrainedTokenizerBase, gap: Gap, *, masked: bool) -> tuple[list[int], int]:
    """Token ids, and the place whose logits are about the gap."""
    before, _, after = gap
    if not masked:
        ids = tokenizer(before.rstrip()).input_ids or [tokenizer.bos_token_id or 0]
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
        return ids, len(ids) - 1
    ids = tokenizer(f"{before}{tokenizer.mask_token}{after}").input_ids
    if tokenizer.mask_token_id not in ids:
        raise ModelError("neighbour_model: the masked model's tokenizer has no mask token; save it with one")
    return ids, ids.index(tokenizer.mask_token_id)


def _words(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], word: str) -> list[str]:
    texts = [str(tokenizer.decode([token])).strip() for token in tokens]
    return [text for text in dict.fromkeys(texts) if text.isalnum() and text.casefold() != word.casefold()]
