"""A policy is a file that its owner can read, and a fault in it is never read as a default."""

import hashlib
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from recorded_logs import recorded_audit

import muaudit
from muaudit import feasibility, plan, policy, preset, registry
from muaudit.cli import main
from muaudit.compare import conclude
from muaudit.errors import UsageError
from muaudit.plan import Plan
from muaudit.results import Control, Controls, Finding, Verdict
from muaudit.statistics import mean_gap

OWN = 'name = "house"\ndescription = "Ours."\nmargin = 0.02\n[margins]\nrelearning = 0.1\n'


def test_the_standard_policy_is_the_documented_one() -> None:
    standard = policy.load("standard")
    assert (standard.margin, standard.cluster_margin, standard.confidence) == (0.05, 0.25, 0.95)
    assert standard.margin_of("memorization") == 0.05
    assert standard.margin_of("membership") == standard.margin_of("privacy_leakage", "membership") == 0.15


@pytest.mark.parametrize("name", policy.shipped())
def test_every_shipped_policy_spells_out_its_decision_rule(name: str) -> None:
    path = Path(policy.__file__).parent / "policies" / f"{name}.toml"
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert policy.load(name).name == name
    assert set(policy.Policy.model_fields) - set(written) <= {"margins", "cluster_margins", "skippable"}


def test_a_margin_of_one_attack_overrides_the_general_one(tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text(OWN, encoding="utf-8")
    own = policy.load("house.toml", tmp_path)
    assert (own.margin_of("relearning"), own.margin_of("memorization")) == (0.1, 0.02)


def test_a_cluster_margin_of_one_attack_overrides_the_general_one() -> None:
    rule = policy.load("standard")
    assert (rule.cluster_margin_of("concept_vectors"), rule.cluster_margin_of("memorization")) == (0.42, 0.25)
    assert rule.cluster_margin_of("vectors_of_dates", "concept_vectors") == 0.42


def test_a_file_cannot_pass_for_a_shipped_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "standard").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert policy.load("standard", tmp_path).name == "standard"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (OWN.replace("0.02", "0"), "margin: "),
        (OWN.replace("0.02", "nan"), "margin: "),
        (OWN.replace("0.1", "2.0"), "margins.relearning: "),
        (OWN.replace("margin =", "margn ="), "margn"),
        ("margin = 0.1\n", "name"),
        (OWN + "[", "not TOML"),
        (OWN + "[other]\n", "other"),
    ],
)
def test_a_fault_names_the_policy_and_the_key(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "house.toml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        policy.load("house.toml", tmp_path)
    assert "'house.toml'" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["strict-er", ".", "gone.toml"])
def test_an_unknown_policy_lists_the_shipped_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such policy; give the path of one or one of: .*standard"):
        policy.load(name, tmp_path)


def planned(folder: Path, sections: str, *, target: str = "honest", without: str = "") -> Plan:
    path = recorded_audit(folder, target, sections=sections)
    if without:
        text = path.read_text(encoding="utf-8")
        assert without in text
        path.write_text(text.replace(without, ""), encoding="utf-8")
    return plan.resolve(path)[0]


