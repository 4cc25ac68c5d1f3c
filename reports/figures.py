"""Pictures of a report's findings: forest plot, curves along a budget, heat maps of layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muaudit.reports.drawing import COLOURS, Picture, picture, short, style, wide
from muaudit.reports.text import SYMBOLS, interval, name_of, signed
from muaudit.results import Curve, Finding, HeatMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

LOGARITHMIC = ", log10"
"""End of the labels of a curve whose numbers are decimal logarithms of shares; its axes show the shares themselves."""

SHADES = 8
"""Steps from 0 to 1 in a heat map."""

ROW = 30
DASHES = ((3, 2), (1, 1.5), (5, 1.5), (4, 1.5, 1, 1.5))


def forest(findings: Sequence[Finding], key: str = "forest") -> Picture | None:
    """A forest plot: each finding's gap, interval, margin band and noise floor.

    Args:
        findings: The findings, one row each; those without a gap say why in a word.
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture, or None where no finding has a gap.
    """
    drawn = [finding for finding in findings if finding.gap is not None]
    if not drawn:
        return None
    with style():
        figure, axes = wide(ROW * len(findings) + 40, left=205, right=165, bottom=36, top=4)
        for row, finding in enumerate(findings):
            _forest_row(axes, row, finding)
        edges = [edge for finding in drawn for edge in (*(finding.interval or ()), finding.margin, finding.noise_floor) if edge]
        low, high = min([*edges, -0.05]), max([*edges, 0.05])
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.set_ylim(len(findings) - 0.5, -0.5)
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.8, zorder=1)
        axes.set_xlabel("gap: target minus references")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        told = "; ".join(f"{name_of(one)} {signed(one.gap)} {one.verdict.value}" for one in drawn if one.gap is not None)
        return picture(figure, key, f"Forest plot of the gap of every finding: {told}")


def curve(line_chart: Curve, key: str) -> Picture | None:
    """A line chart of one curve: target, references and original along a budget.

    Args:
        line_chart: The curve.
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture, or None where the curve has no point.
    """
    if not line_chart.x or not line_chart.lines:
        return None
    with style():
        figure, axes = wide(310, left=60, right=150, bottom=46, top=12)
        for number, line in enumerate(line_chart.lines):
            axes.plot(line_chart.x, line.y, **_line(line.model, number))
        highest = max((y for line in line_chart.lines for y in line.y), default=1.0)
        lowest = min((y for line in line_chart.lines for y in line.y), default=0.0)
        axes.set_ylim(min(0.0, 1.08 * lowest), max(1.08 * highest, 0.1))
        cut = LOGARITHMIC if _is_log_log(line_chart) else ""
        axes.set_xlabel(short(line_chart.x_label.removesuffix(cut), 60))
        axes.set_ylabel(short(line_chart.y_label.removesuffix(cut), 40))
        if _is_log_log(line_chart):
            axes.set_ylim(1.05 * lowest, max(highest, 0.0) + 0.05)
            least = max(min(line_chart.x), lowest)
            axes.plot([least, 0], [least, 0], color=COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
            _powers(axes.xaxis)
            _powers(axes.yaxis)
        elif len(line_chart.x) <= 10:
            axes.set_xticks(line_chart.x, [f"{x:g}" for x in line_chart.x])
        axes.grid(axis="y", color=COLOURS["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        names = [" " + short(line.model, 18) for line in line_chart.lines]  # matplotlib leaves out names that start with _
        axes.legend(
            axes.lines[: len(names)], names, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6
        )
        told = "; ".join(f"{line.model} from {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in line_chart.lines if line.y)
        return picture(figure, key, f"Line chart, {line_chart.name}: {told}")


def _is_log_log(line_chart: Curve) -> bool:
    """Whether both axes hold decimal logarithms of shares, as a ROC curve's do."""
    values = [*line_chart.x, *(y for line in line_chart.lines for y in line.y)]
    named = line_chart.x_label.endswith(LOGARITHMIC) and line_chart.y_label.endswith(LOGARITHMIC)
    return named and all(-12 <= value <= 0 for value in values)


def _powers(axis: "Axis") -> None:
    """Shows decimal logarithms as the numbers that they are of: 0.01, 0.1, 1."""
    from matplotlib.ticker import MultipleLocator

    axis.set_major_locator(MultipleLocator(1))
    axis.set_major_formatter(lambda value, _: f"{10**value:g}")


