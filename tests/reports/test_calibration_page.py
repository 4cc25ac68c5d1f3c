"""A calibration's page, terminal table, schema and signature."""

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
from calibrations import small_record
from click.testing import CliRunner
from markdown_it import MarkdownIt
from rich.console import Console
from sample import HOSTILE, ISSUED

from muaudit.calibration.record import CalibrationRecord
from muaudit.cli import main
from muaudit.errors import UsageError, VerificationError
from muaudit.reports import calibration, calibration_markdown, calibration_statement, calibration_terminal
from muaudit.reports.attestation import verify as verify_audit
from muaudit.reports.keys import keygen, load_private, load_public
from muaudit.reports.signers import of_key

SCHEMA = Path(__file__).parents[2] / "reports" / "schemas" / "calibration-v1.schema.json"
CHROMIUM = Path("/usr/bin/chromium")


def _expected() -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://muaudit.dev/schemas/calibration-v1.schema.json",
    }
    return json.dumps(schema | CalibrationRecord.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def test_shipped_schema_is_the_one_of_the_code() -> None:
    if os.environ.get("MUAUDIT_UPDATE"):
        SCHEMA.write_text(_expected(), encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == _expected(), "CalibrationRecord changed: run this test with MUAUDIT_UPDATE=1"


def test_a_record_is_valid_and_another_document_is_not() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    record = json.loads(small_record().canonical())
    jsonschema.validate(record, schema)
    for change in ({"schema_version": "2"}, {"surprise": 1}, {"audits": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(record | change, schema)


def test_the_page_says_the_rates_and_loads_nothing() -> None:
    page = calibration.render(small_record())
    assert calibration.render(small_record()) == page
    for told in ("0 of 8", "4 of 5", "One-sided upper 95 % bound", "31.2 %", "Ladder of strengths", "ROC curves", "Heat map"):
        assert told in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_inert(text: str) -> None:
    page = calibration.render(small_record(name=text))
    assert "<script" not in page
    assert "<img" not in page
    assert "<svg onload" not in page
    assert "\u202e" not in page
    shown = "\n".join(line.plain for line in calibration_terminal.lines(small_record(name=text), None, None))
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def _build(record: CalibrationRecord) -> list[str]:
    """What a Markdown document is built of, text and code left out."""
    found = []
    for token in MarkdownIt("gfm-like", {"html": True, "linkify": True}).parse(calibration_markdown.render(record)):
        found.append(token.type)
        found += [child.type for child in token.children or () if child.type not in ("text", "code_inline", "text_special")]
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_change_nothing_of_the_markdown(text: str) -> None:
    kinds = _build(small_record(name=text))
    assert not {"link_open", "image", "html_inline", "html_block", "softbreak", "hardbreak"} & set(kinds)
    assert kinds == _build(small_record())


def test_the_markdown_says_what_the_record_says() -> None:
    told = calibration_markdown.render(small_record())
    for line in (
        "| `standard` | 0 of 8, at most 31.2 | 8 of 8 [63.1, 100.0] | \N{EN DASH} | 4 of 5 [28.4, 99.5] | \N{EN DASH} | "
        "1 of 5 [0.5, 71.6] |",
        "| `npo weak` | knows | 3 | 4 of 5 [28.4, 99.5] | 4/5 | \N{EN DASH} |",
        "- `u_lira`: needs what npo lacks",
        "| greedy | `memorization` | 4 of 5 [28.4, 99.5] | 0 of 8, at most 31.2 | 1.5 |",
        "| `memorization` | 0.070 [0.060, 0.200] | 0.05 | 0.0030 | 3 | 180 in 30 |",
    ):
        assert line in told, line
    assert list(calibration_markdown.sections(small_record(additions=(), batteries=(), power=()))) == [
        "Verdicts", "Each attack alone", "Not measured", "Policies that do not fit", "By method and strength",
        "Ladder of strengths", "What could be seen",
    ]  # fmt: skip


@pytest.mark.chromium
def test_a_browser_shows_it_without_a_complaint(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed: apt-get install chromium")
    path = tmp_path / "calibration.html"
    path.write_text(calibration.render(small_record(name=HOSTILE[0])), encoding="utf-8")
    said: list[str] = []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
        page.goto(path.as_uri())
        assert page.title().startswith("Calibration: error rates")
        assert page.locator("svg.figure").count() == 4
        assert page.locator("h2").count() >= 10
        # Whatever is wide scrolls within itself: the page does not.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert said == []


def test_the_command_line_shows_a_record_and_prints_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(small_record().canonical())

    def muaudit(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output

    assert muaudit("render", str(tmp_path)) == (0, f"wrote {path.with_suffix('.html')}\n")
    assert path.with_suffix(".html").read_text(encoding="utf-8") == calibration.render(small_record())
    assert muaudit("render", str(path), "--format", "markdown", "--out", "-") == (
        0,
        calibration_markdown.render(small_record()),
    )
    code, told = muaudit("render", str(path), "--format", "sarif")
    assert (code, told.count("\n")) == (2, 1)
    assert "html, markdown or json" in told
    assert muaudit("schema", "calibration") == (0, SCHEMA.read_text(encoding="utf-8"))
    path.write_text('{"bed": "small", "audits": []}', encoding="utf-8")
    code, told = muaudit("render", str(path))
    assert (code, told.count("\n")) == (2, 1)
    assert "not a muaudit calibration record" in told


def test_the_terminal_names_every_policy_attack_and_the_check(tmp_path: Path) -> None:
    console = Console(record=True, width=300, force_terminal=False)
    calibration_terminal.table(small_record(), console, folder=tmp_path, signed_with=tmp_path / "lab.key")
    text = console.export_text()
    for told in ("standard", "honest failed 0 of 8 (at most 31.2 %)", "memorization", "left out", "Spearman 1.000",
                 "could see a gap of 0.070 [0.060, 0.200] with 3 references", "muaudit verify", "lab.pub"):  # fmt: skip
        assert told in text


def test_a_signed_record_verifies_and_no_other_does(tmp_path: Path) -> None:
    private, public, _ = keygen(tmp_path / "lab", "Lab X")
    record = small_record()
    data, key = record.canonical(), load_public(public)
    envelope = calibration_statement.seal(record, data, [of_key(load_private(private, None))], issued_at=ISSUED)
    assert calibration_statement.is_calibration(envelope)
    seen = calibration_statement.verify(envelope, [key], record=data)
    assert (seen.signers[0].name, seen.checked, seen.unchecked) == ("Lab X", ("signature", "statement", "calibration.json"), ())
    assert seen.predicate.policies[0].false_alarm is not None
    assert seen.predicate.policies[0].false_alarm.total == 8
    assert calibration_statement.verify(envelope, [key]).unchecked
    other = small_record(plan_sha256="3" * 64).canonical()
    with pytest.raises(VerificationError, match="not the one that was signed"):
        calibration_statement.verify(envelope, [key], record=other)
    for place in range(0, len(envelope), len(envelope) // 50):
        changed = bytearray(envelope)
        changed[place] ^= 1
        with pytest.raises(VerificationError):
            calibration_statement.verify(bytes(changed), [key], record=data)
    _, stranger, _ = keygen(tmp_path / "other", "Lab Y")
    with pytest.raises(VerificationError, match="not signed by"):
        calibration_statement.verify(envelope, [load_public(stranger)])
    with pytest.raises(UsageError, match="no public key"):
        calibration_statement.verify(envelope, [])
    with pytest.raises(UsageError, match="not the record"):
        calibration_statement.seal(record, other, [of_key(load_private(private, None))], issued_at=ISSUED)


def test_an_audit_s_envelope_is_no_calibration_s_and_the_other_way_round(audit, tmp_path: Path) -> None:  # noqa: ANN001
    assert not calibration_statement.is_calibration(audit.envelope)
    assert not calibration_statement.is_calibration(b"no envelope")
    with pytest.raises(VerificationError, match="not about one calibration"):
        calibration_statement.verify(audit.envelope, [audit.public])
    private, public, _ = keygen(tmp_path / "lab", "Lab X")
    record = small_record()
    envelope = calibration_statement.seal(record, record.canonical(), [of_key(load_private(private, None))], issued_at=ISSUED)
    with pytest.raises(VerificationError, match="not an unlearning audit"):
        verify_audit(envelope, [load_public(public)])
