"""The signed words about a calibration: an in-toto Statement of a predicate type of its own, in the same strict envelope.

Its subject is calibration.json, by the digest of its bytes. What a reader needs without that file, the error rates under each
policy, stands in the predicate too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import rfc8785
from pydantic import Field, ValidationError
from pydantic.alias_generators import to_camel

from muaudit.calibration.record import CalibrationRecord, PolicyRates, Rate
from muaudit.errors import UsageError, VerificationError
from muaudit.manifest import ALGORITHM
from muaudit.reports.attestation import ROLE
from muaudit.reports.envelope import Envelope, canonical, check_signatures, pack, signed_bytes, unpack
from muaudit.reports.keys import PublicKey, by_fingerprint
from muaudit.reports.signers import Signer
from muaudit.reports.statement import STATEMENT_TYPE, Descriptor, Hex, Role, SignedFields, is_role

PREDICATE_TYPE = "https://muaudit.dev/attestation/unlearning-calibration/v1"
SUBJECT = "calibration.json"


class SignedRate(SignedFields):
    """How often something happened, of how many."""

    hits: int
    total: int
    bound: float


class SignedPolicy(SignedFields):
    """The verdict's errors under one policy."""

    policy: str
    sha256: Hex
    false_alarm: SignedRate | None
    detection: SignedRate | None


class CalibrationPredicate(SignedFields):
    """What is signed about a calibration.

    Attributes:
        plan: The plan that was frozen before anything was measured.
        family: What kind of task the models are for.
        bed: The testbed that they are of.
        policies: The errors under each policy that was applied.
        issued_at: When it was signed, in the signer's word.
        signers: Key ids of all who signed.
        roles: What each of them signed as.
    """

    plan: Descriptor
    family: str
    bed: str
    policies: tuple[SignedPolicy, ...]
    tool: str
    issued_at: str
    signers: tuple[Hex, ...]
    roles: dict[Hex, Role] = {}


