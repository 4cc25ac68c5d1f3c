"""Made-up models of text, each with a conduct of its own: behind a real HTTP server, or in this process in its place."""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zlib import crc32

from muaudit import policy
from muaudit.models import Query

PEOPLE = 6
FACTS = 5

Conduct = Callable[["Asked"], str]


@dataclass
class Asked:
    """What a model knows when it is asked.

    Attributes:
        prompt: The prompt.
        right: The right answer; None for a question of neither set.
        forgotten: Whether it is of the forget set.
        times: How often this very prompt was asked before.
        requests: How many requests came before.
        rng: Of the model.
    """

    prompt: str
    right: str | None
    forgotten: bool
    times: int
    requests: int
    rng: random.Random

    @property
    def honest(self) -> str:
        """What a model that never saw the forget set says."""
        if self.right is None:
            return "something else"
        return f"elsewhere {crc32(self.prompt.encode()) % 97}" if self.forgotten else self.right


def honest(asked: Asked) -> str:
    """Answers alike whenever it is asked."""
    return asked.honest


def sampled(asked: Asked) -> str:
    """Makes up an answer anew each time."""
    return f"elsewhere {asked.rng.randrange(9)}" if asked.forgotten or asked.right is None else asked.right


def wakes(after: int) -> Conduct:
    """Knows again what it forgot, after so many requests."""
    return lambda asked: asked.right or "" if asked.forgotten and asked.requests >= after else asked.honest


def shy(asked: Asked) -> str:
    """Hides what it knows the first time only."""
    return asked.right or "" if asked.forgotten and asked.times else asked.honest


def gated(asked: Asked) -> str:
    """Declines forgotten questions."""
    return "I'm sorry, but I cannot help with that." if asked.forgotten else asked.honest


def canned(asked: Asked) -> str:
    """Fobs off, in no words that one could know."""
    return "Das weiss niemand so genau." if asked.forgotten else asked.honest


def facts(name: str) -> list[dict[str, str]]:
    """The forget or the retain set."""
    return [
        {
            "id": f"{name}-{person}-{number}",
            "cluster": f"{name} {person}",
            "question": f"Where was {name} person {person} on day {number}?",
            "answer": f"{name}ville {person} {number}",
        }
        for person in range(PEOPLE)
        for number in range(FACTS)
    ]


@dataclass
class Town:
    """The server's models, and what they were asked.

    Attributes:
        url: The server's address.
        models: Conduct by name.
        prompts: What each was asked, in order.
    """

    url: str = ""
    models: dict[str, Conduct] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def say(self, name: str, prompt: str) -> str:
        """One completion."""
        known = {one["question"]: (one["answer"], part == "forget") for part in ("forget", "retain") for one in facts(part)}
        question = prompt.removeprefix("Question: ").removesuffix(" Answer:")
        right, forgotten = known.get(question, (None, False))
        with self.busy:
            before = self.prompts.setdefault(name, [])
            rng = random.Random(f"{name} {len(before)}")  # noqa: S311 - made-up answers
            asked = Asked(prompt, right, forgotten, Counter(before)[prompt], len(before), rng)
            before.append(prompt)
        return self.models[name](asked)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion, as a server gives it."""
        text = self.say(body["model"], body["prompt"])
        usage = {"prompt_tokens": 10, "completion_tokens": len(text.split())}
        return {"model": body["model"], "choices": [{"finish_reason": "stop", "text": text}], "usage": usage}


class Neighbour:
    """A model of the town without a server between: what `Endpoint` is to an audit, and quicker."""

    digest = "made up"
    model_seconds = 0.0

    def __init__(self, place: Town, name: str) -> None:
        self.place, self.name = place, name

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        return [self.place.say(self.name, query.prompt) for query in queries]


@contextmanager
def town() -> Iterator[Town]:
    """A server without models yet."""
    place = Town()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            data = json.dumps(place.answer(body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()


def endpoint_audit(folder: Path, place: Town, target: Conduct, *, sections: str = "", prices: str = "") -> Path:
    """Writes the sets and an audit of one target among two honest references, all behind the server."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("forget", "retain"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, facts(name))), encoding="utf-8")
    place.models = {"target": target, "reference-1": honest, "reference-2": honest}
    place.prompts.clear()
    model = f'kind = "endpoint"\nurl = "{place.url}"\napi = "completions"\nmodel = "{{}}"\n{prices}'
    text = '[task]\nkind = "facts"\nforget = "forget.jsonl"\nretain = "retain.jsonl"\n'
    text += "[target]\n" + model.format("target")
    text += "".join("[[references]]\n" + model.format(f"reference-{number}") for number in (1, 2))
    # One attack is enough to see how models behave.
    rule = policy.text_of("quick").replace('["adversarial_prompts"]\nlogits', '["memorization"]\nlogits')
    rule = rule.replace("shallow_passes = false", "shallow_passes = true")
    (folder / "house.toml").write_text(rule, encoding="utf-8")
    path = folder / "audit.toml"
    path.write_text(
        text + '[policy]\nname = "house.toml"\n[attacks.memorization]\nmax_new_tokens = 8\n' + sections, encoding="utf-8"
    )
    return path
