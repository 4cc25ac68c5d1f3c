"""What an attack is, and what it measures.

An attack sees one model at a time and cannot tell which: `measure` gets a model and a prepared state, nothing else.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from muaudit.errors import ModelError, NotApplicable
from muaudit.model_config import ModelConfig
from muaudit.results import AttackCard, ClaimTest, EvaluatorErrors, Frozen, Picture, Transcript

if TYPE_CHECKING:
    import numpy as np

    from muaudit.examples import LabelledTask
    from muaudit.image_task import ImageTask
    from muaudit.models import Model
    from muaudit.task import ForgetTask
    from muaudit.training.cohorts import Cohort, RecordedCohort
    from muaudit.training.shadows import Trainer

Access = Literal["text", "logits", "weights", "training"]

_NOT_EXAMPLES = "this attack asks classifiers about labelled examples, and the task is of another kind"
_NOT_IMAGES = "this attack asks image generators to draw, and the task is of another kind"


class BudgetCurve(Frozen):
    """One model's mean leakage along a budget."""

    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


class Layers(Frozen):
    """One model's numbers in [0, 1] by layer and unit: one row a layer, one column a unit of the measurement, in its order.

    None stands where a layer says nothing about a unit.
    """

    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


class Measurement(Frozen):
    """One attack on one model.

    Attributes:
        units: Unit identifiers, in the order of every list below.
        clusters: Each unit's cluster.
        sets: Each unit's set; forget units decide leakage, retain units decide collateral damage.
        leakage: The deciding leakage of each unit, in [0, 1]; larger means that more can be recovered.
        scores: Supporting scores by name, one number a unit; they decide nothing.
        facets: Names of scores that are alternatives of one another, by what one of them is called ("kind", "form"); the
            finding names the one with the largest gap.
        curves: Mean leakage along a budget, by name.
        heat_maps: Numbers by layer and unit, by name.
        transcripts: What was asked and answered, by unit.
        pictures: What was drawn, by unit, each unit's under the same labels in the same order.
        evaluator: How often those err who say what an image shows, where the leakage rests on them.
        summaries: Numbers about the whole model, by name; they decide nothing.
        claim: A claim about the model (such as an epsilon) that was tested here; judged beside the leakage.
        powerless: Why a low leakage would prove nothing here (the attack did not do its work); forbids `pass`.
        notes: What a reader must know, such as a supporting score that the model could not give.
    """

    units: tuple[str, ...]
    clusters: tuple[str, ...]
    sets: tuple[Literal["forget", "retain"], ...]
    leakage: tuple[float, ...]
    scores: dict[str, tuple[float, ...]] = {}
    facets: dict[str, tuple[str, ...]] = {}
    curves: dict[str, BudgetCurve] = {}
    heat_maps: dict[str, Layers] = {}
    transcripts: dict[str, Transcript] = {}
    pictures: dict[str, tuple[Picture, ...]] = {}
    evaluator: EvaluatorErrors | None = None
    summaries: dict[str, float] = {}
    claim: ClaimTest | None = None
    powerless: str | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was stored
        """Names the unit of the first NaN, which pydantic would only count."""
        if isinstance(values, Mapping):
            units = list(values.get("units", ()))
            for name, scores in {"leakage": values.get("leakage", ()), **values.get("scores", {})}.items():
                for unit, score in zip(units, scores, strict=False):
                    if not isinstance(score, int | float) or not math.isfinite(score):
                        raise ModelError(
                            f"unit {unit!r}: {name} is {score}; the model returned NaN or infinite log-probabilities: "
                            "check its weights and its dtype"
                        )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, column in {"clusters": self.clusters, "sets": self.sets, "leakage": self.leakage, **self.scores}.items():
            if len(column) != len(self.units):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.units)} units")
        if unknown := [name for names in self.facets.values() for name in names if name not in self.scores]:
            raise ValueError(f"facet {unknown[0]!r} is not among the scores")
        for name, map_ in self.heat_maps.items():
            if len(map_.values) != len(map_.rows) or any(len(row) != len(self.units) for row in map_.values):
                raise ValueError(f"heat map {name!r} is not one row a layer and one column a unit")
            if any(value is not None and not 0 <= value <= 1 for row in map_.values for value in row):
                raise ValueError(f"heat map {name!r} has a number outside [0, 1]")
        if len(set(self.units)) != len(self.units):
            raise ValueError("a unit is measured twice")
        for unit, leakage in zip(self.units, self.leakage, strict=True):
            if not -1e-9 <= leakage <= 1 + 1e-9:
                raise ValueError(f"unit {unit!r}: leakage {leakage} is outside [0, 1]")
        return self


