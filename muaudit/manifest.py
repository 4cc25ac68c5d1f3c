"""A model's manifest: every file's name and digest, so that no byte and no name can change unnoticed.

The names are part of what is digested because a root over the digests alone does not notice a renamed file, and nothing is
ignored because an edited dot file can change how a model is loaded.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import rfc8785

from muaudit.errors import ModelError
from muaudit.results import FileDigest

ALGORITHM = "sha256"


def manifest(path: Path) -> tuple[FileDigest, ...]:
    """Digests every file of a model.

    Args:
        path: The model's folder, or its only file.

    Returns:
        One entry a file, sorted by name; names are relative to the folder, with forward slashes. A model of one file has
        that file's own name. Empty folders and permissions are not recorded.

    Raises:
        ModelError: There is no file, one cannot be read, its name is not UTF-8, or it is a link or a device: what stands behind
            a link can change without the model's folder changing.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            names = {entry.relative_to(path).as_posix(): entry for entry in _files(path)}
        else:
            names = {path.name: _regular(path)}
        if not names:
            raise ModelError(f"{path}: the folder holds no file; give the folder that holds the model's weights")
        with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter, so shards are hashed side by side
            return tuple(pool.map(_digest, *zip(*sorted(names.items()), strict=True)))
    except OSError as error:
        raise ModelError(
            f"{error.filename or path}: cannot be read: {error.strerror}; every file of a model is digested, so each must be "
            "readable"
        ) from error


def manifest_bytes(files: Iterable[FileDigest]) -> bytes:
    """The manifest as it is digested and signed: RFC 8785 JSON of a list of name, algorithm and digest.

    Args:
        files: The entries, in the order of `manifest`.

    Returns:
        Canonical JSON; saved to a file, `sha256sum` gives the model's digest.
    """
    return rfc8785.dumps(manifest_entries(files))


def manifest_entries(files: Iterable[FileDigest]) -> list[dict[str, str]]:
    """The manifest as plain data.

    Args:
        files: The entries, in the order of `manifest`.

    Returns:
        One dictionary a file, with `name`, `algorithm` and `digest`.
    """
    return [{"name": file.name, "algorithm": ALGORITHM, "digest": file.sha256} for file in files]


def manifest_digest(files: Iterable[FileDigest]) -> str:
    """The digest that identifies a model.

    Args:
        files: The entries, in the order of `manifest`.

    Returns:
        SHA-256 of `manifest_bytes`, in hexadecimal.
    """
    return hashlib.sha256(manifest_bytes(files)).hexdigest()


def content_digest(path: Path) -> str | None:
    """A file's SHA-256, or a folder's manifest digest; None where it cannot be read, which whoever uses it then says."""
    try:
        if path.is_dir():
            return manifest_digest(manifest(path))
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Refuses a model whose files change while it is digested, inspected and opened.

    Args:
        paths: Its folders or files. Their sizes and times are compared, which takes no second reading.

    Raises:
        ModelError: A file was changed, added or taken away meanwhile, or is a link.
    """
    before = {path: _stamps(path) for path in paths}
    yield
    for path, stamps in before.items():
        if changed := sorted(set(stamps.items()) ^ set(_stamps(path).items())):
            raise ModelError(
                f"{path}: {changed[0][0]} changed while it was being opened, so what was opened is not what was digested; "
                "wait until nothing writes into the folder any more"
            )


def _stamps(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Inode, size and times of every file; the time of the inode's change cannot be set back."""
    try:
        files = {one.relative_to(path).as_posix(): one for one in _files(path)} if path.is_dir() else {path.name: path}
        stats = {name: file.lstat() for name, file in files.items()}
    except OSError as error:
        raise ModelError(f"{error.filename or path}: cannot be read: {error.strerror}; copy the whole model again") from error
    return {name: (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in stats.items()}


def _files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _files(path)
            else:
                yield _regular(path)


def _regular(path: Path) -> Path:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise ModelError(
            f"{path}: is a symbolic link, and what it points to can change while the model's folder does not; "
            "copy the model with its links resolved (cp -rL) and give the copy"
        )
    if not stat.S_ISREG(mode):
        raise ModelError(
            f"{path}: is neither a file nor a folder, so there is nothing fixed to digest; remove it from the model"
        )
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{path!r}: its name is not UTF-8 and cannot be written into a manifest; rename it") from error
    return path


def _digest(name: str, path: Path) -> FileDigest:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, ALGORITHM).hexdigest()
        return FileDigest(name=name, sha256=digest, bytes=os.fstat(handle.fileno()).st_size)
