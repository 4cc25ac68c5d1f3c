"""Trains references and shadow models ahead of an audit, from the part of audit.toml that says how."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from muaudit import compute, config, plan
from muaudit.config import TrainingConfig
from muaudit.errors import UsageError
from muaudit.examples import LabelledTask
from muaudit.likelihood_ratio import balanced_membership
from muaudit.manifest import manifest, manifest_digest
from muaudit.results import Frozen
from muaudit.shadows import Trainer

Progress = Callable[[int, int, str], None]

SHARE = 0.5
"""Share of all examples that each shadow model is trained on."""


class Made(Frozen):
    """Models that were trained ahead.

    Attributes:
        path: Their folder.
        digest: Its manifest's digest.
        models: How many models it holds.
        examples: How many examples each was trained on; of shadow models, how many they were drawn from.
    """

    path: str
    digest: str
    models: int
    examples: int


def trainer(settings: TrainingConfig, task: LabelledTask, base: Path, store: Path, progress: Progress | None) -> Trainer:
    """The way to train by a configuration's recipe.

    Args:
        settings: Recipe, seed and spread.
        task: The examples.
        base: The folder that paths start from.
        store: Where trained stacks are kept by content.
        progress: Told of every stack.

    Returns:
        The trainer.
    """
    return Trainer(
        recipe=settings.recipe, procedure=None, pool=task.pool, folder=store, base=base, workers=settings.run.workers,
        backend=settings.run.backend, address=settings.run.address, progress=progress,
    )  # fmt: skip


def shadow_rows(count: int, task: LabelledTask, seed: str) -> tuple[np.ndarray, list[int]]:
    """Which examples each shadow model is trained on, and each one's seed.

    Args:
        count: How many shadow models.
        task: The examples.
        seed: The audit's.

    Returns:
        Membership [count, N], every example in half of the models (rounded down); and the seeds.
    """
    rows = balanced_membership(count, len(task.pool), compute.seed_of(seed, "shadows"), SHARE)
    return rows, [compute.seed_of(seed, "shadow", str(number)) for number in range(count)]


def train_references(audit: Path, out: Path, count: int, *, forget: bool, progress: Progress | None = None) -> list[Made]:
    """Trains models on the retain set, each from a seed of its own.

    Args:
        audit: audit.toml; see `muaudit.config.load_training`.
        out: Folder for `reference-1` and so on; what was trained already is not trained again.
        count: How many.
        forget: Whether the forget set is trained on too; the models are then originals, and called so.
        progress: Told of every stack.

    Returns:
        One record a model.

    Raises:
        UsageError: The configuration cannot be used, or there is no retain set.
    """
    settings, task = _read(audit)
    if not len(task.retain):
        raise UsageError(f"{audit}: references are trained on the retain set, and the task has none: give task.retain")
    name = "original" if forget else "reference"
    rows = np.zeros((count, len(task.pool)), dtype=bool)
    for part in ("forget", "retain") if forget else ("retain",):
        rows[:, task.rows(part)] = True
    seeds = [compute.seed_of(settings.run.seed, name, str(number)) for number in range(count)]
    cohort = trainer(settings, task, audit.parent, out / ".trained", progress).train(rows, seeds)
    made = []
    for number in range(count):
        folder = out / f"{name}-{number + 1}"
        cohort.save_member(number, folder)
        made.append(_made(folder, 1, int(rows[0].sum())))
    return made


def train_shadows(audit: Path, out: Path, count: int | None, *, progress: Progress | None = None) -> Made:
    """Trains shadow models on balanced random halves of all examples.

    Args:
        audit: audit.toml; see `muaudit.config.load_training`.
        out: Their folder; what was trained already is not trained again.
        count: How many; as `[shadows]` says by default.
        progress: Told of every stack.

    Returns:
        What was made.

    Raises:
        UsageError: The configuration cannot be used.
    """
    settings, task = _read(audit)
    rows, seeds = shadow_rows(count or settings.shadows.count, task, settings.run.seed)
    cohort = trainer(settings, task, audit.parent, out.with_name(f".{out.name}-trained"), progress).train(rows, seeds)
    cohort.save(out)
    return _made(out, len(seeds), len(task.pool))


def _read(audit: Path) -> tuple[TrainingConfig, LabelledTask]:
    settings = config.load_training(audit)
    return settings, plan.open_examples(settings.task, audit.parent)


def _made(folder: Path, models: int, examples: int) -> Made:
    return Made(path=str(folder), digest=manifest_digest(manifest(folder)), models=models, examples=examples)
