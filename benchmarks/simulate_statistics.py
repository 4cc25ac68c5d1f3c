"""Does the decision rule keep its error rates? Simulated audits whose truth is known, printed as markdown tables.

Run `python benchmarks/simulate_statistics.py`; the tables in docs/statistics.md are its output. `--quick` takes a tenth of
the audits. Every number is seeded.
"""

import argparse
import math
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np
from numpy.typing import NDArray

from muaudit.statistics import holm, mean_gap, noise_floor
from muaudit.worst_cluster import judge_maximum

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Generator = np.random.Generator
Population = Callable[[Generator, int, IntArray], FloatArray]

EQUIVALENCE_CONFIDENCE, NOISE_CONFIDENCE = 0.975, 0.98
MARGIN, CLUSTER_MARGIN = 0.05, 0.25
GUESS = 0.9
"""Leakage of a unit that a model guesses rightly and confidently without having seen it."""


def guesses(rate: float) -> Population:
    """Units that are guessed at a rate, else unknown; independent in every model."""
    return lambda rng, models, codes: np.where(rng.random((models, len(codes))) < rate, GUESS, 0.01)


def normal(rng: Generator, models: int, codes: IntArray) -> FloatArray:
    """Cluster difficulty that models share, cluster noise of each model, unit noise."""
    clusters = codes[-1] + 1
    shared, own = 0.1 * rng.normal(size=(1, clusters)), 0.08 * rng.normal(size=(models, clusters))
    return np.asarray(0.5 + (shared + own)[:, codes] + 0.1 * rng.normal(size=(models, len(codes))))


def binary(rng: Generator, models: int, codes: IntArray) -> FloatArray:
    """Right or wrong, with a rate that varies over clusters and, less, over models within a cluster."""
    clusters = codes[-1] + 1
    rates = rng.beta(2, 2, size=(1, clusters)) + 0.15 * rng.normal(size=(models, clusters))
    return np.asarray((rng.random((models, len(codes))) < np.clip(rates, 0, 1)[:, codes]) * 1.0)


def rare_binary(rng: Generator, models: int, codes: IntArray) -> FloatArray:
    """Right at a rate of 5 % on average, skewed over clusters, anew in every model."""
    rates = rng.beta(0.5, 9.5, size=(models, codes[-1] + 1))
    return np.asarray((rng.random((models, len(codes))) < rates[:, codes]) * 1.0)


def skewed_units(rng: Generator, models: int, codes: IntArray) -> FloatArray:
    """Skewed difficulty of clusters, shared by the models, and skewed unit noise of each."""
    shared = rng.beta(0.5, 4.5, size=(1, codes[-1] + 1))[:, codes]
    return np.clip(shared + rng.beta(0.3, 5.7, size=(models, len(codes))), 0, 1)


def skewed_clusters(rng: Generator, models: int, codes: IntArray) -> FloatArray:
    """Whole clusters that a model knows by chance, anew in every model: the hardest case for the worst cluster."""
    own = rng.beta(0.5, 9.5, size=(models, codes[-1] + 1))[:, codes]
    return np.clip(own + 0.02 * rng.normal(size=(models, len(codes))), 0, 1)


def mixed(rng: Generator, models: int, codes: IntArray) -> FloatArray:
    """Confident guesses at units on top of each model's own cluster noise."""
    own = 0.05 * rng.normal(size=(models, codes[-1] + 1))[:, codes]
    return np.clip(guesses(0.03)(rng, models, codes) + own, 0, 1)


def skewed_target(effects: Callable[[Generator, int], FloatArray]) -> Population:
    """Only the target's clusters differ, with a skewed effect of mean 0.1 that the references lack and match in the mean."""

    def population(rng: Generator, models: int, codes: IntArray) -> FloatArray:
        values = 0.1 + 0.02 * rng.normal(size=(models, len(codes)))
        values[0] += effects(rng, int(codes[-1]) + 1)[codes] - 0.1
        return values

    return population


