"""Asks a model for images and counts in how many the concept is: what most attacks on image generators end with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from muaudit.attack import Measurement
from muaudit.errors import ModelError
from muaudit.image_task import ImagePrompt
from muaudit.models import GeneratesImages, ImageQuery
from muaudit.results import Picture
from muaudit.thumbnails import thumbnail

if TYPE_CHECKING:
    from muaudit.diffusion.judging import Judge

BoolArray = NDArray[np.bool_]
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Drawn:
    """What a model drew for n units, k images each.

    Attributes:
        hits: Whether the unit's concept is in the image [n, k], by all evaluators.
        pictures: The first image of every unit, small, for the report.
    """

    hits: BoolArray
    pictures: tuple[Picture, ...]

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of each unit's images that show its concept [n]: success per query."""
        return np.asarray(self.hits.mean(1), dtype=np.float64)

    @property
    def any(self) -> NDArray[np.float64]:
        """Whether any of a unit's images does [n]: success at best of k."""
        return np.asarray(self.hits.any(1), dtype=np.float64)


def draw(
    model: GeneratesImages, judge: "Judge", prompts: Sequence[ImagePrompt], queries: Sequence[Sequence[ImageQuery]], label: str
) -> Drawn:
    """Has a model draw every unit's queries, and the images judged.

    Args:
        model: The model.
        judge: Says whether a concept is in an image.
        prompts: The n units.
        queries: Each unit's k queries.
        label: What the report calls images that came about this way.

    Returns:
        Hits and first pictures.

    Raises:
        ModelError: An image has NaN or infinite pixels.
    """
    flat = [query for row in queries for query in row]
    return judged(model.images(flat), judge, prompts, [row[0].prompt for row in queries], label)


def judged(images: Images, judge: "Judge", prompts: Sequence[ImagePrompt], told: Sequence[str], label: str) -> Drawn:
    """Has images judged that were drawn already.

    Args:
        images: [n * k, channels, height, width] in [0, 1], the k images of the first unit first.
        judge: Says whether a concept is in an image.
        prompts: The n units.
        told: What was asked for each unit's first image, in words.
        label: What the report calls images that came about this way.

    Returns:
        Hits and first pictures.

    Raises:
        ModelError: An image has NaN or infinite pixels.
    """
    each = len(images) // len(prompts)
    broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if len(broken):
        raise ModelError(
            f"unit {prompts[broken[0] // each].id!r}: the image has NaN or infinite pixels; check the model's weights and its "
            "dtype (float16 overflows in some networks)"
        )
    hits = judge.present(images, [one.concept for one in prompts for _ in range(each)]).reshape(len(prompts), each)
    pictures = tuple(
        Picture(label=label, prompt=text, png=thumbnail(image), shows=bool(row[0]))
        for text, image, row in zip(told, images[::each], hits, strict=True)
    )
    return Drawn(hits, pictures)


def measurement(
    prompts: Sequence[ImagePrompt],
    leakage: NDArray[np.float64],
    *,
    judge: "Judge",
    drawn: Sequence[Drawn] = (),
    scores: Mapping[str, NDArray[np.float64]] | None = None,
    retain: Sequence[ImagePrompt] = (),
    **further: Any,  # noqa: ANN401 - further fields of the measurement
) -> Measurement:
    """A measurement of forget prompts, and of retain prompts after them.

    Args:
        prompts: The n forget units.
        leakage: The deciding leakage of every unit [n + r], in [0, 1].
        judge: Whose error rates the leakage carries.
        drawn: What the report shows of each unit, in this order.
        scores: Supporting scores [n + r] by name.
        retain: The r retain units.
        **further: Further fields of the measurement, such as `curves`, `summaries` or `notes`.

    Returns:
        The measurement.
    """
    units = [*prompts, *retain]
    shown = {
        one.id: tuple(row.pictures[place] for row in drawn if place < len(row.pictures)) for place, one in enumerate(units)
    }
    return Measurement(
        units=tuple(one.id for one in units),
        clusters=tuple(one.cluster for one in units),
        sets=("forget",) * len(prompts) + ("retain",) * len(retain),
        leakage=tuple(leakage.tolist()),
        scores={name: tuple(column.tolist()) for name, column in (scores or {}).items()},
        pictures={unit: row for unit, row in shown.items() if row},
        evaluator=judge.errors,
        **further,
    )
