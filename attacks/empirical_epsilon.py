"""Empirical epsilon: does membership show more than a differential privacy claim allows?"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import ModelError, NotApplicable
from muaudit.estimators import likelihood_ratio, membership
from muaudit.estimators.claims import STRATEGIES, MembershipScores, Strategy, bound, fair
from muaudit.estimators.likelihood_ratio import Gaussians, Hypotheses
from muaudit.estimators.privacy_bounds import Accountant, claimed_epsilon, group_claim
from muaudit.examples import Examples, LabelledTask
from muaudit.models import Classifies, Model
from muaudit.results import ClaimTest, Frozen

FloatArray = NDArray[np.float64]

POOLED_BELOW = 64
"""Shadow models below which LiRA's spread is pooled over all examples, as its authors advise."""


class Stated(Frozen):
    """A claim as the vendor states it.

    Attributes:
        epsilon: At most so much, above 0.
        delta: With this delta.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Accounted(Frozen):
    """A claim that an accountant of Opacus computes from how a model was trained by DP-SGD with Poisson sampling.

    Attributes:
        accountant: `prv` or `rdp`; `gdp` can understate epsilon, so it is shown and not tested.
        noise_multiplier: Noise over clipping norm.
        sample_rate: Chance of each example to be in a batch.
        steps: Optimiser steps.
        delta: The delta that epsilon is computed for.
    """

    accountant: Accountant = "prv"
    noise_multiplier: Annotated[float, Field(gt=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]


def _kind(claim: Any) -> str:  # noqa: ANN401 - whatever stands in audit.toml
    """Which kind of claim is meant, so that an error names what is wrong with that one."""
    given = claim if isinstance(claim, Mapping) else getattr(claim, "__dict__", {})
    return "accounted" if {"accountant", "noise_multiplier", "sample_rate", "steps"} & set(given) else "stated"


Claimed = Annotated[Annotated[Stated, Tag("stated")] | Annotated[Accounted, Tag("accounted")], Discriminator(_kind)]


class EmpiricalEpsilon(Attack):
    """Bounds epsilon from below by how well the forget set's members are told from examples that no model saw.

    (epsilon, delta)-differential privacy limits every membership attack: TPR <= e^epsilon FPR + delta, and the same of the two
    other rates. So an attack's rates bound epsilon from below, and a bound above the claim refutes it: the finding on the claim
    fails. A claim that is not refuted is not proven. Where so few examples are there that even perfect separation could not
    refute the claim, that finding is inconclusive; likewise where it refutes a reference, which has nothing to hide.

    The leakage of a unit is its score's rank among the non-members' on the same model, as with `membership`: it says whether
    membership shows at all, the claim's finding whether it shows more than claimed.

    Where examples carry the attribute `canary` ("in" or "out", as a fair coin of its own decided whether each was trained on),
    only canaries are scored: forget ones that are in, holdout ones that are out. Mislabelled canaries are the sharpest, since
    nothing but memory predicts their labels.

    Attributes:
        claim: What is claimed: `{epsilon, delta}` as stated, or `{accountant, noise_multiplier, sample_rate, steps, delta}`.
            Without one, only bounds are shown.
        game: Whose privacy the claim is about. `training`: an example's that was in the audited model's training data, against
            one that was not; the forget set must have been in it. `unlearning`: an example's that was trained on and then
            forgotten, against one never seen. A guarantee of one says nothing about the other.
        score: `margin`, the logit of the true label's probability; or `lira`, the likelihood ratio under the audit's shadow
            models (online where each example is in and out of some, otherwise the paper's one-sided offline score).
        strategy: What the bound that decides is made by; the others stand in the summaries. `split`: a threshold chosen on
            half of the clusters, judged on the other half. `multi_split`: the median over 100 halvings of the examples.
            `bonferroni`: all thresholds, corrected for their number. `one_run`: Steinke et al.'s audit, which alone needs no
            independence of the examples, but takes canaries. `gaussian_dp`: tighter, and true of Gaussian mechanisms alone.
        guesses: For `one_run`: shares of the canaries that are guessed, fixed in advance; each is tested at its part of alpha.
        alpha: Error rate of the bound. By default that of one side of the standard policy's interval, so that the bound exceeds
            the claim exactly where the finding fails (but for the correction for the number of claims).
        delta: Of the bounds, where nothing is claimed.
    """

    name: ClassVar = "empirical_epsilon"
    version: ClassVar = "1"
    summary: ClassVar = "Bounds epsilon from below by a membership attack, and tests a differential privacy claim against it."
    source: ClassVar = (
        "bounds: Jagielski et al. 2020 (arXiv 2006.07709), Nasr et al. 2021 (arXiv 2101.04535); thresholds: jax-privacy; "
        "Gaussian: Nasr et al. 2023 (arXiv 2302.07956); one run: Steinke et al. 2023 (arXiv 2305.08846, theorem 5.2); "
        "likelihood ratio: Carlini et al. 2022 (arXiv 2112.03570); accountants: Opacus (Mironov 2017, Gopi et al. 2021)"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (Classifies,)
    sided: ClassVar = "two"
    cost: ClassVar = "one forward pass an example; with lira one more a shadow model"

    claim: Claimed | None = None
    game: Literal["training", "unlearning"] = "unlearning"
    score: Literal["margin", "lira"] = "margin"
    strategy: Strategy = "split"
    guesses: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.1, 0.3, 1.0)
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.025
    delta: Annotated[float, Field(ge=0, lt=1)] = 1e-5

    def prepare(self, bench: Bench) -> Prepared:
        """Picks members and non-members, halves them by cluster, computes the claim, and fits LiRA to the shadow models."""
        task = bench.examples
        if task.outputs != "classes":
            raise NotApplicable("this attack is on classifiers, and the task's labels are numbers to predict")
        places, canaries, notes = _sides(task)
        if self.strategy == "one_run" and not canaries:
            raise NotApplicable(
                'strategy one_run needs canaries, each put in or left out by its own fair coin: mark them "in" (forget) and '
                '"out" (holdout) in the attribute `canary`'
            )
        if self.strategy == "gaussian_dp" and not (self.delta if self.claim is None else self.claim.delta):
            raise NotApplicable("strategy gaussian_dp needs a delta above 0: a Gaussian mechanism has no epsilon without one")
        sides = [part.take(rows) for part, rows in zip((task.forget, task.holdout), places, strict=True)]
        data: dict[str, Any] = {
            "members": places[0].tolist(),
            "non_members": places[1].tolist(),
            "choosing": [_half(side.clusters, bench.rng).tolist() for side in sides],
            "seed": int(bench.rng.integers(2**31)),
            "canaries": canaries,
            "claim": None,
        }
        if self.claim is not None:
            data["claim"], said = self._claimed(len(task.forget))
            notes += said
        if self.score == "lira":
            data["lira"], how = _fitted(bench, Examples.joined(sides))
            notes.append(how)
        if self.strategy != "one_run":
            notes.append("the bound takes the examples of one model for independent trials; one_run, on canaries, does not")
        return Prepared(data=data | {"notes": notes})

    def _claimed(self, forgotten: int) -> tuple[dict[str, Any] | None, list[str]]:
        """The claim that is tested, or None where it is no ceiling; and what is to be said of it."""
        claim = self.claim
        assert claim is not None  # noqa: S101 - asked only with one
        if isinstance(claim, Stated):
            epsilon, source, notes = claim.epsilon, "stated by the vendor", []
        else:
            made = claimed_epsilon(**claim.model_dump())
            epsilon, notes = made.epsilon, [made.warning] if made.warning else []
            if not made.ceiling:
                notes[-1] += f"; the claim of epsilon {epsilon:.2f} is not tested: take prv or rdp"
                return None, notes
            source = (
                f"computed by Opacus's {claim.accountant} accountant from noise {claim.noise_multiplier:g}, sampling rate "
                f"{claim.sample_rate:g} and {claim.steps} steps, with Poisson sampling taken for granted"
            )
        if self.game == "unlearning":
            group = group_claim(epsilon, claim.delta, forgotten)
            notes.append(
                f"the claim is taken as one example's; for all {forgotten} forgotten together, group privacy leaves epsilon "
                f"{group.epsilon:.4g} at delta {group.delta:.2g}" + (", which says nothing" if group.delta >= 1 else "")
            )
        return {"epsilon": epsilon, "delta": claim.delta, "source": source}, notes

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores members and non-members in one pass; `rng` is not needed, since all draws were made in `prepare`."""
        data, task = prepared.data, prepared.examples
        parts = [task.forget.take(data["members"]), task.holdout.take(data["non_members"])]
        inside, outside = self._scores(model, parts, data.get("lira"))
        claim = data["claim"]
        scored = MembershipScores(
            inside,
            outside,
            choosing=(np.array(data["choosing"][0], dtype=bool), np.array(data["choosing"][1], dtype=bool)),
            delta=self.delta if claim is None else claim["delta"],
            alpha=self.alpha,
            guesses=self.guesses,
            seed=data["seed"],
        )
        return Measurement(
            units=parts[0].ids,
            clusters=parts[0].clusters,
            sets=("forget",) * len(parts[0]),
            leakage=tuple(membership.ranks(inside, outside).tolist()),
            summaries={"auc": membership.auc(inside, outside)} | self._bounds(scored, canaries=data["canaries"]),
            claim=None if claim is None else self._tested(scored, claim),
            notes=tuple(data["notes"]),
        )

    def _scores(self, model: Model, parts: Sequence[Examples], lira: dict[str, Any] | None) -> tuple[FloatArray, FloatArray]:
        """One score an example, of members and of non-members; larger for members."""
        assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
        examples = Examples.joined(parts)
        scores = likelihood_ratio.margins(model.logits(examples), examples.labels)
        if lira is not None:
            fit = _hypotheses(lira)
            ratio = likelihood_ratio.offline_one_sided if fit.inside is None else likelihood_ratio.online
            scores = ratio(scores[:, None], fit)
        return scores[: len(parts[0])], scores[len(parts[0]) :]

    def _bounds(self, scored: MembershipScores, *, canaries: bool) -> dict[str, float]:
        """The bounds by every strategy that can be had, and the largest that the deciding one could have shown."""
        known = [
            one for one in STRATEGIES if (canaries or one != "one_run") and (scored.delta > 0 or one != "gaussian_dp")
        ]  # fmt: skip
        shown = {f"epsilon_{one}": bound(one, scored).at(self.alpha) for one in known}
        return shown | {"epsilon_detectable": bound(self.strategy, scored).perfect(self.alpha)}

    def _tested(self, scored: MembershipScores, claim: dict[str, Any]) -> ClaimTest:
        shown, count = bound(self.strategy, scored), len(scored.members)
        training = "privacy of training: an example that was in the training data, or was not"
        unlearning = (
            f"privacy of unlearning: an example that was trained on and then forgotten with {count - 1} others, or never seen"
        )
        return ClaimTest(
            game=training if self.game == "training" else unlearning,
            source=claim["source"],
            epsilon=claim["epsilon"],
            delta=claim["delta"],
            lower_bound=shown.at(self.alpha),
            confidence=1 - self.alpha,
            p_value=shown.p_value(claim["epsilon"]),
            detectable=shown.perfect(self.alpha),
        )


def _sides(task: LabelledTask) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], bool, list[str]]:
    """Places of the members in the forget set and of the non-members in the holdout set; whether they are canaries; notes."""
    wanted = {"in": task.forget, "out": task.holdout}
    marks = {mark: np.array(part.attributes.get("canary", ("",) * len(part))) for mark, part in wanted.items()}
    if misplaced := sum(int((marks[mark] == other).sum()) for mark, other in (("in", "out"), ("out", "in"))):
        raise NotApplicable(
            f'{misplaced} canaries stand in the wrong set: those marked "in" belong to the forget set, "out" to the holdout set'
        )
    places = tuple(np.flatnonzero(marks[mark] == mark) for mark in wanted)
    heads, coins = len(places[0]), sum(map(len, places))
    notes: list[str] = []
    if coins:
        if not fair(heads, coins):
            raise NotApplicable(
                f"{heads} of {coins} canaries are in, which fair coins do not do: put each canary in by its own fair coin, and "
                "keep all that were left out in the holdout set"
            )
        if min(map(len, places)) < 2:
            raise NotApplicable("a bound of epsilon needs two canaries that are in and two that are out at least: make more")
        left = len(task.forget) + len(task.holdout) - coins
        notes = [f"scored on {coins} canaries, {heads} of them in" + (f"; {left} other examples are left out" if left else "")]
        return (places[0], places[1]), True, notes
    if min(len(task.forget), len(task.holdout)) < 2:
        raise NotApplicable("a bound of epsilon needs two forget and two holdout examples at least: give more in task.holdout")
    return (np.arange(len(task.forget)), np.arange(len(task.holdout))), False, notes


