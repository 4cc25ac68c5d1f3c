"""Inputs that are not what they should be: a sound workplace, and what spoils one file of it.

Every table maps a name to what is done to the workplace, the command that then meets it, the documented exit code, and what the
one line must say.
"""

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Spoil = Callable[[Path], Any]

DEEP = b"[" * 100_000 + b"]" * 100_000
LONG = "x" * 5_000

FACTS = """[task]
kind = "facts"
forget = "forget.jsonl"
retain = "retain.jsonl"
holdout = "holdout.jsonl"
template = "Question: {question} Answer:"
[target]
kind = "causal_lm"
path = "models/language"
[[references]]
kind = "causal_lm"
path = "models/reference"
[policy]
name = "standard"
partial = true
[attacks.memorization]
[run]
seed = "1"
device = "cpu"
"""

EXAMPLES = """[task]
kind = "classification"
forget = "forget.csv"
holdout = "holdout.csv"
[target]
kind = "recorded"
format = "logits"
path = "target.npz"
[[references]]
kind = "recorded"
format = "logits"
path = "reference.npz"
[policy]
name = "classification"
partial = true
[attacks.population]
[run]
seed = "1"
"""

PROMPTS = """[task]
kind = "text_to_image"
forget = "prompts.jsonl"
evaluators = [{kind = "python", function = "judge.py:bright"}]
image_mode = "L"
[target]
kind = "diffusion"
path = "models/stable"
[[references]]
kind = "diffusion"
path = "models/stable"
[policy]
name = "diffusion"
partial = true
[attacks.seed_search]
[run]
seed = "1"
device = "cpu"
"""


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        spoil: What is done to the workplace.
        command: The command's arguments.
        said: What the line must say, as a pattern: the file or key, and the fault.
        code: The exit code.
    """

    spoil: Spoil
    command: tuple[str, ...]
    said: str
    code: int = 2


def workplace(folder: Path) -> Path:
    """Task files of every format and recorded logits; models and reports are put beside them by whoever needs them."""
    for role, count in (("forget", 4), ("retain", 3), ("holdout", 3)):
        facts = [{"id": f"{role}-{n}", "question": f"Where was {role} {n}?", "answer": f"Place {n}"} for n in range(count)]
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
        rows = [f"{role}-{n},{n % 2},{n}.5,{len(role) * n}" for n in range(1, count + 1)]
        (folder / f"{role}.csv").write_text("id,label,first,second\n" + "\n".join(rows) + "\n", encoding="utf-8")
    names = [f"{role}-{n}" for role, count in (("forget", 4), ("holdout", 3)) for n in range(1, count + 1)]
    for name in ("target", "reference"):
        np.savez(folder / f"{name}.npz", ids=np.array(names), logits=np.arange(2.0 * len(names)).reshape(-1, 2))
    prompts = [{"id": f"p{n}", "prompt": f"a {n}", "concept": "three", "seed": n} for n in range(3)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts), encoding="utf-8")
    (folder / "judge.py").write_text("def bright(images, concepts):\n    return [image.mean() > 0.5 for image in images]\n")
    for name, text in (("facts", FACTS), ("examples", EXAMPLES), ("prompts", PROMPTS)):
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def put(name: str, content: bytes | str) -> Spoil:
    """Writes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def swap(name: str, old: str, new: str) -> Spoil:
    """Changes a text's first passage that is so, which must be there."""

    def spoil(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, (name, old)
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def keyed(name: str, path: Sequence[str | int], value: Any) -> Spoil:
    """Changes one value deep inside a JSON file; `...` takes it out."""

    def spoil(folder: Path) -> None:
        whole = node = json.loads((folder / name).read_bytes())
        for part in path[:-1]:
            node = node[part]
        if value is ...:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        (folder / name).write_text(json.dumps(whole), encoding="utf-8")

    return spoil


def gone(name: str) -> Spoil:
    """Takes a file or folder away."""
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def turned_into_a_folder(name: str) -> Spoil:
    """Puts a folder where a file belongs."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def _configuration() -> dict[str, Case]:
    plan = ("plan", "facts.toml")
    spoils: dict[str, tuple[Spoil, str]] = {
        "an empty configuration": (put("facts.toml", b""), "facts.toml: .*missing"),
        "a configuration that is no UTF-8": (put("facts.toml", b"\xff\xfe[task]"), "facts.toml: not UTF-8"),
        "a configuration with a NUL": (put("facts.toml", b"[task]\0"), "facts.toml: not TOML"),
        "a configuration that ends in a string": (put("facts.toml", '[task]\nkind = "fa'), "facts.toml: not TOML"),
        "a configuration nested 100,000 deep": (put("facts.toml", b"a = " + DEEP), "facts.toml: not TOML"),
        "a number of 5,000 digits": (put("facts.toml", "a = " + "1" * 5000), "facts.toml: not TOML"),
        "a key twice": (swap("facts.toml", 'kind = "facts"', 'kind = "facts"\nkind = "facts"'), "facts.toml: not TOML"),
        "a table twice": (swap("facts.toml", "[run]", "[target]\n[run]"), "facts.toml: not TOML"),
        "a configuration that is JSON": (put("facts.toml", "{}"), "facts.toml: not TOML"),
        "a configuration that is a folder": (turned_into_a_folder("facts.toml"), "facts.toml: cannot be read"),
        "no task": (put("facts.toml", '[target]\nkind = "causal_lm"\npath = "x"\n'), "'(task|references)' is missing"),
        "no target": (swap("facts.toml", "[target]", "[original]"), "key 'target' is missing"),
        "no references": (swap("facts.toml", "[[references]]", "[original]"), "references"),
        "references that are a table": (swap("facts.toml", "[[references]]", "[references]"), "'references"),
        "no path": (swap("facts.toml", 'path = "models/language"\n', ""), "key 'target.path' is missing"),
        "a task without a kind": (swap("facts.toml", 'kind = "facts"\n', ""), "task.kind"),
        "a task of an unknown kind": (swap("facts.toml", '"facts"', '"factoids"'), "key 'task"),
        "a model of an unknown kind": (swap("facts.toml", '"causal_lm"', '"casual_lm"'), "key 'target"),
        "a model of another task": (swap("facts.toml", 'kind = "causal_lm"', 'kind = "diffusion"'), "target"),
        "a misspelt key": (swap("facts.toml", "forget =", "foget ="), "'task.foget'.*did you mean 'forget'"),
        "an unknown table": (swap("facts.toml", "[run]", "[zzz]\n[run]"), "unknown key 'zzz'"),
        "an unknown attack": (swap("facts.toml", "memorization", "memorisation"), "memorisation"),
        "an unknown parameter": (swap("facts.toml", "[run]", "[attacks.lira]\nzz = 1\n[run]"), "attacks.lira.zz"),
        "a parameter of another type": (swap("facts.toml", "[run]", '[attacks.relearning]\nbudgets = "no"\n[run]'), "budgets"),
        "a negative parameter": (swap("facts.toml", "[run]", "[attacks.relearning]\nbudgets = [-5]\n[run]"), "budgets"),
        "an attack that is no table": (swap("facts.toml", "[attacks.memorization]", "[attacks]\nlira = 3"), "attacks.lira"),
        "an unknown preset": (put("facts.toml", 'preset = "zz"\n' + FACTS), "preset"),
        "an unknown policy": (swap("facts.toml", '"standard"', '"lenient"'), "policy 'lenient'"),
        "a margin of 2": (swap("facts.toml", "[attacks", "margins = {memorization = 2.0}\n[attacks"), "policy.margins"),
        "a margin that is nan": (swap("facts.toml", "[attacks", "margins = {memorization = nan}\n[attacks"), "policy.margins"),
        "a margin of no attack": (swap("facts.toml", "[attacks", "margins = {zz = 0.1}\n[attacks"), "policy.margins"),
        "a template without a question": (swap("facts.toml", "{question}", "{query}"), "task.template"),
        "a template that is empty": (swap("facts.toml", "Question: {question} Answer:", ""), "template"),
        "a seed that is a date": (swap("facts.toml", 'seed = "1"', "seed = 2026-01-01"), "run.seed"),
        "no workers": (swap("facts.toml", 'seed = "1"', "workers = 0"), "run.workers"),
        "10**30 workers": (swap("facts.toml", 'seed = "1"', f"workers = {10**30}"), "run.workers"),
        "threads that are infinite": (swap("facts.toml", 'seed = "1"', "threads = inf"), "run.threads"),
        "an unknown back end": (swap("facts.toml", 'seed = "1"', 'backend = "slurm"'), "run.backend"),
        "an unknown device": (swap("facts.toml", '"cpu"', '"gpu"'), "device"),
        "a negative time limit": (swap("facts.toml", 'seed = "1"', "timeout = -1"), "run.timeout"),
        "a time limit that is nan": (swap("facts.toml", 'seed = "1"', "timeout = nan"), "run.timeout"),
        "a batch of nothing": (swap("facts.toml", "[[references]]", "batch_size = 0\n[[references]]"), "target.batch_size"),
        "an unknown dtype": (swap("facts.toml", "[[references]]", 'dtype = "int3"\n[[references]]'), "target.dtype"),
        "a model that is not there": (swap("facts.toml", "models/language", "models/nowhere"), "models/nowhere: no such file"),
        "a model's path with a NUL": (swap("facts.toml", "models/language", "models\\u0000x"), "target.path.*NUL"),
        "a model's path of 5,000 characters": (swap("facts.toml", "models/language", LONG), "xxx"),
        "a model's path that is empty": (swap("facts.toml", "models/language", ""), "."),
        "a forget set that is not there": (swap("facts.toml", "forget.jsonl", "no.jsonl"), "no.jsonl: cannot be read"),
        "a forget set's path with a NUL": (swap("facts.toml", "forget.jsonl", "a\\u0000b"), "task.forget|a.b"),
        "a forget set's path of 5,000 characters": (swap("facts.toml", "forget.jsonl", LONG), "xxx"),
        "a forget set that is a folder": (swap("facts.toml", "forget.jsonl", "models"), "models: cannot be read"),
        "a base that is not there": (swap("facts.toml", "[[references]]", 'base = "no"\n[[references]]'), "no: no such"),
        "a base of what is no adapter": (
            swap("facts.toml", "[[references]]", 'base = "models/reference"\n[[references]]'), "this is no adapter",
        ),
        "a file where a folder belongs": (swap("facts.toml", "models/language", "judge.py"), "judge.py: no such folder"),
        "a key with terminal escapes": (swap("facts.toml", "[run]", '"\\u001b[2J" = 1\n[run]'), "unknown|attacks"),
        "an endpoint with a password": (
            swap("facts.toml", 'kind = "causal_lm"\npath = "models/language"',
                 'kind = "endpoint"\nurl = "http://me:secret@x/v1"\nmodel = "m"'), "target.url",
        ),
        "an endpoint that is no address": (
            swap("facts.toml", 'kind = "causal_lm"\npath = "models/language"',
                 'kind = "endpoint"\nurl = "file:///etc/passwd"\nmodel = "m"'), "target.url",
        ),
        "a series without a name": (swap("facts.toml", "[run]", "[[series]]\n[run]"), "series"),
        "a recipe of an unknown kind": (swap("facts.toml", "[run]", '[recipe]\nkind = "zz"\n[run]'), "recipe"),
        "a budget below nothing": (swap("facts.toml", "[run]", "[budget]\nhours = -1\n[run]"), "budget.hours"),
        "a store whose name has a NUL": (swap("facts.toml", 'seed = "1"', 'out = "a\\u0000b"'), "run.out|a.b"),
    }  # fmt: skip
    return {f"configuration: {name}": Case(spoil, plan, said) for name, (spoil, said) in spoils.items()}


def _fact(**changes: Any) -> bytes:
    return json.dumps({"id": "a", "question": "Where?", "answer": "There", **changes}).encode()


def _facts() -> dict[str, Case]:
    lines: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "forget.jsonl: the forget set is empty"),
        "blank lines": (b"\n \n\t\n", "the forget set is empty"),
        "no JSON": (b"hello", "forget.jsonl:1: not JSON"),
        "a line cut short": (_fact()[:-3], "forget.jsonl:1: not JSON"),
        "no UTF-8": (b"\xff\xfe", "forget.jsonl:1: not UTF-8"),
        "UTF-16": (_fact().decode().encode("utf-16"), "forget.jsonl:1: not UTF-8"),
        "a bad second line": (_fact() + b"\n{}", "forget.jsonl:2: field '(id|cluster)' is missing"),
        "a list": (b"[1]", "forget.jsonl:1: a list where an object"),
        "null": (b"null", "forget.jsonl:1: a NoneType"),
        "nested 100,000 deep": (b'{"id": ' + DEEP + b"}", "forget.jsonl:1: "),
        "a key twice": (b'{"id": "a", "id": "b"}', "key 'id' stands twice"),
        "an id twice": (_fact() + b"\n" + _fact(), "id 'a' stands already at forget.jsonl:1"),
        "no question": (b'{"id": "a", "answer": "x"}', "field 'question' is missing"),
        "an empty answer": (_fact(answer=""), "field 'answer'"),
        "an answer that is a number": (_fact(answer=7), "field 'answer'"),
        "an id that is null": (_fact(id=None), "field '(id|cluster)'"),
        "a misspelt field": (_fact(anser="x"), "unknown field 'anser'; did you mean 'answer'"),
        "an unknown field": (_fact(zzzzzz=1), "unknown field 'zzzzzz'"),
        "aliases that are a text": (_fact(aliases="x"), "field 'aliases'"),
        "an alias that is a number": (_fact(aliases=[1]), "field 'aliases.0'"),
        "a paraphrase without a form": (_fact(paraphrases=[{"prompt": "p", "completion": "c"}]), "paraphrases.0.form"),
        "a lone surrogate": (b'{"id": "\\ud800", "question": "q", "answer": "a"}', "field 'id'"),
        "a NaN": (b'{"id": NaN, "question": "q", "answer": "a"}', "field 'id'"),
        "a number of 5,000 digits": (b'{"id": ' + b"1" * 5000 + b"}", "forget.jsonl:1: "),
        "a NUL between lines": (_fact() + b"\0\n", "forget.jsonl:1: not JSON"),
        "a gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "forget.jsonl:1: not UTF-8"),
        "a pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x05posix.", "forget.jsonl:1: not UTF-8"),
        "two facts in a line": (_fact() + _fact(id="b"), "forget.jsonl:1: not JSON"),
        "an id of the retain set": (_fact(id="retain-0"), "'retain-0' stands already at forget.jsonl:1"),
        "a holdout fact": (_fact(question="Where was holdout 0?", answer="Place 0"), "repeats forget fact"),
    }
    return {
        f"facts: {name}": Case(put("forget.jsonl", data), ("plan", "facts.toml"), said) for name, (data, said) in lines.items()
    }


def _examples() -> dict[str, Case]:
    table: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "forget.csv: "),
        "a first line alone": (b"id,label,first,second\n", "the forget set is empty"),
        "no label": (b"id,first,second\na,1,2\n", "forget.csv: .*label"),
        "a label twice": (b"id,label,label\na,1,2\n", "column 'label' stands twice"),
        "rows of other lengths": (b"id,label,first,second\na,1\n", "forget.csv: cannot be read as csv"),
        "no UTF-8": (b"id,label,first,second\n\xff\xfe,1,2,3\n", "forget.csv: "),
        "an id twice": (b"id,label,first,second\na,0,1,2\na,1,3,4\n", "row 2: id 'a' stands already in row 1"),
        "an empty id": (b"id,label,first,second\n,0,1,2\n", "row 1"),
        "a label that is missing": (b"id,label,first,second\na,,1,2\nb,1,2,3\n", "forget.csv: .*row 1"),
        "a negative label": (b"id,label,first,second\na,-1,1,2\n", "label -1 is no class"),
        "a label of a half": (b"id,label,first,second\na,0.5,1,2\n", "label 0.5 is no class"),
        "labels that are names here": (b"id,label,first,second\na,cat,1,2\n", "labels are names here|forget.csv"),
        "a feature that is nan": (b"id,label,first,second\na,0,nan,2\nb,1,1.5,3\n", "row 1: the inputs hold NaN|has no value"),
        "a feature of 1e300": (b"id,label,first,second\na,0,1e300,2\n", "row 1: the inputs hold NaN, or a number too large"),
        "a feature that is text": (b"id,label,first,second\na,0,x,2\n", "forget.csv|holdout.csv"),
        "another feature": (b"id,label,first,third\na,0,1,2\n", "other features than the forget set"),
        "features in another order": (b"id,label,second,first\na,0,1,2\n", "its features in another order"),
        "a pickle": (b"\x80\x04\x95.", "forget.csv: "),
        "a NUL in a column's name": (b"id,label,fir\0st,second\na,0,1,2\n", "forget.csv: column 'fir.x00st' has a NUL"),
    }
    cases = {f"examples.csv: {name}": (put("forget.csv", data), said) for name, (data, said) in table.items()}
    for suffix in (".npz", ".parquet"):
        for name, data in (("nothing", b""), ("text", b"hello"), ("an archive's head", b"PK\x03\x04"), ("PAR1", b"PAR1")):
            cases[f"examples{suffix}: {name}"] = _other(suffix, data), f"forget{suffix}: "
    arrays: dict[str, tuple[dict[str, Any], str]] = {
        "no labels": ({"inputs": np.zeros((2, 2))}, "forget.npz: .*label"),
        "objects": ({"labels": np.array([{}], dtype=object)}, "pickled Python objects"),
        "labels of two sides": ({"labels": np.zeros((2, 3)), "inputs": np.zeros((2, 2))}, "labels of shape|other features"),
        "fewer inputs": ({"labels": np.zeros(3), "inputs": np.zeros((2, 2))}, "3 labels, but 2 inputs"),
        "NaN": ({"labels": np.zeros(1), "inputs": np.full((1, 2), np.nan)}, "row 1: the inputs hold NaN"),
        "one number": ({"labels": np.float64(3)}, "is no array of numbers or text"),
        "dates": ({"labels": np.array(["2020-01-01"], dtype="datetime64[D]")}, "is no array of numbers or text"),
        "complex numbers": ({"labels": np.zeros(1), "inputs": np.zeros((1, 2), complex)}, "forget.npz: "),
        "nothing": ({"labels": np.zeros(0), "inputs": np.zeros((0, 2))}, "forget set is empty|is empty"),
        "another shape": ({"labels": np.zeros(2), "inputs": np.zeros((2, 3))}, "shape|features"),
    }
    for name, (values, said) in arrays.items():
        cases[f"examples.npz: {name}"] = _npz(values), said
    for name, text in (
        ("an unknown column", 'columns = {label = "zz"}'), ("an unknown key of columns", 'columns = {lable = "label"}'),
        ("an image size of nothing", "columns = {image_size = [0, 0]}"), ("classes twice", 'columns = {classes = ["a", "a"]}'),
        ("an unknown mode", 'columns = {image_mode = "CMYK"}'), ("features that are not there", 'columns = {features = ["z"]}'),
    ):  # fmt: skip
        cases[f"examples: {name}"] = swap("examples.toml", 'holdout = "holdout.csv"', f'holdout = "holdout.csv"\n{text}'), "."
    cases["examples: a kind of file that is none"] = _other(".xlsx", b"PK\x03\x04"), "forget.xlsx: not a kind of file"
    cases["examples: an empty folder"] = _folder({}), "forget: "
    cases["examples: a picture that is none"] = _folder({"cat/1.png": b"hello"}), "cat/1.png: not a readable PNG"
    cases["examples: a picture outside of classes"] = _folder({"1.png": b"hello"}), "1.png is not a picture"
    cases["examples: a bomb of a picture"] = _folder({"cat/1.png": _png(60_000, 60_000)}), "1.png: not a readable PNG"
    cases["examples: several splits"] = _folder({"dataset_dict.json": b"{}"}), "holds several splits"
    cases["examples: a state that is no JSON"] = _folder({"state.json": DEEP}), "state.json: not what save_to_disk writes"
    outside = json.dumps({"_data_files": [{"filename": "../forget.csv"}]}).encode()
    cases["examples: a dataset that leads outside"] = _folder({"state.json": outside}), "is not a file of this folder"
    return {name: Case(spoil, ("plan", "examples.toml"), said) for name, (spoil, said) in cases.items()}


def _other(suffix: str, data: bytes) -> Spoil:
    """Has the forget set be a file of another format."""

    def spoil(folder: Path) -> None:
        (folder / f"forget{suffix}").write_bytes(data)
        swap("examples.toml", "forget.csv", f"forget{suffix}")(folder)

    return spoil


def _npz(values: dict[str, Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        np.savez(folder / "forget.npz", **values)
        swap("examples.toml", "forget.csv", "forget.npz")(folder)

    return spoil


def _folder(files: dict[str, bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "forget").mkdir()
        for name, data in files.items():
            (folder / "forget" / name).parent.mkdir(exist_ok=True)
            (folder / "forget" / name).write_bytes(data)
        swap("examples.toml", "forget.csv", "forget")(folder)

    return spoil


def _png(width: int, height: int) -> bytes:
    """The head of a picture of so many pixels, and hardly any data."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _prompts() -> dict[str, Case]:
    def one(**changes: Any) -> bytes:
        return json.dumps({"id": "a", "prompt": "a three", "concept": "three", **changes}).encode()

    lines: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "prompts.jsonl|forget"),
        "no JSON": (b"hello", "prompts.jsonl:1: not JSON"),
        "no UTF-8": (b"\xff", "prompts.jsonl: not UTF-8"),
        "a list": (b"[]", "prompts.jsonl:1: a list where an object"),
        "nested 100,000 deep": (DEEP, "prompts.jsonl:1: "),
        "no prompt": (b'{"id": "a", "concept": "three"}', "field 'prompt' is missing"),
        "no concept": (b'{"id": "a", "prompt": "x"}', "field 'concept' is missing"),
        "an empty prompt": (one(prompt=""), "field 'prompt'"),
        "a prompt that is a number": (one(prompt=1), "field 'prompt'"),
        "an unknown field": (one(zz=1), "unknown field 'zz'"),
        "a misspelt field": (one(promt="x"), "unknown field 'promt'; did you mean 'prompt'"),
        "two seeds": (one(seed=1, sd_seed=2), "two fields give its seed"),
        "a seed below nothing": (one(seed=-1), "field 'seed'"),
        "a seed of a half": (one(seed=0.5), "field 'seed'"),
        "a seed of 10**30": (one(seed=10**30), "field 'seed'"),
        "guidance that is infinite": (b'{"id":"a","prompt":"x","concept":"c","guidance":Infinity}', "field 'guidance'"),
        "guidance that is text": (one(guidance="much"), "field 'guidance'"),
        "an id twice": (one() + b"\n" + one(), "id 'a' stands already"),
        "an image that is not there": (one(image="no.png"), "image 'no.png': cannot be read"),
        "an image's name with a NUL": (one(image="a\0.png"), "cannot be read"),
        "an image's name of 5,000 characters": (one(image=LONG), "cannot be read"),
        "an image that is none": (one(image="judge.py"), "image 'judge.py': not a readable PNG"),
        "a lone surrogate": (b'{"id": "a", "prompt": "\\ud800", "concept": "c"}', "jsonl:1: holds half a character"),
        "a lone surrogate for an id": (b'{"id": "\\ud800", "prompt": "p", "concept": "c"}', "jsonl:1: holds half a character"),
    }
    cases = {f"prompts.jsonl: {name}": (put("prompts.jsonl", data), said) for name, (data, said) in lines.items()}
    for name, data, said in (
        ("a column twice", b"prompt,prompt,concept\na,b,c\n", "column 'prompt' stands twice"),
        ("a row that is too long", b"prompt,concept\na,b,c\n", "another number of columns"),
        ("a row that is too short", b"id,prompt,concept\na,b\n", "another number of columns"),
        ("a quote that never ends", b'prompt,concept\n"a,b\n', "prompts.csv"),
        ("a field of 200,000 characters", b"prompt,concept\n" + b"x" * 200_000 + b",c\n", "prompts.csv: not CSV"),
        ("no UTF-8", b"prompt,concept\n\xff,c\n", "prompts.csv: not UTF-8"),
        ("an unknown column", b"prompt,concept,zz\na,b,c\n", "unknown field 'zz'"),
    ):
        cases[f"prompts.csv: {name}"] = _csv(data), said
    for name, old, new, said in (
        (
            "no evaluator",
            'evaluators = [{kind = "python", function = "judge.py:bright"}]',
            "evaluators = []",
            "task.evaluators",
        ),
        ("an evaluator of an unknown kind", '"python"', '"oracle"', "task.evaluators"),
        ("an evaluator's file that is not there", "judge.py:bright", "no.py:bright", "no.py"),
        ("an evaluator's function that is not there", "judge.py:bright", "judge.py:dark", "dark"),
        ("an evaluator without a function", "judge.py:bright", "judge.py", "function"),
        ("an unknown sampler", 'image_mode = "L"', 'sampler = "magic"', "task.sampler"),
        ("a million steps", 'image_mode = "L"', "steps = 1000000", "task.steps"),
    ):
        cases[f"prompts: {name}"] = swap("prompts.toml", old, new), said
    return {name: Case(spoil, ("plan", "prompts.toml"), said) for name, (spoil, said) in cases.items()}


