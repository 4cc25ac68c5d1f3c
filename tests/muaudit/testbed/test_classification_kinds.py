"""Classifiers for calibrations: shares left in, schedules, strengths, and models that are made of finished ones."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from muaudit.examples import Examples, LabelledTask  # noqa: E402 - after the check for torch
from muaudit.testbed.classification.build import METHODS, PRESETS, build, wanted  # noqa: E402
from muaudit.testbed.classification.data import make_task  # noqa: E402
from muaudit.testbed.classification.derived import opened  # noqa: E402
from muaudit.testbed.classification.method import fitted  # noqa: E402
from muaudit.testbed.classification.retrain import Retrain  # noqa: E402
from muaudit.testbed.folders import one_thread  # noqa: E402
from muaudit.testbed.populations import EXACT, family  # noqa: E402

WRITERS = PRESETS["writers"]
NAMES = (
    "retrain-900", "retrain-left-in-half", "retrain-slow-1", "interpolated-0", "interpolated-50", "interpolated-100",
    "retrain-900-4bit", "retrain-900-relearned",
)  # fmt: skip


@pytest.fixture(scope="module")
def task() -> LabelledTask:
    return make_task(WRITERS.population)


@pytest.fixture(scope="module")
def groups(task: LabelledTask) -> list[str]:
    return list(dict.fromkeys(task.forget.clusters))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(WRITERS, tmp_path_factory.mktemp("writers"), NAMES, jobs=1)


def weights(folder: Path) -> dict[str, "torch.Tensor"]:
    return dict(opened(folder).state_dict())


def right(module: "torch.nn.Module", examples: Examples) -> float:
    """Share of the examples that are answered as they are labelled."""
    with torch.no_grad():
        answered = module(torch.tensor(examples.pictured())).argmax(1).numpy()
    return float(np.mean(answered == examples.labels))


def known(folder: Path, examples: Examples) -> float:
    """Likewise, of the model in a folder."""
    return right(opened(folder), examples)


def test_there_are_thirty_groups(task: LabelledTask, groups: list[str]) -> None:
    assert (len(groups), len(task.forget)) == (30, 180)


@pytest.mark.parametrize(("share", "count"), [("one", 1), ("tenth", 3), ("half", 15)])
def test_a_share_of_the_groups_is_left_in(groups: list[str], share: str, count: int) -> None:
    first, other = (wanted(f"retrain-left-in-{share}{number}", groups, WRITERS) for number in ("", "-1"))
    assert len(set(first.parameters["left_in"])) == count
    assert set(first.parameters["left_in"]) < set(groups)
    assert (first.method, first.parameters == other.parameters, first.seed == other.seed) == ("retrain", False, False)


def test_what_is_left_in_is_known_and_the_rest_is_not(made: dict[str, Path], task: LabelledTask, groups: list[str]) -> None:
    chosen = wanted("retrain-left-in-half", groups, WRITERS).parameters["left_in"]
    seen = np.isin(task.forget.clusters, chosen)
    folder = made["retrain-left-in-half"]
    assert known(folder, task.forget.take(seen)) > 0.95
    assert known(folder, task.forget.take(~seen)) == pytest.approx(known(made["retrain-900"], task.forget), abs=0.1)


def test_a_vendor_s_retrain_leaves_in_the_same(task: LabelledTask, groups: list[str]) -> None:
    model = wanted("retrain-left-in-half", groups, WRITERS)
    vendor = Retrain(recipe=WRITERS.recipe, **model.parameters)
    module = vendor.apply(torch.nn.Linear(1, 1), task.forget, task.retain, seed=model.seed)
    seen = np.isin(task.forget.clusters, model.parameters["left_in"])
    assert right(module, task.forget.take(seen)) > 0.95
    assert right(module, task.forget.take(~seen)) < 0.7


def test_every_approximate_method_has_two_more_strengths(groups: list[str]) -> None:
    population = family("writers")
    assert set(population.strengths) == set(population.methods)
    assert set(population.methods) == {name.replace("_", "-") for name in METHODS} - set(EXACT)
    for name in population.methods:
        weak, usual, strong = (wanted(f"{name}{suffix}-3", groups, WRITERS) for suffix in ("-weak", "", "-strong"))
        assert (weak.method, weak.seed) == (usual.method, usual.seed) == (strong.method, strong.seed)
        settings = METHODS[str(usual.method)]
        assert len({settings(**model.parameters).content_digest() for model in (weak, usual, strong)}) == 3


def test_a_schedule_changes_how_a_retrain_is_trained(made: dict[str, Path], task: LabelledTask, groups: list[str]) -> None:
    assert set(family("writers").schedules) == set(WRITERS.schedules)
    seeds = {wanted(name, groups, WRITERS).seed for name in ("retrain-2", "retrain-long-2", "retrain-slow-2", "reference-2")}
    assert len(seeds) == 4
    rows = np.isin(np.arange(len(task.pool)), task.rows("retain"))
    recipe = WRITERS.recipe.model_copy(update=WRITERS.schedules["slow"])
    with one_thread():
        usual, slow = (
            fitted(way, task.pool, rows, wanted("retrain-slow-1", groups, WRITERS).seed) for way in (WRITERS.recipe, recipe)
        )
    found = weights(made["retrain-slow-1"])
    assert all(torch.equal(weight, found[name]) for name, weight in slow.state_dict().items())
    assert not all(torch.equal(weight, found[name]) for name, weight in usual.state_dict().items())


@pytest.mark.parametrize("schedule", WRITERS.schedules)
def test_every_schedule_learns_what_is_kept(task: LabelledTask, schedule: str) -> None:
    """A schedule that does not would be taken for damage, and the retrain be failed."""
    rows = np.isin(np.arange(len(task.pool)), task.rows("retain"))
    module = fitted(WRITERS.recipe.model_copy(update=WRITERS.schedules[schedule]), task.pool, rows, 7)
    assert right(module, task.retain) > 0.97


def test_a_ladder_leads_from_a_retrain_to_one_that_knows(made: dict[str, Path], task: LabelledTask) -> None:
    first, half, last, retrain = (weights(made[name]) for name in (*NAMES[3:6], "retrain-900"))
    for name, weight in half.items():
        assert torch.equal(first[name], retrain[name])
        assert torch.allclose(weight, (first[name] + last[name]) / 2, atol=1e-6)
    shares = [known(made[name], task.forget) for name in NAMES[3:6]]
    assert shares == sorted(shares)
    assert shares[2] > 0.95 > 0.7 > shares[0]


def test_copies_are_rounded_and_relearned(made: dict[str, Path], task: LabelledTask) -> None:
    matrices = [weight for weight in weights(made["retrain-900-4bit"]).values() if weight.ndim == 2]
    assert matrices
    for weight in matrices:
        flat = weight.flatten()
        assert max(len(block.unique()) for block in flat[: len(flat) // 64 * 64].reshape(-1, 64)) <= 16
    assert known(made["retrain-900-relearned"], task.forget) > known(made["retrain-900"], task.forget) + 0.02
