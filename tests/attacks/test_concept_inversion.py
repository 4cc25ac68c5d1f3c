"""Concept inversion: no word is scored on what it was learned from, and all words learned at once are as one by one."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from drawn_task import PROMPTS, Generator, bench, measured, prompt, task
from pydantic import ValidationError
from tiny_pipelines import pixel_pipeline

from muaudit.attacks.concept_inversion import ConceptInversion
from muaudit.diffusion.tuned_vectors import Tuning, VectorSet, Workshop, gaps, starts
from muaudit.errors import NotApplicable
from muaudit.image_task import ImageTask

SMALL: dict[str, Any] = {"budgets": (1, 3), "learning_rate": 0.05, "batch": 2, "seeds": 2}


def slow(given: ImageTask, data: dict[str, Any]) -> np.ndarray:
    """All prompts' images [prompts, words * seeds, 1, 8, 8], word by word and image by image."""
    pipeline = pixel_pipeline(batch_size=1)
    encoder = pipeline.encoders[0]
    asked = gaps(encoder, PROMPTS, [("three",) if "three" in text else () for text in PROMPTS], 1)
    workshop, rows = Workshop(pipeline, asked, pipeline.latents(given.images(given.forget))), range(len(PROMPTS))
    left, images = [iter(seeds) for seeds in data["seeds"]], [[] for _ in rows]
    for run in data["runs"]:
        start = starts(encoder, 1, PROMPTS, [run["seed"]])[0]
        *_, (_, vectors) = workshop.tuned([VectorSet(start, tuple(run["learned"]), run["seed"])], Tuning((3,), 0.05, 0.01, 2))
        for row in run["scored"]:
            with torch.no_grad():
                embeddings = encoder.table[asked.framed[row]].clone()
                embeddings[asked.places[row, 0]] = vectors[0, 0]
                told = pipeline.conditioned(encoder.encode(asked.framed[row : row + 1], embeddings[None]))
            for _ in range(2):
                images[row].append(pipeline.sample(told, [next(left[row])], [given.forget[row].guidance], given.sampling))
    assert all(next(seeds, None) is None for seeds in left)
    return np.stack([pipeline.pictures(torch.cat(drawn)) for drawn in images])


def test_all_words_at_once_are_as_one_by_one() -> None:
    given = task()
    prepared, found = measured(ConceptInversion(**SMALL, restarts=2), given, Generator())
    means = slow(given, prepared.data).mean((2, 3, 4))
    assert np.abs(means - 0.5).min() > 1e-4, "no image is so near to the judge's limit that rounding could decide"
    np.testing.assert_allclose(found.leakage, (means > 0.5).mean(1))
    np.testing.assert_allclose(found.scores["best_of_4"], (means > 0.5).any(1))
    np.testing.assert_allclose(found.summaries["restart_1"], (means[:, :2] > 0.5).mean())
    np.testing.assert_allclose(found.summaries["restart_2"], (means[:, 2:] > 0.5).mean())


def test_no_word_is_scored_on_a_prompt_whose_image_it_learned() -> None:
    data = ConceptInversion(restarts=2, images=2).prepare(bench(task())).data
    for run in data["runs"]:
        assert not set(run["learned"]) & set(run["scored"])
        assert 1 <= len(run["learned"]) <= 2
    for row in range(5):
        assert sum(row in run["scored"] for run in data["runs"]) == 2
    assert len({run["seed"] for run in data["runs"]}) == 4


def test_each_concept_has_words_of_its_own_and_a_lone_prompt_is_said() -> None:
    given, other = task(), prompt(9, "a photo of five", "five")
    both = ImageTask(
        (*given.forget, other), given.retain, (), given.sampling, given.judge, {**given.pictures, other.id: np.zeros((1, 8, 8))}
    )
    data = ConceptInversion().prepare(bench(both)).data
    assert [(run["learned"], run["scored"]) for run in data["runs"]] == [
        ([0, 2, 4], [1, 3]), ([1, 3], [0, 2, 4]), ([5], [5]),
    ]  # fmt: skip
    assert data["notes"] == ["five: its only prompt is learned from and scored, with fresh seeds"]


def test_the_curve_starts_with_the_plain_prompts() -> None:
    given, model = task(), Generator()
    prepared, found = measured(ConceptInversion(**SMALL), given, model)
    curve = found.curves["recovery"]
    assert curve.x == (0, 1, 3)
    assert curve.y == pytest.approx([np.mean(found.scores[name]) for name in ("plain", "after_1_steps", "after_3_steps")])
    assert found.leakage == found.scores["after_3_steps"]
    assert [one.seed for one in model.asked] == [seed for row in prepared.data["seeds"] for seed in row]
    assert found.pictures["three-3"][1].prompt == "a drawing of a [1 vector]"
    assert found.pictures["three-4"][1].prompt == "[1 vector] a picture"
    named = measured(ConceptInversion(**SMALL, names={"three": ("a picture",)}), given, Generator())[1]
    assert named.pictures["three-4"][1].prompt == "[1 vector]"


def test_it_is_deterministic_and_leaves_the_model_alone() -> None:
    given, model = task(), Generator()
    before = {name: value.clone() for name, value in model.held.encoders[0].module.state_dict().items()}
    prepared, found = measured(ConceptInversion(**SMALL), given, model)
    again, same = measured(ConceptInversion(**SMALL), given, model)
    assert again.content_digest() == prepared.content_digest()
    assert same.canonical() == found.canonical()
    assert all(torch.equal(value, before[name]) for name, value in model.held.encoders[0].module.state_dict().items())


def test_what_is_missing_or_too_little_is_said() -> None:
    with pytest.raises(NotApplicable, match="needs target images"):
        ConceptInversion().prepare(bench(task(targets=False)))
    with pytest.raises(ValidationError, match="budgets must be ascending"):
        ConceptInversion(budgets=(5, 5))
    _, found = measured(ConceptInversion(**{**SMALL, "learning_rate": 1e-12}), task(), Generator())
    assert "did not lower the denoising loss" in (found.powerless or "")
