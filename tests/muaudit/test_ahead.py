"""Training ahead of an audit, and the configuration to start from."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from classifier_audits import RECIPE, SETS, classifier, found, muaudit, scan, settings, write  # noqa: E402

from muaudit import preset  # noqa: E402
from muaudit.config import parse  # noqa: E402
from muaudit.loaders.example_files import read_task  # noqa: E402
from muaudit.manifest import manifest, manifest_digest  # noqa: E402
from muaudit.results import Verdict  # noqa: E402
from muaudit.training.networks import SavedNetwork  # noqa: E402
from muaudit.training.recipes import TorchRecipe, rows_digest  # noqa: E402

SHORT = RECIPE | {"steps": 20}


@pytest.fixture
def folder(small_classifiers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_classifiers, tmp_path / "here"))


def digests(path: Path) -> dict[str, str]:
    return {file.name: file.sha256 for file in manifest(path)}


# ---- references ----------------------------------------------------------------------------------------------------------


def test_references_say_what_they_were_trained_on(folder: Path) -> None:
    audit = write(folder, recipe=SHORT)
    seen = muaudit("reference", audit, "--count", "2", "--out", folder / "refs", "--json", cwd=folder)
    assert seen.code == 0, seen.err
    records = json.loads(seen.out)
    task = read_task(*(folder / f"{name}.npz" for name in SETS))
    for number, record in enumerate(records, start=1):
        path = folder / "refs" / f"reference-{number}"
        saved = SavedNetwork.model_validate_json((path / "classifier.json").read_bytes())
        assert saved.recipe == TorchRecipe.model_validate(SHORT).content_digest() == record["recipe"]
        assert saved.rows == rows_digest(task.retain.ids) == record["rows"]
        assert [saved.seed] == record["seeds"]
        assert record["digest"] == manifest_digest(manifest(path))
        assert (record["path"], record["kind"], record["examples"]) == (str(path), "classifier", len(task.retain))
    assert records[0]["seeds"] != records[1]["seeds"]
    assert records[0]["digest"] != records[1]["digest"]


def test_further_references_leave_the_first_ones_as_they_are(folder: Path) -> None:
    """An audit may have named them."""
    write(folder, recipe=SHORT)
    assert muaudit("reference", "audit.toml", "--count", "2", "--out", "refs", cwd=folder).code == 0
    before = {path.name: (digests(path), path.stat().st_mtime_ns) for path in (folder / "refs").iterdir()}
    seen = muaudit("reference", "audit.toml", "--count", "3", "--out", "refs", cwd=folder)
    assert seen.code == 0, seen.err
    after = {path.name: (digests(path), path.stat().st_mtime_ns) for path in (folder / "refs").iterdir()}
    assert after.items() > before.items()
    lines = seen.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == [f"refs/reference-{number}" for number in (1, 2, 3)]
    assert lines[3] == 'next   [[references]] of audit.toml: kind = "classifier", path = "refs/reference-1"'


def test_models_that_lie_in_the_way_are_not_overwritten(folder: Path) -> None:
    write(folder, recipe=SHORT)
    before = digests(folder / "reference-1"), digests(folder / "shadows")
    for arguments in (("reference", "audit.toml", "--out", "."), ("shadow", "audit.toml", "--count", "4")):
        seen = muaudit(*arguments, cwd=folder)
        assert seen.code == 2
        assert "holds something else" in seen.line
        assert "--out" in seen.line
    assert (digests(folder / "reference-1"), digests(folder / "shadows")) == before
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_originals_are_trained_on_the_forget_set_too(folder: Path) -> None:
    write(folder, recipe=SHORT)
    seen = muaudit("reference", "audit.toml", "--count", "1", "--with-forget-set", "--out", "befores", cwd=folder)
    assert seen.code == 0, seen.err
    assert "befores/original-1" in seen.out
    assert "trained on 180 examples" in seen.out
    assert "[original] of audit.toml" in seen.out


# ---- shadow models -------------------------------------------------------------------------------------------------------

SLOW = RECIPE | {"mode": "sequential"}


def stacks(folder: Path) -> dict[str, int]:
    kept = folder / "audit" / "store" / "trained"
    return {path.name: path.stat().st_mtime_ns for path in kept.glob("*/stack-*.safetensors")}


def test_a_killed_training_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    write(folder, recipe=SLOW)
    command = [sys.executable, "-m", "muaudit", "shadow", "audit.toml", "--count", "24", "--out", "more", "--json"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not stacks(folder) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = stacks(folder)
    assert 0 < len(kept) < 6
    assert not (folder / "more").exists()
    seen = muaudit("shadow", "audit.toml", "--count", "24", "--out", "more", "--json", cwd=folder)
    assert seen.code == 0, seen.err
    assert len(stacks(folder)) == 6
    assert stacks(folder).items() > kept.items()
    record = json.loads(seen.out)
    assert (record["models"], record["examples"], record["kind"], len(record["seeds"])) == (24, 360, "shadows", 24)
    assert record["digest"] == manifest_digest(manifest(folder / "more"))
    shutil.rmtree(folder / "audit")
    undisturbed = muaudit("shadow", "audit.toml", "--count", "24", "--out", "undisturbed", "--json", cwd=folder)
    assert json.loads(undisturbed.out)["digest"] == record["digest"]


def test_an_audit_names_shadow_models_that_were_trained_ahead(folder: Path) -> None:
    report = scan(folder, code=0, attacks={"lira": {}, "unlearning_metrics": {}}, shadows={"path": "shadows"})
    assert found(report)["lira"].verdict is Verdict.PASS
    assert any("16 shadow models" in note for note in found(report)["lira"].notes)
    assert report.plan["shadows"] == manifest_digest(manifest(folder / "shadows"))
    assert not (folder / "audit" / "store" / "trained").exists(), "nothing is trained that is named"


def test_an_audit_finds_what_was_trained_ahead_for_it_though_it_names_none(folder: Path) -> None:
    path = write(folder, recipe=SHORT)
    (folder / "eight").mkdir()  # an empty folder is not in the way
    assert muaudit("shadow", path, "--count", "8", "--out", "eight", cwd=folder).code == 0
    before = stacks(folder)
    report = scan(folder, recipe=SHORT, shadows={"count": 8}, attacks={"lira": {}})
    assert stacks(folder) == before
    shutil.rmtree(folder / "audit")
    named = scan(folder, recipe=SHORT, shadows={"path": "eight"}, attacks={"lira": {}})
    assert [one.canonical() for one in named.findings] == [one.canonical() for one in report.findings]


def test_shadow_models_of_other_examples_are_refused(folder: Path) -> None:
    task = read_task(*(folder / f"{name}.npz" for name in SETS))
    ids = np.array([f"other-{one}" for one in task.forget.ids])
    np.savez(folder / "other.npz", ids=ids, labels=task.forget.labels, inputs=task.forget.pictured())
    other = settings()["task"] | {"forget": "other.npz"}
    for attacks in ({"lira": {}}, {"unlearning_metrics": {}}):
        seen = muaudit("scan", write(folder, task=other, attacks=attacks, shadows={"path": "shadows"}), cwd=folder)
        assert seen.code == 2, seen.out
        assert "shadows" in seen.line
        assert str(ids[0]) in seen.line
        assert "muaudit shadow" in seen.line
    np.savez(folder / "other.npz", ids=np.array(task.forget.ids), labels=task.forget.labels, inputs=1 - task.forget.pictured())
    seen = muaudit("plan", "audit.toml", cwd=folder)
    assert seen.code == 2, seen.out
    assert "of the same names" in seen.line


# ---- the configuration to start from -------------------------------------------------------------------------------------


def started(folder: Path, *arguments: str) -> str:
    files = [word for name in SETS for word in (f"--{name}", f"{name}.npz")]
    models = ["--target", "honest", "--original", "original", "--reference", "reference-1", "--reference", "reference-2"]
    seen = muaudit("init", "--kind", "classifier", *models, *files, "--out", "start.toml", *arguments, cwd=folder)
    assert seen.code == 0, seen.err
    return (folder / "start.toml").read_text(encoding="utf-8")


def test_init_writes_an_audit_that_plans_and_scans(folder: Path) -> None:
    values = tomllib.loads(started(folder))
    assert (values["task"]["kind"], values["target"]) == ("classification", classifier("honest"))
    assert values["policy"]["name"] == "classification"
    planned = muaudit("plan", "start.toml", cwd=folder)
    assert planned.code == 0, planned.err
    seen = muaudit("scan", "audit/plan.json", cwd=folder)
    assert seen.code in (0, 3), seen.err
    report = json.loads((folder / "audit" / "report.json").read_bytes())
    said = {one["attack"]: (one["verdict"], one["reason"]) for one in report["findings"]}
    assert said["lira"][0] == "skipped"
    assert "[shadows]" in said["lira"][1]
    assert {said[name][0] for name in ("unlearning_metrics", "population")} <= {"pass", "inconclusive"}


def test_what_init_comments_out_is_valid_once_it_is_uncommented(folder: Path) -> None:
    text = started(folder)
    commented = re.findall(r"^# (\[+\w.*|\w+ = .*)$", text, re.MULTILINE)
    assert {line.split()[0] for line in commented} >= {"[recipe]", "[shadows]", "[procedure]", "kind", "architecture", "count"}
    left_out = ("factory", "columns")  # their values are examples of what this audit has not
    for line in commented:
        if line.split()[0] not in left_out:
            text = text.replace(f"# {line}", line, 1)
    text = text.replace("count = 64", "count = 4").replace("steps = 400", "steps = 10")
    text = text.replace("[signing]", "").replace('key = "auditor.key"', "")
    (folder / "vendor.py").write_text("def unlearn(model, forget, retain, *, seed):\n    return model\n")
    (folder / "start.toml").write_text(text)
    values: dict[str, Any] = tomllib.loads(text)
    assert (values["preset"], values["shadows"]["count"]) == ("classification", 4)
    planned = muaudit("plan", "start.toml", "--json", cwd=folder)
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)["plan"]
    assert [one["function"] for one in plan["code"]] == ["vendor.py:unlearn"]
    assert plan["config"]["recipe"]["steps"] == 10
    assert {"lira", "u_lira", "worst_case"} <= {entry["name"] for entry in plan["attacks"]}
    seen = muaudit("reference", "start.toml", "--count", "1", "--out", "refs", cwd=folder)
    assert seen.code == 0, seen.err


def test_init_with_the_whole_battery(folder: Path) -> None:
    values = tomllib.loads(started(folder, "--preset", "classification"))
    assert (values["preset"], values["policy"]["name"]) == ("classification", "classification")
    assert "attacks" not in values
    assert muaudit("plan", "start.toml", cwd=folder).code == 0


def test_the_documented_tables_are_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "classifiers.md").read_text(encoding="utf-8")
    blocks = [tomllib.loads(block) for block in re.findall(r"```toml\n(.+?)```", text, re.DOTALL)]
    assert {name for block in blocks for name in block} == {"task", "recipe", "shadows", "procedure", "run"}
    for block in blocks:
        parse(settings(recipe=RECIPE) | block, "docs/classifiers.md")
    table = text[text.index("## The attacks") :]
    assert set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)))) == set(
        preset.attacks("classification")
    )
