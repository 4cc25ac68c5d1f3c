"""RMIA end to end against the matrix of all ratios, computed in plain loops over the same shadow logits."""

import math
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import parzen
import pytest

from muaudit.attacks.rmia import Rmia
from muaudit.errors import NotApplicable, UsageError
from muaudit.examples import LabelledTask


@pytest.fixture(scope="module")
def given() -> LabelledTask:
    return parzen.task()


@pytest.fixture(scope="module")
def cohort(given: LabelledTask) -> parzen.Cohort:
    return parzen.shadows(given, 12)


def softmax(logits: np.ndarray, label: int, temperature: float) -> float:
    powers = [math.exp(value / temperature) for value in logits]
    return powers[label] / sum(powers)


def taylor(logits: np.ndarray, label: int, temperature: float) -> float:
    def polynomial(value: float) -> float:
        return sum(value**power / math.factorial(power) for power in range(5))

    own = polynomial(logits[label] / temperature - 0.6)
    return own / (own + sum(polynomial(value / temperature) for place, value in enumerate(logits) if place != label))


def slow(
    given: LabelledTask, cohort: parzen.Cohort, model: parzen.Parzen, attack: Rmia, offset: float
) -> tuple[list[float], list[float]]:
    """Leakage of the forget and retain units, and their raw scores, from the whole matrix of ratios."""
    pool, of = given.pool, softmax if attack.signal == "softmax" else taylor

    def signals(logits: np.ndarray) -> list[float]:
        return [of(row, label, attack.temperature) for row, label in zip(logits, pool.labels, strict=True)]

    target, references = signals(model.logits(pool)), [signals(one) for one in cohort.logits(pool)]

    def averaged(n: int, inside: bool) -> float:
        own = sorted(row[n] for row, member in zip(references, cohort.rows, strict=True) if member[n] == inside)
        cut = math.floor(attack.trim * len(own))
        return mean(own[cut : len(own) - cut])

    ratios = []
    for n in range(len(pool)):
        outside = averaged(n, False)
        expected = ((1 + offset) * outside + 1 - offset) / 2
        if attack.mode == "online":
            expected = (averaged(n, True) + outside) / 2
        ratios.append(target[n] / expected)
    units = len(given.forget) + len(given.retain)
    holdout = range(units, len(pool))
    scores = [mean(float(ratios[n] / ratios[z] > attack.gamma) for z in holdout if z != n) for n in range(len(pool))]
    leakage = [mean((scores[z] < scores[n]) + 0.5 * (scores[z] == scores[n]) for z in holdout) for n in range(units)]
    return leakage, scores[:units]


@pytest.mark.parametrize(
    "parameters",
    [
        {"mode": "offline"},
        {"mode": "online"},
        {"mode": "offline", "gamma": 2.0, "temperature": 2.0, "signal": "taylor", "trim": 0.2},
        {"mode": "online", "gamma": 0.5, "trim": 0.2},
    ],
)
def test_the_scores_are_the_matrix_of_ratios(parameters: dict[str, Any]) -> None:
    given = parzen.task(12, 8, 20)
    cohort, model = parzen.shadows(given, 10), parzen.trained(given, ["forget", "retain"], 1)
    attack = Rmia(offset=0.3, **parameters)
    seen = parzen.measured(attack, parzen.prepared(attack, parzen.bench(given, cohort=cohort)), model)
    leakage, scores = slow(given, cohort, model, attack, 0.3)
    assert seen.leakage == pytest.approx(leakage)
    assert seen.scores[f"{attack.mode}_score"] == pytest.approx(scores)
    assert seen.summaries["auc"] == pytest.approx(mean(leakage[:12]))


def test_the_offset_is_tuned_on_shadow_models(given: LabelledTask, cohort: parzen.Cohort) -> None:
    """One shadow model after the other is attacked with the rest; the offset that ranks its members highest is the best."""
    state = Rmia().prepare(parzen.bench(given, cohort=cohort))
    logits, labels, best = cohort.logits(given.pool), given.pool.labels, []
    probabilities = np.array([[softmax(row, label, 1.0) for row, label in zip(one, labels, strict=True)] for one in logits])
    for judged in range(8):
        others = [one for one in range(12) if one != judged]
        outside = np.array([probabilities[others, n][~cohort.rows[others, n]].mean() for n in range(200)])
        inside, found = cohort.rows[judged], []
        for step in range(11):
            ratios = probabilities[judged] / ((1 + step / 10) * outside + 1 - step / 10)
            score = [mean(float(one > other) for other in ratios[~inside]) for one in ratios]
            members, rest = np.array(score)[inside][:, None], np.array(score)[~inside]
            found.append(float(((members > rest) + 0.5 * (members == rest)).mean()))
        best.append(int(np.argmax(found)) / 10)
    assert any(note.endswith(f"offset {mean(best):g}") for note in state.data["notes"])


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_two_shadow_models_will_do(given: LabelledTask, mode: Any) -> None:
    attack = Rmia(mode=mode)
    state = parzen.prepared(attack, parzen.bench(given, 2))
    assert parzen.leakage(parzen.measured(attack, state, parzen.trained(given, ["forget", "retain"], 1))) > 0.65
    assert abs(parzen.leakage(parzen.measured(attack, state, parzen.trained(given, ["retain"], 11))) - 0.5) < 0.1
    assert any("offset 0.3 was not tuned" in note for note in state.data["notes"])


