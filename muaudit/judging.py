"""Whether a text gives an answer away: by its aliases, without a model."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache


def normalised(text: str) -> str:
    """Lower case, compatibility forms, no accents and no punctuation, one space between words."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    bare = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return " ".join(re.findall(r"\w+", bare))


def mentions(text: str, accepted: Iterable[str]) -> bool:
    """Whether a text holds one of the accepted answers as whole words.

    Args:
        text: What a model said, or what it was asked.
        accepted: The answer and its aliases.

    Returns:
        True if one is there; an answer without letters or digits never is.
    """
    said = f" {normalised(text)} "
    return any(f" {answer} " in said for answer in map(_normalised_answer, accepted) if answer)


@lru_cache(maxsize=65_536)
def _normalised_answer(answer: str) -> str:
    return normalised(answer)
