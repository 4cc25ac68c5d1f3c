"""What a finding shows beside its verdict: clusters, units, supporting scores, curves, notes. Nothing here decides anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muaudit.attack import Measurement
from muaudit.estimators.membership import privacy_leakage
from muaudit.estimators.similarity import average_gap
from muaudit.results import (
    ClusterResult,
    Curve,
    CurveLine,
    HeatMap,
    KolmogorovSmirnov,
    PictureRow,
    ScoreResult,
    UnitLeakage,
    UnitResult,
    WorstClusters,
)
from muaudit.statistics import mean_gap
from muaudit.thumbnails import blurred
from muaudit.worst_cluster import Maximum

FloatArray = NDArray[np.float64]

SHOWN_CLUSTERS = 10
SHOWN_UNITS = 8
SHOWN_COLUMNS = 60
SHOWN_PICTURES = 6
DISTRIBUTIONS = ("truth_ratio", "absolute_error")
"""Scores whose name starts so get a two-sample test: of truth ratios it is what TOFU publishes as forget quality (as its
logarithm), of a regressor's errors it stands for accuracy."""

UNLEARNING_TABLE = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia_efficacy")
"""The summaries whose mean distance from retrained models is SalUn's average gap."""


@dataclass(frozen=True)
class Panel:
    """The units of one set on every model, as arrays over the n units."""

    units: list[str]
    names: list[str]
    codes: NDArray[np.int64]
    chosen: NDArray[np.int64]
    target: Measurement
    references: Sequence[Measurement]
    original: Measurement | None

    @classmethod
    def of(
        cls, chosen: NDArray[np.int64], target: Measurement, references: Sequence[Measurement], original: Measurement | None
    ) -> "Panel":
        """The panel of the units at the chosen positions of every measurement."""
        names, codes = np.unique([target.clusters[index] for index in chosen], return_inverse=True)
        units = [target.units[index] for index in chosen]
        return cls(units, names.tolist(), codes, chosen, target, references, original)

    def column(self, measurement: Measurement, score: str | None = None) -> FloatArray:
        """One model's leakage, or one of its supporting scores."""
        return np.array(measurement.leakage if score is None else measurement.scores[score], dtype=np.float64)[self.chosen]

    def rows(self, score: str | None = None) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """Target [n], references [K, n] and original [n]."""
        original = self.original
        known = original is not None and (score is None or score in original.scores)
        return (
            self.column(self.target, score),
            np.stack([self.column(reference, score) for reference in self.references]),
            self.column(original, score) if original is not None and known else None,
        )


def roles(references: Sequence[Measurement], target: Measurement, original: Measurement | None) -> dict[str, Measurement]:
    """The measurements by model role: `target`, `reference 1` and on, `original` where there is one."""
    named = {"target": target} | {f"reference {number}": one for number, one in enumerate(references, 1)}
    return named if original is None else named | {"original": original}


def worst_clusters(panel: Panel, maximum: Maximum, *, margin: float, two_sided: bool) -> WorstClusters:
    """The clusters with the largest gaps and all flagged ones, with the p-value of the largest gap beyond the margin."""
    target, references, _ = panel.rows()
    sizes = np.bincount(panel.codes)
    size_of_gap = np.abs(maximum.gaps) if two_sided else maximum.gaps
    order = np.argsort(-size_of_gap, kind="stable")
    shown = [index for rank, index in enumerate(order) if rank < SHOWN_CLUSTERS or maximum.flagged[index]]
    means = [np.bincount(panel.codes, row) / sizes for row in (target, references.mean(0))]
    beyond = size_of_gap > margin
    return WorstClusters(
        clusters=tuple(
            ClusterResult(
                cluster=panel.names[index],
                units=int(sizes[index]),
                target=float(means[0][index]),
                references=float(means[1][index]),
                gap=float(maximum.gaps[index]),
                threshold=float(maximum.thresholds[index]),
                flagged=bool(maximum.flagged[index]),
            )
            for index in shown
        ),
        p_value=float(maximum.p_values[beyond if beyond.any() else slice(None)].min()),
        margin=margin,
        smallest_detectable_gap=maximum.smallest_detectable_gap,
        null="the references, each audited against the others"
        if len(references) > 1
        else "the spread of the one reference's own units and clusters, for want of a second reference",
    )


