"""Likelihood-ratio membership inference (LiRA and U-LiRA), and the ROC curve of any membership score.

LiRA asks how likely a model's score of an example is under the models that were trained on it, and under those that were not
(Carlini et al. 2022, "Membership Inference Attacks From First Principles"). U-LiRA asks the same of models that were trained
on the example and then unlearned it, and of models that never saw it (Hayes et al. 2024, "Inexact Unlearning Needs More
Careful Evaluations to Avoid a False Sense of Privacy"). Every score is oriented so that larger means "member". Pure functions
on numbers, which know nothing of models or attacks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from muaudit.errors import ModelError, UsageError
from muaudit.estimators.membership import clopper_pearson

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Centre = Literal["median", "mean"]
Spread = Literal["per_example", "fixed"]
Convention = Literal["<=", "<"]

SMALLEST_SPREAD = 1e-6
"""Floor of a Gaussian's standard deviation: models that are copies of one another have none, and float32 noise is larger."""


# ---- scores ------------------------------------------------------------------------------------------------------------


def margins(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """The logit of the true label's probability, log p_y - log(1 - p_y), exact in double precision.

    It is z_y - logsumexp of the other logits, which neither overflows nor saturates; log(p / (1 - p)) is infinite from a
    margin of 37 on, and LiRA's own code stops at 103.6.

    Args:
        logits: [..., n, C], C >= 2; log-probabilities will do, for a constant added to all logits of a row changes nothing.
        labels: Class of each example [n], in 0..C-1.

    Returns:
        [..., n]: unbounded, in nats; larger means a surer model.

    Raises:
        ModelError: A logit is not a finite number.
        UsageError: Labels and logits do not belong together, or there is one class only.
    """
    scores, own = _checked(logits, labels)
    others = scores.copy()
    np.put_along_axis(others, own, -np.inf, axis=-1)
    top = others.max(-1, keepdims=True)
    rest = np.log(np.exp(others - top).sum(-1)) + top[..., 0]
    result: FloatArray = np.take_along_axis(scores, own, axis=-1)[..., 0] - rest
    return result


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, NDArray[np.int64]]:
    """Logits in double precision, and the labels [..., n, 1] that pick from them."""
    scores, classes = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim < 2 or scores.shape[-1] < 2:
        raise UsageError(f"logits have the shape {scores.shape}, and a margin needs [..., examples, classes] with two classes")
    if classes.shape != scores.shape[-2:-1]:
        raise UsageError(f"{classes.shape} labels do not fit logits {scores.shape}: give one label for each example")
    if len(classes) and (classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= scores.shape[-1]):
        raise UsageError(f"labels must be whole numbers in 0..{scores.shape[-1] - 1}, the classes that the logits have")
    if not np.isfinite(scores).all():
        raise ModelError(
            f"{int((~np.isfinite(scores)).sum())} logits are not finite, so nothing can be ranked by them: evaluate the model "
            "in float32 or wider, and record logits or log-probabilities instead of the logarithm of rounded probabilities"
        )
    return scores, np.broadcast_to(classes[:, None], (*scores.shape[:-1], 1)).astype(np.int64)


def balanced_membership(models: int, examples: int, seed: int, share: float = 0.5) -> BoolArray:
    """Which shadow model is trained on which example, so that every example is in equally many (LiRA's splits).

    Uniform numbers are ranked down the model axis and the lowest kept; independent coins would leave some examples with
    hardly any model on one side.

    Args:
        models: Shadow models M, at least 2.
        examples: Examples N.
        seed: Seed of the uniform numbers.
        share: Share of the models that are trained on an example.

    Returns:
        [M, N]; every column holds exactly floor(share M) times True.

    Raises:
        UsageError: No model or every model would be trained on an example.
    """
    kept = math.floor(share * models + 1e-9)
    if not 0 < kept < models:
        raise UsageError(
            f"a share of {share} of {models} models leaves no model on one side: train more of them, or choose another share"
        )
    order = np.random.default_rng(seed).random((models, examples)).argsort(axis=0, kind="stable")
    chosen = np.zeros((models, examples), dtype=bool)
    np.put_along_axis(chosen, order[:kept], values=True, axis=0)
    return chosen


