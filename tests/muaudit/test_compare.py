"""The decision rule: from measurements to findings, and from findings to a verdict."""

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from muaudit import reasons
from muaudit.attack import BudgetCurve, Measurement
from muaudit.compare import compare, conclude, unmeasured, verdict_of
from muaudit.errors import ModelError
from muaudit.policy import Policy
from muaudit.results import AttackCard, ClusterResult, Control, Controls, Finding, Transcript, Verdict, WorstClusters
from muaudit.statistics import noise_floor

POLICY = Policy(name="test", description="For tests.", required=("memorization", "relearning"), skippable=("relearning",))


def card(name: str = "memorization", sided: str = "one") -> AttackCard:
    return AttackCard.model_validate(
        {
            "name": name,
            "attack": name,
            "version": "1",
            "summary": "",
            "source": "",
            "access": "text",
            "sided": sided,
            "cost": "",
            "package": "muaudit",
            "parameters": {},
        }
    )


def measurement(leakage: NDArray[np.float64], *, clusters: int = 30, retain: int = 0, **more: Any) -> Measurement:
    """Units in clusters of equal size, the last `retain` units from the retain set."""
    count = len(leakage)
    return Measurement(
        units=tuple(f"unit {index}" for index in range(count)),
        clusters=tuple(f"person {index * clusters // count:02d}" for index in range(count)),
        sets=("forget",) * (count - retain) + ("retain",) * retain,
        leakage=tuple(float(value) for value in leakage),
        **more,
    )


def honest(rng: np.random.Generator, count: int = 180) -> NDArray[np.float64]:
    return np.where(rng.random(count) < 0.02, 0.9, 0.01)


class World:
    """Three honest references and an original that knows everything."""

    def __init__(self, seed: int = 1, references: int = 3, count: int = 180) -> None:
        self.rng = np.random.default_rng(seed)
        self.count = count
        self.references = [measurement(honest(self.rng, count)) for _ in range(references)]
        self.original: Measurement | None = measurement(np.full(count, 0.95))

    def judge(self, leakage: NDArray[np.float64], *, sided: str = "one", name: str = "memorization") -> Finding:
        [finding] = compare(card(name, sided), measurement(leakage), self.references, self.original, POLICY, seed=7)
        return finding


@pytest.mark.parametrize(
    ("sided", "gap", "controls", "verdict"),
    [
        ("one", 0.06, True, Verdict.INCONCLUSIVE),
        ("one", 0.04, True, Verdict.PASS),  # within its margin of .05
        ("one", -0.06, True, Verdict.PASS),  # less than the references
        ("two", -0.06, True, Verdict.INCONCLUSIVE),
        ("one", 0.06, False, Verdict.PASS),  # it flags a reference: it has no say
    ],
)
def test_an_undecided_finding_beyond_its_margin_stands_in_the_way_of_a_pass(
    sided: Literal["one", "two"], gap: float, controls: bool, verdict: Verdict
) -> None:
    rule, world = POLICY.model_copy(update={"required": ("memorization",)}), World()
    (passing,) = compare(card(), measurement(honest(world.rng)), world.references, None, rule, seed=1)
    flagged = Control(model="reference 1", flagged=not controls, gap=0.0, interval=(-0.1, 0.1))
    undecided = Finding(
        attack="sleek", measures="leakage", verdict=Verdict.INCONCLUSIVE, reason="so", sided=sided, gap=gap, margin=0.05,
        controls=Controls(positive=Control(model="original", flagged=True, gap=0.9, interval=(0.8, 1.0)), negative=(flagged,)),
    )  # fmt: skip
    found = conclude([passing, undecided], rule, references=3)
    assert found.verdict is verdict
    assert ("sleek tells the target from models that never saw" in found.reason) is (verdict is not Verdict.PASS)


def test_an_audit_does_not_rest_on_informational_passes_alone() -> None:
    rule, world = POLICY.model_copy(update={"required": ()}), World()
    shallow = card("seed_search").model_copy(update={"informational": "sees what is still drawn"})
    (seen,) = compare(shallow, measurement(honest(world.rng)), world.references, None, rule, seed=1)
    assert (seen.verdict, seen.informational) == (Verdict.PASS, True)
    assert "that alone says little" in seen.reason
    alone = conclude([seen], rule, references=3)
    assert alone.verdict is Verdict.INCONCLUSIVE
    assert "only seed_search passed" in alone.reason
    allowed = conclude([seen], rule.model_copy(update={"shallow_passes": True}), references=3)
    assert (allowed.verdict, "no attack passed that sees deeper" in allowed.reason) == (Verdict.PASS, True)
    assert conclude([], rule.model_copy(update={"shallow_passes": True}), references=3).verdict is Verdict.INCONCLUSIVE
    (deep,) = compare(card("relearning"), measurement(honest(world.rng)), world.references, None, rule, seed=1)
    assert conclude([seen, deep], rule, references=3).verdict is Verdict.PASS
    (failed,) = compare(shallow, measurement(np.full(180, 0.9)), world.references, None, rule, seed=1)
    assert conclude([failed, deep], rule, references=3).verdict is Verdict.FAIL


