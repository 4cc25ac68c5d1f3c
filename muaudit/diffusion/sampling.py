"""The customary solvers that draw an image from noise, and where their noise comes from.

The arithmetic of a step is diffusers'. What is added here is that steps can be left out at either end, and that latents go in
and come out on one scale, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, whatever scale a solver computes on.
"""

from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muaudit.errors import EnvironmentFault, ModelError, UsageError
from muaudit.loaders.example_columns import first_line
from muaudit.models import Sampling

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SOLVERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
}
"""Class of diffusers by the sampler's name."""

_VARIANCE_EXPLODING = ("lms", "euler")
"""Solvers that compute with x_0 + sigma eps, sigma = sqrt((1 - abar) / abar)."""

_LMS_ORDER = 4

_OURS = {"dpm_solver": {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}}
"""Set whatever the folder says: its stochastic variants would add noise of their own."""


def scheduler(config: Mapping[str, Any], sampler: str) -> "SchedulerMixin":
    """A scheduler of diffusers with a folder's noise levels, prediction type and clipping.

    Args:
        config: What scheduler_config.json says, whichever scheduler it names.
        sampler: One of `SOLVERS`.

    Returns:
        The scheduler, its steps not yet set.

    Raises:
        ModelError: diffusers refuses the configuration.
        EnvironmentFault: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise EnvironmentFault("image generators need diffusers; install it: pip install 'muaudit[diffusion]'") from error
    level = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # it names every setting of the other solvers
    try:
        return getattr(diffusers, SOLVERS[sampler]).from_config({**config, **_OURS.get(sampler, {})})
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"the scheduler's configuration cannot be used with {sampler}: {first_line(error)}") from error
    finally:
        diffusers.logging.set_verbosity(level)


class Solver:
    """One solver with its steps set, for all rows of a batch.

    Attributes:
        timesteps: The network's timestep at every step [steps], falling.
    """

    def __init__(self, config: Mapping[str, Any], sampling: Sampling, begin: int, device: torch.device) -> None:
        """Sets the steps.

        Args:
            config: What scheduler_config.json says.
            sampling: Sampler and steps.
            begin: The step that comes first.
            device: Where the latents are.

        Raises:
            ModelError: The configuration cannot be used, or has fewer noise levels than there are steps.
        """
        self._scheduler: Any = scheduler(config, sampling.sampler)
        levels = int(self._scheduler.config.num_train_timesteps)
        if sampling.steps > levels:
            raise ModelError(f"{sampling.steps} steps are asked for, but the model has {levels} noise levels; ask for fewer")
        self._scheduler.set_timesteps(sampling.steps, device=device)
        self._sampler, self._begin = sampling.sampler, begin
        if sampling.sampler != "ddim":
            self._scheduler.set_begin_index(begin)
        self.timesteps: Tensor = self._scheduler.timesteps

    def level_after(self, step: int) -> int:
        """The timestep whose noise is left after a step, rounded to a whole one; -1 where none is left."""
        return round(float(self.timesteps[step + 1])) if step + 1 < len(self.timesteps) else -1

    def first(self, noise: Tensor) -> Tensor:
        """Standard normal noise on the solver's own scale, at step 0."""
        first: Tensor = noise * self._scheduler.init_noise_sigma
        return first

    def entered(self, latents: Tensor, step: int) -> Tensor:
        """Latents that a step starts from, brought onto the solver's own scale."""
        return latents * self._scale(step)

    def left(self, latents: Tensor, step: int) -> Tensor:
        """The reverse of `entered`."""
        return latents / self._scale(step)

    def shown(self, latents: Tensor, step: int) -> Tensor:
        """What the network is shown at a step."""
        shown: Tensor = self._scheduler.scale_model_input(latents, self.timesteps[step])
        return shown

    def stepped(self, output: Tensor, latents: Tensor, step: int, *, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
        """One step further.

        Args:
            output: What the network predicts.
            latents: On the solver's own scale.
            step: Which one.
            eta: DDIM's share of fresh noise, Song et al. 2021 (arXiv 2010.02502), equation 16.
            noise: That noise, standard normal.

        Returns:
            Latents on the solver's own scale.
        """
        further: dict[str, Any] = {}
        if self._sampler == "ddim":
            further = {"eta": eta, "variance_noise": noise}
        elif self._sampler == "lms":
            # Not more points than were computed: the scheduler itself counts from step 0.
            further = {"order": min(step - self._begin + 1, _LMS_ORDER)}
        result: Tensor = self._scheduler.step(output, self.timesteps[step], latents, return_dict=False, **further)[0]
        return result.to(latents.dtype)

    def _scale(self, step: int) -> float:
        if self._sampler not in _VARIANCE_EXPLODING or step == len(self.timesteps):
            return 1.0
        return float((self._scheduler.sigmas[step] ** 2 + 1) ** 0.5)


class RowNoise:
    """Standard normal noise, each row from its own seed, so that no row depends on its batch.

    Drawn on the CPU in the network's dtype, as diffusers does with a list of generators.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Seeds one generator a row.

        Args:
            seeds: One a row.
            shape: Of a row.
            dtype: What is drawn in.
            device: Where the noise is wanted.
        """
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape, self._dtype, self._device = shape, dtype, device

    def draw(self) -> Tensor:
        """The next noise of every row [n, ...]."""
        rows = [torch.randn(self._shape, generator=generator, dtype=self._dtype) for generator in self._generators]
        return torch.stack(rows).to(self._device)

    def skip(self, count: int) -> None:
        """Leaves out so many draws."""
        for _ in range(count):
            self.draw()


def refuse_misuse(sampling: Sampling, begin: int, end: int, eta: float, *, started: bool) -> None:
    """Refuses steps that are not there, and settings that mean nothing.

    Raises:
        UsageError: They are.
    """
    if not 0 <= begin <= end <= sampling.steps:
        raise UsageError(f"steps {begin} to {end} are asked for, but there are {sampling.steps}")
    if begin > 0 and not started:
        raise UsageError(f"sampling from step {begin} on needs the latents that it starts from")
    if eta and sampling.sampler != "ddim":
        raise UsageError(f"eta is a setting of DDIM, and the sampler is {sampling.sampler}")


def refuse_unlike(**rows: Sized) -> None:
    """Refuses what does not have the same number of rows.

    Raises:
        UsageError: It does not.
    """
    if len({len(one) for one in rows.values()}) > 1:
        told = ", ".join(f"{len(one)} {name}" for name, one in rows.items())
        raise UsageError(f"{told}: their numbers do not match; give one of each for every image")
