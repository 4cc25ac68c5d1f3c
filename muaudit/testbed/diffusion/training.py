"""Trains small text-to-image pipelines from scratch, in pixel space, and keeps them as folders of diffusers.

As Stable Diffusion does, a pipeline learns to read before it learns to draw: its text encoder is first trained against an image
encoder as CLIP is, on the same captioned images. Without that, cross-attention takes several times as long to make anything of
the captions.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from muaudit.compute import flushed_denormals
from muaudit.diffusion.pipeline import Conditioning, Pipeline, PromptEncoder
from muaudit.errors import ModelError
from muaudit.models.diffusion import Diffusion
from muaudit.results import Frozen
from muaudit.testbed.diffusion.data import NAMES, World, caption

_INDEX = {
    "_class_name": "DiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": [None, None],
}


class Recipe(Frozen):
    """Size and training of a small pipeline.

    Attributes:
        channels: Of the denoising network's two resolutions, 8x8 and 4x4; only the second has attention.
        width: Of the text encoder and of what cross-attention reads.
        layers: Of the text encoder.
        heads: Of every attention.
        reading_steps: Contrastive steps of the text encoder, before all others.
        reading_batch: Captioned images a contrastive step.
        reading_rate: Peak rate of AdamW in these steps, under a one-cycle schedule.
        steps: Denoising steps, of the denoising network and the text encoder together.
        batch_size: Captioned images a denoising step.
        learning_rate: Peak rate of AdamW in these steps, under a one-cycle schedule.
        weight_decay: AdamW's, in all steps.
        average: Decay of the running mean of the weights, which is what is kept.
        location: Median of the logit of the timestep over all timesteps; below 0 there is less noise.
        scale: Standard deviation of that logit.
        empty: Share of captions that are left empty, so that guidance has something to go away from.
    """

    channels: tuple[int, int] = (16, 32)
    width: int = 32
    layers: int = 2
    heads: int = 2
    reading_steps: int = Field(default=100, ge=0)
    reading_batch: int = 128
    reading_rate: float = 3e-3
    steps: int = Field(default=600, ge=1)
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    average: float = Field(default=0.99, ge=0, lt=1)
    location: float = -0.2
    scale: float = 0.9
    empty: float = Field(default=0.1, ge=0, le=1)


@dataclass(frozen=True)
class Batch:
    """Captioned images, noised.

    Attributes:
        latents: Images in [-1, 1], [n, 1, 8, 8].
        noise: Alike.
        timesteps: int64 [n].
        captions: n texts.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: list[str]


@flushed_denormals()
def train(recipe: Recipe, world: World, rows: NDArray[np.int64], seed: int) -> Pipeline:
    """Trains a pipeline from scratch.

    Args:
        recipe: How.
        world: The images and words.
        rows: Places of the images that it is trained on.
        seed: Of all that is drawn.

    Returns:
        The pipeline; the same arguments give the same bytes on one machine with one thread.

    Raises:
        ModelError: The loss is not finite.
    """
    pipeline = untrained(recipe, world.tokenizer, seed)
    _learn_to_read(pipeline.encoders[0], recipe, world, rows, seed)
    weights = [*pipeline.unet.parameters(), *pipeline.encoders[0].module.parameters()]
    optimizer, schedule = one_cycle(weights, recipe.learning_rate, recipe.weight_decay, recipe.steps)
    averages = [weight.detach().clone() for weight in weights]
    for number, batch in zip(range(recipe.steps), drawn(recipe, world, rows, seed), strict=False):
        descend(optimizer, denoising_loss(pipeline, batch))
        schedule.step()
        # A mean of fewer weights at the start, so that it does not drag the first ones along.
        decay = min(recipe.average, (1 + number) / (10 + number))
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - decay)
    with torch.no_grad():
        for weight, average in zip(weights, averages, strict=True):
            weight.copy_(average)
    return pipeline


def untrained(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> Pipeline:
    """A pipeline with random weights, ready to be trained; torch's own generator stays as it was."""
    reader = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.width, intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(reader)
        # diffusers calls the number of heads attention_head_dim.
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=recipe.channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type=None, norm_num_groups=8, cross_attention_dim=recipe.width, attention_head_dim=recipe.heads,
        )  # fmt: skip
    return trainable(Pipeline(unet, None, [PromptEncoder(tokenizer, text_encoder)], scheduler().config, batch_size=256))


def scheduler() -> DDIMScheduler:
    """The noise levels of Stable Diffusion: small images lose what they show at far less noise than Ho et al.'s reach."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=True)


def trainable(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, with all its weights unfrozen."""
    for module in pipeline.modules().values():
        module.requires_grad_(True)
    return pipeline