def scores(panel: Panel, confidence: float, *, forget: bool) -> tuple[ScoreResult, ...]:
    """Supporting scores that every compared model has, by name."""
    results = []
    for name in sorted(panel.target.scores):
        if any(name not in reference.scores for reference in panel.references):
            continue
        target, references, original = panel.rows(name)
        estimate = mean_gap(target, references, panel.codes)
        tests = enumerate(references, 1) if forget and name.startswith(DISTRIBUTIONS) else ()
        results.append(
            ScoreResult(
                name=name,
                target=float(target.mean()),
                references=float(references.mean()),
                original=None if original is None else float(original.mean()),
                gap=estimate.value,
                interval=estimate.interval(confidence),
                ks=tuple(_kolmogorov_smirnov(f"reference {number}", target, row) for number, row in tests),
            )
        )
    return tuple(results)


def _kolmogorov_smirnov(name: str, target: FloatArray, reference: FloatArray) -> KolmogorovSmirnov:
    test = stats.ks_2samp(target, reference)
    return KolmogorovSmirnov(reference=name, statistic=float(test.statistic), p_value=float(test.pvalue))


def curves(models: Mapping[str, Measurement]) -> tuple[Curve, ...]:
    """The target's curves, with a line for every model that has them."""
    return tuple(
        Curve(
            name=name,
            x_label=curve.x_label,
            y_label=curve.y_label,
            x=curve.x,
            lines=tuple(
                CurveLine(model=role, y=one.curves[name].y)
                for role, one in models.items()
                if name in one.curves and one.curves[name].x == curve.x
            ),
        )
        for name, curve in sorted(models["target"].curves.items())
    )


def heat_maps(panel: Panel) -> tuple[HeatMap, ...]:
    """The target's numbers by layer and unit, and beside them the references' means, for the units with the largest gaps."""
    target, references, _ = panel.rows()
    order = np.argsort(references.mean(0) - target, kind="stable")[:SHOWN_COLUMNS]
    maps = []
    for name, shown in sorted(panel.target.heat_maps.items()):
        for model, measured in (("target", [panel.target]), ("references", panel.references)):
            layers = [one.heat_maps[name] for one in measured if name in one.heat_maps]
            if not layers or any(one.rows != shown.rows for one in layers):
                continue
            # A layer that says nothing about a unit in one model says nothing about it in their mean.
            stack = np.array([[[np.nan if v is None else v for v in row] for row in one.values] for one in layers], dtype=float)
            mean = stack.mean(0)[:, panel.chosen[order]]
            maps.append(
                HeatMap(
                    name=name,
                    model=model,
                    rows=shown.rows,
                    columns=tuple(panel.units[index] for index in order),
                    values=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in mean),
                    total=len(panel.units),
                )
            )
    return tuple(maps)


def summaries(models: Mapping[str, Measurement]) -> dict[str, dict[str, float]]:
    """Each model's summaries, by role, and what follows from setting them against the references'.

    To those with MUSE's AUC, PrivLeak against the references' mean AUC is added; to those with SalUn's table, its average gap;
    to those with absolute errors, the distance of their distribution over the forget set from the references'.
    """
    shown = {role: dict(one.summaries) for role, one in models.items() if one.summaries}
    retrained = {role: one for role, one in shown.items() if role.startswith("reference")}
    aucs = [one["muse_auc"] for one in retrained.values() if "muse_auc" in one]
    if aucs and (mean := float(np.mean(aucs))) > 0:
        for one in shown.values():
            if "muse_auc" in one:
                one["muse_priv_leak"] = privacy_leakage(one["muse_auc"], mean)
    table = [name for name in UNLEARNING_TABLE if retrained and all(name in one for one in shown.values())]
    if table:
        usual = {name: float(np.mean([one[name] for one in retrained.values()])) for name in table}
        for one in shown.values():
            one["average_gap"] = average_gap({name: one[name] for name in table}, usual)
    for role, distance in _error_distances(models).items():
        shown[role]["absolute_error_wasserstein"] = distance
    return shown


