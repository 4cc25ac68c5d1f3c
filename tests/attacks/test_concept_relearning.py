from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from drawing_tasks import Drawer, drawer, drawing_task

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.concept_relearning import ConceptRelearning
from muaudit.diffusion.embedding import Embedder
from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.tuning import Tuning, training_loss, tuned
from muaudit.errors import ModelError, NotApplicable
from muaudit.image_task import ImageTask
from muaudit.models.finetuning import stream

SMALL: dict[str, Any] = {"images": (2, 4), "budgets": (2, 4), "learning_rate": 3e-2, "batch_size": 4}


def prepared(attack: ConceptRelearning, task: ImageTask) -> Prepared:
    ready = attack.prepare(Bench(task, np.random.default_rng(1), frozenset(), folder=Path("audit")))
    return Prepared.model_validate_json(ready.model_dump_json()).with_task(task).with_folder(Path("audit"))


def measured(attack: ConceptRelearning, task: ImageTask, model: Drawer) -> Measurement:
    return attack.measure(model, prepared(attack, task), np.random.default_rng(0))


def weights(pipeline: Pipeline) -> dict[str, Any]:
    return {
        f"{part}.{name}": value.detach().clone()
        for part, module in pipeline.modules().items()
        for name, value in module.named_parameters()
    }


def trained(pipeline: Pipeline, task: ImageTask, **how: Any) -> Pipeline:
    settings = {"budgets": (3,), "learning_rate": 1e-2, "batch_size": 4, **how}
    ((_, copy),) = tuned(pipeline, task.images(task.forget), [one.prompt for one in task.forget], Tuning(**settings))
    return copy


# ---- training ----------------------------------------------------------------------------------------------------------


def test_only_cross_attention_is_trained() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    before, copy = weights(pipeline), trained(pipeline, task)
    after = weights(copy)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    reads = {name for name in before if ".attn2." in name}
    assert changed == reads
    assert len(reads) > 5
    assert all(torch.equal(value, before[name]) for name, value in weights(pipeline).items())
    assert not any(one.requires_grad or one.grad is not None for one in pipeline.unet.parameters())
    assert not any(module.training for module in (*pipeline.modules().values(), *copy.modules().values()))


def test_adapters_leave_every_weight_as_it_was() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    before, copy = weights(pipeline), trained(pipeline, task, lora_rank=2)
    after = weights(copy)
    adapters = {name: value for name, value in after.items() if "lora_" in name}
    kept = {name.replace(".base_layer", ""): value for name, value in after.items() if "lora_" not in name}
    assert kept.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    projections = {name.split(".lora_")[0].rpartition(".attn")[2].partition(".")[2] for name in adapters}
    assert projections == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(torch.any(value != 0) for name, value in adapters.items() if "lora_B" in name)
    assert all(torch.equal(value, before[name]) for name, value in weights(pipeline).items())
    assert not any("lora" in name for name, _ in pipeline.unet.named_modules())


def test_steps_are_those_of_a_plain_loop() -> None:
    """Two steps of AdamW on the mean squared error of the noise, written out."""
    task, pipeline = drawing_task(), drawer().pipeline()
    how = Tuning(budgets=(2,), learning_rate=1e-3, batch_size=3, caption_dropout=0.5, seed=9)
    images, told = task.images(task.forget), [one.prompt for one in task.forget]
    ((_, found),) = tuned(pipeline, images, told, how)
    copy = pipeline.copied()
    read = {name: weight for name, weight in copy.unet.named_parameters() if ".attn2." in name}
    optimizer = torch.optim.AdamW(read.values(), lr=1e-3)
    order, draws = stream(len(told), 9), torch.Generator().manual_seed(9)
    alphas = torch.from_numpy(np.cumprod(1 - np.linspace(0.0001, 0.02, 1000)))
    for _ in range(2):
        rows = [next(order) for _ in range(3)]
        silent = torch.rand(3, generator=draws) < 0.5
        times = torch.randint(1000, (3,), generator=draws)
        noise = torch.randn((3, 1, 8, 8), generator=draws)
        loss = torch.zeros(())
        for place, row in enumerate(rows):
            level = alphas[times[place]].float()
            noisy = level.sqrt() * (torch.from_numpy(images[row]) * 2 - 1) + (1 - level).sqrt() * noise[place]
            context = copy.conditioning(["" if silent[place] else told[row]]).context
            said = copy.unet(noisy[None], times[place], encoder_hidden_states=context).sample
            loss = loss + (said[0] - noise[place]).square().mean() / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(read.values(), 1.0)
        optimizer.step()
    for name, weight in found.unet.named_parameters():
        if name in read:
            # Adam steps by signs, so where a gradient is next to nothing float noise decides.
            assert torch.isclose(weight.detach(), read[name].detach(), atol=2e-5).float().mean() > 0.99, name


@pytest.mark.parametrize("rank", [0, 4])
def test_training_lowers_the_training_loss(rank: int) -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    images, told = task.images(task.forget), [one.prompt for one in task.forget]
    before = training_loss(pipeline, images, told, 64)
    assert training_loss(pipeline, images, told, 64) == before
    after = training_loss(trained(pipeline, task, budgets=(20,), learning_rate=3e-2, lora_rank=rank), images, told, 64)
    assert after < 0.98 * before


