"""Activation patching: does the original, given this model's hidden states, still find the forgotten answers?"""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, Layers, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.models import ExposesWeights, Model, Query
from muaudit.results import Transcript

FEWEST = 4
"""With fewer scorable facts there is nothing to average."""


class ActivationPatching(Attack):
    """The Unlearning Depth Score: how much of what the original knows is still in a model's hidden states, layer by layer.

    At one layer at a time, the hidden states from which the answer's tokens are predicted are put into the original, and the
    original reads on from there. First, in `prepare`, with a reference's states: at each layer, delta 1 is what they cost the
    answer's mean log-probability, and layers where that is more than `threshold` encode the fact. Then with the states of the
    model under attack: delta 2. The layer's erasure ratio is delta 2 / delta 1, clipped to [0, 1]; the depth score of a fact
    is its mean over the encoding layers, weighted by delta 1: 1 where the fact is erased to the reference's level, 0 where it
    is intact. Leakage is 1 minus that. Facts that no layer encodes cannot be scored and are left out for all models alike.

    The reference of the first stage is set aside and not compared. The models must share a base; that is tested first, on
    retained items. Unlike the published code, the last layer's states are taken before the final norm, as those of all others.

    Attributes:
        threshold: A layer encodes a fact if the reference's states cost more than so many nats a token (tau).
    """

    name: ClassVar = "activation_patching"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Puts the model's hidden states into the original, and measures whether the forgotten answers are there."
    )
    source: ClassVar = "Unlearning Depth Score (arXiv 2605.24614; github.com/gnueaj/unlearning-depth-score)"
    access: ClassVar = "weights"
    needs: ClassVar = (ExposesWeights,)
    reads_original: ClassVar = True
    calibrates: ClassVar = True
    cost: ClassVar = "one forward pass a fact on each model, and one a layer on the original"
    informational: ClassVar = (
        "A reference is set aside for it; with two left, only very large gaps lie beyond their noise: measured AUC .86."
    )

    threshold: Annotated[float, Field(gt=0)] = 0.05

    def prepare(self, bench: Bench) -> Prepared:
        """Finds, with a reference that is set aside, at which layers the original encodes which fact."""
        from muaudit.language.lineage import both, patched_log_probabilities

        original, calibration = both(bench)
        queries = [bench.task.ask(fact) for fact in bench.task.forget]
        clean, patched = patched_log_probabilities(original, calibration, queries)
        costs = (clean[:, None] - patched).numpy().astype(float)  # delta 1, [facts, layers]
        scorable = np.flatnonzero((costs > self.threshold).any(axis=1))
        facts = bench.task.forget
        if len(scorable) < FEWEST or len({facts[index].cluster for index in scorable}) < 2:
            raise NotApplicable(
                f"only {len(scorable)} of {len(facts)} forget facts are encoded at some layer of the original (a reference's "
                f"states cost more than {self.threshold:g} nats there), which is too few: it hardly knows them"
            )
        notes = []
        if left := [fact.id for index, fact in enumerate(facts) if index not in set(scorable.tolist())]:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            notes.append(f"{len(left)} of {len(facts)} facts are not scored, since no layer encodes them: {shown}")
        units = [
            {"cluster": facts[index].cluster, "query": vars(queries[index]), "costs": costs[index].tolist()}
            for index in scorable.tolist()
        ]
        return Prepared(data={"units": units, "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Patches the model's states into the original; `rng` is not needed, since nothing here is drawn."""
        from muaudit.language.lineage import Opened, patched_log_probabilities

        units = prepared.data["units"]
        queries = [Query(**unit["query"]) for unit in units]
        original, source = Opened.of(prepared.open_original(), "original"), Opened.of(model, "model")
        clean, patched = (column.numpy().astype(float) for column in patched_log_probabilities(original, source, queries))
        costs = np.array([unit["costs"] for unit in units])
        erased = erasure(costs, clean[:, None] - patched, self.threshold)
        depth = depth_score(costs, erased)
        rows = tuple(f"layer {layer}" for layer in range(costs.shape[1]))
        left = [[None if np.isnan(ratio) else 1 - ratio for ratio in layer] for layer in erased.T.tolist()]
        known = [[value for value in row if value is not None] for row in left]
        return Measurement(
            units=tuple(query.unit for query in queries),
            clusters=tuple(unit["cluster"] for unit in units),
            sets=("forget",) * len(units),
            leakage=tuple((1 - depth).tolist()),
            scores={"best_patched_probability": tuple(np.exp(np.minimum(_best(patched, erased), 0)).tolist())},
            heat_maps={"knowledge left": Layers(rows=rows, values=tuple(tuple(row) for row in left))},
            transcripts={
                query.unit: Transcript(prompt=query.prompt, expected=query.completion.strip(), output=_told(own, row))
                for query, own, row in zip(queries, clean, patched, strict=True)
            },
            summaries={
                f"left_at_{row.replace(' ', '_')}": float(np.mean(some)) for row, some in zip(rows, known, strict=True) if some
            },
            notes=tuple(prepared.data["notes"]),
        )


def erasure(first: NDArray[np.float64], second: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Layer erasure ratio (UDS, stage 2).

    Args:
        first: Delta 1 [facts, layers]: what the reference's states cost, in nats.
        second: Delta 2 [facts, layers]: what the model's states cost.
        threshold: Layers with delta 1 above it encode the fact.

    Returns:
        clip(delta 2 / delta 1, 0, 1), [facts, layers]; NaN at layers that do not encode the fact.
    """
    encodes = first > threshold
    return np.where(encodes, np.clip(second / np.where(encodes, first, 1.0), 0.0, 1.0), np.nan)


def depth_score(first: NDArray[np.float64], erased: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unlearning Depth Score: mean erasure ratio over the encoding layers, weighted by delta 1.

    Args:
        first: Delta 1 [facts, layers].
        erased: From `erasure`; every fact has at least one encoding layer.

    Returns:
        [facts], in [0, 1]: 1 is erased to the reference's level, 0 is intact.
    """
    weights = np.where(np.isnan(erased), 0.0, first)
    score: NDArray[np.float64] = (weights * np.nan_to_num(erased)).sum(1) / weights.sum(1)
    return score


def _best(patched: NDArray[np.float64], erased: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest log-probability that the answer reaches with states of an encoding layer."""
    best: NDArray[np.float64] = np.where(np.isnan(erased), -np.inf, patched).max(1)
    return best


def _told(own: float, patched: NDArray[np.float64]) -> str:
    """The answer's probability in words: in the original as it is, and with the model's states at each layer."""
    layers = ", ".join(f"{layer}: {np.exp(value):.3f}" for layer, value in enumerate(patched))
    return f"probability of the answer in the original {np.exp(own):.3f}; with this model's states at layer {layers}"
