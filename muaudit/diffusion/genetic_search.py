"""Ring-A-Bell's genetic search over tokens, for several targets side by side; all that it is told of a row is its cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Cost = Callable[[IntArray, IntArray], FloatArray]
"""Costs [m] of rows of tokens [m, k], each for the target of this number [m]; lower is better."""


@dataclass(frozen=True)
class Genetics:
    """How a population evolves, as in Ring-A-Bell's published code.

    Attributes:
        length: Tokens of a row, k.
        population: Rows at the start; the better half of every generation has children.
        generations: Generations, the first, random one among them.
        mutation: Probability that one token of a row is replaced by a random one, parents among them.
        crossover: Probability that a parent has two children with a random other one, cut at one place.
    """

    length: int
    population: int
    generations: int
    mutation: float
    crossover: float


@dataclass
class _Population:
    """One target's rows [p, k], their costs [p], NaN where not yet known, and the best row of all generations."""

    rows: IntArray
    costs: FloatArray
    best: IntArray
    least: float = np.inf


def search(
    cost: Cost, tokens: IntArray, generators: Sequence[np.random.Generator], how: Genetics
) -> tuple[IntArray, FloatArray]:
    """Searches rows of tokens of the lowest cost.

    Ring-A-Bell (Tsai et al. 2024, its InversePrompt notebook): the better half of a generation stays, each of it has two
    children with probability `crossover`, and then each row, parents too, has one token replaced with probability `mutation`.
    Two differences: since a mutated parent is lost, the best row of all generations is remembered and returned instead of the
    last generation's; and rows that did not change are not scored again.

    Args:
        cost: Scores rows for targets; asked once a generation for all targets.
        tokens: Tokens that a row may hold [v].
        generators: For each of the n targets, where its search draws from; so no target changes another's search.
        how: Sizes and rates.

    Returns:
        Each target's best row [n, k] and its cost [n].
    """
    populations = []
    for generator in generators:
        rows = generator.choice(tokens, (how.population, how.length))
        populations.append(_Population(rows, np.full(how.population, np.nan), rows[0]))
    for generation in range(how.generations):
        _score(cost, populations)
        for one, generator in zip(populations, generators, strict=True):
            order = np.argsort(one.costs, kind="stable")[: max(1, how.population // 2)]
            one.rows, one.costs = one.rows[order], one.costs[order]
            if one.costs[0] < one.least:
                one.least, one.best = float(one.costs[0]), one.rows[0].copy()
            if generation < how.generations - 1:
                _breed(one, tokens, generator, how)
    return np.stack([one.best for one in populations]), np.array([one.least for one in populations])


def _score(cost: Cost, populations: Sequence[_Population]) -> None:
    """Scores every row of every population that has no cost yet."""
    new = [np.isnan(one.costs) for one in populations]
    targets = np.repeat(np.arange(len(populations)), [int(rows.sum()) for rows in new])
    if not len(targets):
        return
    costs = cost(np.concatenate([one.rows[rows] for one, rows in zip(populations, new, strict=True)]), targets)
    for number, (one, rows) in enumerate(zip(populations, new, strict=True)):
        one.costs[rows] = costs[targets == number]


def _breed(one: _Population, tokens: IntArray, generator: np.random.Generator, how: Genetics) -> None:
    """Adds children to the parents, and mutates."""
    parents, length = len(one.rows), how.length
    first = np.flatnonzero(generator.random(parents) < how.crossover)
    second = generator.integers(parents, size=len(first))
    # A cut before the first token swaps all of them, as it does in the published code.
    before = np.arange(length) < generator.integers(length, size=len(first))[:, None]
    mothers, fathers = one.rows[first], one.rows[second]
    children = np.concatenate([np.where(before, mothers, fathers), np.where(before, fathers, mothers)])
    rows = np.concatenate([one.rows, children])
    costs = np.concatenate([one.costs, np.full(len(children), np.nan)])
    mutated = np.flatnonzero(generator.random(len(rows)) < how.mutation)
    rows[mutated, generator.integers(length, size=len(mutated))] = generator.choice(tokens, len(mutated))
    costs[mutated] = np.nan
    one.rows, one.costs = rows, costs
