"""Seed search: shares and best of k by plain counting."""

import itertools

import numpy as np
import pytest

pytest.importorskip("diffusers")

from drawn_task import Generator, measured, task

from muaudit.attacks.seed_search import SeedSearch, best_of


def test_best_of_k_is_the_share_of_subsets_with_a_hit() -> None:
    hits = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=bool)
    for size in range(1, 6):
        counted = [[row[list(part)].any() for part in itertools.combinations(range(5), size)] for row in hits]
        np.testing.assert_allclose(best_of(hits)[:, size - 1], np.mean(counted, axis=1))


def test_every_prompt_is_drawn_as_it_is_with_fresh_seeds() -> None:
    given, model = task(), Generator()
    prepared, found = measured(SeedSearch(seeds=6), given, model)
    assert [one.prompt for one in model.asked] == [one.prompt for one in given.forget for _ in range(6)]
    seeds = [one.seed for one in model.asked]
    assert len(set(seeds)) == 30
    assert not set(seeds) & {one.seed for one in given.forget}
    bright = (model.images(list(model.asked)).mean((1, 2, 3)) > 0.5).reshape(5, 6)
    np.testing.assert_allclose(found.leakage, bright.mean(1))
    np.testing.assert_allclose(found.scores["best_of_6"], bright.any(1))
    curve = found.curves["best_of"]
    assert curve.x == (1, 2, 3, 4, 5, 6)
    assert curve.y[0] == pytest.approx(bright.mean())
    assert curve.y[-1] == pytest.approx(bright.any(1).mean())
    assert {row[0].label for row in found.pictures.values()} == {"plain"}
    assert measured(SeedSearch(seeds=6), given, Generator())[1].canonical() == found.canonical()
    assert prepared.data.keys() == {"seeds"}
