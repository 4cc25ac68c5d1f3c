"""The searches for the worst subset, against brute force and planted truths."""

from itertools import combinations

import numpy as np
import pytest

from muaudit.errors import UsageError
from muaudit.estimators import forgetting
from muaudit.estimators.worst_subset import (
    Lost,
    Slice,
    beyond_difficulty,
    column_slices,
    largest,
    learned_rule,
    search,
    slots,
    tree_slices,
)


def brute_force(strength: np.ndarray, count: int) -> tuple[int, ...]:
    """The subset of which a procedure leaves most, if what it leaves of an example depends on that example alone."""
    return max(combinations(range(len(strength)), count), key=lambda places: sum(strength[list(places)]))


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_what_brute_force_finds(seed: int) -> None:
    """A procedure that only lowers what it is asked to forget: the search must not take what is merely kept for unforgotten."""
    rng = np.random.default_rng(seed)
    left = rng.permutation(12) / 12

    def unlearn(weights: np.ndarray) -> Lost:
        asked = np.isin(np.arange(12), largest(weights, 3))
        return Lost(1 - np.where(asked, left, 1.0), asked.astype(float))

    found = search(unlearn, np.arange(12), 3, rounds=40, rng=rng)
    assert tuple(found.chosen) == brute_force(left, 3)
    assert found.weights.sum() == pytest.approx(3)
    assert (found.weights >= 0).all()
    assert (found.weights <= 1).all()


def test_groups_stand_or_fall_together() -> None:
    codes = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    left = np.array([0.9, 0.0, 0.0, 0.6, 0.6, 0.1, 0.1, 0.1])  # the best example is in a middling group
    found = search(lambda weights: Lost(1 - left, weights), codes, 1, rng=np.random.default_rng(0))
    assert found.chosen.tolist() == [1]


def test_one_step_is_the_published_one() -> None:
    losses, weights = np.array([3.0, 1.0, 2.0, 0.5]), np.full(4, 0.5)
    raw = weights - 0.1 * (losses + 2 * 0.01 * weights)
    shift = np.linspace(-2, 2, 400_001)
    sums = np.clip(raw[:, None] - shift, 0, 1).sum(0)
    expected = np.clip(raw - shift[np.abs(sums - 2).argmin()], 0, 1)
    found = search(lambda w: Lost(losses, w), np.arange(4), 2, rounds=1, step=0.1, penalty=0.01, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found.weights, expected, atol=2e-5)


def test_too_many_groups_are_refused() -> None:
    with pytest.raises(UsageError, match="the worst 5 of 4"):
        search(lambda weights: Lost(weights, weights), np.arange(4), 5, rng=np.random.default_rng(0))


