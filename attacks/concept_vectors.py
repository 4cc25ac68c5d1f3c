"""Concept vectors: do the value vectors that carried a concept in the original still drive its answers?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from muaudit.attack import Attack, Bench, Layers, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.language.concepts import Concept, Probe, of_file, of_task
from muaudit.language.units import chance_corrected
from muaudit.models import ExposesWeights, Model
from muaudit.results import Transcript

if TYPE_CHECKING:
    from muaudit.language.anatomy import Anatomy
    from muaudit.language.lineage import Opened
    from muaudit.language.value_vectors import Place

HIGHEST = 0.9
"""Residues count above a reference's level, which is taken to be no higher than this."""

FAINT = 0.5
"""A concept counts where its vectors do at least this share of what they do for the median concept, in the original.

A residue is a share of that: with .4 of the median, a person's reached .6 in one of 51 honest retrains.
"""


class ConceptVectors(Attack):
    """Finds the value vectors that carry each forgotten concept in the original, and measures what they do in a model.

    A concept is a cluster of the forget set, or an entry of a ConceptVectors file, which names its vector. Vectors are found by
    a scan of all layers (columns of the MLP down projections, read through the unembedding) and validated causally: without
    the vector the concept's answers lose half of their probability, and those of other concepts less than a tenth. Where no
    single vector does it, as in models that spread their facts, sets are tried: the vectors that add most to the concept's
    answers, by activation times gradient. Concepts that no set carries are left out, and those for which it does less than half
    of what it does for the median concept: the residue is a share of that. Where hardly any is left the attack says so and is
    skipped.

    The leakage of a concept is its causal residue, and stands for each of its facts: by how much the log-odds of its answers
    against wrong answers of their kind fall when these vectors are taken out of the model, as a share of what that does to the
    original, over all forms (question, statement ...) together, clipped to [0, 1]. The vectors do something in any
    model, so what counts is the share above the level that a reference, set aside for this, reaches: for the concept or in
    the mean over all, whichever is larger, plus two standard deviations; what is left is rescaled to [0, 1]. A refusal lowers
    right and wrong answers alike, so a model that only learned to refuse keeps its residue; one from which the vectors were
    ablated has none left to take out. Cosine, distance, overlap of top tokens and rates of the concept's tokens support it;
    they decide nothing, since an unchanged vector does not prove that knowledge can be reached, nor a changed one that it was
    erased.

    The published validation adds noise of standard deviation 0.1 to one model's vectors and compares greedy answers; ours takes
    vectors out, scores answers under teacher forcing, and scales the noise, which is reported too, to the model. It scores
    completions only, all of them, and never writes to a weight, so that no state is shared between a clean and a changed run.

    Attributes:
        concepts: A JSON file in the layout of ConceptVectors, relative to audit.toml; by default the forget set's clusters.
        forms: At most so many restatements a fact, beside its question.
        rivals: At most so many wrong answers each.
        candidates: So many of the scan's first vectors are tried one by one.
        sets: Sizes of the sets that are tried where no single vector carries a concept.
        carries: A set must cost the concept's answers at least this share of their probability.
        noise: Standard deviation of the reported noise, in units of the root mean square of the layer's down projection.
        top: Tokens a vector that are compared.
    """

    name: ClassVar = "concept_vectors"
    version: ClassVar = "2"
    summary: ClassVar = (
        "Takes out the value vectors that carried a concept in the original, and measures whether the model needs them."
    )
    source: ClassVar = (
        "ConceptVectors: Hong et al. 2024 (arXiv 2406.11614); value vectors: Geva et al. 2022 (arXiv 2203.14680); "
        "causal residue, sets by attribution and their thresholds are our own"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (ExposesWeights,)
    reads_original: ClassVar = True
    calibrates: ClassVar = True
    cost: ClassVar = "once, some dozens of forward passes a concept on the original; then two passes a probe on each model"

    concepts: str | None = None
    forms: Annotated[int, Field(ge=0)] = 2
    rivals: Annotated[int, Field(ge=1)] = 3
    candidates: Annotated[int, Field(ge=1)] = 5
    sets: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10, 20, 40)
    carries: Annotated[float, Field(gt=0, lt=1)] = 0.2
    noise: Annotated[float, Field(gt=0)] = 5.0
    top: Annotated[int, Field(ge=1)] = 200

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.sets) != sorted(set(self.sets)):
            raise ValueError("sets must be ascending sizes, each once")
        return self

    def files(self) -> tuple[str, ...]:
        """The concept file."""
        return () if self.concepts is None else (self.concepts,)

    def prepare(self, bench: Bench) -> Prepared:
        """Finds and validates the vectors in the original."""
        from muaudit.language.carriers import Search, Trial, known_forms
        from muaudit.language.lineage import both

        original, calibration = both(bench)
        if self.concepts is None:
            concepts = of_task(bench.task, forms=self.forms, rivals=self.rivals, rng=bench.rng)
        else:
            concepts = of_file(bench.folder / self.concepts, self.concepts, rivals=self.rivals, rng=bench.rng)
        if any(len(probe.completions) < 2 for concept in concepts for probe in concept.probes):
            raise NotApplicable("the answers have no wrong ones to compete with; give the facts wrong_answers")
        concepts, unknown = known_forms(original, concepts)
        search = Search(Trial(self.candidates, self.sets, self.carries, self.noise), original, concepts, bench.rng)
        carriers = search.carriers()
        chosen = [number for number, carrier in enumerate(carriers) if carrier is not None]
        if len(chosen) < 2:
            raise NotApplicable(search.told_failure())
        notes = [search.told(carriers), *([f"forms that the original does not know: {', '.join(unknown)}"] if unknown else [])]
        if len(chosen) < len(concepts):
            notes.append(f"{len(concepts) - len(chosen)} of {len(concepts)} concepts are not measured: {search.told_failure()}")
        places = [carrier.places for carrier in carriers if carrier is not None]
        notes.append(search.told_noise(chosen, places, int(bench.rng.integers(2**31))))
        carried = [concepts[number] for number in chosen]
        effects = _effects(original, carried, places)
        spared = [pooled(*pair) for pair in zip(effects, _effects(calibration, carried, places), strict=True)]
        levels = levels_of(spared)
        notes.append(
            f"a reference that is not compared reaches a residue of {np.mean(spared):.2f}; what counts is above "
            f"{min(levels):.2f}, for single concepts up to {max(levels):.2f}"
        )
        # A set that lowers wrong answers as much as right ones carries nothing that could be told by them.
        data = [
            {"name": concept.name, "probes": [probe.model_dump() for probe in concept.probes], "effects": one, "level": level,
             "tokens": search.tokens[number], "places": [list(place) for place in where]}
            for number, concept, where, one, level in zip(chosen, carried, places, effects, levels, strict=True)
            if sum(one.values()) > 0
        ]  # fmt: skip
        return Prepared(data={"concepts": without_faint(data, notes), "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Takes the vectors out of the model; `rng` is not needed, since nothing here is drawn."""
        from muaudit.language.anatomy import same_shape
        from muaudit.language.lineage import Opened, encoded_alike
        from muaudit.language.value_vectors import Place

        original, source = Opened.of(prepared.open_original(), "original"), Opened.of(model, "model")
        same_shape(original.anatomy, source.anatomy)
        entries = prepared.data["concepts"]
        concepts = [
            Concept(name=entry["name"], probes=tuple(Probe(**probe) for probe in entry["probes"]), words=frozenset())
            for entry in entries
        ]
        places = [[Place(*place) for place in entry["places"]] for entry in entries]
        encoded_alike(original.model, source.model, [concept.probes[0].queries()[0] for concept in concepts])
        effects = _effects(source, concepts, places)
        found = [
            _Found(concept, residue(entry["effects"], effect), pooled(entry["effects"], effect), entry["level"],
                   _likeness(original.anatomy, source.anatomy, where, frozenset(entry["tokens"]), self.top))
            for concept, effect, where, entry in zip(concepts, effects, places, entries, strict=True)
        ]  # fmt: skip
        # The vectors carry the concept, not one of its facts, so what they do is averaged over its facts and stands for each.
        units = {probe.unit: one for one in found for probe in reversed(one.concept.probes)}
        forms = sorted(set.intersection(*(set(one.by_form) for one in found)))
        rows = tuple(f"layer {layer}" for layer in range(len(original.anatomy.layers)))
        values = tuple(tuple(one.likeness.by_layer.get(layer) for one in units.values()) for layer in range(len(rows)))
        told = {
            concept.name: _told(len(where), effect, entry["effects"])
            for concept, where, effect, entry in zip(concepts, places, effects, entries, strict=True)
        }
        return Measurement(
            units=tuple(units),
            clusters=tuple(one.concept.name for one in units.values()),
            sets=("forget",) * len(units),
            leakage=tuple(chance_corrected(one.residue, one.level) for one in units.values()),
            scores={"causal_residue": tuple(one.residue for one in units.values())}
            | {form: tuple(one.by_form[form] for one in units.values()) for form in forms}
            | {kind: tuple(one.likeness.scores[kind] for one in units.values()) for kind in found[0].likeness.scores},
            facets={"form": tuple(forms)} if len(forms) > 1 else {},
            heat_maps={"cosine with the original's value vectors": Layers(rows=rows, values=values)},
            transcripts={
                probe.unit: Transcript(prompt=probe.prompt, expected=probe.completions[0].strip(), output=told[concept.name])
                for concept in concepts
                for probe in reversed(concept.probes)
            },
            notes=tuple(prepared.data["notes"]),
        )


@dataclass(frozen=True)
class _Found:
    """What one model shows of a concept."""

    concept: Concept
    by_form: dict[str, float]
    residue: float
    level: float
    likeness: "_Likeness"


def without_faint(concepts: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The concepts without those that their vectors carry faintly.

    Args:
        concepts: Each with its `effects`: the fall of the log-odds in the original, by form, in nats.
        notes: Told how many are left out.

    Returns:
        Those whose mean fall is at least `FAINT` of the median concept's.
    """
    falls = [float(np.mean(list(one["effects"].values()))) for one in concepts]
    least = FAINT * float(np.median(falls)) if falls else 0.0
    kept = [one for one, fall in zip(concepts, falls, strict=True) if fall >= least]
    if len(kept) < len(concepts):
        notes.append(
            f"{len(concepts) - len(kept)} of {len(concepts)} concepts are not measured: taking their vectors out costs the "
            f"original less than {least:.2f} nats, half of the median, and a share of so little says nothing"
        )
    return kept


def residue(original: dict[str, float], effect: dict[str, float]) -> dict[str, float]:
    """Causal residue by form: what taking the vectors out does to a model, as a share of what it does to the original.

    Args:
        original: The fall of the log-odds in the original, by form, in nats; the largest is positive.
        effect: The same in the model.

    Returns:
        Shares in [0, 1], of the forms in which the original falls by at least half of its largest fall.
    """
    most = max(original.values())
    return {form: float(np.clip(effect[form] / fall, 0, 1)) for form, fall in original.items() if fall >= most / 2}


def pooled(original: dict[str, float], effect: dict[str, float]) -> float:
    """Causal residue over all forms together, in [0, 1]: a mean of falls is steadier than a mean, or the largest, of shares."""
    whole = sum(original.values())
    return float(np.clip(sum(effect[form] for form in original) / whole, 0, 1)) if whole > 0 else 0.0


def levels_of(spared: Sequence[float]) -> list[float]:
    """The residues above which anything counts, by concept, from those of a reference that never saw the concepts.

    Some concepts are near to what the base knows, so that their vectors work in any model: where the reference's residue is
    above its mean, its own is taken. Two standard deviations are added.
    """
    mean, spread = float(np.mean(spared)), 2 * float(np.std(spared))
    return [min(max(mean, own) + spread, HIGHEST) for own in spared]


def _told(count: int, effect: dict[str, float], original: dict[str, float]) -> str:
    """What the vectors do, in words."""
    falls = "; ".join(f"{form} {fall:+.2f} nats, in the original {original[form]:+.2f}" for form, fall in effect.items())
    what = "the original's value vector" if count == 1 else f"the original's {count} value vectors"
    return f"what {what} add to the log-odds of the right answers in this model: {falls}"


def _effects(opened: "Opened", concepts: Sequence[Concept], places: "Sequence[Sequence[Place]]") -> list[dict[str, float]]:
    """By how much the log-odds of each concept's right completions fall without its vectors, by form, in nats a token."""
    from muaudit.language.carriers import log_odds
    from muaudit.language.value_vectors import without

    probes = [(number, probe) for number, concept in enumerate(concepts) for probe in concept.probes]
    sizes = [len(probe.completions) for _, probe in probes]
    texts = opened.model.encode([query for _, probe in probes for query in probe.queries()])
    ablated = [places[number] for (number, _), size in zip(probes, sizes, strict=True) for _ in range(size)]
    clean = log_odds(without(opened.anatomy, texts, [()] * len(texts)), sizes)
    fall = clean - log_odds(without(opened.anatomy, texts, ablated), sizes)
    found: list[dict[str, list[float]]] = [{} for _ in concepts]
    for (number, probe), one in zip(probes, fall.tolist(), strict=True):
        found[number].setdefault(probe.form, []).append(one)
    return [{form: float(np.mean(falls)) for form, falls in forms.items()} for forms in found]


@dataclass(frozen=True)
class _Likeness:
    """How like the original's a model's vectors are: mean scores over a concept's vectors, and mean cosine by layer."""

    scores: dict[str, float]
    by_layer: dict[int, float]


def _likeness(original: "Anatomy", model: "Anatomy", places: "Sequence[Place]", words: frozenset[int], top: int) -> _Likeness:
    """ConceptVectors' intrinsic metrics.

    Returns:
        Cosine; L2 distance; Jaccard index of the top tokens; how many of the concept's tokens are among the model's top tokens
        for each among the original's (`concept_token_ratio`), and the share of the latter that stayed (`concept_token_rate`).
        Where the original's vectors promote none of the concept's tokens, both are 0.
    """
    from muaudit.language.value_vectors import columns, top_tokens

    before, after = columns(original, places), columns(model, places)
    lengths = before.norm(dim=1) * after.norm(dim=1)
    cosines = ((before * after).sum(1) / lengths.clamp(min=1e-12)).clamp(-1, 1)
    pairs = list(zip(top_tokens(original, before, top), top_tokens(model, after, top), strict=True))
    there = sum(len(old & words) for old, _ in pairs)
    layers: dict[int, list[float]] = {}
    for place, cosine in zip(places, cosines.tolist(), strict=True):
        layers.setdefault(place.layer, []).append(max(0.0, cosine))
    return _Likeness(
        scores={
            "cosine": float(cosines.mean()),
            "l2_distance": float((before - after).norm(dim=1).mean()),
            "top_token_jaccard": float(np.mean([len(old & new) / len(old | new) for old, new in pairs])),
            "concept_token_ratio": sum(len(new & words) for _, new in pairs) / there if there else 0.0,
            "concept_token_rate": sum(len(old & new & words) for old, new in pairs) / there if there else 0.0,
        },
        by_layer={layer: float(np.mean(some)) for layer, some in layers.items()},
    )