def _error_distances(models: Mapping[str, Measurement]) -> dict[str, float]:
    """Mean Wasserstein distance of each model's absolute errors on the forget set from the other references'."""
    errors = {
        role: [error for error, kind in zip(one.scores["absolute_error"], one.sets, strict=True) if kind == "forget"]
        for role, one in models.items()
        if "absolute_error" in one.scores and one.summaries
    }
    found = {}
    for role, own in errors.items():
        others = [other for name, other in errors.items() if name.startswith("reference") and name != role]
        if others:
            found[role] = float(np.mean([stats.wasserstein_distance(own, other) for other in others]))
    return found


def worst_units(panel: Panel, models: Mapping[str, Measurement], *, two_sided: bool) -> tuple[UnitResult, ...]:
    """The units with the largest gaps, largest first, with what each model said about them."""
    target, references, original = panel.rows()
    gaps = target - references.mean(0)
    order = np.argsort(-np.abs(gaps) if two_sided else -gaps, kind="stable")[:SHOWN_UNITS]
    return tuple(
        UnitResult(
            id=panel.units[index],
            cluster=panel.names[panel.codes[index]],
            target=float(target[index]),
            references=float(references[:, index].mean()),
            original=None if original is None else float(original[index]),
            gap=float(gaps[index]),
            transcripts={
                role: one.transcripts[panel.units[index]]
                for role, one in models.items()
                if panel.units[index] in one.transcripts
            },
        )
        for index in order
    )


def leakages(panel: Panel) -> tuple[UnitLeakage, ...]:
    """Every unit's leakage on every model."""
    target, references, original = panel.rows()
    return tuple(
        UnitLeakage(
            id=unit,
            cluster=panel.names[panel.codes[place]],
            target=float(target[place]),
            references=tuple(references[:, place].tolist()),
            original=None if original is None else float(original[place]),
        )
        for place, unit in enumerate(panel.units)
    )


def pictures(
    panel: Panel, models: Mapping[str, Measurement], *, how: Literal["shown", "blurred", "left_out"], two_sided: bool
) -> tuple[PictureRow, ...]:
    """What models drew of the units with the largest gaps: the target, the first reference and the original."""
    if how == "left_out":
        return ()
    target, references, _ = panel.rows()
    gaps = target - references.mean(0)
    order = np.argsort(-np.abs(gaps) if two_sided else -gaps, kind="stable")
    units = [panel.units[index] for index in order if panel.units[index] in panel.target.pictures][:SHOWN_PICTURES]
    rows = []
    for unit in units:
        drawn = {
            role: one.pictures[unit]
            for role, one in models.items()
            if role in ("target", "reference 1", "original") and unit in one.pictures
        }
        if how == "blurred":
            drawn = {
                role: tuple(one.model_copy(update={"png": blurred(one.png)}) for one in row) for role, row in drawn.items()
            }
        rows.append(PictureRow(unit=unit, models=drawn))
    return tuple(rows)


def worst_facets(results: Sequence[ScoreResult], facets: Mapping[str, Sequence[str]], *, two_sided: bool) -> tuple[str, ...]:
    """Names the alternative with the largest gap, for every family of alternatives that the target was measured in.

    With two sides, a gap far below zero gives as much away as one far above.
    """
    said = []
    for facet, names in sorted(facets.items()):
        found = [result for result in results if result.name in names]
        if found:
            worst = max(found, key=lambda result: abs(result.gap) if two_sided else result.gap)
            low, high = worst.interval
            said.append(f"worst {facet}: {worst.name}, gap {worst.gap:+.3f} [{low:+.3f}, {high:+.3f}], of {len(found)}")
    return tuple(said)


def notes(models: Mapping[str, Measurement], references: int) -> tuple[str, ...]:
    """The measurements' notes, each once, with the models that it is about unless it is about all."""
    said: dict[str, list[str]] = {}
    for role, measurement in models.items():
        for note in measurement.notes:
            said.setdefault(note, []).append(role)
    notes = [note if len(who) == len(models) else f"{', '.join(who)}: {note}" for note, who in said.items()]
    if references == 1:
        notes.append("training noise was not estimated: there is one reference, so the margin alone decides")
    return tuple(notes)
