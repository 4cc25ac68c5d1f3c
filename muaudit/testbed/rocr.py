"""Rank-one concept redirection, ROCR (Ye et al., "LLM Unlearning Should Be Form-Independent", 2025): no training at all."""

import copy
import random
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import LlamaForCausalLM

from muaudit.testbed.calibration import furthest
from muaudit.testbed.method import Method, Situation
from muaudit.testbed.tracing import Mention, mentions, outputs


class ROCR(Method):
    """Edits one MLP's down projection so that each forgotten subject is taken for a retained one, however it is asked about.

    A subject's key is what goes into the down projection at its last token, averaged over the texts that name it; its new value
    makes the layer put out what it puts out for the other subject. Each subject adds one term of rank one to the matrix, in
    closed form, so that the keys of retained texts keep their values as nearly as possible.

    Ours: all subjects are solved for at once (as MEMIT does, arXiv 2210.07229), and all go the same number of ways to the other
    subject, as many as the retain set allows: in a model of two layers the first name bypasses the edit, so one is too few.

    Attributes:
        layer: The decoder layer that is edited.
        weight: Weight of the forgotten keys against the retained tokens.
        kept: Share of the original's mean answer probability on retained questions that must be left.
        furthest: Most ways to the other subject.
        forms: The forms that the keys are averaged over.
    """

    name: ClassVar[str] = "rocr"
    source: ClassVar[str] = "Ye et al. 2025, arXiv 2506.07795"

    layer: int = 0
    weight: float = Field(default=0.15, gt=0)
    kept: float = Field(default=0.86, gt=0, le=1)
    furthest: float = Field(default=8.0, gt=0)
    forms: tuple[str, ...] = ("question", "statement")

    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model."""
        module, task = situation.original(), situation.task
        forms = tuple(form for form in self.forms if form in situation.forms)
        ours, others = (
            mentions(situation.tokenizer, facts, forms=forms, template=task.template) for facts in (task.forget, task.retain)
        )
        keys, states = self._inside(module, ours)
        other_keys, other_states = self._inside(module, others)
        subjects = list(dict.fromkeys(mention.subject for mention in ours))
        chosen = random.Random(situation.seed).choices(sorted({mention.subject for mention in others}), k=len(subjects))  # noqa: S311
        where, there = _last(states, ours), _last(other_states, others)
        moves = torch.stack([there[new] - where[old] for old, new in zip(subjects, chosen, strict=True)])
        named = _last(keys, ours)
        kept = torch.cat([_before(keys, ours), _all(other_keys, others)])
        change = edit(torch.stack([named[subject] for subject in subjects]), moves, kept, self.weight)

        def moved(ways: float) -> LlamaForCausalLM:
            edited = copy.deepcopy(module)
            with torch.no_grad():
                edited.model.layers[self.layer].mlp.down_proj.weight.add_(ways * change)
            return edited

        return furthest(moved, situation, self.kept, self.furthest)

    @torch.no_grad()
    def _inside(self, module: LlamaForCausalLM, texts: Sequence[Mention]) -> tuple[Tensor, Tensor]:
        """What goes into the down projection, and what the layer puts out: both [texts, width, ...]."""
        layer = module.model.layers[self.layer]
        gate, up, state = outputs(module, [layer.mlp.act_fn, layer.mlp.up_proj, layer], [mention.text for mention in texts])
        return gate * up, state


def edit(keys: Tensor, moves: Tensor, kept: Tensor, weight: float) -> Tensor:
    """The change of a matrix that moves some keys' values, and the kept keys' values as little as possible.

    It minimises the mean over kept keys of |change key|^2 plus `weight` times that over the others of |change key - move|^2.

    Args:
        keys: Keys whose values are moved [N, columns].
        moves: Where to [N, rows].
        kept: Keys whose values are to stay [M, columns].
        weight: Of the moved keys against the kept ones.

    Returns:
        The change [rows, columns], of rank N at most: a sum of one term of rank one a key.
    """
    moved, held = keys.double(), torch.from_numpy(np.unique(kept.double().numpy(), axis=0))
    gram = held.T @ held / len(held)
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    share = weight / len(moved)
    duals = torch.linalg.solve(gram + share * moved.T @ moved + ridge, share * moved.T)
    change: Tensor = moves.double().T @ duals.T
    return change.to(keys.dtype)


def _last(values: Tensor, texts: Sequence[Mention]) -> dict[str, Tensor]:
    """Each subject's mean value at its last token."""
    rows: dict[str, list[Tensor]] = {}
    for row, mention in enumerate(texts):
        rows.setdefault(mention.subject, []).append(values[row, mention.places[-1]])
    return {subject: torch.stack(found).mean(0) for subject, found in rows.items()}


def _before(values: Tensor, texts: Sequence[Mention]) -> Tensor:
    """The values at all tokens before a subject, which say nothing of it."""
    return torch.cat([values[row, : mention.places[0]] for row, mention in enumerate(texts)])


def _all(values: Tensor, texts: Sequence[Mention]) -> Tensor:
    """The values at all tokens."""
    return torch.cat([values[row, : len(mention.text.ids)] for row, mention in enumerate(texts)])
