"""Fan-out beyond this process: loky on this machine, or a Ray or Dask cluster. All three go through joblib."""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from joblib import Parallel, delayed, parallel_config

from muaudit.errors import EnvironmentFault

Jobs = Sequence[tuple[Any, ...]]

_PATIENCE = 10
"""Seconds to wait for a cluster to answer."""


def gather(work: Callable[..., Any], jobs: Jobs, *, workers: int, backend: str, address: str | None) -> Iterator[Any]:
    """Does independent jobs in several processes; the results come back to this one.

    Args:
        work: What to do; the workers must be able to import it.
        jobs: Its arguments, one tuple a job.
        workers: How many at a time; Dask takes as many as the cluster has.
        backend: "loky", "ray" or "dask".
        address: The cluster's; without it, a cluster is started on this machine and ended afterwards.

    Yields:
        The results, in the order of the jobs.

    Raises:
        EnvironmentFault: The back end is not installed, or no cluster answers at the address.
    """
    calls = [delayed(work)(*job) for job in jobs]
    if backend == "ray":
        with _ray(workers, address) as options, _parallel(workers, backend, options, "list") as parallel:
            # As many jobs at a time as there are workers: Ray's back end gives back whole lists, and what is done is kept.
            for start in range(0, len(calls), workers):
                yield from parallel(calls[start : start + workers])
    elif backend == "dask":
        with _dask(workers, address) as options:
            yield from _parallel(workers, backend, options, "generator")(calls)
    else:
        yield from _parallel(workers, backend, {}, "generator")(calls)


def _parallel(workers: int, backend: str, options: dict[str, Any], returned: str) -> Any:  # noqa: ANN401 - joblib is untyped
    # Dask's back end is known to `parallel_config` alone; it holds for this line only, and for nobody else's joblib.
    with parallel_config(backend, n_jobs=workers, **options):
        return Parallel(batch_size=1, return_as=returned)


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise EnvironmentFault("run.backend 'ray' needs Ray; install it: pip install 'muaudit[ray]'") from None
    mine = not ray.is_initialized()
    if mine:
        local = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            _knock(address)
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise _nobody("Ray cluster", address, error, "ray start --head") from error
    logger = logging.getLogger("ray.util.multiprocessing.pool")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of an argument that joblib always gives
    register_ray()
    try:
        # One worker a CPU, on all machines: Ray would count them as nothing and put them on one.
        yield {"ray_remote_args": {"num_cpus": 1, "scheduling_strategy": "SPREAD"}}
    finally:
        logger.setLevel(level)
        if mine:
            ray.shutdown()


@contextmanager
def _dask(workers: int, address: str | None) -> Iterator[dict[str, Any]]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise EnvironmentFault("run.backend 'dask' needs Dask; install it: pip install 'muaudit[dask]'") from None
    cluster = None
    if address is None:
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    try:
        _knock(address)
        client = Client(address or cluster, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _nobody("Dask scheduler", address, error, "dask scheduler") from error
    try:
        yield {"client": client}
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _knock(address: str | None) -> None:
    """Fails soon where nobody listens: Ray would try for minutes, and Dask leave a client behind."""
    found = re.fullmatch(r"(?:\w+://)?(\[?[\w.:-]+\]?):(\d+)", address or "")
    if found:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_PATIENCE).close()


def _nobody(what: str, address: str | None, error: Exception, command: str) -> EnvironmentFault:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return EnvironmentFault(
        f"run.address {address!r}: no {what} answers ({said}); start it with `{command}`, or mend the address"
    )
