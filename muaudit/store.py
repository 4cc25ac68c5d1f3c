"""Content-addressed results on disk: nothing is computed twice, and a killed scan resumes where it was."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from muaudit.results import Frozen

Record = TypeVar("Record", bound=Frozen)


def key_of(**parts: object) -> str:
    """A key from everything that can change a result; equal parts give equal keys in any order.

    Args:
        **parts: JSON values.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside the path and renames, so that a reader finds the whole file or none.

    Args:
        path: Where to; its folder is made.
        data: The whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Store:
    """A folder of records by key.

    Attributes:
        folder: Where the records are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, kind: type[Record]) -> Record | None:
        """Reads a record.

        Args:
            key: From `key_of`.
            kind: What it is.

        Returns:
            The record; None where there is none, or where the file is damaged, which then is computed anew.
        """
        try:
            return kind.model_validate_json(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            return None

    def put(self, key: str, record: Frozen) -> None:
        """Stores a record; a second writer of one key writes the same bytes."""
        write_atomically(self._path(key), record.model_dump_json().encode())

    def sweep(self) -> None:
        """Removes what a killed writer left behind."""
        for leftover in self.folder.glob("*/.*"):
            leftover.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
