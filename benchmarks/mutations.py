"""Changes every byte of ten signed envelopes to all other values, and 5,000 reports in many bytes: what verifies, what crashes.

Nothing may verify, and nothing but VerificationError may be raised (UsageError by the reader of a report). Exits with 1 where
something else happens. The test suite runs a sample of it. All of it, 5,016,770 changes, took 477 s on a core:

    python benchmarks/mutations.py [--every 1] [--reports 5000] [--only NAME]
"""

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from signed_envelopes import Signed, changed, ten

from muaudit.errors import UsageError, VerificationError
from muaudit.reports.attestation import verify
from muaudit.results import AuditReport


def every_byte(signed: Signed, step: int) -> Counter[str]:
    """All other values at every `step`-th byte of an envelope."""
    counts: Counter[str] = Counter()
    mutant = bytearray(signed.envelope)
    for place in range(0, len(mutant), step):
        original = mutant[place]
        for value in range(256):
            if value != original:
                mutant[place] = value
                counts[_outcome(bytes(mutant), signed, None)] += 1
        mutant[place] = original
    return counts


def many_bytes(signed: Signed, number: int, seed: int) -> Counter[str]:
    """Reports beside an envelope that is as it was, and what reads them."""
    rng, counts = random.Random(seed), Counter[str]()  # noqa: S311 - reproducible, not secret
    for _ in range(number):
        report = changed(signed.report, rng)
        counts[_outcome(signed.envelope, signed, report)] += 1
        try:
            AuditReport.from_json(report)
        except UsageError:
            pass
        except Exception as error:  # noqa: BLE001 - what must not happen is what is counted
            counts[f"reader crashed: {type(error).__name__}"] += 1
    return counts


def _outcome(envelope: bytes, signed: Signed, report: bytes | None) -> str:
    try:
        verify(envelope, signed.keys, report=report)
    except VerificationError:
        return "refused"
    except Exception as error:  # noqa: BLE001 - what must not happen is what is counted
        return f"crashed: {type(error).__name__}"
    return "verified"


def main() -> int:
    """Runs, prints a line an envelope, and says whether all was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every so-many-th byte")
    parser.add_argument("--reports", type=int, default=5000, help="changed reports, over all envelopes")
    parser.add_argument("--only", help="one envelope, by name")
    given = parser.parse_args()
    chosen = [signed for signed in ten() if given.only in (None, signed.name)]
    total: Counter[str] = Counter()
    began = time.perf_counter()
    for number, signed in enumerate(chosen):
        verify(signed.envelope, signed.keys, report=signed.report)  # unchanged it does verify
        start = time.perf_counter()
        bytes_, reports = every_byte(signed, given.every), many_bytes(signed, given.reports // len(chosen), number)
        seconds = time.perf_counter() - start
        told = f"envelopes {dict(bytes_)}  reports {dict(reports)}  {seconds:.0f} s"
        print(f"{signed.name:<30} {len(signed.envelope):>6} bytes  {told}", flush=True)
        total += bytes_ + reports
    print(f"{'in all':<30} {dict(total)}  {time.perf_counter() - began:.0f} s")
    return int(set(total) != {"refused"})


if __name__ == "__main__":
    sys.exit(main())
