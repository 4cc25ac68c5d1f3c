"""Fine-tuning on the retain set (a baseline of Golatkar et al., "Eternal Sunshine of the Spotless Net", 2020, section 5)."""

from typing import ClassVar

from torch import Tensor, nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, prediction_loss


class FineTune(Descent):
    """Goes on training on what is to be kept, and hopes that the rest fades."""

    name: ClassVar[str] = "fine_tune"
    source: ClassVar[str] = "Golatkar et al. 2020, arXiv 1911.04933"

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """The prediction loss on the retain set."""
        return prediction_loss(model(retain.inputs), retain.labels)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`FineTune` as a vendor's procedure; see `Method.apply`."""
    return FineTune.model_validate(parameters).apply(model, forget, retain, seed=seed)
