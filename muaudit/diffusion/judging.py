"""Says whether a concept is in an image, by one evaluator or several, and how often that is wrong."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muaudit.diffusion.assessing import Assessment, BoolArray, Evaluator, FloatArray, Images, checked
from muaudit.errors import ModelError, UsageError
from muaudit.evaluators import (
    Agreement,
    ClassifierEvaluator,
    ClipEvaluator,
    DetectorEvaluator,
    EvaluatorConfig,
    PythonEvaluator,
    names,
)
from muaudit.results import EvaluatorErrors
from muaudit.training import vendor


class Judge:
    """One evaluator or several, put together.

    Attributes:
        evaluators: In their order.
        agreement: Whether a concept is in an image when all evaluators say so, or when any does.
        errors: How often that is wrong on known images; None where there are none.
    """

    def __init__(
        self, evaluators: Sequence[Evaluator], agreement: Agreement = "all", errors: EvaluatorErrors | None = None
    ) -> None:
        if not evaluators:
            raise UsageError("no evaluator says whether a concept is in an image; add [[task.evaluators]]")
        called = [one.name for one in evaluators]
        if twice := next((name for name in called if called.count(name) > 1), None):
            raise UsageError(f"two evaluators are called {twice!r}; give each a name of its own")
        self.evaluators = tuple(evaluators)
        self.agreement = agreement
        self.errors = errors

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the evaluators, how they are put together, and their errors."""
        errors = None if self.errors is None else self.errors.model_dump()
        parts = [[[one.name, one.digest] for one in self.evaluators], self.agreement, errors]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def present(self, images: Images, concepts: Sequence[str]) -> BoolArray:
        """Whether concepts[i] is in images[i].

        Args:
            images: [n, channels, height, width] in [0, 1], of one or three channels.
            concepts: n names.

        Returns:
            [n].

        Raises:
            UsageError: An evaluator does not know a concept; the message names it, and the mend.
            ModelError: An image holds NaN, or an evaluator fails.
        """
        said = np.array([one.present for one in self._assessed(images, concepts).values()], dtype=bool)
        said = said.reshape(len(self.evaluators), len(concepts))
        together = said.all(axis=0) if self.agreement == "all" else said.any(axis=0)
        return np.asarray(together, dtype=bool)

    def scores(self, images: Images, concepts: Sequence[str]) -> dict[str, FloatArray]:
        """How sure each evaluator is that concepts[i] is in images[i].

        Args:
            images: As for `present`.
            concepts: Likewise.

        Returns:
            [n] in [0, 1], by the evaluator's name.

        Raises:
            UsageError: As for `present`.
            ModelError: Likewise.
        """
        return {name: one.score for name, one in self._assessed(images, concepts).items()}

    def chosen(self, images: Images) -> list[str] | None:
        """The concept that the first evaluator which ranks concepts ranks first in each image.

        Args:
            images: As for `present`.

        Returns:
            n names, of a concept or, where what it ranks first is none, of the evaluator's own class; None where no evaluator
            ranks concepts.

        Raises:
            ModelError: An image holds NaN, or the evaluator fails.
        """
        pixels = checked(images)
        for one in self.evaluators:
            if (first := one.ranked_first(pixels)) is not None:
                return first
        return None

    def _assessed(self, images: Images, concepts: Sequence[str]) -> dict[str, Assessment]:
        pixels = checked(images)
        if len(pixels) != len(concepts):
            raise ModelError(f"{len(pixels)} images for {len(concepts)} concepts; every image is asked for one concept")
        if not len(pixels):
            return {one.name: Assessment(np.zeros(0, dtype=bool), np.zeros(0)) for one in self.evaluators}
        return {one.name: one.assess(pixels, list(concepts)) for one in self.evaluators}


class VendorFunction(Evaluator):
    """The vendor's own function, which is run.

    Args:
        config: As audit.toml has it.
        name: What results call it.
        base: Folder that its file starts from.
    """

    def __init__(self, config: PythonEvaluator, name: str, base: Path) -> None:
        self.name = name
        self._function, self._called, self._threshold = vendor.load(config.function, base), config.function, config.threshold
        code = vendor.code_digest(vendor.files(config.function, base))
        parts = [config.model_dump(mode="json", exclude={"name"}), code]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def assess(self, images: Images, concepts: Sequence[str]) -> Assessment:
        """What the function says; it gets copies, and every global generator seeded."""
        with vendor.seeded(0):
            said = np.asarray(vendor.call(self._function, self._called, images.copy(), list(concepts)))
        if said.shape != (len(images),) or said.dtype.kind not in "biuf":
            raise ModelError(
                f"{self._called}: returns {said.dtype} of shape {list(said.shape)} for {len(images)} images; it must return "
                "one boolean, or one score in [0, 1], an image"
            )
        score: NDArray[np.float64] = said.astype(np.float64)
        if not (np.isfinite(score).all() and score.min() >= 0 and score.max() <= 1):
            raise ModelError(f"{self._called}: returns scores outside [0, 1], or NaN; return booleans, or scores in [0, 1]")
        return Assessment(score >= self._threshold, score)


