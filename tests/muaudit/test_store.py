"""The store finds what was computed, never hands out a torn or foreign record, and survives a killed writer."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muaudit.errors import EnvironmentFault
from muaudit.results import Frozen, Transcript
from muaudit.store import Store, key_of, write_atomically

KEY = key_of(what="test")
RECORD = Transcript(prompt="p", expected="e\u2028", output="o\x1b[31m")


class Other(Frozen):
    number: int


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_put_is_got(store: Store) -> None:
    assert store.get(KEY, Transcript) is None
    store.put(KEY, RECORD)
    assert store.get(KEY, Transcript) == RECORD


@given(st.text())
def test_every_text_survives(text: str) -> None:
    assert Transcript.model_validate_json(RECORD.model_copy(update={"output": text}).model_dump_json()).output == text


@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))  # a run of the audit flushes subnormals
def test_every_number_survives_to_the_last_bit(number: float) -> None:
    class Number(Frozen):
        value: float

    assert Number.model_validate_json(Number(value=number).model_dump_json()).value == number


@pytest.mark.parametrize("content", [b"", b"{", b'{"prompt": "p"}', b"\xff\xfe", b'{"number": 1}'])
def test_a_damaged_record_is_computed_anew(store: Store, content: bytes) -> None:
    store.put(KEY, RECORD)
    (path,) = store.folder.glob("*/*.json")
    path.write_bytes(content)
    assert store.get(KEY, Transcript) is None
    store.put(KEY, RECORD)
    assert store.get(KEY, Transcript) == RECORD


def test_a_record_of_another_kind_is_not_handed_out(store: Store) -> None:
    store.put(KEY, Other(number=1))
    assert store.get(KEY, Transcript) is None


def test_keys_tell_parts_apart_and_ignore_their_order() -> None:
    assert key_of(a=1, b={"c": 2, "d": 3}) == key_of(b={"d": 3, "c": 2}, a=1)
    different = [key_of(a=1), key_of(a="1"), key_of(a=1.5), key_of(a=None), key_of(a=[1]), key_of(b=1), key_of(a=1, b=None)]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_key_of_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        key_of(seed=value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=r"No space left on device\); make room"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        write_atomically(tmp_path / "report.json", b"{}")
    finally:
        os.umask(previous)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o644


def test_sweeping_removes_what_a_killed_writer_left_and_no_record(store: Store) -> None:
    store.put(KEY, RECORD)
    left = store.folder / KEY[:2] / f".{KEY}.json.abc"
    left.write_bytes(b"{")
    os.utime(left, (1, 1))
    store.sweep()
    assert not left.exists()
    assert store.get(KEY, Transcript) == RECORD


def test_sweeping_leaves_alone_what_another_process_is_writing_now(store: Store) -> None:
    store.put(KEY, RECORD)
    fresh = store.folder / KEY[:2] / f".{KEY}.json.abc"
    fresh.write_bytes(b"{")
    store.sweep()
    assert fresh.exists()


def test_many_writers_of_one_key_leave_one_whole_record(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.put(KEY, RECORD), range(64)))
    assert store.get(KEY, Transcript) == RECORD
    assert len(list(store.folder.glob("*/*"))) == 1
