"""audit.toml is read strictly: an unknown key is told with the nearest known one, and nothing falls back silently."""

from pathlib import Path
from typing import Any

import pytest

from muaudit import config
from muaudit.errors import UsageError

GOOD: dict[str, Any] = {
    "task": {"kind": "facts", "forget": "forget.jsonl"},
    "target": {"kind": "causal_lm", "path": "models/target"},
    "references": [{"kind": "causal_lm", "path": "models/retrained"}],
    "attacks": {"memorization": {}},
}
RECORDED: dict[str, Any] = {"kind": "recorded", "path": "a.json", "format": "tofu"}


def _told(**changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        config.parse({key: value for key, value in {**GOOD, **changes}.items() if value is not None}, "audit.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("audit.toml: ")
    return str(caught.value)


def test_the_smallest_file_gets_every_default() -> None:
    read = config.parse(GOOD, "audit.toml")
    assert read.policy.name == "standard"
    assert read.run.seed == "", "a seed is drawn at plan time"
    assert (read.run.device, read.run.workers, read.run.out) == ("auto", 1, "audit")
    assert read.original is None
    assert read.signing is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"targets": {}}, "unknown key 'targets'; did you mean 'target'?"),
        ({"zzzzzz": {}}, "unknown key 'zzzzzz'; known here: attacks, budget, calibration, conduct, original, "),
        ({"run": {"sede": "1"}}, "unknown key 'run.sede'; did you mean 'seed'?"),
        ({"task": {"kind": "facts", "forgets": "f"}}, "unknown key 'task.forgets'; did you mean 'forget'?"),
        ({"task": {"kind": "facts", "forget": "f", "hold_out": "h"}}, "unknown key 'task.hold_out'; did you mean 'holdout'?"),
        ({"target": {**GOOD["target"], "batchsize": 8}}, "unknown key 'target.batchsize'; did you mean 'batch_size'?"),
        ({"references": [{**GOOD["target"], "pth": "x"}]}, "unknown key 'references.0.pth'; did you mean 'path'?"),
        ({"target": None}, "key 'target' is missing; add it"),
        ({"attacks": None}, "no attack is asked for: add a section"),
        ({"target": {"kind": "causal_lm"}}, "key 'target.path' is missing; add it"),
        ({"target": {"path": "models/target"}}, "'target.kind' is missing"),
        ({"target": {"kind": "casual_lm", "path": "p"}}, "causal_lm"),
        ({"target": {**RECORDED, "format": "tfou"}}, "'target.format'"),
        ({"references": []}, "key 'references'"),
        ({"attacks": {}}, "no attack is asked for"),
        ({"run": {"workers": 0}}, "key 'run.workers'"),
        ({"run": {"seed": 2026}}, "key 'run.seed'"),
        ({"policy": {"margins": {"memorization": 1.5}}}, "policy.margins.memorization"),
        ({"policy": {"margins": {"memorization": float("nan")}}}, "policy.margins.memorization"),
        ({"target": RECORDED}, 'use [task] kind = "recorded"'),
        ({"task": {"kind": "recorded"}}, "is for models of kind recorded"),
        ({"task": {"kind": "recorded", "cluster_size": 0}}, "task.cluster_size"),
    ],
)
def test_a_fault_names_the_key_and_the_mend(changes: dict[str, Any], expected: str) -> None:
    assert expected in _told(**changes)


def test_the_kinds_that_there_are_stand_in_the_error() -> None:
    told = _told(target={"kind": "classifier", "path": "p"})
    assert "classifier" in told
    assert "causal_lm" in told
    assert "recorded" in told


def test_a_key_that_is_named_like_a_kind_is_not_lost() -> None:
    assert "'attacks.recorded'" in _told(attacks={"recorded": 3})


def test_models_come_with_their_roles() -> None:
    read = config.parse({**GOOD, "references": GOOD["references"] * 2, "original": GOOD["target"]}, "audit.toml")
    assert [role for role, _ in read.models()] == ["target", "reference 1", "reference 2", "original"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[task\n", "not TOML"),
        (b'name = "\xe9"\n', "not UTF-8 (byte 8); save the file as UTF-8"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"", "is missing; add it"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "audit.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        config.load(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\); `muaudit init` writes one"):
        config.load(tmp_path / "audit.toml")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    text = '[task]\nkind = "recorded"\n[target]\nkind = "recorded"\npath = "a"\nformat = "tofu"\n'
    text += '[[references]]\nkind = "recorded"\npath = "b"\nformat = "tofu"\n[attacks.memorization]\n'
    (tmp_path / "audit.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert config.load(tmp_path / "audit.toml").task.kind == "recorded"
