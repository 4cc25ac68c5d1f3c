"""A small calibration: its audits are those of a scan, and its record counts what they say."""

import json
from pathlib import Path

import pytest

import muaudit
from muaudit.calibration import config, planning
from muaudit.calibration.planning import CalibrationPlan
from muaudit.calibration.record import AuditRow, CalibrationRecord
from muaudit.config import parse
from muaudit.errors import UsageError
from muaudit.results import AuditReport, Finding

pytest.importorskip("torch")
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def record(calibration: Path) -> CalibrationRecord:
    return CalibrationRecord.from_json((calibration / "calibration" / "calibration.json").read_bytes())


def row(record: CalibrationRecord, target: str) -> AuditRow:
    return next(audit for audit in record.audits if audit.target == target)


def scanned(calibration: Path, record: CalibrationRecord, target: str, out: Path) -> AuditReport:
    """The scan of one of the calibration's audits, as a user would run it, in a store of its own."""
    audit, models = row(record, target), calibration / "calibration" / "models"

    def model(name: str) -> dict[str, str]:
        return {"kind": "causal_lm", "path": str(models / name)}

    settings = config.load(calibration / "calibration.toml")
    values = {
        "task": {"kind": "facts", **{name: str(models / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}},
        "target": model(target),
        "original": model(audit.original),
        "references": [model(name) for name in audit.references],
        "attacks": settings.attacks,
        "run": {"seed": "2026", "out": str(out)},
    }
    return muaudit.audit(parse(values, target))


def leakage(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.attack: finding for finding in findings if finding.measures == "leakage"}


@pytest.mark.parametrize("target", ["retrain-1", "refusal"])
def test_an_audit_put_together_is_the_scan(calibration: Path, record: CalibrationRecord, target: str, tmp_path: Path) -> None:
    report, audit = scanned(calibration, record, target, tmp_path), row(record, target)
    assert audit.verdicts["standard"] == report.verdict
    for name, finding in leakage(report.findings).items():
        assert finding.gap is not None
        assert audit.gaps[name] == pytest.approx(finding.gap, abs=1e-6)
        assert finding.worst_clusters is not None
        assert audit.clusters[name] == pytest.approx(max(one.gap for one in finding.worst_clusters.clusters), abs=1e-6)
        assert (name in audit.flagged["standard"]) == (audit.excess[name] > 0)


def test_an_audit_put_together_has_every_number_of_the_scan(
    calibration: Path, record: CalibrationRecord, tmp_path: Path
) -> None:
    from muaudit import feasibility, policy
    from muaudit.calibration import measuring
    from muaudit.calibration.audits import judge
    from muaudit.testbed.populations import population

    settings = planning.seeded(config.load(calibration / "calibration.toml"), None, "")
    assert settings.testbed is not None
    bed = population(settings.testbed, calibration / "calibration" / "models", calibration, jobs=1)
    frozen = CalibrationPlan.read(calibration / "calibration" / "plan.json")
    assert frozen is not None
    audit = next(one for one in frozen.audits if one.target == "npo-weak")
    panel = measuring.panels(settings, bed, [audit], calibration)[0]
    sheet = measuring.measure(panel, calibration, lambda *_: None)
    assert not any(outcome.computed for outcome in sheet.outcomes.values())
    rule = feasibility.applied(policy.load("standard"), panel.plan.config, calibration)
    ours = judge(sheet, audit, rule).concluded
    report = scanned(calibration, record, "npo-weak", tmp_path)
    numbers = {"scores", "curves", "leakages", "worst_units", "summaries", "notes", "reason"}
    assert [one.model_dump(exclude=numbers) for one in ours.findings] == [
        one.model_dump(exclude=numbers) for one in report.findings
    ]
    assert ours.verdict == report.verdict


def test_honest_models_are_passed_and_the_original_never_is(record: CalibrationRecord) -> None:
    rates = record.policy
    assert rates.policy == "standard"
    assert rates.false_alarm is not None
    assert (rates.false_alarm.hits, rates.false_alarm.total) == (0, 4)
    assert rates.never_saw["pass"].hits == 4
    assert set(row(record, "original").verdicts.values()) == {"fail"}
    assert row(record, "refusal").flagged["standard"] == ("relearning",)


def test_no_target_is_its_own_reference_and_copies_are_no_audits(record: CalibrationRecord) -> None:
    honest = {one.name for one in record.members if one.truth == "never_saw" and one.copied is None}
    assert len(honest) == 4
    for audit in record.audits:
        assert audit.target not in audit.references
        assert len(set(audit.references)) == 3
        assert set(audit.references) <= honest
    assert {one.name for one in record.members if one.copied} == {
        "retrain-1-4bit", "retrain-1-relearned", "refusal-4bit", "refusal-relearned",
    }  # fmt: skip
    assert not any(audit.target.endswith(("4bit", "relearned")) for audit in record.audits)


def test_the_ladder_rises(record: CalibrationRecord) -> None:
    gaps = [step[1] for step in record.battery.steps]
    assert [step[0] for step in record.battery.steps] == [0, 0.25, 0.5, 1]
    assert gaps == sorted(gaps)
    assert record.battery.ladder is not None
    assert record.battery.ladder.value == pytest.approx(1)


def test_rates_are_counted_from_the_rows(record: CalibrationRecord) -> None:
    for attack in record.attacks:
        flagged = [attack.attack in audit.flagged["standard"] for audit in record.audits if audit.truth == "knows"]
        assert attack.detection is not None
        assert (attack.detection.hits, attack.detection.total) == (sum(flagged), len(flagged))
        assert attack.robustness is not None
        assert 0 <= attack.robustness.harmonic <= 1
        assert attack.seconds is not None
    whole = record.batteries[0]
    failed = [audit.verdicts["standard"] == "fail" for audit in record.audits if audit.truth in ("knows", "gated")]
    assert (whole.detection.hits, whole.detection.total) == (sum(failed), len(failed))
    assert {one.how for one in record.batteries} == {"whole", "greedy", "exhaustive"}


def test_power_at_full_size_is_that_of_the_audits(record: CalibrationRecord) -> None:
    full = next(one for one in record.power if (one.what, one.size) == ("references", 3))
    assert full.passes == record.policy.never_saw["pass"]
    assert full.detection is not None
    assert full.detection.hits == record.batteries[0].detection.hits
    fewer = next(one for one in record.power if one.what == "clusters")
    assert fewer.detectable["memorization"] > full.detectable["memorization"]
    assert [one.size for one in record.power if one.what == "references"] == [2, 3]


def test_what_could_be_seen_has_an_interval_around_it(record: CalibrationRecord) -> None:
    assert {one.attack for one in record.sensitivity} == {"memorization", "relearning"}
    for one in record.sensitivity:
        assert one.margin < one.low <= one.gap <= one.high
        assert (one.retrains, one.references, one.clusters) == (4, 3, 30)


def test_the_same_plan_gives_the_same_record(calibration: Path, record: CalibrationRecord) -> None:
    frozen = CalibrationPlan.read(calibration / "calibration" / "plan.json")
    assert frozen is not None
    assert frozen.content_digest() == record.plan_sha256
    assert record.canonical() == (calibration / "calibration" / "calibration.json").read_bytes()
    assert {one.name: one.digest for one in frozen.members} == {one.name: one.digest for one in record.members}
    assert CalibrationRecord.from_json(record.canonical()) == record


def test_policies_that_do_not_fit_say_why(record: CalibrationRecord) -> None:
    out = {one.policy: one.left_out for one in record.policies if one.left_out is not None}
    assert "adversarial_prompts is required and not planned" in out["strict"]
    assert [one.policy for one in record.policies if one.left_out is None] == ["standard"]


def test_a_file_that_is_no_record_is_refused(record: CalibrationRecord) -> None:
    value = json.loads(record.canonical())
    for change in ({"schema_version": "2"}, {"surprise": 1}, {"family": None}):
        with pytest.raises(UsageError, match="not a muaudit calibration record"):
            CalibrationRecord.from_json(json.dumps(value | change).encode())


def test_strata_that_are_large_enough_have_retrains_of_their_own(calibration: Path) -> None:
    from muaudit.calibration.population import Member
    from muaudit.testbed.populations import population

    settings = planning.seeded(config.load(calibration / "calibration.toml"), None, "")
    assert settings.testbed is not None
    bed = population(settings.testbed, calibration / "calibration" / "models", calibration, jobs=1)
    model = bed.members[0].model
    known = [Member(name=f"known-{one}", truth="knows", group="npo", original=one, model=model) for one in ("a", "b")]
    for count, apart in ((18, True), (8, False)):
        honest = [Member(name=f"retrain-{number}", truth="never_saw", group="retrain", model=model) for number in range(count)]
        changes = {"members": (*honest, *known), "originals": {"a": model, "b": model}}
        audits = list(planning.draw(settings, bed.model_copy(update=changes)))
        used = {one: {name for audit in audits if audit.original == one for name in audit.references} for one in ("a", "b")}
        assert used["a"].isdisjoint(used["b"]) is apart
        homes = {audit.target: audit.original for audit in audits}
        assert list(homes.values()).count("a") == list(homes.values()).count("b") == count // 2 + 1
        assert len({(audit.target, audit.references) for audit in audits}) == len(audits)
