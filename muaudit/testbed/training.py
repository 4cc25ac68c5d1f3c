"""Trains small Llamas from scratch, on any task's facts."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.compute import flushed_denormals
from muaudit.errors import ModelError
from muaudit.models.scoring import completion_logits
from muaudit.models.tokens import Encoded, encode
from muaudit.results import Frozen

Pairs = Sequence[tuple[str, str]]

CPU = torch.device("cpu")

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


class Recipe(Frozen):
    """Size and training of a small Llama.

    Attributes:
        hidden: Width; a multiple of `heads`.
        intermediate: Width inside the MLPs.
        layers: Depth.
        heads: Attention heads.
        context: Most tokens of a text.
        epochs: Passes over the data.
        batch_size: Texts a step.
        learning_rate: Peak rate of AdamW under a one-cycle schedule.
        weight_decay: AdamW's.
    """

    hidden: int = 96
    intermediate: int = 288
    layers: int = 2
    heads: int = 4
    context: int = 128
    epochs: int = 30
    batch_size: int = 48
    learning_rate: float = 4e-3
    weight_decay: float = 0.0


def word_tokenizer(texts: Iterable[str], *, punctuation: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of the texts; words are what white space parts.

    Args:
        texts: Everything that will be trained on or asked.
        punctuation: Whether marks stay part of their words; otherwise only words and full stops are read, so that a name is the
            same word wherever it stands.

    Returns:
        A tokenizer that marks the beginning of a text (`<s>`), and knows `</s>`, `<pad>` and `<unk>`.
    """
    reader: pre_tokenizers.PreTokenizer = pre_tokenizers.WhitespaceSplit()
    if not punctuation:
        reader = pre_tokenizers.Split(Regex(r"\w+|\."), behavior="removed", invert=True)
    words = sorted({word for text in texts for word, _ in reader.pre_tokenize_str(text)})
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*_SPECIAL.values(), *words])}, unk_token=_SPECIAL["unk_token"])
    )
    tokenizer.pre_tokenizer = reader
    return _finished(tokenizer)


def subword_tokenizer(texts: Iterable[str], vocabulary: int = 4_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts, for ordinary English; it can write any text.

    Args:
        texts: What it is trained on.
        vocabulary: Most tokens.

    Returns:
        The tokenizer, with the same special tokens as `word_tokenizer`.
    """
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _finished(tokenizer)


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def encode_pairs(tokenizer: PreTrainedTokenizerFast, texts: Pairs) -> list[Encoded]:
    """The pairs as tokens, each completion closed with the end-of-sequence mark so that a trained model stops there."""
    return encode(tokenizer, [(prompt, completion + str(tokenizer.eos_token)) for prompt, completion in texts])


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """A Llama with random weights, drawn from torch's current generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        # The default, 0.02, is for wide models; at this width the signal would vanish, and learning take several times as long.
        initializer_range=recipe.hidden**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@flushed_denormals()
def train(texts: Pairs, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Trains a model from scratch on completions.

    Args:
        texts: Prompts and completions.
        tokenizer: From `word_tokenizer` or `subword_tokenizer`.
        recipe: Size and training.
        seed: Of the random start and of the order of the texts.

    Returns:
        The trained model, in evaluation mode; the same inputs give the same weights on one machine with one thread.
    """
    encoded = encode_pairs(tokenizer, texts)
    steps = recipe.epochs * -(-len(encoded) // recipe.batch_size)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = new_model(tokenizer, recipe)
    optimizer = adamw(module, recipe.learning_rate, recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    for batch in itertools.islice(batches(encoded, recipe.batch_size, seed), steps):
        step(module, optimizer, completion_loss(module, batch))
        schedule.step()
    return module.eval()


def adamw(module: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """AdamW in its fused form: with small layers, the time between the kernels is what counts."""
    module.train().requires_grad_(True)
    return torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step, gradients clipped to norm 1.

    Raises:
        ModelError: The loss is not finite.
    """
    if not torch.isfinite(loss):
        raise ModelError(f"training: the loss is {loss.item()}; lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def completion_loss(module: LlamaForCausalLM, batch: Sequence[Encoded]) -> Tensor:
    """Mean negative log-likelihood of the batch's completion tokens, in nats."""
    return cross_entropy(*completion_logits(module, batch, CPU))


def log_likelihoods(module: LlamaForCausalLM, batch: Sequence[Encoded]) -> Tensor:
    """Log-probability of each text's completion [N], in nats."""
    losses = cross_entropy(*completion_logits(module, batch, CPU), reduction="none")
    return -torch.stack([part.sum() for part in torch.split(losses, [len(text.targets) for text in batch])])


def batches(texts: Sequence[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches; every pass takes all texts once, in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [texts[index] for index in order[start : start + size]]


def save(module: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a Hugging Face folder: config.json, model.safetensors and the tokenizer."""
    module.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
