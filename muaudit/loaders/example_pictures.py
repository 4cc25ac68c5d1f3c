"""Reads pictures: PNG and JPEG, as float32 in [0, 1], channel first; and folders of them."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import UsageError
from muaudit.loaders.example_columns import Columns, Read, bytes_of, first_line, needs_vision

SUFFIXES = (".png", ".jpg", ".jpeg")

_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of more than 8 bits a channel, whose conversion to "L" would clip instead of scale."""


def picture(data: bytes, where: str, columns: Columns) -> NDArray[np.float32]:
    """Decodes one picture.

    Transparency is dropped and the orientation tag is not followed, as torchvision's loader does it, which most classifiers
    were trained with; resizing is bilinear.

    Args:
        data: A PNG or JPEG file's bytes.
        where: What to call it in errors.
        columns: Mode and size.

    Returns:
        [channels, height, width] in [0, 1].

    Raises:
        UsageError: It cannot be decoded.
        EnvironmentFault: Pillow is not installed.
    """
    with needs_vision("reading pictures"):
        from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
                deep = opened.mode in _DEEP
                image = opened.convert(columns.image_mode)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{where}: not a readable PNG or JPEG picture ({first_line(error)}); save it again") from error
    if deep:
        raise UsageError(f"{where}: has more than 8 bits a channel, which would be clipped; save it with 8 bits")
    if columns.image_size is not None:
        height, width = columns.image_size
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return pixels[None] if columns.image_mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def stacked(pictures: list[NDArray[np.float32]], names: list[str]) -> NDArray[np.float32]:
    """Pictures of one size as one array [n, channels, height, width].

    Args:
        pictures: At least one.
        names: What to call each in errors.

    Raises:
        UsageError: Two have different sizes.
    """
    for one, name in zip(pictures, names, strict=True):
        if one.shape != pictures[0].shape:
            sizes = ["x".join(map(str, shape[1:])) for shape in (one.shape, pictures[0].shape)]
            raise UsageError(
                f"{name}: {sizes[0]} pixels, where {names[0]} has {sizes[1]}; models take one size: set image_size = "
                "[height, width] under [task.columns]"
            )
    return np.stack(pictures)


def read_pictures(path: Path, shown: str, role: str, columns: Columns, digest: str) -> Read:
    """Reads an image folder: one folder a class, or pictures with labels.csv.

    Args:
        path: The folder. labels.csv has a column `file` with names relative to it, and label, id, cluster as in any table.
        shown: What to call it in errors.
        role: Which set it is; a picture's id is the set and its name, such as "forget/cat/0001.png", unless labels.csv has ids.
        columns: Mode, size, and what the columns of labels.csv are called.
        digest: The folder's.

    Returns:
        The pictures, sorted by name or in the order of labels.csv.

    Raises:
        UsageError: A picture is missing, unreadable, not listed, or not in a class's folder.
    """
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    names = [file.relative_to(path).as_posix() for file in files]
    if (path / "labels.csv").is_file():
        names.remove("labels.csv")
        return _listed_pictures(path, shown, role, columns, digest, names)
    for name in names:
        if name.count("/") != 1 or not name.lower().endswith(SUFFIXES):
            raise UsageError(
                f"{shown}: {name} is not a picture (.png, .jpg) in the folder of its class; lay the folder out as "
                "class/picture.png, or put labels.csv with the columns file and label into it"
            )
    return Read(
        sha256=digest,
        labels=np.array([name.split("/")[0] for name in names], dtype=np.str_),
        inputs=_load(path, shown, names, columns),
        ids=tuple(f"{role}/{name}" for name in names),
    )


def _hidden(name: Path) -> bool:
    """What desktops leave in folders, such as .DS_Store: part of the digest, never an example."""
    return any(part.startswith(".") for part in name.parts)


def _load(path: Path, shown: str, names: list[str], columns: Columns) -> NDArray[np.float32] | None:
    shown_names = [f"{shown}/{name}" for name in names]
    pictures = [picture(bytes_of(path / name, where), where, columns) for name, where in zip(names, shown_names, strict=True)]
    return stacked(pictures, shown_names) if pictures else None


def _listed_pictures(path: Path, shown: str, role: str, columns: Columns, digest: str, there: list[str]) -> Read:
    from muaudit.loaders.example_tables import parse_table, read_table, texts

    where = f"{shown}/labels.csv"
    table: Any = parse_table(bytes_of(path / "labels.csv", where), ".csv", where, columns)
    if "file" not in table.column_names:
        raise UsageError(f"{where}: no column 'file'; name each picture relative to {shown}, such as 0001.png")
    names = list(texts(table.column("file"), f"{where}: column 'file'"))
    left = set(there)
    for row, name in enumerate(names, start=1):
        if name not in left or not name.lower().endswith(SUFFIXES):
            fault = "is listed twice" if name in there else f"is not a picture (.png, .jpg) in {shown}"
            raise UsageError(f"{where}: row {row}: {name} {fault}; mend the name, or remove the row")
        left.remove(name)
    if left:
        raise UsageError(f"{where}: {min(left)} stands in {shown} but is not listed; list it, or remove it")
    columns = columns.model_copy(update={"features": (), "inputs": None})
    read = read_table(table.drop_columns(["file"]), where, columns, digest)
    return Read(
        sha256=digest,
        labels=read.labels,
        inputs=_load(path, shown, names, columns),
        ids=read.ids or tuple(f"{role}/{name}" for name in names),
        clusters=read.clusters,
        true_labels=read.true_labels,
        attributes=read.attributes,
    )
