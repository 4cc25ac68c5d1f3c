"""An evaluator that is an object detector: a concept is in an image when there is a box of it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from transformers import AutoModelForObjectDetection

from muaudit.diffusion.assessing import Assessment, Evaluator, FloatArray, Images, Places, fitted, in_batches
from muaudit.errors import ModelError
from muaudit.evaluators import DetectorEvaluator
from muaudit.loaders.example_columns import first_line
from muaudit.manifest import manifest, manifest_digest
from muaudit.models.folder import load_network, pick_device
from muaudit.models.image_classifier import Pixels, Preparation, Processor, Size, image_processor

_MULTIPLE = {"yolos": 16}
"""What sides that a detector's processor scales are rounded down to a multiple of, by type of model; others' are not."""


class DetectorSize(Size):
    """A size as detectors' processors write it: with a limit to the longer side.

    Attributes:
        longest_edge: The limit.
        multiple: What sides are rounded down to a multiple of.
    """

    longest_edge: Pixels | None = None
    multiple: Pixels = 1

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture of so many pixels becomes."""
        if self.shortest_edge is None:
            return super().of(height, width)
        short, edge = min(height, width), float(self.shortest_edge)
        if self.longest_edge is not None and max(height, width) * edge > self.longest_edge * short:
            edge = self.longest_edge * short / max(height, width)
        sides = [round(edge) if side == short else int(edge * side / short) for side in (height, width)]
        return sides[0] - sides[0] % self.multiple, sides[1] - sides[1] % self.multiple


class DetectorProcessor(Processor):
    """The parts of a detector's preprocessor_config.json that are followed.

    Attributes:
        do_pad: Padding to the largest image of a batch, of which all are of one size here.
        pad_size: Padding to a size, which is not followed.
        do_convert_annotations: Of true boxes, of which there are none here.
    """

    size: DetectorSize = DetectorSize()
    do_pad: bool = False
    pad_size: None = None
    do_convert_annotations: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Older files have the limit beside the size, and the shorter side as one number."""
        if not isinstance(values, Mapping) or "max_size" not in values:
            return values
        size = values.get("size")
        if isinstance(size, Mapping) and size.get("height") is not None and size.get("height") == size.get("width"):
            return {**values, "size": {"shortest_edge": size["height"], "longest_edge": values["max_size"]}}
        return values


class Detector(Evaluator):
    """An object detector of transformers.

    The scores of a box are the softmax of its logits where they have one column more than there are labels, "no object" being
    the last (DETR, YOLOS, Table Transformer); a box then has its highest label alone. Else they are their sigmoids (Deformable
    and Conditional DETR, RT-DETR). So do the models' own processors.

    Args:
        config: As audit.toml has it.
        name: What results call it.
        base: Folder that its path starts from.
        device: A torch device name.
    """

    def __init__(self, config: DetectorEvaluator, name: str, base: Path, device: str) -> None:
        path = base / config.path
        files = manifest_digest(manifest(path))
        self.name, self._config = name, config
        network: Any = load_network(path, AutoModelForObjectDetection, dtype="float32")
        self._labels = {int(number): str(label) for number, label in network.config.id2label.items()}
        self._places = Places(name, config.labels, self._labels)
        where = pick_device(device)
        self._network = network.to(where)
        how = image_processor(path, DetectorProcessor)
        size = how.size.model_copy(update={"multiple": _MULTIPLE.get(network.config.model_type, 1)})
        self._prepare = Preparation(how.model_copy(update={"size": size})).to(where)
        parts = [config.model_dump(mode="json", exclude={"path", "batch_size", "name"}), files]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def refuse_unknown(self, concepts: Iterable[str]) -> None:
        """Refuses concepts that are none of its labels."""
        for concept in concepts:
            self._places.of(concept)

    def assess(self, images: Images, concepts: Sequence[str]) -> Assessment:
        """Whether images[i] has a box of concepts[i] with at least `threshold`; the score is that of the best such box."""
        places = [list(self._places.of(concept)) for concept in concepts]
        pixels = fitted(images, self._config.image_mode or "RGB", self._config.image_size)
        best = np.concatenate([self._best(batch) for batch in in_batches(pixels, self._config.batch_size)])
        score = np.array([row[own].max() for row, own in zip(best, places, strict=True)])
        return Assessment(score >= self._config.threshold, score)

    def _best(self, images: Images) -> FloatArray:
        """The highest score of a box of each label in each image [n, labels]; 0 without one."""
        try:
            with torch.no_grad():
                pixels = torch.from_numpy(np.array(images)).to(self._network.device)
                logits = self._network(pixel_values=self._prepare(pixels)).logits
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"evaluator {self.name}: the detector fails ({first_line(error)}); image_size under [[task.evaluators]] makes "
                "images fit"
            ) from error
        if not logits.isfinite().all():
            raise ModelError(f"evaluator {self.name}: the detector gives NaN or infinity; check its weights")
        best: FloatArray = box_scores(logits.double(), len(self._labels)).amax(1).cpu().numpy()
        return best


def box_scores(logits: Tensor, labels: int) -> Tensor:
    """Scores of boxes by label.

    Args:
        logits: [n, boxes, labels], or with one further column for "no object".
        labels: Number of labels.

    Returns:
        [n, boxes, labels] in [0, 1]; with "no object", a box has a score for its highest label alone.

    Raises:
        ModelError: There is another number of columns.
    """
    if logits.shape[-1] == labels:
        return logits.sigmoid()
    if logits.shape[-1] != labels + 1:
        raise ModelError(f"the detector gives {logits.shape[-1]} scores a box, and has {labels} labels; check its config.json")
    shares = logits.softmax(-1)[..., :-1]
    return torch.where(shares == shares.amax(-1, keepdim=True), shares, 0.0)
