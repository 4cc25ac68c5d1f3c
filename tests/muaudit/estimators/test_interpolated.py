"""IAM against the stacked interpolation with scipy's Gumbel distribution, and on models whose state is known."""

import math

import numpy as np
import pytest
from scipy import stats

from muaudit.errors import ModelError, UsageError
from muaudit.estimators import interpolated as iam


def published(original: np.ndarray, shadows: np.ndarray, target: np.ndarray, steps: int) -> np.ndarray:
    """The paper's score by the letter: stack all interpolated signals, fit, and sum."""
    shares = np.linspace(0, 1, steps)
    stack = np.stack([shadows + (original - shadows) * share for share in shares], axis=1)  # [S, steps, n]
    scores = np.zeros(len(target))
    for step in range(steps - 1):
        scale = math.sqrt(6) * np.std(stack[:, step]) / math.pi
        place = stack[:, step].mean(0) - 0.5772156649015329 * scale
        scores += shares[step + 1] * stats.gumbel_r.cdf(target, place, scale)
    return 1 - scores / shares[1:].sum()


def world(shadows: int = 4, size: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signals of an original that fits everything, of shadows and of an honest retrain."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0.5, 1.2, size)

    def signal(fitted: float) -> np.ndarray:
        return iam.bounded_gumbel(1 / (1 + np.exp(-(hardness + fitted + rng.normal(0, 0.4, size)))))

    return signal(4.0), np.stack([signal(0.0) for _ in range(shadows)]), signal(0.0)


def test_the_signal_is_its_formula_and_bounded() -> None:
    values = np.array([0.0, 1e-4, 0.3, 1.0])
    expected = [-math.log(0.1 - math.log(value + 1e-5)) for value in values]
    assert iam.bounded_gumbel(values) == pytest.approx(expected)
    assert (np.diff(iam.bounded_gumbel(np.linspace(0, 1, 1000), below_one=0.01)) > 0).all()
    # Far from both bounds it is the Gumbel map.
    assert iam.bounded_gumbel(0.2, below_one=1e-6, above_zero=1e-9) == pytest.approx(-math.log(-math.log(0.2)), abs=1e-5)
    for wrong in (-0.1, 1.1, np.nan):
        with pytest.raises(ModelError, match="probabilities"):
            iam.bounded_gumbel([0.5, wrong])
    with pytest.raises(UsageError, match="infinite"):
        iam.bounded_gumbel([0.5], below_one=0.0)


@pytest.mark.parametrize("shadows", [1, 3])
def test_the_published_score_is_the_stacked_one(shadows: int) -> None:
    original, seen, target = world(shadows, size=40)
    found = iam.completeness(original, seen, target, steps=50)
    assert found.published == pytest.approx(published(original, seen, target, 50))
    assert found.fitted == pytest.approx(published(original, seen, original, 50))
    assert found.unseen == pytest.approx(published(original, seen, seen.mean(0), 50))


def test_the_steps_are_fine_enough() -> None:
    original, seen, target = world(1)
    coarse, fine = iam.completeness(original, seen, target), iam.completeness(original, seen, target, steps=8_000)
    assert coarse.published == pytest.approx(fine.published, abs=2e-3)


def test_examples_are_cut_into_parts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen, target = world(2, size=30)
    whole = iam.completeness(original, seen, target, steps=20)
    monkeypatch.setattr(iam, "CELLS", 140)
    assert iam.completeness(original, seen, target, steps=20).published.tolist() == whole.published.tolist()


@pytest.mark.parametrize("shadows", [1, 10])
def test_positions_run_from_fitted_over_never_seen_to_beyond(shadows: int) -> None:
    original, seen, honest = world(shadows)
    untouched = iam.completeness(original, seen, original)
    assert untouched.informative.mean() > 0.95
    assert untouched.position[untouched.informative] == pytest.approx(0.0, abs=1e-12)
    assert not untouched.over_unlearned[untouched.informative].any()
    never = iam.completeness(original, seen, seen.mean(0))
    assert never.position == pytest.approx(1.0)
    half = iam.completeness(original, seen, (original + seen.mean(0)) / 2)
    assert ((half.position > 0.2) & (half.position < 0.9))[half.informative].all()
    wiped = iam.completeness(original, seen, np.full_like(original, iam.bounded_gumbel(0.0)))
    assert (wiped.position[wiped.informative] > 1).all()
    assert (wiped.over_unlearned[wiped.informative] > 0).all()
    assert wiped.completeness == pytest.approx(1.0)
    retrained = iam.completeness(original, seen, honest)
    assert np.median(retrained.position) == pytest.approx(1.0, abs=0.05)
    assert 0.2 < (retrained.position > 1).mean() < 0.8


def test_scores_follow_the_target_s_signal() -> None:
    original, seen, _ = world(2, size=50)
    signals = [original + (seen.mean(0) - original) * share for share in np.linspace(-0.5, 2, 12)]
    positions = np.array([iam.completeness(original, seen, signal).position for signal in signals])
    told = iam.completeness(original, seen, original).informative
    assert (np.diff(positions[:, told], axis=0) > 0).all()


def test_what_was_never_fitted_is_marked() -> None:
    original, seen, target = world(2, size=60)
    original[:7] = seen[:, :7].mean(0) - 0.3
    found = iam.completeness(original, seen, target)
    assert not found.informative[:7].any()
    assert found.position[:7] == pytest.approx(1.0)
    assert np.isfinite(found.position).all()


def test_models_without_any_spread_give_finite_scores() -> None:
    found = iam.completeness(np.ones(3), np.ones((1, 3)), np.array([-3.0, 1.0, 3.0]))
    assert np.isfinite(found.published).all()
    assert not found.informative.any()


def test_signals_that_do_not_belong_together_are_refused() -> None:
    original, seen, target = world(2, size=20)
    for wrong in (
        (original[:5], seen, target),
        (original, seen[0], target),
        (original, seen[:0], target),
        (original, seen, 0.5),
    ):
        with pytest.raises(UsageError, match="do not fit"):
            iam.completeness(*wrong)
    with pytest.raises(ModelError, match="not finite"):
        iam.completeness(original, seen, target * np.nan)
