"""The journal tells what was done when; nothing in it can be changed, taken out or put in unnoticed."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from recorded_logs import recorded_audit

import muaudit
from muaudit import runner
from muaudit.errors import VerificationError
from muaudit.journal import FIRST, Journal, JournalEntry, check, read
from muaudit.reports import attestation
from muaudit.reports.keys import keygen, load_public
from muaudit.results import AuditReport, Verdict

NAME = "journal.jsonl"


@pytest.fixture
def audited(tmp_path: Path) -> tuple[Path, AuditReport]:
    """An audit of an honest model, and its report."""
    path = recorded_audit(tmp_path, "honest")
    return path, muaudit.audit(path)


def file_of(path: Path) -> Path:
    return path.parent / f"audit-{path.stem}" / NAME


def events(entries: tuple[JournalEntry, ...] | list[JournalEntry]) -> list[str]:
    return [entry.event for entry in entries]


class Clocks:
    """A clock that can be set, and one that cannot; both go on by a second a look."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset, self.passed = offset, 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 20, 12, tzinfo=UTC) + timedelta(seconds=self.passed + self.offset)

    def monotonic(self) -> float:
        self.passed += 1.0
        return self.passed

    def journal(self, path: Path) -> Journal:
        return Journal(path, now=self.now, monotonic=self.monotonic)


def test_the_report_tells_what_was_done_on_what(audited: tuple[Path, AuditReport]) -> None:
    path, report = audited
    assert events(report.journal) == [
        "started", "prepared", "skipped", *["measured"] * 5, "compared", "concluded",
    ]  # fmt: skip
    assert report.journal[0].details["plan"] == report.plan_sha256
    assert report.journal[0].details["tool"] == report.tool
    measured = [entry.details for entry in report.journal if entry.event == "measured"]
    digests = {model.role: model.digest for model in report.models}
    assert [(one["attack"], one["role"]) for one in measured] == [("memorization", role) for role in digests]
    store = path.parent / "audit-honest" / "store"
    for one in measured:
        assert one["model"] == [digests[one["role"]]]
        assert hashlib.sha256((store / one["key"][:2] / f"{one['key']}.json").read_bytes()).hexdigest() == one["record"]
    assert all(datetime.fromisoformat(entry.at).utcoffset() == timedelta(0) for entry in report.journal)


