"""AdvUnlearn (Zhang et al., 2024): a text encoder from which no continuous word brings the concept back."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.esd import Erasing
from muaudit.testbed.diffusion.method import Descent, Draws, difference
from muaudit.testbed.diffusion.training import descend


class AdvUnlearn(Descent):
    """Trains the text encoder by ESD's loss on prompts that an attack has put a continuous token before.

    The attack looks for the one embedding, for every prompt its own, with which the student predicts what the original predicts
    on the plain prompt. Beside it, the student keeps to the original's predictions on what is kept.

    Attributes:
        kept_weight: Weight of the distance to the original on what is kept; .3 to 1 in the paper's code, for a larger encoder.
        attack_steps: Adam steps of the attack, before every step of the text encoder.
        attack_rate: Learning rate of these.
        eta: Strength of the negative guidance of ESD's target.
        guidance: Scale of classifier-free guidance of the student's own images.
        refresh: Steps after which the student's images are drawn anew.
    """

    name: ClassVar[str] = "advunlearn"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv 2405.15234"

    steps: int = Field(default=80, ge=0)
    learning_rate: float = Field(default=5e-4, gt=0)
    batch_size: int = Field(default=24, gt=0)
    kept_weight: float = Field(default=10.0, ge=0)
    attack_steps: int = Field(default=5, ge=0)
    attack_rate: float = Field(default=0.1, gt=0)
    eta: float = 1.0
    guidance: float = 3.0
    refresh: int = Field(default=20, ge=1)

    def trained(self, student: Pipeline) -> list[nn.Parameter]:
        """The weights of the text encoder."""
        return list(student.encoders[0].module.parameters())

    def descend(self, student: Pipeline, original: Pipeline, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """All optimiser steps."""
        erasing = Erasing(original, draws, self.eta, self.guidance)
        for number in range(self.steps):
            if number % self.refresh == 0:
                erasing.redraw(student)
            noisy, timesteps, captions, target = erasing.take()
            with torch.no_grad():
                sought = original.predict(noisy, timesteps, original.conditioning(captions))
            prefix = self._attack(student, noisy, timesteps, captions, sought, draws)
            away = _told(student, noisy, timesteps, captions, prefix) - target
            descend(optimizer, away.square().mean() + self.kept_weight * difference(student, original, draws.kept()))

    def _attack(
        self, student: Pipeline, noisy: Tensor, timesteps: Tensor, captions: list[str], sought: Tensor, draws: Draws
    ) -> Tensor:
        """The embeddings [n, d] that bring the student closest to what is sought."""
        table = student.encoders[0].table
        words = torch.randint(len(table), (len(captions),), generator=draws.generator)
        prefix = table[words].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([prefix], lr=self.attack_rate)
        for _ in range(self.attack_steps):
            loss = (_told(student, noisy, timesteps, captions, prefix) - sought).square().mean()
            # Of the prefix alone: the text encoder's own gradients are not wanted here.
            prefix.grad = torch.autograd.grad(loss, prefix)[0]
            optimizer.step()
        return prefix.detach()


def _told(student: Pipeline, noisy: Tensor, timesteps: Tensor, captions: list[str], prefix: Tensor) -> Tensor:
    """What the student predicts when one continuous token [n, d] stands before each caption."""
    encoder = student.encoders[0]
    # The first word of each row stands where the prefix goes.
    ids = encoder.framed([[words[0], *words] for words in map(encoder.words, captions)])
    embeddings = encoder.module.get_input_embeddings()(ids)
    embeddings = torch.cat([embeddings[:, :1], prefix[:, None], embeddings[:, 2:]], 1)
    return student.predict(noisy, timesteps, student.conditioned(encoder.encode(ids, embeddings)))
