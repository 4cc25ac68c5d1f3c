"""Stands in for your data: writes forget.npz, retain.npz and holdout.npz."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

SIZES = {"forget": 60, "retain": 120, "holdout": 180}


def main() -> None:
    """Images [n, 1, 8, 8] in [0, 1]; every fifth label is wrong, so that it can only be known by heart."""
    inputs, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(labels))
    labels = np.where(rng.random(len(labels)) < 0.2, (labels + rng.integers(1, 10, len(labels))) % 10, labels)
    for name, size in SIZES.items():
        taken, rows = rows[:size], rows[size:]
        np.savez(
            Path(__file__).parent / f"{name}.npz",
            id=np.array([f"digit-{row}" for row in taken]),
            label=labels[taken],
            inputs=(inputs[taken] / 16).reshape(-1, 1, 8, 8).astype(np.float32),
        )


if __name__ == "__main__":
    main()
