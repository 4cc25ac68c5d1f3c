"""The shipped JSON Schema is the one of the code. To write it again after a change of `AuditReport`:

MUAUDIT_UPDATE=1 python -m pytest tests/reports/test_schema.py
"""

import json
import os
from pathlib import Path

import jsonschema
import pytest
from sample import sample_report

from muaudit.results import AuditReport

SCHEMA = Path(__file__).parents[2] / "reports" / "schemas" / "report-v1.schema.json"


def _expected() -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://muaudit.dev/schemas/report-v1.schema.json",
    }
    return json.dumps(schema | AuditReport.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def test_shipped_schema_is_the_one_of_the_code() -> None:
    if os.environ.get("MUAUDIT_UPDATE"):
        SCHEMA.write_text(_expected(), encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == _expected(), "AuditReport changed: run this test with MUAUDIT_UPDATE=1"


def test_a_report_is_valid_and_another_document_is_not() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    report = json.loads(sample_report().canonical())
    jsonschema.validate(report, schema)
    for change in ({"verdict": "fine"}, {"schema_version": "2"}, {"surprise": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(report | change, schema)


def test_a_report_read_again_is_the_same() -> None:
    report = sample_report()
    assert AuditReport.from_json(report.canonical()) == report
    assert AuditReport.from_json(report.canonical()).canonical() == report.canonical()
