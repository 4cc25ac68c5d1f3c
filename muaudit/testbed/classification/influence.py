"""Influence approximation (IAU; Liu et al., "Efficient Machine Unlearning via Influence Approximation", 2025).

To remove an example's influence, the model learns an opposite one: one step of Adam down the retain set's loss and up the
forget set's, as the authors' code takes it (their gradient correction). Adapted: their gradient restriction, a term in the
loss of the original's training, is left out, since the original is trained before anyone knows how it will have to forget.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from muaudit.errors import UsageError
from muaudit.examples import Examples
from muaudit.testbed.classification.method import Method, as_batch, checked, prediction_loss


class Influence(Method):
    """Steps of Adam on the whole sets at once.

    Attributes:
        steps: Steps; the paper takes one.
        learning_rate: Of Adam, whose first step moves every weight by it.
        forget_weight: Weight of the forget set's loss, which is raised.
    """

    name: ClassVar[str] = "influence"
    source: ClassVar[str] = "Liu et al. 2025, arXiv 2507.23257"

    steps: int = Field(default=1, ge=0)
    learning_rate: float = Field(default=6e-3, gt=0)
    forget_weight: float = Field(default=1.0, ge=0)

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Makes the unlearned model."""
        if not len(retain):
            raise UsageError("procedure influence: the retain set is empty, and its gradient corrects the step; give one")
        model.eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        wrong, right = as_batch(forget), as_batch(retain)
        for _ in range(self.steps):
            optimizer.zero_grad(set_to_none=True)
            kept = prediction_loss(model(right.inputs), right.labels)
            removed = prediction_loss(model(wrong.inputs), wrong.labels)
            torch.autograd.backward(checked(kept - self.forget_weight * removed))
            optimizer.step()
        return model


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`Influence` as a vendor's procedure; see `Method.apply`."""
    return Influence.model_validate(parameters).apply(model, forget, retain, seed=seed)
