"""Gradient difference (Liu, Liu and Stone, "Continual Learning and Private Unlearning", 2022)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from transformers import LlamaForCausalLM

from muaudit.models.tokens import Encoded
from muaudit.testbed.method import Descent
from muaudit.testbed.training import completion_loss


class GradientDifference(Descent):
    """Raises the loss on the forget set and lowers it on the retain set."""

    name: ClassVar[str] = "gradient_difference"
    source: ClassVar[str] = "Liu, Liu and Stone 2022, arXiv 2203.12817"

    steps: int = 15
    learning_rate: float = 1e-3

    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """Retain loss minus forget loss."""
        return completion_loss(module, retain) - completion_loss(module, forget)
