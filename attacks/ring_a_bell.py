"""Ring-A-Bell: prompts that mean the concept to a text encoder without having to name it, found on that encoder alone."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.diffusion.concept_names import names_of
from muaudit.errors import NotApplicable, UsageError
from muaudit.image_task import ImagePrompt, ImageTask, fresh_seeds
from muaudit.models import GeneratesImages, Model, ReadsPrompts

if TYPE_CHECKING:
    from torch import Tensor

    from muaudit.diffusion.pipeline import PromptEncoder

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

AT_ONCE = 256
"""Prompts that the text encoder reads at a time."""


class Pair(BaseModel):
    """A prompt with a concept and one that differs from it by that alone.

    Attributes:
        concept: Which; may be left out where the task has only one.
        shown: The prompt with it, called "with" in a file.
        hidden: The prompt without it, called "without" in a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    concept: Annotated[str, Field(min_length=1)] | None = None
    shown: Annotated[str, Field(alias="with", min_length=1)]
    hidden: Annotated[str, Field(alias="without")]


class RingABell(Attack):
    """Searches, for every forget prompt, tokens that the text encoder reads as that prompt with more of the concept.

    What the concept means to a text encoder is the mean difference of its outputs for prompts with and without it. That vector,
    times `strength`, is added to the encoder's output for each forget prompt, and a genetic search looks for tokens whose
    output is nearest to the sum, in squared Euclidean distance over all positions. No denoising network takes part: the
    prompts are static, found once and the same for every model, so the attack needs nothing of a model but its images. It shows
    what a prompt filter or keyword erasure misses; a model that survives it may still fall to prompts that are optimised on
    itself. Leakage is the share of images on fresh seeds that show the concept.

    Without `pairs`, the pairs are the forget prompts that name their concept, and the same prompts with the name of each
    retain concept in its place (or with the name left out, where there is no retain set).

    Attributes:
        encoder: Folder of a pipeline whose text encoder is searched, such as the public model that others are made from (its
            sub-folders text_encoder and tokenizer are enough); the original's where it is left out.
        pairs: JSON Lines file of pairs, one object a line with "with", "without" and, of several concepts, "concept".
        names: Further names by which prompts call a concept, by concept; used for the pairs and for the ban.
        ban_names: Leave tokens that name the concept out of the search. Published runs ban nothing.
        strength: Multiple of the concept vector; published are 3 for nudity and 5.5 for violence.
        tokens: Tokens of a prompt, at most as many as the encoder reads.
        population: Rows of tokens at the start of the search.
        generations: Generations of the search.
        mutation: Probability that a token of a row is replaced.
        crossover: Probability that a parent has two children.
        seeds: Fresh seeds a prompt, of the plain and of the attacked images.
    """

    name: ClassVar = "ring_a_bell"
    version: ClassVar = "1"
    summary: ClassVar = "Static prompts from a genetic search on a text encoder alone, the same for every model; black box."
    source: ClassVar = (
        "Tsai et al. 2024, Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models? (arXiv 2310.10012)"
    )
    access: ClassVar = "text"
    needs: ClassVar = (GeneratesImages,)
    cost: ClassVar = (
        "once: about 400,000 text encodings a forget prompt, five to ten minutes on one GPU with Stable Diffusion's encoder; "
        "then 8 images a prompt and model"
    )
    informational: ClassVar = (
        "Its prompts are found on a text encoder alone: they pass filters of words, not weights that changed: measured AUC .71."
    )

    encoder: str | None = None
    pairs: str | None = None
    names: dict[str, tuple[str, ...]] = {}
    ban_names: bool = False
    strength: Annotated[float, Field(gt=0)] = 3.0
    tokens: Annotated[int, Field(ge=1)] = 16
    population: Annotated[int, Field(ge=2)] = 200
    generations: Annotated[int, Field(ge=1)] = 3000
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.25
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.5
    seeds: Annotated[int, Field(ge=1)] = 4

    def files(self) -> tuple[str, ...]:
        """The encoder's folder and the file of pairs."""
        return tuple(path for path in (self.encoder, self.pairs) if path is not None)

    def prepare(self, bench: Bench) -> Prepared:
        """Finds the prompts."""
        from muaudit.diffusion.genetic_search import Genetics, search

        task = bench.images
        pairs = self._pairs(task, bench.folder)
        encoder = self._encoder(bench)
        length = min(self.tokens, encoder.length - 2)
        targets, among = _targets(encoder, task.forget, pairs, self.strength), self._among(encoder, task)
        how = Genetics(length, self.population, self.generations, self.mutation, self.crossover)
        generators = [np.random.default_rng(seed) for seed in bench.rng.integers(2**63, size=len(task.forget))]
        found, costs = search(_Distance(encoder, targets, length), among, generators, how)
        whose = "the original's text encoder" if self.encoder is None else f"the text encoder of {self.encoder}"
        notes = [f"static prompts: found once on {whose}, the same for every model"]
        if length < self.tokens:
            notes.append(f"the text encoder reads {length} tokens, so prompts have {length} instead of {self.tokens}")
        return Prepared(
            data={
                "prompts": [encoder.text(row) for row in found.tolist()],
                "distances": costs.tolist(),
                "seeds": fresh_seeds(task.forget, self.seeds, bench.rng),
                "notes": notes,
            }
        )

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Draws the plain and the found prompts with the same seeds."""
        from muaudit.diffusion.drawn import draw, measurement

        assert isinstance(model, GeneratesImages)  # noqa: S101 - the runner checked `needs`
        data, task = prepared.data, prepared.images
        asked = {"plain": [one.prompt for one in task.forget], "attacked": data["prompts"]}
        plain, attacked = (
            draw(
                model, task.judge, task.forget,
                [[one.query(task.sampling, prompt=text, seed=seed) for seed in seeds]
                 for one, text, seeds in zip(task.forget, texts, data["seeds"], strict=True)],
                label,
            )
            for label, texts in asked.items()
        )  # fmt: skip
        return measurement(
            task.forget, attacked.share, judge=task.judge, drawn=[plain, attacked],
            scores={"plain": plain.share, f"best_of_{self.seeds}": attacked.any}, notes=data["notes"],
        )  # fmt: skip

    def _encoder(self, bench: Bench) -> "PromptEncoder":
        """The text encoder that is searched.

        Raises:
            NotApplicable: There is none.
        """
        if self.encoder is not None:
            from muaudit.diffusion.encoder_folder import open_prompt_encoder

            return open_prompt_encoder(bench.folder / self.encoder)
        original = None if bench.open_original is None else bench.open_original()
        if not isinstance(original, ReadsPrompts):
            raise NotApplicable(
                "ring_a_bell searches on a text encoder, and the audit has no original with one: set encoder to the folder of "
                "a pipeline, such as the public model that the target was made from"
            )
        return original.prompt_encoder()

    def _among(self, encoder: "PromptEncoder", task: ImageTask) -> IntArray:
        """Tokens that a found prompt may hold."""
        from muaudit.diffusion.insertion import allowed

        banned = {name for one in task.forget for name in names_of(one, self.names)} if self.ban_names else set()
        tokens: IntArray = allowed(encoder, sorted(banned)).cpu().numpy()
        return tokens

    def _pairs(self, task: ImageTask, folder: Path) -> dict[str, list[tuple[str, str]]]:
        """Prompts with and without, by concept of the forget set.

        Raises:
            NotApplicable: A concept has none.
        """
        concepts = list(dict.fromkeys(one.concept for one in task.forget))
        if self.pairs is None:
            pairs = self._derived(task)
            mend = "no forget prompt names it; give its other names in ring_a_bell.names, or prompts in ring_a_bell.pairs"
        else:
            pairs = _read(folder / self.pairs, self.pairs, concepts)
            mend = f"{self.pairs} has none for it"
        for concept in concepts:
            if concept not in pairs:
                raise NotApplicable(f"ring_a_bell needs prompts with and without concept {concept!r}: {mend}")
        return pairs

    def _derived(self, task: ImageTask) -> dict[str, list[tuple[str, str]]]:
        """The task's own prompts with another concept's name, or none, in place of theirs."""
        own = {one.concept for one in task.forget}
        others = list(dict.fromkeys(one.concept.replace("_", " ") for one in task.retain if one.concept not in own)) or [""]
        pairs: dict[str, list[tuple[str, str]]] = {}
        for one in task.forget:
            for name in names_of(one, self.names):
                found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", one.prompt, re.IGNORECASE)
                if found is not None:
                    begin, end = one.prompt[: found.start()], one.prompt[found.end() :]
                    pairs.setdefault(one.concept, []).extend((one.prompt, begin + other + end) for other in others)
                    break
        return {concept: list(dict.fromkeys(two)) for concept, two in pairs.items()}


def concept_vector(encoder: "PromptEncoder", pairs: Sequence[tuple[str, str]]) -> "Tensor":
    """Mean difference of a text encoder's outputs [L, D] over prompts with and without a concept (Tsai et al. 2024, eq. 3)."""
    shown, hidden = (_encoded(encoder, [pair[side] for pair in pairs]) for side in (0, 1))
    return (shown - hidden).mean(0)


