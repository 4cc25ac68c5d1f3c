"""A calibration record as a file holds it, made up, with hostile text wherever a name could put it."""

from collections.abc import Sequence
from typing import Any

from muaudit import policy
from muaudit.calibration import tables
from muaudit.calibration.record import (
    Addition,
    AttackRates,
    AuditRow,
    Battery,
    CalibrationRecord,
    Correlation,
    Group,
    MemberRow,
    PolicyRates,
    PowerPoint,
    Rate,
    Robustness,
    RunFacts,
    Sensitivity,
)
from muaudit.version import VERSION

ATTACKS = ("memorization", "relearning")


def some(hits: int, total: int) -> Rate:
    """A rate that there is."""
    found = tables.rate([True] * hits + [False] * (total - hits))
    assert found is not None
    return found


def audit_row(number: int, truth: Any, excess: float, share: float | None = None, *, group: str = "npo") -> AuditRow:
    """One audit; it fails where the excess is above 0."""
    verdict = "fail" if excess > 0 else "pass"
    return AuditRow(
        target=f"{group}-{number}", truth=truth, group=group, strength="", share=share, seed=0,
        references=("retrain-7", "retrain-8"), original="original", gaps=dict.fromkeys(ATTACKS, excess + 0.05),
        clusters=dict.fromkeys(ATTACKS, 0.1), excess=dict.fromkeys(ATTACKS, excess),
        flagged={"standard": ATTACKS if excess > 0 else ()}, verdicts={"standard": verdict},
    )  # fmt: skip


def rows_of(name: str) -> tuple[AuditRow, ...]:
    """Audits of eight retrains, five models of one method, and a ladder of five."""
    return (
        *(audit_row(number, "never_saw", -0.05 - number / 100, group="retrain") for number in range(8)),
        *(audit_row(number, "knows", number / 10 - 0.01, group=name) for number in range(5)),
        *(audit_row(number, "ladder", number / 4 - 0.06, number / 4, group="interpolation") for number in range(5)),
    )


def attacks_of(name: str, rows: Sequence[AuditRow]) -> tuple[AttackRates, ...]:
    """Two attacks that were measured, and one that was not."""
    truths = {row.target: row.truth for row in rows}
    excess = tables.by_target(rows, lambda row: row.excess["memorization"])
    area, roc = tables.area(excess, truths), tables.curve(excess, truths)
    measured = tuple(
        AttackRates(
            attack=attack, access="text", gap=area, excess=area, roc=roc, false_alarm=some(0, 8), detection=some(4, 5),
            passes=some(8, 8), robustness=Robustness(quantised=0.9, relearned=0.8, harmonic=0.847, models=2), seconds=1.5,
            preparation=0.2,
        )
        for attack in ATTACKS
    )  # fmt: skip
    return (*measured, AttackRates(attack="u_lira", access="logits", left_out=f"needs what {name} lacks"))


def tables_of(name: str) -> dict[str, Any]:
    """What a record tells of groups, sizes and batteries."""
    return {
        "groups": tuple(
            Group(
                truth=truth, group=group, strength="weak", models=3, detection=some(hits, 5),
                by_attack={"memorization": some(hits, 5)}, gaps={"memorization": hits / 5},
            )
            for truth, group, hits in (("never_saw", "retrain", 0), ("knows", name, 4))
        ),
        "power": tuple(
            PowerPoint(what=what, size=size, false_alarm=some(0, 8), passes=some(size % 9, 8 if size % 9 <= 8 else 9),
                       detection=some(4, 5), detectable={"memorization": 0.1})
            for what, size in (("clusters", 5), ("clusters", 20), ("references", 1), ("references", 3))
        ),
        "additions": tuple(
            Addition(attack=attack, detection=some(3, 5), lost=1, false_alarm=some(0, 8), seconds=1.5) for attack in ATTACKS
        ),
        "batteries": (
            Battery(attacks=ATTACKS, how="whole", detection=some(4, 5), false_alarm=some(0, 8), seconds=3.0),
            Battery(attacks=ATTACKS[:1], how="greedy", detection=some(4, 5), false_alarm=some(0, 8), seconds=1.5),
        ),
        "sensitivity": (
            Sensitivity(attack="memorization", gap=0.07, low=0.06, high=0.2, margin=0.05, noise=0.003, retrains=4,
                        references=3, units=180, clusters=30),
        ),
    }  # fmt: skip


def small_record(*, name: str = "npo", **changes: Any) -> CalibrationRecord:
    """A record with something in every part.

    Args:
        name: What the unlearning method is called.
        **changes: Other values of the record's fields.

    Returns:
        The record.
    """
    rows = rows_of(name)
    whole = tables.whole(rows).model_copy(update={"ladder": Correlation(value=1.0, low=1.0, high=1.0, models=5)})
    rates = PolicyRates(
        policy="standard", sha256=policy.digest("standard"), never_saw={"pass": some(8, 8), "fail": some(0, 8)},
        knows={"fail": some(4, 5), "pass": some(1, 5)}, false_alarm=some(0, 8), detection=some(4, 5), missed=some(1, 5),
        undecided=((f"because of {name}", 2),),
    )  # fmt: skip
    values: dict[str, Any] = {
        "tool": f"muaudit {VERSION}",
        "family": "facts",
        "bed": name,
        "plan_sha256": "0" * 64,
        "config": {"audits": {"references": 2}, "note": name},
        "parameters": {attack: {} for attack in ATTACKS},
        "policies": (rates, PolicyRates(policy="strict", sha256="1" * 64, left_out=f"{name} is not planned")),
        "attacks": attacks_of(name, rows),
        "battery": whole,
        **tables_of(name),
        "audits": rows,
        "members": tuple(
            MemberRow(name=row.target, truth=row.truth, group=row.group, strength="", seed=0, copy_of=None, copied=None,
                      digest="2" * 64, leakage={"memorization": 0.1})
            for row in rows
        ),
        "data": (),
        "versions": {"numpy": "2"},
        "limits": (f"These are models of {name}.",),
        "run": RunFacts(started="2026-11-21T18:00:00+00:00", finished="2026-11-21T18:10:00+00:00", seconds=600.0, measured=10,
                        reused=2, host={"system": "Linux"}),
    }  # fmt: skip
    return CalibrationRecord(**(values | changes))
