"""What an unlearning method is: a model of known truth is made by one."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.compute import flushed_denormals
from muaudit.models.guard import Guard
from muaudit.models.tokens import Encoded
from muaudit.results import Frozen
from muaudit.task import Fact, ForgetTask
from muaudit.testbed.language import FORMS, pairs
from muaudit.testbed.training import Recipe, adamw, batches, encode_pairs, step, train


@dataclass(frozen=True)
class Situation:
    """What a method works on.

    Attributes:
        task: What is to be forgotten and what kept.
        tokenizer: Of all models of the testbed.
        recipe: How models are trained from scratch.
        forms: The forms of the facts that models are trained on.
        original: Opens the model that saw everything, anew on each call.
        seed: Of whatever the method draws.
        fine_tune: Fine-tunes the lineage's base on facts; None where models are trained from scratch.
    """

    task: ForgetTask
    tokenizer: PreTrainedTokenizerFast
    recipe: Recipe
    forms: tuple[str, ...]
    original: Callable[[], LlamaForCausalLM]
    seed: int
    fine_tune: Callable[[Sequence[Fact]], LlamaForCausalLM] | None = None

    def fit(self, facts: Sequence[Fact]) -> LlamaForCausalLM:
        """Trains a model on facts and on nothing else that is in the task: from scratch, or in a lineage from the base."""
        if self.fine_tune:
            return self.fine_tune(facts)
        return train(pairs(facts, forms=self.forms, template=self.task.template), self.tokenizer, self.recipe, self.seed)


class Method(Frozen, ABC):
    """An unlearning method: its fields are its parameters.

    Attributes:
        name: File name, and how a model's name starts.
        source: The paper that it comes from.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model."""

    def guard(self, situation: Situation) -> Guard | None:
        """What is to stand in front of the model; None where all that was changed is its weights."""
        return None


class Descent(Method):
    """Optimiser steps on the original, each on a batch of forget texts and one of retain texts.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of AdamW, constant.
        batch_size: Forget texts a step, and as many retain texts.
        forms: The forms of the forgotten facts that are unlearned; the question alone gives a model that only hides them.
    """

    steps: int = 60
    learning_rate: float = 3e-4
    batch_size: int = 48
    forms: tuple[str, ...] = FORMS

    @flushed_denormals()
    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model."""
        original, task = situation.original(), situation.task
        original.eval().requires_grad_(False)
        module = copy.deepcopy(original)
        unlearned = tuple(form for form in self.forms if form in situation.forms)
        forget = encode_pairs(situation.tokenizer, pairs(task.forget, forms=unlearned, template=task.template))
        retain = encode_pairs(situation.tokenizer, pairs(task.retain, forms=situation.forms, template=task.template))
        module.requires_grad_(False)
        optimizer = adamw(nn.ParameterList(self.trained(module, forget, retain, situation)), self.learning_rate)
        module.train()
        streams = batches(forget, self.batch_size, situation.seed), batches(retain, self.batch_size, situation.seed)
        for _, wrong, right in zip(range(self.steps), *streams, strict=False):
            self.update(module, optimizer, original, wrong, right)
        return module.eval()

    def trained(
        self, module: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded], situation: Situation
    ) -> Iterable[nn.Parameter]:
        """The weights that are trained; all by default. The texts are all that will come in batches."""
        return list(module.parameters())

    def update(
        self,
        module: LlamaForCausalLM,
        optimizer: torch.optim.Optimizer,
        original: LlamaForCausalLM,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
    ) -> None:
        """One optimiser step on a batch of what is to be forgotten and one of what is to be kept."""
        step(module, optimizer, self.loss(module, original, forget, retain))

    @abstractmethod
    def loss(
        self, module: LlamaForCausalLM, original: LlamaForCausalLM, forget: Sequence[Encoded], retain: Sequence[Encoded]
    ) -> Tensor:
        """What a step lowers.

        Args:
            module: The model in training.
            original: The model before unlearning, frozen.
            forget: A batch of what is to be forgotten.
            retain: A batch of what is to be kept.

        Returns:
            A scalar.
        """
