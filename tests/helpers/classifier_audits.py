"""A small audit of classifiers on disk, and the command line that runs it."""

import json
import shutil
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from muaudit.cli import main
from muaudit.results import AuditReport, Finding

SETS = ("forget", "retain", "holdout")

RECIPE = {"kind": "torch", "architecture": "mlp", "hidden": [64], "steps": 300, "learning_rate": 0.2, "normalise": False}
"""Overfits 180 digits in a quarter of a second, so that membership shows."""

MARGINS = dict.fromkeys(("unlearning_metrics", "lira", "rmia", "population"), 0.15)
"""Wide, for so few examples and references."""


@dataclass(frozen=True)
class Seen:
    """What a user sees of a command."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """Its one line of error."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("muaudit: "), self.err
        return self.err.rstrip("\n")


def muaudit(*arguments: str | Path, cwd: Path) -> Seen:
    """The command line in this process: what it lets through as an exception is no exit code but a failed test."""
    with chdir(cwd):
        found = CliRunner(env={"COLUMNS": "160"}).invoke(main, [*map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Seen(found.exit_code, found.stdout, found.stderr)


def toml(values: Mapping[str, Any]) -> str:
    """Tables of a configuration as TOML; what stands deeper is written inline."""
    plain = [f"{name} = {_inline(value)}\n" for name, value in values.items() if not isinstance(value, dict | list)]
    tables = []
    for name, value in values.items():
        many = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
        head = f"\n[[{name}]]\n" if isinstance(value, list) else f"\n[{name}]\n"
        tables += [head + "".join(f"{key} = {_inline(one)}\n" for key, one in table.items()) for table in many]
    return "".join([*plain, *tables])


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_inline(one)}" for name, one in value.items()) + " }"
    return "[" + ", ".join(map(_inline, value)) + "]" if isinstance(value, list | tuple) else json.dumps(value)


def classifier(path: str, **options: object) -> dict[str, object]:
    """A classifier's table."""
    return {"kind": "classifier", "path": path, **options}


def settings(**changed: Any) -> dict[str, Any]:
    """An audit.toml of the models that `models` makes; a table that is None is left out."""
    values: dict[str, Any] = {
        "task": {"kind": "classification"} | {name: f"{name}.npz" for name in SETS},
        "target": classifier("honest"),
        "original": classifier("original"),
        "references": [classifier(f"reference-{number}") for number in (1, 2, 3)],
        "policy": {"name": "classification", "margins": MARGINS, "partial": True},
        "attacks": {"unlearning_metrics": {}},
    }
    values |= changed
    values["run"] = {"seed": "2026"} | (values.get("run") or {})
    return {name: value for name, value in values.items() if value is not None}


def write(folder: Path, **changed: Any) -> Path:
    """Writes an audit.toml of these settings."""
    path = folder / "audit.toml"
    path.write_text(toml(settings(**changed)), encoding="utf-8")
    return path


def models(folder: Path) -> Path:
    """Task files of digits, an original, three references, an honest retrain and 16 shadow models, in one folder."""
    from muaudit.ahead import train_references, train_shadows
    from muaudit.testbed.classification.data import Population, make_task, write_task

    write_task(make_task(Population(forget=60, retain=120, holdout=180)), folder)
    audit = write(folder, recipe=RECIPE)
    train_references(audit, folder, 4, forget=False)
    (folder / "reference-4").rename(folder / "honest")
    train_references(audit, folder, 1, forget=True)
    (folder / "original-1").rename(folder / "original")
    train_shadows(audit, folder / "shadows", 16)
    shutil.rmtree(folder / "audit")
    return folder


def scan(folder: Path, *, code: int | None = None, **changed: Any) -> AuditReport:
    """Runs an audit of these settings through the command line, and reads its report."""
    seen = muaudit("scan", write(folder, **changed), cwd=folder)
    assert seen.code in ((0, 1, 3) if code is None else (code,)), seen.out + seen.err
    return AuditReport.from_json((folder / "audit" / "report.json").read_bytes())


def found(report: AuditReport) -> dict[str, Finding]:
    """The findings on the forget set, by attack."""
    return {finding.attack: finding for finding in report.findings if finding.measures == "leakage"}


def findings(report: AuditReport) -> list[bytes]:
    """All findings, byte for byte."""
    return [finding.canonical() for finding in report.findings]
