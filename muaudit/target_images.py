"""The images that an image task is about: from its files, or drawn by the original when an attack first asks for them."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muaudit import store
from muaudit.errors import ModelError, NotApplicable
from muaudit.image_task import ImagePrompt
from muaudit.models import GeneratesImages, Model, Sampling

Images = NDArray[np.float32]


class TargetImages(Mapping[str, Images]):
    """Target images by prompt id, [channels, height, width] in [0, 1].

    Args:
        given: Those that the task's files name.
        wanted: Prompts without one, which the original draws, all at once, when the first of them is asked for.
        sampling: How.
        path: Where what was drawn is kept; its name tells of which prompts and of which original it is.
        open_original: Opens the original.
    """

    def __init__(
        self,
        given: Mapping[str, Images],
        wanted: Sequence[ImagePrompt],
        *,
        sampling: Sampling,
        path: Path,
        open_original: Callable[[], Model],
    ) -> None:
        self._images = dict(given)
        self._wanted = {one.id: one for one in wanted}
        self._sampling, self._path, self._open = sampling, path, open_original

    def __getitem__(self, name: str) -> Images:
        """One prompt's image."""
        if name not in self._images and name in self._wanted:
            self._images |= dict(zip(self._wanted, self._drawn(), strict=True))
        return self._images[name]

    def __iter__(self) -> Iterator[str]:
        """The prompts that have an image, or get one."""
        return iter({**self._images, **self._wanted})

    def __len__(self) -> int:
        """How many these are."""
        return len({**self._images, **self._wanted})

    def _drawn(self) -> Images:
        """What the original draws of the wanted prompts [n, channels, height, width]; read where it was drawn before."""
        if self._path.is_file():
            images: Images = np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False)
            return images
        original = self._open()
        if not isinstance(original, GeneratesImages):
            raise NotApplicable("the original draws no images, and the task's files name none")
        images = original.images([one.query(self._sampling) for one in self._wanted.values()])
        if not np.isfinite(images).all():
            raise ModelError("the original draws images with NaN or infinite pixels; check its weights and its dtype")
        file = io.BytesIO()
        np.save(file, images, allow_pickle=False)
        store.write_atomically(self._path, file.getvalue())
        return images
