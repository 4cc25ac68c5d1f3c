"""Fan-out over real clusters that the tests start: the same work, the same bytes, and what was done is kept."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from digits_pool import digits

from muaudit.compute import spread
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.training.recipes import TorchRecipe
from muaudit.training.shadows import Trainer

pytestmark = pytest.mark.long

MEMORY = 80 * 2**20
"""Bytes of Ray's object store on each node; the least that it takes is 75 MiB."""


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster of two nodes, each with one CPU."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def dask_address() -> Iterator[str]:
    """A Dask scheduler with two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(params=["ray", "dask"])
def cluster(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param, request.getfixturevalue(f"{request.param}_address")


def trainer(folder: Path, **values: Any) -> Trainer:
    return Trainer(recipe=TorchRecipe(hidden=(8,), steps=10, mode="stacked"), pool=digits(60), folder=folder, **values)


def test_shadows_from_a_cluster_are_those_from_here(cluster: tuple[str, str], tmp_path: Path) -> None:
    backend, address = cluster
    rows = np.random.default_rng(0).random((34, 60)) < 0.5
    here = trainer(tmp_path / "here").train(rows, range(34))
    told: list[int] = []
    away = trainer(tmp_path / "away", workers=2, backend=backend, address=address, progress=lambda done, *_: told.append(done))
    there = away.train(rows, range(34))
    assert told == [12, 23, 34]
    assert there.digest == here.digest
    for path in here.folder.iterdir():
        assert (there.folder / path.name).read_bytes() == path.read_bytes()


def test_both_nodes_work_and_results_come_in_order(ray_address: str) -> None:
    import ray

    jobs = [(number,) for number in range(6)]
    done = list(
        spread(lambda n: (n, ray.get_runtime_context().get_node_id()), jobs, workers=2, backend="ray", address=ray_address)
    )
    assert [number for number, _ in done] == list(range(6))
    assert len({node for _, node in done}) == 2
    assert not ray.is_initialized()  # whoever asked is as before


def test_both_worker_processes_work_and_results_come_in_order(dask_address: str) -> None:
    def slowly(number: int) -> tuple[int, int]:
        import time

        time.sleep(0.2)
        return number, os.getpid()

    done = list(spread(slowly, [(number,) for number in range(6)], workers=2, backend="dask", address=dask_address))
    assert [number for number, _ in done] == list(range(6))
    assert len({process for _, process in done} - {os.getpid()}) == 2


def test_an_error_comes_back_as_it_was(cluster: tuple[str, str]) -> None:
    def fails(number: int) -> int:
        if number:
            raise ModelError("the loss is NaN")
        return number

    backend, address = cluster
    with pytest.raises(ModelError, match="the loss is NaN"):
        list(spread(fails, [(0,), (1,)], workers=2, backend=backend, address=address))


@pytest.mark.parametrize(("backend", "library"), [("ray", "ray"), ("dask", "distributed")])
def test_a_cluster_that_does_not_answer_is_named(backend: str, library: str) -> None:
    pytest.importorskip(library)
    with pytest.raises(EnvironmentFault, match=rf"'127\.0\.0\.1:1': no {backend.title()} \w+ answers"):
        list(spread(abs, [(1,), (2,)], workers=2, backend=backend, address="127.0.0.1:1"))


@pytest.mark.parametrize(("backend", "library"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_back_end_says_what_to_install(backend: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(EnvironmentFault, match=rf"pip install 'muaudit\[{backend}\]'"):
        list(spread(abs, [(1,), (2,)], workers=2, backend=backend))


def test_one_worker_needs_no_cluster(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((3, 60)) < 0.5
    away = replace(trainer(tmp_path), backend="ray", address="127.0.0.1:1")
    assert len(away.train(rows, range(3))) == 3
