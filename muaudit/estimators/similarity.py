"""How alike two models are: what their layers make of the same inputs, what they answer, and what benchmarks score.

Pure functions on arrays, which know nothing of models or attacks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from muaudit.errors import ModelError, UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BANDWIDTHS = (0.5, 1.0, 2.0)
"""Bandwidths of the relative test's kernels, in medians of the distances between outputs."""
ROUNDING = 1e-12
"""What rounding may leave of a mean of kernels, which lie in [0, 1]: equal models differ by no more."""


# ---- representations ---------------------------------------------------------------------------------------------------


def linear_cka(first: ArrayLike, second: ArrayLike, *, debiased: bool = True) -> float:
    """Linear centred kernel alignment of two representations of the same inputs (Kornblith et al. 2019).

    It changes neither with rotation nor with scale of either one. The biased estimate tends to 1 as features outnumber inputs,
    even for unrelated representations; the debiased one (unbiased HSIC, Song et al. 2012, as in Nguyen et al. 2021) stays
    around 0 there, and may be negative.

    Args:
        first: [n, d], n >= 4.
        second: [n, e].
        debiased: Which estimate.

    Returns:
        1 for the same representation up to rotation and scale; the biased one lies in [0, 1].

    Raises:
        ModelError: A number is not finite.
        UsageError: The shapes do not fit, or a representation is the same for all inputs.
    """
    one, two = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if one.ndim != 2 or two.ndim != 2 or len(one) != len(two) or len(one) < 4:
        raise UsageError(
            f"representations {one.shape} and {two.shape} do not fit: give [n, d] and [n, e] of four inputs or more"
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise ModelError("a layer's output is not a finite number, so layers cannot be compared: see which model gave it")
    if (one == one[0]).all() or (two == two[0]).all():
        raise UsageError("a representation is the same for all inputs, so its alignment with another one means nothing")
    one, two = one - one.mean(0), two - two.mean(0)
    measure = _unbiased_hsic if debiased else _cross
    return float(measure(one, two) / np.sqrt(measure(one, one) * measure(two, two)))


def _cross(first: FloatArray, second: FloatArray) -> float:
    """tr(K L) of the Gram matrices K and L, the cheaper way: through features or through inputs."""
    inputs, features = len(first), (first.shape[1], second.shape[1])
    if features[0] * features[1] <= inputs * sum(features):
        return float(((first.T @ second) ** 2).sum())
    return float(((first @ first.T) * (second @ second.T)).sum())


def _unbiased_hsic(first: FloatArray, second: FloatArray) -> float:
    """HSIC_1 of Song et al. (2012), equation 5, up to the factor 1 / (n (n - 3))."""
    size = len(first)
    diagonals = [(side**2).sum(1) for side in (first, second)]
    # Rows of a centred Gram matrix sum to 0; without its diagonal, to minus the diagonal.
    trace = _cross(first, second) - float(diagonals[0] @ diagonals[1])
    both = float(diagonals[0].sum() * diagonals[1].sum()) / ((size - 1) * (size - 2))
    return trace + both - 2 / (size - 2) * float(diagonals[0] @ diagonals[1])


# ---- outputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relative:
    """A relative similarity test.

    Attributes:
        statistic: Squared discrepancy of the target from the references less that from the original; negative where the
            target is nearer to the references.
        p_value: One-sided, of "no nearer to the references than to the original".
    """

    statistic: float
    p_value: float


def kernel_relative_test(target: ArrayLike, references: ArrayLike, original: ArrayLike, codes: ArrayLike) -> Relative:
    """Are the target's outputs distributed more like the references' than like the original's?

    The relative similarity test of Bounliphone et al. (2016), MMD^2(target, reference) - MMD^2(target, original), for output
    vectors on the same examples. All three outputs of an example form one observation, so that their dependence is accounted
    for; pairs within a cluster are left out, and the error of the U-statistic is that of its projection, summed over clusters.
    The kernel is a mean of Gaussians at `BANDWIDTHS` times the median distance. With several references the statistic is the
    mean over them, given these references. A distribution forgets which example an output belongs to; unit by unit,
    `statistics.relative_similarity` compares leakages.

    Args:
        target: Outputs [n, d], such as class probabilities.
        references: [K, n, d], K >= 1.
        original: [n, d].
        codes: Cluster of each example [n], in 0..C-1, C >= 3.

    Returns:
        The statistic and its p-value.

    Raises:
        ModelError: An output is not finite.
        UsageError: The shapes do not fit, or there are too few clusters.
    """
    asked, others, first = (np.asarray(side, dtype=np.float64) for side in (target, references, original))
    groups = np.unique(np.asarray(codes), return_inverse=True)[1]
    if asked.ndim != 2 or first.shape != asked.shape or others.shape[1:] != asked.shape or not len(others):
        raise UsageError(
            f"outputs {asked.shape}, {others.shape} and {first.shape} do not fit: give [n, d], [K, n, d] and [n, d]"
        )
    if groups.shape != asked.shape[:1] or len(groups) == 0 or groups.max() < 2:
        raise UsageError("the relative test needs a cluster for each example, and three clusters at least")
    if not all(np.isfinite(side).all() for side in (asked, others, first)):
        raise ModelError("an output is not a finite number, so outputs cannot be compared: see which model gave it")
    apart = groups[:, None] != groups[None, :]
    scale = _median_distance([asked, first, *others], apart)
    kernel = -_own_and_cross(asked, first, scale)
    for one in others:
        kernel += _own_and_cross(asked, one, scale) / len(others)
    return _projected(np.where(apart, kernel, 0.0), apart, groups)


def _own_and_cross(asked: FloatArray, other: FloatArray, scale: float) -> FloatArray:
    """k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i): what MMD^2 adds for a pair of examples besides k(x_i, x_j)."""
    cross = _kernel(asked, other, scale)
    result: FloatArray = _kernel(other, other, scale) - cross - cross.T
    return result


def _squared_distances(first: FloatArray, second: FloatArray) -> FloatArray:
    squares: FloatArray = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2 * first @ second.T
    return np.maximum(squares, 0.0, out=squares)


def _kernel(first: FloatArray, second: FloatArray, scale: float) -> FloatArray:
    squares = _squared_distances(first, second) / (2 * scale**2)
    kernel: FloatArray = np.mean([np.exp(-squares / width**2) for width in BANDWIDTHS], axis=0)
    return kernel


def _median_distance(outputs: list[FloatArray], apart: NDArray[np.bool_]) -> float:
    """Median distance of two examples' outputs under the same model; 1 where most outputs are equal."""
    squares = np.concatenate([_squared_distances(side, side)[apart] for side in outputs])
    return float(np.sqrt(np.median(squares))) or float(np.sqrt(squares.mean())) or 1.0


def _projected(kernel: FloatArray, apart: NDArray[np.bool_], groups: IntArray) -> Relative:
    """Mean of a symmetric kernel over pairs of different clusters, and its Student-t test over clusters."""
    pairs = float(apart.sum())
    statistic = float(kernel.sum()) / pairs
    residuals = np.bincount(groups, (kernel - statistic * apart).sum(1))
    clusters = len(residuals)
    error = 2 * np.sqrt(clusters / (clusters - 1) * float(residuals @ residuals)) / pairs
    if error < ROUNDING:
        return Relative(statistic, 0.0 if statistic < -ROUNDING else 1.0)
    return Relative(statistic, float(stats.t.cdf(statistic / error, clusters - 1)))


# ---- benchmarks' scores ------------------------------------------------------------------------------------------------


def nomus(test_accuracy: float, mia: float) -> float:
    """NoMUS, the score of MUFAC and MUCAC (Choi and Na 2023, arXiv 2311.02240).

    On MUCAC it ranks the original model above a retrained one (.886 and .863): read it beside the retrained models' own.

    Args:
        test_accuracy: In [0, 1].
        mia: Accuracy of the membership attack on balanced sets, in [0, 1]; 1/2 is best.

    Returns:
        (accuracy + 1 - 2 |mia - 1/2|) / 2, in [0, 1].

    Raises:
        UsageError: A number lies outside [0, 1].
    """
    if not (0 <= test_accuracy <= 1 and 0 <= mia <= 1):
        raise UsageError(f"accuracies of {test_accuracy} and {mia} are no shares: give numbers in [0, 1], not percent")
    return test_accuracy / 2 + (1 - 2 * abs(mia - 0.5)) / 2


def average_gap(values: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean distance of an unlearned model's metrics from a retrained model's (Avg. Gap; Fan et al. 2024, SalUn).

    Args:
        values: Metrics by name, such as accuracy on the forget, retain and test set and MIA efficacy.
        retrained: The same metrics of retrained models.

    Returns:
        Mean absolute difference, in the metrics' unit.

    Raises:
        UsageError: The two do not name the same metrics.
    """
    if not values or values.keys() != retrained.keys():
        raise UsageError(f"metrics {sorted(values)} and {sorted(retrained)} differ: a gap needs the same ones on both sides")
    return float(np.mean([abs(values[name] - retrained[name]) for name in values]))


def corrected_accuracy(predictions: ArrayLike, true_labels: ArrayLike, affected: ArrayLike) -> float:
    """Accuracy against the clean labels on the domain that the manipulation affects (Goel et al. 2024, arXiv 2402.14015).

    Args:
        predictions: Predicted class of each example [n].
        true_labels: Class before the manipulation [n].
        affected: Which examples lie in the affected domain [n], at least one.

    Returns:
        Share of the affected examples that are right, in [0, 1].

    Raises:
        UsageError: No example is affected, or the lengths differ.
    """
    guesses, truth, mask = np.asarray(predictions), np.asarray(true_labels), np.asarray(affected, dtype=bool)
    if guesses.shape != truth.shape or mask.shape != truth.shape or not mask.any():
        raise UsageError(
            "corrected accuracy needs a prediction and a clean label for each example, and affected ones among them"
        )
    return float((guesses[mask] == truth[mask]).mean())


# ---- worst-case forget sets --------------------------------------------------------------------------------------------


def capped_simplex(weights: ArrayLike, total: float) -> FloatArray:
    """The nearest point of {0 <= w <= 1, sum w = total} (Fan et al. 2024, "Challenging Forgets", arXiv 2403.07362).

    The projection is clip(w - mu, 0, 1) with the mu that makes the sum right. The sum falls piecewise linearly in mu, so that
    bisection finds the piece and the rest is exact.

    Args:
        weights: [N].
        total: How many examples the set is to have, m, in [0, N].

    Returns:
        [N] in [0, 1], with the sum m.

    Raises:
        ModelError: A weight is not finite.
        UsageError: There are fewer than m weights.
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or not 0 <= total <= len(values):
        raise UsageError(
            f"no {total} of {values.size} examples can be chosen: give one weight an example, and as many at least"
        )
    if not np.isfinite(values).all():
        raise ModelError("a weight is not a finite number: see which loss or gradient it comes from")
    if not len(values):
        return values
    low, high = float(values.min()) - 1, float(values.max())
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if np.clip(values - middle, 0, 1).sum() >= total else (low, middle)
    chosen: FloatArray = np.clip(values - low, 0, 1)
    inner = (chosen > 0) & (chosen < 1)
    if inner.any():  # what rounding of mu left over
        chosen[inner] -= (chosen.sum() - total) / inner.sum()
    return np.clip(chosen, 0, 1)