def test_the_file_goes_on_from_the_report_and_names_it(audited: tuple[Path, AuditReport]) -> None:
    path, report = audited
    lines = file_of(path).read_bytes().splitlines()
    assert [entry.canonical() for entry in report.journal] == lines[:-1]
    written = json.loads(lines[-1])
    assert written["event"] == "written"
    assert written["details"]["report"] == hashlib.sha256(report.canonical()).hexdigest()
    previous = FIRST
    for line in lines:
        assert json.loads(line)["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()


def test_a_second_run_is_added_and_its_report_holds_both(audited: tuple[Path, AuditReport]) -> None:
    path, first = audited
    second = muaudit.audit(path)
    assert second.journal[: len(first.journal)] == first.journal
    further = second.journal[len(first.journal) + 1 :]
    assert events(further)[0] == "resumed"
    assert {entry.run for entry in further} == {2}
    assert all(entry.details["reused"] for entry in further if entry.event in ("prepared", "measured"))
    assert check(second) == f"journal: {len(second.journal)} entries of 2 runs"
    assert second.findings == first.findings


def test_another_plan_in_the_same_folder_leaves_its_trace(audited: tuple[Path, AuditReport]) -> None:
    """Whoever tries one margin after the other shows it."""
    path, first = audited
    path.write_text(path.read_text().replace("[policy]\n", "[policy]\nmargins = { memorization = 0.2 }\n"))
    second = muaudit.audit(path)
    plans = [entry.details["plan"] for entry in second.journal if entry.event in ("started", "resumed")]
    assert plans == [first.plan_sha256, second.plan_sha256]


def test_entries_hold_no_word_of_what_was_asked_or_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muaudit.models.recorded import Recorded

    def failing(*_: object) -> None:
        raise ValueError("Kalan Brawick was born in Torvik")

    monkeypatch.setattr(Recorded, "score", failing)
    report = muaudit.audit(recorded_audit(tmp_path, "honest"))
    failed = [entry for entry in report.journal if entry.event == "failed"]
    assert failed[0].details["fault"] == "raised"
    assert "Torvik" not in file_of(tmp_path / "honest.toml").read_text()


@pytest.fixture
def lines(audited: tuple[Path, AuditReport]) -> tuple[Path, list[bytes]]:
    file = file_of(audited[0])
    return audited[0], file.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines[:3], lines[3].replace(b'"target"', b'"reference 1"'), *lines[4:]], "line 5 does not follow"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4 is entry 4 where entry 3 belongs"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "line 4 is entry 4 where entry 3 belongs"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4 is entry 2 where entry 3 belongs"),
        (lambda lines: [*lines[:3], b"{}\n", *lines[3:]], "line 4 is no entry"),
        (lambda lines: [*lines[:3], lines[3].replace(b":", b": ", 1), *lines[4:]], "line 4 is no entry"),
        (lambda lines: [lines[0].replace(b'"previous":"0', b'"previous":"1'), *lines[1:]], "line 1 does not follow"),
        (lambda lines: [*lines[:3], b"\n", *lines[3:]], "line 4 is no entry"),
    ],
)
def test_a_changed_journal_is_refused(lines: tuple[Path, list[bytes]], change: object, said: str) -> None:
    path, before = lines
    changed = b"".join(change(before))  # type: ignore[operator]
    file_of(path).write_bytes(changed)
    with pytest.raises(VerificationError, match=f"journal is broken: {said}.*move it away"):
        muaudit.audit(path)
    assert file_of(path).read_bytes() == changed, "what was found is left as it is"


def test_every_half_written_line_is_told_of(tmp_path: Path) -> None:
    """Killed after any byte of its last line, the journal goes on, and says what was lost."""
    whole = Journal(tmp_path / NAME)
    whole.add("started", tool="muaudit")
    kept = whole.path.read_bytes()
    whole.add("measured", attack="memorization")
    last = whole.path.read_bytes()[len(kept) :]
    for length in range(1, len(last)):
        path = tmp_path / f"{length}.jsonl"
        path.write_bytes(kept + last[:length])
        journal = Journal(path)
        journal.add("resumed")
        if length == len(last) - 1:  # all but the end of the line: nothing was lost
            assert events(journal.entries) == ["started", "measured", "resumed"]
        else:
            assert events(journal.entries) == ["started", "torn", "resumed"]
            told = journal.entries[1].details
            assert told["sha256"] == hashlib.sha256(last[:length]).hexdigest()
            assert last[:length].decode().startswith(told["text"])
        assert path.read_bytes().startswith(kept + last[:length]), "lines are only ever added"
        assert read(path.read_bytes(), path.name) == (journal.entries, [])


def test_a_line_that_is_torn_while_another_is_told_of_is_told_of_too(tmp_path: Path) -> None:
    path = tmp_path / NAME
    Journal(path).add("started")
    path.write_bytes(path.read_bytes() + b'{"at":"2026\n{"at')
    journal = Journal(path)
    assert events(journal.entries) == ["started", "torn", "torn"]
    assert read(path.read_bytes(), NAME) == (journal.entries, [])


def test_a_half_written_line_in_an_audit_is_in_its_report(audited: tuple[Path, AuditReport]) -> None:
    path, first = audited
    with file_of(path).open("ab") as file:
        file.write(b'{"at":"2026-11-2')
    report = muaudit.audit(path)
    assert events(report.journal)[len(first.journal) + 1] == "torn"
    assert check(report) is not None
    assert report.findings == first.findings


