"""One request to an OpenAI-compatible server: sent with the key, paced, retried, bounded, and its reply as plain JSON values.

Nothing that a server sends is more than data: replies are bounded in size and time, redirects are not followed, and the key is
taken out of every text.
"""

import email.utils
import math
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Event
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from muaudit.errors import EnvironmentFault, ModelError, ServerFault
from muaudit.model_config import EndpointConfig
from muaudit.models.meter import Meter, Stopped

if TYPE_CHECKING:
    import httpx2
    from openai import APIStatusError

MOST_BYTES = 16 * 2**20
"""Largest reply that is read."""

LONGEST_WAIT = 600.0
"""Most seconds that a server may ask to be left alone before that ends the audit."""

_BACKOFF, _MOST_BACKOFF = 0.5, 60.0
"""Seconds before the first retry, doubled each time, and where that ends."""

_SECRET = 8
"""Characters from which on a key is taken out of answers too: shorter ones are dummies such as "EMPTY", and words."""

_SHOWN = 300
"""Characters of a server's own error message that are shown."""

_HEADERS = ("host", "connection", "user-agent", "accept", "content-type", "content-length")
"""What is sent beside the key; the client library would add what the environment holds for other vendors."""


class Damaged(Exception):
    """A reply that is not whole: not JSON, or a stream that broke off."""


class TooLarge(Exception):
    """A reply beyond `MOST_BYTES`, or packed so that its size cannot be told."""


class Server:
    """A server, as a place to send JSON to.

    Attributes:
        settings: The endpoint's configuration.
        meter: Counts, rate limit and budget.
    """

    def __init__(self, settings: EndpointConfig, meter: Meter) -> None:
        """Reads the key from the environment; nothing is sent yet.

        Raises:
            EnvironmentFault: The extra is not installed, or the key is not in the environment.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise EnvironmentFault(
                "a model of kind 'endpoint' needs openai; install it: pip install 'muaudit[endpoint]'"
            ) from error
        self.settings, self.meter = settings, meter
        self._key = _key(settings.key_env)
        # The key goes into the request at the last moment, so that no part of the library holds, logs or reports it.
        self._client = OpenAI(
            api_key="unused",
            base_url=settings.url,
            max_retries=0,
            timeout=settings.timeout,
            http_client=_http_client(self._key, settings.timeout),
        )

    def redacted(self, text: str) -> str:
        """A text of the server's without the key, should it send that back."""
        return text.replace(self._key, "[key]") if self._key is not None and len(self._key) >= _SECRET else text

    def ask(self, unit: str, path: str, body: dict[str, Any], stopped: Event) -> dict[str, Any]:
        """Sends a request until it is answered.

        Args:
            unit: What it is about, for errors.
            path: Below the base URL, such as "/completions".
            body: The JSON object to send.
            stopped: Set when nobody wants the answer any more; set here when the server fails for good.

        Returns:
            The reply's JSON object; a streamed reply is put together.

        Raises:
            ModelError: The server refuses this request, or answers it with rubbish.
            ServerFault: The server refuses all requests, fails after all retries, or the budget is spent.
        """
        try:
            return self._ask(unit, path, body, stopped)
        except ServerFault:
            stopped.set()
            raise

    def _ask(self, unit: str, path: str, body: dict[str, Any], stopped: Event) -> dict[str, Any]:
        import openai

        for attempt in range(self.settings.retries + 1):
            self.meter.admit(retry=attempt > 0, stopped=stopped)
            wait = min(_MOST_BACKOFF, _BACKOFF * 2**attempt)
            damaged = False
            try:
                return self._sent(path, body)
            except Damaged as error:
                fault, damaged = str(error), True
            except TooLarge as error:
                self.meter.count(failures=1)
                raise ModelError(f"unit {unit!r}: the server's answer {error}") from None
            except openai.APITimeoutError:
                fault = f"did not answer within {self.settings.timeout:g} s"
            except openai.APIConnectionError as error:
                fault = f"cannot be reached, or drops the connection ({type(error.__cause__ or error).__name__})"
            except openai.APIStatusError as error:
                fault = self._fault(unit, error)
                if (asked := _retry_after(error.response.headers)) is not None:
                    self.meter.pause(wait := self._bearable(asked, fault))
            self.meter.count(failures=1)
            if attempt < self.settings.retries and stopped.wait(wait):
                raise Stopped("stopped, because another request failed")
        tried = f"{self.settings.retries + 1} requests" if self.settings.retries else "one request"
        if damaged:
            raise ModelError(f"unit {unit!r}: the server's answer {fault} ({tried})")
        raise ServerFault(
            f"{self.settings.url}: the server {fault} ({tried}); what it answered is kept: when it works, or with more "
            "`retries` or a longer `timeout`, run the same command again to go on"
        )

    def _sent(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        response = self._client.post(path, cast_to=httpx2.Response, body=body)
        return parsed(response.content, streamed=response.headers.get("content-type", "").startswith("text/event-stream"))

    def _fault(self, unit: str, error: "APIStatusError") -> str:
        """What a status means, where trying again may help; raises where it does not."""
        status, said = error.status_code, self._said(error)
        if status in (408, 409, 425, 429) or status >= 500:
            return f"answers with status {status}{said}"
        self.meter.count(failures=1)
        where = self.settings.url
        if 300 <= status < 400:
            raise ServerFault(f"{where}: the server sends us elsewhere (status {status}); give the final address as `url`")
        if status in (401, 402, 403):
            named = self.settings.key_env
            mend = f"check the key in ${named}" if named else "name the key's environment variable as `key_env`"
            raise ServerFault(f"{where}: the server does not let us in (status {status}{said}); {mend}")
        if status in (404, 405):
            raise ServerFault(
                f"{where}: the server knows no such path or model (status {status}{said}); check `url` (as a rule it ends in "
                f"/v1), `model` and `api`"
            )
        raise ModelError(f"unit {unit!r}: the server refuses the request (status {status}{said})")

    def _said(self, error: "APIStatusError") -> str:
        """The server's own words on an error, in one short line."""
        body = error.body
        words = body.get("message", body) if isinstance(body, dict) else body
        text = " ".join(self.redacted(str(words or "")).split())
        # A dummy key is no secret, but an error has no need to show even that.
        text = text if self._key is None else text.replace(self._key, "[key]")
        return f": {text[:_SHOWN]}" if text else ""

    def _bearable(self, seconds: float, fault: str) -> float:
        if seconds > LONGEST_WAIT:
            self.meter.count(failures=1)
            raise ServerFault(
                f"{self.settings.url}: the server {fault} and asks to wait {seconds:,.0f} s; what it answered is kept: run the "
                "same command again then"
            )
        return seconds


def parsed(content: bytes, *, streamed: bool) -> dict[str, Any]:
    """A reply's JSON object.

    Args:
        content: The reply.
        streamed: Whether it is a stream of server-sent events, which some servers send unasked (`transformers serve` 4.57).

    Returns:
        The object; a stream is put together as if it had been one reply.

    Raises:
        Damaged: It is not JSON, not an object, or a stream that broke off.
    """
    if streamed:
        return _assembled(content)
    try:
        value = from_json(content)
    except ValueError as error:
        raise Damaged("is not JSON") from error
    if not isinstance(value, dict):
        raise Damaged("is no JSON object")
    return value


def _assembled(content: bytes) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    parts: list[str] = []
    finished = False
    for line in content.split(b"\n"):
        if not (data := line.strip().removeprefix(b"data:").strip()) or not line.startswith(b"data:") or data == b"[DONE]":
            continue
        event = parsed(data, streamed=False)
        if "error" in event:
            raise Damaged("is a stream that ends in an error")
        whole |= {key: event[key] for key in ("model", "system_fingerprint", "usage") if event.get(key) is not None}
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, dict):
                raise Damaged("is a stream of no completion")
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
            parts.append(text if isinstance(text, str) else "")
            finished = finished or choice.get("finish_reason") is not None
    if not finished:
        raise Damaged("is a stream that broke off")
    return whole | {"choices": [{"message": {"content": "".join(parts)}, "text": "".join(parts)}]}


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key:
        raise EnvironmentFault(
            f"the environment variable {name}, which `key_env` names, is not set; put the vendor's key there"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):  # a header of it would be refused, with the key in the error
        raise EnvironmentFault(
            f"the environment variable {name} holds no key: there is white space in it, or a character that is not ASCII"
        )
    return key


