"""Runs a search for tokens in blocks, reads what it found as a string, and looks at an image after each block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muaudit.diffusion.drawn import draw
from muaudit.diffusion.insertion import Insertion, allowed
from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.prompt_search import Search
from muaudit.diffusion.schedule import Draws
from muaudit.image_task import ImagePrompt, ImageTask
from muaudit.models import Denoises, GeneratesImages, Model, ReadsPrompts

if TYPE_CHECKING:
    from muaudit.diffusion.prompt_attack import PromptAttack

BoolArray = NDArray[np.bool_]

NOT_MOVED = (
    "the loss has no gradient in the inserted tokens: this network does not listen to its prompt, or computes too coarsely to "
    "be searched by gradient; a low leakage proves nothing here"
)

Compared = Callable[[Tensor, Tensor], Tensor]
"""From prompts [r] and the tokens inserted in them [r, k] to a loss by which checkpoints can be compared [r]."""


@dataclass(frozen=True)
class Ended:
    """What a search of n prompts ended with.

    Attributes:
        texts: The attacked prompts.
        found: Whether any image that was looked at on the way showed the concept [n].
        summaries: Numbers about the search.
        powerless: Why it could not have found anything, if so.
    """

    texts: list[str] = field(default_factory=list)
    found: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    summaries: dict[str, float] = field(default_factory=dict)
    powerless: str | None = None


@dataclass(frozen=True)
class Case:
    """A model, and n prompts that are attacked on it.

    Attributes:
        model: Draws the images.
        pipeline: Its networks.
        task: How images are drawn and judged.
        units: The prompts.
        seeds: Of the searches' random streams.
        insertion: The prompts with room for tokens.
        among: Ids of the tokens that may be inserted [a].
        latents: Target images as latents [n, ...].
    """

    model: GeneratesImages
    pipeline: Pipeline
    task: ImageTask
    units: Sequence[ImagePrompt]
    seeds: Sequence[int]
    insertion: Insertion
    among: Tensor
    latents: Tensor

    @classmethod
    def of(cls, model: Model, task: ImageTask, units: Sequence[ImagePrompt], seeds: Sequence[int], how: "PromptAttack") -> Self:
        """Makes room in the prompts, and encodes the target images."""
        assert isinstance(model, GeneratesImages)  # noqa: S101 - the runner checked `needs`
        assert isinstance(model, Denoises)  # noqa: S101 - the same
        assert isinstance(model, ReadsPrompts)  # noqa: S101 - the same
        pipeline, encoder = model.pipeline(), model.prompt_encoder()
        insertion = Insertion.into(encoder, [one.prompt for one in units], how.tokens, how.position)
        among, latents = allowed(encoder, how.ban), pipeline.latents(task.images(units))
        return cls(model, pipeline, task, units, seeds, insertion, among, latents)

    @property
    def table(self) -> Tensor:
        """Embeddings of the tokens that may be inserted [a, d], in float32 or wider."""
        table = self.insertion.encoder.table[self.among]
        return table.to(torch.promote_types(table.dtype, torch.float32))

    def draws(self, count: int | None = None) -> Draws:
        """The random streams of the first `count` searches; of all by default."""
        return Draws(self.seeds[:count], self.pipeline.device, self.pipeline.dtype)

    def look(self, rows: Sequence[int], texts: Sequence[str]) -> BoolArray:
        """Has the model draw attacked prompts, each with its own seed, and says which images show the concept [r]."""
        units = [self.units[row] for row in rows]
        queries = [[one.query(self.task.sampling, prompt=text)] for one, text in zip(units, texts, strict=True)]
        hits: BoolArray = draw(self.model, self.task.judge, units, queries, "attacked").hits[:, 0]
        return hits


def search_each(
    case: Case, search: Search, timesteps: Sequence[int | None], steps: int, compared: Compared | None = None
) -> Ended:
    """Searches every prompt for itself; one whose image shows the concept is done.

    Args:
        case: The model and the prompts.
        search: One search a prompt, in their order.
        timesteps: One block each; None for timesteps drawn anew at every step.
        steps: Gradient steps a block.
        compared: A prompt that never succeeds keeps the tokens of its checkpoint with the lowest of these losses; without it,
            those of its last one.

    Returns:
        What each search ended with.

    Raises:
        ModelError: A loss or a pixel is not a finite number.
    """
    going = list(range(len(case.units)))
    texts, found, looked = [""] * len(going), np.zeros(len(going), dtype=np.bool_), np.zeros(len(going))
    best = np.full(len(going), np.inf)
    for timestep in timesteps:
        search.block(timestep, steps)
        rows, tokens = torch.tensor(going, device=case.among.device), search.choice.decoded()
        now = case.insertion.take(rows).texts(tokens)
        hits = case.look(going, now)
        losses = np.zeros(len(going)) if compared is None else compared(rows, tokens).double().cpu().numpy()
        for row, text, hit, loss in zip(going, now, hits, losses, strict=True):
            if hit or compared is None or loss < best[row]:
                texts[row], best[row] = text, loss
        found[going] = hits
        looked[going] += 1
        on = np.flatnonzero(~hits).tolist()
        if not on:
            break
        if len(on) < len(going):
            search.keep(on)
            going = [going[place] for place in on]
    return Ended(texts, found, {"images_looked_at": float(looked.mean())}, None if search.moved else NOT_MOVED)


def search_shared(case: Case, search: Search, timesteps: Sequence[int], steps: int) -> Ended:
    """Searches tokens that serve all prompts alike; those win that show the concept in most of the prompts' own images.

    Args:
        case: The model and the n prompts.
        search: m searches, each of which serves all prompts.
        timesteps: One block each.
        steps: Gradient steps a block.

    Returns:
        The prompts with the tokens of the best search at its best checkpoint; of equal ones, the first. `found` is whether any
        of the m images of a prompt after any block showed the concept.

    Raises:
        ModelError: A loss or a pixel is not a finite number.
    """
    count, prompts = search.choice.variable.shape[0], len(case.units)
    texts: list[str] = []
    found, most, looked = np.zeros(prompts, dtype=np.bool_), -1, 0
    for timestep in timesteps:
        search.block(timestep, steps)
        now = [case.insertion.texts(row.expand(prompts, -1)) for row in search.choice.decoded()]
        hits = case.look([*range(prompts)] * count, [text for row in now for text in row]).reshape(count, prompts)
        found |= hits.any(0)
        looked += count
        if hits.sum(1).max() > most:
            most, texts = int(hits.sum(1).max()), now[int(hits.sum(1).argmax())]
        if most == prompts:
            break
    summaries = {"images_looked_at": float(looked), "shown_by_best_tokens": most / prompts}
    return Ended(texts, found, summaries, None if search.moved else NOT_MOVED)