def test_one_run_serves_all_budgets() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    images, told = task.images(task.forget), [one.prompt for one in task.forget]
    how = Tuning(budgets=(0, 2, 3), learning_rate=1e-2, batch_size=4)
    seen = {step: weights(copy) for step, copy in tuned(pipeline, images, told, how)}
    assert list(seen) == [0, 2, 3]
    for step in (0, 2):
        ((_, alone),) = tuned(pipeline, images, told, replace(how, budgets=(step,)))
        assert all(torch.equal(value, seen[step][name]) for name, value in weights(alone).items())


def test_a_loss_that_is_no_number_is_refused() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    with torch.no_grad():
        pipeline.unet.conv_in.weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="fine-tuning: the loss is nan"):
        trained(pipeline, task)


# ---- the attack --------------------------------------------------------------------------------------------------------


def test_every_prompt_is_scored_once_and_never_trained_on() -> None:
    task = drawing_task(forget=9, concepts="three four five")
    runs = prepared(ConceptRelearning(folds=3), task).data["runs"]
    assert sorted(unit for run in runs for unit in run["score"]) == [one.id for one in task.forget]
    concepts = {one.id: one.concept for one in task.forget}
    own = {one.seed for one in task.forget}
    for run in runs:
        assert sorted(run["train"] + run["score"]) == [one.id for one in task.forget]
        assert {concepts[unit] for unit in run["train"][:3]} == {"three", "four", "five"}
        assert not own & {seed for seeds in run["seeds"] for seed in seeds}


def test_leakage_is_the_area_under_the_recovery_curve() -> None:
    seen = measured(ConceptRelearning(**SMALL), drawing_task(), drawer())
    y = np.array([seen.scores[f"after_{step}_steps"] for step in (0, 2, 4)])
    assert seen.leakage == pytest.approx((y[0] + y[1]) / 2 * 0.5 + (y[1] + y[2]) / 2 * 0.5)
    assert seen.curves["recovery"].x == (0, 2, 4)
    assert seen.curves["recovery"].y == pytest.approx(y.mean(1))
    assert seen.curves["images"].x == (2, 4)
    assert seen.scores["with_4_images"] == seen.scores["after_4_steps"]
    assert seen.curves["images"].y == pytest.approx([np.mean(seen.scores[f"with_{count}_images"]) for count in (2, 4)])
    assert seen.evaluator is not None
    assert [picture.label for picture in seen.pictures["forget-0"]] == ["plain", "attacked"]


def test_scores_are_those_of_copies_trained_by_hand() -> None:
    """One fold again, in plain calls: trained on its two images, asked with its seeds."""
    attack, task, model = ConceptRelearning(**{**SMALL, "images": (2,)}), drawing_task(), drawer()
    ready = prepared(attack, task)
    seen = dict(zip(*(lambda one: (one.units, one.scores["after_4_steps"]))(measured(attack, task, model)), strict=True))
    by_id = {one.id: one for one in task.forget}
    for run in ready.data["runs"]:
        train = [by_id[unit] for unit in run["train"][:2]]
        how = Tuning(budgets=(4,), learning_rate=3e-2, batch_size=4, seed=ready.data["seed"])
        ((_, copy),) = tuned(model.pipeline(), task.images(train), [one.prompt for one in train], how)
        for unit, (seed,) in zip(run["score"], run["seeds"], strict=True):
            one = by_id[unit]
            drawn = copy.pictures(copy.sample(copy.conditioning([one.prompt]), [seed], [one.guidance], task.sampling))
            assert seen[unit] == task.judge.present(drawn, [one.concept])[0], unit


def test_training_that_does_not_move_is_powerless() -> None:
    task = drawing_task(4)
    idle = measured(ConceptRelearning(**{**SMALL, "learning_rate": 1e-9}), task, drawer())
    assert idle.powerless is not None
    assert "4 steps took the training loss from" in idle.powerless
    assert idle.scores["after_0_steps"] == idle.scores["after_4_steps"]
    busy = {**SMALL, "images": (2,), "budgets": (20,)}
    assert measured(ConceptRelearning(**busy), task, drawer()).powerless is None


def test_it_is_deterministic_and_changes_nothing() -> None:
    attack, task, model = ConceptRelearning(**{**SMALL, "images": (2,), "lora_rank": 2}), drawing_task(4), drawer()
    before = weights(model.pipeline())
    seen = measured(attack, task, model)
    assert measured(attack, task, drawer(batch_size=17)).scores == seen.scores
    assert measured(attack, task, drawer()).canonical() == seen.canonical()
    assert all(torch.equal(value, before[name]) for name, value in weights(model.pipeline()).items())


def test_as_many_images_as_there_are() -> None:
    seen = measured(ConceptRelearning(**{**SMALL, "images": (2, 3, 25)}), drawing_task(forget=6), drawer())
    assert seen.notes == ("25 training images were asked for, and there are only 3 after splitting",)
    assert seen.scores["with_25_images"] == seen.scores["with_3_images"]


