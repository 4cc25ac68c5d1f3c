"""The report as one HTML file: no script, nothing loaded, every string of a vendor's model escaped and made visible.

The page forbids itself everything but its own style sheet (by hash), so that even a hole in the escaping would run nothing.
"""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from muaudit.errors import VerificationError
from muaudit.journal import check
from muaudit.reports import figures, reading
from muaudit.reports.finding_view import Album, charts, view
from muaudit.reports.text import (
    SHOWN,
    SYMBOLS,
    controls,
    errs,
    interval,
    name_of,
    percent,
    probability,
    remark,
    signed,
    visible,
)
from muaudit.results import AuditReport, Verdict
from muaudit.thumbnails import inert

T = TypeVar("T")

PROSE = 600
"""Characters of a reason, a note or a parameter that are shown."""

MEANINGS = {
    Verdict.PASS: "All that the policy requires was shown: these attacks cannot tell the target from models that never saw the "
    "forget set by more than the policy's margin.",
    Verdict.FAIL: "At least one finding lies beyond both the policy's margin and the differences that training noise alone "
    "makes between models that never saw the forget set.",
    Verdict.INCONCLUSIVE: "The evidence settles neither that residue is left nor that the target is equivalent to models that "
    "never saw the forget set. This is not a pass.",
    Verdict.SKIPPED: "No attack could be run, so nothing is known. This is not a pass.",
    Verdict.ERROR: "The audit broke before it could answer, so nothing is known. This is not a pass.",
}

STANDING = {
    Verdict.PASS: "A pass is not proof of erasure: a stronger attack, a larger budget or other questions may find one.",
    Verdict.FAIL: "A fail shows residue under these attacks; it does not say how much a stronger attack would recover.",
}
FILES = "The answer is about these very model files (see the digests), not about other versions of the model."
ALWAYS = (
    "It rests on the references: were they trained on the forget set after all, residue in the target would not stand out.",
)


def render(report: AuditReport) -> str:
    """Renders a report.

    Args:
        report: The report.

    Returns:
        One HTML document, the same bytes for the same report.
    """
    report = AuditReport.from_json(report.canonical())  # so that the page of a report that was just made is that of its file
    album = Album()
    forest = album.add(figures.forest(report.findings))
    along = charts(report.series, "series", album)
    views = [view(number, finding, album) for number, finding in enumerate(report.findings, 1)]
    return page(
        "report.html.j2",
        album.css,
        images=any(finding.pictures for finding in report.findings),
        report=report,
        meaning=MEANINGS[report.verdict],
        standing=_standing(report),
        references=[model for model in report.models if model.role.startswith("reference")],
        original=any(model.role == "original" for model in report.models),
        measured=list(dict.fromkeys(finding.attack for finding in report.findings if finding.gap is not None)),
        forgotten=_forgotten(report),
        forest=forest,
        along=along,
        views=views,
        on_forget=[one for one in views if one.finding.measures != "retention"],
        on_retain=[one for one in views if one.finding.measures == "retention"],
        reading=reading.read(report),
        looks_at=reading.LEVELS,
        journal_fault=_journal_fault(report),
        controls=controls(report),
        errs=errs(report),
        digest=report.content_digest(),
        quoted=shlex.quote(visible(report.target.path, lines=False)),
        symbols=SYMBOLS,
    )


def page(template: str, rules: str, *, images: bool = False, **values: object) -> str:
    """One self-contained page that forbids itself everything but its own style sheet.

    Args:
        template: The template, which prints `policy` and `css` in its head.
        rules: Style rules of the page's pictures.
        images: Whether the page holds images; even then it may load none.
        **values: What the template shows; every string is made visible and escaped.

    Returns:
        One HTML document.
    """
    css = _template("report.css") + rules
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    sources = "img-src data:; " if images else ""
    policy = Markup(f"default-src 'none'; style-src 'sha256-{digest}'; {sources}base-uri 'none'; form-action 'none'")  # noqa: S704
    found = _environment().get_template(template)
    return found.render(css=Markup(css), policy=policy, **values) + "\n"  # noqa: S704 - our own style sheet


def _standing(report: AuditReport) -> tuple[str, ...]:
    """What the answer does not prove, whatever the audit; the rest is in the report's own limits, where it has any."""
    always = () if report.limits else (*(() if report.target.kind == "endpoint" else (FILES,)), *ALWAYS)
    return (*((STANDING[report.verdict],) if report.verdict in STANDING else ()), *always)


def _journal_fault(report: AuditReport) -> str | None:
    """Why the report's journal cannot be trusted; None where its chain is whole, or where it has none."""
    try:
        check(report)
    except VerificationError as error:
        return str(error)
    return None


def _forgotten(report: AuditReport) -> str:
    sets = [data for data in report.data if data.role == "forget"]
    if not sets:
        asked = max((one for one in report.findings if one.measures == "leakage"), key=lambda one: one.units, default=None)
        if asked is None or not asked.units:
            return "as recorded in the measurements"
        return f"{_count(asked.units, 'unit')} in {_count(asked.clusters, 'cluster')}, as recorded"
    return f"{_count(sum(data.units for data in sets), 'unit')} in {_count(sum(data.clusters for data in sets), 'cluster')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown
    )
    environment.filters |= {
        "name": name_of,
        "remark": remark,
        "count": _count,
        "duration": _duration,
        "inert": lambda png: Markup(inert(png) or ""),  # noqa: S704 - base64 of our own encoding
        "json": lambda value: _long(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True), 100 * SHOWN),
        "long": _long,
        "line": lambda text: visible(text, lines=False, limit=300),
        "plain": _plain,
        "roles": _roles,
        "sentence": lambda text: text[:1].upper() + text[1:] + ("" if text.rstrip().endswith((".", "!", "?")) else "."),
        "sentence_case": lambda text: text[:1].upper() + text[1:],
        "words": lambda key: key.replace("_", " "),
        "shortened": lambda text: re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", r"\1…", text),
        **{name: _or_dash(show) for name, show in _NUMBERS.items()},
    }
    return environment


_NUMBERS: dict[str, Callable[[Any], str]] = {
    "signed": signed,
    "interval": interval,
    "percent": percent,
    "probability": probability,
    "number": lambda value: f"{value:.3f}",
    "general": lambda value: f"{value:,.4g}",
}


def _template(name: str) -> str:
    return (resources.files("muaudit.reports") / "templates" / name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Every string that a template prints passes here, so that none can be forgotten; jinja then escapes it.

    The limit keeps a browser from working for minutes on where to break names of thousands of letters.
    """
    return visible(value, limit=PROSE) if isinstance(value, str) and not isinstance(value, Markup) else value


def _long(text: str, limit: int = SHOWN) -> Markup:
    """Text that may be longer than prose, such as a transcript."""
    return escape(visible(text, limit=limit))


def _or_dash(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "\N{EN DASH}" if value is None else show(value)


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{seconds:.1f} s"
        if seconds < 60
        else f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {rest} s"
    )


def _plain(value: object) -> str:
    if value in ((), [], {}, None):
        return "none"
    if isinstance(value, list | tuple) and value and all(isinstance(entry, str | int | float) for entry in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _roles(by_role: Mapping[str, T]) -> Iterable[tuple[str, T]]:
    """The target first, then the references, then the original."""
    order = {"target": 0, "original": 2}
    return sorted(by_role.items(), key=lambda entry: (order.get(entry[0], 1), len(entry[0]), entry[0]))
