"""Probes, CKA and the relative test on layers whose contents are known, and on real networks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.representation import Representation
from muaudit.compare import compare
from muaudit.errors import ModelError, NotApplicable
from muaudit.estimators.similarity import linear_cka
from muaudit.examples import Examples, LabelledTask
from muaudit.results import Verdict

sklearn = pytest.importorskip("sklearn.linear_model")

Array = NDArray[np.float32]
Layer = Callable[[Array], Array]

CLASSES = 4


class Made:
    """A network of given layers; what each makes of the inputs, whose first column is the label."""

    digest, model_seconds = "made", 0.0

    def __init__(self, **layers: Layer) -> None:
        self.made = layers

    def layers(self) -> tuple[str, ...]:
        return tuple(self.made)

    def activations(self, inputs: Array, layer: str) -> Array:
        return self.made[layer](inputs).reshape(len(inputs), -1).astype(np.float32)


def knows(noise: float, classes: int = CLASSES) -> Layer:
    """Gives the label in one column a class, with noise from the input's other columns."""
    return lambda inputs: np.eye(classes)[inputs[:, 0].astype(int)] + noise * inputs[:, 1 : classes + 1]


def guesses(inputs: Array) -> Array:
    """Gives what has nothing to do with the label."""
    return inputs[:, 1 : CLASSES + 1]


def part(name: str, labels: Any, clusters: Any = None) -> Examples:
    ids = tuple(f"{name} {place}" for place in range(len(labels)))
    rng = np.random.default_rng([len(labels), ord(name)])
    inputs = np.column_stack([labels, rng.normal(size=(len(labels), 12))]).astype(np.float32)
    return Examples(ids, ids if clusters is None else tuple(clusters), np.array(labels, dtype=np.int64), inputs)


def sampled(count: int = 40) -> LabelledTask:
    """Forget, retain and holdout examples of all classes."""
    return LabelledTask(*(part(name, np.arange(size) % CLASSES) for name, size in (("f", count), ("r", 80), ("h", 60))))


def by_class() -> LabelledTask:
    """Class 3 is forgotten, in clusters of two examples."""
    clusters = [f"person {place // 2}" for place in range(24)]
    return LabelledTask(part("f", [3] * 24, clusters), part("r", np.arange(60) % 3), part("h", np.arange(40) % 4))


def bench(task: LabelledTask, original: Any = None, reference: Any = None) -> Bench:
    return Bench(
        task,
        np.random.default_rng(3),
        frozenset({"ExposesLayers"}),
        open_original=None if original is None else lambda: original,
        open_calibration=None if reference is None else lambda: reference,
    )


def prepared(attack: Representation, given: Bench) -> Prepared:
    return Prepared.model_validate_json(attack.prepare(given).model_dump_json()).with_task(given.examples)


def measured(attack: Representation, state: Prepared, model: Any) -> Measurement:
    return attack.measure(model, state, np.random.default_rng(7))


ORIGINAL = Made(early=guesses, hidden=knows(0.1), logits=knows(0.1))
REFERENCE = Made(early=guesses, hidden=knows(1.5), logits=knows(1.5))


def test_labels_that_the_head_hides_are_read_from_the_layer_below() -> None:
    attack, task = Representation(), sampled()
    state = prepared(attack, bench(task, ORIGINAL, REFERENCE))
    assert state.data["place"] == -2
    assert "layer hidden decides: there original and calibration reference differ most" in state.data["notes"]
    hidden = measured(attack, state, Made(early=guesses, hidden=knows(0.1), logits=guesses))
    cleaned = measured(attack, state, Made(early=guesses, hidden=guesses, logits=guesses))
    assert np.mean(hidden.leakage) > 0.7
    assert np.mean(cleaned.leakage) == pytest.approx(1 / CLASSES, abs=0.08)
    shown = hidden.curves["probe"]
    assert shown.y[1] == pytest.approx(np.mean(hidden.leakage))
    assert max(shown.y[0], shown.y[2]) < 0.4
    rows = hidden.heat_maps["read by the probe"]
    assert rows.rows == ("early", "hidden", "logits")
    assert rows.values[1] == hidden.leakage
    assert hidden.units == task.forget.ids


