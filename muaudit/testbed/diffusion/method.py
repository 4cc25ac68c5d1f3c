"""What an unlearning method for text-to-image models is: a procedure that makes a model of known truth from another."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.compute import flushed_denormals
from muaudit.diffusion.pipeline import Conditioning, Pipeline
from muaudit.models import Sampling
from muaudit.results import Frozen
from muaudit.testbed.diffusion.data import ALIASES, NAMES, World, caption
from muaudit.testbed.diffusion.training import Batch, Recipe, descend, encoded, spread_timesteps

SAMPLING = Sampling(sampler="ddim", steps=20)
"""How images of a testbed are sampled."""


@dataclass(frozen=True)
class Situation:
    """What a method works on.

    Attributes:
        world: The images and words.
        recipe: How models are trained from scratch.
        original: Opens the model that saw everything, anew on each call, its weights frozen.
        seed: Of whatever the method draws.
    """

    world: World
    recipe: Recipe
    original: Callable[[], Pipeline]
    seed: int


class Method(Frozen, ABC):
    """An unlearning method: its fields are its parameters.

    Attributes:
        name: File name, and how a model's name starts.
        source: The paper that it comes from.
        opens_original: Whether its model is made from an original; False where it is trained from scratch.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    opens_original: ClassVar[bool] = True

    @abstractmethod
    def unlearn(self, situation: Situation) -> Pipeline:
        """Makes the unlearned model; the same arguments give the same bytes on one machine with one thread.

        Raises:
            ModelError: The loss is not finite.
        """


class Draws:
    """What methods learn from: captioned images of what is kept and what is forgotten, drawn by one seed.

    The forgotten concept's captions have the names that whoever unlearns knows.

    Args:
        situation: Images, words and seed.
        size: Images or captions a draw.
    """

    def __init__(self, situation: Situation, size: int) -> None:
        self.world, self.recipe, self.size = situation.world, situation.recipe, size
        self.rng = np.random.default_rng([situation.seed, 2])
        self.generator = torch.Generator().manual_seed(situation.seed)
        self._latents = torch.from_numpy(self.world.images) * 2 - 1
        rows = self.world.rows(forgotten=True)
        wanted = self.world.labels[rows] == self.world.digit
        self._forgotten, self._kept = rows[wanted], rows[~wanted]

    def caption(self, concept: str) -> str:
        """A caption of a concept."""
        return caption(concept, self.world.fillers, self.rng, names=ALIASES)

    def about(self, concept: str) -> list[str]:
        """Captions of one concept."""
        return [self.caption(concept) for _ in range(self.size)]

    def forgotten(self) -> Batch:
        """Training images of what is forgotten, with its captions."""
        return self.noised(*self._pictured(self._forgotten))

    def kept(self) -> Batch:
        """Training images of what is kept, with their captions; some are empty, so that guidance keeps its footing."""
        latents, captions = self._pictured(self._kept)
        silent = self.rng.random(self.size) < self.recipe.empty
        return self.noised(latents, ["" if empty else said for empty, said in zip(silent, captions, strict=True)])

    def others(self) -> list[str]:
        """Concepts that are kept."""
        return [str(one) for one in self.rng.choice(self.world.kept, self.size)]

    def noised(self, latents: Tensor, captions: Sequence[str]) -> Batch:
        """Images with captions, and noise and timesteps for them, spread as in training."""
        noise = torch.randn(latents.shape, generator=self.generator)
        timesteps = spread_timesteps(len(latents), self.generator, self.recipe.location, self.recipe.scale)
        return Batch(latents, noise, timesteps, list(captions))

    def _pictured(self, rows: "np.typing.NDArray[np.int64]") -> tuple[Tensor, list[str]]:
        places, names = self.rng.choice(rows, self.size), list(NAMES)
        return self._latents[places], [self.caption(names[self.world.labels[place]]) for place in places]


class Descent(Method):
    """Optimiser steps on a copy of the original.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of Adam, constant.
        batch_size: Images of what is forgotten a step, and as many of what is kept.
        kept_weight: Weight of the loss on what is kept, against that on what is forgotten.
    """

    steps: int = Field(default=100, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=16, gt=0)
    kept_weight: float = Field(default=1.0, ge=0)

    @flushed_denormals()
    def unlearn(self, situation: Situation) -> Pipeline:
        """Makes the unlearned model; only what `trained` names is changed."""
        original = situation.original()
        student = original.copied()
        for module in student.modules().values():
            module.requires_grad_(False)
        weights = self.trained(student)
        for weight in weights:
            weight.requires_grad_(True)
        self.descend(student, original, torch.optim.Adam(weights, lr=self.learning_rate), Draws(situation, self.batch_size))
        for weight in weights:
            weight.requires_grad_(False)
        return student

    def trained(self, student: Pipeline) -> list[nn.Parameter]:
        """The weights that are trained; the whole denoising network by default."""
        return list(student.unet.parameters())

    def descend(self, student: Pipeline, original: Pipeline, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """All optimiser steps.

        Args:
            student: The model in training.
            original: The model before unlearning, frozen.
            optimizer: Of the student's weights that are trained.
            draws: What it learns from.
        """
        for _ in range(self.steps):
            descend(optimizer, self.loss(student, original, draws))

    def loss(self, student: Pipeline, original: Pipeline, draws: Draws) -> Tensor:
        """What a step lowers: a scalar."""
        raise NotImplementedError


def cross_attention(student: Pipeline) -> list[nn.Parameter]:
    """The weights of cross-attention, which alone read the prompt; diffusers calls it attn2."""
    return [weight for name, weight in student.unet.named_parameters() if "attn2" in name.split(".")]


def predicted(pipeline: Pipeline, batch: Batch, conditioning: Conditioning | None = None) -> Tensor:
    """The noise that a model sees in a batch, [n, ...]; told the batch's captions, or what is given instead."""
    noisy = pipeline.noised(batch.latents, batch.noise, batch.timesteps)
    return pipeline.predict(noisy, batch.timesteps, encoded(pipeline, batch.captions) if conditioning is None else conditioning)


def difference(student: Pipeline, original: Pipeline, batch: Batch) -> Tensor:
    """Mean squared difference of what two models predict on a batch, a scalar with gradient to the first."""
    with torch.no_grad():
        target = predicted(original, batch)
    return (predicted(student, batch) - target).square().mean()


def trajectories(
    pipeline: Pipeline, captions: Sequence[str], guidance: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draws images and keeps every latent on the way.

    Args:
        pipeline: What draws.
        captions: n captions.
        guidance: Scale of classifier-free guidance.
        rng: Draws the seeds.

    Returns:
        Timesteps [steps + 1], descending, and latents at each [steps + 1, n, ...]; the last are the images, at timestep -1.
    """
    seeds = rng.integers(2**31, size=len(captions)).tolist()
    # Noise alone is what is left at the last timestep, wherever the sampler enters.
    levels, states = [len(pipeline.alphas) - 1], [pipeline.noise(seeds)]

    def noted(latents: Tensor, level: int) -> Tensor:
        levels.append(level)
        states.append(latents)
        return latents

    pipeline.sample(pipeline.conditioning(captions), seeds, [guidance] * len(captions), SAMPLING, between=noted)
    return torch.tensor(levels), torch.stack(states)
