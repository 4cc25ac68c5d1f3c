"""What attacks on procedures share: seeds for the models that they have made, and where these models are found again."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from muaudit.errors import NotApplicable
from muaudit.examples import Examples
from muaudit.model_config import ClassifierConfig, RecordedConfig
from muaudit.store import write_atomically

if TYPE_CHECKING:
    from muaudit.training.cohorts import Cohort


def seeds(rng: np.random.Generator, count: int) -> list[int]:
    """Seeds of so many trainings, each in [0, 2**62)."""
    return [int(seed) for seed in rng.integers(2**62, size=count)]


def path_from(folder: Path, path: Path) -> str:
    """A path as a model's configuration names it: from the folder if it lies within, whole otherwise.

    Args:
        folder: What paths in configurations start from.
        path: Where the model was written.

    Returns:
        The path, with forward slashes.
    """
    whole, base = path.resolve(), folder.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else whole.as_posix()


def member_config(
    cohort: "Cohort", number: int, path: Path, folder: Path, examples: Examples
) -> ClassifierConfig | RecordedConfig:
    """Writes one model of a cohort, and names it as an audit does.

    Args:
        cohort: The models.
        number: Which, from 0.
        path: Where to, without a suffix.
        folder: What paths in configurations start from.
        examples: What its outputs are recorded of, where it is one that cannot be written (a function's own).

    Returns:
        The model's configuration.
    """
    try:
        cohort.save_member(number, path)
    except NotApplicable:
        file, recorded = io.BytesIO(), path.with_name(f"{path.name}.npz")
        np.savez(file, ids=np.array(examples.ids), logits=cohort.take([number]).logits(examples)[0])
        write_atomically(recorded, file.getvalue())
        return RecordedConfig(kind="recorded", path=path_from(folder, recorded), format="logits")
    estimator = path / "estimator.skops"
    return ClassifierConfig(kind="classifier", path=path_from(folder, estimator if estimator.exists() else path))
