"""IAM: what stands at both ends of its scale, what it needs, and what it says of models that went too far."""

from dataclasses import replace

import numpy as np
import parzen
import pytest

from muaudit.attack import Bench
from muaudit.attacks.iam import Iam
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators import interpolated, relative_membership
from muaudit.examples import Examples, LabelledTask


@pytest.fixture(scope="module")
def given() -> LabelledTask:
    return parzen.task()


def signal(model: parzen.Parzen, examples: Examples) -> np.ndarray:
    probabilities = relative_membership.probability(model.logits(examples), examples.labels)
    return interpolated.bounded_gumbel(probabilities, below_one=0.01, above_zero=1e-5)


def test_leakage_is_one_minus_the_completeness(given: LabelledTask) -> None:
    """Each set by itself, against each example's own shadow models: those that were not trained on it."""
    cohort = parzen.shadows(given, 6)
    state = parzen.prepared(Iam(), parzen.bench(given, cohort=cohort))
    original, model = parzen.trained(given, ["forget", "retain"], 1), parzen.trained(given, ["retain"], 11)
    seen, start = parzen.measured(Iam(), state, model), 0
    for part in (given.forget, given.retain):
        unseen = np.empty((3, len(part)))
        for n, name in enumerate(part.ids):
            place = given.pool.ids.index(name)
            unseen[:, n] = [signal(one, part)[n] for one, row in zip(cohort.models, cohort.rows, strict=True) if not row[place]]
        expected = interpolated.completeness(signal(original, part), unseen, signal(model, part))
        rows = slice(start, start + len(part))
        assert seen.leakage[rows] == pytest.approx(1 - expected.completeness)
        assert seen.scores["over_unlearned"][rows] == pytest.approx(np.minimum(expected.over_unlearned, 1))
        start += len(part)
    assert seen.summaries["completeness"] == pytest.approx(1 - parzen.leakage(seen))


def test_the_original_stands_at_one_and_what_never_saw_an_example_at_zero(given: LabelledTask) -> None:
    spare = parzen.bench(given, 0, calibration=True)
    state = parzen.prepared(Iam(), spare)
    assert spare.open_original is not None
    assert spare.open_calibration is not None
    original = parzen.measured(Iam(), state, spare.open_original())
    unseen = parzen.measured(Iam(), state, spare.open_calibration())
    informative = np.array(original.leakage) > 0
    assert original.summaries["informative_share"] == informative.mean() > 0.5
    assert np.array(original.leakage)[informative] == pytest.approx(1.0)
    assert unseen.leakage == pytest.approx(np.zeros(40))


def test_one_model_that_never_saw_the_forget_set_is_enough(given: LabelledTask) -> None:
    state = parzen.prepared(Iam(), parzen.bench(given, 0, calibration=True))
    seen = parzen.measured(Iam(), state, parzen.trained(given, ["retain"], 11))
    assert seen.sets == ("forget",) * 40
    assert any("collateral damage is not measured" in note for note in seen.notes)
    both = parzen.prepared(Iam(), parzen.bench(given, 6, calibration=True))
    assert np.shape(both.data["sides"]["forget"]["unseen"]) == (4, 40)
    assert np.shape(both.data["sides"]["retain"]["unseen"]) == (3, 60)


def test_what_it_lacks_is_said(given: LabelledTask) -> None:
    with pytest.raises(NotApplicable, match=r"give \[original\]"):
        Iam().prepare(parzen.bench(given, 6, original=False))
    with pytest.raises(NotApplicable, match="or a second reference"):
        Iam().prepare(parzen.bench(given, 0))
    rows = np.ones((3, len(given.pool)), dtype=bool)
    with pytest.raises(UsageError, match="in the training set of every one of the 3 shadow models"):
        Iam().prepare(parzen.bench(given, cohort=parzen.Cohort(given.pool, rows)))


def test_a_forget_set_that_the_original_never_learned_proves_nothing(given: LabelledTask) -> None:
    ignorant = replace(parzen.bench(given, 0, calibration=True), open_original=lambda: parzen.trained(given, ["retain"], 14))
    seen = parzen.measured(Iam(), parzen.prepared(Iam(), ignorant), parzen.trained(given, ["retain"], 11))
    assert seen.powerless is not None
    assert parzen.leakage(seen) == 0
    assert any("40 of 40 forget examples count as unlearned" in note for note in seen.notes)


def test_over_unlearning_shows(given: LabelledTask) -> None:
    state = parzen.prepared(Iam(), parzen.bench(given, 6))
    models = [parzen.Shifted(parzen.trained(given, ["retain"], 11), by) for by in (0.0, 12.0)]
    honest, pushed = (parzen.measured(Iam(), state, model) for model in models)
    assert parzen.leakage(pushed) < 0.05 < parzen.leakage(honest)
    assert 0.3 < honest.summaries["over_unlearned_share"] < 0.7
    assert pushed.summaries["over_unlearned_share"] > 0.75
    assert np.mean(pushed.scores["over_unlearned"][:40]) > np.mean(honest.scores["over_unlearned"][:40]) + 0.2


def test_recorded_logits_equal_the_models_own(given: LabelledTask) -> None:
    state = parzen.prepared(Iam(), parzen.bench(given, 6, capabilities=frozenset({"Classifies"})))
    model = parzen.trained(given, ["forget", "retain"], 1)
    recorded = parzen.Recorded(model.logits(given.pool), given.pool.ids)
    assert parzen.measured(Iam(), state, recorded).canonical() == parzen.measured(Iam(), state, model).canonical()


@pytest.mark.parametrize("with_shadows", [False, True])
def test_the_judge_flags_the_original_and_passes_honest_retrains(given: LabelledTask, *, with_shadows: bool) -> None:
    made: Bench = parzen.bench(given, 12 if with_shadows else 0, calibration=True)
    found = parzen.verdicts(Iam(), given, made)
    assert found == {"original": ["fail"], "retrain": ["pass"], "references": ["not flagged"] * 3}