def test_an_honest_target_passes_within_the_margin() -> None:
    world = World()
    finding = world.judge(honest(world.rng))
    assert finding.verdict is Verdict.PASS
    assert finding.upper_bound is not None
    assert finding.upper_bound < 0.05
    assert finding.reason.endswith("than models that never saw it (5 are allowed)")
    assert finding.noise_floor == pytest.approx(noise_floor([float(np.mean(one.leakage)) for one in world.references], 0.98))
    assert (finding.units, finding.clusters) == (180, 30)


def test_a_target_that_knows_fails_by_its_mean_and_recovers_its_share() -> None:
    world = World()
    finding = world.judge(np.clip(honest(world.rng) + 0.4, 0, 1))
    assert finding.verdict is Verdict.FAIL
    assert "points more of the forget set than models that never saw it" in finding.reason
    assert finding.recovered_share == pytest.approx(0.4 / 0.93, abs=0.05)
    assert finding.relative is not None
    assert finding.p_value is not None
    assert finding.p_value < 1e-6


def test_one_remembered_cluster_fails_and_is_named() -> None:
    world = World()
    leakage = honest(world.rng)
    leakage[60:66] = 0.95
    finding = world.judge(leakage)
    assert finding.verdict is Verdict.FAIL
    assert finding.reason.startswith("one cluster ('person 10') is still remembered: it leaks 95 %")
    assert finding.worst_clusters is not None
    first = finding.worst_clusters.clusters[0]
    assert (first.cluster, first.units, first.flagged) == ("person 10", 6, True)
    assert first.gap > first.threshold >= 0.25
    assert len(finding.worst_clusters.clusters) == 10
    assert conclude([finding], POLICY, references=3).verdict is Verdict.FAIL


def test_every_flagged_cluster_is_shown() -> None:
    world = World()
    leakage = honest(world.rng)
    leakage[: 14 * 6] = 1.0
    finding = world.judge(leakage)
    assert finding.worst_clusters is not None
    assert sum(one.flagged for one in finding.worst_clusters.clusters) == 14
    assert "14 clusters (" in finding.reason
    assert "and 11 more" in finding.reason


def test_one_reference_is_said_to_leave_training_noise_unknown() -> None:
    world = World(references=1)
    finding = world.judge(honest(world.rng))
    assert finding.noise_floor is None
    assert any("training noise was not estimated" in note for note in finding.notes)
    assert finding.worst_clusters is not None
    assert "one reference" in finding.worst_clusters.null
    assert finding.controls is not None
    assert finding.controls.negative == ()


def test_an_attack_that_misses_the_original_has_no_power() -> None:
    world = World()
    world.original = measurement(honest(world.rng))
    finding = world.judge(honest(world.rng))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "does not find the forget set in the original" in finding.reason
    assert finding.recovered_share is None


def test_a_flagged_reference_makes_a_flag_meaningless() -> None:
    world = World(references=3)
    world.references[1] = measurement(np.where(np.arange(180) < 12, 1.0, honest(world.rng)))
    finding = world.judge(np.where(np.arange(180) >= 168, 1.0, honest(world.rng)))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason.startswith("reference 2, which never saw the forget set, was flagged too")
    assert finding.controls is not None
    assert [control.flagged for control in finding.controls.negative] == [False, True, False]


def test_a_small_audit_is_undecided_and_says_how_many_units_it_needs() -> None:
    rng = np.random.default_rng(3)
    references = [measurement(rng.random(24), clusters=12) for _ in range(1)]
    original = measurement(np.ones(24), clusters=12)
    [finding] = compare(card(), measurement(rng.random(24), clusters=12), references, original, POLICY, seed=1)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.needed_units is not None
    assert finding.needed_units > 24
    assert finding.reason == f"needs about {finding.needed_units - 24} more units to tell whether a residue is left"
    lost = finding.model_copy(update={"measures": "retention"})
    assert reasons.of_undecided(lost).endswith("more units to tell whether too much was lost")
    assert finding.smallest_detectable_gap is not None
    assert finding.smallest_detectable_gap > 0.2


