"""Builds classification testbeds: a population's task files and the models that are asked for, each made once.

Measured on one core of an AMD EPYC (Zen 4), one thread; means over seeds 0, 1 and 2. Accuracy on the forget, retain and
holdout set, as labelled there (a fifth of the labels are wrong), and on the source's other 1,197 images with right labels;
then AUC and TPR at 1 % FPR of an online LiRA (32 shadow models, pooled variance) that tells the forget from the holdout set.

| digits | CPU s | forget | retain | holdout | others | AUC | TPR |
| --- | --- | --- | --- | --- | --- | --- | --- |
| original | 0.2 | 1.00 | .99 | .63 | .80 | .88 | .37 |
| reference | 0.2 | .55 | 1.00 | .58 | .74 | .46 | .01 |
| retrain | 0.2 | .54 | 1.00 | .59 | .74 | .46 | .00 |
| do-nothing | 0.0 | 1.00 | .99 | .63 | .80 | .88 | .37 |
| sisa | 1.3 | .59 | .78 | .65 | .83 | .48 | .00 |
| fine-tune | 0.1 | 1.00 | 1.00 | .63 | .79 | .87 | .36 |
| gradient-ascent | 0.0 | .89 | .96 | .54 | .68 | .77 | .18 |
| random-label | 0.1 | .76 | .98 | .55 | .68 | .66 | .16 |
| salun | 0.1 | .78 | .99 | .55 | .68 | .67 | .16 |
| selective-synaptic-dampening | 0.1 | .85 | .93 | .55 | .70 | .78 | .23 |
| influence | 0.0 | .92 | .97 | .57 | .70 | .79 | .23 |
| boundary-shrink | 0.0 | .83 | .88 | .48 | .60 | .78 | .21 |
| scrub | 0.1 | .72 | .97 | .60 | .75 | .71 | .13 |
| datamodel-matching | 2.9 | .72 | .97 | .63 | .80 | .58 | .02 |
| label-agnostic | 0.7 | .87 | .92 | .55 | .70 | .79 | .21 |
| sharpness-aware | 0.2 | .82 | .96 | .56 | .70 | .75 | .19 |
| differentially-private | 1.2 | .63 | .68 | .65 | .78 | .53 | .01 |
| dp2unlearning | 0.6 | .55 | .95 | .60 | .78 | .46 | .01 |

The other presets, forget / retain / others, and what else tells (`tables`, `digits-groups` and `digits-resnet` are like
`digits`):

| model | digits-cnn | AUC | digits-class | regression: squared error, third of holdout | AUC | poisoned | true label |
| --- | --- | --- | --- | --- | --- | --- | --- |
| original | 1.00 / 1.00 / .77 | .84 | 1.00 / 1.00 / .95 | .10 / .06 / .92 | .90 | 1.00 / 1.00 / .94 | .05 |
| reference | .54 / 1.00 / .76 | .48 | .00 / 1.00 / .94 | 1.02 / .02 / 1.00 | .56 | .08 / 1.00 / .95 | .63 |
| retrain | .53 / 1.00 / .75 | .46 | .00 / 1.00 / .94 | 1.10 / .02 / 1.05 | .57 | .08 / 1.00 / .95 | .64 |
| do-nothing | 1.00 / 1.00 / .77 | .84 | 1.00 / 1.00 / .95 | .10 / .06 / .92 | .90 | 1.00 / 1.00 / .94 | .05 |
| sisa | .63 / .77 / .86 | .47 | .00 / .97 / .91 | 1.08 / .48 / 1.01 | .49 | .08 / .97 / .92 | .66 |
| fine-tune | 1.00 / 1.00 / .77 | .82 | 1.00 / 1.00 / .95 | .19 / .03 / .97 | .82 | 1.00 / 1.00 / .94 | .05 |
| gradient-ascent | .93 / .99 / .70 | .79 | .37 / 1.00 / .94 | .18 / .11 / 1.05 | .79 | 1.00 / 1.00 / .94 | .05 |
| random-label | .65 / .97 / .63 | .61 | .00 / 1.00 / .92 | .62 / .09 / 1.02 | .57 | .03 / .99 / .90 | .63 |
| salun | .65 / .96 / .62 | .63 | .00 / 1.00 / .91 | .53 / .10 / 1.02 | .59 | .03 / .99 / .91 | .64 |
| selective-synaptic-dampening | .81 / .91 / .68 | .76 | .18 / 1.00 / .94 | .28 / .21 / .90 | .74 | .77 / 1.00 / .94 | .25 |
| influence | .94 / .99 / .70 | .80 | .12 / 1.00 / .93 | .38 / .25 / 1.24 | .71 | .27 / .94 / .87 | .46 |
| boundary-shrink | .93 / .94 / .66 | .80 | .17 / 1.00 / .94 | - | - | .25 / .94 / .88 | .39 |
| scrub | .82 / .97 / .77 | .73 | .02 / 1.00 / .93 | - | - | .33 / 1.00 / .94 | .21 |
| datamodel-matching | .76 / .95 / .78 | .64 | .98 / 1.00 / .95 | .85 / .13 / .96 | .67 | 1.00 / 1.00 / .94 | .05 |
| label-agnostic | .82 / .82 / .69 | .74 | .07 / .86 / .78 | .55 / .39 / 1.11 | .60 | 1.00 / 1.00 / .94 | .05 |
| sharpness-aware | .81 / .99 / .71 | .74 | .00 / .98 / .89 | .20 / .08 / .95 | .80 | 1.00 / 1.00 / .94 | .05 |
| differentially-private | .38 / .48 / .50 | .50 | .98 / .77 / .74 | .76 / .73 / .82 | .54 | 1.00 / .81 / .77 | .05 |
| dp2unlearning | .57 / .89 / .80 | .46 | .00 / 1.00 / .94 | 1.02 / .11 / 1.01 | .57 | .38 / 1.00 / .94 | .49 |

"True label": accuracy, by true label, on the holdout images that carry the trigger. Datamodels of single examples say nothing
about what a whole class or a trigger teaches, where no example is missed as long as its like are there.

`canaries` (258 in, 242 out, wrongly labelled): the original answers all that were in as they are labelled, and 7 % of the
others; the one-run audit bounds its epsilon from below by 2.8 (error rate .025, delta 1e-5). Of differentially private
training with claims of 1, 4 and 16 it makes .2, .2 and .7.
"""

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

