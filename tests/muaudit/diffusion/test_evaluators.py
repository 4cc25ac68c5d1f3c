"""The evaluators of audit.toml: what can be written, and what is refused before anything is opened."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from muaudit import evaluators
from muaudit.evaluators import ClassifierEvaluator, ClipEvaluator, DetectorEvaluator, EvaluatorConfig, PythonEvaluator

PARSER: TypeAdapter[Any] = TypeAdapter(EvaluatorConfig)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"kind": "classifier", "path": "svc.skops", "labels": {"three": 3, "dog": [151, "beagle"]}}, ClassifierEvaluator),
        ({"kind": "clip", "path": "clip", "others": ["a photo"], "threshold": 0.6}, ClipEvaluator),
        ({"kind": "detector", "path": "yolos", "labels": {"nudity": ["breast", "buttocks"]}}, DetectorEvaluator),
        ({"kind": "python", "function": "own.py:shows"}, PythonEvaluator),
    ],
)
def test_every_kind_is_read(values: dict[str, Any], kind: type) -> None:
    assert type(PARSER.validate_python(values)) is kind


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "classifier", "path": "a", "top": 3, "threshold": 0.5}, "top and threshold are two rules"),
        ({"kind": "clip", "path": "a", "top": 1, "threshold": 0.5}, "top and threshold are two rules"),
        ({"kind": "clip", "path": "a", "template": "a photo"}, "where the concept's name goes"),
        ({"kind": "clip", "path": "a", "template": "{} and {}"}, "where the concept's name goes"),
        ({"kind": "detector", "path": "a", "threshold": 0}, "greater than 0"),
        ({"kind": "classifier", "path": "a", "labels": {"three": -1}}, "greater than or equal to 0"),
        ({"kind": "classifier", "path": "a", "labels": {"three": []}}, "at least 1 item"),
        ({"kind": "python", "function": "shows"}, "names no function"),
        ({"kind": "python", "function": "own.py:shows", "path": "a"}, "Extra inputs"),
        ({"kind": "oracle"}, "does not match any of the expected tags"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        PARSER.validate_python(values)


def test_names_files_and_functions_are_told_for_the_plan() -> None:
    given = [
        ClassifierEvaluator(kind="classifier", path="a"),
        ClassifierEvaluator(kind="classifier", path="b"),
        DetectorEvaluator(kind="detector", path="c", name="nudenet"),
        PythonEvaluator(kind="python", function="own.py:shows"),
    ]
    assert evaluators.names(given) == ["classifier 1", "classifier 2", "nudenet", "python"]
    assert evaluators.paths(given) == {
        "evaluator classifier 1": "a", "evaluator classifier 2": "b", "evaluator nudenet": "c",
    }  # fmt: skip
    assert evaluators.functions(given) == {"evaluator python": "own.py:shows"}


def test_reading_a_configuration_needs_no_torch() -> None:
    check = "import sys, muaudit.evaluators; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
