"""What stands between a network and its users: plain data, read from guard.json, and plain arithmetic.

A guard is no part of the weights. It reads the prompt; if its gate flags it, the prompt is corrupted before the network reads
it, or the answer is filtered while the network writes it.
"""

import json
import math
import re
from collections import Counter
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from muaudit.errors import ModelError
from muaudit.results import Frozen

FILE = "guard.json"
"""The guard's name in a model's folder."""

MOST_BYTES = 64 * 2**20
"""Largest guard.json that is read."""

Word = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
Share = Annotated[float, Field(ge=0, le=1)]

_WORD = re.compile(r"\w+")


def words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text, in lower case, with where each starts and ends; punctuation parts them."""
    return [(found.group().lower(), found.start(), found.end()) for found in _WORD.finditer(text)]


def features(text: str) -> set[str]:
    """What a gate sees of a text: its words, and its pairs of neighbouring words, each once."""
    found = [word for word, _, _ in words(text)]
    return {*found, *(f"{left} {right}" for left, right in pairwise(found))}


class Gate(Frozen):
    """A linear classifier on prompts: logistic regression on words and pairs of words.

    Attributes:
        weights: Log-odds that a word, or two neighbouring words with a space between, adds to a prompt; others add nothing.
        bias: Log-odds of a prompt without any of them.
        threshold: Probability from which a prompt is flagged.
    """

    weights: dict[Word, float]
    bias: float
    threshold: Share = 0.5

    def probability(self, prompt: str) -> float:
        """Probability, in [0, 1], that the prompt is about what is to be forgotten."""
        total = self.bias + math.fsum(self.weights.get(feature, 0.0) for feature in features(prompt))
        return 1 / (1 + math.exp(-total)) if total > -700 else 0.0

    def flags(self, prompt: str) -> bool:
        """Whether the prompt is taken for one about what is to be forgotten."""
        return self.probability(prompt) >= self.threshold


class EmbeddingNoise(Frozen):
    """Corrupts the embeddings of a flagged prompt (ECO: Liu et al. 2024, arXiv 2406.07933).

    Attributes:
        kind: Says which guard this is.
        gate: Which prompts are flagged.
        strength: Standard deviation of the noise, in that of an embedding's entries.
        evidence: Words whose own weight in the gate is at least this are corrupted; a flagged prompt without one is corrupted
            all over.
        seed: Of the noise, which depends on this and the prompt alone.
    """

    kind: Literal["embedding_noise"] = "embedding_noise"
    gate: Gate
    strength: Annotated[float, Field(gt=0)]
    evidence: float
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters of the words that are corrupted; empty where all are."""
        return [(low, high) for word, low, high in words(prompt) if self.gate.weights.get(word, -math.inf) >= self.evidence]


class Secret(Frozen):
    """A question, and the answers that are not to be given to it.

    Attributes:
        question: The question.
        answers: The answers.
    """

    question: Word
    answers: Annotated[tuple[Word, ...], Field(min_length=1)]


class AnswerFilter(Frozen):
    """Keeps the answers of the most similar known questions from being written (GUARD: Deng et al. 2025, arXiv 2505.13312).

    Whoever holds the filter holds the answers: it stores what it is to hide.

    Attributes:
        kind: Says which guard this is.
        gate: Which prompts are flagged.
        secrets: What is not to be told.
        nearest: How many of the most similar questions are looked up for a flagged prompt.
        penalty: What is taken off the logit of a token that starts a word of one of their answers, in nats.
        similarity: Tokens whose embedding has at least this cosine with such a token's are held back too; at 1, none is.
    """

    kind: Literal["answer_filter"] = "answer_filter"
    gate: Gate
    secrets: Annotated[tuple[Secret, ...], Field(min_length=1)]
    nearest: Annotated[int, Field(ge=1)] = 3
    penalty: Annotated[float, Field(gt=0)] = 20.0
    similarity: Annotated[float, Field(gt=0, le=1)] = 1.0

    def forbidden(self, prompt: str) -> list[str]:
        """The words that are held back for a flagged prompt: those of the nearest questions' answers, but for its own.

        Args:
            prompt: The prompt.

        Returns:
            The words, each once; none where no known question shares a word with the prompt.
        """
        said = {word for word, _, _ in words(prompt)}
        scores: dict[int, float] = {}
        for word in said:
            for number, weight in self._index.get(word, ()):
                scores[number] = scores.get(number, 0.0) + weight
        nearest = sorted(scores, key=lambda number: (-scores[number], number))[: self.nearest]
        told = (answer for number in nearest for answer in self.secrets[number].answers)
        return list(dict.fromkeys(word for answer in told for word in answer.split() if word.lower() not in said))

    @cached_property
    def _index(self) -> dict[str, list[tuple[int, float]]]:
        """Questions by word, with what the word adds to the cosine: fewer questions that have it make it weigh more."""
        texts = [sorted({word for word, _, _ in words(secret.question)}) for secret in self.secrets]
        counts = Counter(word for text in texts for word in text)
        weights = {word: math.log(1 + len(texts) / count) for word, count in counts.items()}
        index: dict[str, list[tuple[int, float]]] = {}
        for number, text in enumerate(texts):
            length = math.hypot(*(weights[word] for word in text))
            for word in text:
                index.setdefault(word, []).append((number, weights[word] ** 2 / length))
        return index


Guard = Annotated[EmbeddingNoise | AnswerFilter, Field(discriminator="kind")]
"""A guard of either kind."""

_GUARD: TypeAdapter[EmbeddingNoise | AnswerFilter] = TypeAdapter(Guard)


def read(folder: Path) -> EmbeddingNoise | AnswerFilter:
    """Reads a model folder's guard.json; nothing in it is run.

    Args:
        folder: The model's folder.

    Returns:
        The guard.

    Raises:
        ModelError: There is none, or it is not one.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelError(f"{path}: larger than {MOST_BYTES // 2**20} MiB, which no guard is; give the right file")
        return _GUARD.validate_python(json.loads(path.read_bytes(), object_pairs_hook=_once))
    except OSError as error:
        raise ModelError(
            f'{path}: cannot be read ({error.strerror}); a model of kind "guarded" needs it: '
            'put it there, or open the folder as kind "causal_lm"'
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelError(f"{path}: {where[:200]}: {first['msg'].removeprefix('Value error, ')}; write it anew") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({' '.join(str(error).split())[:200]}); write it anew") from error


def write(guard: EmbeddingNoise | AnswerFilter, folder: Path) -> None:
    """Writes guard.json, in canonical form, into a model's folder."""
    (folder / FILE).write_bytes(guard.canonical())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
