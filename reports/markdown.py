"""The report as Markdown, short enough for a pull request, and quiet there whatever the models said.

Where a page is rendered from Markdown, a name or an answer could become a link, an image that is fetched, markup, a mention
that sends somebody a message, or a row of a table. So nothing is escaped, which every renderer reads a little differently:
words of letters and plain numbers stand as they are, and all else stands as code.
"""

import re
from collections.abc import Sequence

from muaudit.reports.text import SYMBOLS, controls, errs, interval, name_of, probability, remark, signed, visible
from muaudit.results import AuditReport, Finding, UnitResult, Verdict

LIMIT = 65_536
"""Characters that code hosts take as one comment; the findings' details give way to it."""

SAID = 160
"""Characters of one answer that are shown."""

PROSE = 600
"""Characters of one reason or limit that are shown."""

UNITS = 3
"""Worst units of a failed finding that are shown."""

_WORD = r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*"
_NUMBER = r"[+-]?\d+(?:[.,]\d+)*%?"
_PLAIN = re.compile(
    rf"""[("'\u201c\u2018]{{0,2}}(?:{_WORD}|{_NUMBER})[)"'\u201d\u2019]{{0,2}}[.,;:!?\u2026]*|[\u2013\u2026=%]"""
)
_SENTENCE = re.compile(r"(?P<odd>.*[^.,;:!?\s])(?P<marks>[.,;:!?]*)", re.DOTALL)
_LIST_MARKER = re.compile(r"\d+[.)]")


def render(report: AuditReport) -> str:
    """Renders a report.

    Args:
        report: The report.

    Returns:
        A document in GitHub's Markdown without HTML, the same for the same report. The findings' details are left out, which
        is said, where it would be longer than a comment may be.
    """
    whole = _document(report, details=True)
    return whole if len(whole) <= LIMIT else _document(report, details=False)


def prose(text: str) -> str:
    """A sentence whose plain words stand as they are, and in which all else stands as code.

    Args:
        text: Any text, on one line.

    Returns:
        Markdown for a paragraph, a list entry or a cell of a table; a dash for blank text.
    """
    shown: list[str] = []
    odd: list[str] = []
    for token in visible(text, lines=False, limit=PROSE).split(" "):
        plain = _PLAIN.fullmatch(token) and (shown or odd or not _LIST_MARKER.match(token))
        if not plain:
            odd.append(token)
            continue
        if odd:
            shown.append(_quoted(odd))
            odd = []
        shown.append(token)
    if odd:
        shown.append(_quoted(odd))
    return " ".join(part for part in shown if part) or "\N{EN DASH}"


def _quoted(words: Sequence[str]) -> str:
    """Words as code, with the sentence's punctuation after them outside of it."""
    parted = _SENTENCE.fullmatch(" ".join(words))
    return code(" ".join(words)) if parted is None else code(parted["odd"]) + parted["marks"]


def code(text: str, limit: int = PROSE) -> str:
    """Text as code, on one line.

    Args:
        text: Any text.
        limit: How many characters of it are shown.

    Returns:
        A code span, fenced by more backticks than the text holds in a row; empty for blank text. A bar, which ends a cell of
        a table even within code, is shown by its code point.
    """
    shown = visible(text, lines=False, limit=limit).replace("|", "⟨U+007C⟩")
    if not shown.strip(" "):
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    padding = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _document(report: AuditReport, *, details: bool) -> str:
    parts = [
        f"# {SYMBOLS[report.verdict]} Unlearning audit: {report.verdict.value.upper()}",
        f"Why: {prose(report.reason)}",
        _facts(report),
        _table(report),
    ]
    if judged := controls(report):
        parts.append(f"Controls: {prose(judged)}.")
    if behaved := [one for one in report.conduct if one.state in ("shown", "unknown")]:
        lines = "\n".join(f"- {prose(f'{one.check} {one.model}')}: {one.state}: {prose(one.told)}" for one in behaved)
        parts.append(f"## How the models behaved\n\n{lines}")
    if details:
        parts += [_detail(finding) for finding in report.findings if finding.verdict is Verdict.FAIL]
    else:
        parts.append("What stands behind each finding is left out here, for length; it is in report.html and report.json.")
    limits = "\n".join(f"- {prose(limit)}" for limit in report.limits)
    parts.append(f"## What this does not prove\n\n{limits or 'No limits are recorded.'}")
    parts.append(
        f"Made by {prose(report.tool)} from report.json (SHA-256 of its canonical form: {code(report.content_digest())}). "
        "Check its signature with `muaudit verify` before you rely on it."
    )
    return "\n\n".join(parts) + "\n"


