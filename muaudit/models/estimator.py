"""scikit-learn estimators, stored with skops: only types of scikit-learn, numpy and scipy, and never a pickle."""

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from muaudit.compute import Stopwatch
from muaudit.errors import EnvironmentFault, ModelError, UsageError
from muaudit.examples import Examples
from muaudit.loaders.example_columns import first_line, refuse_bomb
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import class_scores
from muaudit.models.classifier import refuse_pickles
from muaudit.training.trained import outputs_from

_TRUSTED = ("sklearn.", "scipy.interpolate.", "scipy.sparse.")
"""Where classes may be from beside those that skops itself trusts: estimators keep trees and splines of these."""


class _Stored:
    """What classifiers and regressors of scikit-learn have in common.

    Attributes:
        estimator: The fitted estimator.
        batch_size: Most inputs at a time.
    """

    def __init__(self, estimator: Any, *, digest: str, batch_size: int = 512) -> None:  # noqa: ANN401 - scikit-learn is untyped
        self.estimator = estimator
        self.batch_size = batch_size
        self._digest = digest
        self._stopwatch = Stopwatch()

    @property
    def digest(self) -> str:
        """Digest of the stored file."""
        return self._digest

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the estimator."""
        return self._stopwatch.seconds

    def _scores(self, inputs: NDArray[np.float32], outputs: int | None) -> NDArray[np.float64]:
        parts = []
        try:
            with self._stopwatch.running():
                for start in range(0, max(len(inputs), 1), self.batch_size):
                    parts.append(outputs_from(self.estimator, inputs[start : start + self.batch_size], outputs))
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(
                f"the estimator fails on inputs of shape {list(inputs.shape)} ({first_line(error)}); it is shown them "
                "flattened, and they must be what it was trained on"
            ) from error
        return np.concatenate(parts)


class Estimator(_Stored):
    """A classifier of scikit-learn.

    Logits are the natural logarithms of `predict_proba`, of zeros (as forests give them) log 1e-12; or the `decision_function`,
    with two classes beside 0, where there are no probabilities: its softmax is then no calibrated probability. They are the
    same as those of an estimator that the auditor trains.
    """

    @classmethod
    def open(cls, path: Path, *, batch_size: int = 512) -> Self:
        """Opens a stored classifier.

        Args:
            path: A file that skops.io.dump wrote, or a folder with exactly one.
            batch_size: Most inputs at a time; it changes no result.

        Returns:
            The model.

        Raises:
            ModelError: It is a pickle, holds types that are not trusted, or is no fitted classifier of whole-number classes.
            EnvironmentFault: skops or scikit-learn is not installed.
        """
        model = load_estimator(path)
        classes = getattr(model, "classes_", None)
        if classes is None or not (hasattr(model, "predict_proba") or hasattr(model, "decision_function")):
            raise ModelError(
                f"{path}: a {type(model).__name__} that gives no class scores; store a fitted classifier with predict_proba or "
                "decision_function"
            )
        if np.ndim(classes) != 1 or np.asarray(classes).dtype.kind not in "iu" or min(classes) < 0:
            raise ModelError(
                f"{path}: its classes are {_listed([repr(one) for one in classes])}, and have to be numbers as the task's; "
                "train it on these numbers"
            )
        return cls(model, digest=manifest_digest(manifest(path)), batch_size=batch_size)

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        """Logits [n, C], in the order given; a class that the estimator was never trained on has the least probability.

        Raises:
            NotApplicable: The examples have no inputs.
            ModelError: A score is NaN or infinite, or the estimator fails.
        """
        known = int(max(self.estimator.classes_)) + 1
        seen = int(examples.labels.max()) + 1 if len(examples) else 0
        return class_scores.class_logits(self._scores(examples.pictured(), max(known, seen)), examples.ids)

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits [n, C] of inputs [n, ...], flattened; C is the largest class that the estimator was trained on, plus 1.

        Raises:
            ModelError: As with `logits`.
        """
        return class_scores.class_logits(self._scores(inputs, None))


