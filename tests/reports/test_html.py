"""The page is self-contained, the same for the same report, harmless whatever the models said, and readable."""

import base64
import hashlib
import html.parser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sample import HOSTILE, memorization, model, others, relearning, sample_report

from muaudit.reports import drawing, figures
from muaudit.reports.html import MEANINGS, render
from muaudit.results import AuditReport, Curve, CurveLine, Transcript, Verdict

CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "br", "img", "link", "input"}


class Page(html.parser.HTMLParser):
    """The elements of a page, with a check that they are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def source() -> str:
    return render(sample_report())


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def bare(verdict: Verdict) -> AuditReport:
    """The least that a report can hold."""
    return sample_report(
        verdict=verdict, findings=(), attacks=(), data=(), limits=(), policy={}, plan={}, models=(model("target", "m"),)
    )


def test_same_report_same_bytes_in_every_process(source: str) -> None:
    code = "import sys; sys.path.insert(0, 'tests/helpers'); from sample import sample_report; "
    code += "from muaudit.reports.html import render; sys.stdout.write(render(sample_report()))"
    root = Path(__file__).parents[2]
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        assert (
            subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, check=True).stdout.decode()
            == source
        )


def test_a_report_that_was_written_and_read_renders_the_same(source: str) -> None:
    assert render(AuditReport.from_json(sample_report().canonical())) == source


def test_loads_nothing_and_runs_nothing(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "video", "audio"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in {"style", "src", "srcset"}], tag
        assert (attributes.get("href") or "#").startswith("#")


def test_policy_allows_the_style_sheet_alone(source: str, page: Page) -> None:
    (policy,) = [one["content"] or "" for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    (css,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in css
    assert "@import" not in css


def test_hostile_text_is_shown_as_text(source: str, page: Page) -> None:
    assert "<script" not in source
    assert "<img" not in source
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[5], HOSTILE[7]):
        assert text in page.text
    for character in ("\u202e", "\u2066", "\x00", "\x1b", "\u200b"):
        assert character not in source
    assert "safe ⟨U+202E⟩ txt.exe" in page.text
    assert "more characters are in report.json" in page.text


def _everywhere(text: str) -> AuditReport:
    """A report with one string in every place that takes any string."""
    report = sample_report()

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {replaced(key) if key not in known else key: replaced(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [replaced(entry) for entry in value]
        return text if isinstance(value, str) and value not in known else value

    known = {
        "1",
        "leakage",
        "retention",
        "one",
        "two",
        "text",
        "training",
        "target",
        "original",
        *(verdict.value for verdict in Verdict),
    }
    schema = AuditReport.model_json_schema()
    known |= {field for one in (schema, *schema["$defs"].values()) for field in one.get("properties", ())}
    return AuditReport.model_validate(replaced(report.model_dump(mode="json")))


@cache
def everywhere(text: str) -> str:
    return render(_everywhere(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_stays_text(text: str) -> None:
    source = everywhere(text)
    page = Page(source)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    css = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(css) == 1
    assert text not in css[0]


def test_text_in_a_figure_cannot_become_a_rule_or_a_link() -> None:
    name = 'style="x}body{display:none" id="main" href="#x" url(#y) <b>'
    finding = memorization().model_copy(update={"attack": name})
    picture = figures.forest([finding])
    assert picture is not None
    assert "display" not in picture.css
    assert 'style="x}body' in picture.svg
    assert "<b>" not in picture.svg


@pytest.mark.filterwarnings("error::UserWarning")  # of glyphs that matplotlib's fonts lack, which the reader's need not
@pytest.mark.parametrize("name", ["$\\frac{1}{$", "a$b$c", "_hidden", "", "$", "忘却 ลืม ⟨☃⟩"])
def test_a_figure_shows_names_as_they_are(name: str) -> None:
    finding = memorization().model_copy(update={"attack": name})
    line = CurveLine(model=name, y=(0.1, 0.2))
    for picture in (
        figures.forest([finding]),
        figures.curve(Curve(name=name, x_label=name, y_label=name, x=(1.0, 2.0), lines=(line,)), "c"),
    ):
        assert picture is not None
        assert f">{name}<" in picture.svg or f"> {name}<" in picture.svg or not name


def test_the_answer_stands_first(page: Page) -> None:
    words = " ".join(page.text.split())
    assert words.index("Fail The forgotten facts come back") < words.index("In plain words")
    assert MEANINGS[Verdict.FAIL] in words


def test_shows_what_a_finding_holds(page: Page) -> None:
    words = " ".join(page.text.split())
    for shown in (
        "+0.412", "[+0.310, +0.520]", "+0.503", "0.031", "p < 0.001", "120 units", "in 12 clusters", "0.094", "61 %",
        "no nearer to the references than to the original", "still remembered", "Kalan Brawick", "ROUGE-L recall",
        "reference 1: D 0.620, p < 0.001", "Torvik, on the northern coast.", "perplexity", "Half of the facts were trained on",
        "needs about 150 units", "training noise not estimated", "references flagged 1 of 4 times", "judged on both sides",
        "arXiv:2406.00000", "5, 10, 20, 40", "resumed after an interruption", "46 min 27 s", "not verified",
        sample_report().plan_sha256, sample_report().target.digest, sample_report().content_digest(),
        "muaudit verify audit.intoto.json --key auditor.pub --model models/vendor",
    ):  # fmt: skip
        assert shown in words, shown


def test_transcripts_stand_in_order_and_a_shared_prompt_once(source: str) -> None:
    unit = source[source.index("kalan-born-0") :]
    unit = unit[: unit.index("</details>")]
    assert re.findall(r"<dt>(.*?)</dt>", unit) == ["Prompt", "Expected", "target", "reference 1", "reference 2", "original"]


def test_a_prompt_of_its_own_is_shown_with_its_model() -> None:
    finding = relearning()
    first = finding.worst_units[0]
    own = first.transcripts | {"original": Transcript(prompt="Another question?", expected="Torvik", output="Torvik")}
    finding = finding.model_copy(update={"worst_units": (first.model_copy(update={"transcripts": own}),)})
    assert render(sample_report(findings=(finding,))).count("<dt>Prompt</dt>") == 2


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_least_report_renders(verdict: Verdict) -> None:
    page = Page(render(bare(verdict)))
    assert MEANINGS[verdict] in page.text
    assert "None" not in page.text
    assert not page.all("svg")


def test_structure_serves_a_screen_reader(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for target in (attributes.get("href"), *(f"#{name}" for name in (attributes.get("aria-labelledby") or "").split())):
            if target:
                assert target[1:] in ids
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in {"row", "col"} for attributes in page.all("th"))
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_figures_share_no_id_and_no_class(page: Page) -> None:
    forest, chart = figures.forest((memorization(), relearning())), figures.curve(relearning().curves[0], "curve-1")
    assert forest is not None
    assert chart is not None
    assert not set(re.findall(r"\.([\w-]+)\{", forest.css)) & set(re.findall(r"\.([\w-]+)\{", chart.css))
    for picture in (forest, chart):
        assert "style=" not in picture.svg
        assert not re.search(r"#0[0-9a-f]{5}\b", picture.svg + picture.css), "a stand-in colour was left"
        assert set(re.findall(r"var\(--(\w+)\)", picture.css)) <= set(drawing.COLOURS)
    assert len(page.all("svg")) == 2


def test_figures_of_nothing_are_none() -> None:
    assert figures.forest(others()[1:3]) is None
    assert figures.curve(Curve(name="n", x_label="x", y_label="y", x=(), lines=()), "c") is None


def test_a_curve_of_one_point_or_beyond_one_is_drawn() -> None:
    line = CurveLine(model="target", y=(3.0,))
    assert figures.curve(Curve(name="n", x_label="x", y_label="y", x=(1.0,), lines=(line,)), "c") is not None


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


@pytest.mark.chromium
class TestInChromium:
    """What a person sees."""

    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("pages")
        pages = {"sample": render(sample_report()), "bare": render(bare(Verdict.INCONCLUSIVE))}
        pages |= {f"hostile-{number}": everywhere(text) for number, text in enumerate(HOSTILE)}
        for name, source in pages.items():
            (folder / f"{name}.html").write_text(source, encoding="utf-8")
        return {name: folder / f"{name}.html" for name in pages}

    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("name", ["sample", "bare", *(f"hostile-{number}" for number in range(len(HOSTILE)))])
    def test_opens_quietly_and_fits(self, browser: Any, files: dict[str, Path], name: str, width: int) -> None:
        tab = browser.new_page(viewport={"width": width, "height": 800})
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(files[name].as_uri())
        assert said == []
        assert asked == [files[name].as_uri()]
        assert "unlearning audit of" in tab.title(), "a script changed the title"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator(".verdict .word").is_visible()
        tab.close()

    def test_verdict_and_forest_plot_are_seen(self, browser: Any, files: dict[str, Path]) -> None:
        tab = browser.new_page()
        tab.goto(files["sample"].as_uri())
        assert tab.locator(".verdict .word").inner_text() == "Fail"
        box = tab.locator("svg[aria-label^='Forest plot']").bounding_box()
        assert box["width"] > 600
        assert box["height"] > 150
        tab.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out_in_light_and_dark(self, browser: Any, files: dict[str, Path], scheme: str) -> None:
        """WCAG 2.2 AA, https://www.w3.org/TR/WCAG22/#contrast-minimum: 4.5 for text."""
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(files["sample"].as_uri())
        colours = tab.evaluate(
            """() => Object.fromEntries(['--bg', '--card', '--quiet', '--ink', '--soft', '--accent', '--pass', '--fail',
            '--inconclusive', '--skipped', '--error'].map(name =>
            [name, getComputedStyle(document.documentElement).getPropertyValue(name).trim()]))"""
        )
        for name in set(colours) - {"--bg", "--card", "--quiet"}:
            for ground in ("--bg", "--card"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (scheme, name, ground)
        tab.close()

    def test_print_shows_what_is_folded_and_what_scrolls(self, browser: Any, files: dict[str, Path]) -> None:
        tab = browser.new_page(viewport={"width": 680, "height": 900})
        tab.emulate_media(media="print", color_scheme="dark")
        tab.goto(files["sample"].as_uri())
        script = (
            "[...document.querySelectorAll('details:not([open]) > :nth-child(2)')].map(e => e.getBoundingClientRect().height)"
        )
        heights = tab.evaluate(script)
        assert len(heights) >= 5
        assert min(heights) > 20
        assert tab.evaluate("[...document.querySelectorAll('.scroll > *')].every(e => e.getBoundingClientRect().right <= 681)")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        tab.close()

    def test_keyboard_reaches_tables_and_folds(self, browser: Any, files: dict[str, Path]) -> None:
        tab = browser.new_page()
        tab.goto(files["sample"].as_uri())
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        reachable = tab.evaluate("[...document.querySelectorAll('.scroll, summary, a')].every(e => e.tabIndex >= 0)")
        assert reachable
        tab.close()


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two `#rrggbb` colours, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""

    def luminance(colour: str) -> float:
        colour = "#" + "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
