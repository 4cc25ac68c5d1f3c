"""Trains built-in networks: batches, rates and losses, and one network by itself, which many at once must equal."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax, mse_loss, pad

from muaudit.compute import flushed_denormals, seed_of
from muaudit.examples import Examples, Outputs
from muaudit.training.networks import Network
from muaudit.training.recipes import TorchRecipe

_BLOCK = 64
"""Steps whose batches are drawn at a time; part of what a seed means, so never change it."""


class Batches:
    """Each model's batches: every pass takes all its rows once, in a new order, and batches run on across passes.

    A model's order and augmentation come from its own seed alone, so it sees the same batches whoever is trained beside it.

    Args:
        recipe: Batch size and augmentation.
        pool: What the rows are of.
        rows: Which examples each model is trained on, a mask [M, N] with at least one example each.
        seeds: Each model's.
    """

    def __init__(self, recipe: TorchRecipe, pool: Examples, rows: NDArray[np.bool_], seeds: Sequence[int]) -> None:
        self._recipe = recipe
        inputs = torch.tensor(pool.pictured())
        self._size = inputs.shape[1:]
        self._inputs = pad(inputs, (recipe.shift,) * 4) if recipe.shift else inputs
        self._labels = torch.tensor(
            pool.labels, dtype=torch.int64 if recipe.labels == "classes" else getattr(torch, recipe.dtype)
        )
        self._places = [torch.from_numpy(np.flatnonzero(mask)) for mask in rows]
        self._orders = [_generator(seed, "order") for seed in seeds]
        self._changes = [_generator(seed, "augmentation") for seed in seeds]
        self._left = [torch.empty(0, dtype=torch.int64) for _ in seeds]

    def take(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches.

        Args:
            steps: How many; one call an object.

        Yields:
            Inputs [M, B, ...] and labels [M, B] or [M, B, d].
        """
        for start in range(0, steps, _BLOCK):
            block = torch.stack([self._order(model) for model in range(len(self._places))], dim=1)
            drawn = [self._draw(generator) for generator in self._changes] if self._recipe.augmentation != "none" else []
            for step in range(min(_BLOCK, steps - start)):
                places = block[step]
                if drawn:
                    columns, lines = (torch.stack([one[kind][step] for one in drawn]) for kind in (0, 1))
                    yield self._changed(places, columns, lines), _taken(self._labels, places)
                else:
                    yield _taken(self._inputs, places), _taken(self._labels, places)

    def _order(self, model: int) -> Tensor:
        """Places in the pool of one model's next batches [_BLOCK, B]."""
        wanted, left, places = _BLOCK * self._recipe.batch_size, self._left[model], self._places[model]
        parts = [left]
        while (found := sum(len(part) for part in parts)) < wanted:
            parts.append(places[torch.randperm(len(places), generator=self._orders[model])])
        order = torch.cat(parts) if found > len(left) else left
        self._left[model] = order[wanted:]
        return order[:wanted].reshape(_BLOCK, -1)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Columns [_BLOCK, B, w] and lines [_BLOCK, B, h] of the padded images that make the augmented ones."""
        shape = (_BLOCK, self._recipe.batch_size, 1)
        height, width = self._size[-2:]
        across, down = (torch.randint(2 * self._recipe.shift + 1, shape, generator=generator) for _ in range(2))
        mirrored = torch.randint(2, shape, generator=generator) * int("mirror" in self._recipe.augmentation)
        columns = torch.arange(width)
        return across + columns + mirrored * (width - 1 - 2 * columns), down + torch.arange(height)

    def _changed(self, places: Tensor, columns: Tensor, lines: Tensor) -> Tensor:
        channels = torch.arange(self._size[0])[:, None, None]
        return self._inputs[places[..., None, None, None], channels, lines[..., None, :, None], columns[..., None, None, :]]


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, several times as fast."""
    return values.index_select(0, places.reshape(-1)).reshape(*places.shape, *values.shape[1:])


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(str(seed), purpose))