def one_cycle(
    weights: Sequence[nn.Parameter], rate: float, decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW under a one-cycle schedule with a short warm-up."""
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=max(2, steps + 1), pct_start=0.15, cycle_momentum=False
    )
    return optimizer, schedule


def drawn(recipe: Recipe, world: World, rows: NDArray[np.int64], seed: int) -> Iterator[Batch]:
    """Endless batches: every pass takes all images once, in a new order, and batches run on across passes."""
    rng, generator = np.random.default_rng([seed, 0]), torch.Generator().manual_seed(seed)
    names, latents = list(NAMES), torch.from_numpy(world.images) * 2 - 1
    order = itertools.chain.from_iterable(rng.permutation(rows).tolist() for _ in itertools.count())
    while True:
        places = list(itertools.islice(order, recipe.batch_size))
        shown = latents[torch.tensor(places)]
        said = [
            "" if rng.random() < recipe.empty else caption(names[world.labels[place]], world.fillers, rng) for place in places
        ]
        timesteps = spread_timesteps(len(places), generator, recipe.location, recipe.scale)
        yield Batch(shown, torch.randn(shown.shape, generator=generator), timesteps, said)


def spread_timesteps(count: int, generator: torch.Generator, location: float, scale: float, total: int = 1_000) -> Tensor:
    """Timesteps whose logit is normal (Esser et al. 2024, arXiv 2403.03206, section 3.1), one from each of `count` quantiles.

    Args:
        count: Timesteps.
        generator: Where they are drawn from.
        location: Mean of the logit.
        scale: Standard deviation of the logit.
        total: Timesteps that there are.

    Returns:
        int64 [count], in random order.
    """
    places = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    quantiles = (places / count).clamp(1e-4, 1 - 1e-4)
    return (torch.sigmoid(location + scale * torch.special.ndtri(quantiles)) * total).long().clamp(max=total - 1)


def encoded(pipeline: Pipeline, captions: Sequence[str]) -> Conditioning:
    """What the denoising network is told of captions, with gradient to the text encoder where it is trained."""
    encoder = pipeline.encoders[0]
    return pipeline.conditioned(encoder.encode(encoder.ids(captions)))


def denoising_loss(pipeline: Pipeline, batch: Batch) -> Tensor:
    """Mean squared error of the predicted noise, a scalar."""
    return pipeline.loss(batch.latents, batch.noise, batch.timesteps, encoded(pipeline, batch.captions)).mean()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step.

    Raises:
        ModelError: The loss is not finite.
    """
    if not torch.isfinite(loss):
        raise ModelError(f"training: the loss is {loss.item()}; lower the learning rate or take fewer steps")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


def _learn_to_read(encoder: PromptEncoder, recipe: Recipe, world: World, rows: NDArray[np.int64], seed: int) -> None:
    """Trains a text encoder against an image encoder (Radford et al. 2021, arXiv 2103.00020, figure 3), which is thrown away.

    A caption fits all images of its concept, so all of these in a batch are right answers.
    """
    rng, names = np.random.default_rng([seed, 1]), list(NAMES)
    images, labels = torch.from_numpy(world.images) * 2 - 1, torch.from_numpy(world.labels)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        viewer = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, recipe.width))
    weights = [*viewer.parameters(), *encoder.module.parameters()]
    optimizer, schedule = one_cycle(weights, recipe.reading_rate, recipe.weight_decay, recipe.reading_steps)
    for _ in range(recipe.reading_steps):
        places = rng.choice(rows, min(recipe.reading_batch, len(rows)), replace=False)
        said = [caption(names[world.labels[place]], world.fillers, rng) for place in places]
        read = normalize(encoder.encode(encoder.ids(said)).mean(1), dim=1)
        seen = normalize(viewer(images[places]), dim=1)
        likeness, right = 10 * read @ seen.T, (labels[places][:, None] == labels[places]).float()
        right = right / right.sum(1, keepdim=True)
        both = likeness.log_softmax(0) + likeness.log_softmax(1)
        descend(optimizer, -(right * both).sum(1).mean())
        schedule.step()


def save(pipeline: Pipeline, folder: Path) -> None:
    """Writes a pipeline as a folder of diffusers, without a VAE.

    Args:
        pipeline: The pipeline.
        folder: Where to; it is made.
    """
    networks: dict[str, Any] = dict(pipeline.modules())
    for name, module in networks.items():
        module.save_pretrained(folder / name)
        # diffusers notes where a network was opened from, which is of no use to anyone else.
        config = json.loads((folder / name / "config.json").read_bytes())
        config.pop("_name_or_path", None)
        (folder / name / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    pipeline.encoders[0].tokenizer.save_pretrained(folder / "tokenizer")
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n", encoding="utf-8")


def opened(folder: Path) -> Pipeline:
    """Opens a pipeline of a testbed, its weights frozen."""
    return Diffusion.open(folder, device="cpu", batch_size=256).pipeline()
