"""Suppressed or removed: the findings read by access, without deciding anything."""

import pytest
from sample import card, memorization, sample_report

from muaudit.reports.html import render
from muaudit.reports.reading import LEVELS, Residue, read
from muaudit.results import AuditReport, Finding, Verdict

SHORT = {"p": Verdict.PASS, "f": Verdict.FAIL, "i": Verdict.INCONCLUSIVE, "s": Verdict.SKIPPED, "e": Verdict.ERROR}


def report(**by_access: str) -> AuditReport:
    """A report with one finding a letter: p(ass), f(ail), i(nconclusive), s(kipped), e(rror)."""
    cards, findings = [], []
    for access, letters in by_access.items():
        for number, letter in enumerate(letters):
            name = f"{access}-{number}"
            if access in LEVELS:
                cards.append(card(name).model_copy(update={"access": access}))
            findings.append(Finding(attack=name, measures="leakage", verdict=SHORT[letter], reason="because"))
    return sample_report(attacks=tuple(cards), findings=tuple(findings))


@pytest.mark.parametrize(
    ("by_access", "residue", "words"),
    [
        ({"text": "p", "weights": "f"}, Residue.SUPPRESSED, "at the weights level what was to be forgotten still shows"),
        ({"text": "pp", "logits": "p", "training": "fp"}, Residue.SUPPRESSED, "hidden, not gone"),
        ({"text": "p", "logits": "f"}, Residue.SUPPRESSED, "at the logits level"),
        ({"logits": "p", "weights": "f", "training": "f"}, Residue.SUPPRESSED, "at the weights and training levels"),
        ({"text": "ps", "weights": "f"}, Residue.SUPPRESSED, "at the text level the target looks like"),
        ({"text": "f"}, Residue.THERE, "still there in the open"),
        ({"text": "pf", "weights": "p"}, Residue.THERE, "attacks at the text level"),
        ({"logits": "f", "weights": "f"}, Residue.THERE, "attacks at the logits level"),
        ({"text": "p", "logits": "p", "weights": "p", "training": "p"}, Residue.NONE_FOUND, "not proof of removal"),
        ({"weights": "p"}, Residue.NONE_FOUND, "when asked was not tested"),
        ({"text": "p"}, Residue.UNKNOWN, "no attack looked inside"),
        ({"text": "p", "logits": "p", "weights": "s"}, Residue.UNKNOWN, "just like this"),
        ({"weights": "f"}, Residue.DEEP, "was not tested"),
        ({"text": "i", "weights": "f"}, Residue.DEEP, "was not settled at the text level"),
        ({"text": "e", "training": "f"}, Residue.DEEP, "was not settled at the text level"),
        ({"text": "p", "weights": "i"}, Residue.UNSETTLED, "At the text level no residue was found"),
        ({"text": "pi", "weights": "p"}, Residue.UNSETTLED, "neither residue nor its absence"),
        ({"text": "p", "weights": "pe"}, Residue.UNSETTLED, "at the weights level"),
        ({"text": "s"}, Residue.UNKNOWN, "No attack on the forget set gave an answer"),
        ({}, Residue.UNKNOWN, "No attack on the forget set gave an answer"),
        ({"elsewhere": "f"}, Residue.DEEP, "whose access the report does not tell"),
        ({"text": "p", "weights": "p", "elsewhere": "f"}, Residue.DEEP, "whose access the report does not tell"),
        ({"text": "p", "weights": "p", "elsewhere": "e"}, Residue.UNSETTLED, "gave no clear answer"),
        ({"text": "p", "weights": "p", "elsewhere": "s"}, Residue.NONE_FOUND, "not proof of removal"),
    ],
)
def test_the_reading(by_access: dict[str, str], residue: Residue, words: str) -> None:
    reading = read(report(**by_access))
    assert reading.residue is residue
    assert words in reading.sentence


def test_no_mix_of_verdicts_reads_better_than_its_worst_level() -> None:
    for text in "pfis":
        for weights in "pfis":
            reading = read(report(text=text, weights=weights))
            if "f" in (text, weights):
                assert reading.residue in (Residue.THERE, Residue.SUPPRESSED, Residue.DEEP)
            elif "i" in (text, weights):
                assert reading.residue is Residue.UNSETTLED
            elif weights == "s":
                assert reading.residue is Residue.UNKNOWN


def test_retained_knowledge_claims_and_earlier_targets_are_not_read() -> None:
    base = report(text="p", weights="p")
    others = (
        memorization().model_copy(update={"attack": "text-0", "measures": "retention", "verdict": Verdict.FAIL}),
        memorization().model_copy(update={"attack": "text-0", "measures": "claim", "verdict": Verdict.FAIL}),
        memorization().model_copy(update={"attack": "text-0 @ first request", "verdict": Verdict.FAIL}),
    )
    more = base.model_copy(update={"findings": (*others, *base.findings)})
    reading = read(more)
    assert reading.residue is Residue.NONE_FOUND
    assert reading.unplaced == ()
    assert [place for level in reading.levels for place, _ in level.findings] == [4, 5]


def test_it_changes_no_verdict() -> None:
    before = report(text="p", weights="f")
    read(before)
    assert before == report(text="p", weights="f")


def test_the_page_shows_sentence_and_table() -> None:
    page = render(report(text="p", logits="s", weights="f", elsewhere="e"))
    assert page.count(read(report(text="p", logits="s", weights="f", elsewhere="e")).sentence) == 2, "first page and section"
    section = page[page.index('id="reading"') :]
    section = section[: section.index("</section>")]
    for access in ("Text", "Logits", "Weights", "Training", "Not told"):
        assert f'<th scope="row">{access}</th>' in section
    assert "not tested" in section
    assert "no answer" in section
    assert 'href="#finding-3"' in section
    assert "decides nothing" in section
