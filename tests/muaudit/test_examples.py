"""Every example runs as its README says, and a third party's attack is found, run and reported without a fork."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_logs import recorded_audit

EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(*arguments: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path is not None else {})
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_release_gate_runs_as_its_readme_says(tmp_path: Path) -> None:
    gate = tmp_path / "release_gate"
    shutil.copytree(
        EXAMPLES / "release_gate", gate, ignore=shutil.ignore_patterns("logs", "audit", "audit-leaky", "__pycache__")
    )
    made = _run("make_logs.py", cwd=gate)
    assert made.returncode == 0, made.stderr
    ran = _run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=gate.xml", cwd=gate)
    assert "3 passed, 1 skipped" in ran.stdout, ran.stdout
    assert 'name="muaudit.verdict" value="pass"' in (gate / "gate.xml").read_text(encoding="utf-8")
    rendered = _run("-m", "muaudit", "render", "audit/report.json", cwd=gate)
    assert rendered.returncode == 0, rendered.stderr
    assert "<html" in (gate / "audit" / "report.html").read_text(encoding="utf-8")
    assert json.loads((gate / "audit-leaky" / "report.json").read_bytes())["verdict"] == "fail"


def test_the_classifier_runs_as_its_readme_says(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    here = tmp_path / "classifier"
    made = shutil.ignore_patterns("audit", "models", "*.npz", "__pycache__")
    shutil.copytree(EXAMPLES / "classifier", here, ignore=made)
    (block,) = re.findall(r"```sh\n(.+?)```", (here / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [line.split("#")[0].split() for line in block.splitlines() if not line.startswith("pip")]
    assert [words[0] for words in commands] == ["python", "muaudit", "muaudit", "python", "muaudit"]
    for words in commands:
        ran = _run(*(words[1:] if words[0] == "python" else ["-m", *words]), cwd=here, path=here)
        assert ran.returncode == (1 if "scan" in words else 0), ran.stderr
    report = json.loads((here / "audit" / "report.json").read_bytes())
    verdicts = {one["attack"]: one["verdict"] for one in report["findings"] if one["measures"] == "leakage"}
    assert verdicts == {"unlearning_metrics": "fail", "lira": "fail", "u_lira": "fail"}
    assert report["run"]["computed"] == 15
    assert "vendor.py:unlearn" in (here / "audit" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example plug-in, installed as any package is, and a second one whose module raises when it is imported."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("target")
    shutil.copytree(EXAMPLES / "plugin_attack", source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source]
    result = _run(*pip, cwd=source)
    assert result.returncode == 0, result.stderr
    (target / "shattered.py").write_text("raise RuntimeError('no licence found')\n", encoding="utf-8")
    metadata = target / "shattered-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shattered\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text("[muaudit.attacks]\nshattered = shattered:Shattered\n", encoding="utf-8")
    return target


def _audit(folder: Path, installed: Path, target: str) -> dict[str, Any]:
    path = recorded_audit(folder, target, sections="[attacks.firstword]\nmax_new_tokens = 8\n[attacks.shattered]\ndepth = 3\n")
    code = "import sys, muaudit; muaudit.audit(sys.argv[1])"
    result = _run("-c", code, path, cwd=folder, path=installed)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads((folder / f"audit-{target}" / "report.json").read_bytes())
    return report


def test_an_installed_attack_is_registered_without_a_fork(tmp_path: Path, installed: Path) -> None:
    listing = "for name, found in registered().items(): print(name, type(found).__name__, found.package)"
    code = f"from muaudit.registry import registered\n{listing}"
    lines = _run("-c", code, cwd=tmp_path, path=installed).stdout.splitlines()
    assert "firstword Registered muaudit-firstword" in lines
    assert "shattered Broken shattered" in lines
    assert "memorization Registered muaudit" in lines
    without = _run("-c", code, cwd=tmp_path).stdout
    assert "firstword" not in without


def test_an_installed_attack_decides_and_a_broken_one_is_an_error_row(tmp_path: Path, installed: Path) -> None:
    report = _audit(tmp_path, installed, "suppressed")
    findings = {finding["attack"]: finding for finding in report["findings"] if finding["measures"] == "leakage"}
    assert findings["firstword"]["verdict"] == "fail"
    assert findings["firstword"]["gap"] == pytest.approx(1.0)
    assert findings["firstword"]["worst_units"][0]["transcripts"]["target"]["output"].startswith("the forget town")
    cards = {card["name"]: card for card in report["attacks"]}
    assert (cards["firstword"]["package"], cards["firstword"]["parameters"]) == ("muaudit-firstword", {"max_new_tokens": 8})
    assert findings["shattered"]["verdict"] == "error"
    assert "RuntimeError: no licence found" in findings["shattered"]["reason"]


def test_a_broken_attack_keeps_an_honest_target_from_passing(tmp_path: Path, installed: Path) -> None:
    report = _audit(tmp_path, installed, "honest")
    findings = {finding["attack"]: finding["verdict"] for finding in report["findings"] if finding["measures"] == "leakage"}
    assert findings == {"memorization": "pass", "relearning": "skipped", "firstword": "pass", "shattered": "error"}
    assert report["verdict"] != "pass"


def test_the_command_line_lists_a_broken_attack_with_its_reason(tmp_path: Path, installed: Path) -> None:
    listed = _run("-m", "muaudit", "attacks", cwd=tmp_path, path=installed)
    assert listed.returncode == 0, listed.stderr
    assert "firstword" in listed.stdout
    assert "no licence found" in listed.stdout
