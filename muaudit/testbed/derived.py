"""Models that are made of finished ones: interpolated between two, with 4-bit weights, or trained on a little further.

They are kept as all others are: a folder by name, with a marker that holds the key of what it was made from. A family gives a
`Workshop`, which opens a model's folder, changes its weights, and writes it again.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from muaudit.errors import UsageError
from muaudit.results import Frozen
from muaudit.testbed import folders
from muaudit.testbed.folders import Progress, completed, finished, key_in, one_thread

Kind = Literal["interpolated", "taught", "4bit", "relearned"]

PARTNER = 900
"""Number of the retrain that a ladder starts from, less the ladder's own; calibrations have no such retrain."""

_COPY = re.compile(r"(.+)-(4bit|relearned)")
_LADDER = re.compile(r"interpolated-(\d{1,3})(?:-(\d+))?")
_TAUGHT = re.compile(r"taught(?:-(\d+))?")


class Derived(Frozen):
    """A model that is made of finished ones.

    Attributes:
        name: Its folder's name.
        kind: How it is made.
        sources: The folders' names that it is made of.
        share: Of an interpolated one, the share of the first source's weights.
        seed: Of what is drawn for it.
    """

    name: str
    kind: Kind
    sources: tuple[str, ...]
    share: float | None = None
    seed: int = 0


class Workshop(Protocol):
    """What a family can do with a finished model's folder.

    Each method writes a whole folder: the same bytes for the same inputs on one machine with one thread.
    """

    def interpolate(self, knowing: Path, other: Path, share: float, out: Path) -> None:
        """Writes the model whose weights are share * knowing + (1 - share) * other."""
        ...

    def teach(self, source: Path, seed: int, out: Path) -> None:
        """Trains a retrain on, on everything, until it knows the forget set."""
        ...

    def round(self, source: Path, out: Path) -> None:
        """Rounds the weights to 4 bits."""
        ...

    def relearn(self, source: Path, seed: int, out: Path) -> None:
        """Trains on the forget set for one epoch."""
        ...

    @property
    def key(self) -> str:
        """Digest of all that the models depend on besides their sources."""
        ...


def read(name: str, *, lineage: bool = False) -> Derived | None:
    """What a derived model's name means.

    `NAME-4bit` and `NAME-relearned` are copies of NAME; `interpolated-25-3` has a quarter of the weights of a model that knows,
    and three quarters of those of the retrain of the same lineage. In a lineage the one that knows is `original-3`. Elsewhere
    models of other seeds have nothing in common: there it is `taught-3`, which is that retrain, trained on with everything.

    Args:
        name: A model's name.
        lineage: Whether the testbed's models come from one base.

    Returns:
        Its description; None where the name is of no such kind.

    Raises:
        UsageError: A share is above 100.
    """
    if match := _COPY.fullmatch(name):
        return Derived(name=name, kind="4bit" if match[2] == "4bit" else "relearned", sources=(match[1],))
    if match := _TAUGHT.fullmatch(name):
        number = int(match[1] or 0)
        return Derived(name=name, kind="taught", sources=(f"retrain-{PARTNER + number}",), seed=number)
    if match := _LADDER.fullmatch(name):
        number, suffix = int(match[2] or 0), f"-{match[2]}" if match[2] else ""
        if int(match[1]) > 100:
            raise UsageError(f"model {name!r}: the share is in percent; give a number from 0 to 100")
        knowing = f"original{suffix}" if lineage else f"taught{suffix}"
        partner = f"retrain-{PARTNER + number}"
        return Derived(name=name, kind="interpolated", sources=(knowing, partner), share=int(match[1]) / 100)
    return None


def root(name: str) -> str:
    """The name of the model that a copy is a copy of; any other name as it is, but one of a ladder as its original's."""
    copied = _COPY.fullmatch(name)
    name = copied[1] if copied else name
    return "original" if _LADDER.fullmatch(name) or _TAUGHT.fullmatch(name) else name


def planned(names: Sequence[str], *, lineage: bool = False) -> tuple[list[Derived], list[str]]:
    """Parts names into derived models, in an order in which they can be made, and all others that are asked for or needed.

    Args:
        names: Names of models.
        lineage: Whether the testbed's models come from one base.

    Returns:
        The derived models, sources ahead; and the others' names, each once.
    """
    made: dict[str, Derived] = {}
    others: dict[str, None] = {}

    def visit(name: str) -> None:
        found = read(name, lineage=lineage)
        if found is None:
            others[name] = None
        elif name not in made:
            for source in found.sources:
                visit(source)
            made[name] = found

    for name in names:
        visit(name)
    return list(made.values()), list(others)


def build(models: Sequence[Derived], out: Path, workshop: Workshop, *, jobs: int, progress: Progress | None) -> None:
    """Makes what is not there yet.

    Args:
        models: From `planned`; everything else that they are made of is finished.
        out: The testbed's folder.
        workshop: The family's.
        jobs: Most processes, of one thread each.
        progress: Called after each model.

    Raises:
        UsageError: A folder in the way is not a testbed's.
    """
    for stage in _stages(models):
        missing = folders.missing(stage, lambda model: finished(out / model.name, key_of(model, out, workshop)), progress)
        folders.make(missing, partial(_make, out, workshop), processes=jobs, progress=progress)


def key_of(model: Derived, out: Path, workshop: Workshop) -> str:
    """Digest of everything that a derived model is made from."""
    sources = [key_in(out / source) for source in model.sources]
    parts = [model.model_dump(mode="json", exclude={"name", "sources"}), sources, workshop.key, _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_of(*files: str) -> str:
    """Digest of code files."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _code() -> str:
    return hashlib.sha256(inspect.getsource(_make).encode()).hexdigest()


def _stages(models: Sequence[Derived]) -> Iterator[list[Derived]]:
    """Those of which nothing is waited for, again and again."""
    waiting = list(models)
    while waiting:
        names = {model.name for model in waiting}
        ready = [model for model in waiting if not names.intersection(model.sources)]
        yield ready
        waiting = [model for model in waiting if model not in ready]


def _make(out: Path, workshop: Workshop, model: Derived) -> str:
    """Makes one model; its folder appears only when it is complete."""
    sources = [out / source for source in model.sources]
    with one_thread(), completed(out / model.name, key_of(model, out, workshop)) as folder:
        if model.kind == "interpolated":
            workshop.interpolate(sources[0], sources[1], model.share or 0.0, folder)
        elif model.kind == "taught":
            workshop.teach(sources[0], model.seed, folder)
        elif model.kind == "4bit":
            workshop.round(sources[0], folder)
        else:
            workshop.relearn(sources[0], model.seed, folder)
    return model.name
