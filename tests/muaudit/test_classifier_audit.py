"""Audits of classifiers as a user runs them: every kind of model and of task file."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skops")

from classifier_audits import RECIPE, SETS, classifier, findings, found, muaudit, scan, write  # noqa: E402

from muaudit.examples import LabelledTask  # noqa: E402
from muaudit.loaders.example_files import read_task  # noqa: E402
from muaudit.models.classifier import Classifier  # noqa: E402
from muaudit.results import AuditReport, Verdict  # noqa: E402
from muaudit.training.cohorts import Cohort  # noqa: E402
from muaudit.training.recipes import TorchRecipe  # noqa: E402
from muaudit.training.shadows import Trainer  # noqa: E402

ROLES = {"target": "honest", "original": "original"} | {f"reference-{number}": f"reference-{number}" for number in (1, 2, 3)}


@pytest.fixture
def folder(small_classifiers: Path, tmp_path: Path) -> Path:
    """A copy of the models that a test may change."""
    return Path(shutil.copytree(small_classifiers, tmp_path / "here"))


@pytest.fixture(scope="module")
def task(small_classifiers: Path) -> LabelledTask:
    return read_task(*(small_classifiers / f"{name}.npz" for name in SETS))


def audited(paths: dict[str, dict[str, object]], **changed: Any) -> dict[str, Any]:
    """The settings of an audit of these models."""
    references = [paths[name] for name in sorted(paths) if name.startswith("reference")]
    return {"target": paths["target"], "original": paths.get("original"), "references": references, **changed}


def agrees(report: AuditReport, expected: AuditReport, *, within: float = 1e-5) -> None:
    """Two reports found the same, but for the float noise between two ways to compute a network."""
    here, there = found(report), found(expected)
    assert here.keys() == there.keys()
    for name, finding in here.items():
        assert finding.verdict == there[name].verdict
        assert finding.target == pytest.approx(there[name].target, abs=within)
        assert finding.gap == pytest.approx(there[name].gap, abs=within)


@pytest.fixture(scope="module")
def plain(small_classifiers: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditReport:
    """What an audit of the built-in networks' own folders finds."""
    here = Path(shutil.copytree(small_classifiers, tmp_path_factory.mktemp("plain") / "here"))
    return scan(here, **audited({role: classifier(name) for role, name in ROLES.items()}))


# ---- kinds of models -----------------------------------------------------------------------------------------------------


def test_an_honest_retrain_passes_and_the_original_fails(folder: Path) -> None:
    attacks = {name: {} for name in ("unlearning_metrics", "lira", "rmia", "population")}
    passed = scan(folder, code=0, attacks=attacks, shadows={"path": "shadows"})
    assert {name: finding.verdict for name, finding in found(passed).items()} == dict.fromkeys(attacks, Verdict.PASS)
    failed = scan(folder, code=1, attacks=attacks, shadows={"path": "shadows"}, target=classifier("original"))
    assert [found(failed)[name].verdict for name in ("unlearning_metrics", "lira", "rmia")] == [Verdict.FAIL] * 3
    assert "<html" in (folder / "audit" / "report.html").read_text(encoding="utf-8")
    assert (passed.models[0].role, passed.models[0].kind, passed.models[0].path) == ("target", "classifier", "honest")


def as_module(path: Path) -> torch.nn.Module:
    return Classifier.open(path, device="cpu").module()


def by_factory(folder: Path, path: Path) -> dict[str, object]:
    from safetensors.torch import save_model

    (folder / "nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))\n"
    )
    module = as_module(path)
    copy = torch.nn.Sequential(torch.nn.Flatten(), module.hidden1.linear, torch.nn.ReLU(), module.logits)
    save_model(copy, path.with_suffix(".safetensors"))
    return classifier(f"{path.name}.safetensors", factory="nets.py:make")


def as_onnx(folder: Path, path: Path) -> dict[str, object]:
    onnx = pytest.importorskip("onnx")
    state = {name: value.numpy() for name, value in as_module(path).state_dict().items()}
    names = {"hidden1.linear": "hidden", "logits": "logits"}
    weights = [
        onnx.numpy_helper.from_array(state[f"{long}.{part}"], f"{short}_{part}")
        for long, short in names.items()
        for part in ("weight", "bias")
    ]
    nodes = [
        onnx.helper.make_node("Flatten", ["inputs"], ["flat"]),
        onnx.helper.make_node("Gemm", ["flat", "hidden_weight", "hidden_bias"], ["hidden"], transB=1),
        onnx.helper.make_node("Relu", ["hidden"], ["active"]),
        onnx.helper.make_node("Gemm", ["active", "logits_weight", "logits_bias"], ["logits"], transB=1),
    ]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "net", [tensor("inputs", 1, ["n", 1, 8, 8])], [tensor("logits", 1, ["n", 10])], initializer=weights
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(path.with_suffix(".onnx")))
    return classifier(f"{path.name}.onnx")


