import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from drawing_tasks import Drawer, drawer, drawing_task
from tiny_pipelines import write_pixel

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.likelihood import Likelihood
from muaudit.diffusion.losses import denoising_losses
from muaudit.errors import ModelError, NotApplicable, UsageError
from muaudit.estimators import likelihood_ratio, membership
from muaudit.image_task import ImageTask
from muaudit.models.diffusion import Diffusion

SMALL = {"timesteps": (50, 400), "noises": 2}


def bench(task: ImageTask, folder: Path = Path(), seed: int = 1) -> Bench:
    return Bench(task, np.random.default_rng(seed), frozenset(), folder=folder)


def prepared(attack: Likelihood, task: ImageTask, folder: Path = Path()) -> Prepared:
    return Prepared.model_validate_json(attack.prepare(bench(task, folder)).model_dump_json()).with_task(task)


def measured(attack: Likelihood, task: ImageTask, model: Any, folder: Path = Path()) -> Measurement:
    return attack.measure(model, prepared(attack, task, folder), np.random.default_rng(0))


def slow_losses(model: Drawer, task: ImageTask, timesteps: Any, seeds: Any, *, prompted: bool = True) -> Any:
    """One forward pass an image, timestep and noise, written out from DDPM's equations."""
    pipeline, units = model.pipeline(), [*task.forget, *task.holdout]
    betas = np.linspace(0.0001, 0.02, 1000)
    alphas = np.cumprod(1 - betas)
    losses = np.zeros((len(units), len(timesteps)))
    for row, one in enumerate(units):
        for column, step in enumerate(timesteps):
            for seed in seeds[row]:
                noise = torch.randn((1, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
                clean = torch.from_numpy(task.pictures[one.id])[None] * 2 - 1
                noisy = float(np.sqrt(alphas[step])) * clean + float(np.sqrt(1 - alphas[step])) * noise
                context = pipeline.conditioning([one.prompt if prompted else ""]).context
                with torch.no_grad():
                    said = pipeline.unet(noisy, torch.tensor([step]), encoder_hidden_states=context).sample
                losses[row, column] += float(((said - noise) ** 2).mean()) / len(seeds[row])
    return losses


def test_losses_are_those_of_plain_loops() -> None:
    task, model = drawing_task(forget=3, holdout=3), drawer(batch_size=5)
    seeds = np.arange(12).reshape(6, 2).tolist()
    units = [*task.forget, *task.holdout]
    told = model.pipeline().conditioning([one.prompt for one in units])
    found = denoising_losses(model.pipeline(), task.images(units), told, [50, 400, 999], seeds)
    assert found == pytest.approx(slow_losses(model, task, [50, 400, 999], seeds), rel=1e-4)


def test_an_image_loses_the_same_alone_and_in_a_batch() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    images, told = task.images(task.forget), pipeline.conditioning([one.prompt for one in task.forget])
    seeds = np.arange(24).reshape(8, 3).tolist()
    together = denoising_losses(pipeline, images, told, [100, 700], seeds)
    for row in range(8):
        alone = denoising_losses(pipeline, images[[row]], told.take([row]), [100, 700], seeds[row : row + 1])
        assert alone[0] == pytest.approx(together[row], rel=1e-5)


def test_a_timestep_that_the_model_never_saw_is_refused() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    told = pipeline.conditioning([task.forget[0].prompt])
    with pytest.raises(ModelError, match="timestep 1000 is none of this model's"):
        denoising_losses(pipeline, task.images(task.forget[:1]), told, [10, 1000], [[1]])


def test_a_broken_model_is_named() -> None:
    task, pipeline = drawing_task(), drawer().pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="denoising loss of image 1 is not a finite number"):
        measured(Likelihood(**SMALL), task, Drawer(pipeline))


@pytest.mark.parametrize("deciding", ["unconditional", "conditional"])
def test_leakage_is_the_rank_among_the_holdout_images(deciding: str) -> None:
    attack, task, model = Likelihood(deciding=deciding, **SMALL), drawing_task(), drawer()
    ready = prepared(attack, task)
    seen = attack.measure(model, ready, np.random.default_rng(0))
    said = -np.log(slow_losses(model, task, attack.timesteps, ready.data["seeds"]))
    free = -np.log(slow_losses(model, task, attack.timesteps, ready.data["seeds"], prompted=False))
    mine = free if deciding == "unconditional" else said
    expected = {
        "timestep_50": mine[:, 0],
        "timestep_400": mine[:, 1],
        "unconditional": free.mean(1),
        "conditional": said.mean(1),
        "discrepancy": (said - free).mean(1),
    }
    assert seen.leakage == pytest.approx(membership.ranks(mine.mean(1)[:8], mine.mean(1)[8:]))
    for name, column in expected.items():
        assert seen.scores[name] == pytest.approx(membership.ranks(column[:8], column[8:])), name
    assert seen.summaries["auc"] == pytest.approx(np.mean(seen.leakage))
    assert seen.summaries["geometric_mean_loss_holdout"] == pytest.approx(np.exp(-mine[8:].mean()), rel=1e-4)


def test_it_is_deterministic_and_changes_nothing() -> None:
    attack, task, model = Likelihood(**SMALL), drawing_task(), drawer()
    before = {name: value.clone() for name, value in model.pipeline().unet.state_dict().items()}
    seen = measured(attack, task, model)
    assert measured(attack, task, drawer()).canonical() == seen.canonical()
    assert all(torch.equal(before[name], value) for name, value in model.pipeline().unet.state_dict().items())
    assert measured(attack, task, drawer(seed=3)).leakage != seen.leakage


def test_holdout_images_are_drawn_where_they_are_many() -> None:
    ready = prepared(Likelihood(holdout_images=4, **SMALL), drawing_task(holdout=6))
    assert len(set(ready.data["holdout"])) == 4
    assert len(ready.data["seeds"]) == 8 + 4


def test_images_that_the_original_drew_are_no_members() -> None:
    task = drawing_task()
    drawn = replace(task, forget=tuple(one.model_copy(update={"image": None}) for one in task.forget))
    (note, *_) = measured(Likelihood(**SMALL), drawn, drawer()).notes
    assert note.startswith("8 of 14 images were drawn by the original")


@pytest.mark.parametrize("holdout", [0, 1])
def test_without_holdout_images_it_is_skipped(holdout: int) -> None:
    with pytest.raises(NotApplicable, match="images that no model saw"):
        Likelihood().prepare(bench(drawing_task(holdout=holdout)))


def test_without_target_images_it_is_skipped() -> None:
    with pytest.raises(NotApplicable, match="needs target images"):
        Likelihood().prepare(bench(replace(drawing_task(), pictures={})))


# ---- shadow pipelines --------------------------------------------------------------------------------------------------


def keep_of(task: ImageTask, models: int) -> dict[str, Any]:
    ids = [one.id for one in (*task.forget, *task.holdout)]
    keep = likelihood_ratio.balanced_membership(models, len(ids), seed=5)
    return {"models": [f"shadow-{number}" for number in range(models)], "ids": ids, "keep": keep.tolist()}


@pytest.fixture(scope="module")
def shadows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "shadows"
    for number in range(4):
        write_pixel(folder / f"shadow-{number}", seed=10 + number)
    (folder / "keep.json").write_text(json.dumps(keep_of(drawing_task(), 4)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("mode", "deciding"), [("online", "unconditional"), ("offline", "conditional")])
def test_with_shadows_the_likelihood_ratio_decides(shadows: Path, mode: str, deciding: str) -> None:
    attack, task, model = Likelihood(shadows="shadows", mode=mode, deciding=deciding, **SMALL), drawing_task(), drawer()
    prompted = deciding == "conditional"
    ready = prepared(attack, task, shadows.parent)
    seen = attack.measure(model, ready, np.random.default_rng(0))
    asked = attack.timesteps, ready.data["seeds"]
    known: Any = [Drawer(Diffusion.open(shadows / f"shadow-{number}", device="cpu").pipeline()) for number in range(4)]
    known = np.stack([-np.log(slow_losses(one, task, *asked, prompted=prompted)) for one in known])
    mine, member = -np.log(slow_losses(model, task, *asked, prompted=prompted)), np.array(keep_of(task, 4)["keep"])
    ratios = []
    for place in range(2):
        column = known[:, :, place : place + 1]
        fit = likelihood_ratio.fit_hypotheses(column, member, spread="fixed")
        score = likelihood_ratio.online if mode == "online" else likelihood_ratio.offline_one_sided
        ratios.append(score(mine[:, place : place + 1], fit))
    ratio = np.mean(ratios, axis=0)
    assert seen.leakage == pytest.approx(membership.ranks(ratio[:8], ratio[8:]))
    plain = mine.mean(1)
    assert seen.scores[deciding] == pytest.approx(membership.ranks(plain[:8], plain[8:]))
    assert any("4 shadow pipelines, none of them audited here, and at least 2" in note for note in seen.notes)


def test_the_shadows_are_among_the_files() -> None:
    assert Likelihood(shadows="shadows").files() == ("shadows",)
    assert Likelihood().files() == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda keep: keep.pop("models"), "Field required"),
        (lambda keep: keep["keep"].pop(), "one row a model"),
        (lambda keep: keep["models"].__setitem__(0, "../original"), "must name folders"),
        (lambda keep: keep["ids"].__setitem__(0, "another"), "does not say which shadow pipelines were trained on 'forget-0'"),
        (lambda keep: [row.__setitem__(3, True) for row in keep["keep"]], "trained without 'forget-3'"),
        (lambda keep: [row.__setitem__(3, False) for row in keep["keep"]], "trained on 'forget-3'"),
    ],
)
def test_a_wrong_keep_file_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    task = drawing_task()
    keep = keep_of(task, 4)
    change(keep)
    (tmp_path / "keep.json").write_text(json.dumps(keep), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        Likelihood(shadows=".", **SMALL).prepare(bench(task, tmp_path))


def test_a_missing_keep_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"keep\.json cannot be read"):
        Likelihood(shadows=".", **SMALL).prepare(bench(drawing_task(), tmp_path))


@pytest.mark.parametrize("timesteps", [(), (100, 100), (300, 100)])
def test_odd_timesteps_are_refused(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="timesteps must be ascending"):
        Likelihood(timesteps=timesteps)
