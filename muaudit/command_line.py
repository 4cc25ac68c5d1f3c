"""What every command of the command line shares: errors as one line, consoles, JSON, progress, passphrases."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import click

from muaudit.errors import EnvironmentFault, MuauditError

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3, "skipped": 3, "error": 3}
"""What an audit's verdict exits with; 2 is usage, 4 a failed verification, 5 the environment."""

PASSPHRASE_VARIABLE = "MUAUDIT_KEY_PASSPHRASE"  # noqa: S105 - a variable's name, not a passphrase

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

SILENCE = 60.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""

existing = click.Path(exists=True, path_type=Path)
anywhere = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def fail(message: str, code: int) -> NoReturn:
    """Prints one line, with whatever could steer a terminal taken out, and exits."""
    click.echo("muaudit: " + CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(message.split())), err=True)
    sys.exit(code)


def shown(command: Callable[P, T]) -> Callable[P, T]:
    """Turns errors into one line and the right exit code; what was computed is on disk already."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except MuauditError as error:
            fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("muaudit"):
                raise
            fail(f"{error.name} is not installed, which this command needs; install it: pip install 'muaudit[models]'", 5)
        except MemoryError:
            fail("out of memory; lower batch_size, choose a smaller dtype, or use a larger machine", EnvironmentFault.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; what was measured is kept: run the same command again to go on", 130)

    return run


def console(*, stderr: bool = False) -> "Console":
    """A terminal that colours only where a person looks."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def wrote(path: Path, as_json: bool, *further: str) -> None:
    """Says where a file went, and what to do next."""
    if as_json:
        put_json({"path": str(path)})
    else:
        click.echo("\n".join([f"wrote {path}", *further]))


def put_json(value: object) -> None:
    """Prints a value as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Progress on stderr: a bar on a terminal, and elsewhere a line a minute.

    Yields:
        A callable of steps done, steps in all and what was done.
    """
    if not sys.stderr.isatty():
        yield _now_and_then()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=screen, transient=True) as bar:
        line = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(line, completed=done, total=total, description=what)


def _now_and_then() -> Callable[[int, int, str], None]:
    """Writes what was done, unless a line was written less than a minute ago: a log of hours says that they are spent well."""
    last = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SILENCE:
            last = now
            harmless = CONTROL.sub("\N{REPLACEMENT CHARACTER}", what)
            click.echo(f"{time.strftime('%H:%M')} {done} of {total}: {harmless}", err=True)

    return tell
