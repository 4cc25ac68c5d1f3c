"""Reads a task of labelled examples from files: npz, parquet, CSV, image folders, Hugging Face datasets on disk.

Every fault is one line that names the file, the row or column, and the way to mend it; nothing is dropped or guessed.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import ModelError, UsageError
from muaudit.examples import Examples, LabelledTask, Outputs, Set
from muaudit.loaders.example_columns import Columns as Columns  # the task's configuration imports it from here
from muaudit.loaders.example_columns import Read, bytes_of, listed, read_arrays
from muaudit.loaders.example_pictures import read_pictures
from muaudit.loaders.example_tables import parse_table, read_dataset, read_table
from muaudit.manifest import manifest, manifest_digest
from muaudit.results import DataRecord


def read_task(
    forget: Path,
    retain: Path | None = None,
    holdout: Path | None = None,
    *,
    columns: Columns = Columns(),  # noqa: B008 - immutable
    outputs: Outputs = "classes",
    names: Sequence[str] = (),
) -> LabelledTask:
    """Reads the sets of a task.

    Labels that are names become numbers by their place among all names of the three sets, sorted, or in `columns.classes`; the
    names are kept as attribute "class_name". True labels become numbers the same way, in digits, as attribute "true_label".

    Args:
        forget: The forget set's file or folder.
        retain: The retain set's.
        holdout: The holdout set's.
        columns: What the columns are called, and how pictures are read.
        outputs: Whether labels are classes or numbers.
        names: What to call the files in errors and records, in the same order; their paths by default.

    Returns:
        The task; examples without an id are called by set and place, such as "forget-000012", counted from 0.

    Raises:
        UsageError: A file cannot be used, or the sets do not fit together.
        EnvironmentFault: The extra `vision` is not installed.
    """
    given: list[tuple[Set, Path | None]] = [("forget", forget), ("retain", retain), ("holdout", holdout)]
    paths = {role: path for role, path in given if path is not None}
    shown = dict(zip(paths, names or [str(path) for path in paths.values()], strict=True))
    reads = {role: _read(path, shown[role], role, columns) for role, path in paths.items()}
    _refuse_misfits(reads, shown)
    known = None if outputs == "numbers" else _classes(reads, shown, columns)
    sets = {role: _examples(read, role, shown[role], outputs, known) for role, read in reads.items()}
    if "holdout" in sets:
        _refuse_overlap(sets["forget"], sets["holdout"], shown["holdout"])
    nothing = sets["forget"].take([])
    return LabelledTask(
        forget=sets["forget"],
        retain=sets.get("retain", nothing),
        holdout=sets.get("holdout", nothing),
        outputs=outputs,
        records=tuple(_record(sets[role], role, shown[role], reads[role].sha256) for role in sets),
    )


def read_examples(
    path: Path,
    role: Set,
    name: str,
    columns: Columns = Columns(),  # noqa: B008 - immutable
    outputs: Outputs = "classes",
) -> tuple[Examples, DataRecord]:
    """Reads one set alone, as `read_task` reads three.

    Args:
        path: Its file or folder.
        role: Which set it is.
        name: What to call the file in errors and in the record.
        columns: What the columns are called; class names of one set alone are numbered among themselves.
        outputs: Whether labels are classes or numbers.

    Returns:
        The examples, and the file's record.

    Raises:
        UsageError: The file cannot be used.
        EnvironmentFault: The extra `vision` is not installed.
    """
    read = _read(path, name, role, columns)
    known = None if outputs == "numbers" else _classes({role: read}, {role: name}, columns)
    examples = _examples(read, role, name, outputs, known)
    return examples, _record(examples, role, name, read.sha256)


def _record(examples: Examples, role: Set, name: str, sha256: str) -> DataRecord:
    return DataRecord(role=role, path=name, sha256=sha256, units=len(examples), clusters=len(set(examples.clusters)))


def _read(path: Path, shown: str, role: Set, columns: Columns) -> Read:
    """Reads one file or folder by its kind, and checks what can be checked of it alone."""
    if path.is_dir():
        digest = _folder_digest(path, shown)
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
            read = read_dataset(path, shown, columns, digest)
        else:
            read = read_pictures(path, shown, role, columns, digest)
    else:
        data = bytes_of(path, shown)
        if path.suffix == ".npz":
            read = read_arrays(data, shown, columns)
        elif path.suffix in (".parquet", ".csv"):
            table = parse_table(data, path.suffix, shown, columns)
            read = read_table(table, shown, columns, hashlib.sha256(data).hexdigest())
        else:
            raise UsageError(
                f"{shown}: not a kind of file that examples are read from; give .npz, .parquet or .csv, an image folder, or a "
                "folder that Hugging Face datasets wrote with save_to_disk"
            )
    _refuse_faults(read, role, shown)
    return read


def _folder_digest(path: Path, shown: str) -> str:
    if links := sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink()):
        raise UsageError(
            f"{shown}: {links[0]} is a symbolic link, and what it points to can change while the folder does not; copy the "
            "folder with its links resolved (cp -rL) and give the copy"
        )
    try:
        return manifest_digest(manifest(path))
    except ModelError as error:
        raise UsageError(f"{shown}: cannot be digested ({error})") from error


def _refuse_faults(read: Read, role: Set, shown: str) -> None:
    """What no set may have: no rows, columns of different lengths, an id twice, NaN."""
    count = len(read.labels)
    if not count:
        mend = "" if role == "forget" else ", or leave the key out"
        raise UsageError(f"{shown}: the {role} set is empty: give at least one example{mend}")
    columns = {"inputs": read.inputs, "ids": read.ids, "clusters": read.clusters, "true labels": read.true_labels}
    for name, column in {**columns, **{repr(name): column for name, column in read.attributes.items()}}.items():
        if column is not None and len(column) != count:
            raise UsageError(f"{shown}: {count} labels, but {len(column)} {name}; every column needs one entry an example")
    seen: dict[str, int] = {}
    for row, one in enumerate(read.ids or (), start=1):
        if not one or one in seen:
            fault = f"stands already in row {seen[one]}" if one else "is empty"
            raise UsageError(f"{shown}: row {row}: id {one!r} {fault}; give every example an id of its own")
        seen[one] = row
    if "" in (read.clusters or ()):
        raise UsageError(f"{shown}: row {(read.clusters or ()).index('') + 1} has no cluster; fill it in")
    for what, array in (("inputs", read.inputs), ("label", read.labels), ("true label", read.true_labels)):
        if array is not None and array.dtype.kind == "f":
            bad = ~np.isfinite(array).reshape(count, -1).all(axis=1)
            if bad.any():
                raise UsageError(
                    f"{shown}: row {int(bad.argmax()) + 1}: the {what} {'hold' if what == 'inputs' else 'is'} NaN, or a number "
                    "too large for float32; mend or remove the example"
                )


def _refuse_misfits(reads: Mapping[Set, Read], shown: Mapping[Set, str]) -> None:
    """Refuses sets that no model could be shown alike."""
    first = reads["forget"]
    for role, read in reads.items():
        here = f"{shown[role]}: the {role} set"
        if (read.inputs is None) != (first.inputs is None):
            raise UsageError(f"{here} has {_have(read)}, and the forget set has {_have(first)}; give all sets inputs, or none")
        if read.features != first.features:
            odd = sorted(set(read.features or ()) ^ set(first.features or ()))
            what = f"other features than the forget set ({listed(odd)})" if odd else "its features in another order"
            raise UsageError(f"{here} has {what}; set features under [task.columns] to those that the models were trained on")
        if read.inputs is not None and first.inputs is not None and read.inputs.shape[1:] != first.inputs.shape[1:]:
            shapes = [list(one.inputs.shape[1:]) for one in (read, first) if one.inputs is not None]
            raise UsageError(f"{here} has inputs of shape {shapes[0]}, and the forget set of {shapes[1]}; all need one shape")


def _have(read: Read) -> str:
    return "no inputs" if read.inputs is None else "inputs"


def _classes(reads: Mapping[Set, Read], shown: Mapping[Set, str], columns: Columns) -> tuple[str, ...] | None:
    """Names of the classes by number; None where labels are numbers without names."""
    if columns.classes is not None and len(set(columns.classes)) < len(columns.classes):
        raise UsageError(
            "classes under [task.columns] names a class twice; name each once, in the order of the model's outputs"
        )
    labels = {role: [one for one in (read.labels, read.true_labels) if one is not None] for role, read in reads.items()}
    kinds = {role: {array.dtype.kind == "U" for array in arrays} for role, arrays in labels.items()}
    if len(set().union(*kinds.values())) == 2:
        role = next(role for role, kind in kinds.items() if True in kind)
        raise UsageError(
            f"{shown[role]}: labels are names here, and numbers elsewhere in the task; write all as names, or all as numbers"
        )
    if True not in set().union(*kinds.values()):
        told = {read.classes for read in reads.values() if read.classes is not None}
        if columns.classes is None and len(told) > 1:
            raise UsageError("the sets' files number their classes differently; save them with one list of class names")
        return columns.classes or next(iter(told), None)
    if columns.classes is not None:
        return columns.classes
    names = sorted({str(name) for arrays in labels.values() for array in arrays for name in array.ravel().tolist()})
    if all(re.fullmatch("[0-9]+", name) for name in names) and names != [str(place) for place in range(len(names))]:
        raise UsageError(
            f"the classes are named {listed(names)}, and sorting would number them otherwise; set classes under [task.columns] "
            "to all names in the order of the model's outputs"
        )
    return tuple(names)


def _numbered(labels: NDArray[Any], known: tuple[str, ...] | None, shown: str, what: str) -> NDArray[np.int64]:
    """Labels as numbers of classes."""
    if labels.ndim != 1:
        raise UsageError(
            f"{shown}: {what}s of shape {list(labels.shape)}; give one class an example, not a code of several numbers"
        )
    if labels.dtype.kind == "U":
        places = {name: place for place, name in enumerate(known or ())}
        if (odd := next((row for row, name in enumerate(labels.tolist()) if name not in places), None)) is not None:
            raise UsageError(
                f"{shown}: row {odd + 1}: {what} {str(labels[odd])!r} is not among the classes {listed(known or ())}; add it"
            )
        return np.array([places[name] for name in labels.tolist()], dtype=np.int64)
    numbers = labels.astype(np.int64)
    wrong = (numbers != labels) | (numbers < 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise UsageError(
            f"{shown}: row {row + 1}: {what} {labels[row]} is no class; number the classes 0, 1, 2, ..., or use a task of kind "
            '"regression"'
        )
    if known is not None and numbers.max() >= len(known):
        row = int(numbers.argmax())
        raise UsageError(
            f"{shown}: row {row + 1}: {what} {numbers[row]} has no name; classes names {len(known)}, numbered from 0"
        )
    return numbers


def _examples(read: Read, role: Set, shown: str, outputs: Outputs, known: tuple[str, ...] | None) -> Examples:
    """One set with default ids and clusters, and labels as models take them."""
    attributes = dict(read.attributes)
    labels: NDArray[Any]
    if outputs == "numbers":
        if read.labels.dtype.kind == "U" or read.labels.ndim > 2:
            raise UsageError(
                f"{shown}: labels are {read.labels.dtype} {list(read.labels.shape)}; regression needs numbers, [n] or [n, d]"
            )
        labels = read.labels.astype(np.float64).reshape(len(read.labels), -1)
        if read.true_labels is not None:
            attributes["true_label"] = tuple(str(value) for value in read.true_labels.tolist())
    else:
        labels = _numbered(read.labels, known, shown, "label")
        if known is not None:
            attributes.setdefault("class_name", tuple(known[place] for place in labels))
        if read.true_labels is not None:
            attributes["true_label"] = tuple(map(str, _numbered(read.true_labels, known, shown, "true label")))
    ids = read.ids or tuple(f"{role}-{place:06d}" for place in range(len(labels)))
    return Examples(ids=ids, clusters=read.clusters or ids, labels=labels, inputs=read.inputs, attributes=attributes)


def _refuse_overlap(forget: Examples, holdout: Examples, name: str) -> None:
    """A holdout example that is also a forget example would pass for never seen."""
    if forget.inputs is None or holdout.inputs is None:
        return
    twins = {_content(forget, forget.inputs, row): one for row, one in enumerate(forget.ids)}
    for row, one in enumerate(holdout.ids):
        if twin := twins.get(_content(holdout, holdout.inputs, row)):
            raise UsageError(
                f"{name}: holdout example {one!r} repeats forget example {twin!r} (same inputs and label); the holdout set "
                "must hold what no model saw: remove it"
            )


def _content(examples: Examples, inputs: NDArray[np.float32], row: int) -> bytes:
    return hashlib.sha256(inputs[row].tobytes() + examples.labels[row].tobytes()).digest()
