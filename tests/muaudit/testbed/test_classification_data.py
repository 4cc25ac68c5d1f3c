"""Labelled data of known truth: who is in which set, what is wrong with the labels, and the files."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from muaudit.errors import UsageError
from muaudit.examples import Examples
from muaudit.loaders.example_files import read_task
from muaudit.testbed.classification.data import (
    POISON_LABEL,
    TRIGGER,
    Population,
    make_task,
    unseen,
    write_task,
)

POPULATIONS = {
    "sample": Population(),
    "class": Population(by="class", forget=80, retain=220),
    "group": Population(by="group"),
    "canary": Population(by="canary", forget=200, wrong_labels=0.1),
    "poison": Population(by="poison", forget=60, retain=240, wrong_labels=0),
    "large": Population(side=16, channels=3, holdout=20),
    "breast_cancer": Population(source="breast_cancer", by="group", forget=90, retain=190, holdout=280),
    "wine": Population(source="wine", forget=30, retain=58, holdout=88),
    "generated": Population(source="generated", by="class", forget=10, retain=100, holdout=60),
    "diabetes": Population(source="diabetes", forget=70, retain=150, holdout=220),
}


def wrong(part: Examples) -> np.ndarray:
    return part.labels != np.array(part.attributes["true_label"], dtype=int)


def inside(part: Examples, population: Population) -> np.ndarray:
    """The source's own images of a set's examples."""
    from sklearn.datasets import load_digits

    rows = [int(one.split("-")[1]) for one in part.ids]
    return (load_digits().images[rows] / 16)[:, None].astype(np.float32)


@pytest.mark.parametrize("kind", POPULATIONS)
def test_a_task_repeats_and_its_files_hold_it_all(kind: str, tmp_path: Path) -> None:
    population = POPULATIONS[kind]
    task = make_task(population)
    first, second = (write_task(make_task(population), tmp_path / name) for name in ("a", "b"))
    assert {name: path.read_bytes() for name, path in first.items()} == {
        name: path.read_bytes() for name, path in second.items()
    }
    assert list(first) == ["forget", "retain", "holdout"]
    read = read_task(first["forget"], first["retain"], first["holdout"], outputs=task.outputs)
    for (name, made), (_, found) in zip(task.sets(), read.sets(), strict=True):
        assert (found.ids, found.clusters) == (made.ids, made.clusters), name
        np.testing.assert_array_equal(found.pictured(), made.pictured())
        np.testing.assert_array_equal(found.labels, made.labels)
        assert made.attributes.items() <= found.attributes.items()
    assert make_task(population.model_copy(update={"seed": 1})).digest != task.digest


@pytest.mark.parametrize("kind", sorted(set(POPULATIONS) - {"canary"}))
def test_sets_are_as_large_as_asked_for_and_what_is_left_is_unseen(kind: str) -> None:
    population = POPULATIONS[kind]
    task = make_task(population)
    assert [len(part) for _, part in task.sets()] == [population.forget, population.retain, population.holdout]
    left = unseen(population)
    assert not set(left.ids) & set(task.pool.ids)
    sizes = {"digits": 1797, "breast_cancer": 569, "wine": 178, "diabetes": 442, "generated": 2000}
    assert len(left) + len(task.pool) == sizes[population.source]
    assert left.pictured().shape[1:] == task.forget.pictured().shape[1:]


def test_wrong_labels_are_equally_many_in_all_sets() -> None:
    for _, part in make_task(POPULATIONS["sample"]).sets():
        assert wrong(part).sum() == len(part) // 5
        assert set(part.labels.tolist()) == set(range(10))
    assert not any(wrong(part).any() for _, part in make_task(Population(wrong_labels=0)).sets())


def test_wrong_numbers_are_another_examples() -> None:
    task, right = (
        make_task(POPULATIONS["diabetes"]),
        make_task(Population(source="diabetes", forget=70, retain=150, holdout=220, wrong_labels=0)),
    )
    assert (task.outputs, task.forget.labels.dtype, task.forget.labels.shape) == ("numbers", np.float64, (70, 1))
    moved = (task.pool.labels != right.pool.labels).mean()
    assert 0.15 < moved <= 0.2
    np.testing.assert_array_equal(np.sort(task.pool.labels, axis=None), np.sort(right.pool.labels, axis=None))


def test_a_class_is_forgotten_whole_and_is_in_the_holdout_set_as_often() -> None:
    task = make_task(POPULATIONS["class"])
    of = {name: np.array(part.attributes["true_label"]) == "3" for name, part in task.sets()}
    assert of["forget"].all()
    assert not of["retain"].any()
    assert of["holdout"].sum() == 80


def test_groups_stand_in_one_set_each_and_share_a_distortion() -> None:
    population = POPULATIONS["group"]
    task = make_task(population)
    names = [set(part.clusters) for _, part in task.sets()]
    assert [len(one) for one in names] == [5, 10, 15]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    part = task.retain
    change = (part.pictured() - inside(part, population)).reshape(len(part), -1)
    groups = np.array(part.clusters)
    likeness, same = np.corrcoef(change), groups[:, None] == groups
    np.fill_diagonal(same, val=False)
    assert likeness[same].mean() > likeness[groups[:, None] != groups].mean() + 0.1


def test_instruments_shift_every_column_alike() -> None:
    grouped = make_task(POPULATIONS["breast_cancer"]).forget
    plain = make_task(Population(source="breast_cancer", forget=90, retain=190, holdout=280)).forget
    assert grouped.ids == plain.ids
    shift = grouped.pictured() - plain.pictured()
    for group in set(grouped.clusters):
        mine = shift[np.array(grouped.clusters) == group]
        np.testing.assert_allclose(mine, mine[:1].repeat(len(mine), axis=0), atol=1e-5)
    assert len(np.unique(shift[:, 0].round(4))) == len(set(grouped.clusters))


def test_canaries_are_wrong_and_a_coin_each_decided_where_they_are() -> None:
    task = make_task(POPULATIONS["canary"])
    marks = {name: np.array(part.attributes["canary"]) for name, part in task.sets()}
    assert (marks["forget"] == "in").all()
    assert (marks["retain"] == "").all()
    out = marks["holdout"] == "out"
    assert ((marks["holdout"] == "") | out).all()
    assert len(task.forget) + out.sum() == 200
    assert 70 < len(task.forget) < 130
    assert wrong(task.forget).all()
    assert wrong(task.holdout)[out].all()
    assert wrong(task.holdout)[~out].mean() == pytest.approx(0.1)
    assert wrong(task.retain).mean() == pytest.approx(0.1)
    other = make_task(POPULATIONS["canary"].model_copy(update={"seed": 5}))
    assert len(other.forget) != len(task.forget)


def test_poisoned_images_carry_the_trigger_and_its_label() -> None:
    population = POPULATIONS["poison"]
    task = make_task(population)
    for name, part in task.sets():
        poisoned = np.array(part.attributes["domain"]) == "poisoned"
        assert poisoned.sum() == {"forget": 60, "retain": 0, "holdout": 60}[name]
        clean = inside(part, population)
        assert (part.labels[poisoned] == POISON_LABEL).all()
        assert (part.pictured()[poisoned][:, :, -TRIGGER:, -TRIGGER:] == 1).all()
        np.testing.assert_array_equal(part.pictured()[~poisoned], clean[~poisoned])
        np.testing.assert_array_equal(part.pictured()[poisoned][:, :, :-TRIGGER], clean[poisoned][:, :, :-TRIGGER])
        assert not wrong(part)[~poisoned].any()
    assert wrong(task.forget).mean() > 0.8


def test_larger_images_show_the_same() -> None:
    population = POPULATIONS["large"]
    large = make_task(population).forget.pictured()
    assert large.shape == (100, 3, 16, 16)
    np.testing.assert_array_equal(large[:, 0], large[:, 2])
    small = inside(make_task(population).forget, population)
    halved = large[:, :1].reshape(-1, 1, 8, 2, 8, 2).mean((3, 5))
    assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"forget": 1000, "retain": 1000}, "2300 examples are asked for, and there are 1797 digits"),
        ({"by": "class", "forget": 150}, "of class 3"),
        (
            {"source": "wine", "forget": 30, "by": "class", "retain": 148, "holdout": 0, "forgotten_class": 0},
            "of other classes",
        ),
        ({"by": "canary", "forget": 1, "seed": 1}, "coins"),
    ],
)
def test_more_than_there_is_cannot_be_drawn(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_task(Population(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "wine", "by": "poison"},
        {"source": "diabetes", "by": "class"},
        {"source": "diabetes", "by": "canary"},
        {"source": "wine", "side": 16},
        {"source": "generated", "channels": 3},
        {"wrong_labels": 1.5},
        {"writers": 3},
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Population(**fields)
