"""Pictures of every unit's leakage: histograms, the log-log ROC curve, clusters and units, target beside references."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muaudit.reports.distributions import Compared, Histogram, RocOfUnits, together
from muaudit.reports.drawing import COLOURS, HALF, Picture, canvas, panel, picture, short, style, wide
from muaudit.reports.text import percent, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 300
ROW = 24

DOTS: dict[str, dict[str, Any]] = {
    "target": {"marker": "o", "markersize": 7, "color": COLOURS["target"], "zorder": 5},
    "reference": {
        "marker": "|",
        "markersize": 9,
        "markeredgewidth": 1.6,
        "color": COLOURS["reference"],
        "linestyle": "none",
        "zorder": 3,
    },
    "original": {
        "marker": "^",
        "markersize": 6.5,
        "markerfacecolor": "none",
        "markeredgewidth": 1.4,
        "color": COLOURS["original"],
        "zorder": 4,
    },
}
"""Shape and colour of each role, so that colour is never the only cue."""

COLOUR_OF = {"target": "target", "references": "reference", "original": "original"}


def histogram(shown: Histogram, key: str, measured: str) -> Picture:
    """Histograms of target, references and original above each other, on one scale.

    Args:
        shown: The numbers.
        key: Unique on the page; the prefix of all classes and ids.
        measured: What a unit's number is: leakage or score.

    Returns:
        The picture.
    """
    with style():
        figure = canvas(HALF, HEIGHT)
        rows = list(shown.shares.items())
        each = (HEIGHT - 44) / len(rows)
        highest = max(max(shares) for _, shares in rows)
        for place, (role, shares) in enumerate(rows):
            axes = panel(figure, left=46, right=10, bottom=44 + each * (len(rows) - 1 - place), top=each * place + 18)
            _bars(axes, shown, shares, COLOURS[COLOUR_OF[role]])
            axes.set_ylim(0, 1.08 * highest)
            axes.set_yticks([0, highest], ["0", percent(highest)])
            axes.text(0, 1.03, role, transform=axes.transAxes, va="bottom", fontsize=10.5)
            if place < len(rows) - 1:
                axes.set_xticklabels([])
            else:
                axes.set_xlabel(f"{measured} of a unit")
        told = "; ".join(f"{role}: {_most(shown, shares)}" for role, shares in rows)
        return picture(figure, key, f"Histograms of each unit's {measured}. {told}", half=True)


def roc(shown: RocOfUnits, key: str) -> Picture:
    """The ROC curve of the target against the references on logarithmic scales, with its band and the line of chance.

    Args:
        shown: The numbers.
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture. A true positive rate of 0 lies at half a unit.
    """
    with style():
        figure = canvas(HALF, HEIGHT)
        axes = panel(figure, left=56, right=10, bottom=44, top=26)
        floor = 0.5 / shown.units
        low = min(floor, shown.points[0].fpr)
        x = [point.fpr for point in shown.points]
        low_end, high_end = ([max(point.interval[end], floor) for point in shown.points] for end in (0, 1))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.fill_between(x, low_end, high_end, color=COLOURS["target"], alpha=0.16, linewidth=0, zorder=1)
        axes.plot([low, 1], [low, 1], color=COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)), zorder=2, label=" chance")
        if all(point.original is not None for point in shown.points):
            y = [max(point.original or 0.0, floor) for point in shown.points]
            axes.plot(x, y, color=COLOURS["original"], linewidth=1.5, linestyle=(0, (5, 1.5)), zorder=3, label=" original")
        y = [max(point.target, floor) for point in shown.points]
        axes.plot(x, y, color=COLOURS["target"], linewidth=2.4, zorder=4, label=" target")
        axes.set_xlim(shown.points[0].fpr, 1)
        axes.set_ylim(floor, 1.15)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda *_: "")
        axes.tick_params(which="minor", color=COLOURS["line"])
        axes.set_xlabel("share of references' units called leaking")
        axes.set_ylabel("share of target's units")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, fontsize=10, handlelength=2.2,
                    columnspacing=1.2, borderpad=0, borderaxespad=0.2)  # fmt: skip
        told = "; ".join(
            f"{percent(point.target)} of the target's units at {point.fpr:.2g} of the references'"
            for point in (shown.points[0], shown.points[len(shown.points) // 2])
        )
        return picture(figure, key, f"Log-log ROC curve, area {shown.auc:.3f}, chance is 0.5: {told}", half=True)


def units(compared: Sequence[Compared], key: str, measured: str) -> Picture:
    """Each unit as a dot: the references' mean across, the target upwards; above the diagonal the target leaks more.

    Args:
        compared: All units, at least one.
        key: Unique on the page; the prefix of all classes and ids.
        measured: What a unit's number is: leakage or score.

    Returns:
        The picture. Units at one place are one dot, whose area grows with their number.
    """
    places = together(compared)
    most = max(count for _, _, count in places)
    low = min(0.0, *(value for x, y, _ in places for value in (x, y)))
    high = max(1.0, *(value for x, y, _ in places for value in (x, y)))
    with style():
        figure = canvas(HALF, HEIGHT)
        axes = panel(figure, left=56, right=10, bottom=44, top=14)
        room = 0.05 * (high - low)
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(low - room, high + room)
        axes.plot([low, high], [low, high], color=COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        dots: dict[str, Any] = {
            "color": COLOURS["target"],
            "alpha": 0.55,
            "markeredgewidth": 0,
            "linestyle": "none",
            "zorder": 3,
        }
        for count in sorted({count for _, _, count in places}):
            x, y = ([place[side] for place in places if place[2] == count] for side in (0, 1))
            axes.plot(x, y, marker="o", markersize=4.5 + 13 * math.sqrt((count - 1) / most), **dots)
        axes.set_xlabel(f"references' mean {measured}")
        axes.set_ylabel(f"target's {measured}")
        above, below = (sum(sign * one.gap > 1e-9 for one in compared) for sign in (1, -1))
        ends = f"largest gap {signed(max(one.gap for one in compared))}, smallest {signed(min(one.gap for one in compared))}"
        said = f"of {len(compared)} units {above} lie above the references' mean, {below} below it; {ends}"
        return picture(figure, key, f"Target against references, unit by unit: {said}", half=True)


def clusters(compared: Sequence[Compared], key: str, measured: str) -> Picture:
    """One row a cluster: the target's mean, each reference's and the original's.

    Args:
        compared: The clusters to show, from top to bottom, at least one.
        key: Unique on the page; the prefix of all classes and ids.
        measured: What a unit's number is: leakage or score.

    Returns:
        The picture.
    """
    with style():
        names = [short(one.name, 34) for one in compared]
        left = min(205, 34 + 6 * max(map(len, names)))
        figure, axes = wide(ROW * len(compared) + 74, left=left, right=80, bottom=44, top=30)
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
        for row, one in enumerate(compared):
            axes.hlines(row, one.mean, one.target, color=COLOURS["line"], linewidth=2.5, zorder=2)
            axes.plot(one.references, [row] * len(one.references), **DOTS["reference"])
            if one.original is not None:
                axes.plot([one.original], [row], **DOTS["original"])
            axes.plot([one.target], [row], **DOTS["target"])
            axes.text(-0.03, row, names[row], ha="right", fontsize=10.5, **beside)
            axes.text(1.03, row, signed(one.gap), color=COLOURS["soft"], fontsize=10, **beside)
        axes.text(1.03, -1, "gap", color=COLOURS["soft"], fontsize=10, **beside)
        values = [value for one in compared for value in (one.target, *one.references, one.original or 0.0)]
        axes.set_xlim(min(0.0, *values) - 0.02, max(1.0, *values) + 0.02)
        axes.set_ylim(len(compared) - 0.5, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=COLOURS["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"mean {measured}")
        roles = ["target", "reference", *(["original"] if any(one.original is not None for one in compared) else [])]
        for role in roles:
            axes.plot([], [], label=f" {role}", **(DOTS[role] | {"linestyle": "none"}))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, fontsize=10.5, handletextpad=0.2,
                    borderpad=0, borderaxespad=0.3)  # fmt: skip
        told = "; ".join(f"{one.name} {signed(one.gap)}" for one in compared[:5])
        return picture(figure, key, f"Target beside references, cluster by cluster, gaps from the top: {told}")


def _bars(axes: "Axes", shown: Histogram, shares: Sequence[float], colour: str) -> None:
    if shown.edges is None:
        axes.bar(range(len(shares)), shares, width=0.6, color=colour, linewidth=0)
        axes.set_xticks(range(len(shares)), shown.bins)
        axes.set_xlim(-0.6, len(shares) - 0.4)
    else:
        axes.stairs(shares, shown.edges, fill=True, color=colour, linewidth=0)
        axes.set_xlim(shown.edges[0], shown.edges[-1])
    axes.tick_params(axis="x", length=3)


def _most(shown: Histogram, shares: Sequence[float]) -> str:
    place = max(range(len(shares)), key=lambda one: shares[one])
    return f"most units at {shown.bins[place]}, {percent(shares[place])}"
