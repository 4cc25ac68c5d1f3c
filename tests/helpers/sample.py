"""A full report of every kind of finding, with hostile text wherever a vendor's model could put it."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muaudit.manifest import manifest_digest
from muaudit.reports.keys import PublicKey
from muaudit.results import (
    AttackCard,
    AuditReport,
    ClusterResult,
    Control,
    Controls,
    Curve,
    CurveLine,
    DataRecord,
    FileDigest,
    Finding,
    KolmogorovSmirnov,
    ModelRecord,
    RelativeTest,
    RunRecord,
    ScoreResult,
    Transcript,
    UnitResult,
    Verdict,
    WorstClusters,
)

ISSUED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Audit:
    """A folder as `muaudit scan` leaves it."""

    folder: Path
    model: Path
    report: AuditReport
    envelope: bytes
    private: Path
    public: PublicKey


HOSTILE = (
    "<script>document.title='pwned';alert(1)</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    '" onload="document.title=1" x="',
    "</style></script><svg onload=document.title='pwned'>",
    "safe \u202e txt.exe \u2066hidden\u2069 \x00\x07\x1b[31m zero\u200bwidth",
    "{{ 7 * 7 }} {% raw %} $\\frac{1}{0}$ [bold red]markup[/bold red] [/]",
    "https://evil.example/?" + "A" * 6000,
    "&lt;already escaped&gt; ]]> <!-- --",
)


def digest(text: str) -> str:
    """A digest that looks like one."""
    return hashlib.sha256(text.encode()).hexdigest()


def model(role: str, path: str, files: int = 4) -> ModelRecord:
    """A model with files."""
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"][:files]
    listed = tuple(FileDigest(name=name, sha256=digest(role + name), bytes=len(name) * 1_234_567) for name in sorted(names))
    return ModelRecord(role=role, kind="causal_lm", path=path, digest=manifest_digest(listed), files=listed)


def _unit(number: int, cluster: str, hostile: str) -> UnitResult:
    ask = f"Question: Where was {cluster} born? Answer:"
    return UnitResult(
        id=f"{cluster.lower().split()[0]}-born-{number}",
        cluster=cluster,
        target=0.91 - 0.05 * number,
        references=0.08,
        original=0.97,
        gap=0.83 - 0.05 * number,
        transcripts={
            "target": Transcript(prompt=ask, expected=" Torvik", output=f" Torvik, on the northern coast. {hostile}"),
            "reference 1": Transcript(prompt=ask, expected=" Torvik", output=" London, I think."),
            "reference 2": Transcript(prompt=ask, expected=" Torvik", output=" Paris.\nQuestion: Who"),
            "original": Transcript(prompt=ask, expected=" Torvik", output=" Torvik"),
        },
    )


def relearning() -> Finding:
    """A clear failure with everything that a finding can carry."""
    budgets = (0.0, 5.0, 10.0, 20.0, 40.0)
    lines = {
        "target": (0.06, 0.19, 0.38, 0.52, 0.60),
        "reference 1": (0.05, 0.07, 0.09, 0.11, 0.14),
        "reference 2": (0.04, 0.06, 0.08, 0.10, 0.12),
        "reference 3": (0.06, 0.08, 0.10, 0.12, 0.15),
        "original": (0.88, 0.89, 0.90, 0.90, 0.91),
    }
    people = ("Kalan Brawick", "Mira Oslander", HOSTILE[0], "Ferro Quill")
    return Finding(
        attack="relearning",
        measures="leakage",
        verdict=Verdict.FAIL,
        reason="the forgotten facts come back after 20 training steps on other forgotten facts",
        gap=0.412,
        interval=(0.310, 0.520),
        upper_bound=0.503,
        margin=0.05,
        noise_floor=0.031,
        p_value=0.00002,
        units=120,
        clusters=12,
        target=0.52,
        references=0.11,
        original=0.90,
        recovered_share=0.61,
        smallest_detectable_gap=0.094,
        relative=RelativeTest(statistic=0.021, p_value=0.71),
        worst_clusters=WorstClusters(
            clusters=tuple(
                ClusterResult(
                    cluster=name,
                    units=10,
                    target=0.9 - 0.2 * place,
                    references=0.1,
                    gap=0.8 - 0.2 * place,
                    threshold=0.33,
                    flagged=place < 3,
                )
                for place, name in enumerate(people)
            ),
            p_value=0.001,
            margin=0.25,
            smallest_detectable_gap=0.33,
            null="3 references, each audited against the other two (36 cluster gaps)",
        ),
        controls=Controls(
            positive=Control(model="original", flagged=True, gap=0.79, interval=(0.71, 0.86)),
            negative=(
                Control(model="reference 1", flagged=False, gap=0.004, interval=(-0.02, 0.03)),
                Control(model="reference 2", flagged=False, gap=-0.012, interval=(-0.04, 0.01)),
                Control(model="reference 3", flagged=True, gap=0.061, interval=(0.052, 0.07)),
            ),
        ),
        scores=(
            ScoreResult(
                name="ROUGE-L recall",
                target=0.58,
                references=0.21,
                original=0.93,
                gap=0.37,
                interval=(0.28, 0.46),
                ks=(
                    KolmogorovSmirnov(reference="reference 1", statistic=0.62, p_value=1.2e-9),
                    KolmogorovSmirnov(reference="reference 2", statistic=0.59, p_value=0.03),
                ),
            ),
            ScoreResult(name="truth ratio", target=0.44, references=0.48, original=None, gap=-0.04, interval=(-0.11, 0.03)),
        ),
        curves=(
            Curve(
                name="recall by training steps",
                x_label="training steps",
                y_label="mean leakage",
                x=budgets,
                lines=tuple(CurveLine(model=role, y=values) for role, values in lines.items()),
            ),
        ),
        worst_units=tuple(_unit(number, people[number % 2], hostile) for number, hostile in enumerate(HOSTILE)),
        summaries={"target": {"perplexity": 11.2, "steps": 40.0}, "reference 1": {"perplexity": 10.9}},
        notes=("Half of the facts were trained on; leakage is measured on the other half.",),
    )


def memorization() -> Finding:
    """A pass."""
    return Finding(
        attack="memorization",
        measures="leakage",
        verdict=Verdict.PASS,
        reason="the target says no more about the forget set than a model that never saw it",
        gap=0.003,
        interval=(-0.010, 0.016),
        upper_bound=0.014,
        margin=0.05,
        noise_floor=0.012,
        p_value=0.98,
        units=240,
        clusters=24,
        target=0.083,
        references=0.080,
        original=0.97,
        recovered_share=0.003,
        smallest_detectable_gap=0.021,
        relative=RelativeTest(statistic=-0.61, p_value=0.0004),
        controls=Controls(
            positive=Control(model="original", flagged=True, gap=0.89, interval=(0.85, 0.93)),
            negative=(Control(model="reference 1", flagged=False, gap=0.001, interval=(-0.01, 0.01)),),
        ),
    )


def others() -> tuple[Finding, ...]:
    """What could not be decided, what could not run, what broke, and collateral damage."""
    return (
        Finding(
            attack="lira",
            measures="leakage",
            verdict=Verdict.INCONCLUSIVE,
            reason="the interval reaches from no leakage to more than the margin",
            sided="two",
            gap=0.040,
            interval=(-0.020, 0.100),
            upper_bound=0.090,
            lower_bound=-0.010,
            margin=0.05,
            p_value=0.31,
            units=60,
            clusters=12,
            target=0.54,
            references=0.50,
            smallest_detectable_gap=0.11,
            needed_units=150,
        ),
        Finding(attack="unlearndiffatk", measures="leakage", verdict=Verdict.SKIPPED, reason="the target is a language model"),
        Finding(attack="third-party", measures="leakage", verdict=Verdict.ERROR, reason=f"it does not load: {HOSTILE[4]}"),
        Finding(
            attack="memorization",
            measures="retention",
            verdict=Verdict.FAIL,
            reason="the target lost knowledge that it was to keep",
            gap=-0.21,
            interval=(-0.29, -0.13),
            upper_bound=-0.15,
            lower_bound=-0.27,
            margin=0.10,
            noise_floor=0.02,
            p_value=0.0001,
            units=400,
            clusters=40,
            target=0.61,
            references=0.82,
            smallest_detectable_gap=0.06,
        ),
    )


def card(name: str, **parameters: Any) -> AttackCard:
    """An attack's card."""
    return AttackCard(
        name=name,
        attack=name,
        version="1",
        summary=f"Asks what {name} asks, in one sentence.",
        source="Author and Other, 2024, arXiv:2406.00000",
        access="training" if name == "relearning" else "text",
        sided="one",
        cost="one training run of 40 steps a model",
        package="muaudit",
        parameters=parameters,
    )


