"""Many networks at once are the same as each by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from digits_pool import digits  # noqa: E402

from muaudit.examples import Examples  # noqa: E402
from muaudit.training import stacked  # noqa: E402
from muaudit.training.recipes import TorchRecipe, Trained  # noqa: E402

MODELS = 4
SEEDS = (11, 2**62 + 5, 0, 7)


@pytest.fixture(scope="module")
def pool() -> Examples:
    return digits()


def halves(pool: Examples) -> np.ndarray:
    """Masks with different numbers of rows, one smaller than a batch."""
    rows = np.random.default_rng(0).random((MODELS, len(pool))) < np.array([0.5, 0.3, 0.7, 0.5])[:, None]
    rows[1, 20:] = False
    return rows


def distance(first: list[Trained], second: list[Trained]) -> float:
    """The largest difference of two lists of networks in any weight."""
    pairs = zip(first, second, strict=True)
    return max(
        float((one - other).abs().max())
        for a, b in pairs
        for one, other in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stacked_is_sequential_to_1e_12_over_50_steps(pool: Examples, architecture: str, optimizer: str) -> None:
    rate = {"sgd": 0.05, "adam": 0.003}[optimizer]
    recipe = TorchRecipe(
        architecture=architecture, width=6, hidden=(32,), optimizer=optimizer, learning_rate=rate, steps=50, batch_size=24,
        dtype="float64",
    )  # fmt: skip
    together, alone = (
        stacked.fit_many(recipe, pool, halves(pool), SEEDS, Path(), way=way) for way in ("stacked", "sequential")
    )
    assert distance(together, alone) <= 1e-12
    start = [Trained(stacked.start(recipe.network(pool), seed), 0) for seed in SEEDS]
    assert distance(start, alone) > 1e-3  # they have learnt something


@pytest.mark.parametrize(
    "changed",
    [
        {
            "augmentation": "mirror_shift",
            "shift": 1,
            "nesterov": True,
            "weight_decay": 1e-3,
            "schedule": "cosine",
            "warmup": 0.2,
        },
        {"norm": "group", "optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.1},
        {"architecture": "resnet", "norm": "group", "width": 2, "steps": 5},
        {"architecture": "mlp", "hidden": (16,), "normalise": False, "epochs": 2.5, "steps": None, "learning_rate": 0.01},
    ],
    ids=["augmented", "groups", "resnet", "epochs"],
)
def test_whatever_the_recipe(pool: Examples, changed: dict[str, Any]) -> None:
    values = {"architecture": "cnn", "width": 4, "learning_rate": 0.05, "steps": 20, "batch_size": 16, "dtype": "float64"}
    recipe = TorchRecipe(**(values | changed))
    together, alone = (
        stacked.fit_many(recipe, pool, halves(pool), SEEDS, Path(), way=way) for way in ("stacked", "sequential")
    )
    assert distance(together, alone) <= 1e-12


def test_numbers_are_learnt_alike(pool: Examples) -> None:
    targets = np.random.default_rng(1).normal(size=(len(pool), 2))
    numbers = Examples(pool.ids, pool.clusters, targets, pool.inputs)
    recipe = TorchRecipe(hidden=(8,), steps=20, labels="numbers", learning_rate=0.01, dtype="float64")
    together, alone = (
        stacked.fit_many(recipe, numbers, halves(pool), SEEDS, Path(), way=way) for way in ("stacked", "sequential")
    )
    assert distance(together, alone) <= 1e-12


def test_a_model_does_not_depend_on_its_company(pool: Examples) -> None:
    recipe, rows = TorchRecipe(hidden=(16,), steps=20, dtype="float64"), halves(pool)
    together = stacked.fit_many(recipe, pool, rows, SEEDS, Path(), way="stacked")
    swapped = stacked.fit_many(recipe, pool, rows[[2, 0]], [SEEDS[2], SEEDS[0]], Path(), way="stacked")
    assert distance([together[2], together[0]], swapped) <= 1e-12
    assert distance([together[2], together[0]], swapped[::-1]) > 1e-3


def test_one_that_diverges_is_trained_again_alone(pool: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, rows = TorchRecipe(hidden=(16,), steps=20, dtype="float64", normalise=False, learning_rate=0.01), halves(pool)
    inputs = np.array(pool.pictured())
    inputs[199] = np.nan
    rows[:, 199] = [False, False, True, False]
    broken = Examples(pool.ids, pool.clusters, pool.labels, inputs)
    monkeypatch.setattr(stacked, "fit", lambda *_, tried, **__: ("again", tried))
    made = stacked.fit_many(recipe, broken, rows, SEEDS, Path(), way="stacked")
    assert made[2] == ("again", 1)
    monkeypatch.undo()
    kept = [0, 1, 3]
    alone = stacked.fit_many(recipe, pool, rows[kept], [SEEDS[place] for place in kept], Path(), way="sequential")
    assert distance([made[place] for place in kept], alone) <= 1e-12


def test_layers_decide_first_then_the_mode_then_the_timing(pool: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = halves(pool)

    def chosen(**values: Any) -> str:
        recipe = TorchRecipe(**({"hidden": (8,), "width": 2, "steps": 5} | values))
        return stacked.choose(recipe, recipe.network(pool), pool, rows, SEEDS)

    assert chosen(architecture="resnet", mode="stacked") == "sequential"  # batch normalisation keeps running statistics
    assert chosen(architecture="cnn", norm="group", mode="stacked") == "stacked"
    assert chosen(mode="sequential") == "sequential"
    assert chosen() in ("stacked", "sequential")
    seconds = {stacked.Stack: 1.0, stacked.Single: 0.2}
    monkeypatch.setattr(stacked, "_seconds_a_step", lambda trainee, *_: seconds[type(trainee)])
    assert chosen() == "sequential"  # 4 models at 0.2 each
    seconds[stacked.Single] = 0.3
    assert chosen() == "stacked"


def test_a_layer_that_cannot_be_stacked_is_found_by_trying(pool: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stacked.start
    monkeypatch.setattr(stacked, "start", lambda network, seed: torch.nn.Sequential(made(network, seed), torch.nn.Dropout()))
    recipe = TorchRecipe(hidden=(8,), steps=2, mode="stacked")
    assert stacked.choose(recipe, recipe.network(pool), pool, halves(pool), SEEDS) == "sequential"
