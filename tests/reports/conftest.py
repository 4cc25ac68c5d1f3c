"""Keys, a model on disk and its signed report."""

from pathlib import Path

import pytest
from sample import ISSUED, Audit, small_report

from muaudit.manifest import manifest, manifest_digest
from muaudit.reports.attestation import sign
from muaudit.reports.keys import keygen, load_public
from muaudit.results import ModelRecord


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """A signed audit of a model of four files."""
    model = tmp_path / "model"
    (model / "tokenizer").mkdir(parents=True)
    (model / "config.json").write_bytes(b'{"layers": 2}')
    (model / "model.safetensors").write_bytes(bytes(range(256)))
    (model / "tokenizer" / "vocab.json").write_bytes(b'["a", "b"]')
    (model / ".gitattributes").write_bytes(b"* -text")
    files = manifest(model)
    target = ModelRecord(role="target", kind="causal_lm", path="model", digest=manifest_digest(files), files=files)
    report = small_report(models=(target,))
    private, public, _ = keygen(tmp_path / "auditor", "Lab X")
    envelope = sign(report, report.canonical(), private, issued_at=ISSUED)
    (tmp_path / "report.json").write_bytes(report.canonical())
    (tmp_path / "audit.intoto.json").write_bytes(envelope)
    return Audit(tmp_path, model, report, envelope, private, load_public(public))
