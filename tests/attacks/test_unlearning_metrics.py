"""Published unlearning metrics against what they are by hand, and their distance from retrained models."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.unlearning_metrics import UnlearningMetrics, mia_efficacy, shuffled_accuracy
from muaudit.compare import compare
from muaudit.errors import NotApplicable, UsageError
from muaudit.examples import Examples, LabelledTask
from muaudit.results import Verdict

FloatArray = NDArray[np.float64]


class Recorded:
    """Outputs by example: logits of a classifier, predictions of a regressor."""

    digest, model_seconds = "recorded", 0.0

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        self.outputs = outputs

    def _of(self, examples: Examples) -> FloatArray:
        return np.array([self.outputs[name] for name in examples.ids], dtype=float).reshape(len(examples), -1)

    logits = predictions = _of


def part(name: str, labels: Any, **attributes: tuple[str, ...]) -> Examples:
    ids = tuple(f"{name} {place}" for place in range(len(labels)))
    return Examples(ids, ids, np.array(labels), attributes=attributes)


def measured(attack: UnlearningMetrics, task: LabelledTask, outputs: Mapping[str, Any]) -> Measurement:
    kinds = frozenset({"Predicts" if task.outputs == "numbers" else "Classifies"})
    state = attack.prepare(Bench(task, np.random.default_rng(3), kinds))
    state = Prepared.model_validate_json(state.model_dump_json()).with_task(task)
    return attack.measure(Recorded(outputs), state, np.random.default_rng(7))


def classified(task: LabelledTask, margins: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    """Logits of two classes with the given margin of each example's label."""
    outputs = {}
    for name, examples in task.sets():
        for label, unit, margin in zip(examples.labels, examples.ids, margins[name], strict=True):
            outputs[unit] = [margin, 0.0] if label == 0 else [0.0, margin]
    return outputs


def classes(forget: int = 20, retain: int = 40, holdout: int = 30) -> LabelledTask:
    rng = np.random.default_rng(0)
    return LabelledTask(
        *(part(name, rng.integers(2, size=size)) for name, size in (("f", forget), ("r", retain), ("h", holdout)))
    )


def test_accuracies_and_leakage_are_those_counted_by_hand() -> None:
    task = classes()
    margins = {"forget": np.linspace(-3, 1, 20), "retain": np.linspace(-0.5, 5, 40), "holdout": np.linspace(-2, 2, 30)}
    seen = measured(UnlearningMetrics(), task, classified(task, margins))
    assert seen.units == task.forget.ids + task.retain.ids
    expected = 1 / (1 + np.exp(-np.concatenate([margins["forget"], margins["retain"]])))
    assert seen.leakage == pytest.approx(expected)
    assert seen.scores["loss"] == pytest.approx(-np.log(expected))
    shown = {name: float((margins[kind] > 0).mean()) for name, kind in (("retain", "retain"), ("test", "holdout"))}
    assert seen.summaries["unlearning_accuracy"] == pytest.approx(float((margins["forget"] <= 0).mean()))
    assert seen.summaries["retain_accuracy"] == pytest.approx(shown["retain"])
    assert seen.summaries["test_accuracy"] == pytest.approx(shown["test"])
    guess = seen.summaries["nomus_mia"]
    assert seen.summaries["nomus"] == pytest.approx(shown["test"] / 2 + (1 - 2 * abs(guess - 0.5)) / 2)


@pytest.mark.parametrize(("forget", "expected"), [(0.35, 1.0), (0.99, 0.0)])
def test_mia_efficacy_is_the_share_taken_for_unseen(forget: float, expected: float) -> None:
    rng = np.random.default_rng(1)
    seen, unseen = 1 - 0.02 * rng.random(200), 0.7 * rng.random(200)
    assert mia_efficacy(seen, unseen, np.full(50, forget)) == expected
    half = np.repeat([0.35, 0.99], 25)
    assert mia_efficacy(seen, unseen, half) == 0.5


