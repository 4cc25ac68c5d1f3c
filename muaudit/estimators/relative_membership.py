"""Relative membership inference (RMIA): does the model favour an example more than it favours examples that it never saw?

Zarifzadeh et al. 2024, "Low-Cost High-Power Membership Inference Attacks". An example's probability under the model is divided
by what it would be under models of the same kind, and the ratio is ranked among those of a population of non-members. One
reference model is enough. Larger scores mean "member". Pure functions on numbers, which know nothing of models or attacks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import membership
from muaudit.estimators.likelihood_ratio import margins

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

OFFSETS = tuple(step / 10 for step in range(11))
"""The offsets that `tuned_offset` tries."""


# ---- signals -----------------------------------------------------------------------------------------------------------


def probability(logits: ArrayLike, labels: ArrayLike, *, temperature: float = 1.0) -> FloatArray:
    """Softmax probability of the true label.

    Args:
        logits: [..., n, C].
        labels: [n].
        temperature: Divides the logits, above 0.

    Returns:
        [..., n] in [0, 1].

    Raises:
        ModelError: A logit is not a finite number.
    """
    value: FloatArray = special.expit(margins(np.asarray(logits, dtype=np.float64) / _positive(temperature), labels))
    return value


def taylor_probability(
    logits: ArrayLike, labels: ArrayLike, *, temperature: float = 2.0, order: int = 4, margin: float = 0.6
) -> FloatArray:
    """Soft-margin Taylor softmax of the true label, the signal of the paper's own experiments (Banerjee et al. 2020).

    The exponential is replaced by its Taylor polynomial, and the true label's logit is lowered by a margin. The published code
    stops one term short of the order that it names; an odd polynomial has negative "probabilities", so orders are even here.

    Args:
        logits: [..., n, C].
        labels: [n].
        temperature: Divides the logits, above 0.
        order: Highest power, even.
        margin: Taken from the true label's logit after the division.

    Returns:
        [..., n] in (0, 1).

    Raises:
        ModelError: A logit is not a finite number.
        UsageError: The order is odd.
    """
    if order < 2 or order % 2:
        raise UsageError(f"a Taylor softmax of order {order} can be negative: choose an even order, such as 4")
    margins(logits, labels)  # says what is wrong with logits and labels
    scaled = np.asarray(logits, dtype=np.float64) / _positive(temperature)
    own = np.broadcast_to(np.asarray(labels)[:, None], (*scaled.shape[:-1], 1))
    terms = _exponential(scaled, order)
    others = terms.sum(-1) - np.take_along_axis(terms, own, axis=-1)[..., 0]
    lowered = _exponential(np.take_along_axis(scaled, own, axis=-1)[..., 0] - margin, order)
    value: FloatArray = lowered / (lowered + np.maximum(others, 0.0))
    return value


def _exponential(values: FloatArray, order: int) -> FloatArray:
    """The exponential's Taylor polynomial, by Horner's rule."""
    total = np.ones_like(values)
    for power in range(order, 0, -1):
        total = 1 + values * total / power
    return total


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise UsageError(f"a temperature of {temperature} turns the logits upside down: choose one above 0")
    return temperature


# ---- the attack --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signals:
    """Probabilities of the true label (or a text's exp(mean token log-probability)) that the attack compares.

    Attributes:
        target: Of the examples in question under the model that is attacked [n], in [0, 1].
        references: Of the same under the reference models [K, n], K >= 1.
        population: Of examples that neither the model nor a reference was trained on, under the model [z], z >= 1.
        population_references: Of the same under the reference models [K, z].
        member: Which reference was trained on which example in question [K, n]; None where none was.
        population_member: Which reference was trained on which example of the population [K, z]; None where none was.
    """

    target: FloatArray
    references: FloatArray
    population: FloatArray
    population_references: FloatArray
    member: BoolArray | None = None
    population_member: BoolArray | None = None

    def __post_init__(self) -> None:
        """Checks that the arrays belong together and hold probabilities."""
        count, size = self.references.shape[:1], self.target.shape
        fits = self.references.shape == (*count, *size) and self.population_references.shape == (*count, *self.population.shape)
        if (
            not fits
            or count == (0,)
            or not self.population.size
            or (self.member is not None and self.member.shape != (*count, *size))
            or (self.population_member is not None and self.population_member.shape != self.population_references.shape)
        ):
            raise UsageError("signals of targets [n], references [K, n], population [z] and its references [K, z] do not fit")
        for values in (self.target, self.references, self.population, self.population_references):
            if not ((values >= 0) & (values <= 1)).all():
                raise ModelError(
                    "a signal is not a probability in [0, 1]: give the true label's softmax, not its logit or loss"
                )

    @property
    def outside(self) -> BoolArray:
        """Which reference was not trained on which example [K, n]."""
        return np.ones(self.references.shape, dtype=bool) if self.member is None else ~self.member


def trimmed_mean(values: ArrayLike, chosen: ArrayLike, trim: float = 0.0) -> FloatArray:
    """Mean over the chosen models of each example, without its extremes.

    The published code sorts signals that are set to 0 where a model does not count, and keeps the largest; that is right only
    if every example has equally many. Here, each example's own models are averaged.

    Args:
        values: [K, n].
        chosen: [K, n], which models count for which example.
        trim: Share that is cut at each end, rounded down to whole models, in [0, 1/2).

    Returns:
        [n].

    Raises:
        UsageError: An example has no model.
    """
    mask = np.asarray(chosen, dtype=bool)
    counts = mask.sum(0)
    if not 0 <= trim < 0.5:
        raise UsageError(f"a mean that is trimmed by {trim} on each side has nothing left: trim less than 0.5")
    if mask.size and not counts.min():
        raise UsageError(f"{int((counts == 0).sum())} examples have no reference model to compare with: train one without them")
    ordered = np.sort(np.where(mask, np.asarray(values, dtype=np.float64), np.inf), axis=0)
    cut, place = np.floor(trim * counts + 1e-9).astype(np.int64), np.arange(len(mask))[:, None]
    kept = (place >= cut) & (place < counts - cut)
    mean: FloatArray = np.where(kept, ordered, 0.0).sum(0) / kept.sum(0)
    return mean


def unconditional(outside: ArrayLike, offset: float) -> FloatArray:
    """What an example's probability is on average over models, guessed from those that were not trained on it.

    Args:
        outside: Mean probability under models that were not trained on the example [n].
        offset: The paper's a, in [0, 1]: models that were trained on it are taken to give it a * mean + (1 - a).

    Returns:
        ((1 + a) mean + (1 - a)) / 2.
    """
    value: FloatArray = ((1 + offset) * np.asarray(outside, dtype=np.float64) + (1 - offset)) / 2
    return value


def dominated(ratios: ArrayLike, population: ArrayLike, gamma: float = 1.0) -> FloatArray:
    """The score: share of the population whose ratio an example's ratio exceeds by more than gamma.

    Args:
        ratios: R(x) = p(x | model) / p(x), [n].
        population: R(z), [z].
        gamma: The factor, above 0.

    Returns:
        [n] in [0, 1]: mean of R(x) / R(z) > gamma, by rank instead of by an n x z matrix.
    """
    ordered = np.sort(np.asarray(population, dtype=np.float64) * gamma)
    share: FloatArray = np.searchsorted(ordered, np.asarray(ratios, dtype=np.float64), "left") / len(ordered)
    return share


def offline(signals: Signals, *, offset: float = 0.3, gamma: float = 1.0, trim: float = 0.0) -> FloatArray:
    """RMIA from references that were not trained on the examples.

    Args:
        signals: The signals; references that were trained on an example are passed over for it.
        offset: As with `unconditional`; the published code tunes it (`tuned_offset`) and else takes 0.3.
        gamma: As with `dominated`; the code's 1, the paper's experiments 2.
        trim: As with `trimmed_mean`; the paper's experiments 0.2.

    Returns:
        [n] in [0, 1].

    Raises:
        UsageError: An example has no such reference.
    """
    outside = trimmed_mean(signals.references, signals.outside, trim)
    return dominated(ratio(signals.target, unconditional(outside, offset)), _population_ratios(signals, offset, trim), gamma)


def online(signals: Signals, *, offset: float = 1.0, gamma: float = 1.0, trim: float = 0.0) -> FloatArray:
    """RMIA from references on both sides: p(x) is the mean of the mean under those trained on x and that under the others.

    Args:
        signals: The signals, `member` included.
        offset: As with `unconditional`, for a population that no reference was trained on; 1 takes its references' mean. Where
            some were (`population_member`), its examples are treated as those in question.
        gamma: As with `dominated`.
        trim: As with `trimmed_mean`, on either side.

    Returns:
        [n] in [0, 1].

    Raises:
        UsageError: An example has no reference on one side.
    """
    if signals.member is None:
        raise UsageError("online RMIA needs references that were trained on the examples: train some, or score offline")
    sides = [trimmed_mean(signals.references, side, trim) for side in (signals.member, signals.outside)]
    if signals.population_member is None:
        population = _population_ratios(signals, offset, trim)
    else:
        around = [
            trimmed_mean(signals.population_references, side, trim)
            for side in (signals.population_member, ~signals.population_member)
        ]
        population = ratio(signals.population, (around[0] + around[1]) / 2)
    return dominated(ratio(signals.target, (sides[0] + sides[1]) / 2), population, gamma)


def _population_ratios(signals: Signals, offset: float, trim: float) -> FloatArray:
    inside = signals.population_member
    outside = np.ones(signals.population_references.shape, dtype=bool) if inside is None else ~inside
    return ratio(signals.population, unconditional(trimmed_mean(signals.population_references, outside, trim), offset))


def ratio(value: FloatArray, by: FloatArray) -> FloatArray:
    """R(x): probability under the model over what it is on average, both [n].

    Where every reference rounds to 0, the divisor is the smallest number that divides.
    """
    quotient: FloatArray = value / np.maximum(by, np.finfo(np.float64).tiny)
    return quotient


def tuned_offset(signals: Signals, trained_on: ArrayLike, *, gamma: float = 1.0, trim: float = 0.0) -> float:
    """The offset that tells members best when one of the references is attacked with the help of the others.

    The audited model's own membership is not looked at, so nothing is tuned on what is to be judged.

    Args:
        signals: `target` and `population` under the reference that is attacked, the rest under the others.
        trained_on: Which examples the attacked reference was trained on [n], some and not all.
        gamma: As with `offline`.
        trim: Likewise.

    Returns:
        The first of `OFFSETS` with the largest AUC.

    Raises:
        UsageError: The attacked reference was trained on all of the examples, or on none.
    """
    inside = np.asarray(trained_on, dtype=bool)
    if inside.all() or not inside.any():
        raise UsageError("an offset is tuned on a reference that was trained on some of the examples, and not on the others")
    scores = [offline(signals, offset=offset, gamma=gamma, trim=trim) for offset in OFFSETS]
    return OFFSETS[int(np.argmax([membership.auc(score[inside], score[~inside]) for score in scores]))]
