"""Forgetting quality: populations of unlearned models against populations of retrained ones."""

from pathlib import Path

import numpy as np
import pytest
from small_classification import make_bench, make_task, rows

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.forgetting_quality import ForgettingQuality
from muaudit.compare import compare
from muaudit.errors import NotApplicable
from muaudit.estimators.forgetting import advantage, challenge
from muaudit.estimators.likelihood_ratio import margins
from muaudit.models.population import Population
from muaudit.results import Finding

TASK = make_task(forget=20, retain=40, holdout=20)
ATTACK = ForgettingQuality(models=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("populations")


def measured(bench: Bench, folder: Path) -> tuple[dict[str, Measurement], Finding]:
    prepared = Prepared.model_validate_json(ATTACK.prepare(bench).model_dump_json()).with_task(TASK)
    lineup = ATTACK.lineup(bench, prepared)
    assert lineup is not None
    found = {}
    for role, config in lineup.models():
        model = Population.open(folder / config.path)
        found[role] = ATTACK.measure(model, prepared, np.random.default_rng(0))
        assert ATTACK.measure(model, prepared, np.random.default_rng(1)).canonical() == found[role].canonical()
    references = [one for role, one in found.items() if role.startswith("reference")]
    rule = policy.load("standard")
    return found, compare(ATTACK.card(), found["target"], references, found["original"], rule, seed=1)[0]


def test_an_exact_procedure_is_as_the_references_are(folder: Path) -> None:
    found, finding = measured(make_bench(TASK, folder, "retrain"), folder)
    for role in ("target", "reference 1", "reference 2", "reference 3"):
        assert np.mean(found[role].leakage) < 0.2, "near 0.35 / sqrt(16) of noise cut at 0"
        assert abs(found[role].summaries["advantage"]) < 0.15
        assert np.mean(found[role].scores["epsilon_lower_bound"]) < 0.05
        assert np.mean(found[role].scores["epsilon_published"]) > 0.5, "the published plug-in value is far from 0 all the same"
    assert np.mean(found["original"].leakage) > 0.5
    assert finding.verdict != "fail"
    assert abs(finding.gap) < 0.1


def test_doing_nothing_is_found_and_deterministic_procedures_get_an_original_each(folder: Path) -> None:
    bench = make_bench(TASK, folder, "nothing")
    found, finding = measured(bench, folder)
    assert finding.verdict == "fail"
    assert found["target"].leakage == found["original"].leakage
    lineup = ATTACK.lineup(make_bench(TASK, folder, "nothing"), ATTACK.prepare(make_bench(TASK, folder, "nothing")))
    assert lineup is not None
    assert any("an original of its own" in note for note in lineup.notes)
    assert found["target"].summaries["challenge_score"] < found["reference 1"].summaries["challenge_score"]


def test_a_procedure_without_any_chance_is_skipped(folder: Path) -> None:
    """An honest retrain from a fixed seed gives one model; the challenge's epsilon would be 50 everywhere."""
    bench = make_bench(TASK, folder, "fixed")
    with pytest.raises(NotApplicable, match="copies of one another"):
        ATTACK.lineup(bench, ATTACK.prepare(bench))


def test_numbers_are_those_of_the_estimators(folder: Path) -> None:
    bench = make_bench(TASK, folder, "retrain")
    prepared = ATTACK.prepare(bench).with_task(TASK)
    everything = np.repeat(rows(TASK, "forget", "retain"), 16, axis=0)
    cohort = bench.trainer().train(everything, list(range(16)))
    cohort.save(folder / "some")
    found = ATTACK.measure(Population.open(folder / "some"), prepared, np.random.default_rng(0))
    scores = margins(cohort.logits(TASK.forget), TASK.forget.labels)
    retrained = np.array(prepared.data["margins"])
    np.testing.assert_allclose(
        found.leakage, np.clip(advantage(scores, retrained, seed=prepared.data["seed"]), 0, 1), atol=1e-9
    )
    published = challenge(scores, retrained)
    np.testing.assert_allclose(found.scores["epsilon_published"], published.epsilons)
    right = cohort.logits(TASK.holdout).argmax(-1) == TASK.holdout.labels
    ratios = [found.summaries[f"accuracy_{name}"] / prepared.data["accuracies"][name] for name in ("retain", "holdout")]
    assert found.summaries["accuracy_holdout"] == pytest.approx(right.mean())
    assert found.summaries["challenge_score"] == pytest.approx(published.forgetting * ratios[0] * ratios[1])


def test_populations_of_the_audit_are_measured_as_they_are(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def population(name: str, shift: float, models: int = 20) -> Path:
        logits = rng.normal(size=(models, len(TASK.pool), 3))
        logits[:, np.arange(len(TASK.pool)), TASK.pool.labels] += shift
        np.savez(tmp_path / f"{name}.npz", ids=np.array(TASK.pool.ids), logits=logits)
        return tmp_path / f"{name}.npz"

    spare = population("spare", 0)
    bench = make_bench(TASK, folder, None, capabilities=("ClassifiesMany",), open_calibration=lambda: Population.open(spare))
    prepared = ATTACK.prepare(bench).with_task(TASK)
    assert ATTACK.lineup(bench, prepared) is None
    alike, apart = (
        ATTACK.measure(Population.open(population(name, shift)), prepared, rng) for name, shift in (("alike", 0), ("apart", 4))
    )
    assert np.mean(alike.leakage) < 0.2
    assert np.mean(apart.leakage) > 0.8
    copies = np.repeat(rng.normal(size=(1, len(TASK.pool), 3)), 20, axis=0)
    np.savez(tmp_path / "copies.npz", ids=np.array(TASK.pool.ids), logits=copies)
    with pytest.raises(NotApplicable, match="copies of one another"):
        ATTACK.measure(Population.open(tmp_path / "copies.npz"), prepared, rng)


def test_prepare_is_deterministic(folder: Path) -> None:
    first, second = (ATTACK.prepare(make_bench(TASK, folder, "retrain")) for _ in range(2))
    assert first.content_digest() == second.content_digest()