def recorded(name: str) -> dict[str, object]:
    return {"kind": "recorded", "format": "logits", "path": name}


def as_npz(folder: Path, path: Path) -> dict[str, object]:
    pool = read_task(*(folder / f"{name}.npz" for name in SETS)).pool
    np.savez(path.with_suffix(".npz"), ids=np.array(pool.ids), logits=Classifier.open(path, device="cpu").logits(pool))
    return recorded(f"{path.name}.npz")


def as_parquet(folder: Path, path: Path) -> dict[str, object]:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pool = read_task(*(folder / f"{name}.npz" for name in SETS)).pool
    logits = Classifier.open(path, device="cpu").logits(pool)
    pq.write_table(pa.table({"id": list(pool.ids), "logits": list(logits)}), path.with_suffix(".parquet"))
    return recorded(f"{path.name}.parquet")


@pytest.mark.parametrize("family", [by_factory, as_onnx, as_npz, as_parquet])
def test_one_network_in_another_file_is_audited_alike(
    folder: Path, plain: AuditReport, family: Callable[[Path, Path], dict[str, object]]
) -> None:
    report = scan(folder, **audited({role: family(folder, folder / name) for role, name in ROLES.items()}))
    agrees(report, plain)
    ran = [f"{role} factory" for role in ("target", "reference 1", "reference 2", "reference 3", "original")]
    assert [one.role for one in report.code] == (ran if family is by_factory else [])


def test_families_mix_and_attacks_that_need_more_than_outputs_say_what_is_missing(folder: Path, plain: AuditReport) -> None:
    paths = {role: classifier(name) for role, name in ROLES.items()} | {"target": as_onnx(folder, folder / "honest")}
    attacks: dict[str, Any] = {
        "unlearning_metrics": {},
        "label_only": {"robustness": "noise", "copies": 2},
        "representation": {},
    }
    here = found(scan(folder, **audited(paths, attacks=attacks)))
    assert here["unlearning_metrics"].gap == pytest.approx(found(plain)["unlearning_metrics"].gap, abs=1e-5)
    assert here["label_only"].verdict not in (Verdict.SKIPPED, Verdict.ERROR)
    paths["target"] = as_npz(folder, folder / "honest")
    here = found(scan(folder, **audited(paths, attacks=attacks)))
    assert here["unlearning_metrics"].gap == pytest.approx(found(plain)["unlearning_metrics"].gap, abs=1e-5)
    assert here["label_only"].verdict is Verdict.SKIPPED
    assert "target" in here["label_only"].reason
    assert "ClassifiesInputs" in here["label_only"].reason


def test_recorded_outputs_alone_are_audited_by_lira(folder: Path, task: LabelledTask) -> None:
    """Nothing of the vendor's leaves the house but logits: no inputs, no weights, and shadow models as one npz."""
    for name, part in task.sets():
        np.savez(folder / f"{name}.npz", ids=np.array(part.ids), labels=part.labels)
    pool, cohort = task.pool, Cohort.open(folder / "shadows")
    np.savez(folder / "shadows.npz", ids=np.array(pool.ids), logits=cohort.logits(pool), keep=cohort.rows.astype(np.uint8))
    paths = {}
    for role, name in ROLES.items():
        np.savez(
            folder / f"{name}.npz", ids=np.array(pool.ids), logits=Classifier.open(folder / name, device="cpu").logits(pool)
        )
        paths[role] = recorded(f"{name}.npz")
    for name in (*ROLES.values(), "shadows"):
        shutil.rmtree(folder / name)
    attacks = {"lira": {"augmentation": "shift", "shift": 1}, "unlearning_metrics": {}, "representation": {}, "u_lira": {}}
    report = scan(folder, code=0, **audited(paths, attacks=attacks, shadows={"path": "shadows.npz"}))
    here = found(report)
    assert here["lira"].verdict is Verdict.PASS
    assert any("asked about as it is" in note for note in here["lira"].notes)
    assert here["u_lira"].verdict is Verdict.SKIPPED
    assert "[recipe]" in here["u_lira"].reason
    assert any("recorded outputs were audited" in limit for limit in report.limits)
    paths["target"] = paths["original"]
    failed = scan(folder, code=1, **audited(paths, attacks={"lira": {}}, shadows={"path": "shadows.npz"}))
    assert found(failed)["lira"].verdict is Verdict.FAIL
    shutil.rmtree(folder / "audit")
    ran = without_torch(folder, "scan", "audit.toml", "--json")
    assert ran.returncode == 1, ran.stderr
    again = AuditReport.from_json(ran.stdout)
    assert findings(again) == findings(failed)


