"""What was signed verifies; nothing else does, and the refusal says what differs."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import local_tsa
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sample import ISSUED, Audit, sample_report

from muaudit.errors import UsageError, VerificationError
from muaudit.reports import envelope as envelopes
from muaudit.reports import timestamps
from muaudit.reports.attestation import seal, sign, verify
from muaudit.reports.envelope import PAYLOAD_TYPE
from muaudit.reports.keys import PublicKey, fingerprint_of, keygen, load_private, load_public, write_public
from muaudit.reports.statement import PREDICATE_TYPE
from muaudit.results import Verdict

ROOT = Path(__file__).parents[2]


def parts(envelope: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The envelope and its statement as plain data."""
    fields = json.loads(envelope)
    return fields, json.loads(base64.b64decode(fields["payload"]))


def signed(statement: Any, private: Path, payload_type: str = PAYLOAD_TYPE, payload: bytes | None = None) -> bytes:
    """Any statement, signed and wrapped without muaudit, as someone with the key could."""
    payload = rfc8785.dumps(statement) if payload is None else payload
    key = load_private(private)
    pae = b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)
    entry = {"keyid": fingerprint_of(key.public_key()), "sig": base64.b64encode(key.sign(pae)).decode()}
    return rfc8785.dumps({"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": [entry]})


def test_what_was_signed_verifies(audit: Audit) -> None:
    verified = verify(audit.envelope, [audit.public], report=audit.report.canonical(), model=audit.model)
    assert (verified.verdict, verified.issued_at, verified.signers) == (Verdict.PASS, ISSUED, (audit.public,))
    assert verified.target_digest == audit.report.target.digest
    assert verified.plan_sha256 == audit.report.plan_sha256
    assert verified.report_sha256 == hashlib.sha256(audit.report.canonical()).hexdigest()
    assert verified.checked[-2:] == ("report.json", f"model: all 4 files of {audit.model}")
    assert verified.unchecked == ()


def test_what_was_not_checked_is_said(audit: Audit) -> None:
    verified = verify(audit.envelope, [audit.public])
    assert [line.split(":")[0] for line in verified.unchecked] == ["report.json", "model"]


def test_a_report_that_failed_verifies(audit: Audit) -> None:
    report = sample_report()
    envelope = sign(report, report.canonical(), audit.private, issued_at=ISSUED)
    assert verify(envelope, [audit.public], report=report.canonical()).verdict is Verdict.FAIL


def test_signing_twice_gives_the_same_bytes(audit: Audit) -> None:
    assert sign(audit.report, audit.report.canonical(), audit.private, issued_at=ISSUED) == audit.envelope


def test_the_statement_is_about_the_target_alone(audit: Audit) -> None:
    report = sample_report()
    _, statement = parts(sign(report, report.canonical(), audit.private, issued_at=ISSUED))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == PREDICATE_TYPE
    assert statement["subject"] == [{"name": "target", "digest": {"sha256": report.target.digest}}]
    predicate = statement["predicate"]
    manifest = [{"name": file.name, "algorithm": "sha256", "digest": file.sha256} for file in report.target.files]
    assert predicate["manifest"] == manifest
    assert hashlib.sha256(rfc8785.dumps(manifest)).hexdigest() == report.target.digest
    assert [reference["annotations"]["role"] for reference in predicate["references"]] == [f"reference {n}" for n in (1, 2, 3)]
    assert predicate["original"]["name"] == "models/original"
    assert [data["annotations"]["role"] for data in predicate["data"]] == ["forget", "retain", "holdout"]
    assert predicate["issuedAt"] == "2026-11-20T12:00:00Z"
    assert predicate["findings"][1]["upperBound"] == pytest.approx(0.503)
    assert "Brawick" not in json.dumps(statement), "an envelope travels further than the report and must name nobody"


def test_every_flipped_bit_is_refused(audit: Audit) -> None:
    accepted = []
    for place in range(len(audit.envelope) * 8):
        mutant = bytearray(audit.envelope)
        mutant[place // 8] ^= 1 << place % 8
        try:
            verify(bytes(mutant), [audit.public])
        except VerificationError:
            continue
        accepted.append(place)
    assert accepted == []


def test_deleted_doubled_and_swapped_bytes_are_refused(audit: Audit) -> None:
    data = audit.envelope
    for place in range(len(data)):
        mutants = [data[:place] + data[place + 1 :], data[:place] + b" " + data[place:], data[:place]]
        if data[place : place + 1] != data[place + 1 : place + 2]:
            mutants.append(data[:place] + data[place + 1 : place + 2] + data[place : place + 1] + data[place + 2 :])
        for mutant in mutants:
            if mutant != data:
                with pytest.raises(VerificationError):
                    verify(mutant, [audit.public])


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"null", b"[]", b"{}", b'"x"', b"[" * 100_000, b"9" * 5000, b'{"payload":NaN}', b"\xef\xbb\xbf{}"],
    ids=["empty", "not text", "null", "list", "object", "string", "deep", "big number", "NaN", "byte order mark"],
)
def test_what_is_no_envelope_is_refused(audit: Audit, data: bytes) -> None:
    with pytest.raises(VerificationError):
        verify(data, [audit.public])


