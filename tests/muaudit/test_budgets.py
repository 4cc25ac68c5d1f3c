"""What does not fit into the budget is skipped and said, whatever was spent stays spent, and a skipped attack is no pass."""

from pathlib import Path

import pytest
from behaving_server import FACTS, PEOPLE, Neighbour, Town, endpoint_audit, honest, town
from click.testing import CliRunner
from recorded_logs import recorded_audit

import muaudit
from muaudit import budgets, measuring, plan
from muaudit.budgets import Account, Allowance, OverBudget, Used
from muaudit.cli import main
from muaudit.compare import conclude
from muaudit.model_config import RecordedConfig
from muaudit.policy import load
from muaudit.results import AuditReport, Finding, Verdict

SETTINGS = RecordedConfig(kind="recorded", path="a", format="tofu")

FACT_QUERIES = 2 * PEOPLE * FACTS
"""What memorization asks of one model: every forget and retain fact once."""


class Model:
    """Counts what really reaches it."""

    digest = "made up"
    model_seconds = 0.0

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, queries: list[str], max_new_tokens: int) -> list[str]:
        self.asked += len(queries)
        return queries

    def score(self, queries: list[str]) -> list[str]:
        return self.generate(queries, 1)


def findings(report: AuditReport) -> dict[str, Finding]:
    return {one.attack: one for one in report.findings if one.measures == "leakage"}


def test_a_question_that_does_not_fit_is_not_asked(tmp_path: Path) -> None:
    model, used = Model(), Used(Allowance(queries=10), SETTINGS, tmp_path)
    with used.watching(model):  # type: ignore[arg-type]
        assert model.generate(["a"] * 6, 1) == ["a"] * 6
        assert model.score(["b"] * 4) == ["b"] * 4
        assert (used.queries, model.asked) == (10, 10), "what scoring asks of itself counts once"
        with pytest.raises(OverBudget, match="more than the 10 queries a model"):
            model.generate(["c"], 1)
    assert model.asked == 10
    assert model.generate(["d"], 1) == ["d"], "the model is as it was"
    assert used.queries == 10


def test_time_that_is_over_ends_an_attack_between_questions(tmp_path: Path) -> None:
    used = Used(Allowance(seconds=0.0), SETTINGS, tmp_path)
    with pytest.raises(OverBudget, match="hours are over"):
        used.watching(Model()).__enter__()  # type: ignore[arg-type]


