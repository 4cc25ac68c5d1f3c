"""Negative preference optimisation (Zhang et al., "Negative Preference Optimization", 2024), with a retain term."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM

from muaudit.models.tokens import Encoded
from muaudit.testbed.method import Descent
from muaudit.testbed.training import completion_loss, log_likelihoods


class NPO(Descent):
    """Pushes forget answers below the original's likelihood, ever more gently the further down they are.

    Attributes:
        beta: Inverse temperature; towards 0 it is gradient ascent.
        retain_weight: Weight of the retain loss; 0 leaves it out.
    """

    name: ClassVar[str] = "npo"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv 2404.05868"

    learning_rate: float = 1e-3
    beta: float = Field(default=0.1, gt=0)
    retain_weight: float = Field(default=5.0, ge=0)

    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """-(2/beta) E log sigmoid(-beta log(p/p_original)) on the forget set, plus the weighted retain loss."""
        loss = self.forget_loss(module, original, forget)
        return loss + self.retain_weight * completion_loss(module, retain) if self.retain_weight else loss

    def forget_loss(self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded]) -> Tensor:
        """The first term alone."""
        with torch.no_grad():
            before = log_likelihoods(original, forget)
        ratios = log_likelihoods(module, forget) - before
        return -(2 / self.beta) * logsigmoid(-self.beta * ratios).mean()
