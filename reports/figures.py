"""Pictures of a report as inline SVG that follows the page's colours, in light and in dark, without a style attribute.

matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables; its inline styles become classes,
so that the page can forbid inline styles altogether. Same report, same bytes.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muaudit.reports.text import SYMBOLS, interval, name_of, signed, visible
from muaudit.results import Curve, Finding, HeatMap, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#010101",
    "soft": "#020202",
    "line": "#030303",
    "band": "#040404",
    "target": "#050505",
    "reference": "#060606",
    "original": "#070707",
    **{verdict.value: f"#0a0a{number:02x}" for number, verdict in enumerate(Verdict)},
}
"""Stand-in colours by the CSS variable that takes their place."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "muaudit",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "path.sketch": None,
}

SHADES = 8
"""Steps from 0 to 1 in a heat map."""

WIDTH = 720
ROW = 30
DASHES = ((3, 2), (1, 1.5), (5, 1.5), (4, 1.5, 1, 1.5))


@dataclass(frozen=True)
class Picture:
    """An SVG element and the CSS rules that its classes need."""

    svg: str
    css: str


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
    with _style():
        figure, axes = _axes(ROW * len(findings) + 40, left=205, right=165, bottom=36, top=4)
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
        return _picture(figure, key, f"Forest plot of the gap of every finding: {told}")


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
    with _style():
        figure, axes = _axes(310, left=60, right=150, bottom=46, top=12)
        for number, line in enumerate(line_chart.lines):
            axes.plot(line_chart.x, line.y, **_line(line.model, number))
        highest = max((y for line in line_chart.lines for y in line.y), default=1.0)
        lowest = min((y for line in line_chart.lines for y in line.y), default=0.0)
        axes.set_ylim(min(0.0, 1.08 * lowest), max(1.08 * highest, 0.1))
        axes.set_xlabel(_short(line_chart.x_label, 60))
        axes.set_ylabel(_short(line_chart.y_label, 40))
        if len(line_chart.x) <= 10:
            axes.set_xticks(line_chart.x, [f"{x:g}" for x in line_chart.x])
        axes.grid(axis="y", color=COLOURS["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        names = [" " + _short(line.model, 18) for line in line_chart.lines]  # matplotlib leaves out names that start with _
        axes.legend(axes.lines, names, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
        told = "; ".join(f"{line.model} from {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in line_chart.lines if line.y)
        return _picture(figure, key, f"Line chart, {line_chart.name}: {told}")


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
    with _style():
        height = max(4, min(26, 600 // len(shown.rows)))
        figure, axes = _axes(height * len(shown.rows) + 62, left=84, right=80, bottom=46, top=16)
        for shade, places in enumerate(cells):
            _squares(axes, places, shade)
        axes.set_xlim(0, len(shown.columns))
        axes.set_ylim(0, len(shown.rows))
        step = -(-len(shown.rows) * 14 // (height * len(shown.rows)))
        axes.set_yticks(
            [row + 0.5 for row in range(len(shown.rows))][::step], [_short(name, 12) for name in shown.rows][::step]
        )
        axes.set_xticks([])
        few = "" if shown.total == len(shown.columns) else f"the {len(shown.columns)} with the largest gaps, of {shown.total}"
        axes.set_xlabel(f"units, largest gap first{': ' if few else ''}{few}")
        axes.set_title(_short(shown.model, 60), loc="left", fontsize=11)
        for shade in range(SHADES):
            _squares(axes, [(0, shade)], shade, scale=True)
        beside: dict[str, Any] = {"transform": axes.transAxes, "color": COLOURS["soft"], "clip_on": False, "fontsize": 9.5}
        axes.text(1.06, 0.0, "0", va="bottom", **beside)
        axes.text(1.06, 1.0, "1", va="top", **beside)
        known = [[value for value in row if value is not None] for row in shown.values]
        means = "; ".join(f"{name} {sum(row) / len(row):.2f}" for name, row in zip(shown.rows, known, strict=True) if row)
        return _picture(figure, key, f"Heat map, {shown.name}, {shown.model}: mean by layer: {means}")


def _squares(axes: "Axes", places: Sequence[tuple[int, int]], shade: int, *, scale: bool = False) -> None:
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


@contextmanager
def _style() -> Iterator[None]:
    """Our own settings on top of matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _axes(height: int, *, left: int, right: int, bottom: int, top: int) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def _forest_row(axes: "Axes", row: int, finding: Finding) -> None:
    colour = COLOURS[finding.verdict.value]
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
    axes.text(-0.03, row, _short(name_of(finding), 34), ha="right", fontsize=10.5, **beside)
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


def _short(text: str, limit: int) -> str:
    shown = visible(text, lines=False, limit=10 * limit)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _picture(figure: "Figure", key: str, label: str) -> Picture:
    """Draws, then rewrites the tags alone: the text between them can be anybody's."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.StringIO()
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = drawn.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = {name for tag in re.findall(r"<[^>]+>", svg) for name in re.findall(r'(?:url\(#|href="#)([^")]+)', tag)}
    rules: dict[str, str] = {}
    spoken = html.escape(visible(label, lines=False))

    def rewritten(match: re.Match[str]) -> str:
        tag = match[0]
        if tag.startswith("<svg"):
            box = re.search(r'viewBox="[^"]*"', tag)
            return f'<svg class="figure" role="img" aria-label="{spoken}" {box[0] if box else ""}>'
        tag = re.sub(r' id="([^"]*)"', lambda name: f' id="{key}-{name[1]}"' if name[1] in used else "", tag)
        tag = re.sub(r'(url\(#|href="#)', rf"\1{key}-", tag).replace("xlink:href", "href")
        return re.sub(
            r'style="([^"]*)"', lambda style: f'class="{rules.setdefault(_rule(style[1]), f"{key}-{len(rules)}")}"', tag
        )

    svg = re.sub(r"<[^>]+>", rewritten, svg).strip()
    return Picture(svg, "".join(f".{name}{{{rule}}}\n" for rule, name in rules.items()))


def _rule(style: str) -> str:
    """One inline style as a CSS rule in the page's colours and typeface."""
    style = re.sub(r"font(?:-size)?:[^;]*?([\d.]+)px[^;]*", r"font-size: \1px", html.unescape(style))
    style = re.sub(r"font-family:[^;]*;?", "", style)
    for name, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{name})")
    return style
