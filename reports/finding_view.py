"""A finding with its pictures and what else the page needs beside it, chosen by what the finding holds."""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from muaudit.reports import distributions, figures, unit_figures
from muaudit.reports.distributions import Compared, Histogram, RocOfUnits
from muaudit.reports.drawing import Picture
from muaudit.results import Control, Curve, Finding, HeatMap


class Album:
    """The pictures of one page; keeps the style rules that they need."""

    def __init__(self) -> None:
        self._rules: list[str] = []

    def add(self, picture: Picture | None) -> Markup | None:
        """Takes a picture in.

        Args:
            picture: The picture, or None where there is nothing to draw.

        Returns:
            Its SVG element for the page.
        """
        if picture is None:
            return None
        self._rules.append(picture.css)
        return Markup(picture.svg)  # noqa: S704 - our own SVG; its text is escaped by matplotlib

    @property
    def css(self) -> str:
        """The rules of all pictures taken in."""
        return "".join(self._rules)


@dataclass(frozen=True)
class Chart:
    """A curve and its picture."""

    curve: Curve
    svg: Markup


@dataclass(frozen=True)
class Map:
    """The heat maps of one kind, each with its picture, and the means by layer: its name, and one number a heat map."""

    name: str
    drawn: tuple[tuple[HeatMap, Markup], ...]
    means: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True)
class UnitsView:
    """Every unit's leakage in pictures, each with the numbers behind it.

    Attributes:
        measured: What a unit's number is: leakage, or score on the retain set.
        histogram: The distributions.
        roc: The ROC curve, where leakages are graded and units many.
        units: The units to list; `unit_total` are drawn.
        clusters: The clusters to show, of `cluster_total`; none where each unit is a cluster of its own.
    """

    measured: str
    histogram: Histogram
    histogram_svg: Markup | None
    roc: RocOfUnits | None
    roc_svg: Markup | None
    units: tuple[Compared, ...]
    unit_total: int
    units_svg: Markup | None
    clusters: tuple[Compared, ...]
    cluster_total: int
    clusters_svg: Markup | None


@dataclass(frozen=True)
class FindingView:
    """A finding with what the page needs beside it; controls are paired with whether they should be flagged."""

    number: int
    finding: Finding
    curves: tuple[Chart, ...]
    maps: tuple[Map, ...]
    leakages: UnitsView | None
    controls: tuple[tuple[Control, bool], ...]
    summary_names: tuple[str, ...]

    @property
    def controls_right(self) -> int:
        """How many controls were judged as they should be."""
        return sum(control.flagged == expected for control, expected in self.controls)


def view(number: int, finding: Finding, album: Album) -> FindingView:
    """Makes a finding ready for the page.

    Args:
        number: Its place in the report, from 1; part of the names of its pictures.
        finding: The finding.
        album: Takes its pictures in.

    Returns:
        The finding with its pictures.
    """
    judged = finding.controls
    positive = ((judged.positive, True),) if judged and judged.positive else ()
    return FindingView(
        number=number,
        finding=finding,
        curves=charts(finding.curves, f"curve-{number}", album),
        maps=tuple(_maps(number, finding, album)),
        leakages=_units(number, finding, album),
        controls=(*positive, *((control, False) for control in (judged.negative if judged else ()))),
        summary_names=tuple(dict.fromkeys(name for values in finding.summaries.values() for name in values)),
    )


def charts(curves: Iterable[Curve], key: str, album: Album) -> tuple[Chart, ...]:
    """The curves that have a point, each with its picture."""
    drawn = [(curve, album.add(figures.curve(curve, f"{key}-{place}"))) for place, curve in enumerate(curves)]
    return tuple(Chart(curve, svg) for curve, svg in drawn if svg is not None)


def _units(number: int, finding: Finding, album: Album) -> UnitsView | None:
    shown = distributions.histogram(finding)
    if shown is None:
        return None
    measured = "score" if finding.measures == "retention" else "leakage"
    roc, units, clusters = distributions.roc(finding), distributions.units(finding), distributions.clusters(finding)
    if len(clusters) == len(units) or len(clusters) < 2:
        clusters = ()
    few = clusters[: distributions.CLUSTERS]
    return UnitsView(
        measured=measured,
        histogram=shown,
        histogram_svg=album.add(unit_figures.histogram(shown, f"histogram-{number}", measured)),
        roc=roc,
        roc_svg=album.add(unit_figures.roc(roc, f"roc-{number}") if roc else None),
        units=units[: distributions.UNITS],
        unit_total=len(units),
        units_svg=album.add(unit_figures.units(units, f"units-{number}", measured) if units else None),
        clusters=few,
        cluster_total=len(clusters),
        clusters_svg=album.add(unit_figures.clusters(few, f"clusters-{number}", measured) if few else None),
    )


def _maps(number: int, finding: Finding, album: Album) -> Iterable[Map]:
    drawn = [(one, album.add(figures.heat_map(one, f"map-{number}-{place}"))) for place, one in enumerate(finding.heat_maps)]
    for name in dict.fromkeys(one.name for one in finding.heat_maps):
        alike = tuple((one, svg) for one, svg in drawn if one.name == name and svg is not None)
        rows = alike[0][0].rows if alike else ()
        yield Map(
            name, alike, tuple((row, tuple(_mean(one.values[place]) for one, _ in alike)) for place, row in enumerate(rows))
        )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
