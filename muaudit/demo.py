"""The main job on known-answer models: an audit that must fail and one that must pass, both signed."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from muaudit import runner
from muaudit.results import AuditReport
from muaudit.starter import write

SUPPRESSED, HONEST = "refusal", "retrain"
"""The two targets: one that only learned to decline the questions, and an honest retrain."""

REFERENCES = ("reference-1", "reference-2", "reference-3")

MODELS = ("original", *REFERENCES, HONEST, SUPPRESSED)
"""What the demo trains."""

CLASSIFIERS = (
    "digits", "digits-cnn", "digits-resnet", "digits-class", "digits-groups", "writers", "tables", "regression", "canaries",
    "poisoned",
)  # fmt: skip
"""Presets of `muaudit.testbed.classification.build`; the others are of language models."""

CLASSIFIER_MODELS = ("original", *REFERENCES, HONEST, "fine-tune")
"""What is trained of them, where nothing else is asked for."""

GENERATORS = ("sketches",)
"""Presets of `muaudit.testbed.diffusion.build`."""

PIPELINES = ("original", *REFERENCES, HONEST, "esd")
"""What is trained of them, where nothing else is asked for."""

FOURTH = "reference-4"
"""With the whole battery: some attacks set a reference aside, and two left would say little about the noise of training."""

_AUDITOR = "muaudit demo"


def build_testbed(
    out: Path,
    models: Sequence[str] = (),
    *,
    preset: str,
    workers: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Path]:
    """Builds known-answer models, or what is missing of them.

    Args:
        out: Folder for data and models.
        models: Their names, as `wanted` of the preset's testbed reads them; some of each kind by default.
        preset: A key of `muaudit.testbed.build.PRESETS`, or of `CLASSIFIERS` or `GENERATORS`.
        workers: Trainings at a time.
        progress: Told of every model.

    Returns:
        Paths of the task files and the models, by name.
    """
    done = 0

    def report(name: str, reused: bool) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, max(done, len(models)), f"{name} {'was there' if reused else 'trained'}")

    models = models or (CLASSIFIER_MODELS if preset in CLASSIFIERS else PIPELINES if preset in GENERATORS else MODELS)
    if preset in GENERATORS:
        from muaudit.testbed.diffusion import build as diffusion

        return diffusion.build(diffusion.PRESETS[preset], out, models, jobs=workers, progress=report)
    if preset in CLASSIFIERS:
        from muaudit.testbed.classification import build as classification

        return classification.build(classification.PRESETS[preset], out, models, jobs=workers, progress=report)
    from muaudit.testbed import build as language

    return language.build(language.PRESETS[preset], out, models, jobs=workers, progress=report)


def write_audit(
    path: Path,
    models: Mapping[str, Path],
    *,
    target: str,
    key: Path | None = None,
    workers: int = 1,
    preset: str | None = None,
    references: Sequence[str] = REFERENCES,
) -> Path:
    """Writes an audit.toml of a testbed's model, as `muaudit init` writes it for a user's.

    Args:
        path: The file; an older one is replaced.
        models: What `build_testbed` returned.
        target: The model to audit.
        key: The auditor's private key.
        workers: Measurements at a time.
        preset: A named set of attacks; memorization and relearning by default.
        references: The models to compare with.

    Returns:
        The file. Its results go to a folder beside it, of the same name; audits in one folder share a store.
    """
    path.unlink(missing_ok=True)
    return write(
        path,
        target=models[target],
        forget=models["forget"],
        retain=models["retain"],
        holdout=models["holdout"],
        original=models["original"],
        references=[models[name] for name in references],
        key=key,
        results=path.stem,
        store="store",
        workers=workers,
        preset=preset,
        seed="2026",
    )


def run(out: Path, *, workers: int, console: Console, full: bool = False) -> dict[str, AuditReport]:
    """Trains, audits, prints, signs.

    Args:
        out: Folder of everything; what is there already is not made again.
        workers: Trainings and measurements at a time.
        console: Where the tables go.
        full: Whether to run the whole battery, on models that share a base, instead of memorization and relearning.

    Returns:
        The two reports, by target.
    """
    from muaudit.delivery import deliver
    from muaudit.reports.keys import keygen
    from muaudit.reports.terminal import table

    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    key = out / "auditor.key"
    if not key.exists():
        keygen(out / "auditor", _AUDITOR)
    reports = {}
    with _bars(console) as bars:
        training = _line(bars, "training known-answer models")
        bed, references = ("lineage", (*REFERENCES, FOURTH)) if full else ("standard", REFERENCES)
        trained = ("original", *references, HONEST, SUPPRESSED)
        models = build_testbed(out / f"testbed-{bed}", trained, preset=bed, workers=workers, progress=training)
        for target in (SUPPRESSED, HONEST):
            audit = write_audit(
                out / f"{target}.toml", models, target=target, key=key, workers=workers, references=references,
                preset="language" if full else None,
            )  # fmt: skip
            reports[target] = runner.audit(audit, progress=_line(bars, f"auditing {target}"))
            deliver(reports[target], out / target, key)
    for target, report in reports.items():
        console.print(f"\n[bold]{_TOLD[target]}[/bold]")
        table(report, console, folder=out / target, signed_with=key, model=models[target])
    console.print(f"\n{time.perf_counter() - start:.0f} s. Next: muaudit init --help writes an audit.toml for your own model.")
    return reports


_TOLD = {
    SUPPRESSED: "1. A model that only learned to decline the forgotten questions",
    HONEST: "2. An honest retrain: it never saw the forget set",
}


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )  # fmt: skip


def _line(bars: Progress, what: str) -> runner.Progress:
    """A new line of the display, as a callable of steps done, steps in all and what was done."""
    line = bars.add_task(what, total=None)
    return lambda done, total, said: bars.update(line, completed=done, total=total, description=f"{what}: {said}")
