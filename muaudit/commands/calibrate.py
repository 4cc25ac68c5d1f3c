"""The command that measures a battery's error rates, and the check of what it signed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muaudit.command_line import anywhere, as_json, console, existing, progress_bar, put_json, shown
from muaudit.commands import signing
from muaudit.errors import UsageError

if TYPE_CHECKING:
    from muaudit.calibration.config import CalibrationConfig
    from muaudit.calibration.population import Population
    from muaudit.calibration.record import CalibrationRecord
    from muaudit.reports.calibration_statement import VerifiedCalibration
    from muaudit.reports.signers import Signer

RECORD_LIMIT = 2**28
"""Bytes of a calibration.json beyond which it is not read: 256 MiB."""

Making = Callable[[Callable[[int, int, str], None]], "Population"]


@click.command()
@click.argument("settings", type=existing, metavar="CONFIG")
@click.option("--out", type=anywhere, help="Folder of models, plan, record and page; as [run] out says by default.")
@click.option("--key", type=signing.private_key, help="Sign with this private key (or name it under [signing]).")
@click.option(
    "--workers", type=click.IntRange(1), help="Trainings and measurements at a time; as [run] workers says by default."
)
@click.option("--recipe", metavar="MODULE:FUNCTION", help="Your own recipe, which trains the models; it is run.")
@click.option("--retrains", type=click.IntRange(2), help="Models that it trains; 4 by default.")
@as_json
@shown
def calibrate(
    settings: Path,
    out: Path | None,
    key: str | None,
    workers: int | None,
    recipe: str | None,
    retrains: int | None,
    as_json: bool,
) -> None:
    """Measure how often a battery errs, on models whose truth is known.

    CONFIG is a calibration.toml: it says which models, which audits of them and which policies. Every attack is run once on
    every model; many audits are then formed of what was measured. An interrupted calibration goes on where it was.

    CONFIG may also be an audit.toml, before there is a target: with its [task], its [[references]] and [original] or those that
    its [recipe] or --recipe trains, it says what gap an audit could see.
    """
    from muaudit.calibration import run

    config, make = _planned(settings, out, workers, recipe, retrains)
    if key is None and config.signing is not None:
        key = signing.under(settings.parent, config.signing.key)
    signer = signing.open_key(key, try_it=True) if key is not None else None
    with progress_bar() as progress:
        record = run.run(config, make, settings.parent, progress=progress)
    folder = settings.parent / config.run.out
    _deliver(record, folder, signer)
    if as_json:
        put_json(record.model_dump(mode="json"))
        return
    from muaudit.reports.calibration_terminal import table

    table(record, console(), folder=folder, signed_with=signing.as_file(key))


def _planned(
    settings: Path, out: Path | None, workers: int | None, recipe: str | None, retrains: int | None
) -> "tuple[CalibrationConfig, Making]":
    """The configuration, and what makes its models."""
    from muaudit.calibration import config, own

    found, base = config.load(settings, recipe=recipe, retrains=retrains), settings.parent
    changes = {"out": None if out is None else str(out.absolute()), "workers": workers}
    run = found.run.model_copy(update={name: value for name, value in changes.items() if value is not None})
    found = found.model_copy(update={"run": run})
    bed, models = found.testbed, base / run.out / "models"
    if bed is None:
        return found, lambda tell: own.population(found, base, tell)
    from muaudit.testbed.populations import population

    return found, lambda tell: population(bed, models, base, jobs=run.workers, progress=tell)


def _deliver(record: "CalibrationRecord", folder: Path, signer: "Signer | None") -> None:
    """Writes page and tables, and the signed statement where there is a key; an older signature, which no longer fits, goes."""
    from datetime import UTC, datetime

    from muaudit.calibration.run import RECORD
    from muaudit.reports import calibration, calibration_markdown, calibration_statement
    from muaudit.store import write_atomically

    write_atomically(folder / "calibration.html", calibration.render(record).encode())
    write_atomically(folder / "calibration.md", calibration_markdown.render(record).encode())
    envelope = folder / "calibration.intoto.json"
    if signer is None:
        envelope.unlink(missing_ok=True)
        return
    data = (folder / RECORD).read_bytes()
    write_atomically(envelope, calibration_statement.seal(record, data, [signer], issued_at=datetime.now(UTC)))


def verify_calibration(
    data: bytes, envelope: Path, keys: tuple[Path, ...], given: Path | None, *, other: Sequence[object], as_json: bool
) -> None:
    """Checks a calibration's envelope, for `muaudit verify`.

    Args:
        data: The envelope's bytes.
        envelope: Where it lies.
        keys: Trusted public keys.
        given: The record, where it does not lie beside the envelope.
        other: What else was asked for, which such an envelope does not have.
        as_json: Whether to print JSON.

    Raises:
        UsageError: Something was asked for that such an envelope does not have, or no key is given.
        VerificationError: Anything differs.
    """
    from muaudit.reports import calibration_statement
    from muaudit.reports.keys import load_public

    if any(other):
        raise UsageError(
            f"{envelope}: is about a calibration, which has no model and no verdict; give --key, and --report alone"
        )
    beside = given or envelope.parent / "calibration.json"
    record = signing.content(beside, RECORD_LIMIT) if beside.exists() else None
    seen = calibration_statement.verify(data, [load_public(key) for key in keys], record=record)
    if as_json:
        put_json(_as_json(seen))
    else:
        _say(seen)


def _as_json(seen: "VerifiedCalibration") -> dict[str, object]:
    return {
        "verified": True,
        "sha256": seen.sha256,
        "signers": [
            {"name": key.name, "fingerprint": key.fingerprint, "role": seen.roles[key.fingerprint]} for key in seen.signers
        ],
        "issued_at": seen.issued_at.isoformat(),
        "plan": seen.predicate.plan.digest.sha256,
        "policies": [one.model_dump(mode="json") for one in seen.predicate.policies],
        "checked": seen.checked,
        "unchecked": seen.unchecked,
    }


def _say(seen: "VerifiedCalibration") -> None:
    from muaudit.command_line import CONTROL

    lines = ["verified"]
    for key in seen.signers:
        who = f"{key.name} ({key.fingerprint[:16]}) as {seen.roles[key.fingerprint]}"
        lines.append(f"  signed by  {who} on {seen.issued_at.isoformat()}, by their own word")
    lines.append(f"  record     {seen.sha256}, of {seen.predicate.tool} on {seen.predicate.bed}")
    for one in seen.predicate.policies:
        rates = [
            f"{what} {rate.hits} of {rate.total}"
            for what, rate in (("false alarms", one.false_alarm), ("detected", one.detection))
            if rate is not None
        ]
        lines.append(f"  policy     {one.policy}: {', '.join(rates)}")
    for what, told in (("checked", seen.checked), ("not checked", seen.unchecked)):
        lines += [f"  {what:<12}{line}" for line in told]
    click.echo("\n".join(CONTROL.sub("?", line) for line in lines))


COMMANDS = (calibrate,)
