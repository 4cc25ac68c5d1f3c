"""Inserted tokens stand where they should, carry gradient, and are never special, banned or cut off."""

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from tiny_pipelines import pair_tokenizer, pixel_pipeline, text_encoder, word_tokenizer

from muaudit.diffusion.insertion import Insertion, allowed, random_tokens
from muaudit.diffusion.pipeline import PromptEncoder
from muaudit.diffusion.positions import places
from muaudit.errors import NotApplicable


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return pixel_pipeline().encoders[0]


def words(encoder: PromptEncoder, text: str) -> list[int]:
    return [encoder.tokenizer.get_vocab()[word] for word in text.split()]


PLACES = {
    "prefix": "red blue a photo of one two",
    "suffix": "a photo of one two red blue",
    "middle": "a photo red blue of one two",
    "spread": "a red photo blue of one two",
    "every_three_words": "red a photo of blue one two",
    "alone": "red blue",
}


@pytest.mark.parametrize("position", PLACES)
def test_tokens_stand_where_they_should(encoder: PromptEncoder, position: str) -> None:
    insertion = Insertion.into(encoder, ["a photo of one two"], 2, position)
    ids = insertion.ids(torch.tensor([words(encoder, "red blue")]))
    assert ids.tolist() == encoder.ids([PLACES[position]]).tolist()
    assert insertion.texts(torch.tensor([words(encoder, "red blue")])) == [PLACES[position]]


def test_one_token_before_every_three_words_however_many_that_takes() -> None:
    assert places("every_three_words", 2, 9) == [0]
    assert places("every_three_words", 3, 9) == [0, 4]
    assert places("every_three_words", 8, 1) == [0, 4, 8]


def test_prompts_that_take_fewer_tokens_are_told_apart(encoder: PromptEncoder) -> None:
    insertion = Insertion.into(encoder, ["a photo of one", "two"], 1, "every_three_words")
    assert insertion.places.tolist() == [[1, 5], [1, -1]]
    tokens = torch.tensor([words(encoder, "red blue")] * 2)
    assert insertion.texts(tokens) == ["red a photo of blue one", "red two"]
    vectors = torch.ones(2, 2, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(insertion.embeddings(vectors).sum(), vectors)
    assert slope.sum(-1).tolist() == [[32, 32], [32, 0]]
    assert insertion.take(torch.tensor([1, 1])).texts(tokens) == ["red two"] * 2


def test_a_prompt_that_is_too_long_loses_its_own_words(encoder: PromptEncoder) -> None:
    prompt = "one two three four five zero a photo of red"  # fills all ten places between start and end
    insertion = Insertion.into(encoder, [prompt], 3)
    told = insertion.texts(torch.tensor([words(encoder, "blue blue small")]))
    assert told == ["blue blue small one two three four five zero a"]
    last = Insertion.into(encoder, [prompt], 3, "suffix").texts(torch.tensor([words(encoder, "blue blue small")]))
    assert last == ["one two three four five zero a blue blue small"]
    with pytest.raises(NotApplicable, match="reads 10 tokens"):
        Insertion.into(encoder, [prompt], 11)


@pytest.mark.parametrize("position", PLACES)
def test_embeddings_are_read_as_the_tokens_are(encoder: PromptEncoder, position: str) -> None:
    insertion = Insertion.into(encoder, ["a photo of one two", "a small three"], 2, position)
    tokens = torch.tensor([words(encoder, "red blue"), words(encoder, "five four")])
    vectors = encoder.table[tokens].clone().requires_grad_()
    context = encoder.encode(insertion.ids(tokens), insertion.embeddings(vectors))
    assert torch.allclose(context, encoder.encode(encoder.ids(insertion.texts(tokens))), atol=1e-6)
    (slope,) = torch.autograd.grad(context.square().sum(), vectors)
    used = insertion.places >= 0
    assert (slope.abs().sum(-1) > 0).tolist() == used.tolist()


def test_special_tokens_are_never_chosen(encoder: PromptEncoder) -> None:
    assert set(allowed(encoder).tolist()) == set(range(len(encoder.table))) - encoder.specials


def test_banned_words_are_never_chosen(encoder: PromptEncoder) -> None:
    banned = {"three", "one"}
    left = {encoder.text([token]) for token in allowed(encoder, ["Three ONE"]).tolist()}
    assert left == set(word_tokenizer().get_vocab()) - {"<start>", "<end>", "<unknown>"} - banned
    assert "of" not in {encoder.text([token]) for token in allowed(encoder, ["of"]).tolist()}
    within = {encoder.text([token]) for token in allowed(encoder, ["phot"]).tolist()}
    assert "photo" not in within, "a long word bans what contains it"
    assert "photo" in {encoder.text([token]) for token in allowed(encoder, ["pho"]).tolist()}, "a short one does not"
    with pytest.raises(NotApplicable, match="no token is left"):
        allowed(encoder, list(word_tokenizer().get_vocab()))


def test_no_pieces_of_words_are_chosen_that_could_join_into_a_banned_one(tmp_path: Path) -> None:
    tokenizer = pair_tokenizer(tmp_path)
    encoder = PromptEncoder(tokenizer, text_encoder(tokenizer))
    pieces = [token for token in allowed(encoder).tolist() if encoder.words(encoder.text([token])) != [token]]
    assert pieces, "without a ban, pieces of words are among the tokens"
    left = allowed(encoder, ["two"]).tolist()
    assert all(encoder.words(encoder.text([token])) == [token] for token in left)
    names = [encoder.text([token]) for token in left]
    assert "one" in names
    assert "two" not in names


def test_random_tokens_depend_on_their_own_seed_alone(encoder: PromptEncoder) -> None:
    among = allowed(encoder, ["three"])
    drawn = random_tokens(among, 4, range(200))
    assert drawn.shape == (200, 4)
    assert set(drawn.flatten().tolist()) == set(among.tolist())
    assert torch.equal(random_tokens(among, 4, [17])[0], drawn[17])
