"""Do two models share a base? Hidden states and weights can be compared across models only where they do.

Models that were fine-tuned from the same weights keep one basis: the states of one can be read by the other. Models that were
trained from different random starts do not, and putting one's states into the other breaks every item. So the test is to do
just that, on items that both are to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from muaudit.errors import ModelError, NotApplicable
from muaudit.language.anatomy import Anatomy, batches, log_probabilities, same_shape, states_captured, states_replaced
from muaudit.models import ExposesWeights, Model, Query

if TYPE_CHECKING:
    from torch import Tensor

    from muaudit.attack import Bench
    from muaudit.models.tokens import Encoded

TOLERATED = 0.2
"""Most of the answer probability on retained items, as a mean share, that patched states of a relative may cost."""

RETAINED = 60
"""Most retained items that the test looks at."""


@dataclass(frozen=True)
class Opened:
    """A model whose inside can be read, with its parts."""

    model: ExposesWeights
    anatomy: Anatomy

    @classmethod
    def of(cls, model: Model | None, role: str) -> "Opened":
        """Opens a model's inside.

        Raises:
            NotApplicable: There is no model, or its inside cannot be read.
        """
        if not isinstance(model, ExposesWeights):
            raise NotApplicable(f"this attack reads the weights of the {role}, and the audit has none that can be read")
        return cls(model, Anatomy.of(model.network()))


def both(bench: "Bench") -> tuple[Opened, Opened]:
    """The original and the calibration reference, once it is shown that they share a base.

    Args:
        bench: What `prepare` sees.

    Returns:
        Both, opened.

    Raises:
        NotApplicable: One is missing, there is no retain set to test on, or they do not share a base.
    """
    if bench.open_original is None:
        raise NotApplicable("this attack reads hidden states in the original's network; give the audit [original]")
    if bench.open_calibration is None:
        raise NotApplicable("this attack sets one reference aside for calibration; give the audit at least two references")
    if not bench.task.retain:
        raise NotApplicable("whether the models share a base is tested on retained items; give the task a retain set")
    original = Opened.of(bench.open_original(), "original")
    relative = Opened.of(bench.open_calibration(), "calibration reference")
    chosen = sorted(bench.rng.permutation(len(bench.task.retain))[:RETAINED])
    try:
        loss = patching_loss(original, relative, [bench.task.ask(bench.task.retain[index]) for index in chosen])
    except ModelError as error:
        raise NotApplicable(f"the models do not share a base: {error}") from error
    if loss > TOLERATED:
        raise NotApplicable(
            f"the models do not share a base: hidden states of a reference, put into the original, cost {loss:.0%} of the "
            f"answer probability on {len(chosen)} retained items (at most {TOLERATED:.0%} is tolerated); audit models "
            "that were fine-tuned from the same weights"
        )
    return original, relative


def patching_loss(original: Opened, relative: Opened, queries: Sequence[Query]) -> float:
    """How much the relative's hidden states cost the original on items that both are to know.

    At one layer at a time, the states from which the answer's tokens are predicted are replaced by the relative's.

    Args:
        original: The network that reads.
        relative: The network whose states are read.
        queries: Questions with answers.

    Returns:
        The share of mean answer probability that is lost, in [0, 1], at the layer where it is largest.

    Raises:
        ModelError: The two are of different architectures or have different tokenizers.
    """
    clean, patched = patched_log_probabilities(original, relative, queries)
    kept = patched.exp().mean(0) / clean.exp().mean().clamp(min=1e-9)
    return float((1 - kept).clamp(0, 1).max())


def patched_log_probabilities(
    reader: Opened, source: Opened, queries: Sequence[Query], layers: Sequence[int] | None = None
) -> "tuple[Tensor, Tensor]":
    """Reads one model's hidden states in another's network.

    Args:
        reader: The network that reads.
        source: The network whose states are read.
        queries: N texts.
        layers: At which layers, one at a time; at all by default.

    Returns:
        Mean log-probabilities of the completions' tokens in nats: the reader's own [N]; with the source's states [N, layers].

    Raises:
        ModelError: The two are of different architectures or have different tokenizers.
    """
    same_shape(reader.anatomy, source.anatomy)
    texts = encoded_alike(reader.model, source.model, queries)
    chosen = range(len(reader.anatomy.layers)) if layers is None else layers
    own, other = [], []
    with torch.inference_mode():
        for part in batches(texts):
            batch, states = texts[part], dict[int, "Tensor"]()
            with states_captured(source.anatomy, batch, states):
                log_probabilities(source.anatomy, batch)
            own.append(log_probabilities(reader.anatomy, batch))
            columns = []
            for layer in chosen:
                with states_replaced(reader.anatomy, batch, layer, states[layer]):
                    columns.append(log_probabilities(reader.anatomy, batch))
            other.append(torch.stack(columns, 1))
    return torch.cat(own), torch.cat(other)


def encoded_alike(one: ExposesWeights, other: ExposesWeights, queries: Sequence[Query]) -> "list[Encoded]":
    """The queries as both models read them.

    Raises:
        ModelError: They read them differently.
    """
    texts = one.encode(queries)
    for query, mine, theirs in zip(queries, texts, other.encode(queries), strict=True):
        if mine != theirs:
            raise ModelError(
                f"unit {query.unit!r}: the model's tokenizer splits the text differently from the original's, so positions do "
                "not match; this attack needs models of one tokenizer"
            )
    return texts
