"""Answers that a fact's own answer competes with: what a model that never saw the fact would give as readily."""

from collections.abc import Sequence

import numpy as np

from muaudit.language.judging import normalised
from muaudit.task import Fact, ForgetTask

FEWEST = 3
"""Below so many rivals of the fact's own kind, answers of any kind are taken too."""


class Rivals:
    """Finds rivals for the facts of a task.

    A fact's wrong answers come first; then answers of its kind, drawn by the seed; and only for want of these any answers.
    Answers are of one kind if their facts have one relation, or if one is offered as a wrong answer where another is right or
    offered too.
    """

    def __init__(self, task: ForgetTask) -> None:
        """Sorts the answers of a task's forget and retain set by kind."""
        self._parents: dict[str, str] = {}
        facts = (*task.forget, *task.retain)
        for fact in facts:
            names = [f"answer {answer}" for answer in (fact.answer, *fact.wrong_answers)]
            names += [] if fact.relation is None else [f"relation {fact.relation}"]
            for name in names:
                self._parents[self._root(name)] = self._root(names[0])
        self._all = list(dict.fromkeys(answer for fact in facts for answer in (fact.answer, *fact.wrong_answers)))
        self._kinds: dict[str, list[str]] = {}
        for answer in self._all:
            self._kinds.setdefault(self._root(f"answer {answer}"), []).append(answer)

    def _root(self, name: str) -> str:
        """The name that stands for a kind, as in a union-find forest."""
        while (parent := self._parents.setdefault(name, name)) != name:
            self._parents[name] = name = self._parents[parent]
        return name

    def of(self, fact: Fact, count: int, rng: np.random.Generator) -> list[str]:
        """Wrong answers to one fact of the task.

        Args:
            fact: The fact.
            count: Most rivals.
            rng: Draws from what there is.

        Returns:
            Different answers, none of them the fact's own or an alias; none where the task has no other answer.
        """
        taken = {normalised(text) for text in (fact.answer, *fact.aliases)}
        found: list[str] = []
        kind = self._kinds[self._root(f"answer {fact.answer}")]
        for answer in (*fact.wrong_answers, *_shuffled(kind, rng)):
            if len(found) < count and (plain := normalised(answer)) not in taken:
                taken.add(plain)
                found.append(answer)
        for answer in _shuffled(self._all, rng):
            if len(found) < min(count, FEWEST) and (plain := normalised(answer)) not in taken:
                taken.add(plain)
                found.append(answer)
        return found


def _shuffled(answers: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [answers[index] for index in rng.permutation(len(answers))]
