"""Retraining from scratch without the forget set: exact, and what every other method is measured by."""

from typing import ClassVar

import numpy as np
from torch import nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Situation, Training, fitted


class Retrain(Training):
    """Trains on the retain set alone, from another start."""

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "exact by construction"
    opens_original: ClassVar[bool] = False

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Trains on the retain set; the forget set only tells how many classes there are."""
        pool = Examples.joined([forget, retain])
        return fitted(self.known_recipe(), pool, np.arange(len(pool)) >= len(forget), seed)

    def unlearn(self, situation: Situation) -> nn.Module:
        """Trains on the retain set, as references are trained: the original is not opened."""
        pool = situation.task.pool
        rows = np.isin(np.arange(len(pool)), situation.task.rows("retain"))
        return fitted(self.within(situation).known_recipe(), pool, rows, situation.seed)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`Retrain` as a vendor's procedure; see `Method.apply`."""
    return Retrain.model_validate(parameters).apply(model, forget, retain, seed=seed)
