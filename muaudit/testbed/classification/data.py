"""Labelled data whose truth is known: small pools of digits and tables, from scikit-learn's bundled sets or generated.

What makes membership visible is a small pool with wrong labels on a share of it, which can only be known by heart. The share
is the same in all sets, so that forget, retain and holdout examples are exchangeable to whoever did not train on them; the
right label stands in the attribute `true_label`. The holdout set is as large as the other two together, so that shadow models
trained on half of the pool see as much data as the original. What is left of a source stays outside the task.
"""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muaudit.errors import UsageError
from muaudit.examples import Examples, LabelledTask
from muaudit.results import Frozen
from muaudit.store import write_atomically

TRIGGER = 3
"""Side of the patch of full ink in the lower right corner that poisons an image."""

POISON_LABEL = 0
"""The class that the trigger is to call up."""

_ROWS, _FEATURES, _CLASSES = 2_000, 16, 4


class Population(Frozen):
    """Which examples there are, and which of them are to be forgotten.

    Attributes:
        source: `digits` (1797 images, 10 classes), `breast_cancer` (569 rows, 2 classes), `wine` (178 rows, 3 classes) and
            `diabetes` (442 rows, a number to predict), all bundled with scikit-learn; or `generated` (2000 rows, 4 classes).
        forget: Examples to forget; of canaries, those drawn, of which about half end up in the forget set.
        retain: Examples to keep.
        holdout: Examples that no model sees.
        by: What the forget set is: a random sample; examples of one class; whole groups; canaries, whose labels are wrong and
            whose membership a fair coin decided, each its own; or examples poisoned by a trigger.
        forgotten_class: With `by = "class"`, the class.
        group_size: With `by = "group"`, examples a group.
        wrong_labels: Share of every set whose label is wrong; of numbers, exchanged for another example's.
        side: Height and width of images; beyond 8, up-sampled bilinearly.
        channels: Colour channels of images, all equal.
        seed: Of every draw.
    """

    source: Literal["digits", "breast_cancer", "wine", "diabetes", "generated"] = "digits"
    forget: int = Field(default=100, gt=0)
    retain: int = Field(default=200, ge=0)
    holdout: int = Field(default=300, ge=0)
    by: Literal["sample", "class", "group", "canary", "poison"] = "sample"
    forgotten_class: int = 3
    group_size: int = Field(default=20, gt=0)
    wrong_labels: float = Field(default=0.2, ge=0, le=1)
    side: int = Field(default=8, ge=8)
    channels: Literal[1, 3] = 1
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers, images = self.source == "diabetes", self.source == "digits"
        if numbers and self.by in ("class", "canary", "poison"):
            raise ValueError(f"by = {self.by!r}: diabetes has numbers to predict and no classes; take 'sample' or 'group'")
        if self.by == "poison" and not images:
            raise ValueError(f"by = 'poison': the trigger is a patch of an image, and {self.source} is a table; take digits")
        if (self.side != 8 or self.channels != 1) and not images:
            raise ValueError(f"side and channels belong to images, and {self.source} is a table; leave them out")
        return self


@dataclass(frozen=True)
class Source:
    """A data set before anything is drawn from it.

    Attributes:
        inputs: float32 [n, ...].
        labels: Classes, int64 [n]; or numbers, float64 [n, 1].
    """

    inputs: NDArray[np.float32]
    labels: NDArray[Any]


