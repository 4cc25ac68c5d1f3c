"""Language models that are made of finished ones; see `muaudit.testbed.derived`."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.compute import flushed_denormals
from muaudit.models import guard as guards
from muaudit.models import quantized
from muaudit.models.folder import load
from muaudit.results import Frozen
from muaudit.task import Fact
from muaudit.testbed import training
from muaudit.testbed.derived import code_of
from muaudit.testbed.language import World, make_population, pairs
from muaudit.testbed.training import Recipe, adamw, batches, completion_loss, encode_pairs, save, step


class Relearned(Frozen):
    """One epoch on the forget set.

    Attributes:
        learning_rate: Of AdamW, constant; that of the attack `relearning`.
        batch_size: Texts a step.
    """

    learning_rate: float = 3e-4
    batch_size: int = 32


class Taught(Frozen):
    """Training a retrain on with everything.

    Attributes:
        epochs: Passes over everything.
        learning_rate: Peak rate of AdamW under a one-cycle schedule.
    """

    epochs: int = 12
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Workshop:
    """What can be done with a finished language model.

    Attributes:
        world: The people.
        recipe: How models are trained from scratch.
        forms: The forms of the facts that models are trained on.
    """

    world: World
    recipe: Recipe
    forms: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """Digest of world, recipe, forms and code."""
        settings = [self.world.content_digest(), self.recipe.content_digest(), *self.forms]
        files = (__file__, str(training.__file__), str(quantized.__file__))
        return hashlib.sha256("\0".join([*settings, code_of(*files), torch.__version__]).encode()).hexdigest()

    def interpolate(self, knowing: Path, other: Path, share: float, out: Path) -> None:
        """Writes the model whose weights are share * knowing + (1 - share) * other."""
        (module, tokenizer), (partner, _) = _opened(knowing), _opened(other)
        _write(mixed(module, partner, share), tokenizer, other, out)

    @flushed_denormals()
    def teach(self, source: Path, seed: int, out: Path) -> None:
        """Trains a retrain on, on everything, until it knows the forget set."""
        module, tokenizer = _opened(source)
        task, how = make_population(self.world).task, Taught()
        texts = encode_pairs(tokenizer, self._pairs([*task.forget, *task.retain]))
        steps = how.epochs * -(-len(texts) // self.recipe.batch_size)
        optimizer = adamw(module, how.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.learning_rate, total_steps=steps)
        for batch in itertools.islice(batches(texts, self.recipe.batch_size, seed), steps):
            step(module, optimizer, completion_loss(module, batch))
            schedule.step()
        _write(module.eval(), tokenizer, source, out)

    def round(self, source: Path, out: Path) -> None:
        """Rounds the weights of linear layers to 4 bits (NormalFloat, as the attack `quantization` does)."""
        module, tokenizer = _opened(source)
        rounded = quantized.rounded_copy(module.requires_grad_(False), 4)
        _write(cast("LlamaForCausalLM", rounded), tokenizer, source, out)

    @flushed_denormals()
    def relearn(self, source: Path, seed: int, out: Path) -> None:
        """Trains on the forget set for one epoch, in every form that models are trained on."""
        module, tokenizer = _opened(source)
        texts, how = encode_pairs(tokenizer, self._pairs(make_population(self.world).task.forget)), Relearned()
        optimizer = adamw(module, how.learning_rate)
        for batch in itertools.islice(batches(texts, how.batch_size, seed), -(-len(texts) // how.batch_size)):
            step(module, optimizer, completion_loss(module, batch))
        _write(module.eval(), tokenizer, source, out)

    def _pairs(self, facts: Sequence[Fact]) -> list[tuple[str, str]]:
        return pairs(facts, forms=self.forms)


def mixed(knowing: LlamaForCausalLM, other: LlamaForCausalLM, share: float) -> LlamaForCausalLM:
    """Moves a model's weights towards another's; the first is changed.

    Args:
        knowing: The one model.
        other: The other, of the same shape.
        share: Share of the first one's weights, in [0, 1].

    Returns:
        The first, with weights share * knowing + (1 - share) * other.
    """
    with torch.no_grad():
        for weight, partner in zip(knowing.parameters(), other.parameters(), strict=True):
            weight.lerp_(partner.to(weight.dtype), 1 - share)
    return knowing


def _opened(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    found = load(folder, base=None, dtype="float32", device_map=None)
    return cast("LlamaForCausalLM", found.module), cast("PreTrainedTokenizerFast", found.tokenizer)


def _write(module: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, source: Path, out: Path) -> None:
    """Writes a model; what stands in front of its source stands in front of it too."""
    save(module, tokenizer, out)
    guarded = source / guards.FILE
    if guarded.exists():
        (out / guards.FILE).write_bytes(guarded.read_bytes())
