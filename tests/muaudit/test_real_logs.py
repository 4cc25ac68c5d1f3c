"""Recorded outputs of real 7B models on TOFU, audited by the command line: golden values are in the data's README."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shared_data import shared_data

HEAD = (
    '[task]\nkind = "recorded"\ncluster_size = 20\n[run]\nseed = "2026"\nout = "audit"\n'
    "[policy]\nshallow_passes = true\n[attacks.memorization]\n[attacks.relearning]\n"
)
MODEL = 'kind = "recorded"\nformat = "tofu"\npath = "{}"\n'


def scanned(folder: Path, target: str, *references: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `muaudit scan`; facts of one author, twenty in a row, are one cluster."""
    logs = {name: shared_data(f"tofu-logs/llama2-7b_{name}.json") for name in (target, *references)}
    text = HEAD + "[target]\n" + MODEL.format(logs[target])
    text += "".join("[[references]]\n" + MODEL.format(logs[name]) for name in references)
    (folder / "audit.toml").write_text(text)
    run = subprocess.run([sys.executable, "-m", "muaudit", "scan", "audit.toml"], cwd=folder, capture_output=True, check=False)
    return run.returncode, json.loads((folder / "audit" / "report.json").read_bytes())


def memorization(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(f for f in report["findings"] if (f["attack"], f["measures"]) == ("memorization", "leakage"))
    return found


def forget_quality(finding: dict[str, Any], reference: str) -> tuple[float, float]:
    score = next(score for score in finding["scores"] if score["name"] == "truth_ratio_geometric")
    test = next(test for test in score["ks"] if test["reference"] == reference)
    return test["statistic"], test["p_value"]


def test_a_model_that_knows_the_forget_set_fails(tmp_path: Path) -> None:
    code, report = scanned(tmp_path, "full_wd0.01", "retain90_wd0.01", "retain90_wd0")
    finding = memorization(report)
    assert (code, report["verdict"], finding["verdict"]) == (1, "fail", "fail")
    assert (finding["units"], finding["clusters"]) == (300, 15)
    assert forget_quality(finding, "reference 1") == (pytest.approx(0.39667, abs=5e-5), pytest.approx(1.834e-21, rel=5e-4))
    utility = {role: numbers["model_utility_geometric"] for role, numbers in finding["summaries"].items()}
    assert utility["target"] == pytest.approx(0.6227, abs=5e-5)
    assert utility["reference 1"] == pytest.approx(0.6137, abs=5e-5)


def test_gaps_against_one_retrain_are_the_golden_ones(tmp_path: Path) -> None:
    _, report = scanned(tmp_path, "full_wd0.01", "retain90_wd0.01")
    finding = memorization(report)
    recall = next(score for score in finding["scores"] if score["name"] == "rouge_l_recall")
    assert finding["gap"] == pytest.approx(0.8434, abs=5e-5)
    assert recall["gap"] == pytest.approx(0.5772, abs=5e-5)


def test_an_honest_retrain_passes_and_relearning_is_skipped_with_the_reason(tmp_path: Path) -> None:
    code, report = scanned(tmp_path, "retain90_wd0.01", "retain90_wd0")
    finding = memorization(report)
    assert (code, report["verdict"], finding["verdict"], finding["margin"]) == (0, "pass", "pass", 0.05)
    assert forget_quality(finding, "reference 1") == (pytest.approx(0.03, abs=5e-5), pytest.approx(0.9993, abs=5e-5))
    skipped = next(f for f in report["findings"] if f["attack"] == "relearning")
    assert skipped["verdict"] == "skipped"
    assert "'recorded'" in skipped["reason"]
    assert any("one reference" in limit for limit in report["limits"])
