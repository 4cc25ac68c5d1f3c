"""A DSSE envelope in the one spelling in which muaudit writes it, so that not one bit of it is free.

Source: DSSE (https://github.com/secure-systems-lab/dsse), RFC 8785 (canonical JSON).
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from muaudit.errors import VerificationError
from muaudit.reports.keys import PublicKey, fits

PAYLOAD_TYPE = "application/vnd.in-toto+json"
SIZE_LIMIT = 16 * 2**20
"""Bytes of an envelope beyond which it is not even parsed; room for a manifest of some 80,000 files."""


@dataclass(frozen=True)
class Envelope:
    """What an envelope holds; nothing of it is verified yet.

    Attributes:
        payload: The bytes that were signed.
        signatures: Raw signatures by key id, in order; a key id is but a hint at the key.
    """

    payload: bytes
    signatures: dict[str, bytes]


def pack(envelope: Envelope) -> bytes:
    """Writes an envelope.

    Args:
        envelope: The payload, and at least one signature.

    Returns:
        RFC 8785 canonical JSON, the signatures in the order of their key ids.
    """
    from securesystemslib.dsse import Envelope as Dsse
    from securesystemslib.signer import Signature

    ordered = {keyid: Signature(keyid, envelope.signatures[keyid].hex()) for keyid in sorted(envelope.signatures)}
    return rfc8785.dumps(Dsse(envelope.payload, PAYLOAD_TYPE, ordered).to_dict())


def unpack(data: bytes) -> Envelope:
    """Reads an envelope.

    Args:
        data: What `pack` wrote.

    Returns:
        The envelope.

    Raises:
        VerificationError: It is too large, no DSSE envelope of an in-toto Statement, or not byte for byte as `pack` writes it.
    """
    if len(data) > SIZE_LIMIT:
        raise VerificationError(f"the envelope has {len(data)} bytes, more than any that muaudit writes ({SIZE_LIMIT})")
    fields = canonical(data, "the envelope")
    if not isinstance(fields, dict) or set(fields) != {"payload", "payloadType", "signatures"}:
        raise VerificationError(
            "the envelope is not a DSSE envelope of exactly payload, payloadType and signatures; give audit.intoto.json"
        )
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise VerificationError(
            f"the envelope holds {str(fields['payloadType'])[:80]!r} and not an in-toto Statement ({PAYLOAD_TYPE}); "
            "give audit.intoto.json"
        )
    return Envelope(_base64(fields["payload"], "payload"), _signatures(fields["signatures"]))


def signed_bytes(payload: bytes) -> bytes:
    """What is signed: not the payload alone but its type and length too (DSSE's PAE)."""
    from securesystemslib.dsse import Envelope as Dsse

    encoded: bytes = Dsse(payload, PAYLOAD_TYPE, {}).pae()
    return encoded


def check_signatures(envelope: Envelope, trusted: Mapping[str, PublicKey]) -> None:
    """Checks every signature.

    Args:
        envelope: The envelope.
        trusted: Keys by fingerprint.

    Raises:
        VerificationError: A signature is not of a trusted key, or does not fit.
    """
    signed = signed_bytes(envelope.payload)
    for keyid, signature in envelope.signatures.items():
        if keyid not in trusted:
            names = ", ".join(f"{key.name} ({key.fingerprint[:16]})" for key in trusted.values())
            raise VerificationError(
                f"not signed by {names}: the envelope says that {keyid[:16]} signed it; give that key if you trust it"
            )
        if not fits(trusted[keyid].key, signature, signed):
            raise VerificationError(
                f"the signature of {trusted[keyid].name} ({keyid[:16]}) does not fit: "
                "the envelope was changed after it was signed; get it again from the auditor"
            )


def canonical(data: bytes, what: str) -> Any:  # noqa: ANN401 - any JSON
    """Parses JSON and refuses all but the canonical spelling.

    Args:
        data: JSON.
        what: What it is, for the error.

    Returns:
        Its value.

    Raises:
        VerificationError: It is not RFC 8785 canonical JSON.
    """
    try:
        value = json.loads(data.decode())
        spelled = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{what} is not JSON as muaudit writes it: it was changed or cut; get it again") from error
    if spelled != data:
        raise VerificationError(f"{what} is not byte for byte as it was written (not RFC 8785 canonical JSON); get it again")
    return value


def _base64(text: object, what: str) -> bytes:
    try:
        data = base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except ValueError as error:
        raise VerificationError(f"the envelope's {what} is not base64: it was changed; get it again") from error
    if base64.b64encode(data).decode() != text:
        raise VerificationError(f"the envelope's {what} is not spelled as it was written (spare bits of base64); get it again")
    return data


def _is_keyid(value: object) -> bool:
    """Whether a key id is a fingerprint: it is not trusted yet, and names files of time stamps."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _signatures(entries: object) -> dict[str, bytes]:
    if not isinstance(entries, list) or not entries:
        raise VerificationError("the envelope carries no signature; get it again from the auditor")
    signatures: dict[str, bytes] = {}
    last = ""
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"} or not _is_keyid(entry["keyid"]):
            raise VerificationError(
                "a signature of the envelope holds other than exactly keyid (a fingerprint) and sig; get it again"
            )
        if signatures and entry["keyid"] <= last:
            raise VerificationError("the envelope's signatures are out of order or double: they were changed after signing")
        last = entry["keyid"]
        signatures[last] = _base64(entry["sig"], "signature")
    return signatures
