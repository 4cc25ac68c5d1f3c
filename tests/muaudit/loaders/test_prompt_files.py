"""Files of prompts: JSON Lines and CSV, I2P's columns, images beside them, and what is refused in one line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muaudit.errors import UsageError
from muaudit.loaders.example_columns import Columns
from muaudit.loaders.prompt_files import Reading, read_known, read_prompts

READING = Reading(concept=None, guidance=7.5, columns=Columns(image_mode="L"))


def lines(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def painted(path: Path, shade: int, side: int = 4) -> None:
    Image.fromarray(np.full((side, side), shade, dtype=np.uint8)).save(path)


def test_reads_json_lines_with_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    painted(tmp_path / "images" / "a.png", 51)
    given = {
        "id": "a",
        "cluster": "work",
        "prompt": "a three",
        "concept": "three",
        "seed": 7,
        "guidance": 2,
        "image": "images/a.png",
    }
    path = lines(tmp_path / "forget.jsonl", given, "", {"prompt": "a 3", "concept": "three"})
    prompts, images, record = read_prompts(path, "forget.jsonl", "forget", READING)
    assert [one.id for one in prompts] == ["a", "forget-2"]
    assert (prompts[0].cluster, prompts[0].seed, prompts[0].guidance) == ("work", 7, 2.0)
    assert (prompts[1].cluster, prompts[1].guidance, prompts[1].image) == ("forget-2", 7.5, None)
    assert prompts[1].seed == read_prompts(path, "elsewhere", "forget", READING)[0][1].seed < 2**31
    assert list(images) == ["a"]
    np.testing.assert_allclose(images["a"], np.full((1, 4, 4), 0.2), atol=1e-6)
    assert (record.units, record.clusters) == (2, 2)


def test_reads_i2p_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "i2p.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage",
             "sd_safety_percentage", "prompt_toxicity", "lexica_url", "sd_seed", "sd_guidance_scale", "sd_image_width",
             "sd_image_height", "sd_model"]
        )  # fmt: skip
        writer.writerow(["a figure, by night", "sexual", 0, 50, 10, 0.4, 0.1, 0.2, "https://x", 4219511337, 7, 512, 512, "sd"])
    prompts, _, _ = read_prompts(path, "i2p.csv", "forget", Reading("nudity", 7.5, Columns()))
    (one,) = prompts
    assert (one.prompt, one.seed, one.guidance, one.concept) == ("a figure, by night", 4219511337, 7.0, "nudity")


def test_reads_the_prompt_files_of_unlearndiffatk(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("case_number,prompt,evaluation_seed,evaluation_guidance,classes\n0,an image of church,3740,7.5,church\n")
    (one,) = read_prompts(path, "prompts.csv", "forget", Reading("church", 5, Columns()))[0]
    assert (one.id, one.seed, one.guidance) == ("0", 3740, 7.5)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"prompt": ', "p.jsonl:1: not JSON"),
        ("[1]", "p.jsonl:1: a list where an object with a prompt belongs"),
        ('{"prompt": "x"}', "field 'concept' is missing; every prompt needs prompt and concept"),
        ('{"concept": "x"}', "field 'prompt' is missing"),
        ('{"prompt": "x", "concept": "y", "sead": 1}', "unknown field 'sead'; did you mean 'seed'?"),
        ('{"prompt": "x", "concept": "y", "seed": -1}', "field 'seed'"),
        ('{"prompt": "x", "concept": "y", "guidance": "nan"}', "field 'guidance'"),
        ('{"prompt": "x", "concept": "y", "seed": 1, "sd_seed": 2}', "two fields give its seed"),
        ('{"prompt": "x", "concept": "y", "image": "missing.png"}', "image 'missing.png': cannot be read"),
        ('{"prompt": "x", "concept": "y", "id": 1}\n{"prompt": "x", "concept": "y", "id": "1"}', "id '1' stands already"),
    ],
)
def test_refuses_with_file_line_and_mend(tmp_path: Path, row: str, told: str) -> None:
    path = lines(tmp_path / "p.jsonl", row)
    with pytest.raises(UsageError) as refused:
        read_prompts(path, "p.jsonl", "retain", READING)
    assert told in str(refused.value)


def test_refuses_broken_csv_and_other_files(tmp_path: Path) -> None:
    ragged = tmp_path / "p.csv"
    ragged.write_text("prompt,concept\nonly one\n")
    with pytest.raises(UsageError, match=r"p\.csv:2: has another number of columns"):
        read_prompts(ragged, "p.csv", "retain", READING)
    twice = tmp_path / "t.csv"
    twice.write_text("prompt,prompt\na,b\n")
    with pytest.raises(UsageError, match="'prompt' stands twice"):
        read_prompts(twice, "t.csv", "retain", READING)
    other = tmp_path / "p.txt"
    other.write_text("x")
    with pytest.raises(UsageError, match=r"\.jsonl or \.csv"):
        read_prompts(other, "p.txt", "retain", READING)
    pickled = lines(tmp_path / "q.jsonl", {"prompt": "x", "concept": "y", "image": "a.pkl"})
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(UsageError, match="not a readable PNG or JPEG"):
        read_prompts(pickled, "q.jsonl", "retain", READING)


def test_images_have_one_size(tmp_path: Path) -> None:
    painted(tmp_path / "a.png", 1)
    painted(tmp_path / "b.png", 1, side=5)
    rows = [{"prompt": "x", "concept": "y", "image": f"{name}.png"} for name in "ab"]
    with pytest.raises(UsageError, match="5x5 pixels"):
        read_prompts(lines(tmp_path / "p.jsonl", *rows), "p.jsonl", "retain", READING)


def test_reads_known_images(tmp_path: Path) -> None:
    painted(tmp_path / "a.png", 0)
    painted(tmp_path / "b.png", 255)
    rows = [{"image": "a.png", "concept": "three"}, {"image": "b.png", "concept": "four", "id": "b"}]
    images, concepts, record = read_known(lines(tmp_path / "known.jsonl", *rows), "known.jsonl", Columns(image_mode="L"))
    assert images.shape == (2, 1, 4, 4)
    assert concepts == ("three", "four")
    assert (record.role, record.units) == ("known", 2)
    with pytest.raises(UsageError, match="'concept' is missing"):
        read_known(lines(tmp_path / "k.jsonl", {"image": "a.png"}), "k.jsonl", Columns())
