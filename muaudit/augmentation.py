"""Augmented queries: the same picture, mirrored and shifted, shown to a model more than once."""

from collections.abc import Iterator
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import NotApplicable, UsageError

Augmentation = Literal["none", "mirror", "shift", "mirror_shift"]
"""As in a recipe: left and right exchanged; moved by up to `shift` pixels each way; both."""


def queries(augmentation: Augmentation, shift: int) -> int:
    """How many queries an example becomes: (2 s + 1)^2 shifts, twice as many with the mirror; 1 without any.

    Args:
        augmentation: What is done.
        shift: Pixels s.
    """
    return len(_changes(augmentation, shift))


def augmented(inputs: NDArray[np.float32], augmentation: Augmentation, shift: int) -> Iterator[NDArray[np.float32]]:
    """The queries of LiRA and RMIA: every mirror image times every shift (Carlini et al. 2022, `inference.py`).

    What a shift brings in is zero, as in the recipes by which the auditor's models are trained; LiRA's own code reflects.

    Args:
        inputs: Images [n, channels, height, width].
        augmentation: What is done.
        shift: Pixels s.

    Yields:
        [n, channels, height, width] for each of the `queries`, the inputs as they are first.

    Raises:
        NotApplicable: The inputs are no images, and something is to be done to them.
        UsageError: Shift and augmentation do not belong together.
    """
    changes = _changes(augmentation, shift)
    if len(changes) > 1 and inputs.ndim != 4:
        raise NotApplicable(
            f"only images [channels, height, width] are mirrored and shifted, and these inputs have the shape "
            f'{list(inputs.shape[1:])}: set augmentation = "none"'
        )
    if not shift:
        yield from (inputs[..., ::-1].copy() if mirrored else inputs for mirrored, *_ in changes)
        return
    height, width = inputs.shape[2:]
    padded = np.pad(inputs, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    for mirrored, down, across in changes:
        source = padded[..., ::-1] if mirrored else padded
        top, left = shift + down, shift + across
        yield source[..., top : top + height, left : left + width].copy()


def _changes(augmentation: Augmentation, shift: int) -> list[tuple[bool, int, int]]:
    """Each query's mirror, rows and columns, the identity first."""
    if ("shift" in augmentation) != (shift > 0):
        raise UsageError('shift = 1 or more pixels goes with augmentation = "shift" or "mirror_shift", and only with these')
    steps = sorted(range(-shift, shift + 1), key=abs)
    return list(product([False, True] if "mirror" in augmentation else [False], steps, steps))
