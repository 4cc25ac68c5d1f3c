"""How the auditor trains models, and how the vendor unlearns: `[recipe]` and `[procedure]` of audit.toml."""

import hashlib
import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from muaudit.compute import seed_of
from muaudit.errors import ModelError, UsageError
from muaudit.examples import Examples, Outputs
from muaudit.results import Frozen
from muaudit.training import vendor
from muaudit.training.trained import logits_from as logits_from  # with `train` and `unlearn`, this is what recipes are used by
from muaudit.training.trained import outputs_from

if TYPE_CHECKING:
    from muaudit.training.networks import Network

RETRIES = 2
"""How often a training that diverged is tried again, each time with a named seed."""

Mode = Literal["auto", "stacked", "sequential"]

_NORMS = {"mlp": ("none",), "cnn": ("none", "group"), "resnet": ("batch", "group")}


class Architecture(Frozen):
    """What a built-in network is made of, but for the shapes that the data give.

    Attributes:
        architecture: `mlp`; `cnn`, two blocks of 3x3 convolution, ReLU and max-pooling; `resnet`, the shape of ResNet-18 for
            small images (He et al. 2016, arXiv 1512.03385, table 1, with a 3x3 stem and no first pooling).
        hidden: Widths of the mlp's hidden layers; none gives a linear model.
        width: Channels of the first convolution; a cnn doubles them once, a resnet three times (ResNet-18 itself has 64).
        norm: Normalisation layers: "none" or "group" in a cnn, "batch" or "group" in a resnet; the first of each by default.
    """

    architecture: Literal["mlp", "cnn", "resnet"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (256,)
    width: Annotated[int, Field(ge=1)] = 16
    norm: Literal["none", "group", "batch"] | None = None

    @model_validator(mode="after")
    def _known_norm(self) -> Self:
        allowed = _NORMS[self.architecture]
        if self.norm is not None and self.norm not in allowed:
            raise ValueError(f"a {self.architecture} has no norm {self.norm!r}; it can be {' or '.join(allowed)}")
        return self

    @property
    def normalisation(self) -> str:
        """The normalisation layers that it has."""
        return self.norm or _NORMS[self.architecture][0]


class TorchRecipe(Architecture):
    """Trains a built-in network.

    Batches are taken from a seeded order of the rows that goes on in a new order when it ends, so every batch is full. The
    loss is cross-entropy for classes and mean squared error for numbers.

    Attributes:
        optimizer: torch's; `adam` adds the weight decay to the gradient, `adamw` does not.
        learning_rate: Peak rate.
        momentum: Of sgd.
        nesterov: Whether sgd looks ahead.
        weight_decay: Of all weights.
        schedule: What the rate does after the warm-up: stays, or falls to zero along half a cosine or a line. With a warm-up,
            `cosine` is the usual one-cycle schedule.
        warmup: Share of the steps in which the rate rises to its peak, linearly.
        batch_size: Examples a step.
        steps: Optimiser steps.
        epochs: Instead of steps: passes over the rows. All models of a cohort take the same number of steps, from their mean
            number of rows.
        augmentation: What is done to each image of each batch: mirrored with probability 1/2, shifted by up to `shift` pixels
            each way (what enters is zero), or both.
        shift: Pixels.
        normalise: Whether inputs are standardised by mean and standard deviation of the whole pool, a column or channel each.
        dtype: What is computed in.
        labels: Whether labels are classes or numbers.
        mode: Whether many models are trained at once (`stacked`), one by one (`sequential`), or as a short timing says. The
            two agree but for rounding; what `auto` chose is stored with the models.
    """

    kind: Literal["torch"] = "torch"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_size: Annotated[int, Field(ge=1)] = 64
    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    augmentation: Literal["none", "mirror", "shift", "mirror_shift"] = "none"
    shift: Annotated[int, Field(ge=0)] = 0
    normalise: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    labels: Outputs = "classes"
    mode: Mode = "auto"

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.optimizer != "sgd" and {"momentum", "nesterov"} & self.model_fields_set:
            raise ValueError(f"momentum and nesterov are sgd's; {self.optimizer} has none: leave them out")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        if ("shift" in self.augmentation) != (self.shift > 0):
            raise ValueError('shift = 1 or more pixels goes with augmentation = "shift" or "mirror_shift", and only with these')
        return self

    def steps_for(self, rows: float) -> int:
        """Optimiser steps with so many rows."""
        return self.steps or max(1, round((self.epochs or 0) * rows / self.batch_size))

    def network(self, pool: Examples) -> "Network":
        """The network that fits a pool: its shape, its number of classes, and its mean and standard deviation.

        Args:
            pool: All examples, those included that no model is trained on, so that all models are alike.

        Returns:
            The network.

        Raises:
            UsageError: The pool does not suit the recipe.
        """
        from muaudit.training.networks import Network

        inputs = pool.pictured()
        mean, std = (0.0,), (1.0,)
        if self.normalise:
            axes = (0, *range(2, inputs.ndim))
            deviations = inputs.std(axis=axes, dtype=np.float64)
            mean = tuple(inputs.mean(axis=axes, dtype=np.float64).tolist())
            std = tuple(np.where(deviations > 0, deviations, 1.0).tolist())  # a constant column says nothing either way
        shape, outputs = inputs.shape[1:], outputs_of(pool, self.labels)
        made_of = {name: getattr(self, name) for name in Architecture.model_fields}
        try:
            return Network(**made_of, input_shape=shape, outputs=outputs, mean=mean, std=std, dtype=self.dtype)
        except ValueError as error:
            first = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
            raise UsageError(f"recipe: {first.removeprefix('Value error, ')}") from error

    def files(self, folder: Path) -> tuple[Path, ...]:
        """Code outside muaudit that it runs: none."""
        return ()


class SklearnRecipe(Frozen):
    """Fits a scikit-learn estimator; images are flattened.

    Attributes:
        estimator: Full name of a classifier or regressor of scikit-learn, such as "sklearn.ensemble.RandomForestClassifier".
        parameters: Its constructor's; `random_state` comes from the seed where there is one.
    """

    kind: Literal["sklearn"] = "sklearn"
    estimator: str
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _constructs(self) -> Self:
        if "random_state" in self.parameters:
            raise ValueError("random_state comes from the seed; leave it out of the parameters")
        try:
            self.build(0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.estimator} cannot be made with these parameters: {error}") from error
        return self

    @property
    def labels(self) -> Outputs:
        """Whether it learns classes or numbers."""
        from sklearn.base import is_classifier

        return "classes" if is_classifier(self.build(0)) else "numbers"

    def build(self, seed: int) -> Any:  # noqa: ANN401 - any estimator
        """The estimator, not yet fitted.

        Args:
            seed: Of its random state, where it has one.

        Returns:
            The estimator.

        Raises:
            ValueError: The name is not a classifier or regressor of scikit-learn, or the parameters are not its own.
            EnvironmentFault: scikit-learn is not installed.
        """
        kind = vendor.estimator(self.estimator)
        estimator = kind(**self.parameters)
        estimator._validate_params()  # what scikit-learn itself does, but only when it fits
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed % 2**32)
        return estimator

    def files(self, folder: Path) -> tuple[Path, ...]:
        """Code outside muaudit that it runs: none."""
        return ()


