"""The genetic search against exhaustive search, and one generation of it by plain loops."""

import itertools

import numpy as np
import pytest

from muaudit.diffusion.genetic_search import Cost, Genetics, search

TOKENS = np.array([3, 5, 7, 11, 13, 17])


def couplings(seed: int, length: int) -> np.ndarray:
    """Costs of tokens at places and of neighbours [length, 2, 18, 18], so that no place can be chosen by itself."""
    return np.random.default_rng(seed).normal(size=(length, 2, 18, 18))


def rugged(seed: int, length: int = 4) -> Cost:
    table = [couplings(seed + target, length) for target in range(8)]

    def cost(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.array(
            [
                sum(table[target][place, 0, row[place], row[(place + 1) % length]] for place in range(length))
                for row, target in zip(rows, targets, strict=True)
            ]
        )

    return cost


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([9, number]) for number in range(count)]


def test_it_finds_what_exhaustive_search_finds() -> None:
    cost, how = rugged(0), Genetics(length=4, population=60, generations=60, mutation=0.25, crossover=0.5)
    every = np.array(list(itertools.product(TOKENS, repeat=4)))
    found, costs = search(cost, TOKENS, generators(4), how)
    for target in range(4):
        all_costs = cost(every, np.full(len(every), target))
        assert costs[target] == pytest.approx(all_costs.min())
        np.testing.assert_array_equal(found[target], every[all_costs.argmin()])


def test_the_cost_that_is_returned_is_the_row_s() -> None:
    cost, how = rugged(1), Genetics(length=4, population=10, generations=5, mutation=0.9, crossover=0.5)
    found, costs = search(cost, TOKENS, generators(3), how)
    np.testing.assert_allclose(cost(found, np.arange(3)), costs)
    assert set(found.ravel()) <= set(TOKENS)


def test_searching_together_changes_nothing() -> None:
    how = Genetics(length=4, population=20, generations=10, mutation=0.25, crossover=0.5)
    together, _ = search(rugged(2), TOKENS, generators(3), how)

    def only(target: int) -> Cost:
        return lambda rows, targets: rugged(2)(rows, targets + target)

    for target in range(3):
        alone, _ = search(only(target), TOKENS, [generators(3)[target]], how)
        np.testing.assert_array_equal(alone[0], together[target])


def test_more_generations_never_find_worse() -> None:
    """The best row is remembered, although mutation may take it out of the population."""
    least = [
        search(rugged(3), TOKENS, generators(2), Genetics(4, 8, generations, 1.0, 0.5))[1] for generations in (1, 3, 10, 30)
    ]
    assert (np.diff(least, axis=0) <= 0).all()


def test_nothing_known_is_scored_again() -> None:
    seen: list[tuple[int, ...]] = []

    def cost(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        seen.extend(map(tuple, rows))
        return rows.sum(1).astype(float)

    search(cost, TOKENS, generators(1), Genetics(length=3, population=10, generations=4, mutation=0.0, crossover=0.0))
    assert len(seen) == 10


def test_children_are_cut_from_two_parents_and_differ_from_them_by_mutation_alone() -> None:
    """With one generation of children: each row is, but for at most one token, a head of one parent and a tail of another."""
    generations: list[np.ndarray] = []

    def cost(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        generations.append(rows.copy())
        return rows.sum(1).astype(float)

    search(cost, TOKENS, generators(1), Genetics(length=5, population=30, generations=2, mutation=0.5, crossover=1.0))
    parents = generations[0][np.argsort(generations[0].sum(1), kind="stable")[:15]]
    made = [np.concatenate([one[:cut], two[cut:]]) for one in parents for two in parents for cut in range(6)]
    changed = [min(int((row != one).sum()) for one in made) for row in generations[1]]
    assert max(changed) == 1
    assert len(generations[1]) > 15, "two children a parent, and mutated parents"
