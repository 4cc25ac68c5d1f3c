"""Opens Hugging Face image-classification folders; their preparation of pictures becomes part of the network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification, PreTrainedModel

from muaudit.errors import ModelError
from muaudit.models.folder import load_network

Pixels = Annotated[int, Field(ge=1)]

_MODES: dict[int, str] = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""Torch's names of Pillow's resampling filters."""


class Size(BaseModel):
    """A size as transformers writes it: height and width, or the shorter side alone."""

    model_config = ConfigDict(extra="forbid")

    height: Pixels | None = None
    width: Pixels | None = None
    shortest_edge: Pixels | None = None

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture of so many pixels becomes."""
        if self.shortest_edge is None:
            return self.height or height, self.width or width
        short = min(height, width)
        return int(height * self.shortest_edge / short), int(width * self.shortest_edge / short)


class Processor(BaseModel):
    """The parts of preprocessor_config.json that are followed; names and defaults are those of transformers."""

    model_config = ConfigDict(extra="allow")

    do_resize: bool = False
    size: Size = Size()
    resample: Literal[0, 2, 3] = 2
    do_center_crop: bool = False
    crop_size: Size = Size()
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = False
    image_mean: float | tuple[float, ...] = 0.0
    image_std: float | tuple[float, ...] = 1.0


Kind = TypeVar("Kind", bound=Processor)

_HARMLESS = ("do_convert_rgb", "do_reduce_labels")
"""Switches that change nothing of a picture that is read in the right mode and classified as a whole."""


class Preparation(nn.Module):
    """The preparation of pictures: resize, crop, rescale, normalise, as a folder says.

    Pictures arrive in [0, 1]. They are resized as floats with torch's antialiased filters; the folder's own processor rounds to
    bytes after resizing, so that where it resizes the two differ by rounding (1/255 a pixel).

    Args:
        processor: What preprocessor_config.json says.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, processor: Processor) -> None:
        super().__init__()
        self._how = processor
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        # As doubles: what they are rounded to is decided where the inputs' dtype is known.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).reshape(-1, 1, 1), persistent=False)
        self._scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [n, channels, height, width] in [0, 1] to what the folder's network takes."""
        how, pixels = self._how, pictures
        if how.do_resize and (size := how.size.of(*pixels.shape[-2:])) != tuple(pixels.shape[-2:]):
            mode = _MODES[how.resample]
            smooth = mode != "nearest-exact"
            pixels = functional.interpolate(pixels, size, mode=mode, antialias=smooth).clamp(0, 1)
        if how.do_center_crop:
            pixels = _cropped(pixels, how.crop_size.of(*pixels.shape[-2:]))
        if self._scale != 1 or how.do_normalize:
            pixels = (pixels * self._scale - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype)
        return pixels


class Pictured(Preparation):
    """A network with the preparation of its pictures.

    Args:
        network: From transformers; its outputs have `logits`.
        processor: What preprocessor_config.json says.
    """

    def __init__(self, network: PreTrainedModel, processor: Processor) -> None:
        super().__init__(processor)
        self.network = network

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one picture as the network expects it; None where its configuration does not say."""
        config = self.network.config
        side = getattr(config, "image_size", None)
        sides = (side, side) if isinstance(side, int) else tuple(side or ())
        channels = getattr(config, "num_channels", None)
        return (channels, *sides) if isinstance(channels, int) and len(sides) == 2 else None

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [n, channels, height, width] in [0, 1] to logits [n, C]."""
        return cast("Tensor", self.network(pixel_values=super().forward(pictures)).logits)


def _cropped(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (pixels.shape[-2] - size[0]) // 2, (pixels.shape[-1] - size[1]) // 2
    if top < 0 or left < 0:
        raise ModelError(
            f"pictures of {pixels.shape[-2]}x{pixels.shape[-1]} pixels cannot be cropped to {size[0]}x{size[1]}, as "
            "preprocessor_config.json asks; set image_size under [task.columns] to that size"
        )
    return pixels[..., top : top + size[0], left : left + size[1]]


def load_pictured(path: Path, dtype: str) -> Pictured:
    """Opens an image-classification folder: config.json, safetensors, and preprocessor_config.json if there is one.

    Args:
        path: The folder.
        dtype: What is computed in, by torch's name.

    Returns:
        The network in evaluation mode, with its preparation.

    Raises:
        ModelError: The folder cannot be used, asks for code, or for a preparation that is not followed here.
    """
    network = load_network(path, AutoModelForImageClassification, dtype=dtype)
    return Pictured(network, read_processor(path / "preprocessor_config.json", Processor)).eval()


def read_processor(path: Path, kind: type[Kind]) -> Kind:
    """What a preprocessor_config.json says.

    Args:
        path: The file, or a processor_config.json with the image processor in it; without it nothing is done to pictures.
        kind: What is followed of it.

    Returns:
        The preparation.

    Raises:
        ModelError: It asks for a preparation that is not followed here.
    """
    if not path.is_file():
        return kind()
    mend = "resize the pictures beforehand (image_size under [task.columns]) and remove that part"
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, Mapping):
            nested = values.get("image_processor")
            values = _with_plain_sizes(nested if isinstance(nested, Mapping) else values)
        how = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModelError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {mend}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); save the image processor again with save_pretrained") from error
    extra = how.model_extra or {}
    odd = [
        name
        for name, value in extra.items()
        if name not in _HARMLESS and value and (name.startswith("do_") or name == "crop_pct")
    ]
    if odd:
        raise ModelError(f"{path}: {odd[0]} asks for a preparation that is not followed here; {mend}")
    return how


def image_processor(path: Path, kind: type[Kind]) -> Kind:
    """What the image processor of a folder that must have one says.

    Args:
        path: The folder.
        kind: What is followed of it.

    Returns:
        The preparation.

    Raises:
        ModelError: It does not say, or asks for a preparation that is not followed here.
    """
    # transformers 5 writes the image processor into the file of the whole processor.
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path / name).is_file():
            return read_processor(path / name, kind)
    raise ModelError(
        f"{path}: no preprocessor_config.json, so how images are to be resized and normalised is not known; save the model's "
        "processor into the folder with save_pretrained"
    )


def _with_plain_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """One number for a size is its height and width, as in older files; keys that are null have their default."""
    given = {name: value for name, value in values.items() if value is not None}
    for name in ("size", "crop_size"):
        if isinstance(given.get(name), int):
            given[name] = {"height": given[name], "width": given[name]}
    return given