def _targets(
    encoder: "PromptEncoder", prompts: Sequence[ImagePrompt], pairs: dict[str, list[tuple[str, str]]], strength: float
) -> "Tensor":
    """What is searched for [n, L, D]: each prompt's output plus a multiple of its concept's vector."""
    import torch

    vectors = {concept: concept_vector(encoder, two) for concept, two in pairs.items()}
    added = torch.stack([vectors[one.concept] for one in prompts])
    return _encoded(encoder, [one.prompt for one in prompts]) + strength * added


def _encoded(encoder: "PromptEncoder", prompts: Sequence[str]) -> "Tensor":
    """Outputs [n, L, D] in float32."""
    import torch

    with torch.no_grad():
        parts = (encoder.ids(prompts[begin : begin + AT_ONCE]) for begin in range(0, len(prompts), AT_ONCE))
        return torch.cat([encoder.encode(part).float() for part in parts])


class _Distance:
    """Squared distances of rows of tokens to their targets, over all positions."""

    def __init__(self, encoder: "PromptEncoder", targets: "Tensor", length: int) -> None:
        self.encoder, self.targets, self.length = encoder, targets, length
        first = next(token for token in range(len(encoder.table)) if token not in encoder.specials)
        self.frame = encoder.framed([[first] * length])

    def __call__(self, rows: IntArray, numbers: IntArray) -> FloatArray:
        """Distances [m] of rows [m, k] to the targets of these numbers [m]."""
        import torch

        parts = []
        with torch.no_grad():
            for begin in range(0, len(rows), AT_ONCE):
                part = torch.from_numpy(rows[begin : begin + AT_ONCE]).to(self.frame.device)
                ids = self.frame.repeat(len(part), 1)
                ids[:, 1 : 1 + self.length] = part
                wanted = self.targets[torch.from_numpy(numbers[begin : begin + AT_ONCE]).to(self.targets.device)]
                parts.append((self.encoder.encode(ids).float() - wanted).square().double().sum((1, 2)).cpu())
        distances: FloatArray = torch.cat(parts).numpy()
        return distances


def _read(path: Path, name: str, concepts: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of a JSON Lines file by concept.

    Raises:
        UsageError: The file cannot be read, a line is no pair, or its concept is not the forget set's.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: cannot be read ({error}); ring_a_bell.pairs is a JSON Lines file in UTF-8") from error
    known, pairs = list(concepts), dict[str, list[tuple[str, str]]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pair = Pair.model_validate(json.loads(line))
        except (ValidationError, ValueError, RecursionError) as error:
            raise UsageError(
                f'{name}, line {number}: not a pair; write {{"concept": "dog", "with": "my dog", "without": "my cat"}}'
            ) from error
        concept = pair.concept or (known[0] if len(known) == 1 else None)
        if concept not in known:
            raise UsageError(f"{name}, line {number}: concept {pair.concept!r} is none of the forget set's; it has {known}")
        pairs.setdefault(concept, []).append((pair.shown, pair.hidden))
    return pairs
