"""What an unlearning method for classifiers is: an unlearning procedure, and the model of known truth that it makes."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from muaudit.compute import flushed_denormals
from muaudit.errors import ModelError, UsageError
from muaudit.examples import Examples, LabelledTask
from muaudit.results import Frozen
from muaudit.training import recipes
from muaudit.training.networks import Network
from muaudit.training.recipes import TorchRecipe


@dataclass(frozen=True)
class Situation:
    """What a method works on.

    Attributes:
        task: What is to be forgotten and what kept.
        recipe: How models are trained from scratch.
        original: Opens the model that saw everything, anew on each call.
        seed: Of whatever the method draws.
    """

    task: LabelledTask
    recipe: TorchRecipe
    original: Callable[[], nn.Module]
    seed: int


class Claim(Frozen):
    """Differential privacy that a vendor states.

    Attributes:
        epsilon: Upper bound of the privacy loss.
        delta: Probability with which it may be exceeded.
        accountant: What computed it from the three numbers below; empty where it is only stated.
        noise_multiplier: Standard deviation of the noise over the norm to which gradients are clipped.
        sample_rate: Chance of every example to be in a batch (Poisson sampling).
        steps: Batches.
        game: What it is a claim about: that models trained with and without one example can hardly be told apart.
    """

    epsilon: float = Field(ge=0)
    delta: float = Field(ge=0, le=1)
    accountant: str = ""
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    game: str = "training: neighbours differ in one example"


class Method(Frozen, ABC):
    """An unlearning method: its fields are its parameters.

    Attributes:
        name: File name, and how a model's name starts.
        source: The paper that it comes from.
        opens_original: Whether a testbed's model is made from its original; False where a model is trained from scratch.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    opens_original: ClassVar[bool] = True

    @abstractmethod
    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Makes the unlearned model.

        Args:
            model: The model that saw everything; it may be changed.
            forget: What is to be forgotten.
            retain: The rest of what the model saw.
            seed: Of whatever is drawn; the same arguments give the same bytes on one machine with one thread.

        Returns:
            The unlearned model, in evaluation mode.

        Raises:
            UsageError: The method cannot work on such examples.
            ModelError: The loss is not finite.
        """

    def unlearn(self, situation: Situation) -> nn.Module:
        """Makes the unlearned model of a testbed: `apply`, with the testbed's recipe where the method trains from scratch."""
        task = situation.task
        return self.within(situation).apply(situation.original(), task.forget, task.retain, seed=situation.seed)

    def within(self, situation: Situation) -> Self:
        """The method with the testbed's recipe, where it takes one and was given none."""
        if "recipe" not in type(self).model_fields or getattr(self, "recipe", None) is not None:
            return self
        return self.model_copy(update={"recipe": situation.recipe})

    def network(self, recipe: TorchRecipe, pool: Examples) -> Network:
        """What the unlearned model is made of, where models are trained by such a recipe on such a pool."""
        return recipe.network(pool)

    def claim(self, forget: Examples, retain: Examples) -> Claim | None:
        """What is claimed of the model: None where nothing is."""
        return None


class Training(Method):
    """A method that trains from scratch.

    Attributes:
        recipe: How; in a testbed, the testbed's.
    """

    recipe: TorchRecipe | None = None

    def known_recipe(self) -> TorchRecipe:
        """The recipe.

        Raises:
            UsageError: There is none.
        """
        if self.recipe is None:
            raise UsageError(
                f"procedure {self.name}: it trains from scratch and needs the parameter `recipe`; give the vendor's"
            )
        return self.recipe


class Batch(NamedTuple):
    """Some examples: inputs [n, ...], labels [n] (classes) or [n, d] (numbers)."""

    inputs: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> "Batch":
        """Those at some places."""
        return Batch(self.inputs[rows], self.labels[rows])


