"""A small task of prompts on untrained pipelines, with a judge whose answer is plain to see."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tiny_pipelines import pixel_pipeline

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.diffusion.pipeline import Pipeline, PromptEncoder
from muaudit.image_task import ImagePrompt, ImageTask
from muaudit.models import ImageQuery, Sampling

PROMPTS = ("a photo of three", "a small three", "three red", "a drawing of a three", "a picture")
"""All but the last name the concept."""


@dataclass
class Bright:
    """Finds a concept in every image that is brighter than grey."""

    digest: str = "bright"
    errors: None = None

    def present(self, images: np.ndarray, concepts: list[str]) -> np.ndarray:
        return images.mean((1, 2, 3)) > 0.5


@dataclass
class Generator:
    """A pipeline in memory as an attack sees a model; remembers what it was asked to draw."""

    held: Pipeline = field(default_factory=lambda: pixel_pipeline(batch_size=64))
    asked: list[ImageQuery] = field(default_factory=list)
    digest: str = "generator"
    model_seconds: float = 0.0

    def pipeline(self) -> Pipeline:
        return self.held

    def prompt_encoder(self) -> PromptEncoder:
        return self.held.encoders[0]

    def images(self, queries: list[ImageQuery]) -> np.ndarray:
        self.asked.extend(queries)
        told = self.held.conditioning([one.prompt for one in queries])
        seeds, guidance = [one.seed for one in queries], [one.guidance for one in queries]
        return self.held.pictures(self.held.sample(told, seeds, guidance, queries[0].sampling))


def prompt(number: int, text: str, concept: str = "three") -> ImagePrompt:
    name = f"{concept}-{number}"
    return ImagePrompt(id=name, cluster=name, prompt=text, concept=concept, seed=number, guidance=2.0)


def task(*, targets: bool = True, retain: bool = True, prompts: tuple[str, ...] = PROMPTS) -> ImageTask:
    """Five forget prompts with random target images, three retain prompts."""
    rng = np.random.default_rng(0)
    forget = tuple(prompt(number, text) for number, text in enumerate(prompts))
    kept = tuple(prompt(number, f"a photo of {name}", name) for number, name in enumerate(("one", "two", "four")))
    pictures = {one.id: rng.random((1, 8, 8), dtype=np.float32) for one in forget}
    judge: Any = Bright()
    return ImageTask(forget, kept if retain else (), (), Sampling(steps=4), judge, pictures if targets else {})


def bench(given: ImageTask, original: Any = None, **further: Any) -> Bench:
    opened = None if original is None else lambda: original
    return Bench(given, np.random.default_rng(1), frozenset(), open_original=opened, **further)


def measured(attack: Attack, given: ImageTask, model: Any, original: Any = None) -> tuple[Prepared, Measurement]:
    """Prepares through JSON, as the runner does, and measures."""
    bare = attack.prepare(bench(given, original))
    prepared = Prepared.model_validate_json(bare.model_dump_json()).with_task(given)
    return prepared, attack.measure(model, prepared, np.random.default_rng(7))