def test_the_probe_is_a_logistic_regression_on_the_whole_layer() -> None:
    """The span of the training examples loses nothing, also where the layer is wider than they are many."""
    task = sampled()
    weights = np.random.default_rng(0).normal(size=(13, 500))

    def wide(inputs: Array) -> Array:
        return np.maximum(inputs @ weights, 0)

    attack = Representation(probe_examples=60)
    state = prepared(attack, bench(task))
    seen = measured(attack, state, Made(wide=wide, logits=guesses))
    outputs = wide(task.pool.pictured()).astype(np.float32).astype(float)
    [fold] = state.data["folds"]
    centre = outputs[fold["rows"]].mean(0)
    scale = np.sqrt(((outputs[fold["rows"]] - centre) ** 2).sum(1).mean())
    full = sklearn.LogisticRegression(C=10.0, max_iter=5_000, tol=1e-8)
    full.fit((outputs[fold["rows"]] - centre) / scale, task.pool.labels[fold["rows"]])
    expected = full.predict_proba((outputs[:40] - centre) / scale)[np.arange(40), task.forget.labels]
    assert seen.leakage == pytest.approx(expected, abs=2e-3)
    assert len(fold["rows"]) == 60
    assert set(fold["rows"]) <= set(task.rows("retain").tolist())


@pytest.mark.parametrize("probe", ["class", "identity"])
def test_nobody_is_judged_by_a_probe_that_learnt_from_them(probe: str) -> None:
    task = by_class()
    folds = prepared(Representation(probe=probe), bench(task)).data["folds"]
    judged = np.bincount(np.concatenate([fold["judged"] for fold in folds]), minlength=24)
    assert len(judged) == 24
    assert judged.min() >= 1
    for fold in folds:
        forget = {row for row in fold["rows"] if row < 24}
        if probe == "class":
            clusters = {task.forget.clusters[row] for row in forget}
            assert not clusters & {task.forget.clusters[row] for row in fold["judged"]}
            assert sorted(task.pool.labels[fold["rows"]].tolist()) == [0, 1, 2, 3]
        else:
            assert not forget & set(fold["judged"])
            assert len({task.forget.clusters[row] for row in forget}) == 12
    if probe == "class":
        assert len(folds) == 20


def test_a_forgotten_class_is_learnt_from_few_examples() -> None:
    attack, task = Representation(), by_class()
    state = prepared(attack, bench(task))
    assert state.data["notes"][0] == "probes for the class, from 1 examples a class, 20 times"
    assert state.data["notes"][-1] == "the last layer before the logits decides"
    sure, unsure = (measured(attack, state, Made(hidden=knows(noise), logits=guesses)) for noise in (0.05, 1.5))
    assert np.mean(sure.leakage) > np.mean(unsure.leakage) + 0.3
    strays = replace(task.forget, labels=np.concatenate([[0, 1], task.forget.labels[2:]]))
    mixed = prepared(attack, bench(replace(task, forget=strays)))
    assert mixed.data["notes"][0].startswith("probes for the class"), "two wrong labels do not make it a random sample"
    assert all({0, 1} <= set(fold["judged"]) for fold in mixed.data["folds"])


def test_identities_are_read_where_a_layer_keeps_them() -> None:
    attack, task = Representation(probe="identity"), by_class()
    state = prepared(attack, bench(task))
    people = np.random.default_rng(0).normal(size=(12, 20))

    def faces(inputs: Array) -> Array:
        known = {row.tobytes(): place // 2 for place, row in enumerate(task.forget.pictured())}
        return np.stack([people[known[row.tobytes()]] if row.tobytes() in known else np.zeros(20) for row in inputs])

    assert np.mean(measured(attack, state, Made(hidden=faces, logits=guesses)).leakage) > 0.6
    blind = measured(attack, state, Made(hidden=knows(0.1), logits=guesses))
    assert np.mean(blind.leakage) == pytest.approx(1 / 12, abs=0.05)


def test_alignment_is_that_of_the_layers_themselves() -> None:
    task, attack = sampled(), Representation(aligned=16)
    weights = np.random.default_rng(1).normal(size=(13, 40))

    def wide(inputs: Array) -> Array:
        return np.tanh(inputs @ weights)

    known = Made(hidden=wide, logits=knows(0.5))
    state = prepared(attack, bench(task, known, known))
    seen = measured(attack, state, known)
    assert seen.summaries["cka_original_forget"] == pytest.approx(1.0, abs=1e-4)
    turned = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]
    rotated = measured(attack, state, Made(hidden=lambda inputs: 3 * wide(inputs) @ turned, logits=knows(0.5)))
    assert rotated.curves["CKA with the reference, retain examples"].y == pytest.approx([1.0, 1.0], abs=1e-4)
    other = measured(attack, state, Made(hidden=knows(0.3), logits=lambda inputs: np.zeros((len(inputs), 4))))
    rows = state.data["aligned"]["forget"]
    inputs = task.pool.pictured()[rows]
    assert len(rows) == 16
    expected = linear_cka(knows(0.3)(inputs).astype(np.float32), wide(inputs).astype(np.float32))
    curve = other.curves["CKA with the original, forget examples"]
    assert curve.y == pytest.approx([expected, 0.0], abs=1e-4), "a layer that is the same for all inputs aligns with none"


