"""What attacks on procedures share: seeds for the models that they have made, and where these models are found again."""

from pathlib import Path

import numpy as np


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