def _half(clusters: Sequence[str], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Half of the clusters, drawn, as a mask over their examples; of a single cluster, half of its examples."""
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        codes = np.arange(len(clusters))
    count = int(codes.max()) + 1
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: count // 2]] = True
    return chosen[codes]


def _fitted(bench: Bench, examples: Examples) -> tuple[dict[str, Any], str]:
    """LiRA's Gaussians of every example's margin under the shadow models, and which of its two scores they allow."""
    cohort = bench.shadows()
    place = {name: index for index, name in enumerate(cohort.ids)}
    if missing := [name for name in examples.ids if name not in place]:
        raise ModelError(
            f"the shadow models know nothing of example {missing[0]!r}: train them on this task's pool, or take score = margin"
        )
    rows = cohort.rows[:, [place[name] for name in examples.ids]]
    scores = likelihood_ratio.margins(cohort.logits(examples), examples.labels)[:, :, None]
    spread: Literal["per_example", "fixed"] = "per_example" if len(rows) >= POOLED_BELOW else "fixed"
    inside = bool(rows.any(0).all())
    if inside:
        fit = likelihood_ratio.fit_hypotheses(scores, rows, spread=spread)
    else:
        fit = Hypotheses(None, likelihood_ratio.fit_gaussians(scores, ~rows, spread=spread))
    said = "online" if inside else "offline and one-sided, since no shadow model was trained on some of the examples"
    return (
        {name: _plain(part) for name, part in (("inside", fit.inside), ("outside", fit.outside)) if part is not None},
        f"lira score, {said}: {len(rows)} shadow models, {'pooled' if spread == 'fixed' else 'per-example'} spread",
    )


def _plain(fit: Gaussians) -> dict[str, Any]:
    return {"centre": fit.centre.tolist(), "spread": fit.spread.tolist(), "models": fit.models.tolist()}


def _hypotheses(plain: dict[str, Any]) -> Hypotheses:
    """What `_plain` wrote."""
    inside, outside = (
        Gaussians(np.array(part["centre"]), np.array(part["spread"]), np.array(part["models"])) if part else None
        for part in (plain.get("inside"), plain["outside"])
    )
    assert outside is not None  # noqa: S101 - it was written
    return Hypotheses(inside, outside)
