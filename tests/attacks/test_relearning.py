"""Relearning's splits and its area under the recovery curve, on a model whose every answer is known."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from muaudit.attack import Bench, Measurement
from muaudit.attacks.relearning import Relearning
from muaudit.errors import NotApplicable
from muaudit.models import Finetuning, Query, TextScore
from muaudit.task import Fact, ForgetTask


class Learner:
    """Gives every answer the probability of a known curve, and remembers what it was trained on."""

    digest, model_seconds = "learner", 0.0

    def __init__(self, steps: int = 0, trained: set[str] | None = None) -> None:
        self.steps, self.trained, self.runs = steps, trained or set(), []

    def probability(self, unit: str) -> float:
        return 0.9 if unit in self.trained else 0.1 + 0.02 * self.steps

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        return [TextScore(float(np.log(self.probability(query.unit))), 1) for query in queries]

    def finetuned(self, texts: Sequence[Query], how: Finetuning) -> Iterator[tuple[int, "Learner"]]:
        self.runs.append({query.unit for query in texts})
        for budget in how.budgets:
            yield budget, Learner(budget, {query.unit for query in texts} if budget else set())


def a_task(people: int = 4, facts: int = 3, retain: int = 5) -> ForgetTask:
    def fact(person: str, number: int) -> Fact:
        return Fact(id=f"{person}{number}", cluster=person, question=f"What of {person} {number}?", answer="so")

    return ForgetTask(
        forget=tuple(fact(f"p{person}-", number) for person in range(people) for number in range(facts)),
        retain=tuple(fact("r", number) for number in range(retain)),
    )


def measured(task: ForgetTask, **parameters: Any) -> tuple[Measurement, Learner]:
    attack, model = Relearning(**parameters), Learner()
    prepared = attack.prepare(Bench(task, np.random.default_rng(0), frozenset()))
    return attack.measure(model, prepared, np.random.default_rng(0)), model


def test_leakage_is_the_area_under_the_recovery_curve() -> None:
    seen, _ = measured(a_task(), budgets=(10, 20))
    curve = [(0, 0.1), (10, 0.3), (20, 0.5)]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve)) / 20
    assert seen.leakage == tuple([pytest.approx(area)] * 12)
    assert seen.curves["recovery"].x == (0, 10, 20)
    assert seen.curves["recovery"].y == tuple(pytest.approx(y) for _, y in curve)
    assert set(seen.scores) == {"after_0_steps", "after_10_steps", "after_20_steps"}
    assert seen.powerless is None


@pytest.mark.parametrize("parameters", [{}, {"split": "between_clusters"}, {"folds": 3}, {"train_on": "subset"}])
def test_no_fact_is_scored_after_training_on_it(parameters: dict[str, Any]) -> None:
    task = a_task()
    attack = Relearning(**parameters)
    prepared = attack.prepare(Bench(task, np.random.default_rng(0), frozenset()))
    scored: list[str] = []
    for run in prepared.data["runs"]:
        trained = {query["unit"] for query in run["train"]}
        assert trained
        assert not trained & {query["unit"] for query in run["score"]}
        scored += [query["unit"] for query in run["score"]]
    if parameters.get("train_on") != "subset":
        assert sorted(scored) == sorted(fact.id for fact in task.forget)
    assert len(scored) == len(set(scored))


def test_folds_halve_each_person_or_the_people() -> None:
    _, within = measured(a_task(facts=4))
    assert within.runs[1] == {f"p{person}-{number}" for person in range(4) for number in (0, 2)}
    _, between = measured(a_task(), split="between_clusters")
    assert {unit.split("-")[0] for unit in between.runs[0]} == {"p1", "p3"}


def test_facts_that_are_clusters_of_their_own_are_split_between() -> None:
    seen, model = measured(a_task(people=5, facts=1))
    assert len(seen.units) == 5
    assert sorted(map(len, model.runs)) == [2, 3]


def test_given_groups_replace_the_split() -> None:
    groups = (("p0-0", "p0-1"), ("p0-2", "p1-0", "p1-1", "p1-2"))
    _, model = measured(a_task(people=2), groups=groups)
    assert model.runs == [set(groups[1]), set(groups[0])]
    with pytest.raises(NotApplicable, match="exactly once"):
        measured(a_task(people=2), groups=groups[:1])


def test_benign_trains_on_retain_facts_and_scores_every_forget_fact() -> None:
    seen, model = measured(a_task(), train_on="benign", benign_texts=3)
    assert len(seen.units) == 12
    assert len(model.runs[0]) == 3
    assert all(unit.startswith("r") for unit in model.runs[0])
    with pytest.raises(NotApplicable, match="no retain set"):
        measured(a_task(retain=0), train_on="benign")


def test_answers_after_the_last_step_are_kept_as_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Learner, "generate", lambda self, queries, length: [f"{self.steps} of {length}"] * len(queries), raising=False
    )
    seen, _ = measured(a_task(), budgets=(5, 20), max_new_tokens=9)
    assert set(seen.transcripts) == set(seen.units)
    assert {said.output for said in seen.transcripts.values()} == {"20 of 9"}
    assert not measured(a_task(), max_new_tokens=0)[0].transcripts


def test_too_little_training_is_said_to_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "probability", lambda self, unit: 0.01)
    seen, _ = measured(a_task())
    assert seen.powerless is not None
    assert "raise learning_rate or budgets" in seen.powerless


@pytest.mark.parametrize("budgets", [(), (0,), (10, 5), (5, 5)])
def test_unusable_budgets_are_refused(budgets: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="ascending"):
        Relearning(budgets=budgets)