def test_difficulty_is_what_a_ridge_without_the_example_says() -> None:
    """Against scikit-learn, refitted for every holdout example."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(2)
    features, scores = rng.normal(3, 2, size=(30, 3)), rng.normal(size=30)
    features[:, 2] = 1.0
    holdout = np.arange(30) >= 12
    columns = StandardScaler().fit(features[holdout]).transform(features)[:, :2]
    expected = scores - Ridge(alpha=1.0).fit(columns[holdout], scores[holdout]).predict(columns)
    for place in np.flatnonzero(holdout):
        rest = holdout & (np.arange(30) != place)
        penalised = np.diag([0.0, 1.0, 1.0])
        design = np.column_stack([np.ones(30), columns])
        beta = np.linalg.solve(design[rest].T @ design[rest] + penalised, design[rest].T @ scores[rest])
        expected[place] = scores[place] - design[place] @ beta
    np.testing.assert_allclose(beyond_difficulty(scores, features, holdout), expected, atol=1e-10)


def test_slices_are_all_values_and_pairs_that_are_large_enough() -> None:
    columns = {"label": [0, 0, 1, 1, 1, 1], "domain": ["a", "b", "a", "a", "b", "b"]}
    found = {one.words: np.flatnonzero(one.rows).tolist() for one in column_slices(columns, 2)}
    assert found == {
        "label 0": [0, 1],
        "label 1": [2, 3, 4, 5],
        "domain a": [0, 2, 3],
        "domain b": [1, 4, 5],
        "label 1 and domain a": [2, 3],
        "label 1 and domain b": [4, 5],
    }


def test_the_tree_says_in_words_where_scores_are_high() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.integers(0, 2, 400), rng.normal(size=400)])
    high = (features[:, 0] == 1) & (features[:, 1] > 0.4)
    learn = rng.random(400) < 0.5
    leaves = tree_slices(features, ["label 3", "component 2"], high.astype(float), learn, depth=2, smallest=5)
    assert sum(leaf.rows for leaf in leaves).tolist() == [1] * 400, "leaves cover every example once"
    found = max(leaves, key=lambda leaf: high[leaf.rows & learn].mean())
    assert set(found.words.split(" and ")) <= {"label 3"} | {f"component 2 > {cut / 100:.2f}" for cut in range(30, 50)}
    assert (found.rows[learn] == high[learn]).all()


def test_a_rule_never_looks_at_what_it_judges() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.random(60), rng.integers(0, 4, 60)
    learn = np.arange(60) < 30
    clusters, slices = np.arange(60), column_slices({"label": labels}, 2)
    changed = np.where(learn, scores, rng.random(60))
    first, second = (learned_rule(slices, values, clusters, learn, smallest=2) for values in (scores, changed))
    np.testing.assert_array_equal(first.expected, second.expected)
    best = max(range(4), key=lambda label: scores[learn & (labels == label)].sum())
    assert first.words.startswith("label ")
    assert len({*first.expected}) <= 5
    assert best in range(4)


def test_a_slice_counts_by_its_clusters() -> None:
    """Thirty pictures of one person are one piece of evidence; ten people are ten."""
    scores = np.r_[np.full(30, 0.9), np.full(10, 0.8), np.full(40, 0.2)]
    clusters = np.r_[np.zeros(30), np.arange(1, 11), np.arange(11, 51)]
    slices = [Slice("one person", np.arange(80) < 30), Slice("ten people", (np.arange(80) >= 30) & (np.arange(80) < 40))]
    rule = learned_rule(slices, scores, clusters, np.ones(80, dtype=bool), smallest=1)
    average = scores.mean()
    assert rule.words == "ten people"
    assert rule.expected[0] == pytest.approx((0.9 + 5 * average) / 6)
    assert rule.expected[30] == pytest.approx((10 * 0.8 + 5 * average) / 15)
    assert rule.expected[79] == pytest.approx(average)


def test_slots_are_whole_clusters_in_the_order_of_the_rule() -> None:
    clusters = ["a", "b", "a", "c", "d", "d"]
    expected = [0.1, 0.5, 0.9, 0.9, 0.5, 0.5]
    judge = np.array([True, True, True, False, True, True])
    assert [rows.tolist() for rows in slots(expected, clusters, judge, 2)] == [[0, 2], [1]]
    assert len(slots(expected, clusters, judge, 9)) == 3


# ---- held-out advantage of populations ---------------------------------------------------------------------------------


def slow_advantage(unlearned: np.ndarray, retrained: np.ndarray, seed: int, folds: int) -> list[float]:
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    places = [rng.permutation(len(side)) % folds for side in (unlearned, retrained)]
    advantages = []
    for example in range(unlearned.shape[1]):
        rates = []
        for side, own in zip((unlearned, retrained), places, strict=True):
            called = 0.0
            for model, fold in enumerate(own):
                laws = [
                    norm(other[place != fold, example].mean(), other[place != fold, example].std())
                    for other, place in zip((unlearned, retrained), places, strict=True)
                ]
                called += laws[0].logpdf(side[model, example]) > laws[1].logpdf(side[model, example])
            rates.append(called / len(side))
        advantages.append(rates[0] - rates[1])
    return advantages


def test_the_advantage_equals_a_slow_one() -> None:
    rng = np.random.default_rng(3)
    unlearned, retrained = rng.normal(0.5, 2, (10, 4)), rng.normal(size=(14, 4))
    found = forgetting.advantage(unlearned, retrained, seed=5, folds=3)
    np.testing.assert_allclose(found, slow_advantage(unlearned, retrained, 5, 3))


def test_alike_populations_have_no_advantage_on_average() -> None:
    rng = np.random.default_rng(4)
    means = [forgetting.advantage(rng.normal(size=(16, 50)), rng.normal(size=(16, 50)), seed=seed).mean() for seed in range(60)]
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(60)
    assert np.std(means) < 0.1


def test_the_advantage_is_that_of_the_best_rule() -> None:
    """Two normal populations two standard deviations apart: TPR - FPR is 2 Phi(1) - 1 at the best threshold."""
    rng = np.random.default_rng(5)
    found = forgetting.advantage(rng.normal(2, 1, (200, 40)), rng.normal(0, 1, (200, 40)), seed=0)
    assert found.mean() == pytest.approx(0.6827, abs=0.02)
    with pytest.raises(UsageError, match="populations need 8 models"):
        forgetting.advantage(np.zeros((7, 2)), np.zeros((9, 2)), seed=0)
