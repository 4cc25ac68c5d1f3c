"""Text-to-image diffusion models in diffusers' layout, opened from a local folder.

Stable Diffusion 1 and 2 and whatever has their parts (a denoising U-Net with cross-attention, one CLIP text encoder, a VAE or
none), and SDXL with its two text encoders. Nothing is downloaded, no code of the folder is run and no pickle is ever loaded.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from muaudit.diffusion.pipeline import Pipeline, PromptEncoder
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.models import ImageQuery, Sampling
from muaudit.models.diffusion_folder import DiffusionDtype, load_pipeline, read_index


class ImageGenerator:
    """A text-to-image diffusion model: what its families have in common."""

    encoders = 0

    def __init__(self, pipeline: Pipeline, *, digest: str = "") -> None:
        """Wraps networks that are already in memory.

        Args:
            pipeline: The networks.
            digest: What identifies them; a digest of their state by default.
        """
        self._pipeline = pipeline
        self._digest = digest

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        dtype: DiffusionDtype = "float32",
        device: str = "auto",
        batch_size: int = 16,
        attention_slicing: bool = False,
    ) -> Self:
        """Opens a local folder.

        Args:
            path: A diffusers folder: model_index.json and a sub-folder with safetensors for each of its parts.
            dtype: What is computed in.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
            batch_size: Most images at a time; the results depend on it by float noise only.
            attention_slicing: Whether attention is computed in parts, which takes less memory and more time.

        Returns:
            The model.

        Raises:
            ModelError: The folder cannot be used; the message says what, why and how to mend it.
            EnvironmentFault: The device or an extra is not there.
        """
        from muaudit.models.folder import pick_device

        folder = Path(path)
        index = read_index(folder)
        if index.encoders != cls.encoders:
            raise ModelError(f"{folder}: has {index.encoders} text encoders, and a {cls.__name__} has {cls.encoders}")
        pipeline, digest = load_pipeline(
            folder, index, dtype=dtype, device=pick_device(device), batch_size=batch_size, attention_slicing=attention_slicing
        )
        return cls(pipeline, digest=digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the folder's manifest and the dtype; for a model from memory, over its state."""
        if self._digest:
            return self._digest
        from muaudit.models.causal_lm import state_digest

        parts = {name: state_digest(module) for name, module in self._pipeline.modules().items()}
        vocabularies = [sorted(encoder.tokenizer.get_vocab().items()) for encoder in self._pipeline.encoders]
        levels = hashlib.sha256(self._pipeline.alphas.cpu().numpy().tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([parts, vocabularies, levels, self._pipeline.prediction]).encode()).hexdigest()

    @property
    def model_seconds(self) -> float:
        """Seconds spent in drawing, encoding and decoding, copies of the pipeline included; backward passes are not counted."""
        return self._pipeline.seconds

    def pipeline(self) -> Pipeline:
        """The networks, in evaluation mode, their parameters frozen; `copied()` gives one to train."""
        return self._pipeline

    def images(self, queries: Sequence[ImageQuery]) -> NDArray[np.float32]:
        """Draws images; queries that are sampled alike are drawn together.

        Args:
            queries: What to draw.

        Returns:
            Images [n, channels, height, width] in [0, 1], in the order given.

        Raises:
            ModelError: A pixel is NaN (the message names the unit), or the model cannot be sampled so.
            EnvironmentFault: The device has too little memory.
        """
        pipeline = self._pipeline
        drawn = np.empty((len(queries), *pipeline.image_shape), np.float32)
        alike: dict[Sampling, list[int]] = {}
        for place, query in enumerate(queries):
            alike.setdefault(query.sampling, []).append(place)
        with _memory():
            for sampling, places in alike.items():
                for first in range(0, len(places), pipeline.batch_size):
                    batch = places[first : first + pipeline.batch_size]
                    drawn[batch] = _drawn(pipeline, [queries[place] for place in batch], sampling)
        broken = np.flatnonzero(~np.isfinite(drawn).all(axis=(1, 2, 3)))
        if len(broken):
            raise ModelError(
                f"unit {queries[broken[0]].unit!r}: the image has NaN pixels; check the model's weights, and try dtype float32"
            )
        return drawn


class Diffusion(ImageGenerator):
    """A text-to-image diffusion model with one text encoder: Stable Diffusion 1 and 2, and their like."""

    encoders = 1

    def prompt_encoder(self) -> PromptEncoder:
        """The text encoder with its tokenizer, in evaluation mode, its parameters frozen."""
        return self._pipeline.encoders[0]


class DiffusionXL(ImageGenerator):
    """A text-to-image diffusion model with two text encoders, as SDXL."""

    encoders = 2


def diffusion_family(path: Path) -> type[ImageGenerator]:
    """Which family a folder's model is of, by its model_index.json; nothing is opened.

    Raises:
        ModelError: It is of none.
    """
    return DiffusionXL if read_index(path).encoders == 2 else Diffusion


def open_diffusion(
    path: Path,
    *,
    dtype: DiffusionDtype = "float32",
    device: str = "auto",
    batch_size: int = 16,
    attention_slicing: bool = False,
) -> ImageGenerator:
    """Opens a folder as the family that it is of; arguments and errors as with `ImageGenerator.open`."""
    family = diffusion_family(path)
    return family.open(path, dtype=dtype, device=device, batch_size=batch_size, attention_slicing=attention_slicing)


def _drawn(pipeline: Pipeline, queries: Sequence[ImageQuery], sampling: Sampling) -> NDArray[np.float32]:
    told = pipeline.conditioning([query.prompt for query in queries])
    seeds, guidance = [query.seed for query in queries], [query.guidance for query in queries]
    return pipeline.pictures(pipeline.sample(told, seeds, guidance, sampling))


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            "the device has too little memory for this batch; lower the model's batch_size, use dtype float16 or set "
            "attention_slicing"
        ) from error
