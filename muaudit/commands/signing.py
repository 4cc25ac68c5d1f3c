"""Commands on keys and signatures."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muaudit.command_line import (
    CONTROL,
    EXIT_CODES,
    PASSPHRASE_VARIABLE,
    anywhere,
    as_json,
    existing,
    put_json,
    shown,
    wrote,
)
from muaudit.errors import UsageError

if TYPE_CHECKING:
    from muaudit.reports.signers import Signer
    from muaudit.reports.trust_policy import Judged

WITNESS = "witness"
"""What a cosigner signs as where nothing else is said."""

REPORT_LIMIT = 2**28
"""Bytes of a report.json beyond which it is not read: 256 MiB."""


class KeyName(click.ParamType[str]):
    """A private key: a file that is there, or the URI of a security module or a key service."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's
        """Refuses a file that is not there."""
        from muaudit.reports.signers import is_uri

        return value if is_uri(value) else str(existing.convert(value, param, ctx))


private_key = KeyName()
KEY_HELP = "Private key: a file, or a URI such as hsm:2?label=TOKEN."
public_option = click.option("--public", type=existing, help="Public file of a key at a key service (awskms:, gcpkms: ...).")


sigstore_trust = click.option("--sigstore-trust", type=existing, help="Configuration of a Sigstore of your own, as JSON.")


def open_key(key: str, public: Path | None = None, *, try_it: bool = False) -> "Signer":
    """Opens a private key, and asks for its passphrase or PIN where it has one and the environment does not say it.

    Args:
        key: The private key's file or URI.
        public: The public file of a key at a key service.
        try_it: Signs something with a key that is not a file, so that what is wrong with it is found out before long work.

    Returns:
        Who can sign.
    """
    from muaudit.reports.signers import is_uri, open_signer

    signer = open_signer(key, secret, public=public)
    if try_it and is_uri(key):
        signer.sign(b"muaudit: can this key sign?")
    return signer


def under(base: Path, key: str) -> str:
    """A key as a configuration names it: a file relative to the configuration, or a URI as it stands."""
    from muaudit.reports.signers import is_uri

    return key if is_uri(key) else str(base / key)


def as_file(key: str | None) -> Path | None:
    """The file of a key, where it is one."""
    from muaudit.reports.signers import is_uri

    return None if key is None or is_uri(key) else Path(key)


def secret(what: str, *, again: bool = False) -> str:
    """A passphrase or a PIN, from the environment or asked for; never from the command's arguments, which others can see."""
    told = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        return told or str(click.prompt(what[:1].upper() + what[1:], hide_input=True, confirmation_prompt=again, err=True))
    except click.Abort:
        raise UsageError(f"the {what} is needed and nobody gave it; type it, or set ${PASSPHRASE_VARIABLE}") from None


