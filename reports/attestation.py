"""The signed answer: an in-toto Statement about the target in a DSSE envelope, and its strict verification.

Sources: in-toto Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md), DSSE
(https://github.com/secure-systems-lab/dsse), RFC 8785 (canonical JSON). References, original and data stand in the predicate
and are never subjects: consumers match subjects by digest alone, so a `fail` would attach to the reference too.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from muaudit.errors import ModelError, UsageError, VerificationError
from muaudit.manifest import ALGORITHM, manifest, manifest_digest, manifest_entries
from muaudit.reports.keys import PublicKey, by_fingerprint, fingerprint_of, load_private
from muaudit.results import AuditReport, Finding, ModelRecord, Verdict

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://muaudit.dev/attestation/unlearning-audit/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SUBJECT = "target"
SIZE_LIMIT = 16 * 2**20
"""Bytes of an envelope beyond which it is not even parsed; room for a manifest of some 80,000 files."""

SHOWN = 5
"""How many changed files an error names."""

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Signed(BaseModel):
    """Fields in camelCase as in-toto writes them; fields that a later muaudit adds are signed too, and ignored here."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, alias_generator=to_camel)


class Digest(_Signed):
    """An in-toto DigestSet with the one algorithm that is used here."""

    sha256: Hex


class Descriptor(_Signed):
    """An in-toto ResourceDescriptor."""

    name: str
    digest: Digest
    annotations: dict[str, Any] = {}


class ManifestEntry(_Signed):
    """One file of the target."""

    name: str
    algorithm: Literal["sha256"]
    digest: Hex


class FindingSummary(_Signed):
    """A finding without its prose, which can name people: an envelope travels further than the report."""

    attack: str
    measures: Literal["leakage", "retention", "claim"]
    verdict: Verdict
    gap: float | None
    interval: tuple[float, float] | None
    upper_bound: float | None
    lower_bound: float | None
    margin: float | None
    units: int
    clusters: int


class Predicate(_Signed):
    """What is signed about the target.

    Attributes:
        manifest: Every file of the target; the SHA-256 of this list as RFC 8785 JSON is the subject's digest.
        report: `report.json`, by the digest of its bytes.
        plan: The plan that was frozen before the data were seen.
        issued_at: When it was signed, in the signer's word.
        signers: Key ids of all who sign, so that a signature that is taken away is missed.
    """

    verdict: Verdict
    findings: tuple[FindingSummary, ...]
    manifest: tuple[ManifestEntry, ...]
    report: Descriptor
    plan: Descriptor
    policy: str
    references: tuple[Descriptor, ...]
    original: Descriptor | None
    data: tuple[Descriptor, ...]
    tool: str
    issued_at: str
    signers: tuple[Hex, ...]


class Statement(_Signed):
    """An in-toto Statement v1 of this predicate type about exactly one subject."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Descriptor]
    predicate_type: Literal["https://muaudit.dev/attestation/unlearning-audit/v1"]
    predicate: Predicate


@dataclass(frozen=True)
class Verified:
    """What a verification established.

    Attributes:
        verdict: The audit's answer, which is apart from whether it verifies.
        signers: Who signed, as trusted keys.
        issued_at: When, in the signers' word: no time-stamp authority vouches for it.
        target_digest: SHA-256 of the target's manifest.
        plan_sha256: Digest of the plan.
        report_sha256: Digest of report.json.
        predicate: All else that was signed.
        checked: What was compared and found equal, in words.
        unchecked: What was not, and how to.
    """

    verdict: Verdict
    signers: tuple[PublicKey, ...]
    issued_at: datetime
    target_digest: str
    plan_sha256: str
    report_sha256: str
    predicate: Predicate
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def sign(
    report: AuditReport, report_bytes: bytes, private_key_path: Path, *, issued_at: datetime, passphrase: bytes | None = None
) -> bytes:
    """Signs a report.

    Args:
        report: The report.
        report_bytes: The bytes of its report.json, whose digest is signed.
        private_key_path: The auditor's key.
        issued_at: The time of signing, with its time zone.
        passphrase: What the key is encrypted with.

    Returns:
        The bytes of `audit.intoto.json`.

    Raises:
        UsageError: The key cannot be used, the time has no zone, the bytes are not this report, or the report's own digest of
            the target is not that of the files it lists.
        EnvironmentFault: The key is encrypted but bcrypt is not installed.
    """
    return seal(report, report_bytes, [load_private(private_key_path, passphrase)], issued_at=issued_at)


def seal(report: AuditReport, report_bytes: bytes, keys: "Sequence[Ed25519PrivateKey]", *, issued_at: datetime) -> bytes:
    """Signs a report with keys that are already open; see `sign`.

    Args:
        report: The report.
        report_bytes: The bytes of its report.json.
        keys: One or more private keys, each of which signs.
        issued_at: The time of signing, with its time zone.

    Returns:
        The bytes of `audit.intoto.json`.

    Raises:
        UsageError: As for `sign`.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, SSlibKey

    if issued_at.tzinfo is None:
        raise UsageError("issued_at has no time zone, so nobody could tell when the report was signed; give a time in UTC")
    if AuditReport.from_json(report_bytes).canonical() != report.canonical():
        raise UsageError("report.json is not the report that is to be signed; write it again from the report, then sign")
    if manifest_digest(report.target.files) != report.target.digest:
        raise UsageError("the report's digest of the target is not that of the files it lists; run the audit again")
    holders = {fingerprint_of(key.public_key()): key for key in keys}
    statement = _statement(report, report_bytes, sorted(holders), issued_at)
    envelope = Envelope(rfc8785.dumps(statement), PAYLOAD_TYPE, {})
    for fingerprint in sorted(holders):
        key = holders[fingerprint]
        envelope.sign(CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), keyid=fingerprint)))
    return rfc8785.dumps(envelope.to_dict())


