"""Signatures by an identity: with a Sigstore on this machine, whose every signature is real; the public one is not asked."""

import base64
import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import local_sigstore
import pytest
from click.testing import CliRunner, Result
from local_sigstore import ISSUER, Sigstore
from sample import Audit

from muaudit.cli import main
from muaudit.errors import EnvironmentFault, UsageError, VerificationError
from muaudit.reports import sigstore_bundles, trust_policy
from muaudit.reports.attestation import payload_without_signers, seal
from muaudit.reports.envelope import unpack
from muaudit.reports.keys import load_private

pytest.importorskip("sigstore", reason="needs the extra `sigstore`")

IDENTITY = "auditor@lab.example"


@pytest.fixture(scope="module")
def sigstore() -> Iterator[Sigstore]:
    with local_sigstore.served(Sigstore()) as running:
        yield running


@pytest.fixture
def trust(sigstore: Sigstore, tmp_path: Path) -> Path:
    path = tmp_path / "sigstore.json"
    path.write_text(json.dumps(sigstore.configuration()))
    return path


def payload(audit: Audit, issued_at: datetime | None = None) -> bytes:
    return payload_without_signers(audit.report, audit.report.canonical(), issued_at=issued_at or datetime.now(UTC))


def bundle(audit: Audit, trust: Path, identity: str = IDENTITY) -> bytes:
    return sigstore_bundles.sign(payload(audit), token=local_sigstore.token(identity), trust=trust)


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], env=environment)


def test_from_the_command_line(audit: Audit, trust: Path) -> None:
    report, path = audit.folder / "report.json", audit.folder / "audit.sigstore.json"
    token = {sigstore_bundles.TOKEN_VARIABLE: local_sigstore.token(IDENTITY)}
    signed = run("sign", report, "--sigstore", "--sigstore-trust", trust, **token)
    assert (signed.exit_code, signed.output) == (0, f"wrote {path}\n")
    seen = run("verify", path, "--identity", IDENTITY, "--issuer", ISSUER, "--sigstore-trust", trust, "--model", audit.model)
    assert seen.exit_code == 0, seen.output
    assert f"signed by  {IDENTITY} by {ISSUER}" in seen.output
    wrong = run("verify", path, "--identity", "other@lab.example", "--issuer", ISSUER, "--sigstore-trust", trust)
    assert (wrong.exit_code, wrong.output.count("\n")) == (4, 1)
    assert "SANs do not match other@lab.example" in wrong.output


