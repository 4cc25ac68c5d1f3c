"""One forward pass over a batch of texts, and what is read off it at the completions' tokens."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from muaudit.models import TextScore, TokenScores
from muaudit.models.tokens import Encoded, pad

_SOFTMAX_ROWS = 2_048
"""Rows of logits that are turned to float32 at a time."""


def completion_logits(module: PreTrainedModel, texts: Sequence[Encoded], device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits at the completions' tokens only.

    The head sees only the hidden states that predict a completion token: with a large vocabulary, logits of all positions
    would cost more memory and time than the network itself. Whatever the architecture does after its head (scaling, capping)
    stays in place. Texts are padded on the right, where a causal model cannot see it, so no mask has to hide it.

    Args:
        module: The network.
        texts: A batch of N texts with M completion tokens altogether.
        device: Where its embeddings are.

    Returns:
        Logits [M, vocabulary] and the tokens [M] that were to be predicted, text by text.
    """
    ids, _ = pad([text.ids for text in texts], 0, side="right", device=device)
    # All ones: without any mask, transformers looks for packed texts, which takes as long as a small network.
    mask = torch.ones_like(ids)
    rows = torch.tensor([row for row, text in enumerate(texts) for _ in text.targets], device=device)
    columns = torch.tensor([column for text in texts for column in text.targets], device=device)
    selected = False

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal selected
        selected = True
        where = args[0].device
        return (args[0][rows.to(where), columns.to(where) - 1][None], *args[1:])

    handle = module.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits = module(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        handle.remove()
    logits = logits[0] if selected else logits[rows, columns - 1]
    return logits, ids[rows, columns].to(logits.device)


@torch.inference_mode()
def score_batch(module: PreTrainedModel, texts: Sequence[Encoded], device: torch.device) -> list[TextScore]:
    """Scores a batch's completions under teacher forcing.

    Args:
        module: The network.
        texts: The batch.
        device: Where its embeddings are.

    Returns:
        One score a text, from a float32 softmax.
    """
    logits, targets = completion_logits(module, texts, device)
    values: list[float] = []
    hits: list[bool] = []
    for part, wanted in zip(torch.split(logits, _SOFTMAX_ROWS), torch.split(targets, _SOFTMAX_ROWS), strict=True):
        rows = part.float()
        chosen = rows.gather(1, wanted[:, None])[:, 0] - rows.logsumexp(1)
        values += chosen.tolist()
        hits += (rows.argmax(1) == wanted).tolist()
    stops = list(accumulate(len(text.targets) for text in texts))
    spans = [slice(stop - len(text.targets), stop) for stop, text in zip(stops, texts, strict=True)]
    return [TextScore(sum(values[span]), len(values[span]), tuple(hits[span])) for span in spans]


@torch.inference_mode()
def score_tokens_batch(module: PreTrainedModel, texts: Sequence[Encoded], device: torch.device) -> list[TokenScores]:
    """Scores a batch's completion tokens, with the moments of the vocabulary's log-probabilities at each.

    Args:
        module: The network.
        texts: The batch.
        device: Where its embeddings are.

    Returns:
        One entry a text, from a float32 softmax.
    """
    logits, targets = completion_logits(module, texts, device)
    columns: tuple[list[float], ...] = ([], [], [])
    for part, wanted in zip(torch.split(logits, _SOFTMAX_ROWS), torch.split(targets, _SOFTMAX_ROWS), strict=True):
        logs = part.float().log_softmax(1)
        weights = logs.exp()
        # A token that the model rules out has weight 0 and a logarithm of minus infinity: its part in the moments is 0.
        logs_weighted = torch.where(weights > 0, weights * logs, 0.0)
        means = logs_weighted.sum(1)
        variances = torch.where(weights > 0, logs_weighted * logs, 0.0).sum(1) - means**2
        chosen = logs.gather(1, wanted[:, None])[:, 0]
        for column, row in zip(columns, (chosen, means, variances), strict=True):
            column.extend(row.tolist())
    stops = list(accumulate(len(text.targets) for text in texts))
    spans = [slice(stop - len(text.targets), stop) for stop, text in zip(stops, texts, strict=True)]
    logs_of, means_of, variances_of = columns
    return [
        TokenScores(tuple(logs_of[span]), tuple(means_of[span]), tuple(max(0.0, one) for one in variances_of[span]))
        for span in spans
    ]
