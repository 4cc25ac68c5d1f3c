"""A vendor's model behind an OpenAI-compatible server: it can be asked, and no more.

Every answer is kept in the audit's store as soon as it is there, so that no question is paid for twice. What a measurement
sees of a server's reply is text and numbers that were checked; nothing of it is ever run or opened.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any, Self

from muaudit.errors import ModelError
from muaudit.model_config import EndpointConfig
from muaudit.models import Query, TextScore
from muaudit.models.answers import Answer, Rubbish, read, read_echo, score
from muaudit.models.meter import Meter, Stopped, folder_of
from muaudit.models.server import Server
from muaudit.store import Store, key_of

_CHECK = Query("first request", "answer", "Question: Who? Answer:", " Nobody")
"""Asked before anything else where log-probabilities are configured."""


class Endpoint:
    """A model behind a server that gives text.

    Attributes:
        settings: Its configuration.
        store: Its answers.
        meter: Its counts.
    """

    def __init__(self, settings: EndpointConfig, store: Path, *, digest: str = "") -> None:
        """Reads the key from the environment; nothing is asked yet.

        Args:
            settings: The endpoint's configuration.
            store: The audit's store; answers go into a folder of it.
            digest: What identifies the endpoint; by default a digest of what the configuration says it is.

        Raises:
            EnvironmentFault: The extra is not installed, or the key is not in the environment.
        """
        self.settings = settings
        folder = folder_of(settings, store)
        self.store = Store(folder)
        self.store.sweep()
        self.meter = Meter(folder, requests_per_minute=settings.requests_per_minute, max_requests=settings.max_requests)
        self._server = Server(settings, self.meter)
        self._digest = digest or settings.content_digest()
        self._seconds = 0.0
        self._occasion: dict[str, str] = {}

    @classmethod
    def open(cls, settings: EndpointConfig, store: Path, *, digest: str = "") -> Self:
        """Makes ready to ask.

        Args:
            settings: The endpoint's configuration.
            store: The audit's store.
            digest: What identifies the endpoint.

        Returns:
            The endpoint.

        Raises:
            EnvironmentFault: The extra is not installed, or the key is not in the environment.
        """
        return cls(settings, store, digest=digest)

    def asked_anew(self, occasion: str) -> Self:
        """The same endpoint, which asks again what was answered on other occasions; the answers are kept by occasion."""
        other = copy(self)
        other._occasion = {"occasion": occasion}
        return other

    @property
    def digest(self) -> str:
        """Digest of what identifies the endpoint: address, name, API; the weights behind it are unknown."""
        return self._digest

    @property
    def model_seconds(self) -> float:
        """Seconds spent asking, waiting for a turn included."""
        return self._seconds

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        """Has each prompt completed, at temperature 0, in the order given.

        Args:
            queries: Their prompts are sent: as the user's turn of a chat, or raw to be completed.
            max_new_tokens: Where to stop, if the model does not end before.

        Returns:
            The new text of each, without surrounding white space.

        Raises:
            ModelError: The server refuses a request or answers it with rubbish; the message names the unit.
            ServerFault: The server fails for good, or the budget is spent; what was answered is kept.
        """
        chat = self.settings.api == "chat"
        bodies = []
        for query in queries:
            self._refuse_chat(query)
            asked = {"messages": [{"role": "user", "content": query.prompt}]} if chat else {"prompt": query.prompt}
            stop = {"stop": list(self.settings.stop)} if self.settings.stop else {}
            bodies.append({"model": self.settings.model, **asked, "max_tokens": max_new_tokens, "temperature": 0, **stop})
        answers = self._answers(queries, bodies, lambda reply, _, when: read(reply, chat=chat, asked=when))
        return [answer.text.strip() for answer in answers]

    def _refuse_chat(self, query: Query) -> None:
        if query.chat and self.settings.api != "chat":
            raise ModelError(
                'task.template is "chat", but the endpoint\'s api is "completions", which sends prompts as they are; write the '
                'template out, such as "Question: {question} Answer:", or set api = "chat"'
            )

    def _answers(
        self,
        queries: Sequence[Query],
        bodies: Sequence[dict[str, Any]],
        reader: Callable[[dict[str, Any], Query, str], Answer],
    ) -> list[Answer]:
        """The answers to requests, in the order given: those that are kept, and the rest from the server, several at a time."""
        started = time.perf_counter()
        path = "/chat/completions" if self.settings.api == "chat" else "/completions"
        keys = [key_of(what="answer", path=path, body=body, **self._occasion) for body in bodies]
        answers = {key: kept for key in dict.fromkeys(keys) if (kept := self.store.get(key, Answer)) is not None}
        self.meter.count(reused=len(answers))
        missing = {key: (query, body) for key, query, body in zip(keys, queries, bodies, strict=True) if key not in answers}
        stopped = Event()
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            waiting = {
                key: pool.submit(self._ask, key, query, path, body, reader, stopped) for key, (query, body) in missing.items()
            }
            for key, future in waiting.items():
                with suppress(Stopped):  # what stopped it is another of these, and says why
                    answers[key] = future.result()
        except BaseException:
            stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._seconds += time.perf_counter() - started
        return [answers[key] for key in keys]

    def _ask(
        self,
        key: str,
        query: Query,
        path: str,
        body: dict[str, Any],
        reader: Callable[[dict[str, Any], Query, str], Answer],
        stopped: Event,
    ) -> Answer:
        """One answer: asked for, checked, counted and kept."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        reply = self._server.ask(query.unit, path, body, stopped)
        try:
            answer = reader(reply, query, when)
        except Rubbish as fault:
            self.meter.count(failures=1)
            raise ModelError(f"unit {query.unit!r}: the server's answer {self._server.redacted(str(fault))}") from None
        redacted = {"text": self._server.redacted(answer.text), "served": self._server.redacted(answer.served or "") or None}
        answer = answer.model_copy(update=redacted)
        self.store.put(key, answer)
        self.meter.count(
            answers=1,
            prompt_tokens=answer.prompt_tokens or 0,
            completion_tokens=answer.completion_tokens or 0,
            unmetered=int(answer.prompt_tokens is None or answer.completion_tokens is None),
            served=answer.served,
        )
        return answer


