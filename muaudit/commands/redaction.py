"""Commands that withhold a report's texts and show them again."""

from pathlib import Path

import click

from muaudit.command_line import CONTROL, anywhere, as_json, existing, put_json, shown
from muaudit.commands import signing
from muaudit.commands.reports import REPORT_LIMIT
from muaudit.errors import UsageError


@click.command()
@click.argument("report", type=existing)
@click.option("--out", type=anywhere, help="Folder for the two parts; the report's own by default.")
@click.option("--key", type=signing.private_key, help="Sign the public part, and with it the sealed one, with this key.")
@click.option("--without-journal", is_flag=True, help="Withhold the journal too, which holds digests that are not salted.")
@as_json
@shown
def redact(report: Path, out: Path | None, key: str | None, without_journal: bool, as_json: bool) -> None:
    """Split a report.json in a public part and a sealed part.

    Every name of a unit or cluster, every prompt, answer and picture, the data files' paths and digests, and what may quote
    them stand in report.public.json as `redacted:sha256:...`; report.sealed.json opens them. The report itself stays as it is.
    """
    from muaudit.delivery import sign
    from muaudit.redaction import redact as split
    from muaudit.reports.statement import PUBLIC, SEALED
    from muaudit.results import AuditReport
    from muaudit.store import write_atomically

    file = report / "report.json" if report.is_dir() else report
    signer = None if key is None else signing.open_key(key)
    public, sealed = split(signing.content(file, REPORT_LIMIT), name=str(file), journal=not without_journal)
    folder = out or file.parent
    paths = {"public": folder / PUBLIC, "sealed": folder / SEALED}
    write_atomically(paths["sealed"], sealed)
    paths["sealed"].chmod(0o600)
    write_atomically(paths["public"], public)
    read = AuditReport.from_json(public)
    envelope = folder / "audit.public.intoto.json"
    envelope.unlink(missing_ok=True)  # of an earlier redaction, whose salts were others
    if signer is not None:
        paths["envelope"] = sign(read, paths["public"], envelope, signer)
    counts = {} if read.redaction is None else read.redaction.counts
    if as_json:
        put_json({name: str(path) for name, path in paths.items()} | {"withheld": counts})
        return
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    click.echo(f"withheld {told}\nwrote {paths['public']}\nwrote {paths['sealed']} (keep it)")
    following = f"muaudit sign {paths['public']} --key KEY" if signer is None else f"muaudit verify {envelope} --key KEY.pub"
    click.echo(f"wrote {envelope}\nnext  {following}" if signer else f"next  {following}")


@click.command()
@click.argument("public", type=existing)
@click.argument("sealed", type=existing)
@click.option("--place", "places", multiple=True, help="Show what is withheld at a JSON pointer alone, with its salt; repeat.")
@click.option("--out", type=anywhere, help="Write the whole report here.")
@as_json
@shown
def reveal(public: Path, sealed: Path, places: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Check that a sealed part opens a public one, and show what it withholds: single values, or the whole report.

    Exits with 4 where it does not open every commitment. `muaudit verify --sealed` checks the signature too.
    """
    import hashlib
    import json

    import rfc8785

    from muaudit.results import AuditReport
    from muaudit.sealing import SealedPart, unseal
    from muaudit.store import write_atomically

    data, opening = signing.content(public, REPORT_LIMIT), signing.content(sealed, REPORT_LIMIT)
    report = AuditReport.from_json(data, name=str(public))
    if report.redaction is None:
        raise UsageError(f"{public}: withholds nothing; give the report.public.json that `muaudit redact` wrote")
    part = SealedPart.from_json(opening, name=str(sealed))
    whole = unseal(json.loads(data), part)
    if hashlib.sha256(opening).hexdigest() != report.redaction.sealed_sha256:
        from muaudit.errors import VerificationError

        raise VerificationError(f"{sealed}: is not the sealed part, byte for byte, that {public} names; get it again")
    shown_values = []
    for place in places:
        found = [value for value in part.values if place in value.places]
        if not found:
            raise UsageError(f"--place {place}: nothing is withheld there; {sealed} lists the places")
        shown_values += [{"place": place, "commitment": one.commitment(), "salt": one.salt, "text": one.text} for one in found]
    if out is not None:
        write_atomically(out, rfc8785.dumps(whole))
    if as_json:
        put_json({"opened": len(part.values), "report_sha256": part.report_sha256, "values": shown_values})
        return
    click.echo(f"opened all {len(part.values)} commitments; the whole report has SHA-256 {part.report_sha256}")
    for one in shown_values:
        click.echo(CONTROL.sub("?", f"{one['place']}\n  {one['commitment']}\n  salt {one['salt']}\n  text {one['text']}"))
    if out is not None:
        click.echo(f"wrote {out}")


COMMANDS = (redact, reveal)
"""What the command line takes in."""
