"""The manifest notices every change of a model that could change what it does."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from muaudit.errors import ModelError
from muaudit.manifest import manifest, manifest_bytes, manifest_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (folder / "model-2.safetensors").write_bytes(b"")
    (folder / "tokenizer" / "vocab é.json").write_bytes(b"[]")
    (folder / ".gitignore").write_bytes(b"*.log\n")
    return folder


def test_lists_every_file_by_relative_name_in_string_order(model: Path) -> None:
    files = manifest(model)
    assert [file.name for file in files] == [
        ".gitignore",
        "config.json",
        "model-2.safetensors",
        "model.safetensors",
        "tokenizer/vocab é.json",
    ]
    assert {file.name: file.bytes for file in files}["model.safetensors"] == 256 * 64
    for file in files:
        assert file.sha256 == hashlib.sha256((model / file.name).read_bytes()).hexdigest()


def test_digest_is_what_sha256sum_says_of_the_manifest_file(model: Path, tmp_path: Path) -> None:
    files = manifest(model)
    (tmp_path / "manifest.json").write_bytes(manifest_bytes(files))
    printed = subprocess.run(["sha256sum", tmp_path / "manifest.json"], capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == manifest_digest(files)


def test_bytes_are_canonical_json_of_names_and_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4 example: SHA-256 of nothing
    assert manifest_bytes(manifest(tmp_path)) == b'[{"algorithm":"sha256","digest":"%b","name":"a"}]' % empty.encode()


def test_a_single_file_has_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_bytes(b"{}")
    (file,) = manifest(tmp_path / "outputs.json")
    assert file.name == "outputs.json"


def _rename(model: Path) -> None:
    (model / "config.json").rename(model / "config_evil.json")


def _edit_dot_file(model: Path) -> None:
    (model / ".gitignore").write_bytes(b"*.txt\n")


def _swap(model: Path) -> None:
    first, second = (model / "config.json").read_bytes(), (model / "tokenizer" / "vocab é.json").read_bytes()
    (model / "config.json").write_bytes(second)
    (model / "tokenizer" / "vocab é.json").write_bytes(first)


def _add(model: Path) -> None:
    (model / "extra.py").write_bytes(b"")


def _remove(model: Path) -> None:
    (model / "model-2.safetensors").unlink()


def _move(model: Path) -> None:
    (model / "config.json").rename(model / "tokenizer" / "config.json")


@pytest.mark.parametrize("change", [_rename, _edit_dot_file, _swap, _add, _remove, _move])
def test_every_change_changes_the_digest(model: Path, change: Callable[[Path], None]) -> None:
    before = manifest_digest(manifest(model))
    change(model)
    assert manifest_digest(manifest(model)) != before


def test_is_the_same_wherever_the_model_lies(model: Path, tmp_path: Path) -> None:
    before = manifest_bytes(manifest(model))
    model.rename(tmp_path / "elsewhere")
    assert manifest_bytes(manifest(tmp_path / "elsewhere")) == before
    assert "elsewhere" not in json.dumps(json.loads(before))


@pytest.mark.parametrize("target", ["config.json", "tokenizer", "nowhere"])
def test_refuses_links(model: Path, target: str) -> None:
    (model / "link").symlink_to(model / target)
    with pytest.raises(ModelError, match=r"link: is a symbolic link.*cp -rL"):
        manifest(model)


def test_refuses_a_link_in_place_of_the_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(model)
    with pytest.raises(ModelError, match="symbolic link"):
        manifest(tmp_path / "latest")


def test_refuses_what_is_not_a_file(model: Path) -> None:
    os.mkfifo(model / "pipe")
    with pytest.raises(ModelError, match="neither a file nor a folder"):
        manifest(model)


def test_refuses_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    with pytest.raises(ModelError, match="not UTF-8"):
        manifest(tmp_path)


def test_refuses_an_empty_folder_and_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no file"):
        manifest(tmp_path)
    with pytest.raises(ModelError, match="nowhere: cannot be read"):
        manifest(tmp_path / "nowhere")
