"""U-LiRA: who unlearned an example is told from who never saw it."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from small_classification import Held, make_bench, make_task, rows

from muaudit import policy
from muaudit.attack import Prepared
from muaudit.attacks.u_lira import KINDS, Fit, Shadows, ULira, forget_subsets
from muaudit.compare import compare
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators.likelihood_ratio import balanced_membership

TASK = make_task()
ATTACK = ULira(shadows=16, retain_examples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shadows")


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    prepared = ATTACK.prepare(make_bench(TASK, folder, "nothing"))
    return Prepared.model_validate_json(prepared.model_dump_json()).with_task(TASK)


# ---- who unlearns what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_every_unit_is_unlearned_by_equally_many_who_were_trained_on_it(seed: int) -> None:
    trained_on = balanced_membership(32, 200, seed)
    units = np.r_[np.arange(40), np.arange(60, 100)]
    subsets = forget_subsets(trained_on, units, 40, 4, np.random.default_rng(seed))
    assert not (subsets & ~trained_on).any()
    assert (subsets[:, units].sum(0) == 32 * 40 // 80).all()
    assert not np.delete(subsets, units, axis=1).any()
    assert subsets.sum(1).mean() == pytest.approx(40)


def test_nobody_is_left_with_nothing_to_unlearn() -> None:
    trained_on = balanced_membership(16, 50, 0)
    subsets = forget_subsets(trained_on, np.array([7]), 1, 4, np.random.default_rng(0))
    assert subsets.any(1).all()
    assert not (subsets & ~trained_on).any()
    assert subsets[:, 7].sum() == 8


def test_too_few_shadows_are_refused_with_the_number_that_will_do() -> None:
    rng = np.random.default_rng(0)
    units = np.arange(120)
    with pytest.raises(UsageError, match="train 48 shadow models"):
        forget_subsets(balanced_membership(12, 200, 0), units, 10, 4, rng)
    enough = forget_subsets(balanced_membership(48, 200, 0), units, 10, 4, rng)
    assert enough[:, units].sum(0).min() >= 4


# ---- the score ---------------------------------------------------------------------------------------------------------


def slow_posteriors(seen: Shadows, scores: np.ndarray, spread: str) -> dict[str, list[float]]:
    """The definition, one example at a time."""
    laws: dict[str, list[norm]] = {kind: [] for kind in KINDS}
    sides = {
        "unlearned": (seen.unlearned, lambda k, x: seen.forgotten[k, x]),
        "untouched": (seen.trained, lambda k, x: seen.trained_on[k, x]),
        "retrained": (seen.retrained, lambda k, x: not (seen.trained_on[k, x] and not seen.forgotten[k, x])),
        "bystander": (seen.unlearned, lambda k, x: not seen.trained_on[k, x]),
    }
    models, units = seen.trained.shape
    for kind, (values, counts) in sides.items():
        lists = [[values[k, x] for k in range(models) if counts(k, x)] for x in range(units)]
        centres = [float(np.median(one)) for one in lists]
        squares = sum((value - centre) ** 2 for one, centre in zip(lists, centres, strict=True) for value in one)
        fixed = np.sqrt(squares / sum(len(one) - 1 for one in lists))
        for one, centre in zip(lists, centres, strict=True):
            laws[kind].append(norm(centre, fixed if spread == "fixed" else np.std(one)))
    densities = {kind: np.array([law.pdf(score) for law, score in zip(laws[kind], scores, strict=True)]) for kind in KINDS}
    inside = (densities["unlearned"] + densities["untouched"]) / 2
    return {
        "efficacy": densities["unlearned"] / (densities["unlearned"] + densities["retrained"]),
        "privacy": densities["unlearned"] / (densities["unlearned"] + densities["bystander"]),
        "leakage": inside / (inside + densities["retrained"]),
    }


@pytest.mark.parametrize("spread", ["per_example", "fixed"])
def test_posteriors_equal_slow_ones(spread: str) -> None:
    rng = np.random.default_rng(4)
    trained_on = balanced_membership(24, 9, 1)
    forgotten = forget_subsets(trained_on, np.arange(9), 5, 4, rng)
    drawn = rng.normal(size=(3, 24, 9)) + rng.normal(size=9)
    seen = Shadows(drawn[0] + 2, drawn[1] + 1, drawn[2], trained_on, forgotten)
    scores = rng.normal(size=9)
    fits = {name: Fit.read(fit.plain()) for name, fit in seen.fitted(spread).items()}
    found = ATTACK._columns(scores, fits)
    for name, values in slow_posteriors(seen, scores, spread).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9)
    pooled = [
        norm(side.mean(), side.std()).pdf(scores)
        for side in (seen.unlearned[forgotten], seen.retrained[~trained_on | forgotten])
    ]
    np.testing.assert_allclose(found["population_efficacy"], pooled[0] / sum(pooled), rtol=1e-9)
    published = ULira(untouched=False)._columns(scores, fits)
    np.testing.assert_array_equal(published["leakage"], published["efficacy"])


def test_a_model_that_nobody_unlearned_is_no_honest_one() -> None:
    """The procedure pushes margins down: without the second alternative, the original's high margin would pass as retrained."""
    rng = np.random.default_rng(0)
    trained_on = balanced_membership(32, 20, 0)
    forgotten = forget_subsets(trained_on, np.arange(20), 10, 4, rng)
    noise = rng.normal(size=(3, 32, 20))
    fits = Shadows(8 + noise[0], -6 + noise[1], noise[2], trained_on, forgotten).fitted("fixed")
    original, unlearned, retrained = (np.full(20, centre) for centre in (8.0, -6.0, 0.0))
    assert ULira(untouched=False)._columns(original, fits)["leakage"].max() < 0.01
    for scores, leaks in ((original, True), (unlearned, True), (retrained, False)):
        assert ((ATTACK._columns(scores, fits)["leakage"] > 0.5) == leaks).all()


