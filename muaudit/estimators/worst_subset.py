"""The worst subset: which examples a procedure forgets least, and which part of a claimed forget set was forgotten least.

The first is a bi-level search (Fan et al. 2024, "Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine
Unlearning", arXiv 2403.07362; OPTML-Group/Unlearn-WorstCase). The second learns a rule on one part of the forget set and says
which examples of the other part it points to. Pure functions on numbers, which know nothing of models or attacks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muaudit.errors import EnvironmentFault, UsageError
from muaudit.estimators.similarity import capped_simplex

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

PRIOR = 5.0
"""Clusters of average score that every slice is mixed with, so that a slice of a few lucky clusters does not win."""


# ---- search of the examples that a procedure forgets least --------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What a bi-level search found.

    Attributes:
        weights: Of each group, in [0, 1]; they rank how badly the groups are forgotten.
        chosen: Places of the groups with the largest weights, ascending.
    """

    weights: FloatArray
    chosen: IntArray


@dataclass(frozen=True)
class Lost:
    """What a model that unlearned loses.

    Attributes:
        loss: On each example [N]; smaller means better known.
        asked: How far it was asked to forget each example [N], in [0, 1].
    """

    loss: FloatArray
    asked: FloatArray


def search(
    unlearn: Callable[[FloatArray], Lost],
    groups: ArrayLike,
    count: int,
    *,
    rounds: int = 20,
    step: float = 0.1,
    penalty: float = 1e-4,
    rng: np.random.Generator,
) -> Search:
    """Finds the groups of examples that are forgotten least when they are to be forgotten.

    Minimises sum_i w_i loss_i(unlearned with w) + penalty |w|^2 over weights in [0, 1] with a given sum, by projected steps
    w <- P(w - step (loss_i + 2 penalty w_i)). As in the published code, how the unlearned model moves with the weights is left
    out (sign steps have no derivative to follow). With nothing in its place, whatever is kept looks unforgotten, is asked for
    in the next round, and falls back in the one after. So an example's loss is its mean over all rounds so far, weighted by how
    far it was asked for; only of examples that were never asked for is it the loss at hand, the least that can be hoped for.

    Args:
        unlearn: Unlearns with weights [N] of the examples (1: to be forgotten).
        groups: Group of each example [N], in 0..G-1: its own, its class, its cluster. Groups stand or fall together.
        count: How many groups are sought, in 1..G.
        rounds: How often it is unlearned (the paper's 20).
        step: Of the weights, in their unit per unit of loss (the paper's 1e-3 goes with many examples' cross-entropy).
        penalty: The paper's gamma.
        rng: Breaks ties, at first between all groups.

    Returns:
        The weights and the groups.

    Raises:
        UsageError: There are not as many groups.
    """
    codes = np.asarray(groups, dtype=np.int64)
    sizes = np.bincount(codes).astype(np.float64)
    if not 1 <= count <= len(sizes):
        raise UsageError(f"the worst {count} of {len(sizes)} groups cannot be sought: choose a number in between")
    # A little unevenness, the same for all rounds, so that equal weights are not taken in the order of the files.
    jitter = rng.random(len(sizes)) * 1e-9
    weights = capped_simplex(np.full(len(sizes), count / len(sizes)) + jitter, count)
    total, asked = np.zeros(len(codes)), np.zeros(len(codes))
    for _ in range(rounds):
        lost = unlearn(weights[codes])
        total, asked = total + lost.asked * lost.loss, asked + lost.asked
        known = np.divide(total, asked, out=lost.loss.copy(), where=asked > 0)
        mean = np.bincount(codes, known, minlength=len(sizes)) / sizes
        weights = capped_simplex(weights - step * (mean + 2 * penalty * weights) + jitter, count)
    return Search(weights, largest(weights, count))


def largest(values: ArrayLike, count: int) -> IntArray:
    """Places of the largest values, ascending; of equal ones, the first."""
    order = np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")
    return np.sort(order[:count]).astype(np.int64)


