"""Score forgetting distillation (SFD; Chen et al., 2024): the concept's scores become a safe concept's, without any data."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Descent, Draws, difference, predicted, trajectories
from muaudit.testbed.diffusion.training import descend, encoded


class ScoreForgettingDistillation(Descent):
    """Aligns the student's scores with the original's on images that the student draws: no training image is needed.

    Told the concept, the student is to predict what the original predicts when told the safe concept; told anything else, what
    the original predicts when told the same. The paper distils into a generator of one step, with a second network that
    estimates the generator's scores; an audit asks for a sampler of many steps, so here the student is its own score network
    and draws its images in 20 steps of DDIM. What is left is the paper's cross-class alignment and its freedom from data,
    without its speed.

    Attributes:
        safe: The concept that takes the forgotten one's place.
        refresh: Steps after which the student's images are drawn anew.
        pool: Images of the concept, and as many of others, that are drawn at a time.
        guidance: Scale of classifier-free guidance of these images.
    """

    name: ClassVar[str] = "score_forgetting_distillation"
    source: ClassVar[str] = "Chen et al. 2024, arXiv 2409.11219"

    steps: int = Field(default=150, ge=0)
    safe: str = "eight"
    refresh: int = Field(default=50, ge=1)
    pool: int = Field(default=64, ge=1)
    guidance: float = 2.0

    def descend(self, student: Pipeline, original: Pipeline, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """All optimiser steps."""
        for number in range(self.steps):
            if number % self.refresh == 0:
                forgotten = self._drawn(student, [draws.world.population.concept] * self.pool, draws)
                kept_concepts = [str(one) for one in draws.rng.choice(draws.world.kept, self.pool)]
                kept = self._drawn(student, kept_concepts, draws)
            places = draws.rng.integers(self.pool, size=self.batch_size)
            away = draws.noised(forgotten[places], draws.about(draws.world.population.concept))
            with torch.no_grad():
                safe = predicted(original, away, encoded(original, draws.about(self.safe)))
            loss = (predicted(student, away) - safe).square().mean()
            places = draws.rng.integers(self.pool, size=self.batch_size)
            same = draws.noised(kept[places], [draws.caption(kept_concepts[place]) for place in places])
            descend(optimizer, loss + self.kept_weight * difference(student, original, same))

    def _drawn(self, student: Pipeline, concepts: list[str], draws: Draws) -> Tensor:
        captions = [draws.caption(concept) for concept in concepts]
        return trajectories(student, captions, self.guidance, draws.rng)[1][-1].clamp(-1, 1)
