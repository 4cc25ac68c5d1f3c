"""Reads the header of a safetensors file, and looks for NaN in its numbers, before any library opens it.

The header is a little-endian 64-bit length and that many bytes of JSON; the numbers follow
(https://huggingface.co/docs/safetensors). Nothing here allocates by what a header claims.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import ModelError

MOST_HEADER_BYTES = 100_000_000
"""Longest header, as in the safetensors library itself."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
    "C64": 64,
}  # fmt: skip
"""Width of a number, by the format's names of types."""

_EXPONENTS: dict[str, tuple[str, int]] = {
    "F8_E5M2": ("<u1", 0x7C), "F8_E4M3": ("<u1", 0x7F), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000), "C64": ("<u4", 0x7F80_0000), "F64": ("<u8", 0x7FF0_0000_0000_0000),
}  # fmt: skip
"""Unsigned type of each type's bits, and the bits that are all set in NaN and infinity alone (in E4M3, which has none, NaN)."""

_OTHERS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How archives and pickles start."""

_CHUNK = 2**24
_MEND = "save the model again with save_pretrained, or copy the file again"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        dtype: Its type, by the format's name, such as "F32" or "BF16".
        shape: Its shape; () is one number.
        start: Where its bytes start, from the end of the header.
        stop: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Stored]:
    """Reads which tensors a safetensors file holds, and checks that they fill it without gap or overlap.

    Args:
        path: The file.

    Returns:
        The tensors by name, in the file's order.

    Raises:
        ModelError: It cannot be read, or is not safetensors: a pickle or an archive under that name, a header longer than the
            file, a name that stands twice, bytes that are none's, several tensors' or outside of the file, or a shape that
            does not have as many numbers.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); copy the whole model again") from error


def _header(file: BinaryIO, path: Path) -> dict[str, Stored]:
    size = file.seek(0, 2)
    file.seek(0)
    start, brace = file.read(8), file.read(1)
    if start.startswith(_OTHERS) and brace != b"{":  # a header of 640 bytes starts with the same two
        raise ModelError(
            f"{path}: is a pickle or an archive under the name of safetensors, and a pickle can run code when it is loaded; "
            "save the weights as safetensors with save_pretrained(..., safe_serialization=True)"
        )
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ModelError(f"{path}: is cut short, or no safetensors file (it has {size} bytes); {_MEND}")
    if length > MOST_HEADER_BYTES:
        raise ModelError(f"{path}: its header claims {length} bytes, and the format allows {MOST_HEADER_BYTES}; {_MEND}")
    try:
        values = json.loads((brace + file.read(length))[:length].decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its header is not JSON ({told(error)}); {_MEND}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: its header is no JSON object; {_MEND}")
    notes = values.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ModelError(f"{path}: its header's __metadata__ is not text by name; {_MEND}")
    found = {name: _stored(path, name, entry) for name, entry in values.items()}
    _refuse_gaps(path, found, size - 8 - length)
    return found


def _stored(path: Path, name: str, entry: object) -> Stored:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where} is not described by exactly dtype, shape and data_offsets; {_MEND}")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ModelError(f"{where} is of type {str(dtype)[:40]!r}, which safetensors does not have; {_MEND}")
    if not _counts(shape) or not _counts(place) or len(place) != 2 or len(shape) > 64:
        raise ModelError(f"{where} has a shape or offsets that are not whole numbers from 0 on; {_MEND}")
    start, stop = place
    if prod(shape) * _BITS[dtype] != (stop - start) * 8:
        raise ModelError(f"{where} of {dtype} {shape} does not fill its {stop - start} bytes; {_MEND}")
    return Stored(dtype, tuple(shape), start, stop)


def _counts(values: object) -> bool:
    # JSON's true is 1 to Python, and no number; beyond 64 bits nothing can be stored.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _refuse_gaps(path: Path, found: Mapping[str, Stored], size: int) -> None:
    order = sorted(found.items(), key=lambda item: (item[1].start, item[1].stop))
    edges = [("the start of the numbers", 0, 0), *((name, one.start, one.stop) for name, one in order)]
    for (_, _, stop), (name, start, _) in pairwise(edges):
        if start != stop:
            fault = "shares bytes with another" if start < stop else "leaves bytes before it that are none's"
            raise ModelError(f"{path}: tensor {name[:200]!r} {fault}; {_MEND}")
    if (last := edges[-1])[2] != size:
        fault = "lies outside of the file" if last[2] > size else "is followed by bytes that are none's"
        raise ModelError(f"{path}: tensor {last[0][:200]!r} {fault}; {_MEND}")


def refuse_nan(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Refuses weights that are no numbers; the file is read once, in parts.

    Args:
        path: The safetensors file.
        tensors: What `read_header` gave of it.

    Raises:
        ModelError: A floating-point weight is NaN or infinite, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offset = 8 + int.from_bytes(file.read(8), "little")
            for name, one in tensors.items():
                if one.dtype in _EXPONENTS and any(_odd(bits, one.dtype) for bits in _bits(file, one, offset)):
                    raise ModelError(
                        f"{path}: weight {name[:200]} holds NaN or infinity; the training diverged, or the file is damaged"
                    )
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); copy the whole model again") from error


def _bits(file: BinaryIO, one: Stored, offset: int) -> Iterator[NDArray[Any]]:
    kind = np.dtype(_EXPONENTS[one.dtype][0])
    file.seek(offset + one.start)
    left = one.stop - one.start
    while left > 0 and (part := file.read(min(left, _CHUNK))):
        left -= len(part)
        yield np.frombuffer(part, kind, len(part) // kind.itemsize)


def _odd(bits: NDArray[Any], dtype: str) -> bool:
    mask = bits.dtype.type(_EXPONENTS[dtype][1])
    return bool(((bits & mask) == mask).any())


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose keys stands once: of two, readers differ on which counts.

    Raises:
        ValueError: A key stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:100]!r} stands twice")
    return found


def told(error: BaseException) -> str:
    """An error in one short line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."
