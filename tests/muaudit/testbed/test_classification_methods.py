"""The unlearning methods for classifiers: each forgets and keeps, repeats to the byte, and does what its paper says."""

import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("opacus")

from torch import Tensor, nn  # noqa: E402

from muaudit.errors import UsageError  # noqa: E402
from muaudit.examples import Examples  # noqa: E402
from muaudit.testbed.classification.boundary_shrink import BoundaryShrink  # noqa: E402
from muaudit.testbed.classification.build import (  # noqa: E402
    CLAIM,
    METHODS,
    PRESETS,
    Testbed,
    build,
    opened,
    wanted,
)
from muaudit.testbed.classification.data import Population, make_task  # noqa: E402
from muaudit.testbed.classification.datamodel_matching import DatamodelMatching, effects, halves  # noqa: E402
from muaudit.testbed.classification.differentially_private import DifferentiallyPrivate  # noqa: E402
from muaudit.testbed.classification.fine_tune import FineTune  # noqa: E402
from muaudit.testbed.classification.influence import Influence  # noqa: E402
from muaudit.testbed.classification.label_agnostic import contrast  # noqa: E402
from muaudit.testbed.classification.method import Situation, as_batch, fitted, prediction_loss  # noqa: E402
from muaudit.testbed.classification.random_label import RandomLabel  # noqa: E402
from muaudit.testbed.classification.salun import SalUn  # noqa: E402
from muaudit.testbed.classification.scrub import Scrub  # noqa: E402
from muaudit.testbed.classification.selective_synaptic_dampening import SelectiveSynapticDampening  # noqa: E402
from muaudit.testbed.classification.sharpness_aware import SharpnessAware  # noqa: E402
from muaudit.testbed.classification.sisa import Sisa  # noqa: E402
from muaudit.testbed.folders import MARKER  # noqa: E402
from muaudit.training import recipes  # noqa: E402
from muaudit.training.networks import Mean, Provenance, save_network  # noqa: E402
from muaudit.training.recipes import Procedure, PythonRecipe  # noqa: E402

EXACT = ("retrain", "sisa", "differentially_private", "dp2unlearning")
"""Trained without the forget set, or with a bound on what one of its examples can teach."""

QUICK: dict[str, dict[str, Any]] = {
    "datamodel_matching": {"models": 4, "steps": 3},
    "label_agnostic": {"steps": 3, "autoencoder_steps": 3},
    "differentially_private": {"epochs": 1, "epsilon": 1.0},
    "dp2unlearning": {"epochs": 1, "epsilon": 1.0, "tuning_steps": 3},
}
"""Where the shapes, the bytes or the files matter, and not what is forgotten."""


def quick(name: str) -> Any:
    return METHODS[name](**QUICK.get(name, {"steps": 3} if "steps" in METHODS[name].model_fields else {}))


def situated(preset: str, **recipe: Any) -> Situation:
    """A situation whose original is trained here, on one thread."""
    bed = PRESETS[preset]
    task, how = make_task(bed.population), bed.recipe.model_copy(update=recipe)
    seen = np.arange(len(task.pool)) < len(task.forget) + len(task.retain)
    original = fitted(how, task.pool, seen, 0)
    return Situation(task, how, lambda: copy.deepcopy(original), 0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def situation(_one_thread: None) -> Situation:
    return situated("digits")


@pytest.fixture(scope="module")
def rough(_one_thread: None) -> Callable[[str], Situation]:
    """Barely trained originals."""
    return cache(lambda preset: situated(preset, steps=20))


@pytest.fixture(scope="module")
def made(situation: Situation) -> Callable[[str], nn.Module]:
    """A method's model on digits; each is made once."""
    fewer = {"datamodel_matching": {"models": 16, "steps": 300}}
    return cache(lambda name: METHODS[name](**fewer.get(name, {})).unlearn(situation))


def loss(model: nn.Module, examples: Examples) -> float:
    batch = as_batch(examples)
    with torch.no_grad():
        return float(prediction_loss(model(batch.inputs), batch.labels))


def accuracy(model: nn.Module, examples: Examples) -> float:
    batch = as_batch(examples)
    with torch.no_grad():
        return float((model(batch.inputs).argmax(1) == batch.labels).float().mean())


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"do_nothing", "fine_tune"}))
def test_a_method_forgets_and_keeps(name: str, situation: Situation, made: Callable[[str], nn.Module]) -> None:
    original, model, task = situation.original(), made(name), situation.task
    assert accuracy(original, task.forget) > 0.98
    assert loss(model, task.forget) > loss(original, task.forget) + 0.1
    assert accuracy(model, task.forget) < (0.7 if name in EXACT else 0.95)
    assert accuracy(model, task.retain) > (0.6 if name in EXACT else 0.85)
    assert not model.training


