"""In context: do forgotten facts come back when a growing context leads up to them?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, BudgetCurve, Measurement, Prepared
from muaudit.errors import ModelError
from muaudit.language import prompts
from muaudit.language.chains import Links, accepted, ring
from muaudit.language.judging import mentions, normalised
from muaudit.language.prompts import Prompt, subject_of
from muaudit.language.units import Unit, choose
from muaudit.models import GeneratesText, Model, ScoresText
from muaudit.results import Transcript
from muaudit.task import Fact, ForgetTask

LEVELS = ("nothing", "hints", "definitions", "passage")


class InContext(Attack):
    """Asks each question after nothing, after hints, after definitions and after a passage; each context holds the one before.

    UnUnlearning: a model from which a fact was removed gives it back once the context holds enough of it, an honest retrain
    too. So recovery alone proves nothing; what a target gives back beyond its references at equal context does. *Hints* are
    statements of the same subject's other facts; *definitions* are retained facts that lead to the subject, and the same
    question about others with its answer; the *passage* is the fact's own text. They come from the task alone, and no hint and
    no definition that holds the answer is shown. A passage that holds it is shown, but decides nothing: reading an answer back
    is ordinary in-context learning, and how far each model does it is reported as information.

    Leakage of a forget fact is the largest answer probability, exp(mean token log-probability), over the contexts that do not
    hold the answer; of a retain fact their mean. Where a model of the audit gives text only, an answer that names the fact
    counts 1. A context that does not fit a model is halved until it does, and the report says so. The paper gives no protocol
    for audits: the four contexts are our own.

    Attributes:
        retain_clusters: At most so many clusters of the retain set are scored, drawn from the plan's seed.
        hints: Most other facts of the subject.
        definitions: Most facts about others.
        context_words: Most words of a context; whole statements are left out, the definitions first, then the hints.
        max_new_tokens: Length of the greedy answers.
    """

    name: ClassVar = "in_context"
    version: ClassVar = "1"
    summary: ClassVar = "Asks each forgotten question after ever more context, and compares models at equal context."
    source: ClassVar = "UnUnlearning (Shumailov et al. 2024, arXiv 2407.00106); the contexts are our own"
    access: ClassVar = "text"
    needs: ClassVar = ((ScoresText, GeneratesText),)
    cost: ClassVar = "four scored answers and one greedy answer a fact"
    informational: ClassVar = (
        "A reminder brings back what is suppressed, less often what was overwritten: measured AUC .88; strong methods pass it."
    )

    retain_clusters: Annotated[int, Field(ge=0)] = 20
    hints: Annotated[int, Field(ge=0)] = 3
    definitions: Annotated[int, Field(ge=0)] = 5
    context_words: Annotated[int, Field(ge=1)] = 256
    max_new_tokens: Annotated[int, Field(ge=1)] = 24

    def prepare(self, bench: Bench) -> Prepared:
        """Gathers each fact's hints, definitions and passage; they are put together when a model is asked."""
        chosen, notes = choose(bench.task, self.retain_clusters, bench.rng)
        writer = _Writer(bench.task, self, bench.rng)
        units: list[dict[str, Any]] = [
            {"id": unit.fact.id, "cluster": unit.fact.cluster, "set": unit.set, "question": unit.fact.question,
             "prompt": prompts.ask(bench.task, unit.fact).model_dump(mode="json"), "lines": writer.lines(unit)}
            for unit in chosen
        ]  # fmt: skip
        for level in LEVELS[1:]:
            if without := sum(not unit["lines"][level] for unit in units):
                notes.append(
                    f"{level}: the task gives none for {without} of {len(units)} facts, whose context stays as it was before"
                )
        scores = "ScoresText" in bench.capabilities
        if not scores:
            notes.append("a model of this audit gives text only, so named answers decide instead of answer probability")
        generates = "GeneratesText" in bench.capabilities
        return Prepared(data={"units": units, "scores": scores, "generates": generates, "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores each fact's answer after every context; `rng` is not needed, since nothing here is drawn."""
        units, notes = prepared.data["units"], list(prepared.data["notes"])
        seen = self._asked(model, units, prepared.data)
        if seen.words < self.context_words:
            notes.append(
                f"contexts were shortened from {self.context_words} to {seen.words} words to fit this model; set "
                "context_words to the least of all models to compare them at equal context"
            )
        forget = np.array([unit["set"] == "forget" for unit in units])
        kept = np.where(seen.deciding, seen.values, 0.0)
        leakage = np.where(forget, kept.max(axis=1), kept.sum(axis=1) / seen.deciding.sum(axis=1))
        fair = seen.deciding[forget].all(axis=0)
        if not fair.all():
            notes.append(
                f"the passage holds the answer of {int((~seen.deciding[forget, -1]).sum())} of {int(forget.sum())} forget "
                "facts; how far it is read back from there is shown, and decides nothing"
            )
        return Measurement(
            units=tuple(unit["id"] for unit in units),
            clusters=tuple(unit["cluster"] for unit in units),
            sets=tuple(unit["set"] for unit in units),
            leakage=tuple(leakage.tolist()),
            scores={level: tuple(column) for level, column in zip(LEVELS, seen.values.T.tolist(), strict=True)},
            facets={"context": tuple(level for level, decides in zip(LEVELS, fair, strict=True) if decides)},
            curves={"context": _curve(seen.values[forget])},
            transcripts=seen.transcripts,
            summaries=_informational(seen.values[forget], seen.deciding[forget]),
            notes=tuple(notes),
        )

    def _asked(self, model: Model, units: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> "_Seen":
        """Asks with the longest contexts that fit the model."""
        words = self.context_words
        while True:
            try:
                return self._attempt(model, units, asked, words)
            except ModelError:
                if words == self.context_words:
                    self._attempt(model, units, asked, 0)  # where the bare questions fail too, length is not the matter
                if not words:
                    raise
                words //= 2

    def _attempt(self, model: Model, units: Sequence[Mapping[str, Any]], asked: Mapping[str, Any], words: int) -> "_Seen":
        """Asks with contexts of at most so many words; no prompt twice."""
        ladders = [_ladder(unit, words) for unit in units]
        rungs = {(prompt.unit, prompt.text): prompt for ladder in ladders for prompt in ladder}
        given = prompts.values(model, list(rungs.values()), self.max_new_tokens, scored=asked["scores"])
        found = dict(zip(rungs, given, strict=True))
        values = np.array([[found[prompt.unit, prompt.text] for prompt in ladder] for ladder in ladders])
        deciding = np.array(
            [
                [not level or not prompts.given_away(prompt, unit["question"]) for level, prompt in enumerate(ladder)]
                for unit, ladder in zip(units, ladders, strict=True)
            ]
        )
        best = np.where(deciding, values, -1.0).argmax(axis=1)
        shown = [ladder[level] for ladder, level in zip(ladders, best, strict=True)]
        transcripts = prompts.transcripts(model, shown, self.max_new_tokens) if asked["generates"] else {}
        return _Seen(words, values, deciding, transcripts)


@dataclass(frozen=True)
class _Seen:
    """What one model gave back.

    Attributes:
        words: Most words of a context.
        values: How far the answer comes back, in [0, 1], by unit and level.
        deciding: Whether that counts: the bare question, and contexts that do not hold the answer.
        transcripts: The answer after each unit's best counting context.
    """

    words: int
    values: NDArray[np.float64]
    deciding: NDArray[np.bool_]
    transcripts: dict[str, Transcript]


class _Writer:
    """Gathers what leads up to a fact, from the task alone."""

    def __init__(self, task: ForgetTask, attack: InContext, rng: np.random.Generator) -> None:
        self.task, self.attack, self.rng = task, attack, rng
        self.links = Links(task.retain)
        self.sets = {"forget": task.forget, "retain": task.retain}
        self.alike: dict[str, list[Fact]] = {}
        for fact in task.retain:
            self.alike.setdefault(_kind(fact) or "", []).append(fact)

    def lines(self, unit: Unit) -> dict[str, list[str]]:
        """The statements of each level; hints and definitions without the answer, the passage as it is."""
        fact = unit.fact
        names = [name for name in accepted(fact) if not mentions(fact.question, [name])]
        hints = [_statement(other) for other in ring(self.sets[unit.set], fact)]
        definitions = [*map(_statement, self.links.into(fact)), *self._exemplars(fact)]
        return {
            "hints": [line for line in hints if not mentions(line, names)][: self.attack.hints],
            "definitions": [line for line in definitions if not mentions(line, names)][: self.attack.definitions],
            "passage": [fact.text] if fact.text else [],
        }

    def _exemplars(self, fact: Fact) -> Iterator[str]:
        """The same question about others, answered; in an order that the seed draws."""
        kind = _kind(fact)
        others = [one for one in self.alike.get(kind, ()) if one.cluster != fact.cluster] if kind else []
        for index in self.rng.permutation(len(others)):
            query = self.task.ask(others[index])
            yield f"{query.prompt} {query.completion.strip()}"


def _kind(fact: Fact) -> str | None:
    """What a fact tells of its subject: its relation, else its question with the subject left out."""
    subject = subject_of(fact)
    return fact.relation or (normalised(fact.question.replace(subject, "…")) if subject else None)


def _statement(fact: Fact) -> str:
    """A fact in one line: its statement, else its question with the answer."""
    told = next((form for form in fact.restatements if form.form == "statement"), None)
    return (told.prompt + told.completion).strip() if told else f"{fact.question} {fact.answer}"


def _ladder(unit: Mapping[str, Any], words: int) -> list[Prompt]:
    """One prompt a level; what is new at a level stands first, so that the question follows the same words as before."""
    bare, lines = Prompt(**unit["prompt"]), unit["lines"]
    ladder = [bare]
    for level in range(1, len(LEVELS)):
        left, kept = words, dict[str, list[str]]()
        for name in _PRECEDENCE:
            kept[name] = []
            for line in lines[name] if LEVELS.index(name) <= level else ():
                length = len(line.split())
                if length > left and name == "passage":
                    line, length = " ".join(line.split()[:left]), left  # noqa: PLW2901 - a passage is cut, a statement is not
                if length > left or not length:
                    break
                kept[name].append(line)
                left -= length
        context = [line for name in reversed(LEVELS[1:]) for line in kept[name]]
        ladder.append(bare.model_copy(update={"text": "\n".join([*context, bare.text])}))
    return ladder


_PRECEDENCE = ("passage", "hints", "definitions")
"""Which level's words are kept first where there is no room for all."""


def _curve(values: NDArray[np.float64]) -> BudgetCurve:
    """Mean over the forget facts at each level; the last level counts here even where it holds the answer."""
    return BudgetCurve(
        x_label="context: " + ", ".join(f"{number} {level}" for number, level in enumerate(LEVELS)),
        y_label="answer given back",
        x=tuple(float(number) for number in range(len(LEVELS))),
        y=tuple(values.mean(axis=0).tolist()),
    )


def _informational(values: NDArray[np.float64], deciding: NDArray[np.bool_]) -> dict[str, float]:
    """How far answers come back from contexts that hold them, over the forget facts that have one."""
    held = ~deciding[:, -1]
    if not held.any():
        return {}
    return {"passages_with_answer": float(held.mean()), "read_back_from_passage": float(values[held, -1].mean())}