def heat_map(shown: HeatMap, key: str) -> Picture | None:
    """A heat map of one model: layers, the last on top, by units.

    Args:
        shown: The numbers, in [0, 1].
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture, or None where there is no cell. Cells without a number stay empty.
    """
    if not shown.rows or not shown.columns:
        return None
    cells: list[list[tuple[int, int]]] = [[] for _ in range(SHADES)]
    for row, values in enumerate(shown.values):
        for column, value in enumerate(values):
            if value is not None:
                cells[min(int(value * SHADES), SHADES - 1)].append((column, row))
    with style():
        height = max(4, min(26, 600 // len(shown.rows)))
        figure, axes = wide(height * len(shown.rows) + 62, left=84, right=80, bottom=46, top=16)
        for shade, places in enumerate(cells):
            squares(axes, places, shade)
        axes.set_xlim(0, len(shown.columns))
        axes.set_ylim(0, len(shown.rows))
        step = -(-len(shown.rows) * 14 // (height * len(shown.rows)))
        axes.set_yticks([row + 0.5 for row in range(len(shown.rows))][::step], [short(name, 12) for name in shown.rows][::step])
        axes.set_xticks([])
        few = "" if shown.total == len(shown.columns) else f"the {len(shown.columns)} with the largest gaps, of {shown.total}"
        axes.set_xlabel(f"units, largest gap first{': ' if few else ''}{few}")
        axes.set_title(short(shown.model, 60), loc="left", fontsize=11)
        for shade in range(SHADES):
            squares(axes, [(0, shade)], shade, scale=True)
        beside: dict[str, Any] = {"transform": axes.transAxes, "color": COLOURS["soft"], "clip_on": False, "fontsize": 9.5}
        axes.text(1.06, 0.0, "0", va="bottom", **beside)
        axes.text(1.06, 1.0, "1", va="top", **beside)
        known = [[value for value in row if value is not None] for row in shown.values]
        means = "; ".join(f"{name} {sum(row) / len(row):.2f}" for name, row in zip(shown.rows, known, strict=True) if row)
        return picture(figure, key, f"Heat map, {shown.name}, {shown.model}: mean by layer: {means}")


def squares(axes: "Axes", places: Sequence[tuple[int, int]], shade: int, *, scale: bool = False) -> None:
    """Cells of one shade as one path; with `scale`, a step of the scale at the right."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not places:
        return
    width, height, left = (0.025, 1 / SHADES, 1.03) if scale else (1.0, 1.0, 0.0)
    corners = [
        (left + (x + dx) * width, (y + dy) * height) for x, y in places for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
    ]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(places)
    colour = COLOURS["target"] if shade else COLOURS["band"]
    where = {"transform": axes.transAxes, "clip_on": False} if scale else {}
    alpha = shade / (SHADES - 1) if shade else 1.0
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=colour, edgecolor="none", linewidth=0, alpha=alpha, **where))


def _forest_row(axes: "Axes", row: int, finding: Finding) -> None:
    colour = COLOURS[finding.verdict.value]
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
    axes.text(-0.03, row, short(name_of(finding), 34), ha="right", fontsize=10.5, **beside)
    word = f"{SYMBOLS[finding.verdict]} {finding.verdict.value}"
    if finding.gap is None:
        axes.text(1.03, row, word, color=colour, **beside)
        return
    if finding.margin is not None:
        axes.fill_betweenx(
            [row - 0.36, row + 0.36], -finding.margin, finding.margin, color=COLOURS["band"], linewidth=0, zorder=0
        )
    if finding.noise_floor is not None:
        axes.vlines(finding.noise_floor, row - 0.36, row + 0.36, color=COLOURS["soft"], linestyles=(0, (2, 1.5)), linewidth=1.2)
    if finding.interval is not None:
        axes.hlines(row, *finding.interval, color=colour, linewidth=2.4, zorder=3)
    axes.plot([finding.gap], [row], "o" if finding.measures == "leakage" else "s", color=colour, markersize=7, zorder=4)
    numbers = signed(finding.gap) + (f" {interval(finding.interval)}" if finding.interval else "")
    axes.text(1.03, row - 0.2, word, color=colour, **beside)
    axes.text(1.03, row + 0.22, numbers, color=COLOURS["soft"], fontsize=9.5, **beside)


def _line(role: str, number: int) -> dict[str, Any]:
    if role == "target":
        return {"color": COLOURS["target"], "linewidth": 2.6, "marker": "o", "markersize": 5.5, "zorder": 5}
    if role == "original":
        return {"color": COLOURS["original"], "linewidth": 1.8, "marker": "^", "markersize": 6, "zorder": 4}
    dashes = (0, DASHES[number % len(DASHES)])
    return {"color": COLOURS["reference"], "linewidth": 1.5, "marker": ".", "markersize": 5, "linestyle": dashes, "zorder": 3}