def test_one_shadow_model_that_never_saw_them_will_do(given: LabelledTask) -> None:
    rows = np.zeros((1, len(given.pool)), dtype=bool)
    rows[0, given.rows("retain")] = True
    attack = Rmia(retain_examples=0)
    state = parzen.prepared(attack, parzen.bench(given, cohort=parzen.Cohort(given.pool, rows)))
    seen = parzen.measured(attack, state, parzen.trained(given, ["forget", "retain"], 1))
    assert parzen.leakage(seen) > 0.65
    assert "online" not in seen.scores
    with pytest.raises(UsageError, match=r"such as 'retain-.*are in the training set of every one of the 1 shadow"):
        Rmia().prepare(parzen.bench(given, cohort=parzen.Cohort(given.pool, rows)))
    with pytest.raises(UsageError, match="or choose the offline mode"):
        Rmia(mode="online", retain_examples=0).prepare(parzen.bench(given, cohort=parzen.Cohort(given.pool, rows)))


def test_a_planted_member_is_ranked_first(given: LabelledTask) -> None:
    state = parzen.prepared(Rmia(), parzen.bench(given, 32))
    honest = parzen.trained(given, ["retain"], 11).logits(given.forget)
    hard = np.argsort([softmax(row, label, 1.0) for row, label in zip(honest, given.forget.labels, strict=True)])[:3]
    for place in hard:
        rows = np.zeros(len(given.pool), dtype=bool)
        rows[[place, *given.rows("retain")]] = True
        seen = parzen.measured(Rmia(), state, parzen.Parzen(given.pool, rows, 33))
        assert np.argmax(seen.leakage[:40]) == place
        assert seen.leakage[place] > 0.95


def test_recorded_logits_equal_the_models_own(given: LabelledTask, cohort: parzen.Cohort) -> None:
    model = parzen.trained(given, ["forget", "retain"], 1)
    recorded = parzen.Recorded(model.logits(given.pool), given.pool.ids)
    state = parzen.prepared(Rmia(), parzen.bench(given, cohort=cohort, capabilities=frozenset({"Classifies"})))
    assert parzen.measured(Rmia(), state, recorded).canonical() == parzen.measured(Rmia(), state, model).canonical()


def test_what_is_pushed_too_far_gives_itself_away(given: LabelledTask, cohort: parzen.Cohort) -> None:
    state = parzen.prepared(Rmia(), parzen.bench(given, cohort=cohort))
    pushed = parzen.Shifted(parzen.trained(given, ["retain"], 11), 12.0)
    assert parzen.leakage(parzen.measured(Rmia(), state, pushed)) < 0.05
    honest = parzen.Shifted(parzen.trained(given, ["retain"], 11), 0.0)
    assert abs(parzen.leakage(parzen.measured(Rmia(), state, honest)) - 0.5) < 0.1


def test_it_is_prepared_alike_and_skipped_without_shadow_models(given: LabelledTask, cohort: parzen.Cohort) -> None:
    attack = Rmia(retain_examples=20)
    first, second = (parzen.prepared(attack, parzen.bench(given, cohort=cohort)) for _ in range(2))
    assert first.content_digest() == second.content_digest()
    with pytest.raises(NotApplicable, match=r"add \[recipe\] and \[shadows\]"):
        attack.prepare(parzen.bench(given, 0))
    with pytest.raises(NotApplicable, match=r"task\.holdout"):
        attack.prepare(parzen.bench(replace(given, holdout=given.holdout.take([])), 4))


def test_the_judge_flags_the_original_and_passes_honest_retrains(given: LabelledTask, cohort: parzen.Cohort) -> None:
    found = parzen.verdicts(Rmia(), given, parzen.bench(given, cohort=cohort))
    assert found == {"original": ["fail"], "retrain": ["pass"], "references": ["not flagged"] * 3}
