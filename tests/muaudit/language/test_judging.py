"""Alias matching, the judge model's protocol, and the agreement of two judges."""

from collections.abc import Sequence

import pytest

from muaudit.language.judging import Claim, agreement, cohens_kappa, judged, mentions


@pytest.mark.parametrize(
    ("text", "accepted", "expected"),
    [
        ("She was born in torviholm.", ["Torviholm"], True),
        ("Born in Törviholm, I think", ["Torviholm"], True),
        ("New Torviholm-on-Sea", ["torviholm on sea"], True),
        ("Torviholmer bread", ["Torviholm"], False),
        ("", ["Torviholm"], False),
        ("anything", ["..."], False),
    ],
)
def test_an_answer_counts_as_whole_words(text: str, accepted: list[str], expected: bool) -> None:
    assert mentions(text, accepted) is expected


class Scripted:
    """A judge that writes, or scores, what it is told to."""

    def __init__(self, replies: Sequence[str] = (), preferences: Sequence[float] | None = None) -> None:
        self.said, self.likes, self.prompts = list(replies), preferences, []

    def replies(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        self.prompts = list(prompts)
        return self.said

    def preferences(self, prompts: Sequence[str], completions: tuple[str, str]) -> list[float] | None:
        assert completions == ("yes", "no")
        self.prompts = list(prompts)
        return None if self.likes is None else list(self.likes)


CLAIMS = [Claim("Where?", "Torviholm", reply) for reply in ("Torviholm", "no idea", "there")]


def test_a_judge_that_writes_is_taken_by_its_first_word() -> None:
    assert judged(Scripted(["Yes, it does.", " no", "Perhaps"]), CLAIMS) == [True, False, None]


def test_a_judge_that_scores_says_what_is_likelier() -> None:
    assert judged(Scripted(preferences=[0.2, -3.0, 0.0]), CLAIMS) == [True, False, False]


def test_the_judge_sees_question_answer_and_reply_and_is_asked_once_of_each() -> None:
    judge = Scripted(["yes", "no"])
    assert judged(judge, [CLAIMS[0], CLAIMS[1], CLAIMS[0]]) == [True, False, True]
    assert len(judge.prompts) == 2
    assert all(part in judge.prompts[1] for part in ("Where?", "Torviholm", "no idea"))


def test_a_reply_with_braces_is_no_template() -> None:
    judge = Scripted(["no"])
    judged(judge, [Claim("Where?", "Torviholm", "{answer} {0}")])
    assert "{answer} {0}" in judge.prompts[0]


def test_cohens_kappa_by_hand() -> None:
    # Cohen's own layout: 20 both yes, 5 and 10 apart, 15 both no: (0.7 - 0.5) / (1 - 0.5) = 0.4.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert agreement(first, second) == pytest.approx(0.7)
    assert cohens_kappa(first, second) == pytest.approx(0.4)


def test_cohens_kappa_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    first = [bool(n % 3) for n in range(40)]
    second = [bool(n % 3) != (n % 7 == 0) for n in range(40)]
    assert cohens_kappa(first, second) == pytest.approx(metrics.cohen_kappa_score(first, second))


def test_kappa_says_nothing_where_nobody_ever_differs() -> None:
    assert cohens_kappa([True, True], [True, True]) is None
    assert cohens_kappa([True, False], [True, False]) == 1