def test_the_losses_classifier_guesses_where_there_is_nothing_to_tell() -> None:
    rng = np.random.default_rng(2)
    alike = [shuffled_accuracy(rng.exponential(size=300), rng.exponential(size=300), seed=seed) for seed in range(8)]
    assert np.mean(alike) == pytest.approx(0.5, abs=0.05)
    assert shuffled_accuracy(rng.uniform(0, 0.1, 100), rng.uniform(2, 3, 100), seed=0) == 1.0


def test_the_average_gap_is_the_mean_distance_from_the_references() -> None:
    task, rng = classes(), np.random.default_rng(4)
    models = []
    for shift in (2.0, 0.0, -0.2, 0.3):
        margins = {"forget": rng.normal(shift, 1, 20), "retain": rng.normal(4, 1, 40), "holdout": rng.normal(0.3, 1, 30)}
        models.append(measured(UnlearningMetrics(), task, classified(task, margins)))
    finding = compare(UnlearningMetrics().card(), models[0], models[1:], None, policy.load("standard"), seed=1)[0]
    table = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia_efficacy")
    usual = [np.mean([one.summaries[name] for one in models[1:]]) for name in table]
    by_hand = np.mean([abs(models[0].summaries[name] - mean) for name, mean in zip(table, usual, strict=True)])
    assert finding.summaries["target"]["average_gap"] == pytest.approx(by_hand)
    assert finding.summaries["target"]["average_gap"] > finding.summaries["reference 1"]["average_gap"]


def test_corrected_accuracy_counts_manipulated_examples_by_their_true_label() -> None:
    task = classes(retain=10, holdout=10)
    truth = task.holdout.labels.copy()
    truth[:4] = 1 - truth[:4]  # four holdout labels are wrong, and the truth of the last one is not known
    column = (*map(str, truth[:9]), "")
    task = replace(task, holdout=replace(task.holdout, attributes={"true_label": column}))
    margins = {"forget": np.ones(20), "retain": np.ones(10), "holdout": np.array([-1.0, -1, -1, 1, *[1.0] * 6])}
    seen = measured(UnlearningMetrics(), task, classified(task, margins))
    assert seen.summaries["corrected_accuracy"] == 0.75
    assert "corrected_forget_accuracy" not in seen.summaries
    wrong = replace(task, holdout=replace(task.holdout, attributes={"true_label": ("cat",) * 10}))
    with pytest.raises(UsageError, match="true_label holds classes as whole numbers"):
        measured(UnlearningMetrics(), wrong, classified(wrong, margins))


