"""Classifiers and regressors as torch networks, opened from local files.

Weights come from safetensors alone, and no pickle is ever loaded. Of three makes: built-in networks (`classifier.json`),
Hugging Face image-classification folders, and networks that the auditor's own factory builds, the only code that is run.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from muaudit.compute import Stopwatch, resolve_device
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.examples import Examples, Outputs
from muaudit.loaders.example_columns import first_line
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import class_scores
from muaudit.models.weights_file import read_header, refuse_nan
from muaudit.training import vendor

if TYPE_CHECKING:
    from muaudit.training.networks import Network

Dtype = Literal["float32", "float64", "bfloat16", "float16"]

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
"""Suffixes of files whose loading can run code."""

_PASSIVE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.Flatten)
"""Layers that change no number in evaluation mode."""


@dataclass(frozen=True)
class Opened:
    """A network that was opened.

    Attributes:
        module: In evaluation mode.
        code: Digest of the factory's code; None where none was run.
        layers: Names of the modules that make something of an input; None where they have to be found.
        shape: Shape of one input; None where it is not known.
        outputs: What its outputs are; None where that is not known.
    """

    module: nn.Module
    code: str | None = None
    layers: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    outputs: Outputs | None = None


class TorchNetwork:
    """A network of labelled examples: what classifiers and regressors have in common.

    Attributes:
        batch_size: Most inputs a forward pass; the results depend on it by float noise only.
    """

    outputs: Outputs

    def __init__(
        self,
        module: nn.Module,
        *,
        digest: str = "",
        batch_size: int = 512,
        layers: Sequence[str] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Wraps a network that is already in memory.

        Args:
            module: Takes inputs [n, ...] and gives a tensor [n, d], or an object whose `logits` is one; it is put into
                evaluation mode.
            digest: What identifies it; a digest of its state by default.
            batch_size: Most inputs a forward pass.
            layers: Names of the modules that make something of an input, from input to output; found by default.
            shape: Shape of one input; that of the first inputs shown by default.
        """
        self.batch_size = batch_size
        self._module = module.eval()
        self._digest = digest
        self._layers = None if layers is None else tuple(layers)
        self._shape = None if shape is None else tuple(shape)
        self._stopwatch = Stopwatch()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        factory: str | None = None,
        base: Path | None = None,
        device: str = "auto",
        batch_size: int = 512,
        dtype: Dtype = "float32",
    ) -> Self:
        """Opens a local network.

        Args:
            path: A folder with classifier.json, a Hugging Face image-classification folder, or with a factory its weights: a
                safetensors file, or a folder with exactly one.
            factory: `file.py:function` or `module:function` that builds the network, called without arguments; it is run.
            base: Folder that the factory's file starts from; the current one by default.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
            batch_size: Most inputs a forward pass.
            dtype: What is computed in.

        Returns:
            The model.

        Raises:
            ModelError: It cannot be opened safely, or its weights are not the network's; the message says how to mend it.
            UsageError: The factory cannot be imported.
            EnvironmentFault: The device or an extra is not there.
        """
        digest = manifest_digest(manifest(path))
        opened = open_network(path, factory, base or Path(), dtype)
        if opened.outputs not in (None, cls.outputs):
            raise ModelError(
                f"{path}: its outputs are {opened.outputs}, and this task's are {cls.outputs}; give a model of this task, or "
                "change task.kind"
            )
        for name, tensor in opened.module.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ModelError(f"{path}: weight {name} holds NaN or infinity; the training diverged, or the file is damaged")
        try:
            module = opened.module.to(torch.device(resolve_device(device)), getattr(torch, dtype))
        except RuntimeError as error:  # no such device, or too little memory on it
            raise EnvironmentFault(f"device {device!r}: {first_line(error)}; use device = 'cpu' or 'auto'") from error
        parts = json.dumps([digest, opened.code, factory, dtype])
        return cls(
            module,
            digest=hashlib.sha256(parts.encode()).hexdigest(),
            batch_size=batch_size,
            layers=opened.layers,
            shape=opened.shape,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the files' manifest, the factory's code and the dtype; for a network from memory, over its state."""
        if self._digest:
            return self._digest
        from muaudit.models.causal_lm import state_digest

        return state_digest(self._module)

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the network."""
        return self._stopwatch.seconds

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one input; None where it is not known yet."""
        return self._shape

    def module(self) -> nn.Module:
        """A copy of the network, in evaluation mode; whoever changes it changes nothing here."""
        return deepcopy(self._module)

    def layers(self) -> tuple[str, ...]:
        """Names of the layers, from input to output; the last one gives the logits.

        Of a built-in network they are its stages. Of others they are the innermost modules, in the order in which they are
        first used on an input (dropout and other layers that change nothing are left out), and "logits" where the last of them
        does not give the logits itself. Before any input was shown, of a network that does not say which inputs it takes, they
        are the innermost modules in the order in which it names them.
        """
        if self._layers is None:
            if self._shape is None:
                return tuple(name for name, _ in self._innermost())
            self._layers = self._used()
        return self._layers

    def activations(self, inputs: NDArray[np.float32], layer: str) -> NDArray[np.float32]:
        """One layer's output [n, d], flattened; of a layer that is used several times, the last.

        Raises:
            ModelError: There is no such layer, it is not used, or the network cannot take the inputs.
        """
        named = dict(self._module.named_modules())
        module = named.get(layer) if layer else None
        if module is None and layer == "logits":
            module = self._module
        if module is None:
            raise ModelError(f"the network has no layer {layer!r}; it has {', '.join(self.layers())}")
        taken: list[Tensor] = []

        def take(_module: nn.Module, _inputs: object, output: object) -> None:
            taken[:] = [_tensor(output).detach().flatten(1).float().cpu()]

        parts = []
        hook = module.register_forward_hook(take)
        try:
            with self._stopwatch.running():
                for batch in self._batches(inputs):
                    taken.clear()
                    self._forward(batch)
                    if not taken:
                        raise ModelError(f"layer {layer!r} is not used by the network; take one of {', '.join(self.layers())}")
                    parts.append(taken[0].numpy())
        finally:
            hook.remove()
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _scores(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Outputs [n, d], finite or not."""
        with self._stopwatch.running():
            parts = [self._forward(batch).double().cpu().numpy() for batch in self._batches(inputs)]
        return class_scores.columns(np.concatenate(parts))

    def _batches(self, inputs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Batches in order; an empty one where there are no inputs, for the shape of the outputs."""
        self._shape = self._shape or inputs.shape[1:]
        for start in range(0, max(len(inputs), 1), self.batch_size):
            yield inputs[start : start + self.batch_size]

    def _forward(self, inputs: NDArray[np.float32]) -> Tensor:
        first = next(iter(self._module.parameters()), torch.zeros(0))
        with _explained(inputs.shape), torch.no_grad():
            batch = torch.from_numpy(np.array(inputs)).to(first.device, first.dtype)
            output = _tensor(self._module(batch))
        if output.ndim == 0 or len(output) != len(inputs):
            raise ModelError(
                f"the network gives outputs {list(output.shape)} for {len(inputs)} inputs; it must give one row each"
            )
        return output

    def _innermost(self) -> list[tuple[str, nn.Module]]:
        return [
            (name, module)
            for name, module in self._module.named_modules()
            if name and not next(module.children(), None) and not isinstance(module, _PASSIVE)
        ]

    def _used(self) -> tuple[str, ...]:
        """Shows the network two blank inputs, and notes which innermost modules make something of each."""
        made: dict[str, Tensor] = {}

        def noting(name: str) -> Any:  # noqa: ANN401 - a hook
            def note(_module: nn.Module, _inputs: object, output: object) -> None:
                if isinstance(output, Tensor) and output.ndim > 1 and len(output) == 2:
                    made.setdefault(name, output)

            return note

        hooks = [module.register_forward_hook(noting(name)) for name, module in self._innermost()]
        try:
            with self._stopwatch.running():
                logits = self._forward(np.zeros((2, *(self._shape or ())), np.float32))
        finally:
            for hook in hooks:
                hook.remove()
        last = made[next(reversed(made))] if made else None
        whole = last is None or last.shape != logits.shape or not torch.equal(last, logits)
        return (*made, "logits") if whole else tuple(made)


class Classifier(TorchNetwork):
    """A network that gives class scores."""

    outputs: Outputs = "classes"

    def logits(self, examples: Examples) -> NDArray[np.float64]:
        """Logits [n, C], in the order given.

        Raises:
            NotApplicable: The examples have no inputs.
            ModelError: A logit is NaN or infinite, the network gives probabilities, or it has no column for an example's class.
        """
        logits = class_scores.class_logits(self._scores(examples.pictured()), examples.ids)
        return class_scores.refuse_unknown_classes(logits, examples)

    def logits_of(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits [n, C] of inputs [n, ...].

        Raises:
            ModelError: As with `logits`.
        """
        return class_scores.class_logits(self._scores(inputs))


class Regressor(TorchNetwork):
    """A network that predicts numbers."""

    outputs: Outputs = "numbers"

    def predictions(self, examples: Examples) -> NDArray[np.float64]:
        """Predictions [n, d], in the order given.

        Raises:
            NotApplicable: The examples have no inputs.
            ModelError: A prediction is NaN or infinite, or there are not as many an example as labels.
        """
        predictions = class_scores.finite(self._scores(examples.pictured()), examples.ids)
        return class_scores.refuse_other_numbers(predictions, examples)


def open_network(path: Path, factory: str | None, base: Path, dtype: Dtype) -> Opened:
    """Builds a network and loads its weights, by what lies at the path.

    Args:
        path: As `TorchNetwork.open` takes it.
        factory: Likewise.
        base: Likewise.
        dtype: Likewise.

    Returns:
        The network in evaluation mode, its dtype yet to be set.

    Raises:
        ModelError: There is none that could be opened safely.
    """
    if factory is not None:
        return _from_factory(path, factory, base)
    if (path / "classifier.json").is_file():
        return _built_in(path)
    if (path / "config.json").is_file():
        from muaudit.models.image_classifier import load_pictured

        pictured = load_pictured(path, dtype)
        return Opened(pictured, shape=pictured.shape)
    refuse_pickles(path)
    if path.suffix == ".safetensors" or (path.is_dir() and list(path.glob("*.safetensors"))):
        raise ModelError(
            f"{path}: weights alone do not say which network they belong to; name the function that builds it: "
            'factory = "file.py:function"'
        )
    raise ModelError(
        f"{path}: no model that can be opened here; give a folder with classifier.json and model.safetensors, a Hugging Face "
        "image-classification folder, safetensors weights with a factory, or a .skops or .onnx file; logits in a file are of "
        'kind = "recorded" with format = "logits"'
    )


def refuse_pickles(path: Path) -> None:
    """Refuses a file that is a pickle, or a folder whose weights could only come from one.

    Raises:
        ModelError: It is one.
    """
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    pickles = [file.name for file in found if file.suffix.lower() in PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in found):
        raise ModelError(
            f"{path}: {pickles[0]} is a pickle, and a pickle can run code when it is loaded; save torch weights with "
            "safetensors.torch.save_model, and a scikit-learn estimator with skops.io.dump"
        )


def _built_in(path: Path) -> Opened:
    from muaudit.training.networks import DESCRIPTION, WEIGHTS, SavedNetwork

    try:
        saved = SavedNetwork.model_validate_json((path / DESCRIPTION).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(f"{path / DESCRIPTION}: {where}: {first['msg']}; write the folder again with save_network") from error
    except OSError as error:
        raise ModelError(f"{path / DESCRIPTION}: cannot be read ({error.strerror}); copy the whole folder") from error
    refuse_pickles(path)
    network = saved.network
    _refuse_larger(network, path)
    module = network.blank()
    _load_weights(module, path / WEIGHTS, "classifier.json")
    return Opened(module.eval(), layers=network.layers, shape=network.input_shape, outputs=saved.outputs_kind)


def _refuse_larger(network: "Network", path: Path) -> None:
    """Refuses a description of more than the weights beside it, whose building could take all memory."""
    from muaudit.training.networks import DESCRIPTION, WEIGHTS

    tensors = read_header(path / WEIGHTS)
    widest = max((side for one in tensors.values() for side in one.shape), default=0)
    sides = (*network.hidden, network.width, network.outputs, *network.input_shape)
    too_large = max(*sides, network.shards) > max(widest, len(tensors), 2**14) or network.shards > max(len(tensors), 1)
    if not too_large:
        with torch.device("meta"):  # takes no memory for numbers
            wanted = sum(one.numel() for one in network.build().state_dict().values())
        too_large = wanted > 2 * sum(prod(one.shape) for one in tensors.values()) + 2**20
    if too_large:
        raise ModelError(
            f"{path / DESCRIPTION}: describes a network that is far larger than {WEIGHTS} beside it; they must belong "
            "together: write the folder again with save_network"
        )


def _from_factory(path: Path, factory: str, base: Path) -> Opened:
    refuse_pickles(path)
    weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(weights) != 1 or weights[0].suffix != ".safetensors":
        raise ModelError(
            f"{path}: {len(weights) if path.is_dir() else 'no'} safetensors files, and a factory's network needs exactly one; "
            "save its weights with safetensors.torch.save_model"
        )
    try:
        vendor.split(factory)
    except ValueError as error:
        raise ModelError(f"factory: {error}") from error
    function = vendor.load(factory, base)
    with torch.random.fork_rng([]):  # what it draws is overwritten by the weights, and must move no other draw
        module = vendor.call(function, factory)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{factory}: returns a {type(module).__name__}, and no torch.nn.Module; return the network itself")
    _load_weights(module, weights[0], factory)
    return Opened(module.eval(), code=vendor.code_digest(vendor.files(factory, base)))


def _load_weights(module: nn.Module, weights: Path, builder: str) -> None:
    """Loads exactly the network's weights; those that it shares may stand in the file once, as safetensors writes them."""
    refuse_nan(weights, read_header(weights))
    try:
        missing, unexpected = load_model(module, weights, strict=False)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{weights}: cannot be read as safetensors ({error}); copy or save it again") from error
    except RuntimeError as error:
        wrong = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{weights}: not the weights of the network that {builder} builds: {wrong}; give those") from error
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise ModelError(
                f"{weights}: {len(names)} {kind} weights (first: {min(names)}), so what would be audited is not this model; "
                f"give the weights of the network that {builder} builds"
            )


def _tensor(output: object) -> Tensor:
    """A network's output: a tensor, or an object of transformers that holds one."""
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise ModelError(f"the network gives a {type(found).__name__} where a tensor [n, d] belongs; return the logits alone")
    return found


@contextmanager
def _explained(shape: tuple[int, ...]) -> Iterator[None]:
    """Turns whatever a network raises into one line."""
    try:
        yield
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault("the device has too little memory for this batch; lower the model's batch_size") from error
    except Exception as error:
        line = first_line(error)
        raise ModelError(
            f"the network fails on inputs of shape {list(shape)} ({line}); the task's inputs must have the shape "
            "that it was trained on"
        ) from error