class ScoringEndpoint(Endpoint):
    """A model behind a server that also gives log-probabilities of an echoed prompt."""

    @classmethod
    def open(cls, settings: EndpointConfig, store: Path, *, digest: str = "") -> Self:
        """Makes ready to ask, and sees by one request that the server really gives what is configured.

        Args:
            settings: The endpoint's configuration.
            store: The audit's store.
            digest: What identifies the endpoint.

        Returns:
            The endpoint.

        Raises:
            ModelError: The server does not echo prompts with log-probabilities and text offsets.
            EnvironmentFault: The extra is not installed, or the key is not in the environment.
            ServerFault: The server fails for good.
        """
        endpoint = cls(settings, store, digest=digest)
        try:
            endpoint.score([_CHECK])
        except ModelError as error:
            raise ModelError(
                f"{settings.shown}: logprobs = true needs a server that echoes a prompt with its log-probabilities and text "
                f"offsets, and this one does not ({error}); set logprobs = false to audit by text alone"
            ) from None
        return endpoint

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        """Scores each completion after its prompt, in the order given.

        Prompt and completion are sent as one text, and the server's own offsets tell where the completion's tokens start, as
        with a local model. One token is generated and thrown away, because not every server takes a limit of 0.

        Args:
            queries: What to score.

        Returns:
            One score a query: natural log-probabilities, as the server computes them.

        Raises:
            ModelError: The server refuses a request, or its answer does not hold together; the message names the unit.
            ServerFault: The server fails for good, or the budget is spent; what was answered is kept.
        """
        for query in queries:
            self._refuse_chat(query)
        bodies = [
            {
                "model": self.settings.model,
                "prompt": query.prompt + query.completion,
                "max_tokens": 1,
                "temperature": 0,
                "echo": True,
                "logprobs": 1,
            }
            for query in queries
        ]  # fmt: skip

        def reader(reply: dict[str, Any], query: Query, when: str) -> Answer:
            answer = read_echo(reply, query.prompt + query.completion, asked=when)
            score(answer, query.prompt)  # what cannot be scored is not kept
            return answer

        answers = self._answers(queries, bodies, reader)
        scores = []
        for query, answer in zip(queries, answers, strict=True):
            try:
                scores.append(score(answer, query.prompt))
            except Rubbish as fault:  # another prompt may end elsewhere in the same text
                raise ModelError(f"unit {query.unit!r}: the server's answer {fault}") from None
        return scores
