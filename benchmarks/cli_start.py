"""Start of the command line against a bare interpreter: `python benchmarks/cli_start.py`."""

import statistics
import subprocess
import sys
import time

RUNS = 15


def seconds(*command: str) -> float:
    """Wall time of one run of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Runs both in turn, so that a drift of the machine hits both, and prints medians and their ratio."""
    bare, ours = [], []
    for _ in range(RUNS):
        bare.append(seconds(sys.executable, "-c", "pass"))
        ours.append(seconds(sys.executable, "-m", "muaudit", "--version"))
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"bare interpreter   {statistics.median(bare):.3f} s")
    print(f"muaudit --version  {statistics.median(ours):.3f} s   limit 0.3 s")
    print(f"ratio              {ratio:.1f}")


if __name__ == "__main__":
    main()
