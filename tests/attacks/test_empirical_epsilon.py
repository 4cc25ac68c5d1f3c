"""Bounds of epsilon against closed forms and known mechanisms; claims that are refuted, are not, or cannot be tested."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.empirical_epsilon import EmpiricalEpsilon
from muaudit.compare import compare
from muaudit.errors import ModelError, NotApplicable, UsageError
from muaudit.estimators import likelihood_ratio
from muaudit.estimators.claims import STRATEGIES, MembershipScores, Strategy, bound, fair, guessed, p_value_of
from muaudit.estimators.membership import epsilon_lower_bound
from muaudit.examples import Examples, LabelledTask
from muaudit.results import Verdict

FloatArray = NDArray[np.float64]


class Margins:
    """A classifier of two classes whose margins on the class 0 are given."""

    digest, model_seconds = "margins", 0.0

    def __init__(self, margins: dict[str, float]) -> None:
        self.margins = margins

    def logits(self, examples: Examples) -> FloatArray:
        return np.array([[self.margins[name], 0.0] for name in examples.ids])


def examples(kind: str, count: int, canary: str | None = None) -> Examples:
    names = tuple(f"{kind} {place}" for place in range(count))
    return Examples(
        names, names, np.zeros(count, dtype=np.int64), attributes={} if canary is None else {"canary": (canary,) * count}
    )


def task(forget: int, holdout: int, *, canaries: bool = False) -> LabelledTask:
    marks = ("in", "out") if canaries else (None, None)
    return LabelledTask(examples("forget", forget, marks[0]), examples("retain", 0), examples("holdout", holdout, marks[1]))


def bench(given: LabelledTask, **more: Any) -> Bench:
    return Bench(given, np.random.default_rng(3), frozenset({"Classifies"}), **more)


def prepared(attack: EmpiricalEpsilon, given: LabelledTask, **more: Any) -> Prepared:
    return Prepared.model_validate_json(attack.prepare(bench(given, **more)).model_dump_json()).with_task(given)


def measured(attack: EmpiricalEpsilon, given: LabelledTask, inside: FloatArray, outside: FloatArray) -> Measurement:
    margins = dict(zip(given.forget.ids + given.holdout.ids, [*inside, *outside], strict=True))
    return attack.measure(Margins(margins), prepared(attack, given), np.random.default_rng(7))


def scores(inside: FloatArray, outside: FloatArray, **more: Any) -> MembershipScores:
    choosing = np.arange(len(inside)) % 2 == 0, np.arange(len(outside)) % 2 == 0
    return MembershipScores(inside, outside, choosing, **({"delta": 0.0, "alpha": 0.05} | more))


@pytest.mark.parametrize(("judged", "expected"), [(16, 1.350), (64, 2.825), (512, 4.929)])
def test_perfect_separation_shows_the_bound_of_as_many_examples(judged: int, expected: float) -> None:
    attack = EmpiricalEpsilon(claim={"epsilon": expected + 0.01}, alpha=0.05)
    seen = measured(attack, task(2 * judged, 2 * judged), np.linspace(5, 6, 2 * judged), np.linspace(-6, -5, 2 * judged))
    assert seen.claim is not None
    assert seen.claim.lower_bound == pytest.approx(expected, abs=6e-4)
    assert seen.claim.detectable == seen.claim.lower_bound == seen.summaries["epsilon_detectable"]
    assert seen.claim.p_value > 0.05
    assert set(seen.leakage) == {1.0}
    low = EmpiricalEpsilon(claim={"epsilon": expected - 0.01}, alpha=0.05)
    refuted = measured(low, task(2 * judged, 2 * judged), np.linspace(-6, -5, 2 * judged), np.linspace(5, 6, 2 * judged)).claim
    assert refuted is not None
    assert refuted.p_value < 0.05, "low scores give membership away as well"


@pytest.mark.parametrize(
    ("share", "right", "delta", "expected"), [(0.1, 100, 0.0, 3.493), (0.1, 95, 1e-5, 2.165), (1.0, 600, 0.0, 0.298)]
)
def test_the_one_run_audit_gives_its_anchors(share: float, right: int, delta: float, expected: float) -> None:
    guesses = round(1000 * share)
    wrong = guesses - right
    member = np.arange(1000) < 500  # from the highest score to the lowest
    member[: wrong // 2], member[1000 - (wrong - wrong // 2) :] = False, True
    falling = np.linspace(1, -1, 1000)
    inside, outside = falling[member], falling[~member]
    assert guessed(inside, outside, share) == (guesses, right)
    shown = bound("one_run", scores(inside, outside, guesses=(share,), delta=delta))
    assert shown.at(0.05) == pytest.approx(expected, abs=6e-4)
    assert shown.p_value(shown.at(0.05)) == pytest.approx(0.05, rel=1e-5)


def test_equal_scores_show_nothing_and_nobody_is_guessed_twice() -> None:
    flat = np.zeros(60)
    assert guessed(flat, np.zeros(61), 1.0)[1] == 0
    shown = {one: bound(one, scores(flat, flat, delta=1e-5)) for one in STRATEGIES}
    assert {one: shown[one].at(0.05) for one in STRATEGIES} == dict.fromkeys(STRATEGIES, 0.0)
    assert all(one.p_value(0.1) > 0.05 for one in shown.values())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bound_and_p_value_agree_on_every_claim(strategy: Strategy) -> None:
    rng = np.random.default_rng(1)
    given = scores(rng.normal(2, 1, 60), rng.normal(0, 1, 80), delta=1e-5, alpha=0.025)
    shown = bound(strategy, given)
    rates = [shown.at(alpha) for alpha in (1e-6, 1e-4, 1e-2, 0.025, 0.05, 0.2, 1.0)]
    assert rates == sorted(rates)
    assert 0 < shown.at(0.025) <= shown.perfect(0.025)
    assert shown.p_value(0.99 * shown.at(0.025)) < 0.025 < shown.p_value(1.01 * shown.at(0.025))


def test_the_p_value_is_the_smallest_rate_that_refutes() -> None:
    def at(alpha: float) -> float:
        return epsilon_lower_bound(40, 50, 10, 60, alpha=alpha, delta=1e-5)

    rates = np.geomspace(1e-6, 1, 4001)
    slow = rates[np.argmax([at(alpha) > 0.5 for alpha in rates])]
    assert p_value_of(at, 0.5) == pytest.approx(slow, rel=4e-3)
    assert p_value_of(at, 20.0) == 1.0
    assert p_value_of(lambda _alpha: 1.0, 0.5) == 1e-15


@pytest.mark.parametrize("strategy", ["split", "bonferroni", "multi_split", "one_run"])
def test_a_true_claim_is_hardly_ever_refuted(strategy: Strategy) -> None:
    """Randomised response: each score is the membership with probability e^eps / (1 + e^eps), and otherwise its opposite."""
    epsilon, rng, draws, refuted = 1.5, np.random.default_rng(5), 150, 0
    truth = 1 / (1 + math.exp(-epsilon))
    for draw in range(draws):
        member = rng.random(400) < 0.5
        said = np.where(rng.random(400) < truth, member, ~member) + 1e-6 * rng.random(400)
        refuted += bound(strategy, scores(said[member], said[~member], seed=draw)).at(0.05) > epsilon
    assert refuted <= 13, "0.05 of 150 are 7.5; more than 13 have a probability below 0.02"
    sure = np.arange(400) % 2 == 0
    assert bound(strategy, scores(sure[sure].astype(float), sure[~sure].astype(float))).at(0.05) > epsilon


def test_a_gaussian_mechanism_shows_more_when_it_is_known_to_be_one() -> None:
    rng = np.random.default_rng(2)
    given = scores(rng.normal(1.0, 1, 4000), rng.normal(0, 1, 4000), delta=1e-5)
    gaussian, split = (bound(one, given).at(0.05) for one in ("gaussian_dp", "split"))
    assert split < gaussian < 4.377, "mu = 1 has epsilon 4.377 at delta 1e-5"
    assert gaussian > 3.2
    with pytest.raises(UsageError, match="delta = 0"):
        bound("gaussian_dp", replace(given, delta=0.0))


@pytest.mark.parametrize(("accountant", "epsilon"), [("rdp", 2.101), ("prv", 1.838)])
def test_a_claim_is_computed_from_how_the_model_was_trained(accountant: str, epsilon: float) -> None:
    how = {"accountant": accountant, "noise_multiplier": 1.0, "sample_rate": 0.01, "steps": 1000, "delta": 1e-5}
    attack = EmpiricalEpsilon(claim=how, game="training")
    seen = measured(attack, task(200, 200), np.linspace(1, 2, 200), np.linspace(-2, -1, 200)).claim
    assert seen is not None
    assert seen.epsilon == pytest.approx(epsilon, abs=6e-4)
    assert accountant in seen.source
    assert "1000 steps" in seen.source
    assert seen.game.startswith("privacy of training")
    assert seen.p_value < 0.025


def test_the_central_limit_is_told_and_not_tested() -> None:
    how = {"accountant": "gdp", "noise_multiplier": 1.0, "sample_rate": 0.01, "steps": 1000, "delta": 1e-5}
    seen = measured(EmpiricalEpsilon(claim=how), task(50, 50), np.linspace(1, 2, 50), np.linspace(-2, -1, 50))
    assert seen.claim is None
    assert any("can understate epsilon" in note and "1.62 is not tested" in note for note in seen.notes)


def test_both_games_are_named_and_a_group_has_its_own_epsilon() -> None:
    wide = np.linspace(1, 2, 30)
    unlearning = measured(EmpiricalEpsilon(claim={"epsilon": 0.5, "delta": 1e-6}), task(30, 30), wide, -wide)
    assert unlearning.claim is not None
    assert "forgotten with 29 others, or never seen" in unlearning.claim.game
    assert any("all 30 forgotten together" in note and "epsilon 15 " in note for note in unlearning.notes)
    training = measured(EmpiricalEpsilon(claim={"epsilon": 0.5}, game="training"), task(30, 30), wide, -wide)
    assert training.claim is not None
    assert "training data" in training.claim.game
    assert not any("group privacy" in note for note in training.notes)


def test_without_a_claim_the_bounds_are_shown_and_nothing_is_tested() -> None:
    wide = np.linspace(1, 2, 60)
    seen = measured(EmpiricalEpsilon(), task(60, 60), wide, -wide)
    assert seen.claim is None
    shown = {f"epsilon_{one}" for one in STRATEGIES if one != "one_run"} | {"epsilon_detectable", "auc"}
    assert set(seen.summaries) == shown
    assert measured(EmpiricalEpsilon(delta=0.0), task(60, 60), wide, -wide).summaries.keys() == shown - {"epsilon_gaussian_dp"}


def test_canaries_alone_are_scored_where_there_are_some() -> None:
    plain = task(40, 40, canaries=True)
    extra = Examples.joined([plain.holdout, examples("ordinary", 30)])
    given = LabelledTask(plain.forget, plain.retain, extra)
    attack = EmpiricalEpsilon(strategy="one_run", claim={"epsilon": 1.0})
    outside = np.concatenate([np.linspace(-2, -1, 40), np.full(30, 9.0)])
    seen = measured(attack, given, np.linspace(1, 2, 40), outside)
    assert set(seen.leakage) == {1.0}, "ordinary examples, which score highest, are no canaries"
    assert "epsilon_one_run" in seen.summaries
    assert seen.notes[0] == "scored on 80 canaries, 40 of them in; 30 other examples are left out"
    assert seen.claim is not None
    assert seen.claim.p_value < 0.025


def test_what_cannot_be_tested_is_skipped_with_the_reason() -> None:
    for given, attack, reason in (
        (task(40, 40), EmpiricalEpsilon(strategy="one_run"), "needs canaries"),
        (task(90, 10, canaries=True), EmpiricalEpsilon(), "which fair coins do not do"),
        (LabelledTask(examples("a", 5, "out"), examples("b", 0), examples("c", 5)), EmpiricalEpsilon(), "wrong set"),
        (task(40, 1), EmpiricalEpsilon(), "two holdout examples"),
        (task(40, 40), EmpiricalEpsilon(score="lira"), "needs shadow models"),
        (task(40, 40), EmpiricalEpsilon(strategy="gaussian_dp", delta=0), "delta above 0"),
        (replace(task(40, 40), outputs="numbers"), EmpiricalEpsilon(), "is on classifiers"),
    ):
        with pytest.raises(NotApplicable, match=reason):
            attack.prepare(bench(given))


def test_a_claim_that_is_none_is_refused_by_what_it_lacks() -> None:
    for claim, where, message in (
        ({"epsilon": -1}, ("claim", "stated", "epsilon"), "greater than 0"),
        ({"noise_multiplier": 1.0, "sample_rate": 0.1, "delta": 1e-5}, ("claim", "accounted", "steps"), "required"),
        ({"epsilon": 1, "delt": 1e-5}, ("claim", "stated", "delt"), "not permitted"),
    ):
        with pytest.raises(ValidationError) as caught:
            EmpiricalEpsilon(claim=claim)
        [fault] = caught.value.errors()
        assert fault["loc"] == where
        assert message in fault["msg"]


def test_coins_are_believed_within_reason() -> None:
    assert fair(50, 100)
    assert fair(430, 1000)
    assert not fair(95, 100)


@pytest.mark.parametrize("online", [True, False])
def test_lira_is_scored_under_the_shadow_models(online: bool) -> None:
    given, rng = task(30, 40), np.random.default_rng(0)
    rows = likelihood_ratio.balanced_membership(8, 70, seed=1) if online else np.zeros((8, 70), dtype=bool)
    margins = rng.normal(size=(8, 70)) + 3 * rows
    pool = given.forget.ids + given.holdout.ids

    def logits(asked: Examples) -> FloatArray:
        places = [pool.index(name) for name in asked.ids]
        return np.stack([margins[:, places], np.zeros((8, len(places)))], axis=-1)

    cohort = SimpleNamespace(ids=pool, rows=rows, logits=logits)
    attack = EmpiricalEpsilon(score="lira")
    state = prepared(attack, given, open_shadows=lambda: cohort)
    own = rng.normal(size=70)
    seen = attack.measure(Margins(dict(zip(pool, own, strict=True))), state, np.random.default_rng(0))
    fit = likelihood_ratio.fit_hypotheses(margins[:, :, None], rows, spread="fixed")
    score = likelihood_ratio.online if online else likelihood_ratio.offline_one_sided
    expected = score(own[:, None], fit)
    ranks = [(np.sum(expected[30:] < one) + np.sum(expected[30:] == one) / 2) / 40 for one in expected[:30]]
    assert seen.leakage == pytest.approx(ranks)
    assert any(("lira score, online" if online else "offline and one-sided") in note for note in seen.notes)
    with pytest.raises(ModelError, match="know nothing of example 'holdout 39'"):
        attack.prepare(bench(given, open_shadows=lambda: SimpleNamespace(ids=pool[:-1], rows=rows[:, :-1], logits=logits)))


def test_a_model_that_knows_its_mislabelled_canaries_refutes_a_claim_of_one() -> None:
    """Real networks: the target was trained on the canaries whose coins fell in, the references on none."""
    pytest.importorskip("torch")
    from muaudit.models.classifier import Classifier
    from muaudit.testbed.classification.data import Population, make_task
    from muaudit.training.recipes import TorchRecipe, train

    given = make_task(Population(by="canary", forget=200, retain=100, holdout=50, wrong_labels=0.0))
    recipe, place = TorchRecipe(steps=250, hidden=(128,)), np.arange(len(given.pool))
    known = place < len(given.forget) + len(given.retain)
    rows = [known, *(known & (place >= len(given.forget)),) * 2]
    attack = EmpiricalEpsilon(claim={"epsilon": 1.0, "delta": 1e-5}, game="training", strategy="one_run")
    state = prepared(attack, given)
    models = [Classifier(train(recipe, given.pool, seed, Path(), rows=row)) for seed, row in enumerate(rows)]
    seen = [attack.measure(model, state, np.random.default_rng(7)) for model in models]
    assert attack.measure(models[0], state, np.random.default_rng(7)).canonical() == seen[0].canonical()
    findings = compare(attack.card(), seen[0], seen[1:], None, policy.load("standard"), seed=1)
    assert [finding.measures for finding in findings] == ["leakage", "claim"]
    assert findings[1].verdict is Verdict.FAIL, findings[1].reason
    assert "at least 2." in findings[1].reason or "at least 3." in findings[1].reason
    honest = compare(attack.card(), seen[1], [seen[2]], None, policy.load("standard"), seed=1)[1]
    assert honest.verdict is Verdict.PASS, honest.reason
