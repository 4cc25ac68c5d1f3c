"""The folders are the architecture: imports point one way, nothing is too long to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTER = {"cli", "command_line", "commands", "__main__", "delivery", "demo", "gate", "testing", "pytest_plugin"}
"""Modules of the package that may use reports, the testbed and attacks: they are the outer layer."""

FOLDERS = {"muaudit": "muaudit", "attacks": "muaudit.attacks", "reports": "muaudit.reports"}


def modules() -> dict[str, Path]:
    """Every shipped module by its installed name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imported(name: str, *, lazily: bool) -> Iterator[str]:
    """Names of our own modules that a module imports; at its top, or inside its functions too."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazily else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("muaudit"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("muaudit"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def layer(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in ("attacks", "reports", "testbed"):
        return parts[1]
    return "outer" if len(parts) > 1 and parts[1] in OUTER else "core"


ALLOWED = {
    "core": {"core"},
    "attacks": {"core"},
    "reports": {"core", "reports"},
    "testbed": {"core", "testbed"},
    "outer": {"core", "attacks", "reports", "testbed", "outer"},
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name: str) -> None:
    for other in imported(name, lazily=True):
        assert layer(other) in ALLOWED[layer(name)] or other == name, f"{name} imports {other}"
        if layer(name) == "attacks":
            assert other not in ("muaudit.compare", "muaudit.runner", "muaudit.plan"), f"{name} imports {other}"


def test_there_are_no_cycles() -> None:
    graph = {name: set(imported(name, lazily=False)) & set(MODULES) - {name} for name in MODULES}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert not graph, f"cycle among {sorted(graph)}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_too_long_to_read(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 60, f"{name}.{node.name} has more than 60 lines"
