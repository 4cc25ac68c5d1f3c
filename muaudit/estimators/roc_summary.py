"""What is quoted of a membership score on one model: AUC, balanced accuracy, true positive rates, the log-log ROC curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.attack import BudgetCurve
from muaudit.estimators import membership
from muaudit.estimators.likelihood_ratio import Roc

RATES = {"0.1": 0.001, "1": 0.01}
"""False positive rates at which a true positive rate is quoted, by their names in percent."""

POINTS = 24
"""At most so many false positive rates on the log-log ROC curve."""


@dataclass(frozen=True)
class Summary:
    """What is quoted.

    Attributes:
        numbers: By name, with both ends of exact 95 % intervals as `_low` and `_high`.
        notes: What cannot be quoted, and why.
        roc: Decimal logarithms of false and true positive rates. The false positive rates depend only on the number of
            non-members, so the curves of several models can be laid over each other; a true positive rate of 0 is drawn at
            half a member.
    """

    numbers: dict[str, float]
    notes: tuple[str, ...]
    roc: BudgetCurve


def summarise(
    members: ArrayLike,
    non_members: ArrayLike,
    member_clusters: Sequence[str],
    non_member_clusters: Sequence[str],
    *,
    threshold: float | None = None,
) -> Summary:
    """Summarises a score on one model.

    True positive rates are the largest whose false positive rate is at most the one named (ML Privacy Meter's and ART's
    convention, <=; LiRA's own code takes <), with Clopper-Pearson intervals for the threshold as it is. One is refused where
    the non-members are too few to show such a rate at all.

    Args:
        members: Scores [n], larger means member.
        non_members: Scores [m].
        member_clusters: The members' clusters [n].
        non_member_clusters: The non-members' clusters [m].
        threshold: One that was chosen without this model; scores at or above it are called members.

    Returns:
        The summary. `auc` with the interval of `membership.auc_interval`, `balanced_accuracy` with the best threshold for
        these very scores (so too high by chance), and with a threshold `calibrated_tpr`, `calibrated_fpr` and
        `calibrated_balanced_accuracy` at it.

    Raises:
        ModelError: A score is NaN.
        UsageError: A side is empty.
    """
    inside, outside = (np.asarray(side, dtype=np.float64) for side in (members, non_members))
    roc, notes = Roc.of(inside, outside), []
    numbers = {"auc": roc.auc, "balanced_accuracy": roc.balanced_accuracy}
    if min(len(set(member_clusters)), len(set(non_member_clusters))) < 2 or set(member_clusters) & set(non_member_clusters):
        notes.append("the AUC has no interval: it takes two clusters on each side, and none on both")
    else:
        ends = membership.auc_interval(inside, outside, member_clusters, non_member_clusters)
        numbers["auc_low"], numbers["auc_high"] = ends
    for name, share in RATES.items():
        rate = roc.tpr_at(share)
        if rate.value is None or rate.interval is None:
            notes.append(
                f"no true positive rate at {name} % false positives is quoted: {len(outside)} holdout examples cannot resolve "
                f"it; it takes {round(1 / share)}, and {rate.needed} to show such a rate with 95 % confidence"
            )
        else:
            numbers |= _rate(f"tpr_at_{name}_percent_fpr", rate.value, rate.interval)
    if threshold is not None:
        numbers |= _at(threshold, inside, outside)
    return Summary(numbers, tuple(notes), _curve(roc))


def _rate(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _at(threshold: float, inside: NDArray[np.float64], outside: NDArray[np.float64]) -> dict[str, float]:
    """Both rates at a threshold that these scores had no part in."""
    hits, alarms = (int((side >= threshold).sum()) for side in (inside, outside))
    tpr, fpr = hits / len(inside), alarms / len(outside)
    return (
        _rate("calibrated_tpr", tpr, membership.clopper_pearson(hits, len(inside)))
        | _rate("calibrated_fpr", fpr, membership.clopper_pearson(alarms, len(outside)))
        | {"calibrated_balanced_accuracy": (1 + tpr - fpr) / 2}
    )


def best_threshold(members: ArrayLike, non_members: ArrayLike) -> float | None:
    """The threshold with the largest balanced accuracy, to be used on other models.

    Args:
        members: Scores of members [n] on models whose membership is known.
        non_members: Those of non-members [m].

    Returns:
        Scores at or above it are called members; None where no threshold tells more than chance.
    """
    roc = Roc.of(members, non_members)
    value = float(roc.thresholds[int(np.argmax(roc.tpr - roc.fpr))])
    return value if np.isfinite(value) else None


def _curve(roc: Roc) -> BudgetCurve:
    steps = np.unique(np.geomspace(1, roc.non_members, POINTS).round())
    rates = [roc.tpr[np.searchsorted(roc.fpr, step / roc.non_members + 1e-12, "right") - 1] for step in steps]
    return BudgetCurve(
        x_label="false positive rate, log10",
        y_label="true positive rate, log10",
        x=tuple(np.log10(steps / roc.non_members).tolist()),
        y=tuple(np.log10(np.maximum(rates, 0.5 / roc.members)).tolist()),
    )
