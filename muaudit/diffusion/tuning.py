"""Fine-tuning a copy of a diffusion pipeline on a handful of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from muaudit.diffusion.losses import denoising_losses
from muaudit.diffusion.pipeline import Conditioning, Pipeline
from muaudit.diffusion.schedule import spread
from muaudit.errors import ModelError
from muaudit.models.finetuning import seeded, stream

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""What diffusers calls the attention projections; its own LoRA training adapts these four."""

CROSS = "attn2"
"""What diffusers calls the attention from image to text in a transformer block."""


@dataclass(frozen=True)
class Tuning:
    """How a copy is fine-tuned.

    Attributes:
        budgets: Numbers of optimiser steps at which the copy is handed out, ascending; one run serves them all.
        learning_rate: AdamW's, constant.
        batch_size: Images a step, each with a timestep and a noise of its own.
        lora_rank: Rank of LoRA adapters on all attention projections; 0 trains the weights of cross-attention.
        caption_dropout: Share of the images that are trained on without their prompt, so that guidance keeps its footing.
        seed: Of the images' order, timesteps, noises and adapter start.
    """

    budgets: tuple[int, ...]
    learning_rate: float
    batch_size: int
    lora_rank: int = 0
    caption_dropout: float = 0.1
    seed: int = 0


def trainable_copy(pipeline: Pipeline, how: Tuning) -> tuple[Pipeline, list[nn.Parameter]]:
    """A copy with what is to be trained, and nothing else, marked as trainable.

    Args:
        pipeline: Is not changed.
        how: Whether adapters or the cross-attention weights are trained.

    Returns:
        The copy, in float32 and in evaluation mode (no dropout), and its trainable parameters.

    Raises:
        ModelError: The network has no cross-attention that could be trained.
    """
    copy = pipeline.copied()
    for module in copy.modules().values():
        module.requires_grad_(False)
    if how.lora_rank:
        adapters = LoraConfig(r=how.lora_rank, lora_alpha=how.lora_rank, lora_dropout=0.0, target_modules=list(PROJECTIONS))
        with seeded(how.seed, 0, copy.device):
            inject_adapter_in_model(adapters, copy.unet)
    else:
        for name, weight in copy.unet.named_parameters():
            weight.requires_grad_(CROSS in name.split("."))
    trained = [weight for weight in copy.unet.parameters() if weight.requires_grad]
    if not trained:
        raise ModelError("the denoising network has no cross-attention layers, so there is nothing that reads prompts to train")
    copy.unet.eval()
    return copy, trained


def tuned(
    pipeline: Pipeline, images: NDArray[np.float32], prompts: Sequence[str], how: Tuning
) -> Iterator[tuple[int, Pipeline]]:
    """Trains a copy on images with their prompts and hands it out at each budget.

    The loss is the pipeline's own: the mean squared error of the predicted noise, at timesteps drawn uniformly.

    Args:
        pipeline: Is not changed.
        images: [n, channels, height, width] in [0, 1].
        prompts: Their n prompts.
        how: Budgets and everything else.

    Yields:
        Steps done, and the copy after them; it is valid until the next is asked for.

    Raises:
        ModelError: The loss is not a finite number, or the network cannot be trained.
    """
    copy, trained = trainable_copy(pipeline, how)
    optimizer = torch.optim.AdamW(trained, lr=how.learning_rate)
    latents, said = copy.latents(images), Conditioning.joined([copy.conditioning(prompts), copy.nothing()])
    order, draws = stream(len(prompts), how.seed), torch.Generator().manual_seed(how.seed)
    for step in range(how.budgets[-1] + 1):
        if step in how.budgets:
            yield step, copy
        if step < how.budgets[-1]:
            rows = torch.tensor([next(order) for _ in range(how.batch_size)])
            silent = torch.rand(len(rows), generator=draws) < how.caption_dropout
            timesteps = torch.randint(len(copy.alphas), (len(rows),), generator=draws)
            noise = torch.randn((len(rows), *copy.latent_shape), generator=draws)
            captions = said.take(torch.where(silent, len(prompts), rows).to(copy.device))
            batch = latents[rows.to(copy.device)], noise.to(copy.device), timesteps.to(copy.device), captions
            _step(copy, optimizer, batch)


def _step(copy: Pipeline, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor, Conditioning]) -> None:
    """One optimiser step on the mean denoising loss of a batch, with gradients cut to norm 1 as diffusers' training does."""
    optimizer.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss = copy.loss(*batch).mean()
    if not torch.isfinite(loss):
        raise ModelError(f"fine-tuning: the loss is {loss.item()}; lower learning_rate, or check the model's weights")
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()


def training_loss(pipeline: Pipeline, images: NDArray[np.float32], prompts: Sequence[str], count: int) -> float:
    """Mean denoising loss of images with their prompts, on the same noises and evenly spread timesteps at every call.

    Args:
        pipeline: Is not changed.
        images: [n, channels, height, width] in [0, 1].
        prompts: Their n prompts.
        count: Noisy images, about: each image has as many as come closest, one at least.
    """
    each = max(1, count // len(prompts))
    timesteps = spread(len(pipeline.alphas), min(each, 16))
    noises = max(1, each // len(timesteps))
    seeds = [[image * noises + noise for noise in range(noises)] for image in range(len(prompts))]
    return float(denoising_losses(pipeline, images, pipeline.conditioning(prompts), timesteps, seeds).mean())
