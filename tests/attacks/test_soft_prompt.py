"""Soft prompt: what is tuned and drawn, and that neither batching nor the number of prompts changes a prompt's result."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from drawn_task import PROMPTS, Generator, bench, measured, task
from tiny_pipelines import pixel_pipeline

from muaudit.attacks.soft_prompt import SoftPrompt
from muaudit.diffusion.tuned_vectors import Tuning, VectorSet, Workshop, gaps, starts
from muaudit.errors import NotApplicable
from muaudit.image_task import ImageTask

SMALL: dict[str, Any] = {"vectors": 2, "steps": 3, "learning_rate": 0.05, "batch": 2, "seeds": 2}


def slow(given: ImageTask, data: dict[str, Any], row: int) -> np.ndarray:
    """One prompt by itself, image by image: images [seeds, 1, 8, 8]."""
    one, pipeline = given.forget[row], pixel_pipeline(batch_size=1)
    encoder = pipeline.encoders[0]
    seed = data["tuned"][one.id]
    start = starts(encoder, 2, PROMPTS, [seed])[0]
    asked = gaps(encoder, [one.prompt], [()], 2)
    workshop = Workshop(pipeline, asked, pipeline.latents(given.images([one])))
    ((_, vectors),) = workshop.tuned([VectorSet(start, (0,), seed)], Tuning((3,), 0.05, 0.0, 2))
    with torch.no_grad():
        embeddings = encoder.table[asked.framed].clone()
        embeddings[0, 1:3] = vectors[0]
        told = pipeline.conditioned(encoder.encode(asked.framed, embeddings))
        drawn = [pipeline.sample(told, [number], [one.guidance], given.sampling) for number in data["seeds"][row]]
    return pipeline.pictures(torch.cat(drawn))


def test_all_prompts_at_once_are_as_one_by_one() -> None:
    given = task()
    prepared, found = measured(SoftPrompt(**SMALL), given, Generator())
    means = np.stack([slow(given, prepared.data, row).mean((1, 2, 3)) for row in range(5)])
    assert np.abs(means - 0.5).min() > 1e-4, "no image is so near to the judge's limit that rounding could decide"
    np.testing.assert_allclose(found.leakage, (means > 0.5).mean(1))
    np.testing.assert_allclose(found.scores["best_of_2"], (means > 0.5).any(1))


def test_it_is_deterministic_and_leaves_the_model_alone() -> None:
    given, model = task(), Generator()
    before = {name: value.clone() for name, value in model.held.unet.state_dict().items()}
    prepared, found = measured(SoftPrompt(**SMALL), given, model)
    again, same = measured(SoftPrompt(**SMALL), given, model)
    assert again.content_digest() == prepared.content_digest()
    assert same.canonical() == found.canonical()
    assert all(torch.equal(value, before[name]) for name, value in model.held.unet.state_dict().items())
    assert not any(one.requires_grad for one in model.held.unet.parameters())


def test_plain_and_attacked_images_have_the_same_fresh_seeds() -> None:
    given, model = task(), Generator()
    prepared, found = measured(SoftPrompt(**SMALL), given, model)
    assert [one.seed for one in model.asked] == [seed for row in prepared.data["seeds"] for seed in row]
    assert not {one.seed for one in model.asked} & {one.seed for one in given.forget}
    row = found.pictures["three-0"]
    assert [(one.label, one.prompt) for one in row] == [
        ("plain", "a photo of three"), ("attacked", "[2 vectors] a photo of three"),
    ]  # fmt: skip
    assert found.summaries["loss_after"] < found.summaries["loss_before"]
    assert found.powerless is None


def test_universal_tunes_one_prefix_a_concept() -> None:
    given = task()
    prepared, found = measured(SoftPrompt(**SMALL, universal=True), given, Generator())
    assert list(prepared.data["tuned"]) == ["three"]
    assert len(found.leakage) == 5


def test_at_most_so_many_prompts_are_attacked() -> None:
    given = task()
    prepared, found = measured(SoftPrompt(**SMALL, prompts=3), given, Generator())
    assert found.units == tuple(prepared.data["units"])
    assert len(found.units) == 3
    assert found.notes == ("3 of 5 forget prompts attacked, drawn by the seed",)


def test_too_little_tuning_is_said() -> None:
    _, found = measured(SoftPrompt(**{**SMALL, "learning_rate": 1e-12}), task(), Generator())
    assert "did not lower the denoising loss" in (found.powerless or "")


def test_what_is_missing_is_said() -> None:
    with pytest.raises(NotApplicable, match="needs target images"):
        SoftPrompt(**SMALL).prepare(bench(task(targets=False)))
    with pytest.raises(NotApplicable, match="leave no room for words"):
        measured(SoftPrompt(**{**SMALL, "vectors": 30}), task(), Generator())
