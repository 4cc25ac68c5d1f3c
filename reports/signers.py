"""Private keys that can sign, wherever they are kept: in a file, in a PKCS#11 security module, at a key service.

Keys outside files are named by the URIs of securesystemslib (https://github.com/secure-systems-lab/securesystemslib):
`hsm:2?label=TOKEN` for PKCS#11, `awskms:`, `gcpkms:`, `azurekms:` and `hv:` (HashiCorp Vault) for key services. Such a key
never leaves its place; what leaves is the signature.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from muaudit.errors import EnvironmentFault, MuauditError, UsageError
from muaudit.reports.keys import (
    KINDS,
    PrivateKey,
    VerifyingKey,
    fingerprint_of,
    fits,
    is_taken,
    load_private,
    load_public,
    with_smaller_s,
)

EXTRAS = {
    "hsm": "muaudit[hsm]",
    "awskms": "securesystemslib[awskms]",
    "gcpkms": "securesystemslib[gcpkms]",
    "azurekms": "securesystemslib[azurekms]",
    "hv": "securesystemslib[vault]",
}
"""What has to be installed for each scheme of a key's URI."""

LIBRARY_VARIABLE = "PYKCS11LIB"
"""The environment variable that names the security module's PKCS#11 library, as securesystemslib reads it."""

Secret = Callable[[str], str]
"""Asks for a passphrase or a PIN, by what it is for."""


@dataclass(frozen=True)
class Signer:
    """Somebody who can sign now.

    Attributes:
        public: The public half.
        fingerprint: Its fingerprint, which is the key id of the signatures.
        raw: Signs bytes; an ECDSA signature comes as DER.
    """

    public: VerifyingKey
    fingerprint: str
    raw: Callable[[bytes], bytes]

    def sign(self, data: bytes) -> bytes:
        """Signs, and looks at what it signed: a module can hold another key than the public file says.

        Args:
            data: What to sign.

        Returns:
            The raw signature, as `keys.fits` wants it.

        Raises:
            UsageError: The signature does not fit the public key, or the PIN is wrong.
            EnvironmentFault: The module or the key service does not answer.
        """
        try:
            signature = with_smaller_s(self.public, self.raw(data))
        except ValueError as error:
            raise UsageError(
                f"the key {self.fingerprint[:16]} cannot sign: {error}; look at its URI and at the module"
            ) from error
        if not fits(self.public, signature, data):
            raise UsageError(
                f"the signature does not fit the public key {self.fingerprint[:16]}: the private key is another one; "
                "give the public file of the key that signs"
            )
        return signature


def is_uri(key: str) -> bool:
    """Whether a key is named by the URI of a security module or a key service, and not by a file."""
    return key.partition(":")[0] in EXTRAS and ":" in key


def open_signer(key: str | Path, secret: Secret, *, public: Path | None = None) -> Signer:
    """Opens a private key wherever it is.

    Args:
        key: A file, or a URI.
        secret: Called where the key needs a passphrase or a PIN; once, whatever the module asks.
        public: The public file of a key at a key service; a PKCS#11 module gives it by itself.

    Returns:
        Who can sign with it.

    Raises:
        UsageError: There is no such key, it is of a kind that is not taken, or the passphrase or PIN is wrong.
        EnvironmentFault: An extra or the module's library is missing, or the module does not answer.
    """
    from muaudit.reports.keys import is_encrypted

    if is_uri(str(key)):
        return _elsewhere(str(key), _once(secret), public)
    path = Path(key)
    return of_key(load_private(path, secret(f"passphrase of {path}").encode() if is_encrypted(path) else None))


def of_key(key: PrivateKey) -> Signer:
    """Who can sign with a key that is already open.

    Args:
        key: The private key.

    Returns:
        The signer.
    """
    from securesystemslib.signer import CryptoSigner, SSlibKey

    fingerprint = fingerprint_of(key.public_key())
    return _wrapped(key.public_key(), CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), keyid=fingerprint)))