def refused(folder: Path, sections: str, **changes: str) -> str:
    with pytest.raises(UsageError) as caught:
        planned(folder, sections, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HOUSE = 'name = "house"\ndescription = "Ours."\n'
ORIGINAL = '[original]\nkind = "recorded"\nformat = "tofu"\npath = "original.json"\n'


@pytest.mark.parametrize(
    ("rule", "changes", "expected"),
    [
        ("minimum_references = 4\n", {}, "3 references where it asks for 4: retrain more"),
        ("minimum_clusters = 21\n", {}, "20 clusters in the forget set where it asks for 21: give more"),
        ("minimum_units = 81\n", {}, "80 units in the forget set where it asks for 81: give more"),
        ("positive_control = true\n", {"without": ORIGINAL}, "no original where it asks for a positive control"),
        ('required = ["sleek"]\n', {}, "sleek is required and not planned: add [attacks.sleek]"),
        ('required = ["relearning"]\n', {}, "relearning is required, and a target of kind 'recorded' does not give Finetunes"),
        ('[required_by_access]\ntext = ["in_context"]\n', {}, "in_context is required and not planned"),
        ('[required_by_access]\ntext = ["relearning"]\n', {}, "names 'relearning', which needs access 'training': move it"),
        ('[required_by_access]\ntext = ["memorisation"]\n', {}, "names 'memorisation', which is no attack here"),
    ],
)
def test_what_an_audit_lacks_is_said_before_it_runs(tmp_path: Path, rule: str, changes: dict[str, str], expected: str) -> None:
    (tmp_path / "house.toml").write_text(HOUSE + rule, encoding="utf-8")
    told = refused(tmp_path, '[policy]\nname = "house.toml"\n', **changes)
    assert expected in told
    assert "'house'" in told


def test_everything_that_is_missing_is_said_at_once_on_the_command_line(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest", sections='[policy]\nname = "strict"\n')
    seen = CliRunner().invoke(main, ["plan", str(path)])
    assert seen.exit_code == 2
    assert seen.stderr.count("\n") == 1
    for told in ("80 units", "it asks for 100", "adversarial_prompts is required and not planned", "partial = true"):
        assert told in seen.stderr
    assert "membership" not in seen.stderr, "recorded outputs give no access to it"
    assert "retention" not in seen.stderr, "an attack on image generators"
    assert not (tmp_path / "audit-honest" / "plan.json").exists()


def test_an_audit_that_cannot_pass_runs_on_purpose_and_never_passes(tmp_path: Path) -> None:
    (tmp_path / "house.toml").write_text(HOUSE + 'minimum_references = 4\nrequired = ["memorization"]\n', encoding="utf-8")
    path = recorded_audit(tmp_path, "honest", sections='[policy]\nname = "house.toml"\npartial = true\n')
    report = muaudit.audit(path)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "3 references, and the policy asks for 4" in report.reason
    assert any("partial = true" in limit for limit in report.limits)
    failed = muaudit.audit(recorded_audit(tmp_path, "suppressed", sections='[policy]\nname = "house.toml"\npartial = true\n'))
    assert failed.verdict is Verdict.FAIL


def test_an_audit_of_informational_attacks_alone_is_refused_or_says_what_its_pass_is_worth(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("shallow_passes = true", ""), encoding="utf-8")
    with pytest.raises(UsageError, match="only memorization can be run, and a pass of that says too little"):
        muaudit.audit(path)
    path.write_text(text.replace("shallow_passes = true", "partial = true"), encoding="utf-8")
    undecided = muaudit.audit(path)
    assert undecided.verdict is Verdict.INCONCLUSIVE
    assert "only memorization passed, which alone sees too little" in undecided.reason
    path.write_text(text, encoding="utf-8")
    passed = muaudit.audit(path)
    assert passed.verdict is Verdict.PASS
    assert passed.reason.endswith("no attack passed that sees deeper, and the policy asks for none")
    assert any("shallow_passes = true" in limit for limit in passed.limits)


def test_no_margin_is_promised_that_so_few_units_cannot_show(tmp_path: Path) -> None:
    """80 identical answers leave a bound of t / 80: a policy that wants less is refused, one that wants just more is not."""
    bound = feasibility.smallest_bound(80, 20, 3, 0.975)
    for margin, fine in ((bound * 0.99, False), (bound * 1.01, True)):
        (tmp_path / "house.toml").write_text(HOUSE + f"margin = {margin}\n", encoding="utf-8")
        if fine:
            assert planned(tmp_path, '[policy]\nname = "house.toml"\n').policy.margin == margin
        else:
            told = refused(tmp_path, '[policy]\nname = "house.toml"\n')
            assert f"no gap below {bound:.3f} can be shown at 97.5%" in told
            assert "memorization" in told
            assert "give 81 units or more" in told


@pytest.mark.parametrize(("units", "clusters", "references"), [(60, 12, 1), (60, 12, 3), (20, 4, 2), (200, 10, 6)])
def test_no_target_comes_below_the_smallest_bound(units: int, clusters: int, references: int) -> None:
    """Neither one that is its references bit for bit, nor one among references that differ by a little."""
    codes = np.arange(units) % clusters
    rng = np.random.default_rng(units)
    for noise in (0.0, 0.001, 0.01, 0.1):
        effects = rng.normal(0, noise, (references, 1))
        others = np.clip(0.3 + effects + rng.normal(0, noise, (references, units)), 0, 1)
        found = mean_gap(others.mean(0), others, codes, rng=np.random.default_rng(0), resolution=1.0)
        assert found.value == pytest.approx(0, abs=1e-12)
        assert found.upper(0.975) >= feasibility.smallest_bound(units, clusters, references, 0.975) * (1 - 1e-9)


@pytest.mark.parametrize("name", ["quick", "strict", "gdpr-erasure"])
def test_a_policy_asks_for_no_fewer_data_than_a_pass_takes(name: str) -> None:
    rule = policy.load(name)
    level = rule.equivalence_confidence
    bound = feasibility.smallest_bound(rule.minimum_units, rule.minimum_clusters, rule.minimum_references, level)
    assert bound < min([rule.margin, *rule.margins.values()])


@pytest.mark.parametrize("name", policy.shipped())
def test_required_by_access_names_attacks_under_their_own_access(name: str) -> None:
    rule = policy.load(name)
    for access, names in rule.required_by_access.items():
        for attack in names:
            found = registry.find(attack)
            assert isinstance(found, registry.Registered)
            assert found.attack.access == access
    for attack in (*rule.required, *rule.margins):
        assert attack in {*registry.registered(), *preset.attacks("muse")}


def test_what_is_required_follows_from_what_the_target_gives(tmp_path: Path) -> None:
    quick = '[policy]\nname = "quick"\n'
    with pytest.raises(UsageError, match="adversarial_prompts is required and not planned"):
        planned(tmp_path, quick)
    frozen = planned(tmp_path, quick + "[attacks.adversarial_prompts]\n")
    assert frozen.policy.required == ("adversarial_prompts",), "recorded outputs of a language model give text alone"
    assert frozen.policy.required_by_access["training"] == ("concept_relearning",), "an attack on image generators"
    report = muaudit.audit(tmp_path / "honest.toml")
    assert report.verdict is Verdict.PASS
    skipped = next(finding for finding in report.findings if finding.attack == "adversarial_prompts")
    assert skipped.verdict is Verdict.SKIPPED


def test_a_pass_that_rests_on_too_little_is_none() -> None:
    good = Finding(
        attack="memorization", measures="leakage", verdict=Verdict.PASS, reason="", units=50, clusters=10,
        controls=Controls(positive=Control(model="original", flagged=True, gap=0.9, interval=(0.8, 1)), negative=()),
    )  # fmt: skip
    rule = policy.load("gdpr-erasure").model_copy(update={"required": ("memorization",)})
    assert conclude([good], rule, references=3).verdict is Verdict.PASS
    for changed, expected in (
        ({"units": 49}, "49 units, and the policy asks for 50"),
        ({"clusters": 9}, "9 clusters, and the policy asks for 10"),
        ({"controls": None}, "was not tried on the original"),
    ):
        found = conclude([good.model_copy(update=changed)], rule, references=3)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert expected in found.reason
    assert conclude([good], rule, references=2).verdict is Verdict.INCONCLUSIVE


def test_the_report_names_the_policy_file_that_was_applied(tmp_path: Path) -> None:
    """`sha256sum house.toml` is what its owner checks; margins that the plan changed are said."""
    text = HOUSE + "margin = 0.06 # as decided in March\n"
    (tmp_path / "house.toml").write_text(text, encoding="utf-8")
    path = recorded_audit(tmp_path, "honest", sections='[policy]\nname = "house.toml"\nmargins = { memorization = 0.07 }\n')
    report = muaudit.audit(path)
    assert report.policy_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert report.plan["policy_sha256"] == report.policy_sha256
    assert any("margins of its own in place of the policy's (memorization 0.07)" in limit for limit in report.limits)
    frozen = path.parent / "audit-honest" / "plan.json"
    (tmp_path / "house.toml").write_text(text.replace("March", "April"), encoding="utf-8")
    with pytest.raises(UsageError, match="policy_sha256"):
        plan.resolve(frozen)


def test_a_shipped_policy_is_a_start_for_ones_own(tmp_path: Path) -> None:
    seen = CliRunner().invoke(main, ["policies", "gdpr-erasure"])
    assert seen.exit_code == 0
    (tmp_path / "erasure.toml").write_text(seen.stdout, encoding="utf-8")
    assert policy.load("erasure.toml", tmp_path) == policy.load("gdpr-erasure")
    listed = CliRunner().invoke(main, ["policies"]).stdout
    assert all(name in listed for name in policy.shipped())
    assert json.loads(CliRunner().invoke(main, ["policies", "strict", "--json"]).stdout)["margin"] == 0.03
    assert CliRunner().invoke(main, ["policies", "stict"]).exit_code == 2
