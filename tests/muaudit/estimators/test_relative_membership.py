"""RMIA's scores against the matrix of all ratios, loops over examples and scipy's trimmed mean."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import membership
from muaudit.estimators import relative_membership as rmia

grid = st.integers(0, 8).map(lambda value: value / 4)  # few values, so many ties


def simulated(references: int, seed: int = 0, members: bool = False) -> tuple[rmia.Signals, np.ndarray]:
    """Signals of 300 examples of very different hardness, of which the model was trained on half."""
    rng = np.random.default_rng(seed)
    hardness, trained = rng.normal(0, 3, 300), rng.random(300) < 0.5
    population = rng.normal(0, 3, 500)
    member = lambda: rng.random((references, 300)) < 0.5  # noqa: E731
    inside = member() if members else np.zeros((references, 300), dtype=bool)
    if members:
        inside[0], inside[1] = True, False

    def squash(values: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-values))

    signals = rmia.Signals(
        target=squash(rng.normal(hardness + 1.5 * trained, 0.5)),
        references=squash(rng.normal(hardness + 1.5 * inside, 0.5)),
        population=squash(rng.normal(population, 0.5)),
        population_references=squash(rng.normal(population, 0.5, (references, 500))),
        member=inside if members else None,
    )
    return signals, trained


def test_probabilities_are_softmax() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (2, 5, 4)), rng.integers(0, 4, 5)
    for temperature in (1.0, 2.0):
        powers = np.exp(logits / temperature)
        expected = (powers / powers.sum(-1, keepdims=True))[:, np.arange(5), labels]
        assert rmia.probability(logits, labels, temperature=temperature) == pytest.approx(expected)
    with pytest.raises(UsageError, match="temperature"):
        rmia.probability(logits, labels, temperature=0.0)


def test_the_taylor_softmax_is_its_formula_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (50, 4)), rng.integers(0, 4, 50)

    def polynomial(value: float) -> float:
        return sum(value**power / math.factorial(power) for power in range(5))

    for row, label, found in zip(logits, labels, rmia.taylor_probability(logits, labels), strict=True):
        own = polynomial(row[label] / 2 - 0.6)
        assert found == pytest.approx(own / (own + sum(polynomial(z / 2) for i, z in enumerate(row) if i != label)))
        assert 0 < found < 1
    # With many terms and no margin it is the softmax.
    assert rmia.taylor_probability(logits, labels, temperature=1.0, order=60, margin=0.0) == pytest.approx(
        rmia.probability(logits, labels), rel=1e-6, abs=1e-9
    )
    with pytest.raises(UsageError, match="even order"):
        rmia.taylor_probability(logits, labels, order=3)
    with pytest.raises(ModelError, match="not finite"):
        rmia.taylor_probability(logits * np.nan, labels)


@given(st.lists(grid, min_size=1, max_size=20), st.lists(grid, min_size=1, max_size=20), st.sampled_from([0.5, 1.0, 2.0]))
def test_ranks_are_the_matrix_of_ratios(ratios: list[float], population: list[float], gamma: float) -> None:
    matrix = [[one > 0 if other == 0 else one / other > gamma for other in population] for one in ratios]
    assert rmia.dominated(ratios, population, gamma).tolist() == pytest.approx(np.mean(matrix, axis=1).tolist())


def test_the_offline_score_is_the_published_one() -> None:
    signals, _ = simulated(4)
    for offset, gamma in ((0.0, 1.0), (0.3, 2.0), (1.0, 1.0)):
        prior = [(1 + offset) / 2 * signals.references[:, i].mean() + (1 - offset) / 2 for i in range(300)]
        others = [(1 + offset) / 2 * signals.population_references[:, j].mean() + (1 - offset) / 2 for j in range(500)]
        matrix = (signals.target / prior)[:, None] / (signals.population / others)[None, :]
        assert rmia.offline(signals, offset=offset, gamma=gamma) == pytest.approx((matrix > gamma).mean(1))


def test_references_that_saw_an_example_count_on_their_side_only() -> None:
    signals, _ = simulated(6, members=True)
    assert signals.member is not None
    assert len(set(signals.member.sum(0))) > 1, "the test needs unequal numbers"
    out = np.array([signals.references[~signals.member[:, i], i].mean() for i in range(300)])
    inside = np.array([signals.references[signals.member[:, i], i].mean() for i in range(300)])
    others = signals.population_references.mean(0)
    ratio = signals.population / others
    expected = ((signals.target / ((out + inside) / 2))[:, None] > ratio[None, :]).mean(1)
    assert rmia.online(signals) == pytest.approx(expected)
    ratio = signals.population / ((1.3 * others + 0.7) / 2)
    expected = ((signals.target / ((1.3 * out + 0.7) / 2))[:, None] > ratio[None, :]).mean(1)
    assert rmia.offline(signals, offset=0.3) == pytest.approx(expected)


def test_trimmed_means_are_scipys_on_each_examples_own_models() -> None:
    rng = np.random.default_rng(2)
    values, chosen = rng.random((11, 40)), rng.random((11, 40)) < 0.6
    chosen[0] = True
    for trim in (0.0, 0.2, 0.4):
        found = rmia.trimmed_mean(values, chosen, trim)
        assert found == pytest.approx([stats.trim_mean(values[chosen[:, i], i], trim) for i in range(40)])
    with pytest.raises(UsageError, match="trim less"):
        rmia.trimmed_mean(values, chosen, 0.5)
    chosen[:, 7] = False
    with pytest.raises(UsageError, match="1 examples have no reference"):
        rmia.trimmed_mean(values, chosen)


def test_one_reference_is_enough() -> None:
    signals, trained = simulated(1)
    scores = rmia.offline(signals)
    plain = membership.auc(signals.target[trained], signals.target[~trained])
    assert membership.auc(scores[trained], scores[~trained]) > plain + 0.1
    both, trained = simulated(8, members=True)
    scores = rmia.online(both)
    assert membership.auc(scores[trained], scores[~trained]) > 0.9


def test_the_offset_is_the_one_that_attacks_a_reference_best() -> None:
    signals, trained = simulated(2, seed=3)
    areas = []
    for offset in rmia.OFFSETS:
        scores = rmia.offline(signals, offset=offset)
        areas.append(membership.auc(scores[trained], scores[~trained]))
    assert len(set(areas)) > 5
    assert rmia.tuned_offset(signals, trained) == rmia.OFFSETS[areas.index(max(areas))]
    with pytest.raises(UsageError, match="trained on some"):
        rmia.tuned_offset(signals, np.ones(300, dtype=bool))


def test_probabilities_that_round_to_nothing_give_finite_ratios() -> None:
    signals = rmia.Signals(np.array([0.0, 1.0]), np.zeros((1, 2)), np.array([0.0, 0.5]), np.zeros((1, 2)))
    assert rmia.offline(signals, offset=1.0).tolist() == [0.0, 1.0]


def test_signals_that_do_not_belong_together_are_refused() -> None:
    good, _ = simulated(2)
    with pytest.raises(UsageError, match="do not fit"):
        rmia.Signals(good.target[:5], good.references, good.population, good.population_references)
    with pytest.raises(UsageError, match="do not fit"):
        rmia.Signals(good.target, good.references[:1], good.population, good.population_references)
    with pytest.raises(ModelError, match="not a probability"):
        rmia.Signals(good.target + 3, good.references, good.population, good.population_references)
    with pytest.raises(ModelError, match="not a probability"):
        rmia.Signals(good.target * np.nan, good.references, good.population, good.population_references)
    with pytest.raises(UsageError, match="score offline"):
        rmia.online(good)
