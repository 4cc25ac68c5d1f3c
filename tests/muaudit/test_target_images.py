"""Target images: from files, or drawn by the original once, when they are first asked for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from muaudit.errors import ModelError, NotApplicable
from muaudit.image_task import ImagePrompt
from muaudit.models import ImageQuery, Sampling
from muaudit.target_images import TargetImages

SAMPLING = Sampling(sampler="ddim", steps=4)


class Painter:
    """Draws a shade from the seed, and counts how often it was asked."""

    digest = "painter"
    model_seconds = 0.0

    def __init__(self, shade: float = 0.0) -> None:
        self.asked, self.shade = 0, shade

    def images(self, queries: Sequence[ImageQuery]) -> NDArray[np.float32]:
        self.asked += 1
        return np.stack([np.full((1, 2, 2), self.shade + one.seed / 100, dtype=np.float32) for one in queries])


def prompt(name: str, seed: int) -> ImagePrompt:
    return ImagePrompt(id=name, cluster=name, prompt="x", concept="three", seed=seed)


def images(original: Painter, path: Path) -> TargetImages:
    given = {"given": np.ones((1, 2, 2), dtype=np.float32)}
    wanted = [prompt("a", 10), prompt("b", 20)]
    return TargetImages(given, wanted, sampling=SAMPLING, path=path, open_original=lambda: original)


def test_nothing_is_drawn_before_it_is_asked_for(tmp_path: Path) -> None:
    original = Painter()
    seen = images(original, tmp_path / "drawn" / "k.npy")
    assert set(seen) == {"given", "a", "b"}
    assert len(seen) == 3
    assert "b" in dict.fromkeys(seen)
    assert seen["given"].mean() == 1
    assert original.asked == 0
    np.testing.assert_allclose(seen["b"], 0.2)
    np.testing.assert_allclose(seen["a"], 0.1)
    assert original.asked == 1


def test_what_was_drawn_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "k.npy"
    first = images(Painter(), path)["a"]
    other = Painter(shade=0.5)
    np.testing.assert_array_equal(images(other, path)["a"], first)
    assert other.asked == 0


def test_broken_images_are_refused_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "k.npy"
    with pytest.raises(ModelError, match="NaN"):
        images(Painter(shade=float("nan")), path)["a"]
    assert not path.exists()


def test_unknown_prompts_have_none(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        images(Painter(), tmp_path / "k.npy")["c"]


def test_an_original_that_draws_nothing_leaves_the_attack_out(tmp_path: Path) -> None:
    class Mute:
        digest = ""
        model_seconds = 0.0

    seen = TargetImages({}, [prompt("a", 1)], sampling=SAMPLING, path=tmp_path / "k.npy", open_original=Mute)
    with pytest.raises(NotApplicable, match="draws no images"):
        seen["a"]
