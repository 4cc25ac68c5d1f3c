"""What an auditor hands over: the page, the target's manifest and the signed statement, beside report.json."""

import glob
import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from muaudit.errors import UsageError
from muaudit.manifest import manifest_bytes
from muaudit.results import AuditReport
from muaudit.store import write_atomically

if TYPE_CHECKING:
    from muaudit.reports.sarif import Source
    from muaudit.reports.signers import Signer


def deliver(report: AuditReport, folder: Path, key: "Path | Signer | None", passphrase: bytes | None = None) -> None:
    """Renders and signs what the runner has written.

    Args:
        report: The report.
        folder: The audit's output folder, where report.json is.
        key: The auditor's private key, as a file or opened; without one nothing is signed, and an older signature, which no
            longer fits, is removed.
        passphrase: What the key's file is encrypted with.
    """
    from muaudit.reports import html
    from muaudit.reports.keys import load_private
    from muaudit.reports.signers import of_key

    write_atomically(folder / "report.html", html.render(report).encode())
    write_atomically(folder / "target.manifest.json", manifest_bytes(report.target.files))
    envelope = folder / "audit.intoto.json"
    if key is None:
        envelope.unlink(missing_ok=True)
        _forget_time_stamps(envelope)
    else:
        signer = of_key(load_private(key, passphrase)) if isinstance(key, Path) else key
        sign(report, folder / "report.json", envelope, signer)


def render(report: AuditReport, folder: Path, formats: Collection[str], audit: Path) -> list[Path]:
    """Renders a report in further formats beside report.json: those asked for, and those that lie there from an earlier run.

    Args:
        report: The report.
        folder: The audit's output folder.
        formats: Keys of `muaudit.reports.formats.SUFFIXES`.
        audit: The audit.toml or plan.json that was run, which SARIF's results point at.

    Returns:
        What was written.
    """
    from muaudit.reports.formats import SUFFIXES
    from muaudit.reports.formats import render as rendered

    files = {name: folder / f"report{suffix}" for name, suffix in SUFFIXES.items() if name not in ("html", "json")}
    wanted = {name: path for name, path in files.items() if name in formats or path.exists()}
    for name, path in wanted.items():
        write_atomically(path, rendered(report, name, source_of(audit)))
    return list(wanted.values())


def source_of(path: Path) -> "Source":
    """An audit.toml or plan.json as SARIF names it: relative to the current folder, which a pipeline takes for the root."""
    from muaudit.reports.sarif import Source

    here, there = Path.cwd(), path.resolve()
    uri = quote(there.relative_to(here).as_posix()) if there.is_relative_to(here) else there.as_uri()
    try:
        return Source(uri, path.read_text(encoding="utf-8-sig", errors="replace"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give an audit.toml or a plan.json") from error


def sign(
    report: AuditReport,
    path: Path,
    out: Path,
    signer: "Signer",
    *,
    role: str = "auditor",
    cosigners: Mapping[str, str] | None = None,
    threshold: int | None = None,
) -> Path:
    """Signs a report now.

    Args:
        report: The report.
        path: Its report.json, whose bytes are signed.
        out: The envelope to write.
        signer: Who signs.
        role: What as.
        cosigners: Who is to sign later: roles by fingerprint.
        threshold: How many signatures are enough; all of them where it is None.

    Returns:
        The envelope.
    """
    from muaudit.reports import attestation

    envelope = attestation.seal(
        report, path.read_bytes(), [signer], issued_at=datetime.now(UTC), role=role, cosigners=cosigners, threshold=threshold
    )
    write_atomically(out, envelope)
    _forget_time_stamps(out)
    return out


def sign_as_identity(report: AuditReport, path: Path, out: Path, trust: Path | None) -> Path:
    """Signs a report now with Sigstore.

    Args:
        report: The report.
        path: Its report.json, whose bytes are signed.
        out: The bundle to write.
        trust: The configuration of a Sigstore of one's own.

    Returns:
        The bundle.
    """
    from muaudit.reports import attestation, sigstore_bundles

    payload = attestation.payload_without_signers(report, path.read_bytes(), issued_at=datetime.now(UTC))
    write_atomically(out, sigstore_bundles.sign(payload, token=os.environ.get(sigstore_bundles.TOKEN_VARIABLE), trust=trust))
    return out


def _forget_time_stamps(envelope: Path) -> None:
    """Removes the time stamps of an envelope that is no longer there; they are about its signatures."""
    for kind in ("tsq", "tsr"):
        for path in envelope.parent.glob(f"{glob.escape(envelope.name)}.{'[0-9a-f]' * 16}.{kind}"):
            path.unlink(missing_ok=True)
