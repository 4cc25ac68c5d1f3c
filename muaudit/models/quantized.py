"""Weight rounding to 8 and 4 bits: by the definitions of bitsandbytes, in plain torch, so that it is the same on every device.

bitsandbytes itself is not used: without a GPU it looks for kernels on a model hub, and its 4-bit kernel for CPUs is wrong for
rows that are no multiple of a block. What it computes elsewhere, this computes to the bit. Weights are rounded and handed
back in their own dtype; activations are not rounded, so what is seen is the loss of information in the weights alone.
"""

import copy
from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from muaudit.errors import ModelError

SCHEMES: dict[int, str] = {8: "int8, absmax of each output row", 4: "nf4, absmax of each block of 64"}
"""What rounding to so many bits means here."""

BLOCK = 64

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NormalFloat 4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""


def int8(weight: Tensor) -> Tensor:
    """Rounds to 255 even steps a row, as LLM.int8() rounds weights (Dettmers et al. 2022, arXiv 2208.07339, section 2.1).

    Args:
        weight: [out, in].

    Returns:
        round(127 w / s) s / 127, with s the largest magnitude of the row, halves to even, in the weight's dtype.
    """
    values = weight.float()
    scale = values.abs().amax(1, keepdim=True)
    steps = torch.round(values * (127.0 / scale.where(scale > 0, 1.0)))
    return (steps * scale * (1 / 127)).to(weight.dtype)


def nf4(weight: Tensor) -> Tensor:
    """Rounds to the nearest of 16 NormalFloat levels, in blocks of 64 along the rows (QLoRA, section 3).

    Scales are kept in float32: the second rounding, of the scales, is left out.

    Args:
        weight: [out, in]; blocks run on from row to row, and the last may be short.

    Returns:
        Level times the block's largest magnitude; a value midway between two levels takes the lower one.
    """
    flat = weight.float().reshape(-1)
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4, device=weight.device)
    nearest = torch.bucketize(blocks / scale.where(scale > 0, 1.0), (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * scale).reshape(-1)[: len(flat)].reshape(weight.shape).to(weight.dtype)


def linear_weights(module: PreTrainedModel) -> Iterator[tuple[nn.Parameter, bool]]:
    """The weights that are rounded: those of linear layers, but not the output head; embeddings and norms are none.

    Yields:
        A weight, and whether it is stored as [in, out] (GPT-2's Conv1D) instead of [out, in].
    """
    head = module.get_output_embeddings()
    # A weight that is tied to the embeddings stays as they do.
    kept = {id(weight) for layer in (head, module.get_input_embeddings()) if layer is not None for weight in layer.parameters()}
    for layer in module.modules():
        if isinstance(layer, nn.Linear | Conv1D) and id(layer.weight) not in kept:
            yield cast("nn.Parameter", layer.weight), isinstance(layer, Conv1D)


def rounded_copy(module: PreTrainedModel, bits: Literal[4, 8]) -> PreTrainedModel:
    """A copy whose linear layers hold rounded weights; it shares all other weights, which nothing changes.

    Args:
        module: The network, its parameters frozen.
        bits: 8 (`int8`) or 4 (`nf4`).

    Returns:
        The copy.

    Raises:
        ModelError: The network has no linear layer, or the weights are not floating point (rounded already).
    """
    memo = {id(weight): weight for weight in module.parameters()}
    found = list(linear_weights(module))
    if not found:
        raise ModelError("quantization: the network has no linear layer besides its head, so there is nothing to round")
    scheme = int8 if bits == 8 else nf4
    for weight, transposed in found:
        if not weight.is_floating_point():
            raise ModelError(f"quantization: the weights are {weight.dtype}, so rounded already; give the model they came from")
        rounded = scheme(weight.data.T).T.contiguous() if transposed else scheme(weight.data)
        memo[id(weight)] = nn.Parameter(rounded, requires_grad=False)
    copied: PreTrainedModel = copy.deepcopy(module, memo)
    return copied
