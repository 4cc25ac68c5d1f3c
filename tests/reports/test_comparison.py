"""Reports beside each other: who leads, what changed and how surely, and what is refused or warned of."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_logs import recorded_audit
from rich.console import Console
from sample import card, digest, memorization, model, relearning, sample_report
from unit_leakages import leakages

from muaudit.errors import UsageError
from muaudit.reports import comparison_page
from muaudit.reports.changes import Change
from muaudit.reports.comparison import Comparison, compare
from muaudit.reports.comparison_table import table
from muaudit.results import AuditReport, DataRecord, Finding, UnitLeakage, Verdict
from muaudit.sealing import Redaction


def moved(units: tuple[UnitLeakage, ...], by: float) -> tuple[UnitLeakage, ...]:
    return tuple(unit.model_copy(update={"target": unit.target + by}) for unit in units)


UNITS = leakages(60, 12, lift=0.1)


def finding(gap: float, units: tuple[UnitLeakage, ...] = UNITS, **changes: Any) -> Finding:
    fields = {"gap": gap, "interval": (gap - 0.03, gap + 0.03), "leakages": moved(units, gap), "units": len(units)}
    return memorization().model_copy(update=fields | changes)


def release(name: str, *findings: Finding, verdict: Verdict = Verdict.PASS, **changes: Any) -> tuple[str, AuditReport]:
    models = (model("target", name), model("reference 1", "r1"), model("reference 2", "r2"), model("original", "o"))
    target = models[0].model_copy(update={"digest": digest(name)})
    fields = {"findings": findings, "verdict": verdict, "models": (target, *models[1:])}
    return name, sample_report(**(fields | changes))


def steps(compared: Comparison) -> list[Change]:
    (step,) = compared.steps
    return list(step.changes)


def shown(compared: Comparison) -> str:
    out = io.StringIO()
    table(compared, Console(file=out, width=60, highlight=False))
    return out.getvalue()


class TestLeaderboard:
    def test_orders_by_verdict_and_then_by_the_largest_gap(self) -> None:
        compared = compare(
            [
                release("leaky", finding(0.4), verdict=Verdict.FAIL),
                release("unsure", finding(0.01), verdict=Verdict.INCONCLUSIVE),
                release("good", finding(0.02)),
                release("broken", finding(0.0), verdict=Verdict.ERROR),
                release("best", finding(-0.01)),
            ]
        )
        assert [compared.entries[place].label for place in compared.ranking] == ["best", "good", "unsure", "broken", "leaky"]
        assert [compared.entries[place].rank for place in compared.ranking] == [1, 2, 3, 4, 5]

    def test_equals_share_a_rank(self) -> None:
        compared = compare([release("a", finding(0.1)), release("b", finding(0.1)), release("c", finding(0.2))])
        assert [entry.rank for entry in compared.entries] == [1, 1, 3]

    def test_only_what_all_could_measure_is_judged(self) -> None:
        broken = Finding(attack="relearning", measures="leakage", verdict=Verdict.ERROR, reason="it broke")
        compared = compare(
            [release("a", finding(0.1), relearning()), release("b", finding(0.2), broken, verdict=Verdict.INCONCLUSIVE)]
        )
        assert compared.judged_on == ("memorization",)
        assert compared.entries[0].largest == 0.1

    def test_a_two_sided_attack_counts_without_its_sign(self) -> None:
        compared = compare([release("a", finding(-0.3, sided="two")), release("b", finding(0.1, sided="two"))])
        assert [entry.largest for entry in compared.entries] == [0.3, 0.1]


class TestChanges:
    def test_the_same_units_are_paired(self) -> None:
        (change,) = steps(compare([release("a", finding(0.0)), release("b", finding(0.2))]))
        assert change.how == "paired"
        assert change.why == ""
        assert change.difference == pytest.approx(0.2)
        assert change.means == "worse"
        assert change.interval is not None
        assert change.interval[0] > 0.15, "a shift that is the same for each unit is known well"

    def test_units_in_another_order_are_the_same_units(self) -> None:
        other = finding(0.2)
        other = other.model_copy(update={"leakages": other.leakages[::-1]})
        (change,) = steps(compare([release("a", finding(0.0)), release("b", other)]))
        assert (change.how, change.difference) == ("paired", pytest.approx(0.2))

    @pytest.mark.parametrize(
        ("other", "why"),
        [
            (finding(0.2, UNITS[:50]), "the units differ (50 of 60 are in both)"),
            (finding(0.2, leakages=()), "not every unit's leakage is in both reports"),
            (
                finding(0.2, tuple(one.model_copy(update={"cluster": "c" + one.cluster}) for one in UNITS)),
                "the clusters differ",
            ),
            (finding(0.2, (*UNITS[:-1], UNITS[0])), "two units of one finding have the same name"),
        ],
    )
    def test_other_units_are_compared_by_their_intervals_which_is_said(self, other: Finding, why: str) -> None:
        compared = compare([release("a", finding(0.0)), release("b", other)])
        (change,) = steps(compared)
        assert (change.how, change.why) == ("independent", why)
        assert change.interval == pytest.approx((0.2 - 0.03 * 2**0.5, 0.2 + 0.03 * 2**0.5))
        assert why in shown(compared)

    def test_no_interval_is_said(self) -> None:
        (change,) = steps(compare([release("a", finding(0.0)), release("b", finding(0.2, leakages=(), interval=None))]))
        assert (change.means, change.interval) == ("unknown", None)
        assert "no interval" in change.why

    @pytest.mark.parametrize(
        ("measures", "sided", "before", "after", "means"),
        [
            ("leakage", "one", 0.3, 0.0, "better"),
            ("leakage", "one", 0.0, 0.0, "open"),
            ("retention", "one", 0.0, -0.3, "worse"),
            ("retention", "one", -0.3, 0.0, "better"),
            ("leakage", "two", -0.1, -0.4, "worse"),
            ("leakage", "two", -0.4, -0.1, "better"),
            ("leakage", "two", -0.3, 0.3, "moved"),
        ],
    )
    def test_what_a_change_means(self, measures: str, sided: str, before: float, after: float, means: str) -> None:
        first, second = (finding(gap, measures=measures, sided=sided) for gap in (before, after))
        shared = Finding(attack="relearning", measures="leakage", verdict=Verdict.SKIPPED, reason="not here")
        changes = steps(compare([release("a", first, shared), release("b", second, shared)]))
        assert changes[0].means == means

    def test_a_cluster_that_the_mean_hides_is_named(self) -> None:
        before = relearning()
        clusters = before.worst_clusters
        assert clusters is not None
        quiet = clusters.model_copy(
            update={"clusters": tuple(one.model_copy(update={"flagged": False}) for one in clusters.clusters)}
        )
        compared = compare(
            [release("a", before.model_copy(update={"worst_clusters": quiet})), release("b", before, verdict=Verdict.FAIL)]
        )
        (change,) = steps(compared)
        assert change.newly_flagged[:2] == ("Kalan Brawick", "Mira Oslander")
        assert "newly flagged: Kalan Brawick" in shown(compared)
        assert "newly flagged: Kalan Brawick" in comparison_page.render(compared)

    def test_a_finding_of_one_report_alone_is_shown(self) -> None:
        compared = compare([release("a", finding(0.0)), release("b", finding(0.0), relearning(), verdict=Verdict.FAIL)])
        change = steps(compared)[1]
        assert change.verdicts == (None, Verdict.FAIL)
        assert change.why == "only the second audit has it"
        assert any("batteries differ" in warning for warning in compared.warnings)

    def test_three_reports_are_compared_in_turn_and_from_first_to_last(self) -> None:
        compared = compare([release(name, finding(gap)) for name, gap in (("a", 0.3), ("b", 0.2), ("c", 0.0))])
        assert [(step.before, step.after) for step in compared.steps] == [(0, 1), (1, 2), (0, 2)]
        assert [step.changes[0].difference for step in compared.steps] == pytest.approx([-0.1, -0.2, -0.3])


class TestComparability:
    def refused(self, *reports: tuple[str, AuditReport]) -> str:
        with pytest.raises(UsageError) as refusal:
            compare(reports)
        return str(refusal.value)

    def warned(self, **changes: Any) -> str:
        return " ".join(compare([release("a", finding(0.0)), release("b", finding(0.1), **changes)]).warnings)

    def test_other_forget_sets_are_refused(self) -> None:
        other = (DataRecord(role="forget", path="forget.jsonl", sha256=digest("other"), units=240, clusters=24),)
        assert "other forget sets" in self.refused(release("a", finding(0.0)), release("b", finding(0.0), data=other))

    def test_redacted_reports_are_refused(self) -> None:
        told = Redaction(sealed_sha256=digest("sealed"), counts={"names": 1}, places=1)
        assert "is redacted" in self.refused(release("a", finding(0.0)), release("b", finding(0.0), redaction=told))

    def test_one_report_and_the_same_report_twice_are_refused(self) -> None:
        assert "two or more" in self.refused(release("a", finding(0.0)))
        assert "same report" in self.refused(release("a", finding(0.0)), ("again", release("a", finding(0.0))[1]))

    def test_attacks_with_other_parameters_are_refused_where_nothing_else_is_alike(self) -> None:
        other = (card("memorization", samples=9),)
        assert "parameters" in self.refused(release("a", finding(0.0)), release("b", finding(0.0), attacks=other))

    def test_one_attack_with_other_parameters_is_set_apart(self) -> None:
        cards = (card("memorization", samples=8), card("relearning", budgets=[5], rate=1e-5))
        compared = compare([release("a", finding(0.0), relearning()), release("b", finding(0.1), relearning(), attacks=cards)])
        assert compared.rows[1].alike == "a and b ran it with other parameters: budgets"
        assert compared.judged_on == ("memorization",)
        change = steps(compared)[1]
        assert (change.difference, change.means) == (None, "unknown")
        assert "other parameters: budgets" in shown(compared)
        assert "other parameters: budgets" in comparison_page.render(compared)

    def test_another_retain_set_sets_retention_apart(self) -> None:
        data = sample_report().data
        other = (data[0], data[1].model_copy(update={"sha256": digest("other")}), data[2])
        kept = finding(0.0, measures="retention")
        compared = compare([release("a", finding(0.0), kept), release("b", finding(0.0), kept, data=other)])
        assert [row.alike for row in compared.rows] == [None, "the retain sets differ"]

    def test_what_else_differs_is_said(self) -> None:
        models = release("b")[1].models
        other = models[1].model_copy(update={"digest": digest("other")})
        assert "references differ" in self.warned(models=(models[0], other, *models[2:]))
        assert "policies differ" in self.warned(policy=sample_report().policy | {"margin": 0.2})
        assert "seeds differ" in self.warned(plan={"config": {"run": {"seed": "7"}}})
        assert "versions of muaudit" in self.warned(tool="muaudit 9")
        assert "What was asked differs" in self.warned(plan={"task_digest": "x"})
        assert "one reference" in self.warned(models=models[:2])
        assert "one model" in self.warned(models=release("a")[1].models)
        assert self.warned() == ""

    def test_other_references_do_not_drop_out_of_the_interval(self) -> None:
        models = release("b")[1].models
        spread = tuple(
            unit.model_copy(update={"references": (unit.references[0] - 0.2, unit.references[1], unit.references[2] + 0.2)})
            for unit in UNITS
        )
        other = models[1].model_copy(update={"digest": digest("other")})
        own = (models[0], other, *models[2:])
        first = release("a", finding(0.0, spread))
        widths = []
        for second in (release("b", finding(0.1, spread)), release("b", finding(0.1, spread), models=own)):
            low, high = steps(compare([first, second]))[0].interval or (0.0, 0.0)
            widths.append(high - low)
        assert widths[1] > 2 * widths[0]


def test_page_has_trends_of_three_and_none_of_two() -> None:
    three = [release(name, finding(gap)) for name, gap in (("a", 0.3), ("b", 0.2), ("c", 0.0))]
    assert "Trend of memorization: a +0.300 pass; b +0.200 pass; c +0.000 pass" in comparison_page.render(compare(three))
    page = comparison_page.render(compare(three[:2]))
    assert "Trend of" not in page
    assert page == comparison_page.render(compare(three[:2])), "same reports, same bytes"
    assert "default-src 'none'; style-src 'sha256-" in page


def muaudit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "muaudit", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


class TestCommandLine:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("compare")
        for target in ("honest", "suppressed"):
            recorded_audit(folder, target)
            muaudit("scan", f"{target}.toml", cwd=folder)
        return folder

    def test_prints_a_table_and_writes_a_page(self, folder: Path) -> None:
        ran = muaudit("compare", "audit-honest", "audit-suppressed/report.json", "--out", "both.html", cwd=folder)
        assert ran.returncode == 0, ran.stderr
        for said in ("1   pass   audit-honest", "pass -> FAIL", "worse", "paired", "read     both.html"):
            assert said in ran.stdout, said
        assert "From <bdi>audit-honest</bdi> to <bdi>audit-suppressed</bdi>" in (folder / "both.html").read_text("utf-8")

    def test_prints_json(self, folder: Path) -> None:
        found = json.loads(muaudit("compare", "audit-honest", "audit-suppressed", "--json", cwd=folder).stdout)
        change = found["steps"][0]["changes"][0]
        assert change["how"] == "paired"
        low, high = change["interval"]
        assert low < change["difference"] < high
        assert change["difference"] == pytest.approx(change["gaps"][1] - change["gaps"][0], abs=1e-12)

    @pytest.mark.parametrize("wrong", [["audit-honest"], ["audit-honest", "audit-honest"], ["audit-honest", "honest.toml"]])
    def test_refuses_in_one_line(self, folder: Path, wrong: list[str]) -> None:
        ran = muaudit("compare", *wrong, cwd=folder)
        assert ran.returncode == 2
        assert ran.stderr.startswith("muaudit: ")
        assert ran.stderr.count("\n") == 1
