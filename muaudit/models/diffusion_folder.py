"""Opens a local diffusers folder safely: safetensors only, no code, no network, nothing missing.

model_index.json is read here, not by diffusers: only classes of the short list below are ever opened, and each from the model's
own sub-folder, the text encoder as much as the denoising network.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from muaudit.diffusion.pipeline import Pipeline, PromptEncoder
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.loaders.example_columns import first_line
from muaudit.manifest import manifest, manifest_digest, unchanged
from muaudit.models.inspection import read_json, refuse_absurd, refuse_code, weights_of
from muaudit.models.offline import offline

if TYPE_CHECKING:
    from collections.abc import Iterator

DiffusionDtype = Literal["float32", "bfloat16", "float16"]

INDEX = "model_index.json"

MOST_TIMESTEPS = 100_000
"""Most steps of noise; 1000 is customary."""

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "DiffusionPipeline")
"""Pipelines that sample as muaudit does: others change what a model does at inference."""

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
_COMPONENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", _TOKENIZERS),
    "tokenizer_2": ("transformers", _TOKENIZERS),
    "scheduler": (
        "diffusers",
        (
            "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
        ),
    ),
}  # fmt: skip
"""Library and classes of every component that is opened."""

_IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that have no part in drawing an image of a prompt."""

_REQUIRED = ("unet", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}


@dataclass(frozen=True)
class Index:
    """What model_index.json says.

    Attributes:
        components: Class of every component that is opened, by its sub-folder.
        zeros: Whether nothing asked for is zeros instead of the empty prompt (SDXL).
    """

    components: dict[str, str]
    zeros: bool

    @property
    def encoders(self) -> int:
        """Number of text encoders: 1, or 2 of SDXL."""
        return 2 if "text_encoder_2" in self.components else 1


