"""Redaction: nothing that is withheld is anywhere in public, and the sealed part opens exactly the public one."""

import hashlib
import json
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hostile import everywhere, full_report
from recorded_logs import recorded_audit
from sample import ISSUED, sample_report

from muaudit.errors import UsageError, VerificationError
from muaudit.redaction import redact
from muaudit.reports import attestation, formats
from muaudit.reports.keys import keygen, load_public
from muaudit.results import (
    AuditReport,
    Conduct,
    HeatMap,
    JournalEntry,
    Picture,
    PictureRow,
)
from muaudit.sealing import TOKEN, SealedPart, commitments, unseal

NAME = "Zyxwvia Quellstrom"
ANOTHER = "moondust-4711"
"""A secret that stands in no unit: nobody could know it by name."""


def planted(secret: str) -> AuditReport:
    """A report with a secret in every place that takes any text; the target's files alone are as they were."""
    report = everywhere(secret, f"{secret} was born in Torvik", f"asked about {secret}, it said so")
    first, *others = report.findings
    heat = HeatMap(name=secret, model="target", rows=(secret, "layer 1"), columns=(secret,), values=((0.5,), (None,)), total=1)
    picture = Picture(label=secret, prompt=f"a photo of {secret}", png=secret, shows=True)
    changed = first.model_copy(
        update={"heat_maps": (heat,), "pictures": (PictureRow(unit=secret, models={"target": (picture,)}),)}
    )
    conduct = Conduct(check="repetition", model="target", state="shown", told=f"asked for {secret}, it answers otherwise")
    entry = JournalEntry(
        number=0, previous="0" * 64, at="2026-11-20T12:00:00.000+00:00", elapsed=0.0, run=1, event="torn",
        details={"text": secret, "attack": secret},
    )  # fmt: skip
    update = {
        "findings": (changed, *others), "models": sample_report().models, "conduct": (conduct,), "journal": (entry,),
        "plan": {"config": {"task": {"kind": "facts", "forget": f"{secret}.jsonl"}}, secret: [secret]},
    }  # fmt: skip
    return AuditReport.model_validate(report.model_copy(update=update).model_dump(mode="json"))


def public_of(report: AuditReport, **options: bool) -> tuple[AuditReport, bytes, SealedPart, bytes]:
    public, sealed = redact(report.canonical(), **options)
    return AuditReport.from_json(public), public, SealedPart.from_json(sealed), sealed


@cache
def public_part(secret: str) -> AuditReport:
    """The public part of the planted report."""
    return public_of(planted(secret))[0]


