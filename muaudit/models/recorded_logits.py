"""Recorded scores instead of weights: logits, probabilities or predictions by example, from any framework."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import ModelError, UsageError
from muaudit.examples import Examples
from muaudit.loaders.example_columns import Columns, bytes_of, first_line, listed, load_arrays, pick, texts_of
from muaudit.loaders.example_tables import numbers, parse_table, texts
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import class_scores


class _Recorded:
    """Rows of scores by the examples' ids."""

    def __init__(self, ids: Sequence[str], scores: NDArray[np.float64], digest: str, shown: str) -> None:
        self._rows = {name: row for row, name in enumerate(ids)}
        self._scores = scores
        self._digest = digest
        self._shown = shown
        self.model_seconds = 0.0

    @property
    def digest(self) -> str:
        """Digest of the recorded file."""
        return self._digest

    def _of(self, examples: Examples) -> NDArray[np.float64]:
        missing = [name for name in examples.ids if name not in self._rows]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(
                f"{self._shown}: nothing is recorded of example {missing[0]!r}{more}; record every example of the task under "
                "its id"
            )
        return self._scores[[self._rows[name] for name in examples.ids]]


class RecordedLogits(_Recorded):
    """A classifier of which only scores were recorded.

    An npz file has `ids` [n] and `logits` [n, C], or `probabilities`; a parquet or CSV table has `id` and a list column
    `logits`, or columns logit_0, logit_1, ..., or likewise `probabilities` or probability_0, ... What else stands there is not
    looked at. Probabilities become logits by their logarithm, of zeros log 1e-12; since single precision rounds them near 1,
    logits tell more.
    """

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the scores.

        Args:
            path: The npz, parquet or CSV file.

        Returns:
            The model.

        Raises:
            ModelError: The file cannot be read, lacks ids or scores, names an example twice, or holds NaN.
            EnvironmentFault: pyarrow is not installed.
        """
        ids, found = _read(path, {"logits": "logit", "probabilities": "probability"})
        try:
            if "logits" in found:
                logits = class_scores.class_logits(class_scores.columns(found["logits"]), ids)
            else:
                probabilities = class_scores.columns(found["probabilities"])
                logits = class_scores.class_logits(class_scores.log_probabilities(probabilities, ids), ids)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return cls(ids, logits, manifest_digest(manifest(path)), str(path))

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        """Logits [n, C], in the order given.

        Raises:
            ModelError: An example was not recorded, or its class has no column.
        """
        return class_scores.refuse_unknown_classes(self._of(examples), examples)


class RecordedPredictions(_Recorded):
    """A regressor of which only predictions were recorded.

    An npz file has `ids` [n] and `predictions` [n] or [n, d]; a parquet or CSV table has `id` and a column `predictions` of
    numbers or lists, or columns prediction_0, prediction_1, ... What else stands there is not looked at.
    """

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the predictions.

        Args:
            path: The npz, parquet or CSV file.

        Returns:
            The model.

        Raises:
            ModelError: The file cannot be read, lacks ids or predictions, names an example twice, or holds NaN.
            EnvironmentFault: pyarrow is not installed.
        """
        ids, found = _read(path, {"predictions": "prediction"})
        try:
            predictions = class_scores.finite(class_scores.columns(found["predictions"]), ids)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return cls(ids, predictions, manifest_digest(manifest(path)), str(path))

    def predictions(self, examples: Examples) -> NDArray[np.float64]:
        """Predictions [n, d], in the order given.

        Raises:
            ModelError: An example was not recorded, or there are not as many predictions as labels.
        """
        return class_scores.refuse_other_numbers(self._of(examples), examples)


def _read(path: Path, kinds: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Ids and the one kind of scores that a file holds, by its name."""
    shown = str(path)
    try:
        if path.suffix == ".npz":
            arrays = load_arrays(bytes_of(path, shown), shown)
            name = pick("id", None, arrays, shown)
            ids = None if name is None else texts_of(arrays[name], f"{shown}: array {name!r}")
            found = {kind: arrays[kind] for kind in kinds if kind in arrays}
        elif path.suffix in (".parquet", ".csv"):
            table = parse_table(bytes_of(path, shown), path.suffix, shown, Columns())
            name = pick("id", None, table.column_names, shown)
            ids = None if name is None else texts(table.column(name), f"{shown}: column {name!r}")
            found = {kind: scores for kind, one in kinds.items() if (scores := _scores(table, kind, one, shown)) is not None}
        else:
            raise ModelError(f"{shown}: recorded scores come as .npz, .parquet or .csv, with ids and {' or '.join(kinds)}")
    except ModelError:
        raise
    except UsageError as error:
        raise ModelError(first_line(error)) from error
    if ids is None or len(found) != 1:
        lacking = "ids" if ids is None else f"one of {' and '.join(kinds)}" if found else " or ".join(kinds)
        raise ModelError(f"{shown}: needs {lacking}; record ids and {' or '.join(kinds)}, one row an example")
    (kind,) = found
    if len(found[kind]) != len(ids) or not ids:
        raise ModelError(f"{shown}: {len(ids)} ids, but {len(found[kind])} rows of {kind}; record one row an example")
    if found[kind].dtype.kind not in "iuf":
        raise ModelError(f"{shown}: {kind} are {found[kind].dtype}; record numbers")
    if len(set(ids)) < len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise ModelError(f"{shown}: example {twice!r} is recorded twice; record every example once")
    return ids, found


def _scores(table: Any, kind: str, one: str, shown: str) -> NDArray[Any] | None:  # noqa: ANN401 - pyarrow is untyped
    """A list column, or numbered columns; None where there is neither."""
    names = table.column_names
    if kind in names:
        return numbers(table.column(kind), f"{shown}: column {kind!r}", Columns())
    numbered = {int(match[1]): name for name in names if (match := re.fullmatch(rf"{one}_(\d+)", name))}
    if not numbered:
        return None
    if sorted(numbered) != list(range(len(numbered))):
        raise ModelError(
            f"{shown}: columns {listed(sorted(numbered.values()))}, where {one}_0 to {one}_{len(numbered) - 1} belong"
        )
    ordered = [numbered[place] for place in range(len(numbered))]
    return np.stack([numbers(table.column(name), f"{shown}: column {name!r}", Columns()) for name in ordered], axis=1)
