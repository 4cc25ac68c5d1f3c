"""Attacks on classifiers against known truth: `python benchmarks/membership_battery.py`.

    python benchmarks/membership_battery.py [SECTION ...] [--out FOLDER] [--workers 2] [--write docs/membership.md]

Sections: `shadows` (LiRA and RMIA with 2, 4, 16 and 64 shadow models), `methods` (every unlearning method of the testbed
`digits` against every attack), `honest` (retrains and SISA over ten seeds) and `worst` (worst-case subsets against random
ones). With --write, each goes between its own markers of a document. Claims of epsilon: `privacy_claims.py`.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from muaudit import plan, preset, runner
from muaudit.attacks.lira import Lira
from muaudit.attacks.rmia import Rmia
from muaudit.compute import seed_of
from muaudit.config import parse
from muaudit.estimators.likelihood_ratio import balanced_membership
from muaudit.models.classifier import Classifier
from muaudit.results import AuditReport, Finding, Verdict
from muaudit.testbed.classification.build import METHODS, PRESETS, build, opened
from muaudit.testbed.classification.method import Training
from muaudit.training.cohorts import Cohort
from muaudit.workbench import Workbench

SEEDS = range(1, 11)
TARGETS = 8
MARKS = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "**FAIL**",
    Verdict.INCONCLUSIVE: "open",
    Verdict.SKIPPED: "skipped",
    Verdict.ERROR: "error",
}
SEED = "2026"
"""Fixed, so that the tables come out the same again; an audit without one draws its own."""
PRIVATE = ("differentially_private", "dp2unlearning")
"""Methods that train in their own way: their honest references are trained so too."""

Table = list[str]


def shadows(out: Path, workers: int) -> Table:
    """AUC and TPR at 1 % FPR by number of shadow models, of forgotten examples in models that never forgot them."""
    bed, names = PRESETS["digits"], ["original", *(f"original-{number}" for number in range(1, TARGETS))]
    references = [f"reference-{number}" for number in range(1, 5)]
    paths = build(bed, out / "digits", [*names, *references], jobs=workers)
    bench = Workbench(plan.make(parse(settings(paths, "original", out, workers), "shadows"), Path()), Path(), _silent)
    models = [Classifier(opened(paths[name])) for name in names]
    lines = ["| shadow models | LiRA online | LiRA offline, one side | LiRA offline, two tails | RMIA offline | RMIA online |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    floor = ""
    for count in (2, 4, 16, 64):
        found: dict[str, list[float]] = {}
        for draw in range(1 if count == 64 else 4):
            rows = balanced_membership(count, len(bench.task.pool), draw)
            seeds = [seed_of("shadow", str(count), str(draw), str(number)) for number in range(count)]
            for name, value in _summaries(bench, bench.trainer().train(rows, seeds), models):
                found.setdefault(name, []).append(value)
        cells = [_told(found, *column) for column in COLUMNS]
        lines.append(f"| {count} | {' | '.join(cells)} |")
        floor = _told(found, "lira", "_global_margin")
    return [*lines, f"| none: a threshold on the loss | {floor} | | | | |"]


COLUMNS = (
    ("lira", ""),
    ("lira", "_offline_one_sided"),
    ("lira", "_offline_two_tailed"),
    ("rmia offline", ""),
    ("rmia online", ""),
)
"""Attacks of the table, and what their summaries' names end in."""


def _silent(done: int, total: int, what: str) -> None:
    """Tells nobody."""


def _summaries(bench: Workbench, cohort: Cohort, models: Sequence[Classifier]) -> Iterator[tuple[str, float]]:
    """Every summary of every attack on every model, with these shadow models."""
    attacks = {"lira": Lira(), "rmia offline": Rmia(mode="offline"), "rmia online": Rmia(mode="online")}
    for name, attack in attacks.items():
        own = replace(bench.of(name, "prepare", None), open_shadows=lambda: cohort)
        prepared = attack.prepare(own).with_task(own.examples)
        for model in models:
            for key, value in attack.measure(model, prepared, np.random.default_rng(0)).summaries.items():
                yield f"{name} {key}", value


def _told(found: Mapping[str, Sequence[float]], attack: str, end: str) -> str:
    return " / ".join(f"{np.mean(found[f'{attack} {what}{end}']):.3f}" for what in ("auc", "tpr_at_1_percent_fpr"))