def test_references_that_disagree_raise_the_floor_and_ask_for_more_of_them() -> None:
    rng = np.random.default_rng(5)
    references = [measurement(np.clip(level + 0.02 * rng.normal(size=180), 0, 1)) for level in (0.1, 0.25)]
    [finding] = compare(card(), measurement(np.full(180, 0.5)), references, None, POLICY, seed=1)
    assert finding.verdict is Verdict.INCONCLUSIVE, (
        "neither the mean nor, cluster by cluster, the same shift of the whole model"
    )
    assert finding.noise_floor is not None
    assert finding.noise_floor > 0.5
    assert "more references would tell" in finding.reason
    assert finding.needed_units is None


def test_one_cluster_is_inconclusive_and_keeps_its_numbers() -> None:
    target, reference = measurement(np.ones(6), clusters=1), measurement(np.zeros(6), clusters=1)
    [finding] = compare(card(), target, [reference], None, POLICY, seed=1)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "one cluster" in finding.reason
    assert finding.gap == 1
    assert finding.interval is None
    assert conclude([finding], POLICY, references=1).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("shift", "verdict"), [(0.4, Verdict.FAIL), (-0.4, Verdict.FAIL), (0.0, Verdict.PASS)])
def test_two_sided_attacks_judge_the_absolute_gap(shift: float, verdict: Verdict) -> None:
    rng = np.random.default_rng(9)
    references = [measurement(0.5 + 0.02 * rng.normal(size=180)) for _ in range(3)]
    target = measurement(0.5 + shift + 0.02 * rng.normal(size=180))
    [finding] = compare(card(sided="two"), target, references, None, POLICY, seed=1)
    assert finding.verdict is verdict
    assert finding.sided == "two"
    [one_sided] = compare(card(), target, references, None, POLICY, seed=1)
    assert one_sided.verdict is (Verdict.FAIL if shift > 0 else Verdict.PASS)


@pytest.mark.parametrize(("kept", "verdict"), [(0.85, Verdict.PASS), (0.3, Verdict.FAIL), (0.95, Verdict.PASS)])
def test_retain_units_decide_collateral_damage_and_nothing_else(kept: float, verdict: Verdict) -> None:
    rng = np.random.default_rng(11)

    def on_both(level: float) -> Measurement:
        values = np.where(np.arange(180) < 90, 0.02, np.clip(level + 0.03 * rng.normal(size=180), 0, 1))
        return measurement(values, retain=90)

    leakage, retention = compare(card(), on_both(kept), [on_both(0.85) for _ in range(3)], None, POLICY, seed=1)
    assert (leakage.verdict, leakage.units, leakage.clusters) == (Verdict.PASS, 90, 15)
    assert (retention.measures, retention.verdict, retention.units) == ("retention", verdict, 90)
    assert retention.worst_clusters is None
    assert retention.margin == POLICY.retention_margin


def test_supporting_scores_curves_and_worst_units_are_kept() -> None:
    rng = np.random.default_rng(13)

    def model(level: float) -> Measurement:
        return measurement(
            np.full(60, level) + np.linspace(0, 0.1, 60),
            scores={"truth_ratio": tuple(rng.random(60) + level), "rouge": tuple(rng.random(60))},
            curves={"steps": BudgetCurve(x_label="steps", y_label="leakage", x=(0, 5), y=(0, level))},
            transcripts={"unit 59": Transcript(prompt="?", expected="a", output=f"{level}")},
            summaries={"perplexity": 3.0},
            notes=("a note", f"level {level}"),
        )

    target, references, original = model(0.5), [model(0.1), model(0.1)], model(0.9)
    [finding] = compare(card(), target, references, original, POLICY, seed=1)
    rouge, ratio = finding.scores
    assert (rouge.name, ratio.name) == ("rouge", "truth_ratio")
    assert rouge.ks == ()
    expected = stats.ks_2samp(target.scores["truth_ratio"], references[1].scores["truth_ratio"])
    assert (ratio.ks[1].reference, ratio.ks[1].p_value) == ("reference 2", expected.pvalue)
    assert ratio.interval[0] < ratio.gap < ratio.interval[1]
    assert [line.model for line in finding.curves[0].lines] == ["target", "reference 1", "reference 2", "original"]
    assert len(finding.worst_units) == 8
    said = {unit.id: unit.transcripts for unit in finding.worst_units if unit.transcripts}
    assert all(set(transcripts) == {"target", "reference 1", "reference 2", "original"} for transcripts in said.values())
    assert finding.summaries["original"] == {"perplexity": 3.0}
    assert finding.notes[:3] == ("a note", "target: level 0.5", "reference 1, reference 2: level 0.1")