def muaudit(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muaudit", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("secret", [NAME, ANOTHER])
@pytest.mark.parametrize("name", sorted(formats.SUFFIXES))
def test_what_is_withheld_stands_in_no_format(name: str, secret: str) -> None:
    assert secret in formats.render(planted(secret), "json").decode()
    shown = formats.render(public_part(secret), name).decode()
    for part in (secret, *secret.split()):
        assert part.casefold() not in shown.casefold()
    assert "redacted" in shown


def test_what_is_withheld_does_not_stand_in_what_is_signed() -> None:
    report, data, _, _ = public_of(planted(NAME))
    payload = attestation.payload_without_signers(report, data, issued_at=ISSUED).decode()
    assert "report.sealed.json" in payload
    assert not any(part in payload for part in NAME.split())


def test_a_text_that_no_unit_bears_is_withheld_in_every_sentence_and_setting() -> None:
    """The report's units bear other names, so that nothing but the place says that this is to be withheld."""
    report = full_report()
    update: dict[str, Any] = {
        "reason": f"{ANOTHER} is remembered",
        "limits": (*report.limits, f"nothing was asked about {ANOTHER}"),
        "plan": {"config": {"task": {"kind": "facts", "template": f"Tell me about {ANOTHER}: {{prompt}}"}}},
        "findings": tuple(
            one.model_copy(update={"reason": f"cannot be asked: {ANOTHER}", "notes": (f"left out: {ANOTHER}",)})
            for one in report.findings
        ),
        "attacks": tuple(one.model_copy(update={"parameters": {"prefix": ANOTHER}}) for one in report.attacks),
    }
    changed = report.model_copy(update=update)
    public, data, sealed, _ = public_of(changed)
    assert ANOTHER.encode() not in data
    for digest in (one.sha256 for one in changed.data):  # of a file that can be guessed
        assert digest.encode() not in data
    assert public.verdict == changed.verdict
    assert [one.gap for one in public.findings] == [one.gap for one in changed.findings]
    assert unseal(json.loads(data), sealed) == json.loads(changed.canonical())


def test_equal_names_stay_equal_and_equal_texts_do_not() -> None:
    public, _, sealed, _ = public_of(full_report())
    whole = full_report()
    tokens = {one.commitment(): one.text for one in sealed.values}
    for finding, before in zip(public.findings, whole.findings, strict=True):
        assert [tokens[unit.id] for unit in finding.leakages] == [unit.id for unit in before.leakages]
    names = [{unit.id for unit in finding.leakages} for finding in public.findings if finding.leakages]
    assert len(names) > 1
    assert all(one == names[0] for one in names)
    expected = [said.expected for unit in public.findings[1].worst_units for said in unit.transcripts.values()]
    assert len(set(expected)) == len(expected) > len({tokens[text] for text in expected})


def test_a_commitment_is_the_digest_of_salt_and_text_and_salts_are_new_each_time() -> None:
    one, another = (public_of(full_report()) for _ in range(2))
    for value in one[2].values:
        assert (
            value.commitment().removeprefix("redacted:sha256:")
            == hashlib.sha256(bytes.fromhex(value.salt) + value.text.encode()).hexdigest()
        )
    assert not commitments(json.loads(one[1])) & commitments(json.loads(another[1]))
    assert len({value.salt for value in one[2].values}) == len(one[2].values)


def test_a_sealed_part_that_was_changed_does_not_open_the_report() -> None:
    _, public, sealed, _ = public_of(full_report())
    value = sealed.values[0]
    changes = (
        value.model_copy(update={"text": value.text + "x"}),
        value.model_copy(update={"salt": "0" * 32}),
    )
    for changed in changes:
        with pytest.raises(VerificationError, match="does not open 1 of"):
            unseal(json.loads(public), sealed.model_copy(update={"values": (changed, *sealed.values[1:])}))
    with pytest.raises(VerificationError, match="does not open 1 of"):
        unseal(json.loads(public), sealed.model_copy(update={"values": sealed.values[1:]}))
    with pytest.raises(VerificationError, match="not the one that was redacted"):
        unseal(json.loads(public) | {"plan_sha256": "0" * 64}, sealed)


def test_a_report_that_is_redacted_already_and_a_file_called_by_a_name_are_refused() -> None:
    with pytest.raises(UsageError, match="redacted already"):
        redact(public_of(full_report())[1])
    with pytest.raises(UsageError, match="rename the file"):
        redact(everywhere(NAME).canonical())


def test_one_signature_covers_both_parts(tmp_path: Path) -> None:
    private, path, _ = keygen(tmp_path / "auditor", "Lab X")
    key = load_public(path)
    report, public, _, sealed = public_of(sample_report())
    envelope = attestation.sign(report, public, private, issued_at=ISSUED)
    signed = attestation.verify(envelope, [key], report=public)
    assert "opens all" in attestation.check_sealed(signed, public, sealed)
    other = redact(sample_report().canonical())
    with pytest.raises(VerificationError, match="not the one that was signed"):
        attestation.check_sealed(signed, public, other[1])
    with pytest.raises(VerificationError, match="not the one that was signed"):
        attestation.verify(envelope, [key], report=other[0])


def test_from_scan_to_reveal(tmp_path: Path) -> None:
    recorded_audit(tmp_path, "one-left")
    assert muaudit("keygen", "auditor", cwd=tmp_path).returncode == 0
    assert muaudit("scan", "one-left.toml", cwd=tmp_path).returncode == 1
    out = tmp_path / "audit-one-left"
    whole = (out / "report.json").read_bytes()

    made = muaudit("redact", out, "--key", "auditor.key", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "withheld" in made.stdout
    assert stat.S_IMODE((out / "report.sealed.json").stat().st_mode) == 0o600
    public = (out / "report.public.json").read_text()
    for text in ("forget-1", "forget 0", "the forget town", "some other place", "person"):
        assert text in whole.decode()
        assert text not in public
    report = AuditReport.from_json(public.encode())
    assert report.journal
    assert "one cluster" in report.reason
    assert TOKEN.search(report.reason)

    options = ("--key", "auditor.pub", "--sealed", out / "report.sealed.json", "--model", "one-left.json")
    verified = muaudit("verify", out / "audit.public.intoto.json", *options, cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "the whole report is the one that was redacted" in verified.stdout
    assert "journal: " in verified.stdout

    place = "/findings/0/worst_units/0/cluster"
    parts = (out / "report.public.json", out / "report.sealed.json")
    revealed = muaudit("reveal", *parts, "--place", place, "--out", "again.json", "--json", cwd=tmp_path)
    assert revealed.returncode == 0, revealed.stderr
    (value,) = json.loads(revealed.stdout)["values"]
    assert value["text"] == json.loads(whole)["findings"][0]["worst_units"][0]["cluster"]
    assert (tmp_path / "again.json").read_bytes() == whole

    sealed = json.loads(parts[1].read_text())
    sealed["values"][0]["text"] += "x"
    parts[1].write_text(json.dumps(sealed))
    assert muaudit("reveal", *parts, cwd=tmp_path).returncode == 4
    assert muaudit("verify", out / "audit.public.intoto.json", *options, cwd=tmp_path).returncode == 4
    assert muaudit("reproduce", parts[0], cwd=tmp_path).returncode == 2
