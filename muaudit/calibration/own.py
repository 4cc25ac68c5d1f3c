"""A calibration on a user's own recipe: a few retrains, and the original, which is all that is known there."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from muaudit import compute, config, plan
from muaudit.ahead import trainer
from muaudit.calibration.config import CalibrationConfig, RetrainsConfig
from muaudit.calibration.population import ORIGINAL, RETRAIN, Member, Population
from muaudit.config import ExamplesTask, TaskConfig, TrainingConfig
from muaudit.errors import UsageError
from muaudit.manifest import content_digest
from muaudit.model_config import ModelConfig
from muaudit.store import write_atomically
from muaudit.task_opening import open_examples
from muaudit.training import vendor
from muaudit.training.made import member_config, path_from

Progress = Callable[[int, int, str], None]

BED = "recipe"

_KINDS = {"facts": "causal_lm", "text_to_image": "diffusion", "classification": "classifier", "regression": "regressor"}


def population(settings: CalibrationConfig, base: Path, progress: Progress) -> Population:
    """The user's retrains and original: those that are there, and those that are trained now.

    Args:
        settings: A configuration with `[task]`.
        base: The folder that its paths start from.
        progress: Told of every model.

    Returns:
        The models; where there is one retrain more than audits need, the last is spared for attacks that calibrate.

    Raises:
        UsageError: There is no way to get models, or too few.
        ModelError: The user's function fails, or writes no model.
    """
    own, task = settings.retrains or RetrainsConfig(), settings.task
    if task is None:
        raise UsageError("a calibration on one's own recipe needs [task]: the forget, retain and holdout set")
    found = list(own.references)
    made = [*_trained(settings, own, task, base, progress)]
    found += [model for model, forget in made if not forget]
    originals = [*([own.original] if own.original is not None else []), *(model for model, forget in made if forget)]
    if not originals:
        raise UsageError("no original is given or can be trained, and without it no attack is seen to work: give [original]")
    if len(found) <= settings.audits.references:
        raise UsageError(
            f"{len(found)} retrains, and every audit compares one with {settings.audits.references} others: give --retrains "
            f"{settings.audits.references + 1} or more with --recipe, or more [[references]], or lower audits.references"
        )
    spare = found.pop() if len(found) > settings.audits.references + 1 else None
    members = [
        Member(name=f"retrain-{number}", truth="never_saw", group=RETRAIN, seed=number, model=model)
        for number, model in enumerate(found, 1)
    ]
    names = {f"original-{number}": model for number, model in enumerate(originals, 1)}
    members += [
        Member(name=name, truth="knows", group=ORIGINAL, share=1.0, seed=number, original=name, model=model)
        for number, (name, model) in enumerate(names.items(), 1)
    ]
    return Population(
        bed=BED, task=task, originals=names, members=tuple(members), spare=spare, recipe=settings.recipe,
    )  # fmt: skip


def _trained(
    settings: CalibrationConfig, own: RetrainsConfig, task: TaskConfig, base: Path, progress: Progress
) -> Iterator[tuple[ModelConfig, bool]]:
    """What is trained now, and whether the forget set was trained on; nothing without a recipe."""
    forgetful = own.original is None
    total = own.count + forgetful
    if settings.recipe is not None and isinstance(task, ExamplesTask):
        made = _by_recipe(settings, task, base, own.count, forgetful)
    elif own.function is not None:
        made = _by_function(settings, own, task, base, forgetful)
    else:
        return
    for number, (model, forget) in enumerate(made, 1):
        progress(number, total, "original trained" if forget else f"retrain {number} trained")
        yield model, forget


def _by_recipe(
    settings: CalibrationConfig, task: ExamplesTask, base: Path, count: int, forgetful: bool
) -> Iterator[tuple[ModelConfig, bool]]:
    """Models of labelled examples, by `[recipe]`, as `muaudit reference` trains them."""
    assert settings.recipe is not None  # noqa: S101 - the caller has looked
    training = TrainingConfig(task=task, recipe=settings.recipe, run=settings.run)
    opened, kept = open_examples(task, base), plan.store_folder(training, base) / "trained"
    if not len(opened.retain):
        raise UsageError("retrains are trained on the retain set, and the task has none: give task.retain")
    for number in range(count + forgetful):
        forget = number == count
        rows = np.zeros((1, len(opened.pool)), dtype=bool)
        for part in ("forget", "retain") if forget else ("retain",):
            rows[:, opened.rows(part)] = True
        name, place = ("original", 0) if forget else ("reference", number)
        seed = compute.seed_of(config.TRAINING_SEED, name, str(place))
        cohort = trainer(training, opened, base, kept, None).train(rows, [seed])
        path = plan.out_folder(training, base) / "models" / f"{name}-{place + 1}"
        if path.exists():  # from an earlier run: whether it is the same is seen by its digest
            import shutil

            shutil.rmtree(path)
        yield member_config(cohort, 0, path, base, opened.pool), forget


def _by_function(
    settings: CalibrationConfig, own: RetrainsConfig, task: TaskConfig, base: Path, forgetful: bool
) -> Iterator[tuple[ModelConfig, bool]]:
    """Models of any kind, each a folder that the user's function writes."""
    assert own.function is not None  # noqa: S101 - the caller has looked
    files = vendor.files(own.function, base)
    train = vendor.load(own.function, base)
    folder = base / settings.run.out / "models"
    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: content_digest(base / path) for name in ("forget", "retain") if (path := getattr(task, name, None))}
    for number in range(own.count + forgetful):
        forget = number == own.count
        name = "original-1" if forget else f"reference-{number + 1}"
        seed = compute.seed_of(config.TRAINING_SEED, name) % 2**31
        parts = [vendor.code_digest(files), own.function, own.parameters, seed, forget, sets]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        out, marker = folder / name, folder / f"{name}.key"
        if not (out.exists() and marker.exists() and marker.read_text(encoding="utf-8") == key):
            _make(train, own, out, seed, forget)
            write_atomically(marker, key.encode())
        yield own.model(_KINDS[task.kind], path_from(base, out)), forget


def _make(train: Callable[..., Any], own: RetrainsConfig, out: Path, seed: int, forget: bool) -> None:
    """Has the user's function write one model; its folder appears only when it is complete."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".training-") as scratch:
        made = Path(scratch) / out.name
        with vendor.seeded(seed):
            vendor.call(train, str(own.function), made, seed=seed, forget=forget, **own.parameters)
        if not made.exists():
            raise UsageError(f"{own.function}: wrote no model to the path that it was given; it must save one there")
        if out.exists():
            out.rename(Path(scratch) / "stale")
        made.rename(out)
