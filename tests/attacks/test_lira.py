"""LiRA end to end against plain loops over the same shadow logits, and what it does with few, odd or telling data."""

import math
from dataclasses import replace
from statistics import NormalDist, mean, median, pstdev
from typing import Any

import numpy as np
import parzen
import pytest
from beds import opened

from muaudit.attack import Measurement
from muaudit.attacks.lira import Lira
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators.likelihood_ratio import balanced_membership
from muaudit.examples import Examples, LabelledTask


@pytest.fixture(scope="module")
def given() -> LabelledTask:
    return parzen.task()


@pytest.fixture(scope="module")
def cohort(given: LabelledTask) -> parzen.Cohort:
    return parzen.shadows(given, 12)


def margin(logits: np.ndarray, label: int) -> float:
    others = [math.exp(value) for place, value in enumerate(logits) if place != label]
    return float(logits[label]) - math.log(sum(others))


class Slow:
    """The three scores in plain loops over one example at a time."""

    def __init__(self, cohort: parzen.Cohort, examples: Examples, variance: str, centre: str = "median") -> None:
        self.examples, self.variance = examples, variance
        self.middle = median if centre == "median" else mean
        places = [cohort.ids.index(name) for name in examples.ids]
        self.member = [[bool(row[place]) for place in places] for row in cohort.rows]
        logits = cohort.logits(examples)
        self.margins = [[margin(row[n], examples.labels[n]) for n in range(len(examples))] for row in logits]

    def fit(self, models: list[int], n: int, inside: bool) -> tuple[float, float]:
        """Centre and deviation of one example over some models on one side."""
        values = [self.margins[m][n] for m in models if self.member[m][n] == inside]
        if self.variance == "per_example":
            return self.middle(values), pstdev(values)
        total = freedom = 0.0
        for other in range(len(self.examples)):
            own = [self.margins[m][other] for m in models if self.member[m][other] == inside]
            total += sum((value - self.middle(own)) ** 2 for value in own) if own else 0.0
            freedom += max(len(own) - 1, 0)
        return self.middle(values), math.sqrt(total / freedom)

    def score(self, mode: str, value: float, inside: tuple[float, float], outside: tuple[float, float]) -> float:
        if mode == "offline_one_sided":
            return NormalDist(*outside).cdf(value)

        def density(centre: float, deviation: float) -> float:
            return -((value - centre) ** 2) / (2 * deviation**2) - math.log(deviation * math.sqrt(2 * math.pi))

        return density(*inside) - density(*outside) if mode == "online" else -density(*outside)

    def scores(self, mode: str, logits: np.ndarray) -> list[float]:
        models = list(range(len(self.margins)))
        return [
            self.score(mode, margin(logits[n], self.examples.labels[n]), self.fit(models, n, True), self.fit(models, n, False))
            for n in range(len(self.examples))
        ]


def ranks(scores: list[float], units: int) -> list[float]:
    """Each unit's share of holdout examples below, equal ones counted half."""
    holdout = scores[units:]
    return [sum((one < score) + 0.5 * (one == score) for one in holdout) / len(holdout) for score in scores[:units]]


@pytest.mark.parametrize("centre", ["median", "mean"])
@pytest.mark.parametrize("variance", ["fixed", "per_example"])
def test_every_mode_is_its_slow_definition(variance: Any, centre: Any) -> None:
    given = parzen.task(10, 6, 16)
    cohort = parzen.shadows(given, 8)
    slow = Slow(cohort, given.pool, variance, centre)
    model = parzen.trained(given, ["forget", "retain"], 1)
    expected = {
        mode: ranks(slow.scores(mode, model.logits(given.pool)), 16)
        for mode in ("online", "offline_one_sided", "offline_two_tailed")
    }
    for mode in expected:
        attack = Lira(mode=mode, variance=variance, centre=centre)  # type: ignore[arg-type]
        state = parzen.prepared(attack, parzen.bench(given, cohort=cohort))
        seen = parzen.measured(attack, state, model)
        assert seen.units == given.pool.ids[:16]
        assert seen.leakage == pytest.approx(expected[mode])
        for other in expected.keys() - {mode}:
            assert seen.scores[other] == pytest.approx(expected[other])