def test_too_large_is_refused_before_it_is_parsed(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "canonical", lambda *_: pytest.fail("parsed"))
    with pytest.raises(VerificationError, match="more than any that muaudit writes"):
        verify(b" " * (envelopes.SIZE_LIMIT + 1), [audit.public])


def test_another_spelling_is_refused(audit: Audit) -> None:
    fields, _ = parts(audit.envelope)
    doubled = audit.envelope.replace(b'{"payload":', b'{"payload":"","payload":', 1)
    for other in (json.dumps(fields, indent=1).encode(), audit.envelope + b"\n", doubled):
        with pytest.raises(VerificationError, match="not byte for byte"):
            verify(other, [audit.public])


def _slack(fields: dict[str, Any]) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = fields["signatures"][0]["sig"]  # 64 bytes: the last character before == has four spare bits
    fields["signatures"][0]["sig"] = text[:-3] + alphabet[alphabet.index(text[-3]) ^ 1] + "=="


def _url_safe(fields: dict[str, Any]) -> None:
    fields["signatures"][0]["sig"] = "-" + fields["signatures"][0]["sig"][1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(extra=1), "exactly payload, payloadType and signatures"),
        (lambda fields: fields.pop("payloadType"), "exactly payload, payloadType and signatures"),
        (lambda fields: fields.update(payloadType="text/plain"), "not an in-toto Statement"),
        (lambda fields: fields.update(payload=7), "payload is not base64"),
        (lambda fields: fields.update(signatures=[]), "carries no signature"),
        (lambda fields: fields.update(signatures={}), "carries no signature"),
        (lambda fields: fields["signatures"][0].update(cert="x"), "exactly keyid"),
        (lambda fields: fields["signatures"][0].pop("keyid"), "exactly keyid"),
        (lambda fields: fields["signatures"][0].update(keyid=7), "exactly keyid"),
        (lambda fields: fields["signatures"][0].update(keyid="../../auditor"), "exactly keyid"),
        (lambda fields: fields["signatures"][0].update(keyid="f" * 63 + "\0"), "exactly keyid"),
        (lambda fields: fields["signatures"].append(dict(fields["signatures"][0])), "out of order or double"),
        (lambda fields: fields["signatures"].append({"keyid": "ff" * 32, "sig": "AAAA"}), "not signed by Lab X"),
        (_slack, "spare bits of base64"),
        (_url_safe, "signature is not base64"),
    ],
)
def test_a_changed_field_is_refused(audit: Audit, change: Callable[[dict[str, Any]], object], message: str) -> None:
    fields, _ = parts(audit.envelope)
    change(fields)
    with pytest.raises(VerificationError, match=message):
        verify(rfc8785.dumps(fields), [audit.public])


def test_another_key_is_refused_even_under_the_signers_fingerprint(audit: Audit) -> None:
    _, path, _ = keygen(audit.folder / "other", "Lab Y")
    other = load_public(path)
    with pytest.raises(VerificationError, match=r"not signed by Lab Y.*signed it"):
        verify(audit.envelope, [other])
    with pytest.raises(VerificationError, match="not signed by"):
        verify(audit.envelope, [PublicKey("Lab X", audit.public.fingerprint, other.key)])
    with pytest.raises(UsageError, match="no public key"):
        verify(audit.envelope, [])


