"""Populations of calibrations: which models of a testbed are asked for, what is known of each, and where they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muaudit.calibration.config import TestbedConfig
from muaudit.calibration.population import LADDER, LEFT_IN, ORIGINAL, RETRAIN, Known, Member, Population
from muaudit.calibration.record import Copy
from muaudit.config import ExamplesTask, FactsTask, ImagesTask, ShadowsConfig, TaskConfig
from muaudit.errors import UsageError
from muaudit.model_config import CausalLMConfig, ClassifierConfig, DiffusionConfig, GuardedConfig, ModelConfig
from muaudit.training.made import path_from
from muaudit.training.recipes import TorchRecipe

Progress = Callable[[int, int, str], None]
Build = Callable[[Path, Sequence[str], int, Callable[[str, bool], None]], dict[str, Path]]

SPARE = 899
"""Number of the retrain that attacks calibrate with, which is in no audit."""

LADDER_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Rungs of a ladder where nothing else is said."""

SHADOWS = 64
"""Shadow models of classifiers."""

COPIES = 4
"""Models of either truth that are copied where nothing else is said."""

_COPIED: dict[str, Copy] = {"4bit": "four_bit", "relearned": "relearned"}
"""How copies are made, by the end of their name."""

_SHARES = {"one": 0.0, "tenth": 0.1, "half": 0.5}


@dataclass(frozen=True)
class Family:
    """What a calibration needs to know of a testbed.

    Attributes:
        schedules: Names of the schedules that retrains can be trained by, beside the testbed's own.
        left_in: Shares of clusters that retrains can have left in.
        derived: Whether models can be interpolated and copied.
        methods: Names of the approximate methods, as in models' names.
        strengths: Of these, those that have a weak and a strong use.
        gated: Names of the methods that hide.
        build: Builds models: folder, names, processes, what is told of each; gives paths by name.
        task: The task, from the files' paths and the folder that configurations' paths start from.
        model: A model's configuration, from its name and path.
        training: How the auditor trains, and shadow models, for attacks that need them.
    """

    schedules: tuple[str, ...]
    left_in: tuple[str, ...]
    derived: bool
    methods: tuple[str, ...]
    strengths: tuple[str, ...]
    gated: tuple[str, ...]
    build: Build
    task: Callable[[Mapping[str, Path], Path], TaskConfig]
    model: Callable[[str, str], ModelConfig]
    training: tuple[TorchRecipe | None, ShadowsConfig | None] = (None, None)


def family(preset: str) -> Family:
    """The family of a testbed's preset.

    Raises:
        UsageError: There is no such preset, or no calibration on it.
    """
    from muaudit.testbed import build as language

    if preset in language.PRESETS:
        return _language(preset)
    if preset == "sketches":
        return _images(preset)
    if preset in CLASSIFIERS:
        return _classifiers(preset)
    known = ", ".join((*language.PRESETS, "sketches", *CLASSIFIERS))
    raise UsageError(f"testbed.preset {preset!r}: calibrations are made on {known}; name one of them")


def population(settings: TestbedConfig, out: Path, base: Path, *, jobs: int, progress: Progress | None = None) -> Population:
    """Makes every model that a calibration asks for, or finds it made.

    Args:
        settings: Which.
        out: Folder for the models.
        base: The folder that the configurations' paths are to start from.
        jobs: Processes.
        progress: Told of every model.

    Returns:
        The models, with what is known of them.

    Raises:
        UsageError: A method, schedule or preset is not known.
    """
    kind = family(settings.preset)
    wanted = list(_wanted(settings, kind))
    wanted += list(_copies(settings, kind, wanted))
    originals = [_numbered("original", seed) for seed in settings.seeds]
    names = [*originals, *(one.name for one in wanted), _spare()]
    names = list(dict.fromkeys(names))
    done = 0

    def told(name: str, reused: bool) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, max(done, len(names)), f"{name} {'was there' if reused else 'trained'}")

    paths = kind.build(out, names, jobs, told)

    def model(name: str) -> ModelConfig:
        return kind.model(name, path_from(base, paths[name]))

    recipe, shadows = kind.training
    return Population(
        recipe=recipe,
        shadows=shadows,
        bed=settings.preset,
        task=kind.task(paths, base),
        originals={name: model(name) for name in originals},
        members=tuple(Member(**one.model_dump(), model=model(one.name)) for one in wanted),
        spare=model(_spare()),
    )


