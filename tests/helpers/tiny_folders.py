"""Model folders of random weights, small enough to be made anew for every test that spoils one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from muaudit.testbed.training import Recipe, new_model, save, word_tokenizer

TEXTS = ("Question: Where was Ana born? Answer: Torvik", "Question: Where was Bo born? Answer: Old Selmar")

RECIPE = Recipe(hidden=16, intermediate=32, layers=1, heads=2, context=128)


def language(folder: Path) -> Path:
    """A Llama."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    save(new_model(tokenizer, RECIPE).eval(), tokenizer, folder)
    return folder


def gpt2(folder: Path) -> Path:
    """A GPT-2: learned positions, and a mask of positions by positions."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sharded(folder: Path) -> Path:
    """A Llama whose weights are in several files."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    new_model(tokenizer, RECIPE).eval().save_pretrained(folder, max_shard_size="4KB")
    tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path) -> Path:
    """A LoRA adapter on a Llama."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    module = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(module, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)
    return folder


def pictures(folder: Path) -> Path:
    """An image classifier of Hugging Face's layout."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a folder's JSON file."""
    return lambda folder: edit(folder / name, **changes)


def header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the header of a safetensors file, and nothing after it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    values = json.loads(data[8 : 8 + length])
    values = change(values) or values
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
