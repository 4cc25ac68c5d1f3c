"""Retraining from scratch without the concept: exact, and what every other method is measured by."""

from typing import ClassVar

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Method, Situation
from muaudit.testbed.diffusion.training import train


class Retrain(Method):
    """Trains without any image or caption of the concept, from another start; the tokenizer still knows its names."""

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "exact by construction"
    opens_original: ClassVar[bool] = False

    def unlearn(self, situation: Situation) -> Pipeline:
        """Trains on what is kept."""
        return train(situation.recipe, situation.world, situation.world.rows(forgotten=False), situation.seed)
