"""No unlearning at all: what an audit must never pass where anything was to be learned."""

from typing import ClassVar

from torch import nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Method


class DoNothing(Method):
    """Hands the original out."""

    name: ClassVar[str] = "do_nothing"
    source: ClassVar[str] = "none"

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """The model as it is."""
        return model.eval()


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`DoNothing` as a vendor's procedure; see `Method.apply`."""
    return DoNothing.model_validate(parameters).apply(model, forget, retain, seed=seed)
