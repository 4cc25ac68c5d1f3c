"""Worst case: planted examples that are never forgotten are found, and nothing is where nothing was planted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_classification import Held, make_bench, make_task, rows

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.worst_case import WorstCase
from muaudit.compare import compare
from muaudit.errors import NotApplicable
from muaudit.examples import Examples, LabelledTask
from muaudit.opening import open_model
from muaudit.results import Finding
from muaudit.training.made import member_config
from muaudit.training.recipes import PythonRecipe, SklearnRecipe
from muaudit.training.shadows import Trainer

HARD = 20
TASK = make_task(forget=20, retain=80, holdout=30, hard=HARD)
ATTACK = WorstCase(rounds=15, random_subsets=6, retain_examples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worst")


def judged(attack: WorstCase, bench: Bench, folder: Path) -> tuple[Prepared, list[Finding]]:
    prepared = Prepared.model_validate_json(attack.prepare(bench).model_dump_json()).with_task(bench.examples)
    lineup = attack.lineup(bench, prepared)
    assert lineup is not None
    found = {
        role: attack.measure(open_model(config, folder, "cpu", folder), prepared, np.random.default_rng(0))
        for role, config in lineup.models()
    }
    references = [one for role, one in found.items() if role.startswith("reference")]
    return prepared, compare(attack.card(), found["target"], references, found["original"], policy.load("standard"), seed=1)


# ---- with a procedure --------------------------------------------------------------------------------------------------


def test_what_a_procedure_refuses_to_forget_is_found(folder: Path) -> None:
    prepared, (leakage, _) = judged(ATTACK, make_bench(TASK, folder, "stubborn"), folder)
    found = set(prepared.data["chosen"]) & set(range(20, 20 + HARD))
    assert len(found) >= 14, "of 20 sought among 100, chance gives 4"
    summaries = prepared.data["summaries"]
    assert summaries["rehearsed_worst_gap"] > summaries["random_gap_95th_percentile"] + 0.1
    assert "above the 95th percentile" in prepared.data["notes"][1]
    assert leakage.verdict == "fail"
    assert leakage.gap is not None
    assert leakage.gap > 0.4


def test_an_exact_procedure_has_no_worst_case(folder: Path) -> None:
    _, (leakage, retention) = judged(ATTACK, make_bench(TASK, folder, "retrain"), folder)
    assert leakage.verdict != "fail"
    assert retention.verdict != "fail"
    assert leakage.gap is not None
    assert abs(leakage.gap) < 0.12
    assert leakage.controls is not None
    assert leakage.controls.positive is not None
    assert leakage.controls.positive.gap > 0.2, "the original knows the subset"
    assert not any(control.flagged for control in leakage.controls.negative)


def test_the_proxy_needs_no_procedure_to_search_with(folder: Path) -> None:
    attack = ATTACK.model_copy(update={"inner": "proxy", "rounds": 4, "random_subsets": 4})
    prepared = attack.prepare(make_bench(TASK, folder, "nothing"))
    assert len(prepared.data["chosen"]) == 20
    assert prepared.data["notes"][-1].startswith("the search unlearned by a proxy")
    again = attack.prepare(make_bench(TASK, folder, "nothing"))
    assert again.content_digest() == prepared.content_digest()


def test_whole_classes_are_sought(folder: Path) -> None:
    attack = ATTACK.model_copy(update={"by": "class", "rounds": 3, "random_subsets": 2, "shadows": 4})
    prepared = attack.prepare(make_bench(TASK, folder, "retrain"))
    labels = TASK.pool.labels[:100]
    chosen = np.isin(np.arange(100), prepared.data["chosen"])
    assert set(labels[chosen]).isdisjoint(labels[~chosen])
    assert f"class: {labels[chosen][0]}" in prepared.data["notes"][0]


def test_the_published_objective_prefers_what_is_easy(folder: Path) -> None:
    """Examples that every model knows are not unforgotten: their probability is high, and as high under references."""
    rng = np.random.default_rng(0)
    inputs = TASK.retain.pictured().copy()
    easy = np.eye(8)[TASK.retain.labels[:60]] * 6 + rng.normal(scale=0.1, size=(60, 8))
    inputs[:60] = easy.astype(np.float32)
    task = replace(TASK, retain=replace(TASK.retain, inputs=inputs))
    found = {}
    for objective in ("gap", "loss"):
        attack = ATTACK.model_copy(update={"objective": objective, "random_subsets": 2, "rounds": 6})
        chosen = attack.prepare(make_bench(task, folder, "nothing")).data["chosen"]
        found[objective] = sum(20 <= place < 80 for place in chosen)
    assert found["loss"] >= 15
    assert found["gap"] <= 5


def test_models_that_cannot_be_written_are_recorded(tmp_path: Path) -> None:
    recipe = PythonRecipe(function="small_classification:nearest")
    cohort = Trainer(recipe, TASK.pool, tmp_path / "made").train(rows(TASK, "forget", "retain"), [1])
    config = member_config(cohort, 0, tmp_path / "kept" / "target", tmp_path, TASK.retain)
    assert (config.kind, config.path) == ("recorded", "kept/target.npz")
    model = open_model(config, tmp_path, "cpu", tmp_path)
    np.testing.assert_allclose(model.logits(TASK.retain), cohort.logits(TASK.retain)[0])
    estimator = SklearnRecipe(estimator="sklearn.naive_bayes.GaussianNB")
    cohort = Trainer(estimator, TASK.pool, tmp_path / "made").train(rows(TASK, "forget", "retain"), [1])
    config = member_config(cohort, 0, tmp_path / "kept" / "other", tmp_path, TASK.retain)
    assert (config.kind, config.path) == ("classifier", "kept/other/estimator.skops")
    np.testing.assert_allclose(open_model(config, tmp_path, "cpu", tmp_path).logits(TASK.retain), cohort.logits(TASK.retain)[0])


# ---- without one -------------------------------------------------------------------------------------------------------


class Scripted:
    """A model of given margins."""

    digest, model_seconds = "", 0.0

    def __init__(self, pool: Examples, scores: np.ndarray) -> None:
        logits = np.zeros((len(pool), 10))
        logits[np.arange(len(pool)), pool.labels] = scores
        self.rows = dict(zip(pool.ids, logits, strict=True))

    def logits(self, examples: Examples) -> np.ndarray:
        return np.array([self.rows[name] for name in examples.ids])


class World:
    """Examples of unequal difficulty, and models that differ at random; some know a slice of the forget set."""

    def __init__(self, seed: int, forget: int = 400, holdout: int = 400) -> None:
        self.rng = np.random.default_rng(seed)
        self.task = LabelledTask(self.part("f", forget), self.part("r", 1), self.part("h", holdout))
        pool = self.task.pool
        self.hard = 2 * self.rng.normal(size=len(pool)) + self.rng.normal(size=10)[pool.labels] + pool.pictured()[:, 0]
        place = np.arange(len(pool))
        self.forget = place < forget
        self.slice = self.forget & np.isin(pool.labels, (3, 5)) & (np.array(pool.attributes["domain"]) == "kitchen")

    def part(self, name: str, size: int) -> Examples:
        ids = tuple(f"{name}{number}" for number in range(size))
        domain = tuple(self.rng.choice(["kitchen", "garden"], size).tolist())
        inputs = self.rng.normal(size=(size, 6)).astype(np.float32)
        return Examples(ids, ids, self.rng.integers(0, 10, size), inputs, {"domain": domain})

    def model(self, known: np.ndarray | None = None, strength: float = 8.0) -> Scripted:
        scores = self.hard + self.rng.normal(size=len(self.hard)) + self.rng.normal(scale=0.2)
        return Scripted(self.task.pool, scores if known is None else scores + strength * known)

    def prepared(self, attack: WorstCase, **more: Any) -> Prepared:
        bench = Bench(self.task, np.random.default_rng(1), frozenset({"Classifies"}), **more)
        return Prepared.model_validate_json(attack.prepare(bench).model_dump_json()).with_task(self.task)


CLAIMED = WorstCase(share=0.1)


def measured(model: Scripted, prepared: Prepared) -> Measurement:
    return CLAIMED.measure(model, prepared, np.random.default_rng(0))


def test_a_planted_slice_is_found_and_told_in_words() -> None:
    found = told = 0
    for seed in range(5):
        world = World(seed)
        prepared = world.prepared(CLAIMED)
        assert CLAIMED.lineup(Bench(world.task, np.random.default_rng(0), frozenset()), prepared) is None
        references = [measured(world.model(), prepared) for _ in range(6)]
        replayed = world.model(world.slice)
        target, original = measured(replayed, prepared), measured(world.model(world.forget), prepared)
        assert len(target.units) == 40
        assert target.units == references[0].units == target.clusters
        assert np.mean(target.leakage) > target.summaries["whole_forget_set"] + 0.1
        assert np.mean(target.leakage) > max(np.mean(one.leakage) for one in references)
        finding = compare(CLAIMED.card(), target, references, original, policy.load("standard"), seed=1)[0]
        found += finding.verdict == "fail"
        told += any(f"label {label} and domain kitchen" in note for label in (3, 5) for note in target.notes)
        again = world.prepared(CLAIMED)
        assert target.canonical() == measured(replayed, again).canonical()
    assert found >= 3
    assert told >= 3


@pytest.mark.parametrize("shadows", [False, True])
def test_nothing_is_found_where_nothing_is(shadows: bool) -> None:
    """Twenty-five audits of honest retrains, each with its own search: the search itself must raise no alarm."""
    gaps, alarms = [], 0
    for seed in range(25):
        world = World(100 + seed, forget=80, holdout=160)
        more = {"open_shadows": lambda world=world: Recorded(world)} if shadows else {}
        prepared = world.prepared(CLAIMED, **more)
        models = [measured(world.model(), prepared) for _ in range(5)]
        finding = compare(CLAIMED.card(), models[0], models[1:], None, policy.load("standard"), seed=seed)[0]
        alarms += finding.verdict == "fail"
        gaps.append(finding.gap)
    assert alarms <= 1
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / 5


class Recorded:
    """Shadow models of a world, of which none was trained on any of the examples."""

    def __init__(self, world: World) -> None:
        self.ids, self.rows = world.task.pool.ids, np.zeros((4, len(world.task.pool)), dtype=bool)
        self.models = [world.model() for _ in range(4)]

    def logits(self, examples: Examples) -> np.ndarray:
        return np.stack([model.logits(examples) for model in self.models])


def test_shadow_models_take_difficulty_away() -> None:
    """With them, honest models differ less and a residue stands out more."""
    gaps = {True: [], False: []}
    for seed in range(4):
        world = World(seed)
        shadows = Recorded(world)
        models = [world.model(world.slice, 3.0), *(world.model() for _ in range(4))]
        for calibrated in (True, False):
            prepared = world.prepared(CLAIMED, **({"open_shadows": lambda shadows=shadows: shadows} if calibrated else {}))
            target, *honest = (np.mean(measured(model, prepared).leakage) for model in models)
            gaps[calibrated].append(target - np.mean(honest))
    assert np.mean(gaps[True]) > np.mean(gaps[False])


def test_what_is_missing_is_said(folder: Path) -> None:
    bench = make_bench(make_task(holdout=0), folder, None)
    with pytest.raises(NotApplicable, match=r"give task\.holdout"):
        ATTACK.prepare(bench)
    with pytest.raises(NotApplicable, match="add \\[procedure\\]"):
        WorstCase(mode="procedure").prepare(make_bench(TASK, folder, None))
    with pytest.raises(NotApplicable, match="has 8 clusters"):
        ATTACK.prepare(make_bench(make_task(forget=8), folder, None))
    original = make_bench(TASK, folder, None).trainer().train(rows(TASK, "forget", "retain"), [1])
    prepared = ATTACK.prepare(make_bench(TASK, folder, None)).with_task(TASK)
    assert len(ATTACK.measure(Held(original), prepared, np.random.default_rng(0)).units) == 10
