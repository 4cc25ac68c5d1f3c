"""The heat map of layers by units: in the page, with its numbers, and harmless whatever a unit is called."""

import pytest
from sample import HOSTILE, memorization, sample_report

from muaudit.reports import figures
from muaudit.reports.html import render
from muaudit.results import AuditReport, Finding, HeatMap


def heat_map(model: str = "target", name: str = "knowledge left") -> HeatMap:
    return HeatMap(
        name=name,
        model=model,
        rows=("layer 0", "layer 1"),
        columns=("a", "b", HOSTILE[0]),
        values=((0.0, None, 0.5), (1.0, 0.25, None)),
        total=90,
    )


def finding(*maps: HeatMap) -> Finding:
    return memorization().model_copy(update={"heat_maps": maps})


def test_it_says_what_it_shows() -> None:
    picture = figures.heat_map(heat_map(), "map-1")
    assert picture is not None
    assert 'aria-label="Heat map, knowledge left, target: mean by layer: layer 0 0.25; layer 1 0.62"' in picture.svg
    assert "the 3 with the largest gaps, of 90" in picture.svg
    assert "style=" not in picture.svg
    assert "var(--target)" in picture.css
    assert picture == figures.heat_map(heat_map(), "map-1")


def test_cells_are_where_they_belong() -> None:
    """Four numbers, so four cells; each shade is one path, besides the steps of the scale."""
    picture = figures.heat_map(heat_map(), "m")
    assert picture is not None
    bare = figures.heat_map(heat_map().model_copy(update={"values": ((None,) * 3,) * 2}), "m")
    assert bare is not None
    assert picture.svg.count("<path") - bare.svg.count("<path") == 4


def test_an_empty_one_is_not_drawn() -> None:
    assert figures.heat_map(HeatMap(name="n", model="target", rows=(), columns=(), values=(), total=0), "m") is None


def test_the_page_holds_pictures_and_numbers() -> None:
    page = render(sample_report(findings=(finding(heat_map(), heat_map("references")),)))
    assert page.count("Heat map, knowledge left") == 2
    assert "Mean by layer over the units shown" in page
    assert "0.625" in page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_stay_text(hostile: str) -> None:
    shown = heat_map(name=hostile).model_copy(update={"rows": (hostile, "layer 1")})
    page = render(sample_report(findings=(finding(shown),)))
    assert "<script" not in page
    assert "<img" not in page
    assert "style=" not in page.split("</style>", 1)[1]


def test_a_report_without_heat_maps_is_read_as_before() -> None:
    report = sample_report()
    old = report.model_dump(mode="json")
    for one in old["findings"]:
        del one["heat_maps"]
    import json

    assert AuditReport.from_json(json.dumps(old).encode()) == report