def _csv(data: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "prompts.csv").write_bytes(data)
        swap("prompts.toml", "prompts.jsonl", "prompts.csv")(folder)

    return spoil


def _policies() -> dict[str, Case]:
    plan = ("plan", "facts.toml")
    texts: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "own.toml.*name"),
        "no TOML": (b"hello", "own.toml.*not TOML"),
        "no UTF-8": (b"\xff", "own.toml"),
        "nested 100,000 deep": (b"a = " + DEEP, "own.toml"),
        "a margin of 2": (b'name = "x"\ndescription = "x"\nmargin = 2.0', "own.toml.*margin"),
        "a margin that is nan": (b'name = "x"\ndescription = "x"\nmargin = nan', "own.toml.*margin"),
        "a margin that is text": (b'name = "x"\ndescription = "x"\nmargin = "wide"', "own.toml.*margin"),
        "an unknown key": (b'name = "x"\ndescription = "x"\nmargn = 0.1', "own.toml.*margn"),
        "no references needed": (b'name = "x"\ndescription = "x"\nminimum_references = 0', "own.toml.*minimum_references"),
        "one cluster": (b'name = "x"\ndescription = "x"\nminimum_clusters = 1', "own.toml.*minimum_clusters"),
        "required that is a text": (b'name = "x"\ndescription = "x"\nrequired = "lira"', "own.toml.*required"),
        "an unknown way of pictures": (b'name = "x"\ndescription = "x"\npictures = "maybe"', "own.toml.*pictures"),
    }

    def own(data: bytes) -> Spoil:
        def spoil(folder: Path) -> None:
            (folder / "own.toml").write_bytes(data)
            swap("facts.toml", '"standard"', '"own.toml"')(folder)

        return spoil

    return {f"policy: {name}": Case(own(data), plan, said) for name, (data, said) in texts.items()}


