"""Commands on keys and signatures."""

import os
from pathlib import Path

import click

from muaudit.command_line import (
    CONTROL,
    PASSPHRASE_VARIABLE,
    anywhere,
    as_json,
    existing,
    passphrase_of,
    put_json,
    shown,
    wrote,
)


@click.command()
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
    wrote(seal(read, report, out or report.parent / "audit.intoto.json", key, passphrase_of(key)), as_json)


@click.command()
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
        name = CONTROL.sub("?", key.name)
        click.echo(f"  signed by  {name} ({key.fingerprint[:16]}) on {seen.issued_at.isoformat()}, by their own word")
    for what, lines in (("checked", seen.checked), ("not checked", seen.unchecked)):
        for line in lines:
            click.echo(f"  {what:<12}{line}")
    click.echo(f"  verdict    {seen.verdict}")


@click.command()
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