def of_keys(keys: Sequence[PrivateKey | Signer]) -> list[Signer]:
    """Signers of keys, each once, in the order of their fingerprints."""
    signers = [key if isinstance(key, Signer) else of_key(key) for key in keys]
    return [signer for _, signer in sorted({signer.fingerprint: signer for signer in signers}.items())]


def _elsewhere(uri: str, secret: Secret, public: Path | None) -> Signer:
    from securesystemslib.signer import Signer as Remote
    from securesystemslib.signer import SSlibKey

    scheme = uri.partition(":")[0]
    if scheme == "hsm" and not Path(os.environ.get(LIBRARY_VARIABLE, "")).is_file():
        raise EnvironmentFault(
            f"{uri}: the security module's PKCS#11 library is not there; name it: export {LIBRARY_VARIABLE}=/path/to/library.so"
        )
    try:
        if public is not None:
            key = load_public(public).key
        elif scheme == "hsm":
            key = _public_of_module(uri, secret)
        else:
            raise UsageError(f"{uri}: a key service is asked only to sign; give the key's public file too: --public FILE.pub")
        fingerprint = fingerprint_of(key)
        remote = Remote.from_priv_key_uri(uri, SSlibKey.from_crypto(key, keyid=fingerprint), secret)
    except MuauditError:
        raise
    except Exception as error:  # noqa: BLE001 - securesystemslib lets whatever a module or a service raises through
        _told(uri, error)
    return _wrapped(key, remote, uri)


def _public_of_module(uri: str, secret: Secret) -> VerifyingKey:
    from urllib.parse import parse_qsl, urlparse

    from securesystemslib.signer import HSMSigner

    parts = urlparse(uri)
    if not re.fullmatch(r"\d{0,9}", parts.path):
        raise UsageError(
            f"{uri}: does not name a key of a security module; write hsm:ID?label=TOKEN, such as hsm:2?label=audit"
        )
    _, key = HSMSigner.import_(int(parts.path) if parts.path else None, dict(parse_qsl(parts.query)).get("label"), secret)
    return _loaded(uri, key.keyval["public"].encode())


def _loaded(uri: str, pem: bytes) -> VerifyingKey:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(pem)
    if not is_taken(key):
        raise UsageError(f"{uri}: is not of a kind that muaudit signs with ({KINDS})")
    return key


def _wrapped(key: VerifyingKey, signer: Any, uri: str = "the key") -> Signer:  # noqa: ANN401 - a Signer of securesystemslib
    def raw(data: bytes) -> bytes:
        try:
            return bytes.fromhex(signer.sign(data).signature)
        except Exception as error:  # noqa: BLE001 - securesystemslib lets whatever a module or a service raises through
            _told(uri, error)

    return Signer(key, fingerprint_of(key), raw)


def _once(secret: Secret) -> Secret:
    """Asks one time for each secret: a module wants its PIN for reading the key and again for every signature."""
    told: dict[str, str] = {}

    def ask(what: str) -> str:
        if what not in told:
            told[what] = secret(what)
        return told[what]

    return ask


def _told(uri: str, error: Exception) -> NoReturn:
    """Any failure of a module or a service as one line."""
    from securesystemslib.exceptions import UnsupportedLibraryError

    scheme, name = uri.partition(":")[0], type(error).__name__
    if isinstance(error, MuauditError):
        raise error
    if isinstance(error, UnsupportedLibraryError | ImportError):
        raise EnvironmentFault(f"{uri}: a library is missing ({error}); install it: pip install '{EXTRAS[scheme]}'") from error
    if name.startswith("Pin"):
        raise UsageError(f"{uri}: the PIN is wrong or locked ({name}); a module locks itself after a few wrong ones") from error
    if isinstance(error, ValueError):
        raise UsageError(f"{uri}: cannot be used: {error}; look at the key's ID and the token's label") from error
    raise EnvironmentFault(f"{uri}: does not sign: {name}: {error}; look at its library, network and permissions") from error
