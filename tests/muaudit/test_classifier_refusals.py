"""What an audit of classifiers says of input that it cannot use: one line, the right exit code, nothing run that could harm."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from classifier_audits import RECIPE, SETS, classifier, found, muaudit, scan, settings, write  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from muaudit.results import Verdict  # noqa: E402

TASK: dict[str, Any] = settings()["task"]


@pytest.fixture
def folder(small_classifiers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_classifiers, tmp_path / "here"))


def arrays(folder: Path, name: str) -> dict[str, Any]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


class Harmful:
    """A pickle that leaves a trace when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def no_label(folder: Path) -> dict[str, Any]:
    (folder / "forget.csv").write_text("id,first,second\na,1,2\n")
    return {"task": TASK | {"forget": "forget.csv"}}


def a_misspelt_column(folder: Path) -> dict[str, Any]:
    return {"task": TASK | {"columns": {"label": "species"}}}


def an_id_twice(folder: Path) -> dict[str, Any]:
    values = arrays(folder, "forget")
    values["ids"][7] = values["ids"][3]
    np.savez(folder / "forget.npz", **values)
    return {}


def an_id_in_two_sets(folder: Path) -> dict[str, Any]:
    values = arrays(folder, "retain")
    values["ids"][7] = arrays(folder, "forget")["ids"][3]
    np.savez(folder / "retain.npz", **values)
    return {}


def nan_inputs(folder: Path) -> dict[str, Any]:
    values = arrays(folder, "forget")
    values["inputs"][4, 0, 1, 1] = np.nan
    np.savez(folder / "forget.npz", **values)
    return {}


def objects(folder: Path) -> dict[str, Any]:
    np.savez(folder / "forget.npz", labels=np.array([Harmful()], dtype=object))
    return {}


def an_empty_forget_set(folder: Path) -> dict[str, Any]:
    np.savez(folder / "forget.npz", **{name: array[:0] for name, array in arrays(folder, "forget").items()})
    return {}


def a_pickled_network(folder: Path) -> dict[str, Any]:
    (folder / "target").mkdir()
    torch.save(load_file(folder / "honest" / "model.safetensors"), folder / "target" / "model.pt")
    return {"target": classifier("target")}


def a_pickled_file(folder: Path) -> dict[str, Any]:
    (folder / "target.pkl").write_bytes(pickle.dumps(Harmful()))
    return {"target": classifier("target.pkl")}


def a_joblib_file(folder: Path) -> dict[str, Any]:
    (folder / "target.joblib").write_bytes(pickle.dumps(Harmful()))
    return {"target": classifier("target.joblib")}


def two_estimators(folder: Path) -> dict[str, Any]:
    for name in ("first", "second"):
        (folder / "honest" / f"{name}.skops").write_bytes(b"")
    return {}


def logits_as_a_classifier(folder: Path) -> dict[str, Any]:
    np.savez(folder / "target.npz", ids=np.array(["a"]), logits=np.zeros((1, 10)))
    return {"target": classifier("target.npz")}


def weights_without_a_factory(folder: Path) -> dict[str, Any]:
    return {"target": classifier("honest/model.safetensors")}


def a_factory_that_is_not_there(folder: Path) -> dict[str, Any]:
    return {"target": classifier("honest/model.safetensors", factory="nets.py:make")}


def nan_weights(folder: Path) -> dict[str, Any]:
    path = folder / "honest" / "model.safetensors"
    weights = load_file(path)
    weights["logits.bias"][0] = float("nan")
    save_file(weights, path)
    return {}


def a_misspelt_key_of_the_recipe(folder: Path) -> dict[str, Any]:
    return {"recipe": {**RECIPE, "learning_rates": 0.1}}


def a_recipe_of_no_known_kind(folder: Path) -> dict[str, Any]:
    return {"recipe": {**RECIPE, "kind": "keras"}}


def a_procedure_that_is_not_there(folder: Path) -> dict[str, Any]:
    return {"recipe": RECIPE, "procedure": {"function": "gone.py:unlearn"}}


def a_procedure_without_a_recipe(folder: Path) -> dict[str, Any]:
    return {"procedure": {"function": "vendor.py:unlearn"}}


def shadows_without_a_recipe(folder: Path) -> dict[str, Any]:
    return {"shadows": {"count": 8}}


def shadows_that_are_not_there(folder: Path) -> dict[str, Any]:
    return {"shadows": {"path": "gone"}}


def shadows_that_are_something_else(folder: Path) -> dict[str, Any]:
    return {"shadows": {"path": "honest"}}


def a_classifier_for_facts(folder: Path) -> dict[str, Any]:
    (folder / "forget.jsonl").write_text('{"id": "a", "question": "Who?", "answer": "She"}\n')
    return {"task": {"kind": "facts", "forget": "forget.jsonl"}}


def a_regression_task(folder: Path) -> dict[str, Any]:
    return {"task": TASK | {"kind": "regression"}}


