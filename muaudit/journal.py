"""The journal of an audit: what was done when, on what, and in what order; each entry is bound to all before it.

`journal.jsonl` lies in the audit's output folder. Every line is the RFC 8785 canonical JSON of one `JournalEntry`, and holds
the SHA-256 of the line before. Lines are only ever added. The report holds the journal up to its conclusion, and whoever signs
the report signs it too. Entries name attacks, roles and digests, and never what a unit says, so that a report whose texts are
withheld keeps its journal as it is.

What happens, by `event`:

- `started`, `resumed`: a run of a plan began, the first or a further one in this folder;
- `asked`: the questions that come back were put to a model, early or late;
- `prepared`, `measured`, `compared`: a step was done, or (`reused`) found in the store;
- `skipped`, `failed`: a step was not done, and why not;
- `clock`: the clock was set, or the machine slept, since the entry before;
- `torn`: a line that a killed process left half-written;
- `concluded`: the verdict was reached; the last entry of a report's journal;
- `written`, `stopped`: the report was written, or the run ended before there was one.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rfc8785
from pydantic import Field, ValidationError

from muaudit.errors import StorageFault, VerificationError
from muaudit.frozen import Frozen

if TYPE_CHECKING:
    from muaudit.results import AuditReport, Finding

NAME = "journal.jsonl"
"""The file's name in the audit's output folder."""

FIRST = "0" * 64
"""What the first entry has for the digest of the entry before."""

_JUMP = 1.0
"""Seconds by which two clocks may differ before the journal says so; clocks that are kept by a time server drift less."""

_SHOWN = 200
"""Characters of a half-written line that are kept; its digest stands for the rest."""

_SUMMARY = {
    "attack", "measures", "verdict", "gap", "interval", "upper_bound", "lower_bound", "margin", "noise_floor", "p_value",
    "units", "clusters",
}  # fmt: skip
"""What a conclusion binds of every finding: its numbers, and none of the texts that may be withheld later."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class JournalEntry(Frozen):
    """One line of the journal.

    Attributes:
        number: Place in the journal, from 0.
        previous: SHA-256 of the line before, without its end of line; zeros in the first.
        at: Time in UTC, by a clock that somebody can set.
        elapsed: Seconds since the run began, by a clock that nobody can set.
        run: Number of the run in this folder, from 1.
        event: What happened; see the module.
        details: Of what: names of attacks, roles, digests, numbers.
    """

    number: Annotated[int, Field(ge=0)]
    previous: Digest
    at: str
    elapsed: float
    run: Annotated[int, Field(ge=1)]
    event: Annotated[str, Field(min_length=1)]
    details: dict[str, Any] = {}


