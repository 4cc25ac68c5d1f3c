"""Redaction: a public report without the forget set's texts, and a sealed part that opens it.

What stays is named here; everything else is withheld. So a field that somebody adds to reports tomorrow is withheld until
somebody has thought about it. What stays is, besides all numbers: verdicts, names of attacks and their parameters where they
are one of a fixed choice, models with their files' digests, versions, and the policy. A text that stays is withheld all the
same where it quotes a name or a text that is withheld. Sentences stay where muaudit can make them anew from what is public.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin

import rfc8785
from pydantic import ValidationError

from muaudit import reasons, registry
from muaudit.attack import Attack
from muaudit.caveats import caveats
from muaudit.compare import verdict_of
from muaudit.errors import UsageError
from muaudit.plan import Plan
from muaudit.policy import Policy
from muaudit.results import AuditReport, Finding, Verdict
from muaudit.runner import LIMITS, limits
from muaudit.sealing import TOKEN, Redaction, SealedPart, Sealer
from muaudit.version import VERSION

_FINDING, _MODEL, _CARD = r"findings/\*/", r"(plan/)?models/\*/", r"(plan/)?attacks/\*/"
_POLICY = r"(plan/)?policy/"

FIXED = re.compile(
    rf"(plan/)?schema_version|verdict|{_FINDING}(measures|verdict|sided)|{_CARD}(access|sided)|conduct/\*/(check|state)"
    rf"|{_POLICY}pictures"
)
"""Words of muaudit's own, each one of a few."""

DIGEST = re.compile(rf"plan_sha256|(plan/)?policy_sha256|{_MODEL}(digest|files/\*/sha256)|(plan/)?code/\*/sha256")
"""Digests of what is no forget set."""

OPEN = re.compile(
    rf"(plan/)?tool|{_FINDING}(attack|controls/(positive|negative/\*)/model|scores/\*/ks/\*/reference)"
    rf"|({_FINDING}curves|series)/\*/lines/\*/model|{_FINDING}heat_maps/\*/model"
    rf"|{_CARD}(name|attack|version|package|summary|source|cost)|{_MODEL}(role|kind|path|files/\*/name)"
    rf"|(plan/)?data/\*/role|(plan/)?code/\*/(role|function)|conduct/\*/model"
    rf"|{_POLICY}(name|description|required/\*|skippable/\*|required_by_access/\*/\*)"
    r"|run/(started|finished|host/\*|versions/\*|ledgers/\*/(role|endpoint|served/\*))|plan/versions/\*"
    r"|plan/config/(preset|policy/name|run/device|(series/\*/)?(target|original|references/\*)/(path|base|url|model|factory)"
    r"|series/\*/name|(recipe|procedure)/function)|plan/steps/\*/name"
)
"""What the auditor, the vendor and muaudit named; withheld where it quotes what is withheld."""

OWN = re.compile(
    rf"{_FINDING}(scores/\*/name|curves/\*/(name|x_label|y_label)|heat_maps/\*/(name|rows/\*)|summaries/\*/\*"
    r"|pictures/\*/models/\*/\*/label)|series/\*/(name|x_label|y_label)"
)
"""What an attack named: it stays where the attack is muaudit's own."""

CHOICE = re.compile(rf"{_CARD}parameters/\*|plan/config/attacks/\*/\*")
"""Parameters of attacks: they stay where they are one of a fixed choice."""

CONFIG = re.compile(r"plan/config/(?!attacks/)")
"""The configuration, whose words of muaudit's own stay too."""

TEXT = re.compile(rf"{_FINDING}(worst_units/\*/transcripts/\*/\w+|pictures/\*/models/\*/\*/(prompt|png))")
"""Texts of units and what models said or drew, each with a salt of its own."""

PROSE = re.compile(rf"reason|limits/\*|{_FINDING}(reason|notes/\*|worst_clusters/null)|conduct/\*/told")
"""Sentences, which are seen to when all else is done."""

FREE = re.compile(
    rf"{_FINDING}(worst_units/\*/transcripts|pictures/\*/models|summaries(/\*)?)|{_CARD}parameters|{_POLICY}margins"
    r"|plan/config/(attacks(/\*)?|policy/margins)|run/(host|versions)|plan/versions"
)
"""Objects whose keys are names."""

