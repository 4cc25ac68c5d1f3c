"""The command line: parse, call, print. Everything heavy is imported by the command that needs it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from muaudit.command_line import (
    EXIT_CODES,
    anywhere,
    as_json,
    console,
    existing,
    progress_bar,
    put_json,
    shown,
    wrote,
)
from muaudit.commands import calibrate, policies, redaction, reports, reproduction, signing
from muaudit.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="muaudit")
def main() -> None:
    """Audit a model that is claimed to have unlearned something.

    Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 verification failed, 5 environment.
    """


@main.command()
@click.option("--out", type=anywhere, default=Path("demo-audit"), show_default=True, help="Folder for models and reports.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Trainings at a time.")
@click.option("--full", is_flag=True, help="Every attack on language models, on fine-tuned models with a common base.")
@as_json
@shown
def demo(out: Path, workers: int, full: bool, as_json: bool) -> None:
    """Train known-answer models, audit one that only suppressed and one honest retrain, and sign both answers."""
    from muaudit.demo import run

    reports = run(out, workers=workers, full=full, console=console(stderr=as_json))
    if as_json:
        put_json({name: report.model_dump(mode="json") for name, report in reports.items()})


@main.command()
@click.option("--target", type=existing, required=True, help="Folder of the model under audit.")
@click.option("--kind", type=click.Choice(["causal_lm", "classifier", "diffusion"]), default="causal_lm", show_default=True)
@click.option("--forget", type=existing, required=True, help="Forget set: facts, labelled examples, or prompts.")
@click.option("--retain", type=existing, help="Retain set, likewise.")
@click.option("--holdout", type=existing, help="Holdout set, likewise.")
@click.option("--original", type=existing, help="Folder of the model before unlearning.")
@click.option("--reference", "references", type=existing, multiple=True, help="Folder of a retrained model; repeat.")
@click.option("--evaluator", "evaluators", type=existing, multiple=True, help="Classifier of images, for diffusion; repeat.")
@click.option("--key", type=existing, help="The auditor's private key.")
@click.option("--preset", help="A named set of attacks: language, muse, classification, diffusion; a few attacks by default.")
@click.option("--out", type=anywhere, default=Path("audit.toml"), show_default=True, help="File to write.")
@as_json
@shown
def init(out: Path, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - one argument an option, checked by click
    """Write a commented audit.toml to start from."""
    from muaudit.starter import write

    wrote(write(out, **given), as_json, f"next   muaudit plan {out}", f"then   muaudit scan {out}")


@main.command("plan")
@click.argument("audit", type=existing)
@as_json
@shown
def plan_command(audit: Path, as_json: bool) -> None:
    """Freeze audit.toml into a plan: parameters, margins, seeds, digests. Prints its hash."""
    from muaudit import plan

    frozen, base = plan.resolve(audit)
    path = plan.write(frozen, base)
    if as_json:
        put_json({"path": str(path), "sha256": frozen.content_digest(), "plan": frozen.model_dump(mode="json")})
        return
    click.echo(f"plan {frozen.content_digest()}\nwrote {path}\nnext   muaudit scan {path}")


@main.command()
@click.argument("audit", type=existing)
@click.option("--key", type=signing.private_key, help="Sign with this private key (or name it under [signing]).")
@click.option(
    "--format", "formats", type=click.Choice(reports.FORMATS), multiple=True, help="Write this beside report.json too; repeat."
)
@as_json
@shown
def scan(audit: Path, key: str | None, formats: tuple[str, ...], as_json: bool) -> None:
    """Run audit.toml or a frozen plan.json; an interrupted scan goes on where it was.

    Exits with 0 for pass, 1 for fail and 3 for inconclusive.
    """
    from muaudit import plan, runner
    from muaudit.delivery import deliver, render

    frozen, base = plan.resolve(audit)
    if key is None and frozen.config.signing is not None:
        key = signing.under(base, frozen.config.signing.key)
    signer = signing.open_key(key, try_it=True) if key is not None else None
    with progress_bar() as progress:
        report = runner.run(frozen, base, progress=progress, apart=True)
    folder = plan.out_folder(frozen.config, base)
    deliver(report, folder, signer)
    render(report, folder, formats, audit)
    if as_json:
        put_json(report.model_dump(mode="json"))
    else:
        from muaudit.reports.terminal import table

        table(report, console(), folder=folder, signed_with=signing.as_file(key), model=base / report.target.path)
    sys.exit(EXIT_CODES[report.verdict])


@main.command()
@click.argument("audit", type=existing)
@click.option("--count", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@click.option("--with-forget-set", is_flag=True, help="Train originals instead: on the forget set too.")
@click.option("--out", type=anywhere, default=Path("references"), show_default=True, help="Folder for the models.")
@as_json
@shown
def reference(audit: Path, count: int, with_forget_set: bool, out: Path, as_json: bool) -> None:
    """Train references ahead of an audit, by the [recipe] of audit.toml: models that never saw the forget set.

    Reads [task], [recipe] and [run] alone. An interrupted training goes on where it was.
    """
    from muaudit.ahead import train_references

    with progress_bar() as progress:
        made = train_references(audit, out, count, forget=with_forget_set, progress=progress)
    if as_json:
        put_json([one.model_dump(mode="json") for one in made])
        return
    for one in made:
        click.echo(f"{one.path}  {one.digest[:16]}  trained on {one.examples} examples")
    table = "[original]" if with_forget_set else "[[references]]"
    click.echo(f"next   {table} of {audit.name}: kind = {json.dumps(made[0].kind)}, path = {_beside(made[0].path, audit)}")


@main.command()
@click.argument("audit", type=existing)
@click.option("--count", type=click.IntRange(2), help="How many; as [shadows] says by default.")
@click.option("--out", type=anywhere, default=Path("shadows"), show_default=True, help="Folder for the models.")
@as_json
@shown
def shadow(audit: Path, count: int | None, out: Path, as_json: bool) -> None:
    """Train shadow models ahead of an audit, by the [recipe] of audit.toml, each on a known half of all examples.

    Reads [task], [recipe], [shadows] and [run] alone. An interrupted training goes on where it was.
    """
    from muaudit.ahead import train_shadows

    with progress_bar() as progress:
        made = train_shadows(audit, out, count, progress=progress)
    if as_json:
        put_json(made.model_dump(mode="json"))
        return
    click.echo(f"{made.path}  {made.digest[:16]}  {made.models} models, each trained on half of {made.examples} examples")
    click.echo(f"next   [shadows] of {audit.name}: path = {_beside(made.path, audit)}")


@main.command()
@click.argument("name", required=False)
@as_json
@shown
def attacks(name: str | None, as_json: bool) -> None:
    """List the registered attacks, or show one attack's card."""
    from muaudit.cards import card, listing

    value = listing() if name is None else card(name)
    if as_json:
        put_json(value)
        return
    from muaudit.cards import text
    from muaudit.preset import shipped

    click.echo(text(value))
    if name is None:
        told = "\n".join(f"  {preset:<10} {what}" for preset, what in shipped().items())
        click.echo(f'\npresets, named in audit.toml as preset = "...":\n{told}')


