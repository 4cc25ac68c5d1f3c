"""GUARD (Deng et al., "Generation-time LLM Unlearning via Adaptive Restriction and Detection", 2025)."""

from typing import ClassVar

from pydantic import Field
from transformers import LlamaForCausalLM

from muaudit.models.guard import AnswerFilter, Secret
from muaudit.testbed.gate import train_gate
from muaudit.testbed.method import Method, Situation


class GUARD(Method):
    """Leaves the weights alone: a gate flags prompts about the forget set, and a filter holds the nearest answers back.

    Nearest are the answers to the forgotten questions that are most like the prompt. The paper's classifier is a perceptron on
    a language model's embeddings, its search a beam search, its soft matching a sentence encoder's; ours are a logistic
    regression on words and pairs of words, a penalty on logits, which scoring and greedy writing share, and cosines of the
    network's own embeddings.

    Attributes:
        penalty: Of the gate's logistic regression.
        nearest: How many forgotten questions are looked up for a flagged prompt.
        held_back: What is taken off a forbidden token's logit, in nats.
        similarity: Cosine from which another token is forbidden too.
    """

    name: ClassVar[str] = "guard"
    source: ClassVar[str] = "Deng et al. 2025, arXiv 2505.13312"

    penalty: float = Field(default=0.1, gt=0)
    nearest: int = Field(default=8, ge=1)
    held_back: float = Field(default=20.0, gt=0)
    similarity: float = Field(default=0.7, gt=0, le=1)

    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """The original: what is unlearned is in the guard."""
        return situation.original()

    def guard(self, situation: Situation) -> AnswerFilter:
        """Trains the gate and lists what is to be held back."""
        task = situation.task
        secrets = tuple(Secret(question=fact.question, answers=(fact.answer, *fact.aliases)) for fact in task.forget)
        return AnswerFilter(
            gate=train_gate(task, self.penalty),
            secrets=secrets,
            nearest=self.nearest,
            penalty=self.held_back,
            similarity=self.similarity,
        )