def verify(
    envelope: bytes, public_keys: Iterable[PublicKey], *, report: bytes | None = None, model: Path | None = None
) -> Verified:
    """Checks that an envelope is what trusted keys signed, and that report and model are what it speaks of.

    Whether the audit passed is another question: a `fail` that was signed verifies.

    Args:
        envelope: The bytes of `audit.intoto.json`.
        public_keys: The keys that are trusted.
        report: The bytes of the report.json that lies beside it.
        model: The target's folder or file.

    Returns:
        What was signed, by whom, and what was and was not checked.

    Raises:
        VerificationError: Anything differs; the message says what.
        UsageError: There is no model at the given path, or no key is given.
    """
    trusted = by_fingerprint(public_keys)
    if not trusted:
        raise UsageError(
            "no public key is given, and a signature of an unknown key proves nothing; give the auditor's .pub file"
        )
    payload, signers = _open(envelope, trusted)
    statement = _parse(payload)
    predicate, subject = statement.predicate, statement.subject[0]
    if list(predicate.signers) != signers:
        raise VerificationError(
            f"the envelope names {len(predicate.signers)} signers and carries the signatures of {len(signers)}: "
            "a signature was taken away or added; get the envelope again"
        )
    _check_manifest(subject, predicate)
    checked, unchecked = ["signature", "statement", "manifest"], []
    if report is not None:
        _check_report(report, predicate, subject.digest.sha256)
        checked.append("report.json")
    else:
        unchecked.append("report.json: put it beside the envelope, or give it")
    if model is not None:
        _check_model(model, predicate.manifest)
        checked.append(f"model: all {len(predicate.manifest)} files of {model}")
    else:
        unchecked.append("model: give its folder, to see that the audit was about these very files")
    return Verified(
        verdict=predicate.verdict,
        signers=tuple(trusted[fingerprint] for fingerprint in signers),
        issued_at=datetime.fromisoformat(predicate.issued_at),
        target_digest=subject.digest.sha256,
        plan_sha256=predicate.plan.digest.sha256,
        report_sha256=predicate.report.digest.sha256,
        predicate=predicate,
        checked=tuple(checked),
        unchecked=tuple(unchecked),
    )


