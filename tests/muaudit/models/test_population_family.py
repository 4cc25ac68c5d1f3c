"""Populations: every member's logits of every example, whatever they are kept in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muaudit.errors import ModelError
from muaudit.examples import Examples
from muaudit.models import Classifies, ClassifiesMany, Model
from muaudit.models.population import Population

IDS = ("a", "b", "c")
LOGITS = np.arange(24, dtype=np.float64).reshape(4, 3, 2) % 7 - 0.5


def examples(*ids: str, labels: Any = None) -> Examples:
    return Examples(ids, ids, np.zeros(len(ids), np.int64) if labels is None else np.array(labels))


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **({"ids": np.array(IDS), "logits": LOGITS} | arrays))
    return path


def test_recorded_members_are_found_by_id(tmp_path: Path) -> None:
    model = Population.open(npz(tmp_path / "models.npz", keep=np.ones((4, 3))))
    assert isinstance(model, Model)
    assert isinstance(model, ClassifiesMany)
    assert not isinstance(model, Classifies)
    np.testing.assert_array_equal(model.member_logits(examples("c", "a")), LOGITS[:, [2, 0]])
    assert model.digest == Population.open(tmp_path / "models.npz").digest
    assert model.digest != Population.open(npz(tmp_path / "others.npz", logits=LOGITS + 1)).digest


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"logits": LOGITS[0]}, "logits \\[models, examples, classes\\]"),
        ({"logits": LOGITS[:, :2]}, "logits \\[models, examples, classes\\]"),
        ({"ids": np.array(["a", "b", "a"])}, "recorded twice"),
        ({"ids": np.array(["a", "b", None], dtype=object)}, "pickle"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Population.open(npz(tmp_path / "models.npz", **arrays))


def test_what_members_cannot_say_is_an_error(tmp_path: Path) -> None:
    model = Population.open(npz(tmp_path / "models.npz"))
    with pytest.raises(ModelError, match="nothing is recorded of example 'd'"):
        model.member_logits(examples("a", "d"))
    with pytest.raises(ModelError, match="of class 2"):
        model.member_logits(examples("a", labels=[2]))
    broken = np.where(LOGITS > 5, np.nan, LOGITS)
    with pytest.raises(ModelError, match="NaN"):
        Population.open(npz(tmp_path / "broken.npz", logits=broken)).member_logits(examples(*IDS))


def test_a_trained_cohort_is_a_population(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from muaudit.training.recipes import TorchRecipe
    from muaudit.training.shadows import Trainer
    from muaudit.training.trained import logits_from

    rng = np.random.default_rng(0)
    pool = Examples(
        tuple(map(str, range(12))),
        tuple(map(str, range(12))),
        rng.integers(0, 3, 12),
        rng.normal(size=(12, 4)).astype(np.float32),
    )
    recipe = TorchRecipe(architecture="mlp", hidden=(4,), steps=3)
    cohort = Trainer(recipe, pool, tmp_path / "made").train(np.ones((3, 12), dtype=bool), [1, 2, 3])
    cohort.save(tmp_path / "population")
    model = Population.open(tmp_path / "population")
    asked = pool.take([5, 2])
    expected = np.stack([logits_from(cohort.member(number), asked.pictured()) for number in range(3)])
    np.testing.assert_allclose(model.member_logits(asked), expected, rtol=1e-6)
    assert model.model_seconds > 0

    numbers = Examples(pool.ids, pool.clusters, rng.normal(size=(12, 1)), pool.inputs)
    other = Trainer(recipe.model_copy(update={"labels": "numbers"}), numbers, tmp_path / "made")
    with pytest.raises(ModelError, match="predict numbers"):
        Population.open(other.train(np.ones((1, 12), dtype=bool), [1]).folder)
    with pytest.raises(ModelError, match=r"cohort\.json"):
        Population.open(_emptied(tmp_path / "population"))


def _emptied(folder: Path) -> Path:
    (folder / "cohort.json").unlink()
    return folder
