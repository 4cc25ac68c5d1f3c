"""Interpolated approximate measurement (IAM): how far each example is unlearned, between fitted and never seen.

Wang et al. 2025, "Towards Lifecycle Unlearning Commitment Management: Measuring Sample-level Unlearning Completeness"
(arXiv 2506.06112). The original model fits an example, a shadow model that never saw it only generalises to it. Signals
between the two are interpolated; how many of them the target's signal exceeds says where the target stands. One shadow model
is enough. Pure functions on numbers, which know nothing of models or attacks.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.errors import ModelError, UsageError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

STEPS = 1_000
"""Interpolated signals, both ends counted."""
SMALLEST_GAP = 0.01
"""An example whose scores as fitted and as never seen differ by no more tells nothing: the original never fitted it."""
SMALLEST_SPREAD = 1e-9
"""Floor of the standard deviation that a Gumbel distribution is made of."""
CELLS = 4_000_000
"""Cells of the matrix of steps by examples that are held at a time."""


def bounded_gumbel(probabilities: ArrayLike, *, below_one: float = 0.1, above_zero: float = 1e-5) -> FloatArray:
    """The signal: a Gumbel map of the true label's probability that stays finite at 0 and 1.

    Args:
        probabilities: Of the true label, or of a whole text, in [0, 1], any shape.
        below_one: epsilon_1: how near to certainty differences still count.
        above_zero: epsilon_2: how near to impossibility.

    Returns:
        -log(epsilon_1 - log(p + epsilon_2)), rising in p. With epsilon_1 of 1e-2 as in the published experiments on images,
        or .1 as in those on text.

    Raises:
        ModelError: A probability lies outside [0, 1] or is NaN.
        UsageError: The bounds leave the map infinite.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ModelError("a signal is made of probabilities in [0, 1]: give the true label's softmax, not its logit or loss")
    if above_zero <= 0 or below_one <= math.log1p(above_zero):
        raise UsageError(f"bounds of {below_one} and {above_zero} leave the Gumbel map infinite: take .1 and 1e-5")
    signal: FloatArray = -np.log(below_one - np.log(values + above_zero))
    return signal


@dataclass(frozen=True)
class Completeness:
    """Where the target stands with each example.

    Attributes:
        published: The paper's unlearning score [n], in [0, 1]. Even the original's and the shadows' own signals lie inside of
            it, and where they lie differs between examples and data sets.
        fitted: The same score of the original [n]: nothing unlearned.
        unseen: The same score of the shadows' mean signal [n]: never seen.
    """

    published: FloatArray
    fitted: FloatArray
    unseen: FloatArray

    @property
    def informative(self) -> BoolArray:
        """Where the original fits an example more than the shadows do [n], so that there is something to unlearn."""
        gap: BoolArray = self.unseen - self.fitted > SMALLEST_GAP
        return gap

    @property
    def position(self) -> FloatArray:
        """The published score on a scale where the original stands at 0 and a model that never saw the example at 1 [n].

        Below 0 the target fits the example more than the original; above 1 it is over-unlearned. An honest retrain scatters
        about 1 to both sides. Where not `informative`, there was nothing to unlearn, and the position is 1.
        """
        gap = np.where(self.informative, self.unseen - self.fitted, 1.0)
        place: FloatArray = np.where(self.informative, (self.published - self.fitted) / gap, 1.0)
        return place

    @property
    def completeness(self) -> FloatArray:
        """Share of the way from fitted to never seen [n], in [0, 1]."""
        return np.clip(self.position, 0.0, 1.0)

    @property
    def over_unlearned(self) -> FloatArray:
        """How far the position lies beyond never seen [n], 0 or more."""
        return np.maximum(self.position - 1.0, 0.0)


def completeness(original: ArrayLike, shadows: ArrayLike, target: ArrayLike, *, steps: int = STEPS) -> Completeness:
    """Unlearning completeness of each example.

    Every interpolated signal is the mean of a Gumbel distribution (method of moments). As published, its spread is that of the
    interpolated signals over shadows and examples, so that one shadow will do; scores thus hang on which examples are measured
    together (the paper takes 500). The chances that the target's signal exceeds each of them are averaged, the more weight the
    nearer to the original.

    Args:
        original: Signals of the original model [n], n >= 2.
        shadows: Signals of models that never saw the examples [S, n], S >= 1.
        target: Signals of the unlearned model [n].
        steps: Interpolated signals, at least 2.

    Returns:
        The scores.

    Raises:
        ModelError: A signal is not finite.
        UsageError: The signals do not belong together.
    """
    fits, seen, asked = (np.asarray(signal, dtype=np.float64) for signal in (original, shadows, target))
    if (
        seen.ndim != 2
        or fits.shape != seen.shape[1:]
        or asked.shape != fits.shape
        or not len(seen)
        or len(fits) < 2
        or steps < 2
    ):
        raise UsageError(
            f"signals of the original {fits.shape}, the shadows {seen.shape} and the target {asked.shape} do not fit: "
            "give [n], [S, n] and [n] with at least two examples, one shadow and two steps"
        )
    if not (np.isfinite(fits).all() and np.isfinite(seen).all() and np.isfinite(asked).all()):
        raise ModelError("a signal is not finite: make signals of probabilities with bounded_gumbel")
    general = seen.mean(0)
    shares = np.linspace(0, 1, steps)[:, None]
    spreads = np.maximum(_spreads(fits, seen, shares[:-1]), SMALLEST_SPREAD)
    scores = [np.empty(len(fits)) for _ in range(3)]
    width = max(1, CELLS // steps)
    for start in range(0, len(fits), width):
        rows = slice(start, start + width)
        means = general[rows] + (fits[rows] - general[rows]) * shares[:-1]
        for score, signal in zip(scores, (asked, fits, general), strict=True):
            score[rows] = 1 - _weighted(signal[rows], means, spreads, shares[1:])
    return Completeness(*scores)


def _spreads(fits: FloatArray, seen: FloatArray, shares: FloatArray) -> FloatArray:
    """Standard deviation of (1 - share) seen + share fits over shadows and examples, at every step [steps, 1]."""
    repeated = np.broadcast_to(fits, seen.shape)
    first, second = seen - seen.mean(), repeated - repeated.mean()
    variance = (1 - shares) ** 2 * (first**2).mean() + shares**2 * (second**2).mean()
    variance = variance + 2 * shares * (1 - shares) * (first * second).mean()
    spread: FloatArray = np.sqrt(np.maximum(variance, 0.0))
    return spread


def _weighted(signal: FloatArray, means: FloatArray, spreads: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted mean over the steps of the chance that a Gumbel variable of this mean and spread is no larger [n]."""
    scale = spreads * math.sqrt(6) / math.pi
    standard = (signal - (means - np.euler_gamma * scale)) / scale
    below = np.exp(-np.exp(np.minimum(-standard, 700.0)))
    score: FloatArray = (weights * below).sum(0) / weights.sum()
    return score
