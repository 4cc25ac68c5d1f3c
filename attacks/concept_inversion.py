"""Concept inversion: is there still a place in the model's prompt space that means what was forgotten?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muaudit.attack import Attack, Bench, BudgetCurve, Measurement, Prepared
from muaudit.diffusion.concept_names import names_of
from muaudit.image_task import fresh_seeds
from muaudit.models import Denoises, GeneratesImages, Model, ReadsPrompts

if TYPE_CHECKING:
    from torch import Tensor


class ConceptInversion(Attack):
    """Learns a new word for the concept by textual inversion, on the model under attack with its weights frozen.

    One or a few token vectors are tuned by the model's own denoising loss on target images of the concept; they stand in the
    prompts where the concept's name stood, or before a prompt that does not name it. The forget prompts of each concept are
    dealt out into two halves, and the vectors that were learned from the images of one are scored on the prompts of the other,
    with fresh seeds. Leakage is the share of images that show the concept after the largest budget. A network that never saw
    the concept can be led some way there too: every model gets the same budget, and the gap to the references decides.

    Attributes:
        vectors: Vectors of the new word. Published is one; several reach further, on honest models too.
        names: Further names by which prompts call a concept, such as aliases or the artist's surname, by concept.
        images: Most images that a word is learned from, drawn by the seed.
        budgets: Optimiser steps after which the word is scored, in one run.
        learning_rate: AdamW's, constant. The published 0.005 is multiplied there by the 16 images of a step.
        weight_decay: AdamW's.
        batch: Noisy images a step and word.
        restarts: Words learned from each half, each from another start; the seeds of a prompt are shared out among them.
        seeds: Fresh seeds a prompt and restart.
    """

    name: ClassVar = "concept_inversion"
    version: ClassVar = "1"
    summary: ClassVar = "Learns new token vectors for the concept on the frozen model, and scores them in other prompts."
    source: ClassVar = (
        "Pham et al. 2023, Circumventing Concept Erasure Methods For Text-to-Image Generative Models (arXiv 2308.01508); "
        "textual inversion: Gal et al. 2022 (arXiv 2208.01618)"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (GeneratesImages, Denoises, ReadsPrompts)
    cost: ClassVar = (
        "two textual inversions a concept, restart and model; at the published 5,000 steps with Stable Diffusion two to four "
        "hours each on one GPU, most of it within the first 1,000"
    )
    informational: ClassVar = (
        "Its word leads only to what the weights still draw, and in honest retrains to something like the concept, too: "
        "measured AUC .86."
    )

    vectors: Annotated[int, Field(ge=1)] = 1
    names: dict[str, tuple[str, ...]] = {}
    images: Annotated[int, Field(ge=1)] = 25
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = (1000, 5000)
    learning_rate: Annotated[float, Field(gt=0)] = 0.08
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    batch: Annotated[int, Field(ge=1)] = 16
    restarts: Annotated[int, Field(ge=1)] = 1
    seeds: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets must be ascending numbers of steps, each once")
        return self

    def prepare(self, bench: Bench) -> Prepared:
        """Deals out the forget prompts, and draws images, starts and seeds."""
        task = bench.images
        task.images(task.forget)  # says what is missing before any model is tuned on it
        runs, notes = [], []
        for concept in dict.fromkeys(one.concept for one in task.forget):
            rows = [row for row, one in enumerate(task.forget) if one.concept == concept]
            halves = [(rows[::2], rows[1::2]), (rows[1::2], rows[::2])] if len(rows) > 1 else [(rows, rows)]
            if len(rows) == 1:
                notes.append(f"{concept}: its only prompt is learned from and scored, with fresh seeds")
            for learned, scored in halves:
                for _ in range(self.restarts):
                    drawn = sorted(bench.rng.permutation(len(learned))[: self.images].tolist())
                    seed = int(bench.rng.integers(2**31))
                    runs.append({"learned": [learned[place] for place in drawn], "scored": scored, "seed": seed})
        seeds = fresh_seeds(task.forget, self.restarts * self.seeds, bench.rng)
        return Prepared(data={"runs": runs, "seeds": seeds, "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Learns all words side by side and draws with them; all that is random comes from the prepared seeds."""
        from muaudit.diffusion.drawn import draw, measurement
        from muaudit.diffusion.tuned_vectors import Tuning, VectorSet, Workshop, drawn_with, gaps, starts, weak

        assert isinstance(model, GeneratesImages) and isinstance(model, Denoises) and isinstance(model, ReadsPrompts)  # noqa: S101, PT018 - the runner checked `needs`
        data, task = prepared.data, prepared.images
        pipeline, encoder, prompts = model.pipeline(), model.prompt_encoder(), [one.prompt for one in task.forget]
        asked = gaps(encoder, prompts, [names_of(one, self.names) for one in task.forget], self.vectors)
        workshop = Workshop(pipeline, asked, pipeline.latents(task.images(task.forget)))
        first = starts(encoder, self.vectors, prompts, [run["seed"] for run in data["runs"]])
        sets = [VectorSet(start, tuple(run["learned"]), run["seed"]) for start, run in zip(first, data["runs"], strict=True)]
        queries = [
            [one.query(task.sampling, seed=seed) for seed in seeds]
            for one, seeds in zip(task.forget, data["seeds"], strict=True)
        ]
        plain = draw(model, task.judge, task.forget, queries, "plain")
        rows, words = _scored(data["runs"], len(task.forget))
        before, shares = workshop.losses(sets, first), {"plain": plain.share}
        for step, vectors in workshop.tuned(sets, Tuning(self.budgets, self.learning_rate, self.weight_decay, self.batch)):
            attacked = drawn_with(
                pipeline, task.judge, task.forget, asked.take(rows), vectors[words], data["seeds"], task.sampling
            )
            shares[f"after_{step}_steps"] = attacked.share
        after = workshop.losses(sets, vectors)
        return measurement(
            task.forget, attacked.share, judge=task.judge, drawn=[plain, attacked],
            scores=shares | {f"best_of_{len(queries[0])}": attacked.any},
            curves={"recovery": self._recovery([float(share.mean()) for share in shares.values()])},
            summaries={"loss_before": float(before.mean()), "loss_after": float(after.mean())} | self._restarts(attacked.hits),
            powerless=weak(before, after), notes=data["notes"],
        )  # fmt: skip

    def _recovery(self, shares: Sequence[float]) -> BudgetCurve:
        """Success without a word, and after each budget."""
        return BudgetCurve(
            x_label="optimiser steps", y_label="images that show the concept", x=(0.0, *map(float, self.budgets)),
            y=tuple(shares),
        )  # fmt: skip

    def _restarts(self, hits: NDArray[np.bool_]) -> dict[str, float]:
        """Success of each restart, where there are several, from hits [n, restarts * seeds]."""
        shares = hits.reshape(len(hits), self.restarts, self.seeds).mean((0, 2))
        return {f"restart_{number}": float(share) for number, share in enumerate(shares, 1) if self.restarts > 1}


def _scored(runs: Sequence[dict[str, Any]], prompts: int) -> "tuple[Tensor, Tensor]":
    """Which words are scored in which prompts: of each prompt, its row as often as there are words, and these."""
    import torch

    pairs = [(row, number) for row in range(prompts) for number, run in enumerate(runs) if row in run["scored"]]
    rows, words = torch.tensor(pairs).unbind(1)
    return rows, words
