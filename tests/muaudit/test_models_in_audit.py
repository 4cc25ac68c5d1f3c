"""What models an audit takes, and what it says of those that it cannot: one line, the right exit code, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import muaudit
from muaudit.demo import write_audit

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402


def scan(folder: Path, config: str = "audit.toml") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muaudit", "scan", config], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def audit(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """An audit of a copy of the retrain, in a folder of its own."""
    shutil.copytree(tiny["retrain"], tmp_path / "target")
    return write_audit(tmp_path / "audit.toml", {**tiny, "target": tmp_path / "target"}, target="target")


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def truncate(folder: Path) -> None:
    weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-64])


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(weights_of(folder)), folder / "pytorch_model.bin")
    weights_of(folder).unlink()


def drop_a_weight(folder: Path) -> None:
    weights = load_file(weights_of(folder))
    weights.pop(sorted(weights)[0])
    save_file(weights, weights_of(folder), {"format": "pt"})


def ask_for_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")


def lose_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "lies outside of the file"),
        (pickle_instead, "pickle"),
        (drop_a_weight, "weight"),
        (ask_for_remote_code, "auto_map"),
        (lose_the_tokenizer, "tokenizer"),
    ],
)
def test_a_model_that_cannot_be_opened_is_one_line(audit: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(audit.parent / "target")
    seen = scan(audit.parent)
    assert seen.returncode == 2, seen.stderr
    assert said in seen.stderr
    assert seen.stderr.count("\n") == 1
    assert "Traceback" not in seen.stderr


def test_nan_weights_end_the_audit_before_any_model_is_opened(audit: Path) -> None:
    path = weights_of(audit.parent / "target")
    weights = load_file(path)
    name = next(name for name in sorted(weights) if "down_proj" in name)
    weights[name][:] = float("nan")
    save_file(weights, path, {"format": "pt"})
    seen = scan(audit.parent)
    assert seen.returncode == 2, seen.stderr
    assert f"target/model.safetensors: weight {name} holds NaN or infinity" in seen.stderr
    assert seen.stderr.count("\n") == 1
    assert not (audit.parent / "audit").exists()


def test_an_adapter_on_a_base_is_audited_as_the_model_that_it_makes(audit: Path, tiny: dict[str, Path]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny["retrain"])
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(audit.parent / "adapter")
    text = audit.read_text()
    here = f'path = "target"\nbase = {json.dumps(os.path.relpath(tiny["retrain"], audit.parent))}'
    audit.write_text(text.replace('path = "target"', here.replace('path = "target"', 'path = "adapter"'), 1))
    report = muaudit.audit(audit)
    assert [model.role for model in report.models][:2] == ["target", "target base"]
    assert {file.name for file in report.target.files} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert all(finding.verdict not in ("error", "skipped") for finding in report.findings)


def test_two_workers_find_what_one_finds(audit: Path) -> None:
    alone = muaudit.audit(audit)
    audit.write_text(audit.read_text().replace("workers = 1 ", "workers = 2 ").replace('store = "store"', 'store = "another"'))
    together = muaudit.audit(audit)
    assert together.run.computed == 10
    assert [finding.canonical() for finding in together.findings] == [finding.canonical() for finding in alone.findings]
