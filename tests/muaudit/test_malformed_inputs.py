"""Every malformed input ends in one line that names it, and in the documented exit code; never in a traceback."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from malformed import Case, cases, workplace
from recorded_logs import recorded_audit

from muaudit.cli import main

CASES = cases()


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with task files, models, a signed audit of recorded outputs and its keys."""
    folder = workplace(tmp_path_factory.mktemp("workplace"))
    recorded_audit(folder, "honest", sections='\n[signing]\nkey = "auditor.key"\n')
    for command in (["keygen", "auditor"], ["scan", "honest.toml"]):
        done = subprocess.run(
            [sys.executable, "-m", "muaudit", *command], cwd=folder, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def with_models(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with tiny models."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import tiny_folders
    from tiny_pipelines import write_stable

    folder = Path(shutil.copytree(kept, tmp_path_factory.mktemp("models") / "workplace"))
    tiny_folders.language(folder / "models" / "language")
    tiny_folders.language(folder / "models" / "reference")
    write_stable(folder / "models" / "stable")
    return folder


def copied(source: Path, folder: Path) -> Path:
    """A copy that a test may change, but for the models, which are the same files."""

    def copy(one: str, other: str) -> None:
        (os.link if f"{source}/models/" in one else shutil.copy2)(one, other)

    return Path(shutil.copytree(source, folder, copy_function=copy))


def met(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a case in this process, and checks its code and its line."""
    monkeypatch.chdir(folder)
    case.spoil(folder)
    done = CliRunner().invoke(main, list(case.command), catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"{done.exception!r} instead of a line") from done.exception
    assert done.exit_code == case.code, done.output
    assert done.stdout == ""
    said = done.stderr.strip()
    if not said.startswith("Usage: "):  # click's own refusal of an argument, which says how to mend it
        assert said.count("\n") == 0, said
        assert said.startswith("muaudit: ")
        assert re.search("; |: ", said.removeprefix("muaudit: ")), said
    assert len(said) < 2_000 or "xxx" in said, said[:300]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said), said
    assert re.search(case.said, said), said


NEEDS_MODELS = ("facts.toml", "prompts.toml")


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_input_is_one_line_and_the_documented_code(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    source = request.getfixturevalue("with_models" if case.command[-1] in NEEDS_MODELS else "kept")
    met(case, copied(source, tmp_path / "here"), monkeypatch)


@pytest.mark.parametrize(
    "name",
    ["configuration: a configuration nested 100,000 deep", "facts: nothing", "recorded: a loss that is NaN",
     "report: no models", "envelope: another payload", "private key: text", "plan: another margin"],
)  # fmt: skip
def test_so_it_is_for_a_user(name: str, kept: Path, with_models: Path, tmp_path: Path) -> None:
    case, folder = CASES[name], copied(with_models, tmp_path / "here")
    case.spoil(folder)
    command = [sys.executable, "-m", "muaudit", *case.command]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (case.code, "")
    assert done.stderr.startswith("muaudit: ")
    assert done.stderr.count("\n") == 1
    assert re.search(case.said, done.stderr)


def test_the_sound_workplace_is_taken(with_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(with_models, tmp_path / "here"))
    monkeypatch.chdir(folder)
    for command in (
        ["plan", "facts.toml"], ["plan", "examples.toml"], ["plan", "prompts.toml"], ["plan", "honest.toml"],
        ["render", "audit-honest/report.json", "--out", "x.html"], ["scan", "audit-honest/plan.json"],
        ["verify", "audit-honest/audit.intoto.json", "--key", "auditor.pub", "--model", "honest.json"],
    ):  # fmt: skip
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, (command, done.output)


def test_there_are_enough_of_them() -> None:
    from hostile_folders import ADAPTERS, REFUSED, SHARDS

    assert len(CASES) + len(REFUSED) + len(SHARDS) + len(ADAPTERS) >= 200