@pytest.mark.parametrize("jump", [-3600.0, 86400.0])
def test_a_clock_that_was_set_is_noted(tmp_path: Path, jump: float) -> None:
    clocks = Clocks()
    journal = clocks.journal(tmp_path / NAME)
    journal.add("started")
    clocks.offset = jump
    journal.add("measured")
    journal.add("concluded")
    assert events(journal.entries) == ["started", "clock", "measured", "concluded"]
    assert journal.entries[1].details == {"seconds": jump}
    elapsed = [entry.elapsed for entry in journal.entries]
    assert elapsed == sorted(elapsed)


def test_a_clock_that_stands_before_the_last_run_is_noted(tmp_path: Path) -> None:
    Clocks().journal(tmp_path / NAME).add("started")
    later = Clocks(offset=-7200.0).journal(tmp_path / NAME)
    later.add("resumed")
    assert events(later.entries) == ["started", "clock", "resumed"]
    assert later.entries[1].details["seconds"] == pytest.approx(-7200.0)
    much_later = Clocks(offset=86400.0).journal(tmp_path / NAME)
    much_later.add("resumed")
    assert events(much_later.entries)[3:] == ["resumed"], "time passes between two runs"


def test_an_audit_whose_clock_jumps_back_finds_the_same(
    audited: tuple[Path, AuditReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()

    def backwards() -> datetime:
        clocks.offset -= 100.0
        return clocks.now()

    monkeypatch.setattr(runner, "Journal", partial(Journal, now=backwards, monotonic=clocks.monotonic))
    report = muaudit.audit(recorded_audit(tmp_path / "again", "honest"))
    assert report.findings == audited[1].findings
    assert "clock" in events(report.journal)
    assert check(report) is not None


def resealed(report: AuditReport, **changes: object) -> AuditReport:
    return AuditReport.model_validate(report.model_dump() | changes)


@pytest.mark.parametrize("what", ["entry", "taken out", "cut", "verdict", "gap"])
def test_a_report_whose_journal_is_another_does_not_verify(
    audited: tuple[Path, AuditReport], tmp_path: Path, what: str
) -> None:
    """Even whoever holds the key cannot sign one by mistake: what is signed verifies as a whole, or not at all."""
    _, report = audited
    journal = list(report.journal)
    changes: dict[str, object] = {}
    if what == "entry":
        changes["journal"] = [*journal[:2], journal[2].model_copy(update={"at": "2020-01-01T00:00:00.000+00:00"}), *journal[3:]]
    elif what == "taken out":
        changes["journal"] = [*journal[:2], *journal[3:]]
    elif what == "cut":
        changes["journal"] = journal[:-1]
    elif what == "verdict":
        changes["verdict"] = Verdict.FAIL
    else:
        changes["findings"] = [report.findings[0].model_copy(update={"gap": 0.5}), *report.findings[1:]]
    changes = {
        name: [one.model_dump() for one in value] if isinstance(value, list) else value for name, value in changes.items()
    }
    false = resealed(report, **changes)
    with pytest.raises(VerificationError, match="journal"):
        check(false)
    private, public, _ = keygen(tmp_path, "auditor")
    envelope = attestation.sign(false, false.canonical(), private, issued_at=datetime.now(UTC))
    with pytest.raises(VerificationError, match="journal"):
        attestation.verify(envelope, [load_public(public)], report=false.canonical())


def test_what_is_verified_names_the_journal(audited: tuple[Path, AuditReport], tmp_path: Path) -> None:
    _, report = audited
    private, public, _ = keygen(tmp_path, "auditor")
    envelope = attestation.sign(report, report.canonical(), private, issued_at=datetime.now(UTC))
    verified = attestation.verify(envelope, [load_public(public)], report=report.canonical())
    assert f"journal: {len(report.journal)} entries of 1 run" in verified.checked


def test_a_report_without_a_journal_still_verifies(audited: tuple[Path, AuditReport]) -> None:
    """Earlier releases wrote none."""
    assert check(audited[1].model_copy(update={"journal": ()})) is None
