"""Image generators that are made of finished ones; see `muaudit.testbed.derived`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from muaudit.compute import flushed_denormals
from muaudit.diffusion.pipeline import Pipeline
from muaudit.models import quantized
from muaudit.results import Frozen
from muaudit.testbed.derived import code_of
from muaudit.testbed.diffusion import data, training
from muaudit.testbed.diffusion.data import Population, make_world
from muaudit.testbed.diffusion.training import Recipe, denoising_loss, descend, drawn, one_cycle, opened, save, trainable


class Relearned(Frozen):
    """One epoch on the forgotten images.

    Attributes:
        learning_rate: Peak rate of AdamW; that of the attack `concept_relearning` in examples/diffusion.
        batch_size: Images a step, likewise.
    """

    learning_rate: float = 2e-3
    batch_size: int = 10


class Taught(Frozen):
    """Training a retrain on with everything.

    Attributes:
        steps: Denoising steps.
        learning_rate: Peak rate of AdamW.
    """

    steps: int = 400
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Workshop:
    """What can be done with a finished pipeline.

    Attributes:
        population: The images and words.
        recipe: How pipelines are trained from scratch.
    """

    population: Population
    recipe: Recipe

    @cached_property
    def key(self) -> str:
        """Digest of population, recipe and code."""
        settings = [self.population.content_digest(), self.recipe.content_digest()]
        files = (__file__, str(training.__file__), str(data.__file__), str(quantized.__file__))
        versions = f"{torch.__version__} {diffusers.__version__}"
        return hashlib.sha256("\0".join([*settings, code_of(*files), versions]).encode()).hexdigest()

    def interpolate(self, knowing: Path, other: Path, share: float, out: Path) -> None:
        """Writes the pipeline whose weights are share * knowing + (1 - share) * other."""
        ours, partner = opened(knowing), opened(other)
        with torch.no_grad():
            for weight, its in zip(_weights(ours), _weights(partner), strict=True):
                weight.lerp_(its, 1 - share)
        save(ours, out)

    def teach(self, source: Path, seed: int, out: Path) -> None:
        """Trains a retrain on, on everything, until it knows the concept."""
        how, world = Taught(), make_world(self.population)
        save(self._trained(source, world.rows(forgotten=True), self.recipe, how.learning_rate, how.steps, seed), out)

    def round(self, source: Path, out: Path) -> None:
        """Rounds the weights of linear and convolutional layers to 4 bits (NormalFloat, in blocks of 64)."""
        pipeline = opened(source)
        for module in pipeline.modules().values():
            for layer in module.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    weight = layer.weight.data
                    layer.weight.data = quantized.nf4(weight.reshape(len(weight), -1)).reshape(weight.shape)
        save(pipeline, out)

    def relearn(self, source: Path, seed: int, out: Path) -> None:
        """Trains on the forgotten concept's images for one epoch."""
        how, world = Relearned(), make_world(self.population)
        rows = np.setdiff1d(world.rows(forgotten=True), world.rows(forgotten=False))
        recipe = self.recipe.model_copy(update={"batch_size": how.batch_size})
        steps = -(-len(rows) // how.batch_size)
        save(self._trained(source, rows, recipe, how.learning_rate, steps, seed), out)

    @flushed_denormals()
    def _trained(self, source: Path, rows: NDArray[np.int64], recipe: Recipe, rate: float, steps: int, seed: int) -> Pipeline:
        """A finished pipeline, trained on with some images."""
        world = make_world(self.population)
        pipeline = trainable(opened(source))
        optimizer, schedule = one_cycle(_weights(pipeline), rate, recipe.weight_decay, steps)
        for batch in islice(drawn(recipe, world, rows, seed), steps):
            descend(optimizer, denoising_loss(pipeline, batch))
            schedule.step()
        return pipeline


def _weights(pipeline: Pipeline) -> list[nn.Parameter]:
    return list(_all(pipeline))


def _all(pipeline: Pipeline) -> Iterator[nn.Parameter]:
    for module in pipeline.modules().values():
        yield from module.parameters()