def read_index(path: Path) -> Index:
    """Reads a folder's model_index.json, without opening any of its components.

    Args:
        path: The model's folder.

    Returns:
        What is to be opened.

    Raises:
        ModelError: It is not there, asks for code, or for a class that is not supported.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such folder; a model is a local diffusers folder with {INDEX} and safetensors")
    if not (path / INDEX).is_file():
        raise ModelError(f"{path}: no {INDEX}; give a diffusers folder, as save_pretrained of a pipeline writes it")
    values = read_json(path / INDEX)
    name = values.get("_class_name")
    if isinstance(name, list):
        raise ModelError(
            f"{path / INDEX}: _class_name asks to run code from the folder ({name[-1] if name else name}), which muaudit never "
            "does; save the model as one of diffusers' own pipelines"
        )
    if name not in PIPELINES:
        raise ModelError(f"{path / INDEX}: pipeline {name!r} is not supported; supported are {', '.join(PIPELINES)}")
    components = {part: _class(path, part, entry) for part, entry in values.items() if isinstance(entry, list) and any(entry)}
    components = {part: kind for part, kind in components.items() if part not in _IGNORED}
    required = [*_REQUIRED, *(["tokenizer_2"] if "text_encoder_2" in components else [])]
    if name != "DiffusionPipeline":
        required.append("vae")
    if name == "StableDiffusionXLPipeline":
        required += ["text_encoder_2", "tokenizer_2"]
    for part in required:
        if part not in components:
            raise ModelError(f"{path / INDEX}: no {part}; a text-to-image model needs one: save the whole pipeline")
        if not (path / part).is_dir():
            raise ModelError(f"{path}: the sub-folder {part} is missing; copy the whole folder")
    return Index(components, values.get("force_zeros_for_empty_prompt") is True and "text_encoder_2" in components)


def _class(path: Path, part: str, entry: list[Any]) -> str:
    if part in _IGNORED:
        return ""
    shown = ".".join(str(one) for one in entry)
    if len(entry) != 2 or entry[0] not in ("diffusers", "transformers"):
        if str(entry[0]).split(".")[0] in ("diffusers", "transformers", "onnxruntime", "optimum"):
            raise ModelError(f"{path / INDEX}: {part} is {shown}, which is not supported")
        raise ModelError(
            f"{path / INDEX}: {part} asks to run code from the folder ({shown}), which muaudit never does; save the model with "
            "classes that diffusers and transformers ship"
        )
    if part not in _COMPONENTS:
        raise ModelError(f"{path / INDEX}: a component {part} ({shown}) is not supported, and without it this is another model")
    library, kinds = _COMPONENTS[part]
    if entry[0] != library or entry[1] not in kinds:
        raise ModelError(f"{path / INDEX}: {part} is {shown}, which is not supported; supported is {', '.join(kinds)}")
    return str(entry[1])


def load_pipeline(
    path: Path, index: Index, *, dtype: DiffusionDtype, device: torch.device, batch_size: int, attention_slicing: bool
) -> tuple[Pipeline, str]:
    """Opens all that an index names.

    Args:
        path: The model's folder.
        index: Its model_index.json.
        dtype: What the networks compute in; a VAE that overflows in float16 stays in float32, as in diffusers.
        device: Where they go.
        batch_size: Most rows at a time.
        attention_slicing: Whether attention is computed in parts, which takes less memory and more time.

    Returns:
        The pipeline, and the SHA-256 over the folder's manifest and the dtype.

    Raises:
        ModelError: A component cannot be opened safely, or they do not belong together; the message says how to mend it.
        EnvironmentFault: diffusers is not installed, or the device has too little memory.
    """
    diffusers = _diffusers()
    with unchanged(path):
        digest = hashlib.sha256(json.dumps([manifest_digest(manifest(path)), dtype]).encode()).hexdigest()
        return _pipeline(path, index, diffusers, dtype, device, batch_size, attention_slicing), digest


def _pipeline(
    path: Path,
    index: Index,
    diffusers: Any,  # noqa: ANN401 - diffusers is untyped
    dtype: DiffusionDtype,
    device: torch.device,
    batch_size: int,
    attention_slicing: bool,
) -> Pipeline:
    for part in index.components:
        refuse_code(path / part)
    scheduler = _scheduler(path / "scheduler")
    unet = _network(path / "unet", diffusers.UNet2DConditionModel, dtype)
    vae = _vae(path / "vae", diffusers.AutoencoderKL, dtype) if "vae" in index.components else None
    encoders = _encoders(path, index, dtype)
    _refuse_strangers(path, unet, vae, encoders)
    try:
        for module in (unet, vae, *(encoder.module for encoder in encoders)):
            if module is not None:
                module.to(device)
    except RuntimeError as error:
        raise EnvironmentFault(
            f"device {str(device)!r}: {first_line(error)}; use dtype float16 or bfloat16, or device = 'cpu'"
        ) from error
    if attention_slicing:
        unet.set_attention_slice("auto")
        if vae is not None:
            vae.enable_slicing()
    try:
        return Pipeline(unet, vae, encoders, scheduler, batch_size=batch_size, zeros_for_nothing=index.zeros)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _diffusers() -> Any:  # noqa: ANN401 - diffusers is untyped
    try:
        import diffusers
    except ImportError as error:
        raise EnvironmentFault("image generators need diffusers; install it: pip install 'muaudit[diffusion]'") from error
    return diffusers


def _scheduler(component: Path) -> dict[str, Any]:
    file = component / "scheduler_config.json"
    values = read_json(file)
    kinds = _COMPONENTS["scheduler"][1]
    if values.get("_class_name") not in kinds:
        raise ModelError(f"{file}: {values.get('_class_name')!r} is not supported; supported are {', '.join(kinds)}")
    prediction = values.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(f"{file}: prediction_type {prediction!r} is not supported; epsilon, v_prediction and sample are")
    steps = values.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 0 < steps <= MOST_TIMESTEPS:
        raise ModelError(f"{file}: num_train_timesteps is {str(steps)[:40]}, and has to be from 1 to {MOST_TIMESTEPS}; set it")
    if values.get("use_flow_sigmas") or values.get("timestep_type") == "continuous":
        raise ModelError(f"{file}: flow matching and continuous timesteps are not supported; noise levels are those of DDPM")
    return values


def _variant(component: Path, stem: str) -> str | None:
    """What stands in the weights' file name, where there are none of the plain name."""
    if (component / f"{stem}.safetensors").is_file() or (component / f"{stem}.safetensors.index.json").is_file():
        return None
    found = sorted(file.name[len(stem) + 1 : -len(".safetensors")] for file in component.glob(f"{stem}.*.safetensors"))
    if len(found) > 1:
        raise ModelError(f"{component}: several variants of the weights ({', '.join(found)}); keep the one to be audited")
    return found[0] if found else None


