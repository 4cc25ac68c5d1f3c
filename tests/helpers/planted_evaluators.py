"""Evaluators whose answers are plain to see, and a CLIP model of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_pipelines import word_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from muaudit.training.networks import Network, Provenance, save_network

NAMES = ("zero", "one", "two", "three")
LABELS: dict[str, Any] = {name: number for number, name in enumerate(NAMES)}


def lit(*places: int, channels: int = 1) -> np.ndarray:
    """Images of 2 x 2 pixels, of which one is lit: place 3 is the last."""
    images = np.zeros((len(places), channels, 4), np.float32)
    images[np.arange(len(places)), :, list(places)] = 1
    return images.reshape(-1, channels, 2, 2)


def planted(folder: Path, sharpness: float = 4.0) -> Path:
    """A network whose class is the pixel that is lit."""
    network = Network(architecture="mlp", hidden=(), input_shape=(1, 2, 2), outputs=4)
    module = network.blank()
    with torch.no_grad():
        module.logits.weight.copy_(sharpness * torch.eye(4))
        module.logits.bias.zero_()
    save_network(module, network, folder, Provenance())
    return folder


def write_clip(folder: Path) -> CLIPModel:
    torch.manual_seed(1)
    tokenizer = word_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config = CLIPConfig(text_config=sizes | text, vision_config=sizes | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model
