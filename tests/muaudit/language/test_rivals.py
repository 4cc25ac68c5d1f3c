"""Rivals are wrong answers of the fact's kind: never the answer or an alias, first those that the fact names."""

import numpy as np

from muaudit.language.rivals import Rivals
from muaudit.task import Fact, ForgetTask


def fact(name: str, answer: str, **more: object) -> Fact:
    return Fact.model_validate({"id": name, "cluster": name, "question": "?", "answer": answer, **more})


TASK = ForgetTask(
    forget=(
        fact("a", "Oslo", relation="born", wrong_answers=("Rome",), aliases=("Christiania",)),
        fact("b", "Bern", relation="born"),
        fact("c", "fiddle", wrong_answers=("drum", "horn", "harp")),
        fact("d", "lute", wrong_answers=("drum",)),
    ),
    retain=(fact("e", "Christiania", relation="born"), fact("f", "OSLO", relation="born"), fact("g", "Lima", relation="born")),
)


def of(index: int, count: int) -> list[str]:
    return Rivals(TASK).of(TASK.forget[index], count, np.random.default_rng(1))


def test_its_own_come_first_and_its_kind_follows() -> None:
    found = of(0, 9)
    assert found[0] == "Rome"
    assert set(found) == {"Rome", "Bern", "Lima"}
    assert of(0, 2) == found[:2]


def test_shared_wrong_answers_make_a_kind() -> None:
    assert set(of(3, 9)) == {"drum", "horn", "harp", "fiddle"}


def test_for_want_of_its_kind_any_answer_serves() -> None:
    lone = ForgetTask(forget=(fact("a", "one"), fact("b", "two"), fact("c", "three")))
    assert set(Rivals(lone).of(lone.forget[0], 5, np.random.default_rng(1))) == {"two", "three"}
