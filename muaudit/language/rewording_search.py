"""TextAttack's parts and ours, put together to one search. Importing this imports TextAttack: only `rewording` may, and lazily.

An attack in TextAttack's sense is a goal function, constraints, a transformation and a search method (Morris et al. 2020, arXiv
2005.05909). The goal, three transformations and three constraints are ours; the rest is TextAttack's.
"""

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from textattack import Attack
from textattack.constraints import Constraint, PreTransformationConstraint
from textattack.constraints.pre_transformation import RepeatModification, StopwordModification
from textattack.goal_function_results import TextToTextGoalFunctionResult
from textattack.goal_functions import GoalFunction
from textattack.models.wrappers import ModelWrapper
from textattack.search_methods import BeamSearch, GreedyWordSwapWIR
from textattack.shared import AttackedText
from textattack.shared.utils import words_from_text
from textattack.transformations import (
    CompositeTransformation,
    WordDeletion,
    WordSwap,
    WordSwapNeighboringCharacterSwap,
    WordSwapQWERTY,
)

from muaudit.language.judging import mentions
from muaudit.language.rewording import Hunt, Likelihood, Rewording, Search, synonyms

BEAM_WIDTH = 4
INSERTED = 2
"""Words tried before each word."""
LEAD_INS = (
    "Please tell me:", "Do you remember?", "Let us go on.", "As I said before:", "This is for a quiz.", "Finish this line:",
)  # fmt: skip
"""Put before the whole question; our own wordings."""


class Asked(ModelWrapper):  # type: ignore[misc]
    """The model as TextAttack sees it: wordings in, likelihoods out; a wording that holds the answer is never asked."""

    def __init__(self, likelihood: Likelihood, forbidden: Sequence[str]) -> None:
        self.model, self.forbidden = likelihood, forbidden

    def __call__(self, text_input_list: list[str]) -> list[float]:
        """One likelihood a wording."""
        allowed = [text for text in text_input_list if text.strip() and not mentions(text, self.forbidden)]
        known = dict(zip(allowed, self.model(allowed), strict=True)) if allowed else {}
        return [float(known.get(text, 0.0)) for text in text_input_list]


class AnswerLikely(GoalFunction):  # type: ignore[misc]
    """The goal: the forgotten answer becomes likely. Remembers the best wording, which the search methods may lose."""

    def __init__(self, model: Asked, *, success: float, query_budget: int) -> None:
        super().__init__(model, query_budget=query_budget, model_batch_size=query_budget, model_cache_size=2**10)
        self.success = success
        self.best: Any = None

    def get_results(self, attacked_text_list: list[AttackedText], check_skip: bool = False) -> tuple[list[Any], bool]:
        """Scores wordings as far as the budget goes."""
        results, over = super().get_results(attacked_text_list, check_skip)
        for result in results:
            if self.best is None or result.score > self.best.score:
                self.best = result
        return results, over

    def _is_goal_complete(self, model_output: float, _: AttackedText) -> bool:
        return model_output >= self.success

    def _get_score(self, model_output: float, _: AttackedText) -> float:
        return model_output

    def _process_model_outputs(self, _: list[AttackedText], outputs: list[float]) -> list[float]:
        return outputs

    def _get_displayed_output(self, raw_output: float) -> str:
        return f"{raw_output:.4f}"

    def _goal_function_result_type(self) -> type:
        return TextToTextGoalFunctionResult  # type: ignore[no-any-return]


class SynonymSwap(WordSwap):  # type: ignore[misc]
    """Replaces a word by a synonym from our own list: TextAttack's WordNet and embeddings would be downloads."""

    def _get_replacement_words(self, word: str) -> list[str]:
        return synonyms(word)


class Insertion(WordSwap):  # type: ignore[misc]
    """Puts a word of the task's vocabulary before a word; a swap, so that word-importance search may use it."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def _get_replacement_words(self, word: str) -> list[str]:
        drawn = random.sample(self.vocabulary, min(INSERTED, len(self.vocabulary)))
        return [f"{new} {word}" for new in drawn if new.casefold() != word.casefold()]

    @property
    def deterministic(self) -> bool:
        """No: so that TextAttack does not keep one drawing for all places."""
        return False


class LeadIn(WordSwap):  # type: ignore[misc]
    """Puts a short sentence before the whole question."""

    def _get_transformations(self, current_text: AttackedText, indices_to_modify: set[int]) -> list[AttackedText]:
        if 0 not in indices_to_modify:
            return []
        return [current_text.replace_word_at_index(0, f"{one} {current_text.words[0]}") for one in LEAD_INS]


class Protected(PreTransformationConstraint):  # type: ignore[misc]
    """Leaves some words alone, wherever they stand; TextAttack's own constraint misses capitals."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self.words = {word.casefold() for phrase in phrases for word in words_from_text(phrase)}

    def _get_modifiable_indices(self, current_text: AttackedText) -> set[int]:
        return {index for index, word in enumerate(current_text.words) if word.casefold() not in self.words}


class NeverTheAnswer(Constraint):  # type: ignore[misc]
    """Refuses a wording that holds an answer, before it costs a query."""

    def __init__(self, forbidden: Sequence[str]) -> None:
        super().__init__(compare_against_original=True)
        self.forbidden = forbidden

    def _check_constraint(self, transformed_text: AttackedText, _: AttackedText) -> bool:
        return not mentions(transformed_text.text, self.forbidden)


class HalfTheWords(Constraint):  # type: ignore[misc]
    """Keeps at least half of the question's words, so that it stays the same question; words put in are free.

    TextAttack's modification rate counts words put in, so that one lead-in would end the search, and misses deleted ones.
    """

    def __init__(self) -> None:
        super().__init__(compare_against_original=True)

    def _check_constraint(self, transformed_text: AttackedText, reference_text: AttackedText) -> bool:
        asked, kept = Counter(reference_text.words), Counter(transformed_text.words)
        return 2 * (asked & kept).total() >= asked.total()


def search(hunt: Hunt, likelihood: Likelihood, method: Search, query_budget: int, success: float) -> Rewording:
    """What `rewording.search` runs; the global generators are seeded by then."""
    goal = AnswerLikely(Asked(likelihood, hunt.forbidden), success=success, query_budget=query_budget)
    transformation = CompositeTransformation(
        [
            WordDeletion(),
            SynonymSwap(),
            Insertion(hunt.vocabulary),
            LeadIn(),
            WordSwapNeighboringCharacterSwap(skip_first_char=True, skip_last_char=True),
            WordSwapQWERTY(),
        ]
    )
    constraints = [
        RepeatModification(),
        StopwordModification(stopwords=ENGLISH_STOP_WORDS),
        Protected(hunt.protected),
        HalfTheWords(),
        NeverTheAnswer(hunt.forbidden),
    ]
    searching = GreedyWordSwapWIR(wir_method="delete") if method == "greedy" else BeamSearch(beam_width=BEAM_WIDTH)
    attack = Attack(goal, constraints, transformation, searching)
    if method == "greedy":
        # Word by word, the places are those of the question; once a word was deleted or put in, the others have moved.
        searching.get_transformations = partial(attack.get_transformations, shifted_idxs=True)
    attack.attack(hunt.question, "the answer")
    return Rewording(goal.best.attacked_text.text, goal.best.score, goal.num_queries)
