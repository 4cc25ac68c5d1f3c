"""Trains references and shadow models ahead of an audit, from the part of audit.toml that says how."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from muaudit import compute, config, plan
from muaudit.config import TrainingConfig
from muaudit.errors import UsageError
from muaudit.estimators.likelihood_ratio import balanced_membership
from muaudit.examples import LabelledTask
from muaudit.manifest import content_digest, manifest, manifest_digest
from muaudit.results import Frozen
from muaudit.task_opening import open_examples
from muaudit.training.cohorts import Cohort
from muaudit.training.recipes import rows_digest
from muaudit.training.shadows import Trainer

Progress = Callable[[int, int, str], None]

SHARE = 0.5
"""Share of all examples that each shadow model is trained on."""


class Made(Frozen):
    """Models that were trained ahead.

    Attributes:
        path: Their folder.
        kind: How audit.toml calls such models: "classifier", "regressor" or "shadows".
        digest: The folder's manifest's digest.
        models: How many models it holds.
        examples: How many examples each was trained on; of shadow models, how many they were drawn from.
        recipe: Digest of the recipe.
        seeds: Each model's, in decimal (JSON has no whole numbers as large).
        rows: Digest of the ids that the model was trained on, as classifier.json has it; of shadow models, of all their rows
            and seeds, as cohort.json has it.
    """

    path: str
    kind: str
    digest: str
    models: int
    examples: int
    recipe: str
    seeds: tuple[str, ...]
    rows: str


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
        recipe=settings.recipe, procedure=None, pool=task.pool, folder=store, base=base.resolve(), workers=settings.run.workers,
        backend=settings.run.backend, address=settings.run.address, progress=progress,
        threads=settings.run.threads,
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
        count: How many; the first ones do not depend on how many follow.
        forget: Whether the forget set is trained on too; the models are then originals, and called so.
        progress: Told of every model.

    Returns:
        One record a model.

    Raises:
        UsageError: The configuration cannot be used, there is no retain set, or another model lies where one is to be written.
    """
    settings, task = _read(audit)
    if not len(task.retain):
        raise UsageError(f"{audit}: references are trained on the retain set, and the task has none: give task.retain")
    name = "original" if forget else "reference"
    rows = np.zeros((1, len(task.pool)), dtype=bool)
    for part in ("forget", "retain") if forget else ("retain",):
        rows[:, task.rows(part)] = True
    store, made = _store(settings, audit), []
    for number in range(count):
        # One by one: trained together, the last bits of each would depend on how many there are.
        seed = compute.seed_of(settings.run.seed or config.TRAINING_SEED, name, str(number))
        cohort = trainer(settings, task, audit.parent, store, None).train(rows, [seed])
        folder = out / f"{name}-{number + 1}"
        _put(folder, partial(cohort.save_member, 0))
        if progress is not None:
            progress(number + 1, count, f"{folder.name} trained")
        made.append(_made(folder, cohort, int(rows.sum()), rows_digest(task.pool.take(rows[0]).ids)))
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
        UsageError: The configuration cannot be used, or other models lie in the folder.
    """
    settings, task = _read(audit)
    rows, seeds = shadow_rows(count or settings.shadows.count, task, settings.run.seed or config.TRAINING_SEED)
    cohort = trainer(settings, task, audit.parent, _store(settings, audit), progress).train(rows, seeds)
    _put(out, cohort.save)
    return _made(out, cohort, len(task.pool), cohort.description.rows).model_copy(update={"kind": "shadows"})


def _read(audit: Path) -> tuple[TrainingConfig, LabelledTask]:
    settings = config.load_training(audit)
    return settings, open_examples(settings.task, audit.parent)


def _store(settings: TrainingConfig, audit: Path) -> Path:
    """Where the audit itself looks for trained models, so that neither trains what the other has trained."""
    return plan.store_folder(settings, audit.parent) / "trained"


def _put(folder: Path, save: Callable[[Path], None]) -> None:
    """Writes a folder of models whole; what lies there already has to be the same, since an audit may have named it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".saving-") as scratch:
        new = Path(scratch) / folder.name
        save(new)
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            new.rename(folder)
        elif content_digest(folder) != content_digest(new):
            raise UsageError(
                f"{folder}: holds something else (another recipe's models, other examples', or not muaudit's), which an audit "
                "may name; remove it, or give another --out (what was trained is kept)"
            )


def _made(folder: Path, cohort: Cohort, examples: int, rows: str) -> Made:
    return Made(
        path=str(folder),
        kind="classifier" if cohort.description.labels == "classes" else "regressor",
        digest=manifest_digest(manifest(folder)),
        models=len(cohort),
        examples=examples,
        recipe=cohort.description.recipe.content_digest(),
        seeds=tuple(str(seed) for seed in cohort.seeds),
        rows=rows,
    )
