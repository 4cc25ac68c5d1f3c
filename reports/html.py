"""The report as one HTML file: no script, nothing loaded, every string of a vendor's model escaped and made visible.

The page forbids itself everything but its own style sheet (by hash), so that even a hole in the escaping would run nothing.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from muaudit.reports import figures
from muaudit.reports.text import SHOWN, SYMBOLS, controls, interval, name_of, percent, probability, remark, signed, visible
from muaudit.results import AuditReport, Control, Curve, Finding, HeatMap, Verdict
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


@dataclass(frozen=True)
class Chart:
    """A curve and its picture."""

    curve: Curve
    svg: Markup


@dataclass(frozen=True)
class Map:
    """The heat maps of one kind, each with its picture, and the means by layer: its name, and one number a heat map."""

    name: str
    drawn: tuple[tuple[HeatMap, Markup], ...]
    means: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True)
class FindingView:
    """A finding with what the page needs beside it; controls are paired with whether they should be flagged."""

    number: int
    finding: Finding
    curves: tuple[Chart, ...]
    maps: tuple[Map, ...]
    controls: tuple[tuple[Control, bool], ...]
    summary_names: tuple[str, ...]


def render(report: AuditReport) -> str:
    """Renders a report.

    Args:
        report: The report.

    Returns:
        One HTML document, the same bytes for the same report.
    """
    report = AuditReport.from_json(report.canonical())  # so that the page of a report that was just made is that of its file
    pictures: list[figures.Picture] = []

    def inlined(picture: figures.Picture | None) -> Markup | None:
        if picture is None:
            return None
        pictures.append(picture)
        return Markup(picture.svg)  # noqa: S704 - our own SVG; its text is escaped by matplotlib

    forest = inlined(figures.forest(report.findings))
    along = [(curve, inlined(figures.curve(curve, f"series-{place}"))) for place, curve in enumerate(report.series)]
    views = [_view(number, finding, inlined) for number, finding in enumerate(report.findings, 1)]
    css = _template("report.css") + "".join(picture.css for picture in pictures)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    images = "img-src data:; " if any(finding.pictures for finding in report.findings) else ""
    return _environment().get_template("report.html.j2").render(
        report=report,
        css=Markup(css),  # noqa: S704 - our own style sheet
        policy=Markup(f"default-src 'none'; style-src 'sha256-{digest}'; {images}base-uri 'none'; form-action 'none'"),  # noqa: S704
        meaning=MEANINGS[report.verdict],
        standing=[words for words in (STANDING.get(report.verdict), *_about(report), *ALWAYS) if words],
        references=[model for model in report.models if model.role.startswith("reference")],
        original=any(model.role == "original" for model in report.models),
        measured=list(dict.fromkeys(finding.attack for finding in report.findings if finding.gap is not None)),
        forgotten=_forgotten(report),
        forest=forest,
        along=[Chart(curve, svg) for curve, svg in along if svg is not None],
        views=views,
        controls=controls(report),
        digest=report.content_digest(),
        quoted=shlex.quote(visible(report.target.path, lines=False)),
        symbols=SYMBOLS,
    ) + "\n"  # fmt: skip


def _view(number: int, finding: Finding, inlined: Callable[[figures.Picture | None], Markup | None]) -> FindingView:
    drawn = [(curve, inlined(figures.curve(curve, f"curve-{number}-{place}"))) for place, curve in enumerate(finding.curves)]
    judged = finding.controls
    positive = ((judged.positive, True),) if judged and judged.positive else ()
    return FindingView(
        number=number,
        finding=finding,
        curves=tuple(Chart(curve, svg) for curve, svg in drawn if svg is not None),
        maps=tuple(_maps(number, finding, inlined)),
        controls=(*positive, *((control, False) for control in (judged.negative if judged else ()))),
        summary_names=tuple(dict.fromkeys(name for values in finding.summaries.values() for name in values)),
    )


def _about(report: AuditReport) -> tuple[str, ...]:
    """What the answer is about; of an endpoint, the audit's own limits say it."""
    return () if report.target.kind == "endpoint" else (FILES,)


def _maps(number: int, finding: Finding, inlined: Callable[[figures.Picture | None], Markup | None]) -> Iterable[Map]:
    drawn = [(one, inlined(figures.heat_map(one, f"map-{number}-{place}"))) for place, one in enumerate(finding.heat_maps)]
    for name in dict.fromkeys(one.name for one in finding.heat_maps):
        alike = tuple((one, svg) for one, svg in drawn if one.name == name and svg is not None)
        rows = alike[0][0].rows if alike else ()
        yield Map(
            name, alike, tuple((row, tuple(_mean(one.values[place]) for one, _ in alike)) for place, row in enumerate(rows))
        )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _forgotten(report: AuditReport) -> str:
    sets = [data for data in report.data if data.role == "forget"]
    if not sets:
        return "as recorded in the measurements"
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
        "words": lambda key: key.replace("_", " "),
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


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
