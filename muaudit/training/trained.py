"""What trained models of any kind make of inputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import ModelError
from muaudit.training import vendor

PROBABILITY_FLOOR = 1e-12
"""Least probability that an estimator's class is given, since a forest's zeros have no logarithm."""


def logits_from(
    model: Any,  # noqa: ANN401 - whatever a recipe makes
    inputs: NDArray[np.float32],
    batch: int = 512,
    outputs: int | None = None,
) -> NDArray[np.float64]:
    """What any trained model makes of inputs.

    Of an estimator, logits are the log-probabilities (at least log 1e-12, since a forest gives zeros), or the decision
    function where it has no probabilities; a class that it was not trained on has the least probability. A regressor gives
    its predictions.

    Args:
        model: A torch module, a scikit-learn estimator, or a callable from arrays to logits.
        inputs: float32 [n, ...].
        batch: Inputs a time.
        outputs: Number of classes, where an estimator may have seen fewer.

    Returns:
        Logits [n, C], or predictions [n, d].

    Raises:
        ModelError: What it gives is not finite, or not of this shape.
    """
    parts = [outputs_from(model, inputs[start : start + batch], outputs) for start in range(0, max(len(inputs), 1), batch)]
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise ModelError(f"a model gives {logits[~np.isfinite(logits)][0]} as a logit; a model that diverged cannot be used")
    return logits


def outputs_from(
    model: Any,  # noqa: ANN401 - whatever a recipe makes
    inputs: NDArray[np.float32],
    outputs: int | None,
) -> NDArray[np.float64]:
    """The same of one batch, finite or not.

    Args:
        model: A torch module, a scikit-learn estimator, or a callable from arrays to logits.
        inputs: float32 [n, ...].
        outputs: Number of classes; None where any number will do.

    Returns:
        Logits [n, C], or predictions [n, d].

    Raises:
        ModelError: It is no model, it fails, or its outputs have another shape.
    """
    if vendor.is_module(model):
        made = _module_outputs(model, inputs)
    elif vendor.is_estimator(model):
        made = _estimator_outputs(model, inputs.reshape(len(inputs), -1), outputs)
    elif callable(model):
        made = np.asarray(vendor.call(model, "the trained model", inputs), dtype=np.float64)
    else:
        raise ModelError(f"a {type(model).__name__} is no model: a torch module, an estimator or a callable is one")
    made = made[:, None] if made.ndim == 1 else made
    if made.ndim != 2 or len(made) != len(inputs) or outputs not in (None, made.shape[1]):
        wanted = "C" if outputs is None else outputs
        raise ModelError(
            f"a model gives outputs of shape {list(made.shape)} for inputs of shape {list(inputs.shape)}; it must "
            f"give [{len(inputs)}, {wanted}]"
        )
    return made


def _module_outputs(module: Any, inputs: NDArray[np.float32]) -> NDArray[np.float64]:  # noqa: ANN401
    import torch

    first = next((one for one in module.parameters() if one.is_floating_point()), torch.zeros(0))
    training = module.training
    try:
        with torch.no_grad():
            made = vendor.call(module.eval(), "the trained model", torch.tensor(inputs, dtype=first.dtype, device=first.device))
        made = getattr(made, "logits", made)  # as transformers wraps them
        return np.asarray(made.double().cpu().numpy())
    finally:
        module.train(training)


def _estimator_outputs(model: Any, inputs: NDArray[np.float32], outputs: int | None) -> NDArray[np.float64]:  # noqa: ANN401
    if not hasattr(model, "classes_"):
        return np.asarray(model.predict(inputs), dtype=np.float64)
    if hasattr(model, "predict_proba"):
        least = np.full((len(inputs), 1), np.log(PROBABILITY_FLOOR))
        found = np.log(np.maximum(np.asarray(model.predict_proba(inputs), dtype=np.float64), PROBABILITY_FLOOR))
    else:
        found = np.asarray(model.decision_function(inputs), dtype=np.float64)
        found = np.stack([np.zeros(len(found)), found], axis=1) if found.ndim == 1 else found
        least = found.min(axis=1, keepdims=True) + np.log(PROBABILITY_FLOOR)
    places = np.asarray(model.classes_).astype(np.int64)
    made = np.repeat(least, outputs or int(places.max()) + 1, axis=1)
    made[:, places] = found
    return made
