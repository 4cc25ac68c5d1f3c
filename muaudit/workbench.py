"""What the audit gives attacks to prepare with: its task, its original, its shadow models, and the way to train more."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from muaudit import compute, plan, store
from muaudit.ahead import shadow_rows
from muaudit.attack import Bench
from muaudit.errors import NotApplicable
from muaudit.examples import LabelledTask
from muaudit.image_task import ImageTask
from muaudit.model_config import ModelConfig
from muaudit.models import CAPABILITIES, Model
from muaudit.opening import family, open_model
from muaudit.plan import Plan
from muaudit.task_opening import Task, open_task, with_targets
from muaudit.training.cohorts import Cohort, RecordedCohort, open_cohort
from muaudit.training.shadows import Trainer

Progress = Callable[[int, int, str], None]


def targets(frozen: Plan, base: Path) -> tuple[str, Path, Callable[[], Model] | None]:
    """What `with_targets` needs to have the original draw the target images of an image task.

    Args:
        frozen: The plan.
        base: The folder that its paths start from.

    Returns:
        Digest of the original and of how it is computed; the folder for what it draws; what opens it, None without one.
    """
    run, model = frozen.config.run, frozen.config.original
    kept = plan.store_folder(frozen.config, base)
    if model is None:
        return "", kept, None
    digests = [record.digest for record in frozen.models if record.role == "original"]
    options = model.model_dump(mode="json", exclude={"path", "batch_size"})
    key = store.key_of(
        original=digests, options=options, device=run.device, threads=run.threads, versions=frozen.versions, tool=frozen.tool
    )
    return key, kept, lambda: open_model(model, base, run.device, kept)


def opened_task(frozen: Plan, base: Path) -> Task:
    """The task of a plan, read anew: the plan holds its digest, not its content."""
    task = open_task(frozen.config, base)
    return with_targets(task, *targets(frozen, base)) if isinstance(task, ImageTask) else task


class Workbench:
    """Makes the bench of every attack of one audit; what is costly is made when first asked for, and once."""

    def __init__(self, frozen: Plan, base: Path, progress: Progress) -> None:
        self.plan, self.base, self.progress = frozen, base, progress
        self.store = plan.store_folder(frozen.config, base)
        self.models = dict(frozen.config.models())
        self.numbers = frozen.config.task.kind == "regression"

    def family(self, model: ModelConfig) -> type:
        """The class of a model's family."""
        return family(model, self.base, numbers=self.numbers)

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """Names of the capabilities that every audited model has."""
        families = [self.family(model) for model in self.models.values()]
        return frozenset(need.__name__ for need in CAPABILITIES if all(issubclass(kind, need) for kind in families))

    def of(self, attack: str, stage: str, spare: str | None) -> Bench:
        """The bench of one attack.

        Args:
            attack: Its name in the plan.
            stage: "prepare" or "lineup"; each draws from a stream of its own.
            spare: The reference that is set aside for its calibration.

        Returns:
            The bench.
        """
        config = self.plan.config
        return Bench(
            given=self.task,
            rng=np.random.default_rng(compute.seed_of(config.run.seed, attack, stage)),
            capabilities=self.capabilities,
            open_original=self._opener("original"),
            open_calibration=self._opener(spare),
            folder=self.base,
            open_shadows=None if config.shadows is None else self.shadows,
            open_trainer=None if config.recipe is None else self.trainer,
            made=self.store / "made",
        )

    @cached_property
    def task(self) -> Task:
        """The audit's task."""
        return opened_task(self.plan, self.base)

    def trainer(self) -> Trainer:
        """The way to train by the audit's recipe and to unlearn by the vendor's procedure."""
        config = self.plan.config
        if not isinstance(self.task, LabelledTask) or config.recipe is None:
            raise NotApplicable("models are trained by a [recipe] on labelled examples, and this audit lacks either")
        return Trainer(
            recipe=config.recipe,
            procedure=config.procedure,
            pool=self.task.pool,
            folder=self.store / "trained",
            base=self.base.resolve(),  # a cluster's workers were started in a folder of their own
            workers=config.run.workers,
            backend=config.run.backend,
            address=config.run.address,
            progress=self.progress,
            threads=config.run.threads,
        )

    def shadows(self) -> Cohort | RecordedCohort:
        """The audit's shadow models; that those trained ahead are of this task, the plan has seen to."""
        return self._shadows

    @cached_property
    def _shadows(self) -> Cohort | RecordedCohort:
        wanted = self.plan.config.shadows
        if wanted is None or not isinstance(self.task, LabelledTask):
            raise NotApplicable("this audit has no [shadows]")
        if wanted.path is not None:
            return open_cohort(self.base / wanted.path)
        return self.trainer().train(*shadow_rows(wanted.count, self.task, plan.training_seed(self.plan)))

    def _opener(self, role: str | None) -> Callable[[], Model] | None:
        model = self.models.get(role or "")
        if model is None:
            return None
        return lambda: open_model(model, self.base, self.plan.config.run.device, self.store, numbers=self.numbers)
