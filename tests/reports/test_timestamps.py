"""Time stamps of a local OpenSSL authority: made, fetched, verified offline, refused."""

import random
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import local_tsa
import pytest
from local_tsa import Tsa
from sample import Audit

from muaudit.errors import EnvironmentFault, UsageError, VerificationError
from muaudit.reports import timestamps, trust_policy
from muaudit.reports.envelope import unpack
from muaudit.reports.timestamps import beside, fetch, found, load_roots, query, verify

pytest.importorskip("rfc3161_client", reason="needs the extra `tsa`")

DATA = Path(__file__).parents[1] / "data" / "time_stamps"
SIGNATURE = bytes(range(64))


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> Tsa:
    return local_tsa.make(tmp_path_factory.mktemp("tsa") / "authority")


def stamped(tsa: Tsa, signature: bytes = SIGNATURE) -> bytes:
    return tsa.reply(query(signature))


def test_a_stamp_holds_with_the_root_alone(tsa: Tsa) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    (stamp,) = verify({"aa": stamped(tsa)}, {"aa": SIGNATURE}, load_roots([tsa.root]))
    assert before <= stamp.time <= datetime.now(UTC) + timedelta(seconds=2)
    assert (stamp.fingerprint, stamp.authority) == ("aa", "CN=TSA")


@pytest.mark.parametrize(("direct", "chain"), [(True, False), (True, True), (False, True)])
def test_replies_with_one_two_and_three_certificates(tmp_path: Path, direct: bool, chain: bool) -> None:
    """OpenSSL 3.0 writes several in an order that strict DER parsers refuse."""
    authority = local_tsa.make(tmp_path / "tsa", direct=direct, chain=chain)
    for _ in range(4):  # the order depends on random serial numbers
        assert verify({"aa": stamped(authority)}, {"aa": SIGNATURE}, load_roots([authority.root]))


def test_openssl_agrees(tsa: Tsa, tmp_path: Path) -> None:
    (tmp_path / "signature").write_bytes(SIGNATURE)
    (tmp_path / "reply.tsr").write_bytes(stamped(tsa))
    files = ["-data", tmp_path / "signature", "-in", tmp_path / "reply.tsr", "-CAfile", tsa.root]
    done = subprocess.run(["openssl", "ts", "-verify", *files], capture_output=True, text=True, check=False)
    assert "Verification: OK" in done.stdout + done.stderr


def test_it_holds_when_the_authoritys_certificate_has_long_expired() -> None:
    replies, signatures = {"aa": (DATA / "reply.tsr").read_bytes()}, {"aa": (DATA / "signature.bin").read_bytes()}
    (stamp,) = verify(replies, signatures, load_roots([DATA / "root.pem"]))
    assert (stamp.authority, stamp.time.year) == ("CN=Expired TSA", 2026)


class TestRefused:
    def test_another_signature(self, tsa: Tsa) -> None:
        with pytest.raises(VerificationError, match="does not hold: Mismatch between messages"):
            verify({"aa": stamped(tsa)}, {"aa": SIGNATURE[::-1]}, load_roots([tsa.root]))

    def test_another_authority(self, tsa: Tsa, tmp_path: Path) -> None:
        other = local_tsa.make(tmp_path / "other")  # of the same name, with another key
        with pytest.raises(VerificationError, match="does not hold"):
            verify({"aa": stamped(other)}, {"aa": SIGNATURE}, load_roots([tsa.root]))

    def test_a_stamp_from_outside_the_certificates_time(self, tmp_path: Path) -> None:
        now = datetime.now(UTC)
        old = local_tsa.make(tmp_path / "old", valid=(now - timedelta(days=9), now - timedelta(days=8)))
        with pytest.raises(VerificationError, match="does not hold: certificate has expired;"):
            verify({"aa": stamped(old)}, {"aa": SIGNATURE}, load_roots([old.root]))

    def test_a_refusal_of_the_authority(self, tmp_path: Path) -> None:
        authority = Tsa(local_tsa.make(tmp_path / "tsa").folder, digests="sha256")
        with pytest.raises(VerificationError, match="does not hold"):
            verify({"aa": stamped(authority)}, {"aa": SIGNATURE}, load_roots([authority.root]))

    @pytest.mark.parametrize("data", [b"", b"x", b"0" * 100, b"\x30\x80" * 500, b"\x30\x03\x02\x01\x00", b"\xff" * 2000])
    def test_what_is_no_reply(self, tsa: Tsa, data: bytes) -> None:
        with pytest.raises(VerificationError, match="time stamp"):
            verify({"aa": data}, {"aa": SIGNATURE}, load_roots([tsa.root]))

    def test_what_is_too_large(self, tsa: Tsa) -> None:
        with pytest.raises(VerificationError, match="more than"):
            verify({"aa": bytes(timestamps.SIZE_LIMIT + 1)}, {"aa": SIGNATURE}, load_roots([tsa.root]))

    def test_no_root(self, tsa: Tsa) -> None:
        with pytest.raises(UsageError, match="no root certificate"):
            verify({"aa": stamped(tsa)}, {"aa": SIGNATURE}, [])
        with pytest.raises(UsageError, match="is no PEM file of certificates"):
            load_roots([tsa.folder / "serial"])
        with pytest.raises(UsageError, match="is no PEM file of certificates"):
            load_roots([tsa.folder / "nowhere"])


