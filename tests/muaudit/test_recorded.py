"""Recorded outputs: both formats are read in full, and what was not recorded is told, never made up."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ks_2samp
from shared_data import shared_data

from muaudit.errors import ModelError
from muaudit.manifest import manifest, manifest_digest
from muaudit.models import GeneratesText, Query, ReportsUtility, ScoresText
from muaudit.models.recorded import Format, Recorded
from muaudit.testbed.recorded import FACTS, PEOPLE, tofu_log

OPEN_UNLEARNING: dict[str, Any] = {
    "forget_Q_A_Prob": {
        "agg_value": 0.5,
        "value_by_index": {"1": {"prob": 0.6, "avg_loss": 0.5}, "0": {"prob": 0.2, "avg_loss": 1.6}},
    },
    "forget_Q_A_ROUGE": {
        "value_by_index": {
            "0": {"input": "Where?", "ground_truth": "Torvik", "generation": "Selmar", "rougeL_recall": 0.0},
            "1": {"input": "Who?", "ground_truth": "Kalan", "generation": "Kalan", "rougeL_recall": 1.0},
        }
    },
    "forget_Q_A_PARA_Prob": {"value_by_index": {"0": {"avg_loss": 1.0}, "1": {"avg_loss": 0.7}}},
    "forget_Q_A_PERT_Prob": {"value_by_index": {"0": [{"avg_loss": 2.0}, {"avg_loss": 3.0}], "1": {"avg_loss": [2.5, 2.25]}}},
    "retain_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": 0.1}}},
}


def _open(folder: Path, data: object, form: Format = "tofu") -> Recorded:
    path = folder / "log.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return Recorded.open(path, form)


def _told(folder: Path, data: object, form: Format = "tofu") -> str:
    with pytest.raises(ModelError) as caught:
        _open(folder, data, form)
    assert "log.json" in str(caught.value)
    return str(caught.value)


def _ask(unit: str, role: Any = "answer", index: int = 0) -> Query:
    return Query(unit, role, "prompt", " completion", index)


def test_a_tofu_log_is_read_in_full(tmp_path: Path) -> None:
    log = tofu_log(1, known=[0])
    model = _open(tmp_path, log)
    section = log["eval_log_forget.json"]
    assert list(model.items)[:2] == ["forget-0", "forget-1"]
    assert len(model.items) == 2 * PEOPLE * FACTS
    answer, paraphrase, wrong = model.score(
        [_ask("forget-9"), _ask("forget-9", "paraphrase"), _ask("forget-9", "wrong_answer", 2)]
    )
    assert answer.mean == pytest.approx(-section["avg_gt_loss"]["9"], rel=1e-15)
    assert paraphrase.mean == pytest.approx(-section["avg_paraphrased_loss"]["9"], rel=1e-15)
    assert wrong.mean == pytest.approx(-section["average_perturb_loss"]["9"][2], rel=1e-15)
    assert (answer.tokens, paraphrase.tokens, wrong.tokens) == (4, 5, 4)
    assert model.generate([_ask("forget-0"), _ask("forget-9")], 32) == ["the forget town 0", "some other place 9"]
    assert model.rouge_l_recall(["forget-0", "forget-9"]) == [1.0, 0.25]


def test_items_stand_in_numeric_order(tmp_path: Path) -> None:
    log = tofu_log(1)
    for section in log.values():
        for name, column in section.items():
            section[name] = dict(sorted(column.items()))  # "10" before "2", as a JSON writer with sorted keys leaves it
    assert [unit for unit in _open(tmp_path, log).items if unit.startswith("forget")] == [
        f"forget-{number}" for number in range(PEOPLE * FACTS)
    ]


def test_its_capabilities_are_what_was_recorded(tmp_path: Path) -> None:
    model = _open(tmp_path, tofu_log(1))
    assert isinstance(model, ScoresText)
    assert isinstance(model, GeneratesText)
    assert isinstance(model, ReportsUtility)
    assert model.model_utility() == {}  # two of the five sections that TOFU's utility needs are not in this log
    assert model.digest == manifest_digest(manifest(tmp_path / "log.json"))


def test_the_task_is_read_from_the_records(tmp_path: Path) -> None:
    task = _open(tmp_path, tofu_log(1)).task(cluster_size=FACTS)
    assert (len(task.forget), len(task.retain), len(task.holdout)) == (PEOPLE * FACTS, PEOPLE * FACTS, 0)
    assert [fact.cluster for fact in task.forget[FACTS - 1 : FACTS + 1]] == ["forget 001", "forget 002"]
    fact = task.forget[5]
    assert (fact.id, fact.answer, len(fact.wrong_answers)) == ("forget-5", "the forget town 5", 3)
    assert task.ask(fact).prompt == "Where was person 1 of the forget set on day 5?"
    assert "not recorded" in fact.wrong_answers[0]


def test_a_log_without_a_retain_set_is_read(tmp_path: Path) -> None:
    log = tofu_log(1)
    del log["eval_log.json"]
    assert _open(tmp_path, log).task(1).retain == ()


def test_an_open_unlearning_log_is_read_in_full(tmp_path: Path) -> None:
    model = _open(tmp_path, OPEN_UNLEARNING, "open_unlearning")
    assert list(model.items) == ["forget-0", "forget-1", "retain-0"]
    queries = [
        _ask("forget-0"),
        _ask("forget-1", "paraphrase"),
        _ask("forget-0", "wrong_answer", 1),
        _ask("forget-1", "wrong_answer", 1),
    ]
    assert [score.mean for score in model.score(queries)] == [-1.6, -0.7, -3.0, -2.25]
    assert model.generate([_ask("forget-0")], 8) == ["Selmar"]
    assert model.rouge_l_recall(["forget-0", "forget-1"]) == [0.0, 1.0]
    assert model.rouge_l_recall(["forget-0", "retain-0"]) is None
    assert [fact.answer for fact in model.task(1).retain] == ["(text not recorded)"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (_ask("forget-0", "wrong_answer", 2), "unit 'forget-0': no wrong_answer 2 was recorded"),
        (_ask("forget-0", "text"), "unit 'forget-0': no text 0 was recorded"),
        (_ask("retain-0", "paraphrase"), "unit 'retain-0': no paraphrase 0 was recorded"),
        (_ask("forget-7"), "unit 'forget-7': not among the recorded items"),
    ],
)
def test_what_was_not_recorded_is_an_error(tmp_path: Path, query: Query, expected: str) -> None:
    model = _open(tmp_path, OPEN_UNLEARNING, "open_unlearning")
    with pytest.raises(ModelError, match=expected):
        model.score([_ask("forget-0"), query])


def test_a_generation_that_was_not_recorded_is_an_error(tmp_path: Path) -> None:
    model = _open(tmp_path, OPEN_UNLEARNING, "open_unlearning")
    with pytest.raises(ModelError, match="unit 'retain-0': no generation was recorded"):
        model.generate([_ask("forget-0"), _ask("retain-0")], 8)


@pytest.mark.parametrize("key", sorted(tofu_log(1)["eval_log_forget.json"]))
def test_a_missing_column_or_entry_is_told(tmp_path: Path, key: str) -> None:
    log = tofu_log(1)
    del log["eval_log_forget.json"][key]["3"]
    if key != "avg_gt_loss":  # what stands there decides which items there are
        assert "not a tofu evaluation log" in _told(tmp_path, log)
    del log["eval_log_forget.json"][key]
    assert key in _told(tmp_path, log)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["avg_gt_loss", "avg_paraphrased_loss", "rougeL_recall"])
def test_a_number_that_is_none_is_told_with_its_unit(tmp_path: Path, column: str, value: float) -> None:
    log = tofu_log(1)
    log["eval_log_forget.json"][column]["3"] = value
    assert "'forget-3'" in _told(tmp_path, log)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("avg_gt_loss", -0.5),
        ("num_token_gt", 0),
        ("num_token_perturb", [4, 0, 4]),
        ("num_token_perturb", [4, 4]),
        ("rougeL_recall", 1.5),
    ],
)
def test_a_number_that_cannot_be_is_told_with_its_unit(tmp_path: Path, column: str, value: object) -> None:
    log = tofu_log(1)
    log["eval_log_forget.json"][column]["3"] = value
    assert "'forget-3'" in _told(tmp_path, log)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "a list where an object"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_log_is_told(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(ModelError, match=expected):
        Recorded.open(tmp_path / "log.json", "tofu")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"log\.json: cannot be read \(No such file or directory\)"):
        Recorded.open(tmp_path / "log.json", "tofu")


def test_the_other_format_is_told(tmp_path: Path) -> None:
    assert "check `format`" in _told(tmp_path, OPEN_UNLEARNING, "tofu")
    assert "check `format`" in _told(tmp_path, tofu_log(1), "open_unlearning")
    for hostile in ({"forget_Q_A_Prob": 3}, {"forget_Q_A_Prob": {"value_by_index": {"a": {"avg_loss": 1}}}},
                    {"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": "x"}}}}):  # fmt: skip
        assert "check `format`" in _told(tmp_path, hostile, "open_unlearning")


def test_an_answer_that_was_not_recorded_is_told(tmp_path: Path) -> None:
    log = copy.deepcopy(OPEN_UNLEARNING)
    log["forget_Q_A_Prob"]["value_by_index"]["1"] = {"prob": 0.6}
    assert "'forget-1'" in _told(tmp_path, log, "open_unlearning")


def _real(name: str) -> Recorded:
    return Recorded.open(shared_data(f"tofu-logs/llama2-7b_{name}.json"), "tofu")


def _truth_ratios(model: Recorded) -> list[float]:
    ratios = []
    for fact in model.task(20).forget:
        wrong = [_ask(fact.id, "wrong_answer", index) for index in range(len(fact.wrong_answers))]
        right, *others = [score.mean for score in model.score([_ask(fact.id, "paraphrase"), *wrong])]
        ratios.append(math.exp(sum(others) / len(others) - right))
    return ratios


@pytest.mark.parametrize(
    ("first", "second", "statistic", "p_value"),
    [("full_wd0.01", "retain90_wd0.01", 0.39667, 1.834e-21), ("retain90_wd0", "retain90_wd0.01", 0.03, 0.9993)],
)
def test_golden_forget_quality_of_real_models(first: str, second: str, statistic: float, p_value: float) -> None:
    one, other = _truth_ratios(_real(first)), _truth_ratios(_real(second))
    assert len(one) == len(other) == 300
    result = ks_2samp(one, other)
    assert result.statistic == pytest.approx(statistic, abs=5e-6)
    assert result.pvalue == pytest.approx(p_value, rel=5e-4)


def test_a_utility_that_is_no_number_is_told(tmp_path: Path) -> None:
    log = tofu_log(1)
    for section in ("eval_real_author_wo_options.json", "eval_real_world_wo_options.json"):
        log[section] = copy.deepcopy(log["eval_log.json"])
    assert set(_open(tmp_path, log).model_utility()) == {"model_utility_arithmetic", "model_utility_geometric"}
    log["eval_real_world_wo_options.json"]["rougeL_recall"]["3"] = math.nan
    assert "utility section" in _told(tmp_path, log)
    log["eval_real_world_wo_options.json"] = {name: {} for name in log["eval_log.json"]}
    assert "not a tofu evaluation log" in _told(tmp_path, log)


@pytest.mark.parametrize(("name", "utility"), [("full_wd0.01", 0.6227), ("retain90_wd0.01", 0.6137)])
def test_golden_utility_of_real_models(name: str, utility: float) -> None:
    assert _real(name).model_utility()["model_utility_geometric"] == pytest.approx(utility, abs=5e-5)


def test_golden_gaps_of_real_models() -> None:
    full, retrained = _real("full_wd0.01"), _real("retain90_wd0.01")
    queries = [_ask(fact.id) for fact in full.task(20).forget]
    gaps = [math.exp(a.mean) - math.exp(b.mean) for a, b in zip(full.score(queries), retrained.score(queries), strict=True)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.8434, abs=5e-5)
    units = [query.unit for query in queries]
    recalls = [sum(model.rouge_l_recall(units) or ()) / len(units) for model in (full, retrained)]
    assert recalls[0] - recalls[1] == pytest.approx(0.5772, abs=5e-5)
