"""The record of a calibration: what was measured of a battery's errors, typed, versioned, with one canonical JSON form."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from muaudit.citation import Rate as Rate
from muaudit.errors import UsageError
from muaudit.results import DataRecord, Frozen

Truth = Literal["never_saw", "knows", "gated", "ladder"]
"""What is known of a model: it never saw the forget set; it saw it, and what was done to it afterwards was no retraining; what
it knows is hidden and not removed; or it stands on a ladder between never saw and knows."""

Copy = Literal["four_bit", "relearned"]

SCHEMA_VERSION = "1"
"""Version of the record's JSON schema; a change that an old reader cannot take raises it."""

Share = Annotated[float, Field(ge=0, le=1)]


class Area(Frozen):
    """Area under an ROC curve: how well a number tells models that know from models that never saw.

    Attributes:
        auc: The area.
        low: Lower end of its 95 % interval.
        high: Upper end.
        knows: Models that know, each counted once.
        never_saw: Models that never saw.
    """

    auc: Share
    low: Share
    high: Share
    knows: int
    never_saw: int


class Curve(Frozen):
    """An ROC curve: false-alarm rates and detection rates, both ascending."""

    false: tuple[Share, ...]
    true: tuple[Share, ...]


class Correlation(Frozen):
    """Spearman's rank correlation with its 95 % interval."""

    value: Annotated[float, Field(ge=-1, le=1)]
    low: float
    high: float
    models: int


class Robustness(Frozen):
    """How stable an attack's mean leakage is where what the model knows stays, or is taught to both sides alike.

    Attributes:
        quantised: Mean over models that know of 1 - |after - before| / (|after| + |before|) under 4-bit weights.
        relearned: Mean over models that know of 1 - |gain - gain of retrains| / (|gain| + |gain of retrains|) after one epoch
            of training on the forget set.
        harmonic: Their harmonic mean.
        models: Models that know, with copies.
    """

    quantised: Share
    relearned: Share
    harmonic: Share
    models: int


class AttackRates(Frozen):
    """What one attack's own finding tells.

    Attributes:
        attack: Its name in the plan.
        access: What it needs.
        gap: Area by the gap (two-sided attacks: by its size).
        excess: Area by the excess: how far a finding lies beyond what it has to exceed to fail, by mean or worst cluster.
        roc: The curve of the excess.
        false_alarm: How often it alone fails a model that never saw.
        detection: How often it alone fails one that knows.
        gated: How often it alone fails one that hides.
        passes: How often it alone passes a model that never saw.
        robustness: Of its mean leakage; None without copies.
        seconds: Mean seconds a model.
        preparation: Seconds of its preparation, summed over panels.
        left_out: Why there are no numbers.
    """

    attack: str
    access: str = ""
    gap: Area | None = None
    excess: Area | None = None
    roc: Curve | None = None
    false_alarm: Rate | None = None
    detection: Rate | None = None
    gated: Rate | None = None
    passes: Rate | None = None
    robustness: Robustness | None = None
    seconds: float | None = None
    preparation: float | None = None
    left_out: str | None = None


class Group(Frozen):
    """What was seen of the models of one kind and strength.

    Attributes:
        truth: What is known of them.
        group: What made them.
        strength: How strongly.
        models: How many there are.
        detection: How often the whole battery failed them, under the first policy.
        by_attack: How often each attack alone did.
        gaps: Each attack's mean gap.
    """

    truth: Truth
    group: str
    strength: str
    models: int
    detection: Rate
    by_attack: dict[str, Rate]
    gaps: dict[str, float]


class PolicyRates(Frozen):
    """The verdict's errors under one policy.

    Attributes:
        policy: Its name.
        sha256: Digest of its file, byte for byte.
        left_out: Why it was not applied: what these audits lack for it.
        never_saw: Shares of verdicts of models that never saw, by verdict.
        knows: The same of those that know.
        gated: The same of those that hide.
        false_alarm: `fail` among models that never saw.
        detection: `fail` among those that know.
        missed: `pass` among those that know or hide.
        undecided: Why models that never saw were not passed, and how often, most often first.
    """

    policy: str
    sha256: str
    left_out: str | None = None
    never_saw: dict[str, Rate] = {}
    knows: dict[str, Rate] = {}
    gated: dict[str, Rate] = {}
    false_alarm: Rate | None = None
    detection: Rate | None = None
    missed: Rate | None = None
    undecided: tuple[tuple[str, int], ...] = ()


class PowerPoint(Frozen):
    """What smaller audits would have said, under the first policy.

    Attributes:
        what: "units", "clusters" or "references".
        size: How many.
        false_alarm: `fail` among models that never saw.
        passes: `pass` among them.
        detection: `fail` among models that know.
        detectable: Median over audits of the smallest gap that could be seen, by attack; 1 where none could.
    """

    what: Literal["units", "clusters", "references"]
    size: int
    false_alarm: Rate | None = None
    passes: Rate | None = None
    detection: Rate | None = None
    detectable: dict[str, float] = {}


class Addition(Frozen):
    """What one attack adds to the battery.

    Attributes:
        attack: Its name.
        detection: Detection of the battery without it.
        lost: Audits of models that know which the whole battery failed and the rest would not.
        false_alarm: False alarms of the battery without it.
        seconds: What leaving it out saves, a model.
    """

    attack: str
    detection: Rate
    lost: int
    false_alarm: Rate
    seconds: float


