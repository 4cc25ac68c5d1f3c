"""The verdict table says what design and report say, and hostile text stays text."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from sample import HOSTILE, memorization, model, relearning, sample_report

from muaudit.reports.terminal import table
from muaudit.results import AuditReport, Verdict


def printed(report: AuditReport, width: int = 80, *, color: bool = False, **paths: Path) -> str:
    out = io.StringIO()
    table(report, Console(file=out, width=width, force_terminal=color, highlight=False), **paths)
    return out.getvalue()


def test_shows_every_finding_in_one_aligned_line() -> None:
    lines = printed(sample_report()).splitlines()
    assert lines[0] == "plan 64879f7d   target models/vendor   references 3   original 1   policy standard"
    assert lines[2:6] == [
        "  memorization                pass           gap +0.003  [-0.010, +0.016]  margin 0.05",
        "  relearning                  FAIL           gap +0.412  [+0.310, +0.520]  margin 0.05   "
        "recovers 61 % of what the original knew",
        "  lira                        inconclusive   gap +0.040  [-0.020, +0.100]  margin 0.05   needs about 90 more units",
        "  unlearndiffatk              skipped        the target is a language model",
    ]
    assert lines[7].split("  margin")[0] == "  memorization (retain set)   FAIL           gap -0.210  [-0.290, -0.130]"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_nothing_is_cut_however_narrow_the_terminal(width: int) -> None:
    assert printed(sample_report(), width) == printed(sample_report(), 80)


def test_ends_with_verdict_and_what_to_do_next() -> None:
    lines = printed(sample_report(), folder=Path("audit"), signed_with=Path("keys/lab.key")).splitlines()
    assert lines[-5:] == [
        "",
        "  controls original flagged 2 of 2 times (should be all); references flagged 1 of 4 times (should be none)",
        "  verdict  FAIL   the forgotten facts come back after 20 training steps on other forgotten facts",
        "  read     audit/report.html",
        "  check    muaudit verify audit/audit.intoto.json --key keys/lab.pub --model models/vendor",
    ]


def test_says_how_to_check_only_where_something_was_signed() -> None:
    assert "check" not in printed(sample_report(), folder=Path("audit"))
    assert "read" not in printed(sample_report()).split("verdict")[1]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text(text: str) -> None:
    finding = relearning().model_copy(update={"attack": text, "reason": text, "verdict": Verdict.ERROR, "gap": None})
    report = sample_report(findings=(finding,), reason=text, models=(model("target", text),))
    shown = printed(report, folder=Path("audit"), signed_with=Path("a.key"))
    for character in ("\x1b", "\x00", "\x07", "\u202e", "\u2066", "\u200b"):
        assert character not in shown
    assert len(shown.splitlines()) == 8, "no line end slips in"
    if "[bold red]" in text:
        assert "[bold red]markup[/bold red] [/]" in shown
    assert len(shown) < 4_000


def test_colour_is_only_beside_the_word() -> None:
    report = sample_report(findings=(memorization(),))
    assert "\x1b[32mpass" in printed(report, color=True)
    assert "\x1b" not in printed(report)


def test_an_audit_without_findings_prints() -> None:
    report = sample_report(findings=(), verdict=Verdict.INCONCLUSIVE, reason="no attack could run")
    assert "verdict  inconclusive   no attack could run" in printed(report)
