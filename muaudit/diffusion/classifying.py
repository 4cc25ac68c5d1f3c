"""An evaluator that is an image classifier of any make that audits open as models."""

import hashlib
import json
from pathlib import Path

import numpy as np

from muaudit.diffusion.assessing import FloatArray, Images, Places, Ranking, fitted
from muaudit.errors import ModelError
from muaudit.evaluators import ClassifierEvaluator
from muaudit.models.classifier import Classifier
from muaudit.models.folder import read_json
from muaudit.models.opening import open_classifier


class ClassifierRanking(Ranking):
    """A classifier, by its class scores.

    Args:
        config: As audit.toml has it.
        name: What results call it.
        base: Folder that its path starts from.
        device: A torch device name.
    """

    def __init__(self, config: ClassifierEvaluator, name: str, base: Path, device: str) -> None:
        path = base / config.path
        opened = open_classifier(path, device=device, batch_size=config.batch_size)
        super().__init__(name, Places(name, config.labels, label_names(path)), top=config.top, threshold=config.threshold)
        self._classifier = opened
        self._mode, self._size, self._flat = config.image_mode, config.image_size, False
        if isinstance(opened, Classifier) and (shape := opened.shape) is not None:
            if len(shape) == 3:
                self._mode = self._mode or ("L" if shape[0] == 1 else "RGB")
            if (path / "classifier.json").is_file():  # Hugging Face folders say by themselves what is done about sizes
                self._flat = len(shape) == 1
                self._size = self._size or ((shape[1], shape[2]) if len(shape) == 3 else None)
        parts = [config.model_dump(mode="json", exclude={"path", "batch_size", "name"}), opened.digest]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def logits(self, images: Images) -> FloatArray:
        """Logits [n, C] of images, in its mode and size."""
        inputs = fitted(images, self._mode, self._size)
        if self._flat:
            inputs = inputs.reshape(len(inputs), -1)
        try:
            return self._classifier.logits_of(np.ascontiguousarray(inputs))  # type: ignore[union-attr]
        except ModelError as error:
            raise ModelError(
                f"evaluator {self.name}: {error}; image_mode and image_size under [[task.evaluators]] make images fit"
            ) from error


def label_names(path: Path) -> dict[int, str] | None:
    """The names that a Hugging Face folder gives its classes.

    Args:
        path: Folder or file.

    Returns:
        Name by number (`id2label` of config.json); None where it gives none.

    Raises:
        ModelError: config.json gives them in another form.
    """
    file = path / "config.json"
    if not file.is_file() or (path / "classifier.json").is_file():
        return None
    named = read_json(file).get("id2label")
    try:
        return None if not named else {int(number): str(label) for number, label in dict(named).items()}
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file}: id2label cannot be read ({error}); save the model again with save_pretrained") from error
