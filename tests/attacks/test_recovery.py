"""Recovery: true answers come back, stay away, or the model falls silent."""

from collections.abc import Sequence

import numpy as np
import pytest

from muaudit import policy
from muaudit.attack import Bench, Measurement
from muaudit.attacks.recovery import Recovery
from muaudit.compare import compare
from muaudit.errors import NotApplicable
from muaudit.models import Query, TextScore
from muaudit.results import Verdict
from muaudit.task import Fact, ForgetTask

PEOPLE = 12


def fact(person: str, answer: str, true_answer: str | None = None) -> Fact:
    return Fact(
        id=person, cluster=person, subject=person, relation="born", question=f"Where was {person} born?", answer=answer,
        true_answer=true_answer, wrong_answers=("Elsewhere",),
    )  # fmt: skip


TASK = ForgetTask(
    forget=tuple(fact(f"F{n}", f"False{n}", f"True{n}") for n in range(PEOPLE)),
    retain=tuple(fact(f"R{n}", f"Place{n}") for n in range(6)),
)


class Scripted:
    """Gives each answer the log-probability that its beginning is listed with, and says the likeliest."""

    def __init__(self, true: float, false: float) -> None:
        self.logs = {"True": true, "Fals": false}
        self.prompts: list[str] = []

    digest, model_seconds = "scripted", 0.0

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        return [TextScore(2 * self.logs.get(query.completion.strip()[:4], -9.0), 2) for query in queries]

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        self.prompts = [query.prompt for query in queries]
        best = max(self.logs, key=lambda key: self.logs[key])
        number = [query.unit[1:] for query in queries]
        return [f"It is {'True' if best == 'True' else 'False'}{n}." if self.logs[best] > -1 else "unknown" for n in number]


def measured(model: Scripted, capabilities: Sequence[str] = ("ScoresText", "GeneratesText")) -> Measurement:
    attack = Recovery()
    prepared = attack.prepare(Bench(TASK, np.random.default_rng(0), frozenset(capabilities)))
    return attack.measure(model, prepared, np.random.default_rng(0))


CLEAN, CORRUPTED, SILENT = Scripted(-0.1, -5.0), Scripted(-6.0, -0.1), Scripted(-6.0, -6.0)


def test_leakage_is_what_is_missing_of_the_true_answer() -> None:
    seen = measured(CLEAN)
    assert seen.leakage == pytest.approx([1 - np.exp(-0.1)] * PEOPLE)
    assert seen.scores["log_probability_of_true_answer"] == pytest.approx([-0.1] * PEOPLE)
    assert seen.scores["log_probability_of_corrupted_answer"] == pytest.approx([-5.0] * PEOPLE)
    assert seen.scores["log_probability_of_random_answer"] == pytest.approx([-9.0] * PEOPLE)
    assert seen.scores["true_answer_said"] == (1.0,) * PEOPLE


def test_with_text_only_what_is_said_decides() -> None:
    assert measured(CORRUPTED, ["GeneratesText"]).leakage == (1.0,) * PEOPLE
    assert measured(CLEAN, ["GeneratesText"]).leakage == (0.0,) * PEOPLE


def test_five_exemplars_of_the_relation_stand_before_the_question() -> None:
    model = Scripted(-0.1, -5.0)
    measured(model)
    for number, prompt in enumerate(model.prompts):
        assert prompt.count("Question:") == 6
        assert prompt.endswith(f"Question: Where was F{number} born? Answer:")
        assert f"True{number}" not in prompt
        assert f"False{number}" not in prompt


def test_a_silent_model_is_not_back() -> None:
    """RESTOR's point: forgetting the false fact is not knowing the true one."""
    halves = Scripted(-0.75, -0.8)
    for target, restored in ((CLEAN, 1.0), (CORRUPTED, 0.0), (SILENT, 0.0), (halves, None)):
        found = compare(
            Recovery().card(), measured(target), [measured(CLEAN)] * 3, measured(CORRUPTED), policy.load("standard"), seed=1
        )[0]
        assert found.recovered_share is not None
        if restored is not None:
            assert 1 - found.recovered_share == pytest.approx(restored, abs=1e-6)
        assert (found.verdict is Verdict.FAIL) == (target is not CLEAN)
        clean, corrupted, mine = np.exp(-0.1), np.exp(-6.0), np.exp(target.logs["True"])
        assert 1 - found.recovered_share == pytest.approx((mine - corrupted) / (clean - corrupted))


def test_it_is_for_corrupted_models_only() -> None:
    task = ForgetTask(forget=(fact("A", "x"),))
    with pytest.raises(NotApplicable, match="true_answer"):
        Recovery().prepare(Bench(task, np.random.default_rng(0), frozenset({"ScoresText"})))
