"""What tells the digit in a sketch: two estimators to agree, and a network whose inner layer says how like two are."""

from pathlib import Path

import numpy as np

from muaudit.examples import Examples
from muaudit.store import write_atomically
from muaudit.testbed.diffusion.data import World
from muaudit.training import recipes
from muaudit.training.networks import Provenance, save_network
from muaudit.training.recipes import TorchRecipe, rows_digest
from muaudit.training.stacks import reproducible

EMBEDDER = TorchRecipe(architecture="cnn", width=8, steps=400, learning_rate=0.1, normalise=False)
"""Trains the network of `embedder`; `block2` is its penultimate layer."""


def paths(out: Path) -> dict[str, Path]:
    """Where the evaluators of a testbed in a folder are, by name."""
    stored = {name: out / "evaluators" / f"{name}.skops" for name in ("svc", "neighbours")}
    return stored | {"embedder": out / "embedder"}


def write_evaluators(world: World, out: Path) -> dict[str, Path]:
    """Trains the evaluators on the training images of all concepts, and stores them.

    Args:
        world: The images.
        out: The testbed's folder.

    Returns:
        `svc` and `neighbours`, scikit-learn classifiers of the ten digits in `evaluators/`, stored with skops; `embedder`, the
        folder of a small convolutional network of the ten digits. The same world gives the same bytes.
    """
    import skops.io
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    rows = world.parts["training"]
    inputs, labels = world.images[rows], world.labels[rows]
    found = paths(out)
    for name, estimator in (("svc", SVC(C=10, gamma=0.05)), ("neighbours", KNeighborsClassifier(5))):
        fitted = estimator.fit(inputs.reshape(len(rows), -1), labels)
        write_atomically(found[name], reproducible(skops.io.dumps(fitted)))
    ids = tuple(f"{row:04d}" for row in rows)
    pool = Examples(ids, ids, labels, inputs)
    module = recipes.train(EMBEDDER, pool, 0, Path(), rows=np.ones(len(rows), dtype=bool))
    saved = Provenance(recipe=EMBEDDER.content_digest(), seed="0", rows=rows_digest(ids))
    save_network(module, EMBEDDER.network(pool), found["embedder"], saved)
    return found
