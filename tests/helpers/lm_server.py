"""A real HTTP server with a testbed model behind an OpenAI-compatible interface, and with every fault that servers have."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-vendor-0123456789abcdef"


class Served:
    """A causal language model as a server has it: greedy answers, and log-probabilities of an echoed prompt.

    Nothing of muaudit computes here, so that what an endpoint gives can be held against what a local model gives.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.busy = threading.Lock()

    def complete(self, prompt: str, most: int) -> tuple[str, int, int]:
        """The greedy answer, and how many tokens went in and came out."""
        import torch

        ids = torch.tensor([self.tokenizer(prompt).input_ids])
        with self.busy, torch.inference_mode():
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0
            )
        new = output[0, ids.shape[1] :]
        return self.tokenizer.decode(new, skip_special_tokens=True), ids.shape[1], len(new)

    def echo(self, text: str) -> dict[str, Any]:
        """Log-probabilities as OpenAI's completions give them: of every token of the text, none for the first."""
        import torch

        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids, spans = encoded.input_ids, encoded.offset_mapping
        with self.busy, torch.inference_mode():
            scores = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        chosen = [None, *(float(scores[place - 1, token]) for place, token in enumerate(ids) if place)]
        best = [None, *({"first": float(scores[place].max())} for place in range(len(ids) - 1))]
        # Spaces belong to the token after them, as in real vocabularies of pieces.
        starts = [0, *(spans[place - 1][1] for place in range(1, len(ids)))]
        return {
            "tokens": [text[start:stop] for start, (_, stop) in zip(starts, spans, strict=True)],
            "token_logprobs": chosen,
            "top_logprobs": best,
            "text_offset": starts,
        }


@dataclass
class Log:
    """What a server was sent, and what it is to do.

    Attributes:
        url: Its base address.
        requests: Path, body, headers and time of every request.
        faults: What to do instead of answering, one entry a request, from the front; see `Handler`.
        always: What to do instead of answering, whenever `faults` is empty.
        most: After so many requests, every further one gets status 503; None for never.
    """

    url: str = ""
    requests: list[tuple[str, dict[str, Any], dict[str, str], float]] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)
    always: Any = None
    most: int | None = None


class Handler(BaseHTTPRequestHandler):
    """A fault is a status, a tuple (status, headers, body), bytes sent as a good reply, or one of some words."""

    protocol_version = "HTTP/1.1"

    server: "_Quiet"

    def do_POST(self) -> None:
        log = self.server.log
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        log.requests.append((self.path, body, dict(self.headers.items()), time.time()))
        fault = log.faults.pop(0) if log.faults else log.always
        if log.most is not None and len(log.requests) > log.most:
            fault = 503
        if fault is None:
            self.reply(200, {}, json.dumps(self.answer(body)).encode())
        elif isinstance(fault, int):
            told = {"error": {"message": f"no: {self.headers.get('Authorization')}"}}  # a server may well send a key back
            self.reply(fault, {}, json.dumps(told).encode())
        elif isinstance(fault, tuple):
            self.reply(*fault)
        elif isinstance(fault, bytes):
            self.reply(200, {}, fault)
        else:
            getattr(self, fault)(body)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        served = self.server.served
        assert served is not None
        if body.get("echo"):
            text, most = body["prompt"], body["max_tokens"]
            more, given, made = served.complete(text, most)
            scored = served.echo(text)
            for key, value in (("tokens", more), ("token_logprobs", -0.5), ("top_logprobs", {more: -0.5})):
                scored[key].append(value)
            scored["text_offset"].append(len(text))
            choice: dict[str, Any] = {"text": text + more, "logprobs": scored}
        elif self.path.endswith("/chat/completions"):
            text, given, made = served.complete(body["messages"][0]["content"], body["max_tokens"])
            choice = {"message": {"role": "assistant", "content": text}}
        else:
            text, given, made = served.complete(body["prompt"], body["max_tokens"])
            choice = {"text": text}
        usage = {"prompt_tokens": given, "completion_tokens": made}
        return {"model": body["model"], "choices": [{"finish_reason": "stop", **choice}], "usage": usage}

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stall(self, _: dict[str, Any]) -> None:
        time.sleep(3)
        self.close_connection = True

    def drip(self, _: dict[str, Any]) -> None:
        """Sends a byte now and then: no single wait is long."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(30):
                self.wfile.write(b" ")
                time.sleep(0.1)
        except OSError:
            pass

    def drop(self, _: dict[str, Any]) -> None:
        self.close_connection = True
        self.connection.close()

    def cut(self, body: dict[str, Any]) -> None:
        """Promises more than it sends."""
        whole = json.dumps(self.answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2])
        self.close_connection = True

    def endless(self, _: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(40):
                self.wfile.write(b" " * 2**20)
        except OSError:
            pass

    def tell_the_key(self, _: dict[str, Any]) -> None:
        told = f"Your key is {self.headers.get('Authorization')}, is it not?"
        choice = {"message": {"content": told}, "text": told, "finish_reason": "stop"}
        self.reply(200, {}, json.dumps({"choices": [choice], "model": told}).encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, log: Log, served: Served | None) -> None:
        self.log, self.served = log, served
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is nothing to tell of."""


@contextmanager
def serving(served: Served | None = None) -> Iterator[Log]:
    """Runs a server on a free port of this machine."""
    log = Log()
    server = _Quiet(log, served)
    log.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield log
    finally:
        server.shutdown()
        server.server_close()