def _retry_after(headers: "httpx2.Headers") -> float | None:
    """Seconds that a reply asks to wait (RFC 9110, section 10.2.3); None where it does not, or not in earnest."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(said)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _http_client(key: str | None, timeout: float) -> "httpx2.Client":
    """A client that adds the key, sends nothing else of the environment's, follows no redirect and reads no endless reply."""
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __init__(self, stream: httpx2.SyncByteStream, request: httpx2.Request, deadline: float) -> None:
            self.stream, self.request, self.deadline = stream, request, deadline

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self.stream:
                size += len(chunk)
                if size > MOST_BYTES:
                    raise TooLarge(f"is larger than {MOST_BYTES // 2**20} MiB")
                if time.monotonic() > self.deadline:
                    raise httpx2.ReadTimeout("the whole reply took too long", request=self.request)
                yield chunk

        def close(self) -> None:
            self.stream.close()

    class Client(httpx2.Client):
        def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:  # noqa: ANN401
            headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
            request.headers = httpx2.Headers(headers | {"accept-encoding": "identity"})
            if key is not None:
                request.headers["authorization"] = f"Bearer {key}"
            deadline = time.monotonic() + timeout
            response = super().send(request, stream=True, **options)
            try:
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise TooLarge("is packed, though that was not asked for")
                response.stream = Bounded(response.stream, request, deadline)  # type: ignore[arg-type]
                if not stream:
                    response.read()
            except BaseException:
                response.close()
                raise
            return response

    return Client(timeout=timeout, follow_redirects=False)
