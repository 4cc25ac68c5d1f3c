"""Trajectory: does the concept come back when the denoising is not started, or not left, as the model would have it?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import ModelError, NotApplicable
from muaudit.image_task import ImageTask, fresh_seeds
from muaudit.models import Denoises, Model

if TYPE_CHECKING:
    from torch import Tensor

    from muaudit.diffusion.drawn import Drawn
    from muaudit.diffusion.pipeline import Pipeline

FloatArray = NDArray[np.float64]

Way = Literal["completion", "inpainting", "noise"]


class Trajectory(Attack):
    """Draws the forget prompts along trajectories that the unlearning was not made for, and counts the concept.

    Three ways, none of which trains anything or searches for words. `completion`: the original takes the first few
    steps, the model under attack the rest. `inpainting`: the middle of the target image is masked and drawn anew by the model
    from its prompt; after every step what is known of the image is put back, with as much noise as the step has left. `noise`:
    plain sampling with more noise on the way (DDIM's eta) and a larger or smaller first noise, over a grid.

    The leakage of a unit is its success per image: the mean over the ways, each the share of its images that show the
    concept. No way, step or setting is chosen after the fact, so it is no best-of-n. Completion starts from what the
    original laid down and inpainting from the image's own rim, so a reference may be led to the concept as well; what counts
    is the gap to references, which were led just the same. Each way stands beside it, and so do the best setting of the
    noise grid for each unit (`noise_best`, as published) and the plain prompt.

    Attributes:
        ways: Which of the three; at least one.
        original_steps: With `completion`: after how many steps of the original the model takes over, one image each.
        masked: With `inpainting`: share of the image's height and width that is masked, in its middle.
        etas: With `noise`: how much noise is added on the way, 0 (none) to 1 (as much as ancestral sampling).
        spreads: With `noise`: scales of the first noise's standard deviation.
        images: Images a unit and setting, each with a fresh seed.
    """

    name: ClassVar = "trajectory"
    version: ClassVar = "1"
    summary: ClassVar = "Leads the denoising off its usual course and counts how often the erased concept comes back."
    source: ClassVar = (
        "Lu et al. 2025, When Are Concepts Erased From Diffusion Models? (arXiv 2505.17013): diffusion completion, inpainting, "
        "noise-based probe; known parts put back as in RePaint (Lugmayr et al. 2022, arXiv 2201.09865, equation 8)"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (Denoises,)
    reads_original: ClassVar = True
    cost: ClassVar = (
        "one image a prompt for each of the original's steps, for inpainting and for each setting of the noise grid"
    )
    informational: ClassVar = (
        "It brings back what is still drawn once denoising is led astray; what was overwritten is not: measured AUC .65."
    )

    ways: tuple[Way, ...] = get_args(Way)
    original_steps: tuple[Annotated[int, Field(ge=1)], ...] = (3, 5, 10)
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.5
    etas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.5, 1.0)
    spreads: tuple[Annotated[float, Field(gt=0, le=2)], ...] = (0.95, 1.0, 1.05)
    images: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for name in ("ways", "original_steps", "etas", "spreads"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must have at least one entry, and each once")
        return self

    def prepare(self, bench: Bench) -> Prepared:
        """Draws fresh seeds and leaves out a way that this audit has no means for."""
        task, ways, notes = bench.images, list(self.ways), []
        if "completion" in ways:
            if max(self.original_steps) >= task.sampling.steps:
                raise NotApplicable(
                    f"the original would take {max(self.original_steps)} of {task.sampling.steps} steps and leave the model "
                    "none: lower trajectory.original_steps"
                )
            if bench.open_original is None:
                ways.remove("completion")
                notes.append("diffusion completion was left out: it takes its first steps in the original; give [original]")
        if "inpainting" in ways and (lacking := [one.id for one in task.forget if one.id not in task.pictures]):
            ways.remove("inpainting")
            notes.append(
                f"inpainting was left out: {len(lacking)} forget prompts have no target image (first: {lacking[0]!r}); name "
                "image files in the task's files, or give [original]"
            )
        if not ways:
            raise NotApplicable("; ".join(notes))
        return Prepared(data={"ways": ways, "seeds": fresh_seeds(task.forget, self.images, bench.rng), "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Draws every way with the same seeds; `rng` is not needed, since they were drawn beforehand."""
        from muaudit.diffusion.drawn import judged, measurement

        assert isinstance(model, Denoises)  # noqa: S101 - the runner checked `needs`
        task, ways = prepared.images, prepared.data["ways"]
        course = _Course(model.pipeline(), task, prepared.data["seeds"])
        units, told = task.forget, [one.prompt for one in task.forget]

        def seen(latents: "Tensor", label: str) -> "Drawn":
            return judged(course.pipeline.pictures(latents), task.judge, units, told, label)

        plain = seen(course.sample(), "plain")
        shares: dict[str, FloatArray] = {}
        shown = [plain]
        for way in ways:
            settings = {name: seen(latents, way) for name, latents in self._settings(way, course, prepared)}
            shown.append(next(iter(settings.values())))
            shares |= {name: drawn.share for name, drawn in settings.items()}
            shares[way] = np.mean([drawn.share for drawn in settings.values()], axis=0)
            if way == "noise":
                shares["noise_best"] = np.max([drawn.any for drawn in settings.values()], axis=0)
        leakage: FloatArray = np.mean([shares[way] for way in ways], axis=0)
        return measurement(
            units,
            leakage,
            judge=task.judge,
            drawn=shown,
            scores={"plain": plain.share, **shares},
            facets={"way": tuple(ways)},
            summaries={f"success_{name}": float(column.mean()) for name, column in {"plain": plain.share, **shares}.items()},
            notes=tuple(prepared.data["notes"]),
        )

    def _settings(self, way: Way, course: "_Course", prepared: Prepared) -> "Iterator[tuple[str, Tensor]]":
        """The latents that every setting of a way ends with, by the setting's name."""
        if way == "completion":
            original = prepared.open_original()
            if not isinstance(original, Denoises):
                raise NotApplicable(
                    "diffusion completion takes its first steps in the original, and that is no diffusion model"
                )
            for steps in self.original_steps:
                yield f"completion_after_{steps}", course.completed(original.pipeline(), steps)
        elif way == "inpainting":
            yield "inpainting_middle", course.inpainted(self.masked)
        else:
            for eta in self.etas:
                for spread in self.spreads:
                    yield f"noise_eta_{eta:g}_spread_{spread:g}", course.sample(eta=eta, spread=spread)


@dataclass
class _Course:
    """One model that draws the forget prompts, each with its own guidance and its fresh seeds.

    Attributes:
        pipeline: The model's.
        task: Prompts, target images, sampler.
        seeds: k fresh seeds a prompt.
    """

    pipeline: "Pipeline"
    task: ImageTask
    seeds: list[list[int]]

    def __post_init__(self) -> None:
        """Lays out the rows: each prompt k times, one after the other."""
        each = len(self.seeds[0])
        self._rows = [one for one in self.task.forget for _ in range(each)]
        self._flat = [seed for own in self.seeds for seed in own]
        self._guidance = [one.guidance for one in self._rows]
        self._told = self.pipeline.conditioning([one.prompt for one in self._rows])

    def sample(self, **how: Any) -> "Tensor":  # noqa: ANN401 - what `Pipeline.sample` takes
        """Latents of every row, drawn in the task's way but for what is given.

        More noise on the way is a setting of DDIM, whatever the task's sampler is.
        """
        sampling = self.task.sampling
        if how.get("eta"):
            sampling = sampling.model_copy(update={"sampler": "ddim"})
        return self.pipeline.sample(self._told, self._flat, self._guidance, sampling, **how)

    def completed(self, original: "Pipeline", steps: int) -> "Tensor":
        """What the model makes of latents that the original began.

        Raises:
            ModelError: Latents of the one are no latents of the other.
        """
        if original.latent_shape != self.pipeline.latent_shape:
            raise ModelError(
                f"the original's latents are of shape {original.latent_shape} and this model's of shape "
                f"{self.pipeline.latent_shape}, so neither can go on where the other stops: leave `completion` out of "
                "trajectory.ways"
            )
        begun = _Course(original, self.task, self.seeds).sample(end=steps)
        return self.sample(begin=steps, start=begun.to(self.pipeline.device, self.pipeline.dtype))

    def inpainted(self, share: float) -> "Tensor":
        """What the model draws into the middle of the target images."""
        import torch

        known = self.pipeline.latents(self.task.images(self._rows))
        noise = self.pipeline.noise(self._flat)  # the first noise itself, as diffusers: the rim stays on one trajectory
        drawn_anew = torch.zeros(known.shape[-2:], dtype=torch.bool, device=known.device)
        drawn_anew[_middle(known.shape[-2], share), _middle(known.shape[-1], share)] = True

        def put_back(latents: "Tensor", timestep: int) -> "Tensor":
            rim = self.pipeline.noised(known, noise, torch.tensor(timestep, device=known.device))
            return torch.where(drawn_anew, latents, rim)

        return self.sample(between=put_back)


def _middle(side: int, share: float) -> slice:
    """The middle part of a side, one pixel at least and never all of it."""
    size = min(max(1, round(share * side)), side - 1)
    first = (side - size) // 2
    return slice(first, first + size)
