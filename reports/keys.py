"""Keys as files: made once, never overwritten, refused when others can read them; and whether a signature is a key's.

muaudit makes Ed25519 keys. It also takes ECDSA keys on the curves P-256, P-384 and P-521, because security modules and key
services hold hardly anything else. A public key file is a PEM that `openssl` reads as it is; the lines before its BEGIN carry
the holder's name and the fingerprint, which is the SHA-256 of the key's DER form
(`openssl pkey -pubin -in auditor.pub -outform DER | sha256sum`).
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, Union

from muaudit.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PrivateKey: TypeAlias = Union["Ed25519PrivateKey", "EllipticCurvePrivateKey"]
VerifyingKey: TypeAlias = Union["Ed25519PublicKey", "EllipticCurvePublicKey"]

ORDERS = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    "secp521r1": 2**521 - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
}
"""The curves that are taken, with their orders (NIST SP 800-186, section 3.2.1)."""

KINDS = "Ed25519, or ECDSA on P-256, P-384 or P-521"

KDF_ROUNDS = 100
"""Rounds of bcrypt-pbkdf over a passphrase: about half a second a guess."""

NAME_LIMIT = 200
_BEGIN = b"-----BEGIN PUBLIC KEY-----"


@dataclass(frozen=True)
class PublicKey:
    """A key that a verifier trusts.

    Attributes:
        name: Who holds it, as the key's file says; nothing vouches for it but that file.
        fingerprint: SHA-256 of the key's DER form; also its key id in an envelope.
        key: The key.
    """

    name: str
    fingerprint: str
    key: VerifyingKey


def keygen(out: Path, name: str, passphrase: bytes | None = None) -> tuple[Path, Path, str]:
    """Makes a key pair.

    Args:
        out: Where to: `auditor` or `auditor.key` makes `auditor.key` and `auditor.pub`.
        name: Who holds the key, in one line; written into the public file.
        passphrase: Encrypts the private key.

    Returns:
        The private file, the public file and the fingerprint.

    Raises:
        UsageError: A file is there already, the name is not one line, or a file cannot be written.
        EnvironmentFault: A passphrase is given but bcrypt is not installed.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    stem = out.name.removesuffix(".key")
    private, public = out.with_name(f"{stem}.key"), out.with_name(f"{stem}.pub")
    key = Ed25519PrivateKey.generate()
    readable, fingerprint = _public_pem(key.public_key(), name)
    _create({private: (_private_pem(key, passphrase), 0o600), public: (readable, 0o644)})
    return private, public, fingerprint


def write_public(key: VerifyingKey, out: Path, name: str) -> tuple[Path, str]:
    """Writes the public file of a key that `keygen` did not make, such as one in a security module.

    Args:
        key: The public key.
        out: Where to: `auditor` or `auditor.pub` makes `auditor.pub`.
        name: Who holds the key, in one line.

    Returns:
        The file and the fingerprint.

    Raises:
        UsageError: The file is there already, the name is not one line, or the file cannot be written.
    """
    public = out.with_name(f"{out.name.removesuffix('.pub')}.pub")
    readable, fingerprint = _public_pem(key, name)
    _create({public: (readable, 0o644)})
    return public, fingerprint


def load_private(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Reads a private key, encrypted or not.

    Args:
        path: The file that `keygen` made, or any other key of the kinds that are taken, as PKCS 8 or OpenSSH PEM.
        passphrase: What it was encrypted with.

    Returns:
        The key.

    Raises:
        UsageError: There is no such file, others can read it, it is not such a key, or the passphrase is missing or wrong.
        EnvironmentFault: It is encrypted but bcrypt is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _read(path, "make one with `muaudit keygen`")
    mode = path.stat().st_mode
    if os.name == "posix" and mode & 0o077:
        raise UsageError(f"{path}: others can read this private key (mode {mode & 0o777:04o}); mend with: chmod 600 {path}")
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        key = load(data, passphrase)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, UnsupportedAlgorithm) and load is load_ssh_private_key:
            raise _no_bcrypt() from error
        hint = (
            "its passphrase is missing or wrong" if b"ENCRYPTED" in data or b"OPENSSH" in data else f"give a PEM file ({KINDS})"
        )
        raise UsageError(f"{path}: cannot be opened as a private key; {hint}") from error
    if isinstance(key, Ed25519PrivateKey) or (isinstance(key, EllipticCurvePrivateKey) and key.curve.name in ORDERS):
        return key
    raise UsageError(f"{path}: is not of a kind that muaudit signs with ({KINDS}); make one with `muaudit keygen`")


def is_encrypted(path: Path) -> bool:
    """Whether a private key needs a passphrase, so that it can be asked for in time.

    Args:
        path: The private key.

    Returns:
        True where the key cannot be opened without one.

    Raises:
        UsageError: The key cannot be used for another reason.
    """
    data = _read(path, "make one with `muaudit keygen`")
    if b"OPENSSH PRIVATE KEY" not in data:
        return b"ENCRYPTED" in data
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        load_ssh_private_key(data, None)
    except TypeError:
        return True
    except ValueError as error:
        raise UsageError(f"{path}: cannot be opened as a private key; give a PEM file ({KINDS})") from error
    return False


