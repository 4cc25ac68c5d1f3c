"""Content-addressed results on disk: nothing is computed twice, and a killed scan resumes where it was."""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from muaudit.errors import EnvironmentFault, StorageFault
from muaudit.frozen import Frozen

Record = TypeVar("Record", bound=Frozen)

LOCK = ".lock"
"""The file by which a scan keeps its folder for itself."""

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

    Raises:
        StorageFault: The disk is full, or the folder cannot be written; what was at the path before is still there.
    """
    # Not tempfile.mkstemp: its files are for their owner alone, and a report is for others to read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageFault.of(path, error) from error
        raise


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps an audit's output folder for this process alone, while it lasts.

    The lock is the operating system's: it goes with the process that holds it, however that ends, so that the file of a
    killed scan is in nobody's way. What the file says is for people.

    Args:
        folder: The folder; it is made.

    Yields:
        Nothing.

    Raises:
        EnvironmentFault: Another process has it.
        StorageFault: The folder cannot be made or written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageFault.of(path, error) from error
    try:
        _lock(descriptor, folder)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            raise StorageFault.of(path, error) from error
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # an operating system without such locks, where two scans in one folder are the user's to avoid
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
        raise EnvironmentFault(
            f"{folder}: another scan is at work there ({holder}); wait until it is done, or give this one another [run] out"
        ) from error


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

    def put(self, key: str, record: Frozen) -> str:
        """Stores a record; a second writer of one key writes the same bytes.

        Args:
            key: From `key_of`.
            record: The record.

        Returns:
            SHA-256 of what was written.

        Raises:
            StorageFault: The disk is full, or the folder cannot be written.
        """
        data = record.model_dump_json().encode()
        write_atomically(self._path(key), data)
        return hashlib.sha256(data).hexdigest()

    def digest(self, key: str) -> str:
        """SHA-256 of what is stored under a key."""
        return hashlib.sha256(self._path(key).read_bytes()).hexdigest()

    def sweep(self) -> None:
        """Removes what a killed writer left behind; a fresh file may be another process's, in the middle of writing."""
        for leftover in self.folder.glob("*/.*"):
            with suppress(OSError):  # its writer was done in this moment, or the folder may only be read
                if time.time() - leftover.stat().st_mtime > _ABANDONED:
                    leftover.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
