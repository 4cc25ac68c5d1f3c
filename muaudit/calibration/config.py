"""calibration.toml: which models, which audits of them, and by which policies they are judged."""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from muaudit.config import AuditConfig, ConductConfig, RunConfig, SigningConfig
from muaudit.errors import UsageError
from muaudit.results import Frozen

Share = Literal["one", "tenth", "half"]
Strength = Literal["weak", "default", "strong"]


class TestbedConfig(Frozen):
    """`[testbed]`: the models, made here.

    Attributes:
        preset: A testbed, such as "small", "lineage" or "sketches".
        never_saw: Retrains that never saw the forget set, each with a seed of its own.
        schedules: Training schedules that they take turns in, beside the testbed's own; all that it has by default.
        seeds: Seeds of the originals; all that is made from one is a stratum.
        left_in: Shares of the forgotten clusters that further retrains saw.
        methods: Unlearning methods; all of the testbed that do not hide by default.
        strengths: Of every method.
        interpolation: Shares of the weights of a model that knows, between it and a retrain of the same lineage.
        gated: Methods that hide rather than remove; all of the testbed by default.
        copies: How many models of either truth are copied with 4-bit weights, and after an epoch of relearning; all that know
            come from different methods as far as there are some.
    """

    __test__ = False  # pytest takes a class of this name for tests

    preset: str
    never_saw: Annotated[int, Field(ge=3)] = 20
    schedules: tuple[str, ...] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1)
    left_in: tuple[Share, ...] = ("one", "tenth", "half")
    methods: tuple[str, ...] | None = None
    strengths: tuple[Strength, ...] = ("weak", "default", "strong")
    interpolation: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    gated: tuple[str, ...] | None = None
    copies: Annotated[int, Field(ge=0)] = 4


class AuditsConfig(Frozen):
    """`[audits]`: how many audits are formed of every target, each with references of its own.

    Attributes:
        references: References an audit.
        never_saw: Audits of a target that never saw.
        knows: Audits of any other.
    """

    references: Annotated[int, Field(ge=1)] = 3
    never_saw: Annotated[int, Field(ge=1)] = 1
    knows: Annotated[int, Field(ge=1)] = 1


class PowerConfig(Frozen):
    """`[power]`: smaller audits, formed by leaving out units, clusters or references; empty tuples for none.

    Attributes:
        units: Units that are kept.
        clusters: Clusters that are kept.
        references: References that are kept, or added.
        audits: Most audits of either truth that are judged for every point.
    """

    units: tuple[Annotated[int, Field(ge=2)], ...] = ()
    clusters: tuple[Annotated[int, Field(ge=2)], ...] = (5, 10, 20)
    references: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 3, 4)
    audits: Annotated[int, Field(ge=1)] = 40


class CalibrationConfig(Frozen):
    """A whole calibration.toml.

    Attributes:
        policies: Shipped policies, or paths of policies; all shipped ones that fit by default. The first one's margins are
            those of the power and of what each attack adds.
        preset: A named set of attacks, as in audit.toml.
        attacks: Parameters by section, as in audit.toml.
    """

    testbed: TestbedConfig
    audits: AuditsConfig = AuditsConfig()
    power: PowerConfig = PowerConfig()
    policies: tuple[str, ...] = ()
    preset: str | None = None
    attacks: dict[str, dict[str, Any]] = {}
    conduct: ConductConfig = ConductConfig()
    run: RunConfig = RunConfig(out="calibration")
    signing: SigningConfig | None = None


def load(path: Path) -> CalibrationConfig:
    """Reads calibration.toml.

    Args:
        path: The file.

    Returns:
        The configuration.

    Raises:
        UsageError: The file cannot be used; the message names the key and the mend.
    """
    values = read(path)
    values["run"] = {"out": "calibration"} | values.get("run", {}) if isinstance(values.get("run", {}), dict) else values["run"]
    try:
        settings = CalibrationConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_fault(error)}") from error
    if not settings.attacks and settings.preset is None:
        raise UsageError(
            f'{path}: no attack is asked for: add a section such as [attacks.memorization], or preset = "language"'
        )
    return settings


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UsageError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); examples/calibration has one to start from") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}; mend the line, or start from examples/calibration") from error


def _fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "the file"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it"
    if first["type"] == "extra_forbidden":
        near = get_close_matches(path[-1], _keys(), n=1)
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"key {key!r}: {first['msg'].removeprefix('Value error, ')}"


def _keys() -> set[str]:
    """Every key that calibration.toml knows, at any depth."""
    tables: list[type[BaseModel]] = [
        CalibrationConfig, TestbedConfig, AuditsConfig, PowerConfig, ConductConfig, RunConfig, SigningConfig,
    ]  # fmt: skip
    return {key for table in tables for key in table.model_fields}


def audit_of(settings: CalibrationConfig, **values: Any) -> AuditConfig:  # noqa: ANN401 - parts of an audit
    """One audit with the attacks, questions and run settings of a calibration.

    Args:
        settings: The calibration.
        **values: The audit's task, target, references and so on.

    Returns:
        The audit; it is run though its policy could not be satisfied, since policies are applied afterwards.
    """
    return AuditConfig(
        **values,
        policy={"partial": True},  # type: ignore[arg-type]
        preset=settings.preset,
        attacks=settings.attacks,
        conduct=settings.conduct,
        run=settings.run,
    )
