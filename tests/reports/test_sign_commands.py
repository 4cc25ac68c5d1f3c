"""Signing as a user does it: sign, cosign, timestamp, verify, pubkey; what they print and exit with."""

import json
from pathlib import Path

import local_tsa
import pytest
import rfc8785
from click.testing import CliRunner, Result
from sample import Audit, small_report

from muaudit.cli import main
from muaudit.reports.keys import keygen, load_public
from muaudit.results import Verdict

PASSPHRASE = "MUAUDIT_KEY_PASSPHRASE"  # noqa: S105 - a name


@pytest.fixture
def folder(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an audit, the auditor's keys and an operator's, which is where the commands run."""
    keygen(audit.folder / "operator", "Operator")
    monkeypatch.chdir(audit.folder)
    monkeypatch.delenv(PASSPHRASE, raising=False)
    return audit.folder


def run(line: str, stdin: str | None = None, **environment: str) -> Result:
    return CliRunner().invoke(main, line.split(), input=stdin, env=environment)


def refused(line: str, code: int, message: str, stdin: str | None = None, **environment: str) -> None:
    """The command exits with the code and says the message in one line."""
    done = run(line, stdin, **environment)
    assert (done.exit_code, message in done.output) == (code, True), done.output
    assert [part for part in done.output.splitlines() if part.startswith("muaudit: ")] == done.output.splitlines()[-1:]


def test_two_people_sign_one_after_the_other(folder: Path) -> None:
    drafted = run("sign report.json --key auditor.key --cosigner operator=operator.pub")
    fingerprint = load_public(folder / "operator.pub").fingerprint[:16]
    assert drafted.output.splitlines() == [
        "wrote audit.intoto.json",
        f"pending until {fingerprint} signs as operator: muaudit cosign audit.intoto.json --key KEY",
    ]
    refused("verify audit.intoto.json --key auditor.pub --key operator.pub", 4, "pending until")
    assert run("cosign audit.intoto.json --key operator.key --trusted auditor.pub").output == "wrote audit.intoto.json\n"
    seen = run("verify audit.intoto.json --key auditor.pub --key operator.pub")
    assert seen.exit_code == 0
    for name, role in (("Lab X", "auditor"), ("Operator", "operator")):
        assert any(name in line and f" as {role} on " in line for line in seen.output.splitlines()), seen.output
    refused("verify audit.intoto.json --key auditor.pub", 4, "not signed by Lab X")
    refused("cosign audit.intoto.json --key operator.key", 2, "has signed this envelope already")


def test_the_cosigner_of_another_report_is_warned(folder: Path) -> None:
    assert run("sign report.json --key auditor.key --cosigner operator.pub").exit_code == 0
    before = (folder / "audit.intoto.json").read_bytes()
    (folder / "report.json").write_bytes(small_report(reason="other").canonical())
    refused("cosign audit.intoto.json --key operator.key", 4, "report.json is not the one that was signed")
    assert (folder / "audit.intoto.json").read_bytes() == before


def test_a_threshold(folder: Path) -> None:
    keygen(folder / "witness", "Witness")
    line = "sign report.json --key auditor.key --cosigner operator=operator.pub --cosigner witness.pub --threshold 2"
    assert run(line).exit_code == 0
    assert run("cosign audit.intoto.json --key witness.key --out two.json").exit_code == 0
    keys = "--key auditor.pub --key operator.pub --key witness.pub"
    seen = run(f"verify two.json {keys}")
    assert (seen.exit_code, "whom the threshold does without" in seen.output) == (0, True)
    as_json = json.loads(run(f"verify two.json {keys} --json").output)
    assert as_json["missing"] == [load_public(folder / "operator.pub").fingerprint]
    assert sorted(signer["role"] for signer in as_json["signers"]) == ["auditor", "witness"]
    refused(f"verify audit.intoto.json {keys}", 4, "2 are needed")


def test_a_cosigners_file_may_have_an_equals_sign_in_its_name(folder: Path) -> None:
    (folder / "operator.pub").rename(folder / "a=b.pub")
    assert "signs as witness" in run("sign report.json --key auditor.key --cosigner a=b.pub").output
    assert "signs as operator" in run("sign report.json --key auditor.key --cosigner operator=a=b.pub").output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sign report.json", "nothing to sign with"),
        ("sign report.json --key auditor.key --cosigner auditor.pub", "the one that signs now"),
        ("sign report.json --key auditor.key --cosigner operator.pub --cosigner x=operator.pub", "named twice"),
        ("sign report.json --key auditor.key --cosigner Big=operator.pub", "give a word such as auditor"),
        ("sign report.json --key auditor.key --cosigner nowhere.pub", "cannot be read"),
        ("sign report.json --key auditor.key --cosigner operator.key", "is a private key"),
        ("sign report.json --key auditor.key --threshold 2", "there are 1 signers"),
        ("sign report.json --key auditor.pub", "cannot be opened as a private key|others can read"),
        ("sign model --key auditor.key", "cannot be read"),
        ("sign audit.intoto.json --key auditor.key", "audit.intoto.json"),
        ("cosign report.json --key auditor.key", "not a DSSE envelope"),
        ("cosign model --key auditor.key", "cannot be read"),
        ("cosign audit.intoto.json --key operator.key", "not among the declared signers"),
        ("verify audit.intoto.json", "give --key or --policy"),
        ("verify model --key auditor.pub", "cannot be read"),
        ("verify audit.intoto.json --key auditor.pub --tsa-root auditor.pub", "no PEM file of certificates"),
        ("verify audit.intoto.json --key auditor.pub --policy auditor.pub", "give it alone"),
        ("verify audit.intoto.json --policy auditor.pub", "is not TOML"),
        ("timestamp report.json", "not a DSSE envelope"),
        ("timestamp audit.intoto.json --url tsa.example", "is no address"),
        ("pubkey auditor.key auditor", "is there already"),
        ("pubkey hsm:2 module", "PYKCS11LIB"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    done = run(line)
    assert done.exit_code in (2, 4, 5), done.output
    assert any(part in done.output for part in message.split("|")), done.output
    assert done.output.startswith("muaudit: ")
    assert done.output.count("\n") == 1


def test_a_policy_and_its_exit_codes(folder: Path, audit: Audit) -> None:
    """Integrity has an exit code of its own: 4. The verdict's are those of a scan."""
    policy = 'verdicts = ["pass"]\naudit_policies = ["standard"]\n[[keys]]\nfile = "auditor.pub"\n'
    (folder / "trust.toml").write_text(policy)
    line = "verify audit.intoto.json --policy trust.toml --model model"
    for verdict, code in ((Verdict.PASS, 0), (Verdict.FAIL, 1), (Verdict.INCONCLUSIVE, 3)):
        report = small_report(verdict=verdict, models=audit.report.models)
        (folder / "report.json").write_bytes(report.canonical())
        assert run("sign report.json --key auditor.key").exit_code == 0
        seen = run(line)
        assert seen.exit_code == code, seen.output
        assert ("which the policy does not take" in seen.output) is (code != 0)
        assert json.loads(run(f"{line} --json").stdout)["acceptable"] is (code == 0)
        assert run("verify audit.intoto.json --key auditor.pub").exit_code == 0
    (folder / "trust.toml").write_text(policy.replace('"standard"', '"strict"'))
    refused(line, 4, "the verifier takes strict")
    (folder / "trust.toml").write_text(policy)
    (folder / "model" / "config.json").write_bytes(b"{}")
    refused(line, 4, "file 'config.json' changed")


def test_time_stamps_by_hand_and_over_http(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("rfc3161_client", reason="needs the extra `tsa`")
    tsa = local_tsa.make(tmp_path_factory.mktemp("authority") / "tsa")
    assert run("sign report.json --key auditor.key --cosigner operator.pub").exit_code == 0
    assert run("cosign audit.intoto.json --key operator.key").exit_code == 0
    asked = run("timestamp audit.intoto.json")
    queries = sorted(folder.glob("audit.intoto.json.*.tsq"))
    assert len(queries) == 2
    assert asked.output.count("keep the answer as") == 2
    queries[0].with_suffix(".tsr").write_bytes(tsa.reply(queries[0].read_bytes()))
    keys = f"verify audit.intoto.json --key auditor.pub --key operator.pub --tsa-root {tsa.root}"
    refused(keys, 4, "has no time stamp, which is asked for")
    with local_tsa.served(tsa) as url:
        fetched = run(f"timestamp audit.intoto.json --url {url} --tsa-root {tsa.root}")
    assert fetched.output == f"wrote {queries[1].with_suffix('.tsr').name}\n"
    seen = run(keys)
    assert (seen.exit_code, seen.output.count("by CN=TSA")) == (0, 2), seen.output
    assert run("timestamp audit.intoto.json").output == "every signature has a time stamp already\n"
    assert run("sign report.json --key auditor.key").exit_code == 0  # other signatures, so those stamps are gone
    assert not list(folder.glob("audit.intoto.json.*.ts?"))


def test_an_answer_of_another_authority_is_not_kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("rfc3161_client", reason="needs the extra `tsa`")
    base = tmp_path_factory.mktemp("authorities")
    tsa, other = local_tsa.make(base / "one"), local_tsa.make(base / "two", "Other")
    with local_tsa.served(other) as url:
        refused(f"timestamp audit.intoto.json --url {url} --tsa-root {tsa.root}", 4, "does not hold")
    assert not list(folder.glob("audit.intoto.json.*.tsr"))


@pytest.mark.parametrize("keyid", ["../../../etc/x", "a/b", "\0", "f" * 65, "F" * 64, "", "a\nb"])
def test_a_hostile_key_id_names_no_file(folder: Path, keyid: str) -> None:
    fields = json.loads((folder / "audit.intoto.json").read_bytes())
    fields["signatures"][0]["keyid"] = keyid
    (folder / "audit.intoto.json").write_bytes(rfc8785.dumps(fields))
    before = sorted(folder.rglob("*"))
    for command in ("timestamp", "verify --key auditor.pub", "cosign --key auditor.key"):
        refused(f"{command} audit.intoto.json", 4, "other than exactly keyid")
    assert sorted(folder.rglob("*")) == before


def test_a_bundle_is_not_verified_with_a_key(folder: Path) -> None:
    (folder / "b.json").write_text('{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}')
    refused("verify b.json --key auditor.pub", 2, "is a Sigstore bundle; give --identity and --issuer")


class TestPassphrases:
    """Asked for, or from the environment; never from the arguments."""

    @pytest.fixture(autouse=True)
    def locked(self, folder: Path) -> None:
        keygen(folder / "locked", "Lab X", b"correct horse")

    def test_from_the_environment(self) -> None:
        assert run("sign report.json --key locked.key", **{PASSPHRASE: "correct horse"}).exit_code == 0
        assert run("verify audit.intoto.json --key locked.pub").exit_code == 0

    def test_typed(self) -> None:
        done = run("sign report.json --key locked.key", stdin="correct horse\n")
        assert (done.exit_code, "Passphrase of locked.key" in done.output) == (0, True)

    def test_wrong_or_not_given(self) -> None:
        refused("sign report.json --key locked.key", 2, "passphrase is missing or wrong", **{PASSPHRASE: "wrong"})
        refused("sign report.json --key locked.key", 2, "the passphrase of locked.key is needed and nobody gave it", stdin="")

    def test_a_new_key_asks_twice(self, folder: Path) -> None:
        assert run("keygen fresh --passphrase", stdin="a\nb\nc\nc\n").exit_code == 0
        assert run("sign report.json --key fresh.key", **{PASSPHRASE: "c"}).exit_code == 0
        refused("keygen other --passphrase", 2, "the passphrase is needed and nobody gave it", stdin="")
        assert not (folder / "other.key").exists()


def test_the_public_half_of_a_key(folder: Path) -> None:
    made = run("pubkey operator.key again --name Operator")
    assert (made.exit_code, (folder / "again.pub").read_bytes()) == (0, (folder / "operator.pub").read_bytes())
    assert json.loads(run("pubkey operator.key third --json").output)["fingerprint"] in made.output