@click.command()
@click.argument("report", type=existing)
@click.option("--key", type=private_key, help=KEY_HELP)
@public_option
@click.option("--role", default="auditor", show_default=True, help="What you sign as.")
@click.option(
    "--cosigner", "cosigners", multiple=True, metavar="[ROLE=]FILE.pub", help="Who must sign too, as witness; repeat."
)
@click.option("--threshold", type=click.IntRange(1), help="How many of the signatures are enough; all by default.")
@click.option("--sigstore", is_flag=True, help="Sign as an identity instead of with a key; that identity becomes public.")
@sigstore_trust
@click.option(
    "--out", type=anywhere, help="File to write; audit.intoto.json, or audit.sigstore.json, beside the report by default."
)
@as_json
@shown
def sign(
    report: Path,
    key: str | None,
    public: Path | None,
    role: str,
    cosigners: tuple[str, ...],
    threshold: int | None,
    sigstore: bool,
    sigstore_trust: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Sign a report.json: an in-toto Statement in a DSSE envelope.

    With --cosigner the envelope is pending, and does not verify, until they signed it too with `muaudit cosign`.
    """
    from muaudit.delivery import sign as seal
    from muaudit.delivery import sign_as_identity
    from muaudit.results import AuditReport

    read = AuditReport.from_json(content(report, REPORT_LIMIT), name=str(report))
    if sigstore and (key or cosigners or threshold):
        raise UsageError("--sigstore signs as one identity, and a bundle holds one signature; give no --key and no --cosigner")
    if sigstore:
        wrote(sign_as_identity(read, report, out or report.parent / "audit.sigstore.json", sigstore_trust), as_json)
        return
    if key is None:
        raise UsageError("nothing to sign with; give --key (make one with `muaudit keygen`) or --sigstore")
    declared = _declared(cosigners)
    path = seal(
        read,
        report,
        out or report.parent / ("audit.intoto.json" if read.redaction is None else "audit.public.intoto.json"),
        open_key(key, public),
        role=role,
        cosigners=declared,
        threshold=threshold,
    )
    wrote(path, as_json, *_still_to_sign(path))


@click.command()
@click.argument("envelope", type=existing)
@click.option("--key", type=private_key, required=True, help=KEY_HELP)
@public_option
@click.option(
    "--trusted", type=existing, multiple=True, help="Public key of somebody who has signed, to check that first; repeat."
)
@click.option("--report", type=existing, help="The report.json that is signed; the one beside the envelope by default.")
@click.option("--out", type=anywhere, help="Envelope to write; the same file by default.")
@as_json
@shown
def cosign(
    envelope: Path,
    key: str,
    public: Path | None,
    trusted: tuple[Path, ...],
    report: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Add your signature to an envelope that names you as a signer.

    Read the report first: you sign its digest, the target's, the plan's and the verdict.
    """
    from muaudit.reports import attestation
    from muaudit.reports.keys import load_public
    from muaudit.store import write_atomically

    signed = attestation.cosign(
        _envelope(envelope),
        open_key(key, public),
        report=_report(envelope, report),
        trusted=[load_public(path) for path in trusted],
    )
    path = out or envelope
    write_atomically(path, signed)
    wrote(path, as_json, *_still_to_sign(path))


@click.command()
@click.argument("envelope", type=existing)
@click.option("--url", help="The authority's address; without it the query is written for you to send.")
@click.option(
    "--tsa-root", "roots", type=existing, multiple=True, help="The authority's root certificate, to check the answer; repeat."
)
@as_json
@shown
def timestamp(envelope: Path, url: str | None, roots: tuple[Path, ...], as_json: bool) -> None:
    """Have a time-stamp authority (RFC 3161) vouch for when an envelope's signatures existed.

    Writes ENVELOPE.<key id>.tsr beside the envelope for every signature that lacks one; the authority sees a digest alone.
    """
    from muaudit.reports import envelope as envelopes
    from muaudit.reports import timestamps
    from muaudit.store import write_atomically

    paths, told = [], []
    for fingerprint, signature in envelopes.unpack(_envelope(envelope)).signatures.items():
        answer, question = (timestamps.beside(envelope, fingerprint, kind) for kind in ("tsr", "tsq"))
        if answer.exists():
            continue
        asked = timestamps.query(signature)
        if url is None:
            write_atomically(question, asked)
            paths.append(question)
            told.append(f"send it, and keep the answer as {answer.name}")
        else:
            reply = timestamps.fetch(url, asked)
            if roots:
                timestamps.verify({fingerprint: reply}, {fingerprint: signature}, timestamps.load_roots(roots))
            write_atomically(answer, reply)
            paths.append(answer)
    if as_json:
        put_json({"paths": [str(path) for path in paths]})
        return
    click.echo("\n".join([f"wrote {path}" for path in paths] + told) or "every signature has a time stamp already")


@click.command()
@click.argument("envelope", type=existing)
@click.option("--key", "keys", type=existing, multiple=True, help="A trusted public key; repeat.")
@click.option("--policy", type=existing, help="A verification policy (TOML) in place of --key: see docs/signing.md.")
@click.option("--model", type=existing, help="The target's folder, to be digested again.")
@click.option("--report", type=existing, help="The report.json that was signed; the one beside the envelope by default.")
@click.option("--sealed", type=existing, help="The sealed part of a redacted report, to be opened.")
@click.option("--tsa-root", "roots", type=existing, multiple=True, help="Ask for time stamps of this authority (PEM); repeat.")
@click.option("--identity", help="Whose signature a Sigstore bundle must carry, such as an e-mail address.")
@click.option("--issuer", help="Who must have vouched for that identity, as an OpenID Connect address.")
@sigstore_trust
@as_json
@shown
def verify(
    envelope: Path,
    keys: tuple[Path, ...],
    policy: Path | None,
    model: Path | None,
    report: Path | None,
    sealed: Path | None,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - one argument an option, checked by click
) -> None:
    """Check that an envelope is what was signed, and about this model. Says nothing of pass or fail: a fail verifies too.

    An envelope of a calibration is checked against the calibration.json beside it.

    Exits with 0 when everything holds and with 4 when anything does not. A policy that asks for a verdict is another question:
    where all else holds and the verdict will not do, exits with 1 for fail and with 3 for what was not decided.
    """
    from muaudit.reports import calibration_statement

    data = _envelope(envelope)
    if calibration_statement.is_calibration(data):
        from muaudit.commands.calibrate import verify_calibration

        verify_calibration(data, envelope, keys, report, other=[policy, model, sealed, *given.values()], as_json=as_json)
        return
    signed = _report(envelope, report)
    files = {"report": signed, "model": model}
    if policy is not None:
        if keys or any(given.values()):
            raise UsageError("--policy says whom and what is trusted; give it alone, or --key, --tsa-root or --identity")
        judged = _by_policy(data, envelope, policy, files)
    elif given["identity"] or given["issuer"]:
        judged = _by_identity(data, keys, given, files)
    else:
        judged = _by_keys(data, envelope, keys, given["roots"], files)
    judged = _opened(judged, signed, sealed)
    if as_json:
        put_json(_as_json(judged))
    else:
        _say(judged)
    if not judged.acceptable:
        sys.exit(EXIT_CODES[judged.verified.verdict] or 1)


@click.command()
@click.argument("out", type=anywhere)
@click.option("--name", default="auditor", show_default=True, help="Who holds the key; reports show it.")
@click.option("--passphrase", is_flag=True, help=f"Encrypt the key; asks, or reads ${PASSPHRASE_VARIABLE}.")
@as_json
@shown
def keygen(out: Path, name: str, passphrase: bool, as_json: bool) -> None:
    """Make an Ed25519 key pair: OUT.key (keep it) and OUT.pub (give it away)."""
    from muaudit.reports.keys import keygen as make

    told = secret("passphrase", again=True).encode() if passphrase else None
    private, public, fingerprint = make(out, name, told)
    if as_json:
        put_json({"private": str(private), "public": str(public), "fingerprint": fingerprint})
        return
    click.echo(f"private {private} (keep it)\npublic  {public}\nfingerprint {fingerprint}")


@click.command()
@click.argument("key", type=private_key)
@click.argument("out", type=anywhere)
@click.option("--name", default="auditor", show_default=True, help="Who holds the key; reports show it.")
@as_json
@shown
def pubkey(key: str, out: Path, name: str, as_json: bool) -> None:
    """Write OUT.pub, the public half of a private KEY: a file, or a key in a security module (hsm:2?label=TOKEN)."""
    from muaudit.reports.keys import write_public

    public, fingerprint = write_public(open_key(key).public, out, name)
    if as_json:
        put_json({"public": str(public), "fingerprint": fingerprint})
        return
    click.echo(f"public  {public}\nfingerprint {fingerprint}")


COMMANDS = (sign, cosign, timestamp, verify, keygen, pubkey)


def _by_policy(data: bytes, envelope: Path, policy: Path, files: dict[str, Any]) -> "Judged":
    from muaudit.reports import sigstore_bundles, trust_policy

    trust, now = trust_policy.load(policy), trust_policy.utc_now()
    if sigstore_bundles.is_bundle(data):
        return trust_policy.verify_bundle(data, trust, now=now, **files)
    return trust_policy.verify(data, trust, now=now, stamps=_time_stamps(data, envelope), **files)


def _by_identity(data: bytes, keys: tuple[Path, ...], given: dict[str, Any], files: dict[str, Any]) -> "Judged":
    from muaudit.reports import trust_policy

    if keys or given["roots"] or not (given["identity"] and given["issuer"]):
        raise UsageError("a Sigstore bundle is verified with --identity and --issuer together, and without --key")
    return trust_policy.verify_with_identity(data, given["identity"], given["issuer"], trust=given["sigstore_trust"], **files)


def _by_keys(data: bytes, envelope: Path, keys: tuple[Path, ...], roots: tuple[Path, ...], files: dict[str, Any]) -> "Judged":
    from muaudit.reports import sigstore_bundles, timestamps, trust_policy
    from muaudit.reports.keys import load_public

    if sigstore_bundles.is_bundle(data):
        raise UsageError(f"{envelope}: is a Sigstore bundle; give --identity and --issuer, or --policy, in place of --key")
    if not keys:
        raise UsageError("no public key is given, and a signature of an unknown key proves nothing; give --key or --policy")
    return trust_policy.verify_with_keys(
        data,
        [load_public(key) for key in keys],
        roots=timestamps.load_roots(roots),
        stamps=_time_stamps(data, envelope),
        **files,
    )


def _opened(judged: "Judged", report: bytes | None, sealed: Path | None) -> "Judged":
    """What was established, and that the sealed part opens the report, where it is given."""
    from dataclasses import replace

    from muaudit.reports.attestation import check_sealed

    seen = judged.verified
    if sealed is None:
        hint = ("sealed part: give it with --sealed, to see that it opens the report",) if seen.predicate.sealed else ()
        return replace(judged, verified=replace(seen, unchecked=(*seen.unchecked, *hint)))
    if report is None:
        raise UsageError("--sealed opens a report, and there is none beside the envelope; give it with --report")
    told = check_sealed(seen, report, content(sealed, REPORT_LIMIT))
    return replace(judged, verified=replace(seen, checked=(*seen.checked, told)))


def _time_stamps(data: bytes, envelope: Path) -> dict[str, bytes]:
    from muaudit.reports import envelope as envelopes
    from muaudit.reports import timestamps

    return timestamps.found(envelope, envelopes.unpack(data).signatures)


def _declared(cosigners: tuple[str, ...]) -> dict[str, str]:
    """Roles by fingerprint, of `[ROLE=]FILE.pub`."""
    from muaudit.reports.keys import load_public

    roles: dict[str, str] = {}
    for told in cosigners:
        role, equals, path = (WITNESS, "", told) if Path(told).exists() else told.partition("=")
        key = load_public(Path(path if equals else told))
        if key.fingerprint in roles:
            raise UsageError(f"--cosigner {told}: this key is named twice, and one key is one signer; name it once")
        roles[key.fingerprint] = role if equals else WITNESS
    return roles


def _still_to_sign(envelope: Path) -> list[str]:
    from muaudit.reports.attestation import pending

    waiting = pending(envelope.read_bytes())
    return [f"pending until {who[:16]} signs as {role}: muaudit cosign {envelope} --key KEY" for who, role in waiting.items()]


def content(path: Path, limit: int) -> bytes:
    """A file's bytes, refused where they are more than a limit or cannot be read."""
    try:
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; give a file that can be") from error
    if len(data) > limit:
        raise UsageError(f"{path}: has more than {limit} bytes, more than any that muaudit writes; give another file")
    return data


def _envelope(path: Path) -> bytes:
    from muaudit.reports.envelope import SIZE_LIMIT

    return content(path, SIZE_LIMIT + 1)  # what is too large by a byte is refused as an envelope


def _report(envelope: Path, given: Path | None) -> bytes | None:
    beside = given or envelope.parent / ("report.public.json" if ".public." in envelope.name else "report.json")
    return content(beside, REPORT_LIMIT) if beside.exists() else None


def _as_json(judged: "Judged") -> dict[str, object]:
    seen = judged.verified
    return {
        "verified": True,
        "verdict": seen.verdict,
        "acceptable": judged.acceptable,
        "signers": [
            {"name": key.name, "fingerprint": key.fingerprint, "role": seen.roles[key.fingerprint]} for key in seen.signers
        ],
        "missing": seen.missing,
        "issued_at": seen.issued_at.isoformat(),
        "time_stamps": [
            {"fingerprint": stamp.fingerprint, "time": stamp.time.isoformat(), "authority": stamp.authority}
            for stamp in judged.stamps
        ],
        "target": seen.target_digest,
        "plan": seen.plan_sha256,
        "checked": seen.checked,
        "unchecked": seen.unchecked,
    }


def _say(judged: "Judged") -> None:
    seen = judged.verified
    lines = ["verified"]
    for key in seen.signers:
        who = f"{key.name} ({key.fingerprint[:16]}) as {seen.roles[key.fingerprint]}"
        lines.append(f"  signed by  {who} on {seen.issued_at.isoformat()}, by their own word")
    lines += [
        f"  stamped    {stamp.fingerprint[:16]} on {stamp.time.isoformat()} by {stamp.authority}" for stamp in judged.stamps
    ]
    lines += [f"  not signed by {missing[:16]}, whom the threshold does without" for missing in seen.missing]
    for what, told in (("checked", seen.checked), ("not checked", seen.unchecked)):
        lines += [f"  {what:<12}{line}" for line in told]
    lines.append(f"  verdict    {seen.verdict}{'' if judged.acceptable else ', which the policy does not take'}")
    click.echo("\n".join(CONTROL.sub("?", line) for line in lines))
