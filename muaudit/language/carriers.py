"""Which value vectors carry a concept: single ones and sets are tried, by what their absence costs it and the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from muaudit.errors import NotApplicable, UsageError
from muaudit.language.concepts import Concept, Probe, words_of
from muaudit.language.lineage import Opened
from muaudit.language.value_vectors import Place, attributed, disturbed, scan, without
from muaudit.models.tokens import Encoded

HALVED, SPARED = 0.5, 0.1
"""A single value vector carries a concept if without it the concept's answers lose at least the first share of their
probability, and those of other concepts less than the second."""

SPECIFIC = 4.0
"""A set of vectors carries a concept if it costs the concept at least so many times what it costs the others."""

KNOWN = float(np.log(2))
"""Log-odds of the right answer against its rivals below which the original does not know a concept."""

OTHERS = 12
"""Answers of other concepts on which a concept's vectors are tried."""


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        candidates: So many of the scan's first vectors, one by one.
        sets: Sizes of sets, ascending.
        carries: Share of a concept's answer probability that a set must cost.
        noise: Standard deviation of the noise, in units of the root mean square of the layer's down projection.
    """

    candidates: int
    sets: Sequence[int]
    carries: float
    noise: float


def log_odds(log_probabilities: torch.Tensor, sizes: Sequence[int]) -> NDArray[np.float64]:
    """Log-odds of right completions against the mean of their rivals.

    Args:
        log_probabilities: Mean log-probability a token of each completion, the right one first, probe after probe.
        sizes: Completions a probe, at least 2.

    Returns:
        One number a probe: log p(right) - log mean p(rivals).
    """
    values = log_probabilities.numpy().astype(float)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return np.array([part[0] - (np.logaddexp.reduce(part[1:]) - np.log(len(part) - 1)) for part in parts])


@dataclass(frozen=True)
class Carrier:
    """Value vectors and what their absence costs: shares of answer probability of the concept and of the others."""

    places: list[Place]
    own: float
    others: float


def known_forms(opened: Opened, concepts: Sequence[Concept]) -> tuple[list[Concept], list[str]]:
    """The concepts without the probes of forms in which the original is much less sure than in its best, and these forms."""
    probes = [probe for concept in concepts for probe in concept.probes]
    texts = opened.model.encode([probe.queries()[0] for probe in probes])
    sure: dict[str, list[float]] = {}
    for probe, score in zip(probes, without(opened.anatomy, texts, [()] * len(texts)).exp().tolist(), strict=True):
        sure.setdefault(probe.form, []).append(score)
    means = {form: float(np.mean(scores)) for form, scores in sure.items()}
    unknown = [form for form, mean in means.items() if mean < max(means.values()) / 2]
    kept = [[probe for probe in concept.probes if probe.form not in unknown] for concept in concepts]
    return [
        concept.model_copy(update={"probes": tuple(some)}) for concept, some in zip(concepts, kept, strict=True) if some
    ], unknown


class Search:
    """Looks in the original for vectors that carry concepts."""

    def __init__(self, trial: Trial, opened: Opened, concepts: Sequence[Concept], rng: np.random.Generator) -> None:
        self.trial, self.anatomy, self.concepts = trial, opened.anatomy, concepts
        rights = [[probe.queries()[0] for probe in concept.probes] for concept in concepts]
        self.owner = [number for number, right in enumerate(rights) for _ in right]
        self.texts: list[Encoded] = opened.model.encode([query for right in rights for query in right])
        self.clean = self._scores(range(len(self.texts)), [()] * len(self.texts))
        self.mine = [[text for text, owner in enumerate(self.owner) if owner == number] for number in range(len(concepts))]
        self.theirs = [sorted(rng.permutation(self._not(number))[:OTHERS].tolist()) for number in range(len(concepts))]
        self.tokens = _tokens(opened, concepts)
        probes = [probe for concept in concepts for probe in concept.probes]
        self.known = self._known(opened, probes)
        self.tried: list[list[Carrier]] = [[] for _ in concepts]

    def _not(self, concept: int) -> list[int]:
        return [text for text, owner in enumerate(self.owner) if owner != concept]

    def _known(self, opened: Opened, probes: Sequence[Probe]) -> list[bool]:
        """Whether the original tells each concept's answers from wrong ones."""
        texts = opened.model.encode([query for probe in probes for query in probe.queries()])
        odds = log_odds(without(self.anatomy, texts, [()] * len(texts)), [len(probe.completions) for probe in probes])
        return [bool(odds[mine].mean() > KNOWN) for mine in self.mine]

    def _scores(self, texts: Sequence[int], ablated: Sequence[Sequence[Place]]) -> NDArray[np.float64]:
        chosen = [self.texts[text] for text in texts]
        return without(self.anatomy, chosen, ablated).numpy().astype(float)

    def _costs(self, trials: Sequence[tuple[int, list[Place]]], texts: Sequence[Sequence[int]]) -> list[float]:
        """The share of answer probability (its geometric mean) that each trial's vectors cost some texts of its concept."""
        if not trials:
            return []
        flat = [text for concept, _ in trials for text in texts[concept]]
        found = self._scores(flat, [places for concept, places in trials for _ in texts[concept]])
        stops = np.cumsum([len(texts[concept]) for concept, _ in trials])[:-1]
        clean = np.split(self.clean[flat], stops)
        return [float(1 - np.exp((new - old).mean())) for new, old in zip(np.split(found, stops), clean, strict=True)]

    def _tried(self, trials: list[tuple[int, list[Place]]], least: float) -> None:
        """Tries vectors; whether others are spared is looked at only where the concept itself is hit."""
        own = self._costs(trials, self.mine)
        hit = [trial for trial, cost in zip(trials, own, strict=True) if cost >= least]
        others = iter(self._costs(hit, self.theirs))
        for (concept, places), cost in zip(trials, own, strict=True):
            self.tried[concept].append(Carrier(places, cost, next(others) if cost >= least else 0.0))

    def carriers(self) -> list[Carrier | None]:
        """Each concept's vectors; None where nothing carries it."""
        known = [number for number, knows in enumerate(self.known) if knows]
        given = [number for number in known if self.concepts[number].vector is not None]
        self._tried([(number, [self._given(number)]) for number in given], self.trial.carries)
        found: list[Carrier | None] = [None] * len(self.concepts)
        for number in given:
            found[number] = next((one for one in self.tried[number] if self._carries(one)), None)
        open_ = [number for number in known if number not in set(given)]
        if not open_:
            return found
        hits = scan(self.anatomy, [self.tokens[number] for number in open_], self.trial.candidates)
        singles = [(number, [hit.place]) for number, one in zip(open_, hits, strict=True) for hit in one]
        self._tried(singles, HALVED)
        for number in open_:
            alone = [one for one in self.tried[number] if one.own >= HALVED and one.others < SPARED]
            found[number] = max(alone, key=lambda one: one.own - one.others, default=None)
        spread = [number for number in open_ if found[number] is None]
        if spread and self.trial.sets:
            places = attributed(self.anatomy, self.texts, self.owner, self.trial.sets[-1])
            trials = [(number, places[number][:size]) for number in spread for size in self.trial.sets]
            self._tried(trials, self.trial.carries)
            for number in spread:
                sets = [one for one in self.tried[number] if len(one.places) > 1 and self._carries(one)]
                found[number] = max(sets, key=lambda one: one.own - one.others, default=None)
        return found

    def _carries(self, one: Carrier) -> bool:
        return one.own >= self.trial.carries and one.others * SPECIFIC <= one.own

    def _given(self, number: int) -> "Place":
        layers, _, inner = self.anatomy.shape
        place = Place(*(self.concepts[number].vector or (0, 0)))
        if place.layer >= layers or place.column >= inner:
            raise UsageError(
                f"concept {self.concepts[number].name!r} names layer {place.layer}, column "
                f"{place.column}, and the original has {layers} layers of {inner}: the file belongs to another model"
            )
        return place

    def told(self, carriers: Sequence[Carrier | None]) -> str:
        """What was found, in a sentence."""
        there = [one for one in carriers if one is not None]
        single = sum(len(one.places) == 1 for one in there)
        sizes = sorted({len(one.places) for one in there} - {1})
        spread = f", {len(there) - single} by a set of {', '.join(map(str, sizes))}" if sizes else ""
        return (
            f"{single} of {len(self.concepts)} concepts are carried by one value vector{spread}; without them the answers lose "
            f"{np.mean([one.own for one in there]):.0%} of their probability, those of other concepts "
            f"{np.mean([one.others for one in there]):.0%}"
        )

    def told_failure(self) -> str:
        """Why concepts could not be measured, with the figures."""
        if unknown := self.known.count(False):
            start = f"the original does not tell the right answers of {unknown} of {len(self.known)} concepts from wrong ones; "
        else:
            start = ""
        best = [max(tried, key=lambda one: one.own) for tried in self.tried if tried]
        end = ""
        if best:
            end = (
                f": the strongest cost it {np.mean([one.own for one in best]):.0%} of its answers' probability in the mean, "
                f"where {self.trial.carries:.0%} and {SPECIFIC:g} times what it costs the others would count"
            )
        return f"{start}no value vector and no set of up to {max(self.trial.sets, default=1)} carries the concept{end}"

    def told_noise(self, chosen: Sequence[int], places: Sequence[list[Place]], seed: int) -> str:
        """ConceptVectors' own validation, noise on the vectors, in a sentence."""
        generator, costs = torch.Generator().manual_seed(seed), []
        for number, where in zip(chosen, places, strict=True):
            rows = [*self.mine[number], *self.theirs[number]]
            scores = disturbed(self.anatomy, [self.texts[row] for row in rows], where, self.trial.noise, generator)
            loss = self.clean[rows] - scores.numpy().astype(float)
            own = len(self.mine[number])
            costs.append((loss[:own].mean(), loss[own:].mean()))
        own_loss, other_loss = np.mean(costs, axis=0)
        return (
            f"noise of {self.trial.noise:g} times the weights' root mean square on these vectors costs the concepts "
            f"{own_loss:.2f} nats a token and others {other_loss:.2f}"
        )


def _tokens(opened: Opened, concepts: Sequence[Concept]) -> list[list[int]]:
    """The ids of each concept's tokens: those of its answers, and words of it that are tokens by themselves.

    Raises:
        NotApplicable: A concept has none.
    """
    spelled: dict[str, list[int]] = {}
    vocabulary = opened.model.vocabulary()
    for token, text in enumerate(vocabulary):
        words = words_of([text])
        if len(words) == 1:
            spelled.setdefault(next(iter(words)), []).append(token)
    found = []
    for concept in concepts:
        ids = {token for word in concept.words for token in spelled.get(word, ())}
        if concept.vector is None:
            answers = opened.model.encode([probe.queries()[0] for probe in concept.probes])
            ids |= {
                token for one in answers for token in (one.ids[place] for place in one.targets) if words_of([vocabulary[token]])
            }
        if not ids:
            raise NotApplicable(f"concept {concept.name!r} has no word of its own, so no vector can be told by its tokens")
        found.append(sorted(ids))
    return found
