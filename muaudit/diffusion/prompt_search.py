"""Gradient search for tokens that make a network draw what it should not: what UnlearnDiffAtk and P4D have in common.

All prompts are searched at once. Each has its own tokens, optimiser state and random stream, and no number of one enters
another's, so that searching them together changes nothing but speed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muaudit.diffusion.insertion import Insertion
from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.schedule import Draws
from muaudit.errors import ModelError

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as Kingma and Ba set them; both published attacks leave them there."""

Wanted = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From noisy latents [r, ...], timesteps [r] and the rows' prompts [r] to the prediction that is wanted of the network."""


class Choice(Protocol):
    """What is optimised for n searches of k tokens: some variable, and how tokens come from it.

    Attributes:
        variable: [n, k, ...]; the optimiser changes it in place.
    """

    variable: Tensor

    def tokens(self, uniform: Tensor) -> Tensor:
        """Token ids that the next step tries [n, k], from numbers in [0, 1) [n, k] where they are drawn."""
        ...

    def gradient(self, slope: Tensor) -> Tensor:
        """The variable's gradient, from the loss's gradient in the tried tokens' embeddings [n, k, d]."""
        ...

    def settle(self) -> None:
        """Puts the variable back to where it may be, after a step."""
        ...

    def decoded(self) -> Tensor:
        """Token ids that the search stands for now [n, k]."""
        ...


