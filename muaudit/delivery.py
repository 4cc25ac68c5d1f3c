"""What an auditor hands over: the page, the target's manifest and the signed statement, beside report.json."""

from datetime import UTC, datetime
from pathlib import Path

from muaudit.manifest import manifest_bytes
from muaudit.results import AuditReport
from muaudit.store import write_atomically


def deliver(report: AuditReport, folder: Path, key: Path | None, passphrase: bytes | None = None) -> None:
    """Renders and signs what the runner has written.

    Args:
        report: The report.
        folder: The audit's output folder, where report.json is.
        key: The auditor's private key; without one nothing is signed, and an older signature, which no longer fits, is removed.
        passphrase: What the key is encrypted with.
    """
    from muaudit.reports import html

    write_atomically(folder / "report.html", html.render(report).encode())
    write_atomically(folder / "target.manifest.json", manifest_bytes(report.target.files))
    envelope = folder / "audit.intoto.json"
    if key is None:
        envelope.unlink(missing_ok=True)
    else:
        sign(report, folder / "report.json", envelope, key, passphrase)


def sign(report: AuditReport, path: Path, out: Path, key: Path, passphrase: bytes | None = None) -> Path:
    """Signs a report now.

    Args:
        report: The report.
        path: Its report.json, whose bytes are signed.
        out: The envelope to write.
        key: The auditor's private key.
        passphrase: What the key is encrypted with.

    Returns:
        The envelope.
    """
    from muaudit.reports import attestation

    write_atomically(out, attestation.sign(report, path.read_bytes(), key, issued_at=datetime.now(UTC), passphrase=passphrase))
    return out