def start(network: Network, seed: int) -> nn.Sequential:
    """The network as training finds it: random weights from the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_of(str(seed), "weights"))
        return network.build()


def optimizer(recipe: TorchRecipe, weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of these weights; all three work number by number, so weights of many models can share one."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            weights, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=decay, fused=True
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=rate, weight_decay=decay, fused=True)


def rates(recipe: TorchRecipe, steps: int) -> Iterator[float]:
    """The learning rate of each step.

    Args:
        recipe: Peak rate, schedule and share of warm-up.
        steps: How many.

    Yields:
        Peak times (t + 1) / (w + 1) in the w steps of warm-up; then the peak, times 1, 1 - p or (1 + cos(pi p)) / 2 with
        p = (t - w) / (steps - w).
    """
    warm = round(recipe.warmup * steps)
    for step in range(steps):
        progress = (step - warm) / (steps - warm) if step >= warm else 0.0
        if step < warm:
            factor = (step + 1) / (warm + 1)
        elif recipe.schedule == "constant":
            factor = 1.0
        else:
            factor = 1 - progress if recipe.schedule == "linear" else (1 + np.cos(np.pi * progress)) / 2
        yield recipe.learning_rate * float(factor)


def loss_of(outputs: Tensor, labels: Tensor, kind: Outputs) -> Tensor:
    """Mean loss of a batch: cross-entropy in nats, or the mean squared error."""
    if kind == "numbers":
        return mse_loss(outputs, labels.reshape(outputs.shape))
    # torch's cross_entropy, without its care for ignored labels, which is most of the work where models are small.
    return -log_softmax(outputs, -1).gather(-1, labels[:, None]).mean()


class Trainee(Protocol):
    """One network or several, in training."""

    def step(self, inputs: Tensor, labels: Tensor, rate: float) -> Tensor:
        """One optimiser step.

        Args:
            inputs: Each model's batch [M, B, ...].
            labels: Of these [M, B] or [M, B, d].
            rate: The learning rate.

        Returns:
            Each model's mean loss [M], before the step.
        """
        ...

    def modules(self) -> list[nn.Sequential]:
        """The networks as they are now."""
        ...


class Single:
    """One network in training.

    Args:
        recipe: How.
        network: What.
        seed: Of its start.
    """

    def __init__(self, recipe: TorchRecipe, network: Network, seed: int) -> None:
        self._labels = recipe.labels
        self._module = start(network, seed)
        self._optimizer = optimizer(recipe, list(self._module.parameters()))

    def step(self, inputs: Tensor, labels: Tensor, rate: float) -> Tensor:
        """One optimiser step; see `Trainee`."""
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self._module(inputs[0]), labels[0], self._labels)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.detach()[None]

    def modules(self) -> list[nn.Sequential]:
        """The one network."""
        return [self._module]


@flushed_denormals()
def run(
    trainee: Trainee, recipe: TorchRecipe, pool: Examples, rows: NDArray[np.bool_], seeds: Sequence[int], steps: int
) -> list[nn.Sequential | None]:
    """Trains one network or several to the end.

    Args:
        trainee: What is trained.
        recipe: Batches and rates.
        pool: All examples.
        rows: Which each is trained on, a mask [M, N].
        seeds: Of each one's order and augmentation.
        steps: Optimiser steps.

    Returns:
        The networks in evaluation mode; None in place of one that diverged (a loss or a weight was not finite).
    """
    sound = torch.ones(len(seeds), dtype=torch.bool)
    batches = Batches(recipe, pool, rows, seeds).take(steps)
    for rate, (inputs, labels) in zip(rates(recipe, steps), batches, strict=True):
        sound &= torch.isfinite(trainee.step(inputs, labels, rate))
        if not sound.any():
            break
    return [
        module.eval() if held and all(bool(torch.isfinite(value).all()) for value in module.state_dict().values()) else None
        for held, module in zip(sound.tolist(), trainee.modules(), strict=True)
    ]


def fit_network(
    recipe: TorchRecipe, network: Network, pool: Examples, rows: NDArray[np.bool_], seed: int, steps: int
) -> nn.Sequential | None:
    """Trains one network.

    Args:
        recipe: How.
        network: What.
        pool: All examples.
        rows: Which it is trained on, a mask [N].
        seed: Of start, order and augmentation.
        steps: Optimiser steps.

    Returns:
        The network in evaluation mode; None where the training diverged.
    """
    return run(Single(recipe, network, seed), recipe, pool, rows[None], [seed], steps)[0]
