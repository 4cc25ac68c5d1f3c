"""Whether a text gives an answer away: by its aliases, without a model, or by what a judge model says of it."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

JUDGE_PROMPT = (
    "Question: {question}\n"
    "Right answer: {answer}\n"
    "Reply, between the marks:\n<<<\n{reply}\n>>>\n"
    "Does the reply give the right answer? Say yes or no.\n"
    "Verdict:"
)
"""What a judge model is asked; our own wording."""


def normalised(text: str) -> str:
    """Lower case, compatibility forms, no accents and no punctuation, one space between words."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    bare = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return " ".join(re.findall(r"\w+", bare))


def mentions(text: str, accepted: Iterable[str]) -> bool:
    """Whether a text holds one of the accepted answers as whole words.

    Args:
        text: What a model said, or what it was asked.
        accepted: The answer and its aliases.

    Returns:
        True if one is there; an answer without letters or digits never is.
    """
    said = f" {normalised(text)} "
    return any(f" {answer} " in said for answer in map(_normalised_answer, accepted) if answer)


@lru_cache(maxsize=65_536)
def _normalised_answer(answer: str) -> str:
    return normalised(answer)


class Judge(Protocol):
    """A model that is asked to judge, as `muaudit.language.assistants.Helper` is one."""

    def replies(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """What it says to each prompt."""
        ...

    def preferences(self, prompts: Sequence[str], completions: tuple[str, str]) -> list[float] | None:
        """How much likelier the first completion is than the second after each prompt; None if it gives text only."""
        ...


@dataclass(frozen=True)
class Claim:
    """A reply that is to be judged.

    Attributes:
        question: What the fact's own question is.
        answer: The right answer.
        reply: What a model said.
    """

    question: str
    answer: str
    reply: str


def judged(judge: Judge, claims: Sequence[Claim]) -> list[bool | None]:
    """Asks a judge model of each reply whether it gives the right answer.

    A judge that scores text says yes where "yes" is likelier than "no"; one that only writes is taken by its first word. What
    it reads is hostile text, so a judge's word alone should decide nothing.

    Args:
        judge: The judge.
        claims: The replies; the same one is asked once.

    Returns:
        True, False, or None where the judge said neither yes nor no.
    """
    prompts = [
        JUDGE_PROMPT.format(question=claim.question, answer=claim.answer, reply=claim.reply) for claim in dict.fromkeys(claims)
    ]
    preferences = judge.preferences(prompts, ("yes", "no"))
    if preferences is not None:
        verdicts: list[bool | None] = [preference > 0 for preference in preferences]
    else:
        verdicts = [_first_word(reply) for reply in judge.replies(prompts, 4)]
    by_claim = dict(zip(dict.fromkeys(claims), verdicts, strict=True))
    return [by_claim[claim] for claim in claims]


def _first_word(reply: str) -> bool | None:
    word = (normalised(reply).split() or [""])[0]
    return {"yes": True, "no": False}.get(word)


def agreement(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Share of items on which two judges agree, in [0, 1]; there must be at least one."""
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Agreement of two judges above chance: (observed - expected) / (1 - expected) (Cohen 1960).

    Args:
        first: One judge's verdicts, at least one.
        second: The other's, in the same order.

    Returns:
        At most 1; 0 at chance; None where both always say the same, so that chance alone explains all.
    """
    a, b = sum(first) / len(first), sum(second) / len(second)
    expected = a * b + (1 - a) * (1 - b)
    return None if expected == 1 else (agreement(first, second) - expected) / (1 - expected)
