"""Trained models in one safetensors file: as weights, as estimators, or, where they cannot be rebuilt, as their outputs."""

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from torch import nn

from muaudit import compute
from muaudit.errors import EnvironmentFault, ModelError, NotApplicable
from muaudit.examples import Examples
from muaudit.results import Frozen
from muaudit.training import recipes, vendor
from muaudit.training.networks import Network, shapes
from muaudit.training.recipes import AnyRecipe, Procedure, TorchRecipe, Trained
from muaudit.training.stacked import Way, fit_many
from muaudit.training.trained import logits_from

Kept = Literal["weights", "estimators", "outputs"]

_COMPARED = 64
"""Inputs on which a model that was kept must answer as the model itself does."""


class Header(Frozen):
    """Whose models a file holds.

    Attributes:
        cohort: SHA-256 of the cohort's description.
        number: The stack's place in the cohort, from 0.
        kept: How its models are kept.
    """

    cohort: str
    number: int
    kept: Kept


@dataclass(frozen=True)
class Lot:
    """The models that are made together and kept in one file.

    Attributes:
        cohort: SHA-256 of the cohort's description.
        number: The stack's place in the cohort, from 0.
        rows: Which examples of the pool each was trained on, a mask [m, N].
        seeds: Each one's.
        forget: Which of these each is to unlearn, a mask [m, N]; None for models that are only trained.
        base: The models that unlearn, from `Stack.single`; None for models that are only trained.
    """

    cohort: str
    number: int
    rows: NDArray[np.bool_]
    seeds: tuple[int, ...]
    forget: NDArray[np.bool_] | None = None
    base: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class Order:
    """How the models of a cohort are made; a worker needs nothing else but code.

    Attributes:
        recipe: How they are trained.
        procedure: How they unlearn.
        pool: All examples.
        folder: Of audit.toml, where the vendor's files are.
        queries: Further inputs whose outputs are kept where models cannot be rebuilt.
        way: Whether networks are trained all at once.
        steps: Optimiser steps of a network.
        threads: To compute with.
    """

    recipe: AnyRecipe
    procedure: Procedure | None
    pool: Examples
    folder: Path
    queries: NDArray[np.float32] | None
    way: Way
    steps: int | None
    threads: int


def make(order: Order, lot: Lot) -> bytes:
    """Trains a lot of models, or has them unlearn.

    Args:
        order: How.
        lot: Which.

    Returns:
        The content of their file; the same for the same arguments, wherever it is made.

    Raises:
        ModelError: A training diverged three times, or the vendor's code failed.
    """
    with compute.settled(order.threads):
        made = _trained(order, lot) if lot.forget is None else _unlearned(order, lot, lot.forget)
        return _packed(order, lot, made)


def _trained(order: Order, lot: Lot) -> list[Trained]:
    if isinstance(order.recipe, TorchRecipe):
        return fit_many(order.recipe, order.pool, lot.rows, lot.seeds, order.folder, way=order.way, steps=order.steps)
    pairs = zip(lot.rows, lot.seeds, strict=True)
    return [recipes.fit(order.recipe, order.pool, seed, order.folder, rows=rows) for rows, seed in pairs]


def _unlearned(order: Order, lot: Lot, forget: NDArray[np.bool_]) -> list[Trained]:
    if order.procedure is None or lot.base is None:
        raise ModelError("there is no procedure to unlearn with: add [procedure] to audit.toml")
    made = []
    for data, rows, chosen, seed in zip(lot.base, lot.rows, forget, lot.seeds, strict=True):
        base = Stack(data)
        if base.header.kept == "outputs":  # the model cannot be had back, but trained again
            model = recipes.fit(order.recipe, order.pool, base.seeds[0], order.folder, rows=rows, steps=order.steps).model
        else:
            model = base.member(0, _network(order))
        parts = order.pool.take(chosen), order.pool.take(rows & ~chosen)
        made.append(Trained(recipes.unlearn(order.procedure, model, *parts, seed, order.folder), 0))
    return made


def _network(order: Order) -> Network | None:
    return order.recipe.network(order.pool) if isinstance(order.recipe, TorchRecipe) else None


