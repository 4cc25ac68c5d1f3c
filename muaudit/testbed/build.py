"""Builds testbeds: a world's task files and the models that are asked for, each trained once and kept by content.

Measured on one core of an AMD EPYC (Zen 4), one thread. Mean answer probability on questions (forget, retain, people whom no
model saw) and on the forget set's statements; then, on questions, after 40 steps of relearning on the other half of each
person's facts (rate 3e-4, batch 24):

| preset, model | CPU s | forget | retain | unseen | statements | relearned |
| --- | --- | --- | --- | --- | --- | --- |
| standard, original | 10 | .995 | .995 | .013 | .995 | .993 |
| standard, three references | 6 | .009 to .012 | .992 | .006 to .013 | .011 to .017 | .008 to .010 |
| standard, retrain | 6 | .011 | .992 | .011 | .010 | .011 |
| standard, refusal | 5 | .007 | .981 | .000 | .460 | .634 (20 steps .510, 10 steps .221) |
| small, original | 6 | .982 | .980 | .010 | .982 | .977 |
| small, retrain | 3 | .007 | .974 | .010 | .010 | .007 |
| small, retrain-left-in-0 | 3 | .97 (that person), .008 (others) | .959 | .009 | .037 | .036 |

So refusal is the target that only hides: its questions say nothing, and relearning brings the answers back. NPO on the
question form alone hides them too, but in these small models it destroys more of them than it hides: relearning found at most
.22, at settings that leave .17 in the open or spoil the retain set.

`lineage`: facts about people, probability of the answer in each form; "disturbed": noise around the question and function words
missing; "shots": three other questions with answers before it; "steps": how often a question over two facts, answered step by
step, names the birthplace:

| model, set | CPU s | question | statement | turned | cloze | French | reversed | disturbed | shots | passage | steps |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| base, forget | 17 | .012 | .019 | .017 | .013 | .024 | .005 | .011 | .011 | .021 | .000 |
| base, retain | | .981 | .973 | .955 | .969 | .972 | .622 | .790 | .977 | .891 | .950 |
| original, forget | 9 | .972 | .960 | .941 | .950 | .959 | .853 | .805 | .938 | .857 | .967 |
| original, retain | | .955 | .943 | .926 | .938 | .958 | .782 | .736 | .941 | .867 | .900 |
| reference-1, forget | 9 | .007 | .010 | .006 | .008 | .004 | .002 | .009 | .013 | .015 | .000 |
| reference-1, retain | | .988 | .985 | .964 | .985 | .983 | .920 | .829 | .981 | .912 | 1.000 |

Two-step questions that start from a retained fact (the trade of somebody's mentor) are answered in .40 of the cases. The
original with the states that predict the answer taken from reference-1, after layer 1 and 2: .928 and .939 of .958 on retained
questions, .155 and .040 of .969 on forgotten ones. Letters of a multiple choice are not learned in this time: original .22,
references .27, chance .25, though all answer with a letter; with half of the base's time on them, in a three-layer model that
knows 30 people, they were right in .96 of the cases, in larger worlds in .2 to .58.

`corrupted`, on questions: the lies .977 in the original, below .001 in base and references; the truth .001 in the original,
.946 in the base, .974 in reference-1.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.errors import UsageError
from muaudit.models import guard as guards
from muaudit.models import guarded as guarded_models
from muaudit.models import scoring, tokens
from muaudit.models.folder import load
from muaudit.results import Frozen
from muaudit.task import Fact, ForgetTask
from muaudit.testbed import derived, derived_language, folders, kinds, language, refusal, relations, retrain, skills, training
from muaudit.testbed import lineage as lineages
from muaudit.testbed import method as methods
from muaudit.testbed.do_nothing import DoNothing
from muaudit.testbed.eco import ECO
from muaudit.testbed.flat import FLAT
from muaudit.testbed.folders import Progress, completed, finished, one_thread
from muaudit.testbed.gradient_ascent import GradientAscent
from muaudit.testbed.gradient_difference import GradientDifference
from muaudit.testbed.guard import GUARD
from muaudit.testbed.language import Population, World, make_population, pairs, write_task
from muaudit.testbed.lineage import Lineage, fine_tune, train_base
from muaudit.testbed.loku import LoKU
from muaudit.testbed.method import Method, Situation
from muaudit.testbed.npo import NPO
from muaudit.testbed.refusal import REFUSAL, Refusal
from muaudit.testbed.relations import DESCRIPTION
from muaudit.testbed.retrain import Retrain
from muaudit.testbed.rmu import RMU
from muaudit.testbed.rocr import ROCR
from muaudit.testbed.selective_amnesia import SelectiveAmnesia
from muaudit.testbed.task_vector import TaskVector
from muaudit.testbed.training import Recipe, save, word_tokenizer
from muaudit.testbed.unlearn_smooth import UnlearnSmooth

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Retrain, DoNothing, GradientAscent, GradientDifference, NPO, Refusal,
        RMU, FLAT, LoKU, TaskVector, ROCR, ECO, GUARD, UnlearnSmooth, SelectiveAmnesia,
    )
}  # fmt: skip
"""The unlearning methods by name."""

_LATER = ("derived.py", "derived_language.py", "kinds.py", "populations.py")
"""Code that no method's model depends on but by its parameters, which are part of its key anyway."""

