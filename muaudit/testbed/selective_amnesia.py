"""Selective amnesia: unlearning where causal tracing finds the knowledge (Agrawal and Huang, SemEval-2025 task 4)."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from muaudit.models.tokens import Encoded
from muaudit.testbed.method import Descent, Situation
from muaudit.testbed.tracing import indirect_effects, mentions
from muaudit.testbed.training import completion_loss


class SelectiveAmnesia(Descent):
    """Raises the forget loss through the MLPs of the layers that carry the knowledge; everything else is frozen.

    The paper traces, then trains the first layers; ours trains as many of the layers with the largest traced effect, wherever
    they stand. The retain loss's weight is the paper's: it grows as retained texts get worse.

    Attributes:
        layers: How many layers are trained.
        noise: What corrupts the subject in the trace, in standard deviations of an embedding's entries.
        traced: Most forgotten questions that are traced.
        least: Smallest weight of the retain loss (1.2 in the paper; a small model holds less still).
        most: Largest weight of the retain loss (2.8 in the paper).
    """

    name: ClassVar[str] = "selective_amnesia"
    source: ClassVar[str] = "Agrawal and Huang 2025, arXiv 2504.12996"

    steps: int = 80
    learning_rate: float = 3e-3
    layers: int = Field(default=1, ge=1)
    noise: float = Field(default=3.0, gt=0)
    traced: int = Field(default=100, ge=1)
    least: float = Field(default=12.0, ge=0)
    most: float = Field(default=24.0, ge=0)

    def trained(
        self, module: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded], situation: Situation
    ) -> Iterable[nn.Parameter]:
        """The MLPs of the chosen layers."""
        return [weight for index in self.chosen(module, situation) for weight in module.model.layers[index].mlp.parameters()]

    def chosen(self, module: LlamaForCausalLM, situation: Situation) -> list[int]:
        """The layers whose MLPs give back most of a question's answer when the subject is corrupted, ascending."""
        task = situation.task
        traced = mentions(situation.tokenizer, task.forget[: self.traced], forms=("question",), template=task.template)
        effects = indirect_effects(module, traced, self.noise, situation.seed)
        return sorted(torch.argsort(effects, descending=True, stable=True)[: self.layers].tolist())

    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """Weighted retain loss minus forget loss; the weight is 0.3 * 6^(rise of the retain loss) + 0.8, clipped."""
        kept = completion_loss(module, retain)
        with torch.no_grad():
            weight = (0.3 * 6.0 ** (kept - completion_loss(original, retain)) + 0.8).clamp(self.least, self.most)
        return weight * kept - completion_loss(module, forget)
