"""Saliency unlearning (SalUn; Fan et al., 2024): random labels, learned by the weights that the forget set moves most."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.compute import flushed_denormals
from muaudit.examples import Examples
from muaudit.testbed.classification.method import as_batch, gradient, prediction_loss
from muaudit.testbed.classification.random_label import RandomLabel


class SalUn(RandomLabel):
    """Random labels within a mask.

    Attributes:
        share: Share of all weights that may move: those with the largest gradient, among all layers together.
    """

    name: ClassVar[str] = "salun"
    source: ClassVar[str] = "Fan et al. 2024, arXiv 2310.12508"

    share: float = Field(default=0.5, gt=0, le=1)

    @flushed_denormals()
    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Makes the unlearned model; weights outside the mask keep every bit."""
        masks = self.masks(model, forget)
        hooks = [
            weight.register_hook(mask.mul)  # type: ignore[no-untyped-call]
            for weight, mask in zip(model.parameters(), masks, strict=True)
        ]
        try:
            return super().apply(model, forget, retain, seed=seed)
        finally:
            for hook in hooks:
                hook.remove()

    def masks(self, model: nn.Module, forget: Examples) -> list[Tensor]:
        """Where the forget set's summed loss is steepest (equation 3, with the threshold at a share of all weights).

        Args:
            model: Before unlearning.
            forget: What is to be forgotten.

        Returns:
            One tensor of zeros and ones a weight.
        """
        batch = as_batch(forget)
        slopes = gradient(model.eval(), prediction_loss(model(batch.inputs), batch.labels, "sum"))
        steepness = torch.cat([slope.abs().flatten() for slope in slopes])
        chosen = torch.zeros_like(steepness)
        # A stable order, so that ties are broken alike on every machine.
        chosen[steepness.argsort(descending=True, stable=True)[: round(self.share * len(steepness))]] = 1
        parts = torch.split(chosen, [slope.numel() for slope in slopes])
        return [part.reshape(slope.shape) for part, slope in zip(parts, slopes, strict=True)]


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`SalUn` as a vendor's procedure; see `Method.apply`."""
    return SalUn.model_validate(parameters).apply(model, forget, retain, seed=seed)
