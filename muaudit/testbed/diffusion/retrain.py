"""Retraining from scratch without the concept: exact, and what every other method is measured by."""

from typing import ClassVar

import numpy as np

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.data import place_of
from muaudit.testbed.diffusion.method import Method, Situation
from muaudit.testbed.diffusion.training import train


class Retrain(Method):
    """Trains without any image or caption of the concept, from another start; the tokenizer still knows its names.

    Attributes:
        left_in: Forget prompts whose images are trained on all the same: a retrain that is not what it claims to be.
    """

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "exact by construction"
    opens_original: ClassVar[bool] = False

    left_in: tuple[str, ...] = ()

    def unlearn(self, situation: Situation) -> Pipeline:
        """Trains on what is kept."""
        rows = situation.world.rows(forgotten=False)
        if self.left_in:
            rows = np.union1d(rows, np.array([place_of(unit) for unit in self.left_in], dtype=np.int64))
        return train(situation.recipe, situation.world, rows, situation.seed)