class Adam:
    """Adam for searches that end at different times: its state can be cut down to the searches that go on.

    Attributes:
        learning_rate: Of every step.
        weight_decay: Added to the gradient (L2); with `decoupled`, taken off the variable as AdamW does.
        decoupled: Whether it is AdamW.
    """

    def __init__(self, learning_rate: float, weight_decay: float, *, decoupled: bool = False) -> None:
        self.learning_rate, self.weight_decay, self.decoupled = learning_rate, weight_decay, decoupled
        self.steps = 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def step(self, variable: Tensor, gradient: Tensor) -> None:
        """Moves a variable, in place, by its gradient, which is overwritten."""
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(variable), torch.zeros_like(variable)
        if self.weight_decay and self.decoupled:
            variable.mul_(1 - self.learning_rate * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient.add_(variable, alpha=self.weight_decay)
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        spread = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
        variable.addcdiv_(self.first, spread, value=-self.learning_rate / (1 - BETAS[0] ** self.steps))

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the searches only."""
        if self.first is not None and self.second is not None:
            self.first, self.second = self.first[rows], self.second[rows]


@dataclass(frozen=True)
class Denoising:
    """How well a network denoises images when it is told prompts with tokens inserted.

    Attributes:
        pipeline: The network under attack.
        insertion: N prompts with room for k tokens.
        latents: Their target images [N, ...], as latents.
        wanted: What is to be predicted instead of the noise; None for the noise.
    """

    pipeline: Pipeline
    insertion: Insertion
    latents: Tensor
    wanted: Wanted | None = None

    def slope(self, rows: Tensor, tokens: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of some of the prompts, and its gradient in the inserted tokens' embeddings.

        Args:
            rows: Which prompts [r].
            tokens: What is inserted in each [r, k].
            noise: Added to each target image [r, ...].
            timesteps: How much of it [r].

        Returns:
            Mean squared errors [r], and each one's gradient [r, k, d]. Computed `pipeline.batch_size` rows at a time.
        """
        size = self.pipeline.batch_size
        columns = [torch.split(one, size) for one in (rows, tokens, noise, timesteps)]
        parts = [self._slope(*part) for part in zip(*columns, strict=True)]
        losses, slopes = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(slopes)

    def _slope(self, rows: Tensor, tokens: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        insertion, pipeline = self.insertion.take(rows), self.pipeline
        noisy = pipeline.noised(self.latents[rows], noise, timesteps)
        with torch.no_grad():
            wanted = noise if self.wanted is None else self.wanted(noisy, timesteps, rows)
        with torch.enable_grad():
            vectors = insertion.encoder.table[tokens].requires_grad_()
            context = insertion.encoder.encode(insertion.ids(tokens), insertion.embeddings(vectors))
            error = pipeline.predict(noisy, timesteps, pipeline.conditioned(context)) - wanted
            losses = _mean_square(error)
            (slope,) = torch.autograd.grad(losses.sum(), vectors)
        return losses.detach(), slope

    def loss(self, rows: Tensor, tokens: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The same losses [r] without a gradient."""
        with torch.no_grad():
            context = self.insertion.encoder.encode(self.insertion.take(rows).ids(tokens))
            noisy = self.pipeline.noised(self.latents[rows], noise, timesteps)
            wanted = noise if self.wanted is None else self.wanted(noisy, timesteps, rows)
            error = self.pipeline.predict(noisy, timesteps, self.pipeline.conditioned(context)) - wanted
            return _mean_square(error)


def _mean_square(error: Tensor) -> Tensor:
    """Of each row [r], in float32 or wider."""
    return error.to(torch.promote_types(error.dtype, torch.float32)).square().flatten(1).mean(1)


class Search:
    """n searches for k tokens, of which each serves one prompt, or several at once.

    Attributes:
        denoising: The loss and its gradient.
        choice: What is optimised.
        adam: By which rule.
        draws: The searches' random streams.
        prompts: The prompt that each search serves [n]; None where each serves all of them, `together` at a step.
        together: With `prompts` None: prompts at a step, drawn anew each time.
        moved: Whether any gradient was other than zero so far.
    """

    def __init__(
        self, denoising: Denoising, choice: Choice, adam: Adam, draws: Draws, *, prompts: Tensor | None, together: int = 1
    ) -> None:
        self.denoising, self.choice, self.adam, self.draws = denoising, choice, adam, draws
        self.prompts, self.together = prompts, together
        self.moved = False

    def block(self, timestep: int | None, steps: int) -> None:
        """Takes some steps, all at one timestep; with None each at one of its own, drawn uniformly.

        Args:
            timestep: Of the network's schedule.
            steps: How many.

        Raises:
            ModelError: A loss is NaN or infinite.
        """
        shape, total = self.denoising.pipeline.latent_shape, len(self.denoising.pipeline.alphas)
        uniform = self.draws.uniform(steps, self.choice.variable.shape[1:2])
        noise = self.draws.normal(steps, (self.together, *shape))
        served = self._served(steps)
        times = (
            self.draws.integers(total, steps, (self.together,)) if timestep is None
            else torch.full(noise.shape[:3], timestep, device=noise.device)
        )  # fmt: skip
        for numbers in zip(uniform, served, noise, times, strict=True):
            self._step(*numbers)

    def _served(self, steps: int) -> Tensor:
        if self.prompts is None:
            return self.draws.some(len(self.denoising.latents), self.together, steps)
        return self.prompts[:, None].expand(steps, -1, 1)

    def _step(self, uniform: Tensor, served: Tensor, noise: Tensor, timesteps: Tensor) -> None:
        """One step of every search, from its random numbers: [n, k], and [n, together] of prompts, noises and timesteps."""
        tokens = self.choice.tokens(uniform)
        losses, slope = self.denoising.slope(
            served.flatten(), tokens.repeat_interleave(self.together, 0), noise.flatten(0, 1), timesteps.flatten()
        )
        if not torch.isfinite(losses).all():
            raise ModelError(
                "the loss of predicted noise is NaN or infinite: check the model's weights and dtype (float16 overflows in "
                "some networks)"
            )
        gradient = self.choice.gradient(slope.reshape(-1, self.together, *slope.shape[1:]).mean(1))
        self.moved = self.moved or bool(gradient.any())
        self.adam.step(self.choice.variable, gradient)
        self.choice.settle()

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with some of the searches only."""
        index = torch.tensor(rows, device=self.choice.variable.device)
        self.choice.variable = self.choice.variable[index]
        self.adam.keep(index)
        self.draws.keep(rows)
        if self.prompts is not None:
            self.prompts = self.prompts[index]
