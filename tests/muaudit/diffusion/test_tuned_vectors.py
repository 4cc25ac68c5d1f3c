"""Tuned vectors against textual inversion as it is published: new rows of the embedding table, one example at a time."""

from collections.abc import Sequence
from copy import deepcopy

import pytest

pytest.importorskip("diffusers")

import torch
from tiny_pipelines import pixel_pipeline
from torch import Tensor, nn

from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.tuned_vectors import Tuning, VectorSet, Workshop, contexts, gaps, starts, told, weak
from muaudit.errors import ModelError, NotApplicable

PROMPTS = ("a photo of three", "three red", "a small picture")
NAMES = (("three",), ("three",), ())
HOW = Tuning(budgets=(1, 4), learning_rate=0.02, weight_decay=0.1, batch=3)


def workshop(pipeline: Pipeline, vectors: int = 2, dtype: torch.dtype = torch.float32) -> Workshop:
    asked = gaps(pipeline.encoders[0], PROMPTS, NAMES, vectors)
    latents = torch.randn((len(PROMPTS), 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=dtype)
    return Workshop(pipeline, asked, latents)


def sets(pipeline: Pipeline, vectors: int = 2) -> list[VectorSet]:
    first = starts(pipeline.encoders[0], vectors, PROMPTS, [1, 2, 3])
    return [VectorSet(first[0], (0, 1), 11), VectorSet(first[1], (2,), 12), VectorSet(first[2], (0, 1, 2), 13)]


def last(given: Workshop, these: Sequence[VectorSet], how: Tuning = HOW) -> Tensor:
    return list(given.tuned(these, how))[-1][1]


def test_vectors_take_the_place_of_a_name_or_stand_before_the_prompt() -> None:
    encoder = pixel_pipeline().encoders[0]
    asked = gaps(encoder, PROMPTS, NAMES, 2)
    assert told(asked) == ["a photo of [2 vectors]", "[2 vectors] red", "[2 vectors] a small picture"]
    assert asked.places.tolist() == [[4, 5], [1, 2], [1, 2]]
    assert told(gaps(encoder, ["a drawing of a three"], [["a three", "three"]], 1)) == ["a drawing of [1 vector]"]


def test_no_vector_is_cut_off() -> None:
    encoder = pixel_pipeline().encoders[0]
    long = "a photo of a small red drawing of a three"
    assert told(gaps(encoder, [long], [["three"]], 1)) == ["a photo of a small red drawing of a [1 vector]"]
    assert told(gaps(encoder, [long], [["three"]], 3)) == ["[3 vectors] a photo of a small red drawing"]
    with pytest.raises(NotApplicable, match="10 vectors leave no room for words in the 10 tokens"):
        gaps(encoder, [long], [["three"]], 10)


def test_vectors_that_are_a_token_s_embedding_are_that_token() -> None:
    encoder = pixel_pipeline().encoders[0]
    asked = gaps(encoder, PROMPTS, NAMES, 1)
    word = encoder.table[encoder.words("blue")][None].expand(len(PROMPTS), 1, -1)
    expected = encoder.encode(encoder.ids(["a photo of blue", "blue red", "blue a small picture"]))
    torch.testing.assert_close(contexts(asked, word), expected)


def test_vectors_start_from_tokens_that_no_prompt_holds() -> None:
    encoder = pixel_pipeline().encoders[0]
    first = starts(encoder, 50, PROMPTS, [1, 2])
    barred = {token for text in PROMPTS for token in encoder.words(text)} | encoder.specials
    found = {int((encoder.table == vector).all(1).nonzero()) for vector in first.reshape(-1, first.shape[2])}
    assert not found & barred
    assert found == set(range(len(encoder.table))) - barred
    torch.testing.assert_close(starts(encoder, 50, PROMPTS, [2])[0], first[1])
    with pytest.raises(NotApplicable, match="every token stands in a forget prompt"):
        starts(encoder, 1, [" ".join(encoder.vocabulary())], [1])


def slow_step(pipeline: Pipeline, given: Workshop, one: VectorSet, how: Tuning) -> Tensor:
    """The first step as textual inversion takes it: placeholder tokens in a longer embedding table, one image at a time."""
    encoder = pipeline.encoders[0]
    module, size, count = deepcopy(encoder.module), len(encoder.table), len(one.start)
    table = nn.Embedding(size + count, encoder.table.shape[1])
    table.weight.data = torch.cat([encoder.table, one.start.to(encoder.table.dtype)])
    module.set_input_embeddings(table)
    words = list(range(size, size + count))
    texts = {0: ["a photo of", words, ""], 1: ["", words, "red"], 2: ["", words, "a small picture"]}
    generator = torch.Generator().manual_seed(one.seed)
    rows = torch.randint(len(one.examples), (how.batch,), generator=generator).tolist()
    times = torch.randint(1000, (how.batch,), generator=generator).tolist()
    noises = torch.randn((how.batch, 1, 8, 8), generator=generator)
    for row, time, noise in zip(rows, times, noises, strict=True):
        before, middle, after = texts[one.examples[row]]
        ids = [0, *encoder.words(before), *middle, *encoder.words(after)]
        ids += [1] * (12 - len(ids))
        context = module(torch.tensor([ids])).last_hidden_state
        level = pipeline.alphas[time].to(noise.dtype)
        image = given.latents[one.examples[row]]
        noisy = level.sqrt() * image + (1 - level).sqrt() * noise.to(image.dtype)
        predicted = pipeline.unet(noisy[None], time, encoder_hidden_states=context).sample[0]
        (((predicted - noise) ** 2).mean() / how.batch).backward()
    gradient = table.weight.grad[size:]
    # AdamW's first step moves every number by the learning rate against its gradient's sign, after the decay.
    moved = one.start * (1 - how.learning_rate * how.weight_decay)
    return moved - how.learning_rate * gradient / (gradient.abs() + 1e-8)


def test_one_step_is_that_of_textual_inversion() -> None:
    pipeline = pixel_pipeline(batch_size=4)
    given, these = workshop(pipeline), sets(pipeline)
    for row, one in enumerate(these):
        expected = slow_step(pipeline, given, one, HOW)
        step, found = next(given.tuned(these, HOW))
        assert step == 1
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-4)


