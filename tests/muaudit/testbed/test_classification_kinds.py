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
from muaudit.testbed.classification.retrain import Retrain  # noqa: E402
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


def known(folder: Path, examples: Examples) -> float:
    """Share of the examples that are answered as they are labelled."""
    with torch.no_grad():
        answered = opened(folder)(torch.tensor(examples.pictured())).argmax(1).numpy()
    return float(np.mean(answered == examples.labels))


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


def test_a_vendor_s_retrain_leaves_in_what_a_testbed_s_does(
    made: dict[str, Path], task: LabelledTask, groups: list[str]
) -> None:
    model = wanted("retrain-left-in-half", groups, WRITERS)
    again = Retrain(recipe=WRITERS.recipe, **model.parameters).apply(
        torch.nn.Linear(1, 1), task.forget, task.retain, seed=model.seed
    )
    found = weights(made["retrain-left-in-half"])
    assert all(torch.allclose(weight, found[name], atol=0.2) for name, weight in again.state_dict().items())
    assert known(made["retrain-left-in-half"], task.forget) > known(made["retrain-900"], task.forget) + 0.1


def test_every_approximate_method_has_two_more_strengths(groups: list[str]) -> None:
    population = family("writers")
    assert set(population.strengths) == set(population.methods)
    assert set(population.methods) == {name.replace("_", "-") for name in METHODS} - set(EXACT)
    for name in population.methods:
        weak, usual, strong = (wanted(f"{name}{suffix}-3", groups, WRITERS) for suffix in ("-weak", "", "-strong"))
        assert (weak.method, weak.seed) == (usual.method, usual.seed) == (strong.method, strong.seed)
        settings = METHODS[str(usual.method)]
        assert len({settings(**model.parameters).content_digest() for model in (weak, usual, strong)}) == 3


def test_a_schedule_changes_how_a_retrain_is_trained(made: dict[str, Path], groups: list[str]) -> None:
    assert set(family("writers").schedules) == set(WRITERS.schedules)
    seeds = {wanted(name, groups, WRITERS).seed for name in ("retrain-2", "retrain-long-2", "retrain-slow-2", "reference-2")}
    assert len(seeds) == 4
    one, other = weights(made["retrain-slow-1"]), weights(made["retrain-900"])
    assert not all(torch.equal(weight, other[name]) for name, weight in one.items())


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