POPULATIONS: dict[str, Population] = {
    "normal": normal,
    "binary": binary,
    "rare binary": rare_binary,
    "guesses 0.5 %": guesses(0.005),
    "guesses 2 %": guesses(0.02),
    "guesses 5 %": guesses(0.05),
    "guesses and cluster noise": mixed,
    "skewed units": skewed_units,
    "skewed clusters": skewed_clusters,
    "exponential target": skewed_target(lambda rng, clusters: 0.1 * rng.exponential(size=clusters)),
    "beta target": skewed_target(lambda rng, clusters: rng.beta(0.3, 2.7, size=clusters)),
    "lognormal target": skewed_target(lambda rng, clusters: 0.1 * rng.lognormal(-0.5, 1, size=clusters)),
}
IDENTICAL = [name for name in POPULATIONS if not name.endswith("target")]


def draw(
    name: str, rng: Generator, references: int, clusters: int, sizes: tuple[int, int], main_effect: float = 0.0
) -> tuple[FloatArray, IntArray]:
    """Leakage of target and references [K + 1, n] and clusters [n]; main effects of all but the target are centred."""
    codes = np.repeat(np.arange(clusters), rng.integers(sizes[0], sizes[1] + 1, clusters))
    values = POPULATIONS[name](rng, references + 1, codes)
    return values + main_effect * rng.normal(size=(references + 1, 1)), codes


