"""Folders of diffusion models: what opens, and what is refused in one clear line."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import text_encoder, unet, word_tokenizer, write_pixel, write_stable, write_xl

from muaudit.errors import EnvironmentFault, ModelError
from muaudit.models import ImageQuery, Sampling
from muaudit.models.diffusion import Diffusion, DiffusionXL, diffusion_family, open_diffusion

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
QUERY = [ImageQuery("u", "one red two", 3, 2.0, Sampling(steps=3))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_pixel(root / "pixel")
    write_stable(root / "stable")
    write_xl(root / "xl")
    return root


@pytest.fixture
def pixel(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "pixel", tmp_path / "model"))


@pytest.fixture
def stable(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "stable", tmp_path / "model"))


@pytest.fixture
def xl(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "xl", tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def reweigh(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        open_diffusion(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text


def images(folder: Path, **how: Any) -> np.ndarray:
    return open_diffusion(folder, **how).images(QUERY)


# What opens


def test_families(made: Path) -> None:
    assert diffusion_family(made / "pixel") is Diffusion
    assert diffusion_family(made / "stable") is Diffusion
    assert diffusion_family(made / "xl") is DiffusionXL
    pipeline = open_diffusion(made / "pixel").pipeline()
    assert pipeline.vae is None
    assert pipeline.image_shape == (1, 8, 8)
    assert open_diffusion(made / "xl").pipeline().image_shape == (3, 16, 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_single(made: Path, dtype: str) -> None:
    for shape in ("stable", "xl"):
        half = open_diffusion(made / shape, dtype=dtype)  # type: ignore[arg-type]
        assert half.pipeline().dtype == getattr(torch, dtype)
        assert np.abs(half.images(QUERY) - images(made / shape)).max() < 0.05
        assert half.digest != open_diffusion(made / shape).digest


def test_a_vae_that_overflows_stays_in_single_precision(made: Path) -> None:
    pipeline = open_diffusion(made / "stable", dtype="float16").pipeline()
    assert pipeline.vae.dtype == torch.float32
    assert pipeline.latents(np.zeros((1, 3, 16, 16), np.float32)).dtype == torch.float16


def test_attention_slicing_changes_nothing_beyond_rounding(made: Path) -> None:
    assert np.allclose(images(made / "stable", attention_slicing=True), images(made / "stable"), atol=1e-4)


def test_variants_are_opened_where_only_they_are_there(stable: Path) -> None:
    plain = images(stable)
    for file in (UNET, VAE, TEXT):
        (stable / file).rename((stable / file).with_suffix(".fp16.safetensors"))
    assert np.array_equal(images(stable), plain)
    shutil.copy(
        stable / "unet/diffusion_pytorch_model.fp16.safetensors", stable / "unet/diffusion_pytorch_model.ema.safetensors"
    )
    refused(stable, "several variants .*ema, fp16.*keep the one")


def test_variants_beside_plain_weights_are_not_read(stable: Path) -> None:
    plain = images(stable)
    (stable / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert np.array_equal(images(stable), plain)


def test_shards_are_opened_and_a_missing_one_is_refused(stable: Path) -> None:
    plain = images(stable)
    (stable / UNET).unlink()
    unet(4).save_pretrained(stable / "unet", max_shard_size="300KB")
    shards = sorted((stable / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert np.array_equal(images(stable), plain)
    shards[1].unlink()
    refused(stable, "shard .* is missing; copy the whole folder")


def test_pickles_beside_safetensors_are_never_read(stable: Path) -> None:
    plain = images(stable)
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.bin"):
        (stable / name).write_bytes(b"not a pickle either")
    assert np.array_equal(images(stable), plain)


def test_positions_that_older_files_keep_are_no_weights(stable: Path) -> None:
    plain = images(stable)
    reweigh(stable / TEXT, lambda one: one.update({"text_model.embeddings.position_ids": torch.arange(12).reshape(1, -1)}))
    assert np.array_equal(images(stable), plain)


def test_older_names_of_a_vaes_attention_are_understood(stable: Path) -> None:
    plain = images(stable)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            for new, old in older.items():
                if f".{new}." in name:
                    tensors[name.replace(new, old)] = tensors.pop(name)

    reweigh(stable / VAE, rename)
    assert "decoder.mid_block.attentions.0.query.weight" in load_file(stable / VAE)
    assert np.array_equal(images(stable), plain)


def test_components_without_a_part_in_drawing_are_not_loaded(stable: Path) -> None:
    plain = images(stable)
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    extractor = ["transformers", "CLIPImageProcessor"]
    edit(stable / "model_index.json", lambda one: one.update({"safety_checker": checker, "feature_extractor": extractor}))
    assert np.array_equal(images(stable), plain)


def test_unused_settings_of_other_schedulers_do_no_harm(stable: Path) -> None:
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "trained_betas": None}
    edit(stable / "scheduler/scheduler_config.json", lambda one: one.pop("clip_sample") or one.update(config))
    edit(stable / "model_index.json", lambda one: one.update({"scheduler": ["diffusers", "PNDMScheduler"]}))
    assert np.array_equal(images(stable), images_of_ddim(stable))


def images_of_ddim(folder: Path) -> np.ndarray:
    edit(
        folder / "scheduler/scheduler_config.json",
        lambda one: one.update({"_class_name": "DDIMScheduler", "clip_sample": False}),
    )
    return images(folder)


def test_opening_prints_nothing(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images(made / "stable")
    images(made / "xl")
    assert capfd.readouterr() == ("", "")


def test_the_digest_is_of_every_file(stable: Path) -> None:
    first = open_diffusion(stable).digest
    assert open_diffusion(stable, batch_size=3).digest == first
    edit(stable / "scheduler/scheduler_config.json", lambda one: one.update({"beta_end": 0.013}))
    changed = open_diffusion(stable).digest
    (stable / "README.md").write_text("a note")
    assert len({first, changed, open_diffusion(stable).digest}) == 3


# What is refused: weights


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_a_missing_weight_is_an_error(stable: Path, file: str) -> None:
    reweigh(stable / file, lambda one: one.pop(sorted(one)[0]))
    refused(stable, f"{Path(file).parent}: 1 missing weights .*belong together")


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_an_unexpected_weight_is_an_error(stable: Path, file: str) -> None:
    reweigh(stable / file, lambda one: one.update({"adapter.weight": torch.zeros(2)}))
    refused(stable, f"{Path(file).parent}: 1 unexpected weights .first: adapter.weight.")


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_a_mismatched_weight_is_an_error(stable: Path, file: str) -> None:
    reweigh(stable / file, lambda one: one.update({sorted(one)[0]: torch.zeros(3, 3)}))
    refused(stable, Path(file).parent.name)


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_nan_weights_are_refused(stable: Path, file: str) -> None:
    reweigh(stable / file, lambda one: one[sorted(one)[-1]].view(-1)[:1].fill_(float("nan")))
    refused(stable, f"{file}: weight .* holds NaN or infinity")


def test_weights_that_single_precision_alone_can_hold_are_refused_in_half(stable: Path) -> None:
    reweigh(stable / UNET, lambda one: one["conv_in.bias"].fill_(1e6))
    assert open_diffusion(stable)
    with pytest.raises(ModelError, match=r"conv_in\.bias holds NaN or infinity.*too large for this dtype"):
        open_diffusion(stable, dtype="float16")


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_pickles_alone_are_refused_unread(stable: Path, file: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (stable / "sprung",)

    (stable / file).unlink()
    name = "pytorch_model.bin" if file == TEXT else "diffusion_pytorch_model.bin"
    (stable / Path(file).parent / name).write_bytes(pickle.dumps(Trap()))
    refused(stable, f"{Path(file).parent}: the weights are pickled .{name}.*can run code")
    assert not (stable / "sprung").exists()


@pytest.mark.parametrize("shard", ["diffusion_pytorch_model.bin", "../elsewhere.safetensors"])
def test_shards_that_are_pickles_or_lie_elsewhere_are_refused(stable: Path, shard: str) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(stable / UNET), shard)}
    (stable / UNET).rename(stable / "elsewhere.safetensors")
    (stable / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    (stable / f"{UNET}.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(stable, f"{re.escape(repr(shard))} is no safetensors file of this folder")


def test_damaged_weights_are_refused(stable: Path) -> None:
    (stable / UNET).write_bytes((stable / UNET).read_bytes()[:1000])
    refused(stable, "unet/diffusion_pytorch_model.safetensors: is cut short")


def test_no_weights_are_refused(stable: Path) -> None:
    (stable / VAE).unlink()
    refused(stable, "vae: no weights .*copy the whole folder")


def test_links_are_refused(stable: Path, tmp_path: Path) -> None:
    (stable / UNET).rename(tmp_path / "elsewhere")
    (stable / UNET).symlink_to(tmp_path / "elsewhere")
    refused(stable, "symbolic link")


# What is refused: code and classes


def index_entry(part: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", lambda one: one.update({part: value}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (index_entry("_class_name", ["pipeline", "Mine"]), "_class_name asks to run code from the folder .Mine."),
        (
            index_entry("_class_name", "StableDiffusionPipelineSafe"),
            "'StableDiffusionPipelineSafe' is not supported; supported",
        ),
        (index_entry("_class_name", None), "None is not supported"),
        (index_entry("unet", ["unet.mine", "UNet2DConditionModel"]), "unet asks to run code from the folder"),
        (index_entry("unet", ["diffusers", "UNetMotionModel"]), "unet is diffusers.UNetMotionModel, which is not supported"),
        (index_entry("vae", ["diffusers", "VQModel"]), "vae is diffusers.VQModel, which is not supported"),
        (index_entry("vae", ["transformers", "AutoencoderKL"]), "vae is transformers.AutoencoderKL"),
        (index_entry("text_encoder", ["transformers", "T5EncoderModel"]), "supported is CLIPTextModel"),
        (index_entry("tokenizer", ["transformers", "T5Tokenizer"]), "supported is CLIPTokenizer"),
        (index_entry("scheduler", ["diffusers", "FlowMatchEulerDiscreteScheduler"]), "scheduler is .* not supported"),
        (index_entry("transformer", ["diffusers", "SD3Transformer2DModel"]), "component transformer .* another model"),
        (index_entry("unet", ["diffusers"]), "unet is diffusers, which is not supported"),
        (index_entry("unet", [None, None]), "no unet; a text-to-image model needs one"),
        (index_entry("vae", [None, None]), "no vae; a text-to-image model needs one"),
        (index_entry("text_encoder", [None, None]), "no text_encoder"),
        (index_entry("tokenizer", [None, None]), "no tokenizer"),
    ],
)
def test_an_index_of_something_else_is_refused(stable: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(stable)
    refused(stable, message)
    with pytest.raises(ModelError, match=message):
        diffusion_family(stable)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_refused(stable: Path, part: str) -> None:
    shutil.rmtree(stable / part)
    refused(stable, f"sub-folder {part} is missing; copy the whole folder")


def test_xl_needs_both_encoders(xl: Path) -> None:
    edit(xl / "model_index.json", lambda one: one.update({"tokenizer_2": [None, None]}))
    refused(xl, "no tokenizer_2")
    edit(xl / "model_index.json", lambda one: one.pop("text_encoder_2"))
    refused(xl, "no text_encoder_2")


@pytest.mark.parametrize(
    "file",
    ["unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"],
)
def test_code_of_the_folder_is_refused(stable: Path, file: str) -> None:
    edit(stable / file, lambda one: one.update({"auto_map": {"AutoModel": "mine.Mine"}}))
    (stable / file).with_name("mine.py").write_text("raise SystemExit")
    refused(stable, "auto_map asks to run code from the folder .AutoModel.")


@pytest.mark.parametrize("text", ["{", "[]", '"model"'])
def test_an_index_that_is_no_object_is_refused(stable: Path, text: str) -> None:
    (stable / "model_index.json").write_text(text, encoding="utf-8")
    refused(stable, "not (a )?JSON")


def test_folders_that_are_no_pipeline_are_refused(stable: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(stable / "unet", "no model_index.json")


# What is refused: parts of different models


def test_another_class_in_a_config_is_refused(stable: Path) -> None:
    edit(stable / "unet/config.json", lambda one: one.update({"_class_name": "UNet3DConditionModel"}))
    refused(stable, "config.json is of a 'UNet3DConditionModel'")


def test_a_text_encoder_of_another_width_is_refused(stable: Path) -> None:
    tokenizer = open_diffusion(stable).pipeline().encoders[0].tokenizer
    text_encoder(tokenizer, width=16).save_pretrained(stable / "text_encoder")
    refused(stable, "vectors of 16 numbers, but the denoising network reads 32")


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"out_channels": 8}, "out_channels is 8.*it would be 4"),
        ({"in_channels": 9, "out_channels": 4}, "out_channels is 4.*it would be 9"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim is 8"),
        ({"num_class_embeds": 3}, "num_class_embeds is 3"),
    ],
)
def test_denoising_networks_of_another_kind_are_refused(stable: Path, further: dict[str, int], message: str) -> None:
    config = json.loads((stable / "unet/config.json").read_text(encoding="utf-8"))
    kind = type(unet())
    kind.from_config({**config, **further}).save_pretrained(stable / "unet")
    refused(stable, message)


def test_a_network_that_knows_no_sizes_is_refused_with_two_encoders(xl: Path) -> None:
    unet(4, 48).save_pretrained(xl / "unet")
    refused(xl, "addition_embed_type is None.*it would be 'text_time'")


def test_a_network_of_other_latents_than_the_vaes_is_refused(stable: Path) -> None:
    unet(3).save_pretrained(stable / "unet")
    refused(stable, "in_channels is 3.*it would be 4")


def test_a_tokenizer_with_ids_beyond_the_table_is_refused(pixel: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"further{number}" for number in range(5)])
    tokenizer.save_pretrained(pixel / "tokenizer")
    refused(pixel, "tokenizer: the tokenizer's ids go up to 22, but the text encoder has embeddings for 18")


def test_a_tokenizer_that_knows_no_word_is_refused(pixel: Path) -> None:
    tokenizer = word_tokenizer()
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    saved["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[a-z]+"}, "content": "#"}
    (pixel / "tokenizer/tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    refused(pixel, "takes 15 of 15 words of its own vocabulary for unknown.*PreTrainedTokenizerFast")


def test_a_word_level_folder_is_not_opened_as_byte_pairs(pixel: Path) -> None:
    edit(pixel / "tokenizer/tokenizer_config.json", lambda one: one.update({"tokenizer_class": "CLIPTokenizer"}))
    try:
        words = open_diffusion(pixel).pipeline().encoders[0].words("one two")
    except ModelError:
        return
    assert words == word_tokenizer()("one two", add_special_tokens=False).input_ids  # some versions see through it


def test_a_tokenizer_without_padding_is_refused(pixel: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(pixel / "tokenizer")
    refused(pixel, "no padding token")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler' is not supported"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction' is not supported"),
        ({"use_flow_sigmas": True}, "flow matching"),
        ({"timestep_type": "continuous"}, "continuous timesteps"),
        ({"beta_end": 3.0}, "noise levels leave no signal"),
        ({"beta_schedule": "mine"}, "scheduler's configuration cannot be used"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is many"),
    ],
)
def test_schedulers_of_another_kind_are_refused(stable: Path, change: dict[str, Any], message: str) -> None:
    edit(stable / "scheduler/scheduler_config.json", lambda one: one.update(change))
    refused(stable, message)


def test_a_network_without_a_size_is_refused(stable: Path) -> None:
    edit(stable / "unet/config.json", lambda one: one.update({"sample_size": None}))
    refused(stable, "sample_size")


def test_devices_that_are_not_there(made: Path) -> None:
    with pytest.raises(ModelError, match="not a device"):
        open_diffusion(made / "pixel", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentFault, match="CUDA"):
            open_diffusion(made / "pixel", device="cuda")
