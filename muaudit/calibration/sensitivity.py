"""The gap that an audit could see with these retrains and this forget set, and how well so few retrains tell it."""

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from muaudit.calibration import rates
from muaudit.calibration.measuring import Sheet, calibrates, read
from muaudit.calibration.record import Sensitivity
from muaudit.plan import PlannedAttack
from muaudit.policy import Policy
from muaudit.statistics import Estimate, detectable_gap, mean_gap, noise_floor

FloatArray = NDArray[np.float64]


def seen(sheets: Sequence[Sheet], never_saw: Sequence[str], rule: Policy, references: int) -> Iterator[Sensitivity]:
    """What every attack could see.

    Each retrain is put in the target's place in turn; what its clusters and the others' noise leave unseen is the design's
    smallest detectable gap. How far whole retrains differ is known from few of them, so that their standard deviation has a
    wide interval (chi-squared); the gap is computed at both its ends too.

    Args:
        sheets: The measurements; of several, the first that has an attack's is taken.
        never_saw: Names of the retrains.
        rule: The policy whose margins count.
        references: References that the audit would have.

    Yields:
        One row an attack; none where fewer than three retrains were measured.
    """
    for entry in sheets[0].panel.plan.attacks:
        found = next((one for sheet in sheets if (one := _leakages(sheet, entry, never_saw)) is not None), None)
        if found is not None:
            count = max(1, references - 1) if calibrates(sheets[0].panel, entry) else references
            yield _row(entry, *found, rule, count)


def _leakages(sheet: Sheet, entry: PlannedAttack, names: Sequence[str]) -> tuple[FloatArray, NDArray[np.int64]] | None:
    """Leakage of every forget unit on every retrain [K, n], and each unit's cluster [n]."""
    roles = [sheet.panel.roles[name] for name in names if name in sheet.panel.roles]
    outcomes = [one for role in roles if (one := sheet.outcomes.get((entry.name, role))) is not None and one.error is None]
    if len(outcomes) < 3:
        return None
    measured = [read(sheet.folder, one.key) for one in outcomes]
    places = [place for place, kind in enumerate(measured[0].sets) if kind == "forget"]
    _, codes = np.unique([measured[0].clusters[place] for place in places], return_inverse=True)
    rows = np.array([[one.leakage[place] for place in places] for one in measured])
    return (rows, codes) if codes.max() >= 1 else None


def _row(entry: PlannedAttack, rows: FloatArray, codes: NDArray[np.int64], rule: Policy, references: int) -> Sensitivity:
    margin, count = rule.margin_of(entry.name, entry.attack), min(references, len(rows) - 1)
    noise = float(np.std(rows.mean(1), ddof=1))
    errors = [mean_gap(row, np.delete(rows, place, 0), codes, resolution=1.0).cluster_error for place, row in enumerate(rows)]
    error = statistics.median(errors)

    def gap(spread: float) -> float:
        """The smallest gap that is seen where retrains' means differ by so much."""
        # As references with that standard deviation would have it: the floor of `muaudit.statistics.noise_floor`.
        unit = noise_floor(_standard(count), rule.noise_confidence)
        threshold = max(margin, 0.0 if unit is None else unit * spread)
        degrees = float(codes.max() + max(0, count - 1))
        between = Estimate(0.0, error, spread / count**0.5 if count > 1 else 0.0, degrees)
        return min(1.0, detectable_gap(between, threshold, rule.confidence))

    low, high = rates.spread_interval(noise, len(rows) - 1)
    return Sensitivity(
        attack=entry.name, gap=gap(noise), low=gap(low), high=gap(high), margin=margin, noise=noise, retrains=len(rows),
        references=count, units=len(codes), clusters=int(codes.max()) + 1,
    )  # fmt: skip


def _standard(count: int) -> list[float]:
    """So many numbers with standard deviation 1."""
    if count < 2:
        return [0.0] * count
    numbers = np.arange(count, dtype=np.float64)
    return [float(number) for number in (numbers - numbers.mean()) / numbers.std(ddof=1)]