# ---- Gaussians ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussians:
    """What an example scores under the models of one kind: one normal distribution an example and query.

    Attributes:
        centre: [N, Q].
        spread: Standard deviations [N, Q], at least `SMALLEST_SPREAD`.
        models: How many models each example's were fitted to [N].
    """

    centre: FloatArray
    spread: FloatArray
    models: NDArray[np.int64]

    def take(self, rows: ArrayLike) -> "Gaussians":
        """Those of some examples, in the order of `rows` (places or a mask)."""
        places = np.asarray(rows)
        return Gaussians(self.centre[places], self.spread[places], self.models[places])

    def log_density(self, scores: ArrayLike) -> FloatArray:
        """Log density of each score [N, Q]."""
        standard = (_queries(scores) - self.centre) / self.spread
        density: FloatArray = -0.5 * standard**2 - np.log(self.spread) - 0.5 * math.log(2 * math.pi)
        return density

    def log_below(self, scores: ArrayLike) -> FloatArray:
        """Log probability of a score that is no larger [N, Q]; exact far out, where the probability itself is 0."""
        below: FloatArray = special.log_ndtr((_queries(scores) - self.centre) / self.spread)
        return below


@dataclass(frozen=True)
class Hypotheses:
    """The two hypotheses that a likelihood ratio compares.

    Attributes:
        inside: Scores under models that were trained on the example (U-LiRA: and then unlearned it); None if there are none.
        outside: Scores under models that were not.
    """

    inside: Gaussians | None
    outside: Gaussians


def _queries(scores: ArrayLike) -> FloatArray:
    """Scores [..., N, Q] in double precision."""
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ModelError("a score is not a finite number, so no distribution fits it: see which model gave it")
    return values


def fit_gaussians(
    scores: ArrayLike, chosen: ArrayLike, *, centre: Centre = "median", spread: Spread = "per_example"
) -> Gaussians:
    """Fits every example's Gaussians to the models that are chosen for it.

    LiRA's code cuts all examples to the number of models that the poorest of them has; here each is fitted to all of its own,
    so that no score is dropped without a word.

    Args:
        scores: [M, N, Q], of every model, example and query.
        chosen: [M, N], which models count for which example.
        centre: LiRA's median, or the mean.
        spread: `per_example`: population standard deviation of each example and query, as LiRA. `fixed`: one for all, pooled
            from the residuals about the examples' own centres, as TensorFlow Privacy's `advanced_mia`, but divided by the
            residuals' degrees of freedom: with few models a side, centres follow their own noise. Take it below about 64
            models.

    Returns:
        The Gaussians.

    Raises:
        UsageError: An example has no model, or too few for a spread.
    """
    values, mask = _queries(scores), np.asarray(chosen, dtype=bool)
    if values.ndim != 3 or mask.shape != values.shape[:2]:
        raise UsageError(f"scores {values.shape} and chosen models {mask.shape} do not fit: give [M, N, Q] and [M, N]")
    counts = mask.sum(0)
    fewest = 2 if spread == "per_example" else 1
    if mask.size and counts.min() < fewest:
        raise UsageError(
            f"{int((counts < fewest).sum())} examples have fewer than {fewest} models to fit a distribution to: train more "
            'shadow models, balance them, or leave these examples out; spread "fixed" needs only one model of each'
        )
    weights = mask[:, :, None]
    means = np.where(weights, values, 0.0).sum(0) / counts[:, None]
    centres = means if centre == "mean" else _medians(values, mask, counts)
    if spread == "fixed":
        freedom = int((counts - 1).sum()) * values.shape[2]
        if freedom < 1:
            raise UsageError("a pooled spread needs two models of one example at least: train more shadow models")
        pooled = math.sqrt(float((np.where(weights, values - centres, 0.0) ** 2).sum()) / freedom)
        spreads = np.full_like(centres, pooled)
    else:
        spreads = np.sqrt((np.where(weights, values - means, 0.0) ** 2).sum(0) / counts[:, None])
    return Gaussians(centres, np.maximum(spreads, SMALLEST_SPREAD), counts.astype(np.int64))