def _now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """An audit's journal, open for one run; whoever opens it has claimed the folder (`muaudit.store.claimed`).

    Attributes:
        path: The file.
        entries: All entries so far.
    """

    def __init__(
        self, path: Path, *, now: Callable[[], datetime] = _now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads and checks what is there, and notes what a killed process left half-written.

        Args:
            path: The file; it and its folder are made.
            now: The clock that tells the time.
            monotonic: The clock that nobody can set.

        Raises:
            VerificationError: A line was changed, taken out or put in after it was written.
            StorageFault: The file cannot be read or written.
        """
        self.path, self._now, self._monotonic = path, now, monotonic
        self._began = monotonic()
        self.entries: list[JournalEntry] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
            self.entries, torn = read(data, str(path))
            if data and not data.endswith(b"\n"):
                self._append(b"\n")
        except OSError as error:
            raise StorageFault.of(path, error) from error
        self._head = self.entries[-1].content_digest() if self.entries else FIRST
        self._run = self.entries[-1].run + 1 if self.entries else 1
        self._wall: tuple[datetime, float] | None = None
        for line in torn:
            text = line[:_SHOWN].decode("utf-8", "replace")
            self.add("torn", sha256=hashlib.sha256(line).hexdigest(), bytes=len(line), text=text)

    @property
    def resumed(self) -> bool:
        """Whether there was a run in this folder before."""
        return self._run > 1

    def add(self, event: str, **details: object) -> JournalEntry:
        """Writes an entry, and waits until it is on the disk.

        Args:
            event: What happened.
            **details: JSON values.

        Returns:
            The entry.

        Raises:
            StorageFault: The disk is full, or the folder cannot be written.
        """
        wall, monotonic = self._now(), self._monotonic()
        jump = self._jump(wall, monotonic)
        self._wall = wall, monotonic
        if jump is not None:
            self._put("clock", wall, monotonic, {"seconds": jump})
        return self._put(event, wall, monotonic, details)

    def _jump(self, wall: datetime, monotonic: float) -> float | None:
        """Seconds by which the clock moved otherwise than time did since the entry before; None where it did not."""
        if self._wall is not None:
            moved = (wall - self._wall[0]).total_seconds() - (monotonic - self._wall[1])
            return round(moved, 3) if abs(moved) > _JUMP else None
        if self.entries:  # of another run, whose clock that nobody can set may have been another machine's
            moved = (wall - datetime.fromisoformat(self.entries[-1].at)).total_seconds()
            return round(moved, 3) if moved < -_JUMP else None
        return None

    def _put(self, event: str, wall: datetime, monotonic: float, details: dict[str, Any]) -> JournalEntry:
        entry = JournalEntry(
            number=len(self.entries),
            previous=self._head,
            at=wall.astimezone(UTC).isoformat(timespec="milliseconds"),
            elapsed=round(monotonic - self._began, 3),
            run=self._run,
            event=event,
            details=details,
        )
        line = entry.canonical()
        try:
            self._append(line + b"\n")
        except OSError as error:
            raise StorageFault.of(self.path, error) from error
        self.entries.append(entry)
        self._head = hashlib.sha256(line).hexdigest()
        return entry

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, data)
                while written < len(data):
                    written += os.write(descriptor, data[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)  # what did not fit was never an entry
                raise
        finally:
            os.close(descriptor)


def read(data: bytes, name: str) -> tuple[list[JournalEntry], list[bytes]]:
    """Reads a journal file and checks that every line follows from the one before.

    Args:
        data: The file's content.
        name: What to call it in an error.

    Returns:
        The entries; and half-written lines at the end that no entry speaks of yet.

    Raises:
        VerificationError: A line was changed, taken out or put in after it was written.
    """
    entries: list[JournalEntry] = []
    torn: list[bytes] = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=1):
        if (entry := _parsed(line)) is None:
            torn.append(line)
            continue
        if torn:
            if entry.event != "torn" or entry.details.get("sha256") != hashlib.sha256(torn[0]).hexdigest():
                raise _broken(name, f"line {number - len(torn)} is no entry")
            del torn[0]
        fault = _fault(entry, entries)
        if fault is not None:
            raise _broken(name, f"line {number} {fault}")
        entries.append(entry)
    return entries, torn


def _parsed(line: bytes) -> JournalEntry | None:
    """The entry that a line holds, in the one spelling in which it is written."""
    try:
        entry = JournalEntry.model_validate_json(line)
        return entry if entry.canonical() == line else None
    except (ValidationError, ValueError, RecursionError):
        return None


def _fault(entry: JournalEntry, before: Sequence[JournalEntry]) -> str | None:
    """Why an entry cannot come after these."""
    if entry.number != len(before):
        return f"is entry {entry.number} where entry {len(before)} belongs: lines were taken out, put in or moved"
    if entry.previous != (before[-1].content_digest() if before else FIRST):
        return "does not follow from the line before: one of the two was changed after it was written"
    return None


def _broken(name: str, what: str) -> VerificationError:
    return VerificationError(
        f"{name}: the journal is broken: {what}; restore the file as it was, or move it away to begin a new journal"
    )


def findings_digest(findings: "Iterable[Finding]") -> str:
    """What a conclusion binds of the findings: SHA-256 of their names, verdicts and numbers."""
    return hashlib.sha256(rfc8785.dumps([one.model_dump(mode="json", include=_SUMMARY) for one in findings])).hexdigest()


def check(report: "AuditReport") -> str | None:
    """Checks that a report's journal is whole, and that its conclusion is the report's.

    Args:
        report: The report.

    Returns:
        What was checked, in words; None where the report has no journal, as those of earlier releases have none.

    Raises:
        VerificationError: An entry was changed, taken out or put in, or the journal is another audit's.
    """
    if not report.journal:
        return None
    before: list[JournalEntry] = []
    for entry in report.journal:
        if (fault := _fault(entry, before)) is not None:
            raise VerificationError(f"report.json: the journal is broken: its line {len(before) + 1} {fault}; ask the auditor")
        before.append(entry)
    last, here = report.journal[-1], {
        "plan": report.plan_sha256, "verdict": report.verdict.value, "findings": findings_digest(report.findings),
        "tool": report.tool,
    }  # fmt: skip
    if last.event != "concluded":
        raise VerificationError("report.json: the journal does not end with the audit's conclusion; ask the auditor")
    for what, value in here.items():
        if last.details.get(what) != value:
            raise VerificationError(f"report.json: the journal concludes with another {what} than the report; ask the auditor")
    runs = last.run
    return f"journal: {len(before)} entries of {runs} run{'s' if runs > 1 else ''}"
