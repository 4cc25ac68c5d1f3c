"""Reads tables of labelled examples: parquet, CSV, and what Hugging Face datasets wrote to disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muaudit.errors import UsageError
from muaudit.loaders.example_columns import (
    CUSTOM,
    MOST_GROWTH,
    SMALL,
    Columns,
    Read,
    as_inputs,
    bytes_of,
    first_line,
    listed,
    needs_vision,
    pick,
)
from muaudit.loaders.example_pictures import picture, stacked


def parse_table(data: bytes, suffix: str, shown: str, columns: Columns) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """Parses a table.

    Args:
        data: The file's bytes.
        suffix: ".parquet" or ".csv".
        shown: What to call it in errors.
        columns: Its ids and clusters are text whatever they look like: "007" is not 7.

    Returns:
        A pyarrow.Table.

    Raises:
        UsageError: It cannot be parsed, or two columns have one name.
        EnvironmentFault: pyarrow is not installed.
    """
    with needs_vision(f"reading {suffix} files"):
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet
    words = {"file", *CUSTOM["id"], *CUSTOM["cluster"], *filter(None, (columns.id, columns.cluster))}
    try:
        if suffix == ".csv":
            options = pa.csv.ConvertOptions(column_types={name: pa.string() for name in sorted(words)})
            table = pa.csv.read_csv(pa.BufferReader(data), convert_options=options)
        else:
            held = pa.parquet.read_metadata(pa.BufferReader(data))
            if held.num_rows * held.num_columns * 8 > MOST_GROWTH * len(data) + SMALL:
                raise UsageError(f"{shown}: unpacks to {held.num_rows} rows, far more than its own size; save it again")
            table = pa.parquet.read_table(pa.BufferReader(data))
        table.validate(full=True)  # text that is not UTF-8, offsets that point elsewhere
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown}: cannot be read as {suffix[1:]} ({first_line(error)}); mend the file") from error
    if odd := next((name for name in names if "\0" in name), None):
        raise UsageError(f"{shown}: column {odd!r} has a NUL in its name; rename it")
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise UsageError(f"{shown}: column {twice!r} stands twice; give every column a name of its own")
    return table


def read_table(
    table: Any,  # noqa: ANN401 - pyarrow is untyped
    shown: str,
    columns: Columns,
    digest: str,
    classes: tuple[str, ...] | None = None,
) -> Read:
    """Tells a table's columns apart: label, id, cluster, true label; inputs or features; what is left is text.

    Args:
        table: A pyarrow.Table.
        shown: What to call it in errors.
        columns: What its columns are called.
        digest: The file's.
        classes: Names of the classes by number, where the file tells them.

    Returns:
        Its columns.

    Raises:
        UsageError: A column is missing, ragged, has gaps, or is of a type that cannot be used.
    """
    names = table.column_names
    taken = {part: pick(part, getattr(columns, part), names, shown) for part in CUSTOM if part != "inputs"}
    left = [name for name in names if name not in taken.values()]
    inputs, features = _inputs(table, left, shown, columns)
    parts = {part: (table.column(name), f"{shown}: column {name!r}") for part, name in taken.items() if name is not None}
    shown_to_models = None
    if inputs is not None:
        shown_to_models = numbers(table.column(inputs), f"{shown}: column {inputs!r}", columns)
    elif features:
        one_by_one = [numbers(table.column(name), f"{shown}: column {name!r}", columns) for name in features]
        shown_to_models = np.stack(one_by_one, axis=1)
    return Read(
        sha256=digest,
        labels=_labels(*parts["label"]),
        inputs=None if shown_to_models is None else as_inputs(shown_to_models, shown),
        ids=texts(*parts["id"]) if "id" in parts else None,
        clusters=texts(*parts["cluster"]) if "cluster" in parts else None,
        true_labels=_labels(*parts["true_label"]) if "true_label" in parts else None,
        attributes={
            name: texts(table.column(name), f"{shown}: column {name!r}", gaps=True)
            for name in left
            if name not in (inputs, *(features or ()))
        },
        features=features or None,
        classes=classes,
    )


def _inputs(
    table: Any,  # noqa: ANN401 - pyarrow is untyped
    left: Sequence[str],
    shown: str,
    columns: Columns,
) -> tuple[str | None, tuple[str, ...] | None]:
    """The column of inputs, or else the columns that are features."""
    if columns.inputs is not None and columns.features:
        raise UsageError(
            f"{shown}: inputs and features are both set under [task.columns], and models are shown one; leave one out"
        )
    if columns.features is not None:
        if missing := [name for name in columns.features if name not in left]:
            raise UsageError(
                f"{shown}: no column {missing[0]!r} for features; it holds {listed(left)} beside label and id: mend "
                "features under [task.columns]"
            )
        return None, columns.features
    kinds = {name: _kind(table.schema.field(name).type) for name in left}
    whole = [name for name in left if kinds[name] in ("list", "picture")]
    inputs = pick("inputs", columns.inputs, [name for name in left if columns.inputs == name or name in whole], shown)
    if inputs is not None:
        return inputs, None
    if len(whole) > 1:
        raise UsageError(
            f"{shown}: columns {listed(whole)} could all be the inputs; set inputs to one of them under [task.columns]"
        )
    return (whole[0], None) if whole else (None, tuple(name for name in left if kinds[name] == "number"))


def _kind(type_: Any) -> str:  # noqa: ANN401 - pyarrow is untyped
    from pyarrow import types

    if (storage := getattr(type_, "storage_type", None)) is not None:
        return _kind(storage)
    if types.is_boolean(type_) or types.is_integer(type_) or types.is_floating(type_):
        return "number"
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return "list"
    if types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        return "picture"
    return "text" if not types.is_nested(type_) and not types.is_binary(type_) and not types.is_large_binary(type_) else "other"


def numbers(column: Any, where: str, columns: Columns) -> NDArray[Any]:  # noqa: ANN401 - pyarrow is untyped
    """A column of numbers, of equally long lists of numbers, or of pictures.

    Args:
        column: A pyarrow array.
        where: What to call it in errors.
        columns: How pictures are read.

    Returns:
        An array [n, ...].

    Raises:
        UsageError: Ragged lists, gaps, pictures that are not in the file, or no numbers at all.
    """
    column = _plain(column)
    kind = _kind(column.type)
    if kind == "picture":
        return _pictures(column, where, columns)
    if kind not in ("number", "list"):
        raise UsageError(f"{where} holds {column.type}, and no numbers; leave it out, or turn it into numbers")
    import pyarrow.compute as pc

    shape, rows = [len(column)], len(column)
    while _kind(column.type) == "list":
        _refuse_gaps(column, where, rows)
        lengths = np.asarray(pc.list_value_length(column))
        if (odd := np.flatnonzero(lengths != lengths[:1])).size:
            per_row = len(lengths) // rows
            raise UsageError(
                f"{where}: row {odd[0] // per_row + 1} has a list of {lengths[odd[0]]}, where row 1 has {lengths[0]}; all "
                "inputs need one shape"
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        column = _plain(column.flatten())
    if _kind(column.type) != "number":
        raise UsageError(f"{where} holds lists of {column.type}, and no numbers; leave it out, or turn it into numbers")
    _refuse_gaps(column, where, rows)
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


def _plain(column: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
    """One array instead of chunks, without the extension type that Hugging Face datasets puts around fixed shapes."""
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    return getattr(column, "storage", column)


def _refuse_gaps(column: Any, where: str, rows: int) -> None:  # noqa: ANN401 - pyarrow is untyped
    if column.null_count:
        place = int(np.flatnonzero(np.asarray(column.is_null().to_numpy(zero_copy_only=False)))[0])
        raise UsageError(
            f"{where}: row {place // max(1, len(column) // rows) + 1} has no value; fill it in, or remove the example"
        )


def _pictures(column: Any, where: str, columns: Columns) -> NDArray[np.float32]:  # noqa: ANN401 - pyarrow is untyped
    """Decodes pictures whose bytes stand in the column; one that stands elsewhere could change, or be fetched from anywhere."""
    pictures, names = [], [f"{where}: row {row}" for row in range(1, len(column) + 1)]
    for data, name in zip(column.field("bytes").to_pylist(), names, strict=True):
        if not data:
            raise UsageError(f"{name}: the picture itself is not in the file, only its path or nothing; save it with its bytes")
        pictures.append(picture(data, name, columns))
    return stacked(pictures, names) if pictures else np.zeros((0, 1, 1, 1), np.float32)


def texts(column: Any, where: str, *, gaps: bool = False) -> tuple[str, ...]:  # noqa: ANN401 - pyarrow is untyped
    """A column as text.

    Args:
        column: A pyarrow array.
        where: What to call it in errors.
        gaps: Whether a missing value is an empty text instead of an error.

    Returns:
        One text a row.

    Raises:
        UsageError: A value is missing, or the column holds neither text nor numbers nor dates.
    """
    column = _plain(column)
    if _kind(column.type) not in ("text", "number"):
        raise UsageError(f"{where} holds {column.type}, which is neither inputs nor text; leave it out, or set inputs to it")
    if not gaps:
        _refuse_gaps(column, where, len(column))
    return tuple("" if value is None else str(value) for value in column.to_pylist())


def _labels(column: Any, where: str) -> NDArray[Any]:  # noqa: ANN401 - pyarrow is untyped
    column = _plain(column)
    if _kind(column.type) == "text":
        return np.array(texts(column, where), dtype=np.str_)
    return numbers(column, where, Columns())


def read_dataset(path: Path, shown: str, columns: Columns, digest: str) -> Read:
    """Reads a folder that Hugging Face datasets wrote with `save_to_disk`; none of its code is run and nothing is fetched.

    Args:
        path: The folder of one split.
        shown: What to call it in errors.
        columns: What its columns are called.
        digest: The folder's.

    Returns:
        Its columns.

    Raises:
        UsageError: It holds several splits, points outside of itself, or cannot be read.
        EnvironmentFault: datasets is not installed.
    """
    if (path / "dataset_dict.json").is_file():
        raise UsageError(f"{shown}: holds several splits; give the folder of one of them, such as {shown}/train")
    try:
        state = json.loads(bytes_of(path / "state.json", f"{shown}/state.json"))
        parts = [str(part["filename"]) for part in state["_data_files"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{shown}/state.json: not what save_to_disk writes ({first_line(error)}); save it again") from error
    # An absolute name, or one with "..", would read a file that is not in the folder's digest.
    if outside := [part for part in parts if Path(part).name != part or not (path / part).is_file()]:
        raise UsageError(f"{shown}: {outside[0]} is not a file of this folder; copy the whole folder")
    with needs_vision("reading a dataset from disk"):
        import datasets
        import pyarrow as pa
    try:
        table, label, features = _rows(datasets.load_from_disk(str(path)), shown, columns)
        table.validate(full=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, pa.ArrowException) as error:
        raise UsageError(
            f"{shown}: cannot be read as a dataset ({first_line(error)}); save it again with save_to_disk"
        ) from error
    names = features.get(label or "")
    classes = tuple(map(str, names.names)) if isinstance(names, datasets.ClassLabel) else None
    return read_table(table, shown, columns, digest, classes)


def _rows(dataset: Any, shown: str, columns: Columns) -> tuple[Any, str | None, dict[str, Any]]:  # noqa: ANN401 - datasets is untyped
    """The rows as a pyarrow.Table, with the label's column and the types of all."""
    label = pick("label", columns.label, dataset.column_names, shown)
    return dataset.with_format("arrow")[:], label, dict(dataset.features)
