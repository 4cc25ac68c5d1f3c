"""Coverage-guided fuzzing of the three parsers of outside bytes: `python benchmarks/fuzz.py PARSER --minutes 3`.

PARSER is `envelope` (DSSE envelopes, the statements in them, report.json), `weights` (safetensors headers, configurations and
tokenizers of model folders) or `data` (JSON Lines of facts, JSON Lines and CSV of prompts, CSV of examples). Whatever the
bytes, only the documented errors may come of them, in one line; and what the inspection of weights lets through, safetensors
itself must open and describe alike. Needs atheris (`pip install atheris`). The corpus is tests/data/fuzz/PARSER.b64, one
input a line in base64, and the test suite replays it; the fuzzer works on a folder of its own that it fills from there, and
`--keep` writes what it found back.
"""

import argparse
import base64
import hashlib
import json
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from muaudit.models.weights_file import Stored

T = TypeVar("T")

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "fuzz"

WORDS: dict[str, tuple[str, ...]] = {
    "envelope": (
        "payload", "payloadType", "signatures", "keyid", "sig", "application/vnd.in-toto+json", "_type", "subject", "digest",
        "sha256", "predicate", "predicateType", "verdict", "findings", "manifest", "name", "algorithm", "plan", "report",
        "issuedAt", "signers", "schema_version", "NaN", "1e999", "\\ud800", "null", "true", "[]", "{}",
    ),
    "weights": (
        "__metadata__", "dtype", "shape", "data_offsets", "F32", "F16", "BF16", "F64", "I64", "BOOL", "U8", "F8_E4M3", "C64",
        "auto_map", "normalizer", "pre_tokenizer", "Regex", "Replace", "content", "pattern", "String", "hidden_size",
        "num_hidden_layers", "vocab_size", "(a+)+", "[[", "\\ud800", "1e999", "-1", "9223372036854775807",
    ),
    "data": (
        "id", "cluster", "question", "answer", "aliases", "paraphrases", "form", "prompt", "completion", "wrong_answers",
        "text", "concept", "kind", "seed", "guidance", "image", "case_number", "label", "labels", "true_label", "\\ud800",
        "1e999",
    ),
}  # fmt: skip
"""What the mutator puts in, beside bytes."""


def envelope(data: bytes, folder: Path) -> None:
    """Reads bytes as an envelope, as a statement and as a report, as they are and in canonical spelling."""
    from muaudit.errors import MuauditError
    from muaudit.reports import envelope as envelopes
    from muaudit.reports import statement
    from muaudit.results import AuditReport

    for spelled in {data, _canonical(data)}:
        for read in (
            lambda: statement.read(envelopes.unpack(spelled).payload),  # noqa: B023 - called at once
            lambda: statement.read(spelled),  # noqa: B023 - the same
            lambda: AuditReport.from_json(AuditReport.from_json(spelled).canonical()),  # noqa: B023 - the same
        ):
            _only(MuauditError, read)


def _canonical(data: bytes) -> bytes:
    """Bytes in the one spelling that signed JSON has, where they are JSON; hardly any change leaves them in it."""
    import rfc8785

    try:
        return rfc8785.dumps(json.loads(data))
    except (ValueError, RecursionError):
        return data


def weights(data: bytes, folder: Path) -> None:
    """Reads bytes as a safetensors file beside a configuration, as a configuration and as a tokenizer."""
    from muaudit.errors import MuauditError
    from muaudit.models import inspection
    from muaudit.models.weights_file import read_header, refuse_nan

    path = folder / "model.safetensors"
    path.write_bytes(data)
    found = _only(MuauditError, lambda: read_header(path))
    if found is not None:
        _same_as_the_library(data, found)
        _only(MuauditError, lambda: refuse_nan(path, found))
    for name in ("config.json", "tokenizer.json", "adapter_config.json"):
        (folder / name).write_bytes(data)
    _only(MuauditError, lambda: inspection.refuse_code(folder))
    _only(MuauditError, lambda: inspection.refuse_tokenizer(folder))
    _only(MuauditError, lambda: inspection.refuse_absurd(folder / "config.json", found or {}))
    _only(MuauditError, lambda: inspection.refuse_absurd_adapter(folder / "adapter_config.json", found or {}))
    (folder / "model.safetensors.index.json").write_bytes(data)
    path.unlink()
    _only(MuauditError, lambda: inspection.weights_of(folder, "model"))
    (folder / "model.safetensors.index.json").unlink()


