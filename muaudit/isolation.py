"""Work in a process of its own: what crashes, hangs or runs out of memory there takes nothing else with it.

One such process is kept and given one piece of work after another, so that libraries are imported and a model is opened once.
It is ended and another one started when it crashed, took too long or ran out of memory. Programs that are started anew,
instead of copies of this one, inherit no thread, no lock and no state of an accelerator.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from muaudit.errors import MuauditError

P = ParamSpec("P")
T = TypeVar("T")

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what was just done."""

Fault = Literal["raised", "crashed", "timeout", "memory", "untried"]
"""How work can end without a result: by an error of its own, or lost; or it was not begun, since it was lost before."""

_GLANCE = 0.2
"""Seconds between two looks at whether the process is still there."""

_GIB = 2**30

_PIPE: Connection | None = None
"""In a process that `serve`s: the way back."""


@dataclass(frozen=True)
class Limits:
    """What a piece of work may take.

    Attributes:
        timeout: Seconds for the work, and as many before it says that it has `begun`; None for any number.
        memory: GiB of main memory; None for any number.
    """

    timeout: float | None = None
    memory: float | None = None


class Lost(Exception):
    """Work that ended without a result; it says how.

    Attributes:
        fault: How it ended.
    """

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(fault, reason)
        self.fault: Fault = fault

    def __str__(self) -> str:
        return str(self.args[1])


class _Helper:
    """A process that works for this one."""

    def __init__(self, limits: Limits) -> None:
        self.memory = limits.memory
        ours, theirs = socket.socketpair()
        with theirs:
            words = f"from muaudit.isolation import serve; serve({theirs.fileno()}, {os.getpid()}, {limits.memory!r})"
            self.process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-P", "-c", words],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what an attack prints must not get into what a command prints
                start_new_session=True,  # to be ended together with what it starts; an interrupt is for us to pass on
            )
        self.pipe = Connection(ours.detach())

    def ask(self, work: Callable[..., Any], arguments: tuple[Any, ...], timeout: float | None, progress: Progress) -> Any:  # noqa: ANN401
        """Has a piece of work done; raises what it raises, or `Lost`."""
        self._answer(None, progress)  # that it is ready: starting is not the work's time
        with suppress(OSError):  # it is gone, which the answer tells
            self.pipe.send((work, arguments))
        return self._answer(timeout, progress)

    def _answer(self, timeout: float | None, progress: Progress) -> Any:  # noqa: ANN401 - whatever the work returns
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            kind, value = self._message(end, timeout)
            if kind == "begun":
                end = None if timeout is None else time.monotonic() + timeout
            elif kind == "progress":
                progress(*value)
            elif kind == "raised":
                raise value
            else:
                return value

    def _message(self, end: float | None, timeout: float | None) -> tuple[str, Any]:
        while True:
            left = _GLANCE if end is None else min(_GLANCE, end - time.monotonic())
            if left <= 0:
                raise Lost("timeout", f"took longer than run.timeout = {timeout:g} seconds and was ended")
            gone = self.process.poll() is not None  # before the look, so that its last words are not missed
            try:
                if self.pipe.poll(0 if gone else left):
                    found: tuple[str, Any] = self.pipe.recv()
                    return found
            except (EOFError, OSError):
                gone = True
            if gone:
                raise Lost("crashed", _ending(self.process.wait()))

    def end(self) -> None:
        """Ends it, and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.pipe.close()


def _ending(code: int) -> str:
    """What an exit code tells."""
    if code >= 0:
        return f"ended its process with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return "was killed with its process (SIGKILL), as happens where the machine runs out of memory"
    return f"crashed its process ({name})"


_HELPER: _Helper | None = None


def call(work: Callable[P, T], limits: Limits, progress: Progress, *args: P.args, **kwargs: P.kwargs) -> T:
    """Does a piece of work in the process that is kept for it.

    Args:
        work: A function of a module, since it is looked up by its name there.
        limits: What it may take.
        progress: Told of the steps that the work tells of.
        *args: What the work is given.
        **kwargs: None; the work takes what it needs by place.

    Returns:
        What the work returned.

    Raises:
        Lost: It ended without a result.
        MuauditError: The work raised it.
    """
    global _HELPER  # noqa: PLW0603 - one process for all work of this one
    assert not kwargs  # noqa: S101 - said above
    if _HELPER is not None and _HELPER.memory != limits.memory:
        close()
    if _HELPER is None:
        _HELPER = _Helper(limits)
    try:
        result: T = _HELPER.ask(work, args, limits.timeout, progress)
    except MuauditError:
        raise
    except BaseException:
        close()  # nobody knows in what state it is
        raise
    return result


def close() -> None:
    """Ends the process that is kept, if there is one."""
    global _HELPER
    helper, _HELPER = _HELPER, None
    if helper is not None:
        helper.end()


atexit.register(close)


def begun() -> None:
    """Says, from inside a piece of work, that its time starts now: what it works on is open. Elsewhere, it does nothing."""
    if _PIPE is not None:
        _PIPE.send(("begun", None))


def tell(done: int, total: int, what: str) -> None:
    """Tells of a step, from inside a piece of work."""
    if _PIPE is not None:
        _PIPE.send(("progress", (done, total, what)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, torch's, or one of the operating system's that torch passes on."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, OSError | RuntimeError) and any(
        said in str(error).lower() for said in ("can't allocate memory", "cannot allocate memory", "out of memory")
    )


def serve(descriptor: int, parent: int, memory: float | None) -> None:
    """Works for another process until that one is gone.

    Args:
        descriptor: Of the socket to it.
        parent: Its number.
        memory: GiB of main memory that may be used.
    """
    global _PIPE  # noqa: PLW0603 - for `begun` and `tell`, which the work calls
    os.set_inheritable(descriptor, False)  # a process that an attack starts must not keep the line open
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if memory is not None:
        _limit(int(memory * _GIB))
    import muaudit.preparing  # noqa: F401 - what is to be imported for any work is not the first work's time

    _PIPE = Connection(descriptor)
    while True:
        try:
            _PIPE.send(("ready", None))
            work, arguments = _PIPE.recv()
        except (EOFError, OSError):
            return
        try:
            answer = "result", work(*arguments)
        except MuauditError as error:
            answer = "raised", error
        except Exception as error:  # noqa: BLE001 - whoever asked has to hear of it
            memory = out_of_memory(error)
            answer = (
                "raised",
                Lost(
                    "memory" if memory else "raised",
                    "ran out of memory" if memory else f"failed with {type(error).__name__}: {error}",
                ),
            )
        _PIPE.send(answer)


def _watch(parent: int) -> None:
    """Ends this process, and what it started, when the one that it works for is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _limit(size: int) -> None:
    """Lets this process and those that it starts have so many bytes of memory each."""
    import resource

    # Not the address space: an accelerator's driver reserves more of it than there is memory.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))
