"""Speed of shadow training: many models at once against one by one, and two workers against one.

    python benchmarks/shadow_training.py            # everything, about a quarter of an hour on two idle cores
    python benchmarks/shadow_training.py --quick    # fewer steps and repeats: does it run?

Every process computes with one thread. The two sides take turns; the median of the repeats counts. `chosen` trains as a recipe
with mode "auto" does, the timing that chooses included, so it may never be slower than one by one by more than 5 %.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from muaudit.examples import Examples
from muaudit.training.recipes import TorchRecipe
from muaudit.training.shadows import Trainer
from muaudit.training.stacked import Way, choose, fit_many, stackable

STACK = 16
"""Models trained at once."""

POOL = 600
"""Digits; each model is trained on half of them."""

RECIPES = {
    "mlp 64-256-10, batch 16": TorchRecipe(steps=800, batch_size=16),
    "mlp 64-256-10, batch 64": TorchRecipe(steps=400, batch_size=64),
    "cnn 8-16, batch 64": TorchRecipe(architecture="cnn", width=8, steps=400, learning_rate=0.05),
    "cnn 16-32, batch 64": TorchRecipe(architecture="cnn", width=16, steps=400, learning_rate=0.05),
    "resnet 4-32, batch 32": TorchRecipe(architecture="resnet", width=4, steps=60, batch_size=32, learning_rate=0.05),
}


def pool() -> Examples:
    """The first digits as pictures."""
    inputs, labels = load_digits(return_X_y=True)
    names = tuple(map(str, range(POOL)))
    return Examples(names, names, labels[:POOL].astype(np.int64), inputs[:POOL].astype(np.float32).reshape(-1, 1, 8, 8))


def rows(models: int) -> NDArray[np.bool_]:
    """A random half of the pool for each model."""
    return np.random.default_rng(0).random((models, POOL)) < 0.5


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of two pieces of work that take turns."""
    taken = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return statistics.median(one for one, _ in taken), statistics.median(other for _, other in taken)


def stacked_against_sequential(quick: bool, repeats: int) -> None:
    """Prints what training a stack saves, and what choosing costs."""
    examples, seeds = pool(), list(range(STACK))
    print(f"{STACK} models, one thread    one by one    at once    ratio    chosen    ratio    choice")
    for name, full in RECIPES.items():
        recipe = full.model_copy(update={"steps": (full.steps or 0) // 10}) if quick else full

        def made(recipe: TorchRecipe, way: Way | None) -> Callable[[], object]:
            return lambda: fit_many(recipe, examples, rows(STACK), seeds, Path(), way=way)

        fit_many(recipe.model_copy(update={"steps": 3}), examples, rows(2), seeds[:2], Path())  # what is done once a process
        way = choose(recipe, recipe.network(examples), examples, rows(STACK), seeds)
        together = "         -        -"
        if stackable(recipe.network(examples)):
            alone, at_once = compared(made(recipe, "sequential"), made(recipe, "stacked"), repeats)
            together = f"{at_once:9.2f}s {alone / at_once:7.2f}x"
        alone, chosen = compared(made(recipe, "sequential"), made(recipe, None), repeats)
        print(f"{name:24} {alone:11.2f}s {together} {chosen:8.2f}s {alone / chosen:7.2f}x    {way}", flush=True)


def two_workers_against_one(quick: bool, repeats: int) -> None:
    """Prints what a second worker saves; its start is not counted, since an audit pays it once."""
    examples, models = pool(), 64
    recipe = TorchRecipe(architecture="cnn", width=8, learning_rate=0.05, steps=40 if quick else 600, mode="stacked")

    def made(workers: int) -> Callable[[], object]:
        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                trainer = Trainer(recipe=recipe, pool=examples, folder=Path(folder), workers=workers)
                trainer.train(rows(models), list(range(models)))

        return work

    made(2)()
    one, two = compared(made(1), made(2), repeats)
    print(f"\n{models} models cnn 8-16    one worker {one:.2f}s    two workers {two:.2f}s    ratio {one / two:.2f}x")


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 1 if arguments.quick else arguments.repeats
    stacked_against_sequential(arguments.quick, repeats)
    two_workers_against_one(arguments.quick, repeats)


if __name__ == "__main__":
    main()