def _recorded() -> dict[str, Case]:
    plan = ("plan", "honest.toml")
    data: dict[str, tuple[Spoil, str]] = {
        "nothing": (put("honest.json", b""), "honest.json: not JSON"),
        "a list": (put("honest.json", b"[]"), "honest.json: a list where an object"),
        "nested 100,000 deep": (put("honest.json", DEEP), "honest.json: not JSON"),
        "no UTF-8": (put("honest.json", b"\xff\xfe"), "honest.json: not JSON"),
        "an empty object": (put("honest.json", b"{}"), "honest.json: not a tofu evaluation log"),
        "another format": (swap("honest.toml", '"tofu"', '"open_unlearning"'), "open_unlearning evaluation log"),
        "an unknown format": (swap("honest.toml", '"tofu"', '"muse"'), "target.format"),
        "clusters of nothing": (swap("honest.toml", "cluster_size = ", "cluster_size = -"), "task.cluster_size"),
        "no losses": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss"], ...), "not a tofu evaluation log"),
        "losses that are a list": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss"], [1]), "honest.json: "),
        "a key that is no number": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss"], {"a": 1}), "honest.json: "),
        "a loss that is text": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss", "0"], "low"), "honest.json: "),
        "a loss that is null": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss", "0"], None), "honest.json: "),
        "a loss that is NaN": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss", "0"], float("nan")), "loss is nan"),
        "a negative loss": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss", "0"], -1.0), "loss is -1.0"),
        "a loss of 10**400": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss", "0"], 10**400), "honest.json: "),
        "no tokens": (keyed("honest.json", ["eval_log_forget.json", "num_token_gt", "0"], 0), "has 0 tokens"),
        "a recall of 2": (keyed("honest.json", ["eval_log_forget.json", "rougeL_recall", "0"], 2.0), "recall 2.0 is outside"),
        "a text that is missing": (keyed("honest.json", ["eval_log_forget.json", "generated_text", "0"], []), "honest.json: "),
        "a text with a lone surrogate": (
            keyed("honest.json", ["eval_log_forget.json", "generated_text", "0"], ["\ud800", "a", "b"]), "json: holds half",
        ),
    }  # fmt: skip
    return {f"recorded: {name}": Case(spoil, plan, said) for name, (spoil, said) in data.items()}


