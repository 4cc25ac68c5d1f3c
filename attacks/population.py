"""Population: can forgotten examples be told from holdout ones by what one model alone says of them?"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import EnvironmentFault, NotApplicable
from muaudit.estimators import confidence
from muaudit.models import Classifies, Model
from muaudit.scored import Scored, draw_retain

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LARGEST = 10
"""So many of the largest class probabilities are features of the learned attack."""

SMALLEST_SIDE = 10
"""With fewer retain or holdout examples in a fold, the learned attack has too little to learn from."""


class Population(Attack):
    """A baseline: one threshold for all examples, on scores that need no model but the one under attack.

    It ranks well below lira and rmia, which compare each example with itself under other models: a score here cannot tell an
    example that is easy from one that was trained on. A pass says little; a fail says that it takes no shadow model to see it.

    The scores, larger for members: minus the loss; minus the entropy, which knows no label; minus the modified entropy (Song
    and Mittal's formula, not the one in circulation that takes log p for log(1 - p)); and a learned attack, logistic regression
    on the sorted class probabilities and the loss. It learns on the model under attack itself to tell retain from holdout
    examples, whose membership the audit knows, and never sees a forget example's label of membership. It is trained on
    one half of both sets and scores the other (halves of whole clusters, drawn once), so no example is scored by what was
    trained on it; forget examples get the mean of both halves' scores.

    The leakage of a unit is its deciding score's rank among the holdout examples' on the same model, ties counted half; its
    mean over the forget set is the AUC. The other scores stand beside it, as ranks.

    Attributes:
        deciding: The score whose rank is the leakage.
        retain_examples: At most so many retain examples are scored and learned from, drawn from the plan's seed.
    """

    name: ClassVar = "population"
    version: ClassVar = "1"
    summary: ClassVar = "A baseline that ranks below LiRA and RMIA: one threshold on loss or entropy, without shadow models."
    source: ClassVar = (
        "loss: Yeom et al. 2018 (arXiv 1709.01604); modified entropy: Song and Mittal 2021 (arXiv 2003.10595); learned: Shokri "
        "et al. 2017 (arXiv 1610.05820), with known members of the audited model in place of shadow models, as in SalUn's code"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (Classifies,)
    sided: ClassVar = "two"
    cost: ClassVar = "one forward pass an example"

    deciding: Literal["loss", "entropy", "modified_entropy", "learned"] = "loss"
    retain_examples: Annotated[int, Field(ge=0)] = 200

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the retain examples, and the halves that the learned attack is trained on and scores."""
        retain, notes = draw_retain(bench.examples, self.retain_examples, bench.rng)
        scored = Scored.of(bench.examples, retain)
        clusters = np.unique(scored.examples.clusters, return_inverse=True)[1]
        halves = bench.rng.permutation(clusters.max() + 1)[clusters] % 2
        sizes = [np.bincount(halves[scored.forget :][side], minlength=2).min() for side in _sides(scored)]
        learns = min(sizes) >= SMALLEST_SIDE
        if not learns:
            lacking = f"the learned attack needs {2 * SMALLEST_SIDE} retain and {2 * SMALLEST_SIDE} holdout examples or more"
            if self.deciding == "learned":
                raise NotApplicable(f"{lacking}: give more of them, or let another score decide")
            notes.append(f"not scored: {lacking}")
        return Prepared(data={"retain": retain, "halves": halves.tolist() if learns else None, "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores every example; `rng` is not needed, since the halves were drawn beforehand."""
        assert isinstance(model, Classifies)  # noqa: S101 - the runner checked `needs`
        scored = Scored.of(prepared.examples, prepared.data["retain"])
        labels, logits = scored.examples.labels, model.logits(scored.examples)
        columns = {
            "loss": confidence.negative_loss(logits, labels),
            "entropy": confidence.negative_entropy(logits),
            "modified_entropy": confidence.negative_modified_entropy(logits, labels),
        }
        if prepared.data["halves"] is not None:
            columns["learned"] = _learned(logits, scored, np.array(prepared.data["halves"]))
        return scored.measurement(columns, self.deciding, notes=prepared.data["notes"])


def _sides(scored: Scored) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Retain and holdout examples among those that are not to be forgotten."""
    holdout = scored.holdout[scored.forget :]
    return ~holdout, holdout


def _learned(logits: FloatArray, scored: Scored, halves: IntArray) -> FloatArray:
    """Log odds of being a retain rather than a holdout example [n]."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise EnvironmentFault("population's learned attack needs scikit-learn: pip install 'muaudit[models]'") from error
    ordered = np.sort(confidence.all_margins(logits), axis=-1)[:, ::-1][:, :LARGEST]
    features = np.column_stack([special.expit(ordered), confidence.negative_loss(logits, scored.examples.labels)])
    known = np.arange(len(features)) >= scored.forget
    odds = np.zeros((2, len(features)))
    for half in (0, 1):
        taught = known & (halves == half)
        learner = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1_000))
        odds[half] = learner.fit(features[taught], ~scored.holdout[taught]).decision_function(features)
    unseen: FloatArray = np.where(known, odds[1 - halves, np.arange(len(features))], odds.mean(0))
    return unseen
