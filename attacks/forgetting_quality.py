"""Forgetting quality: do many unlearned models look like many retrained ones, example by example?"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit import store
from muaudit.attack import Attack, Bench, Lineup, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.estimators import forgetting
from muaudit.estimators.likelihood_ratio import margins
from muaudit.examples import Examples, LabelledTask
from muaudit.model_config import PopulationConfig
from muaudit.models import ClassifiesMany, Model
from muaudit.training import made

if TYPE_CHECKING:
    from muaudit.training.cohorts import Cohort
    from muaudit.training.shadows import Trainer

FloatArray = NDArray[np.float64]

Asked = Callable[[Examples], FloatArray]
"""A population as what gives logits [M, n, C] of examples."""

SMALLEST_RANGE = 1e-6
"""Of the margins of one example: a population that varies less than this on every example is one model, many times."""


class ForgettingQuality(Attack):
    """Compares populations of models: unlearned N times with different seeds, against N models retrained with different seeds.

    This is the game of the NeurIPS-2023 unlearning challenge. Each forget example gives one number a model, its margin, and the
    question is how well the margins of unlearned models can be told from those of retrained ones. A population of retrained
    models is set aside; every other population, of retrained models too, is measured against it, so that references show what
    chance makes of the same computation.

    The leakage is the held-out advantage: the true positive rate less the false positive rate of a rule that other models
    taught, each example by itself, 0 where it tells nothing (or less) and 1 where it is always right. Cutting at 0 leaves an
    honest population some 0.35/sqrt(N) above it (0.04 with 64 models), and the references as well. The other numbers cannot
    decide: the published epsilon is the largest of thousands of rules on the very models that are judged, far above 0 even for
    two populations that are alike; the corrected bound is right, but 0 for any example whose populations overlap well, so that
    a pass by it would mean little; KLOM's histograms show a divergence where there is none. All stand beside it, as do the
    challenge's forgetting quality F and its final score, where retain and holdout set tell the accuracies.

    The populations are made by the recipe and the vendor's procedure, unless the audit's own models are populations. As in the
    challenge, all unlearned models come from one original, so what varies is the procedure alone. One that always gives the
    same model would look unlike any population of retrained ones, however well it unlearns; it is then run on an original for
    each seed instead, and if that gives one model too, the attack is skipped.

    Attributes:
        models: Models in each population (512 in the challenge).
        populations: How many reference populations are retrained.
        originals: Whether all unlearned models come from one original, or each from its own.
        alpha: Error rate of each example's corrected bound.
        delta: The definition's delta.
    """

    name: ClassVar = "forgetting_quality"
    version: ClassVar = "1"
    summary: ClassVar = "Tells a population of unlearned models from populations of retrained ones, example by example."
    source: ClassVar = (
        "Triantafillou et al. 2024, Are we making progress in unlearning? (arXiv 2406.09073; google-deepmind/"
        "unlearning_evaluation); KLOM: Georgiev et al. 2024, Attribute-to-Delete (arXiv 2410.23232)"
    )
    access: ClassVar = "training"
    needs: ClassVar = (ClassifiesMany,)
    calibrates: ClassVar = True
    cost: ClassVar = "populations + 2 trainings, and one unlearning, for each of the models in a population"

    models: Annotated[int, Field(ge=16)] = 64
    populations: Annotated[int, Field(ge=1)] = 3
    originals: Literal["one", "each"] = "one"
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    delta: Annotated[float, Field(ge=0, lt=1)] = forgetting.DELTA

    def prepare(self, bench: Bench) -> Prepared:
        """Records the margins and accuracies of the population that is set aside."""
        task = bench.examples
        if task.outputs != "classes":
            raise NotApplicable(
                "forgetting_quality is on the margins of classifiers, and the task's labels are numbers to predict"
            )
        notes, asked = [], self._set_aside(bench)
        if asked is None:
            trainer = bench.trainer(procedure="ClassifiesMany" not in bench.capabilities)
            asked = self._retrained(task, trainer, bench.rng).logits
            notes.append(f"{self.models} more models were retrained to compare all populations with")
        return Prepared(
            data={
                "margins": margins(asked(task.forget), task.forget.labels).tolist(),
                "accuracies": _accuracies(asked, task),
                "seed": int(bench.rng.integers(2**32)),
                "notes": notes,
            }
        )

    def _set_aside(self, bench: Bench) -> Asked | None:
        """The audit's reference population that is set aside, if its models are populations."""
        if "ClassifiesMany" not in bench.capabilities or bench.open_calibration is None:
            return None
        model = bench.open_calibration()
        assert isinstance(model, ClassifiesMany)  # noqa: S101 - all models have this capability
        return model.member_logits

    def _retrained(self, task: LabelledTask, trainer: "Trainer", rng: np.random.Generator) -> "Cohort":
        rows = np.zeros((self.models, len(task.pool)), dtype=bool)
        rows[:, task.rows("retain")] = True
        return trainer.train(rows, made.seeds(rng, self.models))

    def lineup(self, bench: Bench, prepared: Prepared) -> Lineup | None:
        """Makes the populations; None where the audit's own models are populations."""
        if "ClassifiesMany" in bench.capabilities:
            return None
        task, trainer = bench.examples, bench.trainer(procedure=True)
        everything = np.zeros((self.models, len(task.pool)), dtype=bool)
        everything[:, [*task.rows("forget"), *task.rows("retain")]] = True
        originals = trainer.train(everything, made.seeds(bench.rng, self.models))
        unlearned, notes = self._unlearned(task, trainer, originals, bench.rng)
        references = [self._retrained(task, trainer, bench.rng) for _ in range(self.populations)]
        folder = (
            bench.made / f"forgetting_quality-{store.key_of(of=self.model_dump(), prepared=prepared.content_digest())[:16]}"
        )

        def kept(cohort: "Cohort", name: str) -> PopulationConfig:
            cohort.save(folder / name)
            return PopulationConfig(kind="population", path=made.path_from(bench.folder, folder / name))

        return Lineup(
            target=kept(unlearned, "target"),
            references=tuple(kept(one, f"reference-{number}") for number, one in enumerate(references, start=1)),
            original=kept(originals, "original"),
            notes=(
                f"the populations of {self.models} are the auditor's own, made by the recipe and the vendor's procedure; the "
                "audit's target is in none of them",
                *notes,
            ),
        )

    def _unlearned(
        self, task: LabelledTask, trainer: "Trainer", originals: "Cohort", rng: np.random.Generator
    ) -> "tuple[Cohort, list[str]]":
        """What the procedure makes, of one original if it has chance enough of its own."""
        forgotten = np.zeros((self.models, len(task.pool)), dtype=bool)
        forgotten[:, task.rows("forget")] = True
        drawn, notes = made.seeds(rng, self.models), []
        if self.originals == "one":
            unlearned = trainer.unlearn(originals.take([0] * self.models), forgotten, drawn)
            if not _copies(margins(unlearned.logits(task.forget), task.forget.labels)):
                return unlearned, ["all unlearned models come from one original, so they vary by the procedure alone"]
            notes.append(
                "the procedure makes the same of one original whatever the seed, so each run got an original of its own"
            )
        unlearned = trainer.unlearn(originals, forgotten, drawn)
        if _copies(margins(unlearned.logits(task.forget), task.forget.labels)):
            raise NotApplicable(_ONE_MODEL)
        return unlearned, notes

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Compares one population with the one that was set aside; `rng` is not needed, since the folds are drawn once."""
        assert isinstance(model, ClassifiesMany)  # noqa: S101 - the runner checked `needs`
        task, data = prepared.examples, prepared.data
        retrained = np.array(data["margins"])
        scores = margins(model.member_logits(task.forget), task.forget.labels)
        if _copies(scores):
            raise NotApplicable(_ONE_MODEL)
        advantage = forgetting.advantage(scores, retrained, seed=data["seed"])
        bound = forgetting.corrected(scores, retrained, seed=data["seed"], alpha=self.alpha, delta=self.delta)
        published = forgetting.challenge(scores, retrained, delta=self.delta)
        notes = [*data["notes"]]
        if published.degenerate.any():
            notes.append(
                f"on {int(published.degenerate.sum())} examples one of the populations hardly varies; the published epsilon is "
                f"then not computed but set to {forgetting.EPSILON_CAP:g}"
            )
        summaries = {
            "advantage": float(advantage.mean()),
            "largest_epsilon_that_could_be_shown": bound.largest,
            "forgetting_quality": published.forgetting,
        }
        accuracies, known = _accuracies(model.member_logits, task), data["accuracies"]
        if {"retain", "holdout"} <= known.keys():
            retain, test = ((accuracies[name], known[name]) for name in ("retain", "holdout"))
            summaries["challenge_score"] = published.score(retain=retain, test=test)
        columns = {
            "epsilon_lower_bound": bound.lower,
            "epsilon_estimate": bound.estimate,
            "epsilon_upper_end": bound.upper,
            "epsilon_published": published.epsilons,
            "klom": forgetting.klom(scores, retrained),
        }
        return Measurement(
            units=task.forget.ids,
            clusters=task.forget.clusters,
            sets=("forget",) * len(task.forget),
            leakage=tuple(np.clip(advantage, 0, 1).tolist()),
            scores={name: tuple(column.tolist()) for name, column in columns.items()},
            summaries=summaries | {f"accuracy_{name}": value for name, value in accuracies.items()},
            notes=tuple(notes),
        )


_ONE_MODEL = (
    "the models of a population are copies of one another, and this attack looks at how they vary: have the procedure use its "
    "seed, or leave the attack out"
)


def _copies(scores: FloatArray) -> bool:
    """Whether margins [M, n] are the same for all models."""
    return float(np.ptp(scores, axis=0).max()) < SMALLEST_RANGE


def _accuracies(asked: Asked, task: LabelledTask) -> dict[str, float]:
    """Mean accuracy over all models, on every set that is not empty."""
    return {name: float((asked(part).argmax(-1) == part.labels).mean()) for name, part in task.sets() if len(part)}
