"""Does a model answer as before when it is asked again? An exact test that asks nothing of how it answers.

Every question is asked four times, twice early and twice late, in two ways (alone among many, or in small batches). A model
without memory, deterministic or sampled, cannot know which of the four it is answering: given its four answers, every order of
them is equally likely. So of the three ways to split four answers into two pairs, each is the one that puts like with like
equally often, and each answer is the odd one out equally often. A model that answers differently early and late, first and
again, or in one way of asking and in the other, shows itself by one split, or the first answer, coming out too often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from scipy import stats

T = TypeVar("T")

Answer = str | tuple[float, ...]
"""A text, or numbers: log-probabilities, class probabilities, pixels."""

Contrast = Literal["time", "way", "first"]

ASKED = ("early in a batch", "early in small batches", "late in small batches", "late in a batch")
"""The four occasions, in order."""

CONTRASTS: tuple[Contrast, ...] = ("time", "way", "first")

SPLITS = {"time": ((0, 1), (2, 3)), "way": ((0, 3), (1, 2)), "neither": ((0, 2), (1, 3))}
"""Which occasions belong together where a model minds the time or the way of asking; the third, nothing would bring about."""


@dataclass(frozen=True)
class Count:
    """How often one contrast came out.

    Attributes:
        contrast: `time`: early and late differ; `way`: large and small batches, and the order in them; `first`: the first
            answer differs from all that follow.
        wins: Questions whose answers fall apart in just that way.
        informative: Questions whose answers fall apart in some way.
        questions: All questions.
    """

    contrast: Contrast
    wins: int
    informative: int
    questions: int

    @property
    def p_value(self) -> float:
        """Probability of as many wins if each of the ways is equally likely (a binomial tail)."""
        share = 1 / 4 if self.contrast == "first" else 1 / 3
        return float(stats.binom.sf(self.wins - 1, self.informative, share))

    def exceeds(self, references: Sequence["Count"], level: float) -> bool:
        """Whether the share of wins lies above that of models whose conduct is known, by Fisher's exact test.

        Args:
            references: The same contrast on them; without any, nothing is known and nothing is excused.
            level: Of the one-sided test.
        """
        wins, questions = sum(one.wins for one in references), sum(one.questions for one in references)
        if not questions:
            return True
        return more_often((self.wins, self.questions), (wins, questions)) <= level


def distance(one: Answer, other: Answer) -> float:
    """How far two answers are apart: of texts the share of words that only one of them has, the largest difference of numbers.

    Texts that differ in the order of their words or in their signs alone are a hundredth apart.
    """
    if isinstance(one, str) or isinstance(other, str):
        first, second = set(str(one).lower().split()), set(str(other).lower().split())
        return 0.0 if one == other else max(0.01, len(first ^ second) / max(1, len(first | second)))
    return max((abs(first - second) for first, second in zip(one, other, strict=True)), default=0.0)


def spread(answers: Sequence[Answer]) -> float:
    """The largest distance between any two answers to one question."""
    return max(distance(one, other) for place, one in enumerate(answers) for other in answers[:place])


def more_often(here: tuple[int, int], there: tuple[int, int]) -> float:
    """One-sided p-value, by Fisher's exact test, of "it happens here no more often than there".

    Args:
        here: How often, out of how many.
        there: The same elsewhere.
    """
    together = here[0] + there[0]
    return float(stats.hypergeom.sf(here[0] - 1, here[1] + there[1], together, here[1]))


def counts(questions: Sequence[Sequence[Answer]], tolerance: float = 0.0) -> tuple[Count, ...]:
    """Counts every contrast over questions.

    Args:
        questions: Four answers each, in the order of `ASKED`.
        tolerance: Distance up to which numbers count as the same: what another order of the same sums brings about.

    Returns:
        One count a contrast.
    """
    splits: list[str | None] = []
    odd: list[int | None] = []
    for answers in questions:
        apart = [[distance(one, other) for other in answers] for one in answers]
        within = {name: sum(apart[first][second] for first, second in pairs) for name, pairs in SPLITS.items()}
        splits.append(_only(list(within), [-value for value in within.values()], tolerance))
        odd.append(_only(list(range(len(answers))), [sum(row) for row in apart], tolerance))
    found = [
        Count(contrast, splits.count(contrast), len(splits) - splits.count(None), len(questions)) for contrast in CONTRASTS[:2]
    ]
    return (*found, Count("first", odd.count(0), len(odd) - odd.count(None), len(questions)))


def _only(names: Sequence[T], values: Sequence[float], tolerance: float) -> T | None:
    """The name of the largest value, where it is the largest by more than the tolerance."""
    ranked = sorted(zip(values, range(len(names)), strict=True), reverse=True)
    return names[ranked[0][1]] if ranked[0][0] > ranked[1][0] + tolerance else None
