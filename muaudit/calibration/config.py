"""calibration.toml: which models, which audits of them, and by which policies they are judged."""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from muaudit.config import AuditConfig, ConductConfig, RecipeConfig, RunConfig, SigningConfig, TaskConfig
from muaudit.errors import UsageError
from muaudit.model_config import ModelConfig
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
        left_in: Shares of the forgotten clusters that further retrains saw; one, a tenth and a half by default, where the
            testbed has such retrains.
        methods: Unlearning methods; all of the testbed that do not hide by default.
        strengths: Of every method.
        interpolation: Shares of the weights of a model that knows, between it and a retrain of the same lineage; a ladder of
            six by default, where the testbed has one.
        gated: Methods that hide rather than remove; all of the testbed by default.
        copies: How many models of either truth are copied with 4-bit weights, and after an epoch of relearning; 4 by default,
            where the testbed has copies.
    """

    __test__ = False  # pytest takes a class of this name for tests

    preset: str
    never_saw: Annotated[int, Field(ge=3)] = 20
    schedules: tuple[str, ...] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1)
    left_in: tuple[Share, ...] | None = None
    methods: tuple[str, ...] | None = None
    strengths: tuple[Strength, ...] = ("weak", "default", "strong")
    interpolation: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    gated: tuple[str, ...] | None = None
    copies: Annotated[int, Field(ge=0)] | None = None


class RetrainsConfig(Frozen):
    """`[retrains]`: models of the user's own, in place of a testbed's.

    Attributes:
        count: Retrains to be trained, and one original where none is given; by `[recipe]` for labelled examples, else by
            `function`.
        function: "module:function" or "file.py:function": `train(path, *, seed, forget, **parameters)` writes one model to the
            path, trained on the retain set, and with `forget` on the forget set too. It is run.
        parameters: Passed on by name.
        kind: What it writes: "causal_lm", "diffusion", "classifier" or "regressor"; by the task where it is not said.
        references: Retrains that are there already.
        original: An original that is there already.
    """

    count: Annotated[int, Field(ge=0)] = 0
    function: str | None = None
    parameters: dict[str, Any] = {}
    kind: Literal["causal_lm", "diffusion", "classifier", "regressor"] | None = None
    references: tuple[ModelConfig, ...] = ()
    original: ModelConfig | None = None

    def model(self, kind: str, path: str) -> ModelConfig:
        """The configuration of a model that the function wrote."""
        adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
        return adapter.validate_python({"kind": self.kind or kind, "path": path})


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
        testbed: Models that are made here; or else, on one's own recipe:
        task: What is to be forgotten, as in audit.toml.
        recipe: How models of labelled examples are trained, as in audit.toml.
        retrains: Models of one's own.
        policies: Shipped policies, or paths of policies; all shipped ones that fit by default. The first one's margins are
            those of the power and of what each attack adds.
        preset: A named set of attacks, as in audit.toml.
        attacks: Parameters by section, as in audit.toml.
    """

    testbed: TestbedConfig | None = None
    task: TaskConfig | None = None
    recipe: RecipeConfig | None = None
    retrains: RetrainsConfig | None = None
    audits: AuditsConfig = AuditsConfig()
    power: PowerConfig = PowerConfig()
    policies: tuple[str, ...] = ()
    preset: str | None = None
    attacks: dict[str, dict[str, Any]] = {}
    conduct: ConductConfig = ConductConfig()
    run: RunConfig = RunConfig(out="calibration")
    signing: SigningConfig | None = None

    @model_validator(mode="after")
    def _some_models(self) -> "CalibrationConfig":
        if (self.testbed is None) == (self.task is None):
            raise ValueError("give [testbed], for models that are made here, or [task], for models of your own recipe")
        if self.preset is None and not self.attacks:
            raise ValueError('no attack is asked for: add a section such as [attacks.memorization], or preset = "language"')
        return self


def load(path: Path, *, recipe: str | None = None, retrains: int | None = None) -> CalibrationConfig:
    """Reads calibration.toml, or what an audit.toml says of the task, the models and the attacks.

    Args:
        path: The file.
        recipe: The user's own recipe: a function that trains.
        retrains: How many models it is to train.

    Returns:
        The configuration.

    Raises:
        UsageError: The file cannot be used; the message names the key and the mend.
    """
    values = read(path)
    if "testbed" in values and (recipe is not None or retrains is not None):
        raise UsageError(f"{path}: has [testbed], and --recipe is for models of your own; give a file with [task] instead")
    if "testbed" not in values:
        values = _own(values, recipe, retrains)
    run = values.get("run", {})
    values["run"] = {"out": "calibration"} | run if isinstance(run, dict) else run
    try:
        return CalibrationConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_fault(error)}") from error


def _own(values: dict[str, Any], recipe: str | None, retrains: int | None) -> dict[str, Any]:
    """An audit.toml as a calibration on one's own recipe; a calibration.toml of that kind stays as it is."""
    own = dict(values.pop("retrains", {}))
    for role in ("references", "original"):
        if role in values:
            own.setdefault(role, values.pop(role))
    if "policy" in values:
        values.setdefault("policies", [values.pop("policy").get("name", "standard")])
    for table in _AUDIT_ALONE:
        values.pop(table, None)
    if isinstance(values.get("run"), dict) and "retrains" not in values and "audits" not in values:
        values["run"] = {key: value for key, value in values["run"].items() if key not in ("out", "store")}
    labelled = values.get("task", {}).get("kind") in ("classification", "regression")
    if recipe is not None and labelled:
        values["recipe"] = {"kind": "python", "function": recipe}
    elif recipe is not None:
        own["function"] = recipe
    if retrains is not None or recipe is not None:
        # What audit.toml names need not be there yet: the models are those that the recipe trains.
        own = {key: value for key, value in own.items() if key not in ("references", "original")}
        own["count"] = retrains or own.get("count") or _RETRAINS
        if "recipe" not in values and "function" not in own:
            raise UsageError("--retrains trains by a recipe, and there is none: give --recipe, or add [recipe]")
    have = int(own.get("count", 0)) + len(own.get("references", ()))
    values.setdefault("audits", {}).setdefault("references", max(1, min(3, have - 1)))
    return values | {"retrains": own}


_RETRAINS = 4
"""Models that are trained by a recipe where nothing else is said."""

_AUDIT_ALONE = ("target", "procedure", "shadows", "series", "budget", "calibration")
"""Tables of audit.toml that say nothing of a calibration."""


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
        CalibrationConfig, TestbedConfig, RetrainsConfig, AuditsConfig, PowerConfig, ConductConfig, RunConfig, SigningConfig,
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
        policy={"partial": True},
        preset=settings.preset,
        attacks=settings.attacks,
        conduct=settings.conduct,
        run=settings.run,
    )
