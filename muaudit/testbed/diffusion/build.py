"""Builds text-to-image testbeds: task files, evaluators and the models that are asked for, each made once."""

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muaudit import compute
from muaudit.diffusion import pipeline as pipelines
from muaudit.diffusion import prompt_encoder, sampling
from muaudit.diffusion.pipeline import Pipeline
from muaudit.errors import UsageError
from muaudit.results import Frozen
from muaudit.store import write_atomically
from muaudit.testbed import derived, folders, kinds
from muaudit.testbed.diffusion import data, evaluators, training
from muaudit.testbed.diffusion import derived as derived_pipelines
from muaudit.testbed.diffusion import method as methods
from muaudit.testbed.diffusion.advunlearn import AdvUnlearn
from muaudit.testbed.diffusion.concept_domain_correction import ConceptDomainCorrection
from muaudit.testbed.diffusion.data import Population, World, make_prompts, make_world, write_task
from muaudit.testbed.diffusion.do_nothing import DoNothing
from muaudit.testbed.diffusion.esd import ESD
from muaudit.testbed.diffusion.keyword import Keyword
from muaudit.testbed.diffusion.method import Method, Situation
from muaudit.testbed.diffusion.mislabel import Mislabel
from muaudit.testbed.diffusion.retrain import Retrain
from muaudit.testbed.diffusion.salun import SalUn
from muaudit.testbed.diffusion.score_forgetting_distillation import ScoreForgettingDistillation
from muaudit.testbed.diffusion.training import Recipe, opened, save, train
from muaudit.testbed.folders import MARKER, Progress, completed, finished, one_thread
from muaudit.training import fitting, networks, recipes

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Retrain, DoNothing, Keyword, ESD, Mislabel, SalUn, ConceptDomainCorrection, ScoreForgettingDistillation, AdvUnlearn,
    )
}  # fmt: skip
"""The unlearning methods by name."""

SHADOWS = "shadows"
"""The folder of the shadow models, and of `keep.json`, which says who was trained on what."""

_SHADOW = "shadow"


class Testbed(Frozen):
    """Images and words, how models are trained on them, and how the methods are set.

    Attributes:
        population: The images and words.
        recipe: Size and training of every model.
        shadows: Shadow models that there can be: each image of the forget and holdout set is in half of them.
        methods: Parameters of a method, by its name; what is not given stands as in its class.
        schedules: Other ways to train a retrain, by name: what they change of the recipe.
        strengths: Parameters of a weak and of a strong use of a method, by its name, beside those of `methods`.
    """

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for tests

    population: Population
    recipe: Recipe
    shadows: int = Field(default=4, ge=0)
    methods: dict[str, dict[str, Any]] = {}
    schedules: dict[str, dict[str, Any]] = {}
    strengths: dict[str, dict[str, dict[str, Any]]] = {}


SCHEDULES: dict[str, dict[str, Any]] = {
    "long": {"steps": 800},
    "small-batches": {"batch_size": 24},
    "slow": {"learning_rate": 3e-3, "steps": 700},
    "undecayed": {"weight_decay": 0.0},
}
"""How else retrains are trained: what is changed of the recipe."""

STRENGTHS: dict[str, dict[str, dict[str, Any]]] = {
    "esd": {"weak": {"steps": 40}, "strong": {"steps": 240}},
    "mislabel": {"weak": {"steps": 33}, "strong": {"steps": 200}},
    "salun": {"weak": {"steps": 50}, "strong": {"steps": 300}},
    "concept_domain_correction": {"weak": {"steps": 67}, "strong": {"steps": 400}},
    "score_forgetting_distillation": {"weak": {"steps": 50}, "strong": {"steps": 300}},
    "advunlearn": {"weak": {"steps": 27}, "strong": {"steps": 160}},
}
"""Parameters of every approximate method's weak and strong use: a third of the steps, and twice as many."""

PRESETS: dict[str, Testbed] = {
    "sketches": Testbed(population=Population(), recipe=Recipe(), schedules=SCHEDULES, strengths=STRENGTHS)
}
"""Named testbeds: `sketches`, digits of 8x8 pixels of which one is forgotten."""


class Wanted(Frozen):
    """A model that is to be built.

    Attributes:
        name: Its folder's name.
        method: Name of its method; None for the original, "shadow" for a shadow model.
        seed: Of its training; an unlearned model is made from the original of the same seed.
        parameters: Of the method, beside the testbed's.
        schedule: Of a retrain: one of the testbed's schedules; its own where it is None.
    """

    name: str
    method: str | None
    seed: int = 0
    parameters: dict[str, Any] = {}
    schedule: str | None = None

    @property
    def source(self) -> "Wanted | None":
        """The original that it is made from; None for one that is trained from scratch."""
        if self.method is None or self.method == _SHADOW or not METHODS[self.method].opens_original:
            return None
        return wanted(f"original-{self.seed}" if self.seed else "original")

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / SHADOWS / self.name if self.method == _SHADOW else out / self.name