def without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command line where neither torch nor scikit-learn is installed."""
    for name in ("torch", "sklearn"):
        (folder / "blocked" / name).mkdir(parents=True)
        (folder / "blocked" / name / "__init__.py").write_text(f"raise ImportError('no {name} here')\n")
    environment = os.environ | {"PYTHONPATH": str(folder / "blocked")}
    command = [sys.executable, "-m", "muaudit", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)


def test_a_hugging_face_folder_is_audited(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    paths = {}
    for seed, role in enumerate(("target", "reference-1", "reference-2")):
        torch.manual_seed(seed)
        transformers.ViTForImageClassification(config).save_pretrained(folder / f"vit-{seed}")
        paths[role] = classifier(f"vit-{seed}")
    report = scan(folder, **audited(paths, attacks={"unlearning_metrics": {}, "representation": {}}))
    assert {finding.verdict for finding in found(report).values()} <= {Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL}
    assert {file.name for file in report.target.files} == {"config.json", "model.safetensors"}


def test_populations_that_the_vendor_recorded_are_audited(folder: Path, task: LabelledTask) -> None:
    """Logits of 16 models that nothing was unlearned from, against four populations of 16 retrained ones."""
    trainer = Trainer(TorchRecipe.model_validate(RECIPE), task.pool, folder / "trained")
    sets = {"undone": ("forget", "retain")} | dict.fromkeys(("first", "second", "third", "fourth"), ("retain",))
    for number, (name, seen) in enumerate(sets.items()):
        rows = np.zeros((16, len(task.pool)), dtype=bool)
        for part in seen:
            rows[:, task.rows(part)] = True
        cohort = trainer.train(rows, range(100 * number, 100 * number + 16))
        np.savez(folder / f"{name}.npz", ids=np.array(task.pool.ids), logits=cohort.logits(task.pool))
    paths = {name: {"kind": "population", "path": f"{name}.npz"} for name in sets}
    attacks = {"forgetting_quality": {}, "unlearning_metrics": {}}
    references = [paths[name] for name in sets if name != "undone"]
    here = found(scan(folder, code=1, target=paths["undone"], original=None, references=references, attacks=attacks))
    assert here["forgetting_quality"].verdict is Verdict.FAIL
    assert here["unlearning_metrics"].verdict is Verdict.SKIPPED
    assert "'population'" in here["unlearning_metrics"].reason


# ---- kinds of task files -------------------------------------------------------------------------------------------------


def as_table(folder: Path, suffix: str) -> dict[str, object]:
    """Each set as a table with a column a pixel, a named class, and its clusters."""
    pa, csv, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.csv", "pyarrow.parquet"))
    for name, part in read_task(*(folder / f"{name}.npz" for name in SETS)).sets():
        pixels = {f"pixel_{place:02d}": column for place, column in enumerate(part.pictured().reshape(len(part), -1).T)}
        names = [f"digit {label}" for label in part.labels]
        table = pa.table({"name": list(part.ids), "digit": names, "writer": list(part.clusters), **pixels})
        (csv.write_csv if suffix == "csv" else pq.write_table)(table, folder / f"{name}.{suffix}")
    columns = {"id": "name", "label": "digit", "cluster": "writer"}
    return {name: f"{name}.{suffix}" for name in SETS} | {"columns": columns}


def as_dataset(folder: Path) -> dict[str, object]:
    """Each set as a Hugging Face dataset on disk."""
    datasets = pytest.importorskip("datasets")
    for name, part in read_task(*(folder / f"{name}.npz" for name in SETS)).sets():
        rows = {"id": list(part.ids), "image": part.pictured().tolist(), "label": part.labels.tolist()}
        kinds = {
            "id": datasets.Value("string"),
            "label": datasets.ClassLabel(names=[f"digit {number}" for number in range(10)]),
        }
        kinds["image"] = datasets.Array3D((1, 8, 8), "float32")
        datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(folder / f"{name}-set")
    return {name: f"{name}-set" for name in SETS}


def as_pictures(folder: Path) -> dict[str, object]:
    """Each set as a folder of PNG pictures, one folder a class."""
    image = pytest.importorskip("PIL.Image")
    for name, part in read_task(*(folder / f"{name}.npz" for name in SETS)).sets():
        for one, label, pixels in zip(part.ids, part.labels, part.pictured(), strict=True):
            path = folder / f"{name}-pictures" / str(label) / f"{one}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.round(pixels[0] * 255).astype(np.uint8)).save(path)
    return {name: f"{name}-pictures" for name in SETS} | {"columns": {"image_mode": "L"}}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_audited_as_the_arrays_that_it_holds(folder: Path, plain: AuditReport, suffix: str) -> None:
    task = {"kind": "classification"} | as_table(folder, suffix)
    report = scan(folder, **audited({role: by_factory(folder, folder / name) for role, name in ROLES.items()}, task=task))
    agrees(report, plain)
    assert [(one.role, one.path, one.units) for one in report.data] == [
        ("forget", f"forget.{suffix}", 60), ("retain", f"retain.{suffix}", 120), ("holdout", f"holdout.{suffix}", 180),
    ]  # fmt: skip


def test_a_dataset_on_disk_is_audited_as_the_arrays_that_it_holds(folder: Path, plain: AuditReport) -> None:
    agrees(scan(folder, task={"kind": "classification"} | as_dataset(folder)), plain)


def test_an_image_folder_is_audited_as_the_arrays_that_it_holds(folder: Path, plain: AuditReport) -> None:
    """But for the rounding to bytes."""
    agrees(scan(folder, task={"kind": "classification"} | as_pictures(folder)), plain, within=0.01)


def test_estimators_are_trained_and_audited(folder: Path) -> None:
    """A table, and a forest that the auditor trains by [recipe]: references, original and shadow models."""
    task = {"kind": "classification"} | as_table(folder, "csv")
    forest = {"estimator": "sklearn.ensemble.RandomForestClassifier", "parameters": {"n_estimators": 20}}
    trained = {"task": task, "recipe": {"kind": "sklearn", **forest}}
    for arguments in (("--count", "4"), ("--count", "1", "--with-forget-set")):
        seen = muaudit("reference", write(folder, **trained), *arguments, "--out", "forests", cwd=folder)
        assert seen.code == 0, seen.err
    paths = {f"reference-{number}": classifier(f"forests/reference-{number}") for number in (1, 2, 3)}
    paths |= {"target": classifier("forests/reference-4"), "original": classifier("forests/original-1")}
    attacks = {"lira": {}, "unlearning_metrics": {}, "representation": {}}
    here = scan(folder, code=0, **audited(paths, attacks=attacks, shadows={"count": 8}, **trained))
    assert found(here)["lira"].verdict is Verdict.PASS
    assert {file.name for file in here.target.files} == {"estimator.skops"}
    paths["target"] = classifier("forests/original-1/estimator.skops")
    there = scan(folder, code=1, **audited(paths, attacks=attacks, shadows={"count": 8}, **trained))
    assert found(there)["lira"].verdict is Verdict.FAIL


def test_regressors_are_audited_by_their_errors(tmp_path: Path) -> None:
    from muaudit.testbed.classification.data import Population, make_task, write_task

    write_task(make_task(Population(source="diabetes", forget=60, retain=120, holdout=180)), tmp_path)
    task = {"kind": "regression"} | {name: f"{name}.npz" for name in SETS}
    recipe = RECIPE | {"labels": "numbers", "learning_rate": 0.03}
    for arguments in (("--count", "3"), ("--count", "1", "--with-forget-set")):
        seen = muaudit("reference", write(tmp_path, task=task, recipe=recipe), *arguments, "--out", ".", cwd=tmp_path)
        assert seen.code == 0, seen.err
    assert 'kind = "regressor"' in seen.out
    regressor = {"kind": "regressor", "path": "original-1"}
    references = [{"kind": "regressor", "path": f"reference-{number}"} for number in (1, 2, 3)]
    attacks = {"unlearning_metrics": {}, "lira": {}}
    changed = {"task": task, "recipe": recipe, "shadows": {"count": 4}, "references": references, "attacks": attacks}
    changed["policy"] = {"name": "classification", "partial": True, "margins": {"unlearning_metrics": 0.05}}
    report = scan(tmp_path, code=1, target=regressor, original=None, **changed)
    here = found(report)
    assert here["unlearning_metrics"].verdict is Verdict.FAIL
    assert here["unlearning_metrics"].target > 0.6
    assert here["lira"].verdict is Verdict.SKIPPED
    assert "'regressor'" in here["lira"].reason
    honest = found(scan(tmp_path, target=references[0], original=None, **(changed | {"references": references[1:]})))
    assert honest["unlearning_metrics"].verdict is not Verdict.FAIL
