"""Where a subject's tokens stand in a text, and which layers carry what is known about it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.errors import UsageError
from muaudit.models.tokens import Encoded, encode, pad
from muaudit.task import Fact
from muaudit.testbed.language import pairs
from muaudit.testbed.training import CPU, log_likelihoods


@dataclass(frozen=True)
class Mention:
    """A text that names its subject.

    Attributes:
        subject: The name.
        text: Prompt and completion as tokens.
        places: Positions of the subject's tokens, ascending; never empty.
    """

    subject: str
    text: Encoded
    places: list[int]


def mentions(
    tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], *, forms: Sequence[str], template: str
) -> list[Mention]:
    """The facts' texts whose prompt names the subject (its name is the cluster's where the fact gives none).

    Args:
        tokenizer: A fast tokenizer.
        facts: The facts.
        forms: Which of their forms.
        template: What makes a prompt of a question.

    Returns:
        The mentions, fact by fact; prompts that do not name the subject are left out.

    Raises:
        UsageError: No prompt names its subject.
    """
    found = []
    for fact in facts:
        subject = fact.subject or fact.cluster
        for prompt, completion in pairs([fact], forms=forms, template=template):
            start = prompt.find(subject)
            if start >= 0:
                offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
                places = [
                    place for place, (low, high) in enumerate(offsets) if low < start + len(subject) and high > max(start, low)
                ]
                found.append(Mention(subject, encode(tokenizer, [(prompt, completion)])[0], places))
    if not found:
        raise UsageError("no prompt of the forget set names its fact's subject; give the facts their `subject`")
    return found


@torch.no_grad()
def indirect_effects(module: LlamaForCausalLM, traced: Sequence[Mention], noise: float, seed: int) -> Tensor:
    """Causal tracing (Meng et al. 2022, arXiv 2202.05262): what each layer's MLP gives back of a corrupted subject's answers.

    Args:
        module: The model; it is left as it was.
        traced: Texts that name their subject.
        noise: Standard deviation of what corrupts the subject's embeddings, in that of an embedding's entries.
        seed: Of the noise.

    Returns:
        Mean rise of the answer's probability [layers] when a layer's MLP puts out what it puts out in the clean run, at the
        subject's last token.
    """
    texts = [mention.text for mention in traced]
    width = max(len(text.ids) for text in texts)
    rows = torch.arange(len(traced))
    last = torch.tensor([mention.places[-1] for mention in traced])
    embedding = module.get_input_embeddings()
    spoil = torch.randn(len(traced), width, embedding.weight.shape[1], generator=torch.Generator().manual_seed(seed)) * (
        noise * embedding.weight.std()
    )
    named = torch.zeros(len(traced), width, 1)
    for row, mention in enumerate(traced):
        named[row, mention.places] = 1.0
    layers = [layer.mlp for layer in module.model.layers]
    clean = outputs(module, layers, texts)
    with replaced(embedding, lambda output: output + spoil * named):
        corrupted = log_likelihoods(module, texts).exp()
        effects = []
        for layer, states in zip(layers, clean, strict=True):
            with replaced(layer, partial(torch.Tensor.index_put, indices=(rows, last), values=states[rows, last])):
                effects.append((log_likelihoods(module, texts).exp() - corrupted).mean())
    return torch.stack(effects)


@torch.no_grad()
def outputs(module: LlamaForCausalLM, parts: Sequence[nn.Module], texts: Sequence[Encoded]) -> list[Tensor]:
    """What parts of a network put out on a batch of texts, padded on the right.

    Args:
        module: The network.
        parts: Parts of it that put out one tensor.
        texts: The batch.

    Returns:
        One tensor [texts, width, ...] a part.
    """
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.register_forward_hook(lambda _, __, output: seen.append(output)).remove)
        module(input_ids=pad([text.ids for text in texts], 0, side="right", device=CPU)[0], use_cache=False)
    return seen


@contextmanager
def replaced(part: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Changes what a part of a network puts out, while it lasts."""
    hook = part.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        hook.remove()
