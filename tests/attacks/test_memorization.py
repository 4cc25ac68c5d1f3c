"""Memorization's formulas against hand-computed and slow truths, and what it does when a model gives less."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muaudit.attack import Bench
from muaudit.attacks import memorization as m
from muaudit.errors import NotApplicable
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase


def score(mean: float, tokens: int = 3) -> TextScore:
    return TextScore(log_probability=mean * tokens, tokens=tokens)


def test_answer_probability_is_the_geometric_mean_of_token_probabilities() -> None:
    # Tokens of probability 0.5, 0.2 and 0.1: (0.5 * 0.2 * 0.1) ** (1/3).
    seen = m.answer_probability(TextScore(log_probability=math.log(0.5 * 0.2 * 0.1), tokens=3))
    assert seen == pytest.approx(0.01 ** (1 / 3))


def test_truth_ratios_differ_as_published() -> None:
    right, wrong = score(math.log(0.5)), [score(math.log(0.1)), score(math.log(0.4))]
    assert m.truth_ratio_arithmetic(right, wrong) == pytest.approx((0.1 + 0.4) / 2 / 0.5)
    assert m.truth_ratio_geometric(right, wrong) == pytest.approx(math.sqrt(0.1 * 0.4) / 0.5)


def test_an_impossible_answer_gives_a_finite_truth_ratio() -> None:
    assert math.isfinite(m.truth_ratio_arithmetic(score(-5000.0), [score(-1.0)]))
    assert m.truth_ratio_geometric(score(-1.0), [score(-5000.0)]) == 0


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_against_the_definition(hits: list[bool]) -> None:
    shortest = next(k for k in range(len(hits) + 1) if all(hits[k:]))
    assert m.extraction_strength(hits) == pytest.approx(1 - shortest / len(hits))
    assert m.exact_memorization(hits) == pytest.approx(np.mean(hits))


def test_rouge_l_recall_by_hand() -> None:
    # Longest common subsequence "born in torvik" of 4 gold words; stemming makes "houses" and "house" one.
    assert m.rouge_l_recall(["born in old Torvik"], ["He was born in Torvik"]) == [pytest.approx(3 / 4)]
    assert m.rouge_l_recall(["two houses"], ["the two house"]) == [1.0]


class Speaker:
    """Generates text and can do nothing else."""

    digest, model_seconds = "speaker", 0.0

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        return ["Torvik" if query.unit == "a" else "no idea" for query in queries]


class Scorer(Speaker):
    """Scores as well: unit a is known, b is not."""

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        return [
            TextScore(-0.1 if (query.unit, query.role) == ("a", "answer") else -6.0, 2, (query.unit == "a", True))
            for query in queries
        ]


def a_task() -> ForgetTask:
    facts = [
        Fact(id=name, cluster=name, question=f"Where was {name}?", answer="The town of Torvik", aliases=("Torvik",),
             wrong_answers=("Selmar",),
             paraphrases=(Paraphrase(form="statement", prompt=f"{name} was in", completion=" Torvik"),))
        for name in "ab"
    ]  # fmt: skip
    retain = tuple(Fact(id=f"r{n}", cluster=f"r{n}", question="Who?", answer="Someone", wrong_answers=("x",)) for n in range(9))
    return ForgetTask(forget=tuple(facts), retain=retain)


def measured(model: Speaker, capabilities: set[str], **parameters: Any) -> m.Measurement:
    attack = m.Memorization(**parameters)
    prepared = attack.prepare(Bench(a_task(), np.random.default_rng(0), frozenset(capabilities)))
    return attack.measure(model, prepared, np.random.default_rng(0))


def test_answer_probability_decides_where_models_give_log_probabilities() -> None:
    seen = measured(Scorer(), {"ScoresText", "GeneratesText"})
    assert seen.leakage[:2] == (pytest.approx(math.exp(-0.05)), pytest.approx(math.exp(-3)))
    assert seen.scores["rouge_l_recall"][:2] == (1.0, 0.0)
    assert seen.scores["exact_memorization"][:2] == (1.0, 0.5)
    assert seen.scores["extraction_strength"][:2] == (1.0, 0.5)
    assert seen.transcripts["b"].output == "no idea"
    assert any("`text`" in note for note in seen.notes)


def test_rouge_decides_for_all_where_one_model_gives_text_only() -> None:
    for model in (Speaker(), Scorer()):
        seen = measured(model, {"GeneratesText"})
        assert seen.leakage[:2] == (1.0, 0.0)
        assert "answer_probability" not in seen.scores


def test_whole_retain_clusters_are_drawn_and_the_report_says_so() -> None:
    seen = measured(Scorer(), {"ScoresText"}, retain_clusters=4)
    assert seen.sets.count("retain") == 4
    assert seen.sets.count("forget") == 2
    assert any("4 of 9 retain clusters" in note for note in seen.notes)


class Reciter(Speaker):
    """Completes a text with its own words, whatever is asked."""

    def __init__(self, words: str) -> None:
        self.words, self.prompts = words, dict[str, str]()

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        self.prompts |= {query.unit: query.prompt for query in queries}
        return [self.words] * len(queries)


def passages(text: str | None = "Long ago a was born in Torvik town") -> ForgetTask:
    facts = [Fact(id=name, cluster=name, question=f"Where was {name}?", answer="Torvik", text=text) for name in "abcd"]
    return ForgetTask(forget=tuple(facts[:2]), retain=tuple(facts[2:]))


def decided(model: Speaker, task: ForgetTask, **parameters: Any) -> m.Measurement:
    attack = m.Memorization(**parameters)
    prepared = attack.prepare(Bench(task, np.random.default_rng(0), frozenset({"GeneratesText"})))
    return attack.measure(model, prepared, np.random.default_rng(0))


def test_muse_verbatim_is_rouge_l_f1_of_the_completed_passage() -> None:
    # The second half is "born in Torvik town"; said "born in Torvik": recall 3/4, precision 1, F1 6/7.
    seen = decided(Reciter("born in Torvik"), passages(), deciding="verbatim")
    assert seen.leakage == (pytest.approx(6 / 7),) * 4
    # With a limit of two words, only the first two gold words count: recall 1, precision 2/3, F1 4/5.
    assert decided(Reciter("born in Torvik"), passages(), deciding="verbatim", max_new_tokens=2).leakage[0] == pytest.approx(
        0.8
    )


def test_muse_knowledge_is_rouge_l_f1_of_the_answer_after_exemplars() -> None:
    model = Reciter("in Torvik")
    seen = decided(model, passages(), deciding="knowledge", shots=1)
    assert seen.leakage == (pytest.approx(2 / 3),) * 4  # recall 1, precision 1/2
    task = passages(None)
    decided(model, task, deciding="knowledge", shots=1)
    for fact in (*task.forget, *task.retain):
        assert model.prompts[fact.id].count("Question:") == 2
        assert model.prompts[fact.id].count(fact.question) == 1, "a question is not its own exemplar"


def test_what_cannot_decide_is_refused() -> None:
    with pytest.raises(NotApplicable, match="no `text`"):
        decided(Speaker(), passages(None), deciding="verbatim")
    with pytest.raises(NotApplicable, match="shots"):
        decided(Speaker(), passages(), shots=2)
    with pytest.raises(NotApplicable, match="generated text"):
        m.Memorization(deciding="knowledge").prepare(Bench(passages(), np.random.default_rng(0), frozenset({"ScoresText"})))
