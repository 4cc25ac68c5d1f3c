"""The whole page in a real browser: every section, on a desk and on a phone, in light and dark, on paper, by keyboard."""

import io
import os
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sample import HOSTILE, digest, memorization, others, relearning, sample_report
from unit_leakages import leakages, with_leakages

from muaudit.journal import Journal, findings_digest
from muaudit.reports.html import render
from muaudit.results import AuditReport, Conduct, Curve, CurveLine, Spent

CHROMIUM = Path("/usr/bin/chromium")

SECTIONS = (
    "In plain words", "Scope and method", "Decision rule", "All findings", "Suppressed or removed", "How the models behaved",
    "Along the series", "Each finding", "Collateral damage", "Attacks in detail", "Provenance", "Chain of custody", "Limits",
    "How to check this report",
)  # fmt: skip

LUMINANCE = """
const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
const solid = e => { for (; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
const bright = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
  return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const contrast = (a, b) => { const [x, y] = [bright(a), bright(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
"""
"""Contrast of two colours, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio, and the ground on which an element stands."""


def whole(folder: Path) -> AuditReport:
    """A report with everything that a page can show."""
    late = others()
    findings = (
        with_leakages(memorization(), leakages(240, 24, kind="binary")),
        with_leakages(relearning(), leakages(120, 12, lift=0.3)),
        with_leakages(late[0], leakages(60, 60, lift=0.04, original=False)),
        *late[1:3],
        with_leakages(late[3], leakages(400, 40, lift=-0.1)),
    )
    lines = tuple(CurveLine(model=role, y=(0.9, 0.4)) for role in ("target", "references"))
    series = (Curve(name="leakage along the series", x_label="request", y_label="mean leakage", x=(1.0, 2.0), lines=lines),)
    report = sample_report(findings=findings, series=series)
    conduct = (
        Conduct(
            check="repetition",
            model="target",
            state="shown",
            told="it answers otherwise when asked again",
            asked=40,
            differing=9,
            p_value=0.0003,
            references=(1, 120),
        ),
        Conduct(check="refusal", model="target", state="unknown", told="a filter may decline for it"),
        Conduct(check="files", model="target", state="clear", told="the files were the same at the end", asked=4),
    )
    spent = Spent(hours=0.5, queries=1200, money=3.5)
    run = report.run.model_copy(update={"spent": spent})
    report = report.model_copy(update={"conduct": conduct, "policy_sha256": digest("policy"), "run": run})
    journal = Journal(folder / "journal.jsonl")
    journal.add("started", plan=report.plan_sha256)
    journal.add("measured", attack="memorization", model=report.target.digest, role=HOSTILE[0])
    journal.add("skipped", attack="unlearndiffatk", reason=HOSTILE[4])
    concluded = {"plan": report.plan_sha256, "verdict": report.verdict.value, "tool": report.tool}
    journal.add("concluded", findings=findings_digest(findings), **concluded)
    return report.model_copy(update={"journal": tuple(journal.entries)})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> AuditReport:
    return whole(tmp_path_factory.mktemp("journal"))


@pytest.fixture(scope="module")
def source(report: AuditReport) -> str:
    return render(report)


def test_same_report_same_bytes(report: AuditReport, source: str) -> None:
    assert render(AuditReport.from_json(report.canonical())) == source


def test_a_report_of_an_earlier_release_renders(report: AuditReport) -> None:
    """It has neither journal, nor series, nor any unit's leakage."""
    import json

    old = report.model_dump(mode="json")
    for name in ("journal", "series", "code", "conduct", "policy_sha256"):
        del old[name]
    del old["run"]["spent"], old["run"]["ledgers"]
    for finding in old["findings"]:
        for name in ("leakages", "heat_maps", "pictures", "evaluator"):
            del finding[name]
    page = render(AuditReport.from_json(json.dumps(old).encode()))
    assert "This report keeps no journal of its single steps" in page
    for section in SECTIONS:
        assert (f">{section}</h2>" in page) is (section not in ("Along the series", "How the models behaved")), section


def test_the_journal_is_shown_and_its_chain_checked(report: AuditReport, source: str) -> None:
    custody = source[source.index('id="custody"') :]
    assert "the chain was whole" in custody
    assert "4 entries" in custody
    assert report.journal[1].previous[:12] in custody
    assert "&lt;script&gt;" in custody
    changed = report.journal[1].model_copy(update={"event": "compared"})
    broken = render(report.model_copy(update={"journal": (report.journal[0], changed, *report.journal[2:])}))
    assert "the chain was whole" not in broken
    assert "the journal is broken" in broken


def test_what_a_model_did_is_told_on_the_first_page_and_by_itself(source: str) -> None:
    first = source[source.index('id="plain"') : source.index('id="scope"')]
    assert "it answers otherwise when asked again" in first
    assert "a filter may decline for it" in first
    assert "the files were the same" not in first
    conduct = source[source.index('id="conduct"') : source.index('id="series"')]
    for shown in ("The files were the same at the end.", "✕ misconduct", "? could not be seen", "1 of 120", "p &lt; 0.001"):
        assert shown in conduct


def test_digest_of_the_policy_and_what_the_audit_took_are_shown(source: str) -> None:
    assert digest("policy") in source
    assert "Over all its runs it took 30 min 0 s and 1,200 queries, at a cost of about 3.5" in source


def test_what_was_not_answered_and_what_could_go_unnoticed_are_limits(source: str) -> None:
    limits = source[source.index('id="limits"') : source.index('id="check"')]
    for shown in ("not verified", "Smallest detectable gap", "0.094", "the target is a language model", "it does not load"):
        assert shown in limits