def test_tuning_together_changes_nothing_but_speed() -> None:
    pipeline = pixel_pipeline(batch_size=64)
    together = last(workshop(pipeline), sets(pipeline))
    for row, one in enumerate(sets(pipeline)):
        torch.testing.assert_close(last(workshop(pipeline), [one])[0], together[row], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(last(workshop(pixel_pipeline(batch_size=2)), sets(pipeline)), together, atol=2e-4, rtol=1e-3)


def test_the_same_seeds_give_the_same_vectors_and_the_model_stays() -> None:
    pipeline = pixel_pipeline()
    weights = {name: value.clone() for part in pipeline.modules().values() for name, value in part.state_dict().items()}
    first, again = (last(workshop(pipeline), sets(pipeline)) for _ in range(2))
    assert torch.equal(first, again)
    for part in pipeline.modules().values():
        assert not any(one.requires_grad or one.grad is not None for one in part.parameters())
        assert all(torch.equal(value, weights[name]) for name, value in part.state_dict().items())
    other = [VectorSet(one.start, one.examples, one.seed + 100) for one in sets(pipeline)]
    assert not torch.equal(last(workshop(pipeline), other), first)


def test_tuning_lowers_the_loss_it_is_judged_by() -> None:
    pipeline = pixel_pipeline(batch_size=64)
    given, these = workshop(pipeline), sets(pipeline)
    first = torch.stack([one.start for one in these])
    vectors = last(given, these, Tuning((30,), 0.05, 0.0, 8))
    before, after = given.losses(these, first), given.losses(these, vectors)
    assert (after < before).all()
    assert weak(before, after) is None
    assert "did not lower the denoising loss" in (weak(before, before) or "")


def test_a_loss_that_is_not_a_number_is_an_error() -> None:
    pipeline = pixel_pipeline()
    given = workshop(pipeline)
    given.latents[:] = float("nan")
    with pytest.raises(ModelError, match="denoising loss is NaN or infinite"):
        last(given, sets(pipeline))
