"""The forget task: what was to be forgotten, what was to be kept, and what no model saw."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import StringConstraints, ValidationError

from muaudit.errors import UsageError
from muaudit.models import Query, Role
from muaudit.results import DataRecord, Frozen

Text = Annotated[str, StringConstraints(min_length=1)]
Set = Literal["forget", "retain", "holdout"]

DEFAULT_TEMPLATE = "Question: {question} Answer:"


class Paraphrase(Frozen):
    """Another form of a fact: a prompt with the completion that states the answer, or names the subject.

    Attributes:
        form: What kind of form it is, such as "statement", "cloze" or "reversed".
        prompt: What stands before the completion.
        completion: What the fact makes of it; in a reversed form the subject.
        language: Of another language than the question's: its code, such as "fr".
    """

    form: Text
    prompt: Text
    completion: Text
    language: Text | None = None


class Fact(Frozen):
    """One fact: a unit of the audit.

    Attributes:
        id: Unique over all three sets.
        cluster: What it stands or falls with, such as the person that it is about; its id by default.
        question: The question, put into the task's template.
        answer: The answer that was to be forgotten.
        aliases: Other answers that count as right.
        paraphrases: Other forms of the fact.
        wrong_answers: Answers of the same kind that are wrong (for the truth ratio).
        text: A passage that was trained on verbatim.
        subject: Who or what the fact is about, as the question names it; the way to other wordings and to chains of facts.
        relation: What is told about the subject; facts of one relation have answers of one kind.
        true_answer: Where the answer to be forgotten is false: the true one, which a clean model gives (for `recovery`).
    """

    id: Text
    cluster: Text
    question: Text
    answer: Text
    aliases: tuple[Text, ...] = ()
    paraphrases: tuple[Paraphrase, ...] = ()
    wrong_answers: tuple[Text, ...] = ()
    text: Text | None = None
    subject: Text | None = None
    relation: Text | None = None
    true_answer: Text | None = None

    @property
    def restatements(self) -> tuple[Paraphrase, ...]:
        """The paraphrases that state the answer in the question's language; none that name the subject or give options."""
        return tuple(
            one for one in self.paraphrases if one.language is None and one.form not in ("reversed", "multiple_choice")
        )


@dataclass(frozen=True)
class ForgetTask:
    """The three sets, the template that makes a prompt of a question, and the digests of what they were read from.

    Attributes:
        forget: Facts that the target is claimed to have forgotten; never empty.
        retain: Facts that it is to keep.
        holdout: Facts of the same kind that no model saw.
        template: `{question}` is replaced; "chat" is the tokenizer's own chat template.
        records: One record a file, for the plan and the report.
    """

    forget: tuple[Fact, ...]
    retain: tuple[Fact, ...] = ()
    holdout: tuple[Fact, ...] = ()
    template: str = DEFAULT_TEMPLATE
    records: tuple[DataRecord, ...] = ()

    def __post_init__(self) -> None:
        """Checks what holds for every task, wherever it was read from."""
        for record in self.records:
            if not record.units:
                mend = "" if record.role == "forget" else ", or leave the key out"
                raise UsageError(f"{record.path}: the {record.role} set is empty: give at least one fact{mend}")
        if not self.forget:
            raise UsageError("the forget set is empty: an audit needs at least one fact that was to be forgotten")
        if self.template != "chat" and "{question}" not in self.template:
            raise UsageError(f"task.template {self.template!r} lacks {{question}}; write it where the question goes, or 'chat'")

    def items(self) -> Iterator[tuple[Set, Fact]]:
        """Every fact with its set: forget, retain, holdout."""
        for fact in self.forget:
            yield "forget", fact
        for fact in self.retain:
            yield "retain", fact
        for fact in self.holdout:
            yield "holdout", fact

    def ask(self, fact: Fact, answer: str | None = None, *, role: Role = "answer", index: int = 0) -> Query:
        """A fact's question in the task's template, with an answer to score after it.

        Args:
            fact: The fact.
            answer: The answer; the fact's own by default.
            role: Which of the fact's completions this answer is.
            index: Which one, where a fact has several of that role.

        Returns:
            The query; under the template "chat" its prompt is the bare question, which the model's own template wraps.
        """
        chat = self.template == "chat"
        prompt = fact.question if chat else self.template.replace("{question}", fact.question)
        space = "" if chat or prompt[-1].isspace() else " "
        return Query(fact.id, role, prompt, space + (answer or fact.answer), index, chat)

    @property
    def digest(self) -> str:
        """SHA-256 over everything in the task that can change a measurement."""
        facts = [[name, fact.model_dump(mode="json")] for name, fact in self.items()]
        return hashlib.sha256(json.dumps([self.template, facts], sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_jsonl(
        cls,
        *,
        forget: Path,
        retain: Path | None = None,
        holdout: Path | None = None,
        template: str = DEFAULT_TEMPLATE,
        names: Sequence[str] = (),
    ) -> Self:
        """Reads the sets from JSON Lines, one fact a line.

        Args:
            forget: The forget set's file.
            retain: The retain set's file.
            holdout: The holdout set's file.
            template: How a question becomes a prompt.
            names: What to call the files in errors and records, in the same order; their paths by default.

        Returns:
            The task.

        Raises:
            UsageError: A file cannot be used; the message names file, line, field and mend.
        """
        paths: dict[Set, Path] = {"forget": forget}
        if retain is not None:
            paths["retain"] = retain
        if holdout is not None:
            paths["holdout"] = holdout
        shown = dict(zip(paths, names or [str(path) for path in paths.values()], strict=True))
        sets: dict[str, tuple[Fact, ...]] = {}
        seen: dict[str, str] = {}
        records = []
        for name, path in paths.items():
            data = _read(path, shown[name])
            sets[name] = tuple(_facts(data, shown[name], name, seen))
            clusters = len({fact.cluster for fact in sets[name]})
            records.append(
                DataRecord(
                    role=name,
                    path=shown[name],
                    sha256=hashlib.sha256(data).hexdigest(),
                    units=len(sets[name]),
                    clusters=clusters,
                )
            )
        _refuse_overlap(sets["forget"], sets.get("holdout", ()), shown.get("holdout", ""))
        return cls(**sets, template=template, records=tuple(records))


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror}); check the path under [task] in audit.toml") from error