# ---- subjects ----------------------------------------------------------------------------------------------------------


SUBJECT: dict[str, Any] = {**SMALL, "mode": "subject", "embedder": "eyes"}


def pixels(images: Any) -> Any:
    return images.flatten(1) - 0.5


@pytest.fixture
def eyes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An embedder whose vector is the picture itself."""
    asked: list[Path] = []

    def opened(path: Path, **_: Any) -> Embedder:
        asked.append(path)
        return Embedder(pixels, digest="eyes", device=torch.device("cpu"), batch_size=64, mode="L")

    monkeypatch.setattr(Embedder, "open", opened)
    return asked


def subjects_task() -> ImageTask:
    """Two subjects of three images each, alike to each other; the retain images are noise."""
    task = drawing_task(forget=6, concepts="three four")
    rng, faces = np.random.default_rng(3), np.random.default_rng(4).random((2, 1, 8, 8))
    own = {
        one.id: np.clip(faces[place % 2] + 0.1 * rng.normal(size=(1, 8, 8)), 0, 1).astype(np.float32)
        for place, one in enumerate(task.forget)
    }
    return task.with_pictures({**task.pictures, **own})


def cosine(one: Any, other: Any) -> float:
    one, other = (np.asarray(picture, dtype=np.float64).ravel() - 0.5 for picture in (one, other))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_identity_is_rescaled_between_others_and_the_subject_itself(eyes: list[Path]) -> None:
    attack, task, model = ConceptRelearning(**SUBJECT), subjects_task(), drawer()
    ready = prepared(attack, task)
    seen = attack.measure(model, ready, np.random.default_rng(0))
    assert eyes == [Path("audit/eyes")] * 2
    pictures, by_id = task.pictures, {one.id: one for one in task.forget}
    for run in ready.data["runs"]:
        members = [*run["train"], *run["score"]]
        pairs = [(a, b) for place, a in enumerate(members) for b in members[:place]]
        own = np.mean([cosine(pictures[a], pictures[b]) for a, b in pairs])
        other = np.mean([cosine(pictures[a], pictures[b.id]) for a in members for b in task.retain])
        assert (run["own"], run["other"]) == pytest.approx((own, other))
        (unit,), ((seed,),) = run["score"], run["seeds"]
        one, pipeline = by_id[unit], model.pipeline()
        drawn = pipeline.pictures(pipeline.sample(pipeline.conditioning([one.prompt]), [seed], [one.guidance], task.sampling))
        identity = np.clip((cosine(drawn, pictures[unit]) - other) / (own - other), 0, 1)
        assert seen.scores["after_0_steps"][seen.units.index(unit)] == pytest.approx(identity, abs=1e-6)
    assert seen.evaluator is None
    assert "concept_shown" in seen.scores


def test_each_subject_is_trained_on_alone(eyes: list[Path]) -> None:
    task = subjects_task()
    runs = prepared(ConceptRelearning(**SUBJECT), task).data["runs"]
    concepts = {one.id: one.concept for one in task.forget}
    assert [{concepts[unit] for unit in (*run["train"], *run["score"])} for run in runs] == [{"three"}, {"four"}]
    assert [(len(run["train"]), run["images"], len(run["score"])) for run in runs] == [(2, [2], 1)] * 2


def test_a_subjects_prompt_is_trained_on_and_asked_for(eyes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plain = Pipeline.conditioning
    monkeypatch.setattr(Pipeline, "conditioning", lambda self, prompts: said.extend(prompts) or plain(self, prompts))
    measured(ConceptRelearning(**SUBJECT, subject_prompt="photo of blue"), subjects_task(), drawer())
    assert set(said) == {"photo of blue"}


def test_a_subject_that_the_embedder_cannot_tell_is_refused(eyes: list[Path]) -> None:
    with pytest.raises(NotApplicable, match="are as alike to others'"):
        prepared(ConceptRelearning(**SUBJECT), drawing_task(forget=6))


def test_one_image_is_no_subject(eyes: list[Path]) -> None:
    with pytest.raises(NotApplicable, match="two prompts with images of one subject"):
        prepared(ConceptRelearning(**SUBJECT), drawing_task(forget=2, concepts="three four"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "subject"}, "needs `embedder`"),
        ({"embedder": "eyes"}, "belong to mode"),
        ({"subject_prompt": "sks"}, "belong to mode"),
        ({"budgets": (0,)}, "budgets must be ascending"),
        ({"images": (5, 5)}, "images must be ascending"),
    ],
)
def test_odd_settings_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ConceptRelearning(**given)


def test_the_embedder_is_among_the_files() -> None:
    assert ConceptRelearning(**SUBJECT).files() == ("eyes",)
    assert ConceptRelearning().files() == ()


def test_without_images_or_with_one_prompt_it_is_skipped() -> None:
    with pytest.raises(NotApplicable, match="needs target images"):
        prepared(ConceptRelearning(), replace(drawing_task(), pictures={}))
    with pytest.raises(NotApplicable, match="at least 2 forget prompts"):
        prepared(ConceptRelearning(), drawing_task(forget=1))
