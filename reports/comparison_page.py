"""A comparison as one HTML file, by the same rules as a report's page: no script, nothing loaded, every string escaped."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from muaudit.reports import drawing, html
from muaudit.reports.changes import Change
from muaudit.reports.comparison import Comparison, Row
from muaudit.reports.comparison_table import MEANINGS, clusters
from muaudit.reports.drawing import COLOURS, Picture, short
from muaudit.reports.finding_view import Album
from muaudit.reports.text import SYMBOLS, named, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TREND = 3
"""Fewest reports of which a line is drawn."""

TONES = {"worse": "fail", "better": "pass", "moved": "inconclusive", "open": "skipped", "unknown": "skipped"}
SIGNS = {"worse": "▲", "better": "▼", "moved": "⇄", "open": "\N{EN DASH}", "unknown": "?"}
"""One sign a change, so that colour is never the only cue."""


@dataclass(frozen=True)
class Trend:
    """A finding's picture over all reports."""

    row: Row
    svg: Markup


def render(compared: Comparison) -> str:
    """Renders a comparison.

    Args:
        compared: The comparison.

    Returns:
        One HTML document, the same bytes for the same comparison.
    """
    album = Album()
    labels = [entry.label for entry in compared.entries]
    trends = []
    if len(labels) >= TREND:
        for place, row in enumerate(compared.rows):
            svg = album.add(trend(row, labels, f"trend-{place}"))
            if svg is not None:
                trends.append(Trend(row, svg))
    changes = [album.add(differences(step.changes, f"step-{place}")) for place, step in enumerate(compared.steps)]
    return html.page(
        "comparison.html.j2",
        album.css,
        compared=compared,
        labels=labels,
        trends=trends,
        pictures=changes,
        symbols=SYMBOLS,
        meanings=MEANINGS,
        tones=TONES,
        signs=SIGNS,
        name=lambda one: named(one.attack, one.measures),
        clusters=clusters,
    )


def trend(row: Row, labels: list[str], key: str) -> Picture | None:
    """One finding's gap and interval in every report, in order, with the margin.

    Args:
        row: The finding.
        labels: What the reports are called, in order.
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture; None where fewer than two reports have a gap, or where their gaps may not be set against each other.
    """
    points = [(place, cell, cell.gap) for place, cell in enumerate(row.cells, 1) if cell is not None and cell.gap is not None]
    if len(points) < 2 or row.alike is not None:
        return None
    with drawing.style():
        figure = drawing.canvas(drawing.HALF, 220)
        axes = drawing.panel(figure, left=50, right=12, bottom=40, top=24)
        for place, cell, gap in points:
            colour = COLOURS[cell.verdict.value]
            if cell.margin is not None:
                band: dict[str, Any] = {"color": COLOURS["band"], "linewidth": 0, "zorder": 0}
                axes.fill_between([place - 0.5, place + 0.5], -cell.margin, cell.margin, **band)
            if cell.interval is not None:
                axes.vlines(place, *cell.interval, color=colour, linewidth=2.2, zorder=3)
            axes.plot([place], [gap], "o" if row.measures == "leakage" else "s", color=colour, markersize=6.5, zorder=4)
        axes.plot(
            [place for place, _, _ in points], [gap for _, _, gap in points], color=COLOURS["target"], linewidth=1, zorder=2
        )
        axes.axhline(0, color=COLOURS["ink"], linewidth=0.8, zorder=1)
        axes.set_xlim(0.5, len(labels) + 0.5)
        axes.set_xticks(range(1, len(labels) + 1))
        axes.set_xlabel("report, in the order given")
        axes.set_ylabel("gap")
        axes.set_title(short(named(row.attack, row.measures), 42), loc="left", fontsize=11)
        told = "; ".join(f"{labels[place - 1]} {signed(gap)} {cell.verdict.value}" for place, cell, gap in points)
        return drawing.picture(figure, key, f"Trend of {named(row.attack, row.measures)}: {told}", half=True)  # fmt: skip


def differences(changes: tuple[Change, ...], key: str) -> Picture | None:
    """A forest plot of the differences between two reports.

    Args:
        changes: What changed.
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture; None where no difference has an interval.
    """
    drawn = [one for one in changes if one.difference is not None and one.interval is not None]
    if not drawn:
        return None
    with drawing.style():
        figure, axes = drawing.wide(28 * len(drawn) + 44, left=205, right=150, bottom=38, top=6)
        for row, one in enumerate(drawn):
            _difference(axes, row, one)
        edges = [edge for one in drawn for edge in one.interval or ()]
        low, high = min([*edges, -0.05]), max([*edges, 0.05])
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8, zorder=1)
        axes.set_xlabel("difference of the gaps: after minus before")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        told = "; ".join(f"{named(one.attack, one.measures)} {MEANINGS[one.means]}" for one in drawn)
        return drawing.picture(figure, key, f"Differences of the gaps: {told}")


def _difference(axes: "Axes", row: int, one: Change) -> None:
    if one.difference is None or one.interval is None:
        return
    colour = COLOURS[TONES[one.means]]
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
    axes.text(-0.03, row, short(named(one.attack, one.measures), 34), ha="right", fontsize=10.5, **beside)
    axes.hlines(row, *one.interval, color=colour, linewidth=2.4, zorder=3)
    axes.plot([one.difference], [row], "s" if one.measures == "retention" else "o", color=colour, markersize=6.5, zorder=4)
    axes.text(1.03, row, f"{SIGNS[one.means]} {MEANINGS[one.means]}", color=colour, **beside)