class Battery(Frozen):
    """A part of the battery.

    Attributes:
        attacks: Their names.
        how: "whole", "exhaustive" (no smaller one reaches the goal) or "greedy" (the best addition at each step).
        detection: `fail` among models that know or hide.
        false_alarm: `fail` among those that never saw.
        seconds: A model.
    """

    attacks: tuple[str, ...]
    how: Literal["whole", "exhaustive", "greedy"]
    detection: Rate
    false_alarm: Rate
    seconds: float


class Whole(Frozen):
    """The battery as one detector: by its largest excess, and by its largest gap.

    Attributes:
        excess: Area by the largest excess of all attacks.
        gap: Area by the largest gap.
        roc: Curve of the largest excess.
        ladder: Rank correlation of strength with the largest gap, over the ladder.
        steps: The ladder's rungs: share of a model that knows, mean and extremes of the largest gap.
    """

    excess: Area | None = None
    gap: Area | None = None
    roc: Curve | None = None
    ladder: Correlation | None = None
    steps: tuple[tuple[float, float, float, float], ...] = ()


class Sensitivity(Frozen):
    """The gap that an audit of one model with these references and this forget set could see.

    Attributes:
        attack: The attack.
        gap: The smallest true gap that would be failed four times out of five.
        low: With the lower end of the 95 % interval of what the noise of training may be, from so few retrains.
        high: With the upper end.
        margin: The policy's margin.
        noise: Standard deviation of the retrains' mean leakage.
        retrains: How many there were.
        references: How many references the audit would have.
        units: Units of the forget set.
        clusters: Their clusters.
    """

    attack: str
    gap: float
    low: float
    high: float
    margin: float
    noise: float
    retrains: int
    references: int
    units: int
    clusters: int


class AuditRow(Frozen):
    """One audit of the calibration: what every rate is counted from.

    Attributes:
        target: The model's name.
        truth: What is known of it.
        group: What made it.
        strength: How strongly.
        share: The strength as a number, where it is one.
        seed: Its stratum.
        references: What it was compared with.
        original: Its positive control.
        gaps: Each attack's gap.
        clusters: Each attack's largest gap of one cluster.
        excess: Each attack's excess under the first policy.
        flagged: Attacks that alone fail it, by policy.
        verdicts: The verdict, by policy.
    """

    target: str
    truth: Truth
    group: str
    strength: str
    share: float | None
    seed: int
    references: tuple[str, ...]
    original: str
    gaps: dict[str, float]
    clusters: dict[str, float]
    excess: dict[str, float]
    flagged: dict[str, tuple[str, ...]]
    verdicts: dict[str, str]


class MemberRow(Frozen):
    """A model of the calibration: its truth, its files' digest and each attack's mean leakage on it."""

    name: str
    truth: Truth
    group: str
    strength: str
    seed: int
    copy_of: str | None
    copied: Copy | None
    digest: str
    leakage: dict[str, float]


class RunFacts(Frozen):
    """Times and host facts: all that may differ between two runs of one plan."""

    started: str
    finished: str
    seconds: float
    measured: int
    reused: int
    host: dict[str, str]


class CalibrationRecord(Frozen):
    """All that a calibration found.

    Attributes:
        family: What kind of task the models are for: "facts", "classification", "regression" or "text_to_image".
        bed: The testbed's preset; "recipe" for a user's own models.
        plan_sha256: Hash of the plan, which was frozen before anything was measured.
        config: The resolved configuration.
        parameters: Every attack's parameters.
        policies: The verdict's errors by policy; the first one's margins are those of all else.
        attacks: Every attack's own.
        battery: The battery as one detector.
        groups: By method and strength.
        power: With smaller and larger audits.
        additions: What each attack adds.
        batteries: The whole battery, and the smallest that detect nearly as much.
        sensitivity: What could be seen with these references and this forget set.
        audits: What all rates are counted from.
        members: The models.
        data: The task's files.
        versions: Libraries that can change a measurement.
        limits: What the rates do not say.
    """

    schema_version: Literal["1"] = "1"
    tool: str
    family: str
    bed: str
    plan_sha256: str
    config: dict[str, Any]
    parameters: dict[str, dict[str, Any]] = {}
    policies: tuple[PolicyRates, ...]
    attacks: tuple[AttackRates, ...]
    battery: Whole
    groups: tuple[Group, ...]
    power: tuple[PowerPoint, ...] = ()
    additions: tuple[Addition, ...] = ()
    batteries: tuple[Battery, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    audits: tuple[AuditRow, ...]
    members: tuple[MemberRow, ...]
    data: tuple[DataRecord, ...]
    versions: dict[str, str]
    limits: tuple[str, ...]
    run: RunFacts

    @property
    def policy(self) -> PolicyRates:
        """The first policy that was applied."""
        return next(one for one in self.policies if one.left_out is None)

    @classmethod
    def from_json(cls, data: bytes, *, name: str = "calibration.json") -> Self:
        """Reads a record, refusing what is not one.

        Args:
            data: The record's JSON, canonical or not.
            name: What to call it in an error.

        Returns:
            The record.

        Raises:
            UsageError: The bytes are not JSON, or not a record of this schema version.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise UsageError(
                f"{name}: not a muaudit calibration record of schema version {SCHEMA_VERSION}: {where}: {first['msg']}; give "
                "the calibration.json that `muaudit calibrate` wrote"
            ) from error


def is_record(data: bytes) -> bool:
    """Whether a JSON document says that it is a calibration's record; nothing else of it is checked."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "bed" in value and "audits" in value
