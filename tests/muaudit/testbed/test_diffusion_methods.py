"""The unlearning methods for text-to-image models: each changes what it should and nothing else, and models are built once."""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("sklearn")
pytest.importorskip("skops")

from torch import Tensor  # noqa: E402

from muaudit.diffusion.pipeline import Pipeline  # noqa: E402
from muaudit.errors import ModelError, UsageError  # noqa: E402
from muaudit.examples import Examples  # noqa: E402
from muaudit.models import Sampling  # noqa: E402
from muaudit.models.diffusion import Diffusion  # noqa: E402
from muaudit.models.opening import open_classifier  # noqa: E402
from muaudit.testbed.diffusion import build as building  # noqa: E402
from muaudit.testbed.diffusion.advunlearn import AdvUnlearn, _told  # noqa: E402
from muaudit.testbed.diffusion.build import METHODS, PRESETS, Testbed, build, halves, wanted  # noqa: E402
from muaudit.testbed.diffusion.concept_domain_correction import preserving  # noqa: E402
from muaudit.testbed.diffusion.data import Population, World, make_prompts, make_world, place_of  # noqa: E402
from muaudit.testbed.diffusion.esd import ESD, Erasing  # noqa: E402
from muaudit.testbed.diffusion.keyword import Keyword  # noqa: E402
from muaudit.testbed.diffusion.method import Draws, Situation, trajectories  # noqa: E402
from muaudit.testbed.diffusion.mislabel import Mislabel  # noqa: E402
from muaudit.testbed.diffusion.salun import SalUn  # noqa: E402
from muaudit.testbed.diffusion.training import (  # noqa: E402
    Recipe,
    encoded,
    opened,
    save,
    scheduler,
    spread_timesteps,
    train,
    untrained,
)
from muaudit.testbed.folders import MARKER  # noqa: E402

SMALL = Population(forget=4, retain=9, holdout=9, known=20, made_up=20)
BRIEF = Recipe(reading_steps=4, steps=4, batch_size=8)
QUICK: dict[str, dict[str, Any]] = {
    name: {"steps": 2, "batch_size": 4} for name in METHODS if "steps" in METHODS[name].model_fields
}
QUICK["concept_domain_correction"] |= {"warmup": 1}
QUICK["score_forgetting_distillation"] |= {"pool": 4, "refresh": 1}
QUICK["advunlearn"] |= {"attack_steps": 1}
"""Where it matters what is changed, and not what is forgotten."""

BED = Testbed(population=SMALL, recipe=BRIEF, shadows=2, methods=QUICK)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SMALL)


@pytest.fixture(scope="module")
def original(world: World, _one_thread: None) -> Pipeline:
    pipeline = train(BRIEF, world, world.rows(forgotten=True), 0)
    for module in pipeline.modules().values():
        module.requires_grad_(False)
    return pipeline


@pytest.fixture(scope="module")
def situation(world: World, original: Pipeline) -> Situation:
    return Situation(world, BRIEF, lambda: copy.deepcopy(original), 0)


@pytest.fixture(scope="module")
def made(situation: Situation) -> Callable[[str], Pipeline]:
    return cache(lambda name: METHODS[name](**QUICK.get(name, {})).unlearn(situation))


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, _one_thread: None) -> tuple[Path, dict[str, Path]]:
    out = tmp_path_factory.mktemp("bed")
    return out, build(BED, out, ["original", "reference-1", "shadow-1", "keyword", "do-nothing"], jobs=1)


def weights(pipeline: Pipeline) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value for part, module in pipeline.modules().items() for name, value in module.state_dict().items()
    }


def changed(before: Pipeline, after: Pipeline) -> set[str]:
    ours = weights(after)
    return {name for name, value in weights(before).items() if not torch.equal(value, ours[name])}


def test_training_repeats_to_the_byte_and_another_seed_differs(world: World, original: Pipeline) -> None:
    rows = world.rows(forgotten=True)
    assert not changed(original, train(BRIEF, world, rows, 0))
    other = train(BRIEF, world, rows, 1)
    assert len(changed(original, other)) == len(weights(original))
    assert len(changed(untrained(BRIEF, world.tokenizer, 0), original)) == len(weights(original))


