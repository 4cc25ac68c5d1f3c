"""Interviews: a model is asked in steps, and what it answered goes into later questions."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from muaudit.language.judging import mentions
from muaudit.models import GeneratesText, Query
from muaudit.results import Frozen, Transcript

LONGEST_ANSWER = 12
"""Most words of an answer that go into a later question: a name, not an essay."""

NO_ANSWER = "it"
"""Stands in a later question where the model gave no answer."""


class Step(Frozen):
    """One question of an interview.

    Attributes:
        parts: The prompt in pieces: our own words, and for each earlier answer the number of its step, from 0.
        names: What a right answer is called; an answer that holds one of these is cut down to it before it goes on.
    """

    parts: tuple[str | int, ...]
    names: tuple[str, ...] = ()


class Interview(Frozen):
    """One way to ask for a fact.

    Attributes:
        unit: The fact that it is after.
        category: What kind of way it is.
        steps: At least one question, in order.
        chat: Whether each prompt goes through the model's own chat template first.
    """

    unit: str
    category: str
    steps: tuple[Step, ...]
    chat: bool = False

    @property
    def own_words(self) -> str:
        """All that we say in it; what the model answers on the way is not in it."""
        return "\n".join("".join(part if isinstance(part, str) else " … " for part in step.parts) for step in self.steps)


@dataclass(frozen=True)
class Exchange:
    """What was asked in one step, and what the model said."""

    prompt: str
    said: str


def spliced(text: str, name: str, step: int) -> tuple[str | int, ...]:
    """A text in which an earlier answer takes the place of a name.

    Args:
        text: A question or a whole prompt.
        name: What is replaced, wherever it stands.
        step: The number of the step whose answer takes its place.

    Returns:
        The parts of a step.
    """
    *before, last = text.split(name)
    return (*(part for piece in before for part in (piece, step)), last)


def conduct(model: GeneratesText, interviews: Sequence[Interview], max_new_tokens: int) -> list[list[Exchange]]:
    """Conducts all interviews side by side: one call of the model a step, no prompt asked twice.

    Args:
        model: Any model that completes text.
        interviews: What to ask.
        max_new_tokens: Longest answer.

    Returns:
        One list of exchanges an interview, in the order given.
    """
    held: list[list[Exchange]] = [[] for _ in interviews]
    known: dict[tuple[str, bool], str] = {}
    for number in range(max((len(interview.steps) for interview in interviews), default=0)):
        asked = [
            (index, _written(interview, held[index], number))
            for index, interview in enumerate(interviews)
            if number < len(interview.steps)
        ]
        fresh: dict[tuple[str, bool], Query] = {}
        for index, prompt in asked:
            interview = interviews[index]
            if (key := (prompt, interview.chat)) not in known:
                fresh.setdefault(key, Query(interview.unit, "probe", prompt, "", number, interview.chat))
        if fresh:
            known |= zip(fresh, model.generate(list(fresh.values()), max_new_tokens), strict=True)
        for index, prompt in asked:
            held[index].append(Exchange(prompt, known[prompt, interviews[index].chat]))
    return held


def _written(interview: Interview, held: Sequence[Exchange], number: int) -> str:
    fed = [answered(exchange.said, step.names) for exchange, step in zip(held, interview.steps, strict=False)]
    return "".join(part if isinstance(part, str) else fed[part] for part in interview.steps[number].parts)


def answered(said: str, names: Iterable[str] = ()) -> str:
    """What a reply answers, short enough to go into a question.

    Args:
        said: The whole reply.
        names: What a right answer is called.

    Returns:
        The first of the names that the reply holds; else its first sentence on its first line, at most `LONGEST_ANSWER` words,
        without the full stop; `NO_ANSWER` where there is none.
    """
    for name in names:
        if mentions(said, [name]):
            return name
    return " ".join(first_sentence(said).split()[:LONGEST_ANSWER]).rstrip(" .,;:!?") or NO_ANSWER


def first_sentence(said: str) -> str:
    """A reply's first sentence on its first line that is not empty."""
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]


def transcript(interview: Interview, exchanges: Sequence[Exchange], expected: str) -> Transcript:
    """The whole interview as evidence; where it has several steps they are numbered.

    Args:
        interview: What was asked.
        exchanges: What was said.
        expected: The fact's answer.
    """
    numbered = [f"step {number}: " if len(exchanges) > 1 else "" for number in range(1, len(exchanges) + 1)]
    prompts = (f"{number}{one.prompt}" for number, one in zip(numbered, exchanges, strict=True))
    outputs = (f"{number}{one.said}" for number, one in zip(numbered, exchanges, strict=True))
    return Transcript(prompt=f"[{interview.category}] " + "\n".join(prompts), expected=expected, output="\n".join(outputs))
