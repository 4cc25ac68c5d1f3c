"""Pictures of units: chosen by what a finding holds, told in words and numbers, harmless whatever a unit is called."""

import re

import pytest
from sample import HOSTILE, memorization, others, relearning, sample_report
from unit_leakages import leakages, with_leakages

from muaudit.reports import distributions, figures, unit_figures
from muaudit.reports.drawing import COLOURS, Picture
from muaudit.reports.html import render
from muaudit.results import Curve, CurveLine, Finding

GRADED = with_leakages(relearning(), leakages(120, 12, lift=0.3))
BINARY = with_leakages(memorization(), leakages(120, 12, kind="binary"))
RETAINED = with_leakages(others()[3], leakages(80, 8, lift=-0.1))
SINGLE = with_leakages(memorization(), leakages(40, 40, original=False, references=1))


def page(finding: Finding) -> str:
    """The card of one finding."""
    source = render(sample_report(findings=(finding,)))
    return source[source.index("<article") : source.index("</article>")]


def pictures(finding: Finding) -> list[Picture]:
    """Every picture of a finding's units."""
    shown, roc = distributions.histogram(finding), distributions.roc(finding)
    units, clusters = distributions.units(finding), distributions.clusters(finding)
    assert shown is not None
    return [
        unit_figures.histogram(shown, "h", "leakage"),
        *([unit_figures.roc(roc, "r")] if roc else []),
        unit_figures.units(units, "u", "leakage"),
        unit_figures.clusters(clusters[:16], "c", "leakage"),
    ]


@pytest.mark.parametrize(
    ("finding", "shown"),
    [
        (GRADED, {"Histograms", "Log-log ROC", "Target against", "Target beside"}),
        (BINARY, {"Histograms", "Target against", "Target beside"}),
        (RETAINED, {"Histograms", "Target against", "Target beside"}),
        (SINGLE, {"Histograms", "Log-log ROC", "Target against"}),
        (memorization(), set()),
    ],
    ids=["graded", "binary", "retained", "units alone", "nothing kept"],
)
def test_the_pictures_suit_the_finding(finding: Finding, shown: set[str]) -> None:
    labels = re.findall(r'<svg class="figure[^>]*aria-label="([^"]*)"', page(finding))
    kinds = {"Histograms", "Log-log ROC", "Target against", "Target beside"}
    assert {kind for kind in kinds if any(label.startswith(kind) for label in labels)} == shown


def test_every_picture_of_units_has_its_numbers() -> None:
    card = page(GRADED)
    roc = distributions.roc(GRADED)
    assert roc is not None
    assert "Share of units by leakage." in card
    assert "360 leakages of references, 120 units of the target." in card
    for point in roc.points:
        assert f'<th scope="row" class="num">{point.fpr:.4f}</th><td class="num">{point.target:.3f}</td>' in card
    assert "Clusters in the order of their gaps." in card
    assert "Units in the order of their gaps: the first 24 of 120; all are in report.json." in card
    for row in distributions.clusters(GRADED):
        assert f"<bdi>{row.name}</bdi>" in card
    for row in distributions.units(GRADED)[:24]:
        assert f"<bdi>{row.name}</bdi>" in card


def test_pictures_are_told_in_words() -> None:
    histogram, roc, units, clusters = pictures(GRADED)
    assert "target: most units at" in histogram.svg
    assert re.search(r"Log-log ROC curve, area 0\.\d+, chance is 0\.5: \d+ % of the target", roc.svg)
    assert re.search(r"of 120 units \d+ lie above the references&#x27; mean", units.svg)
    assert re.search(r"gaps from the top: Person \d\d \+0\.\d+;", clusters.svg)


@pytest.mark.parametrize("finding", [GRADED, BINARY, RETAINED, SINGLE], ids=["graded", "binary", "retained", "alone"])
def test_pictures_follow_the_page_and_are_the_same_each_time(finding: Finding) -> None:
    for first, second in zip(pictures(finding), pictures(finding), strict=True):
        assert first == second
        assert "style=" not in first.svg
        assert not re.search(r"#0[0-9a-f]{5}\b", first.svg + first.css), "a stand-in colour was left"
        assert set(re.findall(r"var\(--(\w+)\)", first.css)) <= set(COLOURS)
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', first.svg))
        assert used <= set(re.findall(r' id="([^"]+)"', first.svg))


def test_many_units_stay_a_small_picture() -> None:
    finding = with_leakages(memorization(), leakages(5000, 100))
    units = unit_figures.units(distributions.units(finding), "u", "leakage")
    assert len(units.svg) < 200_000
    assert len(page(finding)) < 500_000


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -3.0, 7.0])
def test_units_that_are_all_alike_are_drawn(value: float) -> None:
    made = tuple(one.model_copy(update={"target": value, "references": (value,), "original": value}) for one in leakages(30, 3))
    assert page(with_leakages(memorization(), made)).count("<svg") == 3


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_of_units_and_clusters_stay_text(hostile: str) -> None:
    made = tuple(
        one.model_copy(update={"id": f"{number} {hostile}", "cluster": f"{one.cluster} {hostile}"})
        for number, one in enumerate(leakages(30, 3))
    )
    source = render(sample_report(findings=(with_leakages(memorization(), made),)))
    assert "<script" not in source
    assert "<img" not in source
    assert "style=" not in source.split("</style>", 1)[1]
    assert "\u202e" not in source


def _log_log(x: tuple[float, ...], y: tuple[float, ...]) -> Curve:
    lines = (CurveLine(model="target", y=y), CurveLine(model="reference 1", y=y))
    return Curve(name="ROC", x_label="false positive rate, log10", y_label="true positive rate, log10", x=x, lines=lines)


def test_a_curve_of_logarithms_shows_the_rates_and_the_line_of_chance() -> None:
    shown = figures.curve(_log_log((-2.0, -1.0, 0.0), (-1.5, -0.5, 0.0)), "c")
    assert shown is not None
    for text in (">0.01<", ">0.1<", ">1<", ">false positive rate<"):
        assert text in shown.svg
    assert "log10" not in shown.svg
    assert "stroke-dasharray: 3,3" in shown.css


@pytest.mark.parametrize("x", [400.0, -1e9, 2.0])
def test_what_are_no_logarithms_of_rates_is_drawn_as_it_is(x: float) -> None:
    shown = figures.curve(_log_log((x, x + 1), (0.1, 0.2)), "c")
    assert shown is not None
    assert "false positive rate, log10" in shown.svg
