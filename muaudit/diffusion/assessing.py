"""What every evaluator of images is: says of images and concepts whether the one is in the other, and how sure it is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from muaudit.errors import ModelError, UsageError

Images = NDArray[np.float32]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as Pillow's mode "L" has it."""


@dataclass(frozen=True)
class Assessment:
    """What an evaluator makes of n images, each asked for one concept.

    Attributes:
        present: Whether the concept is in the image [n].
        score: How sure that is, in [0, 1] [n]; larger for concepts that are.
    """

    present: BoolArray
    score: FloatArray


class Evaluator(ABC):
    """Says whether concepts are in images.

    Attributes:
        name: What results call it.
        digest: Of all that can change what it says.
    """

    name: str
    digest: str

    @abstractmethod
    def assess(self, images: Images, concepts: Sequence[str]) -> Assessment:
        """Whether concepts[i] is in images[i].

        Args:
            images: [n, channels, height, width] in [0, 1], n >= 1, of one or three channels.
            concepts: n names.

        Raises:
            UsageError: It knows no such concept.
            ModelError: It fails, or gives what is no score.
        """

    def refuse_unknown(self, concepts: Iterable[str]) -> None:  # noqa: B027 - a function of the vendor's may know any
        """Refuses concepts that it does not know.

        Raises:
            UsageError: It does not know one; the message names it, and the mend.
        """

    def ranked_first(self, images: Images) -> list[str] | None:
        """The concept that it ranks first in each image, or its own label where that is no concept; None if it ranks none."""
        return None


class Ranking(Evaluator):
    """An evaluator that spreads one probability over classes.

    Args:
        name: What results call it.
        places: The columns of each concept.
        top: A concept is in an image when one of its columns is among so many highest.
        threshold: Instead: when its columns' probabilities sum to this.
    """

    def __init__(self, name: str, places: "Places", *, top: int, threshold: float | None) -> None:
        self.name, self.places = name, places
        self._top, self._threshold = top, threshold

    @abstractmethod
    def logits(self, images: Images) -> FloatArray:
        """Logits [n, C] of images, whose softmax are the probabilities."""

    def refuse_unknown(self, concepts: Iterable[str]) -> None:
        """Refuses concepts that are none of its classes."""
        for concept in concepts:
            self.places.of(concept)

    def assess(self, images: Images, concepts: Sequence[str]) -> Assessment:
        """Whether concepts[i] is in images[i]: among the `top` highest classes, or of `threshold` probability."""
        places = [self.places.of(concept) for concept in concepts]
        logits = self.logits(images)
        classes = logits.shape[1]
        for concept, own in zip(concepts, places, strict=True):
            if max(own) >= classes:
                raise UsageError(
                    f"evaluator {self.name}: concept {concept!r} is its class {max(own)}, and it has {classes}, numbered from "
                    "0; mend labels"
                )
        probabilities = softmax(logits)
        score = np.array([row[list(own)].sum() for row, own in zip(probabilities, places, strict=True)])
        if self._threshold is not None:
            return Assessment(score >= self._threshold, np.minimum(score, 1.0))
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self._top]  # of equals the first, as argmax has it
        present = np.array([not set(own).isdisjoint(row) for row, own in zip(order.tolist(), places, strict=True)])
        return Assessment(present, np.minimum(score, 1.0))

    def ranked_first(self, images: Images) -> list[str]:
        """The concept of the highest class in each image; the class's own name, or number, where it is no concept's."""
        return [self.places.name(place) for place in self.logits(images).argmax(1).tolist()]


