"""RFC 3161 time stamps: an authority's word that a signature existed at a time, in files beside the envelope.

The token is about the raw bytes of one signature. `openssl ts` reads queries and replies as they are. Verification needs the
authority's root certificate and nothing else, no network and no authority that still exists; the certificates need to have been
valid at the time of the stamp, not now.

Source: RFC 3161; parsed and verified by rfc3161-client (https://github.com/trailofbits/rfc3161-client).
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from muaudit.errors import EnvironmentFault, UsageError, VerificationError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from rfc3161_client import TimeStampResponse

SIZE_LIMIT = 2**20
"""Bytes of a reply beyond which it is not even parsed; real ones have a few thousand."""

TIMEOUT = 30.0
"""Seconds that an authority has for its answer."""


@dataclass(frozen=True)
class TimeStamp:
    """A time that an authority vouches for.

    Attributes:
        time: When the signature existed, in UTC.
        fingerprint: Whose signature it is.
        authority: Subject of the certificate that signed the token.
    """

    time: datetime
    fingerprint: str
    authority: str


def query(signature: bytes) -> bytes:
    """What is sent to an authority: a digest, so that it learns nothing of the audit.

    Args:
        signature: The raw signature.

    Returns:
        A TimeStampReq in DER with SHA-512, a nonce and the wish for the certificates.

    Raises:
        EnvironmentFault: rfc3161-client is not installed.
    """
    _need()
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    builder = TimestampRequestBuilder().data(signature).nonce(nonce=True).cert_request(cert_request=True)
    return builder.hash_algorithm(HashAlgorithm.SHA512).build().as_bytes()


def fetch(url: str, question: bytes) -> bytes:
    """Asks an authority over HTTP (RFC 3161, section 3.4).

    Args:
        url: The authority's address, with http or https.
        question: What `query` made.

    Returns:
        The reply, which answers this very question.

    Raises:
        UsageError: The address is none.
        EnvironmentFault: The authority cannot be reached, or answers something else.
    """
    from urllib.request import Request, urlopen

    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url}: is no address of a time-stamp authority; give one that begins with https:// or http://")
    request = Request(url, question, {"Content-Type": "application/timestamp-query"})  # noqa: S310 - http or https
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - http or https
            reply: bytes = answer.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{url}: gives no time stamp: {error}; look at the address and the network") from error
    try:
        _check_answer(question, reply)
    except VerificationError as error:
        raise EnvironmentFault(f"{url}: gives no time stamp that can be used: {error}") from error
    return reply


def beside(envelope: Path, fingerprint: str, kind: str = "tsr") -> Path:
    """Where the query (`tsq`) or the reply (`tsr`) about one signature of an envelope lies."""
    return envelope.with_name(f"{envelope.name}.{fingerprint[:16]}.{kind}")


def found(envelope: Path, fingerprints: Iterable[str]) -> dict[str, bytes]:
    """The replies that lie beside an envelope.

    Args:
        envelope: Its file.
        fingerprints: Whose signatures it carries.

    Returns:
        Replies by fingerprint, of those that there are.

    Raises:
        VerificationError: A reply is too large or cannot be read.
    """
    replies = {}
    for fingerprint in fingerprints:
        path = beside(envelope, fingerprint)
        if path.exists():
            try:
                with path.open("rb") as handle:
                    replies[fingerprint] = handle.read(SIZE_LIMIT + 1)
            except OSError as error:
                raise VerificationError(f"{path}: cannot be read: {error.strerror}; give a time stamp that can be") from error
    return replies


def load_roots(paths: Iterable[Path]) -> list["Certificate"]:
    """Reads the certificates of authorities that are trusted.

    Args:
        paths: PEM files; all certificates of each are taken.

    Returns:
        The certificates, each once.

    Raises:
        UsageError: A file cannot be read or holds no certificate.
    """
    from cryptography.x509 import load_pem_x509_certificates

    roots: list[Certificate] = []
    for path in paths:
        try:
            roots += [one for one in load_pem_x509_certificates(path.read_bytes()) if one not in roots]
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: is no PEM file of certificates; give the time-stamp authority's root") from error
    return roots


def verify(
    replies: Mapping[str, bytes], signatures: Mapping[str, bytes], roots: Iterable["Certificate"]
) -> tuple[TimeStamp, ...]:
    """Checks time stamps.

    Args:
        replies: Replies by the fingerprint of the signer.
        signatures: Raw signatures, likewise.
        roots: Certificates that are trusted; the authority's own chain comes with its reply.

    Returns:
        The time stamps, in the order of the fingerprints.

    Raises:
        VerificationError: A reply is not a time stamp about this signature by an authority that is trusted.
        EnvironmentFault: rfc3161-client is not installed.
        UsageError: No root is given.
    """
    _need()
    trusted = list(roots)
    if not trusted:
        raise UsageError("no root certificate is given, and anyone can be a time-stamp authority; give --tsa-root FILE.pem")
    return tuple(_verified(replies[key], signatures[key], key, trusted) for key in sorted(replies) if key in signatures)


def _verified(reply: bytes, signature: bytes, fingerprint: str, roots: list["Certificate"]) -> TimeStamp:
    from rfc3161_client import VerifierBuilder

    response = _parse(reply)
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd certificates, which are refused or do not matter
            VerifierBuilder(roots=roots).build().verify_message(response, signature)
            return TimeStamp(response.tst_info.gen_time.astimezone(UTC), fingerprint, _authority(response))
    except Exception as error:  # a hostile reply can break its parsers in any way
        raise VerificationError(
            f"the time stamp of signature {fingerprint[:16]} does not hold: {_reason(error)}; "
            "get the envelope and its .tsr again, or give the root of the authority that made it"
        ) from error


def _authority(response: "TimeStampResponse") -> str:
    from cryptography.x509 import load_der_x509_certificate

    (signed,) = response.signed_data.signer_infos
    for certificate in map(load_der_x509_certificate, response.signed_data.certificates):
        if (certificate.issuer, certificate.serial_number) == (signed.issuer, signed.serial_number):
            return certificate.subject.rfc4514_string()
    raise ValueError("it lacks the certificate of who signed it")


def _parse(reply: bytes) -> "TimeStampResponse":
    from rfc3161_client import decode_timestamp_response

    if len(reply) > SIZE_LIMIT:
        raise VerificationError(f"a time stamp has more than {SIZE_LIMIT} bytes; no authority writes such")
    try:
        try:
            return decode_timestamp_response(reply)
        except ValueError:
            return decode_timestamp_response(_in_order(reply))
    except Exception as error:  # a hostile reply can break its parsers in any way
        raise VerificationError(f"a time stamp is not a reply as RFC 3161 has it ({_reason(error)}); get it again") from error


def _in_order(reply: bytes) -> bytes:
    """The reply with its certificates in the order that DER asks for.

    OpenSSL before 3.2 writes a chain of certificates as it comes, and the parser refuses that. The list is not covered by the
    token's signature, so its order can be mended; which certificate signed is said in what is signed.
    """
    from asn1crypto.cms import CertificateSet
    from asn1crypto.tsp import TimeStampResp

    response = TimeStampResp.load(reply, strict=True)
    signed = response["time_stamp_token"]["content"]
    signed["certificates"] = CertificateSet(sorted(signed["certificates"], key=lambda one: one.dump()))
    mended: bytes = response.dump()
    return mended


def _reason(error: Exception) -> str:
    """What went wrong, without OpenSSL's whole stack where it has one."""
    told = re.search(r'Verify error: ([^"]+)', str(error))
    return told[1] if told else " ".join(str(error).split())[:200]


def _check_answer(question: bytes, reply: bytes) -> None:
    """Refuses a reply to another question; whether its authority is trusted is for the verifier to say."""
    from asn1crypto.tsp import TimeStampReq
    from rfc3161_client import PKIStatus

    response, asked = _parse(reply), TimeStampReq.load(question)
    if response.status != PKIStatus.GRANTED:
        raise VerificationError(f"the authority refuses: {', '.join(response.status_string) or response.status}")
    said = response.tst_info
    if (said.nonce, said.message_imprint.message) != (asked["nonce"].native, asked["message_imprint"]["hashed_message"].native):
        raise VerificationError("the reply is to another question")


def _need() -> None:
    try:
        import asn1crypto.tsp  # noqa: F401 - whether it is there
        import rfc3161_client  # noqa: F401 - whether it is there
    except ImportError as error:
        raise EnvironmentFault(
            f"time stamps need {error.name}, which is not installed; install it: pip install 'muaudit[tsa]'"
        ) from error
