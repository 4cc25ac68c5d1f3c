"""Built-in classifiers and regressors: what they are made of, and the folder that keeps one."""

from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import relu

from muaudit.errors import ModelError
from muaudit.examples import Outputs
from muaudit.results import Frozen
from muaudit.store import write_atomically
from muaudit.training.recipes import Architecture

DESCRIPTION = "classifier.json"
WEIGHTS = "model.safetensors"

_GROUPS = 4
"""Most groups of a GroupNorm; fewer where the channels do not divide."""


class Network(Architecture):
    """A built-in network, but for its weights.

    Attributes:
        input_shape: Shape of one example: (columns,) for tables, (channels, height, width) for images.
        outputs: Number of classes, or of numbers to predict.
        mean: Taken from each input before anything else: one number, or one a column (tables) or channel (images).
        std: What each input is then divided by; as long as `mean`.
        dtype: What it is computed in; inputs arrive as float32 all the same.
        shards: How many networks of this make there are, each with weights of its own; the outputs are their mean.
    """

    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    outputs: Annotated[int, Field(ge=1)]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    dtype: Literal["float32", "float64"] = "float32"
    shards: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _shaped(self) -> Self:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, self.input_shape[0]):
            raise ValueError("mean and std each hold one number, or one a column (tables) or channel (images)")
        if self.architecture != "mlp" and len(self.input_shape) != 3:
            raise ValueError(f"a {self.architecture} takes images [channels, height, width], not {self.input_shape}; use mlp")
        if self.architecture == "cnn" and min(self.input_shape[1:]) < 4:
            raise ValueError(f"a cnn halves its image twice, so 4 pixels are the least; this is {self.input_shape}; use mlp")
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the children that make something of an input, from input to output; the last one gives the logits."""
        if self.shards > 1:
            return ("logits",)
        if self.architecture == "mlp":
            return (*(f"hidden{number}" for number in range(1, len(self.hidden) + 1)), "logits")
        if self.architecture == "cnn":
            return ("block1", "block2", "logits")
        return ("stem", "stage1", "stage2", "stage3", "stage4", "logits")

    def build(self) -> nn.Sequential:
        """The network with random weights, drawn from torch's current generator.

        Weights are drawn as float32 whatever the dtype, so that one seed gives one start.

        Returns:
            Inputs [n, *input_shape] to outputs [n, outputs], in training mode.
        """
        children: OrderedDict[str, nn.Module] = OrderedDict(normalise=Standardise(self))
        made_of = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet}[self.architecture]
        if self.shards == 1:
            children.update(made_of(self))
        else:
            children["logits"] = Mean(nn.Sequential(OrderedDict(made_of(self))) for _ in range(self.shards))
        return nn.Sequential(children).to(getattr(torch, self.dtype))

    def blank(self) -> nn.Sequential:
        """The network to load weights into; torch's generator stays as it was."""
        with torch.random.fork_rng([]):
            return self.build()


class Provenance(Frozen):
    """Where a network's weights came from.

    Attributes:
        outputs_kind: Whether outputs are logits of classes, or numbers.
        recipe: Digest of the recipe that trained it; None where it was trained otherwise.
        seed: That it was trained from, in decimal (JSON has no whole numbers as large).
        rows: Digest of the ids of the examples that it was trained on, in the pool's order.
        procedure: Digest of the unlearning procedure that was run on it, if one was.
    """

    outputs_kind: Outputs = "classes"
    recipe: str | None = None
    seed: str | None = None
    rows: str | None = None
    procedure: str | None = None


class SavedNetwork(Network, Provenance):
    """What `classifier.json` holds: the network, and where its weights came from."""

    @property
    def network(self) -> Network:
        """The network alone."""
        return Network(**self.model_dump(include=set(Network.model_fields)))


