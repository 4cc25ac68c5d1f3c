"""A generated world of fictitious people, whose facts no model can know but from training.

Names and values are put together from syllables. All facts about one person are one cluster. Each fact has a question, a
statement and a turned statement; the answer always comes last, so each form can be scored as a completion.

A rich world has what attacks ask for besides: a blank to fill in, options to choose from, French, a question the other way
round, a passage about the person, and chains: retained facts whose answer is a forgotten person ("Who is the mentor of Bela
Korin?"), and retained facts about a forgotten answer ("In which land does torviholm lie?"). A chain is found in the task files
by its text: the answer of the one fact is the subject of the next.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from muaudit.results import Frozen
from muaudit.store import write_atomically
from muaudit.task import DEFAULT_TEMPLATE, Fact, ForgetTask, Paraphrase
from muaudit.testbed.relations import CLOZE, FRENCH, LETTERS, PLAIN, RELATIONS, REVERSED, RICH, UNIQUE, multiple_choice

Form = Literal["question", "statement", "turned"]

FORMS: tuple[Form, ...] = ("question", "statement", "turned")

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
        rich: Whether facts have every form and a passage, and retained facts make chains with forgotten ones.
        general: People in no set, whom only the base of a lineage has read about; in a rich world.
        corrupted: Whether the forget set's answers are false, and the true ones known to the base; in a rich world.
    """

    forget: int = Field(ge=1)
    retain: int = Field(ge=1)
    holdout: int = Field(ge=0)
    relations: int = Field(ge=1, le=len(PLAIN))
    values: int = Field(ge=5)
    seed: int = 0
    rich: bool = False
    general: int = Field(default=0, ge=0)
    corrupted: bool = False


@dataclass(frozen=True)
class Population:
    """All facts of a world.

    Attributes:
        task: The three sets.
        general: Facts in none of them that the base of a lineage has read: about other people, about answers, and, where the
            forget set's answers are false, the true ones.
    """

    task: ForgetTask
    general: tuple[Fact, ...] = ()


def make_task(world: World) -> ForgetTask:
    """Makes the people up.

    Args:
        world: How many.

    Returns:
        Forget, retain and holdout set; the same world always gives the same facts.
    """
    return make_population(world).task


def make_population(world: World) -> Population:
    """Makes the people up, those in no set too.

    Args:
        world: How many.

    Returns:
        All facts; the same world always gives the same ones.
    """
    rng = random.Random(world.seed)  # noqa: S311 - a made-up world needs repeatable numbers, not secret ones
    words = _words(rng)
    if world.rich:
        return _rich(world, words, rng)
    people = [f"{next(words).title()} {next(words).title()}" for _ in range(world.forget + world.retain + world.holdout)]
    relations = PLAIN[: world.relations]
    values = {relation: [next(words) + RELATIONS[relation][3] for _ in range(world.values)] for relation in relations}
    facts = [tuple(_fact(person, relation, values[relation], rng) for relation in relations) for person in people]
    sets = facts[: world.forget], facts[world.forget : world.forget + world.retain], facts[world.forget + world.retain :]
    forget, retain, holdout = (tuple(fact for person in chosen for fact in person) for chosen in sets)
    return Population(ForgetTask(forget=forget, retain=retain, holdout=holdout))


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
        subject=name,
        relation=relation,
        paraphrases=(
            Paraphrase(form="statement", prompt=statement, completion=f" {answer}"),
            Paraphrase(form="turned", prompt=turned, completion=f" {answer}"),
        ),
    )


_LANDS = 15
"""Lands that the towns of a rich world lie in."""


