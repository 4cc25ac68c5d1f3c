"""Reproduction: what comes to the same says so, what does not says what differs, and nothing is run on other inputs."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from recorded_logs import recorded_audit
from sample import sample_report

from muaudit.doctor import EXTRAS
from muaudit.errors import VerificationError
from muaudit.plan import LIBRARIES
from muaudit.reproduction import rebuild
from muaudit.results import AuditReport


def muaudit(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muaudit", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit that failed, in `audit-suppressed`."""
    path = tmp_path_factory.mktemp("reproduction")
    recorded_audit(path, "suppressed")
    assert muaudit("scan", "suppressed.toml", cwd=path).returncode == 1
    return path


def changed(audited: Path, folder: Path, change: Any) -> Path:
    """The audit's report with a change, in a folder of its own."""
    value = json.loads((audited / "audit-suppressed" / "report.json").read_bytes())
    change(value)
    folder.mkdir(exist_ok=True)
    path = folder / "report.json"
    path.write_bytes(rfc8785.dumps(value))
    return path


def answers(result: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], str]:
    return {(one["attack"], one["measures"]): one["answer"] for one in json.loads(result.stdout)["findings"]}


def test_the_same_machine_gives_the_same_bytes(audited: Path) -> None:
    again = muaudit("reproduce", "audit-suppressed", "--out", "all", "--json", cwd=audited)
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout)
    assert (said["reproduced"], said["same_machine"], said["tolerance"], said["differences"]) == (True, True, 0.0, [])
    assert set(answers(again).values()) == {"identical"}
    before, after = (
        AuditReport.from_json((audited / folder / "report.json").read_bytes()) for folder in ("audit-suppressed", "all")
    )
    assert after.findings == before.findings
    assert after.run.reused == 0
    assert after.run.computed == before.run.computed

    refused = muaudit("reproduce", "audit-suppressed", "--out", "audit-suppressed", cwd=audited)
    assert refused.returncode == 2
    assert "give another --out" in refused.stderr


def test_a_finding_that_was_tampered_with_is_found(audited: Path, tmp_path: Path) -> None:
    def lower(report: Any) -> None:
        report["findings"][0] |= {"gap": 0.02, "target": 0.1, "verdict": "pass"}

    path = changed(audited, tmp_path, lower)
    again = muaudit("reproduce", path, "--base", audited, "--attack", "memorization", cwd=audited)
    assert again.returncode == 1, again.stderr
    assert "NOT reproduced" in again.stdout
    assert "the verdict was pass and is fail now" in " ".join(again.stdout.split())


def test_other_versions_are_told_and_get_a_tolerance(audited: Path, tmp_path: Path) -> None:
    def older(report: Any) -> None:
        report["plan"]["versions"]["numpy"] = "1.0.0"
        report["plan_sha256"] = hashlib.sha256(rfc8785.dumps(report["plan"])).hexdigest()
        report["findings"][0]["gap"] += 0.004

    path = changed(audited, tmp_path, older)
    options = ("--base", audited, "--attack", "memorization", "--json")
    again = muaudit("reproduce", path, *options, "--out", tmp_path / "a", cwd=audited)
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout)
    assert (said["same_machine"], said["tolerance"]) == (False, 0.01)
    assert [one["what"] for one in said["differences"]] == ["numpy"]
    assert answers(again) == {("memorization", "leakage"): "within", ("memorization", "retention"): "identical"}

    strict = muaudit("reproduce", path, *options, "--tolerance", "0.001", "--out", tmp_path / "b", cwd=audited)
    assert strict.returncode == 1
    assert answers(strict)["memorization", "leakage"] == "differs"


def test_a_plan_tells_the_version_of_every_library_that_computes() -> None:
    carriers = {"safetensors", "openai", "pyarrow", "ray", "distributed"}  # they read files, ask servers and spread work
    assert set(EXTRAS) - carriers <= set(LIBRARIES)


def test_other_models_are_refused_before_anything_runs(audited: Path, tmp_path: Path) -> None:
    recorded_audit(tmp_path, "suppressed")
    log = tmp_path / "suppressed.json"
    log.write_text(log.read_text() + "\n")
    refused = muaudit("reproduce", audited / "audit-suppressed", "--base", tmp_path, "--out", tmp_path / "out", cwd=audited)
    assert refused.returncode == 4
    assert "target was" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_not_the_one_that_was_hashed_is_refused(audited: Path, tmp_path: Path) -> None:
    path = changed(audited, tmp_path, lambda report: report["plan"]["config"]["run"].update(seed="2027"))
    refused = muaudit("reproduce", path, "--base", audited, cwd=audited)
    assert refused.returncode == 4
    assert "not the one whose digest it gives" in refused.stderr
    with pytest.raises(VerificationError):
        rebuild(sample_report())


def test_an_attack_that_the_plan_has_not_is_named(audited: Path) -> None:
    refused = muaudit("reproduce", "audit-suppressed", "--attack", "lira", "--out", "none", cwd=audited)
    assert refused.returncode == 2
    assert "memorization, relearning" in refused.stderr