def test_the_answers_distribution_is_set_between_reference_and_original() -> None:
    attack, task = Representation(), by_class()
    original, reference = (Made(hidden=guesses, logits=lambda inputs, by=by: 6 * knows(0.3)(inputs) * by) for by in (1.0, -1.0))
    state = prepared(attack, bench(task, original, reference))
    near, far = (measured(attack, state, model).summaries for model in (reference, original))
    assert near["relative_statistic"] < 0 < far["relative_statistic"]
    assert near["relative_p_value"] < 0.01
    assert far["relative_p_value"] > 0.99
    assert "relative_p_value" not in measured(attack, prepared(attack, bench(task, original)), original).summaries


def test_what_cannot_be_compared_is_said() -> None:
    attack, task = Representation(), sampled()
    state = prepared(attack, bench(task, ORIGINAL))
    assert "not compared with the reference: the audit has one reference only" in state.data["notes"]
    seen = measured(attack, state, Made(one=knows(0.1), logits=guesses))
    assert "not compared with the original, whose layers are others" in seen.notes
    with pytest.raises(ModelError, match="1 layers to read"):
        measured(attack, state, Made(logits=guesses))
    with pytest.raises(ModelError, match="'hidden' gives a number that is not finite"):
        measured(attack, state, Made(hidden=lambda inputs: np.full((len(inputs), 2), np.nan), logits=guesses))


def test_what_cannot_be_probed_is_skipped_with_the_reason() -> None:
    task = by_class()
    recorded = replace(task, forget=replace(task.forget, inputs=None))
    one_cluster = replace(task, forget=replace(task.forget, clusters=("only",) * 24))
    for given, attack, reason in (
        (replace(task, outputs="numbers"), Representation(), "numbers to predict"),
        (recorded, Representation(), "the task's files hold none"),
        (one_cluster, Representation(), "one class has but one"),
        (sampled(), Representation(probe="identity"), "each of two examples"),
        (sampled(), Representation(probe="class"), "a class that is forgotten"),
        (task, Representation(probe="label"), "class 3 has no retain examples"),
    ):
        with pytest.raises(NotApplicable, match=reason):
            attack.prepare(bench(given))


@pytest.mark.parametrize("by", ["sample", "class"])
def test_a_real_original_fails_and_an_honest_retrain_passes(by: Any) -> None:
    pytest.importorskip("torch")
    from muaudit.models.classifier import Classifier
    from muaudit.testbed.classification.data import Population, make_task
    from muaudit.training.recipes import TorchRecipe, train

    wrong = 0.2 if by == "sample" else 0.0
    task = make_task(Population(by=by, forget=60, retain=200, holdout=60, wrong_labels=wrong))
    known = np.arange(len(task.pool)) < len(task.forget) + len(task.retain)
    kept, attack = known & (np.arange(len(task.pool)) >= len(task.forget)), Representation()
    recipe = TorchRecipe(steps=250, hidden=(128, 64))
    nets = [train(recipe, task.pool, seed, Path(), rows=rows) for seed, rows in enumerate((known, *[kept] * 5))]
    models = [Classifier(net, layers=("hidden1", "hidden2", "logits")) for net in nets]
    state = prepared(attack, bench(task, models[0], models[5]))
    seen = [measured(attack, state, model) for model in models[:5]]
    assert measured(attack, state, models[1]).canonical() == seen[1].canonical()
    rule = policy.load("standard")
    rule = rule.model_copy(update={"margins": {**rule.margins, "representation": 0.10}})
    honest = compare(attack.card(), seen[1], seen[2:], seen[0], rule, seed=1)[0]
    assert honest.verdict is Verdict.PASS, honest.reason
    assert compare(attack.card(), seen[0], seen[2:], None, rule, seed=1)[0].verdict is Verdict.FAIL
    assert seen[1].summaries["cka_reference_forget"] > seen[1].summaries["cka_original_forget"]