KINDS = {
    "id": "names", "cluster": "names", "unit": "names", "columns": "names", "prompt": "texts", "expected": "texts",
    "output": "texts", "png": "pictures", "path": "files", "sha256": "files", "task_digest": "files", "forget": "files",
    "retain": "files", "holdout": "files", "reason": "sentences", "notes": "sentences", "told": "sentences",
    "null": "sentences", "limits": "sentences",
}  # fmt: skip
"""What a withheld value is, by the key that it stands under; the rest are `settings`."""

SENTENCES = re.compile(
    r"all units belong to one cluster, so nothing tells chance from residue; give units of at least two clusters"
    r"|a difference was seen, but among the \d+ claims of this battery one such is to be expected by chance"
    r"|training noise was not estimated: there is one reference, so the margin alone decides"
    r"|the references, each audited against the others"
    r"|(no question was to come back|recorded outputs cannot be asked again), so nothing shows how it answers"
    r"|asked \d+ x \d+ questions four times, the target answered as an honest model"
    r"|the target (draws nothing for|declines or fobs off) \d+ of \d+ forgotten questions, the references \d+ of \d+"
    r"(: suppression\. What stands in front of the model hides the answers, so attacks that only ask cannot tell whether it "
    r"still knows them)?"
    r"|the files of \d+ models were the same at the end of the run as when it was planned|endpoints have no files to look at"
)
"""muaudit's own sentences that hold numbers alone."""

JOURNAL_WORDS = frozenset(
    {
        "started", "resumed", "asked", "prepared", "measured", "compared", "skipped", "failed", "clock", "torn", "concluded",
        "written", "stopped", "tool", "plan", "process", "apart", "attack", "key", "reused", "role", "model", "record",
        "verdict", "verdicts", "fault", "step", "seconds", "report", "error", "findings", "when", "early", "late", "raised",
        *Verdict,
    }
)  # fmt: skip
"""Words of the journal that quote nobody."""

_ROLE = re.compile(r"target|original|all|references?( \d+)?|forget|retain|holdout|known")
_PLAIN = re.compile(r"[a-z0-9][a-z0-9 _.,:@%()/+<>=-]{0,100}")
_HEX = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]{0,39}")
_LACKS = re.compile(r"the (target|original|reference \d+) is of kind '(\w+)', which lacks what this attack needs: (.+)")
_TIME = re.compile(r"[0-9T:.+Z-]{1,40}")
_SHORTEST, _LONGEST = 3, 400


def redact(data: bytes, *, name: str = "report.json", journal: bool = True) -> tuple[bytes, bytes]:
    """Makes the public and the sealed part of a report.

    Args:
        data: The bytes of report.json.
        name: What to call it in an error.
        journal: Whether the journal stays, which holds digests, unsalted, of what was prepared and measured; it is withheld
            all the same where it holds anything else.

    Returns:
        The bytes of report.public.json, which is a report too, and of report.sealed.json.

    Raises:
        UsageError: It is no report, is redacted already, or a file of the target is called by a name that is withheld.
    """
    report = AuditReport.from_json(data, name=name)
    if report.redaction is not None:
        raise UsageError(f"{name}: is redacted already; redact the whole report, which `muaudit reveal` puts together")
    whole: dict[str, Any] = json.loads(data)
    try:
        digest = hashlib.sha256(rfc8785.dumps(whole)).hexdigest()
    except rfc8785.CanonicalizationError as error:
        raise UsageError(f"{name}: cannot be written as canonical JSON ({error}); give what `muaudit scan` wrote") from error
    work = _Redactor(report, whole)
    public = work.public(journal=journal)
    values = tuple(work.sealer.values[token] for token in sorted(work.sealer.values))
    sealed = SealedPart(tool=f"muaudit {VERSION}", report_sha256=digest, values=values).canonical()
    counts: dict[str, int] = {}
    for value in values:
        counts[value.kind] = counts.get(value.kind, 0) + 1
    redaction = Redaction(
        sealed_sha256=hashlib.sha256(sealed).hexdigest(),
        counts=counts,
        places=sum(len(value.places) for value in values),
        journal=work.journal,
    )
    public["redaction"] = redaction.model_dump(mode="json")
    return rfc8785.dumps(public), sealed


