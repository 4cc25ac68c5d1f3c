"""Leakages of every unit, as attacks of several kinds leave them in a finding."""

import random
from typing import Literal

from muaudit.results import Finding, UnitLeakage

Kind = Literal["graded", "binary"]


def leakages(
    units: int,
    clusters: int,
    *,
    kind: Kind = "graded",
    references: int = 3,
    lift: float = 0.0,
    original: bool = True,
    seed: int = 1,
) -> tuple[UnitLeakage, ...]:
    """Made-up leakages: the target's lie `lift` above the references', the original's near 1.

    Args:
        units: How many.
        clusters: In how many clusters, in turn.
        kind: Any number in [0, 1], or 0 and 1 alone.
        references: How many.
        lift: How far the target lies above them; the first two clusters twice as far.
        original: Whether there is one.
        seed: Of the numbers.

    Returns:
        The leakages, in the order of the units.
    """
    drawn = random.Random(seed)  # noqa: S311 - an example, nothing secret

    def value(centre: float) -> float:
        centre = min(max(centre, 0.02), 0.98)
        if kind == "binary":
            return float(drawn.random() < centre)
        return round(drawn.betavariate(8 * centre, 8 * (1 - centre)), 6)

    made = []
    for number in range(units):
        cluster = number % clusters
        hard = 0.15 + 0.2 * (cluster / clusters)
        made.append(
            UnitLeakage(
                id=f"unit-{number}",
                cluster=f"Person {cluster:02d}",
                target=value(hard + lift * (2 if cluster < 2 else 1)),
                references=tuple(value(hard) for _ in range(references)),
                original=value(0.9) if original else None,
            )
        )
    return tuple(made)


def with_leakages(finding: Finding, made: tuple[UnitLeakage, ...]) -> Finding:
    """The finding with these leakages kept."""
    return finding.model_copy(update={"leakages": made})