from muaudit import compute, examples
from muaudit.errors import UsageError
from muaudit.results import Frozen
from muaudit.testbed import derived, folders, kinds
from muaudit.testbed.classification import data
from muaudit.testbed.classification import derived as derived_classifiers
from muaudit.testbed.classification import method as methods
from muaudit.testbed.classification.boundary_shrink import BoundaryShrink
from muaudit.testbed.classification.data import Population, make_task, write_task
from muaudit.testbed.classification.datamodel_matching import DatamodelMatching
from muaudit.testbed.classification.derived import opened
from muaudit.testbed.classification.differentially_private import DifferentiallyPrivate
from muaudit.testbed.classification.do_nothing import DoNothing
from muaudit.testbed.classification.dp2unlearning import DP2Unlearning
from muaudit.testbed.classification.fine_tune import FineTune
from muaudit.testbed.classification.gradient_ascent import GradientAscent
from muaudit.testbed.classification.influence import Influence
from muaudit.testbed.classification.label_agnostic import LabelAgnostic
from muaudit.testbed.classification.method import Method, Situation, fitted
from muaudit.testbed.classification.random_label import RandomLabel
from muaudit.testbed.classification.retrain import Retrain
from muaudit.testbed.classification.salun import SalUn
from muaudit.testbed.classification.scrub import Scrub
from muaudit.testbed.classification.selective_synaptic_dampening import SelectiveSynapticDampening
from muaudit.testbed.classification.sharpness_aware import SharpnessAware
from muaudit.testbed.classification.sisa import Sisa
from muaudit.testbed.folders import Progress, completed, finished, one_thread
from muaudit.training import fitting, networks, recipes
from muaudit.training.networks import Provenance, save_network
from muaudit.training.recipes import TorchRecipe, rows_digest

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Retrain, DoNothing, Sisa, FineTune, GradientAscent, RandomLabel, SalUn, SelectiveSynapticDampening, Influence,
        BoundaryShrink, Scrub, DatamodelMatching, LabelAgnostic, SharpnessAware, DifferentiallyPrivate, DP2Unlearning,
    )
}  # fmt: skip
"""The unlearning methods by name."""

CLAIM = "claim.json"
"""Stands in the folder of a model of which differential privacy is claimed."""