class _Redactor:
    """One report on its way to its public part."""

    def __init__(self, report: AuditReport, whole: dict[str, Any]) -> None:
        self.report, self.whole, self.sealer = report, whole, Sealer()
        self.journal: str | None = None
        self.own = {card.name for card in report.attacks if card.package == "muaudit"}
        self.quoting = _quoting(_secrets(whole))
        self.attacks = {card.name: card.attack for card in report.attacks}

    def public(self, *, journal: bool) -> dict[str, Any]:
        """The public part, without its `redaction`."""
        for file in self.report.target.files:
            if self.quotes(file.name):
                raise UsageError(
                    f"the target's file {file.name!r} is called by a name that is to be withheld, and what is signed about a "
                    "model are its files' names and digests; rename the file and scan again"
                )
        whole = {key: value for key, value in self.whole.items() if key not in ("journal", "redaction")}
        public: dict[str, Any] = self._walk(whole, "", "")
        self._sentences(public)
        entries = self.whole.get("journal", [])
        if not entries or (journal and self._harmless(entries)):
            public |= {"journal": entries} if "journal" in self.whole else {}
        else:
            public["journal"] = []
            self.journal = self.sealer.seal(
                json.dumps(entries, ensure_ascii=False), "journal", "/redaction/journal", shared=False
            )
        return public

    def quotes(self, text: str) -> bool:
        """Whether a text quotes what is withheld, or looks like a commitment."""
        if _ROLE.fullmatch(text) or text in registry.registered():
            return False
        return self.quoting.search(text) is not None or TOKEN.search(text) is not None

    def _walk(self, value: Any, path: str, place: str) -> Any:  # noqa: ANN401 - any JSON
        """A JSON value with what is withheld replaced; `path` has `*` for indices and names, `place` is a JSON pointer."""
        if isinstance(value, dict):
            return {
                self._key(key, path, place): self._walk(entry, _below(path, key), f"{place}/{_escaped(key)}")
                for key, entry in value.items()
            }
        if isinstance(value, list):
            return [self._walk(entry, _joined(path, "*"), f"{place}/{index}") for index, entry in enumerate(value)]
        return self._text(value, path, place) if isinstance(value, str) else value

    def _key(self, key: str, path: str, place: str) -> str:
        if not FREE.fullmatch(_flat(path)) and key in _schema_keys():
            return key
        plain = _PLAIN.fullmatch(key) is not None or key in self.attacks
        if path.endswith("summaries/*") and self._attack(place) not in self.own:
            plain = False
        return key if plain and not self.quotes(key) else self.sealer.seal(key, "settings", place, shared=True)

    def _text(self, text: str, path: str, place: str) -> str:
        flat = _flat(path)
        if PROSE.fullmatch(path) or FIXED.fullmatch(flat):
            return text
        if TEXT.fullmatch(path):
            return self.sealer.seal(text, _kind(path), place, shared=False)
        stays = (
            (DIGEST.fullmatch(flat) is not None and _HEX.fullmatch(text) is not None)
            or (OPEN.fullmatch(flat) is not None and (self._shipped(text, place) or not self.quotes(text)))
            or (OWN.fullmatch(path) is not None and self._by_us(text, path, place))
            or (CHOICE.fullmatch(flat) is not None and self._chosen(text, place))
            or (CONFIG.match(flat) is not None and text in _words().get(place.rpartition("/")[2], ()))
            or text == ""
        )
        return text if stays else self.sealer.seal(text, _kind(path), place, shared=True)

    def _attack(self, place: str) -> str | None:
        """The attack that made the finding at a place."""
        _, first, number, *_ = (*place.split("/"), "", "")
        return self.report.findings[int(number)].attack.partition(" @ ")[0] if first == "findings" else None

    def _by_us(self, text: str, path: str, place: str) -> bool:
        own = path.startswith("series/") or self._attack(place) in self.own
        return own and _PLAIN.fullmatch(text) is not None and not self.quotes(text)

    def _shipped(self, text: str, place: str) -> bool:
        """Whether a text of an attack's card is the one that its class has."""
        *_, key = place.split("/")
        return key in ("summary", "source", "cost") and text in _shipped_texts()

    def _chosen(self, text: str, place: str) -> bool:
        *above, key = place.split("/")
        if "/config/attacks/" in place:
            name = _unescaped(above[-1])
            if key == "attack":
                return text in registry.registered()
        else:
            holder = _at(self.whole, "/".join(above[:-1]))
            name = str(holder.get("name", ""))
        return text in _choices(self.attacks.get(name, name), key)

    def _harmless(self, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a journal holds digests, numbers, single words and names that stay."""
        names = {one.role for one in self.report.models} | set(self.attacks) | {one.attack for one in self.report.findings}
        names |= {self.report.tool, *(str(step.get("name")) for step in self.report.plan.get("steps", ()))}
        for text in _strings([[entry["at"], entry["event"], entry.get("details", {})] for entry in entries]):
            known = text in names or _HEX.fullmatch(text) or _WORD.fullmatch(text) or _TIME.fullmatch(text)
            if not known or (text not in JOURNAL_WORDS and self.quotes(text)):
                return False
        return True

    def _sentences(self, public: dict[str, Any]) -> None:
        """Puts sentences into the public part: those that can be made anew of what is public, or commitments."""
        for number, finding in enumerate(public["findings"]):
            place = f"/findings/{number}"
            finding["notes"] = [
                self._prose(text, f"{place}/notes/{index}") for index, text in enumerate(finding.get("notes", ()))
            ]
            if finding.get("worst_clusters"):
                null = finding["worst_clusters"]["null"]
                finding["worst_clusters"]["null"] = self._prose(null, f"{place}/worst_clusters/null")
            made = zip(_of_finding(self.report.findings[number]), _of_finding(Finding(**finding)), strict=False)
            finding["reason"] = self._prose(finding["reason"], f"{place}/reason", made)
        for number, one in enumerate(public.get("conduct", ())):
            one["told"] = self._prose(one["told"], f"/conduct/{number}/told")
        found = AuditReport.model_validate(public)
        public["reason"] = self._prose(public["reason"], "/reason", zip(_of_audit(self.report), _of_audit(found), strict=False))
        known = [*zip(_of_limits(self.report), _of_limits(found), strict=False), *((text, text) for text in LIMITS)]
        public["limits"] = [self._prose(text, f"/limits/{index}", known) for index, text in enumerate(public["limits"])]

    def _lacking(self, text: str) -> bool:
        """Whether a sentence tells what a kind of models lacks, and nothing else."""
        found = _LACKS.fullmatch(text)
        kinds = {one.kind for one in self.report.models}
        return found is not None and found[2] in kinds and set(re.split(", | or ", found[3])) <= _capabilities()

    def _prose(self, text: str, place: str, made: Iterable[tuple[str, str]] = ()) -> str:
        """A sentence, or what stands for it; `made` pairs sentences of the whole report with those of the public part."""
        if text == "" or SENTENCES.fullmatch(text) or self._lacking(text):
            return text
        for whole, public in made:
            if whole == text and self.sealer.opened(public) == text:
                for token in TOKEN.findall(public):
                    self.sealer.stands(token, place)
                return public
        return self.sealer.seal(text, "sentences", place, shared=False)


def _secrets(whole: Mapping[str, Any]) -> set[str]:
    """Names and texts that nothing may quote: of units, clusters and data files, and what was asked and answered."""
    found = set()
    for finding in whole["findings"]:
        units = [*finding.get("leakages", ()), *finding.get("worst_units", ())]
        found |= {unit[key] for unit in units for key in ("id", "cluster")}
        found |= {one["cluster"] for one in (finding.get("worst_clusters") or {"clusters": ()})["clusters"]}
        found |= {column for one in finding.get("heat_maps", ()) for column in one["columns"]}
        for unit in finding.get("worst_units", ()):
            found |= {text for said in unit["transcripts"].values() for text in said.values()}
        for row in finding.get("pictures", ()):
            found |= {row["unit"], *(one["prompt"] for drawn in row["models"].values() for one in drawn)}
    return found | {one["path"] for one in whole["data"]}


def _quoting(secrets: Iterable[str]) -> re.Pattern[str]:
    """Finds what is withheld in another text, as whole words; what has no letter or hardly any is left out."""
    stripped = {text.strip() for text in secrets}
    words = sorted(
        (text for text in stripped if _SHORTEST <= len(text) <= _LONGEST and re.search(r"[^\W\d_]", text)),
        key=lambda text: (-len(text), text),
    )
    # Jane Doe is in models/jane_doe too: whatever stands between the words will do.
    spelled = (r"[\W_]+".join(re.escape(part) for part in re.split(r"[\W_]+", text) if part) for text in words)
    every = "|".join(dict.fromkeys(spelled))
    return re.compile(rf"(?<![^\W_])(?:{every})(?![^\W_])" if every else r"(?!)", re.IGNORECASE)


def _of_finding(finding: Finding) -> Iterator[str]:
    """The sentences with which muaudit could explain a finding, in a fixed order."""
    yield reasons.of_pass(finding)
    yield reasons.of_undecided(finding)
    for mean, clusters in ((True, False), (False, True), (True, True)):
        yield reasons.of_failure(finding, mean=mean, clusters=clusters)
    flagged = [one.model for one in finding.controls.negative if one.flagged] if finding.controls else []
    yield reasons.of_blind_attack(flagged, blind=True)
    yield reasons.of_blind_attack(flagged, blind=False) if flagged else ""
    if finding.claim is not None:
        for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
            yield reasons.of_claim(finding.claim, verdict, [])


def _of_audit(report: AuditReport) -> Iterator[str]:
    """The sentences with which muaudit could explain an audit, in a fixed order."""
    references = sum(one.role.startswith("reference") and " base" not in one.role for one in report.models)
    try:
        _, reason = verdict_of(report.findings, Policy.model_validate(report.policy), references=references)
    except ValidationError:
        return
    yield reason
    for one in report.conduct:
        yield one.told
        yield f"{one.told}; {reason}"


def _of_limits(report: AuditReport) -> Iterator[str]:
    """The limits that muaudit would tell of a report's plan and conduct."""
    try:
        frozen = Plan.model_validate(report.plan)
    except ValidationError:
        return
    yield from limits(frozen)
    yield from caveats(frozen, report.conduct, report.findings)


@cache
def _schema_keys() -> frozenset[str]:
    """Every key that a record of a report or plan has by itself."""
    schemas = [AuditReport.model_json_schema(), Plan.model_json_schema()]
    every = [one for schema in schemas for one in (schema, *schema["$defs"].values())]
    return frozenset(key for one in every for key in one.get("properties", ()))


@cache
def _words() -> dict[str, set[str]]:
    """Words that a key of a configuration can have where it takes no other text."""
    words: dict[str, set[str]] = {}
    for one in Plan.model_json_schema()["$defs"].values():
        for key, field in one.get("properties", {}).items():
            for kind in (field, *field.get("anyOf", ())):
                words.setdefault(key, set()).update(str(word) for word in (*kind.get("enum", ()), kind.get("const", "")))
    return words


@cache
def _choices(attack: str, key: str) -> frozenset[str]:
    """The words that a parameter of an attack may be; none where it takes any text."""
    found = registry.registered().get(attack)
    field = found.attack.model_fields.get(key) if isinstance(found, registry.Registered) else None
    if field is None:
        return frozenset()
    kinds = [field.annotation, *get_args(field.annotation)]
    return frozenset(str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))


