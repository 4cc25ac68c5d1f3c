"""Baseline scores against arbitrary precision and their formulas."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import confidence
from muaudit.estimators import likelihood_ratio as lira

logits = st.lists(st.floats(-200, 200), min_size=2, max_size=6)


def exact(values: list[float]) -> tuple[list[Decimal], list[Decimal]]:
    """Probabilities and their complements, unrounded."""
    powers = [Decimal(value).exp() for value in values]
    total = sum(powers)
    return [power / total for power in powers], [(total - power) / total for power in powers]


@given(logits, st.data())
def test_scores_are_exact_where_probabilities_round(values: list[float], data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(values) - 1))
    row, labels = np.array([values]), np.array([label])
    with localcontext() as context:
        context.prec = 400
        inside, outside = exact(values)
        margins = [float((p / q).ln()) for p, q in zip(inside, outside, strict=True)]
        entropy = float(sum(p * p.ln() for p in inside))
        modified = float(
            outside[label] * inside[label].ln() + sum(inside[j] * outside[j].ln() for j in range(len(values)) if j != label)
        )
        loss = float(inside[label].ln())
    assert confidence.all_margins(row)[0].tolist() == pytest.approx(margins, rel=1e-11, abs=1e-11)
    assert confidence.negative_entropy(row)[0] == pytest.approx(entropy, rel=1e-9, abs=1e-300)
    assert confidence.negative_modified_entropy(row, labels)[0] == pytest.approx(modified, rel=1e-9, abs=1e-300)
    assert confidence.negative_loss(row, labels)[0] == pytest.approx(loss, rel=1e-11, abs=1e-300)
    assert confidence.largest_margin(row)[0] == pytest.approx(max(margins), rel=1e-11, abs=1e-11)
    assert confidence.correct(row, labels)[0] == float(max(range(len(values)), key=values.__getitem__) == label)


def test_scores_of_many_models_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    every, labels = rng.normal(0, 4, (3, 7, 5)), rng.integers(0, 5, 7)
    for score in (confidence.negative_loss, confidence.correct, confidence.negative_modified_entropy):
        assert score(every, labels) == pytest.approx(np.stack([score(one, labels) for one in every]))
    for score in (confidence.largest_margin, confidence.negative_entropy, confidence.all_margins):
        assert score(every) == pytest.approx(np.stack([score(one) for one in every]))
    columns = [lira.margins(every, np.full(7, label)) for label in range(5)]
    assert confidence.all_margins(every) == pytest.approx(np.stack(columns, axis=-1))


def test_larger_means_member_and_modified_entropy_knows_the_label() -> None:
    sure = np.array([[40.0, 0.0, 0.0]])
    right, wrong = np.array([0]), np.array([1])
    assert confidence.negative_entropy(sure)[0] == pytest.approx(0, abs=1e-15)
    assert confidence.negative_modified_entropy(sure, right)[0] == pytest.approx(0, abs=1e-15)
    # Surely wrong: (1 - p_y) log p_y is about -40, and p_0 log(1 - p_0) once more.
    assert confidence.negative_modified_entropy(sure, wrong)[0] == pytest.approx(-40 - 40 + math.log(2), abs=1e-9)
    assert confidence.negative_entropy(np.zeros((1, 4)))[0] == pytest.approx(-math.log(4))
    assert confidence.negative_loss(sure, right)[0] > confidence.negative_loss(sure, wrong)[0]


def test_entropy_takes_a_temperature() -> None:
    values = np.array([[3.0, 1.0, -2.0]])
    assert confidence.negative_entropy(values, temperature=2.0) == pytest.approx(confidence.negative_entropy(values / 2))
    assert confidence.negative_entropy(values, temperature=1e6)[0] == pytest.approx(-math.log(3))
    with pytest.raises(UsageError, match="temperature"):
        confidence.negative_entropy(values, temperature=-1.0)


def test_logits_that_are_no_numbers_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(ModelError, match="not finite"):
            confidence.negative_entropy([[bad, 0.0]])
        with pytest.raises(ModelError, match="not finite"):
            confidence.correct([[bad, 0.0]], np.array([0]))
    with pytest.raises(UsageError, match="two classes"):
        confidence.all_margins([[1.0]])
