"""Negated task vector (Ilharco et al., "Editing Models with Task Arithmetic", 2022)."""

import copy
from typing import ClassVar

import torch
from pydantic import Field
from transformers import LlamaForCausalLM

from muaudit.compute import flushed_denormals
from muaudit.testbed.calibration import furthest
from muaudit.testbed.language import FORMS, pairs
from muaudit.testbed.method import Method, Situation
from muaudit.testbed.training import adamw, batches, completion_loss, encode_pairs, step


class TaskVector(Method):
    """Trains the original further on the forget set alone, and takes the change away from it, several times over.

    Attributes:
        steps: Optimiser steps of that training.
        learning_rate: Of AdamW, constant.
        batch_size: Forgotten texts a step.
        kept: Share of the original's mean answer probability on retained questions that must be left; as in the paper, the
            scale is the largest that leaves so much.
        largest: Largest scale.
        forms: The forms of the forgotten facts that are trained on.
    """

    name: ClassVar[str] = "task_vector"
    source: ClassVar[str] = "Ilharco et al. 2022, arXiv 2212.04089"

    steps: int = Field(default=160, ge=1)
    learning_rate: float = 1e-4
    batch_size: int = 48
    kept: float = Field(default=0.86, gt=0, le=1)
    largest: float = Field(default=20.0, gt=0)
    forms: tuple[str, ...] = FORMS

    @flushed_denormals()
    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model: original - scale (tuned - original), weight by weight."""
        original, tuned = situation.original(), self.tuned(situation)
        return furthest(lambda scale: negated(original, tuned, scale), situation, self.kept, self.largest)

    def tuned(self, situation: Situation) -> LlamaForCausalLM:
        """The original, trained further on the forget set."""
        module, task = copy.deepcopy(situation.original()), situation.task
        chosen = tuple(form for form in self.forms if form in situation.forms)
        texts = encode_pairs(situation.tokenizer, pairs(task.forget, forms=chosen, template=task.template))
        optimizer = adamw(module, self.learning_rate)
        for _, batch in zip(range(self.steps), batches(texts, self.batch_size, situation.seed), strict=False):
            step(module, optimizer, completion_loss(module, batch))
        return module.eval()


@torch.no_grad()
def negated(original: LlamaForCausalLM, tuned: LlamaForCausalLM, scale: float) -> LlamaForCausalLM:
    """A copy of the original without `scale` times what the tuning changed."""
    module = copy.deepcopy(original)
    for weight, moved in zip(module.parameters(), tuned.parameters(), strict=True):
        weight.sub_(scale * (moved - weight))
    return module
