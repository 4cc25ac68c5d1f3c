"""Every unlearning method against every attack on language models: `python benchmarks/language_battery.py`.

    python benchmarks/language_battery.py [METHOD ...] [--out FOLDER] [--workers 2] [--write docs/language-battery.md]

Builds the `lineage` testbed (a base, and fine-tuned from it an original, references and one model a method), audits each with
the preset `language`, then the references, each against the others, and an honest retrain. All audits share one store, so the
references are measured once. `recovery` runs on the testbed `corrupted`, where the forget set holds false facts. A method that
no attack catches goes to two independent probes that are not in the battery: relearning at ten times the budget, and a linear
probe on every layer.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from muaudit import preset, registry, runner
from muaudit.config import AuditConfig, parse
from muaudit.demo import build_testbed
from muaudit.results import AuditReport, Finding, Verdict

REFERENCES = ("reference-1", "reference-2", "reference-3", "reference-4")
"""Four, since activation patching and concept vectors set one aside: of two, the noise between trainings is hardly known."""
SEED = "2026"
"""Fixed, so that the table comes out the same again; an audit without one draws its own."""
MARKS = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "**FAIL**",
    Verdict.INCONCLUSIVE: "open",
    Verdict.SKIPPED: "skipped",
    Verdict.ERROR: "error",
}


@dataclasses.dataclass(frozen=True)
class Bed:
    """A testbed's files and models, and the sections of attacks that its models are audited with."""

    name: str
    paths: dict[str, Path]
    sections: dict[str, dict[str, object]]


def build(name: str, models: Sequence[str], sections: dict[str, dict[str, object]], out: Path, workers: int) -> Bed:
    """Builds a testbed's models, or what is missing of them."""
    return Bed(name, build_testbed(out / name, models, preset=name, workers=workers), sections)


def settings(bed: Bed, target: str, out: Path, workers: int) -> AuditConfig:
    """One target's audit: a reference is compared with the others and a fresh retrain in its place."""
    references = [one if one != target else "retrain" for one in REFERENCES]

    def model(name: str) -> dict[str, str]:
        from muaudit.testbed.build import guarded

        return {"kind": "guarded" if guarded(name) else "causal_lm", "path": str(bed.paths[name])}

    task = {key: str(bed.paths[key]) for key in ("forget", "retain", "holdout")}
    values = {
        "task": {"kind": "facts", **task},
        "target": model(target),
        "original": model("original"),
        "references": [model(name) for name in references],
        "attacks": bed.sections,
        "policy": {"partial": True},  # of the testbed `corrupted`: `recovery` alone cannot pass, and findings are what is shown
        "run": {"out": str(out / "audits" / bed.name / target), "store": str(out / "store"), "workers": workers, "seed": SEED},
    }
    return parse(values, target)


def cell(finding: Finding) -> str:
    """Gap, interval and verdict of one finding."""
    if finding.gap is None or finding.interval is None:
        return MARKS[finding.verdict]
    low, high = finding.interval
    return f"{MARKS[finding.verdict]} {finding.gap:+.2f} [{low:+.2f}, {high:+.2f}]"


def row(target: str, reports: Sequence[AuditReport], columns: Sequence[str]) -> str:
    """A target's row: a cell for each attack's leakage finding, and the worst retention finding."""
    findings = [finding for report in reports for finding in report.findings]
    leakage = {finding.attack: finding for finding in findings if finding.measures == "leakage"}
    kept = [finding for finding in findings if finding.measures == "retention" and finding.gap is not None]
    worst = min(kept, key=lambda finding: finding.gap or 0.0, default=None)
    cells = [cell(leakage[name]) if name in leakage else "" for name in columns]
    return f"| `{target}` | " + " | ".join([*cells, f"{worst.gap:+.2f} ({worst.attack})" if worst else ""]) + " |"


def caught(reports: Sequence[AuditReport]) -> bool:
    """Whether any attack's leakage finding fails."""
    return any(
        finding.verdict is Verdict.FAIL and finding.measures == "leakage" for report in reports for finding in report.findings
    )


def methods() -> list[str]:
    """Every method that is not a retrain, as a model's name."""
    from muaudit.testbed.build import METHODS

    return [name.replace("_", "-") for name in METHODS if name != "retrain"]


def audits(beds: Sequence[Bed], target: str, out: Path, workers: int, progress: Callable[[str], None]) -> list[AuditReport]:
    """Audits one target on every testbed."""
    reports = []
    for bed in beds:
        progress(f"{target} on {bed.name}")
        reports.append(runner.audit(settings(bed, target, out, workers)))
    return reports


def table(out: Path, chosen: Sequence[str], workers: int, console: Console) -> list[str]:
    """Builds, audits, and gives the document's lines."""
    targets = [*chosen, "retrain", *REFERENCES]
    models = ["original", "retrain", *REFERENCES, *chosen]
    battery = preset.attacks("language")
    start = time.perf_counter()
    with Progress(console=console) as bars:
        line = bars.add_task("training", total=len(targets) + 1)
        beds = [
            build("lineage", models, battery, out, workers),
            build("corrupted", models, {"recovery": {}}, out, workers),
        ]
        columns = [name for bed in beds for name in bed.sections if isinstance(registry.find(name), registry.Registered)]
        reports = {}
        for target in targets:
            bars.advance(line)
            reports[target] = audits(beds, target, out, workers, lambda what: bars.update(line, description=what))
    lines = [f"| target | {' | '.join(columns)} | worst retention gap |", f"|{' --- |' * (len(columns) + 2)}"]
    lines += [row(target, reports[target], columns) for target in targets]
    uncaught = [target for target in chosen if not caught(reports[target])]
    flagged = [target for target in ("retrain", *REFERENCES) if caught(reports[target])]
    lines += ["", f"Caught by no attack: {', '.join(uncaught) or 'none'}. References and retrains failed by an attack: "
              f"{', '.join(flagged) or 'none'}."]  # fmt: skip
    if uncaught:
        lines += ["", *probed(beds[0], uncaught)]
    console.print(f"{time.perf_counter() - start:.0f} s")
    return lines


def probed(bed: Bed, targets: Sequence[str]) -> list[str]:
    """What the two independent probes find in the targets that no attack caught, beside references and original."""
    from independent_probes import linear_probe, long_relearning

    lines = ["| model | relearning, 400 steps | linear probe, best layer |", "| --- | --- | --- |"]
    for name in (*targets, *REFERENCES, "retrain", "original"):
        relearned = long_relearning(bed.paths, name)
        layer, accuracy = linear_probe(bed.paths, name)
        lines.append(f"| `{name}` | {relearned:.3f} | {accuracy:.3f} (layer {layer}) |")
    return lines


def main() -> None:
    """Prints the table; with --write puts it between the markers of a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="all methods by default")
    parser.add_argument("--out", type=Path, default=Path(".muaudit/battery"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    lines = table(options.out, options.methods or methods(), options.workers, Console(file=sys.stderr))
    print("\n".join(lines))
    if options.write is not None:
        begin, end = "<!-- table -->", "<!-- /table -->"
        head, _, rest = options.write.read_text(encoding="utf-8").partition(begin)
        text = head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
