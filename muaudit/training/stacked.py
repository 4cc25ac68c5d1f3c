"""Trains many networks at once: one stack of weights, one pass, each model with its own rows, order and start."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from muaudit.compute import flushed_denormals
from muaudit.examples import Examples
from muaudit.training.fitting import Batches, Single, Trainee, loss_of, optimizer, run, start
from muaudit.training.networks import Network
from muaudit.training.recipes import TorchRecipe, Trained, fit

Way = Literal["stacked", "sequential"]

_TIMED = 3
"""Steps that are timed, after one that is not; the fastest counts, since whatever else the machine does only slows."""


class Stack:
    """Several networks of one kind in training, their weights stacked along a first dimension.

    The optimiser works number by number, so the models of a stack know nothing of each other; one that diverges spoils no
    other. What a step computes is traced once and then run without the interpreter of `vmap`, which would take most of the
    time of a small network.

    Args:
        recipe: How they are trained.
        network: What they are.
        seeds: Of each one's start.
    """

    def __init__(self, recipe: TorchRecipe, network: Network, seeds: Sequence[int]) -> None:
        self._modules = [start(network, seed) for seed in seeds]
        weights, self._buffers = stack_module_state(list(self._modules))
        self._weights: dict[str, Tensor] = {name: value.detach() for name, value in weights.items()}
        self._optimizer = optimizer(recipe, list(self._weights.values()))
        self._traced: nn.Module | None = None

        def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
            return loss_of(functional_call(self._modules[0], (weights, buffers), (inputs,)), labels, recipe.labels)

        self._gradients = vmap(grad_and_value(loss))

    def step(self, inputs: Tensor, labels: Tensor, rate: float) -> Tensor:
        """One optimiser step of every model; see `Trainee`.

        Raises:
            RuntimeError: A layer cannot be stacked.
        """
        given = self._weights, self._buffers, inputs, labels
        if self._traced is None:
            self._traced = make_fx(self._gradients)(*given)
        gradients, losses = self._traced(*given)
        for name, value in self._weights.items():
            value.grad = gradients[name]
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        return losses  # type: ignore[no-any-return]

    def modules(self) -> list[nn.Sequential]:
        """The networks, each with its own part of the stack."""
        for place, module in enumerate(self._modules):
            module.load_state_dict({name: value[place] for name, value in self._weights.items()})
        return self._modules


def stackable(network: Network) -> bool:
    """Whether models of this kind can be trained as a stack: no layer keeps statistics of its batches or draws at random."""
    return not any(
        isinstance(layer, nn.modules.dropout._DropoutNd)
        or (isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats)
        for layer in network.blank().modules()
    )


def choose(recipe: TorchRecipe, network: Network, pool: Examples, rows: NDArray[np.bool_], seeds: Sequence[int]) -> Way:
    """How a stack of models is trained soonest: as the recipe's mode says, or as a short timing.

    Args:
        recipe: How they are trained.
        network: What they are.
        pool: All examples.
        rows: Which each is trained on, a mask [M, N].
        seeds: Each one's.

    Returns:
        "stacked" or "sequential"; the two agree but for rounding.
    """
    if recipe.mode == "sequential" or not stackable(network) or (recipe.mode == "auto" and len(seeds) == 1):
        return "sequential"
    try:
        together = _seconds_a_step(Stack(recipe, network, seeds), recipe, pool, rows, seeds)
    except RuntimeError:  # a layer that inspection knows nothing of
        return "sequential"
    if recipe.mode == "stacked":
        return "stacked"
    alone = _seconds_a_step(Single(recipe, network, seeds[0]), recipe, pool, rows[:1], seeds[:1])
    return "stacked" if together <= alone * len(seeds) else "sequential"


@flushed_denormals()
def _seconds_a_step(
    trainee: Trainee, recipe: TorchRecipe, pool: Examples, rows: NDArray[np.bool_], seeds: Sequence[int]
) -> float:
    taken = []
    for inputs, labels in Batches(recipe, pool, rows, seeds).take(1 + _TIMED):
        started = time.perf_counter()
        trainee.step(inputs, labels, recipe.learning_rate)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def fit_many(
    recipe: TorchRecipe,
    pool: Examples,
    rows: NDArray[np.bool_],
    seeds: Sequence[int],
    folder: Path,
    *,
    way: Way | None = None,
    steps: int | None = None,
) -> list[Trained]:
    """Trains several networks; equal to training each by itself, but for rounding.

    Args:
        recipe: How.
        pool: All examples.
        rows: Which each is trained on, a mask [M, N].
        seeds: Each one's.
        folder: Of audit.toml.
        way: All at once, or one by one; chosen by default.
        steps: Optimiser steps; from the mean number of rows by default.

    Returns:
        The networks in evaluation mode, with their retries. One that diverges is trained again by itself.

    Raises:
        ModelError: One diverged three times.
    """
    network = recipe.network(pool)
    steps = steps or recipe.steps_for(float(rows.sum(axis=1).mean()))
    if (way or choose(recipe, network, pool, rows, seeds)) == "sequential":
        return [fit(recipe, pool, seed, folder, rows=mask, steps=steps) for mask, seed in zip(rows, seeds, strict=True)]
    modules = run(Stack(recipe, network, seeds), recipe, pool, rows, seeds, steps)
    return [
        Trained(module, 0) if module is not None else fit(recipe, pool, seed, folder, rows=mask, steps=steps, tried=1)
        for module, mask, seed in zip(modules, rows, seeds, strict=True)
    ]
