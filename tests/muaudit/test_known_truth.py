"""The audit on models whose truth is known: honest retrains, models that forgot nothing, models that kept one person.

Each is audited as a user would audit it, against the same three references. `-s` shows the table that is printed at the end.
With MUAUDIT_FULL=1 there are twenty, ten and ten of them, as in docs/known-truth.md; else eight, four and four.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import muaudit
from muaudit.demo import write_audit
from muaudit.results import AuditReport, Verdict

pytest.importorskip("torch")
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

Build = Callable[..., dict[str, Path]]
MANY, FEW = (20, 10) if os.environ.get("MUAUDIT_FULL") else (8, 4)
HONEST = [f"retrain-{seed}" for seed in range(1, MANY + 1)]
UNTOUCHED = [f"do-nothing-{seed}" for seed in range(1, FEW + 1)]
LEFT_IN = [f"retrain-left-in-{person}" for person in range(FEW)]


@pytest.fixture(scope="module")
def reports(testbed: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditReport]:
    models = testbed("small", ["original", "reference-1", "reference-2", "reference-3", *HONEST, *UNTOUCHED, *LEFT_IN])
    folder = tmp_path_factory.mktemp("known-truth")
    return {
        name: muaudit.audit(write_audit(folder / f"{name}.toml", models, target=name))
        for name in (*HONEST, *UNTOUCHED, *LEFT_IN)
    }


def table(reports: dict[str, AuditReport]) -> str:
    lines = []
    for kind, names in (("honest retrains", HONEST), ("do_nothing", UNTOUCHED), ("one person left in", LEFT_IN)):
        counts = Counter(str(reports[name].verdict) for name in names)
        lines.append(f"{kind}: " + ", ".join(f"{verdict} {count} of {len(names)}" for verdict, count in sorted(counts.items())))
        lines += [f"  {name}: {reports[name].reason}" for name in names if reports[name].verdict == "inconclusive"]
    return "\n".join(lines)


def test_no_honest_retrain_fails(reports: dict[str, AuditReport], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + table(reports))  # noqa: T201 - the share of inconclusive audits is to be seen
    failed = {name: reports[name].reason for name in HONEST if reports[name].verdict is Verdict.FAIL}
    assert not failed
    for name in HONEST:
        if reports[name].verdict is Verdict.INCONCLUSIVE:
            assert any(
                f.smallest_detectable_gap is not None and f.verdict is Verdict.INCONCLUSIVE for f in reports[name].findings
            )


def test_every_model_that_forgot_nothing_fails_both_attacks(reports: dict[str, AuditReport]) -> None:
    for name in UNTOUCHED:
        verdicts = {finding.attack: finding.verdict for finding in reports[name].findings if finding.measures == "leakage"}
        assert verdicts == {"memorization": Verdict.FAIL, "relearning": Verdict.FAIL}, name


def test_one_person_left_in_fails_by_name(reports: dict[str, AuditReport], testbed: Build) -> None:
    from muaudit.task import ForgetTask

    task = ForgetTask.from_jsonl(forget=testbed("small", [])["forget"])
    people = list(dict.fromkeys(fact.cluster for fact in task.forget))
    for number, name in enumerate(LEFT_IN):
        report = reports[name]
        assert report.verdict is Verdict.FAIL, f"{name}: {report.reason}"
        finding = next(
            finding for finding in report.findings if finding.attack == "memorization" and finding.measures == "leakage"
        )
        assert finding.worst_clusters is not None
        assert [row.cluster for row in finding.worst_clusters.clusters if row.flagged] == [people[number]], name
        assert people[number] in report.reason
