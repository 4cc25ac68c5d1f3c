"""Words and numbers as every report shows them, and hostile text made harmless to look at.

What a vendor's model said can hold characters that hide, reorder or recolour what a reader sees; they are shown as their code
points. That is for the eye alone: escaping markup is the business of whoever writes HTML or a terminal.
"""

import unicodedata
from collections.abc import Sequence

from muaudit.citation import Rate
from muaudit.results import AuditReport, Finding, Ledger, Verdict
from muaudit.sealing import TOKEN

SHOWN = 4_000
"""Characters of one string that are shown; the rest is in report.json."""

SYMBOLS = {Verdict.PASS: "✓", Verdict.FAIL: "✕", Verdict.INCONCLUSIVE: "?", Verdict.SKIPPED: "\N{EN DASH}", Verdict.ERROR: "!"}
"""One sign a verdict, so that colour is never the only cue."""

_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"})


def visible(text: str, *, lines: bool = True, limit: int = SHOWN, whole: bool = False) -> str:
    """Shows what would be invisible, and cuts what is too long to read, saying so.

    Args:
        text: Any text.
        lines: Whether line ends and tabs stay; otherwise they are shown too.
        limit: How many characters to keep.
        whole: Whether what stands for a withheld text stays whole; otherwise it is shown as `[redacted 1a2b3c4d]`.

    Returns:
        The text with control, format, private and unassigned characters written as `⟨U+202E⟩`.
    """
    keep = "\n\t" if lines else ""
    if not whole and "redacted:" in text:
        text = TOKEN.sub(lambda found: f"[redacted {found[0].rpartition(':')[2][:8]}]", text)
    cut = text[:limit]
    if not cut.isascii() or not cut.isprintable():
        cut = "".join(
            character if character in keep or unicodedata.category(character) not in _HIDDEN else f"⟨U+{ord(character):04X}⟩"
            for character in cut
        )
    return cut if len(text) <= limit else f"{cut} … ({len(text) - limit:,} more characters are in report.json)"


def name_of(finding: Finding) -> str:
    """A finding's name: the attack, and what else than the forget set it is about."""
    return named(finding.attack, finding.measures)


def named(attack: str, measures: str) -> str:
    """The name of a finding of an attack that `measures` leakage, retention or a claim."""
    return f"{attack}{ {'leakage': '', 'retention': ' (retain set)', 'claim': ' (claim)'}[measures] }"


def signed(number: float, digits: int = 3) -> str:
    """A number with its sign: `+0.412`."""
    return f"{round(number, digits) + 0.0:+.{digits}f}"  # nothing is written as -0.000


def interval(bounds: tuple[float, float]) -> str:
    """An interval: `[-0.010, +0.016]`."""
    return f"[{signed(bounds[0])}, {signed(bounds[1])}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `text`, `text and logits`, `text, logits and weights`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(share: float) -> str:
    """A share: `61 %`."""
    return f"{round(100 * share)} %"


def probability(p: float) -> str:
    """A p-value, never written as zero: `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def remark(finding: Finding) -> str:
    """What a reader wants to know next, in a few words."""
    if finding.gap is None:
        return finding.reason
    if finding.verdict is Verdict.FAIL and finding.measures == "retention":
        return "lost knowledge that it was to keep"
    if finding.verdict is Verdict.FAIL and finding.recovered_share is not None:
        return f"recovers {percent(finding.recovered_share)} of what the original knew"
    if finding.verdict is Verdict.FAIL and finding.worst_clusters and any(c.flagged for c in finding.worst_clusters.clusters):
        return f"worst: {finding.worst_clusters.clusters[0].cluster}"
    if finding.verdict is Verdict.INCONCLUSIVE and finding.needed_units is not None and finding.needed_units > finding.units:
        return f"needs about {finding.needed_units - finding.units} more units"
    return finding.reason if finding.verdict is Verdict.INCONCLUSIVE else ""


def asked(ledger: Ledger) -> str:
    """What an endpoint was asked in this run, in one line."""
    run = ledger.run
    words = [
        f"{ledger.role} ({ledger.endpoint}): {run.requests:,} requests ({run.retries:,} retries, {run.failures:,} failures)",
        f"{run.reused:,} answers reused",
        f"{run.prompt_tokens:,} + {run.completion_tokens:,} tokens",
    ]
    if run.unmetered:
        words.append(f"not counted by the server in {run.unmetered:,} answers")
    if run.cost is not None:
        words.append(f"about {run.cost:,.4g} in the currency of the prices")
    return ", ".join(words)


def controls(report: AuditReport) -> str:
    """How the models whose answer is known were judged, over all findings; empty where there are none."""
    found = [finding.controls for finding in report.findings if finding.controls]
    positive = [control.positive.flagged for control in found if control.positive]
    negative = [one.flagged for control in found for one in control.negative]
    words = []
    if positive:
        words.append(f"original flagged {sum(positive)} of {len(positive)} times (should be all)")
    if negative:
        words.append(f"references flagged {sum(negative)} of {len(negative)} times (should be none)")
    return "; ".join(words)


def errs(report: AuditReport) -> tuple[str, ...]:
    """How often such audits err, as was measured, and in what this one differs; empty where the report cites no calibration.

    Returns:
        The rates in one phrase, then one phrase a difference.
    """
    cited = report.calibration
    if cited is None:
        return ()
    parts = []
    if cited.false_alarm is not None:
        parts.append(f"honest models failed {_of(cited.false_alarm)} (at most {100 * cited.false_alarm.bound:.1f} %)")
    if cited.passed is not None:
        parts.append(f"honest models passed {_of(cited.passed)}")
    if cited.detection is not None:
        parts.append(f"models that know failed {_of(cited.detection)}")
    if cited.missed is not None:
        parts.append(f"models that know or hide passed {_of(cited.missed)}")
    return (f"under policy {cited.policy}: {', '.join(parts)}" if parts else "no rates of this policy", *cited.differs)


def _of(rate: Rate) -> str:
    return f"{rate.hits} of {rate.total}"
