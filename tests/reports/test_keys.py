"""Keys are made once, kept from others and readable by openssl."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from muaudit.errors import UsageError
from muaudit.reports.keys import (
    ORDERS,
    by_fingerprint,
    fingerprint_of,
    fits,
    is_encrypted,
    keygen,
    load_private,
    load_public,
    with_smaller_s,
    write_public,
)
from muaudit.reports.signers import of_key


@pytest.mark.parametrize("out", ["lab.x", "lab.x.key"])
def test_keygen_writes_a_pair_that_belongs_together(tmp_path: Path, out: str) -> None:
    private, public, fingerprint = keygen(tmp_path / out, "Lab X: Zürich")
    assert (private.name, public.name) == ("lab.x.key", "lab.x.pub")
    assert not is_encrypted(private)
    assert private.stat().st_mode & 0o777 == 0o600
    loaded = load_public(public)
    assert (loaded.name, loaded.fingerprint) == ("Lab X: Zürich", fingerprint)
    assert fingerprint_of(load_private(private).public_key()) == fingerprint


def test_openssl_reads_the_public_file_and_agrees_on_the_fingerprint(tmp_path: Path) -> None:
    _, public, fingerprint = keygen(tmp_path / "auditor", "Lab X")
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert hashlib.sha256(der).hexdigest() == fingerprint


def test_keygen_overwrites_nothing(tmp_path: Path) -> None:
    private, public, _ = keygen(tmp_path / "auditor", "Lab X")
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        keygen(tmp_path / "auditor", "Lab X")
    private.unlink()
    with pytest.raises(UsageError, match="is there already"):
        keygen(tmp_path / "auditor", "Lab X")
    assert not private.exists()
    assert public.read_bytes() == before[1]


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "bell\x07", "right\u202eleft", "x" * 201])
def test_keygen_refuses_a_name_that_is_not_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="one line"):
        keygen(tmp_path / "auditor", name)
    assert not list(tmp_path.iterdir())


def test_a_passphrase_is_needed_and_has_to_be_right(tmp_path: Path) -> None:
    private, public, _ = keygen(tmp_path / "auditor", "Lab X", b"correct horse")
    assert is_encrypted(private)
    assert fingerprint_of(load_private(private, b"correct horse").public_key()) == load_public(public).fingerprint
    for wrong in (None, b"incorrect horse"):
        with pytest.raises(UsageError, match="passphrase is missing or wrong"):
            load_private(private, wrong)
    with pytest.raises(UsageError, match="passphrase is empty"):
        keygen(tmp_path / "other", "Lab X", b"")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_private_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    private, _, _ = keygen(tmp_path / "auditor", "Lab X")
    private.chmod(mode)
    with pytest.raises(UsageError, match=r"others can read.*chmod 600"):
        load_private(private)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    private, public, _ = keygen(tmp_path / "auditor", "Lab X")
    with pytest.raises(UsageError, match="is a private key"):
        load_public(private)
    public.chmod(0o600)
    with pytest.raises(UsageError, match="cannot be opened as a private key"):
        load_private(public)
    public.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    for read in (load_private, is_encrypted):
        with pytest.raises(UsageError, match="cannot be opened as a private key"):
            read(public)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="not a public key as PEM"):
        load_public(tmp_path / "text")
    with pytest.raises(UsageError, match="cannot be read"):
        load_public(tmp_path / "nowhere")


def test_a_public_file_whose_fingerprint_line_is_not_its_keys_is_refused(tmp_path: Path) -> None:
    _, public, fingerprint = keygen(tmp_path / "auditor", "Lab X")
    public.write_text(public.read_text().replace(fingerprint, "0" * 64))
    with pytest.raises(UsageError, match="someone edited the file"):
        load_public(public)


def openssl_pair(folder: Path, *arguments: str) -> tuple[Path, Path]:
    """A key pair that openssl made."""
    private, public = folder / "other.key", folder / "other.pub"
    subprocess.run(["openssl", *arguments, "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    private.chmod(0o600)
    return private, public


@pytest.mark.parametrize(
    "arguments",
    [
        ["genpkey", "-algorithm", "X25519"],
        ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"],
    ],
)
def test_other_kinds_of_key_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    private, public = openssl_pair(tmp_path, *arguments)
    with pytest.raises(UsageError, match="is not of a kind that muaudit signs with"):
        load_private(private)
    with pytest.raises(UsageError, match="is not of a kind that muaudit verifies"):
        load_public(public)


class TestEcdsa:
    """Security modules and key services hold ECDSA keys."""

    @pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
    def test_signatures_fit_in_one_spelling_alone(self, tmp_path: Path, curve: str) -> None:
        paths = openssl_pair(tmp_path, "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}")
        private, public = load_private(paths[0]), load_public(paths[1])
        signer = of_key(private)
        assert signer.fingerprint == public.fingerprint
        for number in range(8):  # about half of them come with the larger s
            data = b"data %d" % number
            signature = signer.sign(data)
            assert fits(public.key, signature, data)
            r, s = decode_dss_signature(signature)
            order = ORDERS[public.key.curve.name]
            other = encode_dss_signature(r, order - s)
            assert not fits(public.key, other, data)
            assert with_smaller_s(public.key, other) == signature
            assert not fits(public.key, signature, b"other")
            for wrong in (b"", signature[:-1], signature + b"\0", b"\x30\x81" + signature[1:], encode_dss_signature(0, 0)):
                assert not fits(public.key, wrong, data)

    def test_openssl_verifies_them(self, tmp_path: Path) -> None:
        private, public = openssl_pair(tmp_path, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        (tmp_path / "data").write_bytes(b"data")
        (tmp_path / "signature").write_bytes(of_key(load_private(private)).sign(b"data"))
        command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "signature", tmp_path / "data"]
        assert "Verified OK" in subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def test_the_orders_are_those_of_the_curves(self) -> None:
        for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
            # order * generator is the point at infinity: (order - 1) * generator is the generator with the other y
            one = ec.derive_private_key(1, curve).public_key().public_numbers()
            last = ec.derive_private_key(ORDERS[curve.name] - 1, curve).public_key().public_numbers()
            assert one.x == last.x
            assert one.y != last.y


def test_the_public_half_can_be_written_again(tmp_path: Path) -> None:
    private, public, fingerprint = keygen(tmp_path / "auditor", "Lab X")
    assert write_public(load_private(private).public_key(), tmp_path / "again", "Lab X") == (
        tmp_path / "again.pub",
        fingerprint,
    )
    assert (tmp_path / "again.pub").read_bytes() == public.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        write_public(load_private(private).public_key(), tmp_path / "again.pub", "Lab X")


def test_a_foreign_ed25519_key_is_named_by_its_file(tmp_path: Path) -> None:
    private, public = tmp_path / "other.key", tmp_path / "other.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    private.chmod(0o600)
    assert load_public(public).name == "other.pub"
    assert fingerprint_of(load_private(private).public_key()) == load_public(public).fingerprint


def test_one_key_under_two_names_is_one_key(tmp_path: Path) -> None:
    _, public, fingerprint = keygen(tmp_path / "auditor", "Lab X")
    (tmp_path / "twin.pub").write_text(public.read_text().replace("Lab X", "Lab Y"))
    assert list(by_fingerprint([load_public(public), load_public(tmp_path / "twin.pub")])) == [fingerprint]
