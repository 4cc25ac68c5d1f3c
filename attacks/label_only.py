"""Label only: how far must an example be moved before the model calls it something else?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.models import ClassifiesInputs, Model
from muaudit.scored import Scored, draw_retain

FloatArray = NDArray[np.float64]
Inputs = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LEVELS = (0.25, 0.5, 1.0, 2.0)
"""Standard deviations of the noise, in those of the inputs."""

HALVINGS = 12
"""Steps of the last search along a line, which finds the boundary to 1/4096 of the distance."""

SEARCHES = 2_000
"""Most queries that a step of HopSkipJump may take beside the gradient's; it usually takes about twenty."""

AT_ONCE = 4_096
"""Inputs that HopSkipJump shows to a model at a time."""


class LabelOnly(Attack):
    """A baseline for those who are told the predicted class and nothing else.

    Training pushes the boundary between classes away from the examples that it sees. The score of an example that is called
    by its label is how robust that is; the score of one that is not is 0, as in ART's label-only attack. Two ways to tell:

    - `boundary`: Euclidean distance to the nearest input found that is called something else, by HopSkipJump of the
      Adversarial Robustness Toolbox from a fixed seed, within a small budget. It starts from the nearest other scored example
      that the model calls something else; a model that calls all of them the same has no boundary to find, and the range of the
      inputs stands for its distance.
    - `noise`: share of its copies with Gaussian noise, itself among them, that are called by its label, over noise of a
      quarter, a half, one and two standard deviations of the inputs (Choquette-Choo et al.'s noise robustness).

    The leakage of a unit is the rank of its score among the scored holdout examples' on the same model, ties counted half.
    Like population it ranks below lira and rmia. Access is called "logits" because the audit asks models for class scores,
    of which only the place of the largest is looked at; there is no smaller word for labels.

    Attributes:
        robustness: Which of the two decides; only that one is asked for.
        iterations: With `boundary`: steps of HopSkipJump, each a gradient estimate and a search along a line.
        evaluations: With `boundary`: most queries of one gradient estimate; the first takes half as many.
        copies: With `noise`: copies of an example at each level.
        retain_examples: At most so many retain examples are scored, drawn from the plan's seed.
        holdout_examples: At most so many holdout examples are scored, drawn from the plan's seed.
    """

    name: ClassVar = "label_only"
    version: ClassVar = "1"
    summary: ClassVar = "A baseline that ranks below LiRA and RMIA: sees predicted classes only, and asks how robust they are."
    source: ClassVar = (
        "Choquette-Choo et al. 2021, Label-Only Membership Inference Attacks (arXiv 2007.14321); Li and Zhang 2021 (arXiv "
        "2007.15528); HopSkipJump: Chen et al. 2020 (arXiv 1904.02144) in the Adversarial Robustness Toolbox"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (ClassifiesInputs,)
    sided: ClassVar = "two"
    cost: ClassVar = "a few hundred queries an example"

    robustness: Literal["boundary", "noise"] = "boundary"
    iterations: Annotated[int, Field(ge=1)] = 3
    evaluations: Annotated[int, Field(ge=2)] = 60
    copies: Annotated[int, Field(ge=1)] = 25
    retain_examples: Annotated[int, Field(ge=0)] = 30
    holdout_examples: Annotated[int, Field(ge=1)] = 100

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the retain and holdout examples, and the seed of every model's noise."""
        if self.robustness == "boundary":
            _toolbox()  # says what is missing before any model is asked
        retain, notes = draw_retain(bench.examples, self.retain_examples, bench.rng)
        bench.examples.forget.pictured()  # says what is missing where only outputs were recorded
        total = len(bench.examples.holdout)
        holdout = sorted(bench.rng.permutation(total)[: self.holdout_examples].tolist())
        if len(holdout) < total:
            notes.append(f"ranked among {len(holdout)} of {total} holdout examples, drawn by the seed")
        return Prepared(data={"retain": retain, "holdout": holdout, "seed": int(bench.rng.integers(2**32)), "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Tells how robust every example's label is; what is drawn comes from the prepared seed, alike for every model."""
        assert isinstance(model, ClassifiesInputs)  # noqa: S101 - the runner checked `needs`
        data, task = prepared.data, prepared.examples
        scored = Scored.of(replace(task, holdout=task.holdout.take(data["holdout"])), data["retain"])
        asked = _Labels(model)
        inputs, labels = scored.examples.pictured(), scored.examples.labels
        called = asked(inputs)
        right = called == labels
        robust = (
            self._distances(asked, inputs, called, right, data["seed"])
            if self.robustness == "boundary"
            else (self._shares(asked, inputs, labels, data["seed"]))
        )
        columns = {self.robustness: np.where(right, robust, 0.0), "correct": right.astype(np.float64)}
        return scored.measurement(
            columns, self.robustness, summaries={"queries_per_example": asked.queries / len(inputs)}, notes=data["notes"]
        )

    def _distances(self, asked: "_Labels", inputs: Inputs, called: IntArray, right: BoolArray, seed: int) -> FloatArray:
        """Distance of each example that is called by its label to the boundary that HopSkipJump finds [n]."""
        low, high = float(inputs.min()), float(inputs.max())
        distances = np.full(len(inputs), (high - low) * np.sqrt(inputs[0].size))
        starts = _starts(inputs.reshape(len(inputs), -1).astype(np.float64), called)
        rows = np.flatnonzero(right & (starts >= 0))
        if not len(rows):
            return distances
        attack, wrapped = _toolbox()
        black_box = wrapped(asked.one_hot, inputs.shape[1:], asked.classes, clip_values=(low, high))
        search = attack(
            black_box, batch_size=AT_ONCE, max_iter=self.iterations, max_eval=self.evaluations,
            init_eval=max(1, self.evaluations // 2), verbose=False,
        )  # fmt: skip
        asked.most = asked.queries + len(rows) * self.iterations * (self.evaluations + SEARCHES)
        with _seeded(seed):
            moved = search.generate(inputs[rows], called[rows], x_adv_init=inputs[starts[rows]].copy())
        asked.most = None
        distances[rows] = _to_boundary(asked, inputs[rows], moved, called[rows])
        return distances

    def _shares(self, asked: "_Labels", inputs: Inputs, labels: IntArray, seed: int) -> FloatArray:
        """Share of each example's copies that are called by its label, the example itself among them [n]."""
        rng, spread = np.random.default_rng(seed), float(inputs.std(dtype=np.float64))
        hits = (asked(inputs) == labels).astype(np.float64)
        for level in LEVELS:
            for _ in range(self.copies):
                noise = rng.standard_normal(inputs.shape, dtype=np.float32) * np.float32(level * spread)
                hits += asked(inputs + noise) == labels
        share: FloatArray = hits / (1 + len(LEVELS) * self.copies)
        return share


class _Labels:
    """A model of which only the predicted class is seen; counts what it is asked."""

    def __init__(self, model: ClassifiesInputs) -> None:
        self.model, self.queries, self.classes = model, 0, 0
        self.most: int | None = None

    def __call__(self, inputs: Inputs) -> IntArray:
        """The predicted class of each input [n]."""
        self.queries += len(inputs)
        if self.most is not None and self.queries > self.most:
            # Its search for a step that stays beyond the boundary has no end of its own.
            raise ModelError(
                'HopSkipJump does not end on this model, whose label changes between calls: set robustness = "noise"'
            )
        logits = self.model.logits_of(np.ascontiguousarray(inputs, dtype=np.float32))
        if not np.isfinite(logits).all():
            raise ModelError(
                "a model gives logits that are not finite, which have no largest one: evaluate it in float32 or wider"
            )
        self.classes = logits.shape[1]
        labels: IntArray = logits.argmax(1)
        return labels

    def one_hot(self, inputs: Inputs) -> Inputs:
        """The same, as ART takes it [n, C]."""
        return np.eye(self.classes, dtype=np.float32)[self(inputs)]


def _starts(flat: FloatArray, called: IntArray) -> IntArray:
    """For each example the nearest one that is called something else [n]; -1 where all are called the same."""
    places = np.full(len(flat), -1, dtype=np.int64)
    for row, own in enumerate(called):
        others = np.flatnonzero(called != own)
        if len(others):
            places[row] = others[((flat[others] - flat[row]) ** 2).sum(1).argmin()]
    return places


def _to_boundary(asked: _Labels, inputs: Inputs, moved: Inputs, called: IntArray) -> FloatArray:
    """Distances at which the label changes on the way to the inputs that were found [n].

    HopSkipJump's last step leads away from the boundary, and in ART no search back follows it.
    """
    path = (moved - inputs).astype(np.float32)
    shape = (-1,) + (1,) * (inputs.ndim - 1)
    near, far = np.zeros(len(inputs), dtype=np.float32), np.ones(len(inputs), dtype=np.float32)
    for _ in range(HALVINGS):
        middle = (near + far) * np.float32(0.5)
        beyond = asked(inputs + middle.reshape(shape) * path) != called
        near, far = np.where(beyond, near, middle), np.where(beyond, middle, far)
    lengths: FloatArray = np.linalg.norm(path.reshape(len(inputs), -1).astype(np.float64), axis=1) * far
    return lengths


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, from which HopSkipJump draws, and puts it back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _toolbox() -> tuple[Any, Any]:
    """HopSkipJump, and the wrapper of a model that is only asked."""
    try:
        from art.attacks.evasion import HopSkipJump
        from art.estimators.classification import BlackBoxClassifier
    except ImportError as error:
        raise EnvironmentFault(
            "label_only's boundary distance needs the adversarial-robustness-toolbox: pip install 'muaudit[vision]', or set "
            'robustness = "noise"'
        ) from error
    return HopSkipJump, BlackBoxClassifier
