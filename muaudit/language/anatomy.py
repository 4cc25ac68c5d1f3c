"""Inside a decoder: layers, value vectors of the MLPs, unembedding; states and activations are read and changed by hooks.

Every hook is gone when the context that set it is left, also after a fault, and no weight is ever written: to take a value
vector away, its activation is set to zero, which is the same for the network. So nothing can leak from one measurement into
the next.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from muaudit.errors import ModelError
from muaudit.models.scoring import completion_logits
from muaudit.models.tokens import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = ("layers", "h", "blocks", "block")
"""What decoders call their list of layers: Llama, Qwen, Gemma, OLMo 2, Phi, NeoX; GPT-2; OLMo and MPT."""

NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
"""What they call the norm after the last layer."""

DOWN = ("down_proj", "ff_out", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "wo")
"""What they call the matrix that leads out of an MLP."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a decoder that attacks look at.

    Attributes:
        module: The whole network.
        layers: Its decoder layers, first to last.
        norm: The norm between the last layer and the unembedding.
        downs: Each layer's MLP down projection.
    """

    module: "PreTrainedModel"
    layers: tuple[nn.Module, ...]
    norm: nn.Module
    downs: tuple[nn.Module, ...]

    @classmethod
    def of(cls, module: "PreTrainedModel") -> "Anatomy":
        """Finds the parts by the names that they have in the common architectures.

        Args:
            module: A causal language model of transformers.

        Returns:
            Its parts.

        Raises:
            ModelError: It has no such parts under a known name, or more than one dense MLP a layer (mixtures of experts).
        """
        kind = type(module).__name__
        if module.get_output_embeddings() is None:
            raise ModelError(f"{kind} has no unembedding matrix, so its hidden states cannot be read as tokens")
        for parent in module.modules():
            for name in LAYERS:
                layers, norm = getattr(parent, name, None), _child(parent, NORMS)
                if isinstance(layers, nn.ModuleList) and len(layers) and norm is not None:
                    return cls(module, tuple(layers), norm, tuple(_down(layer, kind) for layer in layers))
        raise ModelError(
            f"{kind}: no decoder layers followed by a final norm were found under a known name "
            f"({', '.join(LAYERS)}; {', '.join(NORMS)}); this attack knows Llama, Qwen, Gemma, OLMo, Phi, GPT-2 and NeoX"
        )

    @property
    def device(self) -> torch.device:
        """Where its embeddings are."""
        return torch.device(self.module.get_input_embeddings().weight.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of layers, width, and width inside the MLPs; two models of one lineage have the same."""
        width, inner = self.values(0).shape
        return len(self.layers), int(width), int(inner)

    @property
    def unembedding(self) -> Tensor:
        """The matrix E [vocabulary, width] that turns a normed hidden state into logits."""
        matrix: Tensor = self.module.get_output_embeddings().weight
        return matrix.detach()

    def values(self, layer: int) -> Tensor:
        """A layer's value vectors, the columns of its MLP down projection [width, inner]; a view, not a copy."""
        weight = self.downs[layer].weight
        assert isinstance(weight, Tensor)  # noqa: S101 - `_down` found it
        # GPT-2's Conv1D keeps its matrix the other way round.
        return weight.detach().T if type(self.downs[layer]).__name__ == "Conv1D" else weight.detach()

    def read(self, states: Tensor) -> Tensor:
        """The logit lens: hidden states [N, width] through final norm and unembedding, as the network itself would read them.

        Args:
            states: Outputs of any decoder layer.

        Returns:
            Logits [N, vocabulary] in float32.
        """
        head = self.module.get_output_embeddings()
        place = head.weight
        with torch.inference_mode():
            normed = self.norm(states.to(next(self.norm.parameters(), place)))
            logits: Tensor = head(normed.to(place)).float()
        # Gemma caps its logits after the head.
        cap = getattr(self.module.config.get_text_config(), "final_logit_softcapping", None)
        return logits if not cap else torch.tanh(logits / cap) * cap


