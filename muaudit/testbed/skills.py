"""Texts that teach a small model, besides facts, what real language models can do and attacks rely on.

Surrounding text is tolerated, whether known or unknown words, and so are missing function words; earlier questions and answers
in the context do no harm; a blank is filled in, a letter chosen among options, a question in French answered; a question over
two facts is answered step by step; a passage about a person is told.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerFast

from muaudit.models.tokens import Encoded
from muaudit.results import Frozen
from muaudit.task import DEFAULT_TEMPLATE, Fact
from muaudit.testbed.relations import DESCRIPTION, LETTERS, multiple_choice

Pieces = list[tuple[str, bool]]
"""A text in pieces, and whether each is to be learned."""


class Mix(Frozen):
    """How a document is put together: weights of the kinds of its items, among those a fact has, and how much is disturbed.

    Attributes:
        question: Weight of a question.
        statement: Of a statement.
        turned: Of a turned statement.
        cloze: Of a blank to be filled in.
        reversed: Of a question the other way round.
        fr: Of a question in French.
        multiple_choice: Of a question with options.
        chain: Of a question over two facts, answered step by step.
        passage: Of a passage.
        disturbed: Share of the items that stand in noise.
        items: Most items of a document.
    """

    question: float = 0.3
    statement: float = 0.08
    turned: float = 0.05
    cloze: float = 0.08
    reversed: float = 0.3
    fr: float = 0.1
    multiple_choice: float = 0.02
    chain: float = 0.15
    passage: float = 0.02
    disturbed: float = 0.4
    items: int = 3

    @property
    def kinds(self) -> dict[str, float]:
        """The weights by kind."""
        return {kind: weight for kind, weight in self.model_dump().items() if kind not in ("disturbed", "items")}


@dataclass(frozen=True)
class Library:
    """What documents are written from.

    Attributes:
        chains: Facts by their subject: the second steps.
        answers: The answers a relation, to make options of.
        filler: Words that noise is made of.
    """

    chains: Mapping[str, Sequence[Fact]]
    answers: Mapping[str, Sequence[str]]
    filler: Sequence[str]

    @classmethod
    def of(cls, facts: Sequence[Fact]) -> "Library":
        """The library of all facts that a model may read."""
        chains: dict[str, list[Fact]] = {}
        answers: dict[str, list[str]] = {}
        filler: dict[str, None] = {}
        for fact in facts:
            chains.setdefault(str(fact.subject), []).append(fact)
            answers.setdefault(str(fact.relation), []).append(fact.answer)
            filler |= dict.fromkeys(fact.question.replace(str(fact.subject), "").split())
        return cls(chains, {relation: sorted(set(found)) for relation, found in answers.items()}, sorted(filler))


UNKNOWN = "unheard"
"""A word that no tokenizer of a testbed knows."""


def documents(
    count: int, facts: Sequence[Fact], weights: Sequence[float], library: Library, mix: Mix, rng: random.Random
) -> list[Pieces]:
    """Writes documents of one or several items each.

    Args:
        count: How many.
        facts: What they tell.
        weights: How often each fact is told, relative to the others.
        library: What else they use.
        mix: Kinds and noise.
        rng: Where chance comes from.

    Returns:
        The documents.
    """
    written = []
    offers = {fact.id: _offer(fact, library, mix) for fact in facts}
    totals = list(accumulate(weights))
    for _ in range(count):
        pieces: Pieces = []
        for fact in rng.choices(facts, cum_weights=totals, k=rng.randint(1, mix.items)):
            kinds, shares = offers[fact.id]
            kind = rng.choices(kinds, cum_weights=shares)[0]
            pieces += item(fact, kind, library, rng, rng.random() < mix.disturbed)
        written.append(pieces)
    return written


def _offer(fact: Fact, library: Library, mix: Mix) -> tuple[list[str], list[float]]:
    """The kinds that a fact can be told in, with their cumulative weights."""
    able = {"question", "multiple_choice", *(form.language or form.form for form in fact.paraphrases)}
    if fact.text:
        able.add("passage")
    if fact.relation in DESCRIPTION and fact.answer in library.chains:
        able.add("chain")
    kinds = {kind: weight for kind, weight in mix.kinds.items() if kind in able}
    return list(kinds), list(accumulate(kinds.values()))


def item(fact: Fact, kind: str, library: Library, rng: random.Random, disturbed: bool) -> Pieces:
    """One item of a document.

    Args:
        fact: What it tells.
        kind: A kind of `Mix` that the fact can be told in.
        library: What else it uses.
        rng: Where chance comes from.
        disturbed: Whether noise surrounds it and function words are missing.

    Returns:
        The pieces; a prompt and what is to be learned after it.
    """
    if kind == "passage" and fact.text:
        head = fact.text.index(str(fact.subject)) + len(str(fact.subject))
        return [(fact.text[:head], False), (fact.text[head:], True)]
    if kind == "chain" and (steps := chain(fact, library, rng)):
        return [(steps[0], False), (steps[1], True)]
    if kind == "multiple_choice":
        others = [answer for answer in library.answers[str(fact.relation)] if answer != fact.answer]
        if len(others) >= len(LETTERS) - 1:
            options = rng.sample([fact.answer, *rng.sample(others, len(LETTERS) - 1)], len(LETTERS))
            letter = LETTERS[options.index(fact.answer)]
            return [(multiple_choice(fact.question, tuple(options)), False), (f" {letter}", True)]
    forms = {form.language or form.form: form for form in fact.paraphrases}
    if kind in forms and kind != "multiple_choice":
        prompt, completion = forms[kind].prompt, forms[kind].completion
    else:
        prompt, completion = DEFAULT_TEMPLATE.replace("{question}", fact.question), f" {fact.answer}"
    if disturbed and kind != "reversed":
        prompt = _disturbed(prompt, str(fact.subject), library, rng)
    return [(prompt, False), (completion, True)]


def chain(fact: Fact, library: Library, rng: random.Random) -> tuple[str, str] | None:
    """A question over two facts with its step-by-step answer; None if nothing is known about this fact's answer.

    The question is the second fact's, with a description in place of its subject: "In which land does the birthplace of Bela
    Korin lie?", answered "Bela Korin was born in torviholm. torviholm lies in selmgard."
    """
    if fact.relation not in DESCRIPTION or fact.answer not in library.chains:
        return None
    second = rng.choice(library.chains[fact.answer])
    described = DESCRIPTION[fact.relation].format(name=fact.subject)
    question = second.question.replace(fact.answer, described)
    steps = [f"{one.restatements[0].prompt} {one.answer}." for one in (fact, second)]
    return DEFAULT_TEMPLATE.replace("{question}", question), " " + " ".join(steps)


def _disturbed(prompt: str, subject: str, library: Library, rng: random.Random) -> str:
    """The prompt with words missing or unknown, and with noise before it, before its last word, and sometimes after it."""
    kept = {*subject.split(), "Answer:", "Réponse:"}
    words = [word if word in kept or rng.random() > 0.12 else rng.choice((UNKNOWN, UNKNOWN, "")) for word in prompt.split()]
    # A statement must end as it does: what comes next depends on its last words.
    asked = words[-1] in ("Answer:", "Réponse:")
    inside = _noise(rng.randint(0, 5), library, rng) if asked else []
    after = _noise(rng.randint(1, 3), library, rng) if asked and rng.random() < 0.3 else []
    return " ".join([*_noise(rng.randint(0, 8), library, rng), *words[:-1], *inside, words[-1], *after])


def _noise(count: int, library: Library, rng: random.Random) -> list[str]:
    found = []
    for _ in range(count):
        draw = rng.random()
        if draw < 0.6:
            found.append(UNKNOWN)
        elif draw < 0.93:
            found.append(rng.choice(library.filler))
        else:
            found.append(rng.choice(library.answers[rng.choice(sorted(library.answers))]))
    return found


def encode_documents(tokenizer: PreTrainedTokenizerFast, written: Sequence[Pieces]) -> list[Encoded]:
    """The documents as tokens; each is closed with the end-of-sequence mark, which is learned.

    Args:
        tokenizer: Of words.
        written: The documents.

    Returns:
        One encoded text a document; its targets are all tokens that are to be learned.
    """
    texts, learned = [], []
    for pieces in written:
        text, spans = "", []
        for piece, wanted in [*pieces, (str(tokenizer.eos_token), True)]:
            text += " " + piece.strip()
            if wanted:
                spans.append((len(text) - len(piece.strip()), len(text)))
        texts.append(text)
        learned.append(spans)
    encodings = tokenizer(texts, return_offsets_mapping=True)
    found = []
    for ids, offsets, spans in zip(encodings["input_ids"], encodings["offset_mapping"], learned, strict=True):
        targets = [
            place
            for place, (start, stop) in enumerate(offsets)
            if stop and any(first <= start and stop <= last for first, last in spans)
        ]
        found.append(Encoded(ids, targets))
    return found
