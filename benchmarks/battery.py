"""The whole battery for language models on the demo's models, timed: `python benchmarks/battery.py`.

Builds the `lineage` testbed (cached; training is not counted), then audits the target that only learned to refuse with preset
`language`, two measurements at a time, in a fresh folder. The limit is four minutes on two cores.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from muaudit import plan, runner
from muaudit.demo import FOURTH, REFERENCES, SUPPRESSED, build_testbed, write_audit

LIMIT = 240


def main() -> None:
    """Prints the wall time, and with one worker each attack's share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbed", type=Path, default=Path(".muaudit/lineage"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    references = (*REFERENCES, FOURTH)
    paths = build_testbed(options.testbed, ("original", *references, SUPPRESSED), preset="lineage", workers=2)
    seconds: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        audit = write_audit(
            Path(folder) / "audit.toml",
            paths,
            target=SUPPRESSED,
            workers=options.workers,
            preset="language",
            references=references,
        )
        start = last = time.perf_counter()
        frozen, base = plan.resolve(audit)

        def progress(done: int, total: int, what: str) -> None:
            nonlocal last
            now = time.perf_counter()
            seconds[what.partition(":")[0]] += now - last
            last = now

        report = runner.run(frozen, base, progress=progress)
        total = time.perf_counter() - start
    for finding in report.findings:
        print(f"{finding.attack:22s}{finding.measures:11s}{finding.verdict.value:14s}{finding.reason[:90]}")
    if options.workers == 1:
        for name, spent in seconds.items():
            print(f"{name:22s}{spent:8.1f} s")
    print(f"the whole battery     {total:8.1f} s   limit {LIMIT} s")


if __name__ == "__main__":
    main()
