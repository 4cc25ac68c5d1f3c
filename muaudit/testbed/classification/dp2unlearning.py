"""DP2Unlearning (Mahmud et al., 2025): a privately trained base; to forget, the base is fine-tuned on the retain set.

Adapted from language models. What the base knows of the forget set is bounded by its claim, and fine-tuning never sees the
forget set, so the bound holds for the result: for one forgotten example as claimed, for a set of k by group privacy (k times
epsilon).
"""

from typing import ClassVar

from pydantic import Field
from torch import nn

from muaudit.examples import Examples
from muaudit.testbed.classification.differentially_private import DifferentiallyPrivate
from muaudit.testbed.classification.fine_tune import FineTune
from muaudit.testbed.classification.method import Claim


class DP2Unlearning(DifferentiallyPrivate):
    """Trains in private on both sets, then without privacy on the retain set.

    Attributes:
        tuning_steps: Steps of fine-tuning.
        tuning_rate: Their learning rate.
    """

    name: ClassVar[str] = "dp2unlearning"
    source: ClassVar[str] = "Mahmud et al. 2025, arXiv 2504.13774"

    tuning_steps: int = Field(default=200, ge=0)
    tuning_rate: float = Field(default=0.05, gt=0)

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Fine-tunes the base on the retain set."""
        tuning = FineTune(steps=self.tuning_steps, learning_rate=self.tuning_rate)
        return tuning.apply(model, forget, retain, seed=seed)

    def claim(self, forget: Examples, retain: Examples) -> Claim:
        """The base's claim, about the examples that fine-tuning does not see."""
        game = "training: neighbours differ in one example of the forget set"
        return super().claim(forget, retain).model_copy(update={"game": game})


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`DP2Unlearning` as a vendor's procedure, for a base that was trained in private; see `Method.apply`."""
    return DP2Unlearning.model_validate(parameters).apply(model, forget, retain, seed=seed)
