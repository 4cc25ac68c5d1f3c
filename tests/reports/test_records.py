"""The records of the long calibrations in docs/validity.md: signed, in step with the document, and as good as it says.

After a new record: `MUAUDIT_UPDATE=1 pytest tests/reports/test_records.py` writes its tables anew.
"""

import os
import re
from pathlib import Path

import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from muaudit import policy, registry
from muaudit.calibration.record import AuditRow, CalibrationRecord
from muaudit.reports import calibration_markdown, calibration_statement
from muaudit.reports.keys import load_public
from muaudit.version import VERSION

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = DOCS / "records"
FAMILIES = {"language": "facts", "images": "text_to_image"}
"""Records by folder, with the kind of task."""

family = pytest.mark.parametrize("name", FAMILIES)


def record_of(name: str) -> CalibrationRecord:
    return CalibrationRecord.from_json((RECORDS / name / "calibration.json").read_bytes())


def audits(record: CalibrationRecord, *truths: str) -> list[str]:
    """The verdicts of the audits of some targets, under the first policy."""
    return [one.verdicts[record.policy.policy] for one in record.audits if one.truth in truths]


@family
def test_a_record_is_signed_and_of_this_version(name: str) -> None:
    data = (RECORDS / name / "calibration.json").read_bytes()
    envelope = (RECORDS / name / "calibration.intoto.json").read_bytes()
    seen = calibration_statement.verify(envelope, [load_public(RECORDS / "developers.pub")], record=data)
    assert seen.unchecked == ()
    record = record_of(name)
    assert (record.family, record.tool) == (FAMILIES[name], f"muaudit {VERSION}")
    stale = [one.policy for one in record.policies if one.left_out is None and one.sha256 != policy.digest(one.policy)]
    assert stale == [], "these policies changed after their errors were measured: calibrate again"


@family
def test_the_document_has_the_record_s_tables(name: str) -> None:
    path, marks = DOCS / "validity.md", (f"<!-- {name} -->\n", f"<!-- /{name} -->\n")
    tables = "\n\n".join(f"### {title}\n\n{body}" for title, body in calibration_markdown.sections(record_of(name)).items())
    head, _, rest = path.read_text(encoding="utf-8").partition(marks[0])
    expected = f"{head}{marks[0]}\n{tables}\n\n{marks[1]}{rest.partition(marks[1])[2]}"
    if os.environ.get("MUAUDIT_UPDATE"):
        path.write_text(expected, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == expected, "the record changed: run this test with MUAUDIT_UPDATE=1"


@family
def test_the_record_s_numbers_follow_from_its_rows_by_other_libraries(name: str) -> None:
    record = record_of(name)
    first = record.policy.policy
    kinds: dict[str, list[AuditRow]] = {truth: [] for truth in ("never_saw", "knows", "gated", "ladder")}
    for audit in record.audits:
        kinds[audit.truth].append(audit)
        assert set(audit.flagged[first]) <= {attack for attack, excess in audit.excess.items() if excess > 0}
    for rate, truth in ((record.policy.false_alarm, "never_saw"), (record.policy.detection, "knows")):
        assert rate is not None
        hits = sum(one.verdicts[first] == "fail" for one in kinds[truth])
        exact = stats.binomtest(hits, len(kinds[truth])).proportion_ci(0.95, method="exact")
        assert (rate.hits, rate.total) == (hits, len(kinds[truth]))
        assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high))
    told = [*kinds["never_saw"], *kinds["knows"], *kinds["gated"]]
    known = [audit.truth != "never_saw" for audit in told]
    for attack in [one for one in record.attacks if one.gap is not None and one.excess is not None]:
        have = [(audit, truth) for audit, truth in zip(told, known, strict=True) if attack.attack in audit.gaps]
        for number, area in (("gaps", attack.gap), ("excess", attack.excess)):
            scores = [getattr(audit, number)[attack.attack] for audit, _ in have]
            assert area is not None
            assert area.auc == pytest.approx(roc_auc_score([truth for _, truth in have], scores), abs=1e-9)
    rungs = kinds["ladder"]
    assert record.battery.ladder is not None
    expected = stats.spearmanr([one.share for one in rungs], [max(one.gaps.values()) for one in rungs]).statistic
    assert record.battery.ladder.value == pytest.approx(expected)


@family
def test_honest_models_are_rarely_failed_and_mostly_passed(name: str) -> None:
    record = record_of(name)
    honest = audits(record, "never_saw")
    assert len(honest) >= 100
    assert len({(one.target, one.references) for one in record.audits if one.truth == "never_saw"}) == len(honest)
    assert honest.count("fail") <= 0.01 * len(honest)
    at_thirty = [one.passes for one in record.power if (one.what, one.size) == ("clusters", 30)]
    assert record.config["audits"]["references"] == 3
    passed = at_thirty[0].share if at_thirty and at_thirty[0] else honest.count("pass") / len(honest)
    assert passed >= 0.8


@family
def test_models_that_know_are_not_passed(name: str) -> None:
    record = record_of(name)
    knowing = {one.target for one in record.audits if one.truth in ("knows", "gated")}
    assert len(knowing) >= 60
    assert "pass" not in audits(record, "knows", "gated")
    assert record.battery.gap is not None
    assert record.battery.gap.auc >= 0.99


SHORT = "gaps of .3 to .6 stay open with three references and after Holm's correction over ten attacks (docs/validity.md)"


@pytest.mark.parametrize("name", ["language", pytest.param("images", marks=pytest.mark.xfail(strict=True, reason=SHORT))])
def test_what_a_battery_is_sure_of_tells_models_apart_too(name: str) -> None:
    excess = record_of(name).battery.excess
    assert excess is not None
    assert excess.auc >= 0.99


@family
def test_the_largest_gap_rises_with_strength(name: str) -> None:
    ladder = record_of(name).battery.ladder
    assert ladder is not None
    assert ladder.value >= 0.9


@family
def test_attacks_that_see_little_are_informational_and_none_errs_too_often(name: str) -> None:
    """By the area under the curve of the gap, below .9."""
    record = record_of(name)
    for one in record.attacks:
        if one.left_out is not None:
            continue
        assert one.false_alarm is not None
        assert one.false_alarm.low <= 0.035, f"{one.attack}: a mean may err in 2.5 % and the worst cluster in 1 %"
        found = registry.find(record.config["attacks"].get(one.attack, {}).get("attack", one.attack))
        assert isinstance(found, registry.Registered)
        assert found.attack.informational or one.gap is None or one.gap.auc >= 0.9, one.attack
        if one.gap is not None and (told := re.search(r"measured AUC (\.\d\d)", found.attack.informational)):
            assert float(told[1]) == pytest.approx(one.gap.auc, abs=0.006), f"{one.attack}: its card tells another area"


@family
def test_the_quick_policy_is_the_smallest_battery(name: str) -> None:
    record = record_of(name)
    required = {attack for names in policy.load("quick").required_by_access.values() for attack in names}
    measured = {one.attack for one in record.attacks if one.left_out is None}
    assert required & measured == set(record.batteries[-1].attacks)
