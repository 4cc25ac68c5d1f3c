"""Model folders that were made to harm whoever opens them: what spoils a sound one, and what is said of it."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_folders import edited, header

WEIGHTS = "model.safetensors"

Spoil = Callable[[Path], Any]


class Harmful:
    """A pickle that leaves a trace when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def harmful() -> bytes:
    return pickle.dumps(Harmful())


def append(path: Path, data: bytes, cut: int = 0) -> None:
    path.write_bytes(path.read_bytes()[: -cut or None] + data)


def halve(tensors: dict[str, Any], dtype: Any) -> None:
    name = "model.norm.weight"
    tensors[name][0] = float("nan")
    tensors[name] = tensors[name].to(dtype)


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def raw(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def in_header(change: Callable[[dict[str, Any]], Any], name: str = WEIGHTS) -> Spoil:
    return lambda folder: header(folder / name, change)


def weights(change: Callable[[dict[str, Any]], Any], name: str = WEIGHTS) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return spoil


def linked(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        outside = folder.parent.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return spoil


def a_link_to_a_folder(folder: Path) -> None:
    (folder.parent.parent / "outside").mkdir()
    (folder / "further").symlink_to(folder.parent.parent / "outside")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def archived(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w") as file:
        file.writestr("archive/data.pkl", harmful())


def pickled_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(harmful())


def torch_renamed(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / WEIGHTS)


def index(**named: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
        (folder / "pytorch_model.bin").write_bytes(harmful())

    return spoil


def both_sets(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": WEIGHTS}}))


def tokenizer(**changes: Any) -> Spoil:
    return edited("tokenizer.json", **changes)


FIRST = "model.embed_tokens.weight"


def moved(start: int, stop: int) -> Spoil:
    def change(values: dict[str, Any]) -> None:
        offsets = values[FIRST]["data_offsets"]
        values[FIRST]["data_offsets"] = [offsets[0] + start, offsets[1] + stop]

    return in_header(change)


def twice(values: dict[str, Any]) -> bytes:
    text = json.dumps(values)
    first = json.dumps({FIRST: values[FIRST]})
    return f"{text[:-1]}, {first[1:]}".encode()


DEEP = b"[" * 100_000 + b"]" * 100_000

REFUSED: dict[str, tuple[Spoil, str]] = {
    # pickles
    "a pickle under the name of safetensors": (raw(WEIGHTS, harmful()), "is a pickle or an archive"),
    "a torch file under that name": (torch_renamed, "is a pickle or an archive"),
    "an archive with a pickle under that name": (archived, "is a pickle or an archive"),
    "only a pickle": (pickled_only, "pickled .pytorch_model.bin."),
    "an index that names a pickle": (index(a="pytorch_model.bin"), "'pytorch_model.bin' is no safetensors file"),
    "an index that leads out of the folder": (index(a="../adapter/adapter_model.safetensors"), "is no safetensors file of"),
    "an index that names an absolute path": (index(a="/etc/model.safetensors"), "is no safetensors file of this folder"),
    "an index of a shard that is not there": (index(a="model-00001-of-00002.safetensors"), "shard model-00001.* is missing"),
    "an index that names nothing": (index(), "no weight_map"),
    "two sets of weights": (both_sets, "two sets of weights"),
    "a pickled vocabulary": (raw("vocab.pkl", harmful()), "vocab.pkl is a pickle"),
    # code
    "auto_map in config.json": (edited("config.json", auto_map={"AutoModel": "evil.Model"}), "asks to run code .*AutoModel"),
    "auto_map of a part": (edited("config.json", text_config={"auto_map": {"AutoConfig": "e.C"}}), "text_config.auto_map"),
    "auto_map in tokenizer_config.json": (edited("tokenizer_config.json", auto_map=["evil.T", None]), "asks to run code"),
    "auto_map in generation_config.json": (edited("generation_config.json", auto_map={"a": "b"}), "asks to run code"),
    "custom_pipelines": (edited("config.json", custom_pipelines={"x": {"impl": "evil.P"}}), "asks to run code"),
    "trust_remote_code": (edited("config.json", trust_remote_code=True), "asks to run code"),
    "a kernel from a hub": (edited("config.json", attn_implementation="evil/kernel"), "fetch and run a kernel"),
    "a tokenizer of an unknown class": (edited("tokenizer_config.json", tokenizer_class="EvilTokenizer"), "tokenizer"),
    # out of the folder
    "weights that config.json names": (edited("config.json", transformers_weights="../../x.safetensors"), "names other files"),
    "a configuration that config.json names": (edited("config.json", configuration_files=["config.4.0.0.json"]), "names other"),
    "a vocabulary elsewhere": (edited("tokenizer_config.json", vocab_file="/etc/vocab.json"), "names a file .*digested"),
    "a tokenizer elsewhere": (edited("tokenizer_config.json", tokenizer_file="../tokenizer.json"), "names a file .*digested"),
    "linked weights": (linked(WEIGHTS), "symbolic link"),
    "a linked configuration": (linked("config.json"), "symbolic link"),
    "a linked folder": (a_link_to_a_folder, "symbolic link"),
    "a pipe": (a_pipe, "neither a file nor a folder"),
    # headers
    "a header of 2**63 bytes": (raw(WEIGHTS, b"\xff" * 7 + b"\x7f" + b"{}"), "cut short"),
    "a header longer than the file": (raw(WEIGHTS, (10**6).to_bytes(8, "little") + b"{}"), "cut short"),
    "an empty file": (raw(WEIGHTS, b""), "cut short"),
    "seven bytes": (raw(WEIGHTS, b"1234567"), "cut short"),
    "a header that is no JSON": (in_header(lambda _: b"{oops"), "header is not JSON"),
    "a header that is no UTF-8": (in_header(lambda _: b'{"\xff": 1}'), "header is not JSON"),
    "a header nested 100,000 deep": (in_header(lambda _: DEEP), "header is not JSON"),
    "a header that is a list": (in_header(lambda _: b"[]"), "no JSON object"),
    "a name that stands twice": (in_header(twice), "stands twice"),
    "an unknown type": (in_header(lambda values: values[FIRST].update(dtype="F128")), "of type 'F128'"),
    "a type that does not fit": (in_header(lambda values: values[FIRST].update(dtype="F64")), "does not fill its"),
    "a shape that does not fit": (in_header(lambda values: values[FIRST].update(shape=[10**9, 10**9])), "does not fill its"),
    "a negative shape": (in_header(lambda values: values[FIRST].update(shape=[-1, -5])), "not whole numbers"),
    "a shape of 2**64": (in_header(lambda values: values[FIRST].update(shape=[2**64])), "not whole numbers"),
    "a shape of true": (in_header(lambda values: values[FIRST].update(shape=[True])), "not whole numbers"),
    "a shape of a hundred sides": (in_header(lambda values: values[FIRST].update(shape=[1] * 100)), "not whole numbers"),
    "tensors that overlap": (moved(-64, -64), "shares bytes|leaves bytes|not whole"),
    "a tensor out of the file": (moved(10**9, 10**9), "lies outside|leaves bytes"),
    "a tensor that ends before it starts": (in_header(lambda values: values[FIRST].update(data_offsets=[64, 0])), "not fill"),
    "a further key": (in_header(lambda values: values[FIRST].update(pickle="x")), "not described by exactly"),
    "metadata that are no text": (in_header(lambda values: values.update(__metadata__={"a": 1})), "__metadata__"),
    "bytes behind the last tensor": (lambda folder: append(folder / WEIGHTS, b"\0" * 64), "bytes that are none's"),
    "a file that was cut": (lambda folder: append(folder / WEIGHTS, b"", cut=64), "outside of the file"),
    # weights
    "NaN": (weights(lambda tensors: tensors["model.norm.weight"].fill_(float("nan"))), "model.norm.weight holds NaN"),
    "infinity": (weights(lambda tensors: tensors["model.norm.weight"].fill_(float("-inf"))), "model.norm.weight holds NaN"),
    "NaN in half precision": (weights(lambda tensors: halve(tensors, torch.float16)), "holds NaN or infinity"),
    "NaN in bfloat16": (weights(lambda tensors: halve(tensors, torch.bfloat16)), "holds NaN or infinity"),
    "NaN in 8 bits": (weights(lambda tensors: halve(tensors, torch.float8_e4m3fn)), "holds NaN or infinity"),
    # absurd configurations
    "hidden_size 10**9": (edited("config.json", hidden_size=10**9), "hidden_size is 1000000000"),
    "a negative hidden_size": (edited("config.json", hidden_size=-16), "hidden_size is -16"),
    "10**9 layers": (edited("config.json", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "10**9 heads": (edited("config.json", num_attention_heads=10**9), "num_attention_heads is 1000000000"),
    "10**9 classes": (edited("config.json", num_labels=10**9), "num_labels is 1000000000"),
    "10**12 positions": (edited("config.json", max_position_embeddings=10**12), "max_position_embeddings is 1000000000000"),
    "an integer of 4,000 digits": (edited("config.json", hidden_size=10**3999), "hidden_size is 1000000000"),
    "an integer of 5,000 digits": (raw("config.json", b'{"hidden_size": ' + b"1" * 5000 + b"}"), "config.json: not JSON"),
    "another vocabulary": (edited("config.json", vocab_size=17), "vocab_size is 17, and no weight has as many rows"),
    "a part of absurd size": (edited("config.json", vision_config={"hidden_size": 10**9}), "vision_config.hidden_size"),
    "a configuration nested 100,000 deep": (raw("config.json", DEEP), "config.json: nested too deeply"),
    "a configuration of 20 MB": (raw("config.json", b'{"a": "' + b"x" * 20_000_000 + b'"}'), "config.json: has 20000009 bytes"),
    "a configuration that is a list": (raw("config.json", b"[]"), "config.json: not a JSON object"),
    "a configuration that is no UTF-8": (raw("config.json", b"\xff\xfe{}"), "config.json: not JSON"),
    "a key that stands twice": (raw("config.json", b'{"model_type": "gpt2", "model_type": "llama"}'), "stands twice"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    # tokenizers
    "a catastrophic pattern": (
        tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
        "repeats what repeats",
    ),
    "a catastrophic normalizer": (
        tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": r"(\w+\s?)*!"}, "content": ""}), "repeats what repeats",
    ),
    "a pattern of 20,000 characters": (
        tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": "a" * 20_000}, "content": ""}), "repeats what repeats",
    ),
    "replacements that double 40 times": (
        tokenizer(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
            }
        ),
        "make a text up to 1e.12 times as long",
    ),
    "a prefix of 100,000 characters": (tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 100_000}), "times as long"),
    "a decoder that multiplies": (
        tokenizer(decoder={"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 20_000}), "of its decoder make",
    ),
    "a tokenizer nested 100,000 deep": (raw("tokenizer.json", DEEP), "tokenizer.json: nested too deeply"),
}  # fmt: skip

SHARDS: dict[str, tuple[Spoil, str]] = {
    "a missing shard": (lambda folder: sorted(folder.glob("model-*"))[1].unlink(), "shard .* is missing"),
    "a damaged shard": (lambda folder: append(sorted(folder.glob("model-*"))[1], b"x"), "bytes that are none's"),
    "a pickled shard": (lambda folder: sorted(folder.glob("model-*"))[1].write_bytes(harmful()), "is a pickle"),
    "two shards that changed places": (lambda folder: swap(*sorted(folder.glob("model-*"))[:2]), "is not in .* as it says"),
}


ADAPTERS: dict[str, tuple[Spoil, str]] = {
    "an import": (
        edited("adapter_config.json", megatron_config={"a": 1}, megatron_core="os.path"), "asks to import 'os.path'",
    ),
    "a rank of 10**9": (edited("adapter_config.json", r=10**9), "rank r is 1000000000"),
    "a rank of one layer": (edited("adapter_config.json", rank_pattern={"q_proj": 10**9}), "rank q_proj is 1000000000"),
    "a catastrophic pattern of layers": (edited("adapter_config.json", target_modules="(a+)+$"), "repeats what repeats"),
    "a catastrophic pattern of ranks": (edited("adapter_config.json", rank_pattern={"(a+)+$": 2}), "repeats what repeats"),
    "a mixture that opens further adapters": (edited("adapter_config.json", peft_type="XLORA"), "'XLORA' cannot be merged"),
    "a prompt that opens a tokenizer": (
        edited("adapter_config.json", peft_type="PROMPT_TUNING", tokenizer_kwargs={"trust_remote_code": True}), "run code",
    ),
    "auto_map": (edited("adapter_config.json", auto_map={"a": "evil.C"}), "asks to run code"),
    "only a pickle": (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "pickled"),
    "a pickle under the name of safetensors": (raw("adapter_model.safetensors", harmful()), "is a pickle"),
    "NaN": (
        weights(lambda tensors: next(iter(tensors.values())).fill_(float("nan")), "adapter_model.safetensors"), "holds NaN",
    ),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no weights"),
    "a link": (linked("adapter_model.safetensors"), "symbolic link"),
}  # fmt: skip


PICTURED: dict[str, tuple[Spoil, str]] = {
    "auto_map": (edited("config.json", auto_map={"AutoModelForImageClassification": "evil.M"}), "asks to run code"),
    "a pickle under the name of safetensors": (raw(WEIGHTS, harmful()), "is a pickle"),
    "hidden_size 10**9": (edited("config.json", hidden_size=10**9), "hidden_size is 1000000000"),
    "an image of 10**9 pixels a side": (edited("config.json", image_size=10**9), "image_size is 1000000000"),
    "a backbone from a hub": (edited("config.json", use_pretrained_backbone=True), "fetch another model's weights"),
    "a link": (linked("config.json"), "symbolic link"),
    "NaN": (weights(lambda tensors: tensors["classifier.bias"].fill_(float("nan"))), "classifier.bias holds NaN"),
    "overlapping tensors": (
        in_header(lambda values: values["classifier.bias"].update(data_offsets=values["classifier.weight"]["data_offsets"])),
        "does not fill",
    ),
}  # fmt: skip


GENERATOR: dict[str, tuple[Spoil, str]] = {
    "code": (edited("model_index.json", unet=["evil", "Net"]), "asks to run code from the folder"),
    "a pipeline of its own": (edited("model_index.json", _class_name=["pipeline", "Evil"]), "asks to run code"),
    "auto_map of a part": (edited("text_encoder/config.json", auto_map={"AutoModel": "evil.M"}), "asks to run code"),
    "a pickled network": (raw("unet/diffusion_pytorch_model.safetensors", harmful()), "is a pickle"),
    "a network of absurd width": (edited("unet/config.json", block_out_channels=[10**9, 32]), "block_out_channels is 10000000"),
    "an encoder of absurd width": (edited("text_encoder/config.json", hidden_size=10**9), "hidden_size is 1000000000"),
    "10**12 steps of noise": (edited("scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps is"),
    "a linked network": (linked(["unet", "config.json"][0]), "symbolic link"),
    "a tokenizer elsewhere": (edited("tokenizer/tokenizer_config.json", vocab_file="/etc/vocab.json"), "names a file"),
    "images of 10**9 pixels a side": (edited("unet/config.json", sample_size=10**9), "sample_size is 1000000000"),
}
