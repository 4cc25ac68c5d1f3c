"""Retraining from scratch without the forget set: exact, and what every other method is measured by."""

from typing import ClassVar

import numpy as np
from torch import nn

from muaudit.examples import Examples
from muaudit.testbed.classification.method import Situation, Training, fitted


class Retrain(Training):
    """Trains on the retain set alone, from another start.

    Attributes:
        left_in: Clusters of the forget set that are trained on all the same: a retrain that is not what it claims to be.
    """

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "exact by construction"
    opens_original: ClassVar[bool] = False

    left_in: tuple[str, ...] = ()

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Trains on the retain set; the forget set only tells how many classes there are."""
        pool = Examples.joined([forget, retain])
        rows = np.isin(pool.clusters, self.left_in) | (np.arange(len(pool)) >= len(forget))
        return fitted(self.known_recipe(), pool, rows, seed)

    def unlearn(self, situation: Situation) -> nn.Module:
        """Trains on the retain set, as references are trained: the original is not opened."""
        pool = situation.task.pool
        rows = np.isin(np.arange(len(pool)), situation.task.rows("retain"))
        rows[situation.task.rows("forget")] = np.isin(situation.task.forget.clusters, self.left_in)
        return fitted(self.within(situation).known_recipe(), pool, rows, situation.seed)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`Retrain` as a vendor's procedure; see `Method.apply`."""
    return Retrain.model_validate(parameters).apply(model, forget, retain, seed=seed)
