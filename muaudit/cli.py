"""The command line: parse, call, print. Everything heavy is imported by the command that needs it."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from muaudit.errors import EnvironmentFault, MuauditError
from muaudit.version import VERSION

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "skipped": 3, "error": 3}
"""What an audit's verdict exits with; 2 is usage, 4 a failed verification, 5 the environment."""

PASSPHRASE_VARIABLE = "MUAUDIT_KEY_PASSPHRASE"  # noqa: S105 - a variable's name, not a passphrase

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

existing = click.Path(exists=True, path_type=Path)
anywhere = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def fail(message: str, code: int) -> NoReturn:
    """Prints one line, with whatever could steer a terminal taken out, and exits."""
    click.echo("muaudit: " + _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(message.split())), err=True)
    sys.exit(code)


def shown(command: Callable[P, T]) -> Callable[P, T]:
    """Turns errors into one line and the right exit code; what was computed is on disk already."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except MuauditError as error:
            fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("muaudit"):
                raise
            fail(f"{error.name} is not installed, which this command needs; install it: pip install 'muaudit[models]'", 5)
        except MemoryError:
            fail("out of memory; lower batch_size, choose a smaller dtype, or use a larger machine", EnvironmentFault.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; what was measured is kept: run the same command again to go on", 130)

    return run


def console(*, stderr: bool = False) -> "Console":
    """A terminal that colours only where a person looks."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def wrote(path: Path, as_json: bool, *further: str) -> None:
    """Says where a file went, and what to do next."""
    if as_json:
        put_json({"path": str(path)})
    else:
        click.echo("\n".join([f"wrote {path}", *further]))


