"""Words and numbers as every report shows them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import memorization, others, relearning, sample_report

from muaudit.reports import text
from muaudit.results import Verdict


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain, 東京, é, 🙂", "plain, 東京, é, 🙂"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x1b[31mred", "⟨U+001B⟩[31mred"),
        ("\x00\r", "⟨U+0000⟩⟨U+000D⟩"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("two\nlines\there", "two\nlines\there"),
    ],
)
def test_visible(raw: str, shown: str) -> None:
    assert text.visible(raw) == shown


def test_visible_shows_line_ends_where_there_must_be_none() -> None:
    assert text.visible("a\nb\tc", lines=False) == "a⟨U+000A⟩b⟨U+0009⟩c"


def test_visible_says_what_it_cuts() -> None:
    assert text.visible("x" * 5000, limit=10) == "xxxxxxxxxx … (4,990 more characters are in report.json)"


@given(st.text())
def test_visible_leaves_nothing_that_hides_or_moves(raw: str) -> None:
    shown = text.visible(raw, lines=False)
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for character in shown)


def test_numbers() -> None:
    assert text.signed(0.4123) == "+0.412"
    assert text.interval((-0.01, 0.0164)) == "[-0.010, +0.016]"
    assert text.percent(0.614) == "61 %"
    assert (text.probability(0.0), text.probability(0.001), text.probability(1.0)) == ("p < 0.001", "p = 0.001", "p = 1.000")


def test_remarks() -> None:
    lira, skipped, broken, damage = others()
    assert text.remark(memorization()) == ""
    assert text.remark(relearning()) == "recovers 61 % of what the original knew"
    assert text.remark(relearning().model_copy(update={"recovered_share": None})) == "worst: Kalan Brawick"
    assert text.remark(lira) == "needs about 90 more units"
    assert text.remark(lira.model_copy(update={"needed_units": None})) == lira.reason
    assert text.remark(skipped) == skipped.reason
    assert text.remark(broken) == broken.reason
    assert text.remark(damage) == "lost knowledge that it was to keep"
    assert text.name_of(damage) == "memorization (retain set)"


def test_controls() -> None:
    assert text.controls(sample_report()).startswith("original flagged 2 of 2 times")
    assert text.controls(sample_report(findings=others())) == ""


def test_every_verdict_has_a_sign_of_its_own() -> None:
    assert set(text.SYMBOLS) == set(Verdict)
    assert len(set(text.SYMBOLS.values())) == len(Verdict)
