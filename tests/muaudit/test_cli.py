"""The command line as a user meets it: a subprocess, its exit code, and what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_logs import recorded_audit
from tiny_folders import language

from muaudit import command_line

MUAUDIT = (sys.executable, "-m", "muaudit")


def muaudit(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MUAUDIT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "COLUMNS": "160", **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    made = muaudit("keygen", "auditor", "--name", "Lab X", cwd=path)
    assert made.returncode == 0, made.stderr
    for target in ("honest", "suppressed", "one-left"):
        recorded_audit(path, target, sections='\n[signing]\nkey = "auditor.key"\n')
        (path / f"{target}.code").write_text(str(muaudit("scan", f"{target}.toml", cwd=path).returncode))
    return path


def test_exit_code_follows_the_verdict(folder: Path) -> None:
    codes = {target: (folder / f"{target}.code").read_text() for target in ("honest", "suppressed", "one-left")}
    assert codes == {"honest": "0", "suppressed": "1", "one-left": "1"}


def test_scan_writes_plan_report_page_and_envelope_and_prints_where(folder: Path) -> None:
    out = folder / "audit-honest"
    assert {"plan.json", "report.json", "report.html", "audit.intoto.json", "store"} <= {path.name for path in out.iterdir()}
    again = muaudit("scan", "honest.toml", cwd=folder)
    assert again.returncode == 0
    for said in ("memorization", "pass", "gap", "margin", "audit-honest/report.html", "muaudit verify"):
        assert said in again.stdout, again.stdout


def test_scan_of_a_frozen_plan(folder: Path) -> None:
    planned = muaudit("plan", "honest.toml", "--json", cwd=folder)
    digest = json.loads(planned.stdout)["sha256"]
    scanned = muaudit("scan", "audit-honest/plan.json", "--json", cwd=folder)
    assert json.loads(scanned.stdout)["plan_sha256"] == digest


def test_verify_holds_for_a_fail_and_refuses_a_changed_model(folder: Path, tmp_path: Path) -> None:
    good = muaudit(
        "verify", "audit-suppressed/audit.intoto.json", "--key", "auditor.pub", "--model", "suppressed.json", cwd=folder
    )
    assert good.returncode == 0, good.stderr
    assert "verdict    fail" in good.stdout
    assert "Lab X" in good.stdout
    changed = tmp_path / "suppressed.json"
    changed.write_text((folder / "suppressed.json").read_text() + " ")
    bad = muaudit("verify", "audit-suppressed/audit.intoto.json", "--key", "auditor.pub", "--model", changed, cwd=folder)
    assert bad.returncode == 4
    assert "suppressed.json" in bad.stderr
    assert bad.stderr.count("\n") == 1


def test_verify_as_json(folder: Path) -> None:
    seen = muaudit("verify", "audit-honest/audit.intoto.json", "--key", "auditor.pub", "--json", cwd=folder)
    value = json.loads(seen.stdout)
    assert value["verdict"] == "pass"
    assert value["signers"][0]["name"] == "Lab X"
    assert any("report.json" in line for line in value["checked"])


def test_sign_and_render_what_scan_wrote(folder: Path, tmp_path: Path) -> None:
    report = folder / "audit-honest" / "report.json"
    signed = muaudit("sign", report, "--key", "auditor.key", "--out", tmp_path / "again.json", cwd=folder)
    assert signed.returncode == 0, signed.stderr
    seen = muaudit("verify", tmp_path / "again.json", "--key", "auditor.pub", "--report", report, cwd=folder)
    assert seen.returncode == 0, seen.stderr
    assert muaudit("render", report, "--out", tmp_path / "page.html", cwd=folder).returncode == 0
    assert (tmp_path / "page.html").read_text() == (folder / "audit-honest" / "report.html").read_text()


def test_an_encrypted_key_signs_with_its_passphrase(folder: Path, tmp_path: Path) -> None:
    secret = {"MUAUDIT_KEY_PASSPHRASE": "correct horse"}
    assert muaudit("keygen", tmp_path / "locked", "--passphrase", cwd=folder, **secret).returncode == 0
    report = folder / "audit-honest" / "report.json"
    arguments = ("sign", report, "--key", tmp_path / "locked.key", "--out", tmp_path / "signed.json")
    assert muaudit(*arguments, cwd=folder, **secret).returncode == 0
    wrong = muaudit(*arguments, cwd=folder, **dict.fromkeys(secret, "wrong"))
    assert wrong.returncode == 2
    assert "passphrase" in wrong.stderr


@pytest.mark.parametrize(
    ("broken", "code", "said"),
    [
        ('path = "honest.json"\nformt = "tofu"', 2, "did you mean 'format'"),
        ('path = "gone.json"\nformat = "tofu"', 2, "gone.json: no such file"),
        ('path = "honest.json"\nformat = "open_unlearning"', 2, "open_unlearning"),
    ],
)
def test_bad_configuration_is_one_line(folder: Path, tmp_path: Path, broken: str, code: int, said: str) -> None:
    text = (folder / "honest.toml").read_text()
    start = text.index("[target]\n")
    text = text[:start] + f'[target]\nkind = "recorded"\n{broken}\n' + text[text.index("\n[original]", start) :]
    bad = folder / f"bad-{tmp_path.name}.toml"
    bad.write_text(text)
    seen = muaudit("scan", bad, cwd=folder)
    assert seen.returncode == code
    assert said in seen.stderr
    assert seen.stderr.count("\n") == 1
    assert "Traceback" not in seen.stderr


def test_attacks_and_doctor(folder: Path) -> None:
    listed = json.loads(muaudit("attacks", "--json", cwd=folder).stdout)
    assert {"memorization", "relearning"} <= {row["name"] for row in listed}
    shown = muaudit("attacks", "relearning", cwd=folder).stdout
    for said in ("arXiv", "training", "learning_rate", "budgets", "rank of LoRA"):
        assert said in shown
    near = muaudit("attacks", "relearnin", cwd=folder)
    assert near.returncode == 2
    assert "did you mean 'relearning'" in near.stderr
    assert any(row["what"] == "torch" for row in json.loads(muaudit("doctor", "--json", cwd=folder).stdout))


def test_init_writes_a_configuration_that_plans(folder: Path, tmp_path: Path) -> None:
    language(tmp_path / "model")
    facts = [{"id": f"{number}", "question": f"Who is {number}?", "answer": "She"} for number in range(50)]
    (tmp_path / "forget.jsonl").write_text("\n".join(map(json.dumps, facts)))
    arguments = ("init", "--target", "model", "--forget", "forget.jsonl", "--reference", "model", "--original", "model")
    assert muaudit(*arguments, cwd=tmp_path).returncode == 0
    planned = muaudit("plan", "audit.toml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    again = muaudit(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_hostile_message_cannot_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text('[task]\nkind = "facts"\nforget = "\\u001b]0;pwned\\u0007.jsonl"\n')
    seen = muaudit("plan", "audit.toml", cwd=tmp_path)
    assert seen.returncode == 2
    assert "\x1b" not in seen.stderr


def test_without_a_terminal_progress_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 10.0, 61.0, 90.0, 125.0])
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(seconds))
    with command_line.progress_bar() as tell:
        for done in range(1, 5):
            tell(done, 4, f"step \x1b[31m{done}")
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.partition(" ")[2] for line in told.err.splitlines()] == [
        "2 of 4: step \ufffd[31m2",
        "4 of 4: step \ufffd[31m4",
    ]


def test_help_names_the_exit_codes(tmp_path: Path) -> None:
    seen = muaudit("--help", cwd=tmp_path)
    assert "4 verification failed" in seen.stdout
    for command in ("demo", "init", "plan", "scan", "render", "sign", "verify", "keygen", "attacks", "doctor", "testbed"):
        assert f"  {command}" in seen.stdout


def test_the_command_line_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "'torch', 'numpy', 'scipy', 'pydantic', 'matplotlib', 'rich'"
    code = f"import sys, muaudit.cli; print([name for name in ({heavy}) if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert seen.stdout.strip() == "[]"