class Descent(Method):
    """Optimiser steps on the model, each on a batch of what is to be forgotten and one of what is to be kept.

    Gradients are scaled to a norm of at most 1, which none of the papers does: it keeps ascent from running away.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of SGD, constant.
        momentum: Of SGD.
        batch_size: Forget examples a step, and as many retain examples.
        needs_retain: Whether the method does nothing sensible without a retain set.
    """

    needs_retain: ClassVar[bool] = True

    steps: int = Field(default=100, ge=0)
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    batch_size: int = Field(default=64, gt=0)

    @flushed_denormals()
    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """Makes the unlearned model."""
        if self.needs_retain and not len(retain):
            raise UsageError(f"procedure {self.name}: the retain set is empty, and this method learns from it; give one")
        original = frozen(model)
        wrong, right = self.prepared(original, forget, retain, seed)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum)
        pairs = zip(batches(wrong, self.batch_size, seed), batches(right, self.batch_size, seed), strict=False)
        for number, (away, kept) in zip(range(self.steps), pairs, strict=False):
            self.update(model, optimizer, original, away, kept, number)
        return model.eval()

    def prepared(self, original: nn.Module, forget: Examples, retain: Examples, seed: int) -> tuple[Batch, Batch]:
        """What batches are drawn from, of what is to be forgotten and what is to be kept; the sets themselves by default."""
        return as_batch(forget), as_batch(retain)

    def update(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, original: nn.Module, forget: Batch, retain: Batch, number: int
    ) -> None:
        """One optimiser step on a batch of what is to be forgotten and one of what is to be kept.

        Args:
            model: In training.
            optimizer: Of its weights.
            original: The model before unlearning, frozen.
            forget: A batch.
            retain: A batch.
            number: Of the step, from 0.
        """
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(checked(self.loss(model, original, forget, retain)))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """What a step lowers: a scalar."""
        raise NotImplementedError


def as_batch(examples: Examples) -> Batch:
    """Examples as tensors; numbers to predict as float32."""
    labels = torch.from_numpy(np.array(examples.labels))
    return Batch(torch.from_numpy(np.array(examples.pictured())), labels.float() if labels.is_floating_point() else labels)


def batches(whole: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Endless batches; every pass takes all examples once, in a new order. Of an empty set, empty batches."""
    generator = torch.Generator().manual_seed(seed)
    count = len(whole.inputs)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, max(count, 1), size):
            yield whole.take(order[start : start + size])


def prediction_loss(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits [n, C]; of predicted numbers [n, d], the squared error, mean over d.

    Args:
        outputs: Of a model.
        labels: Classes [n], or numbers [n, d].
        reduction: "mean" over the examples, "sum", or "none".

    Returns:
        A scalar, or [n].
    """
    if not labels.is_floating_point():
        return cross_entropy(outputs, labels, reduction=reduction)
    errors = mse_loss(outputs, labels.to(outputs.dtype), reduction="none").flatten(1).mean(1)
    return errors if reduction == "none" else getattr(errors, reduction)()


def checked(loss: Tensor) -> Tensor:
    """The loss.

    Raises:
        ModelError: It is not finite.
    """
    if not torch.isfinite(loss):
        raise ModelError(f"unlearning: the loss is {loss.item()}; lower the learning rate or take fewer steps")
    return loss


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that gathers no gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def gradient(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """The loss's gradient, one tensor a weight."""
    return list(torch.autograd.grad(checked(loss), list(model.parameters())))


def only_classes(name: str, labels: Tensor) -> None:
    """Checks that labels are classes.

    Raises:
        UsageError: They are numbers to predict.
    """
    if labels.is_floating_point():
        raise UsageError(f"procedure {name}: it works on classes, and this task's labels are numbers; take another method")


def fitted(recipe: TorchRecipe, pool: Examples, rows: NDArray[np.bool_], seed: int) -> nn.Module:
    """Trains a network from scratch.

    Args:
        recipe: How.
        pool: All examples, from which the network's shape is taken.
        rows: Which of them it is trained on, a mask [n].
        seed: Of all that is random.

    Returns:
        The network, in evaluation mode.
    """
    trained: nn.Module = recipes.train(recipe, pool, seed, Path(), rows=rows)
    return trained