def _facts(data: bytes, name: str, role: str, seen: dict[str, str]) -> Iterator[Fact]:
    """Parses one set; `seen` holds the ids so far, with the place of each."""
    for number, raw in enumerate(data.split(b"\n"), start=1):
        where = f"{name}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"{where}: not UTF-8 (byte {error.start}: {error.reason}); save the file as UTF-8") from error
        if not line:
            continue
        fact = _fact(line, where)
        place = f"{where} ({role} set)"
        if fact.id in seen:
            raise UsageError(f"{place}: id {fact.id!r} stands already at {seen[fact.id]}; give every fact an id of its own")
        seen[fact.id] = place
        yield fact


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if (twice := next((key for key in keys if keys.count(key) > 1), None)) is not None:
        raise ValueError(f"key {twice!r} stands twice")
    return dict(pairs)


def _fact(line: str, where: str) -> Fact:
    try:
        values = json.loads(line, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON (column {error.colno}: {error.msg}); write one object a line") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {error}; write one object a line, each key once") from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: a {type(values).__name__} where an object with id, question and answer belongs")
    if "cluster" not in values and "id" in values:
        values["cluster"] = values["id"]
    try:
        return Fact.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_fault(error)}") from error


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"field {field!r} is missing; every fact needs id, question and answer"
    if first["type"] == "extra_forbidden":
        known = [*Fact.model_fields, *Paraphrase.model_fields]
        near = get_close_matches(field.split(".")[-1], known, n=1)
        return f"unknown field {field!r}; " + (
            f"did you mean {near[0]!r}?" if near else f"known: {', '.join(Fact.model_fields)}"
        )
    return f"field {field!r}: {first['msg']}; found {json.dumps(first['input'], default=str)[:60]}"


def _refuse_overlap(forget: Sequence[Fact], holdout: Sequence[Fact], name: str) -> None:
    """A holdout fact that is also a forget fact would pass for never seen."""
    asked = {(fact.question.casefold(), fact.answer.casefold()): fact.id for fact in forget}
    for fact in holdout:
        if twin := asked.get((fact.question.casefold(), fact.answer.casefold())):
            raise UsageError(
                f"{name}: holdout fact {fact.id!r} repeats forget fact {twin!r} (same question and answer); "
                "the holdout set must hold what no model saw: remove it"
            )