def test_the_summaries_are_scikit_learns(given: LabelledTask, cohort: parzen.Cohort) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    state = parzen.prepared(Lira(), parzen.bench(given, cohort=cohort))
    model = parzen.trained(given, ["forget", "retain"], 1)
    seen = parzen.measured(Lira(), state, model)
    scored = [margin(row, label) for row, label in zip(model.logits(given.pool), given.pool.labels, strict=True)]
    sides = [1] * 40 + [0] * 100
    assert seen.summaries["auc"] == pytest.approx(parzen.leakage(seen))
    assert seen.summaries["auc_global_margin"] == pytest.approx(metrics.roc_auc_score(sides, scored[:40] + scored[100:]))
    assert seen.summaries["auc_low"] < seen.summaries["auc"] < seen.summaries["auc_high"]
    assert seen.summaries["auc"] > seen.summaries["auc_global_margin"] + 0.1, "LiRA beats the global threshold"


def test_low_rates_that_the_holdout_cannot_resolve_are_refused(given: LabelledTask, cohort: parzen.Cohort) -> None:
    state = parzen.prepared(Lira(), parzen.bench(given, cohort=cohort))
    seen = parzen.measured(Lira(), state, parzen.trained(given, ["retain"], 11))
    assert {"tpr_at_1_percent_fpr", "tpr_at_1_percent_fpr_low", "tpr_at_1_percent_fpr_high"} <= set(seen.summaries)
    assert not [name for name in seen.summaries if "0.1_percent" in name]
    assert any("0.1 % false positives is quoted: 100 holdout examples" in note for note in seen.notes)


def test_a_planted_member_is_ranked_first(given: LabelledTask) -> None:
    """One hard forget example was left in the training set of a model that is otherwise an honest retrain."""
    rows = np.zeros(len(given.pool), dtype=bool)
    rows[given.rows("retain")] = True
    state = parzen.prepared(Lira(), parzen.bench(given, 32))
    honest = parzen.trained(given, ["retain"], 11).logits(given.forget)
    margins = [margin(*both) for both in zip(honest, given.forget.labels, strict=True)]
    for place in np.argsort(margins)[:3]:
        planted = rows.copy()
        planted[place] = True
        seen = parzen.measured(Lira(), state, parzen.Parzen(given.pool, planted, 33))
        assert np.argmax(seen.leakage[:40]) == place
        assert seen.leakage[place] > 0.95


def test_recorded_logits_equal_the_models_own(given: LabelledTask, cohort: parzen.Cohort) -> None:
    model = parzen.trained(given, ["forget", "retain"], 1)
    recorded = parzen.Recorded(model.logits(given.pool), given.pool.ids)
    state = parzen.prepared(Lira(), parzen.bench(given, cohort=cohort))
    assert parzen.measured(Lira(), state, recorded).canonical() == parzen.measured(Lira(), state, model).canonical()


def test_recorded_logits_are_not_augmented_and_the_report_says_so(given: LabelledTask, cohort: parzen.Cohort) -> None:
    model = parzen.trained(given, ["forget", "retain"], 1)
    attack, outputs = Lira(augmentation="mirror"), parzen.Recorded(model.logits(given.pool), given.pool.ids)
    plain = parzen.measured(Lira(), parzen.prepared(Lira(), parzen.bench(given, cohort=cohort)), model)
    recorded = parzen.shadows(given, 12)
    recorded.recorded = True
    for made in (
        parzen.bench(given, cohort=cohort, capabilities=frozenset({"Classifies"})),
        parzen.bench(given, cohort=recorded),
    ):
        seen = parzen.measured(attack, parzen.prepared(attack, made), outputs)
        assert seen.leakage == plain.leakage
        assert any("asked about as it is, without mirror" in note for note in seen.notes)


