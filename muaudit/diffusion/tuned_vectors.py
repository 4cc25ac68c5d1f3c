"""Tunes vectors that stand in prompts in place of token embeddings, by the denoising loss of the network under attack.

Textual inversion and soft prompts are this one optimisation: frozen weights, a few embedding vectors, images to be denoised.
Sets of vectors are tuned side by side, each with an optimiser state and a random stream of its own, so that how many are tuned
at once changes nothing but speed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muaudit.diffusion.drawn import Drawn, judged
from muaudit.diffusion.insertion import Insertion, allowed, random_tokens
from muaudit.diffusion.judging import Judge
from muaudit.diffusion.pipeline import Pipeline, PromptEncoder
from muaudit.errors import ModelError, NotApplicable
from muaudit.image_task import ImagePrompt
from muaudit.models import Sampling

CHECKED = 256
"""Noisy images on which the loss before and after is compared, shared out over the sets of vectors."""


def gaps(encoder: PromptEncoder, prompts: Sequence[str], names: Sequence[Sequence[str]], count: int) -> Insertion:
    """Makes room for vectors in prompts: in place of a name where the prompt holds it, else before the prompt.

    Args:
        encoder: The text encoder.
        prompts: n prompts. One that would become too long loses words at its end; no vector is ever cut.
        names: For each prompt, the names that the vectors take the place of, the first that is found; none for a prefix.
        count: Vectors a prompt.

    Returns:
        The prompts with room for `count` vectors each.

    Raises:
        NotApplicable: The encoder reads no more tokens than that.
    """
    room = encoder.length - 2
    if count >= room:
        raise NotApplicable(f"{count} vectors leave no room for words in the {room} tokens of a prompt: lower `vectors`")
    stand_in = next(token for token in range(len(encoder.table)) if token not in encoder.specials)
    rows, places = [], []
    for prompt, known in zip(prompts, names, strict=True):
        words = encoder.words(prompt)
        at, size = found(words, [encoder.words(name) for name in known])
        if at + count > room:
            at, size = 0, 0
        rows.append([*words[:at], *[stand_in] * count, *words[at + size :]])
        places.append([1 + at + number for number in range(count)])
    framed = encoder.framed(rows)
    return Insertion(encoder, framed, torch.tensor(places, device=framed.device))


def contexts(asked: Insertion, vectors: Tensor) -> Tensor:
    """What the text encoder makes of prompts [n, L, D] with vectors [n, k, d] in them, with gradient through these."""
    encoder = asked.encoder
    return encoder.encode(asked.framed, asked.embeddings(vectors).to(encoder.table.dtype))


def found(words: Sequence[int], names: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Where the first of the names stands in a prompt, and how long it is, in tokens; (0, 0) where none does."""
    for name in names:
        for at in range(len(words) - len(name) + 1):
            if name and list(words[at : at + len(name)]) == list(name):
                return at, len(name)
    return 0, 0


@dataclass(frozen=True)
class VectorSet:
    """Vectors to be tuned, and what on.

    Attributes:
        start: Where they start [k, d].
        examples: Rows of the prompts and images that they are tuned on, each drawn alike.
        seed: Of the examples, timesteps and noises that are drawn for them.
    """

    start: Tensor
    examples: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Tuning:
    """How vectors are tuned.

    Attributes:
        budgets: Numbers of optimiser steps after which they are handed out, ascending.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's, decoupled.
        batch: Noisy images a step, for each set of vectors.
    """

    budgets: tuple[int, ...]
    learning_rate: float
    weight_decay: float
    batch: int


