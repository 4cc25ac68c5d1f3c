"""RMIA: does the model favour an example, beyond what reference models do, more than it favours examples it never saw?"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import UsageError
from muaudit.estimators import relative_membership
from muaudit.estimators.relative_membership import Signals
from muaudit.models import Classifies, Model
from muaudit.scored import Scored, draw_retain

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

USUAL_OFFSET = 0.3
"""What the authors' code takes for the offset a where it is not tuned."""

JUDGES = 8
"""At most so many shadow models are attacked with the help of the others to tune the offset."""


class Rmia(Attack):
    """Divides the true label's probability by what reference models give, and ranks the ratio among those of a population.

    The references are the audit's shadow models; one that never saw an example is enough for it (offline), and with one on
    either side the online score can decide. The population is the holdout set, without the example itself where it is one; it
    is treated as the examples in question are, each by the shadow models that fit its side.

    The raw score of an example is the share of the population whose ratio its own exceeds by more than gamma. The leakage
    of a unit is the rank of that score among the holdout examples' scores on the same model, ties counted half: with gamma
    other than 1 the raw score of a model that saw neither is not 1/2 but depends on how far its ratios spread, and the rank's
    mean is the AUC. The raw score stands beside it, so does the rank of the score that does not decide.

    Attributes:
        mode: Which score decides: `offline` from models that were not trained on an example, `online` from both sides.
        gamma: How many times a ratio must exceed another one: the authors' code 1, their experiments 2.
        temperature: Divides the logits: the authors' code 1, their experiments 2.
        signal: Probability by softmax, or by the soft-margin Taylor softmax of the authors' experiments.
        offset: The offline score's a, in [0, 1], by which models that saw an example are guessed from those that did not;
            "tuned" takes what tells best on shadow models, each attacked with the help of the others (0.3 where they are too
            few).
        trim: Share of the references that is cut at each end before averaging: the authors' code 0, their experiments 0.2.
        retain_examples: At most so many retain examples are scored, drawn from the plan's seed.
    """

    name: ClassVar = "rmia"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Ranks each forgotten example's likelihood ratio among holdout examples'; strong with few shadow models."
    )
    source: ClassVar = (
        "Zarifzadeh et al. 2024, Low-Cost High-Power Membership Inference Attacks (arXiv 2312.03262); ML Privacy Meter"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (Classifies,)
    sided: ClassVar = "two"
    cost: ClassVar = "one forward pass an example; the audit's shadow models are trained once for all attacks"

    mode: Literal["offline", "online"] = "offline"
    gamma: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    signal: Literal["softmax", "taylor"] = "softmax"
    offset: Annotated[float, Field(ge=0, le=1)] | Literal["tuned"] = "tuned"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    retain_examples: Annotated[int, Field(ge=0)] = 200

    def prepare(self, bench: Bench) -> Prepared:
        """Asks the shadow models what probability each example has on average, and tunes the offset on them."""
        retain, notes = draw_retain(bench.examples, self.retain_examples, bench.rng)
        scored, cohort = Scored.of(bench.examples, retain), bench.shadows()
        member = scored.trained_on(cohort)
        if wrong := scored.one_sided(member, inside=False):
            raise UsageError(wrong)
        if wrong := scored.one_sided(member, inside=True):
            if self.mode == "online":
                raise UsageError(f"{wrong}; or choose the offline mode")
            notes.append(f"not scored online: {wrong}")
        signals = self._signals(cohort.logits(scored.examples), scored.examples.labels)
        offset = self._offset(signals, member, notes)
        outside = relative_membership.trimmed_mean(signals, ~member, self.trim)
        expected = {"offline": relative_membership.unconditional(outside, offset).tolist()}
        if wrong is None:
            inside = relative_membership.trimmed_mean(signals, member, self.trim)
            expected["online"] = ((inside + outside) / 2).tolist()
        fewest = int((~member).sum(0).min())
        notes.append(
            f"{len(member)} shadow models are the references, none of them audited here; every example has at least {fewest} "
            f"that never saw it; offset {offset:g}"
        )
        return Prepared(data={"retain": retain, "expected": expected, "notes": notes})

    def _signals(self, logits: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
        """Probabilities of the true label [..., n]."""
        of = relative_membership.probability if self.signal == "softmax" else relative_membership.taylor_probability
        return of(logits, labels, temperature=self.temperature)

    def _offset(self, signals: FloatArray, member: BoolArray, notes: list[str]) -> float:
        """The offset: given, or the mean of what is best for each shadow model when the others are its references."""
        if self.offset != "tuned":
            return self.offset
        found = []
        for judged in range(min(len(member), JUDGES)):
            others = np.delete(np.arange(len(member)), judged)
            usable = (~member[others]).any(0)
            trained = member[judged] & usable
            population = ~member[judged] & usable
            if trained.any() and population.any():
                attacked = Signals(
                    target=signals[judged][usable],
                    references=signals[others][:, usable],
                    population=signals[judged][population],
                    population_references=signals[others][:, population],
                    member=member[others][:, usable],
                    population_member=member[others][:, population],
                )
                found.append(relative_membership.tuned_offset(attacked, trained[usable], gamma=self.gamma, trim=self.trim))
        if not found:
            notes.append(
                f"offset {USUAL_OFFSET} was not tuned: the shadow models are too few to attack one by means of the others"
            )
            return USUAL_OFFSET
        return float(np.mean(found))

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Ranks every example's ratio; `rng` is not needed, since nothing here is drawn."""
        assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
        scored = Scored.of(prepared.examples, prepared.data["retain"])
        signals = self._signals(model.logits(scored.examples), scored.examples.labels)
        columns = {
            mode: self._dominating(relative_membership.ratio(signals, np.array(expected)), scored.holdout)
            for mode, expected in prepared.data["expected"].items()
        }
        return scored.measurement(
            columns, self.mode, plain={f"{self.mode}_score": columns[self.mode]}, notes=prepared.data["notes"]
        )

    def _dominating(self, ratios: FloatArray, holdout: BoolArray) -> FloatArray:
        """The share of the population that each example dominates; a holdout example is left out of its own population."""
        population = ratios[holdout]
        share = relative_membership.dominated(ratios, population, self.gamma)
        if len(population) > 1:
            itself = population > population * self.gamma
            share[holdout] = (share[holdout] * len(population) - itself) / (len(population) - 1)
        return share
