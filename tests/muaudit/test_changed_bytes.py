"""Thousands of random changes of model files and reports: none verifies, and none gets more out of muaudit than one line."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from sample import ISSUED, small_report
from tiny_folders import language

from muaudit.errors import ModelError, UsageError, VerificationError
from muaudit.manifest import manifest, manifest_digest
from muaudit.models.causal_lm import CausalLM
from muaudit.models.inspection import inspect
from muaudit.reports import html
from muaudit.reports.attestation import sign, verify
from muaudit.reports.keys import PublicKey, keygen, load_public
from muaudit.results import AuditReport, ModelRecord

MODEL_CHANGES, REPORT_CHANGES = 3_000, 2_000
OPENED_EVERY, RENDERED_EVERY = 25, 20


def substitute(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(2, 64)):
        data[draw.randrange(len(data))] = draw.randrange(256)


def overwrite(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start : start + draw.randint(2, 256)] = draw.randbytes(draw.randint(2, 256))


def insert(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start:start] = draw.randbytes(draw.randint(2, 64))


def delete(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    del data[start : start + draw.randint(2, 64)]


def double(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start:start] = data[start : start + draw.randint(2, 200)]


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def respell(data: bytearray, draw: random.Random) -> None:
    """Puts one number, or one text of the file, in place of another: changes that JSON parsers take."""
    digits = [place for place, byte in enumerate(data) if byte in b"0123456789"]
    for place in draw.sample(digits, min(len(digits), draw.randint(2, 8))):
        data[place] = draw.choice(b"0123456789")


def exchange(data: bytearray, draw: random.Random) -> None:
    one, other = draw.randrange(len(data)), draw.randrange(len(data))
    length = draw.randint(2, 32)
    data[one : one + length], data[other : other + length] = data[other : other + length], data[one : one + length]


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    substitute, overwrite, insert, delete, double, cut, respell, exchange,
)  # fmt: skip


def changed(data: bytes, draw: random.Random) -> bytes:
    """One random change that leaves other bytes than there were."""
    while True:
        now = bytearray(data)
        draw.choice(CHANGES)(now, draw)
        if now != data:
            return bytes(now)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes, PublicKey]:
    """A tiny model, its report, the envelope of both, and the key."""
    folder = tmp_path_factory.mktemp("signed")
    files = manifest(language(folder / "model"))
    target = ModelRecord(role="target", kind="causal_lm", path="model", digest=manifest_digest(files), files=files)
    report = small_report(models=(target,))
    private, public, _ = keygen(folder / "auditor", "Lab X")
    envelope = sign(report, report.canonical(), private, issued_at=ISSUED)
    return folder / "model", report.canonical(), envelope, load_public(public)


def spoilt(model: Path, draw: random.Random) -> Iterator[tuple[int, Path]]:
    """Changes one file of the model after another, each time from what it was."""
    files = sorted(path for path in model.iterdir() if path.is_file())
    for number in range(MODEL_CHANGES):
        path = files[number % len(files)]
        kept = path.read_bytes()
        path.write_bytes(changed(kept, draw))
        yield number, path
        path.write_bytes(kept)


def one_line(error: Exception) -> bool:
    assert "\n" not in str(error)
    return True


def test_no_change_of_a_model_verifies_and_none_is_more_than_a_line(
    signed: tuple[Path, bytes, bytes, PublicKey], tmp_path: Path
) -> None:
    sound, _, envelope, key = signed
    model = Path(shutil.copytree(sound, tmp_path / "model"))
    assert verify(envelope, [key], model=model).verdict
    refused = opened = 0
    for number, path in spoilt(model, random.Random(2026)):  # noqa: S311 - not for cryptography
        with pytest.raises(VerificationError, match=f"file '{path.name}' changed"):
            verify(envelope, [key], model=model)
        try:
            inspect("causal_lm", model)
            if number % OPENED_EVERY == 0:
                CausalLM.open(model, device="cpu")
                opened += 1
        except ModelError as error:
            refused += one_line(error)
    assert verify(envelope, [key], model=model).verdict
    # Most changes of numbers and settings leave a model that can be opened: it is another one, and the manifest says so.
    assert refused > MODEL_CHANGES / 3
    assert opened


def test_no_change_of_a_report_verifies_and_none_is_more_than_a_line(signed: tuple[Path, bytes, bytes, PublicKey]) -> None:
    _, report, envelope, key = signed
    draw, read = random.Random(2026), 0  # noqa: S311 - not for cryptography
    assert verify(envelope, [key], report=report).verdict
    for number in range(REPORT_CHANGES):
        now = changed(report, draw)
        with pytest.raises(VerificationError, match=r"report\.json is not the one that was signed"):
            verify(envelope, [key], report=now)
        try:
            other = AuditReport.from_json(now)
            read += 1
            if number % RENDERED_EVERY == 0:
                html.render(other)
        except UsageError as error:
            one_line(error)
    assert read > 100  # of changed digits, many leave a report; the signature alone tells it from the one that was made
