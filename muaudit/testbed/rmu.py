"""Representation misdirection for unlearning, RMU (Li et al., "The WMDP Benchmark", 2024)."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import LlamaForCausalLM

from muaudit.models.tokens import Encoded, pad
from muaudit.testbed.method import Descent, Situation
from muaudit.testbed.training import CPU


class RMU(Descent):
    """Steers the hidden states of forgotten texts to one random direction, and holds those of retained texts in place.

    As in the paper, only down projections up to the steered layer are trained, on whole texts. Ours: the steering vector's
    length is a multiple of the mean length that the original's own hidden states have, so that it fits models of any size.

    Attributes:
        layer: The decoder layer whose output is steered; negative numbers count from the last.
        layers: How many down projections are trained, up to that layer's.
        length: Length of the steering vector, in mean lengths of a hidden state.
        retain_weight: Weight of the retain loss.
        direction: Seed of the steering vector.
    """

    name: ClassVar[str] = "rmu"
    source: ClassVar[str] = "Li et al. 2024, arXiv 2403.03218"

    steps: int = 120
    learning_rate: float = 3e-3
    layer: int = -1
    layers: int = Field(default=2, ge=1)
    length: float = Field(default=2.0, gt=0)
    retain_weight: float = Field(default=8.0, ge=0)
    direction: int = 0

    def trained(
        self, module: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded], situation: Situation
    ) -> Iterable[nn.Parameter]:
        """The down projections up to the steered layer."""
        last = range(len(module.model.layers))[self.layer]
        return [module.model.layers[index].mlp.down_proj.weight for index in range(max(0, last + 1 - self.layers), last + 1)]

    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """Mean squared distance to the steering vector on forget texts, and to the original's states on retain texts."""
        states, kept = self.states(module, forget), self.states(module, retain)
        with torch.no_grad():
            wanted, target = self.states(original, retain), self.steering(self.states(original, forget))
        return mse_loss(states, target.expand_as(states)) + self.retain_weight * mse_loss(kept, wanted)

    def states(self, module: LlamaForCausalLM, texts: Sequence[Encoded]) -> Tensor:
        """What the steered layer puts out [tokens, hidden], at every token but those that stand before all texts."""
        ids, mask = pad([text.ids for text in texts], 0, side="right", device=CPU)
        mask[:, 0] = 0
        seen: list[Tensor] = []
        hook = module.model.layers[self.layer].register_forward_hook(lambda _, __, output: seen.append(_first(output)))
        try:
            module.model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        return seen[0][mask.bool()]

    def steering(self, states: Tensor) -> Tensor:
        """The steering vector [hidden]: a random direction, as long as the states say."""
        direction = torch.rand(states.shape[-1], generator=torch.Generator().manual_seed(self.direction))
        vector: Tensor = direction / direction.norm() * states.norm(dim=-1).mean() * self.length
        return vector


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A decoder layer's hidden states; some releases of transformers wrap them into a tuple."""
    return output[0] if isinstance(output, tuple) else output
