"""An endpoint gives what the same model gives locally, survives what servers do, pays for nothing twice, and keeps the key."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("openai")

from lm_server import KEY, Log, Served, serving

from muaudit.errors import EnvironmentFault, ModelError, ServerFault
from muaudit.model_config import EndpointConfig
from muaudit.models import GeneratesText, Query, ScoresText
from muaudit.models import server as server_module
from muaudit.models.causal_lm import CausalLM
from muaudit.models.endpoint import Endpoint, ScoringEndpoint
from muaudit.models.meter import Books, Meter

GOOD = {"choices": [{"text": " yes", "message": {"content": "yes"}, "finish_reason": "stop"}]}


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Path]) -> Path:
    return tiny["original"]


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder)


@pytest.fixture
def log(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setenv("VENDOR_KEY", KEY)
    monkeypatch.setattr(server_module, "_BACKOFF", 0.01)
    with serving(served) as running:
        yield running


@pytest.fixture(scope="module")
def queries(tiny: dict[str, Path]) -> list[Query]:
    facts = [json.loads(line) for line in tiny["forget"].read_text().splitlines()][:10]
    return [Query(fact["id"], "answer", f"Question: {fact['question']} Answer:", " " + fact["answer"]) for fact in facts]


def config(log: Log, **changes: Any) -> EndpointConfig:
    values = {"kind": "endpoint", "url": log.url, "model": "m", "key_env": "VENDOR_KEY", "retries": 2, "timeout": 5}
    return EndpointConfig(**(values | changes))


def ask(settings: EndpointConfig, store: Path, prompt: str = "Question: Who? Answer:") -> str:
    return Endpoint.open(settings, store).generate([Query("u1", "answer", prompt, " x")], 4)[0]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_answers_are_the_local_models(log: Log, folder: Path, queries: list[Query], tmp_path: Path, api: str) -> None:
    endpoint = Endpoint.open(config(log, api=api), tmp_path)
    local = CausalLM.open(folder, device="cpu").generate(queries, 8)
    assert endpoint.generate(queries, 8) == local
    assert any(local)
    path, body, headers, _ = log.requests[0]
    assert path == ("/v1/chat/completions" if api == "chat" else "/v1/completions")
    assert (body["temperature"], body["max_tokens"], headers["authorization"]) == (0, 8, f"Bearer {KEY}")


def test_scores_are_the_local_models(log: Log, folder: Path, queries: list[Query], tmp_path: Path) -> None:
    seen = ScoringEndpoint.open(config(log, api="completions", logprobs=True), tmp_path).score(queries)
    for one, other in zip(seen, CausalLM.open(folder, device="cpu").score(queries), strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
        assert (one.tokens, one.hits) == (other.tokens, other.hits)


def test_capabilities_follow_the_configuration() -> None:
    assert issubclass(Endpoint, GeneratesText)
    assert not issubclass(Endpoint, ScoresText)
    assert issubclass(ScoringEndpoint, ScoresText)


@pytest.fixture(scope="module")
def transformers_serve(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The real thing: `transformers serve` with a copy of the model that has a chat template."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    copy = tmp_path_factory.mktemp("serve") / "model"
    shutil.copytree(folder, copy)
    told = json.loads((copy / "tokenizer_config.json").read_text())
    # Else the tokenizer makes token_type_ids, on which the server's generating thread dies and the reply never ends.
    told |= {
        "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (copy / "tokenizer_config.json").write_text(json.dumps(told))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    # By its path: the tests may run in an environment that is not activated.
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1], "--device", "cpu"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **quiet)
    try:
        for _ in range(300):
            assert process.poll() is None, "transformers serve does not start"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)  # noqa: S310 - our own server
                break
            except OSError:
                time.sleep(0.2)
        yield f"{address}/v1", copy
    finally:
        process.kill()
        process.wait()


def test_transformers_serve_is_understood(transformers_serve: tuple[str, Path], queries: list[Query], tmp_path: Path) -> None:
    url, copy = transformers_serve
    settings = EndpointConfig(kind="endpoint", url=url, model=str(copy), concurrency=1)
    turns = [replace(query, chat=True) for query in queries[:4]]
    endpoint = Endpoint.open(settings, tmp_path)
    assert endpoint.generate(turns, 8) == CausalLM.open(copy, device="cpu").generate(turns, 8)
    assert endpoint.meter.read()["unmetered"] == 4, "it counts no tokens in a stream"


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "drop", "cut", b"<html>", b'{"choices": [', b"[]", "stall", "drip"])
def test_a_passing_fault_is_survived_and_counted(log: Log, tmp_path: Path, fault: Any) -> None:
    log.faults = [fault, fault]
    settings = config(log, timeout=0.4 if fault in ("stall", "drip") else 5)
    wanted = ask(settings.model_copy(update={"timeout": 5}), tmp_path / "calm") if not log.faults else None
    assert ask(settings, tmp_path) == (wanted or ask(config(log), tmp_path / "other"))
    counts = Endpoint.open(settings, tmp_path).meter.read()
    assert (counts["requests"], counts["retries"], counts["failures"], counts["answers"]) == (3, 2, 2, 1)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(log: Log, tmp_path: Path, form: str) -> None:
    when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    log.faults = [(429, {"Retry-After": "1" if form == "seconds" else when}, b"{}")]
    ask(config(log), tmp_path)
    assert log.requests[1][3] - log.requests[0][3] > 0.9


def test_a_server_that_wants_a_day_ends_the_audit_at_once(log: Log, tmp_path: Path) -> None:
    log.always = (429, {"Retry-After": "86400"}, b"{}")
    with pytest.raises(ServerFault, match=r"86,400 s.*is kept"):
        ask(config(log), tmp_path)
    assert len(log.requests) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (500, "status 500.*3 requests.*run the same command again"),
        ("drop", "cannot be reached, or drops"),
        (401, "does not let us in.*VENDOR_KEY"),
        (403, "does not let us in"),
        (404, "no such path or model.*/v1"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "elsewhere"),
    ],
)
def test_a_lasting_fault_ends_in_one_line(log: Log, tmp_path: Path, fault: Any, said: str) -> None:
    log.always = fault
    with pytest.raises(ServerFault, match=said) as caught:
        ask(config(log), tmp_path)
    assert caught.value.exit_code == 5
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serving() as gone:
        pass
    with pytest.raises(ServerFault, match="cannot be reached"):
        ask(config(gone, key_env=None, retries=0), tmp_path)


RUBBISH: list[tuple[Any, str]] = [
    (b"{}", "'choices'"),
    (b'{"choices": []}', "0 choices"),
    (b'{"choices": [{}, {}]}', "2 choices"),
    (b'{"choices": [{}]}', "no message"),
    (b'{"choices": [{"message": {"content": null}}]}', "no text"),
    (b'{"choices": [{"message": {"content": 7}}]}', "content"),
    (b'{"choices": "' + b"x" * 100 + b'"}', "'choices'"),
    (b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -1}}', "prompt_tokens"),
    (b"[" * 100_000, "not JSON"),
    (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "not JSON"),
    ("endless", "larger than"),
    (400, "refuses the request"),
    ((200, {"Content-Encoding": "gzip"}, b"x"), "packed"),
    ((200, {"Content-Type": "text/event-stream"}, b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'), "broke off"),
    ((200, {"Content-Type": "text/event-stream"}, b'data: {"error": "boom"}\n\n'), "error"),
]


@pytest.mark.parametrize(("fault", "said"), RUBBISH)
def test_rubbish_names_the_unit_and_the_fault(log: Log, tmp_path: Path, fault: Any, said: str) -> None:
    log.always = fault
    with pytest.raises(ModelError, match="'u1'") as caught:
        ask(config(log, retries=1), tmp_path)
    assert said in str(caught.value)
    assert KEY not in str(caught.value)
    assert not list(tmp_path.rglob("*.json")), "rubbish is not kept"


def echo(**changes: Any) -> bytes:
    """A good echo of "ab cd" as two tokens, with some of it replaced."""
    found = {"tokens": ["ab", " cd", "x"], "token_logprobs": [None, -1.5, -1], "text_offset": [0, 2, 5]}
    choice = {"text": "ab cdx", "logprobs": found | {"top_logprobs": [None, {" cd": -1.5}, {"x": -1}]}}
    for key, value in changes.items():
        (choice if key in choice else choice["logprobs"])[key] = value  # type: ignore[index]
    return json.dumps({"choices": [choice]}).encode()


def scored(log: Log, store: Path, reply: bytes) -> Any:
    endpoint = ScoringEndpoint(config(log, api="completions", logprobs=True, retries=0), store)
    log.always = reply
    return endpoint.score([Query("u1", "answer", "ab", " cd")])[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logprobs": None}, "no log-probabilities"),
        ({"text": "cd"}, "does not echo"),
        ({"tokens": ["ab"]}, "differently"),
        ({"token_logprobs": [None, math.nan, -1]}, "token_logprobs"),
        ({"token_logprobs": [None, -math.inf, -1]}, "token_logprobs"),
        ({"token_logprobs": [None, None, -1]}, "leaves out"),
        ({"token_logprobs": [None, 0.5, -1]}, "above 0"),
        ({"text_offset": [-1, -1, -1], "tokens": ["", "", ""]}, "share|ascend"),
        ({"text_offset": [0, 0, 0]}, "share"),
        ({"text_offset": [0, 5, 2]}, "ascend"),
        ({"text_offset": [0, 5, 5]}, "leaves out|no token"),
        ({"top_logprobs": [None]}, "first choices"),
        ({"tokens": [], "token_logprobs": [], "text_offset": []}, "no tokens"),
    ],
)
def test_an_echo_that_does_not_hold_together_is_refused(log: Log, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match="'u1'.*(" + said + ")"):
        scored(log, tmp_path, echo(**changes))


def test_an_echo_is_read_by_its_offsets(log: Log, tmp_path: Path) -> None:
    plain = scored(log, tmp_path / "1", echo())
    assert (plain.log_probability, plain.tokens, plain.hits) == (-1.5, 1, (True,))
    beaten = scored(log, tmp_path / "2", echo(top_logprobs=[None, {" ef": -0.5}, None]))
    assert beaten.hits == (False,)
    assert scored(log, tmp_path / "3", echo(top_logprobs=None)).hits is None
    marked = echo(
        tokens=["<s>", "ab", " ", "cd", "x"], token_logprobs=[None, -9, -0.25, -0.5, -1], text_offset=[0, 3, 5, 6, 8],
        top_logprobs=None,
    )  # fmt: skip
    assert (scored(log, tmp_path / "4", marked).log_probability, scored(log, tmp_path / "4", marked).tokens) == (-0.75, 2)
    shared = echo(
        tokens=["ab", "bytes:e2", "bytes:82", " cd"],
        token_logprobs=[None, -1, -2, -4],
        text_offset=[0, 2, 2, 3],
        top_logprobs=None,
    )
    assert scored(log, tmp_path / "5", shared).tokens == 3, "pieces of one character share its place"


def test_a_server_without_log_probabilities_is_told_by_the_first_request(log: Log, tmp_path: Path) -> None:
    log.always = json.dumps(GOOD).encode()
    with pytest.raises(ModelError, match=r"logprobs = true needs.*set logprobs = false"):
        ScoringEndpoint.open(config(log, api="completions", logprobs=True), tmp_path)
    assert len(log.requests) == 1


def test_answers_are_kept_and_an_interrupted_list_goes_on(log: Log, queries: list[Query], tmp_path: Path) -> None:
    log.most = 6
    settings = config(log, retries=0, concurrency=2, price_per_million_input=2.0, price_per_million_output=4.0)
    books = Books([("target", settings), ("reference 1", "no endpoint")], tmp_path)
    with pytest.raises(ServerFault, match="503"):
        Endpoint.open(settings, tmp_path).generate(queries, 8)
    log.most = None
    again = Books([("target", settings)], tmp_path)
    answers = Endpoint.open(settings, tmp_path).generate([*queries, *queries], 8)
    assert answers[: len(queries)] == answers[len(queries) :]
    good = [body["messages"][0]["content"] for _, body, _, _ in log.requests[:6]]
    later = [body["messages"][0]["content"] for _, body, _, _ in log.requests if body["messages"][0]["content"] in good]
    assert len(later) == 6, "nothing that was answered is asked again"
    (whole,), (second,) = books.closed(), again.closed()
    assert second.run.reused == 6
    assert second.run.requests == second.run.answers == len(queries) - 6
    assert second.total == whole.total
    assert whole.total.answers == len(queries)
    assert whole.total.failures == whole.total.requests - whole.total.answers >= 1
    assert whole.total.cost == pytest.approx((2 * whole.total.prompt_tokens + 4 * whole.total.completion_tokens) / 1e6)
    assert whole.served == ("m",)
    assert ask(settings, tmp_path, queries[0].prompt) != "", "another length is another request"
    assert log.requests[-1][1]["max_tokens"] == 4


def test_the_budget_is_kept_over_runs(log: Log, queries: list[Query], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ServerFault, match=r"max_requests = 3 is spent.*raise max_requests"):
            Endpoint.open(config(log, max_requests=3), tmp_path).generate(queries, 8)
    assert len(log.requests) == 3


def test_a_request_that_was_stopped_while_it_waited_is_not_counted(tmp_path: Path) -> None:
    meter, stopped = Meter(tmp_path, requests_per_minute=1), Event()
    meter.admit(retry=False, stopped=stopped)
    waiting = Timer(0.2, stopped.set)
    waiting.start()
    with pytest.raises(ServerFault, match="another request failed"):
        meter.admit(retry=True, stopped=stopped)
    counts = meter.read()
    assert (counts["requests"], counts["retries"]) == (1, 0)


def test_the_rate_limit_spreads_requests(log: Log, queries: list[Query], tmp_path: Path) -> None:
    Endpoint.open(config(log, requests_per_minute=1200), tmp_path).generate(queries, 8)
    times = sorted(when for *_, when in log.requests)
    assert times[-1] - times[0] >= 0.05 * (len(queries) - 1) - 0.03


def test_counts_that_cannot_be_read_are_an_error_with_a_mend(tmp_path: Path) -> None:
    (tmp_path / "meter.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(EnvironmentFault, match="delete that file"):
        Meter(tmp_path).read()


@pytest.mark.parametrize("value", ["", "two words", "line\n", "\u00e9"])
def test_a_key_that_cannot_be_one_is_refused_unseen(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("VENDOR_KEY", value)
    with pytest.raises(EnvironmentFault, match="VENDOR_KEY") as caught:
        ask(config(log), tmp_path)
    assert not value or value.strip() not in str(caught.value)


def test_only_our_key_is_sent(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "another-vendors")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Other: another-vendors")
    ask(config(log, key_env=None), tmp_path)
    ask(config(log), tmp_path / "again")
    assert not any("another-vendors" in json.dumps(request[:3]) for request in log.requests)
    assert ["authorization" in headers for _, _, headers, _ in log.requests] == [False, True]


def test_a_key_that_the_server_tells_is_taken_out(log: Log, tmp_path: Path) -> None:
    log.always = "tell_the_key"
    assert ask(config(log), tmp_path) == "Your key is Bearer [key], is it not?"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_chat_template_needs_the_chat_api(log: Log, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='set api = "chat"'):
        Endpoint.open(config(log, api="completions"), tmp_path).generate([Query("u1", "answer", "Who?", "x", chat=True)], 4)


def test_stop_texts_are_sent(log: Log, tmp_path: Path) -> None:
    ask(config(log, stop=("\n",)), tmp_path)
    assert log.requests[0][1]["stop"] == ["\n"]


@pytest.mark.parametrize("shape", ["refusal", "filtered"])
def test_a_refusal_is_an_answer(log: Log, tmp_path: Path, shape: str) -> None:
    message = {"content": None, "refusal": "I cannot say"} if shape == "refusal" else {"content": None}
    reason = "content_filter" if shape == "filtered" else "stop"
    log.always = json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode()
    assert ask(config(log), tmp_path) == ("I cannot say" if shape == "refusal" else "")
