"""Populations: many classifiers that were made alike with different seeds, as a cohort's folder or as recorded logits."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import ModelError, UsageError
from muaudit.examples import Examples
from muaudit.loaders.example_columns import bytes_of, first_line, load_arrays, pick, texts_of
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import class_scores
from muaudit.training.cohorts import Cohort


class Population:
    """Many models that were made alike.

    A folder holds `cohort.json` and its stacks, as the shadow trainer writes them. An npz file holds `logits` [M, n, C] and the
    examples' `ids` [n]; what else stands there (such as a shadow file's `keep`) is not looked at.
    """

    def __init__(self, asked: Callable[[Examples], NDArray[np.float64]], digest: str, shown: str) -> None:
        """Wraps what gives logits.

        Args:
            asked: Gives every member's logits [M, n, C] of examples.
            digest: What identifies the models.
            shown: What to call them in errors.
        """
        self._asked, self._digest, self._shown = asked, digest, shown
        self.model_seconds = 0.0

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a population.

        Args:
            path: A cohort's folder, or an npz file.

        Returns:
            The population.

        Raises:
            ModelError: It is neither, is damaged, or predicts numbers instead of classes.
        """
        digest = manifest_digest(manifest(path))
        if not path.is_dir():
            return cls(_recorded(path), digest, str(path))
        cohort = Cohort.open(path)
        if cohort.description.labels != "classes":
            raise ModelError(f"{path}: these models predict numbers, and a population is of classifiers; give others")
        return cls(cohort.logits, digest, str(path))

    @property
    def digest(self) -> str:
        """Digest of the files."""
        return self._digest

    def member_logits(self, examples: Examples) -> NDArray[np.float64]:
        """Logits [M, n, C] of every member.

        Args:
            examples: In any order.

        Returns:
            The logits, in the order of the examples.

        Raises:
            ModelError: A member gives NaN, an example was not recorded, or its class has no column.
            NotApplicable: Only outputs on other examples were kept.
        """
        started = time.perf_counter()
        logits = self._asked(examples)
        self.model_seconds += time.perf_counter() - started
        try:
            for member in logits:
                class_scores.refuse_unknown_classes(class_scores.class_logits(member, examples.ids), examples)
        except ModelError as error:
            raise ModelError(f"{self._shown}: {error}") from error
        return logits


def _recorded(path: Path) -> Callable[[Examples], NDArray[np.float64]]:
    """Logits by the examples' ids, from an npz file."""
    shown = str(path)
    try:
        arrays = load_arrays(bytes_of(path, shown), shown)
        name = pick("id", None, arrays, shown)
        ids = None if name is None else texts_of(arrays[name], f"{shown}: array {name!r}")
    except UsageError as error:
        raise ModelError(first_line(error)) from error
    logits = arrays.get("logits")
    if ids is None or logits is None or logits.ndim != 3 or logits.dtype.kind not in "fiu" or logits.shape[1] != len(ids):
        raise ModelError(f"{shown}: a population is an npz with logits [models, examples, classes] and the examples' ids")
    if len(set(ids)) < len(ids):
        raise ModelError(f"{shown}: an example is recorded twice; record every example once")
    places = {one: place for place, one in enumerate(ids)}

    def asked(examples: Examples) -> NDArray[np.float64]:
        if missing := [one for one in examples.ids if one not in places]:
            raise ModelError(f"{shown}: nothing is recorded of example {missing[0]!r}; record every example of the task")
        return np.asarray(logits[:, [places[one] for one in examples.ids]], dtype=np.float64)

    return asked
