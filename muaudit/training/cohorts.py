"""Populations of models that were trained on known rows of one pool: kept on disk by the auditor, or recorded by others."""

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from muaudit.errors import ModelError, NotApplicable, UsageError
from muaudit.examples import Examples, Outputs
from muaudit.loaders.example_columns import refuse_bomb
from muaudit.results import Frozen
from muaudit.store import key_of, write_atomically
from muaudit.training import vendor
from muaudit.training.recipes import Procedure, Recipe, rows_digest

if TYPE_CHECKING:
    from muaudit.training.networks import Network
    from muaudit.training.stacks import Stack

DESCRIPTION = "cohort.json"


class Description(Frozen):
    """What `cohort.json` says of a cohort; the stacks hold the rest.

    Attributes:
        recipe: How its models were trained.
        procedure: How they then unlearned; None where they did not.
        code: Digests of the vendor's code that was run, by what it did.
        pool: Digest of the examples.
        ids: Names of the examples.
        outputs: Number of classes, or of numbers to predict.
        network: What a built-in network is made of.
        way: Whether networks were trained all at once; chosen once, since the last bits depend on it.
        steps: Optimiser steps of each network.
        sizes: Models in each stack.
        rows: Digest of rows, forgotten rows and seeds.
        base: Digest of the models that unlearned.
        versions: Of what computed.
    """

    schema_version: Literal["1"] = "1"
    recipe: Recipe
    procedure: Procedure | None
    code: dict[str, str]
    pool: str
    ids: tuple[str, ...]
    outputs: int
    network: dict[str, Any] | None
    way: Literal["stacked", "sequential"]
    steps: int | None
    sizes: tuple[int, ...]
    rows: str
    base: str | None
    versions: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a cohort's `cohort.json`.

        Raises:
            ModelError: There is none, or it is something else.
        """
        try:
            return cls.model_validate_json((folder / DESCRIPTION).read_bytes())
        except OSError as error:
            raise ModelError(
                f"{folder}: no {DESCRIPTION} that can be read here ({error.strerror}); `muaudit shadow` writes one"
            ) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]["msg"]
            raise ModelError(f"{folder / DESCRIPTION}: not a description of models ({first}); train them again") from error

    @property
    def labels(self) -> Outputs:
        """Whether outputs are classes or numbers."""
        return self.recipe.labels


class Cohort:
    """Models that were made alike, each on known rows of one pool.

    Models are read from disk whenever they are asked; nothing is kept in memory.

    Attributes:
        recorded: Whether only outputs were recorded, by others.
        description: How the models were made.
        folder: Where they are kept.
        rows: Which examples each was trained on, a mask [M, N].
        forget: Which of these each has unlearned, a mask [M, N]; None where they did not unlearn.
        seeds: Each one's.
        retries: How often the training of each diverged before, in 0..2.
    """

    recorded = False

    def __init__(self, folder: Path, description: Description, members: Sequence[tuple[int, int]] | None = None) -> None:
        """Opens a folder whose description was read.

        Args:
            folder: The folder.
            description: Its description.
            members: Stack and place of each model; all by default.

        Raises:
            ModelError: A stack is missing, damaged, or another cohort's.
        """
        self.folder, self.description = folder, description
        everyone = [(stack, place) for stack, size in enumerate(description.sizes) for place in range(size)]
        self._members = tuple(everyone if members is None else members)
        opened = list(self._opened())
        self.rows = np.array([stack.rows[place] for stack, place in opened], dtype=bool)
        self.seeds = tuple(stack.seeds[place] for stack, place in opened)
        self.retries = tuple(stack.retries[place] for stack, place in opened)
        forgotten = [stack.forget[place] for stack, place in opened if stack.forget is not None]
        self.forget = np.array(forgotten, dtype=bool) if forgotten else None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens a cohort's folder.

        Args:
            folder: Holds cohort.json and its stacks.

        Returns:
            The cohort.

        Raises:
            ModelError: It is not a whole cohort.
        """
        return cls(folder, Description.read(folder))

    def __len__(self) -> int:
        """How many models these are."""
        return len(self._members)

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the pool's examples: what the columns of `rows` are."""
        return self.description.ids

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the description, the stacks and which of their models these are."""
        parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files()]
        return key_of(files=parts, members=self._members)

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        """What each model makes of examples, of this task or another.

        Args:
            examples: With inputs.

        Returns:
            Logits [M, n, C], or predictions [M, n, d].

        Raises:
            NotApplicable: The examples have no inputs, or only outputs on other inputs were kept.
        """
        return self.logits_of(examples.pictured())

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """What each model makes of inputs [n, ...]: logits [M, n, C], or predictions [M, n, d].

        Raises:
            NotApplicable: Only outputs on other inputs were kept.
            ModelError: A model gives NaN.
        """
        network, columns = self._network, self.description.outputs
        return np.stack([stack.outputs(place, inputs, network, columns) for stack, place in self._opened()])

    def member(self, number: int) -> Any:  # noqa: ANN401 - a module or an estimator
        """One model: a torch module in evaluation mode, or a scikit-learn estimator.

        Raises:
            NotApplicable: Only its outputs were kept, since its recipe's function makes models that muaudit cannot build.
        """
        stack, place = self._members[number]
        return self._stack(stack).member(place, self._network)

    def save_member(self, number: int, folder: Path) -> None:
        """Writes one model as a folder that an audit can name.

        Args:
            number: Which, from 0.
            folder: Where to: classifier.json and model.safetensors, or estimator.skops.

        Raises:
            NotApplicable: Only its outputs were kept.
        """
        model, network = self.member(number), self._network
        stack, place = self._members[number]
        if network is None or vendor.is_estimator(model):
            write_atomically(folder / "estimator.skops", self._stack(stack).estimator_bytes(place))
            return
        from muaudit.training.networks import Provenance, save_network

        said, trained_on = self.description, np.flatnonzero(self.rows[number])
        provenance = Provenance(
            outputs_kind=said.labels,
            recipe=said.recipe.content_digest(),
            seed=str(self.seeds[number]),
            rows=rows_digest(self.ids[place] for place in trained_on),
            procedure=None if said.procedure is None else said.procedure.content_digest(),
        )
        save_network(model, network, folder, provenance)

    def save(self, folder: Path) -> None:
        """Writes the whole cohort into another folder, so that an audit can name it.

        Args:
            folder: Where to; other stacks that lie there are removed.
        """
        for path in folder.glob("stack-*.safetensors"):
            if int(path.stem.removeprefix("stack-")) >= len(self.description.sizes):
                path.unlink()
        for path in reversed(self._files()):  # the description last, so that what lies there is whole
            write_atomically(folder / path.name, path.read_bytes())

    def take(self, numbers: Sequence[int]) -> "Cohort":
        """Some of the models, by number, in this order; one may stand more than once."""
        return Cohort(self.folder, self.description, [self._members[number] for number in numbers])

    def repeated(self, count: int) -> "Cohort":
        """The models, so many times over: one original, say, that is to unlearn many subsets."""
        return self.take(list(range(len(self))) * count)

    def lent(self) -> tuple[bytes, ...]:
        """Each model as a stack of its own: what a worker needs to go on from it."""
        return tuple(stack.single(place) for stack, place in self._opened())

    @property
    def _network(self) -> "Network | None":
        if self.description.network is None:
            return None
        from muaudit.training.networks import Network

        try:
            return Network.model_validate(self.description.network)
        except ValidationError as error:
            raise ModelError(f"{self.folder / DESCRIPTION}: describes no network; train the models again") from error

    def _files(self) -> list[Path]:
        return [self.folder / DESCRIPTION, *(stack_path(self.folder, number) for number in range(len(self.description.sizes)))]

    def _opened(self) -> "Iterator[tuple[Stack, int]]":
        """Each model's stack and place."""
        stacks: dict[int, Stack] = {}
        for number, place in self._members:
            if number not in stacks:
                stacks = {number: self._stack(number)}  # one at a time: models may be large
            yield stacks[number], place

    def _stack(self, number: int) -> "Stack":
        from muaudit.training.stacks import Stack

        path = stack_path(self.folder, number)
        stack = Stack(path)
        said = self.description.content_digest(), number, (self.description.sizes[number], len(self.ids))
        if (stack.header.cohort, stack.header.number, stack.rows.shape) != said:
            raise ModelError(f"{path}: belongs to other models than {DESCRIPTION} beside it describes; train them again")
        return stack