def save_network(module: nn.Module, network: Network, folder: Path, provenance: Provenance) -> None:
    """Writes the folder of a built-in network: `classifier.json` and `model.safetensors`.

    The description is canonical JSON of `SavedNetwork`; the weights are the module's state dict (parameters, and running
    statistics of BatchNorm; mean and std of the inputs stand in the description alone).

    Args:
        module: From `network.build()`, trained.
        network: What it is made of.
        folder: Where to; it is made.
        provenance: Where the weights came from.

    Raises:
        ModelError: The module has other weights than such a network has.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    if (found := shapes(weights)) != (wanted := shapes(network.blank().state_dict())):
        odd = sorted(found.items() ^ wanted.items())[0][0]
        raise ModelError(
            f"{folder}: the module is no {network.architecture} as described: {odd!r} differs; only built-in networks are saved"
        )
    saved = SavedNetwork(**network.model_dump(), **provenance.model_dump())
    write_atomically(folder / WEIGHTS, save(weights))
    write_atomically(folder / DESCRIPTION, saved.canonical())


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name: what tells one architecture's weights from another's."""
    return {name: tuple(value.shape) for name, value in weights.items()}


class Standardise(nn.Module):
    """Takes the mean from each input and divides by the standard deviation, both constants.

    The constants are buffers outside the state dict: `classifier.json` holds them exactly.

    Args:
        network: Whose mean, std and dtype these are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        shape = (-1,) + (1,) * (len(network.input_shape) - 1)
        dtype = torch.float64 if network.dtype == "float64" else torch.float32
        self.register_buffer("mean", torch.tensor(network.mean, dtype=dtype).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(network.std, dtype=dtype).reshape(shape), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [n, ...] of any dtype, as standardised numbers of the network's."""
        return (inputs.to(self.mean.dtype) - self.mean) / self.std


class Mean(nn.ModuleList):
    """Networks side by side, whose outputs are averaged."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of the networks' outputs."""
        return torch.stack([network(inputs) for network in self]).mean(0)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, arXiv 1512.03385, section 3.3, option B).

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: 2 halves the image.
        norm: "batch" or "group".
    """

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), _norm(norm, after))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps [n, before, h, w] to [n, after, h / stride, w / stride]."""
        inner = relu(self.norm1(self.conv1(inputs)))
        inner = self.norm2(self.conv2(inner))
        return relu(inner + self.shortcut(inputs))


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        groups = next(count for count in range(_GROUPS, 0, -1) if channels % count == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


def _mlp(network: Network) -> dict[str, nn.Module]:
    children: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    width = int(torch.Size(network.input_shape).numel())
    for number, after in enumerate(network.hidden, start=1):
        children[f"hidden{number}"] = nn.Sequential(OrderedDict(linear=nn.Linear(width, after), relu=nn.ReLU()))
        width = after
    return children | {"logits": nn.Linear(width, network.outputs)}


def _cnn(network: Network) -> dict[str, nn.Module]:
    children: dict[str, nn.Module] = {}
    before, height, width = network.input_shape
    for number in (1, 2):
        after = network.width * number
        normed = network.normalisation != "none"  # which takes a bias away again
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(before, after, 3, padding=1, bias=not normed))
        if normed:
            layers["norm"] = _norm(network.normalisation, after)
        layers.update(relu=nn.ReLU(), pool=nn.MaxPool2d(2))
        children[f"block{number}"] = nn.Sequential(layers)
        before, height, width = after, height // 2, width // 2
    return children | {"flatten": nn.Flatten(), "logits": nn.Linear(before * height * width, network.outputs)}


def _resnet(network: Network) -> dict[str, nn.Module]:
    before, norm = network.width, network.normalisation
    stem = OrderedDict(conv=nn.Conv2d(network.input_shape[0], before, 3, 1, 1, bias=False), norm=_norm(norm, before))
    children: dict[str, nn.Module] = {"stem": nn.Sequential(OrderedDict(stem, relu=nn.ReLU()))}
    for number in (1, 2, 3, 4):
        after = network.width * 2 ** (number - 1)
        blocks = BasicBlock(before, after, 1 if number == 1 else 2, norm), BasicBlock(after, after, 1, norm)
        children[f"stage{number}"] = nn.Sequential(OrderedDict(block1=blocks[0], block2=blocks[1]))
        before = after
    pool = nn.Sequential(OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    return children | {"pool": pool, "logits": nn.Linear(before, network.outputs)}