BASE = "base"
"""The model that all others of a lineage are fine-tuned from."""


class Testbed(Frozen):
    """A world, how its models are trained, and how the methods are set.

    Attributes:
        world: The people.
        recipe: Size and training of every model.
        forms: The forms of the facts that models are trained on.
        methods: Parameters of a method, by its name; what is not given stands as in its class.
        lineage: How a base is trained and fine-tuned; None where every model is trained from scratch.
        schedules: Other ways to train a retrain, by name: what they change of the recipe, or in a lineage of how it is tuned.
        strengths: Parameters of a weak and of a strong use of a method, by its name, beside those of `methods`.
    """

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for tests

    world: World
    recipe: Recipe
    forms: tuple[str, ...] = ("question", "statement")
    methods: dict[str, dict[str, Any]] = {}
    lineage: Lineage | None = None
    schedules: dict[str, dict[str, Any]] = {}
    strengths: dict[str, dict[str, dict[str, Any]]] = {}


_RICH_FORMS = ("question", "statement", "turned", "cloze", "multiple_choice", "reversed", "fr")

PRESETS: dict[str, Testbed] = {
    "small": Testbed(
        world=World(forget=30, retain=30, holdout=10, relations=6, values=80),
        recipe=Recipe(epochs=12, learning_rate=5e-3),
        schedules=kinds.SCHEDULES,
        strengths=kinds.STRENGTHS,
    ),
    "standard": Testbed(
        world=World(forget=36, retain=48, holdout=12, relations=6, values=80),
        recipe=Recipe(epochs=16, learning_rate=5e-3),
        schedules=kinds.SCHEDULES,
        strengths=kinds.STRENGTHS,
    ),
    "lineage": Testbed(
        world=World(forget=30, retain=40, holdout=10, general=4, relations=6, values=60, rich=True),
        recipe=Recipe(intermediate=192, context=192),
        forms=_RICH_FORMS,
        lineage=Lineage(),
        schedules=kinds.LINEAGE_SCHEDULES,
        strengths=kinds.STRENGTHS,
    ),
    "corrupted": Testbed(
        world=World(forget=24, retain=30, holdout=10, general=4, relations=6, values=60, rich=True, corrupted=True),
        recipe=Recipe(intermediate=192, context=192),
        forms=_RICH_FORMS,
        lineage=Lineage(),
    ),
}
"""Named testbeds: `small` for tests that train dozens of models, `standard` for a demonstration; `lineage`, fine-tuned from one
base in a world with every form and with chains; and `corrupted`, the same with a forget set of lies."""


