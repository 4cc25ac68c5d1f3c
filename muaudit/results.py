"""What an audit found: typed, frozen, versioned, with one canonical JSON form.

Nothing here knows how a result was made or how it is shown. Everything that `muaudit.reports` renders is derived from an
`AuditReport` alone.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from muaudit.citation import Citation as Citation
from muaudit.errors import UsageError
from muaudit.frozen import Frozen as Frozen
from muaudit.journal import JournalEntry as JournalEntry
from muaudit.ledger import Ledger as Ledger
from muaudit.ledger import Usage as Usage
from muaudit.sealing import Redaction as Redaction

SCHEMA_VERSION = "1"
"""Version of the report's JSON schema; a change that an old reader cannot take raises it."""


class Verdict(StrEnum):
    """The five answers that a finding, and an audit, can give."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"
    ERROR = "error"


class Transcript(Frozen):
    """What one model was asked about one unit, and what it said."""

    prompt: str
    expected: str
    output: str


class Picture(Frozen):
    """A small picture of what one model drew.

    Attributes:
        label: How it came about, such as "plain" or "attacked".
        prompt: What was asked for; as far as an attack chose tokens or vectors, in words.
        png: PNG of at most 128 pixels a side, as base64.
        shows: Whether the concept is in it, by the evaluators.
    """

    label: str
    prompt: str
    png: str
    shows: bool


class PictureRow(Frozen):
    """One unit's pictures by model role (`target`, `reference 1`, `original`)."""

    unit: str
    models: dict[str, tuple[Picture, ...]]


class EvaluatorErrors(Frozen):
    """How often the evaluators err on images whose content is known.

    Attributes:
        present: Known images that show the concept asked for.
        found: Of these, those in which it was found.
        absent: Known images that do not show the concept asked for.
        mistaken: Of these, those in which it was found all the same.
    """

    present: Annotated[int, Field(ge=1)]
    found: Annotated[int, Field(ge=0)]
    absent: Annotated[int, Field(ge=1)]
    mistaken: Annotated[int, Field(ge=0)]


class UnitResult(Frozen):
    """One unit's leakage on every model, with transcripts by model role (`target`, `reference 1`, `original`)."""

    id: str
    cluster: str
    target: float
    references: float
    original: float | None
    gap: float
    transcripts: dict[str, Transcript]


class UnitLeakage(Frozen):
    """One unit's leakage on every model; `references` in their order. All units are kept, without what was said."""

    id: str
    cluster: str
    target: float
    references: tuple[float, ...]
    original: float | None


class ClusterResult(Frozen):
    """One cluster's mean leakage; `threshold` is the null's quantile for the largest gap among all clusters."""

    cluster: str
    units: int
    target: float
    references: float
    gap: float
    threshold: float
    flagged: bool


class WorstClusters(Frozen):
    """Judgement of the largest cluster gap.

    Attributes:
        clusters: The clusters with the largest gaps, largest first; all flagged ones are among them.
        p_value: Probability under the null of a largest gap as extreme as the one seen, in [0, 1].
        margin: The policy's cluster margin.
        smallest_detectable_gap: The smallest gap of one cluster of typical size that would have been flagged.
        null: Where the null distribution came from, in words.
    """

    clusters: tuple[ClusterResult, ...]
    p_value: float
    margin: float
    smallest_detectable_gap: float
    null: str


class KolmogorovSmirnov(Frozen):
    """Two-sample Kolmogorov-Smirnov test of a score, target against one reference (decides nothing)."""

    reference: str
    statistic: float
    p_value: float


class ScoreResult(Frozen):
    """A supporting score: kept, shown with its interval, decides nothing."""

    name: str
    target: float
    references: float
    original: float | None
    gap: float
    interval: tuple[float, float]
    ks: tuple[KolmogorovSmirnov, ...] = ()


class CurveLine(Frozen):
    """One model's line in a curve, by role."""

    model: str
    y: tuple[float, ...]


class Curve(Frozen):
    """Mean leakage along a budget, one line a model."""

    name: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    lines: tuple[CurveLine, ...]


class HeatMap(Frozen):
    """One model's numbers by layer and unit.

    Attributes:
        name: What the numbers are.
        model: The model's role; "references" is their mean.
        rows: The layers' names, first to last.
        columns: The units' ids.
        values: One row a layer, each number in [0, 1]; None where the layer says nothing about the unit.
        total: How many units there were, where not all are shown.
    """

    name: str
    model: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    total: int


class Control(Frozen):
    """A model whose answer is known, judged in the target's place."""

    model: str
    flagged: bool
    gap: float
    interval: tuple[float, float]


