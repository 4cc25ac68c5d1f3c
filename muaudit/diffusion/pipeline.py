"""A text-to-image diffusion model's networks, and what attacks compute with them.

Latents are what the denoising network sees: a VAE's codes, or without a VAE pixels in [-1, 1]. Everywhere they are scaled as in
x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps with timesteps t in 0..T-1 (Ho et al. 2020, arXiv 2006.11239, equation 4).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muaudit.compute import Stopwatch
from muaudit.diffusion.prompt_encoder import PromptEncoder
from muaudit.diffusion.sampling import RowNoise, Solver, refuse_misuse, refuse_unlike, scheduler
from muaudit.errors import ModelError
from muaudit.models import Sampling

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

__all__ = ["Conditioning", "Pipeline", "PromptEncoder"]

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Conditioning:
    """What the denoising network is told of n prompts.

    Attributes:
        context: What cross-attention reads [n, L, D].
        added: What is added to the timestep's embedding: of SDXL `text_embeds` [n, P] and `time_ids` [n, 6], else nothing.
    """

    context: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.context)

    def take(self, rows: slice | Sequence[int] | NDArray[np.integer[Any]] | Tensor) -> Self:
        """Some of the prompts, in the order given."""
        return self._each(lambda tensor: tensor[_indices(rows, tensor.device)])

    def repeated(self, count: int) -> Self:
        """Each prompt so many times, one after the other."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, 0))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Several one after the other."""
        added = {name: torch.cat([part.added[name] for part in parts]) for name in parts[0].added}
        return cls(torch.cat([part.context for part in parts]), added)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(change(self.context), {name: change(tensor) for name, tensor in self.added.items()})