def test_changed_bytes_never_change_the_time_and_never_crash(tsa: Tsa) -> None:
    """Some bytes of a reply are not covered by its signature (certificates that nobody needs); what is told is."""
    reply, roots, rng = stamped(tsa), load_roots([tsa.root]), random.Random(1)  # noqa: S311 - reproducible, not secret
    told = verify({"aa": reply}, {"aa": SIGNATURE}, roots)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(reply)
        for _ in range(rng.choice((1, 1, 2, 4))):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        try:
            assert verify({"aa": bytes(mutant)}, {"aa": SIGNATURE}, roots) == told
        except VerificationError:
            refused += 1
    assert refused > 2000


class TestFetch:
    def test_from_an_authority(self, tsa: Tsa) -> None:
        with local_tsa.served(tsa) as url:
            reply = fetch(url, query(SIGNATURE))
        assert verify({"aa": reply}, {"aa": SIGNATURE}, load_roots([tsa.root]))

    def test_an_answer_to_another_question_is_refused(self, tsa: Tsa, monkeypatch: pytest.MonkeyPatch) -> None:
        other = stamped(tsa, b"other" * 10)
        monkeypatch.setattr(Tsa, "reply", lambda *_: other)
        with local_tsa.served(tsa) as url, pytest.raises(EnvironmentFault, match="the reply is to another question"):
            fetch(url, query(SIGNATURE))

    def test_a_refusal_is_told(self, tmp_path: Path) -> None:
        authority = Tsa(local_tsa.make(tmp_path / "tsa").folder, digests="sha256")
        with local_tsa.served(authority) as url, pytest.raises(EnvironmentFault, match=r"the authority refuses: .*algorithm"):
            fetch(url, query(SIGNATURE))

    def test_addresses_that_are_none_or_do_not_answer(self) -> None:
        for url in ("file:///etc/passwd", "ftp://x", "tsa.example"):
            with pytest.raises(UsageError, match="is no address"):
                fetch(url, b"")
        with pytest.raises(EnvironmentFault, match="gives no time stamp"):
            fetch("http://127.0.0.1:9/tsr", b"x")


class TestBesideAnEnvelope:
    """The files lie beside the envelope, one a signature."""

    def test_they_are_found_and_verified(self, audit: Audit, tsa: Tsa) -> None:
        path = audit.folder / "audit.intoto.json"
        ((fingerprint, signature),) = unpack(audit.envelope).signatures.items()
        assert found(path, [fingerprint]) == {}
        beside(path, fingerprint).write_bytes(stamped(tsa, signature))
        replies = found(path, [fingerprint])
        judged = trust_policy.verify_with_keys(audit.envelope, [audit.public], roots=load_roots([tsa.root]), stamps=replies)
        assert [stamp.fingerprint for stamp in judged.stamps] == [audit.public.fingerprint]

    def test_where_a_root_is_given_one_is_asked_for(self, audit: Audit, tsa: Tsa) -> None:
        with pytest.raises(VerificationError, match="has no time stamp, which is asked for"):
            trust_policy.verify_with_keys(audit.envelope, [audit.public], roots=load_roots([tsa.root]))

    def test_without_a_root_it_is_said_that_nobody_looked(self, audit: Audit) -> None:
        judged = trust_policy.verify_with_keys(audit.envelope, [audit.public], stamps={audit.public.fingerprint: b"junk"})
        assert judged.verified.unchecked[-1] == "time stamps: 1 lie beside it; say whose root you trust"

    def test_a_statement_from_after_its_own_stamp_is_refused(self, audit: Audit, tsa: Tsa) -> None:
        from muaudit.reports.attestation import sign

        later = datetime.now(UTC) + timedelta(hours=1)
        envelope = sign(audit.report, audit.report.canonical(), audit.private, issued_at=later)
        ((fingerprint, signature),) = unpack(envelope).signatures.items()
        stamps = {fingerprint: stamped(tsa, signature)}
        with pytest.raises(VerificationError, match="after its own time stamp"):
            trust_policy.verify_with_keys(envelope, [audit.public], roots=load_roots([tsa.root]), stamps=stamps)


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rfc3161_client", None)
    for use in (lambda: query(SIGNATURE), lambda: verify({}, {}, [])):
        with pytest.raises(EnvironmentFault, match=r"pip install 'muaudit\[tsa\]'"):
            use()
