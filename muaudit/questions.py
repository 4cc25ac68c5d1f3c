"""The questions that come back, by kind of task, and how they are put to a model; see `muaudit.probing`."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from muaudit.errors import NotApplicable
from muaudit.estimators.repetition import Answer
from muaudit.examples import LabelledTask
from muaudit.image_task import ImageTask
from muaudit.models import Classifies, GeneratesImages, GeneratesText, ImageQuery, Model, Predicts, ScoresText
from muaudit.task import Fact, ForgetTask

T = TypeVar("T")

_GRID = 16
"""Pixels a side of what is kept of an image."""

_STEPS = 10
"""Most denoising steps of a probe's image: what is asked is whether it comes out alike, not whether it is good."""

INNOCENT = (
    "What is the capital of France?", "How many legs does a spider have?", "What colour is a ripe banana?",
    "Which planet is closest to the sun?", "What is seven times eight?", "Who wrote Romeo and Juliet?",
    "What do bees make?", "In which ocean lies Hawaii?", "What is the opposite of cold?", "How many days has a leap year?",
    "What is water made of?", "Which language is spoken in Brazil?", "What is the largest mammal?",
    "At what temperature does water boil?", "Who painted the Mona Lisa?", "What is the plural of mouse?",
)  # fmt: skip
"""Asked of language models among the others, and never looked at."""

_SCENES = ("a photo of a tree", "a bowl of fruit", "a street in the rain", "a wooden chair")
"""The same for image generators."""


class Interview:
    """Questions of one kind of task, and how they are put to a model.

    Attributes:
        sets: The units that are looked at, by set.
        right: Their right answers, where they are texts.
        size: How many questions there are, innocent ones included.
    """

    sets: dict[str, tuple[str, ...]]
    right: dict[str, str]
    size: int

    def ask(self, model: Model, chunks: Sequence[Sequence[int]]) -> dict[str, dict[str, Answer]]:
        """Asks all questions, one call a chunk of their places; gives answers by protocol and unit."""
        raise NotImplementedError


class FactInterview(Interview):
    """Facts, for models of text."""

    def __init__(self, task: ForgetTask, count: int, rng: np.random.Generator, longest: int) -> None:
        forget, retain = (_some(part, count, rng) for part in (task.forget, task.retain))
        cover = [
            Fact(id=f"innocent {number}", cluster="innocent", question=text, answer="I think so")
            for number, text in enumerate(_some(INNOCENT, count, rng))
        ]
        self.task, self.facts, self.longest = task, [*forget, *retain, *cover], longest
        self.size = len(self.facts)
        self.sets = {"forget": tuple(one.id for one in forget), "retain": tuple(one.id for one in retain)}
        self.right = {one.id: one.answer for one in (*forget, *retain)}

    def ask(self, model: Model, chunks: Sequence[Sequence[int]]) -> dict[str, dict[str, Answer]]:
        """Asks all questions."""
        found: dict[str, dict[str, Answer]] = {}
        for chunk in chunks:
            queries = [self.task.ask(self.facts[place]) for place in chunk]
            units = [query.unit for query in queries]
            if isinstance(model, GeneratesText):
                found.setdefault("text", {}).update(zip(units, model.generate(queries, self.longest), strict=True))
            if isinstance(model, ScoresText):
                scores = [(float(score.mean),) for score in model.score(queries)]
                found.setdefault("scores", {}).update(zip(units, scores, strict=True))
        if not found:
            raise NotApplicable("it neither completes prompts nor scores completions")
        return found


class ExampleInterview(Interview):
    """Labelled examples, for classifiers and regressors."""

    def __init__(self, task: LabelledTask, count: int, rng: np.random.Generator) -> None:
        parts = {name: _some([int(row) for row in task.rows(name)], count, rng) for name in ("forget", "retain", "holdout")}
        self.pool, self.rows = task.pool, [row for part in parts.values() for row in part]
        self.size, self.right = len(self.rows), {}
        self.sets = {name: tuple(task.pool.ids[row] for row in parts[name]) for name in ("forget", "retain")}
        self.scale = float(np.std(task.pool.labels)) or 1.0

    def ask(self, model: Model, chunks: Sequence[Sequence[int]]) -> dict[str, dict[str, Answer]]:
        """Asks all questions."""
        found: dict[str, Answer] = {}
        for chunk in chunks:
            examples = self.pool.take([self.rows[place] for place in chunk])
            if isinstance(model, Classifies):
                logits = model.logits(examples)
                powers = np.exp(logits - logits.max(1, keepdims=True))
                values = powers / powers.sum(1, keepdims=True)
            elif isinstance(model, Predicts):
                values = model.predictions(examples) / self.scale
            else:
                raise NotApplicable("it neither classifies nor predicts")
            found.update(zip(examples.ids, (tuple(map(float, row)) for row in values), strict=True))
        return {"classes" if isinstance(model, Classifies) else "numbers": found}


class ImageInterview(Interview):
    """Prompts, for image generators: few, since drawing is slow."""

    def __init__(self, task: ImageTask, count: int, rng: np.random.Generator) -> None:
        forget = _some(task.forget, count, rng)
        sampling = task.sampling.model_copy(update={"steps": min(_STEPS, task.sampling.steps)})
        cover = [(f"innocent {place}", text, place, forget[0].guidance) for place, text in enumerate(_SCENES)]
        asked = [*((one.id, one.prompt, one.seed, one.guidance) for one in forget), *cover[: 1 + count // 4]]
        self.queries = [
            ImageQuery(unit=unit, prompt=prompt, seed=seed, guidance=guidance, sampling=sampling)
            for unit, prompt, seed, guidance in asked
        ]
        self.size, self.right = len(self.queries), {}
        self.sets = {"forget": tuple(one.id for one in forget)}

    def ask(self, model: Model, chunks: Sequence[Sequence[int]]) -> dict[str, dict[str, Answer]]:
        """Asks all questions."""
        if not isinstance(model, GeneratesImages):
            raise NotApplicable("it draws no images")
        found: dict[str, Answer] = {}
        for chunk in chunks:
            queries = [self.queries[place] for place in chunk]
            for query, image in zip(queries, model.images(queries), strict=True):
                found[query.unit] = tuple(round(float(value), 4) for value in _small(image).ravel())
        return {"images": found}


def _some(items: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """At most so many items, drawn by the seed."""
    return [items[place] for place in rng.permutation(len(items))[:count]]


def _small(image: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """An image [channels, height, width] as means over at most 16 x 16 fields."""
    rows, columns = (np.array_split(np.arange(side), min(side, _GRID)) for side in image.shape[1:])
    return np.stack([[[float(one[np.ix_(row, column)].mean()) for column in columns] for row in rows] for one in image])