def _wanted(settings: TestbedConfig, kind: Family) -> Iterator[Known]:
    """All models but copies."""
    schedules = kind.schedules if settings.schedules is None else settings.schedules
    _known("testbed.schedules", schedules, kind.schedules)
    turns = ("", *schedules)
    for number in range(1, settings.never_saw + 1):
        schedule = turns[(number - 1) % len(turns)]
        name = f"retrain-{schedule}-{number}" if schedule else f"retrain-{number}"
        yield Known(name=name, truth="never_saw", group=RETRAIN, strength=schedule, seed=number)
    for seed in settings.seeds:
        yield from _of_seed(settings, kind, seed)


def _of_seed(settings: TestbedConfig, kind: Family, seed: int) -> Iterator[Known]:
    """A stratum: all that is made from one original, or has its number."""
    original = _numbered("original", seed)
    stratum: dict[str, Any] = {"seed": seed, "original": original}
    yield Known(name=original, truth="knows", group=ORIGINAL, share=1.0, **stratum)
    shares = kind.left_in if settings.left_in is None else settings.left_in
    _known("testbed.left_in", shares, kind.left_in)
    for share in shares:
        name = _numbered(f"retrain-left-in-{share}", seed)
        yield Known(name=name, truth="knows", group=LEFT_IN, strength=share, share=_SHARES[share], **stratum)
    methods = kind.methods if settings.methods is None else _spelled(settings.methods)
    gated = kind.gated if settings.gated is None else _spelled(settings.gated)
    _known("testbed.methods", methods, (*kind.methods, *kind.gated))
    _known("testbed.gated", gated, (*kind.gated, *kind.methods))
    for method in methods:
        for strength in settings.strengths:
            if strength == "default" or method in kind.strengths:
                name = _numbered(method if strength == "default" else f"{method}-{strength}", seed)
                yield Known(name=name, truth="knows", group=method, strength=strength, **stratum)
    for method in [one for one in gated if one not in methods]:
        yield Known(name=_numbered(method, seed), truth="gated", group=method, strength="default", **stratum)
    rungs = (LADDER_SHARES if kind.derived else ()) if settings.interpolation is None else settings.interpolation
    if rungs and not kind.derived:
        raise UsageError("testbed.interpolation: models of this testbed cannot be interpolated; leave it out")
    for rung in rungs:
        name = _numbered(f"interpolated-{round(100 * rung)}", seed)
        yield Known(name=name, truth="ladder", group=LADDER, strength=f"{rung:g}", share=rung, **stratum)


def _copies(settings: TestbedConfig, kind: Family, members: Sequence[Known]) -> Iterator[Known]:
    """Copies of some models with 4-bit weights, and of the same after an epoch of relearning."""
    count = (COPIES if kind.derived else 0) if settings.copies is None else settings.copies
    if count and not kind.derived:
        raise UsageError("testbed.copies: models of this testbed cannot be copied so; leave it out")
    honest = [one for one in members if one.truth == "never_saw"]
    knowing = [one for one in members if one.truth in ("knows", "gated") and one.group not in (ORIGINAL, LEFT_IN)]
    default = [one for one in knowing if one.strength == "default"]
    for among in (honest, default or knowing):
        for one in among[:count]:
            for suffix, copied in _COPIED.items():
                changes = {"name": f"{one.name}-{suffix}", "copy_of": one.name, "copied": copied}
                yield one.model_copy(update=changes)


def _numbered(name: str, seed: int) -> str:
    return f"{name}-{seed}" if seed else name


def _spare() -> str:
    return f"retrain-{SPARE}"


def _spelled(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.replace("_", "-") for name in names)


