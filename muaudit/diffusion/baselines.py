"""What an attack on prompts must beat with as many images as it looked at itself: more seeds, and random tokens."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from muaudit.diffusion.drawn import Drawn, draw
from muaudit.diffusion.insertion import Insertion, random_tokens
from muaudit.diffusion.judging import Judge
from muaudit.image_task import ImagePrompt
from muaudit.models import GeneratesImages, ImageQuery, Sampling

AT_ONCE = 256
"""Images that are held in memory at a time."""


def draw_in_parts(
    model: GeneratesImages, judge: Judge, units: Sequence[ImagePrompt], queries: Sequence[Sequence[ImageQuery]], label: str
) -> Drawn:
    """The same as `drawn.draw`, with only so many images in memory at a time."""
    each = max(1, AT_ONCE // max(1, len(queries[0])))
    parts = [
        draw(model, judge, units[first : first + each], queries[first : first + each], label)
        for first in range(0, len(units), each)
    ]
    return Drawn(np.concatenate([part.hits for part in parts]), tuple(one for part in parts for one in part.pictures))


def seed_search(
    model: GeneratesImages, judge: Judge, units: Sequence[ImagePrompt], sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> Drawn:
    """Draws the plain prompts with other seeds.

    Args:
        model: The model.
        judge: Says whether a concept is in an image.
        units: n prompts.
        sampling: How images are drawn.
        seeds: Each prompt's, as many as the attack may look at images.

    Returns:
        Which images show the concept [n, seeds].
    """
    queries = [[one.query(sampling, seed=seed) for seed in row] for one, row in zip(units, seeds, strict=True)]
    return draw_in_parts(model, judge, units, queries, "other seed")


def random_prompts(
    model: GeneratesImages, judge: Judge, units: Sequence[ImagePrompt], sampling: Sampling, insertion: Insertion,
    among: Tensor, seeds: Sequence[Sequence[int]],
) -> Drawn:  # fmt: skip
    """Draws the prompts with random tokens inserted, from their own seeds.

    Args:
        model: The model.
        judge: Says whether a concept is in an image.
        units: n prompts.
        sampling: How images are drawn.
        insertion: The prompts with room for tokens.
        among: The tokens that the attack may choose.
        seeds: Of each prompt's random tokens, as many as the attack may look at images.

    Returns:
        Which images show the concept [n, seeds].
    """
    count = insertion.places.shape[1]
    told = [insertion.texts(random_tokens(among, count, column)) for column in zip(*seeds, strict=True)]
    queries = [
        [one.query(sampling, prompt=text) for text in row] for one, row in zip(units, zip(*told, strict=True), strict=True)
    ]
    return draw_in_parts(model, judge, units, queries, "random tokens")
