"""The plug-in gates a release: it passes, fails and explains as the audit does, and costs nothing until it is used."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET  # the file is our own
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorded_logs import MODELS, recorded_audit

import muaudit
from muaudit.config import load
from muaudit.errors import UsageError
from muaudit.gate import planned
from muaudit.journal import NAME
from muaudit.results import AuditReport, Verdict
from muaudit.testing import Judged, assert_unlearned, shown

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


UNDECIDED = "[policy]\npartial = true\n[policy.margins]\nmemorization = 0.0001\n"
"""A margin below what so few people can show."""


def _message(report: AuditReport | Judged, **how: object) -> str:
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
    assert len([name for name in printed if name.startswith("muaudit")]) <= 5


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


EACH = """
import pytest
from muaudit.testing import assert_unlearned

@pytest.mark.muaudit("honest.toml")
def test_each(muaudit_finding):
    assert_unlearned(muaudit_finding)

@pytest.mark.muaudit("one-left.toml")
class TestOneLeft:
    def test_each(self, muaudit_finding):
        assert_unlearned(muaudit_finding)

    def test_report(self, muaudit_report, audit):
        assert muaudit_report is audit()
        assert muaudit_report.target.path == "one-left.json"

@pytest.mark.muaudit("honest.toml", attacks=["memorization"])
def test_chosen(muaudit_finding):
    assert_unlearned(muaudit_finding)

@pytest.mark.muaudit("honest.toml", attacks=["relearning"])
def test_skipped_by_name(muaudit_report):
    assert_unlearned(muaudit_report)

def test_other():
    pass
"""


@pytest.fixture
def each(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with one test for each planned attack of two audits."""
    for target in ("honest", "one-left"):
        recorded_audit(pytester.path, target)
    pytester.makepyfile(test_gate=EACH)
    return pytester