def _known(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{key} names {unknown[0]!r}, which this testbed does not have; known: {', '.join(known)}")


CLASSIFIERS = ("digits", "digits-cnn", "digits-resnet", "digits-class", "digits-groups", "writers", "tables", "poisoned")
"""Presets of classifiers; those of numbers and of canaries have audits of another kind."""

EXACT = ("retrain", "do-nothing", "sisa", "differentially-private", "dp2unlearning")
"""Methods on classifiers that remove exactly, bound what is left, or do nothing: no approximate ones."""

HIDING = ("refusal", "rocr", "eco", "guard")
"""Methods on language models that hide rather than remove: a refusal, a redirection, a gate before the prompts."""


def _language(preset: str) -> Family:
    from muaudit.testbed import build as language

    bed = language.PRESETS[preset]
    methods = [name.replace("_", "-") for name in language.METHODS if name not in ("retrain", "do_nothing")]

    def model(name: str, path: str) -> ModelConfig:
        gated = not name.startswith(RETRAIN) and language.guarded(name)
        return GuardedConfig(kind="guarded", path=path) if gated else CausalLMConfig(kind="causal_lm", path=path)

    def task(paths: Mapping[str, Path], base: Path) -> TaskConfig:
        return FactsTask(kind="facts", **{name: path_from(base, paths[name]) for name in ("forget", "retain", "holdout")})

    return Family(
        schedules=tuple(bed.schedules),
        left_in=tuple(_SHARES),
        derived=True,
        methods=tuple(name for name in methods if name not in HIDING),
        strengths=tuple(name.replace("_", "-") for name in bed.strengths),
        gated=tuple(name for name in methods if name in HIDING),
        build=lambda out, names, jobs, told: language.build(bed, out, names, jobs=jobs, progress=told),
        task=task,
        model=model,
    )


def _images(preset: str) -> Family:
    from muaudit.testbed.diffusion import build as diffusion
    from muaudit.testbed.diffusion.data import NAMES
    from muaudit.testbed.diffusion.method import SAMPLING

    bed = diffusion.PRESETS[preset]
    methods = [name.replace("_", "-") for name in diffusion.METHODS if name not in ("retrain", "do_nothing")]

    def task(paths: Mapping[str, Path], base: Path) -> TaskConfig:
        values: dict[str, Any] = {name: path_from(base, paths[name]) for name in ("forget", "retain", "holdout", "known")}
        labels = {name: place for place, name in enumerate(NAMES)}
        evaluators = [
            {"kind": "classifier", "name": name, "path": path_from(base, paths[name]), "labels": labels}
            for name in ("svc", "neighbours")
        ]
        sampled = {"steps": SAMPLING.steps, "guidance": 2.0, "image_mode": "L"}
        return ImagesTask.model_validate({"kind": "text_to_image", **values, "evaluators": evaluators, **sampled})

    return Family(
        schedules=tuple(bed.schedules),
        left_in=tuple(_SHARES),
        derived=True,
        methods=tuple(name for name in methods if name != "keyword"),
        strengths=tuple(name.replace("_", "-") for name in bed.strengths),
        gated=("keyword",),
        build=lambda out, names, jobs, told: diffusion.build(bed, out, names, jobs=jobs, progress=told),
        task=task,
        model=lambda name, path: DiffusionConfig(kind="diffusion", path=path, batch_size=512),
    )


def _classifiers(preset: str) -> Family:
    from muaudit.testbed.classification import build as classification

    bed = classification.PRESETS[preset]
    methods = [name.replace("_", "-") for name in classification.METHODS]

    def task(paths: Mapping[str, Path], base: Path) -> TaskConfig:
        sets = {name: path_from(base, paths[name]) for name in ("forget", "retain", "holdout") if name in paths}
        return ExamplesTask(kind="classification", **sets)

    return Family(
        schedules=tuple(bed.schedules),
        left_in=tuple(_SHARES) if bed.population.by == "group" else (),
        derived=True,
        methods=tuple(name for name in methods if name not in EXACT),
        strengths=tuple(name.replace("_", "-") for name in bed.strengths),
        gated=(),
        build=lambda out, names, jobs, told: classification.build(bed, out, names, jobs=jobs, progress=told),
        task=task,
        model=lambda name, path: ClassifierConfig(kind="classifier", path=path),
        training=(bed.recipe, ShadowsConfig(count=SHADOWS)),
    )