def _child(parent: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((child for name in names if isinstance(child := getattr(parent, name, None), nn.Module)), None)


def _down(layer: nn.Module, kind: str) -> nn.Module:
    """The down projection of a layer's MLP; GPT-2 calls the one that leads out of its attention the same."""
    found = [
        part
        for path, part in layer.named_modules()
        if path.split(".")[-1] in DOWN and "attn" not in path and "attention" not in path and hasattr(part, "weight")
    ]
    if len(found) != 1:
        raise ModelError(
            f"{kind}: a decoder layer has {len(found)} MLP down projections ({', '.join(DOWN)}) where one was expected; "
            "mixtures of experts and unknown architectures cannot be read"
        )
    down: nn.Module = found[0]
    return down


def same_shape(one: Anatomy, other: Anatomy) -> None:
    """Refuses two models whose states do not fit into each other.

    Raises:
        ModelError: Depth, width or vocabulary differ.
    """
    shapes = [(*part.shape, int(part.unembedding.shape[0])) for part in (one, other)]
    if shapes[0] != shapes[1]:
        told = [f"{layers} layers of width {width} ({inner} inside), {size} tokens" for layers, width, inner, size in shapes]
        raise ModelError(
            f"the model is of another architecture than the original ({told[1]} against {told[0]}), so one's hidden states "
            "mean nothing in the other; leave this attack out, or audit models of one architecture"
        )


@contextmanager
def _hooked(
    parts: Sequence[nn.Module], made: Callable[[int], Callable[..., object]], *, before: bool = False
) -> Iterator[None]:
    """Hooks on some parts of a network, removed in any case."""
    with ExitStack() as stack:
        for number, part in enumerate(parts):
            handle = part.register_forward_pre_hook(made(number)) if before else part.register_forward_hook(made(number))
            stack.callback(handle.remove)
        yield


@contextmanager
def states_captured(anatomy: Anatomy, texts: Sequence[Encoded], into: dict[int, Tensor]) -> Iterator[None]:
    """Keeps the hidden states from which the completions' tokens are predicted, at every layer, while it lasts.

    Args:
        anatomy: The network.
        texts: The batch that it is about to read, with M completion tokens altogether.
        into: Receives copies [M, width] by layer: what the layer puts out, before any final norm.

    Yields:
        Nothing.
    """
    rows, columns = _places(texts)

    def made(layer: int) -> Callable[..., object]:
        def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states = output[0] if isinstance(output, tuple) else output
            # Indexing with lists copies, so no later pass can change what was kept.
            into[layer] = states[rows.to(states.device), columns.to(states.device)].detach()

        return keep

    with _hooked(anatomy.layers, made):
        yield


@contextmanager
def states_replaced(anatomy: Anatomy, texts: Sequence[Encoded], layer: int, states: Tensor) -> Iterator[None]:
    """Puts given hidden states in the place of those from which the completions' tokens are predicted, while it lasts.

    Args:
        anatomy: The network that reads.
        texts: The batch that it is about to read, with M completion tokens altogether.
        layer: The layer whose output is changed.
        states: What is put there, [M, width].

    Yields:
        Nothing.
    """
    rows, columns = _places(texts)

    def made(_: int) -> Callable[..., object]:
        def replace(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
            patched = (output[0] if isinstance(output, tuple) else output).clone()
            patched[rows.to(patched.device), columns.to(patched.device)] = states.to(patched)
            return (patched, *output[1:]) if isinstance(output, tuple) else patched

        return replace

    with _hooked(anatomy.layers[layer : layer + 1], made):
        yield


def _places(texts: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Rows and columns of the positions before the completions' tokens, in a batch padded on the right."""
    rows = torch.tensor([row for row, text in enumerate(texts) for _ in text.targets])
    columns = torch.tensor([column - 1 for text in texts for column in text.targets])
    return rows, columns


@contextmanager
def values_ablated(anatomy: Anatomy, masks: Mapping[int, Tensor]) -> Iterator[None]:
    """Takes value vectors out of the network while it lasts, each text of a batch its own.

    Args:
        anatomy: The network.
        masks: By layer: a factor [N, inner] for every value vector's activation in each of the batch's N texts; 0 takes it out.

    Yields:
        Nothing.
    """
    layers = sorted(masks)

    def made(number: int) -> Callable[..., object]:
        def weaken(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] * masks[layers[number]].to(args[0])[:, None, :], *args[1:])

        return weaken

    with _hooked([anatomy.downs[layer] for layer in layers], made, before=True):
        yield


@contextmanager
def values_disturbed(anatomy: Anatomy, noise: Mapping[int, Tensor]) -> Iterator[None]:
    """Adds noise to value vectors while it lasts, as if it had been added to the columns themselves.

    Args:
        anatomy: The network.
        noise: By layer: what is added to the value vectors [width, inner]; zero columns leave theirs alone.

    Yields:
        Nothing.
    """
    layers = sorted(noise)
    inputs: dict[int, Tensor] = {}

    def kept(number: int) -> Callable[..., object]:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[number] = args[0]

        return keep

    def added(number: int) -> Callable[..., object]:
        def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return output + inputs[number] @ noise[layers[number]].to(output).T

        return add

    parts = [anatomy.downs[layer] for layer in layers]
    with _hooked(parts, kept, before=True), _hooked(parts, added):
        yield


def attribution(anatomy: Anatomy, texts: Sequence[Encoded]) -> Tensor:
    """What each value vector adds to the log-probability of the completions: activation times gradient, to first order.

    Args:
        anatomy: The network.
        texts: A batch of N texts.

    Returns:
        In nats, [N, layers, inner]: for each text, of the mean log-probability of its completion's tokens, summed over
        positions. Positive where taking the vector out would lower it.
    """
    activations: dict[int, Tensor] = {}

    def made(layer: int) -> Callable[..., object]:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            activations[layer] = args[0].detach().requires_grad_(True) if not layer else args[0]
            if layer:
                activations[layer].retain_grad()
            return (activations[layer], *args[1:])

        return keep

    with torch.enable_grad(), _hooked(anatomy.downs, made, before=True):
        logits, wanted = completion_logits(anatomy.module, texts, anatomy.device)
        chosen = logits.float().log_softmax(1).gather(1, wanted[:, None])[:, 0]
        means = torch.stack([part.mean() for part in torch.split(chosen, [len(text.targets) for text in texts])])
        gradients = torch.autograd.grad(means.sum(), list(activations.values()))
    parts = [(a.detach() * g).sum(1).float().cpu() for a, g in zip(activations.values(), gradients, strict=True)]
    return torch.stack(parts, 1)


@torch.inference_mode()
def log_probabilities(anatomy: Anatomy, texts: Sequence[Encoded]) -> Tensor:
    """Mean log-probability of each completion's tokens [N], in nats, from a float32 softmax.

    Args:
        anatomy: The network, with whatever hooks are on it.
        texts: A batch of N texts.
    """
    logits, wanted = completion_logits(anatomy.module, texts, anatomy.device)
    chosen = logits.float().log_softmax(1).gather(1, wanted[:, None])[:, 0].cpu()
    return torch.stack([part.mean() for part in torch.split(chosen, [len(text.targets) for text in texts])])


def batches(texts: Sequence[Encoded], tokens: int = 8_192, most: int = 256) -> Iterator[slice]:
    """Consecutive slices of the texts, each of at most so many padded tokens and so many texts.

    The order stays the caller's, so that columns of results need no sorting; a text longer than the limit goes alone.
    """
    start = width = 0
    for stop, text in enumerate(texts):
        width = max(width, len(text.ids))
        if stop > start and (width * (stop + 1 - start) > tokens or stop - start == most):
            yield slice(start, stop)
            start, width = stop, len(text.ids)
    if texts:
        yield slice(start, len(texts))