class Pipeline:
    """Denoising network, VAE, text encoders and noise levels of one model.

    Attributes:
        unet: The denoising network.
        vae: Between pixels and latents; None where the network denoises pixels.
        encoders: Text encoders with their tokenizers: one, or two of SDXL.
        alphas: Cumulative products abar [T], float32.
        prediction: What the network predicts: the noise, v = sqrt(abar) eps - sqrt(1 - abar) x_0, or x_0.
        latent_shape: Shape of one image's latents: channels, height, width.
        image_shape: Shape of one image: channels, height, width.
        batch_size: Most rows that the networks see at a time in sampling, encoding and decoding (with guidance the denoising
            network sees twice as many); the results depend on it by float noise only.
    """

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        vae: "AutoencoderKL | None",
        encoders: Sequence[PromptEncoder],
        scheduler_config: Mapping[str, Any],
        *,
        batch_size: int = 16,
        zeros_for_nothing: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        """Puts networks together that are in memory already; they are put into evaluation mode and frozen.

        Args:
            unet: The denoising network.
            vae: Its VAE, if it has one.
            encoders: One text encoder, or the two of SDXL.
            scheduler_config: What scheduler_config.json says, or the `config` of any scheduler of diffusers.
            batch_size: Most rows at a time.
            zeros_for_nothing: Whether the unconditional conditioning is zeros instead of that of the empty prompt (SDXL's
                `force_zeros_for_empty_prompt`).
            stopwatch: Counts the time spent inside the networks.

        Raises:
            ModelError: The size of the latents is not known, or the noise levels cannot be used.
        """
        self.unet: Any = unet.eval().requires_grad_(False)
        self.vae: Any = None if vae is None else vae.eval().requires_grad_(False)
        self.encoders = tuple(encoders)
        self.batch_size = batch_size
        self.latent_shape = _latent_shape(self.unet)
        self.image_shape = _image_shape(self.vae, self.latent_shape)
        self._config = _scheduler_config(scheduler_config, latent=vae is not None, single=len(self.encoders) == 1)
        noising: Any = scheduler(self._config, "ddim")
        self.prediction: Prediction = noising.config.prediction_type
        self.alphas: Tensor = noising.alphas_cumprod.to(self.device, torch.float32)
        if not ((self.alphas[:-1] > 0) & (self.alphas[:-1] <= 1)).all() or not 0 <= self.alphas[-1] < 1:
            raise ModelError("the scheduler's noise levels leave no signal, or no noise; check its betas")
        self._zeros_for_nothing = zeros_for_nothing
        self._stopwatch = stopwatch or Stopwatch()

    @property
    def device(self) -> torch.device:
        """Where the denoising network is."""
        return cast("torch.device", next(iter(self.unet.parameters())).device)

    @property
    def dtype(self) -> torch.dtype:
        """What the denoising network computes in."""
        return cast("torch.dtype", next(iter(self.unet.parameters())).dtype)

    @property
    def seconds(self) -> float:
        """Seconds spent inside the networks by the methods of this pipeline and its copies, without backward passes."""
        return self._stopwatch.seconds

    @torch.no_grad()
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoising network is told of prompts, as diffusers' pipelines do it; without gradient.

        Args:
            prompts: Any number; too long ones are cut.
        """
        with self._stopwatch.running():
            return self._conditioning(prompts)

    def _conditioning(self, prompts: Sequence[str]) -> Conditioning:
        parts = [self._told([prompts[row] for row in range(*rows.indices(len(prompts)))]) for rows in self._rows(len(prompts))]
        return Conditioning.joined(parts)

    def _told(self, prompts: Sequence[str]) -> Conditioning:
        read = [encoder.read(encoder.ids(prompts)) for encoder in self.encoders]
        context = torch.cat([part.context for part in read], -1).to(self.dtype)
        if len(read) == 1:
            return Conditioning(context)
        _, height, width = self.image_shape
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=self.device)
        pooled = read[-1].pooled
        if pooled is None:
            raise ModelError(
                "the second of two text encoders must project (CLIPTextModelWithProjection), and this one does not"
            )
        return Conditioning(context, {"text_embeds": pooled.to(self.dtype), "time_ids": sizes.repeat(len(prompts), 1)})

    def conditioned(self, context: Tensor) -> Conditioning:
        """The conditioning of a context [n, L, D] that an attack made, with gradient through it.

        Raises:
            ModelError: The network has two text encoders and wants more than a context.
        """
        if len(self.encoders) != 1:
            raise ModelError("a context alone does not condition a network with two text encoders; use conditioning()")
        return Conditioning(context.to(self.device, self.dtype))

    def nothing(self) -> Conditioning:
        """The unconditional conditioning [1]: of the empty prompt, or zeros where the model was trained so."""
        with self._stopwatch.running(), torch.no_grad():
            return self._nothing()

    def _nothing(self) -> Conditioning:
        empty = self._conditioning([""])
        if not self._zeros_for_nothing:
            return empty
        zeros = {name: part if name == "time_ids" else torch.zeros_like(part) for name, part in empty.added.items()}
        return Conditioning(torch.zeros_like(empty.context), zeros)

    @torch.no_grad()
    def latents(self, images: NDArray[np.floating[Any]] | Tensor) -> Tensor:
        """Images to latents, without gradient.

        Args:
            images: [n, channels, height, width] in [0, 1].

        Returns:
            [n, *latent_shape]: the mean of the VAE's posterior times its scaling factor, or 2 x - 1 without a VAE.

        Raises:
            ModelError: The images are not of the model's shape.
        """
        pixels = torch.as_tensor(images)
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise ModelError(
                f"images are {_by(pixels.shape[1:])} (channels, height, width), but this model's are {_by(self.image_shape)}; "
                "resize them to that"
            )
        pixels = pixels.to(self.device, torch.float32) * 2 - 1
        if self.vae is None:
            return pixels.to(self.dtype)
        with self._stopwatch.running():
            parts = [self.vae.encode(pixels[rows].to(self.vae.dtype)).latent_dist.mean for rows in self._rows(len(pixels))]
        mean, std = self._moments()
        return cast("Tensor", (torch.cat(parts) - mean) / std * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> NDArray[np.float32]:
        """Latents to images [n, channels, height, width] in [0, 1]; NaN stays NaN."""
        with self._stopwatch.running():
            if self.vae is not None:
                mean, std = self._moments()
                codes = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor * std + mean
                latents = torch.cat([self.vae.decode(codes[rows]).sample for rows in self._rows(len(codes))])
            pixels = (latents.float() * 0.5 + 0.5).clamp(0, 1)
            return cast("NDArray[np.float32]", pixels.detach().cpu().numpy())

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.

        Args:
            latents: x_0 [n, ...].
            noise: eps [n, ...].
            timesteps: t [n] or one for all; -1 is the level without noise.
        """
        signal, spread = self._levels(timesteps, latents)
        return signal * latents + spread * noise

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The noise in x_t as the network sees it, whatever it predicts itself; in one pass, with gradient where it is enabled.

        Args:
            noisy: x_t [n, ...].
            timesteps: t [n] or one for all.
            conditioning: What the network is told, of n prompts.
        """
        with self._stopwatch.running():
            output = self._network(noisy, torch.as_tensor(timesteps, device=self.device), conditioning)
        if self.prediction == "epsilon":
            return output
        signal, spread = self._levels(timesteps, noisy)
        if self.prediction == "v_prediction":
            return signal * output + spread * noisy
        return (noisy - signal * output) / spread

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Denoising loss of every row: mean squared error of the predicted noise (Ho et al. 2020, equation 14), with gradient.

        Args:
            latents: x_0 [n, ...].
            noise: eps [n, ...].
            timesteps: t [n] or one for all.
            conditioning: What the network is told, of n prompts.

        Returns:
            [n], float32.
        """
        predicted = self.predict(self.noised(latents, noise, timesteps), timesteps, conditioning)
        return (predicted.float() - noise.float()).square().flatten(1).mean(1)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """First noise of images [n, *latent_shape], each row from its own seed on the CPU, as diffusers draws it."""
        return RowNoise(seeds, self.latent_shape, self.dtype, self.device).draw()

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        guidance: Sequence[float],
        sampling: Sampling,
        *,
        begin: int = 0,
        end: int | None = None,
        start: Tensor | None = None,
        eta: float = 0.0,
        spread: float = 1.0,
        between: Callable[[Tensor, int], Tensor] | None = None,
        nothing: Conditioning | None = None,
    ) -> Tensor:
        """Denoises noise to latents; whole runs are those of diffusers' own pipelines.

        Steps 0..k followed by k..n are the same as 0..n with DDIM and Euler. LMS and DPM-Solver build on earlier steps, of
        which a later start knows nothing: they begin anew at first order, as at step 0.

        Args:
            conditioning: What the network is told, of n prompts.
            seeds: Of each row's first noise and, after it, of what DDIM adds at each step.
            guidance: Each row's scale of classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): unconditional
                prediction plus so many times the difference; 1 is the conditional one alone, 0 the unconditional.
            sampling: Sampler and steps.
            begin: First step that is done.
            end: Step that is not done any more; all are done by default.
            start: Latents [n, ...] that step `begin` starts from, such as what an earlier call returned; noise by default.
            eta: Share of fresh noise in DDIM's steps: 0 is none, 1 is DDPM's.
            spread: Scale of the first noise.
            between: Given all n latents after every step and the timestep whose noise is left in them (-1: none), gives
                those to go on with.
            nothing: Unconditional conditioning, of one prompt or of n; by default that of the empty prompt.

        Returns:
            Latents [n, ...]; after the last step, x_0.

        Raises:
            UsageError: There are no such steps, or a setting means nothing for the sampler.
            ModelError: The model's noise levels cannot be sampled so.
        """
        end = sampling.steps if end is None else end
        refuse_misuse(sampling, begin, end, eta, started=start is not None)
        refuse_unlike(prompts=conditioning, seeds=seeds, scales=guidance)
        solver = Solver(self._config, sampling, begin, self.device)
        fresh = RowNoise(seeds, self.latent_shape, self.dtype, self.device)
        with self._stopwatch.running():
            predicted = self._guided(conditioning, guidance, nothing)
            first = solver.first(fresh.draw() * spread)
            latents = first if start is None else solver.entered(start.to(self.device, self.dtype), begin)
            if eta:
                fresh.skip(begin)  # a step's noise is the same whether or not the steps before it are done here
            for step in range(begin, end):
                output = predicted(solver.shown(latents, step), solver.timesteps[step])
                latents = solver.stepped(output, latents, step, eta=eta, noise=fresh.draw() if eta else None)
                if between is not None:
                    given = between(solver.left(latents, step + 1), solver.level_after(step))
                    latents = solver.entered(given.to(latents.dtype), step + 1)
            return solver.left(latents, end)

    def copied(self) -> Self:
        """A deep copy to train: in float32, the denoising network's and the text encoders' parameters unfrozen, the VAE's not.

        This pipeline itself is not changed, and nothing that is trained in the copy is shared. The copy is in evaluation mode.
        """
        copy = type(self)(
            deepcopy(self.unet).float(),
            self.vae,
            [encoder.copied() for encoder in self.encoders],
            self._config,
            batch_size=self.batch_size,
            zeros_for_nothing=self._zeros_for_nothing,
            stopwatch=self._stopwatch,
        )
        copy.unet.requires_grad_(True)
        for encoder in copy.encoders:
            encoder.module.requires_grad_(True)
        return copy

    def modules(self) -> dict[str, nn.Module]:
        """The networks by the name of their sub-folder."""
        encoders = {
            f"text_encoder{'' if place == 0 else f'_{place + 1}'}": one.module for place, one in enumerate(self.encoders)
        }
        return {"unet": self.unet, **({} if self.vae is None else {"vae": self.vae}), **encoders}

    def _network(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.unet(
            noisy.to(self.dtype),
            timesteps,
            encoder_hidden_states=conditioning.context,
            added_cond_kwargs=conditioning.added or None,
            return_dict=False,
        )[0]
        return output

    def _guided(
        self, conditioning: Conditioning, guidance: Sequence[float], nothing: Conditioning | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """What the network predicts under guidance, batch by batch; rows without guidance are computed once."""
        scales = torch.tensor(list(guidance), dtype=self.dtype, device=self.device).reshape(-1, 1, 1, 1)
        guided = [row for row, scale in enumerate(guidance) if scale != 1]
        if guided:
            without = self._nothing() if nothing is None else nothing
            if len(without) == 1:
                without = without.repeated(len(conditioning))

        def predicted(noisy: Tensor, timestep: Tensor) -> Tensor:
            parts = []
            for rows in self._rows(len(noisy)):
                chosen = [row for row in guided if rows.start <= row < rows.stop]
                told = conditioning.take(rows)
                if not chosen:
                    parts.append(self._network(noisy[rows], timestep, told))
                    continue
                both = Conditioning.joined([without.take(chosen), told])
                output = self._network(torch.cat([noisy[chosen], noisy[rows]]), timestep, both)
                plain, part = output[: len(chosen)], output[len(chosen) :]
                local = [row - rows.start for row in chosen]
                part[local] = plain + scales[chosen] * (part[local] - plain)
                parts.append(part)
            return torch.cat(parts)

        return predicted

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise, to be multiplied with rows."""
        levels = torch.as_tensor(timesteps, device=self.device).reshape(-1, *[1] * (like.ndim - 1))
        alphas = torch.where(levels < 0, 1.0, self.alphas[levels.clamp(min=0)])
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)

    def _moments(self) -> tuple[Tensor | float, Tensor | float]:
        """Mean and standard deviation of the VAE's codes, where its configuration gives them."""
        mean, std = (getattr(self.vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return 0.0, 1.0
        return tuple(torch.tensor(one, dtype=self.vae.dtype, device=self.device).reshape(1, -1, 1, 1) for one in (mean, std))  # type: ignore[return-value]

    def _rows(self, count: int) -> Iterator[slice]:
        for first in range(0, count, self.batch_size):
            yield slice(first, min(first + self.batch_size, count))


def _indices(rows: slice | Sequence[int] | NDArray[np.integer[Any]] | Tensor, device: torch.device) -> slice | Tensor:
    return rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.int64, device=device)


def _scheduler_config(values: Mapping[str, Any], *, latent: bool, single: bool) -> dict[str, Any]:
    """A folder's scheduler, with what diffusers' own pipelines set right: codes of a VAE are not clipped to [-1, 1]."""
    config = dict(values)
    if latent:
        config["clip_sample"] = False
        if single:
            config["steps_offset"] = 1
    return config


def _latent_shape(unet: Any) -> tuple[int, int, int]:  # noqa: ANN401 - of diffusers
    size = unet.config.sample_size
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2:
        raise ModelError("the denoising network's config.json has no sample_size, so the size of its images is not known")
    return int(unet.config.in_channels), int(sides[0]), int(sides[1])


def _image_shape(vae: Any, latents: tuple[int, int, int]) -> tuple[int, int, int]:  # noqa: ANN401 - of diffusers
    if vae is None:
        return latents
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return int(vae.config.out_channels), latents[1] * factor, latents[2] * factor


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)
