"""Vectors of images are what the models themselves make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import word_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from muaudit.diffusion.clip import Clip
from muaudit.diffusion.embedding import Embedder
from muaudit.errors import MuauditError
from muaudit.training.networks import Network, Provenance, save_network

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def images(count: int = 5, side: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).random((count, channels, side, side), dtype=np.float32)


def unprepared(folder: Path) -> None:
    asked = {"do_resize": False, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(asked), encoding="utf-8")


def opened(folder: Path) -> Embedder:
    return Embedder.open(folder, device="cpu", batch_size=2)


def test_a_network_of_ours_gives_what_its_last_layer_is_given(tmp_path: Path) -> None:
    network = Network(architecture="cnn", width=4, norm="group", input_shape=(1, 8, 8), outputs=3, mean=(0.4,), std=(0.3,))
    torch.manual_seed(0)
    module = network.build().eval()
    save_network(module, network, tmp_path / "cnn", Provenance())
    grey = images(channels=1, side=8)
    with torch.no_grad():
        truth = module[:-1](torch.from_numpy(grey)).flatten(1).numpy()
    embedder = opened(tmp_path / "cnn")
    np.testing.assert_allclose(embedder.features(grey), truth, rtol=1e-5, atol=1e-6)
    rows = embedder.embed(grey)
    np.testing.assert_allclose(rows, truth / np.linalg.norm(truth, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((rows**2).sum(1), 1)
    assert embedder.features(images(2, 16)).shape == (2, truth.shape[1])  # colours and other sizes are brought to its own


def test_hugging_face_models_give_what_they_pool(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pixels = torch.from_numpy(images()) * 2 - 1
    vit = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)).eval()
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")).eval()
    dino = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    ).eval()
    with torch.no_grad():
        truths = {
            "vit": vit.vit(pixels).last_hidden_state[:, 0], "resnet": resnet(pixels).pooler_output.flatten(1),
            "dino": dino(pixels).pooler_output,
        }  # fmt: skip
    for (name, truth), model in zip(truths.items(), (vit, resnet, dino), strict=True):
        model.save_pretrained(tmp_path / name)
        unprepared(tmp_path / name)
        np.testing.assert_allclose(opened(tmp_path / name).features(images()), truth.numpy(), rtol=1e-4, atol=1e-5)
    assert len({opened(tmp_path / name).digest for name in truths}) == 3


def test_clip_gives_its_projected_images(tmp_path: Path) -> None:
    torch.manual_seed(2)
    text = {"vocab_size": 18, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=SIZES | text, vision_config=SIZES | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    whole = CLIPModel(config).eval()
    tower = CLIPVisionModelWithProjection(config.vision_config).eval()
    for name, model in (("whole", whole), ("tower", tower)):
        model.save_pretrained(tmp_path / name)
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path / name)
    word_tokenizer().save_pretrained(tmp_path / "whole")
    vectors = opened(tmp_path / "whole").embed(images())
    np.testing.assert_allclose(vectors, Clip.open(tmp_path / "whole", device="cpu").images(images()), rtol=1e-5, atol=1e-6)
    mean, std = (
        torch.tensor(one).reshape(-1, 1, 1) for one in (CLIPImageProcessor().image_mean, CLIPImageProcessor().image_std)
    )
    with torch.no_grad():
        truth = tower(pixel_values=(torch.from_numpy(images()) - mean) / std).image_embeds.numpy()
    np.testing.assert_allclose(opened(tmp_path / "tower").features(images()), truth, rtol=1e-4, atol=1e-5)


def test_folders_and_images_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    shards = Network(hidden=(), input_shape=(1, 8, 8), outputs=3)
    save_network(shards.blank(), shards.model_copy(update={}), tmp_path / "linear", Provenance())
    with pytest.raises(MuauditError, match="no vector before it"):
        opened(tmp_path / "linear")
    vit = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8)).eval()
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(do_resize=False).save_pretrained(tmp_path / "vit")
    with pytest.raises(MuauditError, match="embedding model fails on images of shape"):
        opened(tmp_path / "vit").features(images(side=12))
    with pytest.raises(MuauditError, match="NaN"):
        opened(tmp_path / "vit").features(images() * np.nan)
    with pytest.raises(MuauditError, match=r"nowhere"):
        opened(tmp_path / "nowhere")
