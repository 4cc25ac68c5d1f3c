"""Projection onto the simplex against the exact algorithm by sorting, and draws against their probabilities."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from muaudit.diffusion.simplex import draw, project


def by_sorting(row: np.ndarray) -> np.ndarray:
    """Exact, one row at a time: Held, Wolfe and Crowder 1974; Duchi et al. 2008, figure 1."""
    ordered = np.sort(row)[::-1]
    sums = np.cumsum(ordered)
    count = np.flatnonzero(ordered * np.arange(1, len(row) + 1) > sums - 1)[-1] + 1
    return np.maximum(row - (sums[count - 1] - 1) / count, 0)


@pytest.mark.parametrize("size", [1, 2, 483, 5_000])
@pytest.mark.parametrize("spread", [1e-6, 0.05, 1.0, 1000.0])
def test_it_is_the_exact_projection(size: int, spread: float) -> None:
    values = np.random.default_rng(size).normal(size=(3, 4, size)) * spread + 1 / size
    found = project(torch.from_numpy(values)).numpy()
    expected = np.stack([by_sorting(row) for row in values.reshape(-1, size)]).reshape(values.shape)
    assert np.abs(found - expected).max() < 1e-9
    single = project(torch.from_numpy(values).float())
    assert single.dtype == torch.float32
    assert (single >= 0).all()
    assert np.abs(single.numpy() - expected).max() < 1e-6 * max(1, spread)


def test_points_of_the_simplex_stay_where_they_are() -> None:
    points = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(50, 0.1), size=20))
    assert torch.allclose(project(points), points, atol=1e-12)
    uniform = torch.full((2, 49_408), 1 / 49_408)
    assert torch.allclose(project(uniform).sum(-1), torch.ones(2), atol=1e-3)


def test_each_row_is_projected_by_itself() -> None:
    values = torch.randn(40, 3, 483, generator=torch.Generator().manual_seed(1))
    together = project(values)
    assert all(torch.equal(project(values[row : row + 1])[0], together[row]) for row in range(40))


def test_draws_follow_the_probabilities() -> None:
    row = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = torch.bincount(draw(row.expand(20_000, -1), uniform), minlength=6) / 20_000
    assert found[[0, 2, 5]].sum() == 0
    assert found.numpy() == pytest.approx(row.numpy(), abs=0.015)


def test_the_ends_of_the_range_draw_what_is_possible() -> None:
    rows = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).expand(4, -1)
    just_below = np.nextafter(1.0, 0.0)
    asked = torch.tensor([0.0, np.nextafter(0.25, 0.0), 0.25, just_below], dtype=torch.float64)
    assert draw(rows, asked).tolist() == [1, 1, 2, 2]
