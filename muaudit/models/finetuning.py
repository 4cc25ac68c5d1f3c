"""Fine-tuning a copy of a network: the copy, the order of the texts, one step."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from muaudit.errors import ModelError
from muaudit.models import Finetuning
from muaudit.models.scoring import completion_logits
from muaudit.models.tokens import Encoded


def trainable_copy(module: PreTrainedModel, how: Finetuning, device: torch.device) -> PreTrainedModel:
    """A copy with its trainable weights marked; with LoRA it shares the frozen ones, which nothing changes."""
    if not how.lora_rank:
        return copy.deepcopy(module).float().requires_grad_(True)
    shared = {id(weight): weight for weight in module.parameters()}
    adapters = LoraConfig(r=how.lora_rank, lora_alpha=how.lora_alpha, lora_dropout=0.0, target_modules="all-linear")
    with seeded(how.seed, 0, device):
        copied: PreTrainedModel = inject_adapter_in_model(adapters, copy.deepcopy(module, shared))
    for weight in copied.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return copied


def step(module: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Sequence[Encoded], device: torch.device) -> None:
    """One optimiser step on the mean loss of the batch's completion tokens."""
    optimizer.zero_grad(set_to_none=True)
    logits, targets = completion_logits(module, batch, device)
    loss = cross_entropy(logits.float(), targets)
    if not torch.isfinite(loss):
        raise ModelError(f"fine-tuning: the loss is {loss.item()}; lower learning_rate, or open the model with dtype float32")
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()


def stream(count: int, seed: int) -> Iterator[int]:
    """Endless indices below `count`, each pass in a new order."""
    generator = torch.Generator().manual_seed(seed)
    return chain.from_iterable(torch.randperm(count, generator=generator).tolist() for _ in repeat(None))


@contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seeds dropout and adapter starts by step, so that no caller's use of the generators can move them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) % 2**63)
        yield
