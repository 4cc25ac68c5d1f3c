"""Chains are found by text alone, and described without giving anything away."""

import pytest

from muaudit.language.chains import Links, description, ring
from muaudit.task import Fact, Paraphrase


def fact(name: str, question: str, answer: str, subject: str | None = None, **more: object) -> Fact:
    return Fact(id=name, cluster=name, question=question, answer=answer, subject=subject, **more)


BORN = fact("born", "Where was Bela Korin born?", "Torviholm", "Bela Korin")
MENTOR = fact("mentor", "Who is the mentor of Ada Venn?", "Béla Korin", "Ada Venn")
PUPIL = fact("pupil", "Who is the pupil of Ugo Marsh?", "Ada Venn", "Ugo Marsh")
LAND = fact("land", "In which land does Torviholm lie?", "Selmgard", "Torviholm")
OTHER = fact("other", "Where was Cy Dorn born?", "Torviholm", "Cy Dorn")


def ids(facts: list[Fact]) -> list[str]:
    return [one.id for one in facts]


def test_a_fact_is_led_to_by_facts_whose_answer_is_its_subject() -> None:
    links = Links([MENTOR, PUPIL, LAND, OTHER])
    assert ids(links.into(BORN)) == ["mentor"]  # accents do not matter
    assert ids(links.into(LAND)) == ["other"]
    assert ids(links.out_of(BORN)) == ["land"]
    assert links.into(PUPIL) == []


def test_longer_chains_go_on_from_shorter_ones() -> None:
    paths = list(Links([MENTOR, PUPIL, LAND, OTHER]).paths(BORN, premises=2))
    assert [ids(list(path)) for path in paths] == [["mentor"], ["pupil", "mentor"]]


def test_a_ring_of_facts_ends() -> None:
    back = fact("back", "Whom did Bela Korin teach?", "Ada Venn", "Bela Korin")
    paths = list(Links([MENTOR, back]).paths(BORN, premises=4))
    assert [ids(list(path)) for path in paths] == [["mentor"], ["back", "mentor"]]


def test_aliases_lead_on_too() -> None:
    known_as = MENTOR.model_copy(update={"answer": "B. K.", "aliases": ("Bela Korin",)})
    assert ids(Links([known_as]).into(BORN)) == ["mentor"]


def test_without_a_subject_the_question_is_searched() -> None:
    bare = fact("bare", "Where was Bela Korin born?", "Torviholm")
    lies = fact("lies", "In which land does Torviholm lie?", "Selmgard")
    assert ids(Links([MENTOR, LAND]).into(bare)) == ["mentor"]
    assert ids(Links([lies]).out_of(bare)) == ["lies"]


def test_a_question_that_names_the_subject_leads_nowhere() -> None:
    telling = fact("telling", "Is Bela Korin or Ada Venn older?", "Bela Korin", "Ada Venn")
    assert Links([telling]).into(BORN) == []


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The birthplace of Bela Korin is", "the birthplace of Bela Korin"),
        ("The instrument of Bela Korin is the", "the instrument of Bela Korin"),
        ("Bela Korin's lucky stone is a", "Bela Korin's lucky stone"),
        ("Bela Korin was born in", None),
        ("Bela Korin is a", None),
    ],
)
def test_a_description_stands_for_the_answer(prompt: str, expected: str | None) -> None:
    form = Paraphrase(form="turned", prompt=prompt, completion=" Torviholm")
    assert description(BORN.model_copy(update={"paraphrases": (form,)})) == expected


def test_the_ring_of_a_cluster_starts_with_the_next_fact() -> None:
    facts = [Fact(id=name, cluster="c", question=f"{name}?", answer="x") for name in "abcd"]
    assert ids(ring([*facts, BORN], facts[1])) == ["c", "d", "a"]