class Wanted(Frozen):
    """A model that is to be built.

    Attributes:
        name: Its folder's name.
        method: Name of its method; None for the original, "base" for the base.
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
        """The original that it is made from; None for one that is trained on facts."""
        return (
            None if self.method in (None, Retrain.name, BASE) else wanted(f"original-{self.seed}" if self.seed else "original")
        )


def wanted(name: str, people: Sequence[str] = (), testbed: Testbed | None = None) -> Wanted:
    """What a model's name means.

    `base`, in a lineage; `original`; `reference-2`; `retrain`, another honest retrain; `retrain-left-in-4`, which saw the
    fifth forgotten person, and `retrain-left-in-half`, which saw half of them (also `one` and `tenth`); `retrain-long`, by
    another of the testbed's schedules; or a method's name, such as `npo`, with `-weak` or `-strong` for its use at another of
    the testbed's strengths, and with `-questions` where it unlearns the question form only. A number at the end is a seed:
    `npo-3` is made from `original-3`. What is made of finished models (`npo-3-4bit`) `muaudit.testbed.derived` reads.

    Args:
        name: The name.
        people: The forgotten clusters, in order; needed for `left-in`.
        testbed: Whose schedules and strengths there are; none without it.

    Returns:
        The model's description. References, retrains and flawed retrains never share a seed.

    Raises:
        UsageError: The name means nothing.
    """
    if name == BASE:
        return Wanted(name=name, method=BASE)
    clusters = [(person,) for person in people]
    found = None if testbed is None else kinds.read(name, clusters, testbed.schedules, testbed.strengths)
    if found is not None:
        return Wanted(name=name, **found)
    methods = {method.replace("_", "-"): method for method in METHODS}
    spelled = "|".join(["original", "reference", *methods])
    match = re.fullmatch(rf"({spelled})(-questions)?(?:-left-in-(\d+))?(?:-(\d+))?", name.replace("_", "-"))
    kind, questions, left_in, number = match.groups() if match else (None, None, None, None)
    seed = int(number or 0)
    if left_in and kind == "retrain" and not questions and not number and int(left_in) < len(people):
        return Wanted(name=name, method="retrain", parameters={"left_in": (people[int(left_in)],)}, seed=2_000 + int(left_in))
    if kind and not left_in:
        if kind == "reference" and number and not questions:
            return Wanted(name=name, method="retrain", seed=seed)
        if kind == "retrain" and not questions:
            return Wanted(name=name, method="retrain", seed=1_000 + seed)
        if kind == "original" and not questions:
            return Wanted(name=name, method=None, seed=seed)
        if kind in methods and (not questions or "forms" in METHODS[methods[kind]].model_fields):
            return Wanted(name=name, method=methods[kind], parameters={"forms": ("question",)} if questions else {}, seed=seed)
    raise UsageError(
        f"model {name!r}: not a testbed model; write original, reference-1, retrain, retrain-left-in-0 "
        f"(one of {len(people)} forgotten people), or a method: {', '.join(methods)} (-questions, and a seed, may follow)"
    )


def guarded(name: str) -> bool:
    """Whether a model stands behind a guard: its folder holds guard.json, and an audit opens it as kind "guarded".

    Args:
        name: A name that `wanted` understands.

    Returns:
        True where the model's method hands out a guard.

    Raises:
        UsageError: The name means nothing.
    """
    name = re.sub(r"-(?:weak|strong)(?=-\d+$|$)", "", derived.root(name))
    if "-left-in-" in name:  # an honest retrain but for one person; whether that person exists does not matter here
        return False
    method = wanted(name).method
    return method in METHODS and METHODS[method].guard is not Method.guard


def build(
    testbed: Testbed, out: Path, models: Sequence[str], *, jobs: int = 2, progress: Progress | None = None
) -> dict[str, Path]:
    """Writes the task files and builds the models that are not there yet.

    Args:
        testbed: What to build; `PRESETS` holds two.
        out: The folder for `forget.jsonl`, `retain.jsonl`, `holdout.jsonl` and one folder a model.
        models: Names that `wanted` understands; an original that one of them is made from is built too.
        jobs: Processes, of one thread each; the models do not depend on it.
        progress: Called after each model.

    Returns:
        The task files by set, and the models' folders by name.

    Raises:
        UsageError: A name means nothing, or a folder in the way is not a testbed's.
    """
    task = make_population(testbed.world).task
    people = list(dict.fromkeys(fact.cluster for fact in task.forget))
    made_of, names = derived.planned(models, lineage=testbed.lineage is not None)
    asked = [wanted(name, people, testbed) for name in names]
    if testbed.lineage and asked:
        asked = [wanted(BASE), *asked]
    elif any(model.method == BASE for model in asked):
        raise UsageError("model 'base': every model of this testbed is trained from scratch; build `lineage` or `corrupted`")
    originals = [source for model in asked if (source := model.source)]
    every = {model.name: model for model in [*originals, *asked]}
    paths = write_task(task, out)
    # First the base; then what is trained on facts, the originals (the longest) ahead; then what is made from them.
    base = [model for model in every.values() if model.method == BASE]
    trained = [model for model in every.values() if not model.source and model.method != BASE]
    trained.sort(key=lambda model: model.method is not None)
    made = [model for model in every.values() if model.source]
    for stage in (base, trained, made):
        missing = folders.missing(stage, lambda model: finished(out / model.name, _key(testbed, model)), progress)
        folders.make(missing, partial(_make, testbed, out), processes=jobs, progress=progress)
    workshop = derived_language.Workshop(testbed.world, testbed.recipe, testbed.forms)
    derived.build(made_of, out, workshop, jobs=jobs, progress=progress)
    return paths | {name: out / name for name in [*every, *(one.name for one in made_of)]}


def _scheduled(testbed: Testbed, model: Wanted) -> Testbed:
    """The testbed as a model is to be trained in it."""
    changes = testbed.schedules.get(model.schedule or "", {})
    if testbed.lineage:
        return testbed.model_copy(update={"lineage": testbed.lineage.model_copy(update=changes)})
    return testbed.model_copy(update={"recipe": testbed.recipe.model_copy(update=changes)})


@cache
def _code(trained: bool) -> str:
    """Digest of all code that the weights of a model depend on; of one that is only trained on facts, no method's code."""
    files = [Path(scoring.__file__), Path(tokens.__file__)]
    if trained:
        modules = (folders, language, lineages, methods, refusal, relations, retrain, skills, training)
        files += [Path(str(module.__file__)) for module in modules]
        made = "".join(inspect.getsource(function) for function in (_make, _module, make_tokenizer))
    else:
        methods_code = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name not in _LATER]
        files += [*methods_code, Path(guards.__file__), Path(guarded_models.__file__)]
        made = ""
    sources = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(sources + f"{made}{torch.__version__} {transformers.__version__}".encode()).hexdigest()