def test_by_a_policy(audit: Audit, trust: Path, sigstore: Sigstore) -> None:
    (audit.folder / "audit.sigstore.json").write_bytes(bundle(audit, trust))
    (audit.folder / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    text = f'verdicts = ["pass"]\nsigstore_root = "root.json"\n[[identities]]\nidentity = "x@y.example"\nissuer = "{ISSUER}"\n'
    text += f'[[identities]]\nidentity = "{IDENTITY}"\nissuer = "{ISSUER}"\nroles = ["auditor"]\n'
    (audit.folder / "trust.toml").write_text(text)
    arguments = ("verify", audit.folder / "audit.sigstore.json", "--policy", audit.folder / "trust.toml")
    assert run(*arguments).exit_code == 0
    (audit.folder / "trust.toml").write_text(text.replace('["pass"]', '["fail"]'))
    assert run(*arguments).exit_code == 1
    (audit.folder / "trust.toml").write_text("threshold = 2\n" + text)
    refused = run(*arguments)
    assert (refused.exit_code, "asks for 2 signatures" in refused.output) == (4, True)
    (audit.folder / "trust.toml").write_text(text.replace(f'"{ISSUER}"\nroles', '"https://evil.example"\nroles'))
    assert run(*arguments).exit_code == 4


def _corrupted(value: str) -> str:
    raw = base64.b64decode(value)
    return base64.b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode()


def _signature(fields: dict[str, Any]) -> None:
    entry = fields["dsseEnvelope"]["signatures"][0]
    entry["sig"] = _corrupted(entry["sig"])


def _payload(fields: dict[str, Any]) -> None:
    text = base64.b64decode(fields["dsseEnvelope"]["payload"]).replace(b'"verdict":"pass"', b'"verdict":"fail"')
    fields["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()


def _promise(fields: dict[str, Any]) -> None:
    entry = fields["verificationMaterial"]["tlogEntries"][0]["inclusionPromise"]
    entry["signedEntryTimestamp"] = _corrupted(entry["signedEntryTimestamp"])


def _checkpoint(fields: dict[str, Any]) -> None:
    entry = fields["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]["checkpoint"]
    entry["envelope"] = entry["envelope"].replace("local - 1", "local - 2")


def _certificate(fields: dict[str, Any]) -> None:
    entry = fields["verificationMaterial"]["certificate"]
    entry["rawBytes"] = _corrupted(entry["rawBytes"])


@pytest.mark.parametrize("change", [_signature, _payload, _promise, _checkpoint, _certificate])
def test_a_changed_part_is_refused(audit: Audit, trust: Path, change: Any) -> None:
    fields = json.loads(bundle(audit, trust))
    change(fields)
    with pytest.raises(VerificationError, match="the Sigstore bundle does not verify"):
        trust_policy.verify_with_identity(json.dumps(fields).encode(), IDENTITY, ISSUER, trust=trust)


def test_a_bundle_of_another_sigstore_is_refused(audit: Audit, trust: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(Sigstore().trusted_root()))
    with pytest.raises(VerificationError, match="does not verify"):
        trust_policy.verify_with_identity(bundle(audit, trust), IDENTITY, ISSUER, trust=other)


def test_the_public_sigstores_root_refuses_it_without_the_network(audit: Audit, trust: Path) -> None:
    with pytest.raises(VerificationError, match="does not verify"):
        trust_policy.verify_with_identity(bundle(audit, trust), IDENTITY, ISSUER)


def test_a_statement_that_asks_for_keys_is_refused(audit: Audit, trust: Path) -> None:
    envelope = seal(audit.report, audit.report.canonical(), [load_private(audit.private)], issued_at=datetime.now(UTC))
    signed = sigstore_bundles.sign(unpack(envelope).payload, token=local_sigstore.token(IDENTITY), trust=trust)
    with pytest.raises(VerificationError, match="asks for signatures by keys"):
        trust_policy.verify_with_identity(signed, IDENTITY, ISSUER, trust=trust)


def test_a_statement_without_signers_does_not_verify_as_an_envelope(audit: Audit, trust: Path) -> None:
    assert sigstore_bundles.is_bundle(bundle(audit, trust))
    with pytest.raises(VerificationError, match=r"not a DSSE envelope|not byte for byte"):
        trust_policy.verify_with_keys(bundle(audit, trust), [audit.public])


def test_a_statement_dated_back_is_refused(audit: Audit, trust: Path) -> None:
    old = payload(audit, datetime.now(UTC) - timedelta(days=30))
    signed = sigstore_bundles.sign(old, token=local_sigstore.token(IDENTITY), trust=trust)
    with pytest.raises(VerificationError, match="and the certificate was valid from"):
        trust_policy.verify_with_identity(signed, IDENTITY, ISSUER, trust=trust)


def test_changed_bytes_never_change_what_was_signed_and_never_crash(audit: Audit, trust: Path) -> None:
    data, rng = bundle(audit, trust), random.Random(3)  # noqa: S311 - reproducible, not secret
    told = trust_policy.verify_with_identity(data, IDENTITY, ISSUER, trust=trust).verified
    for _ in range(150):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 2, 5))):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        try:
            assert trust_policy.verify_with_identity(bytes(mutant), IDENTITY, ISSUER, trust=trust).verified == told
        except VerificationError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both ends are right; a line is a line


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[" * 50_000, b'{"mediaType": 7}', b"\xff\xfe"])
def test_what_is_no_bundle_is_refused(data: bytes, trust: Path) -> None:
    assert not sigstore_bundles.is_bundle(data)
    with pytest.raises(VerificationError, match="does not verify"):
        sigstore_bundles.verify(data, [(IDENTITY, ISSUER)], trust=trust)


class TestOneLine:
    """What is missing is told in one line."""

    def test_a_token_that_is_none(self, audit: Audit, trust: Path) -> None:
        with pytest.raises(UsageError, match=r"no identity to sign as: .*SIGSTORE_ID_TOKEN"):
            sigstore_bundles.sign(payload(audit), token="nonsense", trust=trust)  # noqa: S106 - none

    def test_services_that_do_not_answer(self, audit: Audit, tmp_path: Path) -> None:
        away = tmp_path / "away.json"
        away.write_text(json.dumps(Sigstore(url="http://127.0.0.1:9").configuration()))
        with pytest.raises(EnvironmentFault, match=r"Sigstore does not sign: .*; look at the network"):
            sigstore_bundles.sign(payload(audit), token=local_sigstore.token(IDENTITY), trust=away)

    def test_a_configuration_that_is_none(self, audit: Audit, tmp_path: Path) -> None:
        (tmp_path / "bad.json").write_text("{}")
        with pytest.raises(UsageError, match="is no ClientTrustConfig"):
            sigstore_bundles.sign(payload(audit), token="x", trust=tmp_path / "bad.json")  # noqa: S106 - none
        with pytest.raises(UsageError, match="is no trusted root"):
            sigstore_bundles.verify(b"{}", [(IDENTITY, ISSUER)], trust=tmp_path / "bad.json")

    def test_no_identity(self) -> None:
        with pytest.raises(UsageError, match="anyone can sign with Sigstore"):
            sigstore_bundles.verify(b"{}", [])

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sigstore.models", None)
        for use in (lambda: sigstore_bundles.sign(b""), lambda: sigstore_bundles.verify(b"", [])):
            with pytest.raises(EnvironmentFault, match=r"pip install 'muaudit\[sigstore\]'"):
                use()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["sign", "report.json", "--sigstore", "--key", "auditor.key"], "give no --key and no --cosigner"),
            (["sign", "report.json", "--sigstore", "--threshold", "2"], "give no --key and no --cosigner"),
            (["verify", "audit.intoto.json", "--identity", "a@b"], "--identity and --issuer together"),
            (["verify", "audit.intoto.json", "--key", "auditor.pub", "--identity", "a", "--issuer", "b"], "without --key"),
        ],
    )
    def test_options_that_do_not_go_together(
        self, audit: Audit, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(audit.folder)
        done = run(*arguments)
        assert (done.exit_code, message in done.output) == (2, True), done.output