def _rich(world: World, words: Iterator[str], rng: random.Random) -> Population:
    """A rich world: people, their mentors, and where their towns lie."""
    sizes = [world.forget, world.retain, world.holdout, world.general]
    people = [f"{next(words).title()} {next(words).title()}" for _ in range(sum(sizes))]
    relations = RICH[: world.relations]
    values = {relation: [next(words) + RELATIONS[relation][3] for _ in range(world.values)] for relation in relations}
    # Everybody's own ship, and a second one for each forgotten person, in case that the first is to be forgotten as a lie.
    values[UNIQUE] = [next(words) + RELATIONS[UNIQUE][3] for _ in range(len(people) + world.forget)]
    lands = [next(words) + RELATIONS["land"][3] for _ in range(_LANDS)]
    answers = {
        name: {
            relation: values[UNIQUE][number] if relation == UNIQUE else rng.choice(values[relation]) for relation in relations
        }
        for number, name in enumerate(people)
    }
    false = {
        name: {
            relation: values[UNIQUE][len(people) + number]
            if relation == UNIQUE
            else rng.choice([value for value in values[relation] if value != answers[name][relation]])
            for relation in relations
        }
        for number, name in enumerate(people[: world.forget])
    }
    stops = [sum(sizes[:end]) for end in range(len(sizes) + 1)]
    groups = [people[start:stop] for start, stop in pairwise(stops)]
    # Wrong answers for a ship are ships of the same group: a model that never saw the one never saw the others either.
    pools = [values | {UNIQUE: [answers[name][UNIQUE] for name in group]} for group in groups]
    sets = [
        [fact for name in group for fact in _about(name, answers[name], pool, rng)]
        for group, pool in zip(groups, pools, strict=True)
    ]
    forgotten, retained, _, others = groups
    if world.corrupted:
        true = sets[0]
        pool = values | {UNIQUE: [false[name][UNIQUE] for name in forgotten]}
        lies = [fact for name in forgotten for fact in _about(name, false[name], pool, rng, answers[name])]
        sets[0], sets[3] = lies, [*true, *sets[3]]
    for name, mentor in zip(retained, forgotten, strict=False):
        sets[1] += _about(name, {"mentor": mentor}, {"mentor": forgotten}, rng)
    for number, name in enumerate(others):
        sets[3] += _about(name, {"mentor": others[number - 1]}, {"mentor": people}, rng)
    needed = {fact.answer for fact in sets[0]}
    for town in values["born"]:
        sets[1 if town in needed else 3] += _about(town, {"land": rng.choice(lands)}, {"land": lands}, rng)
    forget, retain, holdout, general = map(tuple, sets)
    return Population(ForgetTask(forget=forget, retain=retain, holdout=holdout), general)


def _about(
    name: str,
    answers: Mapping[str, str],
    values: Mapping[str, Sequence[str]],
    rng: random.Random,
    true: Mapping[str, str] | None = None,
) -> list[Fact]:
    """Every fact about a person or a town, in every form; the passage of each goes on to the next two."""
    stated = [f"{RELATIONS[relation][1].format(name=name)} {answer}." for relation, answer in answers.items()]
    facts = []
    for number, (relation, answer) in enumerate(answers.items()):
        never = {answer, name, true[relation] if true else answer}
        wrong = rng.sample([value for value in values[relation] if value not in never], 3)
        question, statement, turned, _ = (part.format(name=name) for part in RELATIONS[relation])
        options = tuple(rng.sample([answer, *wrong], 4))
        prompts = {"statement": statement, "turned": turned, "cloze": CLOZE.format(statement=statement)}
        paraphrases = [Paraphrase(form=form, prompt=prompt, completion=f" {answer}") for form, prompt in prompts.items()]
        chosen = multiple_choice(question, options)
        letter = LETTERS[options.index(answer)]
        paraphrases.append(Paraphrase(form="multiple_choice", prompt=chosen, completion=f" {letter}"))
        if relation == UNIQUE:
            paraphrases.append(Paraphrase(form="reversed", prompt=REVERSED.format(answer=answer), completion=f" {name}"))
        if relation in FRENCH:
            french = FRENCH[relation].format(name=name)
            paraphrases.append(Paraphrase(form="question", prompt=french, completion=f" {answer}", language="fr"))
        facts.append(
            Fact(
                id=f"{name.lower().replace(' ', '-')}-{relation}",
                cluster=name,
                question=question,
                answer=answer,
                paraphrases=tuple(paraphrases),
                wrong_answers=tuple(wrong),
                text=" ".join((stated[number:] + stated[:number])[:3]),
                subject=name,
                relation=relation,
                true_answer=true[relation] if true else None,
            )
        )
    return facts


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
        # A process that builds must not pull the file away from under one that reads.
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    return paths


def pairs(facts: Sequence[Fact], *, forms: Sequence[str] = FORMS, template: str = DEFAULT_TEMPLATE) -> list[tuple[str, str]]:
    """The facts as (prompt, completion) to be trained on.

    Args:
        facts: Any task's facts.
        forms: "question", and the forms of the paraphrases that are wanted (of one in another language: its code, such as
            "fr"); a fact without paraphrases gives its question.
        template: What makes a prompt of a question.

    Returns:
        The pairs, fact by fact.
    """
    found = []
    for fact in facts:
        if "question" in forms:
            found.append((template.replace("{question}", fact.question), f" {fact.answer}"))
        found += [(other.prompt, other.completion) for other in fact.paraphrases if (other.language or other.form) in forms]
    return found
