"""Images as vectors, by a local model: for identity scores, and as features of FID and KID."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionModelWithProjection

from muaudit.diffusion.assessing import FloatArray, Images, checked, fitted, in_batches
from muaudit.diffusion.clip import normalised
from muaudit.errors import ModelError
from muaudit.loaders.example_columns import first_line
from muaudit.manifest import manifest, manifest_digest
from muaudit.models.classifier import Classifier
from muaudit.models.folder import load_network, pick_device, read_json
from muaudit.models.image_classifier import Preparation, Processor, image_processor

Mode = Literal["RGB", "L"] | None


class Embedder:
    """A model that makes a vector of an image.

    - A network of ours (classifier.json) or a Hugging Face image-classification folder: what its last layer is given.
    - A CLIP folder, or its vision tower with a projection: the projected vector of the image.
    - Another vision model of Hugging Face: its pooled output, or without one the mean over its last hidden states.

    Attributes:
        digest: Of the files.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        *,
        digest: str,
        device: torch.device,
        batch_size: int,
        mode: Mode = "RGB",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Wraps a model that was opened; `open` opens one.

        Args:
            compute: Images [n, channels, height, width] in [0, 1] to vectors [n, d] or maps [n, d, ...].
            digest: What identifies it.
            device: Where it computes.
            batch_size: Images at a time.
            mode: What images become first.
            shape: Shape of one input, where images have to be brought to it.
        """
        self.digest = digest
        self._compute, self._device, self._batch, self._mode, self._shape = compute, device, batch_size, mode, shape

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", batch_size: int = 64) -> Self:
        """Opens a local folder.

        Args:
            path: The folder.
            device: A torch device name, or "auto".
            batch_size: Images at a time.

        Returns:
            The embedder, in float32 and evaluation mode.

        Raises:
            ModelError: It cannot be opened safely, or makes no vectors of images.
            EnvironmentFault: The device is not there.
        """
        digest, where = manifest_digest(manifest(path)), pick_device(device)
        built_in = (path / "classifier.json").is_file()
        if built_in or any(name.endswith("ForImageClassification") for name in _architectures(path)):
            classifier = Classifier.open(path, device=device, batch_size=batch_size)
            module, shape = classifier.module(), classifier.shape
            mode: Mode = "RGB" if shape is None or len(shape) != 3 or shape[0] == 3 else "L"
            compute = partial(_given_to_last, module, _last(path, module, classifier))
            if not built_in:
                shape = None  # Hugging Face folders say by themselves what is done about sizes
            elif shape is not None and len(shape) == 1:
                mode = None
            return cls(compute, digest=digest, device=where, batch_size=batch_size, mode=mode, shape=shape)
        projected = "CLIPVisionModelWithProjection" in _architectures(path)  # which AutoModel opens without its projection
        network: Any = load_network(path, CLIPVisionModelWithProjection if projected else AutoModel, dtype="float32")
        prepare = Preparation(image_processor(path, Processor)).to(where)
        return cls(partial(_pooled, network.to(where), prepare), digest=digest, device=where, batch_size=batch_size)

    def features(self, images: Images) -> FloatArray:
        """What the model makes of images, as it is.

        Args:
            images: [n, channels, height, width] in [0, 1], of one or three channels, n >= 1.

        Returns:
            [n, d].

        Raises:
            ModelError: The images do not suit the model, or a vector is NaN or infinite.
        """
        rows = np.concatenate([self._features(batch) for batch in in_batches(checked(images), self._batch)])
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise ModelError(f"image {bad} has a vector of NaN or infinity; check the weights of the embedding model")
        return rows

    def embed(self, images: Images) -> FloatArray:
        """Vectors of images, whose products are cosines.

        Args:
            images: As for `features`.

        Returns:
            [n, d], rows of length 1.

        Raises:
            ModelError: As for `features`, or a vector is zero.
        """
        return normalised(self.features(images), "image")

    def _features(self, images: Images) -> FloatArray:
        size = None if self._shape is None or len(self._shape) != 3 else (self._shape[1], self._shape[2])
        pixels = fitted(images, self._mode, size)
        if self._shape is not None and len(self._shape) == 1:
            pixels = pixels.reshape(len(pixels), -1)
        try:
            with torch.no_grad():
                made = self._compute(torch.from_numpy(np.array(pixels)).to(self._device))
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the embedding model fails on images of shape {list(pixels.shape)} ({first_line(error)}); its folder must say "
                "how images are resized (preprocessor_config.json)"
            ) from error
        rows: FloatArray = made.flatten(1).double().cpu().numpy()
        return rows


def _architectures(path: Path) -> list[str]:
    """The classes of transformers that a folder was saved from."""
    named = read_json(path / "config.json").get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _last(path: Path, module: nn.Module, classifier: Classifier) -> nn.Module:
    """The layer that gives a classifier's logits."""
    layers = classifier.layers()
    found: nn.Module | None = dict(module.named_modules()).get(layers[-1])
    if found is None or len(layers) < 2:
        raise ModelError(
            f"{path}: its last layer cannot be told from the rest, so there is no vector before it; give another model"
        )
    return found


def _given_to_last(module: nn.Module, last: nn.Module, pixels: Tensor) -> Tensor:
    """What a classifier's last layer is given."""
    given: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    try:
        module(pixels)
    finally:
        hook.remove()
    return given[-1]


def _pooled(network: Any, prepare: Preparation, pixels: Tensor) -> Tensor:  # noqa: ANN401 - transformers is untyped
    """A vision model's vector."""
    prepared = prepare(pixels)
    if network.config.model_type == "clip":
        # Its image tower alone returns different things by release; what the text is makes no difference to the image's vector.
        text = torch.zeros((1, 2), dtype=torch.int64, device=pixels.device)
        vectors: Tensor = network(input_ids=text, pixel_values=prepared).image_embeds
        return vectors
    made = network(pixel_values=prepared)
    for name in ("image_embeds", "pooler_output"):
        if isinstance(found := getattr(made, name, None), Tensor):
            return found
    hidden: Tensor = made.last_hidden_state
    return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
