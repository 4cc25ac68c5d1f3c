"""What the columns of labelled examples are called, and what every reader of them gives; npz files are read here.

Nothing that is read can run code: npz files without pickled objects, tables through pyarrow, pictures through Pillow's PNG and
JPEG decoders alone.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit.errors import EnvironmentFault, ModelError, UsageError
from muaudit.results import Frozen

Name = Annotated[str, Field(min_length=1)]
Pixels = Annotated[int, Field(ge=1)]

CUSTOM = {
    "inputs": ("inputs", "image"),
    "label": ("label", "labels"),
    "id": ("id", "ids"),
    "cluster": ("cluster", "clusters"),
    "true_label": ("true_label", "true_labels"),
}
"""What the column of each part is called where the configuration does not say."""


MOST_GROWTH, SMALL = 50, 2**28
"""How many times its own size an archive may unpack to, and what it always may."""

# What numpy, zipfile and zlib raise on files that they cannot use; RuntimeError is an encrypted one.
_UNUSABLE = (ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class Columns(Frozen):
    """What the parts of an example are called in the task's files, and how pictures are read.

    A part that is not named here is looked for under its customary names; a part that is named must be there.

    Attributes:
        inputs: Array, list column or picture column that models are shown; "inputs" or "image" by custom. A table without one
            has `features` instead; files with neither hold labels alone, for recorded outputs.
        features: Numeric columns of a table that make up the inputs, in this order; by default all that are nothing else, in
            the file's order.
        label: Class (a number or a name), or number to predict; "label" or "labels" by custom.
        id: Each example's name; "id" or "ids" by custom, and without one its place in the set.
        cluster: What an example stands or falls with, such as the person; "cluster" or "clusters" by custom, and without one
            the id.
        true_label: The class that a poisoned or relabelled example should have had; "true_label" or "true_labels" by custom.
        classes: Names of the classes in the order of the model's outputs; by default all names in the task's files, sorted.
        image_mode: "RGB" (three channels) or "L" (grey, one channel).
        image_size: Height and width that pictures are resized to; without it all must have one size.
    """

    inputs: Name | None = None
    features: tuple[Name, ...] | None = None
    label: Name | None = None
    id: Name | None = None
    cluster: Name | None = None
    true_label: Name | None = None
    classes: tuple[Name, ...] | None = None
    image_mode: Literal["L", "RGB"] = "RGB"
    image_size: tuple[Pixels, Pixels] | None = None


@dataclass(frozen=True)
class Read:
    """One file's columns, n rows, as they stand there.

    Attributes:
        sha256: Digest of the file, or of the folder's manifest.
        labels: Numbers [n] or [n, d], or text [n].
        inputs: float32 [n, ...], or None.
        ids: Text, or None.
        clusters: Text, or None.
        true_labels: Numbers or text [n], or None.
        attributes: Further columns as text.
        features: Names of the columns that the inputs were made of, where they are features.
        classes: Names of the classes by number, where the file tells them.
    """

    sha256: str
    labels: NDArray[Any]
    inputs: NDArray[np.float32] | None = None
    ids: tuple[str, ...] | None = None
    clusters: tuple[str, ...] | None = None
    true_labels: NDArray[Any] | None = None
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    features: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None


@contextmanager
def needs_vision(what: str) -> Iterator[None]:
    """Tells which extra is missing when an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise EnvironmentFault(f"{what} needs {error.name}; install it: pip install 'muaudit[vision]'") from error


def half_character(values: object) -> bool:
    """Whether a text somewhere in JSON values is cut within a character (a lone surrogate), so that it cannot be written."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def bytes_of(path: Path, shown: str) -> bytes:
    """A file's bytes.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read ({error.strerror}); check the path in audit.toml") from error
    except ValueError as error:  # of a byte that no path can have
        raise UsageError(f"{shown}: cannot be read ({error}); mend the name") from error


def pick(part: str, wanted: str | None, names: Iterable[str], shown: str) -> str | None:
    """The column of a part: the one that is named, or the one that is there by custom.

    Args:
        part: Key of `CUSTOM`.
        wanted: The name that was configured.
        names: Names of all columns.
        shown: What to call the file in errors.

    Returns:
        The column's name; None where there is none by custom.

    Raises:
        UsageError: A named column is missing, a label is missing, or two columns have customary names.
    """
    names = list(names)
    custom = CUSTOM[part] if wanted is None else (wanted,)
    there = [name for name in custom if name in names]
    if not there and (wanted is not None or part == "label"):
        missing = " or ".join(map(repr, custom))
        raise UsageError(
            f"{shown}: no column {missing}; it holds {listed(names)}: set {part} to one of them under [task.columns]"
        )
    if len(there) > 1:
        raise UsageError(f"{shown}: {listed(there)} could both be the {part}; set {part} to one of them under [task.columns]")
    return there[0] if there else None


