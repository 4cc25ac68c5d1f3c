"""What becomes of a claim about the target: the finding, its correction for the number of claims, and how reports show it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sample import ISSUED, model, sample_report

from muaudit import reasons
from muaudit.attack import Measurement
from muaudit.compare import compare, conclude, unmeasured
from muaudit.policy import Policy
from muaudit.reports.attestation import sign, verify
from muaudit.reports.html import render
from muaudit.reports.keys import keygen, load_public
from muaudit.reports.terminal import table
from muaudit.reports.text import name_of
from muaudit.results import AttackCard, ClaimTest, Finding, Verdict
from muaudit.testing import assert_unlearned

POLICY = Policy(name="test", description="For tests.", required=(), skippable=())
CARD = AttackCard(
    name="epsilon", attack="empirical_epsilon", version="1", summary="", source="", access="logits", sided="two", cost="",
    package="muaudit", parameters={},
)  # fmt: skip


def claimed(p_value: float, *, epsilon: float = 1.0, lower_bound: float = 0.0, detectable: float = 3.0) -> ClaimTest:
    return ClaimTest(
        game="privacy of unlearning", source="stated by the vendor", epsilon=epsilon, delta=1e-5, lower_bound=lower_bound,
        confidence=0.975, p_value=p_value, detectable=detectable,
    )  # fmt: skip


def measured(seed: int, claim: ClaimTest | None = None, *, retain: int = 0) -> Measurement:
    """Leakages that say nothing, and a claim."""
    count = 60 + retain
    return Measurement(
        units=tuple(f"unit {place}" for place in range(count)),
        clusters=tuple(f"person {place // 3}" for place in range(count)),
        sets=("forget",) * 60 + ("retain",) * retain,
        leakage=tuple(np.random.default_rng(seed).uniform(0.45, 0.55, count).tolist()),
        claim=claim,
    )


def judged(claim: ClaimTest | None, *references: ClaimTest | None, **more: Any) -> list[Finding]:
    others = references or (claimed(1.0), claimed(1.0), claimed(1.0))
    models = [measured(seed, one) for seed, one in enumerate(others, 1)]
    return compare(CARD, measured(0, claim, **more), models, None, POLICY, seed=1)


def about_claim(claim: ClaimTest, *references: ClaimTest | None) -> Finding:
    _, finding = judged(claim, *references)
    assert finding.measures == "claim"
    assert finding.claim == claim
    assert finding.p_value == claim.p_value
    assert (finding.units, finding.clusters) == (60, 20)
    return finding


def test_no_claim_no_finding() -> None:
    assert [finding.measures for finding in judged(None, None, None, None)] == ["leakage"]


def test_a_refuted_claim_fails_and_says_what_was_shown() -> None:
    finding = about_claim(claimed(0.001, lower_bound=1.8))
    assert finding.verdict is Verdict.FAIL
    assert finding.reason == (
        "an epsilon of 1.00 (stated by the vendor; privacy of unlearning) is claimed, and at least 1.80 was shown at 97.5% "
        "confidence"
    )


@pytest.mark.parametrize(("p_value", "verdict"), [(0.0249, Verdict.FAIL), (0.0251, Verdict.PASS)])
def test_the_policy_sets_the_error_rate(p_value: float, verdict: Verdict) -> None:
    assert about_claim(claimed(p_value)).verdict is verdict


def test_a_claim_that_stands_passes_and_is_not_called_proven() -> None:
    finding = about_claim(claimed(0.6, lower_bound=0.3))
    assert finding.verdict is Verdict.PASS
    assert finding.reason.endswith("is claimed and not refuted: 0.30 was shown, and up to 3.00 could have been")


@pytest.mark.parametrize("detectable", [1.0, 0.4])
def test_too_few_examples_settle_nothing(detectable: float) -> None:
    finding = about_claim(claimed(0.5, detectable=detectable))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert f"so few examples could not show more than {detectable:.2f}: give more of them" in finding.reason


def test_a_reference_that_refutes_it_too_takes_the_refutation_back() -> None:
    """No claim of privacy can be broken by a model that never saw the examples: the scores say something else."""
    finding = about_claim(claimed(0.001, lower_bound=1.8), claimed(1.0), claimed(0.02), claimed(1.0))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason.startswith("reference 2, to which it does not apply, refutes it too")
    both = about_claim(claimed(0.001), claimed(0.001), claimed(0.02), claimed(1.0))
    assert both.reason.startswith("reference 1 and reference 2, to which it does not apply, refute it too")
    assert reasons.of_claim(claimed(0.5), Verdict.PASS, []).startswith("an epsilon of 1.00")


def test_a_refuted_claim_fails_the_audit_though_no_leakage_is_seen() -> None:
    findings = judged(claimed(0.001, lower_bound=1.8))
    assert findings[0].verdict is not Verdict.FAIL
    concluded = conclude(findings, POLICY, references=3)
    assert concluded.verdict is Verdict.FAIL
    assert concluded.reason.startswith("epsilon: an epsilon of 1.00")
    assert concluded.findings[1].verdict is Verdict.FAIL


def test_a_claim_alone_does_not_carry_a_pass() -> None:
    """That a claim stands says nothing of residue: the leakage findings decide."""
    _, finding = judged(claimed(1.0))
    skipped = unmeasured(CARD, Verdict.SKIPPED, "why not")
    assert conclude([skipped, finding], POLICY, references=3).verdict is Verdict.INCONCLUSIVE


def test_holm_counts_the_claim_among_the_claims() -> None:
    """Alone in its battery it survives at 0.02; with the claims of four quiet findings beside it, it is to be expected."""
    refuted = judged(claimed(0.02, lower_bound=1.1))[1]
    assert conclude([refuted], POLICY, references=3).findings[0].verdict is Verdict.FAIL
    quiet = [judged(None, None, None, None)[0].model_copy(update={"attack": f"other {place}"}) for place in range(4)]
    corrected = conclude([*quiet, refuted], POLICY, references=3)
    assert corrected.findings[-1].verdict is Verdict.INCONCLUSIVE
    assert "to be expected by chance" in corrected.findings[-1].reason
    clear = judged(claimed(1e-5, lower_bound=2.0))[1]
    assert conclude([*quiet, clear], POLICY, references=3).findings[-1] == clear


class TestShown:
    """The page, the terminal and the attestation name the claim's finding and its numbers."""

    finding = about_claim(claimed(0.0004, lower_bound=1.804))

    def test_the_page(self) -> None:
        page = render(sample_report(findings=(self.finding,), verdict=Verdict.FAIL))
        for words in (
            "epsilon (claim)", "Claimed", "1.000", "at delta 1e-05", "1.804", "bound of epsilon at 97.5 % confidence",
            "3.000", "p &lt; 0.001", "privacy of unlearning", "stated by the vendor",
            "That a claim is not refuted does not prove it",
        ):  # fmt: skip
            assert words in page, words

    def test_a_hostile_claim_is_text(self) -> None:
        claim = claimed(0.5).model_copy(update={"source": "<script>alert(1)</script>\u202e"})
        page = render(sample_report(findings=(self.finding.model_copy(update={"claim": claim}),)))
        assert "<script>" not in page
        assert "\u202e" not in page

    def test_the_terminal(self) -> None:
        out = io.StringIO()
        table(sample_report(findings=(self.finding,), verdict=Verdict.FAIL), Console(file=out, width=200))
        line = out.getvalue().splitlines()[2]
        assert line.startswith("  epsilon (claim)   FAIL   an epsilon of 1.00")
        assert line.endswith("at least 1.80 was shown at 97.5% confidence")
        assert name_of(self.finding) == "epsilon (claim)"

    def test_a_release_test(self) -> None:
        with pytest.raises(AssertionError) as caught:
            assert_unlearned(sample_report(findings=(self.finding,), verdict=Verdict.FAIL))
        assert "epsilon (claim)" in str(caught.value)
        assert "epsilon: the target shows more than is claimed of it: withdraw the claim" in str(caught.value)
        few = self.finding.model_copy(update={"verdict": Verdict.INCONCLUSIVE})
        with pytest.raises(AssertionError, match="the claim was not put to the test: give more examples"):
            assert_unlearned(sample_report(findings=(few,), verdict=Verdict.INCONCLUSIVE))

    def test_the_attestation(self, tmp_path: Path) -> None:
        report = sample_report(findings=(self.finding,), verdict=Verdict.FAIL, models=(model("target", "m"),))
        private, public, _ = keygen(tmp_path / "signer", "Lab")
        envelope = sign(report, report.canonical(), private, issued_at=ISSUED)
        [signed] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))["predicate"]["findings"]
        assert (signed["attack"], signed["measures"], signed["verdict"]) == ("epsilon", "claim", "fail")
        assert verify(envelope, [load_public(public)], report=report.canonical()).verdict is Verdict.FAIL
