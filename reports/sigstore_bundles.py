"""Sigstore: a signature by an identity (an e-mail address, a workflow) instead of a key that somebody keeps.

The key lives for one signature; a certificate of a few minutes binds it to the identity, and a public log records both, so the
signer's identity becomes public. The bundle is Sigstore's own file, with one signature and all that is needed to verify it
without the network; its JSON is not in one canonical spelling, the statement inside it is.

Source: sigstore-python (https://github.com/sigstore/sigstore-python).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from muaudit.errors import EnvironmentFault, UsageError, VerificationError
from muaudit.reports.envelope import PAYLOAD_TYPE, SIZE_LIMIT
from muaudit.reports.keys import KINDS, PublicKey, fingerprint_of, is_taken

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.verify import Verifier

TOKEN_VARIABLE = "SIGSTORE_ID_TOKEN"  # noqa: S105 - a variable's name, not a token
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle"
_CONFIG_TYPE = "application/vnd.dev.sigstore.clienttrustconfig"


@dataclass(frozen=True)
class Opened:
    """A bundle that holds.

    Attributes:
        payload: The bytes that were signed.
        key: The certificate's key, under the name of its identity.
        number: Which of the identities it is.
        valid_from: The certificate's first moment; the log vouches that it was used while it was valid.
        valid_until: Its last.
    """

    payload: bytes
    key: PublicKey
    number: int
    valid_from: datetime
    valid_until: datetime


def is_bundle(data: bytes) -> bool:
    """Whether bytes look like a Sigstore bundle; nothing of them is verified."""
    try:
        fields = json.loads(data) if len(data) <= SIZE_LIMIT else None
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and str(fields.get("mediaType", "")).startswith(_MEDIA_TYPE)


def sign(payload: bytes, *, token: str | None = None, trust: Path | None = None) -> bytes:
    """Signs a statement as an identity; needs the network.

    Args:
        payload: The statement, of `attestation.payload_without_signers`.
        token: An OpenID Connect token for the audience `sigstore`; without one the token of the CI that this runs in is taken,
            and where there is none a browser opens.
        trust: A ClientTrustConfig in JSON, for a Sigstore of one's own; the public one where it is None.

    Returns:
        The bundle.

    Raises:
        UsageError: The token or the configuration cannot be used.
        EnvironmentFault: sigstore is not installed, or its services do not answer.
    """
    _need()
    from sigstore.dsse import Statement
    from sigstore.sign import SigningContext

    config = _config(trust, offline=False)
    identity = _identity(config, token)
    try:
        with SigningContext.from_trust_config(config).signer(identity) as signer:
            return signer.sign_dsse(Statement(payload)).to_json().encode()
    except Exception as error:
        raise EnvironmentFault(f"Sigstore does not sign: {_told(error)}; look at the network, or sign with --key") from error


def verify(bundle: bytes, identities: Iterable[tuple[str, str]], *, trust: Path | None = None) -> Opened:
    """Checks a bundle, without the network.

    Args:
        bundle: The bundle.
        identities: Whose signatures count: identity and issuer.
        trust: A TrustedRoot or ClientTrustConfig in JSON; the public Sigstore's, as sigstore-python has it, where it is None.

    Returns:
        What it holds, and whose it is.

    Raises:
        VerificationError: It is not a bundle, or not signed by one of the identities.
        UsageError: The trusted root cannot be read, or no identity is given.
        EnvironmentFault: sigstore is not installed.
    """
    _need()
    from sigstore.models import Bundle
    from sigstore.verify.policy import Identity

    asked = list(identities)
    if not asked:
        raise UsageError("no identity is given, and anyone can sign with Sigstore; give --identity and --issuer")
    if len(bundle) > SIZE_LIMIT:
        raise VerificationError(f"the bundle has {len(bundle)} bytes, more than any that muaudit writes ({SIZE_LIMIT})")
    verifier, refusals = _verifier(trust), []
    for number, (identity, issuer) in enumerate(asked):
        try:
            opened = Bundle.from_json(bundle)
            kind, payload = verifier.verify_dsse(opened, Identity(identity=identity, issuer=issuer))
            certificate = opened.signing_certificate
            key = certificate.public_key()
        except Exception as error:  # noqa: BLE001 - a hostile bundle can break its parsers in any way
            refusals.append(f"{identity}: {_told(error)}")
            continue
        if kind != PAYLOAD_TYPE:
            raise VerificationError(f"the bundle holds {kind[:80]!r} and not an in-toto Statement ({PAYLOAD_TYPE})")
        if not is_taken(key):
            raise VerificationError(f"the bundle's certificate holds a key of a kind that is not taken ({KINDS})")
        signer = PublicKey(f"{identity} by {issuer}", fingerprint_of(key), key)
        return Opened(payload, signer, number, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    raise VerificationError(f"the Sigstore bundle does not verify: {'; '.join(refusals)}")


def _verifier(trust: Path | None) -> "Verifier":
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier

    try:
        if trust is None or _CONFIG_TYPE in trust.read_text(encoding="utf-8"):
            return Verifier(trusted_root=_config(trust, offline=True).trusted_root)
        return Verifier(trusted_root=TrustedRoot.from_file(str(trust)))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{trust or 'the public Sigstore'}: is no trusted root: {_told(error)}; give one as JSON") from error


def _config(trust: Path | None, *, offline: bool) -> "ClientTrustConfig":
    from sigstore.models import ClientTrustConfig

    if trust is None:
        try:
            return ClientTrustConfig.production(offline=offline)
        except Exception as error:
            raise EnvironmentFault(
                f"Sigstore's trusted root cannot be fetched: {_told(error)}; look at the network, or sign with --key"
            ) from error
    try:
        return ClientTrustConfig.from_json(trust.read_text(encoding="utf-8"))
    except Exception as error:
        raise UsageError(f"{trust}: is no ClientTrustConfig: {_told(error)}; give Sigstore's configuration as JSON") from error


def _identity(config: "ClientTrustConfig", token: str | None) -> "IdentityToken":
    from sigstore.oidc import IdentityToken, Issuer, detect_credential

    try:
        told = token or detect_credential()
        return IdentityToken(told) if told else Issuer(config.signing_config.get_oidc_url()).identity_token()
    except Exception as error:
        raise UsageError(
            f"no identity to sign as: {_told(error)}; set ${TOKEN_VARIABLE} to a fresh OpenID Connect token, or sign with --key"
        ) from error


def _told(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _need() -> None:
    try:
        import sigstore.models  # noqa: F401 - whether it is there
    except ImportError as error:
        raise EnvironmentFault(
            f"Sigstore needs {error.name}, which is not installed; install it: pip install 'muaudit[sigstore]'"
        ) from error
