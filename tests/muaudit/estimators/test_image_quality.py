"""FID against closed forms, KID against loops, standard errors against sets drawn again."""

import numpy as np
import pytest
from scipy import linalg

from muaudit.errors import UsageError
from muaudit.estimators.image_quality import (
    frechet_distance,
    half_sample_error,
    kernel_distance,
    polynomial_discrepancy,
    quick_frechet_distance,
)

pytest.importorskip("torchmetrics")


def normal(count: int, mean: float = 0.0, scale: float = 1.0, width: int = 6, seed: int = 0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).normal(size=(count, width))


def slow_frechet(true: np.ndarray, drawn: np.ndarray) -> float:
    root = linalg.sqrtm(np.cov(true.T) @ np.cov(drawn.T))
    apart = ((true.mean(0) - drawn.mean(0)) ** 2).sum()
    return float(apart + np.trace(np.cov(true.T) + np.cov(drawn.T) - 2 * np.real(root)))


def slow_kernel(true: np.ndarray, drawn: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(true), len(drawn)
    within = sum(kernel(true[i], true[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(drawn[i], drawn[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(one, other) for one in true for other in drawn) / (n * m)


def test_fid_is_the_matrix_formula() -> None:
    true, drawn = normal(80), normal(50, 0.5, 2.0, seed=1)
    truth = slow_frechet(true, drawn)
    assert frechet_distance(true, drawn) == pytest.approx(truth, rel=1e-9)
    assert quick_frechet_distance(true, drawn) == pytest.approx(truth, rel=1e-9)
    assert quick_frechet_distance(true, true) == pytest.approx(0, abs=1e-9)


def test_fid_of_two_known_gaussians() -> None:
    """Of spherical normal distributions it is d (shift^2 + (s1 - s2)^2)."""
    true, drawn = normal(20_000), normal(20_000, 1.0, 3.0, seed=1)
    assert quick_frechet_distance(true, drawn) == pytest.approx(6 * (1 + 4), rel=0.02)


def test_fid_of_fewer_images_than_features() -> None:
    true, drawn = normal(7, width=12), normal(9, 0.5, width=12, seed=1)
    assert quick_frechet_distance(true, drawn) == pytest.approx(frechet_distance(true, drawn), rel=1e-6)


def test_kid_is_the_mean_over_subsets_of_plain_loops() -> None:
    true, drawn = normal(12), normal(9, 0.3, seed=1)
    assert polynomial_discrepancy(true, drawn) == pytest.approx(slow_kernel(true, drawn), rel=1e-9)
    mean, deviation = kernel_distance(true[:9], drawn, subsets=3, size=9, seed=0)
    assert mean == pytest.approx(slow_kernel(true[:9], drawn), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)
    several = kernel_distance(true, drawn, subsets=2_000, size=5, seed=0)
    assert several[0] == pytest.approx(slow_kernel(true, drawn), abs=4 * several[1] / np.sqrt(2_000))
    assert several == kernel_distance(true, drawn, subsets=2_000, size=5, seed=0)
    assert several != kernel_distance(true, drawn, subsets=2_000, size=5, seed=1)


def test_kid_of_alike_sets_is_nothing_where_fid_is_not() -> None:
    pairs = [(normal(20, width=16, seed=2 * one), normal(20, width=16, seed=2 * one + 1)) for one in range(200)]
    kids = [polynomial_discrepancy(*pair) for pair in pairs]
    assert abs(np.mean(kids)) < 4 * np.std(kids) / np.sqrt(200)
    assert min(quick_frechet_distance(*pair) for pair in pairs) > 5


@pytest.mark.parametrize("statistic", [quick_frechet_distance, polynomial_discrepancy])
def test_standard_errors_are_those_of_sets_drawn_again(statistic: object) -> None:
    """Groups of one true and two drawn images, which share a shift of their own."""
    assert callable(statistic)

    def once(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        shift = rng.normal(size=(60, 4))
        return shift + rng.normal(size=(60, 4)), 1 + np.repeat(shift, 2, 0) + rng.normal(size=(120, 4))

    groups = np.arange(60), np.repeat(np.arange(60), 2)
    again = np.std([statistic(*once(seed)) for seed in range(300)])
    errors = [half_sample_error(statistic, *once(seed), groups, seed) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(again, rel=0.25)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="1 true and 5 drawn images have no distance"):
        frechet_distance(normal(1), normal(5))
    with pytest.raises(UsageError, match="3 groups of images have no halves"):
        half_sample_error(quick_frechet_distance, normal(3), normal(3), (np.arange(3), np.arange(3)), 0)
