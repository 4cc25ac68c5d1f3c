"""Attacks on image generators against known truth: `python benchmarks/diffusion_battery.py`.

    python benchmarks/diffusion_battery.py [SECTION ...] [--out FOLDER] [--workers 2] [--write docs/diffusion.md]

Sections: `methods` (every unlearning method of the testbed `sketches` against every attack, with the parameters of
examples/diffusion/audit.toml; references in the last rows), `seeds` (some of them made with another seed, and honest retrains
that nothing was tuned on) and `retention` (UnlearnCanvas's numbers). With --write, each goes
between its own markers of a document. Speed: `diffusion_attack.py`.
"""

import argparse
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from muaudit import runner
from muaudit.config import parse
from muaudit.results import AuditReport, Finding, Verdict
from muaudit.testbed.diffusion.build import METHODS, PRESETS, build

EXAMPLE = Path(__file__).parents[1] / "examples" / "diffusion" / "audit.toml"
REFERENCES = ("reference-1", "reference-2", "reference-3", "reference-4")
OTHERS = ("keyword-1", "esd-1", "mislabel-1", "advunlearn-1", "retrain-1", "retrain-2", "retrain-3")
"""Their originals are trained with another seed; no parameter was chosen by them."""

SEED = "2026"
"""Fixed, so that the tables come out the same again; an audit without one draws its own."""

MARKS = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "**FAIL**",
    Verdict.INCONCLUSIVE: "open",
    Verdict.SKIPPED: "skipped",
    Verdict.ERROR: "error",
}
COLUMNS = {"unlearning_accuracy": 2, "in_domain_retain_accuracy": 2, "fid": 1, "kid": 1}
"""Of the table of retention, with their digits."""

BEST = ("post_asr", "best_of_", "attacked_best_of_", "best")
"""What attacks call the best of several images, the most telling first."""

Table = list[str]


def settings(paths: Mapping[str, Path], target: str, references: Sequence[str], out: Path, workers: int) -> dict[str, Any]:
    """The example's audit with another target and other references."""
    values = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    values.pop("signing", None)

    def model(name: str) -> dict[str, Any]:
        return {"kind": "diffusion", "path": str(paths[name]), "batch_size": 512}

    folder = paths["forget"].parent
    task = values["task"] | {name: str(paths[name]) for name in ("forget", "retain", "holdout", "known")}
    task["evaluators"] = [
        one | {"path": str(folder / Path(one["path"]).relative_to("testbed"))} for one in values["task"]["evaluators"]
    ]
    attacks = {name: {key: _moved(value, folder) for key, value in table.items()} for name, table in values["attacks"].items()}
    folders = {"out": str(out / "audits" / target), "store": str(out / "store")}
    run = folders | {"seed": SEED, "workers": workers, "device": "cpu"}
    return values | {
        "task": task,
        "target": model(target),
        "original": model("original"),
        "references": [model(name) for name in references],
        "attacks": attacks,
        "run": run,
    }


def _moved(value: Any, folder: Path) -> Any:  # noqa: ANN401 - a parameter of any type
    """Parameters that name a file of the example's testbed, from this testbed's folder."""
    return (
        str(folder / Path(value).relative_to("testbed")) if isinstance(value, str) and value.startswith("testbed/") else value
    )


def audit(values: dict[str, Any], name: str) -> AuditReport:
    """Runs it, and says how long it took."""
    start = time.perf_counter()
    report = runner.audit(parse(values, name))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return report


def cell(finding: Finding | None) -> str:
    """Verdict, success per query, and the best of several images where the attack tells it."""
    if finding is None or finding.target is None:
        return "" if finding is None else MARKS[finding.verdict]
    best = next(
        (one.target for start in BEST for one in finding.scores if one.name == start or one.name.startswith(start)), None
    )
    beside = "" if best is None else f" / {best:.2f}"
    return f"{MARKS[finding.verdict]} {finding.target:.2f}{beside}"


def _audits(out: Path, workers: int) -> dict[str, AuditReport]:
    """One audit a model: all methods, an honest retrain, and each reference against the others."""
    names = [name.replace("_", "-") for name in METHODS if name not in ("retrain", "do_nothing")]
    paths = build(
        PRESETS["sketches"], out / "sketches", ["original", *REFERENCES, "retrain", "do-nothing", *names], jobs=workers
    )
    reports = {}
    for name in ("do-nothing", *names, "retrain"):
        reports[name] = audit(settings(paths, name, REFERENCES, out, workers), name)
    for name in REFERENCES:
        others = [one for one in REFERENCES if one != name]
        reports[name] = audit(settings(paths, name, others, out, workers), name)
    return reports


def methods(out: Path, workers: int) -> Table:
    """A row a model, a cell an attack: verdict, success per query / best of n."""
    return _rows(_audits(out, workers))


def seeds(out: Path, workers: int) -> Table:
    """The same for methods that started from another original, and for further retrains."""
    paths = build(PRESETS["sketches"], out / "sketches", [*REFERENCES, "original", *OTHERS], jobs=workers)
    return _rows({name: audit(settings(paths, name, REFERENCES, out, workers), name) for name in OTHERS})


def _rows(reports: Mapping[str, AuditReport]) -> Table:
    columns = list(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["attacks"])
    lines = [f"| target | {' | '.join(columns)} | worst retention gap |", f"|{' --- |' * (len(columns) + 2)}"]
    for name, report in reports.items():
        found = {finding.attack: finding for finding in report.findings if finding.measures == "leakage"}
        kept = [finding for finding in report.findings if finding.measures == "retention" and finding.gap is not None]
        worst = min(kept, key=lambda finding: finding.gap or 0.0, default=None)
        told = f"{MARKS[worst.verdict]} {worst.gap:+.2f}" if worst else ""
        lines.append(f"| `{name}` | " + " | ".join(cell(found.get(one)) for one in columns) + f" | {told} |")
    return lines


def retention(out: Path, workers: int) -> Table:
    """The whole-model numbers of `retention` with their 95 % intervals, a row a model."""
    reports = _audits(out, workers)
    lines = ["| target | UA | IRA | FID | KID | storage |", "| --- | --- | --- | --- | --- | --- |"]
    for name, report in reports.items():
        row = _summaries(report)
        told = [_with_interval(row, key, digits) for key, digits in COLUMNS.items()]
        lines.append(f"| `{name}` | " + " | ".join(told) + f" | {row['storage_bytes'] / 1e6:.2f} MB |")
    return lines


def _with_interval(row: Mapping[str, float], key: str, digits: int) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{row[key]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _summaries(report: AuditReport) -> dict[str, float]:
    found = [one for one in report.findings if one.attack == "retention" and one.measures == "leakage"]
    return found[0].summaries.get("target", {}) if found else {}


SECTIONS: dict[str, Callable[[Path, int], Table]] = {"methods": methods, "seeds": seeds, "retention": retention}


def write(path: Path, section: str, lines: Sequence[str]) -> None:
    """Puts a table between its markers."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    head, _, rest = path.read_text(encoding="utf-8").partition(begin)
    path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.partition(end)[2], encoding="utf-8")


def main() -> None:
    """Prints the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=Path(".muaudit/diffusion"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    console = Console()
    for section in options.sections or SECTIONS:
        if section not in SECTIONS:
            parser.error(f"no section {section!r}; known: {', '.join(SECTIONS)}")
        lines = SECTIONS[section](options.out, options.workers)
        console.print("\n".join(lines), markup=False, soft_wrap=True)
        if options.write:
            write(options.write, section, lines)


if __name__ == "__main__":
    main()
