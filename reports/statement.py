"""The signed words: an in-toto Statement about the target, as records and as the bytes that are signed.

Sources: in-toto Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md). References, original
and data stand in the predicate and are never subjects: consumers match subjects by digest alone, so a `fail` would attach to
the reference too.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from muaudit.errors import VerificationError
from muaudit.manifest import ALGORITHM, manifest_entries
from muaudit.reports.envelope import canonical
from muaudit.results import AuditReport, DataRecord, Finding, ModelRecord, Verdict

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://muaudit.dev/attestation/unlearning-audit/v1"
SUBJECT = "target"
PUBLIC, SEALED = "report.public.json", "report.sealed.json"
"""What the two parts of a redacted report are called."""

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_ROLE = r"^[a-z][a-z0-9-]{0,39}$"
Role = Annotated[str, StringConstraints(pattern=_ROLE)]
"""What somebody signs as, such as `auditor`, `operator` or `witness`."""


class SignedFields(BaseModel):
    """Fields in camelCase as in-toto writes them; fields that a later muaudit adds are signed too, and ignored here."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, alias_generator=to_camel)


class Digest(SignedFields):
    """An in-toto DigestSet with the one algorithm that is used here."""

    sha256: Hex


class Descriptor(SignedFields):
    """An in-toto ResourceDescriptor."""

    name: str
    digest: Digest
    annotations: dict[str, Any] = {}


class ManifestEntry(SignedFields):
    """One file of the target."""

    name: str
    algorithm: Literal["sha256"]
    digest: Hex


class FindingSummary(SignedFields):
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


class Predicate(SignedFields):
    """What is signed about the target.

    Attributes:
        manifest: Every file of the target; the SHA-256 of this list as RFC 8785 JSON is the subject's digest.
        report: `report.json`, by the digest of its bytes.
        plan: The plan that was frozen before the data were seen.
        issued_at: When it was signed, in the signer's word.
        signers: Key ids of all who are to sign, so that a signature that is taken away is missed. Empty in a statement that
            Sigstore signs, whose certificate names the signer.
        roles: What each of them signs as; empty in statements of muaudit 0.1.0.
        threshold: How many of them are enough; all where it is not said.
        sealed: Of a public report: the sealed part that opens it, by the digest of its bytes.
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
    roles: dict[Hex, Role] = {}
    threshold: int | None = Field(default=None, ge=1)
    sealed: Descriptor | None = None

    def issued(self) -> datetime:
        """The time of signing, with its zone."""
        return datetime.fromisoformat(self.issued_at)


class Statement(SignedFields):
    """An in-toto Statement v1 of this predicate type about exactly one subject."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Descriptor]
    predicate_type: Literal["https://muaudit.dev/attestation/unlearning-audit/v1"]
    predicate: Predicate


def write(
    report: AuditReport, report_bytes: bytes, roles: Mapping[str, str], *, threshold: int | None, issued_at: datetime
) -> bytes:
    """The statement about a report's target.

    Args:
        report: The report.
        report_bytes: The bytes of its report.json.
        roles: What each signer signs as, by key id.
        threshold: How many of them are enough; all where it is None.
        issued_at: The time of signing, with its time zone.

    Returns:
        RFC 8785 canonical JSON, the payload that is signed.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for model in report.models:
        models.setdefault(model.role.split()[0], []).append(_model(model))
    predicate: dict[str, Any] = {
        "verdict": report.verdict.value,
        "findings": [_finding(finding) for finding in report.findings],
        "manifest": manifest_entries(report.target.files),
        "report": _descriptor(PUBLIC if report.redaction else "report.json", hashlib.sha256(report_bytes).hexdigest()),
        "plan": _descriptor("plan.json", report.plan_sha256),
        "policy": str(report.policy.get("name", "")),
        "references": models.get("reference", []),
        "original": next(iter(models.get("original", [])), None),
        "data": [_data(data) for data in report.data],
        "tool": report.tool,
        "issuedAt": issued_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "signers": sorted(roles),
        "roles": dict(roles),
    }
    if threshold is not None:
        predicate["threshold"] = threshold
    if report.redaction is not None:
        predicate["sealed"] = _descriptor(SEALED, report.redaction.sealed_sha256)
    return rfc8785.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [_descriptor(SUBJECT, report.target.digest)],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
    )


def read(payload: bytes) -> Statement:
    """Reads a payload whose signatures were verified.

    Args:
        payload: Its bytes.

    Returns:
        The statement.

    Raises:
        VerificationError: It is not canonical, not an unlearning audit of one target, or contradicts itself.
    """
    value = canonical(payload, "the signed statement")
    try:
        statement = Statement.model_validate(value)
        issued = statement.predicate.issued()
    except (ValidationError, ValueError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "predicate.issuedAt"
        raise VerificationError(
            f"the signed statement is not an unlearning audit of one target ({PREDICATE_TYPE}): {where} is not as it must be"
        ) from error
    if issued.tzinfo is None or statement.subject[0].name != SUBJECT:
        raise VerificationError("the signed statement is not about one target at a time in UTC")
    predicate = statement.predicate
    if predicate.roles and set(predicate.roles) != set(predicate.signers):
        raise VerificationError("the signed statement gives roles to others than its signers; ask who signed it")
    if predicate.threshold is not None and predicate.threshold > len(predicate.signers):
        raise VerificationError("the signed statement asks for more signatures than it has signers; ask who signed it")
    listed = hashlib.sha256(rfc8785.dumps([entry.model_dump() for entry in predicate.manifest])).hexdigest()
    if listed != statement.subject[0].digest.sha256:
        raise VerificationError("the signed list of the target's files is not the one that the statement's subject stands for")
    return statement


def is_role(text: str) -> bool:
    """Whether a word can stand as a signer's role."""
    return re.fullmatch(_ROLE, text) is not None


def _descriptor(name: str, digest: str, **annotations: str | int) -> dict[str, Any]:
    return {"name": name, "digest": {ALGORITHM: digest}} | ({"annotations": annotations} if annotations else {})


def _model(model: ModelRecord) -> dict[str, Any]:
    return _descriptor(model.path, model.digest, role=model.role, kind=model.kind)


def _data(data: DataRecord) -> dict[str, Any]:
    """A task file; where its digest is withheld, its commitment stands as the digest, and an annotation says so."""
    digest = data.sha256.rpartition(":")[2]
    withheld = {"redacted": True} if digest != data.sha256 else {}
    return _descriptor(data.path, digest, role=data.role, units=data.units, clusters=data.clusters, **withheld)


def _finding(finding: Finding) -> dict[str, Any]:
    fields = finding.model_dump(mode="json", include=set(FindingSummary.model_fields))
    return {to_camel(name): value for name, value in fields.items()}
