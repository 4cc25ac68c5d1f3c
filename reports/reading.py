"""Suppressed or removed: the findings read by how deep an attack may look.

A model that passes where it is only asked, and fails where its weights are opened or trained on, hides what it still holds.
This is a reading of the findings: it decides nothing, and no verdict depends on it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from muaudit.reports.text import listed
from muaudit.results import AuditReport, Finding, Verdict

LEVELS = {
    "text": "what the model says when asked",
    "logits": "how likely it holds each answer",
    "weights": "what lies inside it",
    "training": "what comes back when it is trained a little",
}
"""What an attack looks at, by the access that it needs, shallowest first."""

DEEP = ("weights", "training")


class Residue(StrEnum):
    """What the findings say together."""

    THERE = "still there"
    SUPPRESSED = "suppressed, not removed"
    DEEP = "residue is left"
    NONE_FOUND = "no residue found"
    UNSETTLED = "not settled"
    UNKNOWN = "cannot be told"


@dataclass(frozen=True)
class Level:
    """The findings of one access level, with their places in the report; `verdict` is None where none answered."""

    access: str
    findings: tuple[tuple[int, Finding], ...]
    verdict: Verdict | None


@dataclass(frozen=True)
class Reading:
    """What the findings say by access.

    Attributes:
        levels: All four, shallowest first.
        residue: What they say together.
        sentence: The same for a reader who knows no statistics.
        unplaced: Findings on the forget set whose access the report does not tell, with their places.
    """

    levels: tuple[Level, ...]
    residue: Residue
    sentence: str
    unplaced: tuple[tuple[int, Finding], ...]


def read(report: AuditReport) -> Reading:
    """Reads a report's findings on the forget set by access.

    Retained knowledge and privacy claims say nothing here; of a series of targets, the last is read.

    Args:
        report: The report.

    Returns:
        The reading. A level fails if one of its findings fails; it passes if at least one passes and none is inconclusive or
        an error; skipped attacks answer nothing.
    """
    access = {card.name: card.access for card in report.attacks}
    numbered = [(place, one) for place, one in enumerate(report.findings, 1) if one.measures == "leakage"]
    levels = []
    for name in LEVELS:
        inside = tuple((place, one) for place, one in numbered if access.get(one.attack) == name)
        levels.append(Level(name, inside, _verdict(one.verdict for _, one in inside)))
    unplaced = tuple((place, one) for place, one in numbered if one.attack not in access and not _earlier(one, access))
    residue, sentence = _say({level.access: level.verdict for level in levels})
    residue, sentence = _with(_verdict(one.verdict for _, one in unplaced), residue, sentence)
    return Reading(tuple(levels), residue, sentence, unplaced)


def _earlier(finding: Finding, access: Iterable[str]) -> bool:
    """Whether it is about an earlier target of a series."""
    return any(finding.attack.startswith(f"{name} @ ") for name in access)


def _verdict(verdicts: Iterable[Verdict]) -> Verdict | None:
    found = set(verdicts)
    if Verdict.FAIL in found:
        return Verdict.FAIL
    if found & {Verdict.INCONCLUSIVE, Verdict.ERROR}:
        return Verdict.INCONCLUSIVE
    return Verdict.PASS if Verdict.PASS in found else None


def _say(verdicts: dict[str, Verdict | None]) -> tuple[Residue, str]:
    """The reading of one verdict a level."""
    answered = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    failed = [name for name, verdict in answered.items() if verdict is Verdict.FAIL]
    unsettled = [name for name, verdict in answered.items() if verdict is Verdict.INCONCLUSIVE]
    deep = [name for name in DEEP if name in answered]
    surface = next((name for name in ("text", "logits") if name in answered), None)
    if not answered:
        return Residue.UNKNOWN, "No attack on the forget set gave an answer, so whether anything is left cannot be told."
    if surface in failed:
        return Residue.THERE, (
            f"The knowledge is still there in the open: attacks at the {surface} level, which need no look inside the model, "
            "already tell the target from models that never saw the forget set."
        )
    if failed:
        return _below(failed, surface, answered)
    if unsettled:
        passed = _levels([name for name in answered if name not in unsettled])
        clean = f" At the {passed} no residue was found." if passed else ""
        return Residue.UNSETTLED, (
            f"Not settled: at the {_levels(unsettled)} the evidence shows neither residue nor its absence.{clean} "
            "Neither suppression nor removal can be told from this."
        )
    if not deep:
        return Residue.UNKNOWN, (
            f"Cannot be told: at the {_levels(list(answered))} no residue was found, but no attack looked inside the model or "
            "trained it. Knowledge that is only hidden would look just like this."
        )
    shallow = "" if surface else " What the model says when asked was not tested."
    return Residue.NONE_FOUND, (
        f"No residue was found by these attacks, at the {_levels(list(answered))}. Nothing points to mere suppression; that is "
        f"not proof of removal, since a stronger attack may find some.{shallow}"
    )


def _below(failed: Sequence[str], surface: str | None, answered: dict[str, Verdict]) -> tuple[Residue, str]:
    """The reading where residue shows, but not at the surface."""
    where = _levels(failed)
    if surface is None:
        return Residue.DEEP, (
            f"Residue is left: it shows at the {where}. Whether the model also gives it away when it is only asked was not "
            "tested, so suppression cannot be told from knowledge in the open."
        )
    if answered[surface] is Verdict.PASS:
        return Residue.SUPPRESSED, (
            f"Suppressed, not removed: at the {surface} level the target looks like a model that never saw the forget set, but "
            f"at the {where} what was to be forgotten still shows. It is hidden, not gone."
        )
    return Residue.DEEP, (
        f"Residue is left: it shows at the {where}. Whether it is also in the open was not settled at the {surface} level, so "
        "suppression cannot be told from knowledge in the open."
    )


def _with(unplaced: Verdict | None, residue: Residue, sentence: str) -> tuple[Residue, str]:
    """The reading with the findings whose access is not known: they never make it better."""
    if unplaced is Verdict.FAIL and residue not in (Residue.THERE, Residue.SUPPRESSED, Residue.DEEP):
        return Residue.DEEP, (
            "Residue is left: an attack whose access the report does not tell found it, so suppression cannot be told from "
            "knowledge in the open."
        )
    if unplaced is Verdict.INCONCLUSIVE and residue is Residue.NONE_FOUND:
        return Residue.UNSETTLED, (
            "Not settled: an attack whose access the report does not tell gave no clear answer. The others found no residue."
        )
    return residue, sentence


def _levels(names: Sequence[str]) -> str:
    return f"{listed(names)} level{'' if len(names) == 1 else 's'}" if names else ""