class TestNumbers:
    """Regressors: errors are ranked and their distributions compared."""

    @staticmethod
    def task() -> LabelledTask:
        rng = np.random.default_rng(0)
        parts = (part(name, rng.normal(size=(size, 2))) for name, size in (("f", 30), ("r", 20), ("h", 50)))
        return LabelledTask(*parts, outputs="numbers")

    def models(self, *scales: float) -> tuple[LabelledTask, list[Measurement]]:
        task, rng, found = self.task(), np.random.default_rng(1), []
        for scale in scales:
            outputs = {}
            for name, examples in task.sets():
                noise = rng.normal(size=examples.labels.shape) * (scale if name == "forget" else 1.0)
                outputs |= dict(zip(examples.ids, (examples.labels + noise).tolist(), strict=True))
            found.append(measured(UnlearningMetrics(), task, outputs))
            self.outputs = outputs
        return task, found

    def test_leakage_is_the_rank_of_a_small_error(self) -> None:
        task, [seen] = self.models(0.2)
        errors = {
            name: np.abs(np.array([self.outputs[unit] for unit in one.ids]) - one.labels).mean(1).tolist()
            for name, one in task.sets()
        }
        shown = errors["forget"] + errors["retain"]
        assert seen.leakage == pytest.approx([np.mean([other > one for other in errors["holdout"]]) for one in shown])
        assert seen.scores["absolute_error"] == pytest.approx(shown)
        assert seen.summaries["auc"] == pytest.approx(np.mean(seen.leakage[:30]))
        assert seen.summaries["auc"] > 0.8
        assert seen.summaries["test_error"] == pytest.approx(np.mean(errors["holdout"]))

    def test_distributions_of_errors_are_set_against_the_references(self) -> None:
        _, models = self.models(0.2, 1.0, 1.0, 1.0)
        finding = compare(UnlearningMetrics().card(), models[0], models[1:], None, policy.load("standard"), seed=1)[0]
        errors = [np.array(one.scores["absolute_error"][:30]) for one in models]
        [score] = [one for one in finding.scores if one.name == "absolute_error"]
        for test, reference in zip(score.ks, errors[1:], strict=True):
            slow = stats.ks_2samp(errors[0], reference)
            assert (test.statistic, test.p_value) == pytest.approx((slow.statistic, slow.pvalue))
            assert test.p_value < 0.01
        distances = {role: one["absolute_error_wasserstein"] for role, one in finding.summaries.items()}
        slow = np.mean([np.abs(np.sort(errors[0]) - np.sort(other)).mean() for other in errors[1:]])
        assert distances["target"] == pytest.approx(slow)
        slow = np.mean([np.abs(np.sort(errors[1]) - np.sort(other)).mean() for other in errors[2:]])
        assert distances["reference 1"] == pytest.approx(slow)
        assert finding.gap is not None
        assert finding.gap > 0.3

    def test_it_needs_examples_that_no_model_saw(self) -> None:
        task = replace(self.task(), holdout=part("h", np.zeros((0, 2))))
        with pytest.raises(NotApplicable, match=r"task\.holdout"):
            UnlearningMetrics().prepare(Bench(task, np.random.default_rng(0), frozenset({"Predicts"})))


def test_what_a_small_task_cannot_give_is_said() -> None:
    task = classes(forget=20, retain=0, holdout=0)
    seen = measured(UnlearningMetrics(), task, classified(task, {"forget": np.ones(20), "retain": [], "holdout": []}))
    assert seen.summaries == {"unlearning_accuracy": 0.0}
    assert [note.split(" not measured")[0] for note in seen.notes] == ["mia_efficacy", "nomus"]
    drawn = classes(retain=40)
    margins = {name: np.ones(len(one)) for name, one in drawn.sets()}
    few = measured(UnlearningMetrics(retain_examples=15), drawn, classified(drawn, margins))
    assert few.sets.count("retain") == 15
    assert any("15 of 40 retain examples" in note for note in few.notes)
    with pytest.raises(NotApplicable, match="gives none"):
        UnlearningMetrics().prepare(Bench(drawn, np.random.default_rng(0), frozenset({"Predicts"})))


def test_a_real_original_fails_and_an_honest_retrain_passes() -> None:
    pytest.importorskip("torch")
    from muaudit.models.classifier import Classifier
    from muaudit.testbed.classification.data import Population, make_task
    from muaudit.training.recipes import TorchRecipe, train

    task = make_task(Population())
    known = np.arange(len(task.pool)) < len(task.forget) + len(task.retain)
    kept, attack = known & (np.arange(len(task.pool)) >= len(task.forget)), UnlearningMetrics()
    state = Prepared.model_validate_json(
        attack.prepare(Bench(task, np.random.default_rng(3), frozenset({"Classifies"}))).model_dump_json()
    ).with_task(task)
    recipe, models = TorchRecipe(steps=300, hidden=(128,)), []
    for seed, rows in enumerate((known, *[kept] * 4)):
        model = Classifier(train(recipe, task.pool, seed, Path(), rows=rows))
        models.append(attack.measure(model, state, np.random.default_rng(7)))
    original, retrain, *references = models
    rule = policy.load("standard")
    honest = compare(attack.card(), retrain, references, original, rule, seed=1)
    assert [finding.verdict for finding in honest] == [Verdict.PASS, Verdict.PASS], honest[0].reason
    assert compare(attack.card(), original, references, None, rule, seed=1)[0].verdict is Verdict.FAIL
    assert honest[0].summaries["original"]["average_gap"] > 5 * honest[0].summaries["target"]["average_gap"]
