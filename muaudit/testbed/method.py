"""What an unlearning method is: a model of known truth is made by one."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.compute import flushed_denormals
from muaudit.models.tokens import Encoded
from muaudit.results import Frozen
from muaudit.task import ForgetTask
from muaudit.testbed.language import FORMS, pairs
from muaudit.testbed.training import Recipe, adamw, batches, encode_pairs, step


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
    """

    task: ForgetTask
    tokenizer: PreTrainedTokenizerFast
    recipe: Recipe
    forms: tuple[str, ...]
    original: Callable[[], LlamaForCausalLM]
    seed: int


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
        optimizer = adamw(module, self.learning_rate)
        streams = batches(forget, self.batch_size, situation.seed), batches(retain, self.batch_size, situation.seed)
        for _, wrong, right in zip(range(self.steps), *streams, strict=False):
            step(module, optimizer, self.loss(module, original, wrong, right))
        return module.eval()

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