class TestTwoSigners:
    """Several signatures must all be there, in order, trusted and valid."""

    @pytest.fixture
    def two(self, audit: Audit) -> tuple[bytes, list[PublicKey]]:
        private, path, _ = keygen(audit.folder / "operator", "Operator")
        keys = [load_private(audit.private), load_private(private)]
        return seal(audit.report, audit.report.canonical(), keys, issued_at=ISSUED), [audit.public, load_public(path)]

    def test_both_verify(self, two: tuple[bytes, list[PublicKey]]) -> None:
        envelope, keys = two
        assert {key.name for key in verify(envelope, keys).signers} == {"Lab X", "Operator"}

    def test_one_key_does_not_do_for_two(self, two: tuple[bytes, list[PublicKey]]) -> None:
        envelope, (first, _) = two
        with pytest.raises(VerificationError, match="not signed by Lab X"):
            verify(envelope, [first, PublicKey("Operator", "00" * 32, first.key)])

    @pytest.mark.parametrize("keep", [0, 1])
    def test_a_signature_that_was_taken_away_is_missed(self, two: tuple[bytes, list[PublicKey]], keep: int) -> None:
        fields, _ = parts(two[0])
        fields["signatures"] = [fields["signatures"][keep]]
        with pytest.raises(VerificationError, match="names 2 signers and carries the signatures of 1"):
            verify(rfc8785.dumps(fields), two[1])

    def test_reversed_signatures_are_refused(self, two: tuple[bytes, list[PublicKey]]) -> None:
        fields, _ = parts(two[0])
        fields["signatures"].reverse()
        with pytest.raises(VerificationError, match="out of order"):
            verify(rfc8785.dumps(fields), two[1])

    def test_a_junk_signature_beside_a_valid_one_is_refused(self, two: tuple[bytes, list[PublicKey]]) -> None:
        fields, _ = parts(two[0])
        fields["signatures"][1]["sig"] = fields["signatures"][0]["sig"]
        with pytest.raises(VerificationError, match="does not fit"):
            verify(rfc8785.dumps(fields), two[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
        (lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType"),
        (lambda statement: statement["subject"].append(statement["subject"][0]), "subject"),
        (lambda statement: statement["subject"].clear(), "subject"),
        (lambda statement: statement["subject"][0].update(name="reference 1"), "about one target"),
        (lambda statement: statement["subject"][0]["digest"].update(sha256="zz"), "subject"),
        (lambda statement: statement["subject"][0]["digest"].update(sha256="00" * 32), "list of the target's files"),
        (lambda statement: statement["predicate"]["manifest"].pop(), "list of the target's files"),
        (lambda statement: statement["predicate"]["manifest"][0].update(name="x"), "list of the target's files"),
        (lambda statement: statement["predicate"].update(verdict="fine"), "verdict"),
        (lambda statement: statement["predicate"].update(issuedAt="yesterday"), "issuedAt"),
        (lambda statement: statement["predicate"].update(issuedAt="2026-11-20T12:00:00"), "UTC"),
        (lambda statement: statement["predicate"].update(signers=[], roles={}), "names 0 signers"),
        (lambda statement: statement.pop("predicate"), "predicate"),
    ],
)
def test_a_signed_statement_of_another_shape_is_refused(
    audit: Audit, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _, statement = parts(audit.envelope)
    change(statement)
    with pytest.raises(VerificationError, match=message):
        verify(signed(statement, audit.private), [audit.public])


def test_a_signed_payload_that_is_not_canonical_is_refused(audit: Audit) -> None:
    _, statement = parts(audit.envelope)
    for payload in (json.dumps(statement).encode(), b"hello", b""):
        with pytest.raises(VerificationError, match="the signed statement is not"):
            verify(signed(None, audit.private, payload=payload), [audit.public])


def test_a_field_that_a_later_muaudit_adds_is_ignored(audit: Audit) -> None:
    _, statement = parts(audit.envelope)
    statement["predicate"]["laterField"] = {"x": 1}
    assert verify(signed(statement, audit.private), [audit.public]).verdict is Verdict.PASS


class TestReport:
    """The report beside the envelope is the one that was signed."""

    def test_every_flipped_byte_is_refused(self, audit: Audit) -> None:
        data = audit.report.canonical()
        for place in range(0, len(data), 7):
            mutant = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(VerificationError, match=r"report\.json is not the one that was signed"):
                verify(audit.envelope, [audit.public], report=mutant)

    def test_a_statement_that_contradicts_its_report_is_refused(self, audit: Audit) -> None:
        _, statement = parts(audit.envelope)
        statement["predicate"]["verdict"] = "fail"
        with pytest.raises(VerificationError, match="disagree"):
            verify(signed(statement, audit.private), [audit.public], report=audit.report.canonical())

    def test_a_signed_file_that_is_no_report_is_refused(self, audit: Audit) -> None:
        _, statement = parts(audit.envelope)
        statement["predicate"]["report"]["digest"]["sha256"] = hashlib.sha256(b"{}").hexdigest()
        with pytest.raises(VerificationError, match="cannot be read"):
            verify(signed(statement, audit.private), [audit.public], report=b"{}")

    def test_an_indented_report_can_be_signed_too(self, audit: Audit) -> None:
        data = audit.report.model_dump_json(indent=2).encode()
        envelope = sign(audit.report, data, audit.private, issued_at=ISSUED)
        assert "report.json" in verify(envelope, [audit.public], report=data).checked


class TestModel:
    """The model is, file by file, the one that was audited."""

    NAMES = (".gitattributes", "config.json", "model.safetensors", "tokenizer/vocab.json")

    def refusal(self, audit: Audit) -> str:
        with pytest.raises(VerificationError, match="the model is not the one that was signed") as caught:
            verify(audit.envelope, [audit.public], model=audit.model)
        return str(caught.value)

    @pytest.mark.parametrize("name", NAMES)
    def test_every_flipped_byte_of_every_file(self, audit: Audit, name: str) -> None:
        path = audit.model / name
        data = path.read_bytes()
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert f"file {name!r} changed" in self.refusal(audit)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_renamed_file(self, audit: Audit, name: str) -> None:
        (audit.model / name).rename(audit.model / "other.bin")
        assert f"file {name!r} renamed to 'other.bin'" in self.refusal(audit)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_missing_file(self, audit: Audit, name: str) -> None:
        (audit.model / name).unlink()
        assert f"missing file {name!r}" in self.refusal(audit)

    @pytest.mark.parametrize("name", ["modeling_evil.py", ".hidden", "tokenizer/merges.txt"])
    def test_an_extra_file(self, audit: Audit, name: str) -> None:
        (audit.model / name).write_bytes(b"")
        assert f"extra file {name!r}" in self.refusal(audit)

    def test_two_files_swapped(self, audit: Audit) -> None:
        first, second = audit.model / "config.json", audit.model / "tokenizer/vocab.json"
        first_data, second_data = first.read_bytes(), second.read_bytes()
        first.write_bytes(second_data)
        second.write_bytes(first_data)
        assert "file 'config.json' changed; file 'tokenizer/vocab.json' changed" in self.refusal(audit)

    def test_a_changed_and_an_extra_file_are_both_named(self, audit: Audit) -> None:
        (audit.model / "config.json").write_bytes(b"{}")
        (audit.model / "extra.py").write_bytes(b"x")
        assert "file 'config.json' changed; extra file 'extra.py'" in self.refusal(audit)

    def test_a_link_in_place_of_a_file(self, audit: Audit) -> None:
        (audit.model / "config.json").rename(audit.folder / "elsewhere.json")
        (audit.model / "config.json").symlink_to(audit.folder / "elsewhere.json")
        assert "symbolic link" in self.refusal(audit)

    def test_many_differences_are_counted(self, audit: Audit) -> None:
        for number in range(9):
            (audit.model / f"extra-{number}").write_bytes(b"x")
        assert "and 4 more" in self.refusal(audit)

    def test_no_model_is_a_usage_error(self, audit: Audit) -> None:
        with pytest.raises(UsageError, match="there is no such model"):
            verify(audit.envelope, [audit.public], model=audit.folder / "nowhere")


class TestSign:
    """What should not be signed is not."""

    def test_refuses_a_time_without_a_zone(self, audit: Audit) -> None:
        with pytest.raises(UsageError, match="no time zone"):
            sign(audit.report, audit.report.canonical(), audit.private, issued_at=datetime(2026, 11, 20))  # noqa: DTZ001

    def test_refuses_bytes_of_another_report(self, audit: Audit) -> None:
        other = audit.report.model_copy(update={"reason": "other"})
        with pytest.raises(UsageError, match="not the report that is to be signed"):
            sign(audit.report, other.canonical(), audit.private, issued_at=ISSUED)

    def test_refuses_a_target_whose_digest_is_not_its_files(self, audit: Audit) -> None:
        target = audit.report.target.model_copy(update={"digest": "00" * 32})
        report = audit.report.model_copy(update={"models": (target,)})
        with pytest.raises(UsageError, match="not that of the files"):
            sign(report, report.canonical(), audit.private, issued_at=ISSUED)

    def test_refuses_a_key_that_others_can_read(self, audit: Audit) -> None:
        audit.private.chmod(0o644)
        with pytest.raises(UsageError, match="chmod 600"):
            sign(audit.report, audit.report.canonical(), audit.private, issued_at=ISSUED)


def _recipe(number: int) -> str:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "verify-without-muaudit.md").read_text(), re.DOTALL)
    return str(blocks[number])


