"""Selective synaptic dampening (SSD; Foster et al., "Fast Machine Unlearning without Retraining through ...", 2024)."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Method, as_batch, gradient, prediction_loss


class SelectiveSynapticDampening(Method):
    """Shrinks the weights that matter much more to the forget set than to all that was learned; nothing is trained.

    Attributes:
        alpha: How many times as important a weight must be to the forget set to be dampened. The paper takes 10 for whole
            classes; no weight of a small network matters ten times as much to a random sample.
        dampening: The paper's lambda: how far it is dampened.
        batch_size: Examples whose gradient is squared together; 1 gives the diagonal of the empirical Fisher information.
    """

    name: ClassVar[str] = "selective_synaptic_dampening"
    source: ClassVar[str] = "Foster et al. 2024, arXiv 2308.07707"

    alpha: float = Field(default=1.5, gt=0)
    dampening: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=1, gt=0)

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Multiplies each weight by `factors`."""
        model.eval()
        wrong = self.importances(model, as_batch(forget))
        whole = self.importances(model, as_batch(Examples.joined([forget, retain])))
        with torch.no_grad():
            for weight, ours, all_of in zip(model.parameters(), wrong, whole, strict=True):
                weight.mul_(self.factors(ours, all_of))
        return model

    def importances(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Mean squared gradient of the batches' losses, one tensor a weight (section 3.2)."""
        sums = [torch.zeros_like(weight) for weight in model.parameters()]
        starts = range(0, len(batch.inputs), self.batch_size)
        for start in starts:
            part = Batch(batch.inputs[start : start + self.batch_size], batch.labels[start : start + self.batch_size])
            slopes = gradient(model, prediction_loss(model(part.inputs), part.labels))
            sums = [total + slope**2 for total, slope in zip(sums, slopes, strict=True)]
        return [total / len(starts) for total in sums]

    def factors(self, forget: Tensor, whole: Tensor) -> Tensor:
        """min(lambda I_D / I_f, 1) where I_f > alpha I_D, and 1 elsewhere (section 3.3).

        Args:
            forget: Importance of weights for the forget set.
            whole: Their importance for everything that was learned.

        Returns:
            In [0, 1], of the same shape.
        """
        dampened = (self.dampening * whole / forget.clamp_min(torch.finfo(forget.dtype).tiny)).clamp_max(1)
        return torch.where(forget > self.alpha * whole, dampened, torch.ones_like(forget))


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`SelectiveSynapticDampening` as a vendor's procedure; see `Method.apply`."""
    return SelectiveSynapticDampening.model_validate(parameters).apply(model, forget, retain, seed=seed)
