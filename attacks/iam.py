"""IAM: how far is each example unlearned, on the way from the original, which fits it, to a model that never saw it?"""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators import interpolated, relative_membership
from muaudit.estimators.interpolated import completeness
from muaudit.examples import Examples
from muaudit.models import Classifies, Model
from muaudit.scored import Scored, draw_retain

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Iam(Attack):
    """Places the model's confidence in each example between the original's and that of models that never saw the example.

    Signals between the two are interpolated, each the mean of a Gumbel distribution; how many of them the model's own signal
    exceeds is the paper's score. It is put on a scale where the original stands at 0 and a model that never saw the example at
    1: the unlearning completeness. Leakage is one minus it, cut to [0, 1]; an example that the original does not fit any better
    than models that never saw it has nothing to unlearn, and counts as unlearned. An honest retrain scatters about
    completeness 1 to both sides, so its mean leakage lies above 0; the gap to the references takes that off.

    The verdict is two-sided: a target whose leakage lies far below the references' fits its forget set worse than a model that
    never saw it, and gives it away too. But what lies beyond "never seen" is cut off, so that side shows no more than the
    references' own scatter leaves room for. How far a model lies beyond is the score `over_unlearned`, up to once the whole
    way, and the share of such examples stands in the summaries, about one half for an honest retrain; neither decides.

    Models that never saw an example are the audit's shadow models that were not trained on it, as many for every example as
    the poorest has, and the reference that is set aside for this attack; one of either is enough. The original is the audit's.

    Attributes:
        below_one: The bounded Gumbel map's epsilon_1: how near to certainty differences still count. The authors' experiments
            on images take .01, those on texts .1.
        above_zero: Its epsilon_2: how near to impossibility.
        retain_examples: At most so many retain examples are scored, drawn from the plan's seed; only with shadow models.
    """

    name: ClassVar = "iam"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Measures each forgotten example's unlearning completeness between the original and one model without it."
    )
    source: ClassVar = "Wang et al. 2025, IAM: sample-level unlearning completeness (arXiv 2506.06112, USENIX Security)"
    access: ClassVar = "logits"
    needs: ClassVar = (Classifies,)
    sided: ClassVar = "two"
    calibrates: ClassVar = True
    cost: ClassVar = "one forward pass an example; needs the original and one model that never saw the forget set"

    below_one: Annotated[float, Field(gt=0)] = 0.01
    above_zero: Annotated[float, Field(gt=0)] = 1e-5
    retain_examples: Annotated[int, Field(ge=0)] = 200

    def prepare(self, bench: Bench) -> Prepared:
        """Takes the signals of the original and of models that never saw the examples."""
        if bench.open_original is None:
            raise NotApplicable("iam places models between the original and one that never saw the forget set; give [original]")
        retain, notes = draw_retain(bench.examples, self.retain_examples, bench.rng, ranked=False)
        cohort = None if bench.open_shadows is None else bench.shadows()
        if cohort is None and bench.open_calibration is None:
            raise NotApplicable(
                "iam needs a model that never saw the forget set: add [recipe] and [shadows], or a second reference"
            )
        if cohort is None and retain:
            notes = [
                "collateral damage is not measured: no model here is known not to have seen the retain examples; add [shadows]"
            ]
            retain = []
        scored = Scored.of(bench.examples, retain)
        original = self._signals(_logits(bench.open_original(), scored.examples), scored)
        spare = (
            None
            if bench.open_calibration is None
            else self._signals(_logits(bench.open_calibration(), scored.examples), scored)
        )
        sides = {}
        for name, places in _sides(scored):
            never = [] if spare is None or name == "retain" else [spare[None, places]]
            if cohort is not None:
                member = scored.trained_on(cohort)
                if not never and (wrong := scored.one_sided(member, inside=False)):
                    raise UsageError(wrong)
                never.append(_without(self._signals(cohort.logits(scored.examples), scored)[:, places], member[:, places]))
            unseen = np.concatenate(never)
            sides[name] = {"original": original[places].tolist(), "unseen": unseen.tolist()}
            notes.append(f"{len(unseen)} models without each {name} example, none of them audited here, mark completeness 1")
        return Prepared(data={"retain": retain, "sides": sides, "notes": notes})

    def _signals(self, logits: FloatArray, scored: Scored) -> FloatArray:
        """The bounded Gumbel signals [..., n]."""
        probabilities = relative_membership.probability(logits, scored.examples.labels)
        return interpolated.bounded_gumbel(probabilities, below_one=self.below_one, above_zero=self.above_zero)

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Places every example; `rng` is not needed, since nothing here is drawn."""
        scored = Scored.of(prepared.examples, prepared.data["retain"])
        signals, found = self._signals(_logits(model, scored.examples), scored), {}
        for name, places in _sides(scored):
            side = prepared.data["sides"][name]
            found[name] = completeness(np.array(side["original"]), np.array(side["unseen"]), signals[places])
        both, forget = list(found.values()), found["forget"]
        columns = {
            "over_unlearned": np.concatenate([np.minimum(one.over_unlearned, 1.0) for one in both]),
            "published": np.concatenate([one.published for one in both]),
        }
        known = int(forget.informative.sum())
        notes = (
            [
                f"{len(forget.published) - known} of {len(forget.published)} forget examples count as unlearned: the original "
                "fits them no better than models that never saw them"
            ]
            if known < len(forget.published)
            else []
        )
        return Measurement(
            units=scored.examples.ids[: scored.units],
            clusters=scored.examples.clusters[: scored.units],
            sets=("forget",) * scored.forget + ("retain",) * scored.retain,
            leakage=tuple(np.concatenate([1 - one.completeness for one in both]).tolist()),
            scores={name: tuple(column.tolist()) for name, column in columns.items()},
            summaries={
                "completeness": float(forget.completeness.mean()),
                "over_unlearned_share": float((forget.position > 1).mean()),
                "informative_share": known / len(forget.published),
            },
            powerless=None if known else "the original fits no forget example better than models that never saw it do",
            notes=(*prepared.data["notes"], *notes),
        )


def _sides(scored: Scored) -> list[tuple[str, slice]]:
    """The sets whose signals are placed together, each by itself: the paper's spread is over the examples of a batch."""
    sides = [("forget", slice(0, scored.forget)), ("retain", slice(scored.forget, scored.units))]
    return sides[: 1 + bool(scored.retain)]


def _logits(model: Model, examples: Examples) -> FloatArray:
    assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
    return model.logits(examples)


def _without(signals: FloatArray, member: BoolArray) -> FloatArray:
    """Signals [S, n] of the first S models that were not trained on each example; S is what the poorest example has."""
    fewest = int((~member).sum(0).min())
    first = np.argsort(member, axis=0, kind="stable")[:fewest]
    return np.take_along_axis(signals, first, axis=0)
