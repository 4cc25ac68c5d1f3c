"""The plug-in gates a release: it passes, fails and explains as the audit does, and costs nothing until it is used."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET  # the file is our own
from pathlib import Path

import pytest
from recorded_logs import MODELS, recorded_audit

import muaudit
from muaudit.errors import UsageError
from muaudit.results import AuditReport, Verdict
from muaudit.testing import assert_unlearned, shown

pytest_plugins = ["pytester"]

HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "pydantic",
    "transformers",
    "sklearn",
    "matplotlib",
    "cryptography",
    "jinja2",
    "rich",
    "click",
}

GATE = """
import pytest
from muaudit.testing import assert_unlearned

def test_honest(audit):
    assert_unlearned(audit("honest.toml"))

def test_one_left(audit):
    assert_unlearned(audit("one-left.toml"))

def test_once_a_session(audit):
    assert audit("honest.toml") is audit("./honest.toml")

def test_default(audit):
    assert audit().verdict == "pass"

def test_broken_configuration(audit):
    audit("broken.toml")
"""


def _message(report: AuditReport, **how: object) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_unlearned(report, **how)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditReport]:
    folder = tmp_path_factory.mktemp("audits")
    return {name: muaudit.audit(recorded_audit(folder, name)) for name in ("honest", "one-left", "suppressed")}


def test_a_project_gates_its_release(pytester: pytest.Pytester) -> None:
    for target in ("honest", "one-left"):
        recorded_audit(pytester.path, target)
    (pytester.path / "broken.toml").write_text('[task]\nkind = "recorded"\nclustersize = 3\n', encoding="utf-8")
    pytester.makepyfile(GATE)
    result = pytester.runpytest_subprocess("--muaudit-config=honest.toml", "--junitxml=junit.xml", "-p", "no:xdist")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*the audit's verdict is FAIL*one cluster*still remembered*",
            "*memorization *FAIL *gap +0.0*margin 0.05*",
            "*cluster 'forget 008': gap +0.8*",
            "*expected 'the forget town*",
            "*what to do:*",
        ]
    )
    result.stdout.fnmatch_lines(["*muaudit: broken.toml: *task.clustersize*did you mean 'cluster_size'*"])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    suite = ET.parse(pytester.path / "junit.xml").getroot()[0]  # noqa: S314 - written by pytest a moment ago
    kept = {(item.get("name"), item.get("value")) for item in suite.iterfind("properties/property")}
    assert {("muaudit.verdict", "pass"), ("muaudit.verdict", "fail"), ("muaudit.target", "one-left.json")} <= kept
    cases = {
        case.get("name"): {item.get("name"): item.get("value") for item in case.iter("property")}
        for case in suite.iter("testcase")
    }
    assert cases["test_honest"]["muaudit.memorization.leakage"] == "pass"
    assert cases["test_one_left"]["muaudit.memorization.leakage"] == "fail"
    assert cases["test_one_left"]["muaudit.memorization.leakage.gap"].startswith("+0.0")
    report = json.loads((pytester.path / "audit-one-left" / "report.json").read_bytes())
    assert cases["test_one_left"]["muaudit.plan_sha256"] == report["plan_sha256"]
    assert cases["test_broken_configuration"] == {}


def test_an_ini_file_may_name_the_configuration(pytester: pytest.Pytester) -> None:
    recorded_audit(pytester.path / "release", "honest")
    pytester.makeini("[pytest]\nmuaudit_config = release/honest.toml\n")
    pytester.mkdir("tests")
    (pytester.path / "tests" / "test_gate.py").write_text("def test_gate(audit):\n    assert audit().verdict == 'pass'\n")
    pytester.runpytest_subprocess("tests").assert_outcomes(passed=1)


def test_no_configuration_says_how_to_give_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_gate(audit):\n    audit()\n")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*was given no configuration*--muaudit-config PATH*muaudit_config*"])


@pytest.mark.parametrize("how", [["--muaudit-config=gone.toml"], ["-o", "muaudit_config=gone.toml"]])
def test_a_configuration_that_is_not_there_stops_the_run(pytester: pytest.Pytester, how: list[str]) -> None:
    pytester.makepyfile("def test_other():\n    pass\n")
    result = pytester.runpytest_subprocess(*how)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ERROR*gone.toml: no such file*muaudit init*"])


@pytest.mark.parametrize("module", ["muaudit.pytest_plugin", "muaudit.testing"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import pytest, sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in printed} & HEAVY
    assert len([name for name in printed if name.startswith("muaudit")]) <= 4


def test_a_pass_passes(reports: dict[str, AuditReport]) -> None:
    assert_unlearned(reports["honest"])
    assert_unlearned(reports["honest"], attacks=["memorization"])
    assert_unlearned(reports["honest"], allow_inconclusive=True)


def test_a_fail_is_never_accepted(reports: dict[str, AuditReport]) -> None:
    for how in ({}, {"attacks": ["memorization"]}, {"allow_inconclusive": True}):
        assert "FAIL" in _message(reports["suppressed"], **how)


def test_the_message_counts_what_it_does_not_list(reports: dict[str, AuditReport]) -> None:
    told = _message(reports["suppressed"], units=1)
    assert f"and {len(MODELS['suppressed']) - 8} further clusters" in told
    assert told.count("expected '") == 1
    assert "muaudit render audit-suppressed/report.json" in told


def test_an_attack_that_was_skipped_does_not_pass_by_name(reports: dict[str, AuditReport]) -> None:
    told = _message(reports["honest"], attacks=["relearning"], allow_inconclusive=True)
    assert "skipped" in told
    assert "Finetunes" in told


@pytest.mark.parametrize("attacks", [[], "memorization", ["memorisation"]])
def test_attacks_that_cannot_be_judged_are_a_usage_error(reports: dict[str, AuditReport], attacks: list[str]) -> None:
    with pytest.raises(UsageError, match=r"'memorization'"):
        assert_unlearned(reports["honest"], attacks=attacks)


def _with(report: AuditReport, verdict: Verdict, overall: Verdict) -> AuditReport:
    first = report.findings[0].model_copy(update={"verdict": verdict, "reason": "because", "needed_units": 170})
    return report.model_copy(update={"verdict": overall, "findings": (first, *report.findings[1:])})


def test_inconclusive_is_accepted_only_where_it_is_asked_for(reports: dict[str, AuditReport]) -> None:
    unsure = _with(reports["honest"], Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    told = _message(unsure)
    assert "verdict is inconclusive" in told
    assert "about 90 more units" in told
    assert "smallest gap" in told
    assert_unlearned(unsure, allow_inconclusive=True)
    assert_unlearned(unsure, attacks=["memorization"], allow_inconclusive=True)


def test_a_broken_attack_is_never_inconclusive_enough(reports: dict[str, AuditReport]) -> None:
    broken = _with(reports["honest"], Verdict.ERROR, Verdict.INCONCLUSIVE)
    assert "did not finish" in _message(broken, allow_inconclusive=True)


def test_what_a_model_said_cannot_steer_a_terminal(reports: dict[str, AuditReport]) -> None:
    hostile = "\x1b[2J\x9b31m\u202e\x00\r\nall fine"
    finding = reports["one-left"].findings[0]
    unit = finding.worst_units[0]
    said = {
        role: one.model_copy(update={"output": hostile * 30, "expected": hostile}) for role, one in unit.transcripts.items()
    }
    units = (unit.model_copy(update={"transcripts": said, "cluster": hostile}),)
    changed = finding.model_copy(update={"worst_units": units, "reason": f"cluster {hostile}"})
    told = _message(reports["one-left"].model_copy(update={"findings": (changed,), "reason": hostile}))
    assert all(char.isprintable() or char == "\n" for char in told)
    assert "⟨U+001B⟩[2J⟨U+009B⟩31m⟨U+202E⟩⟨U+0000⟩⟨U+000D⟩⟨U+000A⟩all fine" in told
    assert f"... ({len(hostile) * 30} characters)" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Torvik", "'Torvik'"), ("", "''"), ("a\ud800b", "'a⟨U+D800⟩b'"), ("x" * 9, "'xxxxx'... (9 characters)")],
)
def test_a_text_is_shown_quoted(text: str, expected: str) -> None:
    assert shown(text, 5 if "x" in text else 200) == expected


def test_the_plugin_is_registered(request: pytest.FixtureRequest) -> None:
    plugin = request.config.pluginmanager.get_plugin("muaudit")
    assert Path(str(plugin.__file__)).name == "pytest_plugin.py"
