"""What models drew: in the page as pixels alone, told in words, harmless whatever they are; seen in a real browser."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample import HOSTILE, memorization, sample_report

from muaudit.reports.html import render
from muaudit.results import EvaluatorErrors, Finding, Picture, PictureRow
from muaudit.thumbnails import thumbnail

CHROMIUM = Path("/usr/bin/chromium")


def drawn(shade: float, *, prompt: str = "a drawing of three", label: str = "plain", shows: bool = False) -> Picture:
    png = thumbnail(np.full((1, 8, 8), shade, dtype=np.float32))
    return Picture(label=label, prompt=prompt, png=png, shows=shows)


def finding(*rows: PictureRow) -> Finding:
    known = EvaluatorErrors(present=200, found=190, absent=300, mistaken=2)
    return memorization().model_copy(update={"pictures": rows, "evaluator": known})


def row(**changes: Any) -> PictureRow:
    models = {
        "target": (drawn(0.1), drawn(0.9, label="attacked", prompt="blue wet three", shows=True)),
        "reference 1": (drawn(0.2), drawn(0.3, label="attacked")),
    }
    return PictureRow(unit="forget-1", models=models).model_copy(update=changes)


def test_the_page_shows_plain_and_attacked_pictures_of_target_and_reference() -> None:
    page = render(sample_report(findings=(finding(row()),)))
    assert page.count('<img src="data:image/png;base64,') == 4
    assert 'alt="target, attacked: the concept was found"' in page
    assert 'alt="reference 1, plain: the concept was not found"' in page
    assert "blue wet three" in page
    assert "190 of 200" in page
    assert "2 of 300" in page


def test_only_a_page_with_pictures_allows_pictures() -> None:
    assert "img-src data:;" in render(sample_report(findings=(finding(row()),)))
    assert "img-src" not in render(sample_report())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_stay_text(hostile: str) -> None:
    shown = row(unit=hostile, models={"target": (drawn(0.5, prompt=hostile, label=hostile),)})
    page = render(sample_report(findings=(finding(shown),)))
    assert "<script" not in page
    assert page.count("<img") == 1
    assert "style=" not in page.split("</style>", 1)[1]


@pytest.mark.parametrize(
    "png", ['"><script>alert(1)</script>', base64.b64encode(b"<svg xmlns='x' onload='alert(1)'/>").decode(), "", "AAAA"]
)
def test_what_is_no_picture_is_not_put_into_the_page(png: str) -> None:
    broken = drawn(0.5).model_copy(update={"png": png})
    page = render(sample_report(findings=(finding(row(models={"target": (broken,)})),)))
    assert "<img" not in page
    assert "not a picture" in page
    assert "<script" not in page


def test_a_policy_that_blurs_is_named() -> None:
    report = sample_report(findings=(finding(row()),))
    blurring = report.model_copy(update={"policy": report.policy | {"pictures": "blurred"}})
    assert "The policy has pictures blurred." in render(blurring)
    assert "The policy has pictures blurred." not in render(report)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_pictures_are_seen_and_nothing_is_asked_for(browser: Any, tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(sample_report(findings=(finding(row(), row(unit="forget-2")),))), encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:image/png")] == [page.as_uri()]
    images = tab.locator(".drawn img")
    assert images.count() == 8
    for number in range(8):
        assert images.nth(number).evaluate("one => one.complete && one.naturalWidth") == 8
        assert images.nth(number).bounding_box()["width"] > 100
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()
