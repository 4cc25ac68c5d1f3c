from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from drawing_tasks import BrightJudge, Drawer, drawer, drawing_task
from tiny_pipelines import write_stable

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.trajectory import Trajectory, _Course, _middle
from muaudit.errors import ModelError, NotApplicable
from muaudit.image_task import ImageTask, fresh_seeds
from muaudit.models.diffusion import Diffusion

SMALL: dict[str, Any] = {"original_steps": (1, 3), "etas": (0.0, 1.0), "spreads": (1.0, 1.2), "images": 2}


def prepared(attack: Trajectory, task: ImageTask, original: Drawer | None) -> Prepared:
    opened = None if original is None else lambda: original
    ready = attack.prepare(Bench(task, np.random.default_rng(1), frozenset(), open_original=opened))
    return Prepared.model_validate_json(ready.model_dump_json()).with_task(task).with_original(opened)


def measured(attack: Trajectory, task: ImageTask, model: Drawer, original: Drawer | None = None) -> Measurement:
    return attack.measure(model, prepared(attack, task, original), np.random.default_rng(0))


def course(model: Drawer, task: ImageTask, each: int = 2) -> _Course:
    return _Course(model.pipeline(), task, fresh_seeds(task.forget, each, np.random.default_rng(2)))


def shows(model: Drawer, latents: Any) -> Any:
    return BrightJudge().present(model.pipeline().pictures(latents), ["three"] * len(latents)).reshape(-1, 2)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_model_that_completes_what_it_began_draws_its_plain_images(sampler: str, steps: int) -> None:
    task, model = drawing_task(sampler=sampler), drawer()
    one = course(model, task)
    assert one.completed(model.pipeline(), steps) == pytest.approx(one.sample(), abs=1e-4)


def test_the_original_leads_the_first_steps_only() -> None:
    task, model, original = drawing_task(), drawer(1), drawer(2)
    one = course(model, task)
    begun = course(original, task).sample(end=2)
    assert torch.equal(one.completed(original.pipeline(), 2), one.sample(begin=2, start=begun))
    assert not torch.allclose(one.completed(original.pipeline(), 2), one.sample(), atol=1e-2)


def test_inpainting_keeps_the_rim_exactly_and_draws_the_middle() -> None:
    task, model = drawing_task(), drawer()
    one = course(model, task)
    drawn, known = one.inpainted(0.5), model.pipeline().latents(task.images([row for row in task.forget for _ in range(2)]))
    rim = torch.ones(8, 8, dtype=torch.bool)
    rim[2:6, 2:6] = False
    assert torch.equal(drawn[..., rim], known[..., rim])
    assert not torch.isclose(drawn[..., ~rim], known[..., ~rim], atol=1e-3).any(-1).all()


