"""Reads files of prompts for image generators, JSON Lines or CSV, with the images that they name.

The columns of I2P (Schramowski et al. 2023) and of UnlearnDiffAtk's prompt files are understood as they are.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from muaudit.errors import UsageError
from muaudit.image_task import ImagePrompt, Set
from muaudit.loaders.example_columns import Columns, half_character
from muaudit.loaders.example_pictures import picture, stacked
from muaudit.results import DataRecord

Images = NDArray[np.float32]
Rows = list[tuple[str, dict[str, Any]]]

FIELDS = {
    "id": ("id", "case_number"),
    "cluster": ("cluster",),
    "prompt": ("prompt",),
    "concept": ("concept",),
    "kind": ("kind",),
    "seed": ("seed", "sd_seed", "evaluation_seed"),
    "guidance": ("guidance", "sd_guidance_scale", "evaluation_guidance"),
    "image": ("image",),
}
"""What the field of each part is called: here, in I2P, and in UnlearnDiffAtk's files."""

UNUSED = frozenset(
    {
        "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "sd_safety_percentage",
        "prompt_toxicity", "lexica_url", "sd_image_width", "sd_image_height", "sd_model", "classes", "",
    }
)  # fmt: skip
"""Columns of those files that describe a prompt and change nothing here, where every image has the pipelines' own size."""


@dataclass(frozen=True)
class Reading:
    """How files of prompts are read.

    Attributes:
        concept: What a forget prompt asks for where its file does not say.
        guidance: Scale of guidance where a file does not say.
        columns: Mode and size of images.
    """

    concept: str | None
    guidance: float
    columns: Columns


def read_prompts(
    path: Path, shown: str, role: Set, reading: Reading
) -> tuple[tuple[ImagePrompt, ...], dict[str, Images], DataRecord]:
    """Reads one set.

    Args:
        path: A .jsonl or .csv file; images that it names start from its folder.
        shown: What to call it in errors and records.
        role: Which set it is.
        reading: How.

    Returns:
        The prompts, the images by prompt id, and the file's record. A prompt without an id is called by its line, one without
        a seed gets one from its id.

    Raises:
        UsageError: The file cannot be used; the message names file, line, field and mend.
    """
    data = _bytes(path, shown)
    prompts: list[ImagePrompt] = []
    seen: dict[str, str] = {}
    for number, (where, values) in enumerate(_rows(data, path, shown), start=1):
        parts = _parts(values, where)
        parts.setdefault("id", f"{role}-{number}")
        parts["id"] = str(parts["id"])
        if parts["id"] in seen:
            raise UsageError(f"{where}: id {parts['id']!r} stands already at {seen[parts['id']]}; give every prompt its own")
        seen[parts["id"]] = where
        parts.setdefault("cluster", parts["id"])
        parts.setdefault("guidance", reading.guidance)
        parts.setdefault("seed", int.from_bytes(hashlib.sha256(parts["id"].encode()).digest()[:4], "big") >> 1)
        if role == "forget" and reading.concept is not None:
            parts.setdefault("concept", reading.concept)
        prompts.append(_prompt(parts, where, role))
    named = [(one.id, one.image) for one in prompts if one.image is not None]
    images = _images(named, path.parent, shown, reading.columns)
    record = DataRecord(
        role=role, path=shown, sha256=hashlib.sha256(data).hexdigest(), units=len(prompts),
        clusters=len({one.cluster for one in prompts}),
    )  # fmt: skip
    return tuple(prompts), images, record


