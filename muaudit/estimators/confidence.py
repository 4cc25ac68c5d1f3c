"""Membership scores that one model's class scores give by themselves: baselines without shadow models.

Every score is oriented so that larger means "member", whatever its paper does, and is computed from margins in double
precision, so that nothing is lost where probabilities round to 0 or 1. Pure functions on numbers, which know nothing of models
or attacks.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from muaudit.errors import UsageError
from muaudit.estimators.likelihood_ratio import margins

FloatArray = NDArray[np.float64]


def all_margins(logits: ArrayLike) -> FloatArray:
    """Every class's margin, log p_j - log(1 - p_j).

    Args:
        logits: [..., n, C], C >= 2.

    Returns:
        [..., n, C], in nats.

    Raises:
        ModelError: A logit is not a finite number.
    """
    scores = np.asarray(logits, dtype=np.float64)
    margins(scores, np.zeros(scores.shape[-2:-1], dtype=np.int64))  # says what is wrong with the logits
    top = scores.argmax(-1)[..., None]
    largest = np.take_along_axis(scores, top, axis=-1)
    powers = np.exp(scores - largest)
    # Taking away a class that is not the likeliest leaves more than half of the sum, so that no digit is lost.
    rest = np.log(np.maximum(powers.sum(-1, keepdims=True) - powers, 1.0)) + largest
    others = scores.copy()
    np.put_along_axis(others, top, -np.inf, axis=-1)
    np.put_along_axis(rest, top, special.logsumexp(others, axis=-1)[..., None], axis=-1)
    result: FloatArray = scores - rest
    return result


def negative_loss(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Log probability of the true label (Yeom et al. 2018).

    Args:
        logits: [..., n, C].
        labels: [n].

    Returns:
        [..., n], at most 0, in nats.

    Raises:
        ModelError: A logit is not a finite number.
    """
    value: FloatArray = special.log_expit(margins(logits, labels))
    return value


def correct(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Whether the true label is the likeliest: the gap attack (Yeom et al. 2018).

    Args:
        logits: [..., n, C].
        labels: [n].

    Returns:
        [..., n]: 1 or 0; of equally likely classes the first counts.

    Raises:
        ModelError: A logit is not a finite number.
    """
    margins(logits, labels)
    hits: FloatArray = (np.asarray(logits).argmax(-1) == np.asarray(labels)).astype(np.float64)
    return hits


def largest_margin(logits: ArrayLike) -> FloatArray:
    """Margin of the likeliest class, log p_max - log(1 - p_max): confidence without labels (Unlearning Comparator).

    Args:
        logits: [..., n, C].

    Returns:
        [..., n], in nats.

    Raises:
        ModelError: A logit is not a finite number.
    """
    largest: FloatArray = all_margins(logits).max(-1)
    return largest


def negative_entropy(logits: ArrayLike, *, temperature: float = 1.0) -> FloatArray:
    """Sum over classes of p log p (Shokri et al. 2017; Song and Mittal 2021, equation 7).

    Args:
        logits: [..., n, C].
        temperature: Divides the logits, above 0; the Unlearning Comparator takes 2.

    Returns:
        [..., n] in [-log C, 0], in nats.

    Raises:
        ModelError: A logit is not a finite number.
        UsageError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise UsageError(f"a temperature of {temperature} turns the logits upside down: choose one above 0")
    every = all_margins(np.asarray(logits, dtype=np.float64) / temperature)
    value: FloatArray = (special.expit(every) * special.log_expit(every)).sum(-1)
    return value


def negative_modified_entropy(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Minus the modified entropy, which knows the label (Song and Mittal 2021, "Systematic Evaluation of Privacy Risks").

    Mentr = -(1 - p_y) log p_y - sum over j != y of p_j log(1 - p_j). The version in circulation with SalUn's code takes log p_j
    in place of log(1 - p_j), and mixes up rows.

    Args:
        logits: [..., n, C].
        labels: [n].

    Returns:
        [..., n], at most 0, in nats; 0 where the model is right and certain.

    Raises:
        ModelError: A logit is not a finite number.
    """
    own = margins(logits, labels)
    every = all_margins(logits)
    terms = special.expit(every) * special.log_expit(-every)
    place = np.broadcast_to(np.asarray(labels)[:, None], (*own.shape, 1))
    np.put_along_axis(terms, place, 0.0, axis=-1)
    value: FloatArray = special.expit(-own) * special.log_expit(own) + terms.sum(-1)
    return value
