"""LoKU: inverted hinge loss with Fisher-initialised low-rank adapters (Cha et al., 2024)."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM

from muaudit.models.scoring import completion_logits
from muaudit.models.tokens import Encoded
from muaudit.testbed.method import Descent, Situation
from muaudit.testbed.training import CPU, batches, completion_loss


class LoKU(Descent):
    """Trains low-rank adapters so that each forgotten token falls below the next likeliest, and retained texts stay.

    The adapters start as the part of each weight matrix that matters most for forgotten texts and least for retained ones; that
    part is taken out of the frozen matrix, so that the model starts unchanged. Fisher information is estimated per batch of
    texts, not per text; that is ours, for speed.

    Attributes:
        rank: Of the adapters; the finished model differs from the original by twice the rank at most, in each matrix.
        retain_weight: Weight of the retain loss.
        fisher_batches: Batches of texts that the Fisher information is estimated on.
    """

    name: ClassVar[str] = "loku"
    source: ClassVar[str] = "Cha et al. 2024, arXiv 2408.06621"

    steps: int = 80
    learning_rate: float = 3e-3
    rank: int = Field(default=8, ge=1)
    retain_weight: float = Field(default=2.0, ge=0)
    fisher_batches: int = Field(default=4, ge=1)

    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model; the adapters are merged into it."""
        module = super().unlearn(situation)
        for layer in list(module.modules()):
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight")
        return module

    def trained(
        self, module: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded], situation: Situation
    ) -> Iterable[nn.Parameter]:
        """Puts an adapter on every linear layer inside the decoder."""
        layers = [layer for layer in module.model.modules() if isinstance(layer, nn.Linear)]
        wanted, spared = (self._fisher(module, layers, texts, situation.seed) for texts in (forget, retain))
        adapters = []
        for layer, ours, others in zip(layers, wanted, spared, strict=True):
            # One weight a row, as in the paper: with a weight an entry the approximation has no closed form.
            importance = (ours / (others + 1e-12)).sum(1).clamp_min(1e-12).sqrt()
            adapter = Adapter(layer.weight, importance / importance.mean(), self.rank)
            with torch.no_grad():
                layer.weight.sub_(adapter.product())
            parametrize.register_parametrization(layer, "weight", adapter)
            adapters.append(adapter)
        module.requires_grad_(False)
        return [weight for adapter in adapters for weight in adapter.parameters()]

    def _fisher(
        self, module: LlamaForCausalLM, layers: Sequence[nn.Linear], texts: Sequence[Encoded], seed: int
    ) -> list[Tensor]:
        weights = [layer.weight.requires_grad_(True) for layer in layers]
        squares = [torch.zeros_like(weight) for weight in weights]
        for _, batch in zip(range(self.fisher_batches), batches(texts, self.batch_size, seed), strict=False):
            for square, slope in zip(squares, torch.autograd.grad(completion_loss(module, batch), weights), strict=True):
                square.add_(slope**2)
        return squares

    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """Inverted hinge loss on the forget set, plus the weighted retain loss."""
        hinge = inverted_hinge(*completion_logits(module, forget, CPU))
        return hinge + self.retain_weight * completion_loss(module, retain)


class Adapter(nn.Module):
    """A low-rank product that is added to a weight matrix.

    Attributes:
        up: [rows, rank].
        down: [rank, columns].
    """

    def __init__(self, weight: Tensor, importance: Tensor, rank: int) -> None:
        """Starts as the matrix's best approximation of that rank, each row's error weighted by its importance.

        Args:
            weight: The matrix [rows, columns].
            importance: Weight of each row [rows], above 0.
            rank: Of the product.
        """
        super().__init__()
        left, values, right = torch.linalg.svd(importance[:, None] * weight.detach(), full_matrices=False)
        root = values[:rank].sqrt()
        self.up = nn.Parameter(left[:, :rank] * root / importance[:, None])
        self.down = nn.Parameter(root[:, None] * right[:rank])

    def product(self) -> Tensor:
        """What is added [rows, columns]."""
        return self.up @ self.down

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix with the product added."""
        return weight + self.product()


def inverted_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """1 + p(target) - the highest probability of another token, averaged over tokens (equation 3); in [0, 2].

    Args:
        logits: [tokens, vocabulary].
        targets: What is to be forgotten [tokens].

    Returns:
        A scalar.
    """
    probabilities = logits.softmax(-1)
    target = probabilities.gather(1, targets[:, None])
    others = probabilities.scatter(1, targets[:, None], -torch.inf)
    losses: Tensor = 1 + target[:, 0] - others.max(1).values
    return losses.mean()