def listed(names: Iterable[str]) -> str:
    """Names in quotes, the first dozen of them."""
    names = [repr(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"


def first_line(error: BaseException) -> str:
    """An error's first line, short enough for one line of a terminal."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def as_inputs(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Numbers as models take them; what float32 cannot hold becomes infinite, which is refused where rows have names.

    Raises:
        UsageError: They are no numbers.
    """
    if array.dtype.kind not in "iubf":
        raise UsageError(f"{where} holds {array.dtype}; inputs are numbers: leave it out, or set inputs to another")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def refuse_bomb(archive: Path | io.BytesIO, shown: str) -> None:
    """Refuses an archive that unpacks to far more than its own size.

    Args:
        archive: A zip file.
        shown: What to call it in errors.

    Raises:
        ModelError: It does.
        zipfile.BadZipFile: It is no archive.
        OSError: It cannot be read.
    """
    with zipfile.ZipFile(archive) as packed:
        size = sum(one.file_size for one in packed.infolist())  # what is read of each part ends there, whatever it holds
    own = archive.stat().st_size if isinstance(archive, Path) else archive.getbuffer().nbytes
    if size > MOST_GROWTH * own + SMALL:
        raise ModelError(f"{shown}: unpacks to {size} bytes, far more than its own size; save it again without compression")


def load_arrays(data: bytes, shown: str) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file; pickled objects are refused.

    Args:
        data: The file's bytes.
        shown: What to call it in errors.

    Returns:
        The arrays by name.

    Raises:
        UsageError: It is no npz file, is damaged, or holds objects.
    """
    try:
        if data.startswith(b"PK"):
            refuse_bomb(io.BytesIO(data), shown)
        file = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = {name: file[name] for name in file.files} if isinstance(file, np.lib.npyio.NpzFile) else None
    except UsageError:
        raise
    except _UNUSABLE as error:
        if "allow_pickle" in str(error):
            raise UsageError(
                f"{shown}: holds pickled Python objects, and a pickle can run code when it is loaded; save arrays of plain "
                "numbers and text with numpy.savez"
            ) from error
        raise UsageError(f"{shown}: not an npz file ({first_line(error)}); write it with numpy.savez") from error
    if arrays is None:
        raise UsageError(f"{shown}: one array without a name; save all arrays together with numpy.savez(file, name=array)")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype.kind not in "USiubf":
            raise UsageError(f"{shown}: {name!r} is no array of numbers or text with one entry an example; leave it out")
    return {name: _decoded(array, f"{shown}: array {name!r}") for name, array in arrays.items()}


def _decoded(array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.dtype.kind != "S":
        return array
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} holds bytes that are not UTF-8; save it as text") from error


def texts_of(array: NDArray[Any], where: str) -> tuple[str, ...]:
    """An array [n] of text or whole numbers as text.

    Raises:
        UsageError: It is another kind of array.
    """
    if array.ndim != 1 or array.dtype.kind not in "Uiub":
        raise UsageError(
            f"{where} is {array.dtype} {list(array.shape)}, and only text and whole numbers, one an example, can stand beside "
            "inputs and labels; name it under [task.columns], or leave it out"
        )
    return tuple(str(value) for value in array.tolist())


def read_arrays(data: bytes, shown: str, columns: Columns) -> Read:
    """Reads an npz file.

    Args:
        data: The file's bytes.
        shown: What to call it in errors.
        columns: What its arrays are called.

    Returns:
        Its arrays; those that no part has taken are attributes.

    Raises:
        UsageError: An array is missing or of another kind.
    """
    arrays = load_arrays(data, shown)
    if columns.features is not None:
        raise UsageError(f"{shown}: features are columns of a table; with an npz file set inputs to the array's name")
    taken = {part: pick(part, getattr(columns, part), arrays, shown) for part in CUSTOM}
    parts = {part: arrays[name] for part, name in taken.items() if name is not None}
    where = {part: f"{shown}: array {name!r}" for part, name in taken.items()}
    return Read(
        sha256=hashlib.sha256(data).hexdigest(),
        labels=parts["label"],
        inputs=as_inputs(parts["inputs"], where["inputs"]) if "inputs" in parts else None,
        ids=texts_of(parts["id"], where["id"]) if "id" in parts else None,
        clusters=texts_of(parts["cluster"], where["cluster"]) if "cluster" in parts else None,
        true_labels=_as_labels(parts.get("true_label"), parts["label"]),
        attributes={
            name: texts_of(array, f"{shown}: array {name!r}") for name, array in arrays.items() if name not in taken.values()
        },
    )


def _as_labels(true_labels: NDArray[Any] | None, labels: NDArray[Any]) -> NDArray[Any] | None:
    """True labels as numbers where the labels are numbers and these are their digits: an attribute's column is text."""
    if true_labels is None or true_labels.dtype.kind != "U" or labels.dtype.kind not in "iu":
        return true_labels
    return true_labels.astype(np.int64) if all(text.isdecimal() for text in true_labels.tolist()) else true_labels