def put_json(value: object) -> None:
    """Prints a value as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


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
@click.option("--key", type=existing, help="Sign with this private key (or name it under [signing]).")
@as_json
@shown
def scan(audit: Path, key: Path | None, as_json: bool) -> None:
    """Run audit.toml or a frozen plan.json; an interrupted scan goes on where it was.

    Exits with 0 for pass, 1 for fail and 3 for inconclusive.
    """
    from muaudit import plan, runner
    from muaudit.delivery import deliver

    frozen, base = plan.resolve(audit)
    if key is None and frozen.config.signing is not None:
        key = base / frozen.config.signing.key
    passphrase = _passphrase(key) if key is not None else None
    with _progress() as progress:
        report = runner.run(frozen, base, progress=progress)
    folder = plan.out_folder(frozen.config, base)
    deliver(report, folder, key, passphrase)
    if as_json:
        put_json(report.model_dump(mode="json"))
    else:
        from muaudit.reports.terminal import table

        table(report, console(), folder=folder, signed_with=key, model=base / report.target.path)
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

    with _progress() as progress:
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

    with _progress() as progress:
        made = train_shadows(audit, out, count, progress=progress)
    if as_json:
        put_json(made.model_dump(mode="json"))
        return
    click.echo(f"{made.path}  {made.digest[:16]}  {made.models} models, each trained on half of {made.examples} examples")
    click.echo(f"next   [shadows] of {audit.name}: path = {_beside(made.path, audit)}")


@main.command()
@click.argument("report", type=existing)
@click.option("--out", type=anywhere, help="HTML file to write; beside the report by default.")
@as_json
@shown
def render(report: Path, out: Path | None, as_json: bool) -> None:
    """Make report.html of a report.json."""
    from muaudit.reports import html
    from muaudit.results import AuditReport
    from muaudit.store import write_atomically

    out = out or report.with_suffix(".html")
    write_atomically(out, html.render(AuditReport.from_json(report.read_bytes(), name=str(report))).encode())
    wrote(out, as_json)


@main.command()
@click.argument("report", type=existing)
@click.option("--key", type=existing, required=True, help="Private key.")
@click.option("--out", type=anywhere, help="Envelope to write; audit.intoto.json beside the report by default.")
@as_json
@shown
def sign(report: Path, key: Path, out: Path | None, as_json: bool) -> None:
    """Sign a report.json: an in-toto Statement in a DSSE envelope, Ed25519."""
    from muaudit.delivery import sign as seal
    from muaudit.results import AuditReport

    read = AuditReport.from_json(report.read_bytes(), name=str(report))
    wrote(seal(read, report, out or report.parent / "audit.intoto.json", key, _passphrase(key)), as_json)


@main.command()
@click.argument("envelope", type=existing)
@click.option("--key", "keys", type=existing, multiple=True, required=True, help="A trusted public key; repeat.")
@click.option("--model", type=existing, help="The target's folder, to be digested again.")
@click.option("--report", type=existing, help="The report.json that was signed; the one beside the envelope by default.")
@as_json
@shown
def verify(envelope: Path, keys: tuple[Path, ...], model: Path | None, report: Path | None, as_json: bool) -> None:
    """Check that an envelope is what was signed, and about this model. Says nothing of pass or fail: a fail verifies too.

    Exits with 0 when everything holds and with 4 when anything does not.
    """
    from muaudit.reports import attestation
    from muaudit.reports.keys import load_public

    beside = report or envelope.parent / "report.json"
    seen = attestation.verify(
        envelope.read_bytes(),
        [load_public(key) for key in keys],
        report=beside.read_bytes() if beside.exists() else None,
        model=model,
    )
    if as_json:
        put_json(
            {
                "verified": True,
                "verdict": seen.verdict,
                "signers": [{"name": key.name, "fingerprint": key.fingerprint} for key in seen.signers],
                "issued_at": seen.issued_at.isoformat(),
                "target": seen.target_digest,
                "plan": seen.plan_sha256,
                "checked": seen.checked,
                "unchecked": seen.unchecked,
            }
        )
        return
    click.echo("verified")
    for key in seen.signers:
        name = _CONTROL.sub("?", key.name)
        click.echo(f"  signed by  {name} ({key.fingerprint[:16]}) on {seen.issued_at.isoformat()}, by their own word")
    for what, lines in (("checked", seen.checked), ("not checked", seen.unchecked)):
        for line in lines:
            click.echo(f"  {what:<12}{line}")
    click.echo(f"  verdict    {seen.verdict}")


@main.command()
@click.argument("out", type=anywhere)
@click.option("--name", default="auditor", show_default=True, help="Who holds the key; reports show it.")
@click.option("--passphrase", is_flag=True, help=f"Encrypt the key; asks, or reads ${PASSPHRASE_VARIABLE}.")
@as_json
@shown
def keygen(out: Path, name: str, passphrase: bool, as_json: bool) -> None:
    """Make an Ed25519 key pair: OUT.key (keep it) and OUT.pub (give it away)."""
    from muaudit.reports.keys import keygen as make

    secret = None
    if passphrase:
        secret = os.environ.get(PASSPHRASE_VARIABLE) or click.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    private, public, fingerprint = make(out, name, secret.encode() if secret else None)
    if as_json:
        put_json({"private": str(private), "public": str(public), "fingerprint": fingerprint})
        return
    click.echo(f"private {private} (keep it)\npublic  {public}\nfingerprint {fingerprint}")


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
    "digits", "digits-cnn", "digits-resnet", "digits-class", "digits-groups", "tables", "regression", "canaries", "poisoned",
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

    with _progress() as progress:
        paths = build_testbed(out, models, preset=preset, workers=workers, progress=progress)
    if as_json:
        put_json({name: str(path) for name, path in paths.items()})
        return
    for name, path in paths.items():
        click.echo(f"{name:<16} {path}")


def _beside(path: str, audit: Path) -> str:
    """A path as audit.toml writes it, from its own folder."""
    return json.dumps(os.path.relpath(path, audit.parent), ensure_ascii=False)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on a terminal's stderr; gives a callable of steps done, steps in all and what was done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        line = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(line, completed=done, total=total, description=what)


def _passphrase(key: Path) -> bytes | None:
    """The passphrase of an encrypted key, from the environment or asked for before the long work starts."""
    from muaudit.reports.keys import is_encrypted

    if not is_encrypted(key):
        return None
    return (os.environ.get(PASSPHRASE_VARIABLE) or click.prompt(f"Passphrase of {key}", hide_input=True, err=True)).encode()
