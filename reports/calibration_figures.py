"""Pictures of a calibration: ROC curves, a ladder of strengths, a heat map of methods by attacks, power against size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muaudit.calibration.record import CalibrationRecord, Curve, Group, PowerPoint, Whole
from muaudit.reports.drawing import COLOURS, WIDTH, Picture, canvas, panel, picture, short, style, wide
from muaudit.reports.figures import DASHES, SHADES, squares
from muaudit.reports.text import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 5
"""ROC curves of single attacks beside the battery's: those with the smallest areas, which say where the battery is weak."""

SIDE = 320
"""Height of the plot of ROC curves."""


def curves(record: CalibrationRecord, key: str) -> Picture | None:
    """ROC curves by the excess: the battery's, and those of the attacks with the smallest areas.

    Args:
        record: The calibration.
        key: Unique on the page; the prefix of all classes and ids.

    Returns:
        The picture; None where there is no curve.
    """
    whole = record.battery
    known = [(one.attack, one.roc, one.excess.auc) for one in record.attacks if one.roc is not None and one.excess is not None]
    weakest = sorted(known, key=lambda one: one[2])[:SHOWN]
    if whole.roc is None or whole.excess is None:
        return None
    with style():
        figure, axes = wide(SIDE + 60, left=60, right=270, bottom=48, top=12)
        _roc(axes, whole.roc, color=COLOURS["target"], linewidth=2.6, zorder=5)
        names = [f"whole battery {whole.excess.auc:.3f}"]
        for number, (name, roc, area) in enumerate(weakest):
            _roc(axes, roc, color=COLOURS["reference"], linewidth=1.5, linestyle=(0, DASHES[number % len(DASHES)]))
            names.append(f"{short(name, 22)} {area:.3f}")
        axes.plot([0, 1], [0, 1], color=COLOURS["line"], linewidth=1, zorder=1)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xlabel("false alarms: models that never saw")
        axes.set_ylabel("detected: models that know")
        axes.legend(
            axes.lines[: len(names)], [f" {name}" for name in names], frameon=False, loc="center left",
            bbox_to_anchor=(1.02, 0.5), title="area under the curve", handlelength=2.6,
        )  # fmt: skip
        return picture(figure, key, f"ROC curves with areas: {'; '.join(names)}")


def _roc(axes: "Axes", curve: Curve, **look: Any) -> None:  # noqa: ANN401 - matplotlib's
    axes.plot(curve.false, curve.true, **look)


def ladder(whole: Whole, key: str) -> Picture | None:
    """The battery's largest gap along the share of a model that knows: mean and extremes.

    Returns:
        The picture; None with fewer than two rungs.
    """
    if len(whole.steps) < 2:
        return None
    with style():
        figure, axes = wide(280, left=60, right=40, bottom=48, top=12)
        shares = [step[0] for step in whole.steps]
        axes.vlines(shares, [step[2] for step in whole.steps], [step[3] for step in whole.steps], color=COLOURS["reference"])
        axes.plot(shares, [step[1] for step in whole.steps], "o-", color=COLOURS["target"], linewidth=2.2, markersize=6)
        axes.axhline(0, color=COLOURS["line"], linewidth=0.8, zorder=1)
        axes.set_xlabel("share of the weights of a model that knows")
        axes.set_ylabel("largest gap of the battery")
        told = "; ".join(f"{step[0]:g}: {step[1]:+.2f}" for step in whole.steps)
        return picture(figure, key, f"Ladder of strengths: {told}")


def heat(groups: Sequence[Group], attacks: Sequence[str], key: str) -> Picture | None:
    """How often each attack alone fails the models of each kind and strength: rows of kinds, columns of attacks.

    Returns:
        The picture; None where there is no cell. Cells without an audit stay empty.
    """
    if not groups or not attacks:
        return None
    cells: list[list[tuple[int, int]]] = [[] for _ in range(SHADES)]
    for row, group in enumerate(groups):
        for column, attack in enumerate(attacks):
            if (rate := group.by_attack.get(attack)) is not None:
                cells[min(int(rate.share * SHADES), SHADES - 1)].append((column, row))
    with style():
        figure, axes = wide(22 * len(groups) + 150, left=210, right=80, bottom=14, top=136)
        for shade, places in enumerate(cells):
            squares(axes, places, shade)
        axes.set_xlim(0, len(attacks))
        axes.set_ylim(len(groups), 0)
        axes.set_yticks([row + 0.5 for row in range(len(groups))], [short(named(group), 30) for group in groups])
        axes.xaxis.tick_top()
        middles = [column + 0.5 for column in range(len(attacks))]
        axes.set_xticks(middles, [short(name, 22) for name in attacks], rotation=55, ha="left", rotation_mode="anchor")
        axes.tick_params(length=0)
        for shade in range(SHADES):
            squares(axes, [(0, shade)], shade, scale=True)
        beside: dict[str, Any] = {"transform": axes.transAxes, "color": COLOURS["soft"], "clip_on": False, "fontsize": 9.5}
        axes.text(1.06, 0.0, "never", va="bottom", **beside)
        axes.text(1.06, 1.0, "always", va="top", **beside)
        whole = "; ".join(f"{named(group)} {group.detection.hits} of {group.detection.total}" for group in groups)
        return picture(figure, key, f"Heat map of kinds of models by {listed(attacks)}: failed by the battery: {whole}")


def named(group: Group) -> str:
    """A kind of model with its strength."""
    return f"{group.group} {group.strength}".strip()


def power(points: Sequence[PowerPoint], key: str) -> Picture | None:
    """Detection of models that know and passes of those that never saw, against units, clusters and references.

    Returns:
        The picture; None where there is no point.
    """
    kinds = [what for what in ("clusters", "units", "references") if any(one.what == what for one in points)]
    if not kinds:
        return None
    with style():
        figure = canvas(WIDTH, 270)
        width = (WIDTH - 60) / len(kinds)
        for number, what in enumerate(kinds):
            left = 50 + number * width
            axes = panel(figure, left=left, right=WIDTH - left - width + 40, bottom=48, top=36)
            _power(axes, [one for one in points if one.what == what], what, first=number == 0)
        return picture(figure, key, f"Power against {listed(kinds)}: {'; '.join(map(_told, points))}")


def _power(axes: "Axes", points: Sequence[PowerPoint], what: str, *, first: bool) -> None:
    sizes = [str(one.size) for one in points]
    places = range(len(points))
    lines = {"detected": ("target", "o-", "detection"), "passed": ("pass", "s--", "passes")}
    for label, (colour, look, field) in lines.items():
        rates = [getattr(one, field) for one in points]
        known = [(place, rate) for place, rate in zip(places, rates, strict=True) if rate is not None]
        at = [place for place, _ in known]
        axes.plot(at, [rate.share for _, rate in known], look, color=COLOURS[colour], linewidth=1.8, markersize=5, label=label)
        axes.vlines(at, [rate.low for _, rate in known], [rate.high for _, rate in known], color=COLOURS[colour], alpha=0.5)
    axes.set_xticks(list(places), sizes)
    axes.set_xlim(-0.4, len(points) - 0.6)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(what)
    if first:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _told(point: PowerPoint) -> str:
    rates = [("detected", point.detection), ("passed", point.passes)]
    return f"{point.size} {point.what}: " + ", ".join(f"{what} {rate.share:.2f}" for what, rate in rates if rate is not None)
