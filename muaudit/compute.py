"""Device, seeds, threads and fan-out."""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muaudit.errors import EnvironmentFault, UsageError


def seed_of(*parts: str) -> int:
    """A seed in [0, 2**63) from the plan's seed and what it is for, so that no two draws share a stream."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big") >> 1


def resolve_device(device: str) -> str:
    """Names the device that "auto" means on this machine.

    Args:
        device: "auto", or what the plan asks for.

    Returns:
        A torch device name; "cpu" where torch is not installed, since only recorded outputs can be audited then.

    Raises:
        EnvironmentFault: The plan asks for a device that this machine lacks.
        UsageError: There is no such kind of device.
    """
    try:
        import torch
    except ImportError:
        if device not in ("auto", "cpu"):
            raise EnvironmentFault(f"run.device {device!r} needs torch; install it: pip install 'muaudit[models]'") from None
        return "cpu"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentFault(f"run.device {device!r}: torch sees no CUDA device here; use device = 'cpu' or 'auto'")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"run.device {device!r}: not a device; write auto, cpu, cuda or cuda:1") from error
    return device


@contextmanager
def settled(threads: int, *, torch_used: bool = True) -> Iterator[None]:
    """Fixes what changes the last bits of a sum, while it lasts: thread count and algorithms.

    Args:
        threads: Threads to compute with.
        torch_used: False where nothing but recorded outputs is read, so that torch need not be imported.

    Yields:
        Nothing; afterwards the caller's process is as it was, so that an audit inside a test session changes no other test.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not torch_used:
        yield
        return
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Takes denormal floats for zero, while it lasts; also a decorator.

    They slow a CPU by a factor of hundreds, and suppressed or over-driven models are full of them. Afterwards the thread is as
    it was: other code in the process may need them.

    Yields:
        Nothing.
    """
    import torch

    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class Stopwatch:
    """Seconds spent inside a model, with denormals flushed; a copy of the model shares its parent's."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time spent inside the block."""
        start = time.perf_counter()
        try:
            with flushed_denormals():
                yield
        finally:
            self.seconds += time.perf_counter() - start


def spread(
    work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], *, workers: int, backend: str, address: str | None = None
) -> Iterator[Any]:
    """Does independent jobs, in this process or in several, here or on a cluster.

    Args:
        work: What to do; picklable when workers > 1.
        jobs: Its arguments, one tuple a job; with one worker, each is asked for when the one before is done.
        workers: How many at a time; 1 does all in this process, whatever the back end.
        backend: joblib's back end: "loky", "ray" or "dask".
        address: The Ray or Dask cluster's; without it, a cluster is started on this machine and ended afterwards.

    Yields:
        The results, in the order of the jobs, each as soon as it and all before it are done.

    Raises:
        EnvironmentFault: The back end is not installed, or no cluster answers at the address.
    """
    if workers == 1 or len(together := list(jobs)) < 2:
        for job in jobs if workers == 1 else together:
            yield work(*job)
        return
    from muaudit.training.clusters import gather

    yield from gather(work, together, workers=workers, backend=backend, address=address)


def peak_memory() -> int | None:
    """The most main memory that this process, or one of those that it started and that ended, held at a time, in bytes.

    Returns:
        Bytes; None where the system does not count them (Windows).
    """
    if sys.platform == "win32":
        return None
    import resource

    own, ended = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    if sys.platform == "darwin":
        return max(own, ended)
    # Linux hands getrusage's peak on to whatever a process starts; its own stands here.
    status = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    return 1024 * max(own if status is None else int(status[1]), ended)
