"""What ships: every module and data file, nothing else, and a core that starts at once and knows nothing of torch."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = {"muaudit": "muaudit", "attacks": "muaudit/attacks", "reports": "muaudit/reports"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the wheel, built from a copy so that no old build folder gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("muaudit-*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: list[str]) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in PACKAGES.items()
        for path in (ROOT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_the_wheel_holds_types_policies_templates_schemas_and_licence(wheel: list[str]) -> None:
    assert "muaudit/py.typed" in wheel
    for folder in ("muaudit/policies/", "muaudit/reports/templates/", "muaudit/reports/schemas/"):
        assert any(name.startswith(folder) for name in wheel), folder
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert not [name for name in wheel if name.split("/")[-1].startswith(("test_", "conftest"))]


def test_the_tests_folder_cannot_pass_for_the_package() -> None:
    assert str(ROOT / "tests") not in sys.path  # tests/muaudit would be found as `muaudit` by a worker that inherits the path


def test_the_core_requires_no_model_library() -> None:
    core = {Requirement(line).name for line in requires("muaudit") or () if "extra ==" not in line}
    assert not core & {"torch", "transformers", "peft", "accelerate", "opacus", "scikit-learn", "textattack", "tokenizers"}


def _constraints(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line) for line in lines)
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-transformers5.txt"])
def test_the_constraints_pin_all_that_the_project_names(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    named = (
        project["project"]["dependencies"]
        + [line for lines in extras.values() for line in lines]
        + project["dependency-groups"]["dev"]
    )
    pinned = _constraints(name)
    for requirement in map(Requirement, named):
        if requirement.name == "muaudit" or (requirement.name == "textattack" and "transformers5" in name):
            continue
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_two_environments_differ_in_transformers() -> None:
    assert _constraints("constraints.txt")["transformers"].startswith("4.")
    second = _constraints("constraints-transformers5.txt")
    assert second["transformers"].startswith("5.")
    assert "textattack" not in second


@pytest.mark.skipif("CI" not in os.environ, reason="a developer's environment may hold other versions")
def test_this_environment_is_the_pinned_one() -> None:
    pinned = _constraints("constraints.txt" if version("transformers").startswith("4.") else "constraints-transformers5.txt")
    # Not all of sys.path: ray, once imported, puts libraries that it brings along there.
    here = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    installed = {canonicalize_name(one.name): one.version.split("+")[0] for one in distributions(path=here)}
    del installed["muaudit"]
    assert installed.items() <= pinned.items()


@pytest.mark.parametrize(
    "arguments", [["--version"], ["verify", "--help"], ["render", "--help"], ["scan", "--help"], ["--help"]]
)
def test_a_command_starts_without_importing_what_it_does_not_need(arguments: list[str]) -> None:
    code = (
        "import sys; from muaudit.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: print('modules', *sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=True)
    modules = set(ran.stdout.rsplit("modules ", 1)[1].split())
    assert not modules & {"torch", "transformers", "scipy", "numpy", "matplotlib", "pydantic", "jinja2", "cryptography", "rich"}


def test_the_readme_tells_every_shipped_attack_with_its_access() -> None:
    pytest.importorskip("torch")
    from muaudit import registry

    shipped = {name: found for name, found in registry.registered().items() if found.package == "muaudit"}
    rows = dict(re.findall(r"^\| `(\w+)` \| (text|logits|weights|training) \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert rows == {name: found.attack.access for name, found in shipped.items() if isinstance(found, registry.Registered)}
    assert set(rows) == set(shipped)
