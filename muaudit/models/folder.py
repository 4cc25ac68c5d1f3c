"""Opens a local Hugging Face folder safely: safetensors only, no code, no network, nothing missing."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from muaudit.errors import EnvironmentFault, ModelError
from muaudit.manifest import manifest, manifest_digest, unchanged
from muaudit.models.inspection import read_json as read_json  # who opens a folder reads its configurations from here
from muaudit.models.inspection import (
    refuse_absurd,
    refuse_code,
    refuse_language_model,
    refuse_no_folder,
    refuse_tokenizer,
    weights_of,
)
from muaudit.models.offline import offline
from muaudit.models.weights_file import told

Dtype = Literal["float32", "bfloat16", "float16", "auto"]

# What transformers, peft, tokenizers and safetensors raise on files that they cannot use.
UNUSABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, IndexError, SafetensorError)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CANARIES = ("", "a" * 64 + "!", " " * 64 + "!", "0" * 64 + "!", "a b " * 16 + "!", "\n" * 64 + "a")


@dataclass(frozen=True)
class Folder:
    """What was opened, with the digest of all that it was opened from."""

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ModelError: No such kind of device.
        EnvironmentFault: The device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r}: not a device; write auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(
            f'device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; set device = "cpu"'
        )
    return device


def load(
    path: Path, *, base: Path | None, dtype: Dtype, device_map: str | dict[str, Any] | None, masked: bool = False
) -> Folder:
    """Loads network and tokenizer.

    Args:
        path: A model's folder, or an adapter's.
        base: With an adapter: its model's folder.
        dtype: What the weights are computed in.
        device_map: As accelerate takes it.
        masked: Whether it is a masked language model instead of a causal one.

    Returns:
        The network in evaluation mode (an adapter is merged into it), its tokenizer and the digest.

    Raises:
        ModelError: The folder cannot be used.
    """
    refuse_no_folder(path, base)
    whole = path if base is None else base
    folders = [folder for folder in (path, base) if folder is not None]
    with unchanged(*folders):
        kept = [manifest_digest(manifest(folder)) for folder in folders]
        refuse_language_model(path, base)
        with opening():
            tokenizer = load_tokenizer(whole)
            module = _network(whole, dtype, device_map, AutoModelForMaskedLM if masked else AutoModelForCausalLM)
            if base is not None:
                module = _merged(module, path, base)
    rows = module.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ModelError(
            f"{whole}: the tokenizer's ids go up to {largest}, but the model has embeddings for {rows} tokens; "
            "this is another model's tokenizer: save the right one into the folder"
        )
    digest = hashlib.sha256(json.dumps([*kept, str(module.dtype)]).encode()).hexdigest()
    return Folder(module.eval(), tokenizer, digest)


def load_network(
    path: Path,
    kind: Any,  # noqa: ANN401 - transformers is untyped
    *,
    dtype: str,
    variant: str | None = None,
) -> PreTrainedModel:
    """Loads a network that has no tokenizer, as safely.

    Args:
        path: The model's folder.
        kind: The class of transformers that opens it, such as AutoModelForImageClassification.
        dtype: What the weights are computed in, by torch's name.
        variant: What stands before `.safetensors` in the weights' file name, such as "fp16"; nothing by default.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelError: The folder cannot be used.
    """
    with unchanged(path):
        manifest(path)  # refuses links, which lead out of the folder
        refuse_code(path)
        refuse_absurd(path / "config.json", weights_of(path, "model" if variant is None else f"model.{variant}"))
        with opening():
            return _network(path, dtype, None, kind, variant).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Opens a tokenizer, by the class that its folder names.

    Raises:
        ModelError: There is none, or it cannot be opened.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"{folder}: no tokenizer; save it into the folder with tokenizer.save_pretrained")
    refuse_code(folder)
    refuse_tokenizer(folder)
    try:
        with opening():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer(list(_CANARIES))
    except MemoryError:
        raise
    except BaseException as error:
        # The Rust tokenizers raise bare Exception, and panic with what is no Exception at all.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{folder}: the tokenizer cannot be opened ({told(error)}); save it again") from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def _network(
    folder: Path,
    dtype: str,
    device_map: str | dict[str, Any] | None,
    kind: Any,  # noqa: ANN401 - transformers is untyped
    variant: str | None = None,
) -> PreTrainedModel:
    try:
        module, info = kind.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device_map,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a configuration can break inside transformers has no common class
        raise ModelError(f"{folder}: the model cannot be opened ({told(error)}); check config.json and the weights") from error
    refuse_misfits(folder, info, module)
    return cast("PreTrainedModel", module)


def refuse_misfits(folder: Path, info: Mapping[str, Any], module: nn.Module) -> None:
    """Refuses a network of which a weight was not in the files, or of which the files hold more.

    Args:
        folder: Where it was loaded from.
        info: What transformers or diffusers says of the loading (`output_loading_info`).
        module: The network. Buffers that it computes itself, such as CLIP's positions, are no weights; older files hold them.

    Raises:
        ModelError: They do not belong together.
    """
    computed = tuple(f".{name}" for name, _ in module.named_buffers())
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key) for key in info[f"{kind}_keys"])
        if kind == "unexpected":
            keys = [key for key in keys if not f".{key}".endswith(computed)]
        if keys:
            raise ModelError(
                f"{folder}: {len(keys)} {kind} weights (first: {keys[0]}), so what would be audited is not this model; "
                "config.json and the weights must belong together: save the model again with save_pretrained"
            )


def _merged(module: PreTrainedModel, adapter: Path, base: Path) -> PreTrainedModel:
    """Merges an adapter into its model; every one of its weights must find its place."""
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        config.base_model_name_or_path = str(base)  # peft would look for the one that the adapter names, on a hub too
        model = PeftModel.from_pretrained(module, str(adapter), config=config)
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
        wanted = set(get_peft_model_state_dict(model))
        if saved == wanted:
            return cast("PreTrainedModel", model.merge_and_unload(safe_merge=True))
    except MemoryError:
        raise
    except Exception as error:  # nor has what an adapter's can break inside peft
        raise ModelError(
            f"{adapter}: the adapter cannot be merged into its model ({told(error)}); is base the right one?"
        ) from error
    odd = sorted(saved ^ wanted)
    raise ModelError(
        f"{adapter}: {len(odd)} weights of the adapter do not fit its model (first: {odd[0]}); is base the right one?"
    )


@contextmanager
def opening() -> Iterator[None]:
    """Keeps a library that opens a folder quiet, and off the network."""
    with quiet(), offline():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from printing; what matters becomes an error."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
