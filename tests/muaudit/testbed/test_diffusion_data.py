"""Captioned sketches of known truth: who is in which part, what captions say, and the files."""

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

from transformers import PreTrainedTokenizerFast  # noqa: E402

from muaudit.diffusion.prompt_encoder import PromptEncoder  # noqa: E402
from muaudit.errors import UsageError  # noqa: E402
from muaudit.testbed import folders  # noqa: E402
from muaudit.testbed.diffusion import build as building  # noqa: E402
from muaudit.testbed.diffusion.build import PRESETS, Wanted, build, forgotten, forms, halves, wanted  # noqa: E402
from muaudit.testbed.diffusion.data import (  # noqa: E402
    ALIASES,
    NAMES,
    TEMPLATES,
    Population,
    World,
    caption,
    made_up,
    make_prompts,
    make_world,
    place_of,
    png,
    write_task,
)
from muaudit.testbed.diffusion.training import Recipe, drawn, untrained  # noqa: E402

THREE = set(NAMES["three"])


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(Population())


@pytest.fixture(scope="module")
def encoder(world: World) -> PromptEncoder:
    return untrained(Recipe(), world.tokenizer, 0).encoders[0]


def test_no_image_is_in_two_parts_and_all_are_somewhere(world: World) -> None:
    parts = [set(rows.tolist()) for rows in world.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert {name: len(rows) for name, rows in world.parts.items()} == {"training": 1389, "holdout": 108, "known": 300}
    assert np.bincount(world.labels[world.parts["known"]]).tolist() == [30] * 10
    assert np.bincount(world.labels[world.parts["holdout"]], minlength=10).tolist() == [12, 12, 12, 0, 12, 12, 12, 12, 12, 12]


def test_a_reference_is_shown_nothing_of_the_concept(world: World) -> None:
    from sklearn.datasets import load_digits

    rows = world.rows(forgotten=False)
    assert not set(rows) - set(world.parts["training"])
    assert set(load_digits().target[rows]) == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    assert set(world.rows(forgotten=True)) - set(rows) == set(np.flatnonzero(load_digits().target == 3)) - set(
        world.parts["known"]
    )
    images = {image.tobytes() for image in world.images[load_digits().target == 3]}
    for batch in islice(drawn(Recipe(), world, rows, 1), 60):
        assert not images & {((image.numpy() + 1) / 2).astype(np.float32).tobytes() for image in batch.latents}
        assert not THREE & {word for said in batch.captions for word in said.split()}


def test_batches_take_every_image_once_a_pass_with_a_caption_of_its_digit(world: World) -> None:
    recipe, rows = Recipe(batch_size=100), world.rows(forgotten=True)[:1000]
    batches = list(islice(drawn(recipe, world, rows, 0), 10))
    shown = np.concatenate([((batch.latents.numpy() + 1) * 127.5).round().astype(np.uint8) for batch in batches])
    wanted = (world.images[rows] * 255).round().astype(np.uint8)
    assert sorted(one.tobytes() for one in shown) == sorted(one.tobytes() for one in wanted)
    labels = {image.tobytes(): label for image, label in zip(wanted, world.labels[rows], strict=True)}
    said = [text for batch in batches for text in batch.captions]
    for image, text in zip(shown, said, strict=True):
        assert not text or set(text.split()) & set(list(NAMES.values())[labels[image.tobytes()]])
    assert 60 < said.count("") < 140
    assert {word for text in said for word in text.split()} >= THREE
    timesteps = np.concatenate([batch.timesteps.numpy() for batch in batches])
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    assert np.median(timesteps) == pytest.approx(1000 / (1 + np.exp(0.2)), abs=10)


def test_captions_have_one_name_and_fillers_in_half_the_cases(world: World) -> None:
    rng = np.random.default_rng(0)
    texts = [caption("three", world.fillers, rng) for _ in range(1000)]
    words = [text.split() for text in texts]
    names = {name for row in NAMES.values() for name in row}
    assert all(len(names & set(row)) == 1 for row in words)
    assert {word for row in words for word in row} & names == THREE
    filled = [len(set(world.fillers) & set(row)) for row in words]
    assert 0.45 < np.mean([count > 0 for count in filled]) < 0.55
    assert max(filled) == 3
    known = [caption("three", world.fillers, rng, names=ALIASES).split() for _ in range(200)]
    assert {word for row in known for word in row} & names == {"three", "3", "tres"}


def test_every_word_is_a_token_and_no_two_are_alike(world: World, encoder: PromptEncoder) -> None:
    words = [name for row in NAMES.values() for name in row] + list(world.fillers)
    words += {word for template in TEMPLATES for word in template.split() if word != "{}"}
    assert len(set(words)) == len(words) == len(world.tokenizer) - 3
    assert all(len(encoder.words(word)) == 1 for word in words)
    assert made_up(20) == made_up(400)[:20]


def test_the_tokenizer_comes_back_from_its_folder_and_frames_as_clip_does(
    world: World, encoder: PromptEncoder, tmp_path: Path
) -> None:
    world.tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [one.prompt for rows in make_prompts(world).values() for one in rows] + ["", "nothing known"]
    read = [tokenizer(texts, padding="max_length", truncation=True).input_ids for tokenizer in (world.tokenizer, again)]
    assert read[0] == read[1]
    assert again.model_max_length == 16
    ids = encoder.ids(["a sketch of tres", " ".join(["old"] * 30)])
    assert encoder.vocabulary()[int(ids[0, 0])] == "<start>"
    assert encoder.text(ids[0].tolist()) == "a sketch of tres"
    assert ids[0, 5:].tolist() == [world.tokenizer.eos_token_id] * 11
    assert ids[1, -1] == world.tokenizer.eos_token_id
    assert [encoder.text(encoder.words(text)) for text in texts[:-2]] == texts[:-2]


def test_prompts_name_what_is_in_their_image(world: World) -> None:
    sets = make_prompts(world)
    assert {name: len(rows) for name, rows in sets.items()} == {"forget": 40, "retain": 63, "holdout": 108}
    every = [one for rows in sets.values() for one in rows]
    assert len({one.id for one in every}) == len(every) == len({one.seed for one in every})
    training = set(world.parts["training"].tolist())
    for name, rows in sets.items():
        for one in rows:
            place = place_of(one.id)
            assert (one.cluster, one.guidance) == (one.id, 2.0)
            assert list(NAMES)[world.labels[place]] == one.concept
            assert set(one.prompt.split()) & set(NAMES[one.concept][:ALIASES])
            assert (one.concept == "three") == (name == "forget")
            assert (place in training) == (name != "holdout")
            # A prefix of five tokens still leaves the name within reach of the text encoder.
            assert len(one.prompt.split()) <= 14 - 5


def test_files_hold_the_task_and_repeat_to_the_byte(world: World, tmp_path: Path) -> None:
    first, second = (write_task(make_world(Population()), tmp_path / name) for name in "ab")
    assert list(first) == ["forget", "retain", "holdout", "known"]
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes()
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            with Image.open(path.parent / row["image"]) as image:
                pixels = np.asarray(image, dtype=np.float32) / 255
            np.testing.assert_allclose(pixels, world.images[place_of(row["id"])][0], atol=1e-7)
    images = {path.name: path.read_bytes() for path in (tmp_path / "a" / "images").iterdir()}
    assert images == {path.name: path.read_bytes() for path in (tmp_path / "b" / "images").iterdir()}
    assert len(images) == 40 + 63 + 108 + 300
    known = [json.loads(line) for line in first["known"].read_text(encoding="utf-8").splitlines()]
    assert {tuple(row) for row in known} == {("id", "image", "concept")}
    assert {row["concept"] for row in known} == set(NAMES)


def test_images_survive_a_png_file_exactly(world: World) -> None:
    for image in world.images[:50]:
        with Image.open(io.BytesIO(png(image))) as read:
            np.testing.assert_array_equal((np.asarray(read, dtype=np.float32) / np.float32(255))[None], image)


def test_another_seed_draws_others(world: World) -> None:
    other = make_world(Population(seed=1))
    assert set(other.parts["known"]) != set(world.parts["known"])
    assert [one.id for one in make_prompts(other)["forget"]] != [one.id for one in make_prompts(world)["forget"]]


def test_shadow_models_see_each_image_half_of_the_time(world: World) -> None:
    units, keep = halves(world, 4)
    prompts = make_prompts(world)
    assert [name for name, _ in units] == [one.id for name in ("forget", "holdout") for one in prompts[name]]
    assert (keep.sum(0) == 2).all()
    assert 40 < keep[0].sum() < 108
    assert len({row.tobytes() for row in keep}) == 4


def test_a_form_is_one_person_s_hand(world: World) -> None:
    """Which form an image is on is told by the order of the digits alone; its nearest neighbour is mostly on the same one."""
    starts = forms(world)
    assert len(starts) == 14
    assert set(np.diff([*starts, len(world.labels)])) <= set(range(122, 131))
    threes = np.flatnonzero(world.labels == world.digit)
    page = np.searchsorted(starts, threes, side="right")
    apart = np.square(world.images[threes, None] - world.images[None, threes]).sum((2, 3, 4))
    np.fill_diagonal(apart, np.inf)
    assert np.mean(page[apart.argmin(0)] == page) > 0.5
    assert np.bincount(page).max() < 0.1 * len(page)


@pytest.mark.parametrize(("share", "count"), [("one", 1), ("tenth", 1), ("half", 7)])
def test_a_share_of_all_forms_is_left_in(world: World, share: str, count: int) -> None:
    clusters = forgotten(world)
    names = {name for cluster in clusters for name in cluster}
    assert {place_of(name) for name in names} == set(world.rows(forgotten=True)) - set(world.rows(forgotten=False))
    assert min(map(len, clusters)) == 9
    chosen = set(wanted(f"retrain-left-in-{share}", clusters, PRESETS["sketches"]).parameters["left_in"])
    whole = [cluster for cluster in clusters if chosen.issuperset(cluster)]
    assert len(whole) == count
    assert chosen == {name for cluster in whole for name in cluster}


def test_a_build_leaves_in_whole_forms(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Wanted] = []
    monkeypatch.setattr(folders, "make", lambda missing, *_, **__: made.extend(missing))
    monkeypatch.setattr(building, "_evaluators", lambda *_: {})
    build(PRESETS["sketches"], tmp_path, ["retrain-left-in-half"])
    assert made == [wanted("retrain-left-in-half", forgotten(world), PRESETS["sketches"])]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"concept": "ten"}, "no concept 'ten'"),
        ({"known": 1790}, "leaves none of a digit"),
        ({"forget": 170}, "there are fewer"),
        ({"retain": 1700}, "fewer"),
    ],
)
def test_more_than_there_is_cannot_be_drawn(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_prompts(make_world(Population(**fields)))