def _facts(report: AuditReport) -> str:
    roles = [model.role.partition(" ")[0] for model in report.models]
    references = roles.count("reference")
    rows = [
        ("Target", f"{code(report.target.path)}, digest {code(report.target.digest[:16])}"),
        (
            "Compared with",
            f"{references} reference{'' if references == 1 else 's'}{', and the original' if 'original' in roles else ''}",
        ),
        ("Policy", prose(str(report.policy.get("name", "unnamed")))),
        ("Plan, fixed before the run", code(report.plan_sha256[:16])),
        ("Finished", code(report.run.finished)),
    ]
    if (cited := report.calibration) is not None:
        rates, *differs = errs(report)
        rows.append(("Measured error rates", f"{prose(rates)}; calibration {code(cited.sha256)}"))
        rows += [("Unlike the calibration", prose(one)) for one in differs]
    if report.redaction is not None:
        told = "the forget set's texts are withheld; commitments stand in their place"
        rows.append(("Redacted", f"{told}. Sealed part: {code(report.redaction.sealed_sha256)}"))
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _table(report: AuditReport) -> str:
    if not report.findings:
        return "No attack was run."
    lines = ["| Finding | Verdict | Gap | 95 % interval | Margin | Units | Remark |", "|---|---|--:|---|--:|--:|---|"]
    for finding in report.findings:
        cells = [
            prose(name_of(finding)),
            f"{SYMBOLS[finding.verdict]} {finding.verdict.value}",
            "" if finding.gap is None else signed(finding.gap),
            "" if finding.interval is None else interval(finding.interval),
            "" if finding.margin is None else f"{finding.margin:g}",
            str(finding.units or ""),
            prose(remark(finding)) if remark(finding) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _detail(finding: Finding) -> str:
    lines = [f"## {prose(name_of(finding))}: {finding.verdict.value.upper()}", f"Why: {prose(finding.reason)}"]
    numbers = []
    if finding.p_value is not None:
        numbers.append(probability(finding.p_value))
    if finding.noise_floor is not None:
        numbers.append(f"noise floor {finding.noise_floor:.3f}")
    if finding.smallest_detectable_gap is not None:
        numbers.append(f"smallest detectable gap {finding.smallest_detectable_gap:.3f}")
    if numbers:
        lines.append(f"Numbers: {', '.join(numbers)}.")
    if finding.worst_clusters is not None:
        flagged = [one for one in finding.worst_clusters.clusters if one.flagged]
        lines += [
            "\n".join(f"- Flagged cluster {code(one.cluster)}: gap {signed(one.gap)}, {one.units} units" for one in flagged)
        ] * bool(flagged)
    if finding.worst_units:
        lines.append("\n".join(_unit(unit) for unit in finding.worst_units[:UNITS]))
    return "\n\n".join(lines)


def _unit(unit: UnitResult) -> str:
    said = unit.transcripts.get("target")
    words = f"- Unit {code(unit.id, SAID) or 'without a name'}: target {unit.target:.2f}, references {unit.references:.2f}"
    if said is None:
        return words
    return f"{words}. Expected {code(said.expected, SAID) or 'nothing'}, said {code(said.output, SAID) or 'nothing'}"