class Testbed(Frozen):
    """A population, how its models are trained, and how the methods are set.

    Attributes:
        population: The examples.
        recipe: Architecture and training of every model; without normalisation, so that no model's inputs depend on others'.
        methods: Parameters of a method, by its name; what is not given stands as in its class.
        schedules: Other ways to train a retrain, by name: what they change of the recipe.
        strengths: Parameters of a weak and of a strong use of a method, by its name, beside those of `methods`.
    """

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for tests

    population: Population
    recipe: TorchRecipe
    methods: dict[str, dict[str, Any]] = {}
    schedules: dict[str, dict[str, Any]] = {}
    strengths: dict[str, dict[str, dict[str, Any]]] = {}


SCHEDULES: dict[str, dict[str, Any]] = {
    "long": {"steps": 800},
    "small-batches": {"batch_size": 24, "learning_rate": 0.05, "steps": 1100},
    "slow": {"learning_rate": 0.1, "steps": 600},
    "decayed": {"weight_decay": 5e-4},
}
"""How else retrains are trained: what is changed of the recipe."""

STRENGTHS: dict[str, dict[str, dict[str, Any]]] = {
    "fine_tune": {"weak": {"steps": 33}, "strong": {"steps": 200}},
    "gradient_ascent": {"weak": {"steps": 8}, "strong": {"steps": 48}},
    "random_label": {"weak": {"steps": 33}, "strong": {"steps": 200}},
    "salun": {"weak": {"steps": 33}, "strong": {"steps": 200}},
    "selective_synaptic_dampening": {"weak": {"alpha": 3.0}, "strong": {"alpha": 0.8}},
    "influence": {"weak": {"learning_rate": 2e-3}, "strong": {"learning_rate": 1.2e-2}},
    "boundary_shrink": {"weak": {"steps": 5}, "strong": {"steps": 30}},
    "scrub": {"weak": {"steps": 40, "max_steps": 7}, "strong": {"steps": 240, "max_steps": 40}},
    "datamodel_matching": {"weak": {"steps": 200}, "strong": {"steps": 1200}},
    "label_agnostic": {"weak": {"steps": 10}, "strong": {"steps": 60}},
    "sharpness_aware": {"weak": {"steps": 27}, "strong": {"steps": 160}},
}
"""Parameters of every approximate method's weak and strong use: a third of the steps, or of what counts, and twice that."""

_MLP = TorchRecipe(architecture="mlp", hidden=(256,), steps=400, learning_rate=0.2, normalise=False)
_CNN = TorchRecipe(architecture="cnn", width=8, steps=400, learning_rate=0.1, normalise=False)
_RESNET = TorchRecipe(architecture="resnet", width=4, steps=300, batch_size=32, learning_rate=0.1, normalise=False)
_PRIVATE = (DifferentiallyPrivate.name, DP2Unlearning.name)

PRESETS: dict[str, Testbed] = {
    "digits": Testbed(population=Population(), recipe=_MLP),
    "digits-cnn": Testbed(
        population=Population(),
        recipe=_CNN,
        methods={
            "gradient_ascent": {"steps": 10},
            "boundary_shrink": {"steps": 8},
            "scrub": {"learning_rate": 0.1},
            "sharpness_aware": {"alpha": 0.8},
        },
    ),
    "digits-resnet": Testbed(
        population=Population(),
        recipe=_RESNET,
        methods={
            "selective_synaptic_dampening": {"alpha": 2.5},
            "scrub": {"learning_rate": 0.1},
            "label_agnostic": {"steps": 10},
        },
    ),
    "digits-class": Testbed(
        population=Population(by="class", forget=80, retain=220, wrong_labels=0),
        recipe=_MLP,
        methods={
            "gradient_ascent": {"learning_rate": 0.03},
            "influence": {"learning_rate": 0.015},
            "scrub": {"max_steps": 40},
            "label_agnostic": {"steps": 100},
            "sharpness_aware": {"learning_rate": 0.02, "alpha": 0.4},
        },
    ),
    "digits-groups": Testbed(population=Population(by="group"), recipe=_MLP),
    "writers": Testbed(
        population=Population(by="group", forget=180, retain=300, holdout=360, group_size=6),
        recipe=_MLP,
        schedules=SCHEDULES,
        strengths=STRENGTHS,
    ),
    "tables": Testbed(population=Population(source="breast_cancer", forget=90, retain=190, holdout=280), recipe=_MLP),
    "regression": Testbed(
        population=Population(source="diabetes", forget=70, retain=150, holdout=220),
        recipe=_MLP.model_copy(update={"labels": "numbers", "learning_rate": 0.03}),
        methods={"gradient_ascent": {"steps": 5}, "sharpness_aware": {"steps": 20}},
    ),
    "canaries": Testbed(
        population=Population(by="canary", forget=500, retain=250, holdout=250, wrong_labels=0),
        recipe=_MLP.model_copy(update={"steps": 1000}),
        methods={name: {"epochs": 100, "batch_size": 128, "learning_rate": 1.0} for name in _PRIVATE},
    ),
    "poisoned": Testbed(
        population=Population(by="poison", forget=60, retain=240, wrong_labels=0),
        recipe=_MLP,
        methods={"influence": {"learning_rate": 0.015}},
    ),
}
"""Named testbeds: `digits` for most, in three architectures; a class, groups of examples (writers) or poisoned images to
forget; many small groups, for calibrations (`writers`); tables, and numbers to predict; and canaries, for audits of
differential privacy. What is set beside the methods' own defaults is what forgets at least part there and leaves the rest of
use."""


