"""Tells of which make a classifier or regressor is by what lies at its path, and opens it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from muaudit.errors import ModelError

if TYPE_CHECKING:
    from muaudit.models.classifier import Classifier, Dtype, Regressor
    from muaudit.models.estimator import Estimator, EstimatorRegressor
    from muaudit.models.onnx_model import OnnxClassifier, OnnxRegressor

    Opened = Union["Classifier", "Regressor", "Estimator", "EstimatorRegressor", "OnnxClassifier", "OnnxRegressor"]  # noqa: UP007

Make = Literal["network", "estimator", "onnx"]


def make_of(path: Path) -> Make:
    """Of which make a model is, told from names alone.

    Args:
        path: Its file or folder.

    Returns:
        "estimator" for a .skops file or a folder with one, "onnx" for an .onnx file or a folder with one, "network" for all
        else.

    Raises:
        ModelError: There is nothing at the path.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder; check the model's path in audit.toml")
    if path.suffix == ".skops" or (path.is_dir() and any(path.glob("*.skops"))):
        return "estimator"
    if path.suffix == ".onnx" or (path.is_dir() and any(path.glob("*.onnx")) and not any(path.glob("*.safetensors"))):
        return "onnx"
    return "network"


def classifier_family(path: Path, *, regressor: bool) -> type[Any]:
    """The class of the model at a path, which says what it can do; nothing is opened.

    Args:
        path: Its file or folder.
        regressor: Whether it predicts numbers instead of classes.

    Returns:
        The class.

    Raises:
        ModelError: There is nothing at the path.
    """
    make = make_of(path)
    if make == "estimator":
        from muaudit.models.estimator import Estimator, EstimatorRegressor

        return EstimatorRegressor if regressor else Estimator
    if make == "onnx":
        from muaudit.models.onnx_model import OnnxClassifier, OnnxRegressor

        return OnnxRegressor if regressor else OnnxClassifier
    from muaudit.models.classifier import Classifier, Regressor

    return Regressor if regressor else Classifier


def open_classifier(
    path: Path,
    *,
    factory: str | None = None,
    base: Path | None = None,
    device: str = "auto",
    dtype: "Dtype" = "float32",
    batch_size: int = 512,
    regressor: bool = False,
) -> "Opened":
    """Opens a classifier or regressor of any make.

    Args:
        path: Its file or folder.
        factory: `file.py:function` or `module:function` that builds its network; it is run.
        base: Folder that the factory's file starts from.
        device: A torch device name, for networks; estimators and ONNX files are computed on the CPU.
        dtype: What a network is computed in; estimators and ONNX files have their own.
        batch_size: Most inputs at a time.
        regressor: Whether it predicts numbers instead of classes.

    Returns:
        The model.

    Raises:
        ModelError: It cannot be opened safely.
        UsageError: The factory cannot be imported.
        EnvironmentFault: The device or an extra is not there.
    """
    family = classifier_family(path, regressor=regressor)
    opened: Opened
    if make_of(path) == "network":
        opened = family.open(path, factory=factory, base=base, device=device, dtype=dtype, batch_size=batch_size)
    elif factory is not None:
        raise ModelError(f"{path}: a factory builds torch networks for safetensors weights; leave factory out")
    else:
        opened = family.open(path, batch_size=batch_size)
    return opened