def stack_path(folder: Path, number: int) -> Path:
    """Where a stack lies in its cohort's folder."""
    return folder / f"stack-{number:03d}.safetensors"


class RecordedCohort:
    """Outputs of shadow models that were trained elsewhere, by any framework.

    Attributes:
        recorded: True: nothing else can be asked of them.
        ids: Names of the examples.
        rows: Which examples each was trained on, a mask [M, N].
        digest: SHA-256 of the file.
    """

    recorded = True
    forget = None

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Args:
            path: npz with `logits` [M, N, C] or, with Q augmented queries an example, [M, N, Q, C]; `keep` [M, N], 1 where a
                model was trained on an example; and `ids` [N], text. Nothing in it is unpickled.

        Raises:
            ModelError: It cannot be read, or its arrays do not fit.
        """
        try:
            self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
            refuse_bomb(path, str(path))
            with np.load(path, allow_pickle=False) as file:
                logits, keep, ids = (np.asarray(file[name]) for name in ("logits", "keep", "ids"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{path}: cannot be read ({said}); give an npz with logits, keep and ids, saved without pickle"
            ) from error
        if logits.ndim not in (3, 4) or keep.shape != logits.shape[:2] or ids.shape != keep.shape[1:]:
            raise ModelError(
                f"{path}: logits {list(logits.shape)}, keep {list(keep.shape)} and ids {list(ids.shape)} do not fit; they are "
                "[M, N, C] or [M, N, Q, C], [M, N] and [N]"
            )
        if logits.dtype.kind not in "fiu" or not np.isfinite(logits).all() or not np.isin(keep, (0, 1)).all():
            raise ModelError(f"{path}: logits must be finite numbers, and keep 0 or 1; record them again")
        self.ids = tuple(str(one) for one in ids)
        if len(set(self.ids)) != len(self.ids):
            raise ModelError(f"{path}: an id stands twice; give every example an id of its own")
        self.rows = keep.astype(bool)
        self._logits = logits.astype(np.float64).reshape(*keep.shape, -1, logits.shape[-1])

    def __len__(self) -> int:
        """How many models these are."""
        return len(self.rows)

    @property
    def queries(self) -> int:
        """Queries an example."""
        return int(self._logits.shape[2])

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        """Each model's logits [M, n, C] of examples by id; of several queries, the first.

        Raises:
            NotApplicable: An example was not recorded.
        """
        return self.query_logits(examples)[:, :, 0]

    def query_logits(self, examples: Examples) -> NDArray[np.float64]:
        """Each model's logits of all queries [M, n, Q, C] of examples by id.

        Raises:
            NotApplicable: An example was not recorded.
        """
        places = {name: place for place, name in enumerate(self.ids)}
        if unknown := [name for name in examples.ids if name not in places]:
            raise NotApplicable(
                f"the recorded shadow models have no outputs on example {unknown[0]!r}; record them on all examples"
            )
        return self._logits[:, [places[name] for name in examples.ids]]

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Refuses: recorded models can be asked nothing new.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("recorded shadow models can be asked about no new input, such as an augmented one: ask for none")

    def member(self, number: int) -> Any:  # noqa: ANN401 - never returns
        """Refuses: only outputs were recorded.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("recorded shadow models are outputs alone; train shadow models from a [recipe] instead")

    def save_member(self, number: int, folder: Path) -> None:
        """Refuses: only outputs were recorded.

        Raises:
            NotApplicable: Always.
        """
        self.member(number)


