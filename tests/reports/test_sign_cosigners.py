"""Several signers: declared first, pending until they signed, none of them replaceable."""

import json
from pathlib import Path

import pytest
import rfc8785
from sample import ISSUED, Audit
from signed_envelopes import ed25519, public

from muaudit.errors import UsageError, VerificationError
from muaudit.reports import statement as statements
from muaudit.reports.attestation import cosign, pending, seal, verify
from muaudit.reports.envelope import Envelope, pack, signed_bytes, unpack
from muaudit.reports.keys import PublicKey, load_private
from muaudit.reports.signers import of_key

OPERATOR, WITNESS, STRANGER = (of_key(ed25519(number)) for number in (11, 12, 13))
KEYS = [public(ed25519(number), name) for number, name in ((11, "Operator"), (12, "Witness"))]
ROLES = {OPERATOR.fingerprint: "operator", WITNESS.fingerprint: "witness"}


def draft(audit: Audit, threshold: int | None = None) -> bytes:
    """Signed by the auditor, with two others to come."""
    keys = [load_private(audit.private)]
    return seal(audit.report, audit.report.canonical(), keys, issued_at=ISSUED, cosigners=ROLES, threshold=threshold)


def trusted(audit: Audit) -> list[PublicKey]:
    return [audit.public, *KEYS]


def test_an_envelope_is_pending_until_all_signed(audit: Audit) -> None:
    envelope = draft(audit)
    assert pending(envelope) == ROLES
    with pytest.raises(VerificationError, match=r"names 3 signers.*of 1: it is pending until .*, .* signed too"):
        verify(envelope, trusted(audit))
    envelope = cosign(envelope, WITNESS, report=audit.report.canonical(), trusted=[audit.public])
    assert pending(envelope) == {OPERATOR.fingerprint: "operator"}
    with pytest.raises(VerificationError, match="of 2: it is pending until"):
        verify(envelope, trusted(audit))
    envelope = cosign(envelope, OPERATOR, trusted=trusted(audit))
    assert pending(envelope) == {}
    verified = verify(envelope, trusted(audit), report=audit.report.canonical())
    assert verified.roles == {audit.public.fingerprint: "auditor", **ROLES}
    assert verified.missing == ()


def test_the_order_of_signing_makes_no_difference(audit: Audit) -> None:
    first, second = (cosign(cosign(draft(audit), one), other) for one, other in ((OPERATOR, WITNESS), (WITNESS, OPERATOR)))
    assert first == second


def test_a_threshold_does_without_some_and_says_whom(audit: Audit) -> None:
    envelope = draft(audit, threshold=2)
    with pytest.raises(VerificationError, match="2 are needed"):
        verify(envelope, trusted(audit))
    envelope = cosign(envelope, OPERATOR)
    assert verify(envelope, trusted(audit)).missing == (WITNESS.fingerprint,)
    assert verify(cosign(envelope, WITNESS), trusted(audit)).missing == ()


def test_who_was_not_declared_cannot_sign(audit: Audit) -> None:
    with pytest.raises(UsageError, match="not among the declared signers"):
        cosign(draft(audit), STRANGER)
    opened = unpack(draft(audit))
    added = pack(
        Envelope(opened.payload, {**opened.signatures, STRANGER.fingerprint: STRANGER.sign(signed_bytes(opened.payload))})
    )
    with pytest.raises(VerificationError, match="taken away or added"):
        verify(added, [audit.public, public(ed25519(13), "Stranger")])


def test_nobody_signs_twice(audit: Audit) -> None:
    with pytest.raises(UsageError, match="has signed this envelope already"):
        cosign(cosign(draft(audit), OPERATOR), OPERATOR)
    mine = {audit.public.fingerprint: "witness"}
    with pytest.raises(UsageError, match="the one that signs now"):
        seal(audit.report, audit.report.canonical(), [load_private(audit.private)], issued_at=ISSUED, cosigners=mine)


def test_a_cosigner_does_not_sign_another_report_or_a_forged_draft(audit: Audit) -> None:
    with pytest.raises(VerificationError, match=r"report\.json is not the one that was signed"):
        cosign(draft(audit), OPERATOR, report=audit.report.canonical() + b" ")
    with pytest.raises(VerificationError, match="not signed by Witness"):
        cosign(draft(audit), OPERATOR, trusted=[KEYS[1]])
    opened = unpack(draft(audit))
    forged = pack(Envelope(opened.payload, {audit.public.fingerprint: bytes(64)}))
    with pytest.raises(VerificationError, match="does not fit"):
        cosign(forged, OPERATOR, trusted=[audit.public])


def test_what_is_no_envelope_is_not_signed(audit: Audit) -> None:
    for data in (b"", b"{}", draft(audit) + b"\n"):
        with pytest.raises(VerificationError):
            cosign(data, OPERATOR)


@pytest.mark.parametrize("role", ["", "Auditor", "two words", "x" * 41, "a\u202eb", "-", "auditor\n"])
def test_a_role_is_one_plain_word(audit: Audit, role: str) -> None:
    with pytest.raises(UsageError, match="give a word such as auditor"):
        seal(audit.report, audit.report.canonical(), [load_private(audit.private)], issued_at=ISSUED, role=role)


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_a_threshold_that_cannot_be_is_refused(audit: Audit, threshold: int) -> None:
    with pytest.raises(UsageError, match="there are 3 signers"):
        draft(audit, threshold)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roles": {"0" * 64: "auditor"}}, "roles to others than its signers"),
        ({"threshold": 9}, "more signatures than it has signers"),
        ({"threshold": 0}, "predicate.threshold is not as it must be"),
        ({"threshold": "all"}, "predicate.threshold is not as it must be"),
        ({"roles": {"x": "auditor"}}, "predicate.roles"),
        ({"roles": []}, "predicate.roles"),
    ],
)
def test_a_signed_statement_that_contradicts_itself_is_refused(audit: Audit, change: dict[str, object], message: str) -> None:
    statement = json.loads(unpack(audit.envelope).payload)
    statement["predicate"] |= change
    signer = of_key(load_private(audit.private))
    payload = rfc8785.dumps(statement)
    with pytest.raises(VerificationError, match=message):
        verify(pack(Envelope(payload, {signer.fingerprint: signer.sign(signed_bytes(payload))})), [audit.public])


def test_one_signature_more_cannot_lower_the_threshold(audit: Audit, tmp_path: Path) -> None:
    """The threshold and the signers are part of what is signed: nobody can change them and keep a signature."""
    opened = unpack(draft(audit))
    statement = json.loads(opened.payload)
    statement["predicate"]["threshold"] = 1
    with pytest.raises(VerificationError, match="does not fit"):
        verify(pack(Envelope(rfc8785.dumps(statement), opened.signatures)), trusted(audit))
    assert statements.read(opened.payload).predicate.threshold is None