def _plans() -> dict[str, Case]:
    scan, path = ("scan", "audit-honest/plan.json"), "audit-honest/plan.json"
    spoils: dict[str, tuple[Spoil, str]] = {
        "nothing": (put(path, b""), "not a muaudit plan"),
        "a list": (put(path, b"[]"), "not a muaudit plan"),
        "nested 100,000 deep": (put(path, DEEP), "not a muaudit plan"),
        "no UTF-8": (put(path, b"\xff"), "not a muaudit plan"),
        "no attacks": (keyed(path, ["attacks"], ...), "not a muaudit plan: attacks"),
        "a further key": (keyed(path, ["zz"], 1), "not a muaudit plan: zz"),
        "another schema": (keyed(path, ["schema_version"], "99"), "not a muaudit plan: schema_version"),
        "another tool": (keyed(path, ["tool"], "muaudit 99"), "'tool'"),
        "another margin": (keyed(path, ["policy", "margin"], 0.9), "'policy'"),
        "another digest of the target": (keyed(path, ["models", 0, "digest"], "0" * 64), "target"),
        "another version of a library": (keyed(path, ["versions", "numpy"], "0.1"), "numpy 0.1"),
        "another parameter": (keyed(path, ["attacks", 0, "parameters", "zz"], 1), "plan"),
        "a base with a NUL": (keyed(path, ["base"], "\0"), "honest.json: no such file"),
        "a base elsewhere": (keyed(path, ["base"], "../nowhere"), "no such file"),
        "an attack that is not registered": (keyed(path, ["attacks", 0, "attack"], "zz"), "plan|zz"),
        "a changed log": (keyed("honest.json", ["eval_log_forget.json", "avg_gt_loss", "0"], 0.5), "changed|another model"),
    }
    return {f"plan: {name}": Case(spoil, scan, said) for name, (spoil, said) in spoils.items()}