class EstimatorRegressor(_Stored):
    """A regressor of scikit-learn."""

    @classmethod
    def open(cls, path: Path, *, batch_size: int = 512) -> Self:
        """Opens a stored regressor.

        Args:
            path: A file that skops.io.dump wrote, or a folder with exactly one.
            batch_size: Most inputs at a time; it changes no result.

        Returns:
            The model.

        Raises:
            ModelError: It is a pickle, holds types that are not trusted, or is no fitted regressor.
            EnvironmentFault: skops or scikit-learn is not installed.
        """
        model = load_estimator(path)
        if hasattr(model, "classes_") or not hasattr(model, "predict"):
            raise ModelError(f"{path}: a {type(model).__name__}, which predicts no numbers; store a fitted regressor")
        return cls(model, digest=manifest_digest(manifest(path)), batch_size=batch_size)

    def predictions(self, examples: Examples) -> NDArray[np.float64]:
        """Predictions [n, d], in the order given.

        Raises:
            NotApplicable: The examples have no inputs.
            ModelError: A prediction is NaN or infinite, there are not as many as labels, or the estimator fails.
        """
        predictions = class_scores.finite(self._scores(examples.pictured(), None), examples.ids)
        return class_scores.refuse_other_numbers(predictions, examples)


def load_estimator(path: Path) -> Any:  # noqa: ANN401 - scikit-learn is untyped
    """Loads a fitted estimator that skops stored.

    Args:
        path: The file, or a folder with exactly one.

    Returns:
        The estimator; it computes in one process, since the order of sums over several would change last bits.

    Raises:
        ModelError: It cannot be loaded safely, was stored by another version of scikit-learn, or is not fitted.
        EnvironmentFault: skops or scikit-learn is not installed.
    """
    path = _file(path)
    refuse_pickles(path)
    try:
        import sklearn.exceptions
        import sklearn.utils.validation
        import skops.io
    except ImportError as error:
        raise EnvironmentFault(f"{path}: opening it needs {error.name}; install it: pip install 'muaudit[vision]'") from error
    try:
        refuse_bomb(path, str(path))
        foreign = skops.io.get_untrusted_types(file=path)
    except UsageError:
        raise
    except Exception as error:  # skops raises what its parsers of zip and JSON raise
        raise ModelError(
            f"{path}: not a file of skops ({first_line(error)}); store the estimator with skops.io.dump"
        ) from error
    if bad := [name for name in foreign if not _is_own_class(name)]:
        raise ModelError(
            f"{path}: holds {_listed(bad)}, and only classes of scikit-learn, numpy and scipy are loaded, since others could "
            "run code; train the estimator without them"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", sklearn.exceptions.InconsistentVersionWarning)
            model = skops.io.load(path, trusted=foreign)
        sklearn.utils.validation.check_is_fitted(model)
        jobs = {name: 1 for name, value in model.get_params().items() if name.split("__")[-1] == "n_jobs" and value is not None}
        return model.set_params(**jobs)
    except Exception as error:  # a damaged file fails anywhere inside skops or scikit-learn
        raise ModelError(
            f"{path}: cannot be loaded ({first_line(error)}); store a fitted estimator with skops.io.dump, by the version of "
            "scikit-learn that is installed here"
        ) from error


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.skops"))
    if len(found) != 1:
        raise ModelError(f"{path}: {len(found)} .skops files, and a model is one; name the file")
    return found[0]


def _is_own_class(name: str) -> bool:
    """Whether a name is that of a class of the trusted libraries: unlike a function, it is only filled, never called."""
    module, _, kind = name.rpartition(".")
    if not name.startswith(_TRUSTED):
        return False
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except (ImportError, ValueError, TypeError):
        return False
    return isinstance(found, type) and f"{found.__module__}.".startswith(_TRUSTED)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
