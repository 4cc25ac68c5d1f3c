"""A scan's time outside model calls, and a resumed against an undisturbed scan: `python benchmarks/scan.py`.

Builds the small testbed (cached), audits an honest retrain twice in fresh folders and once more in the second.
"""

import argparse
import tempfile
import time
from pathlib import Path

from muaudit import config, plan, runner
from muaudit.demo import build_testbed, write_audit


def main() -> None:
    """Prints the share of time outside model calls (limit 0.10) and the ratio of resumed to undisturbed wall time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--testbed", type=Path, default=Path(".muaudit/testbed-standard"))
    parser.add_argument("--preset", default="standard")
    arguments = parser.parse_args()
    paths = build_testbed(arguments.testbed, preset=arguments.preset, workers=2)
    with tempfile.TemporaryDirectory() as folder:
        audit = write_audit(Path(folder) / "audit.toml", paths, target="retrain")
        runner.family(config.load(audit).target)  # imports torch, which both would pay once
        start = time.perf_counter()
        frozen, base = plan.resolve(audit)
        first = runner.run(frozen, base)
        undisturbed = time.perf_counter() - start
        start = time.perf_counter()
        frozen, base = plan.resolve(audit)
        runner.run(frozen, base)
        resumed = time.perf_counter() - start
    outside = 1 - first.run.model_seconds / undisturbed
    print(f"undisturbed scan                 {undisturbed:.2f} s, of which {first.run.model_seconds:.2f} s in models")
    print(f"share outside model calls        {outside:.3f}   limit 0.10")
    print(f"resumed against undisturbed      {resumed / undisturbed:.3f}")


if __name__ == "__main__":
    main()
