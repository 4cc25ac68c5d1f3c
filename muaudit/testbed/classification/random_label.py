"""Random labels (Graves et al., "Amnesiac Machine Learning", 2021; as in SalUn, equation 5, without its mask).

For numbers to predict, the random labels are drawn from a Gaussian with the retain labels' mean and spread (the Gaussian
fine-tuning of Tarun et al., "Deep Regression Unlearning", 2023, arXiv 2210.08196).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, as_batch, prediction_loss


class RandomLabel(Descent):
    """Teaches wrong labels for what is to be forgotten, drawn once, beside the right ones for the rest.

    Attributes:
        retain_weight: Weight of the retain set's loss.
    """

    name: ClassVar[str] = "random_label"
    source: ClassVar[str] = "Graves et al. 2021, arXiv 2010.10981"

    retain_weight: float = Field(default=3.0, ge=0)

    def prepared(self, original: nn.Module, forget: Examples, retain: Examples, seed: int) -> tuple[Batch, Batch]:
        """The forget set with random labels, each another than its own; and the retain set."""
        generator, wrong, right = torch.Generator().manual_seed(seed), as_batch(forget), as_batch(retain)
        if wrong.labels.is_floating_point():
            noise = torch.randn(wrong.labels.shape, generator=generator)
            drawn = right.labels.mean(0) + right.labels.std(0) * noise
        else:
            classes = original(wrong.inputs[:1]).shape[1]
            drawn = (wrong.labels + torch.randint(1, classes, wrong.labels.shape, generator=generator)) % classes
        return Batch(wrong.inputs, drawn), right

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """The prediction loss on random labels, plus the weighted one on the retain set."""
        wrong = prediction_loss(model(forget.inputs), forget.labels)
        return wrong + self.retain_weight * prediction_loss(model(retain.inputs), retain.labels)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`RandomLabel` as a vendor's procedure; see `Method.apply`."""
    return RandomLabel.model_validate(parameters).apply(model, forget, retain, seed=seed)