def seeded(*key: object) -> Generator:
    """A generator for one cell of a table, whatever else is run."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def coverage(name: str, clusters: int, references: int, main_effect: float, audits: int) -> tuple[float, float, float]:
    """Shares of audits: interval covers the true gap, t alone would, upper bound lies below the true gap."""
    rng = seeded("coverage", name, clusters, references, main_effect)
    hits = np.zeros(3)
    for _ in range(audits):
        values, codes = draw(name, rng, references, clusters, (1, 20))
        values[1:] += main_effect * rng.normal(size=(references, 1))
        target, others = values[0], values[1:]
        estimate = mean_gap(target, others, codes, rng=rng, resolution=1.0, draws=1_999)
        low, high = estimate.interval(0.95)
        student_low, student_high = mean_gap(target, others, codes, resolution=1.0).interval(0.95)
        hits += low <= 0 <= high, student_low <= 0 <= student_high, estimate.upper(EQUIVALENCE_CONFIDENCE) < 0
    covers, student, passes = (float(share) for share in hits / audits)
    return covers, student, passes


def levels(target: FloatArray, references: FloatArray, codes: IntArray, rng: Generator) -> tuple[float, float]:
    """Ratio p over alpha of the mean claim and of the cluster claim, infinite where none is made."""
    floor = noise_floor([float(row.mean()) for row in references], NOISE_CONFIDENCE) or 0.0
    threshold = max(MARGIN, floor)
    mean = math.inf
    if float((target - references.mean(0)).mean()) > threshold:
        estimate = mean_gap(target, references, codes, rng=rng, resolution=1.0)
        if estimate.interval(0.95)[0] > threshold:
            mean = estimate.p_value(threshold) / 0.025
    if np.max(np.bincount(codes, target - references.mean(0)) / np.bincount(codes)) <= CLUSTER_MARGIN:
        return mean, math.inf  # nothing can be flagged, so the null need not be made
    maximum = judge_maximum(target, references, codes, confidence=0.99, margin=CLUSTER_MARGIN, floor=floor)
    return mean, float(maximum.p_values[maximum.flagged].min()) / 0.01 if maximum.flagged.any() else math.inf


def false_alarms(name: str, references: int, main_effect: float, audits: int) -> tuple[float, float]:
    """Shares of honest audits of two attacks that fail, and of references that a negative control flags."""
    rng = seeded("alarms", name, references, main_effect)
    failed, flagged, controls = 0, 0, 0
    for audit in range(audits):
        claims: list[float] = []
        for _ in range(2):
            values, codes = draw(name, rng, references, int(rng.integers(20, 61)), (1, 20), main_effect)
            values = np.clip(values, 0, 1)
            claims += levels(values[0], values[1:], codes, rng)
            if references >= 3 and audit < audits // 4:
                judged = levels(values[1], values[2:], codes, rng)
                flagged, controls = flagged + (min(judged) <= 1), controls + 1
        failed += any(holm(claims))
    return failed / audits, flagged / controls if controls else math.nan


def power(references: int, clusters: int, sizes: tuple[int, int], audits: int) -> tuple[float, float, float]:
    """One cluster leaks 0.95 in one of two attacks: shares failed after Holm, only that one flagged; median threshold."""
    rng = seeded("power", references, clusters, sizes)
    failed, right, thresholds = 0, 0, []
    for _ in range(audits):
        values, codes = draw("guesses 2 %", rng, references, clusters, sizes)
        remembered = int(rng.integers(clusters))
        values[0][codes == remembered] = 0.95
        floor = noise_floor([float(row.mean()) for row in values[1:]], NOISE_CONFIDENCE) or 0.0
        maximum = judge_maximum(values[0], values[1:], codes, confidence=0.99, margin=CLUSTER_MARGIN, floor=floor)
        failed += bool(maximum.flagged[remembered]) and maximum.p_values[remembered] / 0.01 * 4 <= 1
        right += bool(maximum.flagged.sum() == 1 and maximum.flagged[remembered])
        thresholds.append(maximum.smallest_detectable_gap)
    return failed / audits, right / audits, float(np.median(thresholds))


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.2f}".rstrip("0").rstrip(".")


def _table(title: str, columns: list[str], rows: Iterator[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def _coverage_rows(pool: ProcessPoolExecutor, audits: int) -> Iterator[list[str]]:
    symmetric = ["normal", "binary", "rare binary", "guesses 2 %"]
    cells = list(product(symmetric, (20, 40, 60), (1, 3), (0.0,))) + list(product(symmetric[:2], (20, 60), (2,), (0.0,)))
    cells += list(product(["exponential target", "beta target", "lognormal target"], (20, 40, 60), (1,), (0.0,)))
    cells += list(product(["normal"], (20, 40), (2, 3), (0.02, 0.05)))
    for cell, shares in zip(cells, pool.map(coverage, *zip(*cells, strict=True), [audits] * len(cells)), strict=True):
        yield [cell[0], *(str(value) for value in cell[1:]), *(_percent(share) for share in shares)]


def _alarm_rows(pool: ProcessPoolExecutor, audits: int) -> Iterator[list[str]]:
    cells = list(product(IDENTICAL, (1, 2, 3), (0.0, 0.02))) + list(
        product(["normal", "guesses 2 %"], (1, 2, 3, 5), (0.05, 0.1))
    )
    for cell, shares in zip(cells, pool.map(false_alarms, *zip(*cells, strict=True), [audits] * len(cells)), strict=True):
        yield [cell[0], *(str(value) for value in cell[1:]), *(_percent(share) for share in shares)]


def _power_rows(pool: ProcessPoolExecutor, audits: int) -> Iterator[list[str]]:
    cells = list(product((1, 2, 3), (30, 40), ((1, 1), (4, 4), (6, 6), (8, 8), (4, 8))))
    for cell, shares in zip(cells, pool.map(power, *zip(*cells, strict=True), [audits] * len(cells)), strict=True):
        references, clusters, (low, high) = cell
        sizes = str(low) if low == high else f"{low} to {high}"
        yield [str(references), str(clusters), sizes, _percent(shares[0]), _percent(shares[1]), f"{shares[2]:.2f}"]


def main() -> None:
    """Runs all simulations and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the audits")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    share = 10 if options.quick else 1
    with ProcessPoolExecutor(options.workers) as pool:
        _table(
            f"Intervals (clusters of 1 to 20 units, {1000 // share} audits a row; %)",
            ["population", "clusters", "references", "main effect", "covers", "t alone covers", "passes at the margin"],
            _coverage_rows(pool, 1000 // share),
        )
        _table(
            f"False alarms (20 to 60 clusters of 1 to 20 units, {2000 // share} audits of two attacks a row; %)",
            ["population", "references", "main effect", "audits that fail", "references flagged by a negative control"],
            _alarm_rows(pool, 2000 // share),
        )
        _table(
            f"One remembered cluster (leakage 0.95; guesses 2 % elsewhere; {1000 // share} audits a row; %)",
            ["references", "clusters", "units each", "fails after Holm", "it alone is flagged", "median threshold"],
            _power_rows(pool, 1000 // share),
        )


if __name__ == "__main__":
    main()