def _packed(order: Order, lot: Lot, made: Sequence[Trained]) -> bytes:
    shown = order.pool.pictured()
    outputs = recipes.outputs_of(order.pool, order.recipe.labels)
    models = [one.model for one in made]
    kept: Kept = "weights"
    tensors = _weights(models, _network(order), shown[:_COMPARED])
    if tensors is None:
        kept, tensors = "estimators", _estimators(models, shown[:_COMPARED], outputs)
    if tensors is None:
        asked = shown if order.queries is None else np.concatenate([shown, order.queries])
        answers = np.stack([logits_from(model, asked, outputs=outputs) for model in models])
        kept, tensors = "outputs", {"outputs": answers, "inputs": np.stack([_key(one) for one in asked])}
    tensors |= {"rows": lot.rows.astype(np.uint8), "seeds": np.array(lot.seeds, dtype=np.int64)}
    tensors["retries"] = np.array([one.retries for one in made], dtype=np.int64)
    if lot.forget is not None:
        tensors["forget"] = lot.forget.astype(np.uint8)
    tensors["header"] = _text(Header(cohort=lot.cohort, number=lot.number, kept=kept))
    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})


def _text(header: Header) -> NDArray[np.uint8]:
    # A tensor, since safetensors writes several entries of its metadata in any order.
    return np.frombuffer(header.canonical(), dtype=np.uint8)


def _key(one: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(one).tobytes()).digest(), dtype=np.uint8)


def _weights(models: Sequence[Any], network: Network | None, shown: NDArray[np.float32]) -> dict[str, NDArray[Any]] | None:
    """The models' weights, stacked; None where they are no built-in networks, or a procedure made something else of them."""
    if network is None or not all(isinstance(model, nn.Module) for model in models):
        return None
    blank, states = network.blank().eval(), [model.state_dict() for model in models]
    for model, state in zip(models, states, strict=True):
        if shapes(state) != shapes(blank.state_dict()):
            return None
        blank.load_state_dict(state)
        if not np.array_equal(logits_from(blank, shown), logits_from(model, shown)):
            return None
    return {f"weights/{name}": torch.stack([state[name] for state in states]).cpu().numpy() for name in states[0]}


def _estimators(models: Sequence[Any], shown: NDArray[np.float32], outputs: int) -> dict[str, NDArray[Any]] | None:
    """The estimators as skops stores them; None where these are none, or hold what skops cannot store safely."""
    if not all(vendor.is_estimator(model) for model in models):
        return None
    try:
        import skops.io
    except ImportError:
        raise EnvironmentFault("keeping estimators needs skops; install it: pip install 'muaudit[vision]'") from None
    tensors: dict[str, NDArray[Any]] = {}
    for place, model in enumerate(models):
        try:
            data = reproducible(skops.io.dumps(model))
            if not np.array_equal(
                logits_from(_loaded(data), shown, outputs=outputs), logits_from(model, shown, outputs=outputs)
            ):
                return None
        except Exception:  # noqa: BLE001 - skops raises anything on what it does not know; outputs are kept instead
            return None
        tensors[f"estimator/{place}"] = np.frombuffer(data, dtype=np.uint8)
    return tensors


