"""The task of image generators: prompts whose images would show what was to be forgotten, what was to be kept, and the rest."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.errors import NotApplicable, UsageError
from muaudit.models import ImageQuery, Sampling
from muaudit.results import DataRecord, Frozen

if TYPE_CHECKING:
    from muaudit.diffusion.judging import Judge

Set = Literal["forget", "retain", "holdout"]
Text = Annotated[str, Field(min_length=1)]
Images = NDArray[np.float32]


class ImagePrompt(Frozen):
    """A prompt, with how its image is drawn: a unit of the audit.

    Attributes:
        id: Unique over all three sets.
        cluster: What it stands or falls with, such as the work that it asks for; its id by default.
        prompt: What is asked for.
        concept: What its image would show, by a name that the evaluators know.
        kind: What kind of concept that is, such as "style" or "object"; for in-domain and cross-domain retention.
        seed: Of its image.
        guidance: Scale of classifier-free guidance; 1 is none.
        image: File of its target image, as the task's file names it; None where the original is to draw it.
    """

    id: Text
    cluster: Text
    prompt: Text
    concept: Text
    kind: Text | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    guidance: Annotated[float, Field(ge=0, le=100)] = 7.5
    image: Text | None = None

    def query(self, sampling: Sampling, *, prompt: str | None = None, seed: int | None = None) -> ImageQuery:
        """What a model is asked for.

        Args:
            sampling: Sampler and steps.
            prompt: Asked for instead of the unit's own, such as an attacked one.
            seed: Drawn with instead of the unit's own.
        """
        return ImageQuery(
            unit=self.id, prompt=self.prompt if prompt is None else prompt, seed=self.seed if seed is None else seed,
            guidance=self.guidance, sampling=sampling,
        )  # fmt: skip


@dataclass(frozen=True)
class ImageTask:
    """The three sets of a text-to-image task.

    Attributes:
        forget: Prompts of the concept that the target is claimed to have forgotten; never empty.
        retain: Prompts of what it is to keep; may be empty.
        holdout: Prompts with images that no model saw, of the same kind; may be empty.
        sampling: How every image is drawn.
        judge: Says whether a concept is in an image.
        pictures: Target images by prompt id, [channels, height, width] in [0, 1]: from the task's files, or drawn by the
            original.
        records: One record a file, for the plan and the report.
    """

    forget: tuple[ImagePrompt, ...]
    retain: tuple[ImagePrompt, ...]
    holdout: tuple[ImagePrompt, ...]
    sampling: Sampling
    judge: "Judge"
    pictures: Mapping[str, Images] = field(default_factory=dict)
    records: tuple[DataRecord, ...] = ()

    def __post_init__(self) -> None:
        """Checks what holds for every task, wherever it was read from."""
        if not self.forget:
            raise UsageError("the forget set is empty: an audit needs at least one prompt of what was to be forgotten")
        seen: dict[str, str] = {}
        for name, part in self.sets():
            for one in part:
                if one.id in seen:
                    place = "twice" if seen[one.id] == name else f"in the {seen[one.id]} set too"
                    raise UsageError(f"prompt {one.id!r} of the {name} set stands {place}; give every prompt an id of its own")
                seen[one.id] = name

    def sets(self) -> Iterator[tuple[Set, tuple[ImagePrompt, ...]]]:
        """The three sets by name: forget, retain, holdout."""
        yield "forget", self.forget
        yield "retain", self.retain
        yield "holdout", self.holdout

    def images(self, prompts: Sequence[ImagePrompt]) -> Images:
        """The prompts' target images.

        Args:
            prompts: At least one.

        Returns:
            [n, channels, height, width] in [0, 1].

        Raises:
            NotApplicable: One has none: the task names no file of it, and there is no original to draw it.
        """
        for one in prompts:
            if one.id not in self.pictures:
                raise NotApplicable(
                    f"this attack needs target images, and prompt {one.id!r} has none: name image files in the task's files, "
                    "or give the audit [original], which then draws them"
                )
        return np.stack([self.pictures[one.id] for one in prompts])

    def with_pictures(self, pictures: Mapping[str, Images]) -> Self:
        """The same task with other target images."""
        return replace(self, pictures=pictures)

    @property
    def digest(self) -> str:
        """SHA-256 over everything in the task's files that can change a measurement; images that a model drew are not in it."""
        named = {one.id for _, part in self.sets() for one in part if one.image is not None}
        parts = [
            self.sampling.model_dump(mode="json"),
            self.judge.digest,
            [[one.model_dump(mode="json", exclude={"image"}) for one in part] for _, part in self.sets()],
            {name: _digest(self.pictures[name]) for name in sorted(named)},
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _digest(image: Images) -> str:
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def fresh_seeds(prompts: Sequence[ImagePrompt], count: int, rng: np.random.Generator) -> list[list[int]]:
    """Seeds that no prompt has of its own, to score on what nobody chose.

    Args:
        prompts: The units.
        count: Seeds a unit.
        rng: Where they are drawn from.

    Returns:
        `count` seeds below 2**31 for each prompt.
    """
    own = {one.seed for one in prompts}
    drawn = iter(seed for seed in iter(lambda: int(rng.integers(2**31)), None) if seed not in own)
    return [[next(drawn) for _ in range(count)] for _ in prompts]


def chosen(prompts: Sequence[ImagePrompt], most: int, rng: np.random.Generator) -> tuple[ImagePrompt, ...]:
    """At most so many prompts, drawn by the seed, in their own order.

    Args:
        prompts: All of a set.
        most: Most of them.
        rng: Draws which.
    """
    places = sorted(rng.permutation(len(prompts))[:most].tolist())
    return tuple(prompts[place] for place in places)
