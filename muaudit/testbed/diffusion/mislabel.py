"""Mislabelled fine-tuning: the concept's captions are learned as captions of other images."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Descent, Draws, cross_attention
from muaudit.testbed.diffusion.training import Batch, denoising_loss


class Mislabel(Descent):
    """Goes on training, on images of other concepts with captions of the forgotten one, and on what is kept.

    Attributes:
        weights: `x`, those of cross-attention alone, which read the caption; `all`, those of the text encoder too.
    """

    name: ClassVar[str] = "mislabel"
    source: ClassVar[str] = "random labels: Golatkar et al. 2020, arXiv 1911.04933; here for captions"

    weights: Literal["x", "all"] = "x"

    def trained(self, student: Pipeline) -> list[nn.Parameter]:
        """The weights that are trained."""
        if self.weights == "x":
            return cross_attention(student)
        return [weight for module in student.modules().values() for weight in module.parameters()]

    def loss(self, student: Pipeline, original: Pipeline, draws: Draws) -> Tensor:
        """What a step lowers: the denoising loss on wrong captions, and on right ones."""
        wrong, right = draws.kept(), draws.kept()
        wrong = Batch(wrong.latents, wrong.noise, wrong.timesteps, draws.about(draws.world.population.concept))
        return denoising_loss(student, wrong) + self.kept_weight * denoising_loss(student, right)