def wanted(name: str, clusters: Sequence[Sequence[str]] = (), testbed: Testbed | None = None) -> Wanted:
    """What a model's name means.

    `original`; `reference-2`; `retrain`, another honest retrain; `retrain-left-in-half`, which saw the concept's images
    on half of the forms all the same (also `one` and `tenth`); `retrain-long`, by another of the testbed's schedules;
    `shadow-1`; or a method's name, such as `esd`, with `-weak` or `-strong` for its use at another of the testbed's strengths.
    A number at the end is a seed: `esd-3` is made from `original-3`. What is made of finished models (`esd-3-4bit`)
    `muaudit.testbed.derived` reads.

    Args:
        name: The name.
        clusters: The concept's training images, form by form; needed for `left-in`.
        testbed: Whose schedules and strengths there are; none without it.

    Returns:
        The model's description. References, retrains and shadow models never share a seed.

    Raises:
        UsageError: The name means nothing.
    """
    found = None if testbed is None else kinds.read(name, clusters, testbed.schedules, testbed.strengths)
    if found is not None:
        return Wanted(name=name, **found)
    methods = {method.replace("_", "-"): method for method in METHODS}
    match = re.fullmatch(rf"({'|'.join(['original', 'reference', _SHADOW, *methods])})(?:-(\d+))?", name)
    kind, number = match.groups() if match else (None, None)
    seed = int(number or 0)
    if kind == "original":
        return Wanted(name=name, method=None, seed=seed)
    if kind == "reference" and number:
        return Wanted(name=name, method=Retrain.name, seed=seed)
    if kind == _SHADOW and seed:
        return Wanted(name=name, method=_SHADOW, seed=seed + 2_000)
    if kind in methods:
        return Wanted(name=name, method=methods[kind], seed=seed + (1_000 if kind == Retrain.name else 0))
    raise UsageError(
        f"model {name!r}: not a model of this testbed; write original, reference-1, shadow-1 or a method: {', '.join(methods)} "
        "(a seed may follow)"
    )


def forms(world: World) -> list[int]:
    """Where in the order of the images a form begins.

    Thirteen people wrote the digits on printed forms, each form beginning with two or three rows from 0 to 9. The images stand
    form by form, so that these rows, of which a digit may be missing, tell one hand from the next.

    Returns:
        Places of the first images, rising.
    """
    return [found.start() for found in re.finditer("0?123456(?:7?8?9?0?123456)+", "".join(map(str, world.labels)))]


def forgotten(world: World) -> list[list[str]]:
    """Names of all training images of the forgotten concept, form by form; the forget prompts ask about some of them."""
    rows = world.parts["training"]
    pages = np.split(rows, np.searchsorted(rows, forms(world)[1:]))
    return [[data.image_name(world, int(row)) for row in page[world.labels[page] == world.digit]] for page in pages]


def build(
    testbed: Testbed, out: Path, models: Sequence[str], *, jobs: int = 2, progress: Progress | None = None
) -> dict[str, Path]:
    """Writes the task files and the evaluators, and builds the models that are not there yet.

    Args:
        testbed: What to build; `PRESETS` holds one.
        out: The folder for all files, and one folder a model.
        models: Names that `wanted` understands; an original that one of them is made from is built too.
        jobs: Most processes, of one thread each; the models do not depend on it.
        progress: Called after each model.

    Returns:
        Task files by name (`forget`, `retain`, `holdout`, `known`), evaluators (`svc`, `neighbours`, `embedder`), the models'
        folders by name, and `shadows` where there are some: the folder that holds them.

    Raises:
        UsageError: A name means nothing, there are fewer shadow models, or a folder in the way is not a testbed's.
    """
    made_of, names = derived.planned(models)
    world = make_world(testbed.population)
    clusters = forgotten(world)
    asked = [wanted(name, clusters, testbed) for name in names]
    originals = [source for model in asked if (source := model.source)]
    every = {model.name: model for model in [*originals, *asked]}
    with one_thread():
        paths = write_task(world, out) | _evaluators(testbed, world, out)
    paths |= _shadowed(testbed, world, [model for model in every.values() if model.method == _SHADOW], out)
    # First what is trained from scratch, then what is made from an original.
    for stage in ([model for model in every.values() if not model.source], [model for model in every.values() if model.source]):
        missing = folders.missing(stage, lambda model: finished(model.folder(out), _key(testbed, model)), progress)
        folders.make(missing, partial(_make, testbed, out), processes=jobs, progress=progress)
    derived.build(made_of, out, derived_pipelines.Workshop(testbed.population, testbed.recipe), jobs=jobs, progress=progress)
    made = {one.name: out / one.name for one in made_of}
    return paths | {name: model.folder(out) for name, model in every.items()} | made


def _scheduled(testbed: Testbed, model: Wanted) -> Testbed:
    """The testbed as a model is to be made in it."""
    changes = testbed.schedules.get(model.schedule or "", {})
    methods = dict(testbed.methods)
    if model.parameters and model.method is not None:
        methods[model.method] = methods.get(model.method, {}) | model.parameters
    return testbed.model_copy(update={"recipe": testbed.recipe.model_copy(update=changes), "methods": methods})


