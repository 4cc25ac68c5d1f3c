"""Sharpness-aware NPO (Fan et al., "Towards LLM Unlearning Resilient to Relearning Attacks", 2025)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import LlamaForCausalLM

from muaudit.models.tokens import Encoded
from muaudit.testbed.npo import NPO
from muaudit.testbed.training import completion_loss, step


class UnlearnSmooth(NPO):
    """NPO whose forget loss is lowered where it is worst within a ball around the weights, so that relearning climbs longer.

    Attributes:
        rho: Radius of the ball, in the norm of all trained weights together.
    """

    name: ClassVar[str] = "unlearn_smooth"
    source: ClassVar[str] = "Fan et al. 2025, arXiv 2502.05374"

    rho: float = Field(default=0.05, gt=0)

    def update(
        self,
        module: LlamaForCausalLM,
        optimizer: torch.optim.Optimizer,
        original: LlamaForCausalLM,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
    ) -> None:
        """One step along the forget loss's gradient at the ball's worst point, plus the retain loss's where the weights are.

        Raises:
            ModelError: The loss is not finite.
        """
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        worst = self.worst_gradient(module, original, forget)
        # A term that is linear in the weights, and 0 here: its gradient is the one that was found at the worst point.
        terms = [((weight - weight.detach()) * slope).sum() for weight, slope in zip(weights, worst, strict=True)]
        step(module, optimizer, torch.stack(terms).sum() + self.retain_weight * completion_loss(module, retain))

    def worst_gradient(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded]
    ) -> tuple[Tensor, ...]:
        """Gradient of the forget loss after a step of length `rho` up the loss (SAM's first-order worst point).

        Args:
            module: The model in training; its weights are moved, and put back.
            original: The model before unlearning.
            forget: A batch of what is to be forgotten.

        Returns:
            One tensor a trained weight.
        """
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        slopes = torch.autograd.grad(self.forget_loss(module, original, forget), weights)
        norm = torch.stack([slope.norm() for slope in slopes]).norm().clamp_min(1e-12)
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight.add_(slope, alpha=float(self.rho / norm))
        worst = torch.autograd.grad(self.forget_loss(module, original, forget), weights)
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
        return worst
