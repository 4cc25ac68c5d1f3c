"""Each estimator against a slow or closed-form truth, then by simulation."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from muaudit.statistics import (
    Discernment,
    Estimate,
    detectable_gap,
    holm,
    mean_gap,
    needed_units,
    noise_floor,
    reference_variance,
    relative_similarity,
)
from muaudit.worst_cluster import TILTS, Tail, cluster_means, judge_maximum, null_of_references


def _simulations() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "simulate_statistics.py"
    spec = importlib.util.spec_from_file_location("simulate_statistics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


simulations = _simulations()


def _codes(clusters: int, size: int) -> np.ndarray:
    return np.repeat(np.arange(clusters), size)


def test_balanced_clusters_equal_the_classical_t_interval_on_cluster_means() -> None:
    rng = np.random.default_rng(1)
    codes = _codes(12, 5)
    target, references = rng.random(60), rng.random((1, 60))
    means = (target - references[0]).reshape(12, 5).mean(1)
    expected = stats.t.interval(0.95, 11, loc=means.mean(), scale=stats.sem(means))
    assert mean_gap(target, references, codes).interval(0.95) == pytest.approx(expected)


def test_unequal_clusters_equal_the_ratio_estimator_by_hand() -> None:
    # Cluster sums of differences 1, 0, 1 over 2, 1, 1 units: gap 1/2, residual sums 0, -1/2, 1/2.
    estimate = mean_gap(np.array([1.0, 0, 0, 1]), np.zeros((1, 4)), np.array([0, 0, 1, 2]))
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(math.sqrt(3 / 2 * (0.25 + 0.25)) / 4)
    assert estimate.degrees == 2


def test_bootstrap_equals_a_slow_loop() -> None:
    rng = np.random.default_rng(3)
    codes = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    target = rng.random(21)
    fast = mean_gap(target, np.zeros((1, 21)), codes, rng=np.random.default_rng(5), draws=40, resolution=0.5).draws
    again, slow = np.random.default_rng(5), []
    for row in again.integers(0, 6, (40, 6)):
        values = np.concatenate([target[codes == code] for code in row])
        labels = np.concatenate([np.full((codes == code).sum(), place) for place, code in enumerate(row)])
        error = max(mean_gap(values, np.zeros((1, len(values))), labels).standard_error, 0.5 / len(values))
        slow.append((values.mean() - target.mean()) / error)
    assert fast == pytest.approx(np.sort(slow))


def test_bootstrap_is_deterministic_and_independent_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    target, references, codes = rng.random(80), rng.random((2, 80)), _codes(20, 4)
    first = mean_gap(target, references, codes, rng=np.random.default_rng(9), draws=500)
    monkeypatch.setattr("muaudit.statistics.CHUNK", 20 * 37)
    second = mean_gap(target, references, codes, rng=np.random.default_rng(9), draws=500)
    assert np.array_equal(first.draws, second.draws)


def test_reference_variance_equals_the_crossed_analysis_of_variance() -> None:
    rng = np.random.default_rng(11)
    cells = rng.normal(size=(4, 10)) + 3 * rng.normal(size=(4, 1)) + rng.normal(size=(1, 10))
    residuals = cells - cells.mean(0) - cells.mean(1)[:, None] + cells.mean()
    interaction = (residuals**2).sum() / (3 * 9)
    expected = cells.mean(1).var(ddof=1) - interaction / 10
    assert reference_variance(np.repeat(cells, 3, axis=1), _codes(10, 3)) == pytest.approx(expected)


def test_agreeing_references_add_nothing() -> None:
    rng = np.random.default_rng(13)
    target, reference, codes = rng.random(40), rng.random(40), _codes(10, 4)
    one = mean_gap(target, reference[None, :], codes)
    three = mean_gap(target, np.stack([reference] * 3), codes)
    assert three.reference_error == 0
    assert three.interval(0.95) == pytest.approx(one.interval(0.95))


def test_satterthwaite_tends_to_the_references_degrees_of_freedom() -> None:
    target = np.random.default_rng(17).random(40)
    references = target + np.array([[0.0], [1.0], [2.5]])
    estimate = mean_gap(target, references, _codes(10, 4))
    assert estimate.standard_error == pytest.approx(np.std([0, 1, 2.5], ddof=1) / math.sqrt(3))
    assert estimate.degrees == pytest.approx(2)


@pytest.mark.parametrize("shape", ["identical", "one unit", "all but one", "constant gap"])
def test_degenerate_leakage_gives_a_finite_interval_that_is_wider_than_a_point(shape: str) -> None:
    target = np.zeros(60)
    if shape == "one unit":
        target[7] = 1
    elif shape != "identical":
        target[:] = 1
        target[7] = 0 if shape == "all but one" else 1
    estimate = mean_gap(target, np.zeros((2, 60)), _codes(20, 3), rng=np.random.default_rng(1), resolution=1.0)
    low, high = estimate.interval(0.95)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= estimate.value - 1.9 / 60
    assert high >= estimate.value + 1.9 / 60
    assert 0 <= estimate.p_value(0.05) <= 1


def test_one_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="two clusters"):
        mean_gap(np.ones(3), np.zeros((1, 3)), np.zeros(3, dtype=int))


def test_quantiles_and_p_values_agree_and_mirror() -> None:
    rng = np.random.default_rng(19)
    estimate = mean_gap(rng.exponential(size=90), np.zeros((1, 90)), _codes(30, 3), rng=rng, draws=1999)
    for confidence in (0.6, 0.9, 0.95, 0.99):
        assert estimate.p_value(estimate.lower(confidence)) == pytest.approx(1 - confidence, abs=2e-3)
        assert estimate.mirrored().lower(confidence) == pytest.approx(-estimate.upper(confidence))
    far = [estimate.p_value(estimate.value - distance * estimate.standard_error) for distance in (3, 6, 12, 24)]
    assert far == sorted(far, reverse=True)
    assert 0 < far[-1] < 1e-8


def test_without_spread_a_score_is_known_exactly() -> None:
    estimate = mean_gap(np.full(8, 3.0), np.ones((1, 8)), _codes(4, 2), rng=np.random.default_rng(0))
    assert estimate.interval(0.95) == (2, 2)
    assert (estimate.p_value(1), estimate.p_value(2)) == (0, 1)


def test_noise_floor_is_the_prediction_interval() -> None:
    assert noise_floor([0.3]) is None
    assert noise_floor([0.1, 0.1, 0.1]) == pytest.approx(0, abs=1e-12)
    assert noise_floor([0.1, 0.2, 0.3]) == pytest.approx(4.302653 * 0.1 * math.sqrt(4 / 3), rel=1e-6)
    assert noise_floor([0.1, 0.2], 0.9) == pytest.approx(6.313752 * math.sqrt(0.005) * math.sqrt(1.5), rel=1e-6)


def test_discernment_of_a_perfect_evaluator_changes_only_the_error() -> None:
    estimate = Estimate(0.4, 0.05, 0.02, 9.0)
    perfect = Discernment.of(200, 200, 300, 0)
    assert perfect.index == 1
    same = perfect.corrected(estimate)
    assert same.value == estimate.value
    assert estimate.cluster_error < same.cluster_error < 1.01 * estimate.cluster_error


def test_discernment_by_hand() -> None:
    found = Discernment.of(present=100, found=90, absent=400, mistaken=40)
    assert found.index == pytest.approx(0.9 - 0.1)
    se, fp = 92 / 104, 42 / 404
    assert found.error == pytest.approx(math.sqrt(se * (1 - se) / 104 + fp * (1 - fp) / 404))
    corrected = found.corrected(Estimate(0.4, 0.05, 0.02, 9.0))
    assert corrected.value == pytest.approx(0.5)
    assert corrected.reference_error == pytest.approx(0.02 / 0.8)
    assert corrected.cluster_error == pytest.approx(math.hypot(0.05 / 0.8, 0.4 * found.error / 0.8**2))


def test_discernment_refuses_evaluators_that_cannot_tell() -> None:
    with pytest.raises(ValueError, match="no more often"):
        Discernment.of(10, 1, 10, 1)


def test_gaps_that_erring_evaluators_find_cover_the_true_gap() -> None:
    """Simulated audits: units with a true probability each, images judged with errors, error rates known from 150 images."""
    rng = np.random.default_rng(11)
    sensitivity, false_positives, images, units = 0.85, 0.1, 10, 40
    codes = np.arange(units)
    bare, right, repeats = 0, 0, 400
    for _ in range(repeats):
        truth = rng.beta(2, 2, units)
        found_rates = truth * sensitivity + (1 - truth) * false_positives
        target = rng.binomial(images, found_rates) / images
        references = rng.binomial(images, np.full((3, units), false_positives)) / images
        estimate = mean_gap(target, references, codes)
        known = Discernment.of(150, int(rng.binomial(150, sensitivity)), 150, int(rng.binomial(150, false_positives)))
        low, high = known.corrected(estimate).interval(0.95)
        right += low <= 0.5 <= high  # the population's mean; references show nothing
        low, high = estimate.interval(0.95)
        bare += low <= 0.5 <= high
    assert right / repeats >= 0.93
    assert bare / repeats < 0.5  # without the correction the gap is found too small


def test_detectable_gap_and_needed_units_by_hand() -> None:
    estimate = Estimate(0.02, 0.03, 0.0, 30.0)
    t = stats.t(30)
    assert detectable_gap(estimate, 0.05, 0.95) == pytest.approx(0.05 + 0.03 * (t.ppf(0.975) + t.ppf(0.8)))
    needed = needed_units(estimate, 100, 0.03, 0.05)
    assert needed == math.ceil(100 * t.ppf(0.95) ** 2)
    assert needed_units(estimate, 100, 0.0, 0.05) is None
    assert needed_units(estimate, 100, 0.001, 0.05) is None
    assert needed_units(Estimate(0.02, 0.03, 0.03, 30.0), 100, 0.03, 0.05) is None, "the references' own error stays"


def test_relative_similarity_by_hand_and_by_direction() -> None:
    rng = np.random.default_rng(23)
    codes, original = _codes(20, 4), np.full(80, 0.9)
    references = rng.random((3, 80)) * 0.2
    near, p_near = relative_similarity(rng.random(80) * 0.2, references, original, codes)
    far, p_far = relative_similarity(original - 0.05, references, original, codes)
    assert near < 0 < far
    assert p_near < 1e-6
    assert p_far > 1 - 1e-6
    differences = ((original - 0.05 - references) ** 2).mean(0) - 0.05**2
    means = differences.reshape(20, 4).mean(1)
    assert p_far == pytest.approx(1 - stats.ttest_1samp(means, 0, alternative="greater").pvalue)
    assert relative_similarity(original, original[None, :], original, codes) == (0, 1)


def _slow_holm(levels: list[float]) -> list[bool]:
    survives = [False] * len(levels)
    left = list(range(len(levels)))
    while left:
        best = min(left, key=lambda index: levels[index])
        if levels[best] * len(left) > 1:
            break
        survives[best] = True
        left.remove(best)
    return survives


@given(st.lists(st.one_of(st.floats(0, 2), st.just(math.inf)), max_size=12))
@settings(max_examples=200, deadline=None)
def test_holm_equals_a_slow_implementation(levels: list[float]) -> None:
    assert holm(levels) == _slow_holm(levels)


def test_holm_by_hand() -> None:
    assert holm([0.4, 0.2, 0.34, 0.9]) == [False, True, False, False]
    assert holm([0.4, 0.2, 0.33, 0.9]) == [True, True, True, True]
    assert holm([]) == []


# The worst cluster.


def test_cluster_means_by_hand() -> None:
    means = cluster_means(np.array([[1.0, 3, 5]]), np.array([0, 0, 1]), np.array([2.0, 1]))
    assert means.tolist() == [[2, 5]]


def test_tail_is_the_predictive_one_of_an_exponential() -> None:
    pool = -np.log(1 - (np.arange(4000) + 0.5) / 4000)
    tail = Tail.fitted(pool, 40)
    assert tail.count == 10
    assert tail.fraction == 0.25
    assert tail.excess == pytest.approx(1, abs=0.01)
    probability = 1e-4
    excess = tail.quantile(probability) - tail.start
    assert tail.fraction * (1 + excess / (tail.count * tail.excess)) ** -tail.count == pytest.approx(probability)
    assert tail.quantile(probability) > -math.log(probability), "beyond the plug-in quantile"


def test_unit_bound_exceeds_the_exact_binomial() -> None:
    references = np.zeros((3, 200))
    references[:, ::40] = 1.0
    codes, sizes = _codes(40, 5), np.full(40, 5.0)
    null = null_of_references(references, codes, sizes)
    apart = np.append((references - references.mean(0)) * 1.5, 1.0)
    rate = (apart > 0.5).mean()
    assert len(TILTS) == len(null.cumulants)
    for hits in (1, 2, 3):
        bound = null.probability(np.full(1, hits / 5), np.full(1, 5.0))[0]
        assert bound >= stats.binom.sf(hits - 1, 5, rate)


@pytest.mark.parametrize("references", [1, 2, 3])
@pytest.mark.parametrize("two_sided", [False, True])
def test_probability_and_threshold_agree(references: int, two_sided: bool) -> None:
    rng = np.random.default_rng(29)
    values, codes = simulations.draw("guesses and cluster noise", rng, references, 30, (1, 20))
    judged = judge_maximum(values[0], values[1:], codes, margin=1e-6, two_sided=two_sided)
    size = np.abs(judged.gaps) if two_sided else judged.gaps
    clear = np.abs(np.log(size.clip(1e-9) / judged.thresholds)) > 0.02
    assert np.array_equal(judged.flagged[clear], (judged.p_values <= 0.01)[clear])


def test_two_references_are_exchangeable() -> None:
    rng = np.random.default_rng(31)
    values, codes = simulations.draw("skewed clusters", rng, 2, 30, (1, 20))
    first = judge_maximum(values[0], values[1:], codes)
    second = judge_maximum(values[0], values[:0:-1], codes)
    assert np.allclose(first.thresholds, second.thresholds)


def test_a_shift_of_the_whole_model_within_the_floor_flags_no_cluster() -> None:
    rng = np.random.default_rng(43)
    values, codes = 0.4 + 0.02 * rng.normal(size=(3, 180)), _codes(30, 6)
    values[0] += 0.35
    assert judge_maximum(values[0], values[1:], codes).flagged.sum() > 25
    assert not judge_maximum(values[0], values[1:], codes, floor=0.5).flagged.any()
    values[0] -= 0.35
    values[0][codes == 7] = 0.95
    assert np.flatnonzero(judge_maximum(values[0], values[1:], codes, floor=0.5).flagged).tolist() == [7]


def test_two_sided_flags_a_cluster_below_the_references() -> None:
    rng = np.random.default_rng(37)
    values, codes = 0.8 + 0.02 * rng.normal(size=(4, 180)), _codes(30, 6)
    values[0][codes == 3] = 0.05
    assert not judge_maximum(values[0], values[1:], codes).flagged.any()
    assert np.flatnonzero(judge_maximum(values[0], values[1:], codes, two_sided=True).flagged).tolist() == [3]


@pytest.mark.parametrize("references", [1, 2, 3])
def test_references_without_leakage_leave_the_margin_and_a_full_cluster_is_flagged(references: int) -> None:
    target, codes = np.zeros(360), _codes(30, 12)
    quiet = judge_maximum(target, np.zeros((references, 360)), codes)
    assert quiet.thresholds == pytest.approx(np.full(30, 0.25))
    assert not quiet.flagged.any()
    assert np.isfinite(quiet.p_values).all()
    target[codes == 4] = 0.95
    assert np.flatnonzero(judge_maximum(target, np.zeros((references, 360)), codes).flagged).tolist() == [4]


def test_single_units_cannot_be_flagged_and_the_detectable_gap_says_so() -> None:
    target, codes = np.zeros(100), np.arange(100)
    target[5] = 0.95
    judged = judge_maximum(target, np.zeros((3, 100)), codes)
    assert not judged.flagged.any()
    assert judged.smallest_detectable_gap >= 1


# Simulation: a small part of what benchmarks/simulate_statistics.py runs, with the bounds that 200 to 300 audits allow.


def _tolerance(share: float, audits: int) -> float:
    return 3.5 * math.sqrt(share * (1 - share) / audits)


@pytest.mark.parametrize("population", ["normal", "binary"])
@pytest.mark.parametrize(("clusters", "references"), [(20, 1), (40, 3)])
def test_interval_covers_at_its_level(population: str, clusters: int, references: int) -> None:
    covers, _, passes = simulations.coverage(population, clusters, references, 0.0, 300)
    assert abs(covers - 0.95) <= 0.02 + _tolerance(0.95, 300)
    assert passes <= 0.05 + _tolerance(0.05, 300)


@pytest.mark.parametrize("population", ["exponential target", "beta target"])
def test_interval_covers_skewed_leakage_better_than_t(population: str) -> None:
    covers, student, _ = simulations.coverage(population, 20, 1, 0.0, 300)
    assert covers >= 0.9
    assert covers > student


@pytest.mark.parametrize("references", [1, 2, 3])
@pytest.mark.parametrize("population", ["guesses 0.5 %", "guesses 2 %", "guesses 5 %", "normal", "binary", "skewed units"])
def test_honest_audits_do_not_fail(population: str, references: int) -> None:
    failed, _ = simulations.false_alarms(population, references, 0.02, 200)
    assert failed <= 0.01 + _tolerance(0.01, 200)


@pytest.mark.parametrize("sizes", [(6, 6), (8, 8), (4, 8)])
def test_remembered_cluster_is_found(sizes: tuple[int, int]) -> None:
    failed, right, threshold = simulations.power(3, 35, sizes, 200)
    assert failed >= 0.97
    assert right >= 0.97
    assert threshold < 0.8


def test_detectable_gap_is_detected_with_its_power() -> None:
    rng = np.random.default_rng(41)
    shown = []
    for _ in range(300):
        values, codes = simulations.draw("normal", rng, 1, 40, (1, 20))
        gap = detectable_gap(mean_gap(values[0], values[1:], codes, rng=rng, draws=999, resolution=1.0), 0.05, 0.95)
        fresh, others = simulations.draw("normal", rng, 1, 40, (1, 20))
        estimate = mean_gap(fresh[0] + gap, fresh[1:], others, rng=rng, draws=999, resolution=1.0)
        shown.append(estimate.lower(0.975) > 0.05)
    assert abs(np.mean(shown) - 0.8) < 0.1
