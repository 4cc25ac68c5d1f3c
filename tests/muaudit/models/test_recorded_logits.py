"""Recorded scores: looked up by id from any file, and nothing that was not recorded is made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muaudit.errors import ModelError
from muaudit.examples import Examples
from muaudit.models import Classifies, ClassifiesInputs, HoldsModule, Model, Predicts
from muaudit.models.recorded_logits import RecordedLogits, RecordedPredictions
from muaudit.training.trained import PROBABILITY_FLOOR

pa = pytest.importorskip("pyarrow")

IDS = ["a", "007", "c", "d"]
LOGITS = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, -1.0], [2.0, 2.0, 2.0], [-4.0, 0.5, 9.0]])
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def _examples(*ids: str, labels: Any = None) -> Examples:
    return Examples(ids, ids, np.zeros(len(ids), np.int64) if labels is None else np.array(labels))


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: array for name, array in {"ids": np.array(IDS), **arrays}.items() if array is not None})
    return path


def _table(path: Path, rows: dict[str, Any]) -> Path:
    import pyarrow.csv
    import pyarrow.parquet

    (pyarrow.parquet.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv)(pa.table(rows), path)
    return path


def _told(path: Path, kind: Any = RecordedLogits) -> str:
    with pytest.raises(ModelError) as caught:
        kind.open(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "parquet-list", "parquet", "csv"])
@pytest.mark.parametrize("what", ["logits", "probabilities"])
def test_every_format_gives_the_same_logits_by_id(tmp_path: Path, kind: str, what: str) -> None:
    scores = LOGITS if what == "logits" else PROBABILITIES
    one = {"logits": "logit", "probabilities": "probability"}[what]
    numbered = {f"{one}_{place}": scores[:, place] for place in (2, 0, 1)}
    if kind == "npz":
        path = _npz(tmp_path / "m.npz", **{what: scores}, labels=np.zeros(4, int))
    elif kind == "parquet-list":
        path = _table(tmp_path / "m.parquet", {"id": IDS, "label": [0] * 4, what: scores.tolist()})
    else:
        path = _table(tmp_path / f"m.{kind}", {"label": [0] * 4, "id": IDS, **numbered})
    model = RecordedLogits.open(path)
    expected = LOGITS if what == "logits" else np.log(PROBABILITIES)
    np.testing.assert_allclose(model.logits(_examples("d", "007", "d")), expected[[3, 1, 3]], rtol=1e-12)
    assert model.logits(_examples()).shape == (0, 3)
    assert model.model_seconds == 0


def test_what_recordings_can_do(tmp_path: Path) -> None:
    model = RecordedLogits.open(_npz(tmp_path / "m.npz", logits=LOGITS))
    assert isinstance(model, Model)
    assert isinstance(model, Classifies)
    for capability in (ClassifiesInputs, Predicts, HoldsModule):
        assert not isinstance(model, capability)
    assert RecordedLogits.open(_npz(tmp_path / "n.npz", logits=LOGITS + 1)).digest != model.digest


def test_a_probability_of_zero_has_the_least_logarithm(tmp_path: Path) -> None:
    probabilities = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.3, 0.3, 0.4], [0, 0, 1]], np.float16)
    logits = RecordedLogits.open(_npz(tmp_path / "m.npz", probabilities=probabilities)).logits(_examples(*IDS))
    np.testing.assert_array_equal(logits[0], [0, np.log(PROBABILITY_FLOOR), np.log(PROBABILITY_FLOOR)])


def test_what_was_not_recorded_is_an_error(tmp_path: Path) -> None:
    model = RecordedLogits.open(_npz(tmp_path / "m.npz", logits=LOGITS))
    with pytest.raises(ModelError, match=r"m\.npz: nothing is recorded of example 'x' and 1 more; record every example"):
        model.logits(_examples("a", "x", "y"))
    with pytest.raises(ModelError, match="example 'c' is of class 3, but the model scores 3 classes"):
        model.logits(_examples("a", "c", labels=[0, 3]))


def test_predictions_are_looked_up(tmp_path: Path) -> None:
    examples = _examples("c", "a", labels=[[1.0], [2.0]])
    for path in (
        _npz(tmp_path / "m.npz", predictions=LOGITS[:, 0]),
        _table(tmp_path / "m.parquet", {"id": IDS, "predictions": LOGITS[:, 0]}),
        _table(tmp_path / "m.csv", {"id": IDS, "prediction_0": LOGITS[:, 0]}),
    ):
        model = RecordedPredictions.open(path)
        np.testing.assert_array_equal(model.predictions(examples), [[2.0], [1.5]])
        assert isinstance(model, Predicts)
        assert not isinstance(model, Classifies)
    many = RecordedPredictions.open(_npz(tmp_path / "n.npz", predictions=LOGITS))
    np.testing.assert_array_equal(many.predictions(_examples("a", labels=np.zeros((1, 3)))), LOGITS[:1])
    with pytest.raises(ModelError, match="predicts 3 numbers an example, but the task's labels have 1"):
        many.predictions(examples)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({}, "needs logits or probabilities"),
        ({"logits": LOGITS, "ids": None}, "needs ids"),
        ({"logits": LOGITS, "probabilities": PROBABILITIES}, "needs one of logits and probabilities"),
        ({"logits": LOGITS[:3]}, "4 ids, but 3 rows of logits"),
        ({"logits": LOGITS[:0], "ids": np.array([], str)}, "0 ids, but 0 rows"),
        ({"logits": LOGITS, "ids": np.array(["a", "b", "a", "d"])}, "example 'a' is recorded twice"),
        ({"logits": np.where(LOGITS == 9, np.nan, LOGITS)}, "example 'd': the model gives NaN or infinity"),
        ({"logits": np.where(LOGITS == 3, np.inf, LOGITS)}, "example '007': the model gives NaN or infinity"),
        ({"logits": np.array(list("abcd"))}, "logits are <U1"),
        ({"logits": LOGITS[:, :1]}, "1 score an example"),
        ({"logits": LOGITS[:, 0]}, "1 score an example"),
        ({"logits": LOGITS[:, :, None]}, "scores of shape [4, 3, 1]"),
        ({"logits": PROBABILITIES}, "gives probabilities"),
        ({"probabilities": LOGITS}, "example 'a': probabilities from -2 that sum to -0.25"),
        ({"probabilities": PROBABILITIES * 1.1}, "example 'a': probabilities from"),
        ({"logits": np.array([{}] * 4)}, "pickled Python objects"),
    ],
)
def test_a_fault_of_a_recording_is_told(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    assert expected in _told(_npz(tmp_path / "m.npz", **arrays))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"id": IDS, "logit_0": [1.0] * 4, "logit_2": [1.0] * 4}, "'logit_0', 'logit_2', where logit_0 to logit_1 belong"),
        ({"id": IDS, "scores": LOGITS.tolist()}, "needs logits or probabilities"),
        ({"id": IDS, "logits": [[1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 2.0]]}, "row 2 has a list of 1"),
        ({"id": IDS, "logits": [[1.0, 2.0], [1.0, None], [1.0, 2.0], [1.0, 2.0]]}, "row 2 has no value"),
        ({"id": ["a", None, "c", "d"], "logits": LOGITS.tolist()}, "column 'id': row 2 has no value"),
        ({"id": IDS, "logit_0": list("abcd"), "logit_1": [1.0] * 4}, "column 'logit_0' holds string"),
    ],
)
def test_a_fault_of_a_recorded_table_is_told(tmp_path: Path, rows: dict[str, Any], expected: str) -> None:
    assert expected in _told(_table(tmp_path / "m.parquet", rows))


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for name, content in (("m.npz", b"\x80\x04."), ("m.parquet", b"PAR1"), ("m.csv", b""), ("m.pkl", b"\x80\x04.")):
        (tmp_path / name).write_bytes(content)
        _told(tmp_path / name)
        _told(tmp_path / name, RecordedPredictions)
    assert "cannot be read (No such file or directory)" in _told(tmp_path / "gone.npz")
    assert "needs predictions" in _told(_npz(tmp_path / "n.npz", logits=LOGITS), RecordedPredictions)