def test_fine_tuning_and_doing_nothing_leave_everything(situation: Situation, made: Callable[[str], nn.Module]) -> None:
    assert same(made("do_nothing"), situation.original())
    assert accuracy(made("fine_tune"), situation.task.forget) > 0.98
    assert loss(made("fine_tune"), situation.task.retain) < loss(situation.original(), situation.task.retain)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_repeats_to_the_byte(name: str, rough: Callable[[str], Situation]) -> None:
    assert same(*(quick(name).unlearn(rough("digits")) for _ in range(2)))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_a_vendors_procedure_too(name: str, rough: Callable[[str], Situation]) -> None:
    situation, method = rough("digits"), quick(name)
    original, recipe = situation.original(), situation.recipe.model_dump(mode="json")
    parameters = method.model_dump(exclude={"recipe"}) | ({"recipe": recipe} if "recipe" in type(method).model_fields else {})
    if name == "sisa":
        original = method.within(situation).fit(situation.task.retain, 0)
    function = f"{type(method).__module__}:unlearn"
    procedure = Procedure(function=function, parameters=parameters)
    model = recipes.unlearn(procedure, original, situation.task.forget, situation.task.retain, 5, Path())
    by_hand = type(method)(**parameters).apply(
        copy.deepcopy(original).train(), situation.task.forget, situation.task.retain, seed=5
    )
    assert same(model, by_hand)
    assert type(method).__module__ == f"muaudit.testbed.classification.{name}"
    with pytest.raises(ValueError, match="extra_forbidden"):
        importlib.import_module(type(method).__module__).unlearn(None, None, None, seed=0, no_such_parameter=1)


