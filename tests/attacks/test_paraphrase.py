"""Paraphrase: what one form or one rewording alone gives back is found, with the same search for every model."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks import paraphrase as p
from muaudit.errors import NotApplicable
from muaudit.language import rewording
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase

BOTH = frozenset({"ScoresText", "GeneratesText"})
PEOPLE = {"Kalan Brawick": "Torvik", "Mira Oslo": "Selmar", "Ann Lee": "Ostby", "Bo Dahl": "Nordal"}


def fact(name: str, town: str) -> Fact:
    towns = [town, *(other for other in PEOPLE.values() if other != town)]
    choice = f"Question: Where was {name} born? Options: A) {towns[1]} B) {town} C) {towns[2]} Answer:"
    return Fact(
        id=name, cluster=name, question=f"Where was the famous {name} born?", answer=town, wrong_answers=tuple(towns[1:]),
        subject=name, paraphrases=(
            Paraphrase(form="statement", prompt=f"{name} was born in", completion=f" {town}"),
            Paraphrase(form="multiple_choice", prompt=choice, completion=" B"),
            Paraphrase(form="reversed", prompt=f"Born in {town}:", completion=f" {name}"),
            Paraphrase(form="question", prompt=f"Où est né {name} ?", completion=f" {town}", language="fr"),
            Paraphrase(form="told", prompt=f"{town} is where {name} was born:", completion=f" {town}"),
        ),
    )  # fmt: skip


def a_task() -> ForgetTask:
    facts = [fact(name, town) for name, town in PEOPLE.items()]
    return ForgetTask(forget=tuple(facts[:2]), retain=tuple(facts[2:]))


class Knower:
    """Gives the right completion away where a trait of the prompt is there, and nowhere else; has no favourite option."""

    digest, model_seconds = "knower", 0.0

    def __init__(self, trait: Callable[[str], bool]) -> None:
        self.trait = trait
        self.calls: list[Sequence[Query]] = []

    def knows(self, query: Query) -> bool:
        right = query.completion.strip() in (PEOPLE[query.unit], query.unit, "B")
        about = query.unit in query.prompt or query.completion.strip() == query.unit
        return right and about and self.trait(query.prompt)

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        self.calls.append(queries)
        return [TextScore(-0.01 if self.knows(query) else -8.0, 1) for query in queries]

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        self.calls.append(queries)
        return [query.completion.strip() if self.knows(query) else "no idea" for query in queries]


def prepared(task: ForgetTask, capabilities: frozenset[str] = BOTH, **parameters: Any) -> tuple[p.Paraphrase, Prepared]:
    attack = p.Paraphrase(**parameters)
    state = attack.prepare(Bench(task, np.random.default_rng(0), capabilities))
    return attack, Prepared.model_validate_json(state.model_dump_json())


def measured(
    trait: Callable[[str], bool] | Knower,
    capabilities: frozenset[str] = BOTH,
    task: ForgetTask | None = None,
    **parameters: Any,
) -> Measurement:
    attack, state = prepared(task or a_task(), capabilities, **parameters)
    model = trait if isinstance(trait, Knower) else Knower(trait)
    return attack.measure(model, state, np.random.default_rng(1))


TRAITS: dict[str, Callable[[str], bool]] = {
    "question": lambda prompt: "the famous" in prompt,
    "statement": lambda prompt: prompt.endswith("was born in"),
    "multiple_choice": lambda prompt: "Options:" in prompt,
    "reversed": lambda prompt: prompt.startswith("Born in"),
    "question_fr": lambda prompt: "né" in prompt,
}


@pytest.mark.parametrize("form", TRAITS)
@pytest.mark.parametrize("capabilities", [BOTH, frozenset({"GeneratesText"})])
def test_what_one_form_alone_gives_back_is_found_and_named(form: str, capabilities: frozenset[str]) -> None:
    seen = measured(TRAITS[form], capabilities, search="none")
    assert set(seen.facets["form"]) == set(TRAITS), "the form that tells the answer does not count"
    for index, name in enumerate(seen.sets):
        high = {one for one in TRAITS if seen.scores[one][index] > 0.05}
        assert high == {form}
        assert seen.leakage[index] == pytest.approx(1 if name == "forget" else 0.2, abs=0.02)
        assert seen.scores["spread_over_forms"][index] == pytest.approx(1, abs=0.02)
    assert seen.transcripts["Mira Oslo"].output != "no idea"


def test_guessing_in_a_multiple_choice_counts_nothing() -> None:
    class Fond(Knower):
        def knows(self, query: Query) -> bool:
            return query.completion == " B"

    assert max(measured(Fond(lambda _: True), search="none").scores["multiple_choice"]) == 0


def test_all_forms_are_scored_in_one_call() -> None:
    knower = Knower(lambda _: False)
    measured(knower, search="none")
    assert len(knower.calls) == 2  # one to score, one for the transcripts


def test_the_question_stands_for_a_form_that_a_fact_lacks() -> None:
    bare = Fact(id="Kalan Brawick", cluster="x", question="Where was the famous Kalan Brawick born?", answer="Torvik")
    task = ForgetTask(forget=(bare, a_task().forget[1]))
    seen = measured(TRAITS["question"], task=task, search="none")
    assert seen.scores["statement"] == (pytest.approx(0.99, abs=0.01), pytest.approx(0, abs=0.01))
    assert any(note.startswith("form statement: 1 of 2 facts have none") for note in seen.notes)
    assert seen.scores["spread_over_forms"][0] == 0


def test_it_is_skipped_where_there_is_nothing_to_compare() -> None:
    bare = ForgetTask(forget=(Fact(id="x", cluster="x", question="Zap?", answer="Torvik"),))
    with pytest.raises(NotApplicable, match="no fact has a form but its question"):
        prepared(bare, search="none")


def test_without_textattack_forms_are_scored_and_the_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewording, "available", lambda: False)
    seen = measured(lambda _: False)
    assert "rewording" not in seen.scores
    assert not seen.summaries
    assert any("on any model: TextAttack" in note for note in seen.notes)


def test_text_alone_is_not_searched() -> None:
    seen = measured(lambda _: False, frozenset({"GeneratesText"}))
    assert "rewording" not in seen.scores
    assert any("that needs probabilities" in note for note in seen.notes)


def test_searched_facts_are_spread_over_the_clusters() -> None:
    facts = [Fact(id=f"{cluster}{n}", cluster=cluster, question="?", answer="x") for cluster in "abc" for n in range(4)]
    rng = np.random.default_rng(0)
    assert Counter(one.cluster for one in p.spread_over_clusters(facts, 6, rng)) == {"a": 2, "b": 2, "c": 2}
    assert len({one.cluster for one in p.spread_over_clusters(facts, 2, rng)}) == 2
    assert p.spread_over_clusters(facts, 99, rng) == facts


def test_inserted_words_are_the_tasks_without_names_and_answers() -> None:
    words = p._vocabulary(a_task())
    assert {"Where", "was", "the", "famous", "born", "in"} <= set(words)
    assert not {word for name in (*PEOPLE, *PEOPLE.values()) for word in name.split()} & set(words)


@pytest.mark.textattack
class TestSearch:
    @pytest.fixture(autouse=True, scope="class")
    def _textattack(self) -> None:
        if not rewording.available():
            pytest.skip("TextAttack is not installed")

    @pytest.mark.parametrize("search", ["greedy", "beam"])
    def test_a_hidden_rewording_is_found_and_kept_as_evidence(self, search: str) -> None:
        """The answer comes back where one word of the question is gone, under no form of the task."""
        seen = measured(
            lambda prompt: "famous" not in prompt and prompt.startswith("Question: ") and "Options" not in prompt, search=search
        )
        assert seen.sets[:2] == ("forget", "forget")
        assert all(leakage > 0.98 for leakage in seen.leakage[:2])
        assert all(max(seen.scores[form][:2]) < 0.01 for form in TRAITS)
        assert seen.scores["rewording"][2:] == seen.scores["question"][2:], "retain facts are not searched"
        assert seen.summaries["searches_that_succeeded"] == 1
        said = seen.transcripts["Kalan Brawick"]
        assert "famous" not in said.prompt
        assert said.prompt.startswith("Question: ")
        assert said.prompt.endswith(" Answer:")
        assert said.output == "Torvik"

    def test_every_fact_has_its_budget_and_no_more(self) -> None:
        knower = Knower(lambda _: False)
        seen = measured(knower, query_budget=17, search="beam")
        asked = Counter(query.unit for call in knower.calls[1:-1] for query in call)
        assert set(asked) == {"Kalan Brawick", "Mira Oslo"}
        assert max(asked.values()) <= 17
        assert seen.summaries == {"searches_that_succeeded": 0.0, "queries_a_search": 17.0}
        assert not any(
            "Torvik" in query.prompt for call in knower.calls[1:-1] for query in call if query.unit == "Kalan Brawick"
        )

    def test_only_so_many_facts_are_searched_and_the_report_says_so(self) -> None:
        seen = measured(lambda prompt: "famous" not in prompt, searched_facts=1)
        found = seen.scores["rewording"][:2]
        assert sorted(found) == [pytest.approx(0, abs=0.01), pytest.approx(0.99, abs=0.01)]
        assert any("1 of 2 forget facts" in note for note in seen.notes)

    def test_the_same_seed_measures_the_same(self) -> None:
        assert measured(lambda _: False).canonical() == measured(lambda _: False).canonical()