def test_without_a_budget_nothing_is_counted_or_written(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    report = muaudit.audit(path)
    assert report.run.spent is None
    assert not (tmp_path / "audit-honest" / "store" / "spent").exists()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Town:
    """Models in this process, which are no endpoints to the audit: what they are asked is counted here."""
    here = Town(url="http://127.0.0.1:9/v1")
    monkeypatch.setattr(measuring, "open_model", lambda config, *_, **__: Neighbour(here, config.model))
    monkeypatch.setattr(budgets, "EndpointConfig", RecordedConfig)
    measuring.opened.cache_clear()
    return here


QUIET = "[conduct]\nquestions = 0\n"
SECOND = '[attacks.again]\nattack = "memorization"\nmax_new_tokens = 4\n'
THIRD = '[attacks.short]\nattack = "memorization"\nmax_new_tokens = 2\nretain_clusters = 2\n'


def asked(place: Town) -> int:
    return sum(map(len, place.prompts.values()))


def test_an_attack_that_does_not_fit_is_skipped_and_a_cheaper_one_after_it_runs(tmp_path: Path, place: Town) -> None:
    """Three models at 60 questions each: 250 are enough for one such attack; the third asks 40 of each, and does not fit."""
    budget = 3 * FACT_QUERIES + 130
    path = endpoint_audit(tmp_path, place, honest, sections=f"{SECOND}{THIRD}[budget]\nqueries = {budget}\n{QUIET}")
    report = muaudit.audit(path)
    found = findings(report)
    assert [found[name].verdict for name in ("memorization", "again", "short")] == [
        Verdict.PASS, Verdict.SKIPPED, Verdict.PASS,
    ]  # fmt: skip
    assert found["again"].over_budget
    assert f"more than the {130 // 3} queries a model that the budget leaves it" in found["again"].reason
    assert report.verdict is Verdict.PASS, "the policy does not require it"
    assert report.reason.endswith("again did not fit into the budget, and what it would have found is open")
    assert any("The plan's budget did not suffice for again" in limit for limit in report.limits)
    assert report.run.spent is not None
    assert report.run.spent.queries == asked(place) <= budget


def test_a_required_attack_that_does_not_fit_is_no_pass(tmp_path: Path, place: Town) -> None:
    path = endpoint_audit(tmp_path, place, honest, sections=f"[budget]\nqueries = {3 * FACT_QUERIES - 1}\n{QUIET}")
    report = muaudit.audit(path)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "memorization was skipped (it takes more than" in report.reason
    assert "and the policy requires it" in report.reason


def test_a_policy_passes_over_what_was_not_accessible_and_never_over_what_was_not_affordable() -> None:
    good = Finding(attack="memorization", measures="leakage", verdict=Verdict.PASS, reason="", units=50, clusters=10)
    skipped = Finding(attack="relearning", measures="leakage", verdict=Verdict.SKIPPED, reason="")
    assert conclude([good, skipped], load("standard"), references=1).verdict is Verdict.PASS
    late = skipped.model_copy(update={"over_budget": True})
    assert conclude([good, late], load("standard"), references=1).verdict is Verdict.INCONCLUSIVE


def test_what_was_spent_stays_spent_and_what_did_not_fit_is_not_tried_again(tmp_path: Path, place: Town) -> None:
    sections = f"{SECOND}[budget]\nqueries = {3 * FACT_QUERIES + 100}\n{QUIET}"
    path = endpoint_audit(tmp_path, place, honest, sections=sections)
    first = muaudit.audit(path)
    before = asked(place)
    again = muaudit.audit(path)
    assert asked(place) == before, "nothing is asked to find out once more that it does not fit"
    assert [one.canonical() for one in again.findings] == [one.canonical() for one in first.findings]
    path.write_text(path.read_text(encoding="utf-8").replace(f"queries = {3 * FACT_QUERIES + 100}", "queries = 1000"))
    more = muaudit.audit(path)
    assert {one.verdict for one in findings(more).values()} == {Verdict.PASS}
    assert more.run.spent is not None
    assert more.run.spent.queries == asked(place) == 6 * FACT_QUERIES, "the first attack was not paid for twice"


def test_an_interrupted_audit_goes_on_with_what_is_left(tmp_path: Path, place: Town) -> None:
    """Killed after two of three models: the third gets all that is left, and nothing is asked twice."""
    path = endpoint_audit(tmp_path, place, honest, sections=f"[budget]\nqueries = {3 * FACT_QUERIES}\n{QUIET}")

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        muaudit.audit(path, progress=stop)
    assert asked(place) == 2 * FACT_QUERIES
    report = muaudit.audit(path)
    assert report.verdict is Verdict.PASS
    assert asked(place) == 3 * FACT_QUERIES


def test_questions_that_come_back_are_kept_back_for(tmp_path: Path, place: Town) -> None:
    """Twelve of each set, twelve innocent ones, twice early and twice late: attacks get what these leave."""
    once = 3 * 2 * 36
    path = endpoint_audit(tmp_path / "a", place, honest, sections=f"[budget]\nqueries = {2 * once + 3 * FACT_QUERIES}\n")
    report = muaudit.audit(path)
    assert report.verdict is Verdict.PASS
    assert report.run.spent is not None
    assert report.run.spent.queries == asked(place) == 2 * once + 3 * FACT_QUERIES
    path = endpoint_audit(tmp_path / "b", place, honest, sections=f"[budget]\nqueries = {2 * once + 3 * FACT_QUERIES - 1}\n")
    short = muaudit.audit(path)
    assert findings(short)["memorization"].over_budget
    assert {one.check: one.state for one in short.conduct}["repetition"] == "clear"
    path = endpoint_audit(tmp_path / "c", place, honest, sections="[budget]\nqueries = 20\n")
    least = muaudit.audit(path)
    assert {one.check: one.state for one in least.conduct}["repetition"] == "unknown"
    assert least.verdict is Verdict.INCONCLUSIVE
    assert asked(place) <= 20


def test_hours_are_counted_over_all_runs(tmp_path: Path, place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(budgets.time, "monotonic", lambda: clock[0])

    def tick(done: int, total: int, what: str) -> None:
        clock[0] += 1000.0

    path = endpoint_audit(tmp_path, place, honest, sections=f"{SECOND}{THIRD}[budget]\nhours = 1\n{QUIET}")
    report = muaudit.audit(path, progress=tick)
    assert [one.verdict for one in findings(report).values()] == [Verdict.PASS, Verdict.SKIPPED, Verdict.SKIPPED]
    assert findings(report)["short"].reason == "the budget is spent (hours = 1)"
    before = asked(place)
    assert findings(muaudit.audit(path, progress=tick))["memorization"].verdict is Verdict.PASS, "it was measured in time"
    assert asked(place) == before


def test_endpoints_are_metered_in_requests_and_money(tmp_path: Path) -> None:
    """A real server, 10 prompt tokens a request at 1000 a token's million: each request costs 0.01 and a little."""
    pytest.importorskip("openai")
    prices = "price_per_million_input = 1000.0\nprice_per_million_output = 0.0\nconcurrency = 8\n"
    with town() as here:
        path = endpoint_audit(tmp_path, here, honest, prices=prices, sections=f"[budget]\nmoney = 0.6\n{QUIET}")
        report = muaudit.audit(path)
        sent = asked(here)
    assert findings(report)["memorization"].over_budget
    assert "it costs more than the 0.2 a model that the budget leaves it" in findings(report)["memorization"].reason
    assert report.run.spent is not None
    assert report.run.spent.money == pytest.approx(0.01 * sent)
    assert report.run.spent.queries == sent == 32, "looked at after every 16: 20 requests cost as much as there is"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ("[budget]\nmoney = 5\n", "budget.money limits what asking endpoints costs, and no model is one"),
        ("[budget]\nqueries = 0\n", "budget.queries"),
        ("[budget]\nhour = 1\n", "unknown key 'budget.hour'; did you mean 'hours'?"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(tmp_path: Path, sections: str, expected: str) -> None:
    seen = CliRunner().invoke(main, ["plan", str(recorded_audit(tmp_path, "honest", sections=sections))])
    assert seen.exit_code == 2
    assert expected in seen.stderr


def test_money_needs_prices(tmp_path: Path) -> None:
    path = endpoint_audit(tmp_path, Town(url="http://127.0.0.1:9/v1"), honest, sections="[budget]\nmoney = 5\n")
    seen = CliRunner().invoke(main, ["plan", str(path)])
    assert seen.exit_code == 2
    assert "give the target price_per_million_input" in seen.stderr


def test_a_damaged_account_is_begun_anew(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest", sections="[budget]\nqueries = 1000\n")
    frozen, base = plan.resolve(path)
    Account(frozen, base).took(7)
    assert Account(frozen, base).queries == 7
    (file,) = (tmp_path / "audit-honest" / "store" / "spent").iterdir()
    file.write_text("{", encoding="utf-8")
    assert Account(frozen, base).queries == 0
