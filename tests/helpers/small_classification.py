"""A small classification task with models that train in a moment, and unlearning procedures of known worth."""

from pathlib import Path
from typing import Any

import numpy as np

from muaudit.attack import Bench
from muaudit.examples import Examples, LabelledTask
from muaudit.training.recipes import Procedure, TorchRecipe, train
from muaudit.training.shadows import Trainer

RECIPE = TorchRecipe(architecture="mlp", hidden=(128,), steps=60, batch_size=32, learning_rate=0.3, mode="sequential")


def make_task(forget: int = 30, retain: int = 60, holdout: int = 30, *, seed: int = 0, hard: int = 0) -> LabelledTask:
    """Labels are random, so that only who was trained on an example knows it; of the retain set, some are marked as hard."""
    rng = np.random.default_rng(seed)

    def part(name: str, size: int, marked: int) -> Examples:
        ids = tuple(f"{name}-{number:03d}" for number in range(size))
        inputs = rng.normal(size=(size, 8)).astype(np.float32)
        marks = tuple("yes" if number < marked else "no" for number in range(size))
        return Examples(ids, ids, rng.integers(0, 3, size), inputs, {"hard": marks})

    return LabelledTask(part("forget", forget, 0), part("retain", retain, hard), part("holdout", holdout, 0))


def make_bench(
    task: LabelledTask,
    folder: Path,
    procedure: str | None = "retrain",
    *,
    seed: int = 3,
    capabilities: tuple[str, ...] = ("Classifies",),
    **more: Any,
) -> Bench:
    """What an attack is prepared with."""
    named = None if procedure is None else Procedure(function=f"small_classification:{procedure}")
    trainer = Trainer(RECIPE, task.pool, folder / "trained", folder, named)
    rng = np.random.default_rng(seed)
    return Bench(task, rng, frozenset(capabilities), folder=folder, made=folder / "made", open_trainer=lambda: trainer, **more)


def rows(task: LabelledTask, *sets: Any) -> np.ndarray:
    """The mask of whole sets in the pool [1, N]."""
    mask = np.zeros((1, len(task.pool)), dtype=bool)
    for name in sets:
        mask[0, task.rows(name)] = True
    return mask


class Held:
    """One member of a cohort as a model."""

    digest, model_seconds = "", 0.0

    def __init__(self, cohort: Any, number: int = 0) -> None:
        self.cohort, self.number = cohort, number

    def logits(self, examples: Examples) -> np.ndarray:
        return np.asarray(self.cohort.take([self.number]).logits(examples)[0])


def nearest(inputs: np.ndarray, labels: np.ndarray, *, seed: int) -> Any:
    """A recipe of a vendor's own: a callable that knows its examples by heart."""

    def model(asked: np.ndarray) -> np.ndarray:
        distances = ((asked[:, None] - inputs[None]) ** 2).sum(-1)
        return -np.stack([distances[:, labels == label].min(1) for label in range(3)], axis=1)

    return model


# ---- procedures --------------------------------------------------------------------------------------------------------


def retrain(model: Any, forget: Examples, retain: Examples, *, seed: int) -> Any:
    """Exact: trains anew without the forget set."""
    return _trained(forget, retain, np.zeros(len(forget), dtype=bool), seed)


def stubborn(model: Any, forget: Examples, retain: Examples, *, seed: int) -> Any:
    """Retrains as well, but on the hard examples in any case."""
    return _trained(forget, retain, np.array(forget.attributes["hard"]) == "yes", seed)


def fixed(model: Any, forget: Examples, retain: Examples, *, seed: int) -> Any:
    """Exact, but always from one seed, whatever the original."""
    return retrain(model, forget, retain, seed=5)


def nothing(model: Any, forget: Examples, retain: Examples, *, seed: int) -> Any:
    """Gives the model back as it is."""
    return model


def _trained(forget: Examples, retain: Examples, kept: np.ndarray, seed: int) -> Any:
    pool = Examples.joined([forget, retain])
    return train(RECIPE, pool, seed, Path(), rows=np.r_[kept, np.ones(len(retain), dtype=bool)])
