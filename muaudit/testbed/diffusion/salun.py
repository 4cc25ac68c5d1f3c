"""Saliency unlearning (SalUn; Fan et al., 2024): wrong captions, learned by the weights that the forgotten images move most."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Descent, Draws, predicted
from muaudit.testbed.diffusion.training import denoising_loss, encoded


class SalUn(Descent):
    """Makes the denoising network predict for the concept's captions what it predicts for another concept's, within a mask.

    Attributes:
        share: Share of the denoising network's weights that may move: those with the largest gradient, among all together.
        mask_batches: Batches of forgotten images over which the gradient is summed.
    """

    name: ClassVar[str] = "salun"
    source: ClassVar[str] = "Fan et al. 2024, arXiv 2310.12508"

    steps: int = Field(default=150, ge=0)
    share: float = Field(default=0.5, gt=0, le=1)
    mask_batches: int = Field(default=8, ge=1)

    def descend(self, student: Pipeline, original: Pipeline, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """All optimiser steps; weights outside the mask keep every bit."""
        masks = self.masks(student, draws)
        hooks = [weight.register_hook(mask.mul) for weight, mask in zip(student.unet.parameters(), masks, strict=True)]
        try:
            super().descend(student, original, optimizer, draws)
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, student: Pipeline, original: Pipeline, draws: Draws) -> Tensor:
        """What a step lowers: how the two captions' predictions differ on forgotten images, and the loss on what is kept."""
        batch = draws.forgotten()
        with torch.no_grad():
            other = predicted(student, batch, encoded(student, [draws.caption(name) for name in draws.others()]))
        wrong = (predicted(student, batch) - other).square().mean()
        return wrong + self.kept_weight * denoising_loss(student, draws.kept())

    def masks(self, student: Pipeline, draws: Draws) -> list[Tensor]:
        """Where the forgotten images' denoising loss is steepest.

        Args:
            student: Before unlearning, the weights of its denoising network unfrozen.
            draws: Where the images come from.

        Returns:
            One tensor of zeros and ones a weight of the denoising network.
        """
        loss = torch.stack([denoising_loss(student, draws.forgotten()) for _ in range(self.mask_batches)]).sum()
        slopes = torch.autograd.grad(loss, list(student.unet.parameters()))
        steepness = torch.cat([slope.abs().flatten() for slope in slopes])
        chosen = torch.zeros_like(steepness)
        # A stable order, so that ties are broken alike on every machine.
        chosen[steepness.argsort(descending=True, stable=True)[: round(self.share * len(steepness))]] = 1
        parts = torch.split(chosen, [slope.numel() for slope in slopes])
        return [part.reshape(slope.shape) for part, slope in zip(parts, slopes, strict=True)]