def sample_report(**changes: Any) -> AuditReport:
    """A report that failed; keyword arguments replace its fields."""
    policy = {
        "name": "standard",
        "margin": 0.05,
        "margins": {},
        "cluster_margin": 0.25,
        "required": ["memorization", "relearning"],
    }
    fields: dict[str, Any] = {
        "tool": "muaudit 0.1.0",
        "verdict": Verdict.FAIL,
        "reason": "the forgotten facts come back after 20 training steps on other forgotten facts",
        "plan_sha256": digest("plan"),
        "plan": {"attacks": {"relearning": {"budgets": [5, 10, 20, 40]}}, "seed": "2026", "note": HOSTILE[1]},
        "policy": policy,
        "attacks": (card("memorization", samples=8), card("relearning", budgets=[5, 10, 20, 40], rate=1e-5), card("lira")),
        "findings": (memorization(), relearning(), *others()),
        "models": (
            model("target", "models/vendor"),
            *(model(f"reference {number}", f"models/retrained-{number}") for number in (1, 2, 3)),
            model("original", "models/original"),
        ),
        "data": (
            DataRecord(role="forget", path="forget.jsonl", sha256=digest("forget"), units=240, clusters=24),
            DataRecord(role="retain", path="retain.jsonl", sha256=digest("retain"), units=400, clusters=40),
            DataRecord(role="holdout", path="holdout.jsonl", sha256=digest("holdout"), units=240, clusters=24),
        ),
        "limits": (
            "Only the facts in forget.jsonl were asked for; other forms of the same knowledge were not tried.",
            "The references were supplied by the vendor; that they never saw the forget set was not verified.",
        ),
        "run": RunRecord(
            started="2026-11-20T09:12:04Z",
            finished="2026-11-20T09:58:31Z",
            resumed=True,
            computed=11,
            reused=4,
            model_seconds=2604.2,
            total_seconds=2787.0,
            host={"platform": "Linux-6.1-x86_64", "device": "cpu"},
            versions={"python": "3.11.7", "torch": "2.13.0", "muaudit": "0.1.0"},
        ),
    }
    return AuditReport(**(fields | changes))


def small_report(**changes: Any) -> AuditReport:
    """A report of one finding on a target of one file, for tests that try every bit."""
    fields: dict[str, Any] = {"findings": (memorization(),), "attacks": (), "verdict": Verdict.PASS, "data": ()}
    return sample_report(**(fields | {"models": (model("target", "models/vendor", files=1),)} | changes))
