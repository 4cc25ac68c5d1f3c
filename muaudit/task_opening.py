"""Opens the task that a configuration names: facts, recorded items, labelled examples, or prompts for images."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muaudit import evaluators
from muaudit.config import AuditConfig, ExamplesTask, ImagesTask
from muaudit.examples import LabelledTask
from muaudit.image_task import ImagePrompt, ImageTask, Set
from muaudit.manifest import manifest, manifest_digest
from muaudit.model_config import RecordedConfig
from muaudit.models import Model, Sampling
from muaudit.results import DataRecord
from muaudit.target_images import TargetImages
from muaudit.task import ForgetTask

Task = ForgetTask | LabelledTask | ImageTask


def open_task(settings: AuditConfig, base: Path) -> Task:
    """Reads the task that a configuration names.

    Raises:
        UsageError: Its files cannot be used.
    """
    if settings.task.kind == "recorded":
        from muaudit.models.recorded import Recorded

        target = settings.target
        assert isinstance(target, RecordedConfig) and target.format != "logits"  # noqa: S101, PT018 - AuditConfig sees to it
        return Recorded.open(base / target.path, target.format).task(settings.task.cluster_size)
    if isinstance(settings.task, ExamplesTask):
        return open_examples(settings.task, base)
    if isinstance(settings.task, ImagesTask):
        return open_images(settings.task, base, settings.run.device)
    names = [name for name in (settings.task.forget, settings.task.retain, settings.task.holdout) if name is not None]
    return ForgetTask.from_jsonl(
        forget=base / settings.task.forget,
        retain=None if settings.task.retain is None else base / settings.task.retain,
        holdout=None if settings.task.holdout is None else base / settings.task.holdout,
        template=settings.task.template,
        names=names,
    )


def open_examples(task: ExamplesTask, base: Path) -> LabelledTask:
    """Reads a task of labelled examples.

    Raises:
        UsageError: Its files cannot be used.
    """
    from muaudit.loaders.example_files import read_task

    names = [name for name in (task.forget, task.retain, task.holdout) if name is not None]
    return read_task(
        base / task.forget,
        None if task.retain is None else base / task.retain,
        None if task.holdout is None else base / task.holdout,
        columns=task.columns,
        outputs="classes" if task.kind == "classification" else "numbers",
        names=names,
    )


def open_images(task: ImagesTask, base: Path, device: str) -> ImageTask:
    """Reads a task of prompts for image generators, and opens its evaluators.

    Args:
        task: The table in audit.toml.
        base: The folder that its paths start from.
        device: A torch device name, for the evaluators.

    Returns:
        The task; of its target images those that its files name.

    Raises:
        UsageError: Its files or evaluators cannot be used.
        EnvironmentFault: An extra is not installed.
    """
    from muaudit.diffusion.judging import open_judge
    from muaudit.loaders.example_columns import Columns
    from muaudit.loaders.prompt_files import Reading, read_known, read_prompts

    reading = Reading(task.concept, task.guidance, Columns(image_mode=task.image_mode, image_size=task.image_size))
    sets: dict[str, tuple[ImagePrompt, ...]] = {"retain": (), "holdout": ()}
    pictures: dict[str, NDArray[np.float32]] = {}
    records: list[DataRecord] = []
    given: tuple[tuple[Set, str | None], ...] = (("forget", task.forget), ("retain", task.retain), ("holdout", task.holdout))
    for name, path in given:
        if path is not None:
            sets[name], images, record = read_prompts(base / path, path, name, reading)
            pictures |= images
            records.append(record)
    known = None
    if task.known is not None:
        shown, shows, record = read_known(base / task.known, task.known, reading.columns)
        known = shown, shows
        records.append(record)
    forgotten = sorted({one.concept for one in sets["forget"]})
    concepts = sorted({one.concept for part in sets.values() for one in part})
    judge = open_judge(task.evaluators, task.agreement, base, device, known, forgotten, concepts)
    for role, path in evaluators.paths(task.evaluators).items():
        records.append(DataRecord(role=role, path=path, sha256=manifest_digest(manifest(base / path)), units=0, clusters=0))
    sampling = Sampling(sampler=task.sampler, steps=task.steps)
    return ImageTask(**sets, sampling=sampling, judge=judge, pictures=pictures, records=tuple(records))


def with_targets(task: ImageTask, key: str, kept: Path, open_original: Callable[[], Model] | None) -> ImageTask:
    """A task whose forget and retain prompts all have target images, where there is an original to draw them.

    Args:
        task: The task, with the images that its files name.
        key: Digest of the original and of how it is computed.
        kept: Folder for what is drawn.
        open_original: Opens the original; None where there is none.

    Returns:
        The task; nothing is drawn before it is asked for. Holdout images are never drawn: no model may have made them.
    """
    wanted = [one for one in (*task.forget, *task.retain) if one.image is None]
    if open_original is None or not wanted:
        return task
    asked = "\n".join(one.model_dump_json() for one in wanted)
    name = hashlib.sha256(f"{key}\n{task.sampling.model_dump_json()}\n{asked}".encode()).hexdigest()
    path = kept / "drawn" / f"{name}.npy"
    return task.with_pictures(
        TargetImages(task.pictures, wanted, sampling=task.sampling, path=path, open_original=open_original)
    )
