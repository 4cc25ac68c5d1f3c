"""Per-sample gradients of a network, by opacus."""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from muaudit.compute import flushed_denormals
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.models.tokens import Encoded, pad

_GRADIENT_NUMBERS = 64_000_000
"""Most numbers that the gradients of one batch may hold; a large network is taken one text at a time."""


def gradient_norms(module: PreTrainedModel, texts: Sequence[Encoded]) -> list[float]:
    """Mean over the parameter tensors of the L2 norm of the gradient of each text's mean negative log-likelihood.

    The network's own weights are read in place, by a copy that shares them; dropout stays off. A weight that is tied counts
    once, with the sum of its gradients.

    Args:
        module: The network, which is left as it was.
        texts: The texts; the likelihood is that of their completions' tokens.

    Returns:
        One norm a text, not negative, in the order given.

    Raises:
        ModelError: A norm is not finite.
        EnvironmentFault: opacus is not installed.
    """
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError as error:
        raise EnvironmentFault(
            "gradient norms need opacus: pip install 'muaudit[models]', or take gradient_norm out of scores"
        ) from error
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=True) for weight in module.parameters()}
    network = GradSampleModule(copy.deepcopy(module, shared), loss_reduction="sum", strict=False)
    # Activations are kept by layers in training mode only, and dropout must not be: it sits in layers without weights.
    for layer in network.modules():
        layer.training = any(True for _ in layer.parameters(recurse=False))
    device = module.get_input_embeddings().weight.device
    size = max(1, min(32, _GRADIENT_NUMBERS // sum(weight.numel() for weight in module.parameters())))
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index].ids), index))
    norms = [0.0] * len(texts)
    for start in range(0, len(texts), size):
        batch = order[start : start + size]
        with flushed_denormals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks that token ids have no gradient
            found = _batch(network, [texts[index] for index in batch], device)
        for index, norm in zip(batch, found, strict=True):
            if not norm < float("inf"):
                raise ModelError("gradient norm: the model returned NaN or infinite gradients; try dtype float32")
            norms[index] = norm
    return norms


def _batch(network: nn.Module, texts: Sequence[Encoded], device: torch.device) -> list[float]:
    ids, _ = pad([text.ids for text in texts], 0, side="right", device=device)
    logits = network(input_ids=ids, use_cache=False).logits
    loss = torch.zeros((), device=logits.device)
    for row, text in enumerate(texts):
        places = torch.tensor(text.targets, device=logits.device)
        wanted = ids[row, text.targets].to(logits.device)
        loss = loss + nn.functional.cross_entropy(logits[row, places - 1].float(), wanted)
    torch.autograd.backward(loss)
    norms = []
    for weight in network.parameters():
        # A weight that no text of the batch came by, such as that of an idle expert, has no gradient.
        sampled = getattr(weight, "grad_sample", None)
        if sampled is not None:
            norms.append(sampled.flatten(1).float().norm(dim=1).cpu())
        else:
            norms.append(torch.zeros(len(texts)))
        weight.grad_sample, weight.grad = None, None  # type: ignore[attr-defined]
    means: list[float] = torch.stack(norms).mean(0).tolist()
    return means
