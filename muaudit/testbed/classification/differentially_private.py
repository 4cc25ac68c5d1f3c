"""Differentially private training (DP-SGD; Abadi et al., "Deep Learning with Differential Privacy", 2016), by opacus.

What was learned this way may hold little of any one example, so that, up to the claim, there is nothing to unlearn.
"""

import math
import warnings
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from muaudit.compute import flushed_denormals, seed_of
from muaudit.errors import UsageError
from muaudit.examples import Examples
from muaudit.testbed.classification.method import Claim, Situation, Training, as_batch, checked, prediction_loss
from muaudit.training import fitting

_ACCOUNTANT = "prv"


class DifferentiallyPrivate(Training):
    """Trains on both sets with clipped and noisy gradients, and does nothing to forget.

    Batches are Poisson samples, as the accountant assumes; inputs are not standardised, since their mean would not be private.
    The recipe gives the architecture alone.

    Attributes:
        epsilon: The claim: noise is set so that the privacy loss stays just below.
        delta: Probability with which it may be exceeded.
        clip: Norm to which each example's gradient is clipped.
        epochs: Mean number of times that an example is in a batch.
        batch_size: Mean size of a batch.
        learning_rate: Of SGD.
        momentum: Of SGD.
    """

    name: ClassVar[str] = "differentially_private"
    source: ClassVar[str] = "Abadi et al. 2016, arXiv 1607.00133"
    opens_original: ClassVar[bool] = False

    epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=64, gt=0)
    learning_rate: float = Field(default=0.5, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)

    def apply(self, model: nn.Module, forget: Examples, retain: Examples, *, seed: int) -> nn.Module:
        """The model as it is: its training has made it forget."""
        return model.eval()

    def unlearn(self, situation: Situation) -> nn.Module:
        """Trains on both sets; the testbed's original was not trained in private, and is not opened."""
        method, task = self.within(situation), situation.task
        trained = method.fit(Examples.joined([task.forget, task.retain]), situation.seed)
        return method.apply(trained, task.forget, task.retain, seed=situation.seed)

    @flushed_denormals()
    def fit(self, pool: Examples, seed: int) -> nn.Module:
        """Trains in private.

        Args:
            pool: What it is trained on.
            seed: Of start, batches and noise. A vendor would draw the noise from a secure generator, and keep no seed.

        Returns:
            The network, in evaluation mode.

        Raises:
            UsageError: The network has batch normalisation, which mixes examples.
        """
        from opacus import PrivacyEngine

        recipe = self.known_recipe().model_copy(update={"normalise": False})
        if recipe.normalisation == "batch":
            raise UsageError("procedure differentially_private: batch normalisation mixes examples; set norm = 'group'")
        whole, steps, model = as_batch(pool), self.steps(len(pool)), fitting.start(recipe.network(pool), seed)
        draws, noise = (torch.Generator().manual_seed(seed_of(str(seed), purpose)) for purpose in ("batches", "noise"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of generators that are seeded, and of hooks that are meant
            private, optimizer, loader = PrivacyEngine(accountant=_ACCOUNTANT).make_private(
                module=model.train(),
                optimizer=torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum),
                data_loader=DataLoader(TensorDataset(*whole), batch_size=self.batch_size, generator=draws),
                noise_multiplier=self.noise(len(pool)),
                max_grad_norm=self.clip,
                noise_generator=noise,
            )
            for _ in range(steps // len(loader)):
                for inputs, labels in loader:
                    optimizer.zero_grad()
                    # An empty batch has a gradient too, of nothing but noise; its mean loss would not be a number.
                    loss = prediction_loss(private(inputs), labels, "sum") / max(1, len(inputs))
                    torch.autograd.backward(checked(loss))
                    optimizer.step()
        trained: nn.Module = private.to_standard_module()
        return trained.eval()

    def steps(self, examples: int) -> int:
        """Batches in all, of so many examples."""
        return self.epochs * math.ceil(examples / self.batch_size)

    def rate(self, examples: int) -> float:
        """Chance of each of so many examples to be in a batch, as opacus sets it."""
        return 1 / math.ceil(examples / self.batch_size)

    def noise(self, examples: int) -> float:
        """Least noise multiplier, to about a hundredth, with which training on so many examples stays below `epsilon`."""
        return _noise(self.epsilon, self.delta, self.rate(examples), self.steps(examples))

    def claim(self, forget: Examples, retain: Examples) -> Claim:
        """What the accountant says of the training on both sets."""
        from opacus.accountants import create_accountant

        examples = len(forget) + len(retain)
        rate, steps, noise = self.rate(examples), self.steps(examples), self.noise(examples)
        accountant = create_accountant(_ACCOUNTANT)
        accountant.history = [(noise, rate, steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of orders that only bound the numerical error
            epsilon = float(accountant.get_epsilon(self.delta))
        return Claim(
            epsilon=epsilon,
            delta=self.delta,
            accountant=_ACCOUNTANT,
            noise_multiplier=noise,
            sample_rate=rate,
            steps=steps,
        )


@cache
def _noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of orders that the search passes through
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant=_ACCOUNTANT
            )
        )


def train(inputs: NDArray[np.float32], labels: NDArray[Any], *, seed: int, **parameters: object) -> nn.Module:
    """Trains in private: a `[recipe]` of kind "python".

    Args:
        inputs: float32 [n, ...].
        labels: int64 [n] or float64 [n, d].
        seed: Of all that is random.
        **parameters: Fields of `DifferentiallyPrivate`, the recipe with the architecture among them.

    Returns:
        The model.
    """
    names = tuple(map(str, range(len(inputs))))
    return DifferentiallyPrivate.model_validate(parameters).fit(Examples(names, names, labels, inputs), seed)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`DifferentiallyPrivate` as a vendor's procedure; see `Method.apply`."""
    return DifferentiallyPrivate.model_validate(parameters).apply(model, forget, retain, seed=seed)
