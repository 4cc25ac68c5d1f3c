"""Trains the gate that stands in front of a guarded model: which prompts are about what is to be forgotten."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from muaudit.models.guard import Gate, features
from muaudit.task import ForgetTask


def train_gate(task: ForgetTask, penalty: float) -> Gate:
    """Fits logistic regression to the questions of the forget set against those of the retain set.

    It sees questions only, as the classifiers of ECO and GUARD do: it generalises to other wordings as far as the names in them
    tell, and not to prompts that do not name who they are about.

    Args:
        task: The task; its template goes around the questions.
        penalty: Weight of half the squared weights against the summed log-loss.

    Returns:
        The gate; its threshold is a half.
    """
    prompts = [task.ask(fact).prompt for fact in [*task.forget, *task.retain]]
    labels = np.repeat([1.0, 0.0], [len(task.forget), len(task.retain)])
    seen = [features(prompt) for prompt in prompts]
    names = sorted(set().union(*seen))
    table = np.array([[name in found for name in names] for found in seen], dtype=float)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = values[:-1], values[-1]
        logits = table @ weights + bias
        slopes = expit(logits) - labels
        total = np.logaddexp(0, logits).sum() - labels @ logits + penalty / 2 * weights @ weights
        return float(total), np.append(slopes @ table + penalty * weights, slopes.sum())

    found = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights = {name: round(float(value), 6) for name, value in zip(names, found[:-1], strict=True)}
    return Gate(weights={name: value for name, value in weights.items() if value}, bias=round(float(found[-1]), 6))
