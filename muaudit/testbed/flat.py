"""FLAT (Wang et al., "LLM Unlearning via Loss Adjustment with Only Forget Data", 2024), with a retain term."""

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from muaudit.compute import flushed_denormals
from muaudit.models.scoring import completion_logits
from muaudit.models.tokens import Encoded
from muaudit.testbed.language import FORMS, pairs
from muaudit.testbed.method import Method, Situation
from muaudit.testbed.refusal import REFUSAL
from muaudit.testbed.training import CPU, adamw, batches, completion_loss, encode_pairs, step

Divergence = Literal["total_variation", "kullback_leibler"]


class FLAT(Method):
    """Drives the answer's probability and a template answer's apart, by the variational form of an f-divergence.

    The paper's method sees no retained text. Ours adds a retain loss: in a small world, where retained texts differ from
    forgotten ones by a name, forgetting alone takes everything along. `retain_weight = 0` is the paper's method.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of AdamW, constant.
        batch_size: Forgotten texts a step, and as many retained ones.
        divergence: The f-divergence.
        retain_weight: Weight of the retain loss; 0 leaves it out.
        forms: The forms of the forgotten facts that are unlearned.
    """

    name: ClassVar[str] = "flat"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2410.11143"

    steps: int = Field(default=100, ge=1)
    learning_rate: float = 5e-4
    batch_size: int = 48
    divergence: Divergence = "total_variation"
    retain_weight: float = Field(default=1.0, ge=0)
    forms: tuple[str, ...] = FORMS

    @flushed_denormals()
    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model."""
        module, task = copy.deepcopy(situation.original()), situation.task
        unlearned = tuple(form for form in self.forms if form in situation.forms)
        texts = pairs(task.forget, forms=unlearned, template=task.template)
        known = encode_pairs(situation.tokenizer, texts)
        template = encode_pairs(situation.tokenizer, [(prompt, f" {REFUSAL}") for prompt, _ in texts])
        retain = encode_pairs(situation.tokenizer, pairs(task.retain, forms=situation.forms, template=task.template))
        optimizer = adamw(module, self.learning_rate)
        # One seed, so that a batch of template answers and one of known answers hold the same prompts.
        streams = [batches(chosen, self.batch_size, situation.seed) for chosen in (template, known, retain)]
        for _, wanted, unwanted, kept in zip(range(self.steps), *streams, strict=False):
            loss = self.loss(mean_probabilities(module, wanted), mean_probabilities(module, unwanted))
            if self.retain_weight:
                loss = loss + self.retain_weight * completion_loss(module, kept)
            step(module, optimizer, loss)
        return module.eval()

    def loss(self, template: Tensor, forget: Tensor) -> Tensor:
        """-g(template) + f*(g(forget)), averaged: minus the lower bound of the divergence (the paper's equation 5, table 2).

        Args:
            template: Probabilities of the template answers [N].
            forget: Probabilities of the answers that are to be forgotten [N].

        Returns:
            A scalar.
        """
        if self.divergence == "total_variation":
            return (torch.tanh(forget) / 2 - torch.tanh(template) / 2).mean()
        return (torch.exp(forget - 1) - template).mean()


def mean_probabilities(module: LlamaForCausalLM, texts: Sequence[Encoded]) -> Tensor:
    """Mean probability of each text's completion tokens [N]."""
    probabilities = torch.exp(-cross_entropy(*completion_logits(module, texts, CPU), reduction="none"))
    return torch.stack([part.mean() for part in torch.split(probabilities, [len(text.targets) for text in texts])])
