"""Tasks of prompts for the untrained image generators of `tiny_pipelines`, and a judge that needs no model."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_pipelines import pixel_pipeline

from muaudit.diffusion.pipeline import Pipeline
from muaudit.image_task import ImagePrompt, ImageTask
from muaudit.models import Sampling
from muaudit.results import EvaluatorErrors


class BrightJudge:
    """Finds any concept in an image whose mean is above a half."""

    digest = "bright"
    errors = EvaluatorErrors(present=50, found=49, absent=50, mistaken=1)

    def present(self, images: NDArray[np.float32], concepts: Any) -> NDArray[np.bool_]:
        assert len(images) == len(concepts)
        bright: NDArray[np.bool_] = images.mean(axis=(1, 2, 3)) > 0.5
        return bright


class Drawer:
    """A pipeline in memory as a model."""

    digest, model_seconds = "drawer", 0.0

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def pipeline(self) -> Pipeline:
        return self._pipeline


def drawer(seed: int = 0, batch_size: int = 64, **scheduler: Any) -> Drawer:
    return Drawer(pixel_pipeline(seed, batch_size=batch_size, **scheduler))


def prompts(kind: str, concepts: str, count: int) -> tuple[ImagePrompt, ...]:
    """`count` prompts, of the concepts in turn; every two are one cluster."""
    words = concepts.split()
    return tuple(
        ImagePrompt(
            id=f"{kind}-{place}", cluster=f"{kind}-{place // 2}", prompt=f"a photo of {words[place % len(words)]}",
            concept=words[place % len(words)], seed=place, guidance=(1.0, 2.0)[place % 2], image=f"{kind}-{place}.png",
        )
        for place in range(count)
    )  # fmt: skip


def drawing_task(
    forget: int = 8, retain: int = 4, holdout: int = 6, *, concepts: str = "three", steps: int = 4, sampler: str = "ddim"
) -> ImageTask:
    """Prompts with random images of 8 x 8 pixels."""
    sets = prompts("forget", concepts, forget), prompts("retain", "one two", retain), prompts("holdout", "four", holdout)
    rng = np.random.default_rng(0)
    pictures = {one.id: rng.random((1, 8, 8), dtype=np.float32) for part in sets for one in part}
    judge: Any = BrightJudge()
    return ImageTask(*sets, Sampling(steps=steps, sampler=sampler), judge, pictures)  # type: ignore[arg-type]
