"""CLIP: texts and images as vectors, zero-shot classification, and the CLIP score."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel

from muaudit.diffusion.assessing import FloatArray, Images, Places, Ranking, fitted, in_batches
from muaudit.errors import ModelError, UsageError
from muaudit.evaluators import ClipEvaluator
from muaudit.loaders.example_columns import first_line
from muaudit.manifest import manifest, manifest_digest
from muaudit.models.folder import load_network, load_tokenizer, pick_device, quiet, read_json
from muaudit.models.image_classifier import Preparation, Processor, image_processor


class Clip:
    """A CLIP model of a local folder, with its tokenizer and its preparation of images.

    Attributes:
        digest: Of the folder's files.
        scale: What cosines are multiplied by before the softmax; about 100 in the published models.
    """

    def __init__(self, network: Any, tokenizer: Any, prepare: Preparation, *, digest: str, batch_size: int) -> None:  # noqa: ANN401 - transformers is untyped
        self.digest = digest
        self.scale = float(network.logit_scale.detach().exp())
        self._network, self._tokenizer, self._prepare, self._batch = network, tokenizer, prepare, batch_size
        self._length = min(int(tokenizer.model_max_length), int(network.config.text_config.max_position_embeddings))

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", batch_size: int = 64) -> Self:
        """Opens a folder.

        Args:
            path: A Hugging Face folder of a CLIP model: config.json, safetensors, tokenizer, preprocessor_config.json.
            device: A torch device name, or "auto".
            batch_size: Images or texts at a time.

        Returns:
            The model, in float32.

        Raises:
            ModelError: It cannot be opened safely, or is no CLIP model.
            EnvironmentFault: The device is not there.
        """
        digest = manifest_digest(manifest(path))
        if (kind := read_json(path / "config.json").get("model_type")) != "clip":
            raise ModelError(f"{path}: a model of type {kind!r}, where a CLIP model (type 'clip') belongs")
        network = load_network(path, CLIPModel, dtype="float32")
        with quiet():
            tokenizer = load_tokenizer(path)
        if tokenizer.pad_token_id is None:
            raise ModelError(f"{path}: the tokenizer has no padding token; set pad_token, and save it again")
        rows, largest = network.config.text_config.vocab_size, max(tokenizer.get_vocab().values(), default=-1)
        if largest >= rows:
            raise ModelError(
                f"{path}: the tokenizer's ids go up to {largest}, but the model has embeddings for {rows} tokens; this is "
                "another model's tokenizer: save the right one into the folder"
            )
        where = pick_device(device)
        prepare = Preparation(image_processor(path, Processor)).to(where)
        return cls(network.to(where), tokenizer, prepare, digest=digest, batch_size=batch_size)

    def ids(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask of texts, padded; what is longer than the model reads is cut, as CLIP does it."""
        given = self._tokenizer(list(texts), padding=True, truncation=True, max_length=self._length, return_tensors="pt")
        return {name: given[name].to(self._network.device) for name in ("input_ids", "attention_mask")}

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of texts.

        Args:
            texts: n texts.

        Returns:
            [n, d], of length 1.

        Raises:
            ModelError: One is NaN or infinite.
        """
        vision = self._network.config.vision_config
        blank = torch.zeros((1, vision.num_channels, vision.image_size, vision.image_size), device=self._network.device)
        parts = [
            self._embedded(**self.ids(texts[start : start + self._batch]), pixel_values=blank).text_embeds
            for start in range(0, len(texts), self._batch)
        ]
        return unit_rows(parts, "text")

    def images(self, images: Images) -> FloatArray:
        """Vectors of images.

        Args:
            images: [n, channels, height, width] in [0, 1], of one or three channels, n >= 1.

        Returns:
            [n, d], of length 1.

        Raises:
            ModelError: One is NaN or infinite, or the images do not suit the model.
        """
        said, parts = self.ids([""]), []
        for batch in in_batches(images, self._batch):
            pixels = torch.from_numpy(fitted(batch, "RGB", None)).to(self._network.device)
            with torch.no_grad():
                prepared = self._prepare(pixels)
            parts.append(self._embedded(**said, pixel_values=prepared).image_embeds)
        return unit_rows(parts, "image")

    def _embedded(self, **inputs: Tensor) -> Any:  # noqa: ANN401 - transformers is untyped
        """What the whole model makes of inputs: of its towers alone, releases of transformers return different things."""
        try:
            with torch.no_grad():
                return self._network(**inputs)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the CLIP model fails ({first_line(error)}); its processor must fit its image size") from error


class ClipRanking(Ranking):
    """A zero-shot classifier over texts.

    Args:
        config: As audit.toml has it.
        name: What results call it.
        base: Folder that its path starts from.
        device: A torch device name.
        concepts: All concepts of the task, in an order that does not change.
    """

    def __init__(self, config: ClipEvaluator, name: str, base: Path, device: str, concepts: Sequence[str]) -> None:
        called = [*dict.fromkeys((*concepts, *config.texts)), *config.others]
        said = [config.texts.get(one, config.template.format(one)) for one in called[: len(called) - len(config.others)]]
        said += config.others
        if len(set(said)) < 2 or len(set(said)) < len(said):
            raise UsageError(
                f"evaluator {name}: a zero-shot classifier chooses between texts, and there is only {said}; name further ones "
                'by others, such as others = ["a photo"], each once'
            )
        super().__init__(name, Places(name, {}, dict(enumerate(called))), top=config.top, threshold=config.threshold)
        self._clip = Clip.open(base / config.path, device=device, batch_size=config.batch_size)
        ids = self._clip.ids(said)["input_ids"].tolist()
        for place, row in enumerate(ids):
            if (other := ids.index(row)) < place:
                raise UsageError(
                    f"evaluator {name}: its tokenizer reads {said[other]!r} and {said[place]!r} alike, so it cannot tell them "
                    "apart; write texts of words that it knows"
                )
        self._texts = self._clip.texts(said)
        self._mode, self._size = config.image_mode, config.image_size
        parts = [config.model_dump(mode="json", exclude={"path", "batch_size", "name"}), called, self._clip.digest]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def logits(self, images: Images) -> FloatArray:
        """Scaled cosines [n, texts] of images and texts."""
        scores: FloatArray = self._clip.scale * self._clip.images(fitted(images, self._mode, self._size)) @ self._texts.T
        return scores


def unit_rows(parts: Sequence[Tensor], what: str) -> FloatArray:
    """Vectors as rows of length 1.

    Args:
        parts: Batches [n_i, d].
        what: What they are of, for errors.

    Returns:
        [n, d].

    Raises:
        ModelError: One is NaN, infinite or zero.
    """
    rows = torch.cat(list(parts)).double().cpu().numpy()
    return normalised(rows, what)


def normalised(rows: NDArray[np.float64], what: str) -> FloatArray:
    """Rows divided by their length.

    Args:
        rows: [n, d].
        what: What they are of, for errors.

    Returns:
        [n, d].

    Raises:
        ModelError: One is NaN, infinite or zero.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(rows).all(1) | (lengths[:, 0] == 0))
    if len(bad):
        raise ModelError(f"{what} {bad[0]} has a vector of NaN, of infinity or of zeros; check the weights of the model")
    unit: FloatArray = rows / lengths
    return unit
