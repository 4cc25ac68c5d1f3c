"""How far a change of the weights can go before retained facts suffer."""

import math
from collections.abc import Callable, Sequence

from transformers import LlamaForCausalLM

from muaudit.models.scoring import score_batch
from muaudit.models.tokens import Encoded, encode
from muaudit.testbed.language import pairs
from muaudit.testbed.method import Situation
from muaudit.testbed.training import CPU


def furthest(changed: Callable[[float], LlamaForCausalLM], situation: Situation, kept: float, most: float) -> LlamaForCausalLM:
    """The changed model that is furthest from the original and still knows most of the retain set; found by bisection.

    Args:
        changed: Makes the model that a change of that size gives; 0 is the original.
        situation: What is to be kept.
        kept: Share of the original's mean answer probability on retained questions that must be left.
        most: Largest size.

    Returns:
        The model, in evaluation mode.
    """
    task = situation.task
    retain = encode(situation.tokenizer, pairs(task.retain, forms=("question",), template=task.template))
    wanted = kept * recall(changed(0.0), retain)
    low, high = 0.0, most
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if recall(changed(middle), retain) >= wanted else (low, middle)
    return changed(low).eval()


def recall(module: LlamaForCausalLM, texts: Sequence[Encoded]) -> float:
    """Mean over texts of the geometric mean of their completion tokens' probabilities, in [0, 1]."""
    return sum(math.exp(score.mean) for score in score_batch(module, texts, CPU)) / len(texts)