def settings(paths: Mapping[str, Path], target: str, out: Path, workers: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """One audit of a model of the testbed `digits`."""

    def model(name: str) -> dict[str, str]:
        return {"kind": "classifier", "path": str(paths[name])}

    references = changes.pop("references", [f"reference-{number}" for number in range(1, 5)])
    values = {
        "task": {"kind": "classification"} | {name: str(paths[name]) for name in ("forget", "retain", "holdout")},
        "target": model(target),
        "original": model("original"),
        "references": [model(name) for name in references],
        "policy": {"name": "classification"},
        "attacks": preset.attacks("classification"),
        "recipe": PRESETS["digits"].recipe.model_dump(mode="json"),
        "shadows": {"count": 64},
        "run": {"out": str(out / "audits" / target), "store": str(out / "store"), "workers": workers, "seed": SEED},
    }
    return values | changes


def audit(values: dict[str, Any], name: str) -> AuditReport:
    """Runs it, and says how long it took."""
    start = time.perf_counter()
    report = runner.audit(parse(values, name))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return report


def cell(finding: Finding | None) -> str:
    """Gap, interval and verdict of one finding."""
    if finding is None or finding.gap is None or finding.interval is None:
        return "" if finding is None else MARKS[finding.verdict]
    low, high = finding.interval
    return f"{MARKS[finding.verdict]} {finding.gap:+.2f} [{low:+.2f}, {high:+.2f}]"


def procedure(method: str) -> dict[str, Any]:
    """The vendor's procedure and, where it trains in a way of its own, the recipe: two tables of audit.toml."""
    parameters = dict(PRESETS["digits"].methods.get(method, {}))
    if issubclass(METHODS[method], Training):
        parameters["recipe"] = PRESETS["digits"].recipe.model_dump(mode="json")
    module = f"muaudit.testbed.classification.{method}"
    tables: dict[str, Any] = {"procedure": {"function": f"{module}:unlearn", "parameters": parameters}}
    if method == "sisa":
        tables["recipe"] = {"kind": "python", "function": f"{module}:train", "parameters": parameters}
    return tables


def methods(out: Path, workers: int) -> Table:
    """A row a method, a cell an attack."""
    chosen = [name for name in METHODS if name != "retrain" and name not in PRIVATE]
    names = [name.replace("_", "-") for name in chosen]
    references = [f"reference-{number}" for number in range(1, 5)]
    sharded = [f"sisa-{number}" for number in range(101, 105)]
    paths = build(PRESETS["digits"], out / "digits", ["original", *references, *sharded, "retrain", *names], jobs=workers)
    columns = [*preset.attacks("classification")]
    lines = [f"| target | {' | '.join(columns)} | worst retention gap |", f"|{' --- |' * (len(columns) + 2)}"]
    for method, name in [("retrain", "retrain"), *zip(chosen, names, strict=True)]:
        changes = procedure(method)
        if method == "sisa":
            changes["references"] = sharded
        report = audit(settings(paths, name, out, workers, **changes), name)
        found = {finding.attack: finding for finding in report.findings if finding.measures == "leakage"}
        kept = [finding for finding in report.findings if finding.measures == "retention" and finding.gap is not None]
        worst = min(kept, key=lambda finding: finding.gap or 0.0, default=None)
        told = f"{worst.gap:+.2f} ({worst.attack})" if worst else ""
        lines.append(f"| `{name}` | " + " | ".join(cell(found.get(one)) for one in columns) + f" | {told} |")
    return lines


def honest(out: Path, workers: int) -> Table:
    """Verdicts over ten seeds of honest retrains, and of SISA against references that were trained in shards too."""
    plain, sharded = [[f"{kind}-{n}" for n in range(start, start + 4)] for kind, start in (("reference", 1), ("sisa", 101))]
    names = [f"{kind}-{seed}" for kind in ("retrain", "sisa") for seed in SEEDS]
    paths = build(PRESETS["digits"], out / "digits", ["original", *plain, *sharded, *names], jobs=workers)
    columns = [name for name in preset.attacks("classification") if name not in ("worst_case", "forgetting_quality")]
    counts: dict[tuple[str, str], Counter[Verdict]] = {}
    for name in names:
        kind = name.split("-")[0]
        changes: dict[str, Any] = {
            "references": sharded if kind == "sisa" else plain,
            "attacks": {one: {} for one in columns},
        } | procedure(kind)
        for finding in audit(settings(paths, name, out, workers, **changes), name).findings:
            if finding.measures == "leakage":
                counts.setdefault((kind, finding.attack), Counter())[finding.verdict] += 1
    lines = ["| target, ten seeds | " + " | ".join(columns) + " |", f"|{' --- |' * (len(columns) + 1)}"]
    for kind in ("retrain", "sisa"):
        cells = [", ".join(f"{count} {verdict.value}" for verdict, count in counts[kind, one].most_common()) for one in columns]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return lines


def worst(out: Path, workers: int) -> Table:
    """Gap of the worst subset of each method beside the random subsets', as the attack itself notes."""
    references = [f"reference-{number}" for number in range(1, 5)]
    lines = ["| method | worst subset's finding | against random subsets |", "| --- | --- | --- |"]
    for method in ("fine_tune", "random_label", "gradient_ascent", "scrub", "salun"):
        name = method.replace("_", "-")
        paths = build(PRESETS["digits"], out / "digits", ["original", *references, name], jobs=workers)
        changes = procedure(method) | {"attacks": {"worst_case": {}}, "policy": {"name": "classification", "partial": True}}
        report = audit(settings(paths, name, out, workers, **changes), f"worst {name}")
        finding = report.findings[0]
        told = [note for note in finding.notes if "random" in note]
        lines.append(f"| `{name}` | {cell(finding)} | {'; '.join(told) or finding.reason} |")
    return lines


SECTIONS: dict[str, Callable[[Path, int], Table]] = {
    "shadows": shadows, "methods": methods, "honest": honest, "worst": worst,
}  # fmt: skip


def write(path: Path, section: str, lines: Sequence[str]) -> None:
    """Puts a table between its markers."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    head, _, rest = path.read_text(encoding="utf-8").partition(begin)
    path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.partition(end)[2], encoding="utf-8")


def main() -> None:
    """Prints the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=Path(".muaudit/membership"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    console = Console()
    for name in options.sections or SECTIONS:
        lines = SECTIONS[name](options.out, options.workers)
        console.print("\n".join([f"{name}:", *lines]), markup=False, soft_wrap=True)
        if options.write is not None:
            write(options.write, name, lines)


if __name__ == "__main__":
    main()
