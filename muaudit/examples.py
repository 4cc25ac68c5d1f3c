"""Labelled examples: what classifiers and regressors are trained on, asked about, and asked to forget."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.errors import NotApplicable, UsageError
from muaudit.results import DataRecord

Set = Literal["forget", "retain", "holdout"]
Outputs = Literal["classes", "numbers"]


@dataclass(frozen=True)
class Examples:
    """Examples of one kind, in a fixed order.

    Attributes:
        ids: Each example's name, unique.
        clusters: What each example stands or falls with, such as the person whom a picture shows; its id by default.
        labels: Class of each example, int64 [n] in 0..C-1; or the numbers that a regressor is to predict, float64 [n, d].
        inputs: float32 [n, ...]; None where only outputs of models were recorded.
        attributes: Further columns of text by name, such as "domain" or "true_label".
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    labels: NDArray[Any]
    inputs: NDArray[np.float32] | None = None
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many examples these are."""
        return len(self.ids)

    def take(self, rows: ArrayLike) -> Self:
        """Some of the examples.

        Args:
            rows: Their places [m], or a mask [n].

        Returns:
            These examples, in the order of `rows`.
        """
        places = np.asarray(rows)
        places = np.flatnonzero(places) if places.dtype == bool else places.astype(np.int64)
        return replace(
            self,
            ids=tuple(self.ids[place] for place in places),
            clusters=tuple(self.clusters[place] for place in places),
            labels=self.labels[places],
            inputs=None if self.inputs is None else self.inputs[places],
            attributes={name: tuple(column[place] for place in places) for name, column in self.attributes.items()},
        )

    def pictured(self) -> NDArray[np.float32]:
        """The inputs.

        Raises:
            NotApplicable: There are none: only outputs were recorded.
        """
        if self.inputs is None:
            raise NotApplicable("this attack shows inputs to models, and the task's files hold none: give the inputs too")
        return self.inputs

    @property
    def digest(self) -> str:
        """SHA-256 over ids, clusters, labels, inputs and attributes."""
        parts = hashlib.sha256(json.dumps([self.ids, self.clusters, sorted(self.attributes.items())]).encode())
        for array in (self.labels, self.inputs):
            if array is not None:
                parts.update(f"{array.dtype.str}{array.shape}".encode())
                parts.update(np.ascontiguousarray(array).tobytes())
        return parts.hexdigest()

    @classmethod
    def joined(cls, parts: "Sequence[Examples]") -> "Examples":
        """Several sets as one, in the order given; an attribute that a set lacks is empty there.

        Args:
            parts: At least one set; either all have inputs or none.

        Returns:
            Their examples.
        """
        names = dict.fromkeys(name for part in parts for name in part.attributes)
        inputs = [part.inputs for part in parts if part.inputs is not None]
        return cls(
            ids=tuple(name for part in parts for name in part.ids),
            clusters=tuple(cluster for part in parts for cluster in part.clusters),
            labels=np.concatenate([part.labels for part in parts]),
            inputs=np.concatenate(inputs) if len(inputs) == len(parts) else None,
            attributes={
                name: tuple(value for part in parts for value in part.attributes.get(name, ("",) * len(part))) for name in names
            },
        )


@dataclass(frozen=True)
class LabelledTask:
    """The three sets of a classification or regression task.

    Attributes:
        forget: Examples that the target is claimed to have forgotten; never empty.
        retain: Examples that it is to keep; may be empty.
        holdout: Examples of the same kind that no model saw; may be empty.
        outputs: Whether labels are classes or numbers.
        records: One record a file, for the plan and the report.
    """

    forget: Examples
    retain: Examples
    holdout: Examples
    outputs: Outputs = "classes"
    records: tuple[DataRecord, ...] = ()

    def __post_init__(self) -> None:
        """Checks what holds for every task, wherever it was read from."""
        if not len(self.forget):
            raise UsageError("the forget set is empty: an audit needs at least one example that was to be forgotten")
        seen: dict[str, str] = {}
        for name, part in self.sets():
            for one in part.ids:
                if one in seen:
                    place = "twice" if seen[one] == name else f"in the {seen[one]} set too"
                    raise UsageError(f"example {one!r} of the {name} set stands {place}; give every example an id of its own")
                seen[one] = name

    def sets(self) -> Iterator[tuple[Set, Examples]]:
        """The three sets by name: forget, retain, holdout."""
        yield "forget", self.forget
        yield "retain", self.retain
        yield "holdout", self.holdout

    @cached_property
    def pool(self) -> Examples:
        """All examples: forget, then retain, then holdout. Shadow models are trained on known parts of it."""
        return Examples.joined([part for _, part in self.sets()])

    def rows(self, name: Set) -> NDArray[np.int64]:
        """The places of one set's examples in the pool."""
        sizes = {label: len(part) for label, part in self.sets()}
        start = {"forget": 0, "retain": sizes["forget"], "holdout": sizes["forget"] + sizes["retain"]}[name]
        return np.arange(start, start + sizes[name])

    @property
    def digest(self) -> str:
        """SHA-256 over everything in the task that can change a measurement."""
        parts = [self.outputs, *(part.digest for _, part in self.sets())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