@main.command()
@as_json
@shown
def doctor(as_json: bool) -> None:
    """Say what is installed here, on which devices, and what that allows."""
    from muaudit.doctor import examine

    lines = examine()
    if as_json:
        put_json([vars(line) for line in lines])
        return
    for line in lines:
        click.echo(f"{' ' if line.fine else '!'} {line.what:<22} {line.found}" + (f"   ({line.mend})" if line.mend else ""))


_TESTBEDS = (
    "small", "standard", "lineage", "corrupted",
    "digits", "digits-cnn", "digits-resnet", "digits-class", "digits-groups", "writers", "tables", "regression", "canaries",
    "poisoned",
    "sketches",
)  # fmt: skip


@main.group()
def testbed() -> None:
    """Known-answer models: trained here, small, with a known truth."""


@testbed.command("build")
@click.option("--out", type=anywhere, default=Path("testbed"), show_default=True, help="Folder for data and models.")
@click.option("--preset", type=click.Choice(_TESTBEDS), default="standard", show_default=True)
@click.option("--model", "models", multiple=True, help="A model to build, such as original, reference-1 or scrub; repeat.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Trainings at a time.")
@as_json
@shown
def testbed_build(out: Path, preset: str, models: tuple[str, ...], workers: int, as_json: bool) -> None:
    """Generate a small world, train an original, references and unlearned targets, and save them.

    The first four presets are of language models, `sketches` is of image generators, the others are of classifiers.
    """
    from muaudit.demo import build_testbed

    with progress_bar() as progress:
        paths = build_testbed(out, models, preset=preset, workers=workers, progress=progress)
    if as_json:
        put_json({name: str(path) for name, path in paths.items()})
        return
    for name, path in paths.items():
        click.echo(f"{name:<16} {path}")


def _beside(path: str, audit: Path) -> str:
    """A path as audit.toml writes it, from its own folder."""
    return json.dumps(os.path.relpath(path, audit.parent), ensure_ascii=False)


for command in (
    *reports.COMMANDS,
    *signing.COMMANDS,
    *policies.COMMANDS,
    *redaction.COMMANDS,
    *reproduction.COMMANDS,
    *calibrate.COMMANDS,
):
    main.add_command(command)
