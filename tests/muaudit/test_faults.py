"""Whatever breaks during an audit: nothing computed is lost, no half-written report exists, no verdict is too good."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from misbehaving import install
from recorded_logs import recorded_audit

import muaudit
from muaudit import store
from muaudit.delivery import deliver
from muaudit.errors import EnvironmentFault, StorageFault
from muaudit.journal import Journal, check, read
from muaudit.models.meter import Meter
from muaudit.reports import attestation
from muaudit.reports.keys import keygen, load_public
from muaudit.results import AuditReport, Finding, Verdict


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the misbehaving attacks are installed."""
    return install(tmp_path_factory.mktemp("plug-in")) | {"COLUMNS": "400"}


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "muaudit", "scan", path.name, *arguments]


def scan(path: Path, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """`muaudit scan` as a user runs it."""
    return subprocess.run(command(path, *arguments), cwd=path.parent, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def out_of(path: Path) -> Path:
    return path.parent / f"audit-{path.stem}"


def report_of(path: Path) -> AuditReport:
    return AuditReport.from_json((out_of(path) / "report.json").read_bytes())


def findings(report: AuditReport) -> bytes:
    return b"\n".join(map(Finding.canonical, report.findings))


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("muaudit: ")
    return done.stderr


def leftovers(folder: Path) -> list[Path]:
    """Half-written files."""
    return [path for path in folder.rglob(".*") if path.name != store.LOCK]


def computed_twice(path: Path) -> set[str]:
    """Keys of measurements that were computed in more than one run."""
    entries, _ = read((out_of(path) / "journal.jsonl").read_bytes(), "journal.jsonl")
    keys = [entry.details["key"] for entry in entries if entry.event == "measured" and not entry.details["reused"]]
    return {key for key in keys if keys.count(key) > 1}


MISBEHAVING = {
    "crashes": "crashed its process (SIGSEGV)",
    "killed": "was killed with its process (SIGKILL)",
    "leaves": "SystemExit: 0",
    "ends": "ended its process with exit code 0",
    "hangs": "took longer than run.timeout = 4 seconds and was ended",
    "devours": "out of memory; lower the model's batch_size",
    "fills": "OSError: [Errno 28] No space left on device",
    "unready": "its preparation crashed its process (SIGSEGV)",
}


def test_attacks_that_misbehave_are_errors_and_the_others_finish(tmp_path: Path, environment: dict[str, str]) -> None:
    sections = "".join(f"[attacks.{name}]\n" for name in [*MISBEHAVING, "prints"])
    path = recorded_audit(tmp_path, "honest", sections=sections)
    path.write_text(path.read_text().replace("[run]\n", "[run]\ntimeout = 4\nmemory_limit = 4\n"))
    done = scan(path, "--json", env=environment)
    assert done.returncode == 3, done.stderr
    report = AuditReport.from_json(done.stdout.encode())  # what attacks print does not get in between
    assert "an attack's own words" in done.stderr
    rows = {finding.attack: finding for finding in report.findings if finding.measures == "leakage"}
    for name, said in MISBEHAVING.items():
        assert rows[name].verdict is Verdict.ERROR, name
        assert said in rows[name].reason
    assert rows["memorization"].verdict is Verdict.PASS
    assert rows["prints"].verdict is not Verdict.ERROR
    assert report.verdict is Verdict.INCONCLUSIVE
    faults = {one.details["attack"]: one.details["fault"] for one in reversed(report.journal) if one.event == "failed"}
    assert faults == {
        "crashes": "crashed", "killed": "crashed", "leaves": "raised", "ends": "crashed", "hangs": "timeout",
        "devours": "memory", "fills": "raised", "unready": "crashed",
    }  # fmt: skip
    tried = [one for one in report.journal if one.details.get("attack") == "hangs" and one.event == "failed"]
    assert [one.details["fault"] for one in tried] == ["timeout", *["untried"] * 4], "nobody waits for it again"


def test_workers_are_isolated_too(tmp_path: Path, environment: dict[str, str]) -> None:
    path = recorded_audit(tmp_path, "honest", sections="[attacks.crashes]\n")
    path.write_text(path.read_text().replace("[run]\n", "[run]\nworkers = 2\n"))
    assert scan(path, env=environment).returncode == 3
    rows = {finding.attack: finding.verdict for finding in report_of(path).findings if finding.measures == "leakage"}
    assert (rows["crashes"], rows["memorization"]) == (Verdict.ERROR, Verdict.PASS)


def test_apart_or_not_the_findings_are_the_same(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "one-left")
    assert scan(path).returncode == 1
    apart = report_of(path)
    shutil.rmtree(out_of(path))
    assert findings(muaudit.audit(path)) == findings(apart)


def test_a_killed_scan_leaves_no_process_and_its_folder_to_the_next(tmp_path: Path, environment: dict[str, str]) -> None:
    told = tmp_path / "told"
    path = recorded_audit(tmp_path, "honest", sections=f'[attacks.slow]\npause = 600\ntold = "{told}"\n')
    first = subprocess.Popen(command(path), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(told.exists)
        second = scan(path, env=environment)
        assert f"another scan is at work there (process {first.pid} on" in one_line(second)
        assert "give this one another [run] out" in second.stderr
    finally:
        first.kill()
        first.wait()
    wait_for(lambda: not Path(f"/proc/{told.read_text()}").exists())
    path.write_text(path.read_text().replace("pause = 600", "pause = 0.01"))
    assert scan(path, env=environment).returncode == 0
    report = report_of(path)
    assert [one.event for one in report.journal if one.event in ("started", "resumed", "stopped")] == ["started", "resumed"]
    assert report.run.reused == 1, "the target's memorization was measured before"
    assert not computed_twice(path)


def wait_for(seen: Callable[[], bool]) -> None:
    for _ in range(600):
        if seen():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen within a minute")


@pytest.fixture
def calm(tmp_path: Path) -> bytes:
    """What an undisturbed audit of an honest model finds."""
    return findings(muaudit.audit(recorded_audit(tmp_path / "calm", "honest")))


def test_killed_at_any_moment_it_goes_on_and_finds_the_same(tmp_path: Path, calm: bytes) -> None:
    """A hundred kills; each scan is a copy of this process, so that little but the scan is ever interrupted."""
    source = recorded_audit(tmp_path / "source", "honest")
    started = time.perf_counter()
    assert ended(forked(source)) == 0
    whole = time.perf_counter() - started
    moments = random.Random(100)  # noqa: S311 - moments of murder need no secrecy
    kills = rounds = 0
    while kills < 100:
        rounds += 1
        path = recorded_audit(tmp_path / str(rounds), "honest")
        while kills < 100:
            scanning = forked(path)
            time.sleep(moments.uniform(0, whole / 3))
            os.kill(scanning, signal.SIGKILL)
            if ended(scanning) == 0:  # it was done before
                break
            kills += 1
            if (out_of(path) / "report.json").exists():
                assert findings(report_of(path)) == calm, "a report is whole or not there"
        assert ended(forked(path)) == 0
        report = report_of(path)
        assert findings(report) == calm
        assert check(report) is not None
        assert not computed_twice(path)
        assert report.run.computed + report.run.reused == 5


def forked(path: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            muaudit.audit(path)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path: Path, calm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full at the first write, at the second, and so on; each time, the audit goes on where it was."""
    path = recorded_audit(tmp_path, "honest")
    fsync, left = os.fsync, [0]

    def limited(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", limited)
    for room in range(1000):
        left[0] = room
        shutil.rmtree(out_of(path), ignore_errors=True)
        try:
            muaudit.audit(path)
            break
        except StorageFault as fault:
            said = str(fault)
        assert "No space left on device" in said
        assert "make room, and run the same command again" in said
        assert not leftovers(out_of(path))
        if (out_of(path) / "report.json").exists():  # there was no more room to note that it was written
            assert findings(report_of(path)) == calm
        stored = len(list((out_of(path) / "store").rglob("*.json")))
        left[0] = 10**6
        report = muaudit.audit(path)
        assert findings(report) == calm
        assert report.run.reused + 1 >= stored, "all but what was prepared are measurements"
        assert not computed_twice(path)
    assert room > 15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of a few kilobytes, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_scan_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path, calm: bytes) -> None:
    path = recorded_audit(tmp_path, "honest")
    path.write_text(path.read_text().replace('out = "audit-honest"', f'out = "{small_disk}/audit-honest"'))
    (small_disk / "filler").write_bytes(bytes(2**16))
    assert "No space left on device" in one_line(scan(path))
    assert not leftovers(small_disk)
    assert not (small_disk / "audit-honest" / "report.json").exists()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    done = scan(path)
    assert done.returncode == 0, done.stderr
    report = AuditReport.from_json((small_disk / "audit-honest" / "report.json").read_bytes())
    assert findings(report) == calm
    assert [one.event for one in report.journal if one.event == "stopped"]


def test_a_folder_that_may_only_be_read_is_one_line(tmp_path: Path, small_disk: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    path.write_text(path.read_text().replace('out = "audit-honest"', f'out = "{small_disk}/audit-honest"'))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    said = one_line(scan(path))
    assert "Read-only file system" in said
    assert "choose another" in said


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    (tmp_path / "audit-honest").write_text("a file\n")
    assert "audit-honest" in one_line(scan(path))
    assert (tmp_path / "audit-honest").read_text() == "a file\n"


def test_files_that_may_not_grow_are_one_line(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    limit = (4000, 4000)
    said = one_line(scan(path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
    assert "File too large" in said
    assert not leftovers(out_of(path))


def test_signing_that_is_interrupted_leaves_no_envelope_that_fits_another_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each of its writes, after an older audit with a better answer was signed in the same folder."""
    private, public, _ = keygen(tmp_path, "auditor")
    path = recorded_audit(tmp_path, "honest")
    out, key = out_of(path), [load_public(public)]
    shutil.copy(tmp_path / "honest.json", tmp_path / "kept.json")
    fsync, left = os.fsync, [10**6]

    def limited(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", limited)
    for writes in range(4):
        shutil.copy(tmp_path / "kept.json", tmp_path / "honest.json")
        left[0] = 10**6
        deliver(muaudit.audit(path), out, private)
        assert verdict_of(out, key) is Verdict.PASS
        shutil.copy(tmp_path / "suppressed.json", tmp_path / "honest.json")
        failing = muaudit.audit(path)
        assert failing.verdict is Verdict.FAIL
        assert not (out / "report.html").exists(), "the page of the older report went before the new one came"
        left[0] = writes
        try:
            deliver(failing, out, private)
        except KeyboardInterrupt:
            assert not leftovers(out)
            assert not (out / "audit.intoto.json").exists()
        else:
            assert verdict_of(out, key) is Verdict.FAIL
            break
    assert writes == 3


def verdict_of(out: Path, keys: "list[attestation.PublicKey]") -> Verdict:
    envelope, report = (out / "audit.intoto.json").read_bytes(), (out / "report.json").read_bytes()
    return attestation.verify(envelope, keys, report=report).verdict


def test_the_lock_of_a_process_that_is_gone_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / store.LOCK).write_text("process 1 on elsewhere")
    with store.claimed(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / store.LOCK).read_text()
        with pytest.raises(EnvironmentFault, match=f"process {os.getpid()} on"), store.claimed(tmp_path):
            pass
    with store.claimed(tmp_path):
        pass


def test_an_audit_that_was_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muaudit.models.recorded import Recorded

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = recorded_audit(tmp_path, "honest")
    with monkeypatch.context() as patched:
        patched.setattr(Recorded, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            muaudit.audit(path)
    entries = [entry for entry in muaudit.audit(path).journal if entry.event in ("stopped", "resumed")]
    assert [(entry.event, entry.details.get("error")) for entry in entries] == [
        ("stopped", "KeyboardInterrupt"), ("resumed", None),
    ]  # fmt: skip


def test_a_clock_that_is_set_back_does_not_make_an_endpoint_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter, told = Meter(tmp_path, requests_per_minute=60_000), time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: told() + 86400.0)
        meter.admit(retry=False, stopped=Event())
    waited: list[float | None] = []
    stopped = Event()
    monkeypatch.setattr(stopped, "wait", waited.append)
    meter.admit(retry=False, stopped=stopped)
    assert waited[0] is not None
    assert waited[0] < 1.0
    assert meter.read()["requests"] == 2


def test_a_journal_whose_disk_is_full_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add("started", at=datetime.now(UTC).isoformat())
    write = os.write

    def halves(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", halves)
        with pytest.raises(StorageFault, match="make room"):
            journal.add("measured")
    journal.add("resumed")
    assert [json.loads(line)["event"] for line in journal.path.read_text().splitlines()] == ["started", "resumed"]