def load_public(path: Path) -> PublicKey:
    """Reads a public key, of `keygen` or any other PEM of the kinds that are taken.

    Args:
        path: The file.

    Returns:
        The key, named by its file where it carries no name.

    Raises:
        UsageError: It is not such a key, or its fingerprint line belongs to another key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path, "give the file that ends in .pub")
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path}: is a private key, which nobody needs to verify; give the file that ends in .pub")
    head, _, _ = data.partition(_BEGIN)
    try:
        key = load_pem_public_key(data)
        said = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: is not a public key as PEM; give the .pub file that `muaudit keygen` made") from error
    if not is_taken(key):
        raise UsageError(f"{path}: is not of a kind that muaudit verifies ({KINDS}); ask the auditor for such a key")
    fingerprint = fingerprint_of(key)
    if said.get("fingerprint", fingerprint) != fingerprint:
        raise UsageError(
            f"{path}: its fingerprint line is not the fingerprint of its key ({fingerprint}); "
            "someone edited the file, so get it again from the auditor"
        )
    return PublicKey(said.get("name", path.name), fingerprint, key)


def is_taken(key: object) -> TypeGuard[VerifyingKey]:
    """Whether a public key is of a kind that signatures are verified with."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and key.curve.name in ORDERS)


def fits(key: VerifyingKey, signature: bytes, data: bytes) -> bool:
    """Whether a signature is this key's over the data, spelled in the one way that counts.

    Args:
        key: The public key.
        signature: The raw signature: 64 bytes of Ed25519, or DER of an ECDSA signature with the smaller `s`.
        data: What was signed.

    Returns:
        False too for the other spelling of a valid ECDSA signature, which anyone can make without the key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

    try:
        if not isinstance(key, EllipticCurvePublicKey):
            key.verify(signature, data)
            return True
        if with_smaller_s(key, signature) != signature:
            return False
        digests = {"secp256r1": SHA256(), "secp384r1": SHA384(), "secp521r1": SHA512()}
        key.verify(signature, data, ECDSA(digests[key.curve.name]))
    except (InvalidSignature, ValueError):
        return False
    return True


def with_smaller_s(key: VerifyingKey, signature: bytes) -> bytes:
    """The one spelling of an ECDSA signature that counts; with `(r, s)` the pair `(r, order - s)` is valid too.

    Args:
        key: The public key that it belongs to.
        signature: DER of an ECDSA signature; one of Ed25519 is returned as it is.

    Returns:
        DER with the smaller of the two.

    Raises:
        ValueError: It is not DER of two numbers.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    if not isinstance(key, EllipticCurvePublicKey):
        return signature
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, min(s, ORDERS[key.curve.name] - s))


def fingerprint_of(key: VerifyingKey) -> str:
    """A public key's fingerprint.

    Args:
        key: The key.

    Returns:
        SHA-256 of its DER form, in hexadecimal.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def by_fingerprint(keys: Iterable[PublicKey]) -> dict[str, PublicKey]:
    """Trusted keys, each once: the same key under two names must not count as two signers.

    Args:
        keys: The keys.

    Returns:
        The first of each fingerprint, which is computed from the key itself and not from what a file says.
    """
    unique: dict[str, PublicKey] = {}
    for key in keys:
        unique.setdefault(fingerprint_of(key.key), key)
    return unique


def _private_pem(key: "Ed25519PrivateKey", passphrase: bytes | None) -> bytes:
    """PKCS 8 where it is not encrypted; OpenSSH where it is, since PKCS 8 encryption has but 2,048 rounds."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if not passphrase:
        raise UsageError("the passphrase is empty, which protects nothing; give one, or ask for a key without")
    try:
        encryption = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(KDF_ROUNDS).build(passphrase)
        return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)
    except UnsupportedAlgorithm as error:
        raise _no_bcrypt() from error


def _no_bcrypt() -> EnvironmentFault:
    return EnvironmentFault("an encrypted private key needs bcrypt, which is not installed; mend with: pip install bcrypt")


def _public_pem(key: VerifyingKey, name: str) -> tuple[bytes, str]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not name.strip() or len(name) > NAME_LIMIT or any(unicodedata.category(character)[0] == "C" for character in name):
        raise UsageError(
            f"key name {name!r}: reports show it as the signer, so give one line of at most {NAME_LIMIT} characters"
        )
    fingerprint = fingerprint_of(key)
    head = f"muaudit public key\nname: {name}\nfingerprint: {fingerprint}\n"
    return head.encode() + key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), fingerprint


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; {hint}") from error
    except ValueError as error:  # of a byte that no path can have
        raise UsageError(f"{path}: cannot be read: {error}; {hint}") from error


def _create(files: dict[Path, tuple[bytes, int]]) -> None:
    """Writes new files with their modes; none of them where one is there already."""
    for path in files:
        if path.exists():
            raise UsageError(f"{path}: is there already, and a key that is overwritten is lost for good; choose another name")
    try:
        for path, (data, mode) in files.items():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
                handle.write(data)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: cannot be written: {error.strerror}; give a folder that you can write to"
        ) from error