# ---- as an attack ------------------------------------------------------------------------------------------------------


def test_a_procedure_that_does_nothing_is_found_out(prepared: Prepared, folder: Path) -> None:
    trainer = make_bench(TASK, folder, "nothing").trainer()
    originals = trainer.train(rows(TASK, "forget", "retain"), [71])
    references = trainer.train(np.repeat(rows(TASK, "retain"), 5, axis=0), [72, 73, 74, 75, 76])
    target = ATTACK.measure(Held(originals), prepared, np.random.default_rng(0))
    honest = [ATTACK.measure(Held(references, number), prepared, np.random.default_rng(0)) for number in range(5)]
    assert target.canonical() == ATTACK.measure(Held(originals), prepared, np.random.default_rng(9)).canonical()
    assert set(target.sets) == {"forget", "retain"}
    assert target.sets.count("retain") == 20
    assert all(0 <= value <= 1 for value in target.leakage)
    assert target.summaries["shadow_auc_efficacy"] > 0.8
    assert target.summaries["shadow_auc_efficacy"] > target.summaries["shadow_auc_population_efficacy"] - 0.1
    rule = policy.load("standard")
    assert compare(ATTACK.card(), target, honest[:4], target, rule, seed=1)[0].verdict == "fail"
    leakage, retention = compare(ATTACK.card(), honest[4], honest[:4], target, rule, seed=1)
    assert leakage.verdict != "fail"
    assert retention.verdict != "fail"
    assert np.mean(honest[4].leakage[:30]) < 0.5 < np.mean(target.leakage[:30])


def test_exact_unlearning_leaves_nothing_to_tell(folder: Path) -> None:
    prepared = ATTACK.prepare(make_bench(TASK, folder, "retrain"))
    for name in ("efficacy", "privacy", "population_efficacy", "population_privacy"):
        assert abs(prepared.data["power"][f"shadow_auc_{name}"] - 0.5) < 0.1


def test_prepare_is_deterministic_and_shadows_are_shared(prepared: Prepared, folder: Path) -> None:
    bench = make_bench(TASK, folder, "nothing")
    assert ATTACK.prepare(bench).content_digest() == prepared.content_digest()
    trainer = bench.trainer()
    shadows = trainer.train(balanced_membership(20, len(TASK.pool), 5), list(range(20)))
    shared = ATTACK.prepare(make_bench(TASK, folder, "nothing", open_shadows=lambda: shadows))
    assert any(note.startswith("20 shadow models") for note in shared.data["notes"])


def test_a_proxy_is_said_to_be_one(folder: Path) -> None:
    with pytest.raises(NotApplicable, match="add \\[procedure\\]"):
        ATTACK.prepare(make_bench(TASK, folder, None))
    proxy = ULira(shadows=16, retain_examples=20, procedure="small_classification:nothing")
    notes = proxy.prepare(make_bench(TASK, folder, None)).data["notes"]
    assert notes[0] == "a proxy was run in place of the vendor's procedure: small_classification:nothing"
    assert proxy.functions() == {"proxy": "small_classification:nothing"}
    assert ULira().functions() == {}
