"""Erased Stable Diffusion (ESD; Gandikota et al., 2023): away from the concept, by the original's own negative guidance."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Descent, Draws, cross_attention, difference, trajectories
from muaudit.testbed.diffusion.training import descend, encoded


class ESD(Descent):
    """Teaches the student to predict, told the concept, what guidance away from it predicts.

    The latents are ones that the student itself comes by on its way to an image of the concept. Beside it, the student keeps to
    the original's predictions on what is kept, which the paper does not do: so small a network has nothing to spare.

    Attributes:
        eta: Strength of the negative guidance.
        guidance: Scale of classifier-free guidance of the student's own images.
        weights: `x`, those of cross-attention alone; `u`, all others.
        refresh: Steps after which the student's images are drawn anew.
        kept_weight: Weight of the distance to the original on what is kept.
    """

    name: ClassVar[str] = "esd"
    source: ClassVar[str] = "Gandikota et al. 2023, arXiv 2303.07345"

    steps: int = Field(default=120, ge=0)
    eta: float = 1.0
    guidance: float = 3.0
    weights: Literal["x", "u"] = "x"
    refresh: int = Field(default=20, ge=1)

    def trained(self, student: Pipeline) -> list[nn.Parameter]:
        """The weights that are trained."""
        read = cross_attention(student)
        return (
            read
            if self.weights == "x"
            else [one for one in student.unet.parameters() if not any(one is other for other in read)]
        )

    def descend(self, student: Pipeline, original: Pipeline, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """All optimiser steps."""
        erasing = Erasing(original, draws, self.eta, self.guidance)
        for number in range(self.steps):
            if number % self.refresh == 0:
                erasing.redraw(student)
            noisy, timesteps, captions, target = erasing.take()
            away = student.predict(noisy, timesteps, encoded(student, captions)) - target
            descend(optimizer, away.square().mean() + self.kept_weight * difference(student, original, draws.kept()))


class Erasing:
    """Latents on the way to the concept, and what is to be predicted there.

    Args:
        original: The model before unlearning, frozen.
        draws: Captions and seeds.
        eta: Strength of the negative guidance.
        guidance: Scale of classifier-free guidance of the images.
    """

    def __init__(self, original: Pipeline, draws: Draws, eta: float, guidance: float) -> None:
        self.original, self.draws, self.eta, self.guidance = original, draws, eta, guidance
        self.concept = draws.world.population.concept

    def redraw(self, student: Pipeline) -> None:
        """Draws the concept with the student, for the steps to come."""
        self.captions = self.draws.about(self.concept)
        self.levels, self.states = trajectories(student, self.captions, self.guidance, self.draws.rng)

    @torch.no_grad()
    def take(self) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """One latent of each image.

        Returns:
            Noisy latents [n, ...], their timesteps [n], captions of the concept, and the prediction that they are to give.
        """
        original, count = self.original, len(self.captions)
        # The last latents are finished images: there is no noise in them to predict.
        chosen = torch.randint(len(self.levels) - 1, (count,), generator=self.draws.generator)
        noisy, timesteps = self.states[chosen, torch.arange(count)], self.levels[chosen]
        with_it = original.predict(noisy, timesteps, original.conditioning(self.captions))
        without = original.predict(noisy, timesteps, original.nothing().repeated(count))
        return noisy, timesteps, self.captions, without - self.eta * (with_it - without)