def starts(encoder: PromptEncoder, count: int, avoid: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Embeddings of random tokens [rows, count, d], from which vectors start.

    Args:
        encoder: Whose embeddings.
        count: Tokens a row.
        avoid: Prompts whose tokens are left out, beside special tokens: what is to be found is not to be given.
        seeds: One a row.

    Raises:
        NotApplicable: No token is left.
    """
    known = {token for prompt in avoid for token in encoder.words(prompt)}
    among = torch.tensor([token for token in allowed(encoder).tolist() if token not in known], device=encoder.table.device)
    if not len(among):
        raise NotApplicable("every token stands in a forget prompt, so that there is none from which a vector could start")
    return encoder.table[random_tokens(among, count, seeds)].to(torch.float32)


@dataclass(frozen=True)
class Workshop:
    """What vectors are tuned on and with: the network under attack, prompts and their images.

    Attributes:
        pipeline: The networks, frozen.
        asked: m prompts with room for k vectors each.
        latents: Their images [m, c, h, w], as `Pipeline.latents` makes them.
    """

    pipeline: Pipeline
    asked: Insertion
    latents: Tensor

    def tuned(self, sets: Sequence[VectorSet], how: Tuning) -> Iterator[tuple[int, Tensor]]:
        """Tunes sets of vectors side by side.

        At every step `batch` examples of each set are drawn, with a timestep and a noise each; its loss is the mean squared
        error of the noise that the network predicts.

        Args:
            sets: r sets of k vectors.
            how: Budgets and optimiser.

        Yields:
            After each budget: the number of steps, and the vectors [r, k, d].

        Raises:
            ModelError: The loss is not a number.
        """
        vectors = torch.stack([one.start for one in sets]).clone().requires_grad_(True)
        optimiser = torch.optim.AdamW([vectors], lr=how.learning_rate, weight_decay=how.weight_decay, foreach=False)
        generators = [torch.Generator().manual_seed(one.seed) for one in sets]
        for step in range(1, how.budgets[-1] + 1):
            draws = self._draws(sets, generators, how.batch)
            optimiser.zero_grad()
            with torch.enable_grad():
                for part in draws.parts(self.pipeline.batch_size):
                    losses = self._losses(draws, part, vectors)
                    (losses.sum() / how.batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if step in how.budgets:
                yield step, vectors.detach().clone()

    def losses(self, sets: Sequence[VectorSet], vectors: Tensor) -> Tensor:
        """Mean denoising loss of each set's vectors [r], on draws that are the same whatever the vectors are.

        Args:
            sets: What the vectors are tuned on; their starts are not used.
            vectors: [r, k, d].
        """
        generators = [torch.Generator().manual_seed(one.seed + 2**32) for one in sets]  # not the draws of the tuning
        draws = self._draws(sets, generators, max(4, CHECKED // len(sets)))
        with torch.no_grad():
            parts = [self._losses(draws, part, vectors) for part in draws.parts(self.pipeline.batch_size)]
        return torch.cat(parts).reshape(len(sets), -1).mean(1)

    def _draws(self, sets: Sequence[VectorSet], generators: Sequence[torch.Generator], count: int) -> "_Draws":
        """Examples, timesteps and noises of one step: `count` of each set, one set after the other."""
        steps, shape = len(self.pipeline.alphas), self.latents.shape[1:]
        rows, times, noises = [], [], []
        for one, generator in zip(sets, generators, strict=True):
            drawn = torch.randint(len(one.examples), (count,), generator=generator)
            rows.append(torch.tensor(one.examples)[drawn])
            times.append(torch.randint(steps, (count,), generator=generator))
            noises.append(torch.randn((count, *shape), generator=generator))
        device = self.latents.device
        return _Draws(
            count, torch.cat(rows).to(device), torch.cat(times).to(device), torch.cat(noises).to(device, self.latents.dtype)
        )

    def _losses(self, draws: "_Draws", part: slice, vectors: Tensor) -> Tensor:
        """Denoising losses of a part of the draws."""
        # Expanded, not indexed: the gradients are then summed in one order on any device.
        each = vectors[:, None].expand(-1, draws.count, -1, -1).reshape(-1, *vectors.shape[1:])[part]
        rows = draws.rows[part]
        context = contexts(self.asked.take(rows), each)
        losses = self.pipeline.loss(
            self.latents[rows], draws.noise[part], draws.timesteps[part], self.pipeline.conditioned(context)
        ).float()
        if not torch.isfinite(losses).all():
            raise ModelError(
                "the denoising loss is NaN or infinite; check the model's weights and dtype (float16 overflows in some "
                "networks), or lower learning_rate"
            )
        return losses


@dataclass(frozen=True)
class _Draws:
    """What one step's losses are computed on: `count` rows of each set, one set after the other."""

    count: int
    rows: Tensor
    timesteps: Tensor
    noise: Tensor

    def parts(self, size: int) -> Iterator[slice]:
        """The rows, so many at a time."""
        for begin in range(0, len(self.rows), size):
            yield slice(begin, begin + size)


def drawn_with(
    pipeline: Pipeline, judge: Judge, prompts: Sequence[ImagePrompt], asked: Insertion, vectors: Tensor,
    seeds: Sequence[Sequence[int]], sampling: Sampling,
) -> Drawn:  # fmt: skip
    """Draws images of prompts that vectors stand in, and has them judged.

    Args:
        pipeline: The networks.
        judge: Says whether a concept is in an image.
        prompts: The n units.
        asked: Their prompts with room for vectors: n times s of them, the s of the first unit first.
        vectors: What stands there [n * s, k, d].
        seeds: Of each unit's images, an s-th of them for each of its prompts in turn.
        sampling: Sampler and steps.

    Returns:
        Hits and first pictures, labelled "attacked".
    """
    each = len(asked.framed) // len(prompts)
    with torch.no_grad():
        conditioning = pipeline.conditioned(contexts(asked, vectors)).repeated(len(seeds[0]) // each)
        guidance = [one.guidance for one in prompts for _ in seeds[0]]
        latents = pipeline.sample(conditioning, [seed for row in seeds for seed in row], guidance, sampling)
    return judged(pipeline.pictures(latents), judge, prompts, told(asked)[::each], "attacked")


def told(asked: Insertion) -> list[str]:
    """Prompts with vectors in words: what stands before them, how many they are, what stands behind."""
    texts = []
    for row, places in zip(asked.framed.tolist(), asked.places.tolist(), strict=True):
        vectors = "[1 vector]" if len(places) == 1 else f"[{len(places)} vectors]"
        parts = asked.encoder.text(row[: places[0]]), vectors, asked.encoder.text(row[places[-1] + 1 :])
        texts.append(" ".join(part for part in parts if part))
    return texts


def weak(before: Tensor, after: Tensor) -> str | None:
    """Why vectors that do not lower the denoising loss [r] prove nothing; None where they do, on average."""
    first, last = float(before.mean()), float(after.mean())
    if last < first:
        return None
    return (
        f"the vectors did not lower the denoising loss of the images that they were tuned on ({first:.4f} before, {last:.4f} "
        "after): too little tuning to bring anything back, or too fast; change learning_rate or the number of steps"
    )
