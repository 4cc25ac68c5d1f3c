"""`muaudit calibrate` from the shell: killed and resumed, signed and verified, and on a recipe of one's own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from muaudit.calibration.record import CalibrationRecord
from muaudit.cli import main
from muaudit.reports.keys import keygen

pytest.importorskip("torch")


def muaudit(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "muaudit", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def findings(record: CalibrationRecord) -> dict[str, object]:
    """All that depends neither on how long anything took nor on where it lies."""
    kept = {"audits", "groups", "battery", "power", "sensitivity", "policies", "members"}
    return record.model_dump(include=kept)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_calibration_goes_on_and_its_record_verifies(calibration: Path, tmp_path: Path) -> None:
    shutil.copytree(calibration / "calibration" / "models", tmp_path / "out" / "models")
    text = (calibration / "calibration.toml").read_text(encoding="utf-8").replace("workers = 2", "workers = 1")
    (tmp_path / "calibration.toml").write_text(text, encoding="utf-8")
    keygen(tmp_path / "lab", "Lab X")
    command = ("calibrate", "calibration.toml", "--out", "out", "--key", "lab.key")
    first = muaudit(tmp_path, *command)
    while first.poll() is None and len(list((tmp_path / "out" / "store").glob("*/*.json"))) < 8:
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out" / "calibration.json").exists()

    second = muaudit(tmp_path, *command)
    told, errors = second.communicate()
    assert second.returncode == 0, errors
    record = CalibrationRecord.from_json((tmp_path / "out" / "calibration.json").read_bytes())
    assert record.run.reused > 0
    assert record.run.measured > 0
    assert findings(record) == findings(
        CalibrationRecord.from_json((calibration / "calibration" / "calibration.json").read_bytes())
    )
    assert "honest failed 0 of 4" in told
    assert (tmp_path / "out" / "calibration.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    envelope = ("verify", str(tmp_path / "out" / "calibration.intoto.json"))
    key = ("--key", str(tmp_path / "lab.pub"))
    seen = CliRunner().invoke(main, [*envelope, *key])
    assert seen.exit_code == 0, seen.output
    assert "false alarms 0 of 4" in seen.output
    assert "calibration.json" in seen.output
    parsed = json.loads(CliRunner().invoke(main, [*envelope, *key, "--json"]).stdout)
    assert parsed["verified"]
    assert parsed["policies"][0]["policy"] == "standard"
    assert CliRunner().invoke(main, [*envelope]).exit_code == 2
    assert CliRunner().invoke(main, [*envelope, *key, "--model", str(tmp_path)]).exit_code == 2
    path = tmp_path / "out" / "calibration.json"
    path.write_bytes(path.read_bytes().replace(b'"hits":0', b'"hits":1', 1))
    forged = CliRunner().invoke(main, [*envelope, *key])
    assert forged.exit_code == 4
    assert "not the one that was signed" in forged.output


TRAIN = """
from sklearn.linear_model import LogisticRegression

def train(inputs, labels, *, seed):
    return LogisticRegression(C=1.0 + seed % 7 / 10, max_iter=200).fit(inputs.reshape(len(inputs), -1), labels)
"""

AUDIT = """
[task]
kind = "classification"
forget = "forget.npz"
retain = "retain.npz"
holdout = "holdout.npz"
[target]
kind = "classifier"
path = "none-yet"
[[references]]
kind = "classifier"
path = "none-yet-either"
[policy]
name = "classification"
[attacks.unlearning_metrics]
[conduct]
questions = 0
[run]
device = "cpu"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A task of digits, an audit.toml without a model, and a function that trains."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pytest.importorskip("skops")
    order = np.random.default_rng(0).permutation(len(digits.target))[:420]
    for name, rows in zip(("forget", "retain", "holdout"), np.split(order, [60, 320]), strict=True):
        np.savez(
            tmp_path / f"{name}.npz", inputs=(digits.data[rows] / 16).astype(np.float32), labels=digits.target[rows],
            ids=np.array([f"digit-{row}" for row in rows]),
        )  # fmt: skip
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "audit.toml").write_text(AUDIT, encoding="utf-8")
    return tmp_path / "audit.toml"


def test_one_s_own_recipe_says_what_gap_could_be_seen(recipe: Path) -> None:
    command = ["calibrate", str(recipe), "--recipe", "train.py:train", "--retrains", "4", "--out", str(recipe.parent / "own")]
    run = CliRunner().invoke(main, command)
    assert run.exit_code == 0, run.output
    assert "unlearning_metrics: could see a gap of" in run.output
    record = CalibrationRecord.from_json((recipe.parent / "own" / "calibration.json").read_bytes())
    assert (record.bed, record.family, len(record.members)) == ("recipe", "classification", 5)
    (seen,) = record.sensitivity
    assert (seen.retrains, seen.references) == (4, 3)
    assert seen.low <= seen.gap <= seen.high
    assert any("nothing here tells how often" in limit for limit in record.limits)
    again = CliRunner().invoke(main, [*command, "--json"])
    assert again.exit_code == 0, again.output
    other = CalibrationRecord.model_validate_json(again.stdout)
    assert findings(other) == findings(record)
    assert other.run.measured == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--retrains", "4"), "there is none"),
        (("--recipe", "train.py:absent", "--retrains", "4"), "no function 'absent'"),
        (("--recipe", "train.py:train", "--retrains", "2"), ""),
    ],
)
def test_what_cannot_be_trained_is_one_line(recipe: Path, arguments: tuple[str, ...], told: str) -> None:
    run = CliRunner().invoke(main, ["calibrate", str(recipe), *arguments, "--out", str(recipe.parent / "own")])
    if told:
        assert run.exit_code == 2
        assert told in run.output
        assert run.output.count("\n") == 1
    else:  # two retrains: each is compared with the other
        assert run.exit_code == 0, run.output
        record = CalibrationRecord.from_json((recipe.parent / "own" / "calibration.json").read_bytes())
        assert {len(audit.references) for audit in record.audits} == {1}
        assert record.sensitivity == ()
