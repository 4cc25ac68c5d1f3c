"""What every family of classifiers and regressors checks of the scores that it hands out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.errors import ModelError
from muaudit.examples import Examples
from muaudit.training.trained import PROBABILITY_FLOOR

_ROUNDED = 1e-3
"""How far recorded probabilities may be from summing to 1: what half precision makes of them."""


def finite(scores: ArrayLike, ids: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Scores, none of which is NaN or infinite.

    Args:
        scores: [n, d].
        ids: Names of the examples; their places by default.

    Returns:
        The scores as float64.

    Raises:
        ModelError: One is NaN or infinite; the message names the example.
    """
    checked = np.asarray(scores, dtype=np.float64)
    bad = ~np.isfinite(checked).all(axis=1)
    if bad.any():
        raise ModelError(
            f"{_name(int(bad.argmax()), ids)}: the model gives NaN or infinity; check its weights and the scale of the inputs, "
            "and try dtype float64"
        )
    return checked


def class_logits(scores: ArrayLike, ids: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Logits of two classes or more, none of which is NaN or infinite.

    Args:
        scores: [n, C].
        ids: Names of the examples; their places by default.

    Returns:
        The logits as float64.

    Raises:
        ModelError: There is one column only, a number is none, or all rows are probabilities: their softmax would be another
            distribution than the model's.
    """
    logits = finite(scores, ids)
    if logits.shape[1] < 2:
        raise ModelError(
            f"the model gives {logits.shape[1]} score an example, and a classifier gives one a class; with two classes give "
            'both logits, such as 0 and the score; a model of numbers is of kind "regressor"'
        )
    if len(logits) and logits.min() >= 0 and np.abs(logits.sum(axis=1) - 1).max() < _ROUNDED:
        raise ModelError(
            "the model gives probabilities (every row sums to 1) where logits belong; leave its last softmax out, or take the "
            "logarithm"
        )
    return logits


def refuse_unknown_classes(logits: NDArray[np.float64], examples: Examples) -> NDArray[np.float64]:
    """The logits, if every example's class is among their columns.

    Raises:
        ModelError: An example is of a class that the model does not score.
    """
    if len(examples) and (largest := int(examples.labels.max())) >= logits.shape[1]:
        name = examples.ids[int(examples.labels.argmax())]
        raise ModelError(
            f"example {name!r} is of class {largest}, but the model scores {logits.shape[1]} classes, numbered from 0; number "
            "the task's classes as the model's outputs are, and give a model that scores them all"
        )
    return logits


def refuse_other_numbers(predictions: NDArray[np.float64], examples: Examples) -> NDArray[np.float64]:
    """The predictions, if there are as many an example as the labels have.

    Raises:
        ModelError: There are fewer or more.
    """
    wanted = examples.labels.reshape(len(examples), -1).shape[1] if len(examples) else predictions.shape[1]
    if predictions.shape[1] != wanted:
        raise ModelError(
            f"the model predicts {predictions.shape[1]} numbers an example, but the task's labels have {wanted}; give the "
            "model of this task"
        )
    return predictions


def log_probabilities(probabilities: ArrayLike, ids: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Logits of recorded or exported probabilities: their logarithms, those of zeros being log 1e-12.

    Args:
        probabilities: [n, C]; every row sums to 1 within 0.001.
        ids: Names of the examples; their places by default.

    Returns:
        Log-probabilities [n, C], natural.

    Raises:
        ModelError: A row is no distribution; the message names the example.
    """
    checked = finite(probabilities, ids)
    bad = (checked < 0).any(axis=1) | (np.abs(checked.sum(axis=1) - 1) > _ROUNDED)
    if bad.any():
        row = int(bad.argmax())
        raise ModelError(
            f"{_name(row, ids)}: probabilities from {checked[row].min():.3g} that sum to {checked[row].sum():.4g}, which is no "
            "distribution; give logits, or mend the recording"
        )
    return np.log(np.maximum(checked, PROBABILITY_FLOOR))


def _name(row: int, ids: Sequence[str] | None) -> str:
    return f"input {row}" if ids is None else f"example {ids[row]!r}"


def columns(scores: NDArray[Any]) -> NDArray[Any]:
    """Scores as [n, d], where one number an example may stand alone.

    Raises:
        ModelError: They have another shape.
    """
    if scores.ndim not in (1, 2):
        raise ModelError(f"scores of shape {list(scores.shape)}, where [n, C] belongs; give one row an example")
    return scores[:, None] if scores.ndim == 1 else scores
