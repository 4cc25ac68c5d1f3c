"""The difference of two audits' gaps: its interval holds what it says it holds, and pairing is worth what it should be."""

import numpy as np
import pytest

from muaudit.differences import Leakages, independent_difference, paired_difference
from muaudit.statistics import mean_gap

CLUSTERS, SIZE, REFERENCES = 15, 4, 3


def audits(
    rng: np.random.Generator, *, shift: float, same: bool, training: float = 0.03
) -> tuple[Leakages, Leakages, np.ndarray]:
    """Two audits of the same units: hard and easy clusters in both, targets `shift` apart, references shared or not."""
    codes = np.repeat(np.arange(CLUSTERS), SIZE)
    hard = rng.normal(0.4, 0.15, CLUSTERS)[codes]

    def model(centre: float, spread: float = training) -> np.ndarray:
        return hard + centre + rng.normal(0, spread) + rng.normal(0, 0.05, CLUSTERS)[codes] + rng.normal(0, 0.03, len(codes))

    references = np.stack([model(0.0) for _ in range(REFERENCES)])
    others = references if same else np.stack([model(0.0) for _ in range(REFERENCES)])
    return Leakages(model(0.1, 0.0), references), Leakages(model(0.1 + shift, 0.0), others), codes


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_interval_covers_the_true_difference(same: bool, shift: float) -> None:
    """95 % nominal; of 400, a count below 0.925 has probability 0.01 where the coverage is 0.95."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        before, after, codes = audits(rng, shift=shift, same=same)
        low, high = paired_difference(before, after, codes, same_references=same).interval(0.95)
        covered += low <= shift <= high
    assert covered / 400 >= 0.925


def test_references_of_their_own_widen_the_interval_and_shared_ones_drop_out() -> None:
    before, after, codes = audits(np.random.default_rng(1), shift=0.1, same=True)
    shared = paired_difference(before, after, codes, same_references=True)
    expected = mean_gap(after.target, before.target[None], codes, resolution=1.0)
    assert shared.value == pytest.approx(expected.value)
    assert shared.interval(0.95) == pytest.approx(expected.interval(0.95))
    before, after, codes = audits(np.random.default_rng(1), shift=0.1, same=False, training=0.2)
    own = paired_difference(before, after, codes, same_references=False)
    assert own.reference_error > 0
    assert own.degrees < CLUSTERS - 1
    assert own.interval(0.95)[0] < paired_difference(before, after, codes, same_references=True).interval(0.95)[0]


def test_pairing_sees_what_independent_intervals_cannot() -> None:
    before, after, codes = audits(np.random.default_rng(3), shift=0.04, same=True)
    paired = paired_difference(before, after, codes, same_references=True, rng=np.random.default_rng(0))
    gaps = [mean_gap(one.target, one.references, codes, resolution=1.0) for one in (before, after)]
    difference, apart = independent_difference(gaps[0].value, gaps[0].interval(0.95), gaps[1].value, gaps[1].interval(0.95))
    assert difference == pytest.approx(paired.value)
    assert paired.interval(0.95)[1] - paired.interval(0.95)[0] < apart[1] - apart[0]


def test_the_same_leakages_differ_by_nothing_but_are_not_known_for_sure() -> None:
    before, _, codes = audits(np.random.default_rng(2), shift=0.0, same=True)
    low, high = paired_difference(before, before, codes, same_references=True, rng=np.random.default_rng(0)).interval(0.95)
    assert low < 0 < high


def test_independent_interval_of_normal_gaps_is_the_textbook_one() -> None:
    difference, (low, high) = independent_difference(0.1, (0.1 - 0.03, 0.1 + 0.03), 0.3, (0.3 - 0.04, 0.3 + 0.04))
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.15, 0.25))


def test_one_cluster_has_no_interval() -> None:
    ones = Leakages(np.ones(3), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="two clusters"):
        paired_difference(ones, ones, np.zeros(3, dtype=np.int64), same_references=True)
