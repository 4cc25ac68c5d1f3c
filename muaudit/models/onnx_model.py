"""ONNX files: classifiers and regressors of which only outputs can be had."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from muaudit.compute import Stopwatch
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.examples import Examples
from muaudit.loaders.example_columns import first_line
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import class_scores

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}

_LOGITS = ("logits", "scores")
_PROBABILITIES = ("probabilities", "probability", "probs", "output_probability")


class _Session:
    """A file in onnxruntime: on the CPU, one thread, so that the same input gives the same bytes.

    Attributes:
        output: Name of the output that is read.
    """

    def __init__(self, path: Path, batch_size: int) -> None:
        file = _file(path)
        files = manifest(path)
        _refuse_foreign_data(file, {entry.name for entry in files})
        self.path = path
        self.digest = manifest_digest(files)
        self.stopwatch = Stopwatch()
        self._session = _opened(file, alone=not path.is_dir())
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES:
            kinds = ", ".join(f"{one.name}: {one.type}" for one in inputs)
            raise ModelError(f"{path}: takes {kinds}, and has to take one tensor of floats [n, ...]; export it so")
        self._input, self._shape = inputs[0], list(inputs[0].shape)
        self.output = _output(path, self._session.get_outputs())
        fixed = self._shape[0] if self._shape else None
        self._fixed = fixed if isinstance(fixed, int) else None
        self._batch = self._fixed or batch_size

    def scores(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Outputs [n, d], finite or not."""
        if len(self._shape) == 2 and inputs.ndim > 2:  # as exporters of scikit-learn estimators have it
            inputs = inputs.reshape(len(inputs), -1)
        parts = []
        with self.stopwatch.running():
            for start in range(0, max(len(inputs), 1), self._batch):
                parts.append(self._run(inputs[start : start + self._batch]))
        return class_scores.columns(np.concatenate(parts)).astype(np.float64)

    def _run(self, inputs: NDArray[np.float32]) -> NDArray[Any]:
        count = len(inputs)
        if self._fixed is not None and count < self._fixed:  # the export fixed its batch: fill up with blanks
            inputs = np.concatenate([inputs, np.zeros((self._fixed - count, *inputs.shape[1:]), np.float32)])
        batch = np.ascontiguousarray(inputs, dtype=_DTYPES[self._input.type])
        try:
            (made,) = self._session.run([self.output], {self._input.name: batch})
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime") and not isinstance(error, UnicodeDecodeError):
                raise
            raise ModelError(
                f"{self.path}: fails on inputs of shape {list(inputs.shape)} ({first_line(error)}); it takes {self._shape}"
            ) from error
        if not isinstance(made, np.ndarray) or made.ndim == 0 or len(made) != len(inputs):
            raise ModelError(
                f"{self.path}: output {self.output!r} has not one row an input; export the logits as a tensor [n, C]"
            )
        return made[:count]


