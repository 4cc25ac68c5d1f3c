"""The models of a calibration and what is known of each."""

from muaudit.calibration.record import Copy, Truth
from muaudit.config import RecipeConfig, ShadowsConfig, TaskConfig
from muaudit.model_config import ModelConfig
from muaudit.results import Frozen
from muaudit.training.recipes import Procedure

RETRAIN, ORIGINAL, LEFT_IN, LADDER = "retrain", "original", "left in", "interpolation"
"""Groups that are no unlearning methods."""


class Known(Frozen):
    """What is known of a model, before or after there is one.

    Attributes:
        name: Its name in the population.
        truth: What is known of it.
        group: What made it: "retrain", "original", "left in", "interpolation", or an unlearning method.
        strength: How strongly: of a method "weak", "default" or "strong"; of "left in" the share of clusters; of retrains the
            training schedule.
        share: The strength as a number in [0, 1], where it is one; larger knows more.
        seed: The stratum: models of one seed come from one original.
        original: The name of the original that its audits have for a positive control; None for any.
        copy_of: The member that it is a copy of, with its weights rounded or trained on.
        copied: How the copy was made.
    """

    name: str
    truth: Truth
    group: str
    strength: str = ""
    share: float | None = None
    seed: int = 0
    original: str | None = None
    copy_of: str | None = None
    copied: Copy | None = None


class Member(Known):
    """A model whose truth is known.

    Attributes:
        model: Where it is.
    """

    model: ModelConfig


class Population(Frozen):
    """Models of one task whose truth is known.

    Attributes:
        bed: The testbed's preset that they are of; "recipe" for a user's own.
        task: What was to be forgotten.
        originals: The originals by name.
        members: The models that audits are formed of.
        spare: A model that never saw and is in no audit: attacks that calibrate are prepared with it.
        recipe: How the auditor trains, for attacks that do.
        procedure: The vendor's unlearning procedure, likewise.
        shadows: Shadow models, likewise.
    """

    bed: str
    task: TaskConfig
    originals: dict[str, ModelConfig]
    members: tuple[Member, ...]
    spare: ModelConfig | None = None
    recipe: RecipeConfig | None = None
    procedure: Procedure | None = None
    shadows: ShadowsConfig | None = None

    def of(self, *truths: Truth) -> list[Member]:
        """The members of some truths, copies left out."""
        return [one for one in self.members if one.truth in truths and one.copied is None]

    def member(self, name: str) -> Member:
        """The member of a name."""
        return next(one for one in self.members if one.name == name)
