"""A scan that is killed, again and again, finds what an undisturbed one finds, byte for byte."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from muaudit.demo import write_audit
from muaudit.results import AuditReport, Finding

pytest.importorskip("torch")

KILLS = 20


@pytest.fixture(scope="module")
def audit(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes an audit of models that take a while to measure."""
    folder = tmp_path_factory.mktemp("resume")

    def written(name: str) -> Path:
        path = write_audit(folder / f"{name}.toml", tiny, target="retrain")
        path.write_text(path.read_text().replace('store = "store"', f'store = "{name}/store"'))
        return path

    return written


def scan(path: Path) -> None:
    import muaudit

    muaudit.audit(path)


def findings(path: Path) -> bytes:
    report = AuditReport.from_json((path.parent / path.stem / "report.json").read_bytes())
    return b"\n".join(map(Finding.canonical, report.findings))


def test_twenty_kills_change_nothing(audit: Callable[[str], Path]) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "transformers", "muaudit.models.causal_lm", "muaudit.compare"])
    undisturbed = audit("undisturbed")
    started = time.perf_counter()
    process = server.Process(target=scan, args=(undisturbed,))
    process.start()
    process.join()
    assert process.exitcode == 0
    whole, expected = time.perf_counter() - started, findings(undisturbed)

    moments = random.Random(20)  # noqa: S311 - moments of murder need no secrecy
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        path = audit(f"killed-{rounds}")
        while True:
            process = server.Process(target=scan, args=(path,))
            process.start()
            process.join(moments.uniform(0, whole / 2) if kills < KILLS else None)
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        assert findings(path) == expected
        report = AuditReport.from_json((path.parent / path.stem / "report.json").read_bytes())
        assert report.run.computed + report.run.reused == 10
    assert json.loads((undisturbed.parent / "undisturbed" / "report.json").read_bytes())["run"]["computed"] == 10


def test_times_and_host_stand_apart_from_what_was_found() -> None:
    assert not {"started", "finished", "host", "model_seconds"} & set(Finding.model_fields)