REFUSED: list[tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = [
    (no_label, ("forget.csv", "'label' or 'labels'", "'first', 'second'", "[task.columns]")),
    (a_misspelt_column, ("forget.npz", "no column 'species'", "'labels'")),
    (an_id_twice, ("forget.npz", "row 8", "stands already in row 4")),
    (an_id_in_two_sets, ("retain set", "in the forget set too")),
    (nan_inputs, ("forget.npz", "row 5", "NaN")),
    (objects, ("forget.npz", "pickle", "numpy.savez")),
    (an_empty_forget_set, ("forget.npz", "the forget set is empty")),
    (a_pickled_network, ("target", "model.pt is a pickle", "safetensors")),
    (a_pickled_file, ("target.pkl is a pickle", "safetensors")),
    (a_joblib_file, ("target.joblib is a pickle", "skops")),
    (two_estimators, ("honest", "2 .skops files", "name the file")),
    (logits_as_a_classifier, ("target.npz", 'kind = "recorded"')),
    (weights_without_a_factory, ("model.safetensors", "factory")),
    (a_factory_that_is_not_there, ("nets.py:make", "there is no file")),
    (nan_weights, ("honest", "logits.bias", "NaN")),
    (a_misspelt_key_of_the_recipe, ("recipe.learning_rates", "did you mean 'learning_rate'")),
    (a_recipe_of_no_known_kind, ("recipe", "'torch', 'sklearn', 'python'")),
    (a_procedure_that_is_not_there, ("gone.py:unlearn", "there is no file", "audit.toml")),
    (a_procedure_without_a_recipe, ("procedure", "add [recipe]")),
    (shadows_without_a_recipe, ("shadow models", "add [recipe]", "shadows.path")),
    (shadows_that_are_not_there, ("shadows.path 'gone'", "muaudit shadow")),
    (shadows_that_are_something_else, ("honest", "cohort.json", "muaudit shadow")),
    (a_classifier_for_facts, ("'classifier'", "'facts'", "causal_lm")),
    (a_regression_task, ("'classifier'", "'regression'", "regressor")),
]


@pytest.mark.parametrize(("spoilt", "said"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_audited_is_one_line(
    folder: Path, spoilt: Callable[[Path], dict[str, Any]], said: tuple[str, ...]
) -> None:
    seen = muaudit("scan", write(folder, **spoilt(folder)), cwd=folder)
    assert seen.code == 2, seen.out + seen.err
    for words in said:
        assert words in seen.line
    assert not (folder / "ran").exists()
    assert not (folder / "audit" / "report.json").exists()


def fewer_classes(folder: Path) -> dict[str, Any]:
    """A network that scores nine of the ten classes."""
    (folder / "nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))\n"
    )
    save_file({"1.weight": torch.zeros(9, 64), "1.bias": torch.zeros(9)}, folder / "nine.safetensors")
    return {"target": classifier("nine.safetensors", factory="nets.py:make")}


def probabilities(folder: Path) -> dict[str, Any]:
    """A network that ends in a softmax."""
    (folder / "nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(-1))\n"
    )
    save_file({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, folder / "soft.safetensors")
    return {"target": classifier("soft.safetensors", factory="nets.py:make")}


def logits_that_lack_an_example(folder: Path) -> dict[str, Any]:
    ids = np.concatenate([arrays(folder, name)["ids"] for name in SETS])[1:]
    np.savez(folder / "target.npz", ids=ids, logits=np.random.default_rng(0).normal(size=(len(ids), 10)))
    return {"target": {"kind": "recorded", "format": "logits", "path": "target.npz"}}


ROWS: list[tuple[Callable[[Path], dict[str, Any]], tuple[str, ...]]] = [
    (fewer_classes, ("target", "is of class 9", "scores 9 classes")),
    (probabilities, ("target", "probabilities", "softmax")),
    (logits_that_lack_an_example, ("target.npz", "nothing is recorded of example")),
]


@pytest.mark.parametrize(("spoilt", "said"), ROWS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_fails_when_it_is_asked_is_an_error_row(
    folder: Path, spoilt: Callable[[Path], dict[str, Any]], said: tuple[str, ...]
) -> None:
    finding = found(scan(folder, code=3, **spoilt(folder)))["unlearning_metrics"]
    assert finding.verdict is Verdict.ERROR
    for words in said:
        assert words in finding.reason


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe": {**RECIPE, "learning_rates": 0.1}}, "did you mean 'learning_rate'"),
        ({"task": {**TASK, "holdouts": "x.npz"}, "recipe": RECIPE}, "did you mean 'holdout'"),
        ({}, "key 'recipe' is missing"),
        ({"recipe": RECIPE, "task": {"kind": "classification", "forget": "forget.npz"}}, "give task.retain"),
        ({"recipe": {**RECIPE, "architecture": "cnn", "hidden": [4]}, "task": TASK | {"retain": "gone.npz"}}, "gone.npz"),
        ({"recipe": {**RECIPE, "learning_rate": 1e30}}, "lower the recipe's learning rate"),
        ({"recipe": {"kind": "python", "function": "vendor.py:train"}}, "there is no file"),
        ({"recipe": {"kind": "sklearn", "estimator": "sklearn.tree.DecisionTree"}}, "no classifier or regressor"),
    ],
)
def test_training_ahead_refuses_in_one_line(folder: Path, changed: dict[str, Any], said: str) -> None:
    seen = muaudit("reference", write(folder, **changed), "--count", "1", "--out", "refs", cwd=folder)
    assert seen.code == 2, seen.out
    assert said in seen.line
    assert not (folder / "refs").exists()


def test_what_a_vendors_function_trains_cannot_be_kept_as_a_reference(folder: Path) -> None:
    (folder / "vendor.py").write_text(
        "def train(inputs, labels, *, seed):\n    return lambda shown: shown.reshape(len(shown), -1)[:, :10]\n"
    )
    recipe = {"kind": "python", "function": "vendor.py:train"}
    seen = muaudit("reference", write(folder, recipe=recipe), "--count", "1", "--out", "refs", cwd=folder)
    assert seen.code == 2
    assert "only their outputs" in seen.line
