"""Content-addressed results on disk: nothing is computed twice, and a killed scan resumes where it was."""

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from muaudit.results import Frozen

Record = TypeVar("Record", bound=Frozen)

_ABANDONED = 3600.0
"""Seconds after which a half-written file has no writer any more."""


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
    # Not tempfile.mkstemp: its files are for their owner alone, and a report is for others to read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
        """Removes what a killed writer left behind; a fresh file may be another process's, in the middle of writing."""
        for leftover in self.folder.glob("*/.*"):
            with suppress(FileNotFoundError):  # its writer was done in this moment
                if time.time() - leftover.stat().st_mtime > _ABANDONED:
                    leftover.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