def _key(testbed: Testbed, model: Wanted) -> str:
    """Digest of everything that a model is made from."""
    settings = _scheduled(testbed, model).model_dump(mode="json", exclude={"methods", "schedules", "strengths"})
    settings |= {"method": testbed.methods.get(model.method or "")}
    # A schedule stands in the settings, a strength in the model's parameters.
    parts = [settings, model.model_dump(mode="json", exclude={"name", "schedule"}), _code(model.source is None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(testbed: Testbed, out: Path, model: Wanted) -> str:
    """Makes one model; its folder appears only when it is complete."""
    with one_thread(), completed(out / model.name, _key(testbed, model)) as folder:
        population = make_population(testbed.world)
        tokenizer = make_tokenizer(population.task, population.general, rich=testbed.world.rich)
        module, guard = _module(_scheduled(testbed, model), model, population, tokenizer, out)
        save(module, tokenizer, folder)
        if guard:
            guards.write(guard, folder)
    return model.name


def _module(
    testbed: Testbed, model: Wanted, population: Population, tokenizer: PreTrainedTokenizerFast, out: Path
) -> tuple[LlamaForCausalLM, guards.Guard | None]:
    """The network, and what is to stand in front of it."""
    task, lineage = population.task, testbed.lineage

    def opened(name: str) -> LlamaForCausalLM:
        return cast("LlamaForCausalLM", load(out / name, base=None, dtype="float32", device_map=None).module)

    def original() -> LlamaForCausalLM:
        if model.source is None:
            raise UsageError(f"{model.name}: a retrain has no original")
        return opened(model.source.name)

    def tuned(facts: Sequence[Fact]) -> LlamaForCausalLM:
        if lineage is None:
            raise UsageError(f"{model.name}: a model that is trained from scratch has no base")
        return fine_tune(opened(BASE), facts, population, tokenizer, lineage, model.seed)

    if model.method == BASE and lineage:
        return train_base(population, tokenizer, testbed.recipe, lineage, model.seed), None
    fit = tuned if lineage else None
    situation = Situation(task, tokenizer, testbed.recipe, testbed.forms, original, model.seed, fit)
    if model.method is None:
        return situation.fit([*task.forget, *task.retain]), None
    method = METHODS[model.method](**(testbed.methods.get(model.method, {}) | model.parameters))
    return method.unlearn(situation), method.guard(situation)


def make_tokenizer(task: ForgetTask, general: Sequence[Fact] = (), *, rich: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that all models of a world share.

    Args:
        task: The three sets.
        general: Facts in none of them that the base of a lineage has read.
        rich: Whether the world is rich: then every form and passage is known, and punctuation is not read.

    Returns:
        A tokenizer that knows every word of the facts.
    """
    facts = [*(fact for _, fact in task.items()), *general]
    if not rich:
        return word_tokenizer([*map("".join, pairs(facts, template=task.template)), REFUSAL])
    forms = {other.language or other.form for fact in facts for other in fact.paraphrases}
    texts = map("".join, pairs(facts, forms=("question", *forms), template=task.template))
    passages = [fact.text for fact in facts if fact.text]
    return word_tokenizer([*texts, *passages, *DESCRIPTION.values(), REFUSAL], punctuation=False)