class Controls(Frozen):
    """Positive control (the original must be flagged) and negative controls (no reference may be)."""

    positive: Control | None
    negative: tuple[Control, ...]


class ClaimTest(Frozen):
    """A lower bound of epsilon that one model showed, set against what is claimed of it.

    Attributes:
        game: Whose privacy the claim is about, in words: an example's in training, or a forgotten example's after unlearning.
        source: Where the claim comes from, such as "stated by the vendor".
        epsilon: The claimed upper bound.
        delta: The claimed delta.
        lower_bound: What the attack showed, at `confidence`; 0 or more.
        confidence: Level of the lower bound.
        p_value: Of the hypothesis that the claim holds.
        detectable: The lower bound that a perfect attack would have shown with as many examples: a claim above it cannot be
            refuted here.
    """

    game: str
    source: str
    epsilon: float
    delta: float
    lower_bound: float
    confidence: float
    p_value: float
    detectable: float


class RelativeTest(Frozen):
    """Is the target nearer to the references than to the original? Never turns a `fail` into a `pass`.

    Attributes:
        statistic: mean distance to the references minus mean distance to the original; negative is nearer to the references.
        p_value: One-sided p-value of the hypothesis that the target is no nearer to the references.
    """

    statistic: float
    p_value: float


class Finding(Frozen):
    """One attack's target measurement against the reference measurements.

    Attributes:
        attack: The attack's name in the plan.
        measures: `leakage` of the forget set, `retention` of the retain set (collateral damage), or a `claim` about the target.
        verdict: What is decided.
        reason: Why, in one sentence for a reader who knows no statistics.
        gap: Mean over units of target leakage minus mean reference leakage, in [-1, 1].
        interval: Two-sided 95 % interval of the gap.
        upper_bound: One-sided upper bound of the gap (97.5 % in `standard`), which `pass` needs below the margin.
        lower_bound: The same from below; `pass` needs it above minus the margin for retention and two-sided attacks.
        margin: The difference below which target and reference count as equivalent.
        noise_floor: How far a further reference may lie from the mean of these; None with one reference.
        p_value: One-sided p-value of "the gap is at most max(margin, noise floor)"; of the loss, for retention.
        target: Mean leakage of the target; likewise `references` and `original`.
        recovered_share: (target - reference) / (original - reference); None without an original that leaks.
        smallest_detectable_gap: The smallest true gap that this design would have failed with probability 0.8.
        needed_units: With `inconclusive`: about how many units would have settled it.
        claim: With `claim`: what was claimed and what was shown; `p_value` is its p-value.
        evaluator: How often those err who say whether a concept is in an image; the gap, its interval and the noise floor are
            corrected by it.
        leakages: Every unit's leakage, in the order of the set.
        pictures: What models drew, of the units with the largest gaps.
        over_budget: With `skipped`: the attack did not fit into the plan's budget, which no policy passes over.
        informational: A pass says little, for the reason in the attack's card: an audit cannot rest on it alone.
    """

    attack: str
    measures: Literal["leakage", "retention", "claim"]
    verdict: Verdict
    reason: str
    sided: Literal["one", "two"] = "one"
    gap: float | None = None
    interval: tuple[float, float] | None = None
    upper_bound: float | None = None
    lower_bound: float | None = None
    margin: float | None = None
    noise_floor: float | None = None
    p_value: float | None = None
    units: int = 0
    clusters: int = 0
    target: float | None = None
    references: float | None = None
    original: float | None = None
    recovered_share: float | None = None
    smallest_detectable_gap: float | None = None
    needed_units: int | None = None
    claim: ClaimTest | None = None
    relative: RelativeTest | None = None
    worst_clusters: WorstClusters | None = None
    controls: Controls | None = None
    scores: tuple[ScoreResult, ...] = ()
    curves: tuple[Curve, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()
    worst_units: tuple[UnitResult, ...] = ()
    leakages: tuple[UnitLeakage, ...] = ()
    evaluator: EvaluatorErrors | None = None
    pictures: tuple[PictureRow, ...] = ()
    summaries: dict[str, dict[str, float]] = {}
    notes: tuple[str, ...] = ()
    over_budget: bool = False
    informational: bool = False


class Conduct(Frozen):
    """How a model behaved while it was audited, apart from what it knows. It can keep an audit from a `pass`, never give one.

    Attributes:
        check: `repetition`: the same questions again, later and in another order; `refusal`: declining forgotten questions;
            `files`: the model's files at the end of the run.
        model: The model's role.
        state: `clear`: nothing was seen; `shown`: misconduct was; `unknown`: it could not be seen, which a `pass` would need;
            `not_applicable`: there is nothing to see, as in recorded outputs.
        told: What was seen, in one sentence.
        asked: Questions (each several times), or files.
        differing: Of these, those that count against the model.
        p_value: How likely an honest model shows as much; None where no chance is involved.
        references: The same count over all references, and how many questions they were asked.
    """

    check: Literal["repetition", "refusal", "files"]
    model: str
    state: Literal["clear", "shown", "unknown", "not_applicable"]
    told: str
    asked: Annotated[int, Field(ge=0)] = 0
    differing: Annotated[int, Field(ge=0)] = 0
    p_value: float | None = None
    references: tuple[int, int] | None = None


class AttackCard(Frozen):
    """What an attack is, with the parameters that it ran with; `informational` says why a pass of it says little, if so."""

    name: str
    attack: str
    version: str
    summary: str
    source: str
    access: Literal["text", "logits", "weights", "training"]
    sided: Literal["one", "two"]
    cost: str
    package: str
    parameters: dict[str, Any]
    informational: str = ""


class FileDigest(Frozen):
    """One file of a model or of the task, by name relative to its folder."""

    name: str
    sha256: str
    bytes: int


class ModelRecord(Frozen):
    """A model that took part; `digest` is the SHA-256 of its manifest (every file's name and digest)."""

    role: str
    kind: str
    path: str
    digest: str
    files: tuple[FileDigest, ...]


class DataRecord(Frozen):
    """A task file that took part."""

    role: str
    path: str
    sha256: str
    units: int
    clusters: int


class CodeRecord(Frozen):
    """Code from outside muaudit that the audit ran.

    Attributes:
        role: What it is for, such as "procedure" or "target factory".
        function: `file.py:function` or `module:function`, as the configuration names it.
        sha256: Digest of the file that holds the function.
    """

    role: str
    function: str
    sha256: str


class Spent(Frozen):
    """What an audit took so far, over all its runs: hours of scanning, questions put to models, and what endpoints cost."""

    hours: float
    queries: int
    money: float | None


class RunRecord(Frozen):
    """Times and host facts: all that may differ between two runs of one plan.

    `peak_memory` is the most main memory that one process of this run held at a time, in bytes; None where the system does not
    say.
    """

    started: str
    finished: str
    resumed: bool
    computed: int
    reused: int
    model_seconds: float
    total_seconds: float
    host: dict[str, str]
    versions: dict[str, str]
    ledgers: tuple[Ledger, ...] = ()
    spent: Spent | None = None
    peak_memory: int | None = None


class AuditReport(Frozen):
    """All that an audit found, with what is needed to check and repeat it.

    Of a series of targets, `findings` holds every step's, the earlier ones' under names such as "memorization @ first request";
    `series` holds leakage and retention along the steps; the earlier steps' models and data carry the step's name in their
    role. `journal` tells what was done when, up to the conclusion; like `run`, it differs between two runs of one plan.
    `policy_sha256` is the digest of the policy's file, byte for byte. `redaction` says what a public
    report withholds; see `muaudit.redaction`. `calibration` says how often such audits err, where the audit cites that.
    """

    schema_version: Literal["1"] = "1"
    tool: str
    verdict: Verdict
    reason: str
    plan_sha256: str
    plan: dict[str, Any]
    policy: dict[str, Any]
    attacks: tuple[AttackCard, ...]
    findings: tuple[Finding, ...]
    models: tuple[ModelRecord, ...]
    data: tuple[DataRecord, ...]
    limits: tuple[str, ...]
    run: RunRecord
    series: tuple[Curve, ...] = ()
    code: tuple[CodeRecord, ...] = ()
    policy_sha256: str = ""
    conduct: tuple[Conduct, ...] = ()
    journal: tuple[JournalEntry, ...] = ()
    redaction: Redaction | None = None
    calibration: Citation | None = None

    @property
    def target(self) -> ModelRecord:
        """The record of the model under audit."""
        return next(model for model in self.models if model.role == "target")

    @classmethod
    def from_json(cls, data: bytes, *, name: str = "report.json") -> Self:
        """Reads a report, refusing what is not one.

        Args:
            data: The report's JSON, canonical or not.
            name: What to call it in an error.

        Returns:
            The report.

        Raises:
            UsageError: The bytes are not JSON, or not a report of this schema version.
        """
        try:
            report = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise UsageError(
                f"{name}: not a muaudit report of schema version {SCHEMA_VERSION}: {where}: {first['msg']}; "
                "render and verify read the report.json that `muaudit scan` wrote"
            ) from error
        if not any(model.role == "target" for model in report.models):
            raise UsageError(
                f"{name}: not a muaudit report: models: none is the target; give the one that `muaudit scan` wrote"
            )
        return report
