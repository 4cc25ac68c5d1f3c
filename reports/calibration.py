"""A calibration as one HTML file, by the same rules as a report's page: no script, nothing loaded, every string escaped."""

from collections.abc import Iterable

from muaudit.calibration.record import Area, AttackRates, CalibrationRecord, Group, Rate
from muaudit.reports import calibration_figures as figures
from muaudit.reports import html
from muaudit.reports.finding_view import Album

TRUTHS = {"never_saw": "never saw", "knows": "knows", "gated": "hides", "ladder": "ladder"}
"""What is known of a model, in words."""


def render(record: CalibrationRecord) -> str:
    """Renders a calibration.

    Args:
        record: The record.

    Returns:
        One HTML document, the same bytes for the same record.
    """
    record = CalibrationRecord.from_json(record.canonical())  # so that the page of a fresh record is that of its file
    album = Album()
    measured = [one.attack for one in record.attacks if one.left_out is None]
    pictures = {
        "curves": album.add(figures.curves(record, "roc")),
        "ladder": album.add(figures.ladder(record.battery, "ladder")),
        "heat": album.add(figures.heat(record.groups, measured, "heat")),
        "power": album.add(figures.power(record.power, "power")),
    }
    return html.page(
        "calibration.html.j2",
        album.css,
        record=record,
        digest=record.content_digest(),
        pictures=pictures,
        measured=[one for one in record.attacks if one.left_out is None],
        silent=[one for one in record.attacks if one.left_out is not None],
        applied=[one for one in record.policies if one.left_out is None],
        unapplied=[one for one in record.policies if one.left_out is not None],
        truths=TRUTHS,
        counts=counts(record),
        rate=rate,
        tile=lambda one: "\N{EN DASH}" if one is None else f"{one.hits} of {one.total}",
        interval=lambda one: "" if one is None else f"{100 * one.low:.1f} to {100 * one.high:.1f} %",
        area=area,
        named=figures.named,
        missed=list(missed(record.groups)),
        weak=list(weak(record.attacks)),
    )


def rate(one: Rate | None) -> str:
    """A rate with its exact interval: `3 of 100, 3.0 % [0.6, 8.5]`."""
    if one is None:
        return "\N{EN DASH}"
    return f"{one.hits} of {one.total}, {100 * one.share:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def area(one: Area | None) -> str:
    """An area with its interval: `0.983 [0.950, 0.995]`."""
    return "\N{EN DASH}" if one is None else f"{one.auc:.3f} [{one.low:.3f}, {one.high:.3f}]"


def counts(record: CalibrationRecord) -> dict[str, tuple[int, int]]:
    """Models and audits by what is known of the models."""
    found = {}
    for truth, told in TRUTHS.items():
        targets = [audit.target for audit in record.audits if audit.truth == truth]
        if targets:
            found[told] = (len(set(targets)), len(targets))
    return found


def missed(groups: Iterable[Group]) -> Iterable[Group]:
    """Kinds of models that know or hide, of which some audits were not failed."""
    return (one for one in groups if one.truth in ("knows", "gated") and one.detection.hits < one.detection.total)


def weak(attacks: Iterable[AttackRates]) -> Iterable[AttackRates]:
    """Attacks whose area by the excess is below .9, or that failed a model that never saw."""
    for one in attacks:
        alarm = one.false_alarm is not None and one.false_alarm.hits > 0
        if (one.excess is not None and one.excess.auc < 0.9) or alarm:
            yield one
