"""Judges a model's folder by its files alone, before any library opens it.

What is refused here could run code, reach out of the folder, or make a library take memory or time without bound.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from muaudit.errors import ModelError
from muaudit.models.weights_file import Stored, once, read_header, refuse_nan, told

CONFIGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "adapter_config.json",
    "scheduler_config.json", "chat_template.json",
)  # fmt: skip
"""Files that libraries read for how to open a model."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

MOST_CONFIG_BYTES = 16 * 2**20
MOST_JSON_BYTES = 512 * 2**20
"""Most bytes of a configuration, and of a tokenizer or an index."""

ADAPTERS = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "HRA")
"""Types of adapter that are numbers alone and can be merged; others open further models by name, or only lead the prompt."""

_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
_ELSEWHERE = ("transformers_weights", "configuration_files", "fast_tokenizer_files")
_SAVE = "save the model again with save_pretrained"

_COUNTS = re.compile(r"^(num|n)_?.*(layers?|blocks?|experts)$|layers$|experts$|^depths?$")
_POSITIONS = re.compile(r"positions?(_embeddings)?$|^n_ctx$|^max_(seq|sequence)_len(gth)?$")
_WIDTHS = re.compile(
    r"(^|_)(size|sizes|dims?|width|channels|heads?|embd|embed|model|inner|ff|kv|rank|labels|groups|states?|kernel|stride|r)$|^num_"
)
_FREE = re.compile(r"window|chunk|param|timesteps|upcast|block_size|attention_block")

_DEEPEST, _WIDEST, _SHARPEST, _LONGEST = 256, 2**16, 2**14, 2**26
"""Layers, numbers a layer, pixels a side and positions that a network can have without a weight that shows it."""

_DENSE = ("gpt2", "gpt_bigcode", "gpt_neo", "imagegpt", "openai-gpt", "decision_transformer")
"""Types of model that build a mask of positions by positions."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object's file.

    Raises:
        ModelError: It cannot be read, is larger than any such file, is none, is nested too deeply, or holds a key twice.
    """
    most = MOST_CONFIG_BYTES if path.name in CONFIGS else MOST_JSON_BYTES
    try:
        if (size := path.stat().st_size) > most:
            raise ModelError(f"{path}: has {size} bytes, and such a file has at most {most}; {_SAVE}")
        values = json.loads(path.read_bytes(), object_pairs_hook=once)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); {_SAVE}") from error
    except RecursionError as error:
        raise ModelError(f"{path}: nested too deeply to be read; {_SAVE}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({told(error)}); {_SAVE}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: not a JSON object; {_SAVE}")
    return values


def inspect(kind: str, path: Path, base: Path | None = None) -> None:
    """Looks at a model's files as far as that needs no library, so that a plan already refuses what no scan would open.

    Args:
        kind: The model's kind in audit.toml.
        path: Its folder or file.
        base: Of an adapter: the folder of its model.

    Raises:
        ModelError: It is hostile, damaged or incomplete.
    """
    if kind in ("causal_lm", "guarded"):
        refuse_no_folder(path, base)
        refuse_language_model(path, base)
    elif kind == "diffusion" and path.is_dir():
        read_json(path / "model_index.json")
        for part in sorted(entry for entry in path.iterdir() if entry.is_dir()):
            refuse_code(part)
            _refuse_damaged(part.glob("*.safetensors"))
    elif kind in ("classifier", "regressor"):
        if (path / "config.json").is_file():
            refuse_code(path)
        _refuse_damaged(path.glob("*.safetensors") if path.is_dir() else [path] if path.suffix == ".safetensors" else [])


