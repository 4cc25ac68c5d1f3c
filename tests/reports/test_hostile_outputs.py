"""Whatever a model says is only seen: no script runs, no request leaves, no page is built otherwise, no terminal is steered."""

import io
import os
import re
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hostile import everywhere, full_report, said
from markdown_it import MarkdownIt
from payloads import ALL, KINDS, PROBE
from rich.console import Console
from sample import relearning, sample_report

from muaudit.reports import comparison, comparison_page, comparison_table, html, junit, markdown, sarif, terminal
from muaudit.reports.text import visible
from muaudit.results import AuditReport, Transcript

CHROMIUM = Path("/usr/bin/chromium")
SMALL = {kind: payloads for kind, payloads in KINDS.items() if kind != "long"}
GROUPS = {
    name: tuple(payload for kind in name.split() for payload in SMALL[kind])
    for name in ("html sarif", "terminal bidi spreadsheet xml", "markdown plain")
}
"""What stands on one page together."""

STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""What steers a terminal or turns a line round."""

COUNTED = "section article h1 h2 h3 h4 table caption tr td th ul li details summary dl dt dd figure svg pre p nav footer a img"
DANGEROUS = (
    "script, iframe, object, embed, link, base, form, input, button, textarea, video, audio, source, template, math, "
    "animate, foreignObject, marquee, meta[http-equiv=refresh], a:not([href^='#']), img:not([src^='data:image/png'])"
)


def benign(texts: tuple[str, ...]) -> tuple[str, ...]:
    """As many different texts that want nothing."""
    return tuple(f"benign text {number}" for number in range(len(texts)))


def two(texts: tuple[str, ...]) -> list[tuple[str, AuditReport]]:
    """Two audits of one forget set, under the first two texts."""
    report = everywhere(*texts)
    later = report.model_copy(update={"run": report.run.model_copy(update={"total_seconds": 1.0})})
    return [(texts[0], report), (texts[1], later)]


def compared(texts: tuple[str, ...]) -> comparison.Comparison:
    return comparison.compare(two(texts))


def long_report() -> AuditReport:
    """Answers of up to ten million characters, and names too."""
    finding = relearning()
    unit = finding.worst_units[0]
    units = [
        unit.model_copy(
            update={"id": text, "cluster": text, "transcripts": {"target": Transcript(prompt=text, expected=text, output=text)}}
        )
        for text in KINDS["long"]
    ]
    reason = KINDS["long"][0]
    return sample_report(findings=(finding.model_copy(update={"worst_units": tuple(units), "reason": reason}),), reason=reason)


def page_of_markdown(report: AuditReport) -> str:
    """The document as a lenient code host would show it: with HTML, links and bare addresses, and without any policy."""
    body = MarkdownIt("gfm-like", {"html": True, "linkify": True}).render(markdown.render(report))
    return f"<!DOCTYPE html><html><head><meta charset=utf-8><title>quiet</title></head><body>{body}</body></html>"


@dataclass
class Recorder:
    """A server that payloads point at; keeps every first line that it was sent."""

    port: int = 0
    heard: list[bytes] = field(default_factory=list)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    kept = Recorder()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            kept.heard.append(self.rfile.readline())
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        kept.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield kept
        server.shutdown()


@pytest.fixture(scope="module")
def browser(recorder: Recorder) -> Iterator[Any]:
    """Chromium that reaches the recorder under every name."""
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    rules = f"--host-resolver-rules=MAP {PROBE}:80 127.0.0.1:{recorder.port}, MAP * ~NOTFOUND"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", rules]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """What happened while a page was open, and how it is built."""

    title: str
    events: list[str]
    built: dict[str, int]
    text: str


@pytest.mark.chromium
class TestInChromium:
    """Real pages in a real browser."""

    @pytest.fixture(scope="class")
    def tab(self, browser: Any) -> Iterator[Any]:
        tab = browser.new_page(viewport={"width": 1000, "height": 800})
        yield tab
        tab.close()

    def look(self, tab: Any, recorder: Recorder, path: Path) -> Seen:
        """Opens a page, opens its folds, moves over it and through it, and waits for what comes late."""
        events: list[str] = []
        heard = len(recorder.heard)

        def on_request(request: Any) -> None:
            if request.url != path.as_uri() and not request.url.startswith("data:image/png"):
                events.append(f"request {request.url}")

        listeners = {
            "request": on_request,
            "console": lambda message: events.append(f"console {message.text}"),
            "pageerror": lambda error: events.append(f"error {error}"),
            "dialog": lambda dialog: (events.append("dialog"), dialog.dismiss()),
        }
        for name, listener in listeners.items():
            tab.on(name, listener)
        tab.goto(path.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        for place in range(0, 800, 160):
            tab.mouse.move(500, place)
        for _ in range(6):
            tab.keyboard.press("Tab")
        tab.wait_for_timeout(150)
        assert tab.url == path.as_uri()
        script = "names => Object.fromEntries(names.map(name => [name, document.querySelectorAll(name).length]))"
        built = tab.evaluate(script, COUNTED.split())
        built["dangerous"] = tab.evaluate("wanted => document.querySelectorAll(wanted).length", DANGEROUS)
        handlers = (
            "[...document.querySelectorAll('*')].filter(one => [...one.attributes].some(at => at.name.startsWith('on'))).length"
        )
        built["handlers"] = tab.evaluate(handlers)
        seen = Seen(tab.title(), events, built, tab.evaluate("document.documentElement.textContent"))
        for name, listener in listeners.items():
            tab.remove_listener(name, listener)
        events += [f"heard {line!r}" for line in recorder.heard[heard:]]
        return seen

    def test_the_recorder_hears_what_a_page_asks_for(self, tab: Any, recorder: Recorder, tmp_path: Path) -> None:
        """Without this, silence would prove nothing."""
        path = tmp_path / "loud.html"
        path.write_text(f"<script>document.title='pwned'</script><img src=http://{PROBE}/pixel.png>", encoding="utf-8")
        seen = self.look(tab, recorder, path)
        assert seen.title == "pwned"
        assert f"request http://{PROBE}/pixel.png" in seen.events
        assert "heard b'GET /pixel.png HTTP/1.1\\r\\n'" in seen.events
        assert seen.built["dangerous"] == 2

    @pytest.mark.parametrize("group", GROUPS)
    @pytest.mark.parametrize("made", ["report", "markdown", "comparison"])
    def test_payloads_are_seen_and_do_nothing(
        self, tab: Any, recorder: Recorder, tmp_path: Path, group: str, made: str
    ) -> None:
        make = {
            "report": lambda texts: html.render(said(*texts)),
            "markdown": lambda texts: page_of_markdown(said(*texts)),
            "comparison": lambda texts: comparison_page.render(compared(texts)),
        }[made]
        texts = GROUPS[group]
        pages = []
        for name, given in (("hostile", texts), ("benign", benign(texts))):
            path = tmp_path / f"{name}.html"
            path.write_text(make(given), encoding="utf-8", newline="")
            pages.append(self.look(tab, recorder, path))
        hostile, quiet = pages
        assert hostile.events == quiet.events == []
        assert hostile.title != "pwned"
        assert hostile.built == quiet.built
        assert hostile.built["handlers"] == hostile.built["dangerous"] == 0
        if made == "report":
            shown = "".join(hostile.text.split())
            for text in texts:
                forms = {"".join(visible(text, lines=lines).split()) for lines in (True, False)}
                assert any(form in shown for form in forms), text

    @pytest.mark.parametrize("made", ["report", "markdown"])
    def test_ten_million_characters_open(self, tab: Any, recorder: Recorder, tmp_path: Path, made: str) -> None:
        path = tmp_path / "long.html"
        path.write_text(html.render(long_report()) if made == "report" else page_of_markdown(long_report()), encoding="utf-8")
        assert path.stat().st_size < 1_000_000
        seen = self.look(tab, recorder, path)
        assert seen.events == []
        assert "more characters are in report.json" in seen.text
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1000 or made == "markdown"

    @pytest.mark.parametrize("name", ["report.junit.xml", "report.sarif", "report.json"])
    def test_files_for_machines_do_nothing_in_a_browser_either(
        self, tab: Any, recorder: Recorder, tmp_path: Path, name: str
    ) -> None:
        made = {
            "report.junit.xml": junit.render,
            "report.sarif": sarif.render,
            "report.json": lambda one: one.canonical().decode(),
        }
        path = tmp_path / name
        path.write_text(made[name](said(*(text for texts in SMALL.values() for text in texts))), encoding="utf-8", newline="")
        seen = self.look(tab, recorder, path)
        assert seen.events == []
        assert seen.title != "pwned"


def printed(report: AuditReport, *, color: bool = False) -> str:
    out = io.StringIO()
    terminal.table(report, Console(file=out, width=80, force_terminal=color, highlight=False), folder=Path("audit"))
    return out.getvalue()


@pytest.mark.parametrize("text", [text for texts in SMALL.values() for text in texts])
def test_a_terminal_is_not_steered(text: str) -> None:
    shown = printed(everywhere(text))
    assert not STEERING.search(shown)
    assert len(shown.splitlines()) == len(printed(everywhere("benign")).splitlines())


@pytest.mark.parametrize("group", GROUPS)
def test_a_comparison_in_a_terminal_is_not_steered(group: str) -> None:
    out = {}
    for name, texts in (("hostile", GROUPS[group]), ("benign", benign(GROUPS[group]))):
        file = io.StringIO()
        comparison_table.table(compared(texts), Console(file=file, width=80, highlight=False), page=Path(texts[0]))
        out[name] = file.getvalue()
    assert not STEERING.search(out["hostile"])
    assert len(out["hostile"].splitlines()) == len(out["benign"].splitlines())


def test_long_text_is_cut_in_a_terminal() -> None:
    assert len(printed(long_report())) < 5_000


def test_payloads_are_many_and_of_every_kind() -> None:
    assert len(set(ALL)) >= 150
    assert {text for texts in GROUPS.values() for text in texts} | set(KINDS["long"]) == set(ALL)


def test_the_full_report_has_what_hostile_text_could_reach() -> None:
    report = full_report()
    assert {finding.measures for finding in report.findings} == {"leakage", "retention", "claim"}
    assert any(finding.leakages for finding in report.findings)
    assert any(finding.worst_units for finding in report.findings)
    assert report.series
    assert report.run.ledgers