def _network(
    component: Path,
    kind: Any,  # noqa: ANN401 - of diffusers
    dtype: DiffusionDtype,
) -> Any:  # noqa: ANN401 - of diffusers
    from muaudit.models.folder import refuse_misfits

    named = read_json(component / "config.json").get("_class_name")
    if named != kind.__name__:
        raise ModelError(f"{component}: config.json is of a {named!r}, and this must be a {kind.__name__}")
    stem = _WEIGHTS["diffusers"]
    variant = _variant(component, stem)
    refuse_absurd(component / "config.json", weights_of(component, stem if variant is None else f"{stem}.{variant}"))
    try:
        with _quiet(), offline():
            module, info = kind.from_pretrained(
                component, torch_dtype=getattr(torch, dtype), variant=variant, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # what a configuration can break inside diffusers has no common class
        raise ModelError(
            f"{component}: the network cannot be opened ({first_line(error)}); check config.json and the weights"
        ) from error
    refuse_misfits(component, info, module)
    _refuse_nan(component, module)
    return module.eval()


def _vae(
    component: Path,
    kind: Any,  # noqa: ANN401 - of diffusers
    dtype: DiffusionDtype,
) -> Any:  # noqa: ANN401 - of diffusers
    # diffusers' own default: the codes of most VAEs overflow in float16.
    careful = dtype == "float16" and read_json(component / "config.json").get("force_upcast", True)
    return _network(component, kind, "float32" if careful else dtype)


def _encoders(path: Path, index: Index, dtype: DiffusionDtype) -> list[PromptEncoder]:
    import transformers

    from muaudit.models.folder import load_network, load_tokenizer, quiet

    encoders = []
    for ending in ("", "_2")[: index.encoders]:
        part = f"text_encoder{ending}"
        component = path / part
        kind = getattr(transformers, index.components[part])
        variant = _variant(component, _WEIGHTS["transformers"])
        module = load_network(component, kind, dtype=dtype, variant=variant)
        _refuse_nan(component, module)
        with quiet():
            tokenizer = load_tokenizer(path / f"tokenizer{ending}")
            try:
                encoders.append(PromptEncoder(tokenizer, module, penultimate=index.encoders == 2))
            except ModelError as error:
                raise ModelError(f"{path / f'tokenizer{ending}'}: {error}") from error
    return encoders


def _refuse_nan(component: Path, module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(
                f"{component}: weight {name} holds NaN or infinity; the training diverged, the file is damaged, or its numbers "
                "are too large for this dtype"
            )


def _refuse_strangers(
    path: Path,
    unet: Any,  # noqa: ANN401 - of diffusers
    vae: Any,  # noqa: ANN401 - of diffusers
    encoders: Sequence[PromptEncoder],
) -> None:
    """Refuses a denoising network that wants other inputs than it would get, or gives other outputs."""
    config = cast("Mapping[str, Any]", unet.config)
    double = len(encoders) == 2
    wanted = {
        "out_channels": config["in_channels"],  # else it inpaints, or predicts the variance too
        "time_cond_proj_dim": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim_type": None,
        "addition_embed_type": "text_time" if double else None,
    }
    if vae is not None:
        wanted["in_channels"] = vae.config.latent_channels
    if double:
        projected = (config["addition_time_embed_dim"] or 0) * 6 + encoders[1].module.config.projection_dim
        wanted["projection_class_embeddings_input_dim"] = projected
    for name, value in wanted.items():
        if config.get(name) != value:
            raise ModelError(
                f"{path / 'unet'}: {name} is {config.get(name)!r}, but with this folder's text encoder and VAE it would be "
                f"{value!r}; this kind of denoising network is not supported, or belongs to another model"
            )
    width = sum(encoder.module.config.hidden_size for encoder in encoders)
    read = config["cross_attention_dim"]
    if any(one != width for one in ([read] if isinstance(read, int) else read or [])):
        raise ModelError(
            f"{path}: the text encoder gives vectors of {width} numbers, but the denoising network reads {read}; they "
            "belong to different models: take both from the same one"
        )


@contextmanager
def _quiet() -> "Iterator[None]":
    """Keeps diffusers from printing; what matters becomes an error."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
