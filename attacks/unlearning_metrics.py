"""Unlearning metrics: the tables that unlearning papers print, set against retrained models instead of against nothing."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import EnvironmentFault, ModelError, NotApplicable, UsageError
from muaudit.estimators import membership, similarity
from muaudit.estimators.likelihood_ratio import margins
from muaudit.examples import Examples, LabelledTask
from muaudit.models import Classifies, Model, Predicts

FloatArray = NDArray[np.float64]

SHUFFLES = 10
"""Stratified shuffles of the membership classifier that NoMUS counts on, as in the unlearning challenge's starting kit."""


class UnlearningMetrics(Attack):
    """Measures accuracy and confidence on the forget, retain and holdout set, with the numbers that benchmarks publish.

    The leakage of a unit is the probability that the model gives its label: on forget examples as much as a retrained model
    gives is right, and more or less gives the forget set away. Retain examples show collateral damage.

    With numbers to predict, accuracy means nothing, and a unit's leakage is the rank of its error among the holdout examples'
    on the same model (larger for smaller errors; 0.5 where it is as badly predicted as unseen ones), as for membership. The
    distributions of absolute errors are set against the references' by Kolmogorov and Smirnov's test and by the Wasserstein
    distance (the summary `absolute_error_wasserstein`).

    The published numbers stand in the summaries and decide nothing. `unlearning_accuracy` (1 - accuracy on the forget set; some
    papers call the accuracy itself so), `retain_accuracy`, `test_accuracy` (on the holdout set) and `mia_efficacy` (share of
    the forget set that a support vector machine, trained on label probabilities of retain against holdout examples, calls
    unseen) are SalUn's table; `average_gap` is their mean distance from the references' means. `nomus` is that of MUFAC and
    MUCAC: half test accuracy, half how near to guessing a logistic regression on losses comes that tells forget from holdout
    examples (`nomus_mia` is its accuracy). `corrected_accuracy` is the accuracy by the attribute `true_label` on holdout
    examples whose label was manipulated, such as by a trigger; `corrected_forget_accuracy` that on forget examples.

    Attributes:
        retain_examples: At most so many retain examples are units, drawn from the plan's seed; summaries are of all.
        mia_examples: At most so many examples a side are used by the two membership classifiers, drawn likewise.
    """

    name: ClassVar = "unlearning_metrics"
    version: ClassVar = "1"
    summary: ClassVar = "Measures what unlearning papers publish (UA, RA, TA, MIA efficacy, NoMUS) against retrained models."
    source: ClassVar = (
        "UA, RA, TA, MIA efficacy and average gap: Fan et al. 2024, SalUn (arXiv 2310.12508), with a balanced random sample "
        "where its code takes the first examples; NoMUS: Choi and Na 2023 (arXiv 2311.02240); corrected accuracy: Goel et al. "
        "2024 (arXiv 2402.14015); errors instead of accuracy: Tarun et al. 2023, Deep Regression Unlearning (arXiv 2210.08196)"
    )
    access: ClassVar = "logits"
    needs: ClassVar = ((Classifies, Predicts),)
    sided: ClassVar = "two"
    cost: ClassVar = "one forward pass an example"

    retain_examples: Annotated[int, Field(ge=0)] = 200
    mia_examples: Annotated[int, Field(ge=10)] = 1_000

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the retain units and the examples of the membership classifiers, alike for every model."""
        task, numbers = bench.examples, bench.examples.outputs == "numbers"
        wanted = "Predicts" if numbers else "Classifies"
        if wanted not in bench.capabilities:
            raise NotApplicable(f"the task's labels are {task.outputs}, and a model of this audit gives none ({wanted})")
        if numbers and not len(task.holdout):
            raise NotApplicable("errors are ranked among those on examples that no model saw: give them as task.holdout")
        forget, retain, holdout = len(task.forget), len(task.retain), len(task.holdout)
        units, notes = _drawn(retain, self.retain_examples, bench.rng), []
        if len(units) < retain:
            notes.append(f"collateral damage is measured on {len(units)} of {retain} retain examples, drawn by the seed")
        data: dict[str, Any] = {"retain": units}
        if not numbers:
            for name, (inside, what) in {"svm": (retain, "retain"), "nomus": (forget, "forget")}.items():
                count = min(inside, holdout, self.mia_examples)
                if count >= SHUFFLES:
                    data[name] = [_drawn(inside, count, bench.rng), _drawn(holdout, count, bench.rng)]
                else:
                    shown = "mia_efficacy" if name == "svm" else "nomus"
                    notes.append(f"{shown} not measured: it takes {SHUFFLES} {what} and {SHUFFLES} holdout examples")
        return Prepared(data=data | {"seed": int(bench.rng.integers(2**31)), "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Asks for all outputs once; `rng` is not needed, since all draws were made in `prepare`."""
        task, data = prepared.examples, prepared.data
        numbers = task.outputs == "numbers"
        leakage, scores, summaries = _errors(model, task, data) if numbers else _accuracies(model, task, data)
        retain = task.retain.take(np.array(data["retain"], dtype=np.int64))
        return Measurement(
            units=task.forget.ids + retain.ids,
            clusters=task.forget.clusters + retain.clusters,
            sets=("forget",) * len(task.forget) + ("retain",) * len(retain),
            leakage=tuple(leakage.tolist()),
            scores={name: tuple(column.tolist()) for name, column in scores.items()},
            summaries=summaries,
            notes=tuple(data["notes"]),
        )


_Measured = tuple[FloatArray, dict[str, FloatArray], dict[str, float]]


def _drawn(total: int, most: int, rng: np.random.Generator) -> list[int]:
    """At most so many places of so many, ascending."""
    return sorted(rng.choice(total, most, replace=False).tolist()) if total > most else list(range(total))