def refuse_no_folder(path: Path, base: Path | None) -> None:
    """Refuses a language model that is no folder, and an adapter without its model or a model without an adapter.

    Args:
        path: The model's folder, or the adapter's.
        base: With an adapter: its model's folder.

    Raises:
        ModelError: It is.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: no such folder; a model is a local folder with config.json, safetensors and a tokenizer")
    adapter = (path / "adapter_config.json").is_file()
    if adapter and base is None:
        raise ModelError(f"{path}: an adapter (it has adapter_config.json) needs its model: give that folder as base")
    if base is not None and not adapter:
        raise ModelError(f"{path}: base is given, but this is no adapter (it lacks adapter_config.json); leave base out")
    if base is not None and not base.is_dir():
        raise ModelError(f"{base}: no such folder; give the adapter's model as base")


def refuse_language_model(path: Path, base: Path | None) -> None:
    """Looks at a language model's folder, or at an adapter's and its model's.

    Args:
        path: The model's folder, or the adapter's.
        base: With an adapter: its model's folder.

    Raises:
        ModelError: It is hostile, damaged or incomplete; nothing was opened.
    """
    whole = path if base is None else base
    refuse_code(whole)
    refuse_absurd(whole / "config.json", weights_of(whole, "model"))
    refuse_tokenizer(whole)
    if base is not None:
        refuse_code(path)
        refuse_absurd_adapter(path / "adapter_config.json", weights_of(path, "adapter_model"))


def _refuse_damaged(files: Iterable[Path]) -> None:
    for file in sorted(files):
        refuse_nan(file, read_header(file))


def refuse_code(folder: Path) -> None:
    """Refuses a folder whose configurations ask for code, for files outside of it, or for the network.

    Args:
        folder: The folder of a model, or of one of its parts.

    Raises:
        ModelError: One does, or cannot be read.
    """
    for name in CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        for where, key, value in _entries(read_json(path)):
            if fault := _fault(key, value):
                raise ModelError(f"{path}: {where} {fault}")
            if name == "tokenizer_config.json" and isinstance(value, str) and _names_a_file(key):
                raise ModelError(
                    f"{path}: {where} names a file ({value[:100]!r}) to be read instead of the folder's own, so it would not "
                    "be digested; remove the key"
                )


def _names_a_file(key: str) -> bool:
    # transformers writes special_tokens_map_file, and never reads it.
    return key.endswith(("_file", "_files")) and key != "special_tokens_map_file"


def _fault(key: str, value: object) -> str | None:
    if key in _CODE and value:
        named = ", ".join(map(str, value)) if isinstance(value, dict | list) else str(value)
        return (
            f"asks to run code from the folder ({named[:200]}), which muaudit never does; save the model in an architecture "
            f"that transformers or diffusers ships, without {key}"
        )
    if key in _ELSEWHERE and value:
        return f"names other files to be read ({str(value)[:100]}) than those that are checked; remove the key"
    if key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        named = " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)
        if "/" in named or ":" in named:
            return f"asks to fetch and run a kernel ({named[:100]}), which muaudit never does; remove the key"
    if key == "use_pretrained_backbone" and value:
        return "asks to fetch another model's weights, and no network is used; set it to false: the weights are in the folder"
    return None


def _entries(values: object, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every key of a JSON object at any depth: its place, itself, its value."""
    waiting: list[tuple[str, object]] = [(prefix, values)]
    while waiting:
        above, node = waiting.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                where = f"{above}{key}"[:200]
                yield where, key, value
                waiting.append((f"{where}.", value))
        elif isinstance(node, list):
            waiting.extend((above, one) for one in node if isinstance(one, dict | list))


def weights_of(folder: Path, stem: str) -> dict[str, Stored]:
    """Looks at all weights of a folder; pickles beside safetensors are never read.

    Args:
        folder: Where the weights are.
        stem: Their file's name up to `.safetensors`.

    Returns:
        Every tensor by name.

    Raises:
        ModelError: They are pickled, missing, damaged, named where they would not be digested, NaN or infinite, or there are
            two sets of them.
    """
    index = folder / f"{stem}.safetensors.index.json"
    whole = folder / f"{stem}.safetensors"
    if index.is_file() and whole.is_file():
        raise ModelError(
            f"{folder}: two sets of weights, {whole.name} and the shards of {index.name}, and libraries differ on which they "
            "open; keep the one to be audited"
        )
    if not index.is_file():
        if whole.is_file():
            tensors = read_header(whole)
            refuse_nan(whole, tensors)
            return tensors
        _refuse_without_weights(folder, stem)
    return _sharded(folder, index)