def test_damage_stands_apart_from_leakage(source: str) -> None:
    each = source[source.index('id="details"') : source.index('id="damage"')]
    damage = source[source.index('id="damage"') : source.index('id="methods"')]
    assert "(retain set)" not in each
    assert damage.count("<article") == 1
    assert "lost knowledge that it was to keep" in damage
    assert "is not known" in render(sample_report(findings=(memorization(),)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(source: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(source, encoding="utf-8")
    return path.as_uri()


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_every_section_is_seen_and_nothing_is_wider_than_the_screen(browser: Any, file: str, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 844})
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file)
    assert said == []
    assert asked == [file]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tuple(tab.locator("main h2").all_inner_texts()) == SECTIONS
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = tab.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    cut = tab.evaluate("[...document.querySelectorAll('.pair svg')].map(e => e.getBoundingClientRect().width)")
    assert len(cut) == 10
    assert min(cut) > 280
    tab.close()


@pytest.mark.chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser: Any, file: str, scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what a picture says."""
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(file)
    faint = tab.evaluate(
        "() => {" + LUMINANCE + """
        const found = [];
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        for (let node; (node = walk.nextNode());) {
          if (!node.textContent.trim()) continue;
          const e = node.parentElement, inside = e.closest('svg');
          const colour = parse(inside ? getComputedStyle(e).fill : getComputedStyle(e).color);
          const ratio = contrast(colour, solid(inside ? inside.parentElement : e));
          if (ratio < 4.5) found.push([ratio, node.textContent.slice(0, 40)]);
        } return found; }"""
    )  # fmt: skip
    assert faint == []
    lines = tab.evaluate(
        "() => {" + LUMINANCE + """
        const probe = document.body.appendChild(document.createElement('i')), found = [];
        for (const name of ['target', 'reference', 'original', 'pass', 'fail', 'inconclusive'])
          for (const ground of ['bg', 'card']) {
            probe.className = ''; const style = getComputedStyle(document.documentElement);
            const hex = v => [1, 3, 5].map(at => parseInt(v.slice(at, at + 2), 16));
            found.push([name, contrast(hex(style.getPropertyValue('--' + name).trim()),
                                       hex(style.getPropertyValue('--' + ground).trim()))]);
          } probe.remove(); return found; }"""
    )  # fmt: skip
    assert len(lines) == 12
    assert [name for name, ratio in lines if ratio < 3] == []
    tab.close()


@pytest.mark.chromium
def test_a_screen_reader_finds_its_way(browser: Any, file: str) -> None:
    tab = browser.new_page()
    tab.goto(file)
    assert tab.get_by_role("main").count() == 1
    assert tab.get_by_role("banner").count() == 1
    assert tab.get_by_role("contentinfo").count() == 1
    assert tab.get_by_role("navigation", name="Contents").count() == 1
    for name in SECTIONS:
        assert tab.get_by_role("region", name=name, exact=True).count() == 1, name
    links = tab.evaluate("[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash)?.textContent)")
    assert tuple(links) == SECTIONS
    named = "[...document.querySelectorAll('svg.figure')].every(e => e.getAttribute('aria-label').length > 30)"
    assert tab.evaluate(named)
    heads = (
        "[...document.querySelectorAll('table')].every(t => t.caption && [...t.rows].every(r => r.querySelector('th[scope]')))"
    )
    assert tab.evaluate(heads)
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => Number(h.tagName[1]))")
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    tab.close()


@pytest.mark.chromium
def test_focus_is_seen_wherever_it_goes(browser: Any, file: str) -> None:
    tab = browser.new_page()
    tab.goto(file)
    tab.keyboard.press("Tab")
    box = tab.locator(".skip").bounding_box()
    assert box["x"] >= 0, "the skip link is shown when it has the focus"
    tab.keyboard.press("Enter")
    seen = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        kind, outline = tab.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); return "
            "[e.tagName + (e.className ? '.' + e.className : ''), s.outlineStyle + ' ' + parseFloat(s.outlineWidth)]; })()"
        )
        seen.add(kind)
        assert outline == "solid 2", kind
    assert {"A", "DIV.scroll", "SUMMARY"} <= seen
    tab.close()


@pytest.mark.chromium
def test_paper_holds_every_section_and_all_that_is_folded(browser: Any, file: str) -> None:
    from pypdf import PdfReader

    tab = browser.new_page(color_scheme="dark")
    tab.goto(file)
    pages = [
        " ".join(unicodedata.normalize("NFKC", page.extract_text()).split())  # the browser sets ligatures
        for page in PdfReader(io.BytesIO(tab.pdf(format="A4"))).pages
    ]
    tab.close()
    text = " ".join(pages)
    first = pages[0]
    for section in SECTIONS:
        assert section in text, section
    for answer in ("Fail", "What was claimed", "What was tested", "What was found", "What this does not prove"):
        assert answer in first, f"{answer} is not on the first page"
    for folded in ("mira-born-7", "tokenizer.json", "Share of units by leakage", '"seed": "2026"', "reference 3 0.060 0.080"):
        assert folded in text, folded
    assert 10 < len(pages) < 45


@pytest.mark.chromium
def test_nothing_is_cut_at_the_edge_of_paper(browser: Any, file: str) -> None:
    tab = browser.new_page(viewport={"width": 672, "height": 900})  # A4 without its margins, at 96 dots an inch
    tab.emulate_media(media="print")
    tab.goto(file)
    cut = tab.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 673)
        .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert cut == []
    tab.close()
