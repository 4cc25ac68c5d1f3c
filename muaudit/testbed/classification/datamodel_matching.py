"""Datamodel matching (DMM; Georgiev et al., "Attribute-to-Delete", 2024): imitate what a retrained model is predicted to say.

(a) Datamodels: how each output depends, linearly, on what a model was trained on, from models trained on random halves.
(b) Matching: fine-tune until the outputs are those that the datamodels predict without the forget set.

Adapted: the paper fits sparse datamodels by LASSO on thousands of models. Halves drawn by the rank trick are nearly an
orthogonal design, for which LASSO has a closed form: the difference between the models with an example and those without,
drawn towards 0 by a few standard errors, and no further. A few dozen models then suffice, since it is mostly an example's own
membership that stands out.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from muaudit.compute import seed_of
from muaudit.examples import Examples
from muaudit.testbed.classification.method import Batch, Descent, Training, as_batch, prediction_loss
from muaudit.training.stacked import Way, fit_many, stackable


class DatamodelMatching(Training, Descent):
    """Fine-tunes to the outputs that datamodels predict for a model that never saw the forget set.

    Attributes:
        models: Models trained on random halves, an even number.
        threshold: Standard errors by which effects are drawn towards 0.
    """

    name: ClassVar[str] = "datamodel_matching"
    source: ClassVar[str] = "Georgiev et al. 2024, arXiv 2410.23232"

    steps: int = Field(default=600, ge=0)
    learning_rate: float = Field(default=0.05, gt=0)
    models: int = Field(default=32, ge=4, multiple_of=2)
    threshold: float = Field(default=2.5, ge=0)

    def prepared(self, original: nn.Module, forget: Examples, retain: Examples, seed: int) -> tuple[Batch, Batch]:
        """Both sets, with the outputs that are to be matched in place of labels."""
        pool = Examples.joined([forget, retain])
        member = halves(self.models, len(pool), seed)
        inputs = as_batch(pool).inputs
        seeds = [seed_of(str(seed), "datamodel", str(number)) for number in range(self.models)]
        recipe = self.known_recipe()
        # Not by a timing, which would choose anew on every run: the two ways differ by rounding.
        way: Way = "stacked" if stackable(recipe.network(pool)) else "sequential"
        halved = [trained.model for trained in fit_many(recipe, pool, member, seeds, Path(), way=way)]
        with torch.no_grad():
            outputs = torch.stack([model(inputs) for model in halved])
            target = original(inputs) - effects(outputs, member, self.threshold)[: len(forget)].sum(0)
        return Batch(inputs[: len(forget)], target[: len(forget)]), Batch(inputs[len(forget) :], target[len(forget) :])

    def loss(self, model: nn.Module, original: nn.Module, forget: Batch, retain: Batch) -> Tensor:
        """Squared distance from the predicted outputs, on both sets (section 4, oracle matching)."""
        wrong = prediction_loss(model(forget.inputs), forget.labels)
        return wrong + prediction_loss(model(retain.inputs), retain.labels)


def halves(models: int, examples: int, seed: int) -> NDArray[np.bool_]:
    """Which examples each model is trained on [models, examples]: every example in exactly half of them (the rank trick)."""
    drawn = np.random.default_rng(seed).random((models, examples))
    return np.asarray(drawn.argsort(axis=0).argsort(axis=0) < models // 2)


def effects(outputs: Tensor, member: NDArray[np.bool_], threshold: float) -> Tensor:
    """What each example's membership adds to each output.

    Args:
        outputs: Of every model on every example [M, N, C].
        member: What the models were trained on [M, N], each example by exactly half.
        threshold: Standard errors of a difference of means by which it is drawn towards 0.

    Returns:
        [N, N, C]: mean output with the first example less the mean without it, soft-thresholded.
    """
    signs = torch.from_numpy(np.where(member, 1.0, -1.0)).to(outputs.dtype)
    difference = torch.einsum("mi,mxc->ixc", signs, outputs) * 2 / len(signs)
    # Of the sum of squares, what the difference of the two groups' means explains is not noise.
    models = len(signs)
    noise = (((models - 1) * outputs.var(0) - models * difference**2 / 4) / (models - 2)).clamp_min(0)
    error = 2 * (noise / models).sqrt()
    return difference.sign() * (difference.abs() - threshold * error).clamp_min(0)


def unlearn(model: nn.Module, forget: Examples, retain: Examples, *, seed: int, **parameters: object) -> nn.Module:
    """`DatamodelMatching` as a vendor's procedure; see `Method.apply`."""
    return DatamodelMatching.model_validate(parameters).apply(model, forget, retain, seed=seed)
