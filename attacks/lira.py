"""LiRA: is a model's margin on an example rather that of models trained on it, or that of models that never saw it?"""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.augmentation import Augmentation, augmented, queries
from muaudit.errors import UsageError
from muaudit.estimators import likelihood_ratio
from muaudit.estimators.likelihood_ratio import Centre, Gaussians, Hypotheses, Spread
from muaudit.estimators.roc_summary import best_threshold
from muaudit.models import Classifies, ClassifiesInputs, Model
from muaudit.scored import Scored, draw_retain

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Mode = Literal["online", "offline_one_sided", "offline_two_tailed"]

MODES = {
    "online": likelihood_ratio.online,
    "offline_one_sided": likelihood_ratio.offline_one_sided,
    "offline_two_tailed": likelihood_ratio.offline_two_tailed,
}

FEW = 64
"""With at most so many shadow models, half of them on either side of an example, `auto` pools the variance."""

JUDGES = 32
"""At most so many shadow models are attacked with the help of the others to choose a threshold."""


class Lira(Attack):
    """Asks how likely the model's margin on an example is under shadow models trained on it, and under those that were not.

    The margin is log p_y - log(1 - p_y), exact. To each example and query, normal distributions are fitted over the shadow
    models on either side; the score is their log likelihood ratio (online), or says how far the margin lies above (offline, one
    side: the paper's) or away from (two tails: the published code's) what models give that never saw the example. The audited
    models are not among the shadow models. Only the fitted numbers are kept.

    The leakage of a unit is the rank of its score among the holdout examples' scores on the same model, ties counted half; its
    mean over the forget set is the AUC, near 0.5 for an honest retrain whatever its confidence as a whole. The other modes
    stand beside it where the shadow models allow them, and the plain margin (the global loss threshold). True positive rates
    are at a false positive rate of at most 0.1 % and 1 %. The calibrated rates are at a threshold chosen on shadow models,
    each attacked with the help of the others, and owe nothing to the audited model.

    Attributes:
        mode: Which score decides. `online` needs every example in and out of some shadow models, the others only out.
        variance: `per_example` as in the paper; `fixed` is one for all, pooled about the examples' own centres; `auto` is fixed
            up to 64 shadow models: with 32 a side, examples' own variances still turn some scores of half-forgotten examples
            round.
        centre: Of each distribution: the published code's median, or the mean.
        augmentation: What is done to images: each example is asked about as it is, mirrored, shifted, or both, and its score is
            the mean over the queries. Recorded outputs have no other query than the example itself.
        shift: Pixels each way.
        retain_examples: At most so many retain examples are scored, drawn from the plan's seed.
    """

    name: ClassVar = "lira"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Tells from shadow models whether each forgotten example was trained on: the strongest membership attack."
    )
    source: ClassVar = (
        "Carlini et al. 2022, Membership Inference Attacks From First Principles (arXiv 2112.03570), and its code, "
        "mi_lira_2021; pooled variance as in TensorFlow Privacy's advanced_mia"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (Classifies,)
    sided: ClassVar = "two"
    cost: ClassVar = "one forward pass an example and query; the audit's shadow models are trained once for all attacks"

    mode: Mode = "online"
    variance: Literal["auto", "fixed", "per_example"] = "auto"
    centre: Centre = "median"
    augmentation: Augmentation = "none"
    shift: Annotated[int, Field(ge=0)] = 0
    retain_examples: Annotated[int, Field(ge=0)] = 200

    @model_validator(mode="after")
    def _shifted(self) -> Self:
        try:
            queries(self.augmentation, self.shift)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    def prepare(self, bench: Bench) -> Prepared:
        """Asks the shadow models about every example and query, fits both hypotheses, and chooses the threshold."""
        retain, notes = draw_retain(bench.examples, self.retain_examples, bench.rng)
        scored, cohort = Scored.of(bench.examples, retain), bench.shadows()
        member = scored.trained_on(cohort)
        if wrong := scored.one_sided(member, inside=False):
            raise UsageError(wrong)
        if wrong := scored.one_sided(member, inside=True):
            if self.mode == "online":
                raise UsageError(f"{wrong}; or choose an offline mode")
            notes.append(f"not scored online: {wrong}")
        queried = self._queried(scored, bench.capabilities, notes, recorded=cohort.recorded)
        labels = scored.examples.labels
        margins = [likelihood_ratio.margins(cohort.logits(scored.examples), labels)]
        margins += [likelihood_ratio.margins(cohort.logits_of(inputs), labels) for inputs in self._changed(scored, queried)]
        scores = np.stack(margins, axis=-1)
        fit = self._fitted(scores, member, len(member), online=wrong is None)
        threshold = self._threshold(scores, member)
        notes += self._told(member, threshold)
        return Prepared(
            data={
                "retain": retain,
                "queried": queried,
                "inside": None if fit.inside is None else _plain(fit.inside),
                "outside": _plain(fit.outside),
                "threshold": threshold,
                "notes": notes,
            }
        )

    def _queried(self, scored: Scored, capabilities: frozenset[str], notes: list[str], *, recorded: bool) -> bool:
        """Whether the examples are augmented, which takes models that can be shown other inputs."""
        if self.augmentation == "none":
            return False
        if recorded or "ClassifiesInputs" not in capabilities or scored.examples.inputs is None:
            notes.append(
                f"each example was asked about as it is, without {self.augmentation}: of a model or shadow model of this audit "
                "only the outputs on the task's examples are known"
            )
            return False
        return True

    def _changed(self, scored: Scored, queried: bool) -> list[NDArray[np.float32]]:
        """The augmented inputs, beyond the examples as they are."""
        if not queried:
            return []
        return list(augmented(scored.examples.pictured(), self.augmentation, self.shift))[1:]

    def _spread(self, models: int) -> Spread:
        """How variances are fitted with so many shadow models."""
        if self.variance == "auto":
            return "fixed" if models <= FEW else "per_example"
        return self.variance

    def _fitted(self, scores: FloatArray, member: BoolArray, models: int, *, online: bool) -> Hypotheses:
        """Both hypotheses, or only that of non-members."""
        inside = self._gaussians(scores, member, models) if online else None
        return Hypotheses(inside, self._gaussians(scores, ~member, models))

    def _gaussians(self, scores: FloatArray, chosen: BoolArray, models: int) -> Gaussians:
        counts, spread = chosen.sum(0), self._spread(models)
        if spread == "fixed" and counts.max() == 1:
            # One model an example leaves no residual to pool; the raw scores' variance, the published code's, needs none.
            centre = np.where(chosen[:, :, None], scores, 0.0).sum(0)
            deviation = max(float(centre.std()), likelihood_ratio.SMALLEST_SPREAD)
            return Gaussians(centre, np.full_like(centre, deviation), counts)
        return likelihood_ratio.fit_gaussians(scores, chosen, centre=self.centre, spread=spread)

    def _threshold(self, scores: FloatArray, member: BoolArray) -> float | None:
        """The best threshold for shadow models, each attacked with the help of the others; None where they are too few."""
        models, inside, outside = len(member), [], []
        fewest = 2 if self._spread(models) == "per_example" else 1
        for judged in np.unique(np.linspace(0, models - 1, min(models, JUDGES)).round().astype(int)):
            others = np.delete(np.arange(models), judged)
            rest = member[others]
            usable = (~rest).sum(0) >= fewest
            if self.mode == "online":
                usable &= rest.sum(0) >= fewest
            if usable.any():
                fit = self._fitted(scores[others][:, usable], rest[:, usable], models, online=self.mode == "online")
                found = MODES[self.mode](scores[judged][usable], fit)
                inside.append(found[member[judged][usable]])
                outside.append(found[~member[judged][usable]])
        if not sum(map(len, inside)) or not sum(map(len, outside)):
            return None
        return best_threshold(np.concatenate(inside), np.concatenate(outside))

    def _told(self, member: BoolArray, threshold: float | None) -> list[str]:
        """What a reader must know of the shadow models."""
        models, spread = len(member), self._spread(len(member))
        fewest = int(min(member.sum(0).min(), (~member).sum(0).min()))
        notes = [
            f"{models} shadow models, none of them audited here, and at least {fewest} on either side of each example; "
            + ("variance pooled over all examples" if spread == "fixed" else "a variance of each example's own")
        ]
        if threshold is None:
            notes.append(
                "no calibrated rates: the shadow models are too few to choose a threshold on one by means of the others"
            )
        return notes

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores every example by the fitted distributions; `rng` is not needed, since nothing here is drawn."""
        data = prepared.data
        scored = Scored.of(prepared.examples, data["retain"])
        margins = self._margins(model, scored, data["queried"])
        fit = Hypotheses(None if data["inside"] is None else _gaussians(data["inside"]), _gaussians(data["outside"]))
        columns = {name: score(margins, fit) for name, score in MODES.items() if fit.inside is not None or name != "online"}
        columns["global_margin"] = margins[:, 0]
        return scored.measurement(columns, self.mode, threshold=data["threshold"], notes=data["notes"])

    def _margins(self, model: Model, scored: Scored, queried: bool) -> FloatArray:
        """Margins [n, Q] on every query, the example itself first."""
        assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
        logits = [model.logits(scored.examples)]
        if queried:
            assert isinstance(model, ClassifiesInputs)  # noqa: S101 - `prepare` saw that every model does
            logits += [model.logits_of(inputs) for inputs in self._changed(scored, queried)]
        return np.stack([likelihood_ratio.margins(one, scored.examples.labels) for one in logits], axis=-1)


def _plain(fitted: Gaussians) -> dict[str, Any]:
    """Numbers that JSON holds."""
    return {"centre": fitted.centre.tolist(), "spread": fitted.spread.tolist(), "models": fitted.models.tolist()}


def _gaussians(stored: dict[str, Any]) -> Gaussians:
    return Gaussians(np.array(stored["centre"]), np.array(stored["spread"]), np.array(stored["models"]))
