"""Concepts: what value vectors are said to carry. A forgotten cluster is one; so is each entry of a ConceptVectors file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from muaudit.errors import UsageError
from muaudit.language.judging import normalised
from muaudit.language.rivals import Rivals
from muaudit.models import Query
from muaudit.results import Frozen
from muaudit.task import Fact, ForgetTask

LARGEST = 512 * 2**20
"""Bytes of a concept file; the published ones have a few megabytes."""

COMMON = frozenset(
    normalised(
        """a about after all also an and any are as at be been before but by can could did do does for from had has have he her
        him his how i if in into is it its more most my no not of on one only or other our out over she so some such than that
        the their them then there these they this those to two under up was we were what when where which while who will with
        would you your"""
    ).split(" ")
)
"""English words that say nothing about a concept."""


class Probe(Frozen):
    """One text in which a concept shows.

    Attributes:
        unit: The fact that it states; a number of the concept's where there are no facts.
        form: Its form, such as "question".
        prompt: What stands before.
        completions: The right completion first, then wrong ones that compete with it.
        chat: Whether the prompt goes through the chat template.
    """

    unit: str
    form: str
    prompt: str
    completions: tuple[str, ...]
    chat: bool = False

    def queries(self) -> list[Query]:
        """The prompt with each completion, the right one first."""
        return [
            Query(self.unit, "wrong_answer" if index else "answer", self.prompt, completion, index, self.chat)
            for index, completion in enumerate(self.completions)
        ]


class Concept(Frozen):
    """What value vectors may carry.

    Attributes:
        name: Of the person or thing.
        probes: Where it shows.
        words: Normalised words that belong to it.
        vector: Layer and column of the value vector that is said to carry it, where that is known.
    """

    name: str
    probes: tuple[Probe, ...]
    words: frozenset[str]
    vector: tuple[int, int] | None = None


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """The normalised words of some texts, without the common ones."""
    return frozenset(word for text in texts for word in normalised(text).split()) - COMMON


def of_task(task: ForgetTask, *, forms: int, rivals: int, rng: np.random.Generator) -> list[Concept]:
    """One concept a forgotten cluster.

    Args:
        task: The forget set; the retain set's answers compete too.
        forms: At most so many restatements of each fact, beside its question.
        rivals: At most so many wrong answers each.
        rng: Draws them.

    Returns:
        The concepts, in the order of the forget set.
    """
    found = Rivals(task)
    clusters: dict[str, list[Fact]] = {}
    for fact in task.forget:
        clusters.setdefault(fact.cluster, []).append(fact)
    return [
        Concept(
            name=name,
            probes=tuple(
                probe for fact in facts for probe in _probes(task, fact, found.of(fact, rivals, rng), forms)
            ),
            words=words_of(text for fact in facts for text in (fact.subject or fact.cluster, fact.answer, *fact.aliases)),
        )
        for name, facts in clusters.items()
    ]  # fmt: skip


def _probes(task: ForgetTask, fact: Fact, rivals: Sequence[str], forms: int) -> list[Probe]:
    asked = task.ask(fact)
    answers = (fact.answer, *rivals)
    completions = tuple(task.ask(fact, answer).completion for answer in answers)
    probes = [Probe(unit=fact.id, form="question", prompt=asked.prompt, completions=completions, chat=asked.chat)]
    for form in [one for one in fact.restatements if fact.answer in one.completion][:forms]:
        completions = tuple(form.completion.replace(fact.answer, answer) for answer in answers)
        probes.append(Probe(unit=fact.id, form=form.form, prompt=form.prompt, completions=completions))
    return probes


class _Halves(BaseModel):
    model_config = ConfigDict(extra="ignore")

    first: Annotated[str, Field(alias="First_half", min_length=1)]
    second: Annotated[str, Field(alias="Second_half", min_length=1)]


class _Entry(BaseModel):
    """One concept as ConceptVectors publishes it; what is not needed here is not looked at."""

    model_config = ConfigDict(extra="ignore")

    concept: Annotated[str, Field(alias="Concept", min_length=1)]
    layer: Annotated[int, Field(alias="Layer", ge=0)]
    dim: Annotated[int, Field(alias="Dim", ge=0)]
    completions: Annotated[list[_Halves], Field(alias="text_completion", min_length=1)]
    article: Annotated[str, Field(alias="wikipedia_content", min_length=1)]


def of_file(path: Path, name: str, *, rivals: int, rng: np.random.Generator) -> list[Concept]:
    """The concepts of a ConceptVectors file (Hong et al. 2024), with the value vectors that it names.

    Its questions come without answers, so a concept is probed by its text completions: the second half of a sentence from its
    article competes with second halves that belong to other concepts.

    Args:
        path: The JSON file.
        name: What to call it in an error.
        rivals: At most so many competing second halves each.
        rng: Draws them.

    Returns:
        The concepts, in the file's order.

    Raises:
        UsageError: The file cannot be read, or is not of that layout; the message names the entry and the field.
    """
    entries = _entries(path, name)
    found = []
    for number, entry in enumerate(entries):
        others = [half.second for other in entries if other is not entry for half in other.completions]
        probes = []
        for place, half in enumerate(entry.completions, 1):
            drawn = rng.permutation(len(others))[:rivals]
            second = [half.second, *(others[index] for index in drawn)]
            space = "" if half.first[-1].isspace() else " "
            probes.append(
                Probe(unit=f"{entry.concept} {place}", form="completion", prompt=half.first,
                      completions=tuple(space + one.lstrip() for one in second))
            )  # fmt: skip
        if any(entry.concept == other.concept for other in entries[:number]):
            raise UsageError(f"{name}: concept {entry.concept!r} stands twice; give every concept once")
        found.append(
            Concept(name=entry.concept, probes=tuple(probes), words=words_of([entry.concept, entry.article]),
                    vector=(entry.layer, entry.dim))
        )  # fmt: skip
    return found


def _entries(path: Path, name: str) -> list[_Entry]:
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{name}: larger than {LARGEST // 2**20} MiB, so hardly a concept file; check the path")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror}); check `concepts` (relative to audit.toml)") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: not JSON ({error}); give a file in the layout of ConceptVectors") from error
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise UsageError(
            f"{name}: entry {where}: {first['msg']}; the layout of ConceptVectors is a list of objects with Concept, Layer, "
            "Dim, text_completion (First_half, Second_half) and wikipedia_content"
        ) from error
    if len(entries) < 2:
        raise UsageError(f"{name}: {len(entries)} concepts; at least two are needed, since each is told by the others")
    return entries