def _same_as_the_library(data: bytes, found: "Mapping[str, Stored]") -> None:
    from safetensors import SafetensorError, deserialize

    try:
        opened = dict(deserialize(data))
    except SafetensorError as error:
        if any(one.dtype.startswith(("F4", "F6", "C64")) for one in found.values()) or "HeaderTooSmall" in str(error):
            return  # types that its Python binding does not have
        raise AssertionError(f"the inspection let through what safetensors refuses: {error}") from error
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {  # noqa: S101 - the property
        name: (one["dtype"], tuple(one["shape"])) for name, one in opened.items()
    }


def data(content: bytes, folder: Path) -> None:
    """Reads bytes as facts, as prompts, and as a table of examples."""
    from muaudit.errors import MuauditError
    from muaudit.loaders.example_columns import Columns
    from muaudit.loaders.example_files import read_examples
    from muaudit.loaders.prompt_files import Reading, read_known, read_prompts
    from muaudit.task import ForgetTask

    lines, table = folder / "set.jsonl", folder / "set.csv"
    for path in (lines, table):
        path.write_bytes(content)
    reading = Reading(concept=None, guidance=7.5, columns=Columns())
    for read in (
        lambda: ForgetTask.from_jsonl(forget=lines),
        lambda: read_prompts(lines, "set.jsonl", "forget", reading),
        lambda: read_prompts(table, "set.csv", "forget", reading),
        lambda: read_known(table, "set.csv", Columns()),
        lambda: read_examples(table, "forget", "set.csv"),
        lambda: read_examples(table, "forget", "set.csv", outputs="numbers"),
    ):
        _only(MuauditError, read)


def _only(kind: type[Exception], read: Callable[[], T]) -> T | None:
    """What reading gives, or None where it raises a documented error; anything else goes on its way."""
    try:
        return read()
    except kind as error:
        told = str(error)
        assert told.strip(), "an error without a word"  # noqa: S101 - the property
        return None


TARGETS: dict[str, Callable[[bytes, Path], None]] = {"envelope": envelope, "weights": weights, "data": data}


def seeds(name: str) -> list[bytes]:
    """Inputs to start from: sound ones, so that the fuzzer need not find out what those look like."""
    if name == "data":
        fact = {
            "id": "a",
            "question": "Where?",
            "answer": "Here",
            "paraphrases": [{"form": "x", "prompt": "p", "completion": "c"}],
        }
        prompt = {"id": "a", "prompt": "a photo", "concept": "dog", "seed": 1, "guidance": 7.5}
        return [
            json.dumps(fact).encode(), b"\n".join(json.dumps({**fact, "id": f"f{n}"}).encode() for n in range(3)),
            json.dumps(prompt).encode(), b"id,prompt,concept,seed\na,\"a, photo\",dog,1\nb,two,cat,2\n",
            b"case_number,prompt,evaluation_seed\n1,x,2\n", b"id,label,first,second\na,0,1.5,2\nb,1,0.5,3\n",
            b"image,concept\na.png,dog\n", b"\xef\xbb\xbfid,label,x\n1,cat,2\n2,dog,3\n",
        ]  # fmt: skip
    if name == "weights":
        header = {"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
        more = {
            "b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
            "c": {"dtype": "F64", "shape": [], "data_offsets": [4, 12]},
        }
        config = {"model_type": "llama", "hidden_size": 2, "num_hidden_layers": 1, "vocab_size": 2, "rope_theta": 1e4}
        tokenizer = {
            "normalizer": {"normalizers": [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}]},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?:x|[^\\]y]+)*|\\p{L}{1,3}"}}, "decoder": None,
        }  # fmt: skip
        adapter = {"peft_type": "LORA", "r": 2, "rank_pattern": {"q": 1}, "target_modules": "a|b", "auto_map": None}
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        files = [struct.pack("<Q", len(text)) + text + b"\0" * size for text, size in
                 ((json.dumps(header).encode(), 8), (json.dumps(more).encode(), 12), (b"{}", 0))]  # fmt: skip
        return [*files, *(json.dumps(one).encode() for one in (config, tokenizer, adapter, index))]
    sys.path.insert(0, str(CORPUS.parent.parent / "helpers"))
    import rfc8785
    from sample import small_report

    from muaudit.reports.attestation import payload_without_signers
    from muaudit.reports.envelope import Envelope, pack

    report = small_report()
    from sample import ISSUED

    payload = payload_without_signers(report, report.canonical(), issued_at=ISSUED)
    signed = {**json.loads(payload)}
    signed["predicate"]["signers"] = ["00" * 32]
    return [report.canonical(), payload, rfc8785.dumps(signed), pack(Envelope(rfc8785.dumps(signed), {"00" * 32: b"\1" * 64}))]