def test_training_leaves_the_callers_generator_alone(world: World) -> None:
    state = torch.get_rng_state()
    train(BRIEF.model_copy(update={"steps": 1, "reading_steps": 1}), world, world.rows(forgotten=True), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_training_that_diverges_is_refused(world: World) -> None:
    with pytest.raises(ModelError, match="lower the learning rate"):
        train(BRIEF.model_copy(update={"reading_rate": 1e30}), world, world.rows(forgotten=True), 0)


def test_weights_are_the_running_mean_of_the_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean starts at the first weights, and gives step n a share of at least 1 - (1 + n) / (10 + n)."""
    rows, weights, shares = world.rows(forgotten=True), [], []
    real = torch._foreach_lerp_

    def noted(averages: list[Tensor], current: list[Tensor], share: float) -> None:
        weights.append(current[0].clone())
        shares.append(share)
        real(averages, current, share)

    monkeypatch.setattr(torch, "_foreach_lerp_", noted)
    kept = next(train(BRIEF, world, rows, 0).unet.parameters())
    assert shares == pytest.approx([9 / 10, 9 / 11, 9 / 12, 9 / 13])
    mean = next(untrained(BRIEF, world.tokenizer, 0).unet.parameters()).detach()
    for weight, share in zip(weights, shares, strict=True):
        mean = (1 - share) * mean + share * weight
    torch.testing.assert_close(kept.detach(), mean)
    assert not torch.equal(kept, weights[-1])


def test_timesteps_are_spread_as_a_logit_normal() -> None:
    found = spread_timesteps(2_000, torch.Generator().manual_seed(0), -0.5, 0.8).double()
    logits = torch.logit((found + 0.5) / 1000)
    assert logits.mean() == pytest.approx(-0.5, abs=0.01)
    assert logits.std() == pytest.approx(0.8, abs=0.01)
    order = found.argsort()
    assert not torch.equal(order, torch.arange(2_000))


def test_a_saved_folder_draws_the_same_images(original: Pipeline, tmp_path: Path) -> None:
    save(original, tmp_path / "model")
    model = Diffusion.open(tmp_path / "model", device="cpu")
    pipeline = model.pipeline()
    assert not changed(original, pipeline)
    assert pipeline.image_shape == (1, 8, 8)
    assert (pipeline.vae, pipeline.prediction, pipeline.encoders[0].length) == (None, "epsilon", 16)
    told, how = ["a sketch of three", "dusty 4"], Sampling(steps=3)
    ours, theirs = (one.sample(one.conditioning(told), [1, 2], [2.0, 1.0], how) for one in (original, pipeline))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert model.encoders == 1
    assert "name_or_path" not in (tmp_path / "model" / "unet" / "config.json").read_text()
    # Stable Diffusion's own noise levels: the product of 1 - beta with the roots of beta evenly spaced.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(pipeline.alphas.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-7)
    assert scheduler().config.clip_sample


WHERE = {
    "keyword": {"text_encoder.text_model.embeddings.token_embedding.weight"},
    "do_nothing": set(),
}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"retrain"}))
def test_methods_change_only_what_they_should(name: str, made: Callable[[str], Pipeline], original: Pipeline) -> None:
    before = {key: value.clone() for key, value in weights(original).items()}
    found, every = changed(original, made(name)), set(weights(original))
    attention = {one for one in every if ".attn2." in one}
    expected = WHERE | {
        "esd": attention,
        "concept_domain_correction": attention,
        "salun": {one for one in every if one.startswith("unet.")},
        "score_forgetting_distillation": {one for one in every if one.startswith("unet.")},
        "mislabel": attention,
        "advunlearn": {one for one in every if one.startswith("text_encoder.")},
    }
    assert found <= expected[name]
    assert len(found) >= 0.8 * len(expected[name])  # SalUn leaves some out
    assert all(torch.equal(before[key], value) for key, value in weights(original).items())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_repeat_to_the_byte(name: str, made: Callable[[str], Pipeline], situation: Situation) -> None:
    assert METHODS[name].source
    assert not changed(made(name), METHODS[name](**QUICK.get(name, {})).unlearn(situation))


def test_a_retrain_is_the_training_without_the_concept(made: Callable[[str], Pipeline], world: World) -> None:
    assert not changed(made("retrain"), train(BRIEF, world, world.rows(forgotten=False), 0))


def test_the_other_half_of_esd_leaves_cross_attention(situation: Situation, original: Pipeline) -> None:
    found = changed(original, ESD(weights="u", steps=1, batch_size=4).unlearn(situation))
    assert found == {name for name in weights(original) if name.startswith("unet.") and ".attn2." not in name}


def test_mislabelling_can_change_everything(situation: Situation, original: Pipeline) -> None:
    assert changed(original, Mislabel(weights="all", steps=1, batch_size=4).unlearn(situation)) >= {
        name for name in weights(original) if name.startswith("unet.")
    }


def test_keyword_erasure_makes_fillers_of_the_known_names(situation: Situation, original: Pipeline) -> None:
    erased, encoder = Keyword().unlearn(situation).encoders[0], original.encoders[0]
    rows = (erased.table != encoder.table).any(1).nonzero().flatten().tolist()
    assert sorted(encoder.text([row]) for row in rows) == ["3", "three", "tres"]
    fillers = [encoder.words(word)[0] for word in situation.world.fillers]
    torch.testing.assert_close(erased.table[rows[0]], encoder.table[fillers].mean(0))


def test_esd_aims_away_from_the_concept(situation: Situation, original: Pipeline) -> None:
    """With eta = 1: twice the unconditional prediction minus the conditional one, where the student passes."""
    draws = Draws(situation, 3)
    erasing = Erasing(original, draws, 1.0, 3.0)
    erasing.redraw(original)
    noisy, timesteps, captions, target = erasing.take()
    with torch.no_grad():
        told = original.predict(noisy, timesteps, encoded(original, captions))
        empty = original.predict(noisy, timesteps, encoded(original, ["", "", ""]))
    torch.testing.assert_close(target, 2 * empty - told, rtol=1e-4, atol=1e-5)
    assert all({"three", "3", "tres"} & set(text.split()) for text in captions)


def test_trajectories_are_where_sampling_passes(original: Pipeline) -> None:
    levels, states = trajectories(original, ["three", "4"], 2.0, np.random.default_rng(0))
    assert states.shape == (21, 2, 1, 8, 8)
    assert levels.tolist() == [999, *range(901, 0, -50), -1]
    seeds = np.random.default_rng(0).integers(2**31, size=2).tolist()
    images = original.sample(original.conditioning(["three", "4"]), seeds, [2.0, 2.0], Sampling(steps=20))
    torch.testing.assert_close(states[-1], images)
    torch.testing.assert_close(states[0], original.noise(seeds))


def test_salun_moves_the_steepest_weights_and_no_others(situation: Situation, original: Pipeline) -> None:
    method = SalUn(steps=3, share=0.3, batch_size=4, mask_batches=2)
    student = copy.deepcopy(original)
    student.unet.requires_grad_(True)
    masks = method.masks(student, Draws(situation, 4))
    assert sum(int(mask.sum()) for mask in masks) == round(0.3 * sum(mask.numel() for mask in masks))
    after = method.unlearn(situation)
    for mask, old, new in zip(masks, original.unet.parameters(), after.unet.parameters(), strict=True):
        assert torch.equal(old[mask == 0], new[mask == 0])
    moved = sum(int((old != new).sum()) for old, new in zip(original.unet.parameters(), after.unet.parameters(), strict=True))
    assert moved > 0.95 * sum(int(mask.sum()) for mask in masks)


def test_a_gradient_loses_what_runs_against_keeping() -> None:
    keeping = (torch.tensor([2.0, 0.0]), torch.tensor([0.0]))
    against = (torch.tensor([-1.0, 1.0]), torch.tensor([3.0]))
    along = (torch.tensor([1.0, 1.0]), torch.tensor([3.0]))
    assert [one.tolist() for one in preserving(against, keeping)] == [[2.0, 1.0], [3.0]]
    assert [one.tolist() for one in preserving(along, keeping)] == [[3.0, 1.0], [3.0]]


def test_the_adversarial_token_stands_before_the_prompt(situation: Situation, original: Pipeline) -> None:
    """The embedding of a word in its place gives what the word itself gives."""
    encoder = original.encoders[0]
    captions = ["a sketch of three", "tres"]
    prefix = encoder.table[[encoder.words(word)[0] for word in ("dusty", "brave")]]
    noisy, timesteps = original.noise([1, 2]), torch.tensor([400, 700])
    with torch.no_grad():
        found = _told(original, noisy, timesteps, captions, prefix)
        right = original.predict(noisy, timesteps, encoded(original, ["dusty a sketch of three", "brave tres"]))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


def test_the_inner_attack_brings_the_student_closer(situation: Situation, original: Pipeline) -> None:
    method, draws = AdvUnlearn(attack_steps=20, batch_size=4), Draws(situation, 4)
    noisy, timesteps, captions = original.noise([1, 2, 3, 4]), torch.tensor([200, 400, 600, 800]), draws.about("three")
    with torch.no_grad():
        sought = original.predict(noisy, timesteps, encoded(original, ["eight"] * 4))
    start = original.encoders[0].table[torch.randint(len(original.encoders[0].table), (4,), generator=torch.Generator())]

    def distance(prefix: Tensor) -> float:
        with torch.no_grad():
            return float((_told(original, noisy, timesteps, captions, prefix) - sought).square().mean())

    assert distance(method._attack(original, noisy, timesteps, captions, sought, draws)) < distance(start)


def test_names_mean_models_and_seeds_do_not_meet() -> None:
    assert (wanted("original").method, wanted("original-3").seed) == (None, 3)
    assert wanted("reference-2").method == wanted("retrain").method == "retrain"
    assert wanted("concept-domain-correction-2").source == wanted("original-2")
    assert wanted("esd").source == wanted("original")
    assert wanted("shadow-1").source is None
    assert len({wanted(name).seed for name in ("reference-1", "retrain", "shadow-1", "retrain-1", "original")}) == 5
    for name in ("reference", "esd-x", "ESD", "shadow", "shadow-0", "original-"):
        with pytest.raises(UsageError, match="not a model of this testbed"):
            wanted(name)


def test_a_bed_holds_what_an_audit_needs(bed: tuple[Path, dict[str, Path]], world: World) -> None:
    _, paths = bed
    assert set(paths) == {
        "forget", "retain", "holdout", "known", "svc", "neighbours", "embedder", "shadows",
        "original", "reference-1", "shadow-1", "keyword", "do-nothing",
    }  # fmt: skip
    rows = world.parts["known"]
    ids = tuple(map(str, rows))
    unseen = Examples(ids, ids, world.labels[rows], world.images[rows])
    for name in ("svc", "neighbours", "embedder"):
        model = open_classifier(paths[name], device="cpu")
        assert (model.logits(unseen).argmax(1) == unseen.labels).mean() > 0.85
    assert not changed(opened(paths["original"]), opened(paths["do-nothing"]))
    assert len(changed(opened(paths["original"]), opened(paths["reference-1"]))) > 50


def test_shadow_models_are_trained_on_their_half(bed: tuple[Path, dict[str, Path]], world: World) -> None:
    _, paths = bed
    kept = json.loads((paths["shadows"] / "keep.json").read_bytes())
    assert kept["models"] == ["shadow-1"]
    assert (paths["shadows"] / "shadow-1" / "model_index.json").is_file()
    prompts = make_prompts(world)
    assert kept["ids"] == [one.id for name in ("forget", "holdout") for one in prompts[name]]
    rows = set(building._rows(BED, world, wanted("shadow-1")).tolist())
    units = {place_of(name): inside for name, inside in zip(kept["ids"], kept["keep"][0], strict=True)}
    assert {place for place, inside in units.items() if inside} == rows & set(units)
    assert rows - set(units) == set(world.rows(forgotten=True)) - set(units)
    assert halves(world, 2)[1][0].tolist() == kept["keep"][0]


def test_what_is_there_is_not_built_again_and_what_is_stale_is(bed: tuple[Path, dict[str, Path]]) -> None:
    out, _ = bed
    told: list[tuple[str, bool]] = []
    build(BED, out, ["keyword", "reference-1"], jobs=1, progress=lambda name, reused: told.append((name, reused)))
    assert told == [("original", True), ("reference-1", True), ("keyword", True)]
    before = (out / "reference-1" / MARKER).read_bytes()
    told.clear()
    longer = BED.model_copy(update={"methods": BED.methods | {"retrain": {}}, "recipe": BRIEF.model_copy(update={"steps": 5})})
    build(longer, out, ["reference-1"], jobs=1, progress=lambda name, reused: told.append((name, reused)))
    assert told == [("reference-1", False)]
    assert (out / "reference-1" / MARKER).read_bytes() != before
    # Put back for the tests to come.
    build(BED, out, ["reference-1"], jobs=1)
    assert (out / "reference-1" / MARKER).read_bytes() == before
    assert not list(out.glob(".building-*"))


def test_two_folders_hold_the_same_bytes(bed: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    _, paths = bed
    again = build(BED, tmp_path, ["keyword"], jobs=1)
    for name in ("original", "keyword", "embedder"):
        files = {path.relative_to(paths[name]): path.read_bytes() for path in paths[name].rglob("*") if path.is_file()}
        assert files == {path.relative_to(again[name]): path.read_bytes() for path in again[name].rglob("*") if path.is_file()}
    for name in ("svc", "neighbours", "forget", "known"):
        assert paths[name].read_bytes() == again[name].read_bytes()


def test_folders_in_the_way_are_refused(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "mine.txt").write_text("not to be lost")
    with pytest.raises(UsageError, match="in the way"):
        build(BED, tmp_path, ["original"], jobs=1)
    assert (tmp_path / "original" / "mine.txt").read_text() == "not to be lost"
    with pytest.raises(UsageError, match="has 2 shadow models"):
        build(BED, tmp_path, ["shadow-3"], jobs=1)
    assert PRESETS["sketches"].recipe == Recipe()
