"""A calibration as Markdown: the tables that a document or a pull request has room for."""

from collections.abc import Iterable, Iterator, Sequence

from muaudit.calibration.record import AttackRates, CalibrationRecord, Group, Rate
from muaudit.reports.calibration import TRUTHS, counts
from muaudit.reports.calibration_figures import named
from muaudit.reports.markdown import code, prose

NONE = "\N{EN DASH}"
"""Stands where there is no number."""


def render(record: CalibrationRecord) -> str:
    """Renders a calibration.

    Args:
        record: The record.

    Returns:
        A document in GitHub's Markdown without HTML, the same for the same record.
    """
    parts = [
        f"# How often this audit errs: {prose(record.bed)}",
        *(f"## {title}\n\n{body}" for title, body in sections(record).items()),
        "## Limits\n\n" + "\n".join(f"- {prose(limit)}" for limit in record.limits),
        f"Made by {prose(record.tool)} from calibration.json (SHA-256 of its canonical form: {code(record.content_digest())}), "
        f"of the plan {code(record.plan_sha256)}.",
    ]
    return "\n\n".join(parts) + "\n"


def sections(record: CalibrationRecord) -> dict[str, str]:
    """The tables with their titles, those left out that have no rows.

    Args:
        record: The record.

    Returns:
        Markdown by title, in the order of the page.
    """
    measured = [one for one in record.attacks if one.left_out is None]
    found = {
        "Verdicts": _verdicts(record),
        "Each attack alone": _attacks(measured),
        "Not measured": _left_out((one.attack, one.left_out) for one in record.attacks),
        "Policies that do not fit": _left_out((one.policy, one.left_out) for one in record.policies),
        "By method and strength": _groups(record.groups, measured),
        "Ladder of strengths": _ladder(record),
        "Power": _power(record),
        "What each attack adds": _additions(record),
        "Smallest batteries": _batteries(record),
        "What could be seen": _sensitivity(record),
    }
    return {title: body for title, body in found.items() if body}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; nothing without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines]) if lines else ""


def _left_out(pairs: Iterable[tuple[str, str | None]]) -> str:
    """What there are no numbers of, and why."""
    return "\n".join(f"- {code(name)}: {prose(why)}" for name, why in pairs if why is not None)


def _rate(one: Rate | None) -> str:
    """A rate with its exact interval in percent: `60 of 62 [88.8, 99.6]`."""
    return NONE if one is None else f"{one.hits} of {one.total} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _alarm(one: Rate | None) -> str:
    """A rate of false alarms with its one-sided upper bound in percent: `0 of 102, at most 2.9`."""
    return NONE if one is None else f"{one.hits} of {one.total}, at most {100 * one.bound:.1f}"


def _area(attack: AttackRates, which: str) -> str:
    one = getattr(attack, which)
    return NONE if one is None else f"{one.auc:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _verdicts(record: CalibrationRecord) -> str:
    kinds = ", ".join(f"{models} {told} ({audits} audits)" for told, (models, audits) in counts(record).items())
    rows = [
        [
            code(one.policy),
            _alarm(one.false_alarm),
            *(_rate(one.never_saw.get(verdict)) for verdict in ("pass", "inconclusive")),
            *map(_rate, (one.detection, one.gated.get("fail"), one.missed)),
        ]
        for one in record.policies
        if one.left_out is None
    ]
    head = (
        "policy",
        "honest failed",
        "honest passed",
        "honest inconclusive",
        "knowing failed",
        "hiding failed",
        "either passed",
    )
    whole, first = record.battery, record.policy
    areas = [f"{what} {one.auc:.3f} [{one.low:.3f}, {one.high:.3f}]"
             for what, one in (("excess", whole.excess), ("gap", whole.gap)) if one is not None]  # fmt: skip
    battery = f"\n\nAUC of the battery under {code(first.policy)}, by its largest: {'; '.join(areas)}." if areas else ""
    return f"Models: {kinds}. Rates with exact 95 % intervals, in percent.\n\n{_table(head, rows)}{battery}"


def _attacks(measured: Sequence[AttackRates]) -> str:
    rows = [
        [
            code(one.attack),
            *(_area(one, which) for which in ("excess", "gap")),
            _alarm(one.false_alarm),
            *map(_rate, (one.passes, one.detection, one.gated)),
            _number(None if one.robustness is None else one.robustness.harmonic),
            _number(one.seconds, 1),
        ]
        for one in measured
    ]
    what = ("honest failed", "honest passed", "knowing failed", "hiding failed", "robustness", "s a model")
    return _table(("attack", "AUC by excess", "AUC by gap", *what), rows)


def _groups(groups: Sequence[Group], measured: Sequence[AttackRates]) -> str:
    names = [one.attack for one in measured]
    rows = []
    for group in groups:
        shares = [group.by_attack.get(name) for name in names]
        cells = [NONE if one is None else f"{one.hits}/{one.total}" for one in shares]
        rows.append([code(named(group)), TRUTHS[group.truth], str(group.models), _rate(group.detection), *cells])
    return _table(("kind", "truth", "models", "failed by the battery", *map(code, names)), rows)


def _ladder(record: CalibrationRecord) -> str:
    found, steps = record.battery.ladder, record.battery.steps
    rows = [[f"{share:g}", f"{mean:+.3f}", f"{low:+.3f}", f"{high:+.3f}"] for share, mean, low, high in steps]
    shown = _table(("share that knows", "largest gap, mean", "least", "most"), rows)
    if found is None or not shown:
        return shown
    return f"{shown}\n\nSpearman {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.models} audits."


def _power(record: CalibrationRecord) -> str:
    rows = []
    for one in record.power:
        gaps = one.detectable.values()
        seen = f"{min(gaps):.2f} to {max(gaps):.2f}" if gaps else NONE
        rows.append([f"{one.size} {one.what}", _rate(one.false_alarm), _rate(one.passes), _rate(one.detection), seen])
    return _table(("size", "honest failed", "honest passed", "detected", "detectable gap, by attack"), rows)


def _additions(record: CalibrationRecord) -> str:
    rows = [
        [code(one.attack), str(one.lost), _rate(one.detection), _alarm(one.false_alarm), _number(one.seconds, 1)]
        for one in record.additions
    ]
    return _table(("without", "detections lost", "detected", "honest failed", "s saved a model"), rows)


def _batteries(record: CalibrationRecord) -> str:
    return _table(("found", "attacks", "detected", "honest failed", "s a model"), _battery_rows(record))


def _battery_rows(record: CalibrationRecord) -> Iterator[list[str]]:
    for one in record.batteries:
        names = ", ".join(map(code, one.attacks)) if one.how != "whole" else f"all {len(one.attacks)}"
        yield [one.how, names, _rate(one.detection), _alarm(one.false_alarm), _number(one.seconds, 1)]


def _sensitivity(record: CalibrationRecord) -> str:
    rows = [
        [
            code(one.attack), f"{one.gap:.3f} [{one.low:.3f}, {one.high:.3f}]", f"{one.margin:g}", f"{one.noise:.4f}",
            str(one.references), f"{one.units} in {one.clusters}",
        ]
        for one in record.sensitivity
    ]  # fmt: skip
    return _table(
        ("attack", "smallest gap seen four times of five", "margin", "noise", "references", "units in clusters"), rows
    )
