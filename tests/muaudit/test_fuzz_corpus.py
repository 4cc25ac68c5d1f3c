"""The fuzzer's corpus, replayed: whatever it found once does not come back."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("pyarrow")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("parser", ["data", "envelope", "weights"])
def test_the_corpus_meets_documented_errors_alone(fuzz: ModuleType, parser: str) -> None:
    assert fuzz.replay(parser, fuzz.kept(parser)) >= 50


def test_the_fuzzed_properties_can_fail(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that lets through what safetensors refuses, or breaks in its own way, does not stay unnoticed."""
    one = [b"hello, this is no header"]
    monkeypatch.setattr("muaudit.models.weights_file.read_header", lambda path: {})
    with pytest.raises(AssertionError, match="let through what safetensors refuses"):
        fuzz.replay("weights", one)
    monkeypatch.setattr("muaudit.results.AuditReport.from_json", lambda data: {}["broken"])
    with pytest.raises(AssertionError, match="KeyError"):
        fuzz.replay("envelope", one)
