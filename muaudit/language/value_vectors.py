"""Value vectors: the columns of MLP down projections, read as tokens, and found by what they carry.

A value vector is one thing that an MLP layer can add to the residual stream (Geva et al. 2022); the unembedding says which
tokens it promotes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from muaudit.language.anatomy import Anatomy, attribution, batches, log_probabilities, values_ablated, values_disturbed

if TYPE_CHECKING:
    from muaudit.models.tokens import Encoded

CHUNK = 2**23
"""Most numbers of a projection that are in memory at a time: vocabulary times value vectors."""


class Place(NamedTuple):
    """A value vector: its layer and its column in that layer's down projection, both from 0."""

    layer: int
    column: int


@dataclass(frozen=True)
class Hit:
    """A value vector that the scan ranks high for a concept.

    Attributes:
        place: Where it is.
        score: How far the concept's tokens stand out, see `scan`.
    """

    place: Place
    score: float


def _chunks(anatomy: Anatomy) -> Iterator[tuple[int, int, Tensor]]:
    """Layer, first column, and the projections [vocabulary, some columns] of the value vectors from there on."""
    unembedding = anatomy.unembedding.float()
    step = max(1, CHUNK // unembedding.shape[0])
    for layer in range(len(anatomy.layers)):
        values = anatomy.values(layer)
        for start in range(0, values.shape[1], step):
            yield layer, start, unembedding @ values[:, start : start + step].to(unembedding.device).float()


def scan(anatomy: Anatomy, tokens: Sequence[Sequence[int]], count: int) -> list[list[Hit]]:
    """Ranks all value vectors of a network for each of some concepts, in chunks: the whole projection is never in memory.

    The score of a vector is the mean projection of the concept's tokens, in standard deviations of its projection over the
    vocabulary around their mean; either sign counts, since gated MLPs use a vector with both. (ConceptVectors ranks by the
    largest logits and asks a language model which concept they name; the concepts are given here, so none is needed.)

    Args:
        anatomy: The network.
        tokens: Each concept's token ids, at least one.
        count: How many vectors a concept.

    Returns:
        For each concept its best vectors, best first; a lower place wins a tie.
    """
    best: list[list[tuple[float, int, int]]] = [[] for _ in tokens]
    with torch.inference_mode():
        for layer, start, projected in _chunks(anatomy):
            spread, mean = torch.std_mean(projected, dim=0, correction=0)
            for concept, ids in enumerate(tokens):
                scores = ((projected[list(ids)].mean(0) - mean) / spread.clamp(min=1e-12)).abs()
                top = torch.topk(scores, min(count, len(scores)))
                found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
                best[concept] += [(-score, layer, start + index) for score, index in found]
                best[concept] = sorted(best[concept])[:count]
    return [[Hit(Place(layer, column), -score) for score, layer, column in hits] for hits in best]


def columns(anatomy: Anatomy, places: Sequence[Place]) -> Tensor:
    """The value vectors at some places [places, width], as float32 copies on the CPU."""
    return torch.stack([anatomy.values(place.layer)[:, place.column].float().cpu() for place in places])


def top_tokens(anatomy: Anatomy, vectors: Tensor, count: int) -> list[set[int]]:
    """The tokens that each vector [N, width] promotes most."""
    unembedding = anatomy.unembedding.float()
    size = min(count, unembedding.shape[0])
    found: list[set[int]] = []
    with torch.inference_mode():
        for part in torch.split(vectors, max(1, CHUNK // unembedding.shape[0])):
            found += [set(row) for row in (part.to(unembedding.device) @ unembedding.T).topk(size, dim=1).indices.tolist()]
    return found


def attributed(anatomy: Anatomy, texts: "Sequence[Encoded]", concepts: Sequence[int], count: int) -> list[list[Place]]:
    """The value vectors that add most to each concept's answers, and little to those of the others.

    Activation times gradient of the completions' log-probability, the mean over a concept's texts less the mean over all
    concepts.

    Args:
        anatomy: The network.
        texts: Right answers, with what is asked.
        concepts: Each text's concept, numbered from 0.
        count: How many vectors a concept.

    Returns:
        For each concept its places, the strongest first.
    """
    number = max(concepts) + 1
    sums = torch.zeros(number, len(anatomy.layers), anatomy.shape[2])
    for part in batches(texts, most=32):
        sums.index_add_(0, torch.tensor(concepts[part]), attribution(anatomy, texts[part]))
    means = sums / torch.tensor([concepts.count(one) for one in range(number)]).clamp(min=1)[:, None, None]
    contrast = (means - means.mean(0)).flatten(1)
    order = contrast.argsort(dim=1, descending=True, stable=True)[:, :count]
    return [[Place(*divmod(index, anatomy.shape[2])) for index in row] for row in order.tolist()]


def without(anatomy: Anatomy, texts: "Sequence[Encoded]", ablated: Sequence[Sequence[Place]]) -> Tensor:
    """Mean log-probabilities of the completions' tokens where each text is read without some value vectors.

    Args:
        anatomy: The network; its weights are not touched.
        texts: N texts.
        ablated: What each text is read without.

    Returns:
        [N], in nats.
    """
    width, found = anatomy.shape[2], []
    for part in batches(texts):
        batch, taken = texts[part], ablated[part]
        masks = {place.layer: torch.ones(len(batch), width) for place in itertools.chain.from_iterable(taken)}
        for row, places in enumerate(taken):
            for place in places:
                masks[place.layer][row, place.column] = 0.0
        with values_ablated(anatomy, masks):
            found.append(log_probabilities(anatomy, batch))
    return torch.cat(found) if found else torch.zeros(0)


def disturbed(
    anatomy: Anatomy, texts: "Sequence[Encoded]", places: Sequence[Place], scale: float, generator: torch.Generator
) -> Tensor:
    """Mean log-probabilities of the completions' tokens with Gaussian noise on some value vectors.

    Args:
        anatomy: The network; its weights are not touched, so nothing accumulates from one call to the next.
        texts: N texts.
        places: The vectors.
        scale: The noise's standard deviation, in units of the root mean square of the layer's down projection.
        generator: Draws it.

    Returns:
        [N], in nats.
    """
    noise: dict[int, Tensor] = {}
    for place in places:
        values = anatomy.values(place.layer)
        noise.setdefault(place.layer, torch.zeros(tuple(values.shape)))
        size = scale * float(values.float().square().mean().sqrt())
        noise[place.layer][:, place.column] = size * torch.randn(values.shape[0], generator=generator)
    found = []
    with values_disturbed(anatomy, noise):
        found = [log_probabilities(anatomy, texts[part]) for part in batches(texts)]
    return torch.cat(found) if found else torch.zeros(0)
