"""Classifiers that are made of finished ones; see `muaudit.testbed.derived`."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from muaudit.examples import Examples, LabelledTask
from muaudit.models import quantized
from muaudit.models.classifier import open_network
from muaudit.testbed.classification import data, method
from muaudit.testbed.classification.data import Population, make_task
from muaudit.testbed.classification.fine_tune import FineTune
from muaudit.testbed.derived import code_of
from muaudit.training.networks import Provenance, save_network
from muaudit.training.recipes import TorchRecipe

TAUGHT = FineTune(steps=600, learning_rate=0.05)
"""How a retrain is trained on, with everything, until it knows the forget set."""

RELEARNED = FineTune(learning_rate=0.05, batch_size=10)
"""How a copy is trained on the forget set; it takes the steps of one epoch."""


@dataclass(frozen=True)
class Workshop:
    """What can be done with a finished classifier.

    Attributes:
        population: The examples.
        recipe: How classifiers are trained from scratch.
    """

    population: Population
    recipe: TorchRecipe

    @cached_property
    def key(self) -> str:
        """Digest of population, recipe and code."""
        settings = [self.population.content_digest(), self.recipe.content_digest()]
        files = (__file__, str(method.__file__), str(data.__file__), str(quantized.__file__))
        return hashlib.sha256("\0".join([*settings, code_of(*files), torch.__version__]).encode()).hexdigest()

    def interpolate(self, knowing: Path, other: Path, share: float, out: Path) -> None:
        """Writes the classifier whose weights are share * knowing + (1 - share) * other."""
        ours, partner = opened(knowing), opened(other)
        its = partner.state_dict()
        ours.load_state_dict(
            {name: torch.lerp(weight, its[name], 1 - share) if weight.is_floating_point() else weight
             for name, weight in ours.state_dict().items()}
        )  # fmt: skip
        self._save(ours, out)

    def teach(self, source: Path, seed: int, out: Path) -> None:
        """Trains a retrain on, on everything, until it knows the forget set."""
        task = self._task
        self._save(TAUGHT.apply(opened(source), task.forget, Examples.joined([task.forget, task.retain]), seed=seed), out)

    def round(self, source: Path, out: Path) -> None:
        """Rounds the weights of linear and convolutional layers to 4 bits (NormalFloat, in blocks of 64)."""
        module = opened(source)
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                weight = layer.weight.data
                layer.weight.data = quantized.nf4(weight.reshape(len(weight), -1)).reshape(weight.shape)
        self._save(module, out)

    def relearn(self, source: Path, seed: int, out: Path) -> None:
        """Trains on the forget set for one epoch."""
        forget = self._task.forget
        epoch = RELEARNED.model_copy(update={"steps": -(-len(forget) // RELEARNED.batch_size)})
        self._save(epoch.apply(opened(source), forget, forget, seed=seed), out)

    @property
    def _task(self) -> LabelledTask:
        return make_task(self.population)

    def _save(self, module: nn.Module, out: Path) -> None:
        task = self._task
        out.mkdir()
        save_network(module, self.recipe.network(task.pool), out, Provenance(outputs_kind=task.outputs))


def opened(folder: Path) -> nn.Module:
    """Opens a model of a testbed, in evaluation mode."""
    return open_network(folder, None, folder, "float32").module
