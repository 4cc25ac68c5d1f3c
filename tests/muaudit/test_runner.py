"""A whole audit of recorded outputs: what is frozen, what is stored, what becomes a row that says why."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from recorded_logs import recorded_audit

import muaudit
from muaudit import config, measuring, plan
from muaudit import registry as attacks
from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import EnvironmentFault, ModelError, UsageError
from muaudit.models import Model, ScoresText
from muaudit.results import AuditReport, Verdict


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


class Faulty(Attack):
    """Raises on every model."""

    name: ClassVar = "faulty"
    version: ClassVar = "1"
    summary: ClassVar = "Raises."
    source: ClassVar = "none"
    access: ClassVar = "text"
    needs: ClassVar = (ScoresText,)
    cost: ClassVar = "none"

    def prepare(self, bench: Bench) -> Prepared:
        return Prepared()

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        raise ZeroDivisionError("of course")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(attacks.registered()) | {
        "faulty": attacks.Registered(Faulty, "elsewhere"),
        "broken": attacks.Broken("broken", "elsewhere", "elsewhere: attack 'broken' does not load: ImportError: gone"),
    }
    monkeypatch.setattr(attacks, "registered", lambda: known)


def verdicts(report: AuditReport) -> dict[str, Verdict]:
    return {finding.attack: finding.verdict for finding in report.findings if finding.measures == "leakage"}


def test_suppressed_fails_and_honest_passes(folder: Path) -> None:
    assert muaudit.audit(recorded_audit(folder, "suppressed")).verdict == "fail"
    honest = muaudit.audit(recorded_audit(folder, "honest"))
    assert honest.verdict == "pass", honest.reason


def test_one_person_left_in_fails_by_name(folder: Path) -> None:
    report = muaudit.audit(recorded_audit(folder, "one-left"))
    finding = next(finding for finding in report.findings if finding.measures == "leakage")
    assert report.verdict == "fail"
    assert finding.worst_clusters is not None
    assert [row.cluster for row in finding.worst_clusters.clusters if row.flagged] == ["forget 008"]
    assert "forget 008" in finding.reason


def test_plan_is_frozen_and_runs_as_the_configuration_does(folder: Path) -> None:
    path = recorded_audit(folder, "honest")
    frozen, base = plan.resolve(path)
    written = plan.write(frozen, base)
    assert plan.Plan.read(written) == frozen
    assert frozen.content_digest() == plan.resolve(path)[0].content_digest()
    by_plan, by_config = muaudit.audit(written), muaudit.audit(path)
    assert by_plan.findings == by_config.findings
    assert by_plan.plan_sha256 == by_config.plan_sha256 == frozen.content_digest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model", r"target: file 'honest.json' of honest.json changed"),
        ("reference", r"reference 2: file 'retrained-2.json'"),
        ("version", r"made with numpy 0.0"),
        ("margin", r"'policy' is not what"),
    ],
)
def test_a_plan_runs_on_nothing_but_what_it_froze(folder: Path, change: str, said: str) -> None:
    frozen, base = plan.resolve(recorded_audit(folder, "honest"))
    path = plan.write(frozen, base)
    if change in ("model", "reference"):
        log = folder / ("honest.json" if change == "model" else "retrained-2.json")
        log.write_text(log.read_text() + "\n")
    else:
        values = json.loads(path.read_text())
        if change == "version":
            values["versions"]["numpy"] = "0.0"
        else:
            values["policy"]["margin"] = 0.5
        path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=said):
        muaudit.audit(path)


def test_nothing_is_computed_twice(folder: Path) -> None:
    path = recorded_audit(folder, "honest")
    first, second = muaudit.audit(path), muaudit.audit(path)
    assert (first.run.computed, first.run.reused, first.run.resumed) == (5, 0, False)
    assert (second.run.computed, second.run.reused, second.run.resumed) == (0, 5, True)
    assert first.findings == second.findings


def test_a_damaged_record_is_computed_anew(folder: Path) -> None:
    path = recorded_audit(folder, "honest")
    first = muaudit.audit(path)
    for record in (folder / "audit-honest" / "store").rglob("*.json"):
        record.write_bytes(record.read_bytes()[:-20])
    second = muaudit.audit(path)
    assert second.run.computed == 5
    assert first.findings == second.findings


def test_another_seed_or_parameter_is_another_measurement(folder: Path) -> None:
    path = recorded_audit(folder, "honest")
    muaudit.audit(path)
    path.write_text(path.read_text().replace("[attacks.memorization]", "[attacks.memorization]\nretain_clusters = 3"))
    assert muaudit.audit(path).run.computed == 5


def test_recorded_outputs_cannot_be_trained_and_the_report_says_so(folder: Path) -> None:
    report = muaudit.audit(recorded_audit(folder, "honest"))
    assert verdicts(report) == {"memorization": Verdict.PASS, "relearning": Verdict.SKIPPED}
    skipped = next(finding for finding in report.findings if finding.attack == "relearning")
    assert "Finetunes" in skipped.reason
    assert "'recorded'" in skipped.reason


@pytest.mark.usefixtures("faulty")
def test_a_fault_is_a_row_and_loses_nothing(folder: Path) -> None:
    report = muaudit.audit(recorded_audit(folder, "honest", sections="[attacks.faulty]\n[attacks.broken]\n"))
    assert verdicts(report) == {
        "memorization": Verdict.PASS,
        "relearning": Verdict.SKIPPED,
        "faulty": Verdict.ERROR,
        "broken": Verdict.ERROR,
    }
    said = {finding.attack: finding.reason for finding in report.findings}
    assert "ZeroDivisionError: of course" in said["faulty"]
    assert "elsewhere: attack 'broken' does not load" in said["broken"]
    assert report.verdict != "pass"


def test_nan_in_a_record_is_one_clear_line(folder: Path) -> None:
    path = recorded_audit(folder, "honest")
    log = folder / "retrained-1.json"
    values = json.loads(log.read_text())
    values["eval_log_forget.json"]["avg_gt_loss"]["0"] = float("nan")
    log.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"retrained-1.json: unit 'forget-0': a recorded answer loss is nan"):
        muaudit.audit(path)
    assert len(list((folder / "audit-honest" / "store").rglob("*.json"))) == 2, "what was prepared and measured before is kept"


def test_too_little_memory_is_the_attacks_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muaudit.models.recorded import Recorded

    def starved(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Recorded, "score", starved)
    report = muaudit.audit(recorded_audit(folder, "honest"))
    assert verdicts(report)["memorization"] is Verdict.ERROR
    reason = next(finding.reason for finding in report.findings if finding.attack == "memorization")
    assert "out of memory" in reason
    assert "lower the model's batch_size" in reason
    assert report.verdict is not Verdict.PASS


def test_too_little_memory_to_open_a_model_is_the_environments_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(measuring, "open_model", starved)
    with pytest.raises(EnvironmentFault, match="target: out of memory when it was opened; lower the model's batch_size"):
        muaudit.audit(recorded_audit(folder, "honest"))


def test_one_reference_is_enough_to_run_and_said_to_be_few(folder: Path) -> None:
    path = recorded_audit(folder, "suppressed")
    text = path.read_text()
    for number in (2, 3):
        text = text.replace(f'[[references]]\nkind = "recorded"\nformat = "tofu"\npath = "retrained-{number}.json"\n', "")
    path.write_text(text)
    report = muaudit.audit(path)
    assert report.verdict == "fail"
    assert any("one reference" in limit for limit in report.limits)


def test_a_configuration_from_python_gives_the_same_findings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded_audit(folder, "honest")
    from_file = muaudit.audit(path)
    monkeypatch.chdir(folder)
    assert muaudit.audit(config.load(path)).findings == from_file.findings


def test_two_workers_find_what_one_finds(folder: Path) -> None:
    path = recorded_audit(folder, "honest")
    alone = muaudit.audit(path)
    path.write_text(path.read_text().replace('out = "audit-honest"', 'out = "spread"\nworkers = 2'))
    assert muaudit.audit(path).findings == alone.findings


def test_the_report_reads_back_as_it_was_written(folder: Path) -> None:
    report = muaudit.audit(recorded_audit(folder, "one-left"))
    written = (folder / "audit-one-left" / "report.json").read_bytes()
    assert AuditReport.from_json(written) == report
    assert written == report.canonical()


def test_an_attack_with_prompts_of_its_own_is_skipped_not_answered(tmp_path: Path) -> None:
    """A recording's scores must not pass for answers to prompts that nobody recorded."""
    path = recorded_audit(tmp_path, "honest", sections="[attacks.adversarial_prompts]\n")
    found = {finding.attack: finding for finding in muaudit.audit(path).findings if finding.measures == "leakage"}
    assert found["adversarial_prompts"].verdict is Verdict.SKIPPED
    assert "answer only what was recorded" in found["adversarial_prompts"].reason
    assert found["memorization"].verdict is not Verdict.SKIPPED
