"""Do unlearned models score an example like models that never saw it? Populations of models, compared example by example.

The NeurIPS-2023 unlearning challenge's epsilon and score as published (Triantafillou et al. 2024, "Are we making progress in
unlearning?", arXiv 2406.09073; google-deepmind/unlearning_evaluation), a corrected epsilon with an interval beside it, and
KLOM, the divergence of margins (Georgiev et al. 2024, "Attribute-to-Delete", arXiv 2410.23232, appendix E.1). Scores are
margins (`likelihood_ratio.margins`). Pure functions on numbers, which know nothing of models or attacks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.errors import ModelError, UsageError
from muaudit.estimators.likelihood_ratio import SMALLEST_SPREAD
from muaudit.estimators.privacy_bounds import epsilon_table, rate_ends

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Binning = Literal["equal_width", "equal_count"]

EPSILON_CAP = 50.0
"""What the challenge takes for infinity, and gives where models hardly vary."""
DELTA = 1e-5
"""The challenge's delta."""
SMALLEST_RANGE = 0.01
"""Of two ranges of scores: the smaller over the larger, below which the challenge gives `EPSILON_CAP`."""
PER_UNIT = 100
"""Thresholds per unit of margin in the challenge's grids."""
BUFFER = 2.0
"""How far beyond the scores the challenge's intervals reach, in units of margin."""
BIN = 0.5
"""Width of the challenge's bins of epsilon."""


