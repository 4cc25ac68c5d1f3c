"""Sharpness-aware unlearning (Tang and Khanna, "Sharpness-Aware Machine Unlearning", 2025): NegGrad with SAM's gradients.

Adapted: one set of weights serves both aims (the paper's Sharp MinMax splits them), and the statistics of batch normalisation
see the moved weights too.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, gradient, prediction_loss


class SharpnessAware(Descent):
    """Lowers the retain loss and raises the forget loss, where their difference is worst within a ball around the weights.

    Attributes:
        alpha: Weight of the retain set's loss; the forget set's has the rest of 1.
        rho: Radius of the ball, in the norm of all weights together.
        sharpness: How much of the change of the gradient counts; 1 is SAM, 0 plain NegGrad.
    """

    name: ClassVar[str] = "sharpness_aware"
    source: ClassVar[str] = "Tang and Khanna 2025, arXiv 2506.13715"

    steps: int = Field(default=80, ge=0)
    alpha: float = Field(default=0.6, ge=0, le=1)
    rho: float = Field(default=0.1, ge=0)
    sharpness: float = Field(default=1.0, ge=0)

    def update(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, original: nn.Module, forget: Batch, retain: Batch, number: int
    ) -> None:
        """One step along `sharp_gradient`."""
        slopes = self.sharp_gradient(model, original, forget, retain)
        for weight, slope in zip(model.parameters(), slopes, strict=True):
            weight.grad = slope
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def sharp_gradient(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> list[Tensor]:
        """The gradient g + sharpness (g' - g), with g' the gradient after a step of length `rho` along g.

        Args:
            model: In training; its weights are moved, and put back.
            original: The model before unlearning.
            forget: A batch.
            retain: A batch.

        Returns:
            One tensor a weight.
        """
        slopes = gradient(model, self.loss(model, original, forget, retain))
        norm = torch.stack([slope.norm() for slope in slopes]).norm().clamp_min(1e-12)
        kept = [weight.detach().clone() for weight in model.parameters()]
        with torch.no_grad():
            for weight, slope in zip(model.parameters(), slopes, strict=True):
                weight.add_(slope, alpha=float(self.rho / norm))
        moved = gradient(model, self.loss(model, original, forget, retain))
        with torch.no_grad():
            for weight, before in zip(model.parameters(), kept, strict=True):
                weight.copy_(before)
        return [slope + self.sharpness * (other - slope) for slope, other in zip(slopes, moved, strict=True)]

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """The loss: alpha times the retain set's loss, less (1 - alpha) times the forget set's."""
        kept = prediction_loss(model(retain.inputs), retain.labels)
        return self.alpha * kept - (1 - self.alpha) * prediction_loss(model(forget.inputs), forget.labels)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`SharpnessAware` as a vendor's procedure; see `Method.apply`."""
    return SharpnessAware.model_validate(parameters).apply(model, forget, retain, seed=seed)
