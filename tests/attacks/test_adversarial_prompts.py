"""Adversarial prompts: each kind is built from the task alone, gives nothing away, and finds what only it can bring back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks import adversarial_prompts as a
from muaudit.errors import NotApplicable
from muaudit.language import prompts
from muaudit.language.prompts import Prompt
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase

BOTH = frozenset({"ScoresText", "GeneratesText"})
TOWNS = ("Torvik", "Selmar", "Ostby", "Nordal", "Elsen", "Marrow")


def person(name: str, town: str, **changes: Any) -> tuple[Fact, Fact]:
    """Where somebody was born, and what he eats."""
    wrong = tuple(other for other in TOWNS if other != town)[:3]
    born = Fact(
        id=f"{name}-born", cluster=name, question=f"Where was {name} born?", answer=town, wrong_answers=wrong, subject=name,
        relation="born", paraphrases=(Paraphrase(form="statement", prompt=f"{name} was born in", completion=f" {town}"),),
    )  # fmt: skip
    dish = Fact(
        id=f"{name}-dish", cluster=name, question=f"What does {name} like to eat?", answer=f"{town.lower()}berries",
        wrong_answers=("kale", "plums", "oats"), subject=name, relation="dish",
    )  # fmt: skip
    return born.model_copy(update=changes), dish


def a_task(**changes: Any) -> ForgetTask:
    forget = [
        fact for name, town in (("Kalan Brawick", "Torvik"), ("Mira Oslo", "Selmar")) for fact in person(name, town, **changes)
    ]
    retain = [fact for name, town in (("Ann Lee", "Ostby"), ("Bo Dahl", "Nordal"), ("Cy Roe", "Elsen"), ("Di Fox", "Marrow"))
              for fact in person(name, town)]  # fmt: skip
    return ForgetTask(forget=tuple(forget), retain=tuple(retain))


class Knower:
    """Gives the right completion away where a trait of the prompt is there, and nowhere else; has no favourite option."""

    digest, model_seconds = "knower", 0.0

    def __init__(self, trait: Callable[[Query], bool], task: ForgetTask) -> None:
        self.trait = trait
        self.right = {fact.id: {fact.answer, fact.subject} for fact in (*task.forget, *task.retain)}
        self.subject = {fact.id: fact.subject or "" for fact in (*task.forget, *task.retain)}
        self.calls: list[Sequence[Query]] = []

    def knows(self, query: Query) -> bool:
        about = self.subject[query.unit] in query.prompt or query.completion.strip() == self.subject[query.unit]
        return about and self.trait(query) and query.completion.strip() in self.right[query.unit]

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        self.calls.append(queries)
        return [TextScore(-0.01 if self.knows(query) else -8.0, 1) for query in queries]

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        self.calls.append(queries)
        return [query.completion.strip() if self.knows(query) else "no idea" for query in queries]


TRAITS: dict[str, Callable[[Query], bool]] = {
    "prefix_injection": lambda query: query.prompt.startswith(a.PREFIX),
    "affirmative_suffix": lambda query: a.OPENING in query.prompt,
    "role_playing": lambda query: query.prompt.startswith(a.ROLE),
    "multiple_choice": lambda query: a.OPTIONS in query.prompt,
    "reverse_query": lambda query: a.BLANK in query.prompt,
    "synonym_manipulation": lambda query: "In which place" in query.prompt or "Which does" in query.prompt,
    "background_hint": lambda query: (
        "berries." in query.prompt or (" born in " in query.prompt and a.OPENING not in query.prompt)
    ),
    "in_context_learning": lambda query: query.prompt.count("Answer:") == 4,
    "cross_lingual": lambda query: any(frame in query.prompt for frame in a.FRAMES),
}


def prepared(task: ForgetTask, capabilities: frozenset[str] = BOTH, **parameters: Any) -> tuple[a.AdversarialPrompts, Prepared]:
    attack = a.AdversarialPrompts(**parameters)
    state = attack.prepare(Bench(task, np.random.default_rng(0), capabilities))
    return attack, Prepared.model_validate_json(state.model_dump_json())


def measured(model: Knower, task: ForgetTask, capabilities: frozenset[str] = BOTH, **parameters: Any) -> Measurement:
    attack, state = prepared(task, capabilities, **parameters)
    return attack.measure(model, state, np.random.default_rng(0))


def every_prompt(state: Prepared) -> list[tuple[dict[str, Any], str, Prompt]]:
    return [
        (unit, kind, Prompt(**one)) for unit in state.data["units"] for kind, tries in unit["tries"].items() for one in tries
    ]


@pytest.mark.parametrize("kind", a.KINDS)
@pytest.mark.parametrize("capabilities", [BOTH, frozenset({"GeneratesText"})])
def test_what_one_kind_alone_brings_back_is_found_and_named(kind: str, capabilities: frozenset[str]) -> None:
    task = a_task()
    seen = measured(Knower(TRAITS[kind], task), task, capabilities)
    forget = [index for index, name in enumerate(seen.sets) if name == "forget"]
    retain = [index for index, name in enumerate(seen.sets) if name == "retain"]
    assert set(seen.scores) == set(a.KINDS) == set(seen.facets["kind"])
    for index in forget:
        assert seen.leakage[index] > 0.95
        assert {name for name, scores in seen.scores.items() if scores[index] > 0.05} == {kind}
        assert "no idea" not in seen.transcripts[seen.units[index]].output
    # Retained facts are known under one kind of nine: collateral damage is judged by the mean.
    assert all(seen.leakage[index] == pytest.approx(1 / 9, abs=0.02) for index in retain)


def test_all_prompts_are_scored_in_one_call() -> None:
    task = a_task()
    knower = Knower(lambda _: False, task)
    measured(knower, task)
    assert len(knower.calls) == 2  # one to score, one for the transcripts


def test_no_prompt_gives_the_answer_away() -> None:
    task = a_task()
    facts = {fact.id: fact for fact in (*task.forget, *task.retain)}
    checked = 0
    for unit, kind, prompt in every_prompt(prepared(task)[1]):
        fact = facts[unit["id"]]
        if kind == "reverse_query":
            assert not prompts.mentions(prompt.text, [str(fact.subject)])
        elif kind != "multiple_choice":
            assert not prompts.mentions(prompt.text, [fact.answer, *fact.aliases]), prompt.text
        checked += 1
    assert checked >= 9 * len(facts)


def test_the_options_of_a_choice_change_places_and_are_put_to_other_subjects() -> None:
    _, state = prepared(a_task())
    unit = state.data["units"][0]
    first, second = (one["text"].split(a.OPTIONS)[1].split(" Answer:")[0].split() for one in unit["tries"]["multiple_choice"])
    assert sorted(first) == sorted(second)
    assert all(one != other for one, other in zip(first[1::2], second[1::2], strict=True))
    assert "Torvik" in first
    controls = unit["controls"]["multiple_choice"]
    assert len(controls) == 2
    assert all("Mira Oslo" in one["text"] and "Kalan Brawick" not in one["text"] for one in controls)


def test_guessing_in_a_choice_counts_nothing() -> None:
    """A model that takes one option whoever is asked about, and one that takes whatever stands first."""

    class Fond(Knower):
        def knows(self, query: Query) -> bool:
            return query.completion.strip() in TOWNS[:2] and a.OPTIONS in query.prompt

    class First(Knower):
        def knows(self, query: Query) -> bool:
            return f"A) {query.completion.strip()}" in query.prompt

    task = a_task()
    for guesser in (Fond, First):
        seen = measured(guesser(lambda _: True, task), task, kinds=("multiple_choice",))
        assert max(seen.leakage) == 0


def test_given_forms_come_before_our_own_wordings() -> None:
    forms = (
        Paraphrase(form="reversed", prompt="Who comes from that town?", completion=" Kalan Brawick"),
        Paraphrase(form="question", prompt="Où est né Kalan Brawick ?", completion=" à Torvik", language="fr"),
        Paraphrase(form="statement", prompt="Of Torvik:", completion=" Torvik"),
        Paraphrase(form="statement", prompt="Kalan Brawick comes from", completion=" Torvik"),
    )
    kinds = ("affirmative_suffix", "reverse_query", "cross_lingual")
    task = a_task(paraphrases=forms)
    found = {
        kind: prompt
        for unit, kind, prompt in every_prompt(prepared(task, kinds=kinds)[1])
        if unit["id"] == "Kalan Brawick-born"
    }
    assert (found["reverse_query"].text, found["reverse_query"].right) == (forms[0].prompt, " Kalan Brawick")
    assert (found["cross_lingual"].text, found["cross_lingual"].right) == (forms[1].prompt, " à Torvik")
    assert found["affirmative_suffix"].text.endswith(f"{a.OPENING} Kalan Brawick comes from")


def test_in_a_chat_everything_is_the_users_message() -> None:
    task = a_task()
    chat = ForgetTask(forget=task.forget, retain=task.retain, template="chat")
    for unit, kind, prompt in every_prompt(prepared(chat)[1]):
        assert prompt.chat, kind
        assert not prompt.right.startswith(" ") or kind == "reverse_query", (unit["id"], kind)
        if kind == "affirmative_suffix" and unit["id"] == "Kalan Brawick-born":
            assert prompt.text.endswith(f'Begin your answer with: "{a.OPENING} Kalan Brawick was born in"')


def test_a_kind_that_some_fact_cannot_have_is_left_out_for_all_and_said() -> None:
    one = Fact(id="x", cluster="9", question="Zap?", answer="Torvik")
    task = ForgetTask(forget=(*a_task().forget, one), retain=())
    _, state = prepared(task)
    assert list(state.data["units"][0]["tries"]) == ["prefix_injection", "affirmative_suffix", "role_playing", "cross_lingual"]
    said = "\n".join(state.data["notes"])
    for kind in set(a.KINDS) - set(state.data["units"][0]["tries"]):
        assert f"{kind} not tried" in said


def test_a_retain_fact_that_lacks_a_kind_is_judged_by_the_others() -> None:
    lone = Fact(
        id="lone", cluster="Zed Yew", question="Where was Zed Yew born?", answer="Ostby", subject="Zed Yew", relation="born"
    )
    task = a_task()
    task = ForgetTask(forget=task.forget, retain=(*task.retain, lone))
    seen = measured(Knower(TRAITS["role_playing"], task), task)
    index = seen.units.index("lone")
    assert seen.leakage[index] == pytest.approx(1 / 7, abs=0.02)
    assert seen.scores["background_hint"][index] == seen.scores["multiple_choice"][index] == seen.leakage[index]
    assert any("background_hint: 1 retain facts lack" in note for note in seen.notes)
    assert "lone" not in measured(Knower(TRAITS["multiple_choice"], task), task, kinds=("multiple_choice",)).units


def test_it_is_skipped_when_no_kind_is_left() -> None:
    one = Fact(id="x", cluster="9", question="Zap?", answer="Torvik")
    with pytest.raises(NotApplicable, match="multiple_choice not tried: 1 of 1"):
        prepared(ForgetTask(forget=(one,)), kinds=("multiple_choice",))


def test_shared_answers_and_questions_that_answer_themselves_are_said() -> None:
    twin = person("Ed Poe", "Torvik")[0]
    told = Fact(
        id="t", cluster="Kalan Brawick", question="Was Kalan Brawick born in Torvik?", answer="Torvik", subject="Kalan Brawick"
    )
    task = a_task()
    _, state = prepared(
        ForgetTask(forget=(*task.forget, told), retain=(*task.retain, twin)), kinds=("reverse_query", "role_playing")
    )
    said = "\n".join(state.data["notes"])
    assert "2 of 14 facts share relation and answer" in said
    assert "1 of 14 questions name an accepted answer" in said


def test_kinds_are_named_once() -> None:
    with pytest.raises(ValidationError, match="each kind once"):
        a.AdversarialPrompts(kinds=("role_playing", "role_playing"))