class _Named(Frozen):
    """A function of the vendor's.

    Attributes:
        function: "module:function" of an installed module, or "file.py:function" with the file's path from audit.toml's folder.
        parameters: Passed on by name.
    """

    function: str
    parameters: dict[str, Any] = {}

    @field_validator("function")
    @classmethod
    def _two_parts(cls, function: str) -> str:
        vendor.split(function)
        return function

    def files(self, folder: Path) -> tuple[Path, ...]:
        """The files to digest: the file, or every Python file of the module's package.

        Args:
            folder: Of audit.toml.

        Returns:
            Their paths, sorted.

        Raises:
            UsageError: There is no such file or module.
        """
        return vendor.files(self.function, folder)

    def load(self, folder: Path) -> Callable[..., Any]:
        """Imports the function, which runs its file.

        Args:
            folder: Of audit.toml.

        Returns:
            The function.

        Raises:
            UsageError: The file, the module or the function is not there, or cannot be imported.
        """
        return vendor.load(self.function, folder)


class PythonRecipe(_Named):
    """Trains by a function of the vendor's: `train(inputs, labels, *, seed, **parameters) -> model`.

    `inputs` are float32 [n, ...], `labels` int64 [n] or float64 [n, d]. The model is a torch module (inputs to logits), a
    scikit-learn estimator, or any callable from arrays to logits.

    Attributes:
        labels: Whether labels are classes or numbers.
    """

    kind: Literal["python"] = "python"
    labels: Outputs = "classes"


class Procedure(_Named):
    """The vendor's unlearning procedure: `unlearn(model, forget, retain, *, seed, **parameters) -> model`.

    `model` is a copy of what the recipe trained, in training mode where it is a module; `forget` and `retain` are
    `muaudit.examples.Examples`.
    """


Recipe = Annotated[TorchRecipe | SklearnRecipe | PythonRecipe, Field(discriminator="kind")]
AnyRecipe = TorchRecipe | SklearnRecipe | PythonRecipe


@dataclass(frozen=True)
class Trained:
    """A model, and what it took.

    Attributes:
        model: A torch module in evaluation mode, a scikit-learn estimator, or a callable from arrays to logits.
        retries: How often the training diverged before, in 0..2.
    """

    model: Any
    retries: int