def _shipped() -> list[type[Attack]]:
    """The attacks that ship with muaudit."""
    every = [one for one in registry.registered().values() if isinstance(one, registry.Registered)]
    return [one.attack for one in every if one.package == "muaudit"]


@cache
def _shipped_texts() -> frozenset[str]:
    """What the attacks that ship with muaudit say of themselves."""
    return frozenset(str(getattr(kind, key, "")) for kind in _shipped() for key in ("summary", "source", "cost"))


@cache
def _capabilities() -> frozenset[str]:
    """What the attacks that ship with muaudit need of a model, by name."""
    needs = [need for kind in _shipped() for need in kind.needs]
    return frozenset(one.__name__ for need in needs for one in (need if isinstance(need, tuple) else (need,)))


def _flat(path: str) -> str:
    """A path in a step's plan as one in the plan itself."""
    return re.sub(r"^plan/(steps/\*/plan/)+", "plan/", path)


def _kind(path: str) -> str:
    *_, last = (part for part in path.split("/") if part != "*")
    return KINDS.get(last, "settings")


def _below(path: str, key: str) -> str:
    return _joined(path, "*" if FREE.fullmatch(_flat(path)) or key not in _schema_keys() else key)


def _joined(path: str, part: str) -> str:
    return f"{path}/{part}" if path else part


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _unescaped(key: str) -> str:
    return key.replace("~1", "/").replace("~0", "~")


def _at(value: Any, place: str) -> Any:  # noqa: ANN401 - any JSON
    for part in place.split("/")[1:]:
        value = value[int(part)] if isinstance(value, list) else value[_unescaped(part)]
    return value


def _strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
