"""Sharded training (SISA; Bourtoule et al., "Machine Unlearning", 2021): exact unlearning that retrains what was touched.

Adapted: shards are not sliced (slices only save time within a shard), and the shards' outputs are averaged, where the paper
takes a vote or the mean of the confidence vectors (section IV). An example's shard follows from its input alone, so that what
is trained on the retain set from the start is, to the bit, what unlearning leaves.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from muaudit.compute import seed_of
from muaudit.errors import UsageError
from muaudit.examples import Examples
from muaudit.testbed.classification.method import Situation, Training, fitted
from muaudit.training.networks import Mean, Network
from muaudit.training.recipes import TorchRecipe


class Sisa(Training):
    """Trains one network a shard; to forget, retrains the shards that held what is to be forgotten.

    Attributes:
        shards: Networks.
    """

    name: ClassVar[str] = "sisa"
    source: ClassVar[str] = "Bourtoule et al. 2021, arXiv 1912.03817"
    opens_original: ClassVar[bool] = False

    shards: int = Field(default=3, ge=2)

    def shard(self, examples: Examples) -> NDArray[np.int64]:
        """Each example's shard [n], in 0..shards-1: a digest of its input, so that it never changes with the others."""
        digests = (hashlib.sha256(np.ascontiguousarray(one).tobytes()).digest() for one in examples.pictured())
        return np.array([int.from_bytes(digest[:8], "big") % self.shards for digest in digests], dtype=np.int64)

    def fit(self, pool: Examples, seed: int) -> nn.Module:
        """Trains a sharded model.

        Args:
            pool: What it is trained on.
            seed: Of all that is random; each shard draws from its own stream.

        Returns:
            The model: the mean of the shards' networks.

        Raises:
            UsageError: A shard is empty.
        """
        model = self.network(self.known_recipe(), pool).blank()
        return self._trained(model, range(self.shards), pool, np.ones(len(pool), dtype=bool), seed)

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Retrains the shards that held an example of the forget set, without it; the others stay as they are."""
        if not isinstance(model, nn.Sequential) or not isinstance(model[-1], Mean) or len(model[-1]) != self.shards:
            raise UsageError(f"procedure sisa: the model is not one of {self.shards} shards; it unlearns only what it trained")
        pool = Examples.joined([forget, retain])
        touched = sorted(set(self.shard(forget).tolist()))
        return self._trained(model, touched, pool, np.arange(len(pool)) >= len(forget), seed)

    def unlearn(self, situation: Situation) -> nn.Module:
        """Trains a sharded model on everything, and has it forget; the testbed's original has no shards, and is not opened."""
        method, task = self.within(situation), situation.task
        original = method.fit(Examples.joined([task.forget, task.retain]), situation.seed)
        return method.apply(original, task.forget, task.retain, seed=situation.seed)

    def network(self, recipe: TorchRecipe, pool: Examples) -> Network:
        """The recipe's network, once a shard; not normalised, since the pool's statistics would tie the shards together."""
        return _unnormalised(recipe).network(pool).model_copy(update={"shards": self.shards})

    def _trained(
        self, model: nn.Sequential, shards: Iterable[int], pool: Examples, rows: NDArray[np.bool_], seed: int
    ) -> nn.Module:
        """The model, with newly trained networks in some of the shards."""
        assigned = self.shard(pool)
        for shard in shards:
            mine = rows & (assigned == shard)
            if not mine.any():
                raise UsageError(
                    f"procedure sisa: shard {shard} of {self.shards} holds no example to train on; take fewer shards"
                )
            trained = fitted(_unnormalised(self.known_recipe()), pool, mine, seed_of(str(seed), "shard", str(shard)))
            model[-1][shard].load_state_dict(trained.state_dict())  # type: ignore[index]
        return model.eval()


def _unnormalised(recipe: TorchRecipe) -> TorchRecipe:
    return recipe.model_copy(update={"normalise": False})


def train(inputs: NDArray[np.float32], labels: NDArray[Any], *, seed: int, **parameters: object) -> nn.Module:
    """Trains a sharded model: the `[recipe]` of kind "python" that goes with `unlearn`.

    Args:
        inputs: float32 [n, ...].
        labels: int64 [n] or float64 [n, d].
        seed: Of all that is random.
        **parameters: Fields of `Sisa`, the recipe of a shard's network among them.

    Returns:
        The model.
    """
    names = tuple(map(str, range(len(inputs))))
    return Sisa.model_validate(parameters).fit(Examples(names, names, labels, inputs), seed)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`Sisa` as a vendor's procedure; see `Method.apply`."""
    return Sisa.model_validate(parameters).apply(model, forget, retain, seed=seed)
