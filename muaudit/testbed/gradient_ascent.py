"""Gradient ascent on the forget set (Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks", 2023)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from transformers import LlamaForCausalLM

from muaudit.models.tokens import Encoded
from muaudit.testbed.method import Descent
from muaudit.testbed.training import completion_loss


class GradientAscent(Descent):
    """Raises the loss on the forget set; nothing holds the rest in place, so few steps are wanted."""

    name: ClassVar[str] = "gradient_ascent"
    source: ClassVar[str] = "Jang et al. 2023, arXiv 2210.01504"

    steps: int = 15
    learning_rate: float = 1e-3

    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """The forget set's log-likelihood."""
        return -completion_loss(module, forget)