def _reports() -> dict[str, Case]:
    path = "audit-honest/report.json"
    spoils: dict[str, tuple[Spoil, str]] = {
        "nothing": (put(path, b""), "not a muaudit report"),
        "no JSON": (put(path, b"hello"), "not a muaudit report"),
        "a list": (put(path, b"[]"), "not a muaudit report"),
        "null": (put(path, b"null"), "not a muaudit report"),
        "no UTF-8": (put(path, b'{"\xff": 1}'), "not a muaudit report"),
        "nested 100,000 deep": (put(path, DEEP), "not a muaudit report"),
        "cut short": (lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-20]), "not a muaudit report"),
        "a folder": (turned_into_a_folder(path), "cannot be read"),
        "another schema": (keyed(path, ["schema_version"], "2"), "schema_version"),
        "an unknown verdict": (keyed(path, ["verdict"], "perfect"), "verdict"),
        "no findings": (keyed(path, ["findings"], ...), "findings"),
        "findings that are an object": (keyed(path, ["findings"], {}), "findings"),
        "a finding that is null": (keyed(path, ["findings", 0], None), "findings.0"),
        "a gap that is text": (keyed(path, ["findings", 0, "gap"], "large"), "findings.0.gap"),
        "a gap that is NaN": (keyed(path, ["findings", 0, "gap"], float("nan")), "findings.0.gap|whole file"),
        "a gap that is infinite": (keyed(path, ["findings", 0, "gap"], float("inf")), "findings.0.gap|whole file"),
        "an interval of three": (keyed(path, ["findings", 0, "interval"], [0, 1, 2]), "findings.0.interval"),
        "a further key": (keyed(path, ["zz"], 1), "zz"),
        "a plan's digest that is none": (keyed(path, ["plan_sha256"], 5), "plan_sha256"),
        "a model's digest that is none": (keyed(path, ["models", 0, "digest"], 5), "models.0.digest"),
        "no models": (keyed(path, ["models"], []), "models|target"),
        "units that are text": (keyed(path, ["findings", 0, "units"], "many"), "findings.0.units"),
        "a lone surrogate": (keyed(path, ["reason"], "\ud800"), "not a muaudit report"),
    }
    cases = {}
    for name, (spoil, said) in spoils.items():
        cases[f"report: {name}"] = Case(spoil, ("render", path, "--out", "x.html"), said)
    for name, command in (
        ("signed", ("sign", path, "--key", "auditor.key")), ("compared", ("compare", path, path)),
        ("rendered for a pipeline", ("render", path, "--format", "junit", "--out", "x.xml")),
    ):  # fmt: skip
        cases[f"report {name}: no JSON"] = Case(put(path, b"hello"), command, "not a muaudit report")
    cases["report verified: changed"] = Case(
        keyed(path, ["reason"], "all is well"), ("verify", "audit-honest/audit.intoto.json", "--key", "auditor.pub"),
        "report.json is not the one that was signed", 4,
    )  # fmt: skip
    cases["report: not there"] = Case(gone(path), ("render", path), "report.json|does not exist")
    return cases


