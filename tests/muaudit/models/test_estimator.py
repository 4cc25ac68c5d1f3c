"""scikit-learn estimators out of skops files: the numbers of scikit-learn itself, and only its own types."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muaudit.errors import ModelError, NotApplicable
from muaudit.examples import Examples

pytest.importorskip("sklearn")
skops_io = pytest.importorskip("skops.io")

from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402

from muaudit.models import Classifies, ClassifiesInputs, ExposesLayers, HoldsModule, Model, Predicts  # noqa: E402
from muaudit.models.estimator import Estimator, EstimatorRegressor  # noqa: E402
from muaudit.models.opening import classifier_family, open_classifier  # noqa: E402
from muaudit.training.trained import PROBABILITY_FLOOR, logits_from  # noqa: E402

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)


def _examples(rows: Any = slice(None, None, 10), labels: Any = None) -> Examples:
    inputs = X[rows].reshape(-1, 2, 2)  # what is flattened again
    ids = tuple(f"e{place}" for place in range(len(inputs)))
    return Examples(ids, ids, Y[rows] if labels is None else labels, inputs)


def _stored(path: Path, estimator: Any, x: Any = X, y: Any = Y) -> Path:
    skops_io.dump(estimator.fit(x, y) if y is not None else estimator, path)
    return path


def _told(path: Path, **keywords: Any) -> str:
    with pytest.raises(ModelError) as caught:
        open_classifier(path, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=200),
        RandomForestClassifier(7, random_state=0, n_jobs=2),
        GradientBoostingClassifier(n_estimators=3, random_state=0),
        HistGradientBoostingClassifier(max_iter=3, random_state=0),
        make_pipeline(StandardScaler(), KNeighborsClassifier()),
        make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=20, random_state=0)),
        CalibratedClassifierCV(RidgeClassifier(), cv=2, method="isotonic"),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_the_logarithms_of_scikit_learns_probabilities(tmp_path: Path, estimator: Any) -> None:
    model = open_classifier(_stored(tmp_path / "m.skops", estimator), batch_size=4)
    examples = _examples()
    truth = np.array([estimator.predict_proba(one.reshape(1, 4))[0] for one in examples.pictured()])
    assert (truth == 0).any() == isinstance(estimator, RandomForestClassifier | CalibratedClassifierCV) or truth.min() >= 0
    logits = model.logits(examples)
    np.testing.assert_allclose(logits, np.log(np.maximum(truth, PROBABILITY_FLOOR)), rtol=1e-4, atol=1e-6)  # float32
    np.testing.assert_array_equal(model.logits_of(examples.pictured()), logits)
    # The same as of an estimator that the auditor trains, or target and shadow models could not be compared.
    np.testing.assert_allclose(logits_from(estimator, examples.pictured()), logits, rtol=1e-9)
    assert model.model_seconds > 0


def test_decision_functions_stand_in_for_probabilities(tmp_path: Path) -> None:
    examples = _examples()
    many = SVC(decision_function_shape="ovr")
    logits = open_classifier(_stored(tmp_path / "m.skops", many)).logits(examples)
    np.testing.assert_allclose(logits, many.decision_function(examples.pictured().reshape(-1, 4)), rtol=1e-6)
    two = RidgeClassifier()
    model = open_classifier(_stored(tmp_path / "two.skops", two, y=(Y > 0).astype(int)))
    one_score = two.decision_function(examples.pictured().reshape(-1, 4))
    expected = np.stack([np.zeros(len(one_score)), one_score], axis=1)
    np.testing.assert_allclose(model.logits_of(examples.pictured()), expected, rtol=1e-6)


@pytest.mark.parametrize("left_out", [1, 2])
def test_a_class_that_was_never_trained_on_has_the_least_probability(tmp_path: Path, left_out: int) -> None:
    rows = left_out != Y
    model = open_classifier(_stored(tmp_path / "m.skops", LogisticRegression(max_iter=200), X[rows], Y[rows]))
    logits = model.logits(_examples())
    assert logits.shape == (15, 3)
    np.testing.assert_array_equal(logits[:, left_out], np.log(PROBABILITY_FLOOR))


def test_a_regressor_predicts(tmp_path: Path) -> None:
    examples = _examples(labels=np.zeros((15, 1)))
    for estimator in (Ridge(), RandomForestRegressor(3, random_state=0)):
        model = open_classifier(_stored(tmp_path / "m.skops", estimator, y=X[:, 0] * 2), regressor=True)
        assert isinstance(model, EstimatorRegressor)
        truth = estimator.predict(examples.pictured().reshape(-1, 4))[:, None]
        np.testing.assert_allclose(model.predictions(examples), truth, rtol=1e-6)
    two = open_classifier(_stored(tmp_path / "two.skops", LinearRegression(), y=X[:, :2]), regressor=True)
    np.testing.assert_allclose(two.predictions(_examples(labels=np.zeros((15, 2)))), X[::10, :2], rtol=1e-4)
    with pytest.raises(ModelError, match="predicts 2 numbers an example, but the task's labels have 1"):
        two.predictions(examples)


def test_what_estimators_can_do(tmp_path: Path) -> None:
    path = _stored(tmp_path / "m.skops", LogisticRegression(max_iter=200))
    model = open_classifier(path)
    for capability in (Model, Classifies, ClassifiesInputs):
        assert isinstance(model, capability)
    for capability in (Predicts, ExposesLayers, HoldsModule):
        assert not isinstance(model, capability)
    assert classifier_family(path, regressor=False) is Estimator
    assert classifier_family(path, regressor=True) is EstimatorRegressor
    assert open_classifier(path).digest == model.digest
    assert open_classifier(_stored(tmp_path / "n.skops", LogisticRegression(C=2, max_iter=200))).digest != model.digest
    with pytest.raises(NotApplicable):
        model.logits(Examples(("a",), ("a",), Y[:1]))


class Homemade(ClassifierMixin, BaseEstimator):
    """What a vendor might write: its code would run."""

    def fit(self, x: Any, y: Any) -> "Homemade":
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x: Any) -> Any:
        return np.full((len(x), len(self.classes_)), 1 / len(self.classes_))


def test_foreign_types_and_functions_are_refused(tmp_path: Path) -> None:
    told = _told(_stored(tmp_path / "m.skops", Homemade()))
    assert "Homemade, and only classes of scikit-learn, numpy and scipy are loaded" in told
    for function in (__import__("os").listdir, np.load, np.genfromtxt):
        path = tmp_path / f"{function.__name__}.skops"
        _stored(path, make_pipeline(FunctionTransformer(function, validate=False), Homemade()), y=None)
        assert function.__name__ in _told(path)


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.pickle"])
def test_pickles_are_refused_with_the_way_to_mend(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    told = _told(tmp_path / name)
    assert f"{name} is a pickle, and a pickle can run code" in told
    assert "skops.io.dump" in told


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"{}"])
def test_a_file_that_is_none_of_skops_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.skops").write_bytes(content)
    assert "not a file of skops" in _told(tmp_path / "m.skops")


@pytest.mark.parametrize("schema", ["", "[]", "{}", '{"__loader__": "ObjectNode"}'])
def test_a_damaged_file_of_skops_is_told(tmp_path: Path, schema: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.skops", "w") as file:
        file.writestr("schema.json", schema)
    assert "skops" in _told(tmp_path / "m.skops")


@pytest.mark.parametrize(
    ("estimator", "y", "expected"),
    [
        (LogisticRegression(), None, "cannot be loaded (This LogisticRegression instance is not fitted yet"),
        (LogisticRegression(max_iter=200), np.array(["ant", "bee", "cat"])[Y], "its classes are"),
        (LogisticRegression(max_iter=200), Y - 1, "its classes are"),
        (Ridge(), Y, "a Ridge that gives no class scores"),
        (StandardScaler(), Y, "a StandardScaler that gives no class scores"),
    ],
)
def test_an_estimator_that_is_no_classifier_of_numbered_classes_is_refused(
    tmp_path: Path, estimator: Any, y: Any, expected: str
) -> None:
    assert expected in _told(_stored(tmp_path / "m.skops", estimator, y=y))


def test_a_classifier_is_no_regressor(tmp_path: Path) -> None:
    path = _stored(tmp_path / "m.skops", LogisticRegression(max_iter=200))
    assert "a LogisticRegression, which predicts no numbers" in _told(path, regressor=True)


def test_another_version_of_scikit_learn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _stored(tmp_path / "m.skops", LogisticRegression(max_iter=200))
    monkeypatch.setattr("sklearn.base.__version__", "0.99")
    assert "by the version of scikit-learn that is installed here" in _told(path)


def test_inputs_of_another_shape_are_told(tmp_path: Path) -> None:
    model = open_classifier(_stored(tmp_path / "m.skops", LogisticRegression(max_iter=200)))
    with pytest.raises(ModelError, match=r"fails on inputs of shape \[5, 3\] \(X has 3 features"):
        model.logits_of(np.zeros((5, 3), np.float32))


def test_a_factory_is_for_networks(tmp_path: Path) -> None:
    assert "leave factory out" in _told(_stored(tmp_path / "m.skops", LogisticRegression(max_iter=200)), factory="m.py:make")
