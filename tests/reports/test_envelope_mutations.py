"""A sample of benchmarks/mutations.py, which changes every byte to every other value: nothing verifies, nothing crashes."""

import random
from contextlib import suppress

import pytest
from signed_envelopes import Signed, changed, ed25519, ten

from muaudit.errors import UsageError, VerificationError
from muaudit.reports.attestation import check_sealed, cosign, pending, verify
from muaudit.reports.signers import of_key
from muaudit.results import AuditReport

TEN = list(ten())


@pytest.fixture(params=TEN, ids=lambda signed: signed.name)
def signed(request: pytest.FixtureRequest) -> Signed:
    value: Signed = request.param
    return value


def test_unchanged_it_verifies(signed: Signed) -> None:
    assert "report.json" in verify(signed.envelope, signed.keys, report=signed.report).checked


def test_no_change_of_a_sealed_part_opens_the_report() -> None:
    ((verified, signed, sealed),) = [
        (verify(one.envelope, one.keys, report=one.report), one, one.sealed) for one in TEN if one.sealed is not None
    ]
    assert "opens all" in check_sealed(verified, signed.report, sealed)
    rng = random.Random(signed.name)  # noqa: S311 - reproducible, not secret
    for _ in range(200):
        with pytest.raises(VerificationError, match="not the one that was signed"):
            check_sealed(verified, signed.report, changed(sealed, rng))


def test_every_value_at_a_sample_of_the_bytes_is_refused(signed: Signed) -> None:
    rng = random.Random(signed.name)  # noqa: S311 - reproducible, not secret
    size = len(signed.envelope)
    for place in {0, size - 1, *rng.sample(range(size), 40)}:
        for value in set(range(256)) - {signed.envelope[place]}:
            mutant = signed.envelope[:place] + bytes([value]) + signed.envelope[place + 1 :]
            with pytest.raises(VerificationError):
                verify(mutant, signed.keys)


def test_many_changed_bytes_are_refused(signed: Signed) -> None:
    rng = random.Random(signed.name)  # noqa: S311 - reproducible, not secret
    for _ in range(200):
        with pytest.raises(VerificationError):
            verify(changed(signed.envelope, rng), signed.keys)
        report = changed(signed.report, rng)
        with pytest.raises(VerificationError):
            verify(signed.envelope, signed.keys, report=report)
        with suppress(UsageError):  # it may be a report still, with another number in it; anything else is a crash
            AuditReport.from_json(report)


def test_signing_a_changed_envelope_too_does_not_crash(signed: Signed) -> None:
    rng = random.Random(signed.name)  # noqa: S311 - reproducible, not secret
    for _ in range(100):
        mutant = changed(signed.envelope, rng)
        for use in (pending, lambda data: cosign(data, of_key(ed25519(8)))):
            with pytest.raises((VerificationError, UsageError)):
                use(mutant)
