"""How well a pipeline denoises given images: the loss by image and timestep."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from muaudit.diffusion.pipeline import Conditioning, Pipeline
from muaudit.errors import ModelError


def denoising_losses(
    pipeline: Pipeline,
    images: NDArray[np.float32],
    told: Conditioning,
    timesteps: Sequence[int],
    seeds: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    """Mean squared error of the predicted noise, by image and timestep, averaged over noises.

    Each image has noises of its own, and the same ones at every timestep, so that what one image loses depends neither on the
    batch nor on the other images.

    Args:
        pipeline: Is not changed.
        images: [n, channels, height, width] in [0, 1].
        told: What the network is told of each image, n rows.
        timesteps: T of them, below the pipeline's number of training timesteps.
        seeds: The seeds of each image's noises, n rows of k.

    Returns:
        Losses [n, T], at least 0.

    Raises:
        ModelError: A loss is not a finite number, or a timestep is none that the pipeline was trained on.
    """
    if max(timesteps) >= len(pipeline.alphas):
        raise ModelError(
            f"timestep {max(timesteps)} is none of this model's, which was trained on 0..{len(pipeline.alphas) - 1}"
        )
    each = len(seeds[0])
    row, noise, time = (axis.ravel() for axis in np.indices((len(images), each, len(timesteps))))
    drawn = pipeline.noise([seed for own in seeds for seed in own])
    latents, at = pipeline.latents(images), torch.tensor(timesteps, device=pipeline.device)
    lost = []
    with torch.no_grad():
        for first in range(0, len(row), pipeline.batch_size):
            part = slice(first, first + pipeline.batch_size)
            where, noises, when = (torch.from_numpy(axis[part]).to(pipeline.device) for axis in (row, row * each + noise, time))
            lost.append(pipeline.loss(latents[where], drawn[noises], at[when], told.take(where)).cpu())
    losses = torch.cat(lost).double().numpy().reshape(len(images), each, len(timesteps))
    broken = np.flatnonzero(~np.isfinite(losses).all(axis=(1, 2)))
    if len(broken):
        raise ModelError(
            f"the denoising loss of image {broken[0] + 1} is not a finite number; check the model's weights and its dtype "
            "(float16 overflows in some networks)"
        )
    mean: NDArray[np.float64] = losses.mean(1)
    return mean
