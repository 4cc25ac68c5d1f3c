"""What membership attacks on classifiers share: which examples are scored, and how their scores become a measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.attack import Measurement
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators import membership
from muaudit.estimators.likelihood_ratio import Roc
from muaudit.estimators.roc_summary import summarise
from muaudit.examples import Examples, LabelledTask

if TYPE_CHECKING:
    from muaudit.training.cohorts import Cohort, RecordedCohort

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def draw_retain(task: LabelledTask, most: int, rng: np.random.Generator, *, ranked: bool = True) -> tuple[list[int], list[str]]:
    """Draws the retain examples that show collateral damage.

    Args:
        task: The task, of classes.
        most: At most so many.
        rng: Draws them.
        ranked: Whether scores are ranked among the holdout examples', so that some are needed.

    Returns:
        Their places in the retain set, ascending, and notes on what was left out.

    Raises:
        NotApplicable: The task has no holdout set to rank by, or its labels are no classes.
    """
    if task.outputs != "classes":
        raise NotApplicable("this attack is on classifiers, and the task's labels are numbers to predict")
    if ranked and not len(task.holdout):
        raise NotApplicable("membership is told by comparison with examples that no model saw: give them as task.holdout")
    total = len(task.retain)
    if total <= most:
        return list(range(total)), []
    return (
        sorted(rng.choice(total, most, replace=False).tolist()),
        [f"collateral damage is measured on {most} of {total} retain examples, drawn by the seed"] if most else [],
    )


@dataclass(frozen=True)
class Scored:
    """The examples that an attack scores: the forget set, the drawn retain examples, the holdout set.

    Attributes:
        examples: All of them, in this order.
        forget: How many are of the forget set.
        retain: How many are retain examples.
    """

    examples: Examples
    forget: int
    retain: int

    @classmethod
    def of(cls, task: LabelledTask, retain: Sequence[int]) -> "Scored":
        """The examples of a task.

        Args:
            task: The task.
            retain: Places of the retain examples in the retain set.
        """
        parts = [task.forget, task.retain.take(np.array(retain, dtype=np.int64)), task.holdout]
        return cls(Examples.joined(parts), len(task.forget), len(retain))

    @property
    def units(self) -> int:
        """How many are units of the measurement; the rest are the holdout set."""
        return self.forget + self.retain

    @property
    def holdout(self) -> BoolArray:
        """Which of them are holdout examples."""
        return np.arange(len(self.examples)) >= self.units

    def trained_on(self, cohort: "Cohort | RecordedCohort") -> BoolArray:
        """Which shadow model was trained on which of the examples [M, n].

        Raises:
            UsageError: The shadow models know nothing of an example.
        """
        places = {name: place for place, name in enumerate(cohort.ids)}
        if unknown := [name for name in self.examples.ids if name not in places]:
            raise UsageError(
                f"the shadow models were neither trained on example {unknown[0]!r} nor kept from it: "
                "train them on this task (muaudit shadow)"
            )
        member: BoolArray = np.asarray(cohort.rows, dtype=bool)[:, [places[name] for name in self.examples.ids]]
        return member

    def one_sided(self, member: BoolArray, *, inside: bool) -> str | None:
        """What is wrong where an example has no shadow model on one side.

        Args:
            member: Which model was trained on which example [M, n].
            inside: Whether each example needs a model that was trained on it; else one that was not.

        Returns:
            The message, with a way to mend it; None where nothing is wrong.
        """
        lacking = ~(member if inside else ~member).any(0)
        if not lacking.any():
            return None
        first = self.examples.ids[int(lacking.argmax())]
        return (
            f"{int(lacking.sum())} examples, such as {first!r}, are {'not in' if inside else 'in'} the training set of "
            f"{'any' if inside else 'every one'} of the {len(member)} shadow models, so nothing says what a model that "
            f"{'was' if inside else 'was not'} trained on them gives: train more shadow models, on balanced halves "
            "(muaudit shadow does)"
        )

    def measurement(
        self,
        columns: Mapping[str, ArrayLike],
        deciding: str,
        *,
        plain: Mapping[str, ArrayLike] | None = None,
        threshold: float | None = None,
        summaries: Mapping[str, float] | None = None,
        notes: Sequence[str] = (),
    ) -> Measurement:
        """Ranks every unit's scores among the holdout examples' on the same model.

        Args:
            columns: Scores of all examples by name [n], larger means member; each is shown as a rank.
            deciding: The one whose rank is the leakage.
            plain: Further numbers of all examples [n], shown as they are.
            threshold: Of the deciding score, chosen on models whose membership is known.
            summaries: Further summaries.
            notes: What a reader must know.

        Returns:
            The measurement: forget units first, then retain units. Summaries are of forget against holdout examples: all that
            `summarise` gives of the deciding score, AUC and the true positive rate at 1 % false positives of every other.
        """
        outside, clusters = self.holdout, self.examples.clusters
        values = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
        ranked = {name: membership.ranks(column[~outside], column[outside]) for name, column in values.items()}
        decided = values[deciding]
        summary = summarise(
            decided[: self.forget],
            decided[outside],
            clusters[: self.forget],
            clusters[self.units :],
            threshold=threshold,
        )
        others = {name: tuple(ranks.tolist()) for name, ranks in ranked.items() if name != deciding}
        beside: dict[str, float] = {}
        for name in others:
            roc = Roc.of(values[name][: self.forget], values[name][outside])
            rate = roc.tpr_at(0.01).value
            beside |= {f"auc_{name}": roc.auc} | ({} if rate is None else {f"tpr_at_1_percent_fpr_{name}": rate})
        shown = {name: np.asarray(column, dtype=np.float64)[~outside] for name, column in (plain or {}).items()}
        return Measurement(
            units=self.examples.ids[: self.units],
            clusters=clusters[: self.units],
            sets=("forget",) * self.forget + ("retain",) * self.retain,
            leakage=tuple(ranked[deciding].tolist()),
            scores=others | {name: tuple(column.tolist()) for name, column in shown.items()},
            facets={"score": tuple(others)} if others else {},
            curves={"roc": summary.roc},
            summaries={**summary.numbers, **beside, **(summaries or {})},
            notes=(*notes, *summary.notes),
        )
