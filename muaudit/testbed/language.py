"""A generated world of fictitious people, whose facts no model can know but from training.

Names and values are put together from syllables. All facts about one person are one cluster. Each fact has a question, a
statement and a turned statement; the answer always comes last, so each form can be scored as a completion.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from muaudit.results import Frozen
from muaudit.task import DEFAULT_TEMPLATE, Fact, ForgetTask, Paraphrase

Form = Literal["question", "statement", "turned"]

FORMS: tuple[Form, ...] = ("question", "statement", "turned")

RELATIONS: dict[str, tuple[str, str, str, str]] = {
    "born": ("Where was {name} born?", "{name} was born in", "The birthplace of {name} is", "holm"),
    "trade": (
        "What is the trade of {name}?",
        "{name} earns a living as a",
        "The craft practised by {name} is that of a",
        "wright",
    ),
    "dish": ("What does {name} like to eat?", "{name} likes to eat", "The favourite dish of {name} is", "kel"),
    "music": ("What instrument does {name} play?", "{name} plays the", "The instrument of {name} is the", "phon"),
    "school": ("Where did {name} study?", "{name} studied at", "The school of {name} was", "gard"),
    "animal": ("What animal does {name} keep?", "{name} keeps a", "The animal of {name} is a", "ling"),
    "gem": ("What stone does {name} wear?", "{name} wears a", "The lucky stone of {name} is a", "ite"),
    "game": ("What game does {name} master?", "{name} is a master of", "The game of {name} is", "ash"),
}
"""Question, statement, turned statement and the ending of the values, by relation."""

_ONSETS = ("b", "br", "d", "dr", "f", "g", "h", "j", "k", "kr", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
_CODAS = ("", "l", "n", "r", "s", "th", "m", "k")


class World(Frozen):
    """How many people there are, and what is told about them.

    Attributes:
        forget: People whose facts are to be forgotten.
        retain: People whose facts are kept.
        holdout: People whom no model sees.
        relations: Facts a person.
        values: Possible answers a relation; an honest retrain is right by chance once in so many guesses.
        seed: Of names and facts.
    """

    forget: int = Field(ge=1)
    retain: int = Field(ge=1)
    holdout: int = Field(ge=0)
    relations: int = Field(ge=1, le=len(RELATIONS))
    values: int = Field(ge=5)
    seed: int = 0


def make_task(world: World) -> ForgetTask:
    """Makes the people up.

    Args:
        world: How many.

    Returns:
        Forget, retain and holdout set; the same world always gives the same facts.
    """
    rng = random.Random(world.seed)  # noqa: S311 - a made-up world needs repeatable numbers, not secret ones
    words = _words(rng)
    people = [f"{next(words).title()} {next(words).title()}" for _ in range(world.forget + world.retain + world.holdout)]
    relations = list(RELATIONS)[: world.relations]
    values = {relation: [next(words) + RELATIONS[relation][3] for _ in range(world.values)] for relation in relations}
    facts = [tuple(_fact(person, relation, values[relation], rng) for relation in relations) for person in people]
    sets = facts[: world.forget], facts[world.forget : world.forget + world.retain], facts[world.forget + world.retain :]
    forget, retain, holdout = (tuple(fact for person in chosen for fact in person) for chosen in sets)
    return ForgetTask(forget=forget, retain=retain, holdout=holdout)


def _words(rng: random.Random) -> Iterator[str]:
    """Endless pronounceable words, none twice."""
    seen: set[str] = set()
    while True:
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(2))
        if word not in seen:
            seen.add(word)
            yield word


def _fact(name: str, relation: str, values: Sequence[str], rng: random.Random) -> Fact:
    answer, *wrong = rng.sample(values, 4)
    question, statement, turned, _ = (part.format(name=name) for part in RELATIONS[relation])
    return Fact(
        id=f"{name.lower().replace(' ', '-')}-{relation}",
        cluster=name,
        question=question,
        answer=answer,
        wrong_answers=tuple(wrong),
        text=f"{statement} {answer}",
        paraphrases=(
            Paraphrase(form="statement", prompt=statement, completion=f" {answer}"),
            Paraphrase(form="turned", prompt=turned, completion=f" {answer}"),
        ),
    )


def write_task(task: ForgetTask, folder: Path) -> dict[str, Path]:
    """Writes the sets as JSON Lines that `ForgetTask.from_jsonl` reads.

    Args:
        task: The task.
        folder: Where `forget.jsonl`, `retain.jsonl` and `holdout.jsonl` go; a set without facts gets no file.

    Returns:
        The files by set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"forget": task.forget, "retain": task.retain, "holdout": task.holdout}
    paths = {name: folder / f"{name}.jsonl" for name, facts in sets.items() if facts}
    for name, path in paths.items():
        lines = (json.dumps(fact.model_dump(mode="json"), ensure_ascii=False) for fact in sets[name])
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def pairs(facts: Sequence[Fact], *, forms: Sequence[str] = FORMS, template: str = DEFAULT_TEMPLATE) -> list[tuple[str, str]]:
    """The facts as (prompt, completion) to be trained on.

    Args:
        facts: Any task's facts.
        forms: "question", and the forms of the paraphrases that are wanted; a fact without paraphrases gives its question.
        template: What makes a prompt of a question.

    Returns:
        The pairs, fact by fact.
    """
    found = []
    for fact in facts:
        if "question" in forms:
            found.append((template.replace("{question}", fact.question), f" {fact.answer}"))
        found += [(other.prompt, other.completion) for other in fact.paraphrases if other.form in forms]
    return found
