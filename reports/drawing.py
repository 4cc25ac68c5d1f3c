"""How every picture is drawn: inline SVG that follows the page's colours, in light and in dark, without a style attribute.

matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables; its inline styles become classes,
so that the page can forbid inline styles altogether. Same report, same bytes.
"""

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muaudit.reports.text import visible
from muaudit.results import Verdict

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

WIDTH = 720
"""Width of a picture that takes the whole column, in its own pixels."""

HALF = 400
"""Width of one that stands beside another, and fills a phone."""


@dataclass(frozen=True)
class Picture:
    """An SVG element and the CSS rules that its classes need."""

    svg: str
    css: str


@contextmanager
def style() -> Iterator[None]:
    """Our own settings on top of matplotlib's defaults, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def canvas(width: int, height: int) -> "Figure":
    """An empty drawing of so many pixels, with no ground of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def panel(figure: "Figure", *, left: float, right: float, bottom: float, top: float) -> "Axes":
    """Axes within a drawing, by the pixels left free on each side."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height))
    axes.patch.set_visible(False)
    return axes


def wide(height: int, *, left: int, right: int, bottom: int, top: int) -> "tuple[Figure, Axes]":
    """A drawing as wide as the column, with one panel."""
    figure = canvas(WIDTH, height)
    return figure, panel(figure, left=left, right=right, bottom=bottom, top=top)


def short(text: str, limit: int) -> str:
    """A name as a picture can hold it: on one line, made visible, cut with an ellipsis."""
    shown = visible(text, lines=False, limit=10 * limit)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def picture(figure: "Figure", key: str, label: str, *, half: bool = False) -> Picture:
    """Draws, then rewrites the tags alone: the text between them can be anybody's.

    Args:
        figure: The drawing.
        key: Unique on the page; the prefix of all classes and ids.
        label: What the picture shows, in words, for those who do not see it.
        half: Whether it stands beside another.

    Returns:
        The picture.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.StringIO()
    with warnings.catch_warnings():  # names are in any script, and are drawn by the reader's fonts, not by matplotlib's
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
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
            return f'<svg class="figure{" half" if half else ""}" role="img" aria-label="{spoken}" {box[0] if box else ""}>'
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
