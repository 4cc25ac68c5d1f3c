"""What earlier releases signed keeps verifying, and keys that they made keep signing: files of each, made by that release."""

import shutil
from pathlib import Path

import pytest
from signed_envelopes import RELEASES, ed25519, public

from muaudit.errors import VerificationError
from muaudit.reports.attestation import verify
from muaudit.reports.keys import fingerprint_of, is_encrypted, load_private, load_public
from muaudit.results import Verdict

ENVELOPES = sorted(RELEASES.glob("*/*/audit.intoto.json"))
PASSPHRASE = b"correct horse"


def test_there_is_something_of_every_release() -> None:
    assert {path.parent.name for path in ENVELOPES} >= {"pass", "fail-encrypted-key", "inconclusive-two-signers"}


@pytest.mark.parametrize("path", ENVELOPES, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_its_envelopes_verify(path: Path) -> None:
    release = path.parents[1]
    keys = {key.fingerprint: key for key in map(load_public, sorted(release.glob("*.pub")))}
    signers = {"pass": ["auditor"], "fail-encrypted-key": ["operator"]}.get(path.parent.name, ["auditor", "operator"])
    expected = {load_public(release / f"{name}.pub").fingerprint for name in signers}
    verified = verify(
        path.read_bytes(),
        [keys[one] for one in expected],
        report=(path.parent / "report.json").read_bytes(),
        model=release / "target",
    )
    assert {key.fingerprint for key in verified.signers} == expected
    assert verified.verdict == Verdict(path.parent.name.split("-")[0])
    assert set(verified.roles.values()) == {"auditor"}
    assert (verified.missing, verified.unchecked) == ((), ())
    with pytest.raises(VerificationError, match="not signed by"):
        verify(path.read_bytes(), [public(ed25519(9), "another")])


@pytest.mark.parametrize(("name", "passphrase"), [("auditor", None), ("operator", PASSPHRASE)])
def test_its_keys_open(name: str, passphrase: bytes | None, tmp_path: Path) -> None:
    for release in sorted(path.parent for path in RELEASES.glob("*/auditor.pub")):
        private = tmp_path / f"{release.name}.key"
        shutil.copyfile(release / f"{name}.pem", private)
        private.chmod(0o600)
        assert is_encrypted(private) is (passphrase is not None)
        key = load_private(private, passphrase)
        assert fingerprint_of(key.public_key()) == load_public(release / f"{name}.pub").fingerprint