class CalibrationStatement(SignedFields):
    """An in-toto Statement v1 of this predicate type about exactly one record."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Descriptor]
    predicate_type: Literal["https://muaudit.dev/attestation/unlearning-calibration/v1"]
    predicate: CalibrationPredicate


@dataclass(frozen=True)
class VerifiedCalibration:
    """What a verification established.

    Attributes:
        signers: Who signed, as trusted keys.
        roles: What each signed as, by fingerprint.
        issued_at: When, in the signers' word.
        sha256: Digest of calibration.json, which reports cite.
        predicate: All else that was signed.
        checked: What was compared and found equal.
        unchecked: What was not, and how to.
    """

    signers: tuple[PublicKey, ...]
    roles: Mapping[str, str]
    issued_at: datetime
    sha256: str
    predicate: CalibrationPredicate
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def seal(record: CalibrationRecord, data: bytes, signers: Sequence[Signer], *, issued_at: datetime, role: str = ROLE) -> bytes:
    """Signs a calibration record.

    Args:
        record: The record.
        data: The bytes of its calibration.json.
        signers: Who signs.
        issued_at: The time of signing, with its time zone.
        role: What they sign as.

    Returns:
        The bytes of `calibration.intoto.json`.

    Raises:
        UsageError: The time has no zone, the role is no role, or the bytes are not this record.
        EnvironmentFault: A security module or a key service does not answer.
    """
    if issued_at.tzinfo is None:
        raise UsageError("issued_at has no time zone, so nobody could tell when the record was signed; give a time in UTC")
    if not is_role(role):
        raise UsageError(f"role {role!r}: give a word such as auditor, operator or witness (a-z, 0-9 and -, at most 40)")
    if CalibrationRecord.from_json(data).canonical() != record.canonical():
        raise UsageError("calibration.json is not the record that is to be signed; write it again from the record, then sign")
    payload = rfc8785.dumps(_statement(record, data, {one.fingerprint: role for one in signers}, issued_at))
    signed = signed_bytes(payload)
    return pack(Envelope(payload, {one.fingerprint: one.sign(signed) for one in signers}))


def is_calibration(data: bytes) -> bool:
    """Whether an envelope says that it is about a calibration; nothing of it is verified."""
    try:
        return bool(json.loads(unpack(data).payload)["predicateType"] == PREDICATE_TYPE)
    except (VerificationError, ValueError, KeyError, TypeError, RecursionError):
        return False


def verify(envelope: bytes, keys: Iterable[PublicKey], *, record: bytes | None = None) -> VerifiedCalibration:
    """Checks that an envelope is what trusted keys signed, and that the record is the one that it speaks of.

    Args:
        envelope: The bytes of `calibration.intoto.json`.
        keys: The keys that are trusted.
        record: The bytes of the calibration.json that lies beside it.

    Returns:
        What was signed, by whom, and what was and was not checked.

    Raises:
        VerificationError: Anything differs; the message says what.
        UsageError: No key is given.
    """
    trusted = by_fingerprint(keys)
    if not trusted:
        raise UsageError(
            "no public key is given, and a signature of an unknown key proves nothing; give the signer's .pub file"
        )
    opened = unpack(envelope)
    check_signatures(opened, trusted)
    statement = read(opened.payload)
    if set(statement.predicate.signers) != set(opened.signatures):
        raise VerificationError("the envelope does not carry the signatures of those whom it names; get it again")
    checked, unchecked = ["signature", "statement"], []
    if record is None:
        unchecked.append("calibration.json: put it beside the envelope, or give it with --report")
    else:
        _check_record(record, statement)
        checked.append("calibration.json")
    predicate = statement.predicate
    return VerifiedCalibration(
        signers=tuple(trusted[keyid] for keyid in opened.signatures),
        roles={keyid: predicate.roles.get(keyid, ROLE) for keyid in opened.signatures},
        issued_at=datetime.fromisoformat(predicate.issued_at),
        sha256=statement.subject[0].digest.sha256,
        predicate=predicate,
        checked=tuple(checked),
        unchecked=tuple(unchecked),
    )


def read(payload: bytes) -> CalibrationStatement:
    """Reads a payload whose signatures were verified.

    Raises:
        VerificationError: It is not canonical, or not about one calibration.
    """
    value = canonical(payload, "the signed statement")
    try:
        statement = CalibrationStatement.model_validate(value)
        issued = datetime.fromisoformat(statement.predicate.issued_at)
    except (ValidationError, ValueError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "predicate.issuedAt"
        raise VerificationError(
            f"the signed statement is not about one calibration ({PREDICATE_TYPE}): {where} is not as it must be"
        ) from error
    if issued.tzinfo is None or statement.subject[0].name != SUBJECT:
        raise VerificationError("the signed statement is not about one calibration at a time in UTC")
    return statement


def _check_record(data: bytes, statement: CalibrationStatement) -> None:
    if hashlib.sha256(data).hexdigest() != statement.subject[0].digest.sha256:
        raise VerificationError(
            "calibration.json is not the one that was signed: it was changed or belongs to another calibration"
        )
    try:
        record = CalibrationRecord.from_json(data)
    except UsageError as error:
        raise VerificationError(f"calibration.json is the one that was signed, but cannot be read: {error}") from error
    said = [SignedPolicy.model_validate(one) for one in _policies(record)]
    if said != list(statement.predicate.policies) or record.plan_sha256 != statement.predicate.plan.digest.sha256:
        raise VerificationError(
            "calibration.json and the signed statement disagree on the plan or the error rates; ask the signer"
        )


def _statement(record: CalibrationRecord, data: bytes, roles: Mapping[str, str], issued_at: datetime) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": SUBJECT, "digest": {ALGORITHM: hashlib.sha256(data).hexdigest()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "plan": {"name": "plan.json", "digest": {ALGORITHM: record.plan_sha256}},
            "family": record.family,
            "bed": record.bed,
            "policies": _policies(record),
            "tool": record.tool,
            "issuedAt": issued_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "signers": sorted(roles),
            "roles": dict(roles),
        },
    }


def _policies(record: CalibrationRecord) -> list[dict[str, Any]]:
    applied: list[PolicyRates] = [one for one in record.policies if one.left_out is None]
    return [
        {
            "policy": one.policy,
            "sha256": one.sha256,
            to_camel("false_alarm"): _rate(one.false_alarm),
            "detection": _rate(one.detection),
        }
        for one in applied
    ]


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {"hits": rate.hits, "total": rate.total, "bound": rate.bound}
