"""The example of image generators, as its README goes: from trained pipelines to a signed page, by the command line alone."""

import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from classifier_audits import muaudit, toml

from muaudit import config, policy, registry
from muaudit.results import AuditReport, Verdict

EXAMPLE = Path(__file__).parents[2] / "examples" / "diffusion"
Build = Callable[[str, Sequence[str]], dict[str, Path]]


@pytest.fixture
def folder(pipelines: Build, tmp_path: Path) -> Path:
    """The example, with its testbed beside it."""
    paths = pipelines("sketches", ["esd", "original", "reference-1", "reference-2", "reference-3"])
    here = tmp_path / "diffusion"
    shutil.copytree(EXAMPLE, here)
    (here / "testbed").symlink_to(paths["forget"].parent.resolve())
    return here


def test_the_whole_plan_stands(folder: Path) -> None:
    assert muaudit("keygen", "auditor", cwd=folder).code == 0
    planned = muaudit("plan", "audit.toml", cwd=folder)
    assert planned.code == 0, planned.err


def test_from_pipelines_to_a_signed_page(folder: Path) -> None:
    """Two of the attacks, which take seconds: erased to the plain prompts, and back after a few training steps."""
    values = tomllib.loads((folder / "audit.toml").read_text(encoding="utf-8"))
    values["attacks"] = {name: values["attacks"][name] for name in ("seed_search", "concept_relearning")}
    values["attacks"]["concept_relearning"]["budgets"] = [40]
    values["policy"] = {"name": "ours.toml"}
    (folder / "audit.toml").write_text(toml(values), encoding="utf-8")
    (folder / "ours.toml").write_text('name = "ours"\ndescription = "None is required."\nmargin = 0.1\ncluster_margin = 0.5\n')
    assert muaudit("keygen", "auditor", cwd=folder).code == 0
    seen = muaudit("scan", "audit.toml", cwd=folder)
    assert seen.code == 1, seen.err
    report = AuditReport.from_json((folder / "audit" / "report.json").read_bytes())
    found = {finding.attack: finding for finding in report.findings}
    assert found["seed_search"].verdict is Verdict.PASS
    assert found["concept_relearning"].verdict is Verdict.FAIL
    page = (folder / "audit" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    verified = muaudit("verify", "audit/audit.intoto.json", "--key", "auditor.pub", "--model", "testbed/esd", cwd=folder)
    assert verified.code == 0, verified.err


@pytest.mark.parametrize("name", ["audit.toml", "stable-diffusion.toml"])
def test_configurations_say_what_exists(name: str) -> None:
    """No key is misspelt, no parameter is out of range, and every policy can be read."""
    values = tomllib.loads((EXAMPLE / name).read_text(encoding="utf-8"))
    parsed = config.parse(values, name)
    policy.load(parsed.policy.name, EXAMPLE)
    for attack, parameters in values["attacks"].items():
        found = registry.find(attack)
        assert isinstance(found, registry.Registered)
        found.attack.model_validate(parameters)
