"""Folders of a testbed's models: each appears only when it is complete, and says what it was made from."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from joblib import Parallel, delayed

from muaudit.errors import UsageError

MARKER = "testbed.json"
"""Stands in every finished folder and holds the key of what it was made from."""

Progress = Callable[[str, bool], None]
"""Told each finished model's name, and whether it was already there."""


class Named(Protocol):
    """A model that is to be built."""

    @property
    def name(self) -> str:
        """Its folder's name."""


Model = TypeVar("Model", bound=Named)


def key_in(folder: Path) -> str | None:
    """The key of what a folder's contents were made from; None where there is no folder.

    Args:
        folder: The folder.

    Raises:
        UsageError: There is a folder of somebody else's in the way.
    """
    if not folder.exists():
        return None
    try:
        return str(json.loads((folder / MARKER).read_bytes())["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: in the way, and not made by `muaudit testbed build`; give another --out") from error


def finished(folder: Path, key: str) -> bool:
    """Whether a folder holds what was made from this key; a stale one is to be replaced.

    Args:
        folder: The folder.
        key: Digest of everything that it depends on.

    Raises:
        UsageError: There is a folder of somebody else's in the way.
    """
    return key_in(folder) == key


@contextmanager
def completed(final: Path, key: str) -> Iterator[Path]:
    """A folder to write into, which becomes the final one when all of it is there.

    Args:
        final: Where it is to be; a stale one is replaced.
        key: Digest of everything that it depends on.

    Yields:
        The folder, not yet made.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".building-") as scratch:
        folder = Path(scratch) / final.name
        yield folder
        (folder / MARKER).write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        if final.exists():
            final.rename(Path(scratch) / "stale")
        folder.rename(final)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread, while it lasts."""
    # Sums over threads differ in the last bits; with one thread a seed gives the same bytes on every run.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def missing(models: Sequence[Model], there: Callable[[Model], bool], progress: Progress | None = None) -> list[Model]:
    """The models that are to be made.

    Args:
        models: All models that are wanted.
        there: Whether one is there already.
        progress: Called for each that is.

    Returns:
        The others, in the order given.
    """
    todo = []
    for model in models:
        if not there(model):
            todo.append(model)
        elif progress:
            progress(model.name, True)
    return todo


def make(models: Sequence[Model], one: Callable[[Model], str], *, processes: int, progress: Progress | None = None) -> None:
    """Makes models that do not need each other, side by side.

    Args:
        models: The models.
        one: Makes one, in a process of its own, and gives its name.
        processes: Most processes at a time; at least one is used.
        progress: Called after each model.
    """
    work = (delayed(one)(model) for model in models)
    for name in Parallel(n_jobs=max(1, min(processes, len(models))), backend="loky", return_as="generator_unordered")(work):
        if progress:
            progress(name, False)
