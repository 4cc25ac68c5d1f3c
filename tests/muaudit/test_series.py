"""A series of targets: one report, a verdict over all steps, curves along them; and presets."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from recorded_logs import recorded_audit

from muaudit import config, preset, series
from muaudit.errors import UsageError
from muaudit.policy import load
from muaudit.results import AuditReport, Finding, Verdict


def finding(attack: str, target: float, measures: str = "leakage") -> Finding:
    return Finding.model_validate(
        {"attack": attack, "measures": measures, "verdict": "pass", "reason": "", "target": target, "references": 0.1}
    )


def test_curves_follow_each_measure_that_every_step_has() -> None:
    steps = {
        "one": [finding("a", 0.1), finding("b", 0.2), finding("a", 0.9, "retention")],
        "two": [finding("a", 0.3), finding("a", 0.8, "retention")],
        series.LAST: [finding("a", 0.5), finding("b", 0.2), finding("a", 0.4, "retention")],
    }
    found = {curve.name: curve for curve in series.curves(steps)}
    assert set(found) == {"a: leakage of the forget set", "a: knowledge of the retain set"}
    curve = found["a: leakage of the forget set"]
    assert curve.x == (1.0, 2.0, 3.0)
    assert curve.x_label == "step: 1 one, 2 two, 3 target"
    assert {line.model: line.y for line in curve.lines} == {"target": (0.1, 0.3, 0.5), "references": (0.1, 0.1, 0.1)}
    assert series.curves({series.LAST: steps[series.LAST]}) == ()


def test_every_step_must_pass_what_the_last_must() -> None:
    asked = series.policy_for(load("standard"), ["one"])
    assert asked.required == ("memorization", "relearning", "memorization @ one", "relearning @ one")
    assert "relearning @ one" in asked.skippable


def scanned(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "muaudit", "scan", "honest.toml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_scan_over_a_series_gives_one_report_and_a_curve(tmp_path: Path) -> None:
    """Successive requests on recorded logs: the first was honoured, the second was not, the last was."""
    path = recorded_audit(tmp_path, "honest")
    step = '[[series]]\nname = "{}"\n[series.target]\nkind = "recorded"\nformat = "tofu"\npath = "{}"\n'
    honest, left = step.format("request 1", "honest.json"), step.format("request 2", "suppressed.json")
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{honest}\n{left}", encoding="utf-8")
    done = scanned(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "series   memorization: leakage of the forget set: target" in done.stdout
    report = AuditReport.from_json((tmp_path / "audit-honest" / "report.json").read_bytes())
    verdicts = {one.attack: one.verdict for one in report.findings if one.measures == "leakage"}
    assert verdicts["memorization @ request 2"] is Verdict.FAIL
    assert verdicts["memorization @ request 1"] is not Verdict.FAIL
    assert verdicts["memorization"] is not Verdict.FAIL
    curve = next(one for one in report.series if "leakage" in one.name)
    target = next(line.y for line in curve.lines if line.model == "target")
    assert target[1] > target[0] + 0.3
    assert target[1] > target[2] + 0.3
    assert "request 2: target" in {model.role for model in report.models}
    assert "Along the series" in (tmp_path / "audit-honest" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", preset.shipped())
def test_presets_name_known_attacks_with_valid_parameters(name: str) -> None:
    from muaudit import registry as attacks

    for section, values in preset.attacks(name).items():
        found = attacks.find(str(values.pop("attack", section)))
        assert isinstance(found, attacks.Registered), found
        found.attack.model_validate(values)


def test_a_preset_is_planned_with_changes(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    text = path.read_text(encoding="utf-8")
    path.write_text('preset = "muse"\n' + text + "\n[attacks.knowledge]\nshots = 0\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "muaudit", "plan", "honest.toml", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    planned = {entry["name"]: entry["parameters"] for entry in json.loads(done.stdout)["plan"]["attacks"]}
    assert set(planned) >= {"verbatim", "knowledge", "privacy_leakage"}
    assert planned["knowledge"]["deciding"] == "knowledge"
    assert planned["knowledge"]["shots"] == 0
    assert planned["verbatim"]["max_new_tokens"] == 128


def test_unknown_presets_and_double_steps_are_told() -> None:
    with pytest.raises(UsageError, match="did you mean 'muse'"):
        preset.attacks("mus")
    model = {"kind": "recorded", "format": "tofu", "path": "x.json"}
    step = {"name": "one", "target": model}
    values = {"task": {"kind": "recorded"}, "target": model, "references": [model], "preset": "muse", "series": [step, step]}
    with pytest.raises(UsageError, match="two steps of the series are called 'one'"):
        config.parse(values, "audit.toml")


def test_init_writes_a_presets_own_policy(tmp_path: Path) -> None:
    for name in ("model", "forget.jsonl"):
        (tmp_path / name).touch()
    command = [sys.executable, "-m", "muaudit", "init", "--target", "model", "--forget", "forget.jsonl", "--preset", "muse"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = tomllib.loads((tmp_path / "audit.toml").read_text(encoding="utf-8"))
    assert (settings["preset"], settings["policy"]["name"]) == ("muse", "muse")
    assert set(load("muse").required) == set(preset.attacks("muse"))
    for field in (
        "margin",
        "cluster_margin",
        "confidence",
        "equivalence_confidence",
        "noise_confidence",
        "margins",
        "cluster_margins",
    ):
        assert getattr(load("muse"), field) == getattr(load("standard"), field)
