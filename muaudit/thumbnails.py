"""Small pictures for reports: images of a model, encoded anew, so that a report holds nothing that a model or a file wrote."""

import base64
import binascii
import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128
"""Most pixels a side."""

FIELDS = 2
"""A blurred picture is made of so many fields a side: what a filter blurs can be read by machine, and undone."""


def thumbnail(image: NDArray[np.float32]) -> str:
    """A small PNG of an image.

    Args:
        image: [channels, height, width] in [0, 1], of one channel (grey) or three (RGB). A side longer than `SIDE` is shrunk.

    Returns:
        The PNG as base64.

    Raises:
        ValueError: The image has another number of channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image of shape {list(image.shape)} has neither one nor three channels")
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return _encoded(picture)


def blurred(png: str) -> str:
    """The same picture, with the mean colours of its quarters running into each other, and nothing else left of it.

    Args:
        png: From `thumbnail`.

    Returns:
        A PNG as base64.
    """
    picture = _decoded(png)
    fields = picture.resize((FIELDS, FIELDS), Image.Resampling.BOX)
    return _encoded(fields.resize(picture.size, Image.Resampling.BICUBIC))


def inert(png: str) -> str | None:
    """A picture of a report from anywhere, encoded anew: nothing but its pixels is left.

    Args:
        png: What should be a small PNG as base64.

    Returns:
        The same picture as base64; None where it is not one.
    """
    try:
        return _encoded(_decoded(png))
    except (ValueError, OSError, SyntaxError, EOFError, binascii.Error, Image.DecompressionBombError):
        return None


def _decoded(png: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=("PNG",)) as opened:
            if max(opened.size) > SIDE:
                raise ValueError(f"a picture of a report has at most {SIDE} pixels a side")
            return opened.convert("L" if opened.mode == "L" else "RGB")


def _encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