def _statement(report: AuditReport, report_bytes: bytes, signers: list[str], issued_at: datetime) -> dict[str, Any]:
    roles: dict[str, list[dict[str, Any]]] = {}
    for model in report.models:
        roles.setdefault(model.role.split()[0], []).append(_model(model))
    predicate = {
        "verdict": report.verdict.value,
        "findings": [_finding(finding) for finding in report.findings],
        "manifest": manifest_entries(report.target.files),
        "report": _descriptor("report.json", hashlib.sha256(report_bytes).hexdigest()),
        "plan": _descriptor("plan.json", report.plan_sha256),
        "policy": str(report.policy.get("name", "")),
        "references": roles.get("reference", []),
        "original": next(iter(roles.get("original", [])), None),
        "data": [
            _descriptor(data.path, data.sha256, role=data.role, units=data.units, clusters=data.clusters)
            for data in report.data
        ],
        "tool": report.tool,
        "issuedAt": issued_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "signers": signers,
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [_descriptor(SUBJECT, report.target.digest)],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _descriptor(name: str, digest: str, **annotations: str | int) -> dict[str, Any]:
    return {"name": name, "digest": {ALGORITHM: digest}} | ({"annotations": annotations} if annotations else {})


def _model(model: ModelRecord) -> dict[str, Any]:
    return _descriptor(model.path, model.digest, role=model.role, kind=model.kind)


def _finding(finding: Finding) -> dict[str, Any]:
    fields = finding.model_dump(mode="json", include=set(FindingSummary.model_fields))
    return {to_camel(name): value for name, value in fields.items()}


def _open(envelope: bytes, trusted: dict[str, PublicKey]) -> tuple[bytes, list[str]]:
    """The payload and its signers, of an envelope in the one form in which muaudit writes it."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import UnverifiedSignatureError
    from securesystemslib.signer import Signature, SSlibKey

    if len(envelope) > SIZE_LIMIT:
        raise VerificationError(f"the envelope has {len(envelope)} bytes, more than any that muaudit writes ({SIZE_LIMIT})")
    fields = _canonical(envelope, "the envelope")
    if not isinstance(fields, dict) or set(fields) != {"payload", "payloadType", "signatures"}:
        raise VerificationError("the envelope is not a DSSE envelope of exactly payload, payloadType and signatures")
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise VerificationError(f"the envelope holds {fields['payloadType']!r} and not an in-toto Statement ({PAYLOAD_TYPE})")
    payload, signatures = _base64(fields["payload"], "payload"), _signatures(fields["signatures"])
    pae = Envelope(payload, PAYLOAD_TYPE, {}).pae()
    for fingerprint, signature in signatures.items():
        if fingerprint not in trusted:
            names = ", ".join(f"{key.name} ({key.fingerprint[:16]})" for key in trusted.values())
            raise VerificationError(
                f"not signed by {names}: the envelope says that {fingerprint[:16]} signed it; give that key if you trust it"
            )
        try:
            SSlibKey.from_crypto(trusted[fingerprint].key, keyid=fingerprint).verify_signature(
                Signature(fingerprint, signature.hex()), pae
            )
        except UnverifiedSignatureError as error:
            raise VerificationError(
                f"the signature of {trusted[fingerprint].name} ({fingerprint[:16]}) does not fit: "
                "the envelope was changed after it was signed; get it again from the auditor"
            ) from error
    return payload, list(signatures)


def _canonical(data: bytes, what: str) -> Any:  # noqa: ANN401 - any JSON
    """Parses JSON and refuses all but the canonical spelling, so that no bit is free."""
    try:
        value = json.loads(data.decode())
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{what} is not JSON as muaudit writes it: it was changed or cut; get it again") from error
    if canonical != data:
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


def _signatures(entries: object) -> dict[str, bytes]:
    if not isinstance(entries, list) or not entries:
        raise VerificationError("the envelope carries no signature")
    signatures: dict[str, bytes] = {}
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"} or not isinstance(entry["keyid"], str):
            raise VerificationError("a signature of the envelope holds other fields than exactly keyid and sig")
        if signatures and entry["keyid"] <= max(signatures):
            raise VerificationError("the envelope's signatures are out of order or double: they were changed after signing")
        signatures[entry["keyid"]] = _base64(entry["sig"], "signature")
    return signatures


def _parse(payload: bytes) -> Statement:
    value = _canonical(payload, "the signed statement")
    try:
        statement = Statement.model_validate(value)
        issued = datetime.fromisoformat(statement.predicate.issued_at)
    except (ValidationError, ValueError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "predicate.issuedAt"
        raise VerificationError(
            f"the signed statement is not an unlearning audit of one target ({PREDICATE_TYPE}): {where} is not as it must be"
        ) from error
    if issued.tzinfo is None or statement.subject[0].name != SUBJECT:
        raise VerificationError("the signed statement is not about one target at a time in UTC")
    return statement


def _check_manifest(subject: Descriptor, predicate: Predicate) -> None:
    listed = hashlib.sha256(rfc8785.dumps([entry.model_dump() for entry in predicate.manifest])).hexdigest()
    if listed != subject.digest.sha256:
        raise VerificationError("the signed list of the target's files is not the one that the statement's subject stands for")


def _check_report(data: bytes, predicate: Predicate, target_digest: str) -> None:
    if hashlib.sha256(data).hexdigest() != predicate.report.digest.sha256:
        raise VerificationError("report.json is not the one that was signed: it was changed or belongs to another audit")
    try:
        report = AuditReport.from_json(data)
    except UsageError as error:
        raise VerificationError(f"report.json is the one that was signed, but cannot be read: {error}") from error
    said = (report.verdict, report.plan_sha256, report.target.digest)
    if said != (predicate.verdict, predicate.plan.digest.sha256, target_digest):
        raise VerificationError("report.json and the signed statement disagree on verdict, plan or target; ask the auditor")


def _check_model(path: Path, signed: Iterable[ManifestEntry]) -> None:
    if not path.exists():
        raise UsageError(f"{path}: there is no such model; give the folder or file that is to be compared with the signed one")
    try:
        present = {file.name: file.sha256 for file in manifest(path)}
    except ModelError as error:
        raise VerificationError(f"the model is not the one that was signed: {error}") from error
    if differences := _differences({entry.name: entry.digest for entry in signed}, present):
        counted = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise VerificationError(f"the model is not the one that was signed: {'; '.join(differences[:SHOWN])}{counted} ({path})")


def _differences(signed: dict[str, str], present: dict[str, str]) -> list[str]:
    """What happened to the files, in words; a missing file whose content turned up elsewhere was renamed."""
    extra = sorted(set(present) - set(signed))
    words = [f"file {name!r} changed" for name in sorted(set(signed) & set(present)) if signed[name] != present[name]]
    for name in sorted(set(signed) - set(present)):
        renamed = next((other for other in extra if present[other] == signed[name]), None)
        if renamed is None:
            words.append(f"missing file {name!r}")
        else:
            words.append(f"file {name!r} renamed to {renamed!r}")
            extra.remove(renamed)
    return words + [f"extra file {name!r}" for name in extra]