def _envelopes() -> dict[str, Case]:
    path = "audit-honest/audit.intoto.json"
    verify = ("verify", path, "--key", "auditor.pub")
    spoils: dict[str, tuple[Spoil, str]] = {
        "nothing": (put(path, b""), "not JSON as muaudit writes it"),
        "no JSON": (put(path, b"hello"), "not JSON as muaudit writes it"),
        "nested 100,000 deep": (put(path, DEEP), "not JSON as muaudit writes it"),
        "no UTF-8": (put(path, b"\xff"), "not JSON as muaudit writes it"),
        "a list": (put(path, b"[]"), "not a DSSE envelope"),
        "a space": (lambda folder: (folder / path).write_bytes((folder / path).read_bytes() + b" "), "not byte for byte"),
        "a number of 5,000 digits": (put(path, b"1" * 5000), "not JSON as muaudit writes it"),
        "a NaN": (put(path, b'{"payload":NaN}'), "not JSON as muaudit writes it"),
    }
    canonical: dict[str, tuple[Sequence[str | int], Any, str]] = {
        "no payload": (["payload"], ..., "not a DSSE envelope"),
        "no signatures": (["signatures"], ..., "not a DSSE envelope"),
        "signatures that are empty": (["signatures"], [], "carries no signature"),
        "signatures that are an object": (["signatures"], {}, "carries no signature"),
        "another type": (["payloadType"], "text/html", "and not an in-toto Statement"),
        "a payload that is a number": (["payload"], 5, "payload is not base64"),
        "a payload that is no base64": (["payload"], "!!!!", "payload is not base64"),
        "another payload": (["payload"], "e30=", "does not fit|not signed|no statement"),
        "a signature that is a text": (["signatures", 0], "x", "exactly keyid"),
        "a signature with a further key": (["signatures", 0, "zz"], 1, "exactly keyid"),
        "another signer": (["signatures", 0, "keyid"], "0" * 64, "not signed by"),
        "a signature of nothing": (["signatures", 0, "sig"], "", "does not fit|base64"),
        "another signature": (["signatures", 0, "sig"], "QUJD", "does not fit"),
        "a signature that is null": (["signatures", 0, "sig"], None, "not base64"),
    }

    def respelled(where: Sequence[str | int], value: Any) -> Spoil:
        def spoil(folder: Path) -> None:
            import rfc8785

            keyed(path, where, value)(folder)
            (folder / path).write_bytes(rfc8785.dumps(json.loads((folder / path).read_bytes())))

        return spoil

    spoils |= {name: (respelled(where, value), said) for name, (where, value, said) in canonical.items()}
    cases = {f"envelope: {name}": Case(spoil, verify, said, 4) for name, (spoil, said) in spoils.items()}
    much = put(path, b'"' + b"x" * (17 * 2**20) + b'"')
    cases["envelope: 17 MB"] = Case(much, verify, "audit.intoto.json: .*more than any that muaudit writes")
    cases["envelope: a folder"] = Case(turned_into_a_folder(path), verify, "audit.intoto.json")
    cases["envelope: another model"] = Case(lambda _: None, (*verify, "--model", "suppressed.json"), "not the one that was", 4)
    cases["envelope: a linked model"] = Case(
        lambda folder: (folder / "linked").symlink_to("honest.json"), (*verify, "--model", "linked"), "symbolic link", 4
    )
    cases["envelope: no key"] = Case(lambda _: None, ("verify", path), "no public key is given")
    return cases