def _refuse_without_weights(folder: Path, stem: str) -> None:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: the weights are pickled ({pickles[0]}), and a pickle can run code when it is loaded; "
            "save them as safetensors with save_pretrained(..., safe_serialization=True)"
        )
    raise ModelError(f"{folder}: no weights ({stem}.safetensors is missing); copy the whole folder")


def _sharded(folder: Path, index: Path) -> dict[str, Stored]:
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ModelError(f"{index}: no weight_map, which says where each weight is; {_SAVE}")
    shards = sorted({str(shard) for shard in named.values()})
    if odd := [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]:
        raise ModelError(f"{index}: {odd[0]!r} is no safetensors file of this folder; save the model again")
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ModelError(f"{folder}: shard {missing[0]} is missing; copy the whole folder")
    found: dict[str, Stored] = {}
    for shard in shards:
        tensors = read_header(folder / shard)
        if odd := sorted({name for name, place in named.items() if place == shard} ^ set(tensors)):
            raise ModelError(
                f"{index}: {odd[0][:200]!r} is not in {shard} as it says, or in it without being named; copy the whole folder"
            )
        refuse_nan(folder / shard, tensors)
        found |= tensors
    return found


def refuse_absurd(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Refuses a configuration of a network that is larger than the weights beside it: building it could take all memory.

    Args:
        path: Its config.json.
        tensors: Every weight of the folder.

    Raises:
        ModelError: A size is negative, or larger than any weight has; the vocabulary is not that of the weights.
    """
    config = read_json(path)
    widest = max((side for one in tensors.values() for side in one.shape), default=0)
    parts = len(tensors)
    for where, key, value in _entries(config):
        if (most := _most(key, config, widest, parts)) is None:
            continue
        for number in _whole(value):
            if not 0 <= number <= most:
                raise ModelError(
                    f"{path}: {where} is {str(number)[:40]}, and the {parts} weights beside it have at most {widest} rows or "
                    "columns; config.json and the weights must belong together: save the model again with save_pretrained"
                )
    rows = config.get("vocab_size")
    if type(rows) is int and not any(rows in one.shape for one in tensors.values()):
        raise ModelError(
            f"{path}: vocab_size is {rows}, and no weight has as many rows; config.json and the weights must belong together: "
            "save the model again with save_pretrained"
        )


def _whole(value: object) -> Iterator[int]:
    """The whole numbers of a value: itself, or a list's."""
    if type(value) is int:
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _whole(one)


def refuse_absurd_adapter(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Refuses an adapter that is none of a plain kind, or that is larger than the weights beside it.

    Args:
        path: Its adapter_config.json.
        tensors: Its weights.

    Raises:
        ModelError: It is of a kind that cannot be merged or opens further files, asks for an import, names layers by a pattern
            that could take for ever, or has a rank that no weight has.
    """
    config = read_json(path)
    if (kind := config.get("peft_type")) not in ADAPTERS:
        raise ModelError(f"{path}: an adapter of type {str(kind)[:40]!r} cannot be merged; supported are {', '.join(ADAPTERS)}")
    if config.get("megatron_config"):
        raise ModelError(
            f"{path}: megatron_config asks to import {str(config.get('megatron_core'))[:100]!r}, and nothing is imported by a "
            "model's files; remove the key"
        )
    ranks, widest = config.get("rank_pattern"), max((side for one in tensors.values() for side in one.shape), default=0)
    for where, number in [("r", config.get("r")), *(ranks.items() if isinstance(ranks, dict) else ())]:
        if type(number) is int and not 0 < number <= max(widest, 1):
            raise ModelError(
                f"{path}: rank {where} is {str(number)[:40]}, and its weights have at most {widest} rows or columns; they must "
                "belong together: save the adapter again with save_pretrained"
            )
    patterns = [config.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    patterns += [key for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or ()]
    if slow := [one for one in patterns if isinstance(one, str) and (len(one) > 10_000 or _nested(one))]:
        raise ModelError(
            f"{path}: the pattern {slow[0][:60]!r} repeats what repeats, which can take for ever; name the layers one by one"
        )


def _most(key: str, config: Mapping[str, Any], widest: int, parts: int) -> int | None:
    """The largest believable number under a key; None where the key says nothing about size."""
    if _FREE.search(key):
        return None
    if _COUNTS.search(key):
        return max(parts, _DEEPEST)
    if key in ("image_size", "sample_size"):
        return max(widest, _SHARPEST)
    if _POSITIONS.search(key):
        rotary = any("rope" in one or "rotary" in one for one in config) and config.get("model_type") not in _DENSE
        return max(widest, _LONGEST if rotary else 2**15)
    return max(widest, _WIDEST) if _WIDTHS.search(key) else None


def refuse_tokenizer(folder: Path) -> None:
    """Refuses a tokenizer that could hang or take all memory on a short text, or that is a pickle.

    Args:
        folder: Where it is.

    Raises:
        ModelError: Its tokenizer.json is no JSON, has a pattern of nested repetitions, or replacements that multiply a text.
    """
    for name in ("vocab.pkl", "vocab.bin"):
        if (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is a pickle, which can run code when it is loaded; save a tokenizer.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    values = read_json(path)
    parts = [values.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    for _, key, pattern in _entries(parts):
        if key == "Regex" and isinstance(pattern, str) and (len(pattern) > 10_000 or _nested(pattern)):
            raise ModelError(
                f"{path}: the pattern {pattern[:60]!r} repeats what repeats, which can take for ever on a short text; save the "
                "tokenizer with a pattern without nested repetitions"
            )
    for part in ("normalizer", "decoder"):
        if (growth := _growth(values.get(part))) > 10_000:
            raise ModelError(
                f"{path}: the replacements of its {part} make a text up to {growth:.0e} times as long; save the tokenizer "
                "without them"
            )


def _growth(step: object) -> float:
    """How many times as long a text can become by the replacements of a normalizer or decoder."""
    growth = 1.0
    for one in _steps(step):
        pattern, content = one.get("pattern"), one.get("content", one.get("prepend", ""))
        if one.get("type") not in ("Replace", "Prepend") or not isinstance(content, str):
            continue
        exact = pattern.get("String") if isinstance(pattern, dict) else None
        # A pattern can match nothing, and so at every place; an exact text takes its own place.
        growth *= max(1.0, len(content) / len(exact)) if isinstance(exact, str) and exact else 1.0 + len(content)
    return growth


def _steps(step: object) -> Iterable[dict[str, Any]]:
    """Every step of a normalizer or decoder, however they are nested."""
    waiting = [step]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(value for value in node.values() if isinstance(value, list))
        elif isinstance(node, list):
            waiting.extend(node)


_PIECE = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|\[[^\]]*\]|[^\]\\])*\]|\(\?[a-z:=!<>-]*|\{\d+(?:,\d*)?\}|.", re.DOTALL)


def _nested(pattern: str) -> bool:
    """Whether a group that is repeated without end holds a repetition or alternatives: matching can take exponential time."""
    groups, last = [False], False  # of each open group, whether it holds such; of what was just closed, the same
    for piece in (found.group() for found in _PIECE.finditer(pattern)):
        if piece.startswith("("):
            groups.append(False)
            last = False
        elif piece == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] |= last
        elif piece in ("*", "+") or re.fullmatch(r"\{\d+,\d*\}", piece):
            if last:
                return True
            groups[-1] = True
        else:
            groups[-1] |= piece == "|" and len(groups) > 1
            last = False
    return False
