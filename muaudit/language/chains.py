"""Chains of facts, found by their text: one fact's answer is what another fact is about."""

import re
from collections.abc import Iterator, Sequence

from muaudit.language.judging import mentions, normalised
from muaudit.language.prompts import subject_of
from muaudit.task import Fact

_DESCRIBED = re.compile(r"(The .+|.+'s .+) (?:is|was|are|were)(?: the| an?)?", re.IGNORECASE)
"""An English statement that names its answer by a description: "The birthplace of Bela Korin is"."""

_SHORTEST = 3
"""An answer of fewer letters stands in too many questions by chance to link a fact that names no subject."""


class Links:
    """Which facts lead to which: `into` a fact lead those whose answer is its subject, `out_of` it those about its answer.

    A fact's subject is its `subject`, else its cluster, where the question names it. The question of a fact without either is
    searched for other facts' answers instead.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        """Indexes the facts that chains may lead through.

        Args:
            facts: As a rule the retain set: facts that every audited model is to know.
        """
        self._by_answer: dict[str, list[Fact]] = {}
        self._by_subject: dict[str, list[Fact]] = {}
        for fact in facts:
            for answer in dict.fromkeys(map(normalised, accepted(fact))):
                self._by_answer.setdefault(answer, []).append(fact)
            for name in dict.fromkeys(_names(fact)):
                self._by_subject.setdefault(name, []).append(fact)

    def into(self, fact: Fact) -> list[Fact]:
        """Facts whose answer is this fact's subject, and whose question does not name it.

        Args:
            fact: The fact that a chain is to end with.

        Returns:
            The facts, in the order given.
        """
        found = [one for name in dict.fromkeys(_names(fact)) for one in self._by_answer.get(name, ())]
        return [one for one in _each_once(found, fact) if not mentions(one.question, accepted(one))]

    def out_of(self, fact: Fact) -> list[Fact]:
        """Facts that are about this fact's answer.

        Args:
            fact: The fact that a chain is to lead through.

        Returns:
            The facts, in the order given.
        """
        names = dict.fromkeys(map(normalised, accepted(fact)))
        return _each_once([one for name in names for one in self._by_subject.get(name, ())], fact)

    def paths(self, fact: Fact, premises: int) -> Iterator[tuple[Fact, ...]]:
        """Chains that end with a fact: each one's answer is the next one's subject.

        Args:
            fact: The last fact.
            premises: Most facts before it.

        Yields:
            The facts before it, in the order in which they are asked; the shorter chains first, no fact twice in one.
        """
        longer: list[tuple[Fact, ...]] = [(fact,)]
        for _ in range(premises):
            longer = [(one, *path) for path in longer for one in self.into(path[0]) if one not in path]
            yield from (path[:-1] for path in longer)


def accepted(fact: Fact) -> tuple[str, ...]:
    """The answer and its aliases."""
    return (fact.answer, *fact.aliases)


def ring(facts: Sequence[Fact], fact: Fact) -> list[Fact]:
    """The other facts of a fact's cluster, starting with the next one, so that each comes first once.

    Args:
        facts: The set that the fact is in.
        fact: One of them.
    """
    cluster = [other for other in facts if other.cluster == fact.cluster]
    start = cluster.index(fact)
    return [*cluster[start + 1 :], *cluster[:start]]


def asked_about(fact: Fact, names: Sequence[str]) -> str | None:
    """The first of the names that stands in a fact's question, letter by letter; None where none does."""
    return next((name for name in names if name in fact.question), None)


def description(fact: Fact) -> str | None:
    """The fact's answer described in words that do not name it, such as "the birthplace of Bela Korin".

    Args:
        fact: A fact with an English form that says what its answer is, such as "The birthplace of Bela Korin is".

    Returns:
        The form up to its verb; None where the fact has no such form.
    """
    for form in fact.restatements:
        if found := _DESCRIBED.fullmatch(form.prompt.strip()):
            words = found[1]
            return words[0].lower() + words[1:] if words.startswith("The ") else words
    return None


def _names(fact: Fact) -> Iterator[str]:
    """What a fact may be linked by, normalised: its subject, or every run of words in its question."""
    if (subject := subject_of(fact)) is not None:
        yield normalised(subject)
        return
    words = normalised(fact.question).split()
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            if len(run := " ".join(words[start:end])) >= _SHORTEST:
                yield run


def _each_once(facts: Sequence[Fact], without: Fact) -> list[Fact]:
    return [fact for fact in {fact.id: fact for fact in facts}.values() if fact.id != without.id]
