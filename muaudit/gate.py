"""The audits that the tests of one run ask for: run once, shared between the run's processes, rendered together.

This is the part of the pytest plug-in that is imported when a test asks for an audit, and not before.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from muaudit.errors import MuauditError, UsageError
from muaudit.testing import Judged

if TYPE_CHECKING:
    from muaudit.config import AuditConfig
    from muaudit.results import AuditReport


@dataclass(frozen=True)
class Audited:
    """One audit of this run: its report, or why there is none.

    Attributes:
        name: What it is called: the path of what was audited, as seen from here.
        source: The resolved path of the audit.toml or plan.json; None where a configuration was given.
        folder: Its output folder.
        report: The report.
        fault: Why there is no report.
    """

    name: str
    source: str | None
    folder: str
    report: "AuditReport | None"
    fault: str | None


def key_of(source: "str | Path | AuditConfig") -> str:
    """What tells one audit of a run from another: the file's resolved path, or the configuration's content."""
    return _digest(str(Path(source).resolve())) if isinstance(source, str | Path) else source.content_digest()


def once(source: "str | Path | AuditConfig", shared: Path | None) -> Audited:
    """Runs an audit, or reads what another process of this run made of it.

    Args:
        source: The path of an audit.toml or a plan.json, or a configuration.
        shared: The folder in which the processes of this run share what they made; None where there is one process.

    Returns:
        The audit.
    """
    try:
        settings, base = _settings(source)
    except MuauditError as error:
        entry = _entry(source, Path(), None, str(error))
        return entry if shared is None else _kept(entry, shared / f"{key_of(source)}.json")
    folder = base / settings.run.out
    if shared is None:
        return _run(source, folder)
    # By output folder: two files that share one are audited one after the other, as they are in one process.
    with _locked(shared / f"{_digest(str(folder.resolve()))}.lock"):
        kept = shared / f"{key_of(source)}.json"
        return _unpacked(kept.read_bytes()) if kept.exists() else _kept(_run(source, folder), kept)


def made(shared: Path) -> dict[str, Audited]:
    """What the processes of this run made.

    Args:
        shared: The folder that they share.

    Returns:
        The audits, by `key_of` what was audited.
    """
    return {path.stem: _unpacked(path.read_bytes()) for path in shared.glob("[!.]*.json")}


def properties(report: "AuditReport", attack: str | None = None) -> list[tuple[str, object]]:
    """What a JUnit file keeps of an audit.

    Args:
        report: The report.
        attack: Keep the findings of this attack alone.

    Returns:
        Names and plain values, one verdict and one gap a finding among them.
    """
    found: list[tuple[str, object]] = [
        ("muaudit.verdict", str(report.verdict)),
        ("muaudit.target", report.target.path),
        ("muaudit.target_sha256", report.target.digest),
        ("muaudit.plan_sha256", report.plan_sha256),
    ]
    for finding in Judged(report, attack).findings:
        name = f"muaudit.{finding.attack}.{finding.measures}"
        found.append((name, str(finding.verdict)))
        if finding.gap is not None and finding.interval is not None:
            found.append((f"{name}.gap", "{:+.4f} [{:+.4f}, {:+.4f}]".format(finding.gap, *finding.interval)))
        if finding.margin is not None:
            found.append((f"{name}.margin", f"{finding.margin:g}"))
    return found


def named(path: Path) -> str:
    """A path as a person in the current folder calls it."""
    here, there = Path.cwd(), path.resolve()
    return str(there.relative_to(here)) if there.is_relative_to(here) else str(there)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _settings(source: "str | Path | AuditConfig") -> "tuple[AuditConfig, Path]":
    """The configuration, and the folder that its paths start from."""
    if not isinstance(source, str | Path):
        return source, Path()
    path = Path(source)
    if path.suffix == ".json":
        from muaudit.plan import Plan

        frozen = Plan.read(path)
        return frozen.config, path.parent / frozen.base
    from muaudit import config

    return config.load(path), path.parent


def planned(source: "Path | AuditConfig") -> list[str]:
    """Names the attacks whose findings the report will hold. Reads the configuration or plan alone; opens no model.

    Args:
        source: The path of an audit.toml or a plan.json, or a configuration.

    Returns:
        The names in the report's order: the last target's, then those of a series' earlier steps.

    Raises:
        UsageError: The source cannot be used.
    """
    from muaudit import preset

    settings, _ = _settings(source)
    shipped = preset.attacks(settings.preset) if settings.preset is not None else {}
    names = [*dict.fromkeys([*shipped, *settings.attacks])]
    return [*names, *(f"{name} @ {step.name}" for step in settings.series for name in names)]


def chosen(attacks: Sequence[str] | None, planned: Sequence[str]) -> list[str | None]:
    """Chooses what one test each judges.

    Args:
        attacks: What the test's marker asks for.
        planned: The names of all attacks.

    Returns:
        The marker's attacks; without them all attacks, and None for the verdict of the audit as a whole.

    Raises:
        UsageError: The audit does not plan an attack that is asked for.
    """
    if attacks is None:
        return [*planned, None]
    for name in attacks:
        if name not in planned:
            near = get_close_matches(name, planned, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"planned: {', '.join(planned)}"
            raise UsageError(f"attack {name!r} is not in this audit's plan; {hint}")
    return [*dict.fromkeys(attacks)]


def _run(source: "str | Path | AuditConfig", folder: Path) -> Audited:
    from muaudit.runner import audit as run

    try:
        return _entry(source, folder, run(source), None)
    except MuauditError as error:
        return _entry(source, folder, None, str(error))


def _entry(source: "str | Path | AuditConfig", folder: Path, report: "AuditReport | None", fault: str | None) -> Audited:
    path = str(Path(source).resolve()) if isinstance(source, str | Path) else None
    name = named(Path(path)) if path is not None else f"a configuration for {named(folder)}"
    return Audited(name, path, str(folder.resolve()), report, fault)


def _kept(entry: Audited, path: Path) -> Audited:
    from muaudit.store import write_atomically

    write_atomically(path, _packed(entry))
    return entry


def _packed(entry: Audited) -> bytes:
    report = None if entry.report is None else entry.report.canonical().decode()
    return json.dumps(vars(entry) | {"report": report}).encode()


def _unpacked(data: bytes) -> Audited:
    from muaudit.results import AuditReport

    values = json.loads(data)
    report = None if values["report"] is None else AuditReport.from_json(values["report"].encode())
    return Audited(**(values | {"report": report}))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One worker at a time; the lock goes with the process that holds it, however that ends."""
    try:
        import fcntl
    except ImportError:  # an operating system without such locks, where each worker runs the audit
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sarif(entries: Sequence[Audited]) -> str:
    """Renders audits as one SARIF log.

    Args:
        entries: Audits; at least one has a report.

    Returns:
        A log with a run for each report. Code hosts take one run of a category, so each has its own.

    Raises:
        UsageError: An audit's audit.toml is no longer there.
    """
    from muaudit.delivery import source_of
    from muaudit.reports.formats import render

    logs = []
    for entry in entries:
        if entry.report is not None:
            source = Path(entry.source) if entry.source is not None else Path(entry.folder) / "plan.json"
            log = json.loads(render(entry.report, "sarif", source_of(source)))
            log["runs"][0]["automationDetails"]["id"] = f"muaudit/{quote(entry.name)}/"
            logs.append(log)
    return json.dumps(logs[0] | {"runs": [run for log in logs for run in log["runs"]]}, indent=2, ensure_ascii=False) + "\n"


def markdown(entries: Sequence[Audited]) -> str:
    """Renders audits as one Markdown document, one after the other.

    Args:
        entries: The audits; those without a report are passed over.

    Returns:
        The document.
    """
    from muaudit.reports.formats import render

    return "\n---\n\n".join(render(entry.report, "markdown").decode() for entry in entries if entry.report is not None)
