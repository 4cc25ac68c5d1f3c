"""A whole audit of a model behind a server, from the command line: verdict, ledger, interruption, and no key anywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("openai")

from lm_server import KEY, Log, Served, serving

from muaudit.config import parse
from muaudit.errors import UsageError
from muaudit.results import AuditReport

NAME = "acme"
"""The vendor's model, with the test's folder after it: tests share the references' measurements, never answers."""


@pytest.fixture(scope="module")
def vendor(small: dict[str, Path]) -> Iterator[dict[str, Log]]:
    """Two servers: one of a model that forgot nothing, one of an honest retrain."""
    with serving(Served(small["original"])) as original, serving(Served(small["retrain"])) as retrain:
        yield {"original": original, "retrain": retrain}


def write(
    folder: Path,
    models: dict[str, Path],
    log: Log,
    target: str = "",
    attacks: str = "[attacks.memorization]\nretain_clusters = 4\nmax_new_tokens = 8\n",
) -> Path:
    """An audit of the endpoint against local references."""
    log.requests.clear()
    log.faults, log.always, log.most = [], None, None
    references = "".join(
        f'[[references]]\nkind = "causal_lm"\npath = {json.dumps(os.path.relpath(models[f"reference-{number}"], folder))}\n'
        for number in (1, 2, 3)
    )
    files = "".join(f"{name} = {json.dumps(os.path.relpath(models[name], folder))}\n" for name in ("forget", "retain"))
    path = folder / "audit.toml"
    path.write_text(
        f'[task]\nkind = "facts"\n{files}\n[target]\nkind = "endpoint"\nurl = "{log.url}"\nmodel = "{NAME}-{folder.name}"\n'
        f'key_env = "VENDOR_KEY"\nretries = 1\n{target}\n{references}\n[policy]\npartial = true\n'
        f"[conduct]\nquestions = 0\n{attacks}"
        + ("" if "[run]" in attacks else "[run]\n")
        + 'seed = "2026"\nstore = "../endpoint-store"\n'
    )
    return path


def scan(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muaudit", "scan", path.name], cwd=path.parent, capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, "COLUMNS": "160", "VENDOR_KEY": KEY, "OPENAI_LOG": "debug", **environment},
    )  # fmt: skip


def report_of(path: Path) -> AuditReport:
    return AuditReport.from_json((path.parent / "audit" / "report.json").read_bytes())


def assert_no_key(path: Path, seen: subprocess.CompletedProcess[str]) -> None:
    assert KEY not in seen.stdout + seen.stderr
    files = [file for folder in (path.parent, path.parent.parent / "endpoint-store") for file in folder.rglob("*")]
    files = [file for file in files if file.is_file()]
    assert files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_a_model_that_forgot_nothing_fails_by_its_text_alone(
    small: dict[str, Path], vendor: dict[str, Log], tmp_path: Path
) -> None:
    prices = "price_per_million_input = 3.0\nprice_per_million_output = 15.0"
    path = write(
        tmp_path,
        small,
        vendor["original"],
        prices,
        "[attacks.memorization]\nretain_clusters = 4\nmax_new_tokens = 8\n[attacks.relearning]\n",
    )
    vendor["original"].faults = [500, (429, {"Retry-After": "0"}, b"{}")]
    seen = scan(path)
    assert seen.returncode == 1, seen.stderr
    report = report_of(path)
    findings = {finding.attack: finding for finding in report.findings if finding.measures == "leakage"}
    assert findings["memorization"].verdict == "fail"
    assert findings["memorization"].gap is not None
    assert findings["memorization"].gap > 0.5
    assert findings["relearning"].verdict == "skipped"
    assert "'endpoint', which lacks what this attack needs: Finetunes" in findings["relearning"].reason
    (ledger,) = report.run.ledgers
    assert (ledger.role, ledger.endpoint) == ("target", f"{NAME}-{tmp_path.name} at {vendor['original'].url}")
    assert ledger.run.requests == len(vendor["original"].requests) == ledger.run.answers + 2
    assert (ledger.run.retries, ledger.run.failures, ledger.run.unmetered) == (2, 2, 0)
    assert ledger.run.cost == pytest.approx((3 * ledger.run.prompt_tokens + 15 * ledger.run.completion_tokens) / 1e6)
    assert ledger.run.prompt_tokens > ledger.run.answers
    assert (
        f"asked    target ({NAME}-{tmp_path.name} at {vendor['original'].url}): {ledger.run.requests} requests (2 retries"
        in seen.stdout
    )
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "Requests to endpoints" in page
    assert "these very model files" not in page
    assert any("weights are not identified" in limit for limit in report.limits)
    assert not any("audited files" in limit for limit in report.limits)
    assert report.target.kind == "endpoint"
    assert_no_key(path, seen)


def test_an_honest_retrain_does_not_fail_and_log_probabilities_decide_alike(
    small: dict[str, Path], vendor: dict[str, Log], tmp_path: Path
) -> None:
    path = write(tmp_path, small, vendor["retrain"], 'api = "completions"\nlogprobs = true')
    seen = scan(path)
    assert seen.returncode in (0, 3), seen.stderr
    by_endpoint = report_of(path).findings[0]
    assert by_endpoint.verdict != "fail"
    assert not any("text only" in note for note in by_endpoint.notes), "answer probability decided"
    local = json.dumps(os.path.relpath(small["retrain"], tmp_path))
    text = path.read_text()
    start, stop = text.index("[target]"), text.index("[[references]]")
    path.write_text(f'{text[:start]}[target]\nkind = "causal_lm"\npath = {local}\n{text[stop:]}')
    assert scan(path).returncode == seen.returncode
    by_folder = report_of(path).findings[0]
    assert by_endpoint.gap == pytest.approx(by_folder.gap, abs=1e-4)
    assert not report_of(path).run.ledgers


