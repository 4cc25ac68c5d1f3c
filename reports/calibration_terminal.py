"""A calibration for a terminal: the verdict's error rates, every attack's, and what to do next."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from muaudit.calibration.record import AttackRates, CalibrationRecord, PolicyRates, Rate
from muaudit.reports.calibration import area, counts
from muaudit.reports.terminal import aligned, line


def table(record: CalibrationRecord, console: Console, *, folder: Path | None = None, signed_with: Path | None = None) -> None:
    """Prints a calibration.

    Args:
        record: The record.
        console: Where to.
        folder: Where calibration.html and calibration.intoto.json lie.
        signed_with: The private key; its .pub file is named in the command that checks.
    """
    for one in lines(record, folder, signed_with):
        console.print(one, soft_wrap=True)


def lines(record: CalibrationRecord, folder: Path | None, signed_with: Path | None) -> Iterator[Text]:
    """The lines of the table."""
    kinds = ", ".join(f"{models} {truth} ({audits} audits)" for truth, (models, audits) in counts(record).items())
    yield Text(f"plan {record.plan_sha256[:8]}   {line(record.bed)}   models {len(record.members)}: {kinds}")
    yield Text()
    yield from aligned([_policy(one) for one in record.policies if one.left_out is None])
    yield Text()
    yield from aligned([_attack(one) for one in record.attacks])
    yield Text()
    if record.battery.excess is not None:
        yield Text(f"  battery  AUC {area(record.battery.excess)} by excess, {area(record.battery.gap)} by largest gap")
    if record.battery.ladder is not None:
        found = record.battery.ladder
        yield Text(f"  ladder   Spearman {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.models} audits")
    for battery in record.batteries[1:]:
        yield Text(f"  smallest {battery.how}: {line(', '.join(battery.attacks))}; {_rate('detected', battery.detection)}")
    for one in record.sensitivity:
        told = f"could see a gap of {one.gap:.3f} [{one.low:.3f}, {one.high:.3f}] with {one.references} references"
        yield Text(f"  {line(one.attack)}: {told}")
    if folder is not None:
        yield Text(f"  read     {line(str(folder / 'calibration.html'))}")
    if folder is not None and signed_with is not None:
        envelope, public = (
            shlex.quote(line(str(path))) for path in (folder / "calibration.intoto.json", signed_with.with_suffix(".pub"))
        )
        yield Text(f"  check    muaudit verify {envelope} --key {public}")


def _policy(one: PolicyRates) -> tuple[Text, ...]:
    parts = [one.policy, _alarm(one.false_alarm), _rate("honest passed", one.never_saw.get("pass"))]
    parts += [_rate("knowing failed", one.detection), _rate("hiding failed", one.gated.get("fail"))]
    return tuple(Text(line(part)) for part in parts)


def _attack(one: AttackRates) -> tuple[Text, ...]:
    if one.left_out is not None:
        return Text(line(one.attack)), Text("left out"), Text(line(one.left_out)), Text(), Text()
    cost = "" if one.seconds is None else f"{one.seconds:.2g} s"
    parts = [one.attack, f"AUC {area(one.excess)}", _alarm(one.false_alarm)]
    return tuple(Text(line(part)) for part in [*parts, _rate("detected", one.detection), cost])


def _rate(what: str, rate: Rate | None) -> str:
    """A rate in a few words: `detected 60 of 62 [89, 100] %`, with its exact interval."""
    return "" if rate is None else f"{what} {rate.hits} of {rate.total} [{100 * rate.low:.0f}, {100 * rate.high:.0f}] %"


def _alarm(rate: Rate | None) -> str:
    """False alarms: `honest failed 0 of 100 (at most 3.0 %)`, with the one-sided upper 95 % bound."""
    return "" if rate is None else f"honest failed {rate.hits} of {rate.total} (at most {100 * rate.bound:.1f} %)"
