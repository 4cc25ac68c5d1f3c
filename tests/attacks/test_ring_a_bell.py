"""Ring-A-Bell: its concept vector by plain loops, its search against exhaustive search, and what its prompts are made from."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from drawn_task import Generator, bench, measured, prompt, task
from tiny_pipelines import WORDS, write_pixel

from muaudit.attacks.ring_a_bell import RingABell, concept_vector
from muaudit.errors import ModelError, NotApplicable, UsageError

SMALL: dict[str, Any] = {"tokens": 3, "population": 60, "generations": 40, "seeds": 2}


@pytest.fixture(scope="module")
def model() -> Generator:
    return Generator()


def outputs(model: Generator, text: str) -> np.ndarray:
    encoder = model.prompt_encoder()
    with torch.no_grad():
        return encoder.module(encoder.ids([text])).last_hidden_state[0].numpy()


def test_the_concept_vector_is_a_mean_of_differences(model: Generator) -> None:
    pairs = [("a three", "a two"), ("three red", "one red"), ("a photo of three", "a photo of")]
    slow = np.zeros((12, 32))
    for shown, hidden in pairs:
        slow += (outputs(model, shown) - outputs(model, hidden)) / len(pairs)
    np.testing.assert_allclose(concept_vector(model.prompt_encoder(), pairs).numpy(), slow, atol=1e-5)


def test_the_prompt_found_is_the_nearest_of_all(model: Generator) -> None:
    """Against all prompts of two tokens, with the target written out by hand."""
    given = task(prompts=("a photo of three",))
    attack = RingABell(**{**SMALL, "tokens": 2, "strength": 2.0})
    prepared, _ = measured(attack, given, model, model)
    differences = [
        outputs(model, "a photo of three") - outputs(model, f"a photo of {other}") for other in ("one", "two", "four")
    ]
    target = outputs(model, "a photo of three") + 2 * np.mean(differences, axis=0)
    every = {text: ((outputs(model, text) - target) ** 2).sum() for text in map(" ".join, itertools.product(WORDS, repeat=2))}
    best = min(every, key=lambda text: every[text])
    assert prepared.data["prompts"] == [best]
    assert prepared.data["distances"][0] == pytest.approx(every[best], rel=1e-4)


def test_the_prompts_are_the_same_for_every_model_and_the_report_says_static(model: Generator) -> None:
    given = task(prompts=("a photo of three", "three red"))
    attack = RingABell(**SMALL)
    prepared, found = measured(attack, given, model, model)
    asked = Generator()
    again = attack.measure(asked, prepared, np.random.default_rng(7))
    assert again.canonical() == found.canonical()
    half = len(asked.asked) // 2
    assert [one.prompt for one in asked.asked[half:]] == [text for text in prepared.data["prompts"] for _ in range(2)]
    assert [one.seed for one in asked.asked[half:]] == [one.seed for one in asked.asked[:half]]
    bright = (asked.images(asked.asked[half:]).mean((1, 2, 3)) > 0.5).reshape(2, 2).mean(1)
    np.testing.assert_allclose(found.leakage, bright)
    assert found.notes[0].startswith("static prompts: found once on the original's text encoder")
    assert [[one.label for one in row] for row in found.pictures.values()] == [["plain", "attacked"]] * 2


def test_one_prompt_s_search_is_not_another_s(model: Generator) -> None:
    """All prompts are searched at once; each finds what it finds beside any other."""
    given = [("a photo of three",), ("a photo of three", "a picture"), ("a photo of three", "a small red picture")]
    found = [RingABell(**SMALL).prepare(bench(task(prompts=prompts), model)).data for prompts in given]
    assert found[0]["prompts"][0] == found[1]["prompts"][0] == found[2]["prompts"][0]
    assert found[1]["distances"][1] != pytest.approx(found[2]["distances"][1])


def test_names_can_be_left_out_of_the_search(model: Generator) -> None:
    given = task(prompts=("a photo of three", "three red"))
    free = RingABell(**SMALL).prepare(bench(given, model)).data["prompts"]
    banned = RingABell(**SMALL, ban_names=True).prepare(bench(given, model)).data["prompts"]
    assert any("three" in text for text in free)
    assert not any("three" in text for text in banned)


def test_pairs_come_from_retain_concepts_else_from_leaving_the_name_out() -> None:
    attack = RingABell(names={"three": ("red picture",)})
    given = task(prompts=("A Three photo", "threefold", "a red picture"))
    assert attack._derived(given)["three"] == [
        ("A Three photo", "A one photo"), ("A Three photo", "A two photo"), ("A Three photo", "A four photo"),
        ("a red picture", "a one"), ("a red picture", "a two"), ("a red picture", "a four"),
    ]  # fmt: skip
    assert attack._derived(task(prompts=("a three",), retain=False))["three"] == [("a three", "a ")]


def test_pairs_are_read_from_a_file(model: Generator, tmp_path: Path) -> None:
    lines = [{"with": "a three", "without": "a two"}, {"concept": "three", "with": "three red", "without": "red"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    attack = RingABell(**SMALL, pairs="pairs.jsonl")
    given = task(prompts=("a picture",))
    assert attack.files() == ("pairs.jsonl",)
    assert attack._pairs(given, tmp_path) == {"three": [("a three", "a two"), ("three red", "red")]}
    found = attack.prepare(bench(given, model, folder=tmp_path)).data
    assert len(found["prompts"]) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"with": "a three"}', "line 2: not a pair"),
        ("[1, 2]", "line 2: not a pair"),
        ("{", "line 2: not a pair"),
        ('{"with": "a", "without": "b", "concept": "five"}', "line 2: concept 'five' is none of the forget set's"),
    ],
)
def test_a_faulty_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"with": "a three", "without": "a"}\n' + line, encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        RingABell(pairs="pairs.jsonl")._pairs(task(), tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        RingABell(pairs="none.jsonl")._pairs(task(), tmp_path)


def test_the_encoder_can_be_another_s(model: Generator, tmp_path: Path) -> None:
    """A folder stands in for the original: with the same weights the same prompts are found."""
    write_pixel(tmp_path / "public")
    shutil.rmtree(tmp_path / "public" / "unet")
    given = task(prompts=("a photo of three",))
    attack = RingABell(**SMALL, encoder="public")
    found = attack.prepare(bench(given, folder=tmp_path)).data
    assert found["prompts"] == RingABell(**SMALL).prepare(bench(given, model)).data["prompts"]
    assert found["notes"][0].startswith("static prompts: found once on the text encoder of public")
    assert attack.files() == ("public",)
    shutil.rmtree(tmp_path / "public" / "tokenizer")
    with pytest.raises(ModelError, match="no sub-folder tokenizer"):
        attack.prepare(bench(given, folder=tmp_path))


def test_what_is_missing_is_said(model: Generator) -> None:
    with pytest.raises(NotApplicable, match="set encoder to the folder of a pipeline"):
        RingABell(**SMALL).prepare(bench(task()))
    with pytest.raises(NotApplicable, match="concept 'three': no forget prompt names it"):
        RingABell(**SMALL).prepare(bench(task(prompts=("a picture",)), model))


def test_a_short_encoder_gets_short_prompts_and_a_note(model: Generator) -> None:
    found = RingABell(**{**SMALL, "tokens": 16, "generations": 1}).prepare(bench(task(), model)).data
    assert "the text encoder reads 10 tokens, so prompts have 10 instead of 16" in found["notes"]
    assert all(len(text.split()) == 10 for text in found["prompts"])


def test_concepts_have_vectors_of_their_own(model: Generator) -> None:
    given = task(prompts=("a photo of three",))
    other = prompt(9, "a photo of five", "five")
    both = type(given)((*given.forget, other), given.retain, (), given.sampling, given.judge)
    pairs = RingABell()._pairs(both, Path())
    assert set(pairs) == {"three", "five"}
    assert ("a photo of five", "a photo of one") in pairs["five"]