def test_an_interrupted_scan_goes_on_and_pays_for_nothing_twice(
    small: dict[str, Path], vendor: dict[str, Log], tmp_path: Path
) -> None:
    log = vendor["original"]
    path = write(tmp_path, small, log, "concurrency = 2")
    log.most = 50
    broken = scan(path)
    assert broken.returncode == 5, broken.stderr
    lines = [line for line in broken.stderr.splitlines() if line.startswith("muaudit:")]
    assert len(lines) == 1
    assert "status 503" in lines[0]
    assert "run the same command again" in lines[0]
    assert "Traceback" not in broken.stderr
    assert not (tmp_path / "audit" / "report.json").exists()
    answered = {json.dumps(body, sort_keys=True) for _, body, _, _ in log.requests[:50]}
    log.requests.clear()
    log.most = None
    seen = scan(path)
    assert seen.returncode == 1, seen.stderr
    assert not answered & {json.dumps(body, sort_keys=True) for _, body, _, _ in log.requests}
    (ledger,) = report_of(path).run.ledgers
    assert ledger.run.reused == len(answered) == 50
    assert ledger.run.requests == len(log.requests)
    assert ledger.total.requests > ledger.run.requests + 50
    log.requests.clear()
    assert scan(path).returncode == 1
    assert not log.requests, "a finished audit asks nothing"
    assert_no_key(path, seen)
    assert_no_key(path, broken)


def test_rubbish_is_an_error_row_and_the_rest_is_kept(small: dict[str, Path], vendor: dict[str, Log], tmp_path: Path) -> None:
    log = vendor["original"]
    path = write(tmp_path, small, log)
    log.faults = [None] * 5
    log.always = b'{"choices": [{"message": {"content": 1}}]}'
    seen = scan(path)
    assert seen.returncode == 3, seen.stderr
    (finding,) = report_of(path).findings
    assert finding.verdict == "error"
    assert "target: unit" in finding.reason
    run = report_of(path).run
    assert run.computed + run.reused == 3


@pytest.mark.parametrize(
    ("fault", "environment", "target", "code", "said"),
    [
        (401, {}, "", 5, "does not let us in"),
        (None, {"VENDOR_KEY": ""}, "", 5, "VENDOR_KEY, which `key_env` names, is not set"),
        (b'{"choices": [{"text": "a"}]}', {}, 'api = "completions"\nlogprobs = true', 2, "set logprobs = false"),
        (None, {}, "max_requests = 3", 5, "max_requests = 3 is spent"),
        ("tell_the_key", {}, "", None, ""),
    ],
)
def test_what_cannot_go_on_is_one_line_without_the_key(
    small: dict[str, Path], vendor: dict[str, Log], tmp_path: Path, fault: Any, environment: dict[str, str], target: str,
    code: int | None, said: str,
) -> None:  # fmt: skip
    path = write(tmp_path, small, vendor["original"], target)
    vendor["original"].always = fault
    seen = scan(path, **environment)
    vendor["original"].always = None
    assert_no_key(path, seen)
    assert "Traceback" not in seen.stderr
    if code is not None:
        assert seen.returncode == code, seen.stderr
        (line,) = [line for line in seen.stderr.splitlines() if line.startswith("muaudit:")]
        assert said in line


def test_workers_share_counts_and_signing_works(small: dict[str, Path], vendor: dict[str, Log], tmp_path: Path) -> None:
    log = vendor["retrain"]
    path = write(
        tmp_path, small, log, attacks="[attacks.memorization]\nretain_clusters = 4\nmax_new_tokens = 8\n[run]\nworkers = 2\n"
    )
    subprocess.run([sys.executable, "-m", "muaudit", "keygen", "auditor"], cwd=tmp_path, check=True, capture_output=True)
    path.write_text(path.read_text() + '[signing]\nkey = "auditor.key"\n')
    seen = scan(path)
    assert seen.returncode in (0, 3), seen.stderr
    (ledger,) = report_of(path).run.ledgers
    assert ledger.run.requests == ledger.run.answers == len(log.requests)
    (check,) = [line.split("check", 1)[1].split() for line in seen.stdout.splitlines() if line.startswith("  check")]
    assert "--model" not in check
    verified = subprocess.run([sys.executable, "-m", *check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr


GOOD: dict[str, Any] = {"kind": "endpoint", "url": "https://api.example.com/v1", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "api.example.com"}, "not the address of a server"),
        ({"url": "file:///etc/passwd"}, "not the address of a server"),
        ({"url": "https://host:port/v1"}, "not the address of a server"),
        ({"url": "https://me:s3cret@api.example.com/v1"}, "no user, password"),
        ({"url": "https://api.example.com/v1?key=s3cret"}, "no user, password"),
        ({"key_env": "sk-s3cret"}, "not the name of an environment variable"),
        ({"api_key": "s3cret"}, "unknown key 'target.api_key'"),
        ({"logprobs": True}, 'logprobs = true needs api = "completions"'),
        ({"price_per_million_input": 1.0}, "one price alone"),
        ({"timeout": 0}, "target.timeout"),
        ({"max_requests": 0}, "target.max_requests"),
        ({"model": ""}, "target.model"),
    ],
)
def test_a_bad_table_is_one_line_that_shows_no_secret(changes: dict[str, Any], said: str) -> None:
    whole = {"task": {"kind": "facts", "forget": "f"}, "target": GOOD | changes, "references": [GOOD], "attacks": {"a": {}}}
    with pytest.raises(UsageError, match=r"audit\.toml: ") as caught:
        parse(whole, "audit.toml")
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)
