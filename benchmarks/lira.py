"""LiRA on the digits from the command line, shadow models included: `python benchmarks/lira.py`.

Builds the testbeds `digits` (MLP) and `digits-cnn` (not counted), then times `muaudit scan` in a fresh folder, from the start
of the process to the written report: 64 shadow models are trained, and six models are audited. Limits on two cores: 40 s with
MLPs, five minutes with small CNNs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from muaudit.testbed.classification.build import PRESETS, build

LIMITS = {"digits": 40, "digits-cnn": 300}
REFERENCES = ("reference-1", "reference-2", "reference-3", "reference-4")


def audit(preset: str, paths: dict[str, Path], workers: int) -> str:
    """An audit.toml of the fine-tuned model, as a user would write it."""
    recipe = PRESETS[preset].recipe.model_dump(mode="json", exclude_defaults=True) | {"kind": "torch"}
    lines = ["[task]", 'kind = "classification"', *(f'{name} = "{paths[name]}"' for name in ("forget", "retain", "holdout"))]
    for table, name in [
        ("[target]", "fine-tune"),
        ("[original]", "original"),
        *(("[[references]]", one) for one in REFERENCES),
    ]:
        lines += [table, 'kind = "classifier"', f'path = "{paths[name]}"']
    lines += ["[policy]", 'name = "classification"', "partial = true  # LiRA alone is timed, and cannot pass", "[recipe]"]
    lines += [f"{key} = {_toml(value)}" for key, value in recipe.items()]
    lines += ["[shadows]", "count = 64", "[attacks.lira]", "[run]", 'seed = "2026"', f"workers = {workers}", ""]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)


def main() -> None:
    """Prints wall times beside their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbeds", type=Path, default=Path(".muaudit"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for preset, limit in LIMITS.items():
        names = ["original", *REFERENCES, "fine-tune"]
        paths = {name: path.resolve() for name, path in build(PRESETS[preset], options.testbeds / preset, names).items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "audit.toml"
            file.write_text(audit(preset, paths, options.workers), encoding="utf-8")
            start = time.perf_counter()
            command = [sys.executable, "-m", "muaudit", "scan", str(file)]
            ran = subprocess.run(command, check=False, capture_output=True, text=True)  # the verdict is the exit code
            seconds = time.perf_counter() - start
        told = next((line.strip() for line in ran.stdout.splitlines() if "lira" in line), ran.stderr.strip())
        print(f"{preset:12s}{seconds:8.1f} s   limit {limit} s   {told}")


if __name__ == "__main__":
    main()