def _outcomes(junit: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Outcome and properties of every case in a JUnit file."""
    found = {}
    for case in ET.parse(junit).getroot().iter("testcase"):  # noqa: S314 - written by pytest a moment ago
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        name = f"{case.get('classname', '').partition('.')[2]}.{case.get('name')}".lstrip(".")
        found[name] = (outcome, {item.get("name", ""): item.get("value", "") for item in case.iter("property")})
    return found


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one-process", "xdist"])
def test_each_planned_attack_is_a_test(each: pytest.Pytester, workers: list[str]) -> None:
    written = ["--junitxml=junit.xml", "--muaudit-sarif=made/gate.sarif", "--muaudit-markdown=gate.md"]
    result = each.runpytest_subprocess("--strict-markers", "-p", "no:cacheprovider", *written, *workers)
    result.assert_outcomes(passed=5, failed=3, skipped=2)
    cases = _outcomes(each.path / "junit.xml")
    assert {name: outcome for name, (outcome, _) in cases.items()} == {
        "test_each[memorization]": "passed",
        "test_each[relearning]": "skipped",
        "test_each[verdict]": "passed",
        "TestOneLeft.test_each[memorization]": "failure",
        "TestOneLeft.test_each[relearning]": "skipped",
        "TestOneLeft.test_each[verdict]": "failure",
        "TestOneLeft.test_report": "passed",
        "test_chosen[memorization]": "passed",
        "test_skipped_by_name": "failure",
        "test_other": "passed",
    }
    properties = cases["TestOneLeft.test_each[memorization]"][1]
    assert properties["muaudit.memorization.leakage"] == "fail"
    assert properties["muaudit.memorization.leakage.margin"] == "0.05"
    assert not any("relearning" in name for name in properties)
    assert cases["test_each[relearning]"][1]["muaudit.relearning.leakage"] == "skipped"
    assert cases["test_other"][1] == {}
    result.stdout.fnmatch_lines(["*= muaudit =*", "PASS * honest.toml: *", "*report audit-honest/report.json"])
    result.stdout.fnmatch_lines(["FAIL * one-left.toml: *", "*report audit-one-left/report.json"])
    result.stdout.fnmatch_lines(["wrote SARIF to made/gate.sarif", "wrote Markdown to gate.md"])
    log = json.loads((each.path / "made" / "gate.sarif").read_bytes())
    assert [run["properties"]["verdict"] for run in log["runs"]] == ["pass", "fail"]
    assert [run["automationDetails"]["id"] for run in log["runs"]] == ["muaudit/honest.toml/", "muaudit/one-left.toml/"]
    place = log["runs"][1]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "one-left.toml"
    told = (each.path / "gate.md").read_text(encoding="utf-8")
    assert told.count("Unlearning audit: ") == 2
    for target in ("honest", "one-left"):  # each audit ran once, however many processes asked for it
        events = [json.loads(line)["event"] for line in (each.path / f"audit-{target}" / NAME).read_bytes().splitlines()]
        assert events.count("started") + events.count("resumed") == 1


def test_collecting_reads_the_plan_and_runs_nothing(each: pytest.Pytester) -> None:
    each.makeconftest(
        "import sys\ndef pytest_sessionfinish():\n    print('HEAVY', sorted({'torch', 'scipy'} & set(sys.modules)))\n"
    )
    result = each.runpytest_subprocess("--collect-only", "-q", "-s", "-p", "no:xdist", "--muaudit-sarif=gate.sarif")
    result.stdout.fnmatch_lines(["*::test_each[[]memorization[]]", "*::test_each[[]relearning[]]", "*::test_each[[]verdict[]]"])
    result.stdout.fnmatch_lines(["*HEAVY [[][]]*"])
    assert not [*each.path.glob("audit-*")]
    assert not (each.path / "gate.sarif").exists()


def test_what_is_planned_is_what_is_found(reports: dict[str, AuditReport], tmp_path: Path) -> None:
    source = recorded_audit(tmp_path, "honest")
    report = muaudit.audit(source)
    found = list(dict.fromkeys(finding.attack for finding in report.findings))
    assert planned(source) == planned(load(source)) == planned(tmp_path / "audit-honest" / "plan.json") == found


@pytest.mark.parametrize(
    ("how", "passed", "skipped", "deselected"),
    [
        (["--muaudit-skip"], 1, 5, 0),
        (["-o", "muaudit_skip=true"], 1, 5, 0),
        (["-m", "not muaudit"], 1, 0, 10),
        (["-m", "muaudit", "--muaudit-skip"], 0, 5, 1),
    ],
)
def test_audits_can_be_left_out(each: pytest.Pytester, how: list[str], passed: int, skipped: int, deselected: int) -> None:
    with (each.path / "test_gate.py").open("a", encoding="utf-8") as file:
        file.write("\ndef test_unmarked(audit):\n    audit('gone.toml')\n")
    result = each.runpytest_subprocess(*how, "-p", "no:xdist", "-rs")
    result.assert_outcomes(passed=passed, skipped=skipped + bool(skipped), deselected=deselected)
    assert not [*each.path.glob("audit-*")]
    if skipped:
        result.stdout.fnmatch_lines(["muaudit: audits are skipped (--muaudit-skip)", "SKIPPED*audits are skipped*"])


def test_a_fixture_of_the_same_name_is_none_of_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.fixture\ndef audit():\n    return 3\ndef test_it(audit):\n    assert audit == 3\n"
    )
    result = pytester.runpytest_subprocess("--muaudit-skip", "-m", "not muaudit")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "test", "told"),
    [
        (
            '"honest.toml", attacks=["memorisation"]',
            "muaudit_finding",
            "*'memorisation' is not in*did you mean 'memorization'*",
        ),
        ('"honest.toml", attacks="memorization"', "muaudit_finding", "*attacks='memorization': give a list*"),
        ('"honest.toml", inconclusive=True', "muaudit_finding", "*the marker muaudit got an unexpected*'inconclusive'*"),
        ('"gone.toml"', "muaudit_finding", "*gone.toml: cannot be read*muaudit init*"),
        ("", "muaudit_finding", "*muaudit_finding was given no configuration*--muaudit-config PATH*"),
        ('"honest.toml"', "tmp_path", "*looks at no audit: request muaudit_finding or muaudit_report*"),
        ('"honest.toml", 3', "muaudit_report", "*the marker muaudit takes from 0 to 1 positional*"),
    ],
)
def test_a_marker_that_cannot_be_used_says_so(pytester: pytest.Pytester, marker: str, test: str, told: str) -> None:
    recorded_audit(pytester.path, "honest")
    pytester.makepyfile(f"import pytest\n@pytest.mark.muaudit({marker})\ndef test_it({test}):\n    pass\n")
    result = pytester.runpytest_subprocess()
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    result.stdout.fnmatch_lines([told])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_a_marker_starts_from_its_own_file(pytester: pytest.Pytester) -> None:
    recorded_audit(pytester.path / "release", "honest")
    (pytester.path / "release" / "test_gate.py").write_text(EACH.split('@pytest.mark.muaudit("one')[0], encoding="utf-8")
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=2, skipped=1)


def test_a_marker_accepts_inconclusive_for_its_own_audit_alone(pytester: pytest.Pytester) -> None:
    for name in ("unsure", "other"):
        recorded_audit(pytester.path / name, "honest", sections=UNDECIDED)
    pytester.makepyfile("""
import pytest
from muaudit.testing import assert_unlearned
MARK = pytest.mark.muaudit("unsure/honest.toml", allow_inconclusive=True)

@MARK
def test_accepted(muaudit_report):
    assert muaudit_report.verdict == "inconclusive"
    assert_unlearned(muaudit_report)

@MARK
def test_each(muaudit_finding):
    assert_unlearned(muaudit_finding)

@MARK
def test_taken_back(muaudit_report):
    assert_unlearned(muaudit_report, allow_inconclusive=False)

@MARK
def test_of_another(muaudit_report, audit):
    assert_unlearned(audit("other/honest.toml"))

@pytest.mark.muaudit("unsure/honest.toml")
def test_strict(muaudit_report):
    assert_unlearned(muaudit_report)
""")
    result = pytester.runpytest_subprocess("-p", "no:xdist", "-rf")
    result.assert_outcomes(passed=3, skipped=1, failed=3)
    result.stdout.fnmatch_lines(["FAILED*test_taken_back*", "FAILED*test_of_another*", "FAILED*test_strict*"])


def test_a_file_that_cannot_be_written_fails_the_run(each: pytest.Pytester) -> None:
    (each.path / "file").write_text("in the way", encoding="utf-8")
    result = each.runpytest_subprocess("-k", "test_chosen", "-p", "no:xdist", "--muaudit-sarif=file/gate.sarif")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["PASS *", "SARIF not written: *file*"])
    assert each.runpytest_subprocess("--muaudit-markdown=.").ret == pytest.ExitCode.USAGE_ERROR


def test_no_old_file_stands_for_a_run_without_an_audit(each: pytest.Pytester) -> None:
    (each.path / "gate.sarif").write_text("of an earlier run", encoding="utf-8")
    result = each.runpytest_subprocess("--muaudit-skip", "--muaudit-sarif=gate.sarif")
    result.stdout.fnmatch_lines(["no audit ran to its end: SARIF not written to gate.sarif"])
    assert not (each.path / "gate.sarif").exists()


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one-process", "xdist"])
def test_an_audit_that_cannot_run_is_tried_once(pytester: pytest.Pytester, workers: list[str]) -> None:
    recorded_audit(pytester.path, "honest")
    (pytester.path / "retrained-2.json").unlink()
    pytester.makepyfile("def test_one(audit):\n    audit('honest.toml')\ndef test_two(audit):\n    audit('honest.toml')\n")
    result = pytester.runpytest_subprocess(*workers)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*muaudit: reference 2: retrained-2.json: no such file*", "not audited*honest.toml: reference 2*"]
    )


def test_help_and_markers_tell_of_the_plugin(pytester: pytest.Pytester) -> None:
    told = pytester.runpytest_subprocess("--help").stdout
    told.fnmatch_lines(["muaudit: audits of machine unlearning:", "*--muaudit-config=PATH*", "*--muaudit-skip*"])
    told.fnmatch_lines(["*muaudit_config (string)*", "*muaudit_sarif (string)*", "*muaudit_skip (bool)*"])
    pytester.runpytest_subprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.muaudit(source=None*"])


def test_a_project_that_does_not_use_it_hears_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_other():\n    pass\n")
    told = pytester.runpytest_subprocess("--strict-markers", "-W", "error").stdout
    told.no_fnmatch_line("muaudit: *")
    told.no_fnmatch_line("*= muaudit =*")


def test_a_part_of_an_audit_is_judged_alone(reports: dict[str, AuditReport]) -> None:
    assert_unlearned(Judged(reports["honest"], "memorization"))
    assert_unlearned(Judged(reports["honest"]))
    assert "skipped" in _message(Judged(reports["honest"], "relearning"))
    with pytest.raises(UsageError, match="of one attack already"):
        assert_unlearned(Judged(reports["honest"], "memorization"), attacks=["relearning"])


GATE_EXAMPLE = Path(__file__).parents[2] / "examples" / "release_gate"


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    path = GATE_EXAMPLE / ".github" / "workflows" / "release-gate.yml"
    read: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return read


def test_the_workflow_is_one(workflow: dict[str, Any]) -> None:
    assert workflow[True] == {"pull_request": None, "push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    gate, release = workflow["jobs"]["gate"], workflow["jobs"]["release"]
    assert release["needs"] == "gate"
    assert "always()" not in release["if"]
    for job in (gate, release):
        assert job["runs-on"] == "ubuntu-latest"
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert all(re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    upload = next(step for step in gate["steps"] if "upload-sarif" in step.get("uses", ""))
    assert upload["with"] == {"sarif_file": "gate.sarif"}
    assert gate["permissions"]["security-events"] == "write"
    assert workflow["permissions"] == {"contents": "read"}
    named = {step["with"]["name"] for step in gate["steps"] if "upload-artifact" in step.get("uses", "")}
    assert {step["with"]["name"] for step in release["steps"] if "download-artifact" in step.get("uses", "")} <= named


@pytest.mark.parametrize("target", ["candidate", "leaky-candidate"])
def test_the_workflow_runs(workflow: dict[str, Any], tmp_path: Path, target: str) -> None:
    here = tmp_path / "gate"
    shutil.copytree(GATE_EXAMPLE, here, ignore=shutil.ignore_patterns("logs", "audit*[!l]", "__pycache__"))
    source = here / "audit.toml"
    source.write_text(source.read_text(encoding="utf-8").replace("logs/candidate", f"logs/{target}"), encoding="utf-8")
    summary = tmp_path / "summary.md"
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"GITHUB_STEP_SUMMARY": str(summary), "PATH": folders}
    codes = {}
    for step in workflow["jobs"]["gate"]["steps"]:
        if "run" in step and not step["run"].startswith("pip install"):
            ran = subprocess.run(
                ["bash", "-e", "-c", step["run"]], cwd=here, env=environment, capture_output=True, text=True, check=False
            )
            codes[step["run"].split()[0], step["run"].split()[1]] = ran.returncode
            assert ran.returncode == 0 or step["name"] == "Gate", ran.stdout + ran.stderr
    assert codes["pytest", "test_release.py"] == (0 if target == "candidate" else 1)
    verdict = "PASS" if target == "candidate" else "FAIL"
    assert f"Unlearning audit: {verdict}" in summary.read_text(encoding="utf-8")
    (run,) = json.loads((here / "gate.sarif").read_bytes())["runs"]
    assert run["properties"]["verdict"] == verdict.lower()
    for step in workflow["jobs"]["gate"]["steps"]:  # what is uploaded is there
        kept = step.get("with", {}).get("path", step.get("with", {}).get("sarif_file", ""))
        assert all((here / name).is_file() for name in kept.split())
    public = json.loads((here / "public" / "report.public.json").read_bytes())
    assert "forget town" not in json.dumps(public)
    published = re.findall(r"public/\S+", workflow["jobs"]["release"]["steps"][-1]["run"])
    assert published
    assert all((here / name).is_file() for name in published)
