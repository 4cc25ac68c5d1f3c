"""SCRUB (Kurmanji et al., "Towards Unbounded Machine Unlearning", 2023): a student that disobeys its teacher."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, only_classes, prediction_loss


class Scrub(Descent):
    """Steps away from the original on the forget set, each followed by steps towards it on the retain set.

    Attributes:
        max_steps: Steps away, at the start, in turns with steps towards; all later steps lead towards.
        alpha: Weight of the divergence from the original on the retain set.
        gamma: Weight of the prediction loss there.
        temperature: By which logits are divided before they are compared.
    """

    name: ClassVar[str] = "scrub"
    source: ClassVar[str] = "Kurmanji et al. 2023, arXiv 2302.09880"

    steps: int = Field(default=120, ge=0)
    learning_rate: float = Field(default=0.2, gt=0)
    max_steps: int = Field(default=20, ge=0)
    alpha: float = Field(default=0.5, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=4.0, gt=0)

    def update(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, original: nn.Module, forget: Batch, retain: Batch, number: int
    ) -> None:
        """A step away on even numbers below twice `max_steps`; a step towards otherwise (algorithm 1)."""
        away = number % 2 == 0 and number < 2 * self.max_steps
        empty = Batch(retain.inputs[:0], retain.labels[:0])
        super().update(model, optimizer, original, *((forget, empty) if away else (empty, retain)), number)

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """Equation 3: minus the divergence on forget examples; alpha times it plus gamma times the loss on retain examples."""
        only_classes(self.name, retain.labels)
        if len(forget.inputs):
            return -self.divergence(model, original, forget.inputs)
        kept = prediction_loss(model(retain.inputs), retain.labels)
        return self.alpha * self.divergence(model, original, retain.inputs) + self.gamma * kept

    def divergence(self, model: nn.Module, original: nn.Module, inputs: Tensor) -> Tensor:
        """KL(original || model) of the class probabilities at the temperature, mean over inputs, times its square."""
        student = log_softmax(model(inputs) / self.temperature, dim=1)
        teacher = log_softmax(original(inputs) / self.temperature, dim=1)
        return kl_div(student, teacher, reduction="batchmean", log_target=True) * self.temperature**2


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`Scrub` as a vendor's procedure; see `Method.apply`."""
    return Scrub.model_validate(parameters).apply(model, forget, retain, seed=seed)
