"""The signed answer: an in-toto Statement about the target in a DSSE envelope, and its strict verification.

Sources: in-toto Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md), DSSE
(https://github.com/secure-systems-lab/dsse). Who signs is part of what is signed, so it is declared before the first
signature; an envelope that lacks one of them is pending and does not verify.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from muaudit import journal
from muaudit.errors import ModelError, UsageError, VerificationError
from muaudit.manifest import manifest, manifest_digest
from muaudit.reports import statement as statements
from muaudit.reports.envelope import Envelope, check_signatures, pack, signed_bytes, unpack
from muaudit.reports.keys import PrivateKey, PublicKey, by_fingerprint
from muaudit.reports.signers import Signer, of_keys
from muaudit.reports.statement import ManifestEntry, Predicate, Statement
from muaudit.results import AuditReport, Verdict

ROLE = "auditor"
"""What a signer signs as where nothing else is said."""

SHOWN = 5
"""How many changed files an error names."""


@dataclass(frozen=True)
class Verified:
    """What a verification established.

    Attributes:
        verdict: The audit's answer, which is apart from whether it verifies.
        signers: Who signed, as trusted keys.
        issued_at: When, in the signers' word; a time stamp, verified besides, bounds it.
        target_digest: SHA-256 of the target's manifest.
        plan_sha256: Digest of the plan.
        report_sha256: Digest of report.json.
        predicate: All else that was signed.
        checked: What was compared and found equal, in words.
        unchecked: What was not, and how to.
        roles: What each signer signed as, by fingerprint; `auditor` where the statement does not say.
        missing: Fingerprints of declared signers who have not signed, where the threshold is reached without them.
        signatures: The raw signatures by fingerprint, which time stamps are about.
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
    roles: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    signatures: Mapping[str, bytes] = field(default_factory=dict)


