"""Ten signed envelopes of every kind, with the keys that verify them; and changed copies of bytes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sample import memorization, model, others, relearning, sample_report, small_report

from muaudit.manifest import manifest_digest
from muaudit.redaction import redact
from muaudit.reports.attestation import cosign, seal
from muaudit.reports.keys import PrivateKey, PublicKey, fingerprint_of, load_public
from muaudit.reports.signers import of_key
from muaudit.results import AuditReport, Verdict

RELEASES = Path(__file__).parents[1] / "data" / "releases"
ISSUED = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Signed:
    """An envelope with all that its verification needs, and the sealed part where its report is redacted."""

    name: str
    envelope: bytes
    report: bytes
    keys: list[PublicKey]
    sealed: bytes | None = None


def public(key: PrivateKey, name: str) -> PublicKey:
    """The public half of a key."""
    return PublicKey(name, fingerprint_of(key.public_key()), key.public_key())


def ed25519(number: int) -> Ed25519PrivateKey:
    """A key that is the same at every run."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def ecdsa(curve: ec.EllipticCurve, number: int) -> ec.EllipticCurvePrivateKey:
    """Likewise, on a curve; its signatures differ all the same."""
    return ec.derive_private_key(10**30 + number, curve)


def ten() -> Iterator[Signed]:
    """Verdicts, numbers of signers, thresholds, kinds of key, names in many scripts, a redacted report, an earlier release."""
    passed = small_report()
    failed = small_report(verdict=Verdict.FAIL, findings=(relearning().model_copy(update={"worst_units": ()}),))
    open_ = small_report(verdict=Verdict.INCONCLUSIVE, findings=(others()[0],), data=sample_report().data[:1])
    public_part, sealed = redact(open_.canonical())
    target = model("target", "models/vendor", files=1)
    named = target.files[0].model_copy(update={"name": 'gewichte "é" \\ 重み.bin'})
    odd = target.model_copy(update={"files": (named,), "digest": manifest_digest((named,))})
    scripts = small_report(models=(odd,), findings=(memorization(),))
    yield _signed("pass", passed, [ed25519(1)])
    yield _signed("fail", failed, [ed25519(2)])
    redacted = _signed("inconclusive, redacted", AuditReport.from_json(public_part), [ed25519(3)])
    yield replace(redacted, sealed=sealed)
    yield _signed("P-256", passed, [ecdsa(ec.SECP256R1(), 1)])
    yield _signed("P-384", passed, [ecdsa(ec.SECP384R1(), 1)])
    yield _signed("P-521, names in many scripts", scripts, [ecdsa(ec.SECP521R1(), 1)])
    yield _signed("two signers", passed, [ed25519(1)], [ed25519(4)])
    yield _signed("two signers of two kinds", failed, [ed25519(1)], [ecdsa(ec.SECP256R1(), 2)])
    yield _signed("two of three", passed, [ed25519(1)], [ed25519(4)], absent=[ed25519(5)])
    folder = RELEASES / "0.1.0"
    yield Signed(
        "muaudit 0.1.0",
        (folder / "pass" / "audit.intoto.json").read_bytes(),
        (folder / "pass" / "report.json").read_bytes(),
        [load_public(folder / "auditor.pub")],
    )


def _signed(
    name: str,
    report: AuditReport,
    first: list[PrivateKey],
    later: list[PrivateKey] | None = None,
    absent: list[PrivateKey] | None = None,
) -> Signed:
    later, absent = later or [], absent or []
    envelope = seal(
        report,
        report.canonical(),
        first,
        issued_at=ISSUED,
        cosigners={public(key, "").fingerprint: "witness" for key in later + absent},
        threshold=len(first + later) if absent else None,
    )
    for key in later:
        envelope = cosign(envelope, of_key(key))
    return Signed(name, envelope, report.canonical(), [public(key, f"key {n}") for n, key in enumerate(first + later + absent)])


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with two or more of them changed, inserted, removed, doubled, moved or cut off."""
    while True:
        mutant = bytearray(data)
        for _ in range(rng.choice((2, 2, 3, 5, 8, 20))):
            _change(mutant, rng)
        if bytes(mutant) != data:
            return bytes(mutant)


def _change(mutant: bytearray, rng: random.Random) -> None:
    start = rng.randrange(max(1, len(mutant)))
    end = min(len(mutant), start + rng.choice((1, 1, 2, 4, 16, 64)))
    piece = bytes(mutant[start:end])
    kind = rng.randrange(6)
    if kind < 2:
        mutant[start:end] = rng.randbytes(len(piece))
    elif kind == 2:
        mutant[start:start] = rng.choice((rng.randbytes(2), b"  ", b'","', b"}{", b"[[", b"\\u0000", b"1e999", b"null"))
    elif kind == 3:
        del mutant[start:end]
    elif kind == 4:
        mutant[start:start] = piece * rng.choice((1, 2))
    else:
        place = rng.randrange(len(mutant) + 1)
        mutant[place:place] = piece
