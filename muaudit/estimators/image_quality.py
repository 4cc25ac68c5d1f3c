"""How far drawn images are from true ones as sets: FID and KID on features that any model made, with standard errors."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from muaudit.errors import EnvironmentFault, UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HALVES = 50
"""Random halves that a standard error is taken over."""


def frechet_distance(true: FloatArray, drawn: FloatArray) -> float:
    """Frechet distance of the two normal distributions that features have the moments of; FID on Inception's.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017 (arXiv 1706.08500, section 3, equation 6), covariances over
    n - 1, as torchmetrics computes it. It is biased upwards by few images, the more the longer the features.

    Args:
        true: Features [n, d], n >= 2.
        drawn: Features [m, d], m >= 2.

    Returns:
        At least 0, but for rounding.

    Raises:
        UsageError: There are fewer than two images a side.
        EnvironmentFault: torchmetrics is not installed.
    """
    import torch

    fid, _ = _metrics()
    _refuse_few(true, drawn)
    metric = fid(feature=_features(true.shape[1]))
    metric.update(torch.from_numpy(true), real=True)
    metric.update(torch.from_numpy(drawn), real=False)
    return float(metric.compute())


def kernel_distance(true: FloatArray, drawn: FloatArray, *, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the cubic kernel (x'y / d + 1)^3, without bias; KID on Inception's features.

    Binkowski et al. 2018 (arXiv 1801.01401, section 4): the mean and the standard deviation over random subsets, as
    torchmetrics computes it.

    Args:
        true: Features [n, d].
        drawn: Features [m, d].
        subsets: How many subsets of each are compared.
        size: Images of each in a subset, from 2 to min(n, m).
        seed: Draws the subsets.

    Returns:
        Mean and standard deviation; the mean can be below 0, where the sets are alike.

    Raises:
        UsageError: There are fewer than two images a side.
        EnvironmentFault: torchmetrics is not installed.
    """
    import torch

    _, kid = _metrics()
    _refuse_few(true, drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the memory that features take
        metric = kid(feature=_features(true.shape[1]), subsets=subsets, subset_size=size)
    metric.update(torch.from_numpy(true), real=True)
    metric.update(torch.from_numpy(drawn), real=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def quick_frechet_distance(true: FloatArray, drawn: FloatArray) -> float:
    """The same as `frechet_distance`, at the cost of the number of images where that is smaller than that of features.

    With centred features X and Y, each divided by the root of n - 1, the trace of (S1 S2)^(1/2) is the sum of the singular
    values of X Y', and of the same product of their triangular factors.

    Args:
        true: Features [n, d], n >= 2.
        drawn: Features [m, d], m >= 2.

    Returns:
        At least 0, but for rounding.
    """
    x, y = ((one - one.mean(0)) / np.sqrt(len(one) - 1) for one in (true, drawn))
    apart = float(((true.mean(0) - drawn.mean(0)) ** 2).sum())
    first, second = (linalg.qr(one, mode="r")[0][: min(one.shape)] for one in (x, y))
    product = first @ second.T
    return apart + float((x**2).sum() + (y**2).sum()) - 2 * float(np.linalg.svd(product, compute_uv=False).sum())


def polynomial_discrepancy(true: FloatArray, drawn: FloatArray) -> float:
    """KID's discrepancy of all images at once, without bias.

    Args:
        true: Features [n, d], n >= 2.
        drawn: Features [m, d], m >= 2.

    Returns:
        The squared discrepancy; it can be below 0.
    """

    def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
        values: FloatArray = (a @ b.T / a.shape[1] + 1) ** 3
        return values

    within = 0.0
    for one in (true, drawn):
        own = kernel(one, one)
        within += float(own.sum() - np.trace(own)) / (len(one) * (len(one) - 1))
    return within - 2 * float(kernel(true, drawn).mean())


def half_sample_error(
    statistic: Callable[[FloatArray, FloatArray], float],
    true: FloatArray,
    drawn: FloatArray,
    groups: tuple[IntArray, IntArray],
    seed: int,
) -> float:
    """Standard error of a distance of two sets, by the delete-half jackknife over groups of images.

    The standard deviation of the statistic over random halves, which estimates that of the statistic on all (Shao and Wu 1989,
    Annals of Statistics 17, with d = n / 2). Unlike the bootstrap it shows no image twice, by which these distances would grow.
    A bias by few images, as FID has it, is no part of it.

    Args:
        statistic: Of two sets of features.
        true: Features [n, d].
        drawn: Features [m, d].
        groups: Which group, such as a prompt, each image of either set belongs to; both sets have images of the same groups,
            four at least, and these are halved.
        seed: Draws the halves.

    Returns:
        The standard error.

    Raises:
        UsageError: There are fewer than four groups.
    """
    names = np.unique(groups[0])
    if len(names) < 4:
        raise UsageError(f"{len(names)} groups of images have no halves to tell an error by; four are the least")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(HALVES):
        half = rng.permutation(names)[: len(names) // 2]
        values.append(statistic(*(part[np.isin(own, half)] for part, own in zip((true, drawn), groups, strict=True))))
    return float(np.std(values, ddof=1))


def _refuse_few(true: FloatArray, drawn: FloatArray) -> None:
    if min(len(true), len(drawn)) < 2:
        raise UsageError(f"{len(true)} true and {len(drawn)} drawn images have no distance; two of each are the least")


def _features(width: int) -> Any:  # noqa: ANN401 - torch is imported late
    """What torchmetrics takes for the model: features are computed before, by any model."""
    from torch import nn

    module = nn.Identity()
    module.num_features = width  # type: ignore[assignment]
    return module


def _metrics() -> tuple[Any, Any]:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise EnvironmentFault("FID and KID need torchmetrics: pip install 'muaudit[diffusion]'") from error
    return FrechetInceptionDistance, KernelInceptionDistance