def sign(
    report: AuditReport, report_bytes: bytes, private_key_path: Path, *, issued_at: datetime, passphrase: bytes | None = None
) -> bytes:
    """Signs a report with a key in a file; `seal` takes all other keys, and further signers.

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
    from muaudit.reports.keys import load_private

    return seal(report, report_bytes, [load_private(private_key_path, passphrase)], issued_at=issued_at)


def seal(
    report: AuditReport,
    report_bytes: bytes,
    keys: Sequence[PrivateKey | Signer],
    *,
    issued_at: datetime,
    role: str = ROLE,
    cosigners: Mapping[str, str] | None = None,
    threshold: int | None = None,
) -> bytes:
    """Signs a report with keys that are already open; see `sign`.

    Args:
        report: The report.
        report_bytes: The bytes of its report.json.
        keys: One or more private keys, each of which signs.
        issued_at: The time of signing, with its time zone.
        role: What these keys sign as.
        cosigners: Who is to sign later, with `cosign`: roles by fingerprint. Until then the envelope does not verify.
        threshold: How many signatures are enough; all of them where it is None.

    Returns:
        The bytes of `audit.intoto.json`.

    Raises:
        UsageError: As for `sign`; or a role is no role, a cosigner signs already, or the threshold cannot be reached.
        EnvironmentFault: A security module or a key service does not answer.
    """
    signers, later = of_keys(keys), dict(cosigners or {})
    roles = {signer.fingerprint: role for signer in signers} | later
    payload = _payload(report, report_bytes, roles, threshold=threshold, issued_at=issued_at)
    if len(roles) < len(signers) + len(later):
        raise UsageError("a cosigner's key is the one that signs now, so there would be one signature; give another's key")
    if threshold is not None and not 1 <= threshold <= len(roles):
        raise UsageError(f"threshold {threshold}: there are {len(roles)} signers; give a number from 1 to {len(roles)}")
    signed = signed_bytes(payload)
    return pack(Envelope(payload, {signer.fingerprint: signer.sign(signed) for signer in signers}))


def payload_without_signers(report: AuditReport, report_bytes: bytes, *, issued_at: datetime) -> bytes:
    """The statement for Sigstore, whose certificate names the signer; see `sigstore_bundles`.

    Args:
        report: The report.
        report_bytes: The bytes of its report.json.
        issued_at: The time of signing, with its time zone.

    Returns:
        RFC 8785 canonical JSON.

    Raises:
        UsageError: As for `sign`.
    """
    return _payload(report, report_bytes, {}, threshold=None, issued_at=issued_at)


def cosign(envelope: bytes, signer: Signer, *, report: bytes | None = None, trusted: Iterable[PublicKey] = ()) -> bytes:
    """Adds the signature of somebody who was declared as a signer.

    Args:
        envelope: The bytes of `audit.intoto.json`.
        signer: Who signs now.
        report: The bytes of the report.json that lies beside it, to be sure of what is signed.
        trusted: The keys of those who have signed, to check their signatures first.

    Returns:
        The envelope with one signature more.

    Raises:
        VerificationError: The envelope is not as muaudit writes it, the report is another one, or a signature that is there is
            not by a trusted key.
        UsageError: This signer was not declared, or has signed already.
        EnvironmentFault: A security module or a key service does not answer.
    """
    opened = unpack(envelope)
    statement = statements.read(opened.payload)
    if keys := by_fingerprint(trusted):
        check_signatures(opened, keys)
    if signer.fingerprint not in statement.predicate.signers:
        raise UsageError(
            f"the key {signer.fingerprint[:16]} is not among the declared signers ({_short(statement.predicate.signers)}), and "
            "who signs is part of what is signed; have the envelope made anew with this key as --cosigner"
        )
    if signer.fingerprint in opened.signatures:
        raise UsageError(f"the key {signer.fingerprint[:16]} has signed this envelope already; nothing is to be done")
    if report is not None:
        _check_report(report, statement)
    signature = signer.sign(signed_bytes(opened.payload))
    return pack(Envelope(opened.payload, {**opened.signatures, signer.fingerprint: signature}))


def pending(envelope: bytes) -> dict[str, str]:
    """Who is still to sign.

    Args:
        envelope: The bytes of `audit.intoto.json`, of which no signature is checked here.

    Returns:
        Roles by fingerprint.

    Raises:
        VerificationError: It is not as muaudit writes it.
    """
    opened = unpack(envelope)
    predicate = statements.read(opened.payload).predicate
    return {signer: predicate.roles.get(signer, ROLE) for signer in predicate.signers if signer not in opened.signatures}


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
    opened = unpack(envelope)
    check_signatures(opened, trusted)
    statement = statements.read(opened.payload)
    missing = _missing(statement.predicate, list(opened.signatures))
    signers = tuple(trusted[keyid] for keyid in opened.signatures)
    return established(statement, signers, report=report, model=model, missing=missing, signatures=opened.signatures)


def established(
    statement: Statement,
    signers: tuple[PublicKey, ...],
    *,
    report: bytes | None,
    model: Path | None,
    missing: tuple[str, ...] = (),
    signatures: Mapping[str, bytes] | None = None,
) -> Verified:
    """Compares report and model with a statement whose signatures were verified; see `verify`.

    Args:
        statement: The statement.
        signers: Who signed it.
        report: The bytes of report.json.
        model: The target's folder or file.
        missing: Declared signers who have not signed.
        signatures: The raw signatures.

    Returns:
        What was established.

    Raises:
        VerificationError: Report or model differ.
        UsageError: There is no model at the given path.
    """
    predicate, subject = statement.predicate, statement.subject[0]
    checked, unchecked = ["signature", "statement", "manifest"], []
    if report is not None:
        custody = _check_report(report, statement)
        checked += ["report.json", *([] if custody is None else [custody])]
    else:
        unchecked.append("report.json: put it beside the envelope, or give it")
    if model is not None:
        _check_model(model, predicate.manifest)
        checked.append(f"model: all {len(predicate.manifest)} files of {model}")
    else:
        unchecked.append("model: give its folder, to see that the audit was about these very files")
    return Verified(
        verdict=predicate.verdict,
        signers=signers,
        issued_at=predicate.issued(),
        target_digest=subject.digest.sha256,
        plan_sha256=predicate.plan.digest.sha256,
        report_sha256=predicate.report.digest.sha256,
        predicate=predicate,
        checked=tuple(checked),
        unchecked=tuple(unchecked),
        roles={key.fingerprint: predicate.roles.get(key.fingerprint, ROLE) for key in signers},
        missing=missing,
        signatures=dict(signatures or {}),
    )


def _payload(
    report: AuditReport, report_bytes: bytes, roles: Mapping[str, str], *, threshold: int | None, issued_at: datetime
) -> bytes:
    if issued_at.tzinfo is None:
        raise UsageError("issued_at has no time zone, so nobody could tell when the report was signed; give a time in UTC")
    if AuditReport.from_json(report_bytes).canonical() != report.canonical():
        raise UsageError("report.json is not the report that is to be signed; write it again from the report, then sign")
    if manifest_digest(report.target.files) != report.target.digest:
        raise UsageError("the report's digest of the target is not that of the files it lists; run the audit again")
    for role in roles.values():
        if not statements.is_role(role):
            raise UsageError(f"role {role!r}: give a word such as auditor, operator or witness (a-z, 0-9 and -, at most 40)")
    return statements.write(report, report_bytes, roles, threshold=threshold, issued_at=issued_at)


def _missing(predicate: Predicate, present: list[str]) -> tuple[str, ...]:
    """Declared signers whose signatures are not there and need not be; refuses where they need to be."""
    missing = tuple(signer for signer in predicate.signers if signer not in present)
    needed = len(predicate.signers) if predicate.threshold is None else predicate.threshold
    if set(present) <= set(predicate.signers) and len(present) >= needed:
        return missing
    told = f"the envelope names {len(predicate.signers)} signers and carries the signatures of {len(present)}: "
    if missing and set(present) <= set(predicate.signers):
        raise VerificationError(
            f"{told}it is pending until {_short(missing)} signed too (muaudit cosign), or a signature was taken away; "
            f"{needed} are needed"
        )
    raise VerificationError(f"{told}a signature was taken away or added; get the envelope again")


def _short(fingerprints: Iterable[str]) -> str:
    return ", ".join(fingerprint[:16] for fingerprint in fingerprints)


def _check_report(data: bytes, statement: Statement) -> str | None:
    """Compares report.json with the statement; says what its journal shows, if it has one."""
    predicate = statement.predicate
    if hashlib.sha256(data).hexdigest() != predicate.report.digest.sha256:
        raise VerificationError("report.json is not the one that was signed: it was changed or belongs to another audit")
    try:
        report = AuditReport.from_json(data)
    except UsageError as error:
        raise VerificationError(f"report.json is the one that was signed, but cannot be read: {error}") from error
    said = (report.verdict, report.plan_sha256, report.target.digest)
    if said != (predicate.verdict, predicate.plan.digest.sha256, statement.subject[0].digest.sha256):
        raise VerificationError("report.json and the signed statement disagree on verdict, plan or target; ask the auditor")
    sealed = None if report.redaction is None else report.redaction.sealed_sha256
    if sealed != (None if predicate.sealed is None else predicate.sealed.digest.sha256):
        raise VerificationError("the report and the signed statement disagree on the sealed part; ask the auditor")
    return journal.check(report)


def check_sealed(signed: Verified, report: bytes, sealed: bytes) -> str:
    """Checks that a sealed part is the one that was signed, and opens every commitment of the public report.

    Args:
        signed: What a verification established, of which the report was part.
        report: The bytes of report.public.json, compared by that verification.
        sealed: The bytes of report.sealed.json.

    Returns:
        What was checked, in words.

    Raises:
        VerificationError: The report is not redacted, or the sealed part is another one.
    """
    from muaudit import sealing

    if signed.predicate.sealed is None:
        raise VerificationError("the signed report withholds nothing, so there is no sealed part to check")
    if hashlib.sha256(sealed).hexdigest() != signed.predicate.sealed.digest.sha256:
        raise VerificationError("the sealed part is not the one that was signed: it was changed or belongs to another report")
    part = sealing.SealedPart.from_json(sealed)
    sealing.unseal(json.loads(report), part)
    return f"sealed part: opens all {len(part.values)} commitments, and the whole report is the one that was redacted"


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
