"""scikit-learn's digits as labelled examples."""

import numpy as np
from sklearn.datasets import load_digits

from muaudit.examples import Examples


def digits(count: int = 200, *, images: bool = True) -> Examples:
    """The first digits, as pictures of 1 x 8 x 8 pixels or as tables of 64 columns."""
    inputs, labels = load_digits(return_X_y=True)
    names = tuple(f"digit-{number}" for number in range(count))
    shape = (count, 1, 8, 8) if images else (count, 64)
    return Examples(names, names, labels[:count].astype(np.int64), inputs[:count].astype(np.float32).reshape(shape))
