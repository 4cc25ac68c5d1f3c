"""Boundary shrinking (Chen et al., "Boundary Unlearning", 2023): forgotten examples go to the class next door.

Adapted: the nearest class is the likeliest wrong one of the perturbed input; the paper takes the likeliest one, which stays the
right one where the perturbation is too small to cross the border.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, as_batch, only_classes, prediction_loss


class BoundaryShrink(Descent):
    """Relabels each forget example with its nearest wrong class, and fine-tunes on that alone.

    Attributes:
        distance: Length of the step up the loss by which the nearest class is found, in units of the inputs (FGSM's epsilon).
    """

    name: ClassVar[str] = "boundary_shrink"
    source: ClassVar[str] = "Chen et al. 2023, arXiv 2303.11570"
    needs_retain: ClassVar[bool] = False

    steps: int = Field(default=15, ge=0)
    distance: float = Field(default=0.1, ge=0)

    def prepared(self, original: nn.Module, forget: Examples, retain: Examples, seed: int) -> tuple[Batch, Batch]:
        """The forget set with the labels of the nearest wrong classes (section 3.2, equations 2 and 3)."""
        wrong = as_batch(forget)
        only_classes(self.name, wrong.labels)
        inputs = wrong.inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(prediction_loss(original(inputs), wrong.labels, "sum"), inputs)
        with torch.no_grad():
            logits = original(wrong.inputs + self.distance * slope.sign())
            nearest = logits.scatter(1, wrong.labels[:, None], -torch.inf).argmax(1)
        return Batch(wrong.inputs, nearest), as_batch(retain)

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """The cross-entropy on the forget set's new labels."""
        return prediction_loss(model(forget.inputs), forget.labels)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`BoundaryShrink` as a vendor's procedure; see `Method.apply`."""
    return BoundaryShrink.model_validate(parameters).apply(model, forget, retain, seed=seed)