def _evaluators(testbed: Testbed, world: World, out: Path) -> dict[str, Path]:
    """The evaluators, trained unless they are there."""
    files = [Path(str(module.__file__)) for module in (data, evaluators, recipes, fitting, networks)]
    sources = b"".join(path.read_bytes() for path in files)
    key = hashlib.sha256(
        sources + f"{testbed.population.content_digest()}{_versions('torch', 'scikit-learn', 'skops')}".encode()
    )
    marker = out / "evaluators" / MARKER
    if not finished(marker.parent, key.hexdigest()):
        evaluators.write_evaluators(world, out)
        write_atomically(marker, json.dumps({"key": key.hexdigest()}).encode() + b"\n")
    return evaluators.paths(out)


def _versions(*names: str) -> list[str]:
    return [f"{name} {metadata.version(name)}" for name in names]


def _shadowed(testbed: Testbed, world: World, shadows: Sequence[Wanted], out: Path) -> dict[str, Path]:
    """Writes what the shadow models are trained on, if any are asked for."""
    if not shadows:
        return {}
    if too_many := [model.name for model in shadows if model.seed - 2_000 > testbed.shadows]:
        raise UsageError(
            f"model {too_many[0]!r}: this testbed has {testbed.shadows} shadow models; set `shadows`, or ask for fewer"
        )
    units, keep = halves(world, testbed.shadows)
    rows = {model.name: keep[model.seed - 2_001].tolist() for model in shadows}
    text = json.dumps({"models": list(rows), "ids": [name for name, _ in units], "keep": list(rows.values())})
    write_atomically(out / SHADOWS / "keep.json", text.encode() + b"\n")
    return {SHADOWS: out / SHADOWS}


def halves(world: World, count: int) -> tuple[list[tuple[str, int]], NDArray[np.bool_]]:
    """Which shadow model is trained on which image.

    Args:
        world: The images.
        count: Shadow models.

    Returns:
        Ids and places of the forget and holdout images, and a mask [count, images]: every image is in half of the models, drawn
        for each image by itself.
    """
    prompts = make_prompts(world)
    units = [(one.id, data.place_of(one.id)) for name in ("forget", "holdout") for one in prompts[name]]
    rng = np.random.default_rng([world.population.seed, 3])
    ranks = rng.random((count, len(units))).argsort(0)
    return units, ranks < count // 2


@cache
def _code(method: str | None) -> str:
    """Digest of all code that the weights of a model depend on."""
    modules = [compute, folders, pipelines, prompt_encoder, sampling, data, training]
    made = "".join(inspect.getsource(function) for function in (_make, _rows, _pipeline, halves))
    files = [Path(str(module.__file__)) for module in modules]
    if method in METHODS:
        # Models that are trained from scratch do not depend on the other methods; of these, one may use another.
        others = [Path(__file__).with_name(f"{method}.py"), Path(methods.__file__)]
        files += sorted(Path(__file__).parent.glob("*.py")) if METHODS[method].opens_original else others
        files = [path for path in files if path.name not in (Path(__file__).name, "evaluators.py", "derived.py")]
    sources = b"".join(path.read_bytes() for path in files)
    versions = _versions("torch", "diffusers", "transformers", "numpy", "scikit-learn")
    return hashlib.sha256(sources + f"{made}{versions}".encode()).hexdigest()


def _key(testbed: Testbed, model: Wanted) -> str:
    """Digest of everything that a model is made from."""
    testbed = _scheduled(testbed, model)
    chosen = {
        "method": testbed.methods.get(model.method or ""),
        "shadows": testbed.shadows if model.method == _SHADOW else None,
    }
    settings = testbed.model_dump(mode="json", exclude={"methods", "shadows", "schedules", "strengths"}) | chosen
    # Schedules and strengths stand in the settings.
    parts = [settings, model.model_dump(mode="json", include={"method", "seed"}), _code(model.method)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(testbed: Testbed, out: Path, model: Wanted) -> str:
    """Makes one model; its folder appears only when it is complete."""
    with one_thread(), completed(model.folder(out), _key(testbed, model)) as folder:
        save(_pipeline(_scheduled(testbed, model), model, out), folder)
    return model.name


def _pipeline(testbed: Testbed, model: Wanted, out: Path) -> Pipeline:
    """Trains or unlearns one model."""
    world, source = make_world(testbed.population), model.source
    if model.method is None or model.method == _SHADOW:
        return train(testbed.recipe, world, _rows(testbed, world, model), model.seed)
    method = METHODS[model.method](**testbed.methods.get(model.method, {}))
    situation = Situation(world, testbed.recipe, lambda: opened(source.folder(out) if source else out), model.seed)
    return method.unlearn(situation)


def _rows(testbed: Testbed, world: World, model: Wanted) -> NDArray[np.int64]:
    """Places of the images that an original or a shadow model is trained on."""
    rows = world.rows(forgotten=True)
    if model.method is None:
        return rows
    units, keep = halves(world, testbed.shadows)
    places = np.array([place for _, place in units])
    return np.union1d(np.setdiff1d(rows, places), places[keep[model.seed - 2_001]])