class Prepared(Frozen):
    """An attack's prepared state: plain data, made once, the same for every model.

    An attack with `reads_original` also finds the way to the original here, and attacks on classifiers and on image generators
    find the task, whose examples and images may be too large to be written down again. Neither is part of the data: the runner
    attaches them after the state was read from the store, alike for every model.
    """

    data: dict[str, Any] = {}
    _open_original: "Callable[[], Model] | None" = PrivateAttr(default=None)
    _task: "LabelledTask | ImageTask | None" = PrivateAttr(default=None)
    _folder: Path = PrivateAttr(default=Path())

    def with_folder(self, folder: Path) -> Self:
        """The same state with the audit's folder, for an attack that reads one of its `files` while it measures.

        Args:
            folder: Where paths among the attack's parameters start from.

        Returns:
            A copy; its data, its digest and what is stored of it are the same.
        """
        copy = self.model_copy()
        copy._folder = folder
        return copy

    @property
    def folder(self) -> Path:
        """Where paths among the attack's parameters start from; no part of the data, since an audit may be moved."""
        return self._folder

    def with_original(self, open_original: "Callable[[], Model] | None") -> Self:
        """The same state with a way to the original.

        Args:
            open_original: Opens the model before unlearning.

        Returns:
            A copy; its data, its digest and what is stored of it are the same.
        """
        copy = self.model_copy()
        copy._open_original = open_original
        return copy

    def with_task(self, task: "LabelledTask | ImageTask | None") -> Self:
        """The same state with the task.

        Args:
            task: The task, where it is one of labelled examples or of images.

        Returns:
            A copy; its data, its digest and what is stored of it are the same.
        """
        copy = self.model_copy()
        copy._task = task
        return copy

    @property
    def examples(self) -> "LabelledTask":
        """The task's examples.

        Raises:
            NotApplicable: The task is not of labelled examples.
        """
        return _examples(self._task)

    @property
    def images(self) -> "ImageTask":
        """The task of images.

        Raises:
            NotApplicable: The task is not of images.
        """
        return _images(self._task)

    def open_original(self) -> "Model":
        """Opens the model before unlearning, in whose network an attack reads other models' states.

        Raises:
            NotApplicable: The audit has none.
        """
        if self._open_original is None:
            raise NotApplicable("this attack reads models in the original's network; give the audit [original]")
        return self._open_original()


class Lineup(Frozen):
    """The models that an attack on a procedure is measured on, instead of the audit's own.

    Attributes:
        target: What the vendor's procedure made.
        references: Retrained without what that target was to forget.
        original: The model that the procedure started from.
        notes: What a reader must know of how they were made.
    """

    target: ModelConfig
    references: tuple[ModelConfig, ...]
    original: ModelConfig | None = None
    notes: tuple[str, ...] = ()

    def models(self) -> list[tuple[str, ModelConfig]]:
        """All models with their roles: target, reference 1 ..., original."""
        models: list[tuple[str, ModelConfig]] = [("target", self.target)]
        models += [(f"reference {number}", model) for number, model in enumerate(self.references, start=1)]
        return models if self.original is None else [*models, ("original", self.original)]


@dataclass(frozen=True)
class Bench:
    """What `prepare` may see: the task, the original and a reference for calibration; never a model that is compared.

    Attributes:
        given: The forget, retain and holdout sets: of facts, of labelled examples, or of prompts for images.
        rng: Seeded from the plan and the attack's name.
        capabilities: Names of the capability protocols that every audited model has, so that an attack with several ways
            treats all models alike.
        open_original: Opens the model before unlearning; None where the audit has none.
        open_calibration: Opens the reference that is set aside for an attack that `calibrates`; None where there is none.
        folder: Where paths among an attack's parameters start from.
        open_shadows: Gives the audit's shadow models, training them where they are not there yet; None without `[shadows]`.
        open_trainer: Gives the way to train by the audit's recipe, and to unlearn by the vendor's procedure; None without
            `[recipe]`.
        made: Folder for models that an attack has made; whatever is written there is named by its content.
    """

    given: "ForgetTask | LabelledTask | ImageTask"
    rng: "np.random.Generator"
    capabilities: frozenset[str]
    open_original: "Callable[[], Model] | None" = None
    open_calibration: "Callable[[], Model] | None" = None
    folder: Path = Path()
    open_shadows: "Callable[[], Cohort | RecordedCohort] | None" = None
    open_trainer: "Callable[[], Trainer] | None" = None
    made: Path = Path("made")

    @property
    def task(self) -> "ForgetTask":
        """The task of facts.

        Raises:
            NotApplicable: The task is of another kind.
        """
        from muaudit.task import ForgetTask

        if not isinstance(self.given, ForgetTask):
            raise NotApplicable("this attack asks about facts, and the task is of another kind")
        return self.given

    @property
    def examples(self) -> "LabelledTask":
        """The task of labelled examples.

        Raises:
            NotApplicable: The task is of another kind.
        """
        return _examples(self.given)

    @property
    def images(self) -> "ImageTask":
        """The task of images.

        Raises:
            NotApplicable: The task is of another kind.
        """
        return _images(self.given)

    def shadows(self) -> "Cohort | RecordedCohort":
        """The audit's shadow models, each trained on a known half of the task's examples.

        Raises:
            NotApplicable: The audit has none.
        """
        if self.open_shadows is None:
            raise NotApplicable("this attack needs shadow models: add [recipe] and [shadows] to audit.toml")
        return self.open_shadows()

    def trainer(self, *, procedure: bool = False) -> "Trainer":
        """The way to train models by the audit's recipe.

        Args:
            procedure: Whether the vendor's unlearning procedure is needed too.

        Raises:
            NotApplicable: The audit has no recipe, or no procedure.
        """
        if self.open_trainer is None:
            raise NotApplicable("this attack trains models of its own: add [recipe] to audit.toml")
        trainer = self.open_trainer()
        if procedure and trainer.procedure is None:
            raise NotApplicable("this attack runs the vendor's unlearning procedure: add [procedure] to audit.toml")
        return trainer