class TestWithoutMuaudit:
    """The recipe in docs/verify-without-muaudit.md, as it stands there."""

    def run(self, audit: Audit, number: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", _recipe(number)],
            cwd=audit.folder,
            env={"MODEL": str(audit.model), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_fingerprint(self, audit: Audit) -> None:
        assert self.run(audit, 0).stdout.split()[0] == audit.public.fingerprint

    def test_openssl_verifies_what_we_signed(self, audit: Audit) -> None:
        done = self.run(audit, 1)
        assert "Signature Verified Successfully" in done.stdout, done.stderr
        statement = (audit.folder / "statement.json").read_bytes()
        assert json.loads(statement)["predicateType"] == PREDICATE_TYPE

    def test_openssl_refuses_another_statement(self, audit: Audit) -> None:
        _, statement = parts(audit.envelope)
        forged = json.loads(audit.envelope)
        statement["predicate"]["verdict"] = "fail"
        forged["payload"] = base64.b64encode(rfc8785.dumps(statement)).decode()
        (audit.folder / "audit.intoto.json").write_bytes(rfc8785.dumps(forged))
        assert self.run(audit, 1).returncode != 0

    def test_digests_of_report_model_and_manifest(self, audit: Audit) -> None:
        self.run(audit, 1)
        expected, present = self.run(audit, 3).stdout.split()
        assert expected == present
        lines = self.run(audit, 4).stdout.split("\n")
        assert lines[:6] == [*(f"{name}: OK" for name in TestModel.NAMES), "4", "4"]
        listed, subject = self.run(audit, 5).stdout.split()
        assert listed == subject == audit.report.target.digest

    def test_a_changed_file_is_called_failed(self, audit: Audit) -> None:
        self.run(audit, 1)
        (audit.model / "config.json").write_bytes(b"{}")
        assert "config.json: FAILED" in self.run(audit, 4).stdout

    def test_an_ecdsa_key(self, audit: Audit) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        (audit.folder / "auditor.pub").unlink()
        write_public(key.public_key(), audit.folder / "auditor", "Lab X")
        envelope = seal(audit.report, audit.report.canonical(), [key], issued_at=ISSUED)
        (audit.folder / "audit.intoto.json").write_bytes(envelope)
        self.run(audit, 1)
        assert self.run(audit, 2).stdout == "Verified OK\n"

    def test_the_second_of_two_signatures(self, audit: Audit) -> None:
        private, public, _ = keygen(audit.folder / "operator", "Operator")
        keys = [load_private(audit.private), load_private(private)]
        envelope = seal(audit.report, audit.report.canonical(), keys, issued_at=ISSUED)
        (audit.folder / "audit.intoto.json").write_bytes(envelope)
        signers = {audit.public.fingerprint: audit.folder / "auditor.pub", load_public(public).fingerprint: public}
        for number, field in enumerate(("18", "26")):
            recipe = _recipe(1).replace("-f18", f"-f{field}").replace("auditor.pub", str(signers[sorted(signers)[number]]))
            done = subprocess.run(["bash", "-c", recipe], cwd=audit.folder, capture_output=True, text=True, check=False)
            assert "Signature Verified Successfully" in done.stdout, done.stderr

    def test_a_time_stamp(self, audit: Audit, tmp_path: Path) -> None:
        pytest.importorskip("rfc3161_client", reason="needs the extra `tsa`")
        tsa = local_tsa.make(tmp_path / "tsa")
        (audit.folder / "tsa-root.pem").write_bytes(tsa.root.read_bytes())
        ((fingerprint, signature),) = envelopes.unpack(audit.envelope).signatures.items()
        path = timestamps.beside(audit.folder / "audit.intoto.json", fingerprint)
        path.write_bytes(tsa.reply(timestamps.query(signature)))
        self.run(audit, 1)
        done = self.run(audit, 6)
        assert "Verification: OK" in done.stdout + done.stderr
        assert re.search(r"Time stamp: \w{3} .* GMT", done.stdout)


def test_the_key_is_never_in_what_is_written(audit: Audit) -> None:
    key = load_private(audit.private)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.private_bytes_raw() not in base64.b64decode(json.loads(audit.envelope)["payload"])


def test_import_is_cheap() -> None:
    """`muaudit verify` starts at once: nothing that draws or computes is imported."""
    code = "import sys, muaudit.reports.attestation; print([m for m in ('numpy', 'matplotlib', 'jinja2', 'torch', 'rich', "
    code += "'securesystemslib', 'cryptography') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