def open_cohort(path: Path) -> Cohort | RecordedCohort:
    """Opens shadow models that were trained ahead, or recorded.

    Args:
        path: A cohort's folder, or an npz of outputs.

    Returns:
        The models.

    Raises:
        ModelError: It is neither.
    """
    return Cohort.open(path) if path.is_dir() else RecordedCohort(path)


def refuse_others(path: Path, shown: str, pool: Examples) -> None:
    """Refuses shadow models of other examples than a task's; the models themselves are not opened.

    Args:
        path: A cohort's folder, or an npz of outputs.
        shown: What to call it in errors.
        pool: The task's examples: all of them, or some of those that the models were trained on or kept from.

    Raises:
        UsageError: An example is unknown to the models, or other examples bear the same names.
        ModelError: It is neither.
    """
    mend = "train them on this task: muaudit shadow"
    said = Description.read(path) if path.is_dir() else None
    ids = RecordedCohort(path).ids if said is None else said.ids
    known = set(ids)
    if unknown := [name for name in pool.ids if name not in known]:
        raise UsageError(
            f"{shown}: example {unknown[0]!r} of the task is not among those that these shadow models were trained on or kept "
            f"from; {mend}"
        )
    if said is not None and said.ids == pool.ids and said.pool != pool.digest:
        raise UsageError(
            f"{shown}: these shadow models were trained on examples of the same names, but with other inputs, labels or "
            f"attributes; {mend}"
        )