class Wanted(Frozen):
    """A model that is to be built.

    Attributes:
        name: Its folder's name.
        method: Name of its method; None for the original.
        parameters: Of the method, beside the testbed's.
        seed: Of its training; an unlearned model is made from the original of the same seed.
        schedule: Of a retrain: one of the testbed's schedules; its own where it is None.
    """

    name: str
    method: str | None
    parameters: dict[str, Any] = {}
    seed: int = 0
    schedule: str | None = None

    @property
    def source(self) -> "Wanted | None":
        """The original that it is made from; None for one that is trained from scratch."""
        if self.method is None or not METHODS[self.method].opens_original:
            return None
        return wanted(f"original-{self.seed}" if self.seed else "original")


def wanted(name: str, clusters: Sequence[str] = (), testbed: Testbed | None = None) -> Wanted:
    """What a model's name means.

    `original`; `reference-2`; `retrain`, another honest retrain; `retrain-left-in-half`, which saw half of the forgotten
    clusters all the same (also `one` and `tenth`); `retrain-long`, by another of the testbed's schedules; or a method's name,
    such as `fine-tune`, with `-weak` or `-strong` for its use at another of the testbed's strengths. A number at the end is a
    seed: `fine-tune-3` is made from `original-3`. The methods that claim differential privacy take the claim as well:
    `differentially-private-epsilon-4`. What is made of finished models (`fine-tune-3-4bit`) `muaudit.testbed.derived` reads.

    Args:
        name: The name.
        clusters: The forgotten clusters, in order; needed for `left-in`.
        testbed: Whose schedules and strengths there are; none without it.

    Returns:
        The model's description. References and retrains never share a seed.

    Raises:
        UsageError: The name means nothing.
    """
    found = None if testbed is None else kinds.read(name, [(one,) for one in clusters], testbed.schedules, testbed.strengths)
    if found is not None:
        return Wanted(name=name, **found)
    methods = {method.replace("_", "-"): method for method in METHODS}
    spelled = "|".join(["original", "reference", *methods])
    match = re.fullmatch(rf"({spelled})(?:-epsilon-(\d+(?:\.\d+)?))?(?:-(\d+))?", name.replace("_", "-"))
    kind, epsilon, number = match.groups() if match else (None, None, None)
    seed = int(number or 0)
    if kind == "original" and not epsilon:
        return Wanted(name=name, method=None, seed=seed)
    if kind == "reference" and number and not epsilon:
        return Wanted(name=name, method=Retrain.name, seed=seed)
    if kind in methods and (not epsilon or "epsilon" in METHODS[methods[kind]].model_fields):
        parameters = {"epsilon": float(epsilon)} if epsilon else {}
        return Wanted(
            name=name, method=methods[kind], parameters=parameters, seed=seed + (1_000 if kind == Retrain.name else 0)
        )
    raise UsageError(
        f"model {name!r}: not a model of this testbed; write original, reference-1 or a method: {', '.join(methods)} (a seed "
        "may follow; and after those of differential privacy, -epsilon-4)"
    )