def test_supporting_scores_decide_nothing() -> None:
    world = World()
    leakage = honest(world.rng)
    bare = world.judge(leakage)
    scores = {"rouge": tuple(world.rng.random(180).tolist())}
    references = [one.model_copy(update={"scores": scores}) for one in world.references]
    target = measurement(leakage, scores={"rouge": (1.0,) * 180})
    [scored] = compare(card(), target, references, world.original, POLICY, seed=7)
    assert scored.model_copy(update={"scores": ()}) == bare


def test_measurements_of_other_units_are_refused() -> None:
    target = measurement(np.zeros(60))
    with pytest.raises(ModelError, match="reference 1 was measured on other clusters"):
        compare(card(), target, [measurement(np.zeros(60), clusters=20)], None, POLICY, seed=1)
    with pytest.raises(ModelError, match="original was measured on other units"):
        compare(card(), target, [target], measurement(np.zeros(61)), POLICY, seed=1)
    with pytest.raises(ModelError, match="no reference"):
        compare(card(), target, [], None, POLICY, seed=1)
    with pytest.raises(ModelError, match="no forget unit"):
        compare(card(), measurement(np.zeros(4), retain=4), [measurement(np.zeros(4), retain=4)], None, POLICY, seed=1)


def test_the_same_seed_gives_the_same_finding() -> None:
    world = World()
    leakage = honest(world.rng)
    assert world.judge(leakage).content_digest() == world.judge(leakage).content_digest()


def test_identical_and_constant_models_are_judged_without_nan() -> None:
    for level in (0.0, 1.0):
        constant = measurement(np.full(180, level))
        [finding] = compare(card(), constant, [constant] * 3, None, POLICY, seed=1)
        assert finding.verdict is Verdict.PASS
        assert finding.canonical()
    assert finding.interval is not None
    assert finding.interval[0] < 0 < finding.interval[1]


# The battery.


def claimed(name: str, p_value: float | None, cluster_p: float | None = None, measures: str = "leakage") -> Finding:
    """A finding that fails by its mean at `p_value` and by a cluster at `cluster_p`; None is a claim not made."""
    sign = -1 if measures == "retention" else 1
    interval = sorted((0.2 * sign, 0.6 * sign)) if p_value is not None else [-0.1, 0.1]
    row = ClusterResult(cluster="a", units=5, target=0.9, references=0.0, gap=0.9, threshold=0.5, flagged=cluster_p is not None)
    worst = WorstClusters(clusters=(row,), p_value=cluster_p or 0.5, margin=0.25, smallest_detectable_gap=0.5, null="")
    return Finding.model_validate(
        {
            "attack": name,
            "measures": measures,
            "verdict": Verdict.FAIL if p_value is not None or cluster_p is not None else Verdict.PASS,
            "reason": "because",
            "gap": 0.4 * sign,
            "interval": tuple(interval),
            "margin": 0.05,
            "p_value": p_value if p_value is not None else 0.4,
            "units": 100,
            "clusters": 20,
            "worst_clusters": worst if measures == "leakage" else None,
        }
    )


def test_holm_runs_over_every_claim_of_the_battery() -> None:
    # Four claims: a mean at .025 and a cluster claim at .01 for each attack.
    alone = conclude([claimed("memorization", 0.006), claimed("relearning", None)], POLICY, references=3)
    assert alone.verdict is Verdict.FAIL
    weak = conclude([claimed("memorization", 0.007), claimed("relearning", None)], POLICY, references=3)
    assert weak.verdict is Verdict.INCONCLUSIVE
    assert weak.findings[0].verdict is Verdict.INCONCLUSIVE
    assert "4 claims" in weak.findings[0].reason
    stepped = conclude([claimed("memorization", 0.006), claimed("relearning", 0.0083)], POLICY, references=3)
    assert [finding.verdict for finding in stepped.findings] == [Verdict.FAIL, Verdict.FAIL]
    assert "relearning (leakage) fails too" in stepped.reason


def test_a_finding_keeps_the_claim_that_survives() -> None:
    both = conclude([claimed("memorization", 0.02, 0.004), claimed("relearning", None)], POLICY, references=3).findings[0]
    assert both.verdict is Verdict.INCONCLUSIVE
    cluster = conclude([claimed("memorization", 0.02, 0.0001), claimed("relearning", None)], POLICY, references=3).findings[0]
    assert cluster.verdict is Verdict.FAIL
    assert cluster.reason.startswith("one cluster ('a')")
    assert "gives back" not in cluster.reason


