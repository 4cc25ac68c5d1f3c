"""Which reports, and which of their findings, may be set against each other."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from muaudit.errors import UsageError
from muaudit.results import AttackCard, AuditReport, Finding

Key = tuple[str, str]
"""Names a finding: the attack's name in the plan, and what was measured."""

LEVEL = 0.95
"""Level of intervals where the policies do not agree on one."""


def key_of(finding: Finding) -> Key:
    """What a finding is known by in every report."""
    return finding.attack, finding.measures


def refuse(labels: Sequence[str], reports: Sequence[AuditReport]) -> None:
    """Refuses reports that say nothing about each other.

    Args:
        labels: What to call them.
        reports: The reports.

    Raises:
        UsageError: One report is given twice or redacted, two are about other forget sets, or no attack ran alike in all.
    """
    digests: dict[str, str] = {}
    for label, report in zip(labels, reports, strict=True):
        digest = report.content_digest()
        if digest in digests:
            raise UsageError(f"{digests[digest]} and {label} are the same report; give each once")
        digests[digest] = label
    for label, report in zip(labels, reports, strict=True):
        if report.redaction is not None:
            raise UsageError(f"{label} is redacted, and does not say what forget set it is about; compare the whole reports")
    first = _data(reports[0], "forget")
    for label, report in zip(labels, reports, strict=True):
        if (other := _data(report, "forget")) != first:
            told = " and ".join(", ".join(one[:12] for one in sets) or "recorded outputs" for sets in (first, other))
            raise UsageError(
                f"{labels[0]} and {label} are about other forget sets ({told}), so that their gaps say nothing about each "
                "other; compare audits of one forget set"
            )
    shared = set.intersection(*({key_of(finding) for finding in report.findings} for report in reports))
    if not shared - set(unlike(labels, reports)):
        raise UsageError(
            "no attack ran with the same version and parameters in all of these audits, so that there is nothing to compare; "
            "scan each target with one audit.toml"
        )


def unlike(labels: Sequence[str], reports: Sequence[AuditReport]) -> dict[Key, str]:
    """The findings whose numbers may not be set against each other.

    Args:
        labels: What to call the reports.
        reports: The reports.

    Returns:
        Why, in a few words, by finding.
    """
    found: dict[Key, str] = {}
    for key in dict.fromkeys(key_of(finding) for report in reports for finding in report.findings):
        having = [
            (label, report)
            for label, report in zip(labels, reports, strict=True)
            if any(key_of(finding) == key for finding in report.findings)
        ]
        cards = [_card(report, key[0]) for _, report in having]
        if other := next((place for place, card in enumerate(cards) if _run(card) != _run(cards[0])), None):
            found[key] = f"{having[0][0]} and {having[other][0]} ran it with other {_what(cards[0], cards[other])}".strip()
        elif key[1] == "retention" and len({_data(report, "retain") for _, report in having}) > 1:
            found[key] = "the retain sets differ"
    return found


def warnings(labels: Sequence[str], reports: Sequence[AuditReport]) -> tuple[str, ...]:
    """What differs between audits that can be compared, and what that means for a reader.

    Args:
        labels: What to call the reports.
        reports: The reports.

    Returns:
        One sentence each.
    """
    told = [words for of, words in CHECKS if len({_frozen(of(report)) for report in reports}) > 1]
    if not any(_data(report, "forget") for report in reports):
        told.append("The outputs were recorded and the forget set has no digest: that it is the same in all is taken on trust.")
    if min(sum(model.role.startswith("reference") for model in report.models) for report in reports) < 2:
        told.append("An audit has one reference: how far two trainings differ by chance is not in the intervals.")
    return (*told, *_same_targets(labels, reports))


def level(reports: Sequence[AuditReport]) -> float:
    """The level of the reports' intervals where they agree, else 0.95."""
    levels = {report.policy.get("confidence", LEVEL) for report in reports}
    only = levels.pop() if len(levels) == 1 else LEVEL
    return only if isinstance(only, float) and 0.5 < only < 1 else LEVEL


def references(report: AuditReport) -> tuple[str, ...]:
    """The references' digests, in an order that is the same for the same set."""
    return _models(report, "reference")


def _models(report: AuditReport, role: str) -> tuple[str, ...]:
    return tuple(sorted(model.digest for model in report.models if model.role.startswith(role)))


def _data(report: AuditReport, role: str) -> tuple[str, ...]:
    return tuple(sorted(data.sha256 for data in report.data if data.role == role))


def _same_targets(labels: Sequence[str], reports: Sequence[AuditReport]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for label, report in zip(labels, reports, strict=True):
        if (other := seen.setdefault(report.target.digest, label)) != label:
            yield f"{other} and {label} are audits of one model: what differs is the audits' own noise."


def _card(report: AuditReport, attack: str) -> AttackCard | None:
    name = attack.split(" @ ", 1)[0]
    return next((card for card in report.attacks if card.name == name), None)


def _run(card: AttackCard | None) -> str:
    """All of an attack that decides what it measures."""
    kept = {"attack", "version", "package", "parameters", "sided"}
    return "" if card is None else _frozen(card.model_dump(mode="json", include=kept))


def _what(one: AttackCard | None, other: AttackCard | None) -> str:
    """What two cards differ in: names of parameters, or the version."""
    if one is None or other is None or (one.attack, one.package) != (other.attack, other.package):
        return "code"
    names = [
        name
        for name in sorted({*one.parameters, *other.parameters})
        if one.parameters.get(name) != other.parameters.get(name) or (name in one.parameters) != (name in other.parameters)
    ]
    return ("parameters: " + ", ".join(names)) if names else "versions"


def _rule(report: AuditReport) -> dict[str, Any]:
    """The policy without its words."""
    return {key: value for key, value in report.policy.items() if key not in ("name", "description", "pictures")}


def _seed(report: AuditReport) -> object:
    settings = report.plan.get("config")
    run = settings.get("run") if isinstance(settings, dict) else None
    return run.get("seed") if isinstance(run, dict) else None


def _frozen(value: object) -> str:
    return json.dumps(sorted(map(str, value)) if isinstance(value, set) else value, sort_keys=True, default=str)


CHECKS: tuple[tuple[Callable[[AuditReport], object], str], ...] = (
    (references, "The references differ: a difference between gaps holds theirs too, and not the targets' alone."),
    (lambda report: _models(report, "original"), "The originals differ: the positive controls are not the same."),
    (_rule, "The policies differ: verdicts were given by other rules, and a better one need not mean less residue."),
    (
        lambda report: report.plan.get("task_digest"),
        "What was asked differs: another template, or other data beside the forget set.",
    ),
    (_seed, "The seeds differ: prompts and subsets were drawn anew, which adds chance to every difference."),
    (lambda report: report.tool, "The audits were run by different versions of muaudit."),
    (lambda report: report.plan.get("versions"), "The audits were run with different versions of libraries."),
    (
        lambda report: {key_of(one) for one in report.findings},
        "The batteries differ: an attack that one audit lacks might have failed it.",
    ),
)
"""What two audits may differ in and still be compared, each with what that means for a reader."""