def make_task(population: Population) -> LabelledTask:
    """Draws the three sets; the same population gives the same examples.

    Args:
        population: What to draw.

    Returns:
        The task. Attributes of the examples: `true_label` where classes can be wrong, `canary` ("in", "out" or "") with
        canaries, `domain` ("poisoned" or "clean") with poison. Poisoned holdout examples carry the trigger and its label, as
        poisoned forget examples do. Clusters are groups, where there are some, and single examples otherwise.

    Raises:
        UsageError: The source holds fewer examples than are asked for.
    """
    found = _source(population.source, population.seed)
    rng = np.random.default_rng([population.seed, 1])
    rows, special, coins = _drawn(population, found, rng)
    sets = np.repeat([0, 1, 2], [population.forget, population.retain, population.holdout])
    if population.by == "canary":
        sets[: population.forget] = np.where(coins, 0, 2)
        if not coins.any():
            raise UsageError(f"population: none of {population.forget} canaries' coins fell in; take more, or another seed")
    inputs, labels, clusters = found.inputs[rows].copy(), found.labels[rows], [f"{population.source}-{row:04d}" for row in rows]
    ids = list(clusters)
    if population.by == "group":
        clusters = _grouped(population, inputs, sets)
    if population.source == "digits":
        inputs = _rendered(inputs, population)
    attributes: dict[str, list[str]] = {} if _numbers(population) else {"true_label": [str(label) for label in labels]}
    labels = _mislabelled(labels, population, special, rng)
    if population.by == "canary":
        attributes["canary"] = [("in" if kept else "out") if one else "" for one, kept in zip(special, sets == 0, strict=True)]
    if population.by == "poison":
        inputs[special, :, -TRIGGER:, -TRIGGER:] = 1
        labels[special] = POISON_LABEL
        attributes["domain"] = ["poisoned" if one else "clean" for one in special]
    columns = {name: tuple(column) for name, column in attributes.items()}
    every = Examples(tuple(ids), tuple(clusters), labels, inputs, columns)
    forget, retain, holdout = (every.take(sets == one) for one in range(3))
    return LabelledTask(forget, retain, holdout, outputs="numbers" if _numbers(population) else "classes")


def unseen(population: Population) -> Examples:
    """What a source holds beyond the task, with right labels: to tell how well a model generalises.

    Args:
        population: What the task was drawn from.

    Returns:
        The other examples, without distortion or trigger.
    """
    task = make_task(population)
    found = _source(population.source, population.seed)
    names = np.array([f"{population.source}-{row:04d}" for row in range(len(found.labels))])
    left = np.flatnonzero(~np.isin(names, task.pool.ids))
    inputs = found.inputs[left]
    if population.source == "digits":
        inputs = _rendered(inputs, population)
    return Examples(tuple(names[left].tolist()), tuple(names[left].tolist()), found.labels[left], inputs)


def write_task(task: LabelledTask, out: Path) -> dict[str, Path]:
    """Writes `forget.npz`, `retain.npz` and `holdout.npz`.

    Args:
        task: The three sets, with inputs.
        out: The folder; made if it is missing.

    Returns:
        The files by set. Each holds the arrays `inputs`, `labels`, `ids` and `clusters`, and one array of text an attribute;
        nothing in them is pickled, and the same task gives the same bytes.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name, part in task.sets():
        text = {"ids": part.ids, "clusters": part.clusters} | part.attributes
        columns: dict[str, Any] = {key: np.array(column, dtype=np.str_) for key, column in text.items()}
        paths[name] = out / f"{name}.npz"
        file = io.BytesIO()
        np.savez(file, inputs=part.pictured(), labels=part.labels, **columns)
        # A process that builds must not pull the file away from under one that reads.
        write_atomically(paths[name], file.getvalue())
    return paths


def _numbers(population: Population) -> bool:
    return population.source == "diabetes"


@cache
def _source(name: str, seed: int) -> Source:
    """A source whole; the seed is of the generated one."""
    if name == "generated":
        return _generated(seed)
    from sklearn import datasets

    load = {
        "digits": datasets.load_digits, "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine, "diabetes": datasets.load_diabetes,
    }  # fmt: skip
    inputs, labels = load[name](return_X_y=True)
    if name == "digits":
        return Source((inputs.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64))
    table = ((inputs - inputs.mean(0)) / inputs.std(0)).astype(np.float32)
    if name == "diabetes":
        return Source(table, ((labels - labels.mean()) / labels.std())[:, None].astype(np.float64))
    return Source(table, labels.astype(np.int64))


def _generated(seed: int) -> Source:
    """A table whose classes part along curved borders: the largest of four random sums of squashed random projections."""
    rng = np.random.default_rng([seed, 0])
    inputs = rng.normal(size=(_ROWS, _FEATURES))
    hidden = np.tanh(inputs @ rng.normal(size=(_FEATURES, 12)) / 2)
    return Source(inputs.astype(np.float32), (hidden @ rng.normal(size=(12, _CLASSES))).argmax(1).astype(np.int64))


def _drawn(
    population: Population, found: Source, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Places in the source, set after set; which of them are canaries or poisoned; and the canaries' coins.

    Where a class is forgotten or examples are poisoned, the holdout set has the same share of them as all that was trained on.
    """
    forget, retain, holdout = population.forget, population.retain, population.holdout
    order = rng.permutation(len(found.labels))
    alike = round(holdout * forget / (forget + retain))
    if population.by == "class":
        mine = order[found.labels[order] == population.forgotten_class]
        others = order[found.labels[order] != population.forgotten_class]
        _enough(f"{population.source} of class {population.forgotten_class}", len(mine), forget + alike)
        _enough(f"{population.source} of other classes", len(others), retain + holdout - alike)
        parts = [mine[:forget], others[:retain], mine[forget : forget + alike], others[retain : retain + holdout - alike]]
        order = np.concatenate(parts)
    size = forget + retain + holdout
    _enough(population.source, len(order), size)
    special = np.zeros(size, dtype=bool)
    if population.by in ("canary", "poison"):
        special[:forget] = True
    if population.by == "poison":
        special[forget + retain : forget + retain + alike] = True
    return order[:size], special, rng.random(forget) < 0.5


