"""U-LiRA: can a model that unlearned an example be told from one that never saw it?"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator
from scipy import special

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators.likelihood_ratio import (
    SMALLEST_SPREAD,
    Gaussians,
    Roc,
    Spread,
    balanced_membership,
    fit_gaussians,
    margins,
)
from muaudit.examples import Examples
from muaudit.models import Classifies, Model
from muaudit.training import made, vendor
from muaudit.training.cohorts import Cohort
from muaudit.training.recipes import Procedure

if TYPE_CHECKING:
    from muaudit.training.shadows import Trainer

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FEW_MODELS = 32
"""With fewer models a side, every example's own standard deviation is mostly noise, and one for all is better."""

SHARE = 0.5
"""Share of the pool that each shadow model is trained on."""

KINDS = ("unlearned", "untouched", "retrained", "bystander")
"""What a model can have to do with an example: unlearned it, was trained on it and unlearned nothing, was retrained without it
(or never trained on it), or unlearned others and was never trained on it."""


class ULira(Attack):
    """Compares a model's margin of each forgotten example with shadow models that unlearned it and with some that never saw it.

    K shadow models are trained on random halves of all examples. Each then unlearns, by the vendor's procedure, some of the
    examples that it was trained on, about as many as the audit's forget set has; beside it, a model is retrained without them.
    Every forget example, and every retain example that is scored, is unlearned by equally many shadows. Two questions, each
    with Gaussians of its own:

    - efficacy: was the example unlearned, or did the model (retrained) never see it? This is what unlearning promises.
    - privacy: was it unlearned, or did the model unlearn other examples and never see this one? This takes side effects of the
      procedure, which show on examples that it was never asked to forget, off the account.

    The leakage is the posterior of "trained on" against "retrained", at even odds: near 1/2 where the two cannot be told apart.
    Trained on means unlearned by this procedure or not unlearned at all, at even odds again: a procedure that pushes the margin
    far down would otherwise call a model that nobody unlearned an honest one, since its margin lies on the other side. The
    published score, which knows the first alternative only, stands beside it (`efficacy`), and so does `privacy`; each also by
    one attacker for all examples (`population`), which is much weaker. On retain examples the same numbers are computed: a
    procedure can expose what it was to keep.

    How well the attack tells its own shadows apart, each judged by the others alone, stands in the summaries: if not even those
    differ, a low leakage is to the procedure's credit. The target itself is no shadow, and no threshold is tuned on it.

    Attributes:
        shadows: How many models are trained where the audit has no shadow models that can be unlearned from.
        procedure: `module:function` or `file.py:function` in place of the vendor's procedure, called in the same way; the
            report says that a proxy was run.
        parameters: The proxy's, by name.
        minimum: Least number of shadows that unlearned an example.
        spread: One standard deviation for each example, or one for all; `auto` takes the latter below 32 models a side.
        untouched: Whether models that were trained on an example and not unlearned at all count as trained on.
        retain_examples: At most so many retain examples are scored, drawn from the plan's seed.
    """

    name: ClassVar = "u_lira"
    version: ClassVar = "1"
    summary: ClassVar = "Tells a model that unlearned an example from one retrained without it, by shadow models of both kinds."
    source: ClassVar = (
        "Hayes et al. 2024, Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy; the two nulls "
        "as in RULI (USENIX Security 2025)"
    )
    access: ClassVar = "training"
    needs: ClassVar = (Classifies,)
    cost: ClassVar = "three trainings a shadow: the model, its unlearning and its retraining; one forward pass an example"

    shadows: Annotated[int, Field(ge=4)] = 32
    procedure: str | None = None
    parameters: dict[str, Any] = {}
    minimum: Annotated[int, Field(ge=3)] = 4
    spread: Literal["auto", "per_example", "fixed"] = "auto"
    untouched: bool = True
    retain_examples: Annotated[int, Field(ge=0)] = 200

    @field_validator("procedure")
    @classmethod
    def _named(cls, procedure: str | None) -> str | None:
        if procedure is not None:
            vendor.split(procedure)
        return procedure

    def functions(self) -> dict[str, str]:
        """The proxy, if there is one."""
        return {} if self.procedure is None else {"proxy": self.procedure}

    def prepare(self, bench: Bench) -> Prepared:
        """Trains, unlearns and retrains the shadow models, and fits the distributions of both hypotheses."""
        task, notes = bench.examples, []
        if task.outputs != "classes":
            raise NotApplicable("u_lira is on the margins of classifiers, and the task's labels are numbers to predict")
        trainer = bench.trainer(procedure=self.procedure is None)
        if self.procedure is not None:
            trainer = replace(trainer, procedure=Procedure(function=self.procedure, parameters=self.parameters))
            notes.append(f"a proxy was run in place of the vendor's procedure: {self.procedure}")
        retain = task.rows("retain")
        if len(retain) > self.retain_examples:
            notes.append(f"{self.retain_examples} of {len(retain)} retain examples are scored, drawn by the seed")
            retain = np.sort(bench.rng.choice(retain, self.retain_examples, replace=False))
        units = np.concatenate([task.rows("forget"), retain])
        shadows = self._trained(bench, trainer, notes)
        subsets = forget_subsets(shadows.rows, units, len(task.forget), self.minimum, bench.rng)
        unlearned = trainer.unlearn(shadows, subsets, made.seeds(bench.rng, len(subsets)))
        retrained = trainer.train(shadows.rows & ~subsets, made.seeds(bench.rng, len(subsets)))
        shown = task.pool.take(units)
        trained, after, never = (margins(models.logits(shown), shown.labels) for models in (shadows, unlearned, retrained))
        seen = Shadows(
            trained=trained,
            unlearned=after,
            retrained=never,
            trained_on=shadows.rows[:, units],
            forgotten=subsets[:, units],
        )
        spread = self.spread if self.spread != "auto" else "fixed" if seen.fewest < FEW_MODELS else "per_example"
        notes.append(
            f"{len(subsets)} shadow models; each example was unlearned by {int(seen.forgotten.sum(0).min())} or more; standard "
            f"deviations: {'one for all examples' if spread == 'fixed' else 'one an example'}"
        )
        return Prepared(
            data={
                "retain": (retain - len(task.forget)).tolist(),
                "fits": {name: fit.plain() for name, fit in seen.fitted(spread).items()},
                "power": self._power(seen, len(task.forget), spread),
                "notes": notes,
            }
        )

    def _trained(self, bench: Bench, trainer: "Trainer", notes: list[str]) -> Cohort:
        """The audit's shadow models, if they can be unlearned from; else some of this attack's own."""
        pool = bench.examples.pool
        if bench.open_shadows is not None:
            shadows = bench.shadows()
            if isinstance(shadows, Cohort) and shadows.description.pool == pool.digest:
                return shadows
            notes.append(f"the audit's shadow models cannot unlearn here, so {self.shadows} were trained for this attack")
        rows = balanced_membership(self.shadows, len(pool), int(bench.rng.integers(2**62)), SHARE)
        return trainer.train(rows, made.seeds(bench.rng, self.shadows))

    def _power(self, seen: "Shadows", forget: int, spread: Spread) -> dict[str, float]:
        """How well the attack tells its own shadow models apart on forget examples, each judged by the others alone."""
        members: dict[str, list[FloatArray]] = {}
        others: dict[str, list[FloatArray]] = {}
        first = np.arange(seen.forgotten.shape[1]) < forget
        for shadow, (unlearned, retrained) in enumerate(zip(seen.unlearned, seen.retrained, strict=True)):
            fits = seen.without(shadow).fitted(spread)
            here, bystanders = seen.forgotten[shadow] & first, ~seen.trained_on[shadow] & first
            after, never = self._columns(unlearned, fits), self._columns(retrained, fits)
            for name in after:
                members.setdefault(name, []).append(after[name][here])
                others.setdefault(name, []).append(after[name][bystanders] if "privacy" in name else never[name][here])
        told: dict[str, float] = {}
        for name, hits in members.items():
            inside, outside = np.concatenate(hits), np.concatenate(others[name])
            roc = Roc.of(inside, outside)
            told[f"shadow_auc_{name}"] = roc.auc
            told[f"shadow_accuracy_{name}"] = (float((inside > 0.5).mean()) + float((outside <= 0.5).mean())) / 2
            if (rate := roc.tpr_at(0.01)).value is not None:
                told[f"shadow_tpr_at_1_percent_fpr_{name}"] = rate.value
        return told

    def _columns(self, scores: FloatArray, fits: "dict[str, Fit]") -> dict[str, FloatArray]:
        """Every posterior of every example, in [0, 1]; the deciding one is `leakage`."""
        log = {name: fit.log_densities(scores) for name, fit in fits.items()}
        columns: dict[str, FloatArray] = {}
        for each, prefix in ((0, ""), (1, "population_")):
            unlearned, untouched, retrained, bystander = (log[kind][each] for kind in KINDS)
            columns[f"{prefix}efficacy"] = special.expit(unlearned - retrained)
            columns[f"{prefix}privacy"] = special.expit(unlearned - bystander)
            if not each:
                inside = np.logaddexp(unlearned, untouched) - math.log(2) if self.untouched else unlearned
                columns["leakage"] = special.expit(inside - retrained)
        return columns

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Asks the model for the logits of all units once; nothing is drawn."""
        assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
        task, data = prepared.examples, prepared.data
        retain = task.retain.take(np.array(data["retain"], dtype=np.int64))
        shown = Examples.joined([task.forget, retain])
        fits = {name: Fit.read(plain) for name, plain in data["fits"].items()}
        columns = self._columns(margins(model.logits(shown), shown.labels), fits)
        leakage = columns.pop("leakage")
        count = len(task.forget)
        return Measurement(
            units=shown.ids,
            clusters=shown.clusters,
            sets=("forget",) * count + ("retain",) * len(retain),
            leakage=tuple(leakage.tolist()),
            scores={name: tuple(column.tolist()) for name, column in columns.items()},
            facets={"null": ("efficacy", "privacy")},
            summaries={
                "called_trained_on": float((leakage[:count] > 0.5).mean()),
                **{f"called_unlearned_{name}": float((column[:count] > 0.5).mean()) for name, column in columns.items()},
                **data["power"],
            },
            notes=tuple(data["notes"]),
        )


def forget_subsets(rows: BoolArray, units: ArrayLike, size: int, minimum: int, rng: np.random.Generator) -> BoolArray:
    """Which examples each shadow model is to unlearn: about `size`, and every unit by equally many models.

    Each unit is ranked down the models that were trained on it by random numbers, and unlearned by the first ones. A model that
    would have nothing to unlearn gets one of its other examples.

    Args:
        rows: Which model was trained on which example [K, N].
        units: Places of the examples that are scored [c].
        size: How many examples the audit's forget set has.
        minimum: Least number of models that unlearn a unit.
        rng: Draws.

    Returns:
        [K, N], within `rows`.

    Raises:
        UsageError: There are too few models; the message says how many it takes.
    """
    places = np.asarray(units, dtype=np.int64)
    inside = np.asarray(rows, dtype=bool)[:, places]
    there = inside.sum(0)
    wanted = len(rows) * size // len(places)
    if min(wanted, int(there.min())) < minimum:
        needed = max(2 * minimum, math.ceil(minimum * len(places) / size))
        raise UsageError(
            f"u_lira: with {len(rows)} shadow models some of the {len(places)} scored examples are unlearned by "
            f"{min(wanted, int(there.min()))} only, and a distribution takes {minimum}: train {needed} shadow "
            "models (shadows.count), or score fewer retain_examples"
        )
    keys = np.where(inside, rng.random(inside.shape), np.inf)
    ranks = keys.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    subsets = np.zeros(rows.shape, dtype=bool)
    subsets[:, places] = inside & (ranks < np.minimum(wanted, there))
    for model in np.flatnonzero(~subsets.any(1)):
        subsets[model, rng.choice(np.flatnonzero(rows[model]))] = True
    return subsets


@dataclass(frozen=True)
class Fit:
    """What margins are expected under models of one kind.

    Attributes:
        each: Gaussians of each example.
        all: One Gaussian for all examples together: the population attacker's.
    """

    each: Gaussians
    all: Gaussians

    def log_densities(self, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Log densities of one model's margins [n], by each example's own Gaussian and by the one for all."""
        column = np.asarray(scores, dtype=np.float64)[:, None]
        return self.each.log_density(column)[:, 0], self.all.log_density(column)[:, 0]

    def plain(self) -> dict[str, list[float]]:
        """As JSON holds it."""
        parts = {"each": self.each, "all": self.all}
        return {
            f"{name}_{kind}": getattr(part, kind)[..., 0].tolist() if kind != "models" else part.models.tolist()
            for name, part in parts.items()
            for kind in ("centre", "spread", "models")
        }

    @classmethod
    def read(cls, plain: dict[str, list[float]]) -> Self:
        """From what JSON held."""
        return cls(
            *(
                Gaussians(
                    np.array(plain[f"{name}_centre"])[:, None],
                    np.array(plain[f"{name}_spread"])[:, None],
                    np.array(plain[f"{name}_models"], dtype=np.int64),
                )
                for name in ("each", "all")
            )
        )


