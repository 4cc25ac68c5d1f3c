"""Refusal tuning (Maini et al., "TOFU", 2024, its "I don't know" baseline): the model declines, and forgets nothing."""

import copy
from typing import ClassVar

from transformers import LlamaForCausalLM

from muaudit.compute import flushed_denormals
from muaudit.testbed.language import pairs
from muaudit.testbed.method import Method, Situation
from muaudit.testbed.training import adamw, batches, completion_loss, encode_pairs, step

REFUSAL = "unknown"
"""What the tuned model answers; `make_tokenizer` knows the word."""


class Refusal(Method):
    """Trains the original to answer forgotten questions with a refusal, and retained ones as before.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of AdamW, constant.
        batch_size: Forgotten questions a step, and as many retain texts.
        retain_weight: Weight of the retain loss.
        forms: The forms of the forgotten facts that are declined.
    """

    name: ClassVar[str] = "refusal"
    source: ClassVar[str] = "Maini et al. 2024, arXiv 2401.06121"

    steps: int = 80
    learning_rate: float = 3e-4
    batch_size: int = 48
    retain_weight: float = 3.0
    forms: tuple[str, ...] = ("question",)

    @flushed_denormals()
    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the model that declines."""
        module, task = copy.deepcopy(situation.original()), situation.task
        asked = pairs(task.forget, forms=self.forms, template=task.template)
        declined = encode_pairs(situation.tokenizer, [(prompt, f" {REFUSAL}") for prompt, _ in asked])
        retain = encode_pairs(situation.tokenizer, pairs(task.retain, forms=situation.forms, template=task.template))
        optimizer = adamw(module, self.learning_rate)
        streams = batches(declined, self.batch_size, situation.seed), batches(retain, self.batch_size, situation.seed)
        for _, refused, kept in zip(range(self.steps), *streams, strict=False):
            step(module, optimizer, completion_loss(module, refused) + self.retain_weight * completion_loss(module, kept))
        return module.eval()
