"""What attacks that search for tokens share: what is asked before, between and after the search, and what counts."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.diffusion.positions import Position
from muaudit.image_task import ImagePrompt, chosen, fresh_seeds
from muaudit.models import Denoises, GeneratesImages, Model, ReadsPrompts
from muaudit.results import Transcript

if TYPE_CHECKING:
    from muaudit.diffusion.checkpoints import Case, Ended
    from muaudit.diffusion.drawn import Drawn

FloatArray = NDArray[np.float64]


class PromptAttack(Attack):
    """An attack that inserts tokens into forget prompts, looks at an image now and then, and stops when it shows the concept.

    Attributes:
        tokens: Tokens that are inserted into a prompt.
        position: Where: `prefix`, `suffix`, `middle`, `spread` evenly, `every_three_words` (one before every three words,
            whatever `tokens` is), or `alone`, without the prompt.
        timesteps: Blocks of steps; after each an image is looked at.
        steps: Gradient steps a block.
        learning_rate: Of every step.
        weight_decay: Of every step.
        ban: Words that may not be inserted, such as the concept's names.
        images: Fresh seeds on which the prompt that a search ends with is scored.
        baselines: Whether seed search and random tokens are measured too, with as many images as the attack may look at.
        forget_prompts: At most so many forget prompts are attacked, drawn from the plan's seed.
    """

    access: ClassVar = "weights"
    needs: ClassVar = (GeneratesImages, Denoises, ReadsPrompts)

    tokens: Annotated[int, Field(ge=1, le=64)] = 5
    position: Position = "prefix"
    timesteps: Annotated[int, Field(ge=1, le=1000)] = 50
    steps: Annotated[int, Field(ge=1)] = 40
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    ban: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    images: Annotated[int, Field(ge=1)] = 10
    baselines: bool = True
    forget_prompts: Annotated[int, Field(ge=1)] = 50

    def prepare(self, bench: Bench) -> Prepared:
        """Draws which prompts are attacked, and all seeds: fresh ones, the baselines', and those of each prompt's search."""
        task, looks = bench.images, self.looks
        units = chosen(task.forget, self.forget_prompts, bench.rng)
        task.images(units)  # says what is missing before any model is attacked
        notes = []
        if len(units) < len(task.forget):
            notes.append(f"{len(units)} of {len(task.forget)} forget prompts are attacked, drawn by the seed")
        fresh = fresh_seeds(units, self.images + (looks if self.baselines else 0), bench.rng)
        return Prepared(
            data={
                "units": [one.id for one in units],
                "fresh": [row[: self.images] for row in fresh],
                "others": [row[self.images :] for row in fresh],
                "random": bench.rng.integers(2**31, size=(len(units), looks if self.baselines else 0)).tolist(),
                "searches": bench.rng.integers(2**31, size=max(len(units), self.searches)).tolist(),
                "notes": notes,
            }
        )

    @property
    def looks(self) -> int:
        """Images of one prompt that the attack may look at, its plain one aside."""
        return self.timesteps

    @property
    def searches(self) -> int:
        """Searches that serve all prompts; 0 where each prompt has one of its own."""
        return 0

    @abstractmethod
    def searched(self, case: "Case", prepared: Prepared) -> "Ended":
        """Searches for tokens.

        Args:
            case: The model, and the prompts that do not show their concept as they are; at least one.
            prepared: What `prepare` returned.
        """

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Attacks every prompt that does not show its concept as it is; all that is drawn comes from prepared seeds."""
        from muaudit.diffusion.baselines import draw_in_parts
        from muaudit.diffusion.checkpoints import Case, Ended

        assert isinstance(model, GeneratesImages)  # noqa: S101 - the runner checked `needs`
        data, task = prepared.data, prepared.images
        by_id = {one.id: one for one in task.forget}
        units = [by_id[name] for name in data["units"]]
        plain = draw_in_parts(model, task.judge, units, [[one.query(task.sampling)] for one in units], "plain")
        rows = np.flatnonzero(~plain.hits[:, 0]).tolist()
        ended = Ended()
        if rows:
            seeds = data["searches"] if self.searches else [data["searches"][row] for row in rows]
            ended = self.searched(Case.of(model, task, [units[row] for row in rows], seeds, self), prepared)
        told = [one.prompt for one in units]
        for row, text in zip(rows, ended.texts, strict=True):
            told[row] = text
        queries = [
            [one.query(task.sampling, prompt=text, seed=seed) for seed in seeds]
            for one, text, seeds in zip(units, told, data["fresh"], strict=True)
        ]
        fresh = draw_in_parts(model, task.judge, units, queries, "attacked")
        found = plain.hits[:, 0].copy()
        found[rows] = ended.found
        scores = {"plain": plain.share, "post_asr": found.astype(np.float64), f"best_of_{self.images}": fresh.any}
        if self.baselines:
            scores |= self._baselines(model, prepared, units, plain)
        summaries = {"pre_asr": float(plain.share.mean()), "post_asr": float(found.mean()), **ended.summaries}
        return _measurement(units, told, plain, fresh, prepared, scores=scores, summaries=summaries, powerless=ended.powerless)

    def _baselines(
        self, model: GeneratesImages, prepared: Prepared, units: Sequence[ImagePrompt], plain: "Drawn"
    ) -> dict[str, FloatArray]:
        """Success per query and of the best of as many images as the attack may look at, with the plain one among them."""
        from muaudit.diffusion.baselines import random_prompts, seed_search
        from muaudit.diffusion.insertion import Insertion, allowed

        assert isinstance(model, ReadsPrompts)  # noqa: S101 - the runner checked `needs`
        data, task, encoder = prepared.data, prepared.images, model.prompt_encoder()
        insertion = Insertion.into(encoder, [one.prompt for one in units], self.tokens, self.position)
        among = allowed(encoder, self.ban)
        seeds = seed_search(model, task.judge, units, task.sampling, data["others"])
        random = random_prompts(model, task.judge, units, task.sampling, insertion, among, data["random"])
        return {
            "seed_search": seeds.share, "seed_search_best": np.maximum(plain.any, seeds.any),
            "random_tokens": random.share, "random_tokens_best": np.maximum(plain.any, random.any),
        }  # fmt: skip


def _measurement(
    units: Sequence[ImagePrompt], told: Sequence[str], plain: "Drawn", fresh: "Drawn", prepared: Prepared, **further: Any  # noqa: ANN401
) -> Measurement:  # fmt: skip
    """Leakage is the share of images on fresh seeds that show the concept."""
    from muaudit.diffusion.drawn import measurement

    transcripts = {
        one.id: Transcript(prompt=text, expected=one.concept, output=f"in {hits.sum()} of {len(hits)} images with fresh seeds")
        for one, text, hits in zip(units, told, fresh.hits, strict=True)
    }
    return measurement(
        units, fresh.share, judge=prepared.images.judge, drawn=[plain, fresh], transcripts=transcripts,
        notes=tuple(prepared.data["notes"]), **further,
    )  # fmt: skip
