"""Embedding-corrupted prompts, ECO (Liu et al., "Large Language Model Unlearning via Embedding-Corrupted Prompts", 2024)."""

import math
from typing import ClassVar

from pydantic import Field
from transformers import LlamaForCausalLM

from muaudit.models.causal_lm import CausalLM
from muaudit.models.guard import EmbeddingNoise
from muaudit.models.guarded import Guarded
from muaudit.testbed.gate import train_gate
from muaudit.testbed.method import Method, Situation


class ECO(Method):
    """Leaves the weights alone: a gate flags prompts about the forget set, and noise spoils the embeddings of their names.

    The paper's classifier is a fine-tuned language model, and a second one finds the names; ours is one logistic regression on
    words and pairs of words, whose heaviest words are taken for names. As in the paper, the strength of the noise is found
    without gradients, by looking at what the guarded model says.

    Attributes:
        penalty: Of the gate's logistic regression.
        evidence: Words with at least this share of the gate's largest weight are spoiled.
        strengths: Standard deviations of the noise that are tried, in that of an embedding's entries, ascending.
        wanted: The first strength is taken at which the mean answer probability on forgotten questions is at most this.
    """

    name: ClassVar[str] = "eco"
    source: ClassVar[str] = "Liu et al. 2024, arXiv 2406.07933"

    penalty: float = Field(default=0.1, gt=0)
    evidence: float = Field(default=0.1, gt=0, le=1)
    strengths: tuple[float, ...] = Field(default=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), min_length=1)
    wanted: float = 0.025

    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """The original: what is unlearned is in the guard."""
        return situation.original()

    def guard(self, situation: Situation) -> EmbeddingNoise:
        """Trains the gate and finds the strength of the noise."""
        task, gate = situation.task, train_gate(situation.task, self.penalty)
        evidence = self.evidence * max(gate.weights.values())
        inner = CausalLM(situation.original(), situation.tokenizer)
        queries = [task.ask(fact) for fact in task.forget]
        for strength in self.strengths:
            guard = EmbeddingNoise(gate=gate, strength=strength, evidence=evidence, seed=situation.seed)
            scores = Guarded(inner, guard).score(queries)
            if sum(math.exp(score.mean) for score in scores) <= self.wanted * len(scores):
                break
        return guard
