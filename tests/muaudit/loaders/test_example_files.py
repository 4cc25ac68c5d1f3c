"""Every kind of file gives the same examples, and every fault is told with file, row or column, and mend."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from muaudit.errors import UsageError
from muaudit.examples import LabelledTask
from muaudit.loaders.example_files import Columns, read_examples, read_task

pa = pytest.importorskip("pyarrow")
image = pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("datasets")

INPUTS = np.array([[0.5, 1.0, -2.0], [3.0, 0.25, 0.0], [1.5, 1.5, 4.0], [0.0, 0.0, 1.0]])
LABELS = np.array([2, 0, 1, 2])
IDS = ["a", "b", "007", "d"]
PEOPLE = ["ann", "ann", "bob", "bob"]
DOMAIN = ["x", "y", "x", "y"]
CUSTOMARY = Columns()


def _npz(path: Path, **arrays: Any) -> Path:
    good = {"inputs": INPUTS, "labels": LABELS, "ids": np.array(IDS), "clusters": np.array(PEOPLE), "domain": np.array(DOMAIN)}
    np.savez(path, **{name: array for name, array in {**good, **arrays}.items() if array is not None})
    return path


def _rows() -> dict[str, list[Any]]:
    features = {f"f{place}": INPUTS[:, place].tolist() for place in range(3)}
    return {"id": IDS, "label": LABELS.tolist(), "cluster": PEOPLE, "domain": DOMAIN, **features}


def _csv(path: Path, rows: dict[str, list[Any]]) -> Path:
    lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _parquet(path: Path, rows: dict[str, Any]) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(rows), path)
    return path


def _saved(path: Path, rows: dict[str, Any], **kinds: Any) -> Path:
    saved = datasets.Dataset.from_dict(rows)
    for name, kind in kinds.items():
        saved = saved.cast_column(name, kind)
    saved.save_to_disk(str(path))
    return path


def _told(path: Path, columns: Columns = CUSTOMARY, **keywords: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_task(path, columns=columns, **keywords)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def _picture(path: Path, pixels: NDArray[np.uint8], mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(path)
    return path


_PICTURE = pa.struct({"path": pa.string(), "bytes": pa.binary()})
PIXELS = (np.arange(4 * 5 * 6).reshape(4, 5, 6) * 2).astype(np.uint8)


# What is read


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet", "parquet-lists", "saved", "saved-array"])
def test_every_kind_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    rows = _rows()
    whole = {name: rows[name] for name in ("id", "label", "cluster", "domain")} | {"inputs": INPUTS.tolist()}
    if kind == "npz":
        path = _npz(tmp_path / "f.npz")
    elif kind == "csv":
        path = _csv(tmp_path / "f.csv", rows)
    elif kind == "parquet":
        path = _parquet(tmp_path / "f.parquet", rows)
    elif kind == "parquet-lists":
        path = _parquet(tmp_path / "f.parquet", whole)
    elif kind == "saved":
        path = _saved(tmp_path / "f", rows)
    else:
        path = _saved(tmp_path / "f", whole | {"inputs": INPUTS[:, None].tolist()}, inputs=datasets.Array2D((1, 3), "float32"))
    examples, record = read_examples(path, "forget", "shown")
    assert examples.inputs is not None
    assert examples.inputs.dtype == np.float32
    np.testing.assert_array_equal(examples.inputs.reshape(4, 3), INPUTS.astype(np.float32))
    np.testing.assert_array_equal(examples.labels, LABELS)
    assert examples.labels.dtype == np.int64
    assert (examples.ids, examples.clusters) == (tuple(IDS), tuple(PEOPLE))
    assert examples.attributes == {"domain": tuple(DOMAIN)}
    assert (record.role, record.path, record.units, record.clusters) == ("forget", "shown", 4, 2)
    if path.is_file():
        assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_and_clusters_by_default(tmp_path: Path) -> None:
    task = read_task(_npz(tmp_path / "f.npz", ids=None, clusters=None), _npz(tmp_path / "r.npz", ids=None, clusters=None))
    assert task.forget.ids == ("forget-000000", "forget-000001", "forget-000002", "forget-000003")
    assert task.retain.ids[0] == "retain-000000"
    assert task.forget.clusters == task.forget.ids
    assert len(task.holdout) == 0
    assert [record.role for record in task.records] == ["forget", "retain"]


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = _csv(
        tmp_path / "f.csv", {"who": IDS, "y": [1, 0, 1, 0], "age": [1, 2, 3, 4], "site": [7, 7, 8, 8], "h": [5, 6, 7, 8]}
    )
    task = read_task(path, columns=Columns(label="y", id="who", cluster="site", features=("h", "age")))
    np.testing.assert_array_equal(task.forget.pictured(), [[5, 1], [6, 2], [7, 3], [8, 4]])
    assert (task.forget.ids, task.forget.clusters) == (tuple(IDS), ("7", "7", "8", "8"))


def test_columns_that_no_part_takes_are_kept_as_text(tmp_path: Path) -> None:
    rows = {**_rows(), "when": ["2020-01-01", "2020-01-02", "", "2020-01-04"], "height": [1.5, 2.5, 3.5, 4.5]}
    task = read_task(_csv(tmp_path / "f.csv", rows), columns=Columns(features=("f0",)))
    assert task.forget.attributes["when"] == ("2020-01-01", "2020-01-02", "", "2020-01-04")
    assert task.forget.attributes["height"] == ("1.5", "2.5", "3.5", "4.5")
    assert set(task.forget.attributes) == {"domain", "when", "height", "f1", "f2"}


def test_yes_and_no_are_features(tmp_path: Path) -> None:
    task = read_task(_csv(tmp_path / "f.csv", {"label": [0, 1], "old": ["true", "false"], "age": [3, 4]}))
    np.testing.assert_array_equal(task.forget.pictured(), [[1, 3], [0, 4]])


def test_class_names_are_numbered_over_all_sets(tmp_path: Path) -> None:
    sets = [
        _csv(tmp_path / f"{name}.csv", {"label": labels, "x": range(place, place + len(labels))})
        for place, (name, labels) in enumerate({"f": ["dog", "ant"], "r": ["cat", "dog"], "h": ["ant", "eel"]}.items())
    ]
    task = read_task(*sets)
    assert [part.labels.tolist() for _, part in task.sets()] == [[2, 0], [1, 2], [0, 3]]
    assert task.pool.attributes["class_name"] == ("dog", "ant", "cat", "dog", "ant", "eel")
    ordered = read_task(*sets, columns=Columns(classes=("eel", "dog", "cat", "bee", "ant")))
    assert [part.labels.tolist() for _, part in ordered.sets()] == [[1, 4], [2, 1], [4, 0]]


def test_true_labels_are_numbered_as_labels_are(tmp_path: Path) -> None:
    path = _csv(tmp_path / "f.csv", {"label": ["cat", "dog"], "true_label": ["dog", "eel"], "x": [1, 2]})
    task = read_task(path)
    assert task.forget.attributes == {"class_name": ("cat", "dog"), "true_label": ("1", "2")}
    assert task.forget.pictured().shape == (2, 1)


def test_numbered_classes_of_a_saved_dataset_have_its_names(tmp_path: Path) -> None:
    path = _saved(tmp_path / "f", {"label": [1, 0], "x": [1.0, 2.0]}, label=datasets.ClassLabel(names=["cat", "ant"]))
    task = read_task(path)
    assert task.forget.labels.tolist() == [1, 0]
    assert task.forget.attributes["class_name"] == ("ant", "cat")


def test_digits_as_names_are_numbered_as_they_read_or_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "f.npz", labels=np.array(["1", "0", "2", "1"]))
    assert read_task(path).forget.labels.tolist() == [1, 0, 2, 1]
    told = _told(_npz(tmp_path / "g.npz", labels=np.array(["3", "8", "8", "3"])))
    assert "'3', '8'" in told
    assert "set classes" in told


def test_regression_takes_numbers(tmp_path: Path) -> None:
    one = read_task(_npz(tmp_path / "f.npz", labels=np.array([1.5, 2, 3, -4])), outputs="numbers")
    assert one.outputs == "numbers"
    np.testing.assert_array_equal(one.forget.labels, [[1.5], [2], [3], [-4]])
    two = read_task(_npz(tmp_path / "g.npz", labels=np.arange(8).reshape(4, 2)), outputs="numbers")
    assert two.forget.labels.shape == (4, 2)
    assert two.forget.labels.dtype == np.float64
    assert "regression needs numbers" in _told(_npz(tmp_path / "h.npz", labels=np.array(list("abcd"))), outputs="numbers")


def test_labels_alone_are_a_task_for_recorded_outputs(tmp_path: Path) -> None:
    assert read_task(_npz(tmp_path / "f.npz", inputs=None)).forget.inputs is None
    assert read_task(_csv(tmp_path / "f.csv", {"id": IDS, "label": LABELS, "domain": DOMAIN})).forget.inputs is None


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_folder_is_read_class_by_class(tmp_path: Path, suffix: str, mode: Any) -> None:
    paths = [
        _picture(tmp_path / "f" / name / f"{place}.{suffix}", PIXELS[place]) for place, name in enumerate(["cat", "ant"] * 2)
    ]
    (tmp_path / "f" / ".DS_Store").write_bytes(b"what desktops leave")
    task = read_task(tmp_path / "f", columns=Columns(image_mode=mode))
    assert task.forget.ids == tuple(f"forget/{name}.{suffix}" for name in ("ant/1", "ant/3", "cat/0", "cat/2"))
    assert task.forget.labels.tolist() == [0, 0, 1, 1]
    truth = np.stack([np.asarray(image.open(paths[place]).convert(mode)) for place in (1, 3, 0, 2)]) / 255
    truth = truth[:, None] if mode == "L" else truth.transpose(0, 3, 1, 2)
    assert task.forget.pictured().shape == (4, {"L": 1, "RGB": 3}[mode], 5, 6)
    np.testing.assert_allclose(task.forget.pictured(), truth, atol=1e-7)


def test_pictures_are_resized_where_asked(tmp_path: Path) -> None:
    _picture(tmp_path / "f" / "a" / "0.png", PIXELS[0])
    _picture(tmp_path / "f" / "a" / "1.png", PIXELS[1][:4])
    told = _told(tmp_path / "f")
    assert "f/a/1.png: 4x6 pixels" in told
    assert "f/a/0.png has 5x6" in told
    assert "image_size" in told
    task = read_task(tmp_path / "f", columns=Columns(image_mode="L", image_size=(8, 7)))
    truth = np.asarray(image.fromarray(PIXELS[1][:4]).resize((7, 8), image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(task.forget.pictured()[1, 0], truth, atol=1e-7)


def test_labels_csv_lists_the_pictures(tmp_path: Path) -> None:
    for place in range(3):
        _picture(tmp_path / "f" / "deep" / f"00{place}.png", PIXELS[place])
    rows = {
        "file": [f"deep/00{place}.png" for place in (2, 0, 1)],
        "label": [1, 0, 1],
        "cluster": ["01", "02", "01"],
        "age": [7, 8, 9],
    }
    _csv(tmp_path / "f" / "labels.csv", rows)
    task = read_task(tmp_path / "f", columns=Columns(image_mode="L"))
    assert task.forget.ids == ("forget/deep/002.png", "forget/deep/000.png", "forget/deep/001.png")
    assert task.forget.clusters == ("01", "02", "01")
    assert task.forget.attributes == {"age": ("7", "8", "9")}
    np.testing.assert_allclose(task.forget.pictured()[0, 0], PIXELS[2] / 255, atol=1e-7)


def test_pictures_in_a_saved_dataset(tmp_path: Path) -> None:
    pictures = [image.fromarray(pixels) for pixels in PIXELS]
    _saved(tmp_path / "f", {"image": pictures, "label": [0, 1, 0, 1]}, image=datasets.Image())
    task = read_task(tmp_path / "f", columns=Columns(image_mode="L"))
    np.testing.assert_allclose(task.forget.pictured()[:, 0], PIXELS / 255, atol=1e-7)


# What is refused


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"labels": None}, ["no column 'label' or 'labels'", "'inputs', 'ids', 'clusters', 'domain'", "set label"]),
        ({"label": LABELS}, ["'label', 'labels' could both be the label", "set label"]),
        ({"ids": np.array(["a", "b", "a", "c"])}, ["row 3", "id 'a' stands already in row 1", "an id of its own"]),
        ({"ids": np.array(["a", "", "d", "c"])}, ["row 2", "id '' is empty"]),
        ({"ids": np.array(["a", "b"])}, ["4 labels, but 2 ids"]),
        ({"inputs": INPUTS[:3]}, ["4 labels, but 3 inputs"]),
        ({"domain": np.array(["x"])}, ["4 labels, but 1 'domain'"]),
        ({"clusters": np.array(["a", "b", "", "c"])}, ["row 3 has no cluster"]),
        ({"inputs": np.where(INPUTS == 4.0, np.nan, INPUTS)}, ["row 3", "inputs hold NaN"]),
        ({"inputs": np.where(INPUTS == 0.25, 1e300, INPUTS)}, ["row 2", "too large for float32"]),
        ({"inputs": np.array(list("abcd"))}, ["array 'inputs' holds <U1", "inputs are numbers"]),
        ({"labels": np.array([0, 1, np.nan, 2])}, ["row 3", "label is NaN"]),
        ({"labels": np.array([0, 1, 1.5, 2])}, ["row 3", "label 1.5 is no class", "0, 1, 2", '"regression"']),
        ({"labels": np.array([0, -1, 1, 2])}, ["row 2", "label -1 is no class"]),
        ({"labels": np.eye(4)}, ["labels of shape [4, 4]", "one class an example"]),
        ({"labels": LABELS[:0], "inputs": INPUTS[:0], "ids": np.array([], dtype=str)}, ["forget set is empty", "at least one"]),
        ({"x": INPUTS}, ["array 'x' is float64 [4, 3]", "name it under [task.columns]", "leave it out"]),
        ({"objects": np.array([{}, {}, {}, {}])}, ["pickled Python objects", "run code", "numpy.savez"]),
        ({"note": np.array("one")}, ["'note' is no array", "one entry an example"]),
        ({"ids": np.array([b"a", b"b", b"c", b"\xff"])}, ["array 'ids' holds bytes that are not UTF-8"]),
    ],
)  # fmt: skip
def test_a_fault_of_an_npz_file_is_told(tmp_path: Path, arrays: dict[str, Any], expected: list[str]) -> None:
    told = _told(_npz(tmp_path / "f.npz", **arrays))
    for part in ["f.npz", *expected]:
        assert part in told


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x80\x04.", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.npz").write_bytes(content)
    assert "numpy.savez" in _told(tmp_path / "f.npz")


def test_a_single_array_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, INPUTS)
    (tmp_path / "f.npz").write_bytes(buffer.getvalue())
    assert "one array without a name" in _told(tmp_path / "f.npz")
    data = bytearray(_npz(tmp_path / "g.npz").read_bytes())
    data[150] ^= 0xFF
    (tmp_path / "g.npz").write_bytes(data)
    assert "not an npz file" in _told(tmp_path / "g.npz")


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ({"label": None}, {}, ["no column 'label' or 'labels'"]),
        ({}, {"label": "class"}, ["no column 'class'", "set label"]),
        ({}, {"cluster": "person"}, ["no column 'person'", "set cluster"]),
        ({}, {"features": ("f0", "f9")}, ["no column 'f9' for features"]),
        ({}, {"features": ("domain",)}, ["column 'domain' holds string, and no numbers"]),
        ({}, {"inputs": "domain"}, ["column 'domain' holds string, and no numbers"]),
        ({}, {"inputs": "f0", "features": ("f1",)}, ["inputs and features are both set"]),
        ({"f1": [1, 2, None, 4]}, {}, ["column 'f1'", "row 3 has no value"]),
        ({"f1": [1, 2, float("nan"), 4]}, {}, ["row 3", "NaN"]),
        ({"id": ["a", None, "c", "d"]}, {}, ["column 'id'", "row 2 has no value"]),
        ({"label": [1, 2, 0, None]}, {}, ["column 'label'", "row 4 has no value"]),
        ({"label": ["cat", "dog", "eel", "cat"]}, {"classes": ("cat", "dog")}, ["row 3", "'eel' is not among"]),
        ({"label": [0, 1, 2, 0]}, {"classes": ("cat", "dog")}, ["row 3", "label 2 has no name", "names 2"]),
        ({}, {"classes": ("cat", "cat")}, ["names a class twice"]),
        ({"pixels": [[1, 2], [3, 4], [5], [6, 7]]}, {}, ["column 'pixels'", "row 3 has a list of 1", "row 1 has 2"]),
        ({"pixels": [[[1], [2]], [[3], [4]], [[5], [5]], [[6], [7, 8]]]}, {}, ["row 4 has a list of 2"]),
        ({"pixels": [[1, 2], [3, None], [5, 5], [6, 7]]}, {}, ["row 2 has no value"]),
        ({"pixels": [["a"], ["b"], ["c"], ["d"]]}, {}, ["lists of string"]),
        ({"one": [[1]] * 4, "two": [[2]] * 4}, {}, ["'one', 'two' could all be the inputs", "set inputs"]),
        ({"raw": [b"a"] * 4}, {}, ["column 'raw' holds binary", "leave it out"]),
    ],
)  # fmt: skip
def test_a_fault_of_a_table_is_told(tmp_path: Path, rows: dict[str, Any], columns: dict[str, Any], expected: list[str]) -> None:
    table = {name: column for name, column in {**_rows(), **rows}.items() if column is not None}
    told = _told(_parquet(tmp_path / "f.parquet", table), Columns(**columns))
    for part in expected:
        assert part in told


def test_a_table_that_cannot_be_parsed_is_told(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("label,x\n1,2\n1,2,3\n")
    assert "cannot be read as csv" in _told(tmp_path / "f.csv")
    (tmp_path / "g.csv").write_text("label,x,x\n1,2,3\n")
    assert "column 'x' stands twice" in _told(tmp_path / "g.csv")
    (tmp_path / "h.csv").write_text("")
    assert "cannot be read as csv" in _told(tmp_path / "h.csv")
    (tmp_path / "i.csv").write_text("label,x\n")
    assert "forget set is empty" in _told(tmp_path / "i.csv")
    (tmp_path / "k.csv").write_bytes(b"label,\xff\n1,2\n")
    assert "cannot be read as csv" in _told(tmp_path / "k.csv")
    (tmp_path / "l.csv").write_bytes(b"label,name\n1,\xff\n")
    assert "column 'name' holds binary" in _told(tmp_path / "l.csv")
    assert "invalid UTF8" in _told(tmp_path / "l.csv", Columns(cluster="name"))
    (tmp_path / "j.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in _told(tmp_path / "j.parquet")


def test_a_missing_or_foreign_file_is_told(tmp_path: Path) -> None:
    assert "gone.npz: cannot be read (No such file or directory)" in _told(tmp_path / "gone.npz")
    (tmp_path / "f.pkl").write_bytes(b"\x80\x04.")
    assert ".npz, .parquet or .csv" in _told(tmp_path / "f.pkl")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"inputs": None}, "has no inputs, and the forget set has inputs"),
        ({"inputs": INPUTS[:, :2]}, "inputs of shape [2], and the forget set of [3]"),
    ],
)
def test_sets_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    told = _told(_npz(tmp_path / "f.npz"), retain=_npz(tmp_path / "r.npz", ids=None, **arrays))
    assert "r.npz: the retain set" in told
    assert expected in told


def test_features_must_be_the_same_in_the_same_order(tmp_path: Path) -> None:
    forget = _csv(tmp_path / "f.csv", {"label": [0], "age": [1], "height": [2]})
    other = _csv(tmp_path / "r.csv", {"label": [0], "age": [1], "weight": [2]})
    assert "other features than the forget set ('height', 'weight')" in _told(forget, retain=other)
    turned = _csv(tmp_path / "h.csv", {"label": [0], "height": [3], "age": [1]})
    assert "features in another order" in _told(forget, holdout=turned)
    both = read_task(forget, holdout=turned, columns=Columns(features=("age", "height")))
    np.testing.assert_array_equal(both.holdout.pictured(), [[1, 3]])


def test_names_in_one_set_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    forget = _csv(tmp_path / "f.csv", {"label": ["cat"], "x": [1]})
    told = _told(forget, retain=_csv(tmp_path / "r.csv", {"label": [1], "x": [1]}))
    assert "f.csv: labels are names here, and numbers elsewhere" in told


def test_an_id_in_two_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="example 'a' of the retain set stands in the forget set too"):
        read_task(_npz(tmp_path / "f.npz"), _npz(tmp_path / "r.npz"))


def test_a_holdout_example_that_repeats_the_forget_set_is_refused(tmp_path: Path) -> None:
    shifted = INPUTS + 1
    holdout = {
        "inputs": np.concatenate([shifted, INPUTS[2:3]]),
        "ids": np.array(list("vwxyz")),
        "clusters": None,
        "domain": None,
    }
    forget = _npz(tmp_path / "f.npz")
    told = _told(forget, holdout=_npz(tmp_path / "h.npz", **holdout, labels=np.array([2, 0, 1, 2, 1])))
    assert "h.npz: holdout example 'z' repeats forget example '007' (same inputs and label)" in told
    other_label = read_task(forget, holdout=_npz(tmp_path / "i.npz", **holdout, labels=np.array([2, 0, 1, 2, 0])))
    assert len(other_label.holdout) == 5


def test_an_empty_set_is_refused_with_its_file(tmp_path: Path) -> None:
    empty = _csv(tmp_path / "h.csv", {"label": [], "x": []})
    told = _told(_csv(tmp_path / "f.csv", {"label": [1], "x": [1]}), holdout=empty)
    assert "h.csv: the holdout set is empty" in told
    assert "leave the key out" in told


def test_faults_of_an_image_folder_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    good = _picture(folder / "cat" / "0.png", PIXELS[0])
    for name, content, expected in [
        ("cat/notes.txt", b"", "cat/notes.txt is not a picture (.png, .jpg) in the folder of its class"),
        ("1.png", good.read_bytes(), "1.png is not a picture (.png, .jpg) in the folder of its class"),
        ("cat/1.png", b"GIF89a" + b"\0" * 50, "cat/1.png: not a readable PNG or JPEG picture"),
        ("cat/1.png", good.read_bytes()[:50], "cat/1.png: not a readable PNG or JPEG picture"),
        ("cat/1.png", b"", "cat/1.png: not a readable PNG or JPEG picture"),
    ]:
        (folder / name).write_bytes(content)
        assert expected in _told(folder)
        (folder / name).unlink()
    (folder / "cat" / "2.png").symlink_to(good)
    assert "cat/2.png is a symbolic link" in _told(folder)
    (folder / "cat" / "2.png").unlink()
    _picture(folder / "cat" / "3.png", (PIXELS[0].astype(np.uint16) * 200), mode="I;16")
    assert "cat/3.png: has more than 8 bits a channel" in _told(folder)
    (tmp_path / "none").mkdir()
    assert "none" in _told(tmp_path / "none")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"label": [0, 1]}, "labels.csv: no column 'file'"),
        ({"file": ["0.png"], "label": [0]}, "labels.csv: 1.png stands in"),
        ({"file": ["0.png", "../x.png"], "label": [0, 1]}, "labels.csv: row 2: ../x.png is not a picture"),
        ({"file": ["0.png", "0.png"], "label": [0, 1]}, "labels.csv: row 2: 0.png is listed twice"),
        ({"file": ["0.png", "1.png"]}, "labels.csv: no column 'label' or 'labels'"),
    ],
)
def test_faults_of_labels_csv_are_told(tmp_path: Path, rows: dict[str, list[Any]], expected: str) -> None:
    for place in range(2):
        _picture(tmp_path / "f" / f"{place}.png", PIXELS[place])
    _csv(tmp_path / "f" / "labels.csv", rows)
    assert expected in _told(tmp_path / "f")


def test_a_saved_dataset_reads_nothing_from_elsewhere(tmp_path: Path) -> None:
    inside = _picture(tmp_path / "0.png", PIXELS[0])
    elsewhere = {"image": pa.array([{"path": str(inside), "bytes": None}] * 2, _PICTURE), "label": [0, 1]}
    assert "row 1: the picture itself is not in the file" in _told(_parquet(tmp_path / "f.parquet", elsewhere))
    _saved(tmp_path / "g", _rows())
    state = json.loads((tmp_path / "g" / "state.json").read_text())
    (tmp_path / "outside.arrow").write_bytes((tmp_path / "g" / state["_data_files"][0]["filename"]).read_bytes())
    for name in ("../outside.arrow", str(tmp_path / "outside.arrow"), "gone.arrow"):
        (tmp_path / "g" / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
        assert "is not a file of this folder" in _told(tmp_path / "g")
    for content in ("", "[]", "{}", "[" * 100_000):
        (tmp_path / "g" / "state.json").write_text(content)
        assert "state.json: not what save_to_disk writes" in _told(tmp_path / "g")


def test_several_splits_and_damaged_datasets_are_told(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(_rows())}).save_to_disk(str(tmp_path / "f"))
    assert "holds several splits" in _told(tmp_path / "f")
    assert read_task(tmp_path / "f" / "train").forget.ids == tuple(IDS)
    data = next((tmp_path / "f" / "train").glob("*.arrow"))
    data.write_bytes(data.read_bytes()[:100])
    assert "cannot be read as a dataset" in _told(tmp_path / "f" / "train")


def test_the_task_digest_does_not_depend_on_the_kind_of_file(tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        task: LabelledTask = read_task(path)
        return task.digest

    rows = _rows()
    assert digest(_npz(tmp_path / "f.npz")) == digest(_csv(tmp_path / "f.csv", rows)) == digest(_saved(tmp_path / "f", rows))
