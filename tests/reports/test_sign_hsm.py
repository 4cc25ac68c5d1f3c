"""Keys that never leave their place: a PKCS#11 module (SoftHSM), and key services that are not there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_logs import recorded_audit
from sample import ISSUED, Audit

from muaudit.errors import EnvironmentFault, UsageError, VerificationError
from muaudit.reports.attestation import seal, verify
from muaudit.reports.keys import fits, load_public, write_public
from muaudit.reports.signers import LIBRARY_VARIABLE, is_uri, open_signer

LIBRARIES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so")
LIBRARY = next((path for path in LIBRARIES if Path(path).is_file()), None)
PIN = "5678"


def never(what: str) -> str:
    raise AssertionError(f"asked for {what}")


def pin(_: str) -> str:
    return PIN


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A software module with one token, and the URI of its P-256 key."""
    pytest.importorskip("pkcs11", reason="needs the extra `hsm`")
    if LIBRARY is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed (apt-get install softhsm2)")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv(LIBRARY_VARIABLE, LIBRARY)
    command = ["softhsm2-util", "--init-token", "--free", "--label", "audit", "--so-pin", "1234", "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True)
    for number, curve in (("02", "P-256"), ("03", "P-384"), ("04", "brainpoolP256r1")):
        pem = tmp_path / f"{number}.pem"
        make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-out", pem]
        subprocess.run(make, check=True, capture_output=True)
        put = ["softhsm2-util", "--import", pem, "--token", "audit", "--label", f"key{number}", "--id", number, "--pin", PIN]
        subprocess.run(put, check=True, capture_output=True)
    return "hsm:2?label=audit"


def muaudit(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: a PKCS#11 library is loaded once a process, with the tokens that it finds then."""
    command = [sys.executable, "-m", "muaudit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_a_module_signs_and_anyone_verifies(token: str, audit: Audit) -> None:
    folder = audit.folder
    made = muaudit("pubkey", token, folder / "module", "--name", "Lab X, module", MUAUDIT_KEY_PASSPHRASE=PIN)
    assert made.returncode == 0, made.stderr
    signed = muaudit("sign", folder / "report.json", "--key", token, "--out", folder / "e.json", MUAUDIT_KEY_PASSPHRASE=PIN)
    assert signed.returncode == 0, signed.stderr
    seen = muaudit("verify", folder / "e.json", "--key", folder / "module.pub", "--model", audit.model)
    assert (seen.returncode, "Lab X, module" in seen.stdout) == (0, True), seen.stderr
    verified = verify((folder / "e.json").read_bytes(), [load_public(folder / "module.pub")])
    assert verified.signers[0].key.curve.name == "secp256r1"
    with pytest.raises(VerificationError, match="not signed by"):
        verify((folder / "e.json").read_bytes(), [audit.public])


def test_a_module_cosigns_with_a_curve_of_its_own(token: str, audit: Audit) -> None:
    folder, other = audit.folder, token.replace("2", "3", 1)
    assert muaudit("pubkey", other, folder / "module", MUAUDIT_KEY_PASSPHRASE=PIN).returncode == 0
    drafted = muaudit("sign", folder / "report.json", "--key", audit.private, "--cosigner", f"operator={folder / 'module.pub'}")
    assert "pending until" in drafted.stdout
    signed = muaudit("cosign", folder / "audit.intoto.json", "--key", other, MUAUDIT_KEY_PASSPHRASE=PIN)
    assert signed.returncode == 0, signed.stderr
    keys = [audit.public, load_public(folder / "module.pub")]
    assert set(verify((folder / "audit.intoto.json").read_bytes(), keys).roles.values()) == {"auditor", "operator"}


def test_a_scan_signs_with_the_module_that_its_configuration_names(token: str, tmp_path: Path) -> None:
    audit = recorded_audit(tmp_path, "honest", sections=f'\n[signing]\nkey = "{token}"\n')
    locked = muaudit("scan", audit, MUAUDIT_KEY_PASSPHRASE="0000")  # noqa: S106 - a wrong one
    assert (locked.returncode, "PIN is wrong" in locked.stderr) == (2, True), locked.stderr
    assert not (tmp_path / "audit-honest" / "report.json").exists()  # asked before the work, not after it
    done = muaudit("scan", audit, MUAUDIT_KEY_PASSPHRASE=PIN)
    assert done.returncode == 0, done.stderr
    assert muaudit("pubkey", token, tmp_path / "module", MUAUDIT_KEY_PASSPHRASE=PIN).returncode == 0
    envelope = tmp_path / "audit-honest" / "audit.intoto.json"
    assert muaudit("verify", envelope, "--key", tmp_path / "module.pub").returncode == 0


@pytest.mark.parametrize(
    ("uri", "told_pin", "code", "message"),
    [
        ("hsm:2?label=audit", "0000", 2, "PIN is wrong or locked"),
        ("hsm:9?label=audit", PIN, 2, "could not find ECDSA key"),
        ("hsm:2?label=other", PIN, 2, "No PKCS#11 token found for label other"),
        ("hsm:two?label=audit", PIN, 2, "does not name a key of a security module"),
        ("hsm:4?label=audit", PIN, 2, "cannot be used"),
    ],
)
def test_what_the_module_refuses_is_one_line(
    token: str, audit: Audit, uri: str, told_pin: str, code: int, message: str
) -> None:
    done = muaudit("sign", audit.folder / "report.json", "--key", uri, MUAUDIT_KEY_PASSPHRASE=told_pin)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_keys_public_file_is_noticed(token: str, audit: Audit) -> None:
    other = token.replace("2", "3", 1)
    assert muaudit("pubkey", other, audit.folder / "wrong", MUAUDIT_KEY_PASSPHRASE=PIN).returncode == 0
    arguments = ("sign", audit.folder / "report.json", "--key", token, "--public", audit.folder / "wrong.pub")
    done = muaudit(*arguments, MUAUDIT_KEY_PASSPHRASE=PIN)
    assert (done.returncode, "the private key is another one" in done.stderr) == (2, True), done.stderr


def test_without_the_library_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    with pytest.raises(EnvironmentFault, match="export PYKCS11LIB="):
        open_signer("hsm:2", never)
    (tmp_path / "no.so").write_bytes(b"not a library")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "no.so"))
    with pytest.raises((EnvironmentFault, UsageError), match="hsm:2"):
        open_signer("hsm:2", pin)


@pytest.mark.parametrize("uri", ["awskms:alias/audit", "gcpkms:projects/p/x", "azurekms://vault/keys/k", "hv:audit"])
def test_a_key_service_needs_its_library_and_a_public_file(uri: str, audit: Audit, tmp_path: Path) -> None:
    assert is_uri(uri)
    with pytest.raises(UsageError, match=r"--public FILE\.pub"):
        open_signer(uri, never)
    from cryptography.hazmat.primitives.asymmetric import ec

    public, _ = write_public(ec.generate_private_key(ec.SECP256R1()).public_key(), tmp_path / "service", "Service")
    with pytest.raises((EnvironmentFault, UsageError)) as caught:
        open_signer(uri, never, public=public).sign(b"data")
    assert str(caught.value).startswith(uri)
    assert "\n" not in str(caught.value)


def test_files_are_no_uris() -> None:
    for path in ("auditor.key", "hsm", "./hsm:2", "C:\\keys\\auditor.key", "/hsm:2/auditor.key", "file2:auditor.key"):
        assert not is_uri(path)


def test_a_signer_in_memory_signs_too(audit: Audit) -> None:
    signer = open_signer(audit.private, never)
    assert fits(signer.public, signer.sign(b"data"), b"data")
    assert seal(audit.report, audit.report.canonical(), [signer], issued_at=ISSUED) == audit.envelope
