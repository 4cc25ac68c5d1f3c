"""Representation: can what was to be forgotten still be read from a layer, whatever the model answers?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from muaudit.attack import Attack, Bench, BudgetCurve, Layers, Measurement, Prepared
from muaudit.errors import EnvironmentFault, ModelError, NotApplicable
from muaudit.estimators.similarity import kernel_relative_test, linear_cka
from muaudit.examples import Examples, LabelledTask
from muaudit.models import ExposesLayers, Model

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Probe = Literal["label", "class", "identity"]

FEWEST_ALIGNED = 8
"""Fewest examples whose representations are compared."""


class Representation(Attack):
    """Reads the forgotten labels, class or identities from every layer by a linear probe, and compares layers by CKA.

    The leakage of a unit is the probability that a logistic regression on one layer's output gives it its label (or its
    cluster), where the unit was no part of what the probe was trained on. The same examples train it on every model. A network
    whose last layer alone was changed still gives its forgotten labels away here.

    What is read: `label`, for forgotten examples of classes that are kept: the probe learns all classes from retain examples
    and is judged on all forget examples. `class`, for forgotten classes: it learns every class, the forgotten ones from one
    half of their clusters, and is judged on the other half, both ways; and it learns from so few examples that an honest
    retrain, in whose features an unknown class stands apart too, is far from always right. `identity`, for clusters of several
    examples, such as people: it learns to tell forgotten clusters by half of each one's examples and is judged on the other
    half, both ways; it needs models that make more of a person than the input itself shows.

    The layer that decides is the one before the logits where the original and the reference set aside for calibration differ
    most; without both, the last before the logits. All layers stand in the curve and the heat map. Linear CKA (debiased) with
    the calibration reference and with the original, on forget and on other examples, and the kernel relative test (are the
    model's answers to the forget set distributed more like the calibration reference's than like the original's?) stand beside
    it and decide nothing.

    Attributes:
        probe: What is read; by default `class` where a class is forgotten (its retain examples are fewer than a tenth of its
            forget examples), otherwise `label`.
        probe_examples: At most so many retain examples train the probe for labels, drawn from the plan's seed.
        shots: Examples of each class that train one probe for classes.
        repeats: Such probes, each with examples of its own; half of them are judged on each half of the forgotten clusters.
        inverse_penalty: Of the probe's squared weights, scikit-learn's C, for outputs scaled to a mean squared norm of 1.
        aligned: At most so many examples of a set are compared by CKA.
        answers: At most so many forget examples go into the relative test.
    """

    name: ClassVar = "representation"
    version: ClassVar = "1"
    summary: ClassVar = (
        "Reads forgotten labels, classes or identities from the layers by linear probes, against retrained models."
    )
    source: ClassVar = (
        "linear probes: Alain and Bengio 2016 (arXiv 1610.01644); CKA: Kornblith et al. 2019 (arXiv 1905.00414), debiased "
        "as in Nguyen et al. 2021 (arXiv 2010.15327), layer by layer as in the Unlearning Comparator; "
        "relative test: Bounliphone et al. 2016 (arXiv 1511.04581)"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (ExposesLayers,)
    calibrates: ClassVar = True
    cost: ClassVar = "one forward pass an example and layer; a small logistic regression a layer (and repeat)"

    probe: Literal["auto", "label", "class", "identity"] = "auto"
    probe_examples: Annotated[int, Field(ge=10)] = 300
    shots: Annotated[int, Field(ge=1)] = 1
    repeats: Annotated[int, Field(ge=2)] = 20
    inverse_penalty: Annotated[float, Field(gt=0)] = 10.0
    aligned: Annotated[int, Field(ge=FEWEST_ALIGNED)] = 64
    answers: Annotated[int, Field(ge=10)] = 200

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the probes' examples, reads original and calibration reference, and picks the layer that decides."""
        task = bench.examples
        if task.outputs != "classes":
            raise NotApplicable("probes read classes, and the task's labels are numbers to predict")
        task.forget.pictured()
        kind = self._kind(task)
        folds = {"label": self._label, "class": self._class, "identity": self._identity}[kind](task, bench.rng)
        notes = [f"probes for the {kind}"]
        if kind == "class":
            notes[0] += f", from {self.shots} examples a class, {self.repeats} times"
        data: dict[str, Any] = {
            "folds": [fold.plain() for fold in folds],
            "aligned": {name: _drawn(rows, self.aligned, bench.rng) for name, rows in _sets(task)},
            "answers": _drawn(task.rows("forget"), self.answers, bench.rng),
            "known": {},
        }
        shown = {}
        for name, opening in (("reference", bench.open_calibration), ("original", bench.open_original)):
            if opening is None:
                there = "one reference only" if name == "reference" else "none"
                notes.append(f"not compared with the {name}: the audit has {there}")
                continue
            read = _Read.of(opening(), task)
            data["known"][name] = {
                "layers": list(read.layers),
                "aligned": {
                    kept: [_compressed(layer[rows]) for layer in read.outputs] for kept, rows in data["aligned"].items()
                },
                "answers": special.softmax(read.outputs[-1][data["answers"]], axis=1).tolist(),
            }
            shown[name] = self._probed(read, folds, len(task.forget)).mean(1)
        data["place"], said = _deciding(shown, {name: one["layers"] for name, one in data["known"].items()})
        return Prepared(data=data | {"notes": [*notes, said]})

    def _kind(self, task: LabelledTask) -> Probe:
        if self.probe == "auto":
            return "class" if _forgotten(task) else "label"
        return self.probe

    def _label(self, task: LabelledTask, rng: np.random.Generator) -> "list[_Fold]":
        """One probe, trained on retain examples and judged on the whole forget set."""
        if unknown := set(task.forget.labels.tolist()) - set(task.retain.labels.tolist()):
            raise NotApplicable(f'class {min(unknown)} has no retain examples to learn it from: take probe = "class"')
        if len(set(task.retain.labels.tolist())) < 2:
            raise NotApplicable("a probe needs examples of two classes in the retain set at least")
        rows = np.array(_drawn(task.rows("retain"), self.probe_examples, rng))
        if lost := set(task.forget.labels.tolist()) - set(task.pool.labels[rows].tolist()):
            raise NotApplicable(f"none of {len(rows)} retain examples drawn is of class {min(lost)}: raise probe_examples")
        forget = task.rows("forget")
        return [_Fold(rows, task.pool.labels[rows], forget, task.pool.labels[forget])]

    def _class(self, task: LabelledTask, rng: np.random.Generator) -> "list[_Fold]":
        """Few-shot probes for all classes: forgotten ones are learnt from half of their clusters, judged on the other half."""
        labels, forget, retain = task.pool.labels, task.rows("forget"), task.rows("retain")
        forgotten = _forgotten(task)
        others = sorted(set(labels[retain].tolist()) - set(forgotten))
        if not forgotten or len(forgotten) + len(others) < 2:
            raise NotApplicable(
                'probe = "class" needs a class that is forgotten, its retain examples fewer than a tenth of its forget '
                "examples, and another class"
            )
        mine = {one: forget[labels[forget] == one] for one in forgotten}
        halves = [_halves(rows, task.pool.clusters, rng) for rows in mine.values()]
        if not all(len(half) for pair in halves for half in pair):
            raise NotApplicable(
                "half of a forgotten class's clusters are to train a probe, and one class has but one: give clusters"
            )
        strays = forget[~np.isin(labels[forget], forgotten) & np.isin(labels[forget], others)]
        if len(strays) + sum(map(len, mine.values())) < len(forget):
            raise NotApplicable("a forget example is of a class that nothing teaches a probe: give retain examples of it")
        folds = []
        for repeat in range(self.repeats):
            learnt = [half[repeat % 2] for half in halves] + [retain[labels[retain] == one] for one in others]
            rows = np.concatenate([rng.permutation(one)[: self.shots] for one in learnt])
            judged = np.concatenate([strays, *(half[1 - repeat % 2] for half in halves)])
            folds.append(_Fold(rows, labels[rows], judged, labels[judged]))
        return folds

    def _identity(self, task: LabelledTask, rng: np.random.Generator) -> "list[_Fold]":
        """Two probes for the cluster of a forget example, each learnt from one half of every cluster's examples."""
        names, codes = np.unique(np.array(task.forget.clusters), return_inverse=True)
        if len(names) < 2 or np.bincount(codes).min() < 2:
            raise NotApplicable("a probe for identities needs two forgotten clusters, each of two examples at least")
        side = np.zeros(len(codes), dtype=bool)
        for one in range(len(names)):
            own = rng.permutation(np.flatnonzero(codes == one))
            side[own[: len(own) // 2]] = True
        places = task.rows("forget")
        return [_Fold(places[part], codes[part], places[~part], codes[~part]) for part in (side, ~side)]

    def _probed(self, read: "_Read", folds: "Sequence[_Fold]", forget: int) -> FloatArray:
        """Probability that each layer's probe gives each forget example what it is [L, n]: mean over folds that judge it."""
        found = np.zeros((len(read.layers), forget))
        for layer, outputs in enumerate(read.outputs):
            total, count = np.zeros(forget), np.zeros(forget)
            for fold in folds:
                total[fold.judged] += fold.probability(outputs, self.inverse_penalty)
                count[fold.judged] += 1
            found[layer] = total / count
        return found

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Reads all layers once and trains the probes; `rng` is not needed, since all draws were made in `prepare`."""
        data, task = prepared.data, prepared.examples
        read = _Read.of(model, task)
        probed = self._probed(read, [_Fold.read(fold) for fold in data["folds"]], len(task.forget))
        place = len(read.layers) + data["place"]
        if place < 0:
            raise ModelError(
                f"the model has {len(read.layers)} layers to read, and layer {-data['place']} from the end decides"
            )
        curves, summaries, notes = (
            {"probe": _curve(read.layers, "probe's probability", probed.mean(1))},
            {},
            list(data["notes"]),
        )
        for name, known in data["known"].items():
            if list(read.layers) != known["layers"]:
                notes.append(f"not compared with the {name}, whose layers are others")
                continue
            for kept, layers in known["aligned"].items():
                aligned = _alignments(read, data["aligned"][kept], layers)
                if aligned is not None:
                    curves[f"CKA with the {name}, {kept} examples"] = _curve(read.layers, "linear CKA", aligned)
                    summaries[f"cka_{name}_{kept}"] = float(aligned[place])
        summaries |= _relative(special.softmax(read.outputs[-1], axis=1), data, task.pool)
        values = np.clip(probed, 0.0, 1.0)
        return Measurement(
            units=task.forget.ids,
            clusters=task.forget.clusters,
            sets=("forget",) * len(task.forget),
            leakage=tuple(values[place].tolist()),
            curves=curves,
            heat_maps={"read by the probe": Layers(rows=read.layers, values=tuple(tuple(row) for row in values.tolist()))},
            summaries=summaries,
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class _Fold:
    """What trains one probe and what judges it: places in the pool (the forget set stands first there), and classes."""

    rows: IntArray
    learnt: IntArray
    judged: IntArray
    asked: IntArray

    def plain(self) -> dict[str, list[int]]:
        return {name: column.tolist() for name, column in vars(self).items()}

    @classmethod
    def read(cls, plain: dict[str, list[int]]) -> "_Fold":
        return cls(**{name: np.array(column, dtype=np.int64) for name, column in plain.items()})

    def probability(self, outputs: FloatArray, inverse_penalty: float) -> FloatArray:
        """Probability of what is asked, for each judged example."""
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise EnvironmentFault("probes need scikit-learn: pip install 'muaudit[vision]'") from error
        known, asked = _in_span(outputs[self.rows], outputs[self.judged])
        learner = LogisticRegression(C=inverse_penalty, max_iter=1_000).fit(known, self.learnt)
        columns = np.searchsorted(learner.classes_, self.asked)
        probabilities: FloatArray = learner.predict_proba(asked)[np.arange(len(columns)), columns]
        return probabilities


@dataclass(frozen=True)
class _Read:
    """One model's outputs of every layer for the whole pool, [N, d] each."""

    layers: tuple[str, ...]
    outputs: tuple[FloatArray, ...]

    @classmethod
    def of(cls, model: Model, task: LabelledTask) -> "_Read":
        assert isinstance(model, ExposesLayers)  # noqa: S101 - the runner checked `needs`
        layers, inputs = model.layers(), task.pool.pictured()
        outputs = tuple(np.asarray(model.activations(inputs, layer), dtype=np.float64) for layer in layers)
        for layer, one in zip(layers, outputs, strict=True):
            if not np.isfinite(one).all():
                raise ModelError(f"layer {layer!r} gives a number that is not finite: check the model's weights and its dtype")
        return cls(tuple(layers), outputs)


def _in_span(known: FloatArray, asked: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both in the coordinates of the centred `known`'s span, scaled to its mean squared norm.

    A penalised linear probe has its weights in that span, so that nothing is lost, and a wide layer costs no more than its
    examples. A layer that is the same for all of them is left as zeros.
    """
    centre = known.mean(0)
    left, sizes, right = np.linalg.svd(known - centre, full_matrices=False)
    scale = float(np.sqrt((sizes**2).sum() / len(known)))
    if scale <= 1e-12 * (1 + float(np.abs(centre).max(initial=0.0))):
        return np.zeros((len(known), 1)), np.zeros((len(asked), 1))
    return left * sizes / scale, (asked - centre) @ right.T / scale


def _sets(task: LabelledTask) -> Iterator[tuple[str, IntArray]]:
    """What CKA is measured on: the forget set, and beside it retain examples, or holdout ones where there are none."""
    yield "forget", task.rows("forget")
    for other in ("retain", "holdout"):
        if len(rows := task.rows(other)):
            yield other, rows
            return


def _forgotten(task: LabelledTask) -> list[int]:
    """Classes whose retain examples, which may be mislabelled ones, are fewer than a tenth of their forget examples."""
    size = int(max(part.labels.max(initial=0) for part in (task.forget, task.retain))) + 1
    forget, retain = (np.bincount(part.labels, minlength=size) for part in (task.forget, task.retain))
    return np.flatnonzero(10 * retain < forget).tolist()


def _drawn(rows: IntArray, most: int, rng: np.random.Generator) -> list[int]:
    """At most so many of the places, ascending."""
    return sorted(rng.choice(rows, most, replace=False).tolist()) if len(rows) > most else rows.tolist()


def _halves(rows: IntArray, clusters: Sequence[str], rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The places of two halves of the clusters."""
    codes = np.unique(np.array([clusters[row] for row in rows]), return_inverse=True)[1]
    count = int(codes.max()) + 1
    first = np.isin(codes, rng.permutation(count)[: count // 2])
    return rows[first], rows[~first]


def _compressed(outputs: FloatArray) -> list[list[float]]:
    """As many numbers an example as there are examples at most, with the same inner products between centred outputs."""
    centred = outputs - outputs.mean(0)
    if centred.shape[1] > len(centred):
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        centred = left * sizes
    return [[float(f"{value:.6g}") for value in row] for row in centred.tolist()]


def _deciding(shown: dict[str, FloatArray], layers: dict[str, list[str]]) -> tuple[int, str]:
    """The layer whose probe decides, counted from the end, and why.

    Never the last one where there are others: the logits are what an unlearning method changes first.
    """
    if len(shown) == 2 and layers["original"] == layers["reference"]:
        names = layers["original"]
        inner = (shown["original"] - shown["reference"])[: max(1, len(names) - 1)]
        place = int(inner.argmax())
        return place - len(names), f"layer {names[place]} decides: there original and calibration reference differ most"
    few = min((len(names) for names in layers.values()), default=2)
    return -min(2, few), "the last layer before the logits decides"


def _alignments(read: _Read, rows: list[int], known: Sequence[Any]) -> FloatArray | None:
    """Linear CKA of each layer with the known model's; None of too few examples. A layer that is constant aligns with none."""
    if len(rows) < FEWEST_ALIGNED:
        return None
    values = []
    for own, other in zip((outputs[rows] for outputs in read.outputs), map(np.array, known), strict=True):
        constant = any(np.abs(side - side[0]).max() <= 1e-12 * (1 + np.abs(side).max()) for side in (own, other))
        values.append(0.0 if constant else linear_cka(own, other))
    return np.array(values)


def _curve(layers: Sequence[str], label: str, values: FloatArray) -> BudgetCurve:
    return BudgetCurve(
        x_label="layer: " + ", ".join(f"{number} {name}" for number, name in enumerate(layers)),
        y_label=label,
        x=tuple(float(number) for number in range(len(layers))),
        y=tuple(values.tolist()),
    )


def _relative(answers: FloatArray, data: dict[str, Any], pool: Examples) -> dict[str, float]:
    """The kernel relative test of class probabilities, where both known models answered in as many classes."""
    known, rows = data["known"], data["answers"]
    if len(known) < 2 or len({pool.clusters[row] for row in rows}) < 3:
        return {}
    reference, original = (np.array(known[name]["answers"]) for name in ("reference", "original"))
    if not reference.shape == original.shape == (len(rows), answers.shape[1]):
        return {}
    codes = np.unique(np.array([pool.clusters[row] for row in rows]), return_inverse=True)[1]
    test = kernel_relative_test(answers[rows], reference[None], original, codes)
    return {"relative_statistic": test.statistic, "relative_p_value": test.p_value}