def reproducible(data: bytes) -> bytes:
    """What skops stored, without times and addresses in memory, so that one estimator always gives the same bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        schema = json.loads(packed.read("schema.json"))
        numbers: dict[Any, int] = {}
        files: dict[str, str] = {}

        def rename(node: Any) -> None:  # noqa: ANN401 - any JSON
            for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                rename(value)
            if isinstance(node, dict) and "__id__" in node:
                # Texts and numbers may share an object or not, as the interpreter likes; they count as their own.
                known = len(numbers) if node.get("is_json") else node["__id__"]
                node["__id__"] = numbers.setdefault((node.get("is_json"), known), len(numbers) + 1)
            if isinstance(node, dict) and isinstance(node.get("file"), str):
                node["file"] = files.setdefault(node["file"], f"{len(files)}{Path(node['file']).suffix}")

        rename(schema)
        stored = io.BytesIO()
        with zipfile.ZipFile(stored, "w") as plain:
            for before, after in files.items():
                plain.writestr(zipfile.ZipInfo(after), packed.read(before))
            plain.writestr(zipfile.ZipInfo("schema.json"), json.dumps(schema))
    return stored.getvalue()


def _loaded(data: bytes) -> Any:  # noqa: ANN401 - any estimator
    from muaudit.models.estimator import load_estimator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "estimator.skops"
        path.write_bytes(data)
        return load_estimator(path)


class Stack:
    """Models that were kept in one file.

    Args:
        source: The file, or its content.

    Attributes:
        header: Whose models these are.
        rows: Which examples each was trained on, a mask [m, N].
        forget: Which of these each has unlearned; None where they have not.
        seeds: Each one's.
        retries: How often the training of each diverged before.

    Raises:
        ModelError: It is not such a file, or damaged.
    """

    def __init__(self, source: Path | bytes) -> None:
        try:
            if isinstance(source, bytes):
                tensors = load(source)
                self._names, self._read = list(tensors), tensors.__getitem__
            else:
                file: Any = safe_open(source, framework="numpy")  # reads no more than is asked for
                self._names, self._read = list(file.keys()), file.get_tensor
            self.header = Header.model_validate_json(self._read("header").tobytes())
            self.rows: NDArray[np.bool_] = self._read("rows").astype(bool)
            self.forget: NDArray[np.bool_] | None = self._read("forget").astype(bool) if "forget" in self._names else None
            self.seeds: tuple[int, ...] = tuple(self._read("seeds").tolist())
            self.retries: tuple[int, ...] = tuple(self._read("retries").tolist())
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            where = "a stack" if isinstance(source, bytes) else source
            said = str(error).splitlines()[0]
            raise ModelError(f"{where}: no models that muaudit trained, or damaged ({said}); train them again") from error

    def single(self, place: int) -> bytes:
        """One model as a stack of its own; of one whose outputs were kept, what is needed to train it again."""
        tensors = {"rows": self.rows[[place]].astype(np.uint8), "header": _text(self.header)}
        tensors |= {
            name: np.array([of[place]], dtype=np.int64) for name, of in (("seeds", self.seeds), ("retries", self.retries))
        }
        for name in self._names:
            if name.startswith("weights/"):
                tensors[name] = self._read(name)[[place]]
            elif name == f"estimator/{place}":
                tensors["estimator/0"] = self._read(name)
        return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})

    def member(self, place: int, network: Network | None) -> Any:  # noqa: ANN401 - a module or an estimator
        """One model.

        Args:
            place: In the stack.
            network: What a built-in network is made of.

        Returns:
            A module in evaluation mode, or an estimator.

        Raises:
            NotApplicable: Only its outputs were kept.
        """
        if self.header.kept == "weights" and network is not None:
            module = network.blank()
            weights = [name for name in self._names if name.startswith("weights/")]
            try:
                module.load_state_dict(
                    {name.removeprefix("weights/"): torch.tensor(self._read(name)[place]) for name in weights}
                )
            except RuntimeError as error:
                raise ModelError("a stack holds weights of another network than described; train the models again") from error
            return module.eval()
        if self.header.kept == "estimators":
            return _loaded(self.estimator_bytes(place))
        raise _no_model()

    def estimator_bytes(self, place: int) -> bytes:
        """One estimator, as skops stores it.

        Raises:
            NotApplicable: Only its outputs were kept.
        """
        if self.header.kept != "estimators":
            raise _no_model()
        return self._read(f"estimator/{place}").tobytes()

    def outputs(self, place: int, inputs: NDArray[np.float32], network: Network | None, columns: int) -> NDArray[np.float64]:
        """What one model makes of inputs.

        Args:
            place: In the stack.
            inputs: float32 [n, ...].
            network: What a built-in network is made of.
            columns: Number of classes, or of numbers.

        Returns:
            Logits or predictions [n, C].

        Raises:
            NotApplicable: Only outputs were kept, and not on one of these inputs.
        """
        if self.header.kept != "outputs":
            return logits_from(self.member(place, network), inputs, outputs=columns)
        known = self._places
        asked = [known.get(_key(one).tobytes()) for one in inputs]
        if None in asked:
            raise NotApplicable(
                "of models that the recipe's function makes, only outputs on the task's own examples were kept, and other "
                "inputs are asked for (such as augmented ones): ask for none, or use a recipe of kind 'torch' or 'sklearn'"
            )
        found: NDArray[np.float64] = self._read("outputs")[place][np.array(asked, dtype=np.int64)]
        return found

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {one.tobytes(): place for place, one in enumerate(self._read("inputs"))}


def _no_model() -> NotApplicable:
    return NotApplicable(
        "the models that the recipe's function makes cannot be kept, only their outputs; use a recipe of kind 'torch' or "
        "'sklearn' where the models themselves are needed"
    )


def is_stack(path: Path, cohort: str, number: int) -> bool:
    """Whether a whole file lies here that holds these models.

    Args:
        path: The file.
        cohort: SHA-256 of the cohort's description.
        number: The stack's place in it.
    """
    try:
        header = Stack(path).header
    except ModelError:
        return False
    return (header.cohort, header.number) == (cohort, number)
