"""Gradient ascent on the forget set (Thudi et al., "Unrolling SGD", 2022, and many others)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, prediction_loss


class GradientAscent(Descent):
    """Raises the loss of what is to be forgotten; only few steps leave a model that is of use."""

    name: ClassVar[str] = "gradient_ascent"
    source: ClassVar[str] = "Thudi et al. 2022, arXiv 2109.13398"
    needs_retain: ClassVar[bool] = False

    steps: int = Field(default=24, ge=0)

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """The negative prediction loss on the forget set."""
        return -prediction_loss(model(forget.inputs), forget.labels)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`GradientAscent` as a vendor's procedure; see `Method.apply`."""
    return GradientAscent.model_validate(parameters).apply(model, forget, retain, seed=seed)
