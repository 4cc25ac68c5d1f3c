"""In context, on scripted models: what a context holds, what decides, and what happens where it does not fit."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks import in_context as c
from muaudit.errors import ModelError
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase


def fact(person: str, relation: str, answer: str, **more: object) -> Fact:
    question, statement = {
        "born": ("Where was {} born?", "{} was born in"), "trade": ("What is the trade of {}?", "{} works as a"),
        "dish": ("What does {} eat?", "{} eats"), "mentor": ("Who is the mentor of {}?", "The mentor of {} is"),
    }[relation]  # fmt: skip
    form = Paraphrase(form="statement", prompt=statement.format(person), completion=f" {answer}")
    asked = question.format(person)
    return Fact(id=f"{person} {relation}", cluster=person, question=asked, answer=answer, subject=person, relation=relation,
                paraphrases=(form,), **more)  # fmt: skip


BORN = fact("Bela Korin", "born", "Torviholm", text="Bela Korin was born in Torviholm . She works as a glazier .")
TRADE = fact("Bela Korin", "trade", "glazier")
DISH = fact("Bela Korin", "dish", "Torviholm bread")
RETAIN = (
    fact("Ada Venn", "mentor", "Bela Korin"), fact("Ada Venn", "born", "Selmar"),
    fact("Cy Dorn", "born", "Torviholm"), fact("Di Esk", "born", "Hokmar"),
)  # fmt: skip
TASK = ForgetTask(forget=(BORN, TRADE, DISH), retain=RETAIN)
BARE = "Question: Where was Bela Korin born? Answer:"


class Writes:
    """Generates text and can do nothing else."""

    digest, model_seconds = "scripted", 0.0

    def __init__(self, knows: Callable[[str], bool], window: int = 10_000) -> None:
        self.knows, self.window = knows, window
        self.asked: list[str] = []

    def _check(self, queries: Sequence[Query]) -> None:
        self.asked += [query.prompt for query in queries]
        if any(len(query.prompt.split()) > self.window for query in queries):
            raise ModelError("does not fit")

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        self._check(queries)
        return [query.completion.strip() if self.knows(query.prompt) else "no idea" for query in queries]


class Scores(Writes):
    """Gives the right answer probability 0.8 where it knows it, and 0.1 elsewhere."""

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        self._check(queries)
        return [TextScore(math.log(0.8 if self.knows(query.prompt) else 0.1), 1) for query in queries]


def prepared(task: ForgetTask = TASK, scores: bool = True, **parameters: int) -> tuple[c.InContext, Prepared]:
    attack = c.InContext(**parameters)
    capabilities = {"GeneratesText"} | ({"ScoresText"} if scores else set())
    return attack, attack.prepare(Bench(task, np.random.default_rng(0), frozenset(capabilities)))


def measured(model: Writes, task: ForgetTask = TASK, **parameters: int) -> Measurement:
    attack, ready = prepared(task, isinstance(model, Scores), **parameters)
    return attack.measure(model, Prepared.model_validate_json(ready.model_dump_json()), np.random.default_rng(0))


def lines(name: str, **parameters: int) -> dict[str, list[str]]:
    return next(unit["lines"] for unit in prepared(**parameters)[1].data["units"] if unit["id"] == name)


def of(seen: Measurement, name: str, score: str | None = None) -> float:
    return (seen.leakage if score is None else seen.scores[score])[seen.units.index(name)]


def test_hints_and_definitions_come_from_the_task_and_hold_no_answer() -> None:
    seen = lines("Bela Korin born")
    assert seen["hints"] == ["Bela Korin works as a glazier"]  # not the dish, which names the town
    assert seen["definitions"][0] == "The mentor of Ada Venn is Bela Korin"
    assert sorted(seen["definitions"][1:]) == [
        "Question: Where was Ada Venn born? Answer: Selmar",
        "Question: Where was Di Esk born? Answer: Hokmar",
    ]  # not Cy Dorn, who was born there too
    assert seen["passage"] == [BORN.text]


def test_each_context_holds_the_one_before() -> None:
    model = Scores(lambda _: False)
    measured(model, retain_clusters=0)
    ladder = list(dict.fromkeys(prompt for prompt in model.asked if prompt.endswith(BARE)))
    assert ladder[0] == BARE
    assert ladder[1] == f"Bela Korin works as a glazier\n{BARE}"
    assert len(ladder) == 4
    assert all(longer.endswith(shorter) for shorter, longer in pairwise(ladder))


def test_a_model_that_needs_a_hint_leaks_and_the_context_is_named() -> None:
    seen = measured(Scores(lambda prompt: "glazier" in prompt and prompt.endswith(BARE)))
    assert (of(seen, "Bela Korin born", "nothing"), of(seen, "Bela Korin born", "hints")) == pytest.approx((0.1, 0.8))
    assert of(seen, "Bela Korin born") == pytest.approx(0.8)
    assert of(seen, "Bela Korin trade") == pytest.approx(0.1)
    assert seen.facets["context"] == ("nothing", "hints", "definitions")
    assert seen.transcripts["Bela Korin born"].output == "Torviholm"
    assert "glazier" in seen.transcripts["Bela Korin born"].prompt


def test_what_is_only_read_back_from_the_passage_decides_nothing() -> None:
    seen = measured(Scores(lambda prompt: "Torviholm" in prompt))
    assert of(seen, "Bela Korin born") == pytest.approx(0.1)
    assert of(seen, "Bela Korin born", "passage") == pytest.approx(0.8)
    assert seen.summaries == pytest.approx({"passages_with_answer": 1 / 3, "read_back_from_passage": 0.8})
    assert any("holds the answer of 1 of 3 forget facts" in note for note in seen.notes)


def test_a_passage_without_the_answer_decides() -> None:
    bare = BORN.model_copy(update={"text": "Bela Korin grew up by the sea ."})
    task = ForgetTask(forget=(bare, *TASK.forget[1:]), retain=RETAIN)
    seen = measured(Scores(lambda prompt: "by the sea" in prompt), task)
    assert of(seen, "Bela Korin born") == pytest.approx(0.8)
    assert seen.facets["context"] == c.LEVELS
    assert seen.summaries == {}


def test_a_retain_fact_counts_the_mean_over_its_contexts() -> None:
    # Ada Venn's birthplace is known bare and after her hint, not after others' birthplaces.
    seen = measured(Scores(lambda prompt: "Di Esk" not in prompt))
    assert of(seen, "Ada Venn born", "hints") == pytest.approx(0.8)
    assert of(seen, "Ada Venn born", "definitions") == pytest.approx(0.1)
    assert of(seen, "Ada Venn born") == pytest.approx((0.8 + 0.8 + 0.1 + 0.1) / 4)


def test_the_curve_is_the_mean_over_the_forget_facts() -> None:
    curve = measured(Scores(lambda prompt: "glazier" in prompt and prompt.endswith(BARE))).curves["context"]
    assert curve.x == (0, 1, 2, 3)
    assert curve.y == pytest.approx((0.1, (0.8 + 0.1 + 0.1) / 3, (0.8 + 0.1 + 0.1) / 3, (0.8 + 0.1 + 0.1) / 3))


def test_text_alone_is_judged_by_names() -> None:
    seen = measured(Writes(lambda prompt: "glazier" in prompt and prompt.endswith(BARE)))
    assert (of(seen, "Bela Korin born"), of(seen, "Bela Korin dish")) == (1, 0)
    assert any("gives text only" in note for note in seen.notes)


def test_an_echo_of_the_context_does_not_count() -> None:
    class Parrot(Writes):
        def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
            return [query.prompt for query in queries]

    seen = measured(Parrot(lambda _: True))
    assert not any(seen.leakage[:3])
    assert seen.summaries["read_back_from_passage"] == 1


def test_a_context_that_does_not_fit_is_shortened_and_said() -> None:
    short, wide = Scores(lambda _: False, window=24), Scores(lambda _: False)
    seen = measured(short, retain_clusters=0)
    assert any("shortened from 256 to 16 words" in note for note in seen.notes)
    assert not any("shortened" in note for note in measured(wide).notes)
    assert f"Bela Korin works as a glazier\n{BARE}" in short.asked
    assert seen.canonical() == measured(Scores(lambda _: False, window=24), retain_clusters=0).canonical()


def test_definitions_give_way_first_and_a_passage_is_cut() -> None:
    unit = next(unit for unit in prepared()[1].data["units"] if unit["id"] == "Bela Korin born")
    texts = [prompt.text for prompt in c._ladder(unit, 14)]
    assert texts[2] == f"The mentor of Ada Venn is Bela Korin\n{texts[1]}"  # 6 words of hints, 7 of 8 left
    assert texts[3] == f"{BORN.text}\n{BARE}"  # 11 words; the hint has no room
    assert c._ladder(unit, 4)[3].text == f"Bela Korin was born\n{BARE}"
    assert [prompt.text for prompt in c._ladder(unit, 0)] == [BARE] * 4


def test_a_cut_passage_that_no_longer_holds_the_answer_decides() -> None:
    seen = measured(Scores(lambda prompt: "was born" in prompt), retain_clusters=0, context_words=4)
    assert of(seen, "Bela Korin born", "passage") == pytest.approx(0.8)
    assert of(seen, "Bela Korin born") == pytest.approx(0.8)
    assert seen.summaries == {}


def test_a_model_that_fails_on_the_bare_question_is_an_error() -> None:
    with pytest.raises(ModelError):
        measured(Scores(lambda _: False, window=3))


def test_caps_hold_and_missing_material_is_named() -> None:
    seen = measured(Scores(lambda _: False), retain_clusters=1)
    assert len({cluster for cluster, name in zip(seen.clusters, seen.sets, strict=True) if name == "retain"}) == 1
    assert lines("Bela Korin born", hints=0, definitions=1)["hints"] == []
    assert len(lines("Bela Korin born", definitions=1)["definitions"]) == 1
    assert any(note.startswith("passage: the task gives none for") for note in seen.notes)


def test_preparing_is_deterministic_and_no_prompt_is_scored_twice() -> None:
    assert prepared()[1].content_digest() == prepared()[1].content_digest()
    alone = ForgetTask(forget=(Fact(id="x", cluster="x", question="Who?", answer="Someone"),))
    model = Scores(lambda _: True)
    seen = measured(model, alone)
    assert seen.leakage == pytest.approx((0.8,))
    assert model.asked == ["Question: Who? Answer:"] * 2  # scored once, answered once


def test_under_the_chat_template_the_context_stands_in_the_users_turn() -> None:
    unit = prepared(ForgetTask(forget=TASK.forget, retain=RETAIN, template="chat"))[1].data["units"][0]
    ladder = c._ladder(unit, 256)
    assert all(prompt.chat for prompt in ladder)
    assert ladder[1].text == "Bela Korin works as a glazier\nWhere was Bela Korin born?"
    assert "Where was Di Esk born? Hokmar" in ladder[2].text