def test_collateral_damage_fails_an_audit() -> None:
    findings = [
        claimed("memorization", None),
        claimed("relearning", None),
        claimed("memorization", 0.001, measures="retention"),
    ]
    compared = conclude(findings, POLICY, references=3)
    assert compared.verdict is Verdict.FAIL
    assert "lost 40 points of the retain set" in compared.reason


@pytest.mark.parametrize(
    ("relearning", "verdict", "says"),
    [
        (claimed("relearning", None), Verdict.PASS, "memorization and relearning cannot tell the target"),
        (unmeasured("relearning", Verdict.SKIPPED, "outputs only"), Verdict.PASS, "memorization cannot tell"),
        (unmeasured("relearning", Verdict.ERROR, "out of memory"), Verdict.INCONCLUSIVE, "relearning could not be measured"),
        (None, Verdict.INCONCLUSIVE, "relearning was not run, and the policy requires it"),
        (
            claimed("relearning", None).model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": "too few"}),
            Verdict.INCONCLUSIVE,
            "relearning is undecided (too few)",
        ),
    ],
)
def test_a_pass_needs_every_required_attack(relearning: Finding | None, verdict: Verdict, says: str) -> None:
    findings = [claimed("memorization", None)] + ([relearning] if relearning else [])
    found, reason = verdict_of(findings, POLICY, references=3)
    assert found is verdict
    assert says in reason


def test_a_required_attack_that_may_not_be_skipped_blocks_a_pass() -> None:
    findings = [unmeasured("memorization", Verdict.SKIPPED, "no access"), claimed("relearning", None)]
    found, reason = verdict_of(findings, POLICY, references=3)
    assert found is Verdict.INCONCLUSIVE
    assert reason == "memorization was skipped (no access), and the policy requires it"


def test_an_error_of_any_attack_never_yields_a_pass() -> None:
    findings = [claimed("memorization", None), claimed("relearning", None), unmeasured(card("lira"), Verdict.ERROR, "broke")]
    assert verdict_of(findings, POLICY, references=3) == (Verdict.INCONCLUSIVE, "lira could not be measured (broke)")


def test_too_few_references_or_clusters_block_a_pass() -> None:
    findings = [claimed("memorization", None), claimed("relearning", None)]
    strict = POLICY.model_copy(update={"minimum_references": 3, "minimum_clusters": 50})
    found, reason = verdict_of(findings, strict, references=1)
    assert found is Verdict.INCONCLUSIVE
    assert "the audit has 1 references, and the policy asks for 3" in reason
    assert "memorization rests on 20 clusters" in reason


def test_a_battery_without_a_passing_attack_never_passes() -> None:
    free = POLICY.model_copy(update={"required": ()})
    assert verdict_of([], free, references=3)[0] is Verdict.INCONCLUSIVE
    skipped = [unmeasured("memorization", Verdict.SKIPPED, "no access")]
    assert verdict_of(skipped, free, references=3)[0] is Verdict.INCONCLUSIVE
    assert verdict_of([claimed("other", None)], free, references=3)[0] is Verdict.PASS


def test_a_control_that_errs_is_not_hidden_by_the_verdict() -> None:
    control = Control(model="reference 1", flagged=True, gap=0.4, interval=(0.3, 0.5))
    finding = claimed("memorization", None).model_copy(update={"controls": Controls(positive=None, negative=(control,))})
    assert conclude([finding], POLICY, references=3).findings[0].controls == finding.controls


@pytest.mark.parametrize(("sided", "named"), [("one", "beta, gap +0.200"), ("two", "gamma, gap -0.500")])
def test_the_worst_alternative_is_named_by_its_gap(sided: str, named: str) -> None:
    """Neither the first nor the last; with two sides, the one far below counts as much as one far above."""
    gaps = {"alpha": 0.1, "beta": 0.2, "gamma": -0.5, "outside": 0.9}

    def scored(shift: float) -> Measurement:
        columns = {name: (0.6 + shift * gap,) * 180 for name, gap in gaps.items()}
        return measurement(np.full(180, 0.5), scores=columns, facets={"kind": ("alpha", "beta", "gamma")})

    found = compare(card(sided=sided), scored(1), [scored(0)] * 3, None, POLICY, seed=1)[0]
    (note,) = [note for note in found.notes if note.startswith("worst kind")]
    assert note.startswith(f"worst kind: {named} [")
    assert note.endswith("of 3")