def _keys() -> dict[str, Case]:
    verify = ("verify", "audit-honest/audit.intoto.json", "--key", "auditor.pub")
    sign = ("sign", "audit-honest/report.json", "--key", "auditor.key", "--out", "again.json")
    rsa = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcN\n-----END PUBLIC KEY-----\n"
    public: dict[str, tuple[Spoil, str]] = {
        "nothing": (put("auditor.pub", b""), "auditor.pub"),
        "text": (put("auditor.pub", b"hello"), "auditor.pub"),
        "no UTF-8": (put("auditor.pub", b"\xff" * 100), "auditor.pub"),
        "PEM of nothing": (put("auditor.pub", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"), "auditor.pub"),
        "PEM that is damaged": (put("auditor.pub", rsa), "auditor.pub"),
        "a private key": (lambda folder: shutil.copy(folder / "auditor.key", folder / "auditor.pub"), "auditor.pub"),
        "another fingerprint": (swap("auditor.pub", "fingerprint: ", "fingerprint: 00"), "auditor.pub"),
        "a certificate": (put("auditor.pub", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "auditor.pub"),
        "a folder": (turned_into_a_folder("auditor.pub"), "auditor.pub: cannot be read"),
        "20 MB": (put("auditor.pub", b"x" * 20_000_000), "auditor.pub"),
    }
    private: dict[str, tuple[Spoil, str]] = {
        "nothing": (put("auditor.key", b""), "auditor.key"),
        "text": (put("auditor.key", b"hello"), "auditor.key"),
        "no UTF-8": (put("auditor.key", b"\xff" * 100), "auditor.key"),
        "cut short": (swap("auditor.key", "-----END", "-----"), "auditor.key"),
        "a public key": (lambda folder: shutil.copy(folder / "auditor.pub", folder / "auditor.key"), "auditor.key"),
        "PEM of nothing": (put("auditor.key", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), "auditor.key"),
        "damaged OpenSSH": (
            put("auditor.key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"), "auditor.key",
        ),
        "a folder": (turned_into_a_folder("auditor.key"), "auditor.key: cannot be read"),
    }  # fmt: skip
    cases = {f"public key: {name}": Case(spoil, verify, said) for name, (spoil, said) in public.items()}
    cases |= {f"private key: {name}": Case(spoil, sign, said) for name, (spoil, said) in private.items()}
    cases["private key: there already"] = Case(lambda _: None, ("keygen", "auditor"), "auditor.key: is there already")
    cases["private key: a name of two lines"] = Case(lambda _: None, ("keygen", "other", "--name", "a\nb"), "key name")
    cases["private key: an unknown scheme"] = Case(
        lambda _: None, ("sign", "audit-honest/report.json", "--key", "zz:1"), "zz:1|does not exist"
    )
    return cases


def _trust() -> dict[str, Case]:
    verify = ("verify", "audit-honest/audit.intoto.json", "--policy", "trust.toml")
    sound = '[[keys]]\nfile = "auditor.pub"\n'
    texts: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "trust.toml|key"),
        "no TOML": (b"hello", "trust.toml: is not TOML"),
        "no UTF-8": (b"\xff", "trust.toml: is not TOML"),
        "nested 100,000 deep": (b"a = " + DEEP, "trust.toml: is not TOML"),
        "an unknown key": (f"zz = 1\n{sound}".encode(), "trust.toml: zz"),
        "no threshold": (f"threshold = 0\n{sound}".encode(), "trust.toml: threshold"),
        "a threshold beyond the keys": (f"threshold = 2\n{sound}".encode(), "trust.toml"),
        "a file that is not there": (b'[[keys]]\nfile = "no.pub"\n', "no.pub: cannot be read"),
        "a file with a NUL": (b'[[keys]]\nfile = "a\\u0000b"\n', "trust.toml|a.b"),
        "another fingerprint": (f'{sound}fingerprint = "{"0" * 64}"\n'.encode(), "not the one that the policy names"),
        "a key twice": (f"{sound}{sound}".encode(), "holds a key that stands there already"),
        "a date without a zone": (f"{sound}valid_from = 2026-01-01T00:00:00\n".encode(), "valid_from"),
        "an age below nothing": (f"maximum_age_days = -1\n{sound}".encode(), "maximum_age_days"),
        "an age that is nan": (f"maximum_age_days = nan\n{sound}".encode(), "maximum_age_days"),
        "versions that are none": (f'tool_versions = "newest"\n{sound}'.encode(), "tool_versions"),
        "an unknown verdict": (f'verdicts = ["fine"]\n{sound}'.encode(), "verdicts"),
        "no time stamps' roots": (f"{sound}[time_stamp]\nroots = []\n".encode(), "roots"),
        "a root that is none": (f'{sound}[time_stamp]\nroots = ["judge.py"]\n'.encode(), "judge.py"),
    }
    return {f"trust: {name}": Case(put("trust.toml", data), verify, said) for name, (data, said) in texts.items()}


def cases() -> dict[str, Case]:
    """All of them, by name."""
    found: dict[str, Case] = {}
    for part in (
        _configuration,
        _facts,
        _examples,
        _prompts,
        _policies,
        _recorded,
        _plans,
        _reports,
        _envelopes,
        _keys,
        _trust,
    ):
        found |= part()
    return found
