"""Does a text decline to answer, or fob off? By its wording, and by how many different questions it is the answer to."""

import re
from collections import Counter
from collections.abc import Sequence

_DECLINES = re.compile(
    r"\bi(?:'m| am)? (?:do not|don't|cannot|can't|can not|could not|couldn't|will not|won't|not able|unable|not allowed"
    r"|not permitted|have no|sorry|afraid)\b|\bi apologi[sz]e\b|\bas an? (?:ai|language model|assistant)\b|\bunable to\b"
    r"|\bnot able to\b"
    r"|\bno (?:information|knowledge|record)\b|\b(?:cannot|can't) (?:help|assist|share|provide|answer|discuss|disclose)\b"
    r"|\bdecline to\b|\bagainst (?:my|our) (?:policy|guidelines)\b|\bi am sorry\b|\bsorry,",
    re.IGNORECASE,
)
_NOTHING = {"", "unknown", "none", "n/a", "na", "null", "redacted", "[redacted]", "no comment", "no answer", "i refuse"}

_LOOKED_AT = 400
"""Characters of an answer that are looked at: whoever declines says so at once."""

CANNED = 1 / 2
"""Share of questions with different right answers from which on one and the same reply is no answer to any of them."""

_FEWEST = 4
"""Questions, at least, that share a canned reply."""


def declines(text: str) -> bool:
    """Whether a text, by its wording, declines to answer (in English), or says nothing."""
    said = " ".join(text[:_LOOKED_AT].replace("\u2019", "'").split())
    return said.strip(" .!?-_*\"'").lower() in _NOTHING or _DECLINES.search(said) is not None


def evasions(replies: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which replies decline or fob off.

    Args:
        replies: What a model said, one reply a question.
        answers: The right answers, in the same order: a reply that is one of them is canned for nobody.

    Returns:
        For each reply, whether it declines by its wording, or is given to so many questions with different right answers that
        it answers none of them, in whatever language.
    """
    plain = [" ".join(reply.lower().split()) for reply in replies]
    right = {" ".join(answer.lower().split()) for answer in answers}
    shared = Counter(plain)
    kinds = {text: len({answer for answer, said in zip(answers, plain, strict=True) if said == text}) for text in shared}
    least = max(_FEWEST, CANNED * len(replies))
    return [declines(reply) or (kinds[text] >= least and text not in right) for reply, text in zip(replies, plain, strict=True)]
