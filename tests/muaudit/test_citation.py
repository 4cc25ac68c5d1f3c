"""An audit that cites a calibration: the record is read when the audit is planned, and its rates stand in every report."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from calibrations import small_record
from click.testing import CliRunner
from rich.console import Console
from sample import sample_report

from muaudit import policy
from muaudit.calibration.citing import cite
from muaudit.citation import Citation
from muaudit.cli import main
from muaudit.config import PolicyConfig
from muaudit.errors import UsageError
from muaudit.reports import html, markdown, terminal

ATTACKS = [SimpleNamespace(name=name, parameters={}) for name in ("memorization", "relearning")]


def cited(folder: Path, **changes: object) -> Citation:
    values: dict[str, object] = {
        "family": "facts", "policy": "standard", "policy_sha256": policy.digest("standard"), "own": PolicyConfig(),
        "attacks": ATTACKS, "references": 2,
    }  # fmt: skip
    path, expected = str(changes.pop("path", "calibration.json")), changes.pop("expected", None)
    return cite(path, expected, folder, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "calibration.json").write_bytes(small_record(bed="lineage").canonical())
    return tmp_path


def test_a_fitting_record_gives_its_rates(folder: Path) -> None:
    found = cited(folder)
    assert found.sha256 == hashlib.sha256((folder / "calibration.json").read_bytes()).hexdigest()
    assert found.differs == ()
    assert found.false_alarm is not None
    assert found.detection is not None
    assert (found.false_alarm.hits, found.false_alarm.total, found.detection.hits) == (0, 8, 4)
    assert cited(folder, expected=found.sha256) == found


def test_another_family_another_digest_and_no_record_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="kind 'facts', and the task is of kind 'text_to_image'"):
        cited(folder, family="text_to_image")
    with pytest.raises(UsageError, match=r"calibration\.sha256 says"):
        cited(folder, expected="0" * 64)
    with pytest.raises(UsageError, match="cannot be read"):
        cited(folder, path="nowhere.json")
    (folder / "report.json").write_bytes(sample_report().canonical())
    with pytest.raises(UsageError, match="not a muaudit calibration record"):
        cited(folder, path="report.json")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policy_sha256": "9" * 64}, "is another file than this audit's"),
        ({"policy": "house", "policy_sha256": "9" * 64}, "says nothing of the policy 'house'"),
        ({"policy": "strict", "policy_sha256": "1" * 64}, "could not satisfy the policy 'strict'"),
        ({"own": PolicyConfig(margins={"relearning": 0.1})}, "margins of its own"),
        ({"own": PolicyConfig(shallow_passes=True)}, "may pass by informational attacks alone"),
        ({"references": 4}, "its audits had 2 references, and this one has 4"),
        ({"attacks": ATTACKS[:1]}, "it ran relearning besides"),
        ({"attacks": [*ATTACKS, SimpleNamespace(name="sleek", parameters={})]}, "it did not measure sleek"),
        ({"attacks": [ATTACKS[0], SimpleNamespace(name="relearning", parameters={"folds": 3})]}, "with other parameters"),
    ],
)
def test_what_differs_is_said(folder: Path, changes: dict[str, object], told: str) -> None:
    found = cited(folder, **changes)
    assert any(told in one for one in found.differs)
    if "policy_sha256" in changes:
        assert found.false_alarm is None


def test_another_version_is_said(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_bytes(small_record(tool="muaudit 0.0.1").canonical())
    assert "it was made with muaudit 0.0.1" in cited(tmp_path).differs[0]


def test_every_report_prints_rates_digest_and_differences(folder: Path) -> None:
    citation = cited(folder, references=4)
    report = sample_report().model_copy(update={"calibration": citation})
    console = Console(record=True, width=400, force_terminal=False)
    terminal.table(report, console)
    page, text, shown = html.render(report), markdown.render(report), console.export_text()
    for told in (page, text.replace("`", ""), shown):
        assert "honest models failed 0 of 8" in told
        assert "models that know failed 4 of 5" in told
        assert "its audits had 2 references, and this one has 4" in told.replace("Its audits", "its audits")
    assert citation.sha256 in page
    assert citation.sha256 in text
    assert "How often such an audit errs" not in html.render(sample_report())


def test_a_plan_freezes_the_citation_and_refuses_what_does_not_fit(small: dict[str, Path], tmp_path: Path) -> None:
    record = small_record(bed="small")
    (tmp_path / "calibration.json").write_bytes(record.canonical())
    paths = "\n".join(f'{name} = "{small[name]}"' for name in ("forget", "retain", "holdout"))
    models = "\n".join(
        f'[{table}]\nkind = "causal_lm"\npath = "{small[name]}"'
        for table, name in (("target", "retrain"), ("[references]", "reference-1"), ("[references]", "reference-2"))
    )
    sections = '[attacks.memorization]\n[attacks.relearning]\n[calibration]\npath = "calibration.json"\n'
    audit = tmp_path / "audit.toml"
    audit.write_text(f'[task]\nkind = "facts"\n{paths}\n{models}\n{sections}', encoding="utf-8")
    planned = CliRunner().invoke(main, ["plan", str(audit), "--json"])
    assert planned.exit_code == 0, planned.output
    frozen = json.loads(planned.stdout)["plan"]
    assert frozen["calibration"]["sha256"] == hashlib.sha256(record.canonical()).hexdigest()
    assert "with other parameters" in frozen["calibration"]["differs"][0]
    (tmp_path / "calibration.json").write_bytes(small_record(family="text_to_image").canonical())
    refused = CliRunner().invoke(main, ["plan", str(audit)])
    assert refused.exit_code == 2
    assert "text_to_image" in refused.output
