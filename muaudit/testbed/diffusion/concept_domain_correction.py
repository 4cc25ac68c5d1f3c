"""Concept domain correction (DoCo; Wu et al., 2024): no critic can tell the concept's images from an anchor's."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Descent, Draws, cross_attention, predicted
from muaudit.testbed.diffusion.training import Batch, denoising_loss, descend


class ConceptDomainCorrection(Descent):
    """Trains cross-attention against a critic of predicted images, without harm to the anchor's own.

    Noisy images of anchors are denoised twice: by the original, told the anchor, and by the student, told the concept. The
    critic learns which is which, the student to be taken for the original. Where a step's gradient would raise the loss on
    anchors, that part of it is taken away. The anchors are all concepts that are kept.

    Attributes:
        kept_weight: Weight of the loss on anchors; much, since a critic's gradient is large.
        critic_rate: Learning rate of the critic's Adam.
        critic_width: Channels of its first layer.
        warmup: Steps in which only the critic learns.
    """

    name: ClassVar[str] = "concept_domain_correction"
    source: ClassVar[str] = "Wu et al. 2024, arXiv 2405.15304"

    steps: int = Field(default=200, ge=0)
    learning_rate: float = Field(default=5e-4, gt=0)
    kept_weight: float = Field(default=5.0, ge=0)
    critic_rate: float = Field(default=2e-3, gt=0)
    critic_width: int = Field(default=16, gt=0)
    warmup: int = Field(default=20, ge=0)

    def trained(self, student: Pipeline) -> list[nn.Parameter]:
        """The weights of cross-attention."""
        return cross_attention(student)

    def descend(self, student: Pipeline, original: Pipeline, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """All optimiser steps of critic and student."""
        critic = self._critic(draws)
        judging = torch.optim.Adam(critic.parameters(), lr=self.critic_rate, betas=(0.5, 0.999))
        weights = self.trained(student)
        for number in range(self.warmup + self.steps):
            anchors = draws.kept()
            sensitive = Batch(anchors.latents, anchors.noise, anchors.timesteps, draws.about(draws.world.population.concept))
            with torch.no_grad():
                right = self.denoised(original, anchors)
            wrong = self.denoised(student, sensitive)
            told = critic(right), critic(wrong.detach())
            descend(judging, _taken(told[0], 0) + _taken(told[1], 1))
            if number >= self.warmup:
                away = torch.autograd.grad(_taken(critic(wrong), 0), weights)
                keeping = torch.autograd.grad(self.kept_weight * denoising_loss(student, anchors), weights)
                for weight, slope in zip(weights, preserving(away, keeping), strict=True):
                    weight.grad = slope
                optimizer.step()

    @staticmethod
    def denoised(pipeline: Pipeline, batch: Batch) -> Tensor:
        """The images that a model takes a batch for: x_0 of the predicted noise."""
        signal = pipeline.alphas[batch.timesteps].sqrt().reshape(-1, 1, 1, 1)
        noisy = pipeline.noised(batch.latents, batch.noise, batch.timesteps)
        return ((noisy - (1 - signal.square()).sqrt() * predicted(pipeline, batch)) / signal).clamp(-3, 3)

    def _critic(self, draws: Draws) -> nn.Module:
        width = self.critic_width
        with torch.random.fork_rng([]):
            torch.manual_seed(int(draws.rng.integers(2**31)))
            return nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2),
                nn.Flatten(), nn.Linear(2 * width * 16, 1),
            )  # fmt: skip


def preserving(away: tuple[Tensor, ...], keeping: tuple[Tensor, ...]) -> list[Tensor]:
    """A gradient that forgets, without the part that runs against one that keeps, plus the latter.

    Args:
        away: Of the loss on what is forgotten, a tensor a weight.
        keeping: Of the loss on what is kept.

    Returns:
        Their sum, where the first has lost its component along the second if the two point apart.
    """
    along = sum((one * other).sum() for one, other in zip(away, keeping, strict=True))
    size = sum(other.square().sum() for other in keeping)
    share = torch.clamp(torch.as_tensor(along / size), max=0.0)
    return [one - share * other + other for one, other in zip(away, keeping, strict=True)]


def _taken(scores: Tensor, side: int) -> Tensor:
    """Cross-entropy of a critic's scores: 0 for the anchor's side, 1 for the concept's."""
    return binary_cross_entropy_with_logits(scores, torch.full_like(scores, side))