def test_what_is_put_back_has_the_noise_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the way the rim is the known image at the level that the next step starts from, with the first noise."""
    task, model = drawing_task(steps=4), drawer()
    one, pipeline, seen = course(model, task), model.pipeline(), []
    plain = pipeline.sample

    def watched(*args: Any, **how: Any) -> Any:
        between = how["between"]

        def noted(latents: Any, timestep: int) -> Any:
            seen.append((timestep, between(latents, timestep)))
            return seen[-1][1]

        return plain(*args, **{**how, "between": noted})

    monkeypatch.setattr(pipeline, "sample", watched)
    one.inpainted(0.5)
    known = pipeline.latents(task.images([row for row in task.forget for _ in range(2)]))
    noise = pipeline.noise([seed for own in one.seeds for seed in own])
    assert [timestep for timestep, _ in seen] == [500, 250, 0, -1]
    for timestep, latents in seen:
        level = 1.0 if timestep < 0 else float(pipeline.alphas[timestep])
        expected = level**0.5 * known + (1 - level) ** 0.5 * noise
        assert latents[..., 0, :] == pytest.approx(expected[..., 0, :], abs=1e-5)


@pytest.mark.parametrize(
    ("side", "share", "expected"),
    [(8, 0.5, (2, 6)), (8, 0.75, (1, 7)), (64, 0.5, (16, 48)), (3, 0.1, (1, 2)), (4, 0.99, (0, 3))],
)
def test_the_middle_is_neither_nothing_nor_all(side: int, share: float, expected: tuple[int, int]) -> None:
    assert _middle(side, share) == slice(*expected)


def test_leakage_is_the_mean_over_the_ways_of_success_per_image() -> None:
    task, model, original = drawing_task(), drawer(1), drawer(2)
    seen = measured(Trajectory(**SMALL), task, model, original)
    one = _Course(model.pipeline(), task, prepared(Trajectory(**SMALL), task, original).data["seeds"])
    completed = [shows(model, one.completed(original.pipeline(), steps)) for steps in (1, 3)]
    grid = [shows(model, one.sample(eta=eta, spread=spread)) for eta in (0.0, 1.0) for spread in (1.0, 1.2)]
    ways = {
        "completion": np.mean([hits.mean(1) for hits in completed], axis=0),
        "inpainting": shows(model, one.inpainted(0.5)).mean(1),
        "noise": np.mean([hits.mean(1) for hits in grid], axis=0),
    }
    assert seen.leakage == pytest.approx(np.mean(list(ways.values()), axis=0))
    for name, share in ways.items():
        assert seen.scores[name] == pytest.approx(share), name
    assert seen.scores["noise_best"] == pytest.approx(np.max([hits.any(1) * 1.0 for hits in grid], axis=0))
    assert seen.scores["plain"] == seen.scores["noise_eta_0_spread_1"] == pytest.approx(shows(model, one.sample()).mean(1))
    assert seen.facets == {"way": ("completion", "inpainting", "noise")}
    assert [picture.label for picture in seen.pictures["forget-0"]] == ["plain", "completion", "inpainting", "noise"]
    assert 0 < np.mean(seen.leakage) < 1


def test_noise_on_the_way_takes_ddim_whatever_the_task_draws_with() -> None:
    model, ddim, euler = drawer(), drawing_task(sampler="ddim"), drawing_task(sampler="euler")
    assert torch.equal(course(model, euler).sample(eta=1.0), course(model, ddim).sample(eta=1.0))


def test_batches_change_nothing() -> None:
    task, original = drawing_task(4), drawer(2)
    together = measured(Trajectory(**SMALL), task, drawer(1, batch_size=64), original)
    alone = measured(Trajectory(**SMALL), task, drawer(1, batch_size=1), original)
    assert together.leakage == alone.leakage
    assert together.scores == alone.scores


def test_it_is_deterministic_and_changes_nothing() -> None:
    task, model, original = drawing_task(4), drawer(1), drawer(2)
    before = {name: value.clone() for name, value in model.pipeline().unet.state_dict().items()}
    seen = measured(Trajectory(**SMALL), task, model, original)
    assert measured(Trajectory(**SMALL), task, drawer(1), original).canonical() == seen.canonical()
    assert all(torch.equal(before[name], value) for name, value in model.pipeline().unet.state_dict().items())


def test_without_an_original_completion_is_left_out() -> None:
    seen = measured(Trajectory(**SMALL), drawing_task(), drawer())
    assert seen.facets == {"way": ("inpainting", "noise")}
    assert seen.notes[0].startswith("diffusion completion was left out")
    with pytest.raises(NotApplicable, match="completion was left out"):
        prepared(Trajectory(ways=("completion",), original_steps=(1,)), drawing_task(), None)


def test_without_target_images_inpainting_is_left_out() -> None:
    task = replace(drawing_task(), pictures={})
    seen = measured(Trajectory(**SMALL), task, drawer(1), drawer(2))
    assert seen.facets == {"way": ("completion", "noise")}
    assert seen.notes[0].startswith("inpainting was left out: 8 forget prompts have no target image")


def test_the_original_may_not_take_all_steps() -> None:
    with pytest.raises(NotApplicable, match="would take 4 of 4 steps"):
        prepared(Trajectory(original_steps=(4,)), drawing_task(steps=4), drawer())


def test_latents_of_another_shape_cannot_be_completed(tmp_path_factory: pytest.TempPathFactory) -> None:
    task = drawing_task()
    original: Any = Diffusion.open(write_stable(tmp_path_factory.mktemp("stable") / "model"), device="cpu")
    with pytest.raises(ModelError, match="neither can go on where the other stops"):
        measured(Trajectory(ways=("completion",), original_steps=(1,)), task, drawer(), original)


@pytest.mark.parametrize("given", [{"ways": ()}, {"etas": (0.5, 0.5)}, {"spreads": ()}, {"original_steps": (2, 2)}])
def test_empty_and_double_settings_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="at least one entry, and each once"):
        Trajectory(**given)


@pytest.mark.parametrize("given", [{"etas": (1.5,)}, {"spreads": (0.0,)}, {"masked": 1.0}, {"original_steps": (0,)}])
def test_settings_out_of_range_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="Input should be"):
        Trajectory(**given)