def read_known(path: Path, shown: str, columns: Columns) -> tuple[Images, tuple[str, ...], DataRecord]:
    """Reads images whose concept is known, by which the evaluators' errors are measured.

    Args:
        path: A .jsonl or .csv file of `image` and `concept`, and `id` if you like; images start from its folder.
        shown: What to call it in errors and records.
        columns: Mode and size of images.

    Returns:
        Images [n, channels, height, width] in [0, 1], the concept of each, and the file's record.

    Raises:
        UsageError: The file cannot be used.
    """
    data = _bytes(path, shown)
    named, concepts = [], []
    for where, values in _rows(data, path, shown):
        if odd := sorted(set(values) - {"id", "image", "concept"}):
            raise UsageError(f"{where}: unknown field {odd[0]!r}; known images have image and concept, and id if you like")
        for field in ("image", "concept"):
            if not isinstance(values.get(field), str) or not values[field]:
                raise UsageError(f"{where}: field {field!r} is missing; every known image needs image and concept")
        named.append((where, values["image"]))
        concepts.append(values["concept"])
    if not named:
        raise UsageError(f"{shown}: there is no known image in it; give some, or leave `known` out")
    images = _images(named, path.parent, shown, columns)
    record = DataRecord(
        role="known", path=shown, sha256=hashlib.sha256(data).hexdigest(), units=len(named), clusters=len(set(concepts))
    )
    return np.stack(list(images.values())), tuple(concepts), record


def _bytes(path: Path, shown: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read ({error.strerror}); check the path under [task] in audit.toml") from error
    except ValueError as error:  # of a byte that no path can have
        raise UsageError(f"{shown}: cannot be read ({error}); mend the name") from error


def _rows(data: bytes, path: Path, shown: str) -> Rows:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown}: not UTF-8 (byte {error.start}: {error.reason}); save the file as UTF-8") from error
    if path.suffix == ".jsonl":
        return list(_json_rows(text, shown))
    if path.suffix == ".csv":
        return list(_csv_rows(text, shown))
    raise UsageError(f"{shown}: prompts are read from .jsonl or .csv files; save it as one of them")


def _json_rows(text: str, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{shown}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: not JSON (column {error.colno}: {error.msg}); write one object a line") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: {error}; write one object a line") from error
        if not isinstance(values, dict):
            raise UsageError(f"{where}: a {type(values).__name__} where an object with a prompt belongs")
        if half_character(values):
            raise UsageError(f"{where}: holds half a character (\\ud800 to \\udfff alone); write whole characters")
        yield where, {name: value for name, value in values.items() if value is not None}


def _csv_rows(text: str, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        names = list(reader.fieldnames or ())
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise UsageError(f"{shown}: column {twice!r} stands twice; give every column a name of its own")
        for values in reader:
            where = f"{shown}:{reader.line_num}"
            if None in values or None in values.values():
                raise UsageError(f"{where}: has another number of columns than the first line; mend the line")
            yield where, {name: value for name, value in values.items() if value != ""}
    except csv.Error as error:
        raise UsageError(f"{shown}: not CSV ({error}); save it again") from error


def _parts(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A row's fields under our names."""
    known = {alias: part for part, aliases in FIELDS.items() for alias in aliases}
    parts: dict[str, Any] = {}
    for name, value in values.items():
        if name in UNUSED:
            continue
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FIELDS)}; take the column out"
            raise UsageError(f"{where}: unknown field {name!r}; {hint}")
        if known[name] in parts:
            raise UsageError(f"{where}: two fields give its {known[name]} ({name!r} is one); leave one out")
        parts[known[name]] = value
    return parts


def _prompt(parts: dict[str, Any], where: str, role: Set) -> ImagePrompt:
    missing = "every prompt needs prompt and concept" + (
        ' (or [task] concept = "..." for the forget set)' if role == "forget" else ""
    )
    try:
        return ImagePrompt.model_validate(parts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        if first["type"] == "missing":
            raise UsageError(f"{where}: field {field!r} is missing; {missing}") from error
        found = json.dumps(first["input"], default=str)[:60]
        raise UsageError(f"{where}: field {field!r}: {first['msg']}; found {found}") from error


def _images(named: Sequence[tuple[str, str]], folder: Path, shown: str, columns: Columns) -> dict[str, Images]:
    """The named images, all of one size."""
    names: Iterable[str] = [f"{shown}: image {name!r}" for _, name in named]
    read = [picture(_bytes(folder / name, told), told, columns) for (_, name), told in zip(named, names, strict=True)]
    return dict(zip([key for key, _ in named], stacked(read, list(names)), strict=True)) if read else {}