class _OnnxModel:
    """What classifiers and regressors have in common."""

    def __init__(self, session: _Session) -> None:
        self._session = session

    @classmethod
    def open(cls, path: Path, *, batch_size: int = 512) -> Self:
        """Opens an ONNX file.

        Args:
            path: The file, or a folder with exactly one and its external data.
            batch_size: Most inputs at a time; a batch size that the file fixes goes first.

        Returns:
            The model.

        Raises:
            ModelError: It cannot be opened, keeps weights outside, has operators that onnxruntime does not ship, or does not
                map one tensor of floats to one of scores.
            EnvironmentFault: onnxruntime is not installed.
        """
        return cls(_Session(path, batch_size))

    @property
    def digest(self) -> str:
        """Digest of the file, or of all files of its folder."""
        return self._session.digest

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside onnxruntime."""
        return self._session.stopwatch.seconds


class OnnxClassifier(_OnnxModel):
    """A classifier.

    An output named "probabilities" (or as scikit-learn's exporters have it) gives logits by its logarithm, of zeros log 1e-12;
    any other is taken for logits, and refused where its rows are probabilities all the same.
    """

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        """Logits [n, C], in the order given.

        Raises:
            NotApplicable: The examples have no inputs.
            ModelError: A logit is NaN or infinite, probabilities stand where logits belong, or a class has no column.
        """
        return class_scores.refuse_unknown_classes(self._logits(examples.pictured(), examples.ids), examples)

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits [n, C] of inputs [n, ...].

        Raises:
            ModelError: As with `logits`.
        """
        return self._logits(inputs, None)

    def _logits(self, inputs: NDArray[np.float32], ids: Sequence[str] | None) -> NDArray[np.float64]:
        scores = self._session.scores(inputs)
        if self._session.output.lower() in _PROBABILITIES:
            scores = class_scores.log_probabilities(scores, ids)
        return class_scores.class_logits(scores, ids)


class OnnxRegressor(_OnnxModel):
    """A regressor."""

    def predictions(self, examples: Examples) -> NDArray[np.float64]:
        """Predictions [n, d], in the order given.

        Raises:
            NotApplicable: The examples have no inputs.
            ModelError: A prediction is NaN or infinite, or there are not as many an example as labels.
        """
        predictions = class_scores.finite(self._session.scores(examples.pictured()), examples.ids)
        return class_scores.refuse_other_numbers(predictions, examples)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.onnx"))
    if len(found) != 1:
        raise ModelError(f"{path}: {len(found)} .onnx files, and a model is one; name the file")
    return found[0]


def _session(
    onnxruntime: Any,  # noqa: ANN401 - onnxruntime is untyped
    file: Path,
    options: Any,  # noqa: ANN401 - onnxruntime is untyped
    alone: bool,
) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    how = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
    if not alone:
        return onnxruntime.InferenceSession(str(file), options, **how)
    # What is one file is opened from its bytes, beside nothing: however it spells the name of another, there is none.
    with tempfile.TemporaryDirectory() as nothing:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        return onnxruntime.InferenceSession(file.read_bytes(), options, **how)


def _opened(file: Path, *, alone: bool) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentFault(f"{file}: opening it needs onnxruntime; install it: pip install 'muaudit[vision]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters is raised
    try:
        session = _session(onnxruntime, file, options, alone)
        _ = [(one.name, one.shape) for one in (*session.get_inputs(), *session.get_outputs())]
        return session
    except Exception as error:
        # A damaged name fails where it is turned into text, be it in the runtime's own message.
        if not type(error).__module__.startswith("onnxruntime") and not isinstance(error, UnicodeDecodeError):
            raise
        line = first_line(ValueError(str(error).split("failed:", 1)[-1]))
        if "is not a registered function/op" in str(error):
            raise ModelError(
                f"{file}: has an operator of its own ({line}), and code for operators is never loaded; export it with standard "
                "operators"
            ) from error
        raise ModelError(f"{file}: onnxruntime cannot open it ({line}); export it again") from error


def _output(path: Path, outputs: Sequence[Any]) -> str:
    """The output with the scores: logits first, then probabilities, else the only tensor of floats."""
    names = [str(one.name) for one in outputs if one.type in _DTYPES]
    for known in (_LOGITS, _PROBABILITIES):
        if found := [name for name in names if name.lower() in known]:
            return found[0]
    if len(names) != 1:
        kinds = ", ".join(f"{one.name}: {one.type}" for one in outputs)
        raise ModelError(
            f"{path}: gives {kinds}, and it is not plain which are the scores; export one tensor named logits or probabilities "
            "(from scikit-learn with zipmap off)"
        )
    return names[0]


def _refuse_foreign_data(file: Path, names: set[str]) -> None:
    """Refuses weights that are kept where the model's digest does not reach.

    A tensor's place is an entry of its message's map: key "location", then the name (onnx.proto, StringStringEntryProto). The
    runtime itself refuses what escapes the folder, however it is encoded; here, what a digest of one file alone would miss.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); check the model's path in audit.toml") from error
    for match in re.finditer(rb"\n\x08location\x12([\x01-\x7f])", data):
        place = data[match.end() : match.end() + match[1][0]].decode("utf-8", "replace")
        if place not in names:
            raise ModelError(
                f"{file}: keeps weights in {place!r}, outside of what is digested; put them into the file, or give the folder "
                "that holds both"
            )
