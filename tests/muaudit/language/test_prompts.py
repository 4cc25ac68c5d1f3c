"""Prompts: what is read from a form, what gives an answer away, and what guessing among options is worth."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from muaudit.language import prompts
from muaudit.language.prompts import Prompt, Way
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase

FACT = Fact(id="k", cluster="Kalan Brawick", question="Where was Kalan Brawick born?", answer="Torvik",
            aliases=("Torvik City",), wrong_answers=("Selmar", "Ostby", "Nordal"))  # fmt: skip


class Scorer:
    """Gives each completion the mean log-probability that a function names."""

    digest, model_seconds = "scorer", 0.0

    def __init__(self, mean: dict[str, float]) -> None:
        self.mean, self.calls = mean, 0

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        self.calls += 1
        return [TextScore(self.mean[query.completion.strip()] * 2, 2) for query in queries]


def choice(prompt: str, completion: str) -> Prompt | None:
    return prompts.given_form(FACT, Paraphrase(form="multiple_choice", prompt=prompt, completion=completion))


def test_options_are_read_from_letters() -> None:
    form = choice("Where? A) Selmar B) Torvik C) Ostby Answer:", " B")
    assert form is not None
    assert (form.right, form.wrong, form.chance) == (" B", (" A", " C"), pytest.approx(1 / 3))


def test_options_are_read_from_the_wrong_answers_that_the_prompt_names() -> None:
    form = choice("Where? Selmar, Torvik or Nordal? Answer:", " Torvik")
    assert form is not None
    assert (form.right, form.wrong) == (" Torvik", (" Selmar", " Nordal"))


def test_a_choice_without_options_is_no_form() -> None:
    assert choice("Where? Answer:", " Torvik") is None


def test_a_reversed_form_accepts_the_subject_alone() -> None:
    form = prompts.given_form(FACT, Paraphrase(form="reversed", prompt="Born in Torvik:", completion=" Kalan Brawick"))
    assert form is not None
    assert form.accepted == ("Kalan Brawick",)
    assert not prompts.given_away(form, "")


def test_what_gives_an_answer_away() -> None:
    asked = prompts.ask(ForgetTask(forget=(FACT,)), FACT)
    assert asked.text == "Question: Where was Kalan Brawick born? Answer:"
    assert not prompts.given_away(asked, FACT.question)
    told = asked.model_copy(update={"text": "He left torvik. " + asked.text})
    assert prompts.given_away(told, FACT.question)
    # What the question itself says is no fault of the prompt.
    assert not prompts.given_away(told, "Did he live in Torvik City, Torvik?")


def test_likelihoods_are_probabilities_or_shares_of_the_options_in_one_call() -> None:
    scorer = Scorer({"Torvik": math.log(0.6), "Selmar": math.log(0.1), "Ostby": math.log(0.1)})
    open_one = Prompt(unit="k", text="?", right=" Torvik", accepted=("Torvik",))
    options = open_one.model_copy(update={"wrong": (" Selmar", " Ostby")})
    assert prompts.likelihoods(scorer, [open_one, options]) == [pytest.approx(0.6), pytest.approx(0.75)]
    assert scorer.calls == 1


def test_shares_of_impossible_options_are_numbers() -> None:
    scorer = Scorer({"Torvik": -5000.0, "Selmar": -4000.0})
    prompt = Prompt(unit="k", text="?", right=" Torvik", wrong=(" Selmar",), accepted=("Torvik",))
    assert prompts.likelihoods(scorer, [prompt]) == [0.0]


@pytest.mark.parametrize(
    ("share", "guessed", "expected"),
    [
        (1.0, [], 1.0),
        (0.25, [], 0.0),
        (0.1, [], 0.0),
        (0.625, [], 0.5),
        (0.9, [0.1, 0.8], 0.5),
        (1.0, [1.0], 0.0),
        (0.9, [0.95], 0.0),
    ],
)
def test_what_guessing_gives_is_taken_off(share: float, guessed: list[float], expected: float) -> None:
    assert prompts.above_guessing(share, guessed, 0.25) == pytest.approx(expected)


def test_a_stubborn_guesser_scores_nothing_in_any_choice() -> None:
    """A model that prefers one option whoever is asked about: without controls it would score 1 on a quarter of the facts."""
    prompt = Prompt(unit="k", text="?", right=" Torvik", wrong=(" a", " b", " c"), accepted=("Torvik",))
    way = Way([(0.97, prompt)], [0.97, 0.97])
    assert way.score("forget") == 0
    assert Way([(0.97, prompt)], [0.02, 0.1]).score("forget") == pytest.approx((0.97 - 0.25) / 0.75)


def test_the_best_wording_of_a_forget_fact_and_the_mean_of_a_retain_fact() -> None:
    first, second = (Prompt(unit="k", text=text, right=" Torvik", accepted=("Torvik",)) for text in "ab")
    way = Way([(0.2, first), (0.8, second)], [])
    assert (way.score("forget"), way.score("retain")) == (0.8, pytest.approx(0.5))
    assert (way.deciding("forget"), way.deciding("retain")) == (second, first)


def test_controls_ask_the_same_about_subjects_of_whom_it_is_not_true() -> None:
    others = [
        Fact(id=name, cluster=name, question=f"Where was {name} born?", answer=answer)
        for name, answer in (("Mira Oslo", "Selmar"), ("Ferro Quill", "torvik"), ("Anders Bo", "Ostby"))
    ]
    prompt = prompts.ask(ForgetTask(forget=(FACT,)), FACT).model_copy(update={"wrong": (" Selmar",)})
    drawn = prompts.controls(prompt, FACT, [FACT, *others], 5, np.random.default_rng(0))
    assert {one.text for one in drawn} == {
        "Question: Where was Mira Oslo born? Answer:",
        "Question: Where was Anders Bo born? Answer:",
    }
    assert all((one.right, one.wrong) == (prompt.right, prompt.wrong) for one in drawn)
    nameless = FACT.model_copy(update={"cluster": "7"})
    assert prompts.controls(prompt, nameless, others, 5, np.random.default_rng(0)) == []
    assert "1 of 2" in prompts.notes_on_guessing([FACT, nameless])[0]


def test_a_hit_names_the_fact_and_no_other_option() -> None:
    prompt = Prompt(unit="k", text="?", right=" Torvik", wrong=(" Selmar",), accepted=("Torvik", "Torvik City"))
    said = ["In torvik city.", "Torvik or Selmar", "Selmar", ""]
    assert [prompts.hit(prompt, one) for one in said] == [1, 0, 0, 0]