def outputs_of(pool: Examples, labels: Outputs) -> int:
    """Number of classes, or of numbers to predict, in a pool.

    Raises:
        UsageError: The labels are not of this kind.
    """
    if labels == "numbers":
        return int(np.prod(pool.labels.shape[1:], dtype=np.int64))
    if pool.labels.dtype.kind not in "iu" or pool.labels.ndim != 1 or not len(pool) or pool.labels.min() < 0:
        raise UsageError('the recipe learns classes, but the labels are not whole numbers from 0; set labels = "numbers"')
    return int(pool.labels.max()) + 1


def rows_digest(ids: Iterable[str]) -> str:
    """SHA-256 of the ids of the examples that a model was trained on, in the pool's order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def train(recipe: AnyRecipe, examples: Examples, seed: int, folder: Path, *, rows: NDArray[np.bool_] | None = None) -> Any:  # noqa: ANN401 - whatever the recipe makes
    """Trains one model; the same inputs give the same model on one machine with one thread.

    Args:
        recipe: How.
        examples: The pool, from which classes, mean and standard deviation are taken.
        seed: Of all that is random, in [0, 2**63).
        folder: Of audit.toml, where the vendor's files are.
        rows: Which of the examples it is trained on, a mask [n]; all by default.

    Returns:
        A torch module in evaluation mode, a scikit-learn estimator, or a callable from arrays to logits.

    Raises:
        ModelError: The training diverged three times, or the vendor's function failed.
        UsageError: The recipe does not suit the examples.
    """
    return fit(recipe, examples, seed, folder, rows=rows).model


def fit(
    recipe: AnyRecipe,
    examples: Examples,
    seed: int,
    folder: Path,
    *,
    rows: NDArray[np.bool_] | None = None,
    steps: int | None = None,
    tried: int = 0,
) -> Trained:
    """Trains one model, as `train` does, and says how often it diverged.

    Args:
        recipe: How.
        examples: The pool.
        seed: Of all that is random.
        folder: Of audit.toml.
        rows: Which of the examples it is trained on; all by default.
        steps: Optimiser steps, where a cohort has set them.
        tried: How often it has diverged already, elsewhere.

    Returns:
        The model and its retries.
    """
    mask = np.ones(len(examples), dtype=bool) if rows is None else np.asarray(rows, dtype=bool)
    if not mask.any():
        raise UsageError("a model is to be trained on no example at all; give it some rows")
    for retry in range(tried, RETRIES + 1):
        model = _once(recipe, examples, mask, attempt_seed(seed, retry), folder, steps)
        if model is not None:
            return Trained(model, retry)
    raise ModelError(
        f"training diverged with seed {seed} and with {RETRIES} more seeds drawn from it; lower the recipe's learning rate"
    )


def attempt_seed(seed: int, retry: int) -> int:
    """The seed itself, or the one drawn from it for a retry."""
    return seed_of(str(seed), "retry", str(retry)) if retry else seed


def _once(recipe: AnyRecipe, pool: Examples, mask: NDArray[np.bool_], seed: int, folder: Path, steps: int | None) -> Any:  # noqa: ANN401 - whatever the recipe makes
    """One attempt; None where it diverged."""
    if isinstance(recipe, TorchRecipe):
        from muaudit.training.fitting import fit_network

        return fit_network(recipe, recipe.network(pool), pool, mask, seed, steps or recipe.steps_for(int(mask.sum())))
    part = pool.take(mask)
    with vendor.seeded(seed):
        if isinstance(recipe, SklearnRecipe):
            outputs_of(pool, recipe.labels)  # labels that are not of its kind are better refused here
            estimator = recipe.build(seed)
            model = vendor.call(estimator.fit, recipe.estimator, part.pictured().reshape(len(part), -1), part.labels)
        else:
            train = recipe.load(folder)
            model = vendor.call(train, recipe.function, part.pictured(), part.labels, seed=seed, **recipe.parameters)
    if vendor.is_module(model):
        model.eval()
    return model if np.isfinite(outputs_from(model, part.pictured()[:64], outputs_of(pool, recipe.labels))).all() else None


def unlearn(procedure: Procedure, model: Any, forget: Examples, retain: Examples, seed: int, folder: Path) -> Any:  # noqa: ANN401
    """Has the vendor's procedure unlearn examples.

    Args:
        procedure: The vendor's.
        model: What a recipe trained; it is not changed.
        forget: What is to be forgotten.
        retain: The other examples that the model was trained on.
        seed: Of all that is random.
        folder: Of audit.toml.

    Returns:
        The unlearned model, in evaluation mode where it is a module.

    Raises:
        ModelError: The procedure failed, or made no model.
    """
    with vendor.seeded(seed):
        copy = deepcopy(model)
        if vendor.is_module(copy):
            copy.train().requires_grad_(True)
        made = vendor.call(procedure.load(folder), procedure.function, copy, forget, retain, seed=seed, **procedure.parameters)
    if made is None:
        raise ModelError(f"procedure {procedure.function}: returned None; it must return the unlearned model")
    return made.eval() if vendor.is_module(made) else made