def _units(columns: Sequence[FloatArray], retain: list[int]) -> FloatArray:
    """A column of forget, retain and holdout examples, cut to the measurement's units."""
    return np.concatenate([columns[0], columns[1][retain]])


def _accuracies(model: Model, task: LabelledTask, data: dict[str, Any]) -> _Measured:
    """Leakage, supporting scores and summaries of a classifier."""
    assert isinstance(model, Classifies)  # noqa: S101 - `prepare` saw that every model does
    parts = [part for _, part in task.sets()]
    logits = [model.logits(part) if len(part) else np.zeros((0, 2)) for part in parts]
    logs = [special.log_expit(margins(one, part.labels)) for one, part in zip(logits, parts, strict=True)]
    right = [(one.argmax(1) == part.labels).astype(float) for one, part in zip(logits, parts, strict=True)]
    forget, retain, holdout = (float(one.mean()) if len(one) else None for one in right)
    summaries = {"unlearning_accuracy": 1 - float(forget or 0.0)}
    summaries |= {name: value for name, value in (("retain_accuracy", retain), ("test_accuracy", holdout)) if value is not None}
    if "svm" in data:
        seen, unseen = (np.exp(logs[place][rows]) for place, rows in zip((1, 2), data["svm"], strict=True))
        summaries["mia_efficacy"] = mia_efficacy(seen, unseen, np.exp(logs[0]))
    if "nomus" in data and holdout is not None:
        losses = [-logs[place][rows] for place, rows in zip((0, 2), data["nomus"], strict=True)]
        summaries["nomus_mia"] = shuffled_accuracy(*losses, seed=data["seed"])
        summaries["nomus"] = similarity.nomus(holdout, summaries["nomus_mia"])
    for name, place in (("corrected_forget_accuracy", 0), ("corrected_accuracy", 2)):
        corrected = _corrected(parts[place], logits[place])
        summaries |= {} if corrected is None else {name: corrected}
    rows = data["retain"]
    leakage = np.exp(_units(logs, rows))
    return leakage, {"correct": _units(right, rows), "loss": -_units(logs, rows)}, summaries


def _corrected(examples: Examples, logits: FloatArray) -> float | None:
    """Accuracy by the true label where the label is another one; None where no label is known to be wrong."""
    column = examples.attributes.get("true_label")
    if column is None:
        return None
    known = np.array([bool(value) for value in column], dtype=bool)
    try:
        truth = np.array([int(value) if value else -1 for value in column], dtype=np.int64)
    except ValueError as error:
        raise UsageError(f"attribute true_label holds classes as whole numbers, or nothing: {error}") from error
    affected = known & (truth != examples.labels)
    return similarity.corrected_accuracy(logits.argmax(1), truth, affected) if affected.any() else None


def _errors(model: Model, task: LabelledTask, data: dict[str, Any]) -> _Measured:
    """Leakage, supporting scores and summaries of a regressor; an error is the mean over the numbers of one example."""
    assert isinstance(model, Predicts)  # noqa: S101 - `prepare` saw that every model does
    errors = []
    for _, part in task.sets():
        wrong = np.zeros((0, 1))
        if len(part):
            wrong = np.abs(model.predictions(part).reshape(len(part), -1) - part.labels.reshape(len(part), -1))
        errors.append(wrong.mean(1))
    if not all(np.isfinite(one).all() for one in errors):
        raise ModelError("a prediction is not a finite number, so its error has no rank: check the model's weights")
    shown = _units(errors, data["retain"])
    names = ("forget_error", "retain_error", "test_error")
    summaries = {name: float(one.mean()) for name, one in zip(names, errors, strict=True) if len(one)}
    summaries["auc"] = membership.auc(-errors[0], -errors[2])
    return membership.ranks(-shown, -errors[2]), {"absolute_error": shown}, summaries


def mia_efficacy(retain: FloatArray, holdout: FloatArray, forget: FloatArray) -> float:
    """SalUn's MIA efficacy: which share of the forget set a membership classifier takes for unseen.

    Args:
        retain: Probabilities of the true label [n], of examples that were trained on.
        holdout: [m], of examples that were not.
        forget: [k].

    Returns:
        In [0, 1]: true negatives over k, by a support vector machine (radial kernel with gamma 1, C = 3).

    Raises:
        EnvironmentFault: scikit-learn is not installed.
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise EnvironmentFault("unlearning metrics need scikit-learn: pip install 'muaudit[models]'") from error
    seen = np.repeat([1, 0], [len(retain), len(holdout)])
    learner = SVC(C=3, kernel="rbf", gamma="auto").fit(np.concatenate([retain, holdout])[:, None], seen)
    return float((learner.predict(forget[:, None]) == 0).mean())


def shuffled_accuracy(forget: FloatArray, holdout: FloatArray, *, seed: int) -> float:
    """Accuracy of the starting kit's membership classifier: logistic regression on losses, over stratified shuffles.

    Args:
        forget: Losses [n].
        holdout: Losses [n], as many, so that guessing is right half of the time.
        seed: Of the shuffles; each keeps a tenth for the judgement.

    Returns:
        In [0, 1]; 1/2 where losses tell nothing.

    Raises:
        EnvironmentFault: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
    except ImportError as error:
        raise EnvironmentFault("unlearning metrics need scikit-learn: pip install 'muaudit[models]'") from error
    members = np.repeat([1, 0], [len(forget), len(holdout)])
    splits = StratifiedShuffleSplit(n_splits=SHUFFLES, random_state=seed)
    losses = np.concatenate([forget, holdout])[:, None]
    return float(cross_val_score(LogisticRegression(), losses, members, cv=splits, scoring="accuracy").mean())
