"""Small untrained text-to-image models of every shape that is audited, as folders and in memory."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast, PreTrainedTokenizerFast

from muaudit.diffusion.pipeline import Pipeline, PromptEncoder

WORDS = ("a", "an", "of", "photo", "picture", "drawing", "zero", "one", "two", "three", "four", "five", "red", "blue", "small")
SPECIALS = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unknown>"}
POSITIONS = 12


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level: start, words, end, and the end token as padding."""
    vocabulary = {word: place for place, word in enumerate(("<start>", "<end>", "<unknown>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=POSITIONS, **SPECIALS)


def pair_tokenizer(folder: Path, positions: int = POSITIONS, pad: str = "<|endoftext|>") -> CLIPTokenizerFast:
    """CLIP's byte pairs over a handful of merges; `folder` takes its two files."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789!"]
    merges = [("o", "n"), ("on", "e</w>"), ("t", "w"), ("tw", "o</w>"), ("r", "e"), ("re", "d</w>"), ("o", "f</w>")]
    tokens = [*letters, *(f"{one}</w>" for one in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: place for place, token in enumerate((*tokens, "<|startoftext|>", "<|endoftext|>"))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=positions, pad_token=pad
    )  # fmt: skip


def text_encoder(tokenizer: Any, *, projection: int = 0, width: int = 32, seed: int = 0) -> Any:
    """CLIP's text encoder, two layers; with a projection, the one that SDXL pools with."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=POSITIONS, projection_dim=projection or 32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def unet(channels: int = 1, context: int = 32, seed: int = 0, **further: Any) -> UNet2DConditionModel:
    """A denoising network of 8 x 8 latents, with cross-attention at 4 x 4."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, cross_attention_dim=context, attention_head_dim=2, **further,
    ).eval()  # fmt: skip


def vae(seed: int = 0, **further: Any) -> AutoencoderKL:
    """A VAE of 16 x 16 colour images and 4 x 8 x 8 codes."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
        scaling_factor=0.5, **further,
    ).eval()  # fmt: skip


def pixel_pipeline(seed: int = 0, *, batch_size: int = 16, **scheduler: Any) -> Pipeline:
    """Denoises 8 x 8 grey pixels; words are its tokens."""
    tokenizer = word_tokenizer()
    encoder = PromptEncoder(tokenizer, text_encoder(tokenizer, seed=seed))
    return Pipeline(unet(seed=seed), None, [encoder], DDIMScheduler(**scheduler).config, batch_size=batch_size)


def _written(folder: Path, name: str, parts: dict[str, Any], **further: Any) -> Path:
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.39.0", **further}
    for part, value in parts.items():
        value.save_pretrained(folder / part)
        library = "diffusers" if type(value).__module__.startswith("diffusers") else "transformers"
        index[part] = [library, type(value).__name__]
    if "vae" not in parts:
        index["vae"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def write_pixel(folder: Path, seed: int = 0, **scheduler: Any) -> Path:
    """Writes `pixel_pipeline` as a folder."""
    pipeline = pixel_pipeline(seed)
    encoder = pipeline.encoders[0]
    parts = {
        "scheduler": DDIMScheduler(**scheduler), "text_encoder": encoder.module, "tokenizer": encoder.tokenizer,
        "unet": pipeline.unet,
    }  # fmt: skip
    return _written(folder, "DiffusionPipeline", parts)


STABLE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip
"""Noise levels of Stable Diffusion 1."""


def write_stable(folder: Path, seed: int = 0, *, scheduler: Any = None) -> Path:
    """Writes the shape of Stable Diffusion 1 and 2: VAE, one CLIP text encoder, byte pairs."""
    tokenizer = pair_tokenizer(folder / "tokenizer")
    parts = {
        "scheduler": scheduler or DDIMScheduler(**STABLE), "text_encoder": text_encoder(tokenizer, seed=seed),
        "tokenizer": tokenizer, "unet": unet(4, seed=seed), "vae": vae(seed),
    }  # fmt: skip
    return _written(
        folder, "StableDiffusionPipeline", parts, safety_checker=[None, None], feature_extractor=[None, None],
        requires_safety_checker=False,
    )  # fmt: skip


def write_xl(folder: Path, seed: int = 0, *, zeros: bool = True, scheduler: Any = None) -> Path:
    """Writes the shape of SDXL: two text encoders, the second pooled, and sizes as time ids."""
    first, second = pair_tokenizer(folder / "tokenizer"), pair_tokenizer(folder / "tokenizer_2", pad="!")
    added = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 24,
    }  # fmt: skip
    parts = {
        "scheduler": scheduler or DDIMScheduler(**STABLE), "text_encoder": text_encoder(first, seed=seed),
        "text_encoder_2": text_encoder(second, projection=24, width=16, seed=seed + 1), "tokenizer": first,
        "tokenizer_2": second, "unet": unet(4, 48, seed=seed, **added), "vae": vae(seed),
    }  # fmt: skip
    return _written(folder, "StableDiffusionXLPipeline", parts, force_zeros_for_empty_prompt=zeros)
