"""Other wordings of a question: synonyms of ours, and TextAttack's search for a wording that brings an answer back.

TextAttack comes with the extra `text`, takes seconds to import, and by itself would download word lists, write into the user's
home, and change environment and logging. Here it is imported on first use only, without network, and leaves nothing behind.
"""

import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from muaudit.errors import EnvironmentFault

Search = Literal["greedy", "beam"]

Likelihood = Callable[[Sequence[str]], Sequence[float]]
"""How likely the answer is after each of some wordings, in [0, 1]; asked for many at once."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "animal": ("creature", "pet"), "big": ("large",), "book": ("published work", "volume"), "born": ("brought into the world",),
    "child": ("offspring",), "children": ("offspring",), "city": ("town",), "country": ("nation",), "die": ("pass away",),
    "died": ("passed away",), "eat": ("consume",), "famous": ("renowned",), "film": ("movie",), "food": ("dish",),
    "how": ("in what way",), "husband": ("spouse",), "job": ("occupation", "profession"), "keep": ("own",), "keeps": ("owns",),
    "like": ("enjoy", "love"), "likes": ("enjoys", "loves"), "live": ("reside",), "lives": ("resides",), "made": ("created",),
    "married": ("wedded",), "name": ("title",), "play": ("perform",), "played": ("portrayed", "performed"),
    "plays": ("performs",), "stone": ("gem",), "studied": ("learned",), "study": ("learn",), "title": ("name",),
    "trade": ("profession", "occupation"), "wear": ("carry",), "wears": ("carries",), "what": ("which",),
    "when": ("at what time", "in which year"), "where": ("in which place", "at what place"), "which": ("what",),
    "who": ("which person",), "whose": ("which person's",), "why": ("for what reason",), "wife": ("spouse",),
    "win": ("receive",), "won": ("was awarded", "received"), "work": ("labour",), "works": ("labours",), "write": ("compose",),
    "written": ("composed",), "wrote": ("composed", "authored"), "year": ("calendar year",),
}  # fmt: skip
"""Synonyms of the words that questions are made of: our own list, meant to be read, not to be complete."""


def synonyms(word: str) -> list[str]:
    """A word's synonyms in `SYNONYMS`, capitalised as the word is."""
    found = SYNONYMS.get(word.casefold(), ())
    return [other[0].upper() + other[1:] if word[:1].isupper() else other for other in found]


def with_synonyms(question: str, subject: str | None = None) -> str:
    """A question with every word that has a synonym replaced by its first one.

    Args:
        question: The question.
        subject: Its words are left as they are.

    Returns:
        The question in other words; unchanged where none of its words has a synonym.
    """
    kept = set((subject or "").split())
    words = []
    for word in question.split():
        core = word.rstrip("?.,;:!")
        other = [] if core in kept else synonyms(core)
        words.append(other[0] + word[len(core) :] if other else word)
    return " ".join(words)


@dataclass(frozen=True)
class Hunt:
    """What is hunted for, and within which bounds.

    Attributes:
        question: Where the search starts.
        protected: Phrases whose words must stay, such as the subject's name.
        forbidden: Answers that no wording may hold.
        vocabulary: Words that may be inserted.
        seed: Of whatever the search draws.
    """

    question: str
    protected: tuple[str, ...]
    forbidden: tuple[str, ...]
    vocabulary: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Rewording:
    """The best wording that a search asked for.

    Attributes:
        question: The wording; the question itself where no other was better.
        likelihood: How likely the answer is after it, in [0, 1].
        queries: How many wordings were asked for, the question itself among them; never more than the budget.
    """

    question: str
    likelihood: float
    queries: int


def available() -> bool:
    """Whether TextAttack is installed; it is not imported."""
    return find_spec("textattack") is not None


def search(hunt: Hunt, likelihood: Likelihood, *, method: Search, query_budget: int, success: float) -> Rewording:
    """Searches for the wording of a question after which its answer is most likely.

    Args:
        hunt: The question and the bounds.
        likelihood: Scores wordings; called with as many at once as the search can name.
        method: "greedy" changes word after word, in the order of how much deleting each one helps (word importance, Jin et al.
            2020); "beam" keeps the best four wordings of each round.
        query_budget: Most wordings that are asked for, at least 2.
        success: The search ends at the first likelihood of at least this.

    Returns:
        The best wording that was asked for; the same arguments give the same wording.

    Raises:
        EnvironmentFault: TextAttack is missing, or does not import.
    """
    parts = _textattack_parts()
    with _seeded(hunt.seed):
        found: Rewording = parts.search(hunt, likelihood, method, query_budget, success)
    return found


@cache
def _textattack_parts() -> ModuleType:
    """`muaudit.language.rewording_search`, which imports TextAttack."""
    if not available():
        raise EnvironmentFault(
            "the search for rewordings needs TextAttack, which is not installed; run pip install 'muaudit[text]', "
            'or set search = "none"'
        )
    try:
        with _seeded(0), _undisturbed():
            from muaudit.language import rewording_search
    except (ImportError, LookupError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"TextAttack is installed but does not import ({type(error).__name__}: {reason}); run pip install "
            "'muaudit[text]' in a fresh environment, or set search = \"none\""
        ) from error
    logging.getLogger("textattack.shared.utils.install").setLevel(logging.ERROR)
    return rewording_search


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder for whatever TextAttack and its dependencies write; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="muaudit-textattack-")
    # TextAttack takes this file for the sign that its downloads are done, and so downloads nothing.
    (Path(folder.name) / "post_install_check_3").touch()
    return folder


@contextmanager
def _undisturbed() -> Iterator[None]:
    """For the import: nothing is downloaded, what is written goes to a scratch folder, environment and logging are restored."""
    environment, loggers = dict(os.environ), _loggers()
    import datasets  # noqa: F401 - before the environment changes, so that its cache stays where the user has it
    import nltk
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    folder = Path(_scratch().name)
    stopwords = folder / "nltk" / "corpora" / "stopwords" / "english"
    stopwords.parent.mkdir(parents=True, exist_ok=True)
    stopwords.write_text("\n".join(sorted(ENGLISH_STOP_WORDS)) + "\n", encoding="utf-8")
    os.environ |= {"TA_CACHE_DIR": str(folder), "TA_DEVICE": "cpu", "FLAIR_CACHE_ROOT": str(folder), "FLAIR_DEVICE": "cpu"}
    nltk.data.path.append(str(folder / "nltk"))  # last: a list that the user has goes first
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        nltk.data.path.remove(str(folder / "nltk"))
        for logger, disabled in loggers.items():
            logger.disabled = disabled  # TextAttack's logging configuration switches all others off
        os.environ.clear()
        os.environ.update(environment)


def _loggers() -> dict[logging.Logger, bool]:
    known = logging.root.manager.loggerDict.values()
    return {logger: logger.disabled for logger in known if isinstance(logger, logging.Logger)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """TextAttack draws from the global generators: they are seeded inside, and restored after."""
    ours, numpys = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
