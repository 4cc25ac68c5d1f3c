"""Worst case: the examples that a procedure forgets least, or the part of a claimed forget set that was forgotten least."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from muaudit import store
from muaudit.attack import Attack, Bench, Lineup, Measurement, Prepared
from muaudit.errors import EnvironmentFault, NotApplicable, UsageError
from muaudit.estimators import membership, worst_subset
from muaudit.estimators.likelihood_ratio import balanced_membership, margins
from muaudit.examples import Examples, LabelledTask
from muaudit.model_config import ModelConfig
from muaudit.models import Classifies, Model
from muaudit.results import Transcript
from muaudit.training import made

if TYPE_CHECKING:
    from muaudit.training.cohorts import Cohort, RecordedCohort
    from muaudit.training.shadows import Trainer

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class WorstCase(Attack):
    """Searches where forgetting is worst, and judges what it found on models that the search never saw.

    With a recipe and the vendor's procedure, it looks for the examples among all that the original was trained on (forget and
    retain set) that the procedure forgets least when asked to. Then everything is made anew from other seeds: an original, what
    the procedure makes of it when those very examples are to be forgotten, and references retrained without those very
    examples. The leakage is the probability of the true label. Raw accuracy would mislead: what a procedure seems not to forget
    is mostly what is easy, and a model that never saw it is right as well (with the published objective, `loss`, the search
    finds just that). The search therefore weighs each example's probability after unlearning against its mean over shadow
    models that were not trained on it. Random subsets of the same size get the same treatment beforehand, and the report says
    where the worst subset stands among them.

    The search follows Fan et al.: projected steps on one weight an example, class or cluster. Its inner step is either the
    vendor's procedure on the examples with the largest weights, or a proxy: gradient steps from the original that lower the
    mean loss of the examples with weights 1 - w and raise that with weights w. The published code takes signs of gradients and
    only lowers; a step here is the gradient itself, cut to norm 1.

    Without a procedure (or with `mode = "claimed"`), the claimed forget set itself is searched, on every model alike. Each
    example's margin is set against what the holdout examples on the same model say of such an example (a ridge regression on
    class, principal components of the inputs and, where the audit has shadow models, the mean margin under those not trained
    on the example: that tells most), and what it has beyond is ranked among the holdout examples. Of two halves of the forget
    set, one shows where ranks are high (by class, attribute, pair of these, and the leaves of a shallow tree on classes and
    components); the other is judged where that rule points, and the halves change places. Units are the places in that order,
    "half 1, rank 3", so that all models have the same. This is honest for two reasons: the half that is judged has no part in
    the search, so that a rule that won by chance falls back to the average; and what the halves share without residue (a slice
    that is easier than its class) is found on the references as well, which get the same search.

    Attributes:
        mode: `procedure`, `claimed`, or whichever the audit has what it takes for.
        by: What is sought: examples one by one, whole classes, or whole clusters.
        size: How many examples are to be forgotten; as many as the claimed forget set has by default. Of classes or clusters,
            as many as come nearest.
        inner: What the search unlearns with: the vendor's procedure, or the proxy.
        objective: `gap` to the shadow models, or the published cross-entropy `loss`.
        rounds: Unlearnings in the search.
        step: Step of the weights.
        penalty: Weight of the squared weights (the paper's gamma).
        proxy_steps: Gradient steps of the proxy.
        proxy_rate: Their length.
        proxy_ascent: Weight of raising against lowering; 0 fine-tunes as the published code does.
        shadows: Models on random halves that tell what an example's probability is without it, where the audit has none.
        references: Models that are retrained without the worst subset.
        random_subsets: How many random subsets it is set against.
        retain_examples: At most so many of the other examples show collateral damage, drawn from the plan's seed.
        share: Of a half's clusters, how many the rule points to; the fewer, the sharper, and the noisier: with 100 examples a
            quarter is too few, with 1,000 a tenth will do.
        smallest: Least clusters (in a tree's leaf: examples) that a rule is learned from.
        depth: Of the tree.
        components: Principal components of the inputs that the tree sees; 0 for none.
    """

    name: ClassVar = "worst_case"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Searches the subset that is forgotten least, and sets it against models retrained without that very subset."
    )
    source: ClassVar = (
        "Fan et al. 2024, Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning (arXiv 2403.07362); "
        "the gap objective, the random subsets and the search of a claimed forget set are muaudit's own"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (Classifies,)
    cost: ClassVar = "one unlearning a round and random subset, one training a random subset, shadow and reference; or none"

    mode: Literal["auto", "procedure", "claimed"] = "auto"
    by: Literal["examples", "class", "cluster"] = "examples"
    size: Annotated[int, Field(ge=1)] | None = None
    inner: Literal["procedure", "proxy"] = "procedure"
    objective: Literal["gap", "loss"] = "gap"
    rounds: Annotated[int, Field(ge=1)] = 20
    step: Annotated[float, Field(gt=0)] = 0.1
    penalty: Annotated[float, Field(ge=0)] = 1e-4
    proxy_steps: Annotated[int, Field(ge=1)] = 30
    proxy_rate: Annotated[float, Field(gt=0)] = 0.1
    proxy_ascent: Annotated[float, Field(ge=0)] = 1.0
    shadows: Annotated[int, Field(ge=4)] = 16
    references: Annotated[int, Field(ge=1)] = 3
    random_subsets: Annotated[int, Field(ge=1)] = 20
    retain_examples: Annotated[int, Field(ge=0)] = 200
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    smallest: Annotated[int, Field(ge=2)] = 4
    depth: Annotated[int, Field(ge=1, le=6)] = 3
    components: Annotated[int, Field(ge=0)] = 5

    def prepare(self, bench: Bench) -> Prepared:
        """Searches the worst subset and treats random ones alike; or cuts the claimed forget set in half."""
        if bench.examples.outputs != "classes":
            raise NotApplicable("worst_case is on classifiers, and the task's labels are numbers to predict")
        if self.mode == "claimed":
            return self._claimed(bench)
        try:
            trainer = bench.trainer(procedure=True)
        except NotApplicable:
            if self.mode == "procedure":
                raise
            return self._claimed(bench)
        return self._asked(bench, trainer)

    # ---- with a procedure ------------------------------------------------------------------------------------------------

    def _asked(self, bench: Bench, trainer: "Trainer") -> Prepared:
        """The search, and the rehearsal of its outcome among random subsets."""
        ground = Ground.of(bench.examples, trainer, bench.rng)
        names, codes = ground.grouped(self.by)
        count = min(len(names), max(1, round((self.size or len(bench.examples.forget)) * len(names) / len(codes))))
        if count == len(names):
            raise UsageError(
                f"worst_case: nothing would be left to retrain on if all {count} {self.by} were forgotten: lower size"
            )
        found = worst_subset.search(
            self._unlearner(bench, ground, codes),
            codes,
            count,
            rounds=self.rounds,
            step=self.step,
            penalty=self.penalty,
            rng=bench.rng,
        )
        random = [bench.rng.choice(len(names), count, replace=False) for _ in range(self.random_subsets)]
        subsets = np.stack([np.isin(codes, places) for places in (found.chosen, *random)])
        gaps = ground.gaps(subsets)
        worst, others = float(gaps[0]), gaps[1:]
        rest, claimed = np.flatnonzero(~subsets[0]), int(subsets[0][: len(bench.examples.forget)].sum())
        kept = np.sort(bench.rng.choice(rest, min(len(rest), self.retain_examples), replace=False))
        edge = float(np.quantile(others, 0.95))
        told = {"rehearsed_worst_gap": worst, "random_gap_mean": float(others.mean()), "random_gap_95th_percentile": edge}
        where = "above" if worst > edge else "not above"
        notes = [
            f"units are the {int(subsets[0].sum())} examples that the procedure forgets least when asked to "
            f"({self._groups(names, found)}); {claimed} are of the claimed forget set",
            f"rehearsed with one reference: gap {worst:+.3f}, {where} the 95th percentile {edge:+.3f} of {len(others)} random "
            f"subsets (mean {float(others.mean()):+.3f})",
        ]
        if self.inner == "proxy":
            notes.append("the search unlearned by a proxy, so the worst subset may be worse still")
        return Prepared(
            data={
                "mode": "procedure",
                "chosen": np.flatnonzero(subsets[0]).tolist(),
                "kept": kept.tolist(),
                "summaries": told,
                "notes": notes,
            }
        )

    def _groups(self, names: Sequence[str], found: worst_subset.Search) -> str:
        if self.by == "examples":
            return "chosen one by one"
        shown = ", ".join(names[place] for place in found.chosen[:10])
        return f"{self.by}: {shown}" + (f" and {len(found.chosen) - 10} more" if len(found.chosen) > 10 else "")

    def _unlearner(self, bench: Bench, ground: "Ground", codes: IntArray) -> Callable[[FloatArray], worst_subset.Lost]:
        """The inner step of the search: unlearns with weights from one original, and says what is lost on each example."""
        original = ground.original()
        expected = ground.without(bench, codes, self.shadows) if self.objective == "gap" else None

        def unlearn(weights: FloatArray) -> worst_subset.Lost:
            asked = weights
            if self.inner == "proxy":
                scores = self._proxy(original, ground, weights)
            else:
                asked = np.zeros(len(weights))
                asked[worst_subset.largest(weights, round(float(weights.sum())))] = 1
                scores = ground.margins(ground.unlearned(original, asked[None] == 1))[0]
            loss = np.logaddexp(0, -scores) if expected is None else expected - special.expit(scores)
            return worst_subset.Lost(loss, asked)

        return unlearn

    def _proxy(self, original: "Cohort", ground: "Ground", weights: FloatArray) -> FloatArray:
        """Margins after gradient steps that keep with weights 1 - w and forget with weights w."""
        import torch
        from torch.nn.functional import cross_entropy
        from torch.nn.utils import clip_grad_norm_

        module = original.member(0)
        if not isinstance(module, torch.nn.Module):
            raise NotApplicable(
                'the proxy takes gradient steps, and this recipe trains no torch network: set inner = "procedure"'
            )
        module.eval().requires_grad_(True)
        first = next(module.parameters())
        inputs = torch.tensor(ground.examples.pictured(), dtype=first.dtype)
        labels, forgotten = torch.tensor(ground.examples.labels), torch.tensor(weights, dtype=first.dtype)
        optimizer = torch.optim.SGD(module.parameters(), lr=self.proxy_rate)
        for _ in range(self.proxy_steps):
            optimizer.zero_grad()
            losses = cross_entropy(module(inputs), labels, reduction="none")
            kept, raised = ((share * losses).sum() / share.sum() for share in (1 - forgotten, forgotten))
            torch.autograd.backward(kept - self.proxy_ascent * raised)
            clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            return margins(module(inputs).double().numpy(), ground.examples.labels)

    def lineup(self, bench: Bench, prepared: Prepared) -> Lineup | None:
        """Makes original, target and references anew; None where the claimed forget set is searched."""
        if prepared.data["mode"] == "claimed":
            return None
        ground = Ground.of(bench.examples, bench.trainer(procedure=True), bench.rng)
        subset = np.zeros((1, len(ground.examples)), dtype=bool)
        subset[0, prepared.data["chosen"]] = True
        original = ground.original()
        target = ground.unlearned(original, subset)
        references = ground.retrained(np.repeat(subset, self.references, axis=0))
        folder = bench.made / f"worst_case-{store.key_of(prepared=prepared.content_digest(), seed=ground.drawn)[:16]}"

        def kept(cohort: "Cohort", number: int, name: str) -> ModelConfig:
            return made.member_config(cohort, number, folder / name, bench.folder, ground.examples)

        return Lineup(
            target=kept(target, 0, "target"),
            references=tuple(kept(references, place, f"reference-{place + 1}") for place in range(self.references)),
            original=kept(original, 0, "original"),
            notes=(
                "the auditor's own models, made by the recipe and the vendor's procedure; the audit's target is none of them",
            ),
        )

    # ---- without one -----------------------------------------------------------------------------------------------------

    def _claimed(self, bench: Bench) -> Prepared:
        """The halves, by clusters, and what the rules may see of each example."""
        task = bench.examples
        if not len(task.holdout):
            raise NotApplicable(
                "the claimed forget set is searched by ranks among examples that no model saw: give task.holdout"
            )
        clusters, codes = np.unique(task.forget.clusters, return_inverse=True)
        if len(clusters) < 4 * self.smallest:
            raise NotApplicable(
                f"the forget set has {len(clusters)} clusters, and a search on one half of it takes {4 * self.smallest}"
            )
        half = np.zeros(len(clusters), dtype=np.int64)
        half[bench.rng.permutation(len(clusters))[: len(clusters) // 2]] = 1
        return Prepared(
            data={
                "mode": "claimed",
                "half": half[codes].tolist(),
                "components": _components(task, self.components),
                "expected": _outside(bench, Examples.joined([task.forget, task.holdout])) if bench.open_shadows else [],
                "notes": [
                    "units are places in the order of a rule that was learned on the other half of the forget set, anew on "
                    "every model; what a reference's rule finds, it finds without residue"
                ],
            }
        )

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Asks for the logits of the units, or of the forget and holdout set; nothing is drawn."""
        assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
        if prepared.data["mode"] == "claimed":
            return self._searched(model, prepared)
        data, trained = prepared.data, _trained(prepared.examples)
        shown = trained.take([*data["chosen"], *data["kept"]])
        logits = model.logits(shown)
        leakage = special.expit(margins(logits, shown.labels))
        right = (logits.argmax(1) == shown.labels).astype(np.float64)
        return Measurement(
            units=shown.ids,
            clusters=shown.clusters,
            sets=("forget",) * len(data["chosen"]) + ("retain",) * len(data["kept"]),
            leakage=tuple(leakage.tolist()),
            scores={"right": tuple(right.tolist())},
            summaries=dict(data["summaries"]),
            notes=tuple(data["notes"]),
        )

    def _searched(self, model: Classifies, prepared: Prepared) -> Measurement:
        """The claimed forget set's worst places on one model."""
        task, halves = prepared.examples, np.array(prepared.data["half"])
        shown = Examples.joined([task.forget, task.holdout])
        forget, names, features = np.arange(len(shown)) < len(task.forget), *_features(shown, prepared.data["components"])
        known = [features, *(np.array([column]).T for column in [prepared.data["expected"]] if column)]
        beyond = worst_subset.beyond_difficulty(
            margins(model.logits(shown), shown.labels), np.concatenate(known, axis=1), ~forget
        )
        ranks = membership.ranks(beyond[forget], beyond[~forget])
        columns: dict[str, Sequence[Any]] = {"label": task.forget.labels.tolist(), **task.forget.attributes}
        slices = worst_subset.column_slices(columns, self.smallest)
        units, leakage, told, transcripts = [], [], [], {}
        for half in (0, 1):
            judge = halves == half
            leaves = worst_subset.tree_slices(features[forget], names, ranks, ~judge, depth=self.depth, smallest=self.smallest)
            rule = worst_subset.learned_rule([*slices, *leaves], ranks, task.forget.clusters, ~judge, smallest=self.smallest)
            count = max(1, round(self.share * len({task.forget.clusters[place] for place in np.flatnonzero(judge)})))
            for place, rows in enumerate(worst_subset.slots(rule.expected, task.forget.clusters, judge, count), start=1):
                unit = f"half {half + 1}, rank {place}"
                units.append(unit)
                leakage.append(float(ranks[rows].mean()))
                transcripts[unit] = _told(task.forget.take(rows), leakage[-1])
            told.append(f"half {half + 1} is judged where the other half showed most: {rule.words}")
        return Measurement(
            units=tuple(units),
            clusters=tuple(units),
            sets=("forget",) * len(units),
            leakage=tuple(leakage),
            transcripts=transcripts,
            summaries={"whole_forget_set": float(ranks.mean())},
            notes=(*prepared.data["notes"], *told),
        )


def _features(examples: Examples, components: Sequence[Sequence[float]]) -> tuple[list[str], FloatArray]:
    """What a tree may ask of examples: one column a class, and their components."""
    classes = np.unique(examples.labels)
    parts, names = [(examples.labels[:, None] == classes).astype(np.float64)], [f"label {label}" for label in classes]
    if components:
        parts.append(np.array(components))
        names += [f"component {number + 1}" for number in range(len(components[0]))]
    return names, np.concatenate(parts, axis=1)


def _told(examples: Examples, rank: float) -> Transcript:
    shown = ", ".join(examples.ids[:5]) + (f" and {len(examples) - 5} more" if len(examples) > 5 else "")
    return Transcript(
        prompt=shown,
        expected=", ".join(str(label) for label in np.unique(examples.labels)),
        output=f"surer than expected, by more than {rank:.1%} of the holdout examples",
    )


def _trained(task: LabelledTask) -> Examples:
    """What the original was trained on: forget and retain set."""
    return Examples.joined([task.forget, task.retain])


def _outside(bench: Bench, examples: Examples) -> list[float]:
    """Mean margin of each example under shadow models that were not trained on it."""
    cohort = bench.shadows()
    places = {name: place for place, name in enumerate(cohort.ids)}
    outside = ~cohort.rows[:, [places[name] for name in examples.ids]]
    if not outside.any(0).all():
        raise UsageError(
            "an example is in the training set of every shadow model: train them on balanced halves (muaudit shadow)"
        )
    scores = margins(cohort.logits(examples), examples.labels)
    means: list[float] = (np.where(outside, scores, 0.0).sum(0) / outside.sum(0)).tolist()
    return means


def _components(task: LabelledTask, count: int) -> list[list[float]]:
    """Principal components of the forget and holdout examples' inputs, in standard deviations."""
    if not count or task.forget.inputs is None or task.holdout.inputs is None:
        return []
    try:
        from sklearn.decomposition import PCA
    except ImportError:
        raise EnvironmentFault("worst_case's tree needs scikit-learn: pip install 'muaudit[models]'") from None
    inputs = np.concatenate([part.pictured().reshape(len(part), -1) for part in (task.forget, task.holdout)])
    found = PCA(min(count, *inputs.shape), whiten=True, random_state=0).fit_transform(inputs.astype(np.float64))
    return [[round(float(value), 6) for value in row] for row in found]


@dataclass
class Ground:
    """What can be asked to be forgotten, and the way to have it forgotten, retrained and looked at.

    Attributes:
        examples: Forget and retain set.
        trainer: Trains and unlearns.
        outside: How many examples of the trainer's pool follow them (the holdout set), which no model here is trained on.
        rng: Draws seeds.
        drawn: Every seed that was drawn, in decimal.
    """

    examples: Examples
    trainer: "Trainer"
    outside: int
    rng: np.random.Generator
    drawn: list[str]

    @classmethod
    def of(cls, task: LabelledTask, trainer: "Trainer", rng: np.random.Generator) -> "Ground":
        """The ground of a task."""
        return cls(_trained(task), trainer, len(task.holdout), rng, [])

    def grouped(self, by: str) -> tuple[list[str], IntArray]:
        """Names of the groups, and each example's group."""
        columns: dict[str, Sequence[Any]] = {
            "examples": range(len(self.examples)),
            "class": self.examples.labels.tolist(),
            "cluster": self.examples.clusters,
        }
        names, codes = np.unique(columns[by], return_inverse=True)
        return [str(name) for name in names], codes

    def _seeds(self, count: int) -> list[int]:
        seeds = made.seeds(self.rng, count)
        self.drawn += [str(seed) for seed in seeds]
        return seeds

    def _rows(self, inside: BoolArray) -> BoolArray:
        """A mask over forget and retain set [M, n] as one over the pool [M, N]."""
        return np.pad(inside, ((0, 0), (0, self.outside)))

    def original(self) -> "Cohort":
        """A model trained on all."""
        return self.trainer.train(self._rows(np.ones((1, len(self.examples)), dtype=bool)), self._seeds(1))

    def unlearned(self, original: "Cohort", subsets: BoolArray) -> "Cohort":
        """The original after having unlearned each subset [M, n]."""
        return self.trainer.unlearn(original.repeated(len(subsets)), self._rows(subsets), self._seeds(len(subsets)))

    def retrained(self, subsets: BoolArray) -> "Cohort":
        """One model trained without each subset [M, n]."""
        return self.trainer.train(self._rows(~subsets), self._seeds(len(subsets)))

    def margins(self, cohort: "Cohort | RecordedCohort") -> FloatArray:
        """Margins of all examples [M, n]."""
        return margins(cohort.logits(self.examples), self.examples.labels)

    def without(self, bench: Bench, codes: IntArray, count: int) -> FloatArray:
        """Mean probability of each example's label under models that were not trained on its group [n].

        The audit's shadow models serve where every example is a group of its own; else so many are trained on half the groups.
        """
        groups = int(codes.max()) + 1
        if bench.open_shadows is not None and groups == len(codes):
            cohort = bench.shadows()
            places = {name: place for place, name in enumerate(cohort.ids)}
            rows = cohort.rows[:, [places[name] for name in self.examples.ids]]
        else:
            rows = balanced_membership(count, groups, int(self.rng.integers(2**62)))[:, codes]
            cohort = self.trainer.train(self._rows(rows), self._seeds(count))
        outside = ~rows
        probability = np.where(outside, special.expit(self.margins(cohort)), 0.0)
        mean: FloatArray = probability.sum(0) / outside.sum(0)
        return mean

    def gaps(self, subsets: BoolArray) -> FloatArray:
        """Mean probability of each subset's labels after unlearning it, less that after retraining without it [M]."""
        unlearned, retrained = self.unlearned(self.original(), subsets), self.retrained(subsets)
        apart = special.expit(self.margins(unlearned)) - special.expit(self.margins(retrained))
        gaps: FloatArray = np.where(subsets, apart, 0.0).sum(1) / subsets.sum(1)
        return gaps