@pytest.mark.parametrize("preset", ["digits-cnn", "regression"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_works_on_other_networks_and_on_numbers(
    name: str, preset: str, rough: Callable[[str], Situation], tmp_path: Path
) -> None:
    situation, method = rough(preset), quick(name)
    if preset == "regression" and name in ("boundary_shrink", "scrub"):
        with pytest.raises(UsageError, match="works on classes"):
            method.unlearn(situation)
        return
    model = method.unlearn(situation)
    network = method.network(situation.recipe, situation.task.pool)
    save_network(model, network, tmp_path, Provenance(outputs_kind=situation.task.outputs))
    assert same(opened(tmp_path), model)
    with torch.no_grad():
        assert torch.isfinite(model(as_batch(situation.task.forget).inputs)).all()


@pytest.mark.parametrize("name", ["fine_tune", "random_label", "influence", "label_agnostic", "sharpness_aware"])
def test_a_method_that_learns_from_the_retain_set_says_so(name: str, rough: Callable[[str], Situation]) -> None:
    situation = rough("digits")
    nothing = situation.task.retain.take([])
    with pytest.raises(UsageError, match="retain set is empty"):
        quick(name).apply(situation.original(), situation.task.forget, nothing, seed=0)
    for other in ("gradient_ascent", "boundary_shrink", "selective_synaptic_dampening", "do_nothing"):
        quick(other).apply(situation.original(), situation.task.forget, nothing, seed=0)


def test_training_from_scratch_needs_a_recipe(rough: Callable[[str], Situation]) -> None:
    situation = rough("digits")
    with pytest.raises(UsageError, match="needs the parameter `recipe`"):
        METHODS["retrain"]().apply(situation.original(), situation.task.forget, situation.task.retain, seed=0)


def test_a_retrain_never_sees_the_forget_set(rough: Callable[[str], Situation]) -> None:
    situation = rough("digits")
    task = situation.task
    ruined = replace(task, forget=replace(task.forget, inputs=1 - task.forget.pictured(), labels=(task.forget.labels + 1) % 10))
    for name in ("retrain", "sisa"):
        method = METHODS[name]()
        again = method.unlearn(replace(situation, task=ruined))
        if name == "sisa":
            # Shards follow the inputs, so others are touched; every one of them still ends as if trained on the retain set.
            assert isinstance(method, Sisa)
            assert same(again, method.within(situation).fit(task.retain, 0))
        assert same(again, method.unlearn(situation))


def test_sisa_retrains_only_the_shards_that_were_touched(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    sisa = Sisa(shards=4, recipe=situation.recipe)
    pool = Examples.joined([task.forget, task.retain])
    original = sisa.fit(pool, 7)
    forget = task.forget.take(sisa.shard(task.forget) == 2).take([0, 1, 2])
    kept = pool.take(~np.isin(pool.ids, forget.ids))
    model = sisa.apply(copy.deepcopy(original), forget, kept, seed=7)
    assert isinstance(original[-1], Mean)
    assert [same(one, other) for one, other in zip(original[-1], model[-1], strict=True)] == [True, True, False, True]
    assert same(model, sisa.fit(kept, 7))
    inputs = as_batch(forget).inputs
    by_hand = sum(network(model[0](inputs)) for network in model[-1]) / 4
    torch.testing.assert_close(model(inputs), by_hand)


def test_sisa_refuses_what_it_cannot_do(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    sisa = Sisa(recipe=situation.recipe)
    with pytest.raises(UsageError, match="not one of 3 shards"):
        sisa.apply(situation.original(), task.forget, task.retain, seed=0)
    with pytest.raises(UsageError, match="holds no example"):
        sisa.fit(task.retain.take(sisa.shard(task.retain) != 1), 0)
    everything = sisa.shard(task.pool)
    assert set(everything.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(everything[task.rows("retain")], sisa.shard(task.retain))


def test_sharded_and_private_models_come_from_a_recipe_too(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    given = {"recipe": situation.recipe.model_dump(mode="json")}
    for name, parameters in (("sisa", given), ("differentially_private", given | QUICK["differentially_private"])):
        recipe = PythonRecipe(function=f"muaudit.testbed.classification.{name}:train", parameters=parameters)
        model = recipes.train(recipe, task.retain, 3, Path())
        assert same(model, METHODS[name](**parameters).fit(task.retain, 3))  # type: ignore[attr-defined]


def test_dampening_is_the_papers_formula(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    forget, retain = task.forget.take(range(5)), task.retain.take(range(7))
    model = situation.original()
    dampened = SelectiveSynapticDampening(alpha=1.2, dampening=0.7).apply(situation.original(), forget, retain, seed=0)

    def importances(examples: Examples) -> list[Tensor]:
        batch = as_batch(examples)
        squares = []
        for row in range(len(examples)):
            model.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs[row : row + 1]), batch.labels[row : row + 1]).backward()
            squares.append([weight.grad.clone() ** 2 for weight in model.parameters()])
        return [torch.stack(parts).mean(0) for parts in zip(*squares, strict=True)]

    ours, both = importances(forget), importances(Examples.joined([forget, retain]))
    changed = 0
    for tensors in zip(model.parameters(), dampened.parameters(), ours, both, strict=True):
        some = (tensor.detach().flatten()[::97].tolist() for tensor in tensors)
        for old, new, wrong, whole in zip(*some, strict=True):
            factor = min(0.7 * whole / wrong, 1) if wrong > 1.2 * whole else 1
            assert new == pytest.approx(old * factor, rel=1e-4, abs=1e-9)
            changed += factor < 1
    assert changed > 5


def test_a_weight_that_matters_to_nothing_is_left_alone() -> None:
    nothing = torch.zeros(3)
    torch.testing.assert_close(SelectiveSynapticDampening().factors(nothing, nothing), torch.ones(3))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_saluns_mask_holds_the_steepest_weights(share: float, rough: Callable[[str], Situation]) -> None:
    situation = rough("digits")
    forget, model = situation.task.forget, situation.original()
    masks = SalUn(share=share).masks(model, forget)
    batch = as_batch(forget)
    nn.functional.cross_entropy(model(batch.inputs), batch.labels, reduction="sum").backward()
    steep = np.concatenate([weight.grad.abs().flatten().numpy() for weight in model.parameters()])
    chosen = np.concatenate([mask.flatten().numpy() for mask in masks]).astype(bool)
    assert chosen.sum() == round(share * len(steep))
    if share < 1:
        assert steep[chosen].min() >= steep[~chosen].max()


def test_salun_moves_only_what_its_mask_holds(rough: Callable[[str], Situation]) -> None:
    situation = rough("digits")
    masks = SalUn().masks(situation.original(), situation.task.forget)
    moved = SalUn(steps=5).unlearn(situation)
    for before, after, mask in zip(situation.original().parameters(), moved.parameters(), masks, strict=True):
        assert torch.equal(after[mask == 0], before[mask == 0])
        assert not torch.equal(after[mask == 1], before[mask == 1])
        assert not after._backward_hooks


def test_random_labels_are_others(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    wrong, right = RandomLabel().prepared(situation.original(), task.forget, task.retain, 3)
    own = torch.from_numpy(task.forget.labels)
    assert not (wrong.labels == own).any()
    assert len(set(((wrong.labels - own) % 10).tolist())) == 9
    assert torch.equal(right.labels, torch.from_numpy(task.retain.labels))
    numbers = rough("regression")
    drawn, kept = RandomLabel().prepared(numbers.original(), numbers.task.forget, numbers.task.retain, 3)
    assert drawn.labels.shape == (70, 1)
    assert float(drawn.labels.std()) == pytest.approx(float(kept.labels.std()), rel=0.25)
    assert abs(float(np.corrcoef(drawn.labels.ravel(), numbers.task.forget.labels.ravel())[0, 1])) < 0.3


def test_the_nearest_class_is_found_by_a_step_up_the_loss(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    model = situation.original()
    found, _ = BoundaryShrink(distance=0.2).prepared(model, task.forget, task.retain, 0)
    for row in range(10):
        one = torch.from_numpy(task.forget.pictured()[row : row + 1]).requires_grad_()
        label = int(task.forget.labels[row])
        nn.functional.cross_entropy(model(one), torch.tensor([label])).backward()
        logits = model(one + 0.2 * one.grad.sign()).squeeze().tolist()
        ranked = sorted(range(10), key=lambda place: -logits[place])
        assert found.labels[row] == next(place for place in ranked if place != label)


def test_scrub_steps_away_and_towards_in_turns(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    scrub, original, model = Scrub(max_steps=2, temperature=2.0), situation.original(), situation.original()
    forget, retain = as_batch(task.forget), as_batch(task.retain)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
        teacher, student = ((m(forget.inputs) / 2).softmax(1) for m in (original, model))
        wanted_loss = float((teacher * (teacher / student).log()).sum(1).mean()) * 4
        assert float(scrub.divergence(model, original, forget.inputs)) == pytest.approx(wanted_loss, rel=1e-4)
    losses: list[tuple[int, int]] = []

    class Seen(Scrub):
        def loss(self, model: nn.Module, original: nn.Module, forget: Any, retain: Any) -> Tensor:
            losses.append((len(forget.inputs), len(retain.inputs)))
            return super().loss(model, original, forget, retain)

    Seen(max_steps=2, steps=6).apply(model, task.forget, task.retain, seed=0)
    assert [bool(away) for away, _ in losses] == [True, False, True, False, False, False]
    assert [bool(kept) for _, kept in losses] == [False, True, False, True, True, True]
    assert len(retain.inputs) == 200


def test_influence_is_one_step_of_adam(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    before, after = situation.original(), Influence(learning_rate=0.01, forget_weight=2.0).unlearn(situation)
    (loss_of(before, task.retain) - 2.0 * loss_of(before, task.forget)).backward()
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.01 * old.grad / (old.grad.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def loss_of(model: nn.Module, examples: Examples) -> Tensor:
    batch = as_batch(examples)
    return nn.functional.cross_entropy(model(batch.inputs), batch.labels)


def test_datamodel_effects_are_differences_of_means() -> None:
    rng = np.random.default_rng(0)
    member = halves(16, 6, 1)
    assert (member.sum(0) == 8).all()
    outputs = rng.normal(size=(16, 6, 3))
    outputs[:, 2, 1] += 4.0 * member[:, 2]
    found = effects(torch.from_numpy(outputs), member, 1.5).numpy()
    for i in range(6):
        for x in range(6):
            for c in range(3):
                inside, outside = outputs[member[:, i], x, c], outputs[~member[:, i], x, c]
                difference = inside.mean() - outside.mean()
                pooled = (inside.var(ddof=1) + outside.var(ddof=1)) / 2
                shrunk = max(0.0, abs(difference) - 1.5 * np.sqrt(pooled / 8 + pooled / 8))
                assert found[i, x, c] == pytest.approx(np.sign(difference) * shrunk, abs=1e-9)
    assert found[2, 2, 1] == np.abs(found).max() > 1


def test_datamodels_predict_a_retrained_model_better_than_the_original_does(situation: Situation) -> None:
    task, original = situation.task, situation.original()
    method = DatamodelMatching(models=24).within(situation)
    forget, retain = method.prepared(original, task.forget, task.retain, 0)
    retrained = [METHODS["retrain"]().unlearn(replace(situation, seed=seed)) for seed in (100, 101)]
    with torch.no_grad():
        truth = torch.stack([model(forget.inputs) for model in retrained]).mean(0)
        before = original(forget.inputs)
    assert float((forget.labels - truth).square().mean()) < 0.85 * float((before - truth).square().mean())
    torch.testing.assert_close(retain.inputs, as_batch(task.retain).inputs)


def test_label_agnostic_forgetting_looks_at_no_label(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    shuffled = replace(
        task,
        forget=replace(task.forget, labels=task.forget.labels[::-1].copy()),
        retain=replace(task.retain, labels=task.retain.labels[::-1].copy()),
    )
    model = quick("label_agnostic").unlearn(situation)
    assert same(model, quick("label_agnostic").unlearn(replace(situation, task=shuffled)))
    assert same(model[-1], situation.original()[-1])
    assert not same(model, situation.original())
    with pytest.raises(UsageError, match="no such layer"):
        quick("label_agnostic").apply(nn.Sequential(nn.ReLU()), task.forget, task.retain, seed=0)


def test_the_contrast_is_least_where_retained_directions_stay_and_forgotten_ones_turn() -> None:
    one, other = torch.eye(2)[:1], torch.eye(2)[1:]
    stay, turn = (float(contrast(one, one, gone, one, 0.5)) for gone in (one, other))
    assert stay == pytest.approx(0.0)
    assert turn == pytest.approx(-2.0)
    assert float(contrast(other, one, other, one, 0.5)) == pytest.approx(1.0 - 2.0)


def test_the_sharp_gradient_is_that_of_weights_moved_by_hand(rough: Callable[[str], Situation]) -> None:
    situation, task = rough("digits"), rough("digits").task
    sharp, model, original = SharpnessAware(rho=0.05, sharpness=0.5), situation.original(), situation.original()
    forget, retain = as_batch(task.forget.take(range(20))), as_batch(task.retain.take(range(20)))
    found = sharp.sharp_gradient(model, original, forget, retain)
    assert same(model, original)
    here = torch.autograd.grad(sharp.loss(model, original, forget, retain), list(model.parameters()))
    norm = sum(float((slope**2).sum()) for slope in here) ** 0.5
    with torch.no_grad():
        for weight, slope in zip(model.parameters(), here, strict=True):
            weight.add_(0.05 * slope / norm)
    there = torch.autograd.grad(sharp.loss(model, original, forget, retain), list(model.parameters()))
    for slope, before, after in zip(found, here, there, strict=True):
        torch.testing.assert_close(slope, 0.5 * before + 0.5 * after, rtol=1e-4, atol=1e-6)
    assert loss(original, task.forget) > 0


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_a_claim_is_what_the_accountant_says(epsilon: float, situation: Situation) -> None:
    from opacus.accountants import PRVAccountant

    task = situation.task
    private = DifferentiallyPrivate(epsilon=epsilon, epochs=4)
    claim = private.claim(task.forget, task.retain)
    assert (claim.sample_rate, claim.steps, claim.delta) == (1 / 5, 4 * 5, 1e-5)
    accountant = PRVAccountant()
    for _ in range(20):
        accountant.step(noise_multiplier=claim.noise_multiplier, sample_rate=1 / 5)
    assert claim.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert 0.95 * epsilon < claim.epsilon <= epsilon
    unlearned = METHODS["dp2unlearning"](epsilon=epsilon, epochs=4).claim(task.forget, task.retain)
    assert unlearned.epsilon == claim.epsilon
    assert "forget set" in unlearned.game
    assert METHODS["retrain"]().claim(task.forget, task.retain) is None


def test_private_training_takes_the_steps_that_it_claims(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.optimizers import DPOptimizer

    sizes, noises = [], []
    clip, noise = DPOptimizer.clip_and_accumulate, DPOptimizer.add_noise
    monkeypatch.setattr(
        DPOptimizer, "clip_and_accumulate", lambda self: (sizes.append(len(self.grad_samples[0])), clip(self))[1]
    )
    monkeypatch.setattr(DPOptimizer, "add_noise", lambda self: (noises.append(self.noise_multiplier), noise(self))[1])
    few = situation.task.forget.take(range(12))
    private = DifferentiallyPrivate(recipe=situation.recipe, batch_size=1, epochs=5, epsilon=1.0)
    private.fit(few, 0)
    claim = private.claim(few, few.take([]))
    assert len(sizes) == claim.steps == 60
    assert set(noises) == {claim.noise_multiplier}
    assert 0 in sizes  # a Poisson sample can be empty, and is noised all the same
    assert np.mean(sizes) == pytest.approx(1, abs=0.5)


def test_batch_normalisation_is_not_private(situation: Situation) -> None:
    private = DifferentiallyPrivate(recipe=PRESETS["digits-resnet"].recipe)
    with pytest.raises(UsageError, match="norm = 'group'"):
        private.fit(situation.task.forget, 0)


def test_a_gradient_that_explodes_is_an_error(rough: Callable[[str], Situation]) -> None:
    from muaudit.errors import ModelError

    situation, task = rough("digits"), rough("digits").task
    ruined = replace(task.retain, inputs=np.full_like(task.retain.pictured(), np.inf))
    with pytest.raises(ModelError, match="the loss is nan"):
        FineTune(steps=2).apply(situation.original(), task.forget, ruined, seed=0)


TINY = Testbed(
    population=Population(forget=30, retain=60, holdout=90),
    recipe=PRESETS["digits"].recipe.model_copy(update={"steps": 20, "hidden": (32,)}),
    methods={"sisa": {"shards": 2}, "scrub": {"steps": 4}, "differentially_private": {"epochs": 1}},
)

BUILT = ["original", "reference-1", "retrain", "sisa", "scrub-2", "differentially-private-epsilon-1"]


def test_a_testbed_is_built_once(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    paths = build(TINY, tmp_path, BUILT, jobs=1, progress=lambda name, reused: told.append((name, reused)))
    assert sorted(told) == sorted((name, False) for name in [*BUILT, "original-2"])
    assert set(paths) == {"forget", "retain", "holdout", "original-2", *BUILT}
    assert json.loads((paths["sisa"] / "classifier.json").read_bytes())["shards"] == 2
    claim = json.loads((paths["differentially-private-epsilon-1"] / CLAIM).read_bytes())
    assert 0.9 < claim["epsilon"] <= 1
    assert not (paths["retrain"] / CLAIM).exists()
    assert not same(opened(paths["retrain"]), opened(paths["reference-1"]))
    bytes_of = {name: (paths[name] / "model.safetensors").read_bytes() for name in BUILT}
    told.clear()
    assert build(TINY, tmp_path, BUILT, jobs=2, progress=lambda name, reused: told.append((name, reused))) == paths
    assert all(reused for _, reused in told)
    other = TINY.model_copy(update={"methods": TINY.methods | {"scrub": {"steps": 5}}})
    told.clear()
    build(other, tmp_path, BUILT, jobs=1, progress=lambda name, reused: told.append((name, reused)))
    assert [name for name, reused in told if not reused] == ["scrub-2"]
    assert (paths["scrub-2"] / "model.safetensors").read_bytes() != bytes_of["scrub-2"]
    (paths["sisa"] / MARKER).unlink()
    with pytest.raises(UsageError, match="in the way"):
        build(TINY, tmp_path, BUILT)


def test_the_same_testbed_gives_the_same_bytes(tmp_path: Path) -> None:
    names = ["original", "retrain", "scrub"]
    one, other = (build(TINY, tmp_path / folder, names, jobs=1) for folder in ("a", "b"))
    for name in names:
        for file in ("model.safetensors", "classifier.json", MARKER):
            assert (one[name] / file).read_bytes() == (other[name] / file).read_bytes()


def test_names_of_models() -> None:
    assert wanted("reference-3").seed == 3
    assert wanted("retrain-3").seed == 1_003
    assert wanted("fine_tune-2").source == wanted("original-2")
    assert wanted("dp2unlearning-epsilon-0.5-7").parameters == {"epsilon": 0.5}
    assert wanted("sisa").source is None
    for name in ("reference", "scrub-epsilon-4", "original-epsilon-1", "npo", "scrub-x"):
        with pytest.raises(UsageError, match="not a model of this testbed"):
            wanted(name)


def test_presets_are_what_the_command_line_offers() -> None:
    from muaudit.cli import main
    from muaudit.demo import CLASSIFIERS

    assert set(PRESETS) == set(CLASSIFIERS)
    command = main.commands["testbed"].commands["build"]
    (preset,) = (option for option in command.params if option.name == "preset")
    assert set(CLASSIFIERS) <= set(preset.type.choices)
    for bed in PRESETS.values():
        assert not bed.recipe.normalise
        assert set(bed.methods) <= set(METHODS)
        for name, parameters in bed.methods.items():
            METHODS[name](**parameters)