def open_judge(
    evaluators: Sequence[EvaluatorConfig],
    agreement: Agreement,
    base: Path,
    device: str,
    known: tuple[Images, Sequence[str]] | None = None,
    forgotten: Sequence[str] = (),
    concepts: Sequence[str] = (),
) -> Judge:
    """Opens evaluators, and measures on known images how often they err.

    Args:
        evaluators: As audit.toml has them.
        agreement: Whether a concept is in an image when all say so, or when any does.
        base: Folder that their paths start from.
        device: A torch device name.
        known: Images [m, channels, height, width], and the concept of each.
        forgotten: The concepts that the target is claimed to have forgotten.
        concepts: All concepts of the task, in an order that does not change: what a zero-shot classifier chooses from.

    Returns:
        The judge.

    Raises:
        UsageError: An evaluator does not know a concept of the task, or they cannot tell known images apart.
        ModelError: One cannot be opened safely.
        EnvironmentFault: The device or an extra is not there.
    """
    every = tuple(dict.fromkeys((*concepts, *forgotten)))
    opened = [_open(config, name, base, device, every) for config, name in zip(evaluators, names(evaluators), strict=True)]
    for one in opened:
        one.refuse_unknown(every)
    judge = Judge(opened, agreement)
    if known is None:
        return judge
    return Judge(opened, agreement, measured_errors(judge, *known, forgotten=forgotten, concepts=every))


def _open(config: EvaluatorConfig, name: str, base: Path, device: str, concepts: Sequence[str]) -> Evaluator:
    if isinstance(config, ClassifierEvaluator):
        from muaudit.diffusion.classifying import ClassifierRanking

        return ClassifierRanking(config, name, base, device)
    if isinstance(config, ClipEvaluator):
        from muaudit.diffusion.clip import ClipRanking

        return ClipRanking(config, name, base, device, concepts)
    if isinstance(config, DetectorEvaluator):
        from muaudit.diffusion.detectors import Detector

        return Detector(config, name, base, device)
    return VendorFunction(config, name, base)


def measured_errors(
    judge: Judge, images: Images, shown: Sequence[str], *, forgotten: Sequence[str], concepts: Sequence[str] = ()
) -> EvaluatorErrors:
    """How often evaluators err on images whose content is known.

    Every image of a concept of the task is asked for that concept, and every image for each forgotten concept that it does not
    show: those are the confusions that would hide, or feign, a leak. Images of other concepts count as not showing these.

    Args:
        judge: The evaluators.
        images: [m, channels, height, width] in [0, 1].
        shown: What each shows.
        forgotten: The forgotten concepts, at least one.
        concepts: All concepts of the task.

    Returns:
        The counts.

    Raises:
        UsageError: The images show no concept of the task, or nothing but the forgotten one, or the evaluators find a concept
            where it is no more often than where it is not.
    """
    asked = {*concepts, *forgotten}
    own = [place for place, concept in enumerate(shown) if concept in asked]
    others = [(place, concept) for concept in forgotten for place, one in enumerate(shown) if one != concept]
    if not own or not others:
        lacking = "show a concept of the task" if not own else f"show anything but {', '.join(map(repr, forgotten))}"
        raise UsageError(
            f"none of the {len(shown)} known images {lacking}, so the evaluators' error rates cannot be measured; add such "
            "images to task.known, or leave it out"
        )
    found = judge.present(images[own], [shown[place] for place in own])
    mistaken = judge.present(images[[place for place, _ in others]], [concept for _, concept in others])
    if found.mean() <= mistaken.mean():
        raise UsageError(
            f"the evaluators find a concept in {found.sum()} of {len(found)} known images that show it and in {mistaken.sum()} "
            f"of {len(mistaken)} that do not: they cannot tell, and every verdict would be chance; give others under "
            "[[task.evaluators]], or mend their labels"
        )
    return EvaluatorErrors(present=len(found), found=int(found.sum()), absent=len(mistaken), mistaken=int(mistaken.sum()))
