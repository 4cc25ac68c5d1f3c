"""Soft prompt: do a few vectors before a prompt, tuned on the network itself, bring the concept back?"""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.image_task import chosen, fresh_seeds
from muaudit.models import Denoises, GeneratesImages, Model, ReadsPrompts


class SoftPrompt(Attack):
    """Puts vectors before every forget prompt, among its token embeddings, and tunes them until they help to denoise its image.

    No word needs to stand for such a vector, so this is what discrete attacks (UnlearnDiffAtk, P4D) would reach if they could
    choose from infinitely many words: an upper bound, by gradient descent on the denoising loss of the model under attack, its
    weights frozen. Vectors can carry much of an image that a network never saw, so success alone proves nothing: every model
    gets the same budget, and the gap to the references decides. Leakage is the share of images on fresh seeds, which no vector
    was tuned on, that show the concept.

    Attributes:
        vectors: Vectors before a prompt; the more, the less is left to the words behind them.
        universal: Tune one prefix for all forget prompts of a concept instead of one for each.
        steps: Steps of AdamW.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's.
        batch: Noisy images a step and prefix; with one prefix for each prompt they are of the one image.
        prompts: At most so many forget prompts are attacked, drawn by the seed.
        seeds: Fresh seeds a prompt, of the plain and of the attacked images.
    """

    name: ClassVar = "soft_prompt"
    version: ClassVar = "1"
    summary: ClassVar = "Tunes continuous vectors before each forgotten prompt on the model's own denoising loss."
    source: ClassVar = (
        "continuous prefix: Zhang et al. 2024, AdvUnlearn (arXiv 2405.15234), whose attack it is without projection; "
        "objective: UnlearnDiffAtk (arXiv 2310.11868)"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (GeneratesImages, Denoises, ReadsPrompts)
    cost: ClassVar = (
        "2,000 forward and backward passes a prompt and model, unless universal: with Stable Diffusion two to four minutes a "
        "prompt on one GPU"
    )
    informational: ClassVar = (
        "Its vectors lead only to what the weights still draw; after methods that change those, a little training brings back "
        "far more: measured AUC .86."
    )

    vectors: Annotated[int, Field(ge=1)] = 8
    universal: bool = False
    steps: Annotated[int, Field(ge=1)] = 500
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch: Annotated[int, Field(ge=1)] = 4
    prompts: Annotated[int, Field(ge=1)] = 50
    seeds: Annotated[int, Field(ge=1)] = 4

    def prepare(self, bench: Bench) -> Prepared:
        """Draws prompts and seeds."""
        task = bench.images
        forget = chosen(task.forget, self.prompts, bench.rng)
        task.images(forget)  # says what is missing before any model is tuned on it
        concepts = list(dict.fromkeys(one.concept for one in forget)) if self.universal else [one.id for one in forget]
        left = len(task.forget) - len(forget)
        return Prepared(
            data={
                "units": [one.id for one in forget],
                "seeds": fresh_seeds(forget, self.seeds, bench.rng),
                "tuned": {name: int(bench.rng.integers(2**31)) for name in concepts},
                "notes": [f"{len(forget)} of {len(task.forget)} forget prompts attacked, drawn by the seed"] if left else [],
            }
        )

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Tunes all prefixes side by side and draws with them; all that is random comes from the prepared seeds."""
        from muaudit.diffusion.drawn import draw, measurement
        from muaudit.diffusion.tuned_vectors import Tuning, VectorSet, Workshop, drawn_with, gaps, starts, weak

        assert isinstance(model, GeneratesImages) and isinstance(model, Denoises) and isinstance(model, ReadsPrompts)  # noqa: S101, PT018 - the runner checked `needs`
        data, task = prepared.data, prepared.images
        by_id = {one.id: one for one in task.forget}
        forget = [by_id[unit] for unit in data["units"]]
        pipeline, encoder = model.pipeline(), model.prompt_encoder()
        asked = gaps(encoder, [one.prompt for one in forget], [()] * len(forget), self.vectors)
        workshop = Workshop(pipeline, asked, pipeline.latents(task.images(forget)))
        names = list(data["tuned"])
        of = [names.index(one.concept if self.universal else one.id) for one in forget]
        first = starts(encoder, self.vectors, [one.prompt for one in task.forget], list(data["tuned"].values()))
        sets = [
            VectorSet(start, tuple(row for row, own in enumerate(of) if own == place), data["tuned"][name])
            for place, (name, start) in enumerate(zip(names, first, strict=True))
        ]
        how = Tuning((self.steps,), self.learning_rate, self.weight_decay, self.batch)
        ((_, vectors),) = workshop.tuned(sets, how)
        before, after = workshop.losses(sets, first), workshop.losses(sets, vectors)
        queries = [
            [one.query(task.sampling, seed=seed) for seed in seeds] for one, seeds in zip(forget, data["seeds"], strict=True)
        ]
        plain = draw(model, task.judge, forget, queries, "plain")
        attacked = drawn_with(pipeline, task.judge, forget, asked, vectors[of], data["seeds"], task.sampling)
        return measurement(
            forget, attacked.share, judge=task.judge, drawn=[plain, attacked],
            scores={"plain": plain.share, f"best_of_{self.seeds}": attacked.any},
            summaries={"loss_before": float(before.mean()), "loss_after": float(after.mean())},
            powerless=weak(before, after), notes=data["notes"],
        )  # fmt: skip
