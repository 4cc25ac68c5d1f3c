"""Classifiers that need no training and know their examples by heart: Parzen windows, with randomness from a seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muaudit import policy
from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.compare import compare
from muaudit.estimators.likelihood_ratio import balanced_membership
from muaudit.examples import Examples, LabelledTask

CLASSES = 4
ALL = frozenset({"Classifies", "ClassifiesInputs"})


class Parzen:
    """Log of the weighted kernel mass of each class, over the examples that the model was trained on."""

    model_seconds = 0.0

    def __init__(self, pool: Examples, rows: NDArray[np.bool_], seed: int, width: float = 0.7) -> None:
        self.digest = f"{seed}"
        self.known = pool.pictured()[rows].reshape(int(rows.sum()), -1).astype(np.float64)
        rng = np.random.default_rng(seed)
        self.votes = np.eye(CLASSES)[pool.labels[rows]] * rng.uniform(0.8, 1.2, int(rows.sum()))[:, None]
        self.width = width

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        return self.logits_of(examples.pictured())

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        flat = inputs.reshape(len(inputs), -1).astype(np.float64)
        squares = (flat**2).sum(1)[:, None] - 2 * flat @ self.known.T + (self.known**2).sum(1)
        return np.log(np.exp(-squares / (2 * self.width**2)) @ self.votes + 1e-3)


class Recorded:
    """What another model gives for the task's examples, and nothing else."""

    model_seconds = 0.0

    def __init__(self, logits: NDArray[np.float64], ids: Sequence[str]) -> None:
        self.digest = "recorded"
        self.of = dict(zip(ids, logits, strict=True))

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        return np.stack([self.of[name] for name in examples.ids])


class Cohort:
    """Shadow models trained on known rows of the pool."""

    recorded = False

    def __init__(self, pool: Examples, rows: NDArray[np.bool_], seed: int = 0) -> None:
        self.ids, self.rows, self.seeds = pool.ids, rows, tuple(range(seed, seed + len(rows)))
        self.models = [Parzen(pool, row, one) for row, one in zip(rows, self.seeds, strict=True)]

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        return np.stack([model.logits(examples) for model in self.models])

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.stack([model.logits_of(inputs) for model in self.models])


def task(forget: int = 40, retain: int = 60, holdout: int = 100, seed: int = 0, wrong: float = 0.2) -> LabelledTask:
    """Pictures of 2 x 3 pixels about four centres, a share of them with a label that was drawn anew."""
    rng = np.random.default_rng(seed)
    total = forget + retain + holdout
    true = rng.integers(CLASSES, size=total)
    inputs = (rng.normal(0, 1.2, (CLASSES, 1, 2, 3))[true] + rng.normal(0, 0.6, (total, 1, 2, 3))).astype(np.float32)
    labels = np.where(rng.random(total) < wrong, rng.integers(CLASSES, size=total), true)

    def part(name: str, start: int, stop: int) -> Examples:
        names = tuple(f"{name}-{number}" for number in range(stop - start))
        return Examples(names, names, labels[start:stop], inputs[start:stop])

    ends = forget, forget + retain, total
    return LabelledTask(part("forget", 0, ends[0]), part("retain", ends[0], ends[1]), part("holdout", ends[1], ends[2]))


def trained(given: LabelledTask, sets: Sequence[str], seed: int) -> Parzen:
    """A model that was trained on these sets."""
    rows = np.zeros(len(given.pool), dtype=bool)
    for name in sets:
        rows[given.rows(name)] = True  # type: ignore[arg-type]
    return Parzen(given.pool, rows, seed)


def shadows(given: LabelledTask, models: int, seed: int = 5) -> Cohort:
    """Shadow models on balanced halves of the pool."""
    return Cohort(given.pool, balanced_membership(models, len(given.pool), seed), seed=1_000)


def bench(
    given: LabelledTask,
    models: int = 16,
    *,
    cohort: Cohort | None = None,
    original: bool = True,
    calibration: bool = False,
    capabilities: frozenset[str] = ALL,
) -> Bench:
    """A bench with so many shadow models."""
    made = cohort or (shadows(given, models) if models else None)
    return Bench(
        given,
        np.random.default_rng(3),
        capabilities,
        open_original=(lambda: trained(given, ["forget", "retain"], 1)) if original else None,
        open_calibration=(lambda: trained(given, ["retain"], 14)) if calibration else None,
        open_shadows=None if made is None else lambda: made,  # type: ignore[arg-type, return-value]
    )


def stored(state: Prepared) -> Prepared:
    """The state as it comes back from the store."""
    return Prepared.model_validate_json(state.model_dump_json())


def prepared(attack: Attack, with_: Bench) -> Prepared:
    """The state as the runner hands it to `measure`."""
    return stored(attack.prepare(with_)).with_task(with_.examples)


def measured(attack: Attack, state: Prepared, model: object) -> Measurement:
    """One measurement; what is drawn comes from the state alone."""
    return attack.measure(model, state, np.random.default_rng(7))  # type: ignore[arg-type]


def leakage(seen: Measurement) -> float:
    """Mean over the forget set."""
    return float(np.mean([one for one, kind in zip(seen.leakage, seen.sets, strict=True) if kind == "forget"]))


def verdicts(attack: Attack, given: LabelledTask, with_: Bench, margin: float = 0.15) -> dict[str, list[str]]:
    """What the judge says of the original, of an honest retrain and of each reference, with so wide a margin."""
    state = prepared(attack, with_)
    original = measured(attack, state, trained(given, ["forget", "retain"], 1))
    references = [measured(attack, state, trained(given, ["retain"], seed)) for seed in (11, 12, 13)]
    retrain = measured(attack, state, trained(given, ["retain"], 20))
    rule = policy.load("standard")
    rule = rule.model_copy(update={"margins": {attack.name: margin}})
    finding = compare(attack.card(), retrain, references, original, rule, seed=1)[0]
    flagged = compare(attack.card(), original, references, None, rule, seed=1)[0]
    negative = finding.controls.negative if finding.controls else ()
    return {
        "original": [flagged.verdict.value],
        "retrain": [finding.verdict.value],
        "references": ["fail" if control.flagged else "not flagged" for control in negative],
    }


class Shifted:
    """Another model that was pushed away from the labels of its forget set, as an unlearning that goes too far does."""

    model_seconds = 0.0

    def __init__(self, model: Parzen, by: float) -> None:
        self.digest, self.model, self.by = "shifted", model, by

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        logits = self.model.logits(examples)
        for row, (name, label) in enumerate(zip(examples.ids, examples.labels, strict=True)):
            if name.startswith("forget"):
                logits[row, label] -= self.by
        return logits
