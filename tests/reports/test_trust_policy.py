"""A verifier's own rules: what they ask for is asked for, and a policy that cannot be used or met is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import local_tsa
import pytest
from sample import ISSUED, Audit, sample_report, small_report
from signed_envelopes import RELEASES, ed25519, public

from muaudit.errors import UsageError, VerificationError
from muaudit.reports import trust_policy
from muaudit.reports.attestation import cosign, seal, sign
from muaudit.reports.envelope import unpack
from muaudit.reports.keys import keygen, load_private, write_public
from muaudit.reports.signers import of_key
from muaudit.reports.timestamps import query
from muaudit.reports.trust_policy import Judged, load, verify
from muaudit.results import Verdict

NOW = ISSUED + timedelta(days=10)
KEY = '[[keys]]\nfile = "auditor.pub"\n'


def policy(audit: Audit, text: str) -> Path:
    path = audit.folder / "trust.toml"
    path.write_text(text)
    return path


def judged(audit: Audit, text: str, envelope: bytes | None = None, *, now: datetime = NOW, **given: object) -> Judged:
    return verify(envelope or audit.envelope, load(policy(audit, text)), now=now, **given)


def two(audit: Audit, role: str = "operator") -> bytes:
    """Signed by the auditor and by somebody else, whose public file lies there as operator.pub."""
    other = of_key(ed25519(21))
    if not (audit.folder / "operator.pub").exists():
        write_public(other.public, audit.folder / "operator", "Operator")
    keys = [load_private(audit.private)]
    drafted = seal(audit.report, audit.report.canonical(), keys, issued_at=ISSUED, cosigners={other.fingerprint: role})
    return cosign(drafted, other)


TWO = (
    'threshold = 2\nrequired_roles = ["auditor", "operator"]\n'
    '[[keys]]\nfile = "auditor.pub"\nroles = ["auditor"]\n[[keys]]\nfile = "operator.pub"\nroles = ["operator"]\n'
)


def test_a_trusted_key_is_enough(audit: Audit) -> None:
    seen = judged(audit, KEY, report=audit.report.canonical(), model=audit.model)
    assert seen.acceptable
    assert seen.verified.unchecked == ()


def test_another_key_is_not(audit: Audit) -> None:
    keygen(audit.folder / "other", "Other")
    with pytest.raises(VerificationError, match="not signed by Other"):
        judged(audit, KEY.replace("auditor", "other"))


class TestSigners:
    def test_two_in_their_roles(self, audit: Audit) -> None:
        assert set(judged(audit, _with_operator(audit, TWO), two(audit)).verified.roles.values()) == {"auditor", "operator"}

    def test_one_is_too_few(self, audit: Audit) -> None:
        with pytest.raises(VerificationError, match="asks for 2 signatures and the envelope carries 1"):
            judged(audit, _with_operator(audit, TWO))

    def test_a_role_that_nobody_signed_as(self, audit: Audit) -> None:
        text = _with_operator(audit, TWO.replace('roles = ["operator"]\n', "").replace('"operator"]', '"witness"]'))
        with pytest.raises(VerificationError, match="nobody whom the policy trusts signed as witness"):
            judged(audit, text, two(audit))

    def test_a_role_that_the_key_may_not_sign_as(self, audit: Audit) -> None:
        with pytest.raises(
            VerificationError, match="Operator signed as auditor, and the policy lets it sign as operator alone"
        ):
            judged(audit, _with_operator(audit, TWO), two(audit, role="auditor"))

    def test_one_key_in_two_files_is_refused(self, audit: Audit) -> None:
        twin = (audit.folder / "auditor.pub").read_text().replace("Lab X", "Lab Y")
        (audit.folder / "twin.pub").write_text(twin)
        with pytest.raises(UsageError, match="one key is one signer"):
            judged(audit, "threshold = 2\n" + KEY + '[[keys]]\nfile = "twin.pub"\n')

    def test_an_envelope_of_muaudit_0_1_0_counts_in_the_roles_of_the_policy(self, tmp_path: Path) -> None:
        folder = RELEASES / "0.1.0"
        path = tmp_path / "trust.toml"
        text = 'required_roles = ["operator"]\nthreshold = 2\n'
        for name, role in (("auditor", "auditor"), ("operator", "operator")):
            text += f'[[keys]]\nfile = "{(folder / name).as_posix()}.pub"\nroles = ["{role}"]\n'
        path.write_text(text)
        envelope = (folder / "inconclusive-two-signers" / "audit.intoto.json").read_bytes()
        assert verify(envelope, load(path), now=NOW).verified.verdict is Verdict.INCONCLUSIVE


def _with_operator(audit: Audit, text: str) -> str:
    two(audit)
    return text


class TestStatement:
    @pytest.mark.parametrize("versions", [">=0.1", "==0.1.0", ">=0.1,<0.3", "~=0.1.0"])
    def test_versions_that_will_do(self, audit: Audit, versions: str) -> None:
        assert judged(audit, f'tool_versions = "{versions}"\n{KEY}').acceptable

    @pytest.mark.parametrize("versions", [">0.1", "<0.1", "==0.2"])
    def test_versions_that_will_not(self, audit: Audit, versions: str) -> None:
        with pytest.raises(VerificationError, match=r"made by 'muaudit 0\.1\.0', and the policy asks for"):
            judged(audit, f'tool_versions = "{versions}"\n{KEY}')

    @pytest.mark.parametrize("tool", ["", "muaudit", "muaudit x.y", "other 0.1.0", "muaudit 0.1.0 0.2"])
    def test_a_tool_without_a_version_will_not(self, audit: Audit, tool: str) -> None:
        report = audit.report.model_copy(update={"tool": tool})
        envelope = sign(report, report.canonical(), audit.private, issued_at=ISSUED)
        with pytest.raises(VerificationError, match="made by"):
            judged(audit, f'tool_versions = ">=0"\n{KEY}', envelope)

    def test_other_kinds_of_statement(self, audit: Audit) -> None:
        assert judged(audit, f'predicate_types = ["https://muaudit.dev/attestation/unlearning-audit/v1"]\n{KEY}').acceptable
        with pytest.raises(VerificationError, match="does not take statements of"):
            judged(audit, f'predicate_types = ["https://slsa.dev/provenance/v1"]\n{KEY}')

    def test_the_audits_own_policy(self, audit: Audit) -> None:
        assert judged(audit, f'audit_policies = ["strict", "standard"]\n{KEY}').acceptable
        with pytest.raises(VerificationError, match="went by the policy 'standard', and the verifier takes strict"):
            judged(audit, f'audit_policies = ["strict"]\n{KEY}')

    def test_age(self, audit: Audit) -> None:
        assert judged(audit, f"maximum_age_days = 10\n{KEY}").acceptable
        with pytest.raises(VerificationError, match=r"more than 9\.5 days ago; ask for a fresh audit"):
            judged(audit, f"maximum_age_days = 9.5\n{KEY}")

    def test_a_statement_of_tomorrow(self, audit: Audit) -> None:
        assert judged(audit, KEY, now=ISSUED - timedelta(minutes=4)).acceptable
        with pytest.raises(VerificationError, match="yet to come"):
            judged(audit, KEY, now=ISSUED - timedelta(minutes=6))


class TestVerdict:
    """Integrity is one question and the verdict another."""

    @pytest.mark.parametrize("verdict", list(Verdict))
    def test_only_those_named_will_do(self, audit: Audit, verdict: Verdict) -> None:
        report = small_report(verdict=verdict, models=audit.report.models)
        envelope = sign(report, report.canonical(), audit.private, issued_at=ISSUED)
        assert judged(audit, KEY, envelope).acceptable
        seen = judged(audit, f'verdicts = ["pass", "inconclusive"]\n{KEY}', envelope)
        assert seen.acceptable is (verdict in ("pass", "inconclusive"))
        assert seen.verified.verdict is verdict

    def test_a_tampered_pass_is_not_merely_unacceptable(self, audit: Audit) -> None:
        report = sample_report()
        envelope = sign(report, report.canonical(), audit.private, issued_at=ISSUED)
        with pytest.raises(VerificationError):
            judged(audit, f'verdicts = ["pass"]\n{KEY}', envelope[:-2])


class TestKeysInTime:
    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ("valid_from = 2026-11-21T00:00:00Z", "by its own word, before its key was valid"),
            ("valid_until = 2026-11-19T00:00:00Z", "by its own word, when its key was no longer valid"),
            ("valid_until = 2026-11-25T00:00:00Z", "could have dated it back"),
        ],
    )
    def test_outside_its_time_a_key_does_not_count(self, audit: Audit, rule: str, message: str) -> None:
        with pytest.raises(VerificationError, match=message):
            judged(audit, f"{KEY}{rule}\n")

    def test_inside_it_does(self, audit: Audit) -> None:
        assert judged(audit, f"{KEY}valid_from = 2026-11-20T00:00:00Z\nvalid_until = 2027-01-01T00:00:00Z\n").acceptable


class TestTimeStamps:
    @pytest.fixture(scope="class")
    def tsa(self, tmp_path_factory: pytest.TempPathFactory) -> local_tsa.Tsa:
        pytest.importorskip("rfc3161_client", reason="needs the extra `tsa`")
        return local_tsa.make(tmp_path_factory.mktemp("authority") / "tsa")

    def stamps(self, tsa: local_tsa.Tsa, envelope: bytes) -> dict[str, bytes]:
        return {key: tsa.reply(query(signature)) for key, signature in unpack(envelope).signatures.items()}

    def now_signed(self, audit: Audit) -> bytes:
        return sign(audit.report, audit.report.canonical(), audit.private, issued_at=datetime.now(UTC))

    def rule(self, tsa: local_tsa.Tsa, text: str = "") -> str:
        return f'{KEY}{text}[time_stamp]\nroots = ["{tsa.root.as_posix()}"]\n'

    def test_required(self, audit: Audit, tsa: local_tsa.Tsa) -> None:
        envelope = self.now_signed(audit)
        with pytest.raises(VerificationError, match="has no time stamp, which is asked for"):
            judged(audit, self.rule(tsa), envelope, now=datetime.now(UTC))
        seen = judged(audit, self.rule(tsa), envelope, now=datetime.now(UTC), stamps=self.stamps(tsa, envelope))
        assert [stamp.fingerprint for stamp in seen.stamps] == [audit.public.fingerprint]

    def test_every_signature_needs_its_own(self, audit: Audit, tsa: local_tsa.Tsa) -> None:
        envelope = two(audit)
        stamps = self.stamps(tsa, envelope)
        text = TWO + f'[time_stamp]\nroots = ["{tsa.root.as_posix()}"]\n'
        assert len(judged(audit, text, envelope, stamps=stamps).stamps) == 2
        swapped = dict(zip(stamps, reversed(stamps.values()), strict=True))
        with pytest.raises(VerificationError, match="Mismatch between messages"):
            judged(audit, text, envelope, stamps=swapped)
        stamps.popitem()
        with pytest.raises(VerificationError, match="has no time stamp"):
            judged(audit, text, envelope, stamps=stamps)

    def test_not_required_those_that_are_there_must_hold(self, audit: Audit, tsa: local_tsa.Tsa) -> None:
        text = self.rule(tsa) + "required = false\n"
        assert judged(audit, text).stamps == ()
        with pytest.raises(VerificationError, match="does not hold: Mismatch"):
            judged(audit, text, stamps={audit.public.fingerprint: tsa.reply(query(b"other"))})

    def test_a_stamp_of_before_saves_the_signature_of_a_key_that_was_lost_since(self, audit: Audit, tsa: local_tsa.Tsa) -> None:
        envelope = self.now_signed(audit)
        lost = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        later = datetime.now(UTC) + timedelta(days=30)
        text = self.rule(tsa, f"valid_until = {lost}\n") + "required = false\n"
        assert judged(audit, text, envelope, now=later, stamps=self.stamps(tsa, envelope)).acceptable
        with pytest.raises(VerificationError, match="could have dated it back"):
            judged(audit, text, envelope, now=later)

    def test_a_signature_dated_back_is_found_out(self, audit: Audit, tsa: local_tsa.Tsa) -> None:
        """Said to be from when the key was valid; its stamp says otherwise."""
        old = datetime.now(UTC) - timedelta(days=300)
        envelope = sign(audit.report, audit.report.canonical(), audit.private, issued_at=old)
        lost = (datetime.now(UTC) - timedelta(days=100)).strftime("%Y-%m-%dT%H:%M:%SZ")
        with pytest.raises(VerificationError, match="by its time stamp, when its key was no longer valid"):
            judged(
                audit,
                self.rule(tsa, f"valid_until = {lost}\n"),
                envelope,
                now=datetime.now(UTC),
                stamps=self.stamps(tsa, envelope),
            )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trusts nobody"),
        ("keys = 1", "keys: Input should be a valid tuple"),
        ("[[keys]]\n", r"keys\.0\.file: Field required"),
        ("nonsense", "is not TOML"),
        ("\x00", "is not TOML"),
        ("x = [" + "[" * 100_000, "is not TOML"),
        (KEY + 'file = "x"\n', "is not TOML"),
        ("surprise = 1\n" + KEY, "surprise: Extra inputs are not permitted"),
        (KEY + "surprise = 1\n", r"keys\.0\.surprise: Extra inputs"),
        ("threshold = 2\n" + KEY, "threshold 2 is more than the 1 whom it trusts"),
        ("threshold = 0\n" + KEY, "threshold: Input should be greater than or equal to 1"),
        ("maximum_age_days = -1\n" + KEY, "maximum_age_days"),
        ("maximum_age_days = nan\n" + KEY, "maximum_age_days"),
        ("maximum_age_days = inf\n" + KEY, "maximum_age_days"),
        ('tool_versions = "newest"\n' + KEY, "tool_versions.*newest"),
        ('verdicts = ["fine"]\n' + KEY, r"verdicts\.0"),
        ("predicate_types = []\n" + KEY, "predicate_types"),
        ('required_roles = ["operator"]\n' + KEY + 'roles = ["auditor"]\n', "nobody may sign as 'operator'"),
        ('required_roles = ["two words"]\n' + KEY, r"required_roles\.0"),
        (KEY + "valid_from = 2026-01-01\n", r"keys\.0\.valid_from"),
        (KEY + "valid_from = 2026-01-01T00:00:00\n", r"keys\.0\.valid_from.*timezone"),
        (KEY + f'fingerprint = "{"0" * 64}"\n', "and not the one that the policy names"),
        (KEY + 'fingerprint = "abc"\n', r"keys\.0\.fingerprint"),
        ('[[keys]]\nfile = "nowhere.pub"\n', "cannot be read"),
        ('[[keys]]\nfile = "."\n', "cannot be read"),
        ('[[keys]]\nfile = "auditor.key"\n', "is a private key"),
        (KEY + "[time_stamp]\nroots = []\n", r"time_stamp\.roots"),
        (KEY + '[time_stamp]\nroots = ["auditor.pub"]\n', "no PEM file of certificates"),
        ('[[identities]]\nidentity = "a@b"\n', r"identities\.0\.issuer: Field required"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_in_one_line(audit: Audit, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(policy(audit, text))
    assert "\n" not in str(caught.value)


def test_a_policy_that_is_no_file_or_too_large_is_refused(audit: Audit) -> None:
    for path in (audit.folder, audit.folder / "nowhere"):
        with pytest.raises(UsageError, match="cannot be read"):
            load(path)
    with pytest.raises(UsageError, match="has more than"):
        load(policy(audit, "#" * (trust_policy.SIZE_LIMIT + 1)))


def test_a_policy_of_identities_alone_trusts_no_key(audit: Audit) -> None:
    with pytest.raises(UsageError, match="trusts no key"):
        judged(audit, '[[identities]]\nidentity = "a@b.example"\nissuer = "https://issuer.example"\n')


def test_a_pinned_fingerprint_holds(audit: Audit) -> None:
    assert judged(audit, KEY + f'fingerprint = "{audit.public.fingerprint}"\n').acceptable
    assert public(ed25519(1), "x").fingerprint != audit.public.fingerprint
