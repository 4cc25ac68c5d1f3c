"""calibration.toml: what is refused, and what an audit.toml says of a calibration."""

import re
from pathlib import Path

import pytest

from muaudit.calibration import config
from muaudit.errors import UsageError

EXAMPLES = Path(__file__).parents[2] / "examples" / "calibration"
BASE = '[testbed]\npreset = "small"\n[attacks.memorization]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "calibration.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[testbed\n", "not TOML"),
        ('[testbed]\npreset = "small"\n', "no attack is asked for"),
        ("[attacks.memorization]\n", r"give \[testbed\]"),
        (BASE.replace("preset", "prest"), "unknown key 'testbed.prest'; did you mean 'preset'"),
        (BASE + "[testbeds]\n", "unknown key 'testbeds'; did you mean 'testbed'"),
        (BASE.replace("[attacks", "never_saw = 2\n[attacks"), "testbed.never_saw"),
        (BASE.replace("[attacks", "interpolation = [2.0]\n[attacks"), "testbed.interpolation"),
        (BASE + "[audits]\nreferences = 0\n", "audits.references"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        config.load(written(tmp_path, text))


def test_results_go_to_a_folder_of_their_own(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, BASE)).run.out == "calibration"
    assert config.load(written(tmp_path, BASE + '[run]\nout = "here"\nworkers = 2\n')).run.out == "here"


AUDIT = """
[task]
kind = "classification"
forget = "forget.npz"
retain = "retain.npz"
holdout = "holdout.npz"
[target]
kind = "classifier"
path = "not-there-yet"
[original]
kind = "classifier"
path = "original"
{references}
[policy]
name = "classification"
[attacks.unlearning_metrics]
[run]
out = "audit"
store = "audit/store"
"""
REFERENCE = '[[references]]\nkind = "classifier"\npath = "reference-{}"\n'


def test_an_audit_s_references_are_its_retrains(tmp_path: Path) -> None:
    found = config.load(written(tmp_path, AUDIT.format(references="".join(map(REFERENCE.format, range(4))))))
    assert found.retrains is not None
    assert (len(found.retrains.references), found.retrains.count, found.audits.references) == (4, 0, 3)
    assert found.retrains.original is not None
    assert (found.policies, found.run.out, found.run.store) == (("classification",), "calibration", None)


def test_a_recipe_trains_in_place_of_what_the_audit_names(tmp_path: Path) -> None:
    path = written(tmp_path, AUDIT.format(references=REFERENCE.format(1)))
    found = config.load(path, recipe="train.py:train", retrains=5)
    assert found.recipe is not None
    assert found.recipe.kind == "python"
    assert found.retrains is not None
    assert (found.retrains.count, found.retrains.references, found.retrains.original) == (5, (), None)
    with pytest.raises(UsageError, match="there is none"):
        config.load(path, retrains=5)
    with pytest.raises(UsageError, match="--recipe is for models of your own"):
        config.load(written(tmp_path, BASE), retrains=5)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_can_be_read(path: Path) -> None:
    found = config.load(path)
    assert found.testbed is not None
    assert found.testbed.never_saw * found.audits.never_saw >= 100 or "quick" in path.name
    assert re.search(r"muaudit calibrate", path.read_text(encoding="utf-8"))
