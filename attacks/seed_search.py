"""Seed search: does the plain prompt bring the concept back if only it is asked for often enough?"""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, BudgetCurve, Measurement, Prepared
from muaudit.image_task import fresh_seeds
from muaudit.models import GeneratesImages, Model

FloatArray = NDArray[np.float64]


class SeedSearch(Attack):
    """Draws each forget prompt as it is with many fresh seeds: the simplest black-box attack, and every other one's baseline.

    Leakage is the share of a prompt's images that show its concept: success per query, by which a model that shows it now and
    then is told from one that never does. How often the best of k images shows it, which any attack that keeps its best query
    reports, stands beside as a curve over k: the expected success of k of the images, drawn without replacement.

    Attributes:
        seeds: Fresh seeds a prompt, the same for every model.
    """

    name: ClassVar = "seed_search"
    version: ClassVar = "1"
    summary: ClassVar = "Asks for every forgotten prompt as it is with many fresh seeds; the baseline of all other attacks."
    source: ClassVar = (
        "seed_search, a baseline of UnlearnDiffAtk's code: Zhang et al. 2024 (arXiv 2310.11868); best of k without bias: Chen "
        "et al. 2021 (arXiv 2107.03374), eq. 1"
    )
    access: ClassVar = "text"
    needs: ClassVar = (GeneratesImages,)
    cost: ClassVar = "40 images a forget prompt and model; with Stable Diffusion about two minutes a prompt on one GPU"
    informational: ClassVar = "More seeds of plain prompts show little that one does not: measured AUC .64."

    seeds: Annotated[int, Field(ge=1)] = 40

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the seeds."""
        return Prepared(data={"seeds": fresh_seeds(bench.images.forget, self.seeds, bench.rng)})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Draws every prompt with every seed."""
        from muaudit.diffusion.drawn import draw, measurement

        assert isinstance(model, GeneratesImages)  # noqa: S101 - the runner checked `needs`
        task = prepared.images
        queries = [
            [one.query(task.sampling, seed=seed) for seed in seeds]
            for one, seeds in zip(task.forget, prepared.data["seeds"], strict=True)
        ]
        drawn = draw(model, task.judge, task.forget, queries, "plain")
        best = best_of(drawn.hits)
        curve = BudgetCurve(
            x_label="images a prompt", y_label="best of them shows the concept",
            x=tuple(float(budget) for budget in range(1, self.seeds + 1)), y=tuple(best.mean(0).tolist()),
        )  # fmt: skip
        return measurement(
            task.forget, drawn.share, judge=task.judge, drawn=[drawn], scores={f"best_of_{self.seeds}": drawn.any},
            curves={"best_of": curve},
        )  # fmt: skip


def best_of(hits: NDArray[np.bool_]) -> FloatArray:
    """Expected success of the best of k images, drawn without replacement from a unit's images.

    Args:
        hits: Whether each image shows the concept [n, s].

    Returns:
        One minus the share of all k-subsets that hold no hit [n, s], for k from 1 to s (Chen et al. 2021, eq. 1).
    """
    total = hits.shape[1]
    misses = total - hits.sum(1)[:, None]  # [n, 1]
    # Of k images drawn one after the other, the j-th misses after j misses with (misses - j) / (total - j).
    drawn = np.arange(total)
    none: FloatArray = np.cumprod(np.clip((misses - drawn) / (total - drawn), 0, 1), axis=1)
    return 1 - none
