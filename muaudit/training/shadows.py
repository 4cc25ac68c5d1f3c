"""The shadow trainer: trains many models on known rows of one pool, or has them unlearn, and keeps what is done."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from muaudit import compute
from muaudit.errors import NotApplicable, UsageError
from muaudit.examples import Examples
from muaudit.store import key_of, write_atomically
from muaudit.training import vendor
from muaudit.training.cohorts import DESCRIPTION, Cohort, Description, stack_path
from muaudit.training.cohorts import RecordedCohort as RecordedCohort  # what a trainer makes, and what may stand in its place
from muaudit.training.cohorts import open_cohort as open_cohort
from muaudit.training.recipes import AnyRecipe, Procedure, TorchRecipe, outputs_of
from muaudit.version import VERSION

if TYPE_CHECKING:
    from muaudit.training.stacks import Order

Progress = Callable[[int, int, str], None]

STACK = 16
"""Models a file where they are trained at once."""

LOT = 4
"""Models a file where they are made one by one: the fewer, the less is lost when a run is killed."""

_LIBRARIES = ("numpy", "scikit-learn", "torch")


@dataclass(frozen=True)
class Trainer:
    """Trains models by a recipe, and has them unlearn by the vendor's procedure.

    What was made is found again by its content: recipe, code, examples, rows, seeds and versions. Models are made a few at a
    time, and each few are written when they are done, so that a killed run goes on where it was. Workers give models back to
    this process, which alone writes files; on a cluster they need no shared disk, but they must be able to import the
    vendor's code.

    Attributes:
        recipe: How models are trained.
        pool: All examples; `rows` are masks of these.
        folder: Where models are kept.
        base: Folder of audit.toml, where the vendor's files are.
        procedure: How models unlearn; None where they need not.
        workers: How many files are worked on at a time.
        backend: "loky", "ray" or "dask".
        address: The cluster's; see `muaudit.compute.spread`.
        progress: Told of models done, models in all and what was done.
        queries: Further inputs [n, ...] whose outputs are kept too, of models that cannot be rebuilt (a function's own).
        threads: Threads a worker computes with; they change the last bits.
    """

    recipe: AnyRecipe
    pool: Examples
    folder: Path
    base: Path = Path()
    procedure: Procedure | None = None
    workers: int = 1
    backend: str = "loky"
    address: str | None = None
    progress: Progress | None = None
    queries: NDArray[np.float32] | None = None
    threads: int = 1

    def train(self, rows: ArrayLike, seeds: Sequence[int]) -> Cohort:
        """Trains one model for each row of a membership matrix.

        Args:
            rows: Which examples each is trained on, a mask [M, N].
            seeds: Each one's, in [0, 2**63).

        Returns:
            The models.

        Raises:
            UsageError: Rows or seeds do not fit the pool.
            ModelError: A training diverged three times, or the vendor's code failed.
            EnvironmentFault: The back end is not installed, or does not answer.
        """
        return self._made(self._mask(rows, seeds, "rows"), seeds, None, None)

    def unlearn(self, cohort: Cohort | RecordedCohort, forget: ArrayLike, seeds: Sequence[int]) -> Cohort:
        """Has the vendor's procedure unlearn some of each model's examples, retaining the others that it was trained on.

        Args:
            cohort: Models that were trained on this pool; they are not changed.
            forget: Which of its own examples each is to forget, a mask [M, N].
            seeds: Of the procedure's runs.

        Returns:
            The models after unlearning, with the rows that they were first trained on.

        Raises:
            NotApplicable: There is no procedure, or the models are recorded outputs.
            UsageError: The models were trained on other examples, or are to forget what they were not trained on.
            ModelError: The procedure failed.
        """
        if self.procedure is None:
            raise NotApplicable("there is no procedure to unlearn with: add [procedure] to audit.toml")
        if isinstance(cohort, RecordedCohort):
            raise NotApplicable("recorded shadow models are outputs alone, and cannot unlearn; train them from a [recipe]")
        mask = self._mask(forget, seeds, "forget rows")
        if cohort.description.pool != self.pool.digest:
            raise UsageError("the models that are to unlearn were trained on other examples; train them on this task's")
        if len(cohort) != len(mask):
            raise UsageError(
                f"{len(cohort)} models are to unlearn, but there are forget rows for {len(mask)}; give one a model"
            )
        if (mask & ~cohort.rows).any():
            raise UsageError("a model is to forget an example that it was not trained on; choose among its own rows")
        return self._made(cohort.rows, seeds, mask, cohort)

    def _mask(self, given: ArrayLike, seeds: Sequence[int], what: str) -> NDArray[np.bool_]:
        mask = np.asarray(given, dtype=bool)
        if mask.ndim != 2 or mask.shape != (len(seeds), len(self.pool)) or not len(seeds):
            raise UsageError(
                f"{what} of shape {list(mask.shape)}, with {len(seeds)} seeds and {len(self.pool)} examples; give [M, N]"
            )
        if not mask.any(axis=1).all():
            raise UsageError(f"{what}: model {int(np.argmin(mask.any(axis=1)))} has no example at all; give it some")
        return mask

    def _made(
        self, rows: NDArray[np.bool_], seeds: Sequence[int], forget: NDArray[np.bool_] | None, base: Cohort | None
    ) -> Cohort:
        """The models, as far as they are not there yet."""
        from muaudit.training import stacks

        drawn = key_of(
            rows=_digest(rows), seeds=[str(seed) for seed in seeds], forget=None if forget is None else _digest(forget)
        )
        folder, said = self._described(rows, seeds, drawn, base)
        digest, ends = said.content_digest(), np.cumsum(said.sizes)
        lots: list[stacks.Lot] = []
        for number, (size, end) in enumerate(zip(said.sizes, ends, strict=True)):
            if stacks.is_stack(stack_path(folder, number), digest, number):
                continue
            part = slice(int(end) - size, int(end))
            lots.append(
                stacks.Lot(
                    number=number,
                    cohort=digest,
                    rows=rows[part],
                    seeds=tuple(seeds[part]),
                    forget=None if forget is None else forget[part],
                    base=None if base is None else base.take(range(part.start, part.stop)).lent(),
                )
            )
        done = len(seeds) - sum(said.sizes[lot.number] for lot in lots)
        made = compute.spread(
            stacks.make, [(self._order(said), lot) for lot in lots], workers=self.workers, backend=self.backend,
            address=self.address,
        )  # fmt: skip
        for lot, data in zip(lots, made, strict=True):
            write_atomically(stack_path(folder, lot.number), data)
            done += len(lot.seeds)
            if self.progress is not None:
                self.progress(done, len(seeds), "models trained" if base is None else "models unlearned")
        return Cohort.open(folder)

    def _order(self, said: Description) -> "Order":
        from muaudit.training.stacks import Order

        return Order(
            recipe=said.recipe, procedure=said.procedure, pool=self.pool, folder=self.base, queries=self.queries, way=said.way,
            steps=said.steps, threads=self.threads,
        )  # fmt: skip

    def _described(
        self, rows: NDArray[np.bool_], seeds: Sequence[int], drawn: str, base: Cohort | None
    ) -> tuple[Path, Description]:
        """The cohort's folder, and its description: what was decided when it was begun, or what is decided now."""
        recipe, procedure = self.recipe, None if base is None else self.procedure
        if base is not None:
            recipe = base.description.recipe  # where models have to be trained again, then as they were
        code = {
            name: vendor.code_digest(found)
            for name, one in (("recipe", recipe), ("procedure", procedure))
            if one is not None and (found := one.files(self.base))
        }
        versions, pool = _versions(), self.pool.digest
        key = key_of(
            recipe=recipe.model_dump(mode="json"), procedure=None if procedure is None else procedure.model_dump(mode="json"),
            code=code, pool=pool, drawn=drawn, base=None if base is None else base.digest, versions=versions,
            queries=None if self.queries is None else _digest(self.queries), threads=self.threads,
        )  # fmt: skip
        folder = self.folder / key[:32]
        try:
            return folder, Description.model_validate_json((folder / DESCRIPTION).read_bytes())
        except (FileNotFoundError, ValidationError):  # not begun, or damaged: begun anew
            pass
        network = recipe.network(self.pool) if isinstance(recipe, TorchRecipe) else None
        way, steps, most = "sequential", None, LOT
        if isinstance(recipe, TorchRecipe) and network is not None:
            steps = recipe.steps_for(float(rows.sum(axis=1).mean())) if base is None else base.description.steps
        if isinstance(recipe, TorchRecipe) and network is not None and base is None:
            from muaudit.training.stacked import choose

            with compute.settled(self.threads):
                way = choose(recipe, network, self.pool, rows[:STACK], seeds[:STACK])
            most = STACK if way == "stacked" else LOT
        described = Description(
            recipe=recipe, procedure=procedure, code=code, pool=pool, ids=self.pool.ids,
            outputs=outputs_of(self.pool, recipe.labels), network=None if network is None else network.model_dump(mode="json"),
            way=way, steps=steps, sizes=_sizes(len(seeds), most), rows=drawn, base=None if base is None else base.digest,
            versions=versions,
        )  # fmt: skip
        write_atomically(folder / DESCRIPTION, described.canonical())
        return folder, described


def _sizes(models: int, most: int) -> tuple[int, ...]:
    """Models a file, as even as can be, so that workers have alike to do; whatever their number, so that results are too."""
    return tuple(len(part) for part in np.array_split(np.arange(models), math.ceil(models / most)))


def _digest(array: NDArray[np.bool_] | NDArray[np.float32]) -> str:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"muaudit": VERSION}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