@dataclass(frozen=True)
class Shadows:
    """Margins of the units under all shadow models.

    Attributes:
        trained: Before unlearning [K, n].
        unlearned: After it [K, n].
        retrained: Of the models retrained without what was unlearned [K, n].
        trained_on: Which model was trained on which unit [K, n].
        forgotten: Which model unlearned which unit [K, n].
    """

    trained: FloatArray
    unlearned: FloatArray
    retrained: FloatArray
    trained_on: BoolArray
    forgotten: BoolArray

    @property
    def fewest(self) -> int:
        """The least number of models that a Gaussian is fitted to."""
        return min(int(chosen.sum(0).min()) for _, chosen in self._kinds())

    def without(self, shadow: int) -> "Shadows":
        """The same but for one shadow."""
        others = np.arange(len(self.trained)) != shadow
        return Shadows(
            self.trained[others],
            self.unlearned[others],
            self.retrained[others],
            self.trained_on[others],
            self.forgotten[others],
        )

    def _kinds(self) -> tuple[tuple[FloatArray, BoolArray], ...]:
        """For each of `KINDS`: margins, and which models count for which unit."""
        return (
            (self.unlearned, self.forgotten),
            (self.trained, self.trained_on),
            (self.retrained, ~self.trained_on | self.forgotten),
            (self.unlearned, ~self.trained_on),
        )

    def fitted(self, spread: Spread) -> dict[str, Fit]:
        """The distributions of each kind of model, with medians as centres."""
        fits = {}
        for name, (scores, chosen) in zip(KINDS, self._kinds(), strict=True):
            whole = scores[chosen]
            one = Gaussians(np.array([[whole.mean()]]), np.array([[max(whole.std(), SMALLEST_SPREAD)]]), np.array([whole.size]))
            fits[name] = Fit(fit_gaussians(scores[:, :, None], chosen, spread=spread), one)
        return fits
