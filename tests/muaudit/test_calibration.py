"""An attack that calibrates gets a reference of its own, which is left out; one that reads the original is still blind."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("muaudit.models.causal_lm")

from muaudit import runner
from muaudit.config import AuditConfig
from muaudit.reports.html import render
from muaudit.results import AuditReport, Verdict


def audited(folder: dict[str, Path], out: Path, references: list[str], **changes: Any) -> AuditReport:
    def model(name: str) -> dict[str, str]:
        return {"kind": "causal_lm", "path": str(folder[name])}

    settings = {
        "task": {"kind": "facts", "forget": str(folder["forget"]), "retain": str(folder["retain"])},
        "target": model("retrain"),
        "original": model("original"),
        "references": [model(name) for name in references],
        "attacks": {"activation_patching": {}},
        "policy": {"partial": True},
        "run": {"seed": "2026", "out": str(out)},
    }
    return runner.audit(AuditConfig.model_validate(settings | changes))


def test_the_last_reference_is_set_aside(lineage: dict[str, Path], tmp_path: Path) -> None:
    references = ["reference-1", "reference-2", "reference-3"]
    report = audited(lineage, tmp_path, references)
    (finding,) = report.findings
    assert finding.verdict is not Verdict.ERROR, finding.reason
    assert "reference 3 calibrates this attack and is not compared" in finding.notes
    assert report.run.computed == 4  # target, two references, original
    assert [one.model for one in finding.heat_maps] == ["target", "references"]
    assert finding.heat_maps[0].total == finding.units
    assert "Heat map, knowledge left, target" in render(report)
    again = audited(lineage, tmp_path, references)
    assert (again.run.computed, again.findings) == (0, report.findings)
    # The same models are measured anew where they are read in another original, and one that knows nothing proves nothing.
    other = audited(lineage, tmp_path, references, original={"kind": "causal_lm", "path": str(lineage["reference-1"])})
    assert other.run.computed == 3  # the original and reference 1 are one model now
    assert other.findings[0].verdict in (Verdict.INCONCLUSIVE, Verdict.SKIPPED)


def test_one_reference_is_too_few(lineage: dict[str, Path], tmp_path: Path) -> None:
    (finding,) = audited(lineage, tmp_path, ["reference-1"]).findings
    assert finding.verdict is Verdict.SKIPPED
    assert "at least two references" in finding.reason