def _populations(unlearned: ArrayLike, retrained: ArrayLike, fewest: int) -> tuple[FloatArray, FloatArray]:
    first, second = (np.asarray(side, dtype=np.float64) for side in (unlearned, retrained))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UsageError(f"scores {first.shape} and {second.shape} do not fit: give [models, examples] of the same examples")
    if min(len(first), len(second)) < fewest:
        raise UsageError(
            f"{len(first)} unlearned and {len(second)} retrained models are too few: populations need {fewest} models each"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ModelError("a score is not a finite number, so models cannot be compared by it: see which model gave it")
    return first, second


# ---- the challenge's metric, as published ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Challenge:
    """The challenge's metric.

    Attributes:
        epsilons: Plug-in epsilon of each example [n], in [0, 50]: the largest of some 160,000 decision rules, so that it lies
            well above 0 even for two populations that are alike.
        degenerate: Examples [n] that got 50 without being looked at, or that could not be: the scores of one population hardly
            vary. A deterministic unlearning procedure run from one original gets it everywhere, however well it unlearns.
        bins: How many bins of epsilon earn points.
    """

    epsilons: FloatArray
    degenerate: BoolArray
    bins: int

    @property
    def points(self) -> FloatArray:
        """Points of each example [n]: 2^-bin, none beyond the last bin."""
        places = np.floor(self.epsilons / BIN)
        earned: FloatArray = np.where(places < self.bins, 0.5**places, 0.0)
        return earned

    @property
    def forgetting(self) -> float:
        """Forgetting quality F: mean points, in [0, 1]."""
        return float(self.points.mean())

    def score(self, *, retain: tuple[float, float], test: tuple[float, float]) -> float:
        """The final score F (RA_u / RA_r) (TA_u / TA_r); nothing keeps it below 1.

        Args:
            retain: Mean accuracy on the retain set of the unlearned and of the retrained models, the latter above 0.
            test: Likewise on the test set.

        Returns:
            The score, 0 or more.

        Raises:
            UsageError: Retrained models are right nowhere.
        """
        if retain[1] <= 0 or test[1] <= 0:
            raise UsageError("retrained models have no accuracy to divide by: see whether labels belong to the examples")
        return self.forgetting * (retain[0] / retain[1]) * (test[0] / test[1])


def challenge(unlearned: ArrayLike, retrained: ArrayLike, *, delta: float = DELTA) -> Challenge:
    """The NeurIPS-2023 challenge's metric, rule by rule as published.

    The published code stops with an error where no rule is left or a range is 0; here the example gets epsilon 0 in the first
    case, and in the second 50 or, if all scores are equal, 0; both of the second are marked.

    Args:
        unlearned: Scores of the forget examples under unlearned models [M, n]; 512 in the challenge.
        retrained: Under retrained models [K, n].
        delta: The definition's delta.

    Returns:
        Epsilons and points.

    Raises:
        ModelError: A score is not finite.
        UsageError: The shapes do not fit, or there are fewer than three models on a side.
    """
    first, second = _populations(unlearned, retrained, 3)
    larger = np.median(second, axis=0) > np.median(first, axis=0)
    tables = {turned: _plug_in(*sizes, delta) for turned, sizes in _orders(len(first), len(second)).items()}
    epsilons, degenerate = np.empty(first.shape[1]), np.zeros(first.shape[1], dtype=bool)
    for example in range(first.shape[1]):
        pair = (first[:, example], second[:, example])
        positive, negative = pair[::-1] if larger[example] else pair
        ranges = sorted((float(np.ptp(positive)), float(np.ptp(negative))))
        degenerate[example] = ranges[0] < SMALLEST_RANGE * ranges[1] or ranges[1] == 0
        if degenerate[example]:
            epsilons[example] = 0.0 if ranges[1] == 0 and positive[0] == negative[0] else EPSILON_CAP
        else:
            epsilons[example] = _rule_maximum(np.sort(positive), np.sort(negative), tables, turned=bool(larger[example]))
    bins = round(math.ceil(math.log(min(len(first), len(second)) - 1)) / BIN)
    return Challenge(np.clip(epsilons, 0.0, EPSILON_CAP), degenerate, bins)


def _orders(first: int, second: int) -> dict[bool, tuple[int, int]]:
    """Sizes of the positive and the negative class, by whether the retrained models are the positive ones."""
    return {False: (first, second), True: (second, first)}


def _plug_in(positives: int, negatives: int, delta: float) -> FloatArray:
    """Epsilon by false negatives and false positives [positives + 1, negatives + 1]; -inf where the challenge drops a rule."""
    fnr = np.arange(positives + 1)[:, None] / positives
    fpr = np.arange(negatives + 1)[None, :] / negatives
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.fmax(np.log(1 - delta - fpr) - np.log(fnr), np.log(1 - delta - fnr) - np.log(fpr))
    table = np.where((fnr > 0) & (fpr > 0), np.fmax(ratios, 0.0), -np.inf)
    table[np.isnan(ratios)] = -np.inf
    table[0, 0] = np.inf
    return table


def _rule_maximum(positive: FloatArray, negative: FloatArray, tables: dict[bool, FloatArray], *, turned: bool) -> float:
    """The largest epsilon of all rules on two sorted populations."""
    low, high = min(positive[0], negative[0]), max(positive[-1], negative[-1])
    cuts = np.linspace(low, high, math.ceil((high - low) * PER_UNIT))
    missed, alarms = np.searchsorted(positive, cuts), len(negative) - np.searchsorted(negative, cuts)
    best = tables[turned][missed, alarms].max(initial=-np.inf)
    # In the interval rules, the positive class is the one with the smaller range.
    if np.ptp(positive) >= np.ptp(negative):
        positive, negative, turned = negative, positive, not turned
    width = positive[-1] - positive[0]
    start, stop = positive[0] + width - BUFFER, positive[-1] + BUFFER
    right = np.linspace(start, stop, math.ceil((stop - start) * PER_UNIT))
    # Each row as np.linspace would make it: the ends of an interval may coincide with a score, where rounding decides.
    left = np.linspace(right - width - BUFFER, right - width + BUFFER, math.ceil(2 * BUFFER * PER_UNIT), axis=1)
    missed, alarms = _within(positive, left, right), _within(negative, left, right)
    return max(0.0, float(best), float(tables[turned][len(positive) - missed, alarms].max()))


def _within(scores: FloatArray, left: FloatArray, right: FloatArray) -> IntArray:
    """How many sorted scores lie in [left, right], for left [r, l] and right [r]."""
    inside: IntArray = np.searchsorted(scores, right, "right")[:, None] - np.searchsorted(scores, left, "left")
    return np.maximum(inside, 0)


# ---- corrected ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrected:
    """Epsilon of each example at a rule that other models chose.

    Attributes:
        lower: Lower bound of epsilon [n], 0 or more, at the confidence asked for, one example at a time.
        estimate: Plug-in epsilon of the chosen rule [n] with half a count added to each side, 0 or more.
        upper: Upper end of the chosen rule's epsilon [n], at most 50. It bounds what this rule can show, not what another
            attack might.
        largest: The lower bound that populations without any overlap would get.
    """

    lower: FloatArray
    estimate: FloatArray
    upper: FloatArray
    largest: float


def corrected(unlearned: ArrayLike, retrained: ArrayLike, *, seed: int, alpha: float = 0.05, delta: float = DELTA) -> Corrected:
    """The challenge's epsilon without its bias: one half of the models chooses the rule, the other half judges it.

    Rules are all intervals between neighbouring scores, one-sided ones among them; models inside are called unlearned or
    retrained, and both ratios of either count. The rule with the largest bound on the choosing models is judged on the others
    with Clopper-Pearson intervals, so the number of rules needs no correction. The unit of replication is the model: each must
    be a run of its own.

    Args:
        unlearned: Scores of the forget examples under unlearned models [M, n], M >= 4.
        retrained: Under retrained models [K, n], K >= 4.
        seed: Seed of the halves; all examples share them.
        alpha: Error rate of each example's interval; divide it by n for all examples together.
        delta: The definition's delta.

    Returns:
        Lower bounds, estimates and upper ends.

    Raises:
        ModelError: A score is not finite.
        UsageError: The shapes do not fit, or there are fewer than four models on a side.
    """
    populations = _populations(unlearned, retrained, 4)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(side)) for side in populations]
    halves = [len(side) // 2 for side in populations]
    choosing = [side[order[:half]] for side, order, half in zip(populations, orders, halves, strict=True)]
    judging = [side[order[half:]] for side, order, half in zip(populations, orders, halves, strict=True)]
    table = epsilon_table(*halves, alpha=alpha, delta=delta)
    counts = np.empty((populations[0].shape[1], 2), dtype=np.int64)
    for example in range(len(counts)):
        left, right, inside = _best_interval(choosing[0][:, example], choosing[1][:, example], table)
        for side in (0, 1):
            values = judging[side][:, example]
            within = int(((values > left) & (values < right)).sum())
            counts[example, side] = within if inside else len(values) - within
    sizes = len(judging[0]), len(judging[1])
    bounds = epsilon_table(*sizes, alpha=alpha, delta=delta)
    lower = bounds[counts[:, 0], counts[:, 1]]
    return Corrected(lower, *_around(counts, sizes, alpha, delta), largest=float(bounds.max()))


def _around(counts: IntArray, sizes: tuple[int, int], alpha: float, delta: float) -> tuple[FloatArray, FloatArray]:
    """Estimate and upper end of the epsilon of rules that call so many unlearned and retrained models unlearned."""
    share = (counts + 0.5) / (np.array(sizes) + 1)
    low, high = (
        np.stack([rate_ends(size, alpha)[end][counts[:, side]] for side, size in enumerate(sizes)], axis=1) for end in (0, 1)
    )

    def epsilon(tpr: FloatArray, fpr: FloatArray) -> FloatArray:
        ratios = np.maximum((tpr - delta) / np.maximum(fpr, 1e-300), (1 - fpr - delta) / np.maximum(1 - tpr, 1e-300))
        value: FloatArray = np.minimum(np.log(np.maximum(ratios, 1.0)), EPSILON_CAP)
        return value

    return epsilon(share[:, 0], share[:, 1]), epsilon(high[:, 0], low[:, 1])


def _best_interval(first: FloatArray, second: FloatArray, table: FloatArray) -> tuple[float, float, bool]:
    """The interval, and whether inside means the first population, whose bound is largest; one-sided rules win ties."""
    seen = np.unique(np.concatenate([first, second]))
    cuts = np.concatenate([[-np.inf], (seen[:-1] + seen[1:]) / 2, [np.inf]])
    below = [np.searchsorted(np.sort(side), cuts) for side in (first, second)]
    last = len(cuts) - 1
    inner = np.triu_indices(last - 1, 1)
    left = np.concatenate([np.zeros(last, dtype=np.int64), inner[0] + 1])
    right = np.concatenate([np.arange(1, last + 1), inner[1] + 1])
    hits, alarms = (count[right] - count[left] for count in below)
    bounds = np.stack([table[hits, alarms], table[len(first) - hits, len(second) - alarms]], axis=1)
    place, outside = divmod(int(bounds.argmax()), 2)  # the first of equals, and one-sided rules come first
    return float(cuts[left[place]]), float(cuts[right[place]]), not outside


# ---- held-out advantage ------------------------------------------------------------------------------------------------


def advantage(unlearned: ArrayLike, retrained: ArrayLike, *, seed: int, folds: int = 4) -> FloatArray:
    """How well unlearned models are told from retrained ones by each example, judged on models that had no part in the rule.

    In turn, each fold of the models is judged by the likelihood ratio of two Gaussians that were fitted to the other folds.
    Whatever the true distributions are, the result has mean 0 for two populations that are alike. Gaussians rather than the
    challenge's rules: fitted to so few models they err less than the best of thousands of intervals.

    Args:
        unlearned: Scores of the forget examples under unlearned models [M, n], M >= 2 folds.
        retrained: Under retrained models [K, n], K >= 2 folds.
        seed: Seed of the folds; all examples share them.
        folds: How many, at least 2.

    Returns:
        [n] in [-1, 1]: true positive rate less false positive rate; 1 where every model is told right.

    Raises:
        ModelError: A score is not finite.
        UsageError: The shapes do not fit, or there are too few models.
    """
    populations = _populations(unlearned, retrained, 2 * folds)
    rng = np.random.default_rng(seed)
    places = [rng.permutation(len(side)) % folds for side in populations]
    called = np.zeros((2, populations[0].shape[1]))
    for fold in range(folds):
        learned = [side[place != fold] for side, place in zip(populations, places, strict=True)]
        means = [side.mean(0) for side in learned]
        spreads = [np.maximum(side.std(0), SMALLEST_SPREAD) for side in learned]
        for number, (side, place) in enumerate(zip(populations, places, strict=True)):
            judged = side[place == fold]
            first, second = (
                -(((judged - mean) / spread) ** 2) / 2 - np.log(spread) for mean, spread in zip(means, spreads, strict=True)
            )
            called[number] += ((first > second).sum(0) + (first >= second).sum(0)) / 2  # a tie is half a call
    difference: FloatArray = called[0] / len(populations[0]) - called[1] / len(populations[1])
    return difference


# ---- divergence of margins ---------------------------------------------------------------------------------------------


def klom(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    bins: int = 20,
    binning: Binning = "equal_width",
    clip: float = 100.0,
    floor: float = 1e-5,
) -> FloatArray:
    """KLOM: Kullback-Leibler divergence of unlearned models' margins from retrained models', by histograms.

    As published, but for the largest score of all, which the published code's last bin leaves out. With few models a histogram
    shows a divergence where there is none: look at KLOM between two halves of the retrained models too.

    Args:
        unlearned: Margins under unlearned models [M, n], M >= 2.
        retrained: Margins under retrained models [K, n], K >= 2.
        bins: Bins of each example's histogram.
        binning: `equal_width` over both populations' range (published), or `equal_count`: as many scores of both together in
            each, so that one far-off model does not blunt the rest.
        clip: Margins are cut to [-clip, clip].
        floor: Smallest share of the retrained models in a bin that holds unlearned ones; it keeps the divergence finite, below
            log(1 / floor).

    Returns:
        [n], in nats, 0 or more up to the floor's rounding.

    Raises:
        ModelError: A margin is not finite.
        UsageError: The shapes do not fit.
    """
    first, second = (np.clip(side, -clip, clip) for side in _populations(unlearned, retrained, 2))
    if bins < 2 or not 0 < floor < 1:
        raise UsageError(
            f"{bins} bins with a floor of {floor} measure no divergence: take two bins or more, and a floor in (0, 1)"
        )
    result = np.empty(first.shape[1])
    for example in range(len(result)):
        pair = (first[:, example], second[:, example])
        edges = _edges(np.concatenate(pair), bins, binning)
        p, q = (np.histogram(side, edges)[0] / len(side) for side in pair)
        held = p > 0
        q = np.where(held, np.maximum(q, floor), q)
        result[example] = float((p[held] * np.log(p[held] / q[held] * q.sum())).sum())
    return result


def _edges(scores: FloatArray, bins: int, binning: Binning) -> FloatArray:
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        return np.linspace(low, low + 1, bins + 1)
    if binning == "equal_width":
        return np.linspace(low, high, bins + 1)
    edges: FloatArray = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)))
    return edges