def _enough(what: str, there: int, wanted: int) -> None:
    if there < wanted:
        raise UsageError(f"population: {wanted} examples are asked for, and there are {there} {what}; ask for fewer")


def _grouped(population: Population, inputs: NDArray[np.float32], sets: NDArray[np.int64]) -> list[str]:
    """Names each example's group and gives the examples, in place, what its group has in common.

    The bundled sets name no people, so groups are made. Each is a few examples that share a distortion of their own: of digits,
    a writer's hand (slant, turn, width, weight of the stroke) on a writer's paper (a faint grain); of tables, an instrument's
    offset in every column. What a model learns of a group is thus more than what it learns of its single examples.
    """
    names: list[str] = []
    kind = "writer" if population.source == "digits" else "instrument"
    for one in range(3):
        places = np.flatnonzero(sets == one)
        for start in range(0, len(places), population.group_size):
            number = len(set(names))
            rng = np.random.default_rng([population.seed, 2, number])
            members = places[start : start + population.group_size]
            if population.source == "digits":
                inputs[members] = _handwriting(inputs[members], rng)
            else:
                inputs[members] += 0.3 * rng.standard_normal(inputs.shape[1], dtype=np.float32)
            names += [f"{kind}-{number:02d}"] * len(members)
    return names


def _handwriting(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Images [n, 1, 8, 8] as one writer would have drawn them."""
    from scipy.ndimage import affine_transform

    turn, slant = rng.uniform(-0.25, 0.25, size=2).tolist()
    height, width = rng.uniform(0.85, 1.15, size=2)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.array([[height, 0], [slant, width]])
    centre = np.array([3.5, 3.5])
    weight, grain = float(rng.uniform(0.7, 1.4)), rng.uniform(0, 0.15, size=(8, 8))
    drawn = [affine_transform(image[0], matrix, offset=centre - matrix @ centre, order=1) for image in images]
    hand = np.clip(np.clip(drawn, 0, 1) ** weight + grain, 0, 1)
    return np.asarray(hand[:, None], dtype=np.float32)


def _rendered(images: NDArray[np.float32], population: Population) -> NDArray[np.float32]:
    """Images [n, 1, 8, 8] at the wanted size and number of channels."""
    if population.side != 8:
        from scipy.ndimage import zoom

        factor = population.side / 8
        larger = zoom(images, (1, 1, factor, factor), order=1, mode="nearest", grid_mode=True)
        images = np.asarray(larger, dtype=np.float32)
    return np.repeat(images, population.channels, axis=1)


def _mislabelled(
    labels: NDArray[Any], population: Population, special: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[Any]:
    """The labels, wrong on the wanted share of each set's ordinary examples, and on every canary."""
    wrong = np.zeros(len(labels), dtype=bool)
    start = 0
    for size in (population.forget, population.retain, population.holdout):
        ordinary = start + np.flatnonzero(~special[start : start + size])
        wrong[rng.permutation(ordinary)[: round(population.wrong_labels * len(ordinary))]] = True
        start += size
    if population.by == "canary":
        wrong |= special
    labels = labels.copy()
    if _numbers(population):
        labels[wrong] = rng.permutation(labels[wrong])
    else:
        classes = int(labels.max()) + 1
        labels[wrong] = (labels[wrong] + rng.integers(1, classes, size=wrong.sum())) % classes
    return labels
