"""The baselines against plain loops, and what the learned one may look at."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import parzen
import pytest

from muaudit.attacks.lira import Lira
from muaudit.attacks.population import Population
from muaudit.errors import NotApplicable
from muaudit.examples import LabelledTask


@pytest.fixture(scope="module")
def given() -> LabelledTask:
    return parzen.task()


def slow(logits: np.ndarray, label: int) -> dict[str, float]:
    powers = [math.exp(value) for value in logits]
    shares = [power / sum(powers) for power in powers]
    own = shares[label]
    others = [share for place, share in enumerate(shares) if place != label]
    return {
        "loss": math.log(own),
        "entropy": sum(share * math.log(share) for share in shares),
        "modified_entropy": (1 - own) * math.log(own) + sum(share * math.log(1 - share) for share in others),
    }


@pytest.mark.parametrize("deciding", ["loss", "entropy", "modified_entropy"])
def test_leakage_is_the_rank_of_the_slow_score(given: LabelledTask, deciding: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    attack, model = Population(deciding=deciding), parzen.trained(given, ["forget", "retain"], 1)
    seen = parzen.measured(attack, parzen.prepared(attack, parzen.bench(given, 0)), model)
    rows = [slow(*both) for both in zip(model.logits(given.pool), given.pool.labels, strict=True)]
    for name in ("loss", "entropy", "modified_entropy"):
        scores = [row[name] for row in rows]
        ranks = [sum((z < x) + 0.5 * (z == x) for z in scores[100:]) / 100 for x in scores[:100]]
        assert (seen.leakage if name == deciding else seen.scores[name]) == pytest.approx(ranks, abs=0.011)
        expected = metrics.roc_auc_score([1] * 40 + [0] * 100, scores[:40] + scores[100:])
        assert seen.summaries["auc" if name == deciding else f"auc_{name}"] == pytest.approx(expected, abs=1e-3)


def test_the_learned_attack_scores_what_it_was_not_trained_on(given: LabelledTask) -> None:
    """Each half is scored by the other; forget examples have no part in training and get both halves' mean."""
    linear, preprocessing = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.preprocessing")
    attack, model = Population(deciding="learned"), parzen.trained(given, ["forget", "retain"], 1)
    state = parzen.prepared(attack, parzen.bench(given, 0))
    halves, logits = np.array(state.data["halves"]), model.logits(given.pool)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = np.log(shares[np.arange(200), given.pool.labels])
    features = np.column_stack([np.sort(shares, axis=1)[:, ::-1], loss])
    odds = []
    for half in (0, 1):
        taught = np.flatnonzero((halves == half) & (np.arange(200) >= 40))
        scale = preprocessing.StandardScaler().fit(features[taught])
        learner = linear.LogisticRegression(class_weight="balanced", max_iter=1_000)
        learner.fit(scale.transform(features[taught]), taught < 100)
        odds.append(learner.decision_function(scale.transform(features)))
    scores = [(odds[0][n] + odds[1][n]) / 2 if n < 40 else odds[1 - halves[n]][n] for n in range(200)]
    ranks = [sum((z < x) + 0.5 * (z == x) for z in scores[100:]) / 100 for x in scores[:100]]
    assert parzen.measured(attack, state, model).leakage == pytest.approx(ranks, abs=0.011)


def test_the_halves_keep_clusters_whole(given: LabelledTask) -> None:
    groups = {
        name: replace(part, clusters=tuple(f"{name} {place // 5}" for place in range(len(part)))) for name, part in given.sets()
    }
    task = replace(given, **groups)
    halves = Population().prepare(parzen.bench(task, 0)).data["halves"]
    assert set(halves) == {0, 1}
    for name in set(task.pool.clusters):
        assert len({half for half, cluster in zip(halves, task.pool.clusters, strict=True) if cluster == name}) == 1


def test_without_retain_examples_nothing_is_learned(given: LabelledTask) -> None:
    task = replace(given, retain=given.retain.take([]))
    seen = parzen.measured(
        Population(), parzen.prepared(Population(), parzen.bench(task, 0)), parzen.trained(given, ["retain"], 11)
    )
    assert set(seen.scores) == {"entropy", "modified_entropy"}
    assert any("the learned attack needs 20 retain and 20 holdout examples" in note for note in seen.notes)
    with pytest.raises(NotApplicable, match="or let another score decide"):
        Population(deciding="learned").prepare(parzen.bench(task, 0))


def test_scores_survive_certainty(given: LabelledTask) -> None:
    """Logits of thousands, as a network without regularisation gives them, overflow nothing."""
    model = parzen.trained(given, ["forget", "retain"], 1)
    sharp = parzen.Recorded(1e4 * model.logits(given.pool), given.pool.ids)
    state = parzen.prepared(Population(), parzen.bench(given, 0))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        seen = parzen.measured(Population(), state, sharp)
    assert all(0 <= one <= 1 for column in (seen.leakage, *seen.scores.values()) for one in column)


def test_it_ranks_below_lira_and_says_so(given: LabelledTask) -> None:
    model = parzen.trained(given, ["forget", "retain"], 1)
    found = {}
    for attack in (Population(), Lira()):
        found[attack.name] = parzen.leakage(parzen.measured(attack, parzen.prepared(attack, parzen.bench(given)), model))
    assert found["population"] > 0.55
    assert found["lira"] > found["population"] + 0.1
    assert "below LiRA" in Population().card().summary


def test_what_is_pushed_too_far_gives_itself_away(given: LabelledTask) -> None:
    state = parzen.prepared(Population(), parzen.bench(given, 0))
    pushed = parzen.Shifted(parzen.trained(given, ["retain"], 11), 12.0)
    assert parzen.leakage(parzen.measured(Population(), state, pushed)) < 0.05


def test_the_judge_flags_the_original_and_passes_honest_retrains() -> None:
    given = parzen.task(wrong=0.6)
    found = parzen.verdicts(Population(), given, parzen.bench(given, 0), margin=0.1)
    assert found == {"original": ["fail"], "retrain": ["pass"], "references": ["not flagged"] * 3}