def kept(name: str) -> list[bytes]:
    """The inputs of a parser's corpus."""
    path = CORPUS / f"{name}.b64"
    return [base64.b64decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def keep(name: str, folder: Path) -> None:
    """Adds a folder's inputs to a parser's corpus, each once."""
    inputs = {*kept(name), *(file.read_bytes() for file in folder.iterdir())}
    CORPUS.mkdir(parents=True, exist_ok=True)
    (CORPUS / f"{name}.b64").write_bytes(b"".join(sorted(base64.b64encode(one) + b"\n" for one in inputs)))


def replay(name: str, inputs: Sequence[bytes]) -> int:
    """Runs a parser on every input once.

    Args:
        name: Which parser.
        inputs: The inputs.

    Returns:
        How many there were.

    Raises:
        AssertionError: The parser raised what it must not.
    """
    with tempfile.TemporaryDirectory() as folder:
        for one in inputs:
            try:
                TARGETS[name](one, Path(folder))
            except Exception as error:
                raise AssertionError(f"{one[:200]!r}: {type(error).__name__}: {error}") from error
    return len(inputs)


def main() -> None:
    """Fuzzes one parser; atheris prints executions, coverage and the time, and stops at the first crash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parser", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--folder", type=Path, help="Where inputs are kept meanwhile; .muaudit/fuzz/PARSER by default.")
    parser.add_argument("--keep", action="store_true", help="Instead: add the folder's inputs to the corpus.")
    options = parser.parse_args()
    corpus = options.folder or Path(".muaudit/fuzz") / options.parser
    corpus.mkdir(parents=True, exist_ok=True)
    if options.keep:
        keep(options.parser, corpus)
        return
    import atheris

    with atheris.instrument_imports(include=["muaudit"]):
        import muaudit.loaders.example_files
        import muaudit.loaders.prompt_files
        import muaudit.models.inspection
        import muaudit.models.weights_file
        import muaudit.reports.envelope
        import muaudit.reports.statement
        import muaudit.results
        import muaudit.task  # noqa: F401 - instrumented
    for seed in [*seeds(options.parser), *kept(options.parser)]:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108 - for speed
    words = scratch / "words"
    words.write_text("".join(f"{json.dumps(word)}\n" for word in WORDS[options.parser]), encoding="utf-8")
    shared = [f"-dict={words}", "-max_len=4096", "-rss_limit_mb=4096", "-timeout=20", f"-artifact_prefix={scratch}/"]
    how = [f"-max_total_time={int(options.minutes * 60)}", str(corpus)]
    work = scratch / "work"
    work.mkdir()
    atheris.Setup([sys.argv[0], *shared, *how], lambda content: TARGETS[options.parser](content, work))
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
