"""Opens a text encoder with its tokenizer alone, out of a pipeline's folder."""

from pathlib import Path

from muaudit.diffusion.prompt_encoder import PromptEncoder
from muaudit.errors import ModelError

KINDS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def open_prompt_encoder(path: Path, device: str = "auto") -> PromptEncoder:
    """Opens the first text encoder of a pipeline.

    Args:
        path: A folder with the sub-folders text_encoder and tokenizer, as a pipeline's has; nothing else in it is opened, so
            that these two can be had by themselves.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...

    Returns:
        The encoder, in float32.

    Raises:
        ModelError: The folder cannot be used.
        EnvironmentFault: The device is not there.
    """
    import transformers

    from muaudit.models.folder import load_network, load_tokenizer, pick_device, quiet, read_json

    for part in ("text_encoder", "tokenizer"):
        if not (path / part).is_dir():
            raise ModelError(
                f"{path}: no sub-folder {part}; give a pipeline's folder, or one with its text_encoder and tokenizer"
            )
    kinds = read_json(path / "text_encoder" / "config.json").get("architectures") or [None]
    if kinds[0] not in KINDS:
        raise ModelError(f"{path / 'text_encoder'}: {kinds[0]!r} is not supported; supported are {', '.join(KINDS)}")
    module = load_network(path / "text_encoder", getattr(transformers, kinds[0]), dtype="float32", variant=None)
    with quiet():
        return PromptEncoder(load_tokenizer(path / "tokenizer"), module.to(pick_device(device)))