def _medians(values: FloatArray, mask: BoolArray, counts: NDArray[np.int64]) -> FloatArray:
    ordered = np.sort(np.where(mask[:, :, None], values, np.inf), axis=0)
    middle = np.stack([(counts - 1) // 2, counts // 2])[:, :, None]
    medians: FloatArray = np.take_along_axis(ordered, middle, axis=0).mean(0)
    return medians


def fit_hypotheses(
    scores: ArrayLike, member: ArrayLike, *, centre: Centre = "median", spread: Spread = "per_example"
) -> Hypotheses:
    """Fits both hypotheses to shadow models.

    Args:
        scores: [M, N, Q] of the shadow models; the audited model is not among them.
        member: [M, N], which model was trained on which example. Where none was trained on any, only `outside` is fitted.
        centre: As with `fit_gaussians`.
        spread: Likewise.

    Returns:
        Both hypotheses.

    Raises:
        UsageError: An example has too few models on a side.
    """
    inside = np.asarray(member, dtype=bool)
    return Hypotheses(
        inside=fit_gaussians(scores, inside, centre=centre, spread=spread) if inside.any() else None,
        outside=fit_gaussians(scores, ~inside, centre=centre, spread=spread),
    )


def online(scores: ArrayLike, fit: Hypotheses) -> FloatArray:
    """LiRA's online score: log density if trained on less log density if not, averaged over the queries.

    Args:
        scores: [n, Q] of the audited model.
        fit: The hypotheses of the same examples.

    Returns:
        [n], unbounded, in nats.

    Raises:
        UsageError: No shadow model was trained on the examples.
    """
    if fit.inside is None:
        raise UsageError("the online score needs shadow models that were trained on the examples: train some, or score offline")
    ratio: FloatArray = (fit.inside.log_density(scores) - fit.outside.log_density(scores)).mean(-1)
    return ratio


def offline_one_sided(scores: ArrayLike, fit: Hypotheses) -> FloatArray:
    """LiRA's offline score as in the paper: log probability that a model which never saw the example scores no more.

    Args:
        scores: [n, Q] of the audited model.
        fit: The hypotheses of the same examples; only `outside` is used.

    Returns:
        [n], at most 0, averaged over the queries.
    """
    below: FloatArray = fit.outside.log_below(scores).mean(-1)
    return below


def offline_two_tailed(scores: ArrayLike, fit: Hypotheses) -> FloatArray:
    """LiRA's offline score as in its code: minus the log density under models that never saw the example.

    Unusually low scores look like membership too, which is what over-unlearning leaves behind.

    Args:
        scores: [n, Q] of the audited model.
        fit: The hypotheses of the same examples; only `outside` is used.

    Returns:
        [n], unbounded, averaged over the queries.
    """
    surprise: FloatArray = -fit.outside.log_density(scores).mean(-1)
    return surprise


def posterior(scores: ArrayLike, fit: Hypotheses) -> FloatArray:
    """U-LiRA's score N_u / (N_u + N_r): how probable it is that the example was trained on and unlearned.

    Args:
        scores: [n, Q] of the audited model.
        fit: `inside` from models that were trained on an example and then unlearned it, `outside` from retrained models
            (efficacy) or from unlearned models that never saw it (privacy).

    Returns:
        [n] in [0, 1]; above 1/2 the example is called unlearned. Densities are averaged over queries as in `online`.
    """
    share: FloatArray = special.expit(online(scores, fit))
    return share


# ---- ROC curve ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RateAt:
    """A true positive rate at a false positive rate, or why there is none to quote.

    Attributes:
        target: The false positive rate asked for.
        convention: Whether it may be reached ("<=") or not ("<").
        resolved: Whether so many non-members can show it at all: target times their number is 1 or more.
        value: Share of members above the threshold; None where not resolved.
        interval: Its exact 95 % interval (Clopper and Pearson), for the threshold as it is; None where not resolved.
        false_positive_rate: What was reached.
        false_positive_interval: Its exact 95 % interval.
        needed: So many non-members, none of them above the threshold, would show with 95 % confidence that the rate is at
            most the target.
    """

    target: float
    convention: Convention
    resolved: bool
    value: float | None
    interval: tuple[float, float] | None
    false_positive_rate: float
    false_positive_interval: tuple[float, float]
    needed: int


def needed_non_members(fpr: float) -> int:
    """How many non-members without a false positive show with 95 % confidence that the rate is at most `fpr`, in (0, 1)."""
    return math.ceil(math.log(0.05) / math.log1p(-fpr))


@dataclass(frozen=True)
class Roc:
    """The ROC curve of a score, with every threshold kept: larger scores are called members.

    Attributes:
        fpr: False positive rates, rising from 0 to 1.
        tpr: True positive rates at the same thresholds.
        thresholds: Scores at or above them are called members; the first is infinite.
        members: How many members there are.
        non_members: How many non-members.
    """

    fpr: FloatArray
    tpr: FloatArray
    thresholds: FloatArray
    members: int
    non_members: int

    @classmethod
    def of(cls, members: ArrayLike, non_members: ArrayLike) -> "Roc":
        """The curve of two sets of scores.

        Args:
            members: [n], n >= 1.
            non_members: [m], m >= 1.

        Returns:
            The curve: scikit-learn's `roc_curve` with `drop_intermediate=False`.

        Raises:
            ModelError: A score is NaN.
            UsageError: A side is empty.
        """
        inside, outside = (np.sort(np.asarray(side, dtype=np.float64).ravel()) for side in (members, non_members))
        if not (inside.size and outside.size):
            raise UsageError("a ROC curve needs scores of members and of non-members: one of the sets is empty")
        if np.isnan(inside).any() or np.isnan(outside).any():
            raise ModelError("a membership score is NaN, which has no rank: see which model gave it")
        thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
        hits, alarms = (len(side) - np.searchsorted(side, thresholds, "left") for side in (inside, outside))
        return cls(
            fpr=np.concatenate([[0.0], alarms / len(outside)]),
            tpr=np.concatenate([[0.0], hits / len(inside)]),
            thresholds=np.concatenate([[np.inf], thresholds]),
            members=len(inside),
            non_members=len(outside),
        )

    @property
    def auc(self) -> float:
        """Area under the curve, in [0, 1]: the probability that a member scores above a non-member, ties counted half."""
        return float(np.trapezoid(self.tpr, self.fpr))

    @property
    def balanced_accuracy(self) -> float:
        """The largest 1 - (FPR + FNR) / 2, in [1/2, 1]; its threshold is chosen on these very scores."""
        return float((1 - (self.fpr + 1 - self.tpr) / 2).max())

    def tpr_at(self, fpr: float, convention: Convention = "<=") -> RateAt:
        """The largest true positive rate within a false positive rate.

        Args:
            fpr: In (0, 1).
            convention: "<=" as ML Privacy Meter and ART, "<" as LiRA and MIMIR.

        Returns:
            The rate, not quoted where the non-members are too few to resolve it.

        Raises:
            UsageError: The false positive rate lies outside (0, 1).
        """
        if not 0 < fpr < 1:
            raise UsageError(f"a false positive rate of {fpr} cannot be aimed at: choose one between 0 and 1, such as 0.01")
        place = int(np.searchsorted(self.fpr, fpr, "right" if convention == "<=" else "left")) - 1
        hits, alarms = round(self.tpr[place] * self.members), round(self.fpr[place] * self.non_members)
        resolved = fpr * self.non_members >= 1 - 1e-9
        return RateAt(
            target=fpr,
            convention=convention,
            resolved=resolved,
            value=float(self.tpr[place]) if resolved else None,
            interval=clopper_pearson(hits, self.members) if resolved else None,
            false_positive_rate=float(self.fpr[place]),
            false_positive_interval=clopper_pearson(alarms, self.non_members),
            needed=needed_non_members(fpr),
        )