# ---- search of the part of a forget set that was forgotten least --------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """A part of the examples that a rule in words picks out.

    Attributes:
        words: The rule.
        rows: The examples, a mask [n].
    """

    words: str
    rows: BoolArray


def beyond_difficulty(scores: ArrayLike, features: ArrayLike, holdout: BoolArray, penalty: float = 1.0) -> FloatArray:
    """What scores have beyond what the holdout examples' scores say of examples with such features.

    A ridge regression on standardised features, fitted to the holdout examples alone. Each of these is set against the fit
    without itself, so that residuals of both kinds of examples are out of sample and can be ranked among each other.

    Args:
        scores: Of forget and holdout examples under one model [n].
        features: Of the same [n, d].
        holdout: Which are holdout examples, a mask [n].
        penalty: Of the squared coefficients.

    Returns:
        Residuals [n].
    """
    values, given = np.asarray(scores, dtype=np.float64), np.asarray(features, dtype=np.float64)
    mean, spread = given[holdout].mean(0), given[holdout].std(0)
    # A column that does not vary among the holdout examples says nothing of the others.
    columns = np.where(spread > 0, (given - mean) / np.where(spread > 0, spread, 1.0), 0.0)
    columns = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    weights = np.full(columns.shape[1], penalty)
    weights[0] = 0  # the mean is not shrunk
    inside = columns[holdout]
    inverse = np.linalg.inv(inside.T @ inside + np.diag(weights))
    residuals: FloatArray = values - columns @ (inverse @ (inside.T @ values[holdout]))
    leverage = ((inside @ inverse) * inside).sum(1)
    residuals[holdout] /= np.maximum(1 - leverage, 1e-9)
    return residuals


def column_slices(columns: Mapping[str, Sequence[Any]], smallest: int) -> list[Slice]:
    """One slice for every value of a column, and for every pair of values of two columns.

    Args:
        columns: Values [n] by name, such as the label and attributes.
        smallest: Least examples in a slice; a column of names thus gives none.

    Returns:
        The slices, in the order of the columns and sorted by values.
    """
    coded = {name: np.unique(np.asarray(values, dtype=np.str_), return_inverse=True) for name, values in columns.items()}
    found = [
        Slice(f"{name} {values[place]}", np.asarray(codes == place))
        for name, (values, codes) in coded.items()
        for place in np.flatnonzero(np.bincount(codes) >= smallest)
    ]
    for (first, (names, left)), (second, (others, right)) in combinations(coded.items(), 2):
        pairs, codes = np.unique(left * len(others) + right, return_inverse=True)
        for place in np.flatnonzero(np.bincount(codes) >= smallest):
            mine, other = divmod(int(pairs[place]), len(others))
            words = f"{first} {names[mine]} and {second} {others[other]}"
            found.append(Slice(words, np.asarray(codes == place)))
    return found


def tree_slices(
    features: ArrayLike, names: Sequence[str], scores: ArrayLike, learn: BoolArray, *, depth: int, smallest: int
) -> list[Slice]:
    """The leaves of a shallow regression tree that tells high scores from low ones.

    Args:
        features: [n, d]; a column of zeros and ones is read as "name" and "not name".
        names: Of the columns.
        scores: [n].
        learn: Which examples the tree may see, a mask [n].
        depth: Of the tree.
        smallest: Least examples in a leaf, of those seen.

    Returns:
        The leaves, from left to right; none where there are too few examples to split.

    Raises:
        EnvironmentFault: scikit-learn is not installed.
    """
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError:
        raise EnvironmentFault("the worst subset is sought with scikit-learn: pip install 'muaudit[models]'") from None
    values = np.asarray(features, dtype=np.float64)
    grown = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=smallest, random_state=0)
    grown.fit(values[learn], np.asarray(scores, dtype=np.float64)[learn])
    tree, leaf = grown.tree_, grown.apply(values)
    binary: BoolArray = ((values == 0) | (values == 1)).all(0)
    leaves: list[Slice] = []

    def descend(node: int, words: tuple[str, ...]) -> None:
        if tree.children_left[node] < 0:
            leaves.extend([Slice(" and ".join(words), np.asarray(leaf == node))] if words else [])
            return
        column, cut = int(tree.feature[node]), float(tree.threshold[node])
        name = names[column]
        told = (f"not {name}", name) if binary[column] else (f"{name} <= {cut:.2f}", f"{name} > {cut:.2f}")
        descend(int(tree.children_left[node]), (*words, told[0]))
        descend(int(tree.children_right[node]), (*words, told[1]))

    descend(0, ())
    return leaves


@dataclass(frozen=True)
class Rule:
    """What was learned about where scores are high.

    Attributes:
        expected: Score that each example is expected to have [n], by the best slice that it lies in.
        words: The slice that is expected to be highest.
    """

    expected: FloatArray
    words: str


def learned_rule(
    slices: Sequence[Slice], scores: ArrayLike, clusters: ArrayLike, learn: BoolArray, *, smallest: int, prior: float = PRIOR
) -> Rule:
    """Ranks slices by their mean score among the examples that may be seen.

    A slice's mean is mixed with `prior` clusters of average score. An example is expected to score as the best slice that it
    lies in; one that lies in none, as the average.

    Args:
        slices: Candidates; those with fewer than `smallest` seen clusters are passed over.
        scores: [n]; only the seen ones are looked at.
        clusters: Cluster of each example [n]: examples of one count once.
        learn: Which examples may be seen, a mask [n].
        smallest: Least clusters in a slice.
        prior: Strength of the mixing.

    Returns:
        The rule.
    """
    values, owners = np.asarray(scores, dtype=np.float64), np.asarray(clusters)
    average = float(values[learn].mean())
    expected, words, best = np.full(len(values), average), "no rule: nothing stands out", average
    for one in slices:
        seen = one.rows & learn
        count = len(np.unique(owners[seen]))
        if count < smallest:
            continue
        mixed = (count * float(values[seen].mean()) + prior * average) / (count + prior)
        expected[one.rows] = np.maximum(expected[one.rows], mixed)
        if mixed > best:
            words, best = one.words, mixed
    return Rule(expected, words)


def slots(expected: ArrayLike, clusters: ArrayLike, judge: BoolArray, count: int) -> list[IntArray]:
    """The clusters that a rule points to among those that it did not see.

    Args:
        expected: What each example is expected to score [n].
        clusters: Cluster of each example [n].
        judge: Which examples are judged, a mask [n].
        count: How many clusters.

    Returns:
        Places of the examples of each cluster, from the highest expected mean on; of equal ones, the first. What the judged
        examples really score plays no part.
    """
    owners = np.asarray(clusters)
    places = np.flatnonzero(judge)
    _, first, codes = np.unique(owners[places], return_index=True, return_inverse=True)
    means = np.bincount(codes, np.asarray(expected, dtype=np.float64)[places]) / np.bincount(codes)
    order = np.lexsort((first, -means))[:count]
    return [places[codes == code] for code in order]