def build(
    testbed: Testbed, out: Path, models: Sequence[str], *, jobs: int = 2, progress: Progress | None = None
) -> dict[str, Path]:
    """Writes the task files and builds the models that are not there yet.

    Args:
        testbed: What to build; `PRESETS` holds some.
        out: The folder for `forget.npz`, `retain.npz`, `holdout.npz` and one folder a model.
        models: Names that `wanted` understands; an original that one of them is made from is built too.
        jobs: Most processes, of one thread each; the models do not depend on it.
        progress: Called after each model.

    Returns:
        The task files by set, and the models' folders by name.

    Raises:
        UsageError: A name means nothing, or a folder in the way is not a testbed's.
    """
    task = make_task(testbed.population)
    made_of, names = derived.planned(models)
    clusters = list(dict.fromkeys(task.forget.clusters))
    asked = [wanted(name, clusters, testbed) for name in names]
    originals = [source for model in asked if (source := model.source)]
    every = {model.name: model for model in [*originals, *asked]}
    paths = write_task(task, out)
    # First what is trained from scratch, then what is made from an original.
    for stage in ([model for model in every.values() if not model.source], [model for model in every.values() if model.source]):
        missing = folders.missing(stage, lambda model: finished(out / model.name, _key(testbed, model)), progress)
        # A process takes longer to start than a few models to train.
        processes = min(jobs, len(missing) // 8)
        folders.make(missing, partial(_make, testbed, out), processes=processes, progress=progress)
    workshop = derived_classifiers.Workshop(testbed.population, testbed.recipe)
    derived.build(made_of, out, workshop, jobs=jobs, progress=progress)
    return paths | {name: out / name for name in (*every, *(one.name for one in made_of))}


def _scheduled(testbed: Testbed, model: Wanted) -> TorchRecipe:
    """The recipe as a model is to be trained by it."""
    return testbed.recipe.model_copy(update=testbed.schedules.get(model.schedule or "", {}))


@cache
def _code(method: str | None) -> str:
    """Digest of all code that the weights of a model depend on."""
    modules = [compute, examples, folders, fitting, networks, recipes, data, methods]
    made = "".join(inspect.getsource(function) for function in (_make, _module))
    files = [Path(str(module.__file__)) for module in modules]
    if method is not None:
        others = (Path(__file__).name, "derived.py")
        files += [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name not in others]
    sources = b"".join(path.read_bytes() for path in files)
    versions = [metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "opacus")]
    return hashlib.sha256(sources + f"{made}{versions}".encode()).hexdigest()


def _key(testbed: Testbed, model: Wanted) -> str:
    """Digest of everything that a model is made from."""
    settings = testbed.model_dump(mode="json", include={"population"}) | {"method": testbed.methods.get(model.method or "")}
    made = model.model_dump(mode="json", exclude={"name", "schedule"})
    parts = [settings, _scheduled(testbed, model).model_dump(mode="json"), made, _code(model.method)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(testbed: Testbed, out: Path, model: Wanted) -> str:
    """Makes one model; its folder appears only when it is complete."""
    with one_thread(), completed(out / model.name, _key(testbed, model)) as folder:
        folder.mkdir()
        _module(testbed, model, out, folder)
    return model.name


def _module(testbed: Testbed, model: Wanted, out: Path, folder: Path) -> None:
    """Makes one model and writes it, with what is claimed of it."""
    task, recipe = make_task(testbed.population), _scheduled(testbed, model)
    rows = np.isin(np.arange(len(task.pool)), task.rows("retain"))
    network, claim = recipe.network(task.pool), None
    if model.method is None:
        rows[task.rows("forget")] = True
        module = fitted(recipe, task.pool, rows, model.seed)
    else:
        method = METHODS[model.method](**(testbed.methods.get(model.method, {}) | model.parameters))
        source = model.source
        module = method.unlearn(Situation(task, recipe, lambda: opened(out / source.name if source else out), model.seed))
        network, claim = method.network(recipe, task.pool), method.claim(task.forget, task.retain)
    saved = Provenance(
        outputs_kind=task.outputs,
        recipe=recipe.content_digest(),
        seed=str(model.seed),
        rows=rows_digest(task.pool.take(rows).ids),
        procedure=None if model.method in (None, Retrain.name) else method.content_digest(),
    )
    save_network(module, network, folder, saved)
    if claim:
        (folder / CLAIM).write_bytes(claim.canonical() + b"\n")