def test_augmented_scores_are_means_over_the_queries(given: LabelledTask, cohort: parzen.Cohort) -> None:
    """Q = 2 (2s + 1)^2 queries, written out by hand."""
    attack = Lira(augmentation="mirror_shift", shift=1, variance="per_example")
    state = parzen.prepared(attack, parzen.bench(given, cohort=cohort))
    model = parzen.trained(given, ["forget", "retain"], 1)
    pool, total = given.pool, np.zeros(len(given.pool))
    height, width = 2, 3
    for mirrored in (False, True):
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                moved = np.zeros_like(pool.pictured())
                source = pool.pictured()[..., ::-1] if mirrored else pool.pictured()
                for row in range(height):
                    for column in range(width):
                        if 0 <= row + down < height and 0 <= column + across < width:
                            moved[:, :, row, column] = source[:, :, row + down, column + across]
                changed = replace(pool, inputs=moved)
                slow = Slow(cohort, changed, "per_example")
                total += np.array(slow.scores("online", model.logits(changed))) / 18
    assert np.shape(state.data["outside"]["centre"]) == (200, 18)
    assert parzen.measured(attack, state, model).leakage == pytest.approx(ranks(total.tolist(), 100))


def test_tables_are_not_mirrored(given: LabelledTask) -> None:
    flat = {name: replace(part, inputs=part.pictured().reshape(len(part), -1)) for name, part in given.sets()}
    with pytest.raises(NotApplicable, match='set augmentation = "none"'):
        Lira(augmentation="mirror").prepare(parzen.bench(replace(given, **flat)))
    with pytest.raises(ValueError, match="shift = 1 or more"):
        Lira(augmentation="shift")


def test_the_threshold_is_calibrated_on_shadow_models_alone() -> None:
    given = parzen.task(10, 6, 16)
    cohort = parzen.shadows(given, 6)
    attack = Lira(variance="fixed")
    state = parzen.prepared(attack, parzen.bench(given, cohort=cohort))
    slow, inside, outside = Slow(cohort, given.pool, "fixed"), [], []
    for judged in range(6):
        others = [one for one in range(6) if one != judged]
        for n in range(32):
            fits = slow.fit(others, n, True), slow.fit(others, n, False)
            score = slow.score("online", slow.margins[judged][n], *fits)
            (inside if slow.member[judged][n] else outside).append(score)

    def balanced(threshold: float) -> float:
        return mean(score >= threshold for score in inside) + mean(score < threshold for score in outside)

    assert balanced(state.data["threshold"] - 1e-9) == pytest.approx(max(map(balanced, inside + outside)))
    seen = parzen.measured(attack, state, parzen.trained(given, ["forget", "retain"], 1))
    assert seen.summaries["calibrated_tpr_low"] <= seen.summaries["calibrated_tpr"] <= seen.summaries["calibrated_tpr_high"]
    assert seen.summaries["calibrated_balanced_accuracy"] <= seen.summaries["balanced_accuracy"]


@pytest.mark.parametrize("mode", ["online", "offline_one_sided", "offline_two_tailed"])
def test_what_is_pushed_too_far_gives_itself_away(given: LabelledTask, cohort: parzen.Cohort, mode: Any) -> None:
    attack = Lira(mode=mode, variance="fixed")
    state = parzen.prepared(attack, parzen.bench(given, cohort=cohort))

    def seen(by: float) -> Measurement:
        return parzen.measured(attack, state, parzen.Shifted(parzen.trained(given, ["retain"], 11), by))

    honest, pushed = parzen.leakage(seen(0.0)), parzen.leakage(seen(12.0))
    assert abs(honest - 0.5) < 0.1
    assert pushed > 0.95 if mode == "offline_two_tailed" else pushed < 0.05


