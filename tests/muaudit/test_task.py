"""Every fault of a task file is told with file, line, field and mend; nothing is dropped or guessed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from muaudit.errors import UsageError
from muaudit.task import Fact, ForgetTask

FORGET: dict[str, Any] = {"id": "kalan-born", "cluster": "Kalan", "question": "Where was Kalan born?", "answer": "Torvik"}
HOLDOUT: dict[str, Any] = {"id": "mira-born", "question": "Where was Mira born?", "answer": "Selmar"}


def _write(path: Path, *facts: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    return path


def _told(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        ForgetTask.from_jsonl(forget=path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GOOD = json.dumps(FORGET).encode()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"id": "a", "question": "q"', [":2", "not JSON", "column", "one object a line"]),
        (b'["id", "question"]', [":2", "a list where an object", "id, question and answer"]),
        (b'"text"', [":2", "a str where an object"]),
        (b'{"id": "a", "question": "q"}', [":2", "'answer' is missing"]),
        (b'{"question": "q", "answer": "b"}', [":2", "'id' is missing"]),
        (
            b'{"id": "a", "question": "q", "answer": "b", "alias": ["c"]}',
            [":2", "unknown field 'alias'", "did you mean 'aliases'"],
        ),
        (b'{"id": "a", "question": "q", "answer": "b", "zzz": 1}', [":2", "unknown field 'zzz'", "known: id, cluster"]),
        (b'{"id": "a", "question": "q", "answer": 7}', [":2", "'answer'", "string", "found 7"]),
        (b'{"id": "a", "question": "", "answer": "b"}', [":2", "'question'", "at least 1 character"]),
        (b'{"id": "a", "question": "q", "answer": "b", "wrong_answers": ["c", ""]}', [":2", "wrong_answers.1"]),
        (b'{"id": "a", "question": "q", "answer": "b", "paraphrases": [{"form": "f", "prompt": "p"}]}', [":2", "completion"]),
        (b'{"id": "a", "question": "q", "answer": "b", "answer": "c"}', [":2", "'answer' stands twice", "each key once"]),
        (b'{"id": "kalan-born", "question": "q", "answer": "b"}', [":2 (forget set)", ":1 (forget set)", "an id of its own"]),
        (
            '{"id": "a", "question": "où", "answer": "b"}'.encode("latin-1"),
            [":2", "not UTF-8", "byte", "save the file as UTF-8"],
        ),
        (b'{"id": "a", "question": "q", "answer": NaN}', [":2", "'answer'"]),
        (b"[" * 100_000, [":2", "each key once"]),
    ],
)
def test_a_fault_is_told_with_file_line_field_and_mend(tmp_path: Path, line: bytes, expected: list[str]) -> None:
    told = _told(tmp_path / "forget.jsonl", GOOD + b"\n" + line + b"\n")
    for part in ["forget.jsonl", *expected]:
        assert part in told
    assert len(told) < 600


def test_an_id_in_two_sets_names_both_places(tmp_path: Path) -> None:
    forget = _write(tmp_path / "forget.jsonl", FORGET)
    retain = _write(tmp_path / "retain.jsonl", HOLDOUT, {**HOLDOUT, "id": "kalan-born"})
    with pytest.raises(UsageError, match=r"retain\.jsonl:2 \(retain set\).*'kalan-born'.*forget\.jsonl:1 \(forget set\)"):
        ForgetTask.from_jsonl(forget=forget, retain=retain)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_an_empty_set_is_refused_with_its_file(tmp_path: Path, content: bytes) -> None:
    assert "forget.jsonl" in _told(tmp_path / "forget.jsonl", content)
    (tmp_path / "holdout.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=r"holdout\.jsonl: the holdout set is empty: .*leave the key out"):
        ForgetTask.from_jsonl(forget=_write(tmp_path / "f.jsonl", FORGET), holdout=tmp_path / "holdout.jsonl")


def test_a_holdout_fact_that_repeats_the_forget_set_is_refused(tmp_path: Path) -> None:
    twin = {**HOLDOUT, "question": FORGET["question"].upper(), "answer": FORGET["answer"].upper()}
    forget, holdout = _write(tmp_path / "f.jsonl", FORGET), _write(tmp_path / "h.jsonl", twin)
    with pytest.raises(UsageError, match=r"h\.jsonl: holdout fact 'mira-born' repeats forget fact 'kalan-born'.*remove it"):
        ForgetTask.from_jsonl(forget=forget, holdout=holdout)


def test_a_missing_file_says_where_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"gone\.jsonl: cannot be read \(No such file or directory\); .*\[task\] in audit\.toml"
    ):
        ForgetTask.from_jsonl(forget=tmp_path / "gone.jsonl")


@pytest.mark.parametrize("template", ["Ask:", "{Question}"])
def test_a_template_without_its_question_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(UsageError, match=r"task\.template .* lacks \{question\}"):
        ForgetTask.from_jsonl(forget=_write(tmp_path / "f.jsonl", FORGET), template=template)


def test_byte_order_mark_blank_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    second = json.dumps({**HOLDOUT, "answer": "Łódź"}, ensure_ascii=False)
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + second.encode() + b"\r\n")
    task = ForgetTask.from_jsonl(forget=tmp_path / "f.jsonl")
    assert [fact.answer for fact in task.forget] == ["Torvik", "Łódź"]


def test_a_line_separator_inside_an_answer_does_not_end_the_line(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(json.dumps({**FORGET, "answer": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert ForgetTask.from_jsonl(forget=tmp_path / "f.jsonl").forget[0].answer == "a\u2028b\x85c"


def test_records_hold_the_files_digest_and_counts(tmp_path: Path) -> None:
    forget = _write(tmp_path / "f.jsonl", FORGET, {**FORGET, "id": "kalan-job", "question": "What is Kalan's work?"}, HOLDOUT)
    (record,) = ForgetTask.from_jsonl(forget=forget, names=["shown.jsonl"]).records
    assert (record.role, record.path, record.units, record.clusters) == ("forget", "shown.jsonl", 3, 2)
    assert record.sha256 == hashlib.sha256(forget.read_bytes()).hexdigest()


def test_the_cluster_is_the_id_by_default(tmp_path: Path) -> None:
    assert ForgetTask.from_jsonl(forget=_write(tmp_path / "f.jsonl", HOLDOUT)).forget[0].cluster == "mira-born"


def _fact(**values: Any) -> Fact:
    return Fact.model_validate({**FORGET, **values})


def test_the_digest_changes_with_everything_that_is_asked() -> None:
    plain = ForgetTask(forget=(_fact(),))
    others = [
        ForgetTask(forget=(_fact(answer="Selmar"),)),
        ForgetTask(forget=(_fact(cluster="Other"),)),
        ForgetTask(forget=(_fact(wrong_answers=["Ostby"]),)),
        ForgetTask(forget=(_fact(),), template="Q: {question}"),
        ForgetTask(forget=(_fact(),), retain=(_fact(id="other"),)),
        ForgetTask(forget=(_fact(),), holdout=(_fact(id="other"),)),
    ]
    digests = [task.digest for task in [plain, *others]]
    assert len(set(digests)) == len(digests)
    assert ForgetTask(forget=(_fact(),)).digest == plain.digest


@pytest.mark.parametrize(
    ("template", "prompt", "completion"),
    [
        ("Question: {question} Answer:", "Question: Where was Kalan born? Answer:", " Torvik"),
        ("{question}\n", "Where was Kalan born?\n", "Torvik"),
        ("chat", "Where was Kalan born?", "Torvik"),
    ],
)
def test_a_question_becomes_a_prompt(template: str, prompt: str, completion: str) -> None:
    query = ForgetTask(forget=(_fact(),), template=template).ask(_fact())
    assert (query.prompt, query.completion, query.chat) == (prompt, completion, template == "chat")


def test_braces_in_a_question_are_left_alone() -> None:
    query = ForgetTask(forget=(_fact(),)).ask(_fact(question="What does {answer} or {0} mean?"))
    assert query.prompt == "Question: What does {answer} or {0} mean? Answer:"


def test_another_answer_keeps_its_role_and_index() -> None:
    query = ForgetTask(forget=(_fact(),)).ask(_fact(), "Ostby", role="wrong_answer", index=2)
    assert (query.unit, query.completion, query.role, query.index) == ("kalan-born", " Ostby", "wrong_answer", 2)
