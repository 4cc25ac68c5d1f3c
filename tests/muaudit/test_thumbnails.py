"""Small pictures for reports: pixels alone, blurred where asked, and nothing that is no picture."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from muaudit.thumbnails import SIDE, blurred, inert, thumbnail


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_small_images_keep_every_pixel() -> None:
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8) / 63
    np.testing.assert_array_equal(pixels(thumbnail(image)), np.rint(image[0] * 255).astype(np.uint8))
    colour = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    np.testing.assert_array_equal(pixels(thumbnail(colour)), np.rint(colour.transpose(1, 2, 0) * 255).astype(np.uint8))


def test_large_images_shrink_and_keep_their_shape() -> None:
    assert pixels(thumbnail(np.ones((3, 512, 256), dtype=np.float32))).shape == (SIDE, SIDE // 2, 3)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="neither one nor three channels"):
        thumbnail(np.zeros((4, 8, 8), dtype=np.float32))


def test_blurring_leaves_colour_and_no_detail() -> None:
    stripes = np.zeros((1, 64, 64), dtype=np.float32)
    stripes[:, :, ::8] = 1
    stripes[:, :, 1::8] = 1
    sharp, soft = pixels(thumbnail(stripes)), pixels(blurred(thumbnail(stripes)))
    assert sharp.std() > 100
    assert soft.std() < 12
    assert abs(float(soft.mean()) - float(sharp.mean())) < 6


def test_a_digit_of_eight_pixels_cannot_be_read_after_blurring() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    soft = np.array([pixels(blurred(thumbnail(one))).ravel() for one in images[:400]], dtype=float)
    from sklearn.neighbors import KNeighborsClassifier

    sharp = np.array([pixels(thumbnail(one)).ravel() for one in images[:400]], dtype=float)
    told = [
        KNeighborsClassifier(1).fit(x[:300], digits.target[:300]).score(x[300:400], digits.target[300:400])
        for x in (sharp, soft)
    ]
    assert told[0] > 0.9
    assert told[1] < 0.6  # a Gaussian filter would leave .85


def test_only_pixels_survive_encoding_anew() -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("Comment", "<script>alert(1)</script>")
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 9, dtype=np.uint8)).save(file, format="PNG", pnginfo=said)
    again = inert(base64.b64encode(file.getvalue() + b"<svg onload=alert(1)>").decode())
    assert again is not None
    assert b"alert" not in base64.b64decode(again)
    assert (pixels(again) == 9).all()


@pytest.mark.parametrize("data", [b"", b"<svg onload='alert(1)'/>", b"\x89PNG\r\n\x1a\n" + b"\0" * 30, b"GIF89a" + b"\0" * 20])
def test_what_is_no_picture_is_none(data: bytes) -> None:
    assert inert(base64.b64encode(data).decode()) is None
    assert inert('not base64: "><img src=x>') is None


def test_a_large_picture_is_none() -> None:
    file = io.BytesIO()
    Image.new("L", (SIDE + 1, 1)).save(file, format="PNG")
    assert inert(base64.b64encode(file.getvalue()).decode()) is None