def test_an_example_on_one_side_of_all_shadow_models_is_an_error(given: LabelledTask) -> None:
    rows = balanced_membership(8, len(given.pool), 1)
    rows[:, 5] = True
    with pytest.raises(
        UsageError, match="1 examples, such as 'forget-5', are in the training set of every one of the 8 shadow"
    ):
        Lira(mode="offline_one_sided").prepare(parzen.bench(given, cohort=parzen.Cohort(given.pool, rows)))
    rows[:, 5] = False
    never = parzen.bench(given, cohort=parzen.Cohort(given.pool, rows))
    with pytest.raises(
        UsageError, match=r"are not in the training set of any of the 8 shadow models.*or choose an offline mode"
    ):
        Lira().prepare(never)
    offline = Lira(mode="offline_one_sided")
    seen = parzen.measured(offline, parzen.prepared(offline, never), parzen.trained(given, ["retain"], 11))
    assert "online" not in seen.scores
    assert any(note.startswith("not scored online: 1 examples, such as 'forget-5'") for note in seen.notes)


def test_shadow_models_of_other_examples_are_an_error(given: LabelledTask) -> None:
    other = parzen.shadows(given, 4)
    other.ids = tuple(f"other {name}" for name in other.ids)
    with pytest.raises(UsageError, match="'forget-0'"):
        Lira().prepare(parzen.bench(given, cohort=other))


def test_two_shadow_models_will_do(given: LabelledTask) -> None:
    """One on each side of an example leaves no residual: the raw scores' variance stands in, and no threshold is chosen."""
    state = parzen.prepared(Lira(), parzen.bench(given, 2))
    seen = parzen.measured(Lira(), state, parzen.trained(given, ["forget", "retain"], 1))
    assert parzen.leakage(seen) > 0.6
    assert "calibrated_tpr" not in seen.summaries
    assert any("too few to choose a threshold" in note for note in seen.notes)
    with pytest.raises(UsageError, match="fewer than 2 models"):
        Lira(variance="per_example").prepare(parzen.bench(given, 2))


def test_the_variance_is_pooled_up_to_64_shadow_models(given: LabelledTask) -> None:
    for models, told in ((64, "variance pooled over all examples"), (66, "a variance of each example's own")):
        notes = Lira().prepare(parzen.bench(given, models)).data["notes"]
        assert any(told in note and f"{models} shadow models, none of them audited" in note for note in notes)


def test_without_holdout_or_shadow_models_it_is_skipped(given: LabelledTask) -> None:
    nothing = given.holdout.take([])
    with pytest.raises(NotApplicable, match=r"give them as task\.holdout"):
        Lira().prepare(parzen.bench(replace(given, holdout=nothing)))
    with pytest.raises(NotApplicable, match=r"add \[recipe\] and \[shadows\]"):
        Lira().prepare(parzen.bench(given, 0))


def test_retain_examples_are_drawn_and_stand_apart(given: LabelledTask, cohort: parzen.Cohort) -> None:
    attack = Lira(retain_examples=20)
    state = parzen.prepared(attack, parzen.bench(given, cohort=cohort))
    seen = parzen.measured(attack, state, parzen.trained(given, ["retain"], 11))
    assert seen.sets == ("forget",) * 40 + ("retain",) * 20
    assert np.mean(seen.leakage[40:]) > 0.7 > np.mean(seen.leakage[:40])
    assert any("20 of 60 retain examples" in note for note in seen.notes)
    again = parzen.prepared(attack, parzen.bench(given, cohort=cohort))
    assert again.content_digest() == state.content_digest()


def test_the_judge_flags_the_original_and_passes_honest_retrains(given: LabelledTask, cohort: parzen.Cohort) -> None:
    found = parzen.verdicts(Lira(), given, parzen.bench(given, cohort=cohort))
    assert found == {"original": ["fail"], "retrain": ["pass"], "references": ["not flagged"] * 3}


def test_on_digits_it_beats_the_global_loss_threshold(digits_audit: Any) -> None:
    """With 64 shadow models on an overfitted target, at 1 % false positives."""
    attack = Lira()
    state = digits_audit.ready(attack, parzen.stored(attack.prepare(digits_audit.bench(attack))))
    seen = parzen.measured(attack, state, opened(digits_audit.models["original"]))
    assert seen.summaries["tpr_at_1_percent_fpr_low"] > seen.summaries["tpr_at_1_percent_fpr_global_margin"]
    assert seen.summaries["auc_low"] > seen.summaries["auc_global_margin"]
