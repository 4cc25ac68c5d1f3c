"""What a server's reply says, once every part of it that is used was looked at; anything else is refused by name."""

from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muaudit.models import TextScore
from muaudit.results import Frozen

_NOISE = 1e-3
"""How far above 0 rounding may put a log-probability."""

_SHARED = 4
"""Most characters that several tokens may share one offset for: the pieces of one character, with a space before it."""

_NAME = 120
"""Characters of a server's name for its model that are kept."""


class Rubbish(Exception):
    """A reply that is JSON and no answer; says what is wrong with it."""


class Answer(Frozen):
    """An answer as it is kept.

    Attributes:
        text: What the model said; with an echo, the prompt first.
        offsets: With an echo: where each token starts in the text.
        log_probabilities: With an echo: each token's natural log-probability; None for the first.
        firsts: With an echo: whether each token was the model's first choice; None where the server does not say.
        prompt_tokens: As the server counted; None where it did not.
        completion_tokens: The same, of what it generated.
        served: What the server says that it answered with: its model's name and fingerprint.
        asked: When, in UTC.
    """

    text: str
    offsets: tuple[int, ...] = ()
    log_probabilities: tuple[float | None, ...] = ()
    firsts: tuple[bool | None, ...] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    served: str | None = None
    asked: str


class _Part(BaseModel):
    """A part of a reply: what is not used is not looked at, NaN is refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class _Message(_Part):
    content: str | None = None
    refusal: str | None = None


class _Logprobs(_Part):
    tokens: list[str]
    token_logprobs: list[float | None]
    text_offset: list[int]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(_Part):
    message: _Message | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(_Part):
    prompt_tokens: Annotated[int, Field(ge=0, lt=2**40)] | None = None
    completion_tokens: Annotated[int, Field(ge=0, lt=2**40)] | None = None


class _Reply(_Part):
    choices: list[_Choice]
    usage: _Usage | None = None
    model: str | None = None
    system_fingerprint: str | None = None


class _WithoutLogprobs(_Choice):
    logprobs: Any = None
    """In a chat they have another form, and nobody asked for them."""


class _TextReply(_Reply):
    choices: list[_WithoutLogprobs]  # type: ignore[assignment]


def read(reply: dict[str, Any], *, chat: bool, asked: str) -> Answer:
    """Reads a generated answer.

    Args:
        reply: The reply's JSON object.
        chat: Whether it is a chat completion's.
        asked: When it was asked for.

    Returns:
        The answer; one that a filter of the vendor's emptied is an empty text, since that is what a user would get.

    Raises:
        Rubbish: The reply is no answer.
    """
    whole, choice = _checked(reply, _TextReply)
    text = choice.text
    if chat:
        if choice.message is None:
            raise Rubbish("has no message")
        text = choice.message.content if choice.message.content is not None else choice.message.refusal
    if text is None and choice.finish_reason == "content_filter":
        text = ""
    if text is None:
        raise Rubbish("has no text")
    return _kept(whole, text, asked)


def read_echo(reply: dict[str, Any], sent: str, *, asked: str) -> Answer:
    """Reads an echoed prompt with its log-probabilities.

    Args:
        reply: The reply's JSON object.
        sent: What was sent as the prompt.
        asked: When it was asked for.

    Returns:
        The answer, with the tokens of `sent` alone: what the server put before it (a beginning-of-sequence mark) and
        generated after it is left out, but for a mark's place, where no token is scored.

    Raises:
        Rubbish: The reply is no echo of what was sent, or its numbers do not fit together.
    """
    whole, choice = _checked(reply, _Reply)
    found = choice.logprobs
    if found is None:
        raise Rubbish("has no log-probabilities")
    if choice.text is None or not found.tokens:
        raise Rubbish("has no tokens")
    if not len(found.tokens) == len(found.token_logprobs) == len(found.text_offset):
        raise Rubbish("counts tokens, log-probabilities and offsets differently")
    if found.top_logprobs is not None and len(found.top_logprobs) != len(found.tokens):
        raise Rubbish("counts tokens and first choices differently")
    if any(value is not None and value > _NOISE for value in found.token_logprobs):
        raise Rubbish("has a log-probability above 0")
    before = _mark(found, sent)
    if not (choice.text.startswith(sent) or choice.text[before:].startswith(sent)):
        raise Rubbish("does not echo the prompt")
    # A mark has no span in what was sent, as with a tokenizer's offsets.
    offsets = [max(0, start - before) for start in found.text_offset]
    if min(found.text_offset) < 0 or offsets[0] != 0 or any(after < start for start, after in pairwise(offsets)):
        raise Rubbish("has text offsets that do not ascend from the start of the text")
    kept = sum(start < len(sent) for start in offsets)
    starts = [*offsets[1:kept], len(sent)]
    if any(
        start == after and next(one for one in starts if one > start) - start > _SHARED for start, after in pairwise(starts)
    ):
        raise Rubbish("has several tokens share one text offset")
    return _kept(
        whole,
        sent,
        asked,
        offsets=tuple(offsets[:kept]),
        log_probabilities=tuple(found.token_logprobs[:kept]),
        firsts=_firsts(found, kept),
    )


def score(answer: Answer, prompt: str) -> TextScore:
    """The completion's score in an echo of prompt and completion.

    A token belongs to the completion if it reaches beyond the prompt, as with a local tokenizer. A token reaches to where the
    next one starts that does not start with it: pieces of one character share its place.

    Args:
        answer: From `read_echo`.
        prompt: What stands before the completion.

    Returns:
        Its score.

    Raises:
        Rubbish: No token reaches beyond the prompt, or one that does has no log-probability.
    """
    stops, stop = [0] * len(answer.offsets), len(answer.text)
    for place in reversed(range(len(answer.offsets))):
        if place + 1 < len(answer.offsets) and answer.offsets[place + 1] > answer.offsets[place]:
            stop = answer.offsets[place + 1]
        stops[place] = stop
    targets = [place for place, stop in enumerate(stops) if place and stop > len(prompt)]
    values = [value for place in targets if (value := answer.log_probabilities[place]) is not None]
    if not targets:
        raise Rubbish("has no token for the completion")
    if len(values) != len(targets):
        raise Rubbish("leaves out the log-probability of a token of the completion")
    firsts = [answer.firsts[place] for place in targets] if answer.firsts is not None else [None]
    hits = None if None in firsts else tuple(bool(first) for first in firsts)
    return TextScore(sum(values), len(values), hits)


def _checked(reply: dict[str, Any], form: type[_Reply]) -> tuple[_Reply, _Choice]:
    try:
        whole = form.model_validate(reply)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Rubbish(f"has no usable {where!r} ({first['msg']})"[: _NAME * 2]) from None
    if len(whole.choices) != 1:
        raise Rubbish(f"has {len(whole.choices)} choices where one was asked for")
    return whole, whole.choices[0]


def _kept(whole: _Reply, text: str, asked: str, **echo: Any) -> Answer:  # noqa: ANN401 - fields of an echo, checked there
    named = " ".join(part[:_NAME] for part in (whole.model, whole.system_fingerprint) if part)
    usage = whole.usage or _Usage()
    return Answer(
        text=text,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        served=named or None,
        asked=asked,
        **echo,
    )


def _mark(found: _Logprobs, sent: str) -> int:
    """How many characters the server's own mark takes up before what was sent: some count it into the offsets."""
    first = found.tokens[0]
    if len(found.tokens) < 2 or (sent.startswith(first) and first):
        return 0
    return found.text_offset[1] if found.text_offset[1] == len(first) and sent.startswith(found.tokens[1]) else 0


def _firsts(found: _Logprobs, kept: int) -> tuple[bool | None, ...] | None:
    """Whether each token is as probable as the best of those listed; None where none are."""
    if found.top_logprobs is None:
        return None
    pairs = zip(found.token_logprobs[:kept], found.top_logprobs[:kept], strict=True)
    return tuple(None if value is None or not top else value >= max(top.values()) for value, top in pairs)
