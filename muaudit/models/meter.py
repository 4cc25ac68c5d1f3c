"""What asking an endpoint costs: counted, paced and limited for all threads and processes that share a store."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

from muaudit.errors import EnvironmentFault, ServerFault
from muaudit.model_config import EndpointConfig
from muaudit.results import Ledger, Usage
from muaudit.store import key_of

COUNTS = ("requests", "retries", "failures", "answers", "reused", "prompt_tokens", "completion_tokens", "unmetered")
"""What is counted, as in `muaudit.results.Usage`."""

_NAMES = 20
"""Most names under which a server said it answered that are kept; a hostile one could make up any number."""

_FARTHEST = 660.0
"""Seconds; a server's wish for a rest is heeded for ten minutes at most, so no turn is further away for that."""

_QUEUE = 1000
"""Requests that may wait for their turn, over all workers."""


def folder_of(settings: EndpointConfig, store: Path) -> Path:
    """Where answers and counts of an endpoint are kept: one folder for each model of each server."""
    return store / "answers" / key_of(url=settings.url, model=settings.model)[:16]


class Stopped(ServerFault):
    """Nobody wants the answer any more, because another request failed."""


class Meter:
    """Counts, rate limit and budget of one endpoint.

    They stand in a small database beside the answers, so that workers share them and a killed scan's requests stay counted.

    Attributes:
        path: The database.
        interval: Least seconds between two requests.
        budget: Most requests that may ever be sent; None for any number.
    """

    def __init__(self, folder: Path, *, requests_per_minute: float | None = None, max_requests: int | None = None) -> None:
        self.path = folder / "meter.sqlite"
        self.interval = 0.0 if requests_per_minute is None else 60 / requests_per_minute
        self.budget = max_requests

    def admit(self, *, retry: bool, stopped: Event) -> None:
        """Waits for this request's turn, and counts it; one that is stopped while it waits is not counted, as it is never sent.

        Args:
            retry: Whether it was sent before and failed.
            stopped: Set when nobody wants the answer any more.

        Raises:
            ServerFault: The budget is spent.
            Stopped: Nobody wants the answer any more.
        """
        if stopped.is_set():
            raise Stopped("stopped, because another request failed")
        with self._opened() as base:
            sent, turn = base.execute("SELECT requests, turn FROM meter").fetchone()
            if self.budget is not None and sent >= self.budget:
                raise ServerFault(
                    f"max_requests = {self.budget} is spent ({sent} requests sent for this store); the answers are kept: "
                    "raise max_requests and run the same command again to go on"
                )
            now = time.time()
            if turn > now + _FARTHEST + _QUEUE * self.interval:  # the clock was set back since
                turn = now
            turn = max(turn, now)
            base.execute(
                "UPDATE meter SET requests = requests + 1, retries = retries + ?, turn = ?", (retry, turn + self.interval)
            )
        if stopped.wait(max(0.0, turn - time.time())):
            self.count(requests=-1, retries=-int(retry))
            raise Stopped("stopped, because another request failed")

    def pause(self, seconds: float) -> None:
        """Lets nobody ask for so long: the server wants a rest."""
        with self._opened() as base:
            base.execute("UPDATE meter SET turn = max(turn, ?)", (time.time() + seconds,))

    def count(self, *, served: str | None = None, **counts: int) -> None:
        """Adds to the counts.

        Args:
            served: The name under which the server said that it answered.
            **counts: By the names in `COUNTS`.
        """
        with self._opened() as base:
            for name, number in counts.items():
                base.execute(f"UPDATE meter SET {name} = {name} + ?", (number,))  # noqa: S608 - our own names, never input
            if served is not None and base.execute("SELECT count(*) FROM served").fetchone()[0] < _NAMES:
                base.execute("INSERT OR IGNORE INTO served VALUES (?)", (served,))

    def read(self) -> dict[str, int]:
        """The counts so far; all 0 where nothing was ever asked."""
        if not self.path.exists():
            return dict.fromkeys(COUNTS, 0)
        with self._opened() as base:
            row = base.execute(f"SELECT {', '.join(COUNTS)} FROM meter").fetchone()  # noqa: S608 - our own names
        return dict(zip(COUNTS, row, strict=True))

    def served(self) -> tuple[str, ...]:
        """The names under which the server said that it answered, sorted; at most twenty."""
        if not self.path.exists():
            return ()
        with self._opened() as base:
            return tuple(name for (name,) in base.execute("SELECT name FROM served ORDER BY name"))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database, locked for one change; a connection a change, since threads cannot share one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as base:
                base.execute("BEGIN IMMEDIATE")
                columns = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COUNTS)
                base.execute(f"CREATE TABLE IF NOT EXISTS meter (one INTEGER PRIMARY KEY, {columns}, turn REAL DEFAULT 0)")
                base.execute("CREATE TABLE IF NOT EXISTS served (name TEXT PRIMARY KEY)")
                base.execute("INSERT OR IGNORE INTO meter (one) VALUES (1)")
                yield base
                base.execute("COMMIT")
        except sqlite3.Error as error:
            raise EnvironmentFault(
                f"{self.path}: the endpoint's counts cannot be kept ({error}); delete that file to count anew, the answers stay"
            ) from error


class Books:
    """The endpoints of a run: what was counted before it, and what it adds.

    Requests of another audit that uses the same store at the same time are counted too.
    """

    def __init__(self, models: Iterable[tuple[str, object]], store: Path) -> None:
        """Reads the counts before anything is asked.

        Args:
            models: Roles and configurations; those that are no endpoints are passed over.
            store: The audit's store.
        """
        self._meters: dict[Path, tuple[list[str], EndpointConfig]] = {}
        for role, model in models:
            if isinstance(model, EndpointConfig):
                self._meters.setdefault(folder_of(model, store), ([], model))[0].append(role)
        self._before = {folder: Meter(folder).read() for folder in self._meters}

    def closed(self) -> tuple[Ledger, ...]:
        """One ledger an endpoint, in the order of the models."""
        ledgers = []
        for folder, (roles, settings) in self._meters.items():
            meter = Meter(folder)
            total, before = meter.read(), self._before[folder]
            ledgers.append(
                Ledger(
                    role=", ".join(roles),
                    endpoint=settings.shown,
                    run=_usage({name: total[name] - before[name] for name in COUNTS}, settings),
                    total=_usage(total, settings),
                    served=meter.served(),
                )
            )
        return tuple(ledgers)


def _usage(counts: dict[str, int], settings: EndpointConfig) -> Usage:
    prices = settings.price_per_million_input, settings.price_per_million_output
    cost = None
    if prices[0] is not None and prices[1] is not None:
        cost = round((counts["prompt_tokens"] * prices[0] + counts["completion_tokens"] * prices[1]) / 1e6, 6)
    return Usage(**counts, cost=cost)