def _examples(task: object) -> "LabelledTask":
    from muaudit.examples import LabelledTask

    if not isinstance(task, LabelledTask):
        raise NotApplicable(_NOT_EXAMPLES)
    return task


def _images(task: object) -> "ImageTask":
    from muaudit.image_task import ImageTask

    if not isinstance(task, ImageTask):
        raise NotApplicable(_NOT_IMAGES)
    return task


class Attack(BaseModel, ABC):
    """An attack: its fields are its parameters, validated and written into the report.

    Attributes:
        name: File name, command-line name and section of audit.toml.
        version: Raised whenever the same input would be measured differently; part of the store's key.
        summary: What it does, in one sentence.
        source: The paper that it implements.
        access: What it needs from the vendor.
        needs: Capability protocols (`muaudit.models`) that a model must satisfy; a tuple of them means any one.
        sided: "two" where a score far below the references gives membership away too.
        reads_original: Whether `measure` reads the original too, by `prepared.open_original()`. It still cannot tell which
            model it attacks, since all are read in the same one.
        calibrates: Whether `prepare` needs a reference of its own. The audit's last reference is then set aside for it and left
            out of this attack's comparison, since what was tuned on a model cannot be judged by it; it takes two references.
        cost: What a run costs, in words.
        informational: Why a pass says little, for an attack that sees only part of what methods leave; empty where it says
            much. Such an attack can fail a target like any other, but an audit in which nothing else passes is inconclusive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    access: ClassVar[Access]
    needs: ClassVar[tuple[type | tuple[type, ...], ...]]
    sided: ClassVar[Literal["one", "two"]] = "one"
    reads_original: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    cost: ClassVar[str]
    informational: ClassVar[str] = ""

    @abstractmethod
    def prepare(self, bench: Bench) -> Prepared:
        """Does once what does not depend on the model under attack, such as choosing splits and writing prompts.

        Args:
            bench: The task and the models that the attack may see.

        Returns:
            The prepared state.

        Raises:
            NotApplicable: The task lacks what the attack needs; the finding is then `skipped` with this reason.
        """

    def lineup(self, bench: Bench, prepared: Prepared) -> Lineup | None:
        """The models to measure, for an attack on a procedure rather than on one model.

        It has the vendor's procedure and the training recipe make a target and its references; the rest of the way is the same.

        Args:
            bench: What `prepare` saw, with an `rng` of its own.
            prepared: What `prepare` returned.

        Returns:
            The models; None (the default) for the audit's own target, references and original.
        """
        return None

    @abstractmethod
    def measure(self, model: "Model", prepared: Prepared, rng: "np.random.Generator") -> Measurement:
        """Attacks one model, without knowing which it is and without changing it.

        Args:
            model: Any model that satisfies `needs`.
            prepared: What `prepare` returned.
            rng: Seeded alike for every model of the audit.

        Returns:
            The measurement.
        """

    def files(self) -> tuple[str, ...]:
        """Paths among the parameters, relative to the audit's folder; what they hold is part of the prepared state's key."""
        return ()

    def functions(self) -> dict[str, str]:
        """Others' functions among the parameters by what they are for, named as in `[procedure]`: the report says they ran."""
        return {}

    def missing(self, family: type) -> list[str]:
        """Names of the needed capabilities that a model family does not have."""
        lacking = [need for need in self.needs if not issubclass(family, need)]
        return [" or ".join(one.__name__ for one in (need if isinstance(need, tuple) else (need,))) for need in lacking]

    def card(self, label: str | None = None, package: str = "muaudit") -> AttackCard:
        """The attack and its parameters, as the report shows them.

        Args:
            label: Its name in the plan, where that differs from its own.
            package: The package that it came from.

        Returns:
            The card.
        """
        return AttackCard(
            name=label or self.name,
            attack=self.name,
            version=self.version,
            summary=self.summary,
            source=self.source,
            access=self.access,
            sided=self.sided,
            cost=self.cost,
            package=package,
            parameters=self.model_dump(mode="json"),
            informational=self.informational,
        )
