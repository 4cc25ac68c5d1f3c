"""A policy is a file that its owner can read, and a fault in it is never read as a default."""

import tomllib
from pathlib import Path

import pytest

from muaudit import policy
from muaudit.errors import UsageError

OWN = 'name = "house"\ndescription = "Ours."\nmargin = 0.02\n[margins]\nrelearning = 0.1\n'


def test_the_standard_policy_is_the_documented_one() -> None:
    standard = policy.load("standard")
    assert (standard.margin, standard.cluster_margin, standard.confidence) == (0.05, 0.25, 0.95)
    assert standard.margin_of("memorization") == 0.05
    assert standard.margin_of("membership") == standard.margin_of("privacy_leakage", "membership") == 0.15


@pytest.mark.parametrize("name", policy.shipped())
def test_every_shipped_policy_spells_out_its_decision_rule(name: str) -> None:
    path = Path(policy.__file__).parent / "policies" / f"{name}.toml"
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert policy.load(name).name == name
    assert set(policy.Policy.model_fields) - set(written) <= {"margins", "skippable"}


def test_a_margin_of_one_attack_overrides_the_general_one(tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text(OWN, encoding="utf-8")
    own = policy.load("house.toml", tmp_path)
    assert (own.margin_of("relearning"), own.margin_of("memorization")) == (0.1, 0.02)


def test_a_file_cannot_pass_for_a_shipped_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "standard").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert policy.load("standard", tmp_path).name == "standard"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (OWN.replace("0.02", "0"), "margin: "),
        (OWN.replace("0.02", "nan"), "margin: "),
        (OWN.replace("0.1", "2.0"), "margins.relearning: "),
        (OWN.replace("margin =", "margn ="), "margn"),
        ("margin = 0.1\n", "name"),
        (OWN + "[", "not TOML"),
        (OWN + "[other]\n", "other"),
    ],
)
def test_a_fault_names_the_policy_and_the_key(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "house.toml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        policy.load("house.toml", tmp_path)
    assert "'house.toml'" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["strict-er", ".", "gone.toml"])
def test_an_unknown_policy_lists_the_shipped_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such policy; give the path of one or one of: .*standard"):
        policy.load(name, tmp_path)