class Places:
    """Which columns of an evaluator are which concept's.

    Args:
        evaluator: What results call it.
        given: A concept's classes, by number or name, as the configuration has them.
        labels: The evaluator's own names of its classes by number; None where it has only numbers.
        section: What to mend, in words.
    """

    def __init__(
        self,
        evaluator: str,
        given: Mapping[str, int | str | tuple[int | str, ...]],
        labels: Mapping[int, str] | None,
        section: str = "[[task.evaluators]]",
    ) -> None:
        self._evaluator, self._labels, self._section = evaluator, labels, section
        self._numbers: dict[str, int] = {}
        for number, label in (labels or {}).items():
            self._numbers.setdefault(label, number)
        self._known = {
            concept: tuple(self._number(one, concept) for one in (own if isinstance(own, tuple) else (own,)))
            for concept, own in given.items()
        }

    def of(self, concept: str) -> tuple[int, ...]:
        """The columns of a concept.

        Raises:
            UsageError: It has none.
        """
        if concept not in self._known:
            self._known[concept] = (self._number(concept, concept),)
        return self._known[concept]

    def name(self, place: int) -> str:
        """The concept of a column, of those that were asked for so far; else the column's own name."""
        for concept, own in self._known.items():
            if place in own:
                return concept
        return (self._labels or {}).get(place, f"class {place}")

    def _number(self, one: int | str, concept: str) -> int:
        if isinstance(one, int):
            if self._labels is not None and one not in self._labels:
                raise UsageError(
                    f"evaluator {self._evaluator}: concept {concept!r} is given as its class {one}, and it has "
                    f"{len(self._labels)}, numbered from 0; mend labels under {self._section}"
                )
            return one
        if one in self._numbers:
            return self._numbers[one]
        told = f"evaluator {self._evaluator}: concept {concept!r} is unknown to it"
        mend = f"add labels = {{ {concept!r} = ... }} under {self._section}, the class that shows it"
        if self._labels is None:
            raise UsageError(f"{told}, whose classes are numbers; {mend}, by number")
        near = get_close_matches(one, self._numbers, n=1)
        few = sorted(self._numbers)[:5]
        known = (
            f"did you mean {near[0]!r}?"
            if near
            else f"it knows {', '.join(map(repr, few))}" + " ..." * (len(self._numbers) > len(few))
        )
        raise UsageError(f"{told}" + (f" as {one!r}" if one != concept else "") + f"; {mend}; {known}")


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    shares: FloatArray = raised / raised.sum(-1, keepdims=True)
    return shares


def in_batches(images: Images, size: int) -> Iterator[Images]:
    """Images, so many at a time."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def fitted(images: Images, mode: Literal["RGB", "L"] | None, size: tuple[int, int] | None) -> Images:
    """Images in the mode and of the size that an evaluator takes.

    Args:
        images: [n, channels, height, width] in [0, 1].
        mode: "RGB" (grey is repeated), "L" (ITU-R BT.601 luma), or None for what they are.
        size: Height and width (bilinear, antialiased), or None for what they are.

    Returns:
        The images [n, channels, height, width] in [0, 1].
    """
    if mode == "RGB" and images.shape[1] == 1:
        images = np.repeat(images, 3, axis=1)
    elif mode == "L" and images.shape[1] == 3:
        images = np.einsum("c,nchw->nhw", np.array(_LUMA, np.float32), images)[:, None]
    if size is not None and images.shape[2:] != size:
        resized = functional.interpolate(torch.from_numpy(np.array(images)), size, mode="bilinear", antialias=True)
        images = resized.clamp(0, 1).numpy()
    return images


def checked(images: Images) -> Images:
    """Images as evaluators take them.

    Raises:
        ModelError: They are none: other shapes, NaN, or pixels outside [0, 1].
    """
    pixels = np.ascontiguousarray(images, dtype=np.float32)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ModelError(f"images of shape {list(pixels.shape)}, where [n, 1 or 3, height, width] belongs")
    broken = np.flatnonzero(~np.isfinite(pixels).all(axis=(1, 2, 3)))
    if len(broken):
        raise ModelError(f"image {broken[0]} has NaN or infinite pixels; check the model's weights and dtype")
    if len(pixels) and (pixels.min() < -1e-4 or pixels.max() > 1 + 1e-4):
        raise ModelError(f"pixels from {pixels.min():.4g} to {pixels.max():.4g}, where [0, 1] belongs")
    return np.clip(pixels, 0, 1)
