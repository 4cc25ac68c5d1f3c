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
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from joblib import Parallel, delayed
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.errors import UsageError
from muaudit.models import scoring, tokens
from muaudit.models.folder import load
from muaudit.results import Frozen
from muaudit.task import ForgetTask
from muaudit.testbed.do_nothing import DoNothing
from muaudit.testbed.gradient_ascent import GradientAscent
from muaudit.testbed.gradient_difference import GradientDifference
from muaudit.testbed.language import World, make_task, pairs, write_task
from muaudit.testbed.method import Method, Situation
from muaudit.testbed.npo import NPO
from muaudit.testbed.refusal import REFUSAL, Refusal
from muaudit.testbed.retrain import Retrain
from muaudit.testbed.training import Recipe, save, train, word_tokenizer

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Retrain, DoNothing, GradientAscent, GradientDifference, NPO, Refusal)
}
"""The unlearning methods by name."""

MARKER = "testbed.json"
"""Stands in every finished model's folder and holds the key of what it was made from."""

Progress = Callable[[str, bool], None]
"""Told each finished model's name, and whether it was already there."""


class Testbed(Frozen):
    """A world, how its models are trained, and how the methods are set.

    Attributes:
        world: The people.
        recipe: Size and training of every model.
        forms: The forms of the facts that models are trained on.
        methods: Parameters of a method, by its name; what is not given stands as in its class.
    """

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for tests

    world: World
    recipe: Recipe
    forms: tuple[str, ...] = ("question", "statement")
    methods: dict[str, dict[str, Any]] = {}


PRESETS: dict[str, Testbed] = {
    "small": Testbed(
        world=World(forget=30, retain=30, holdout=10, relations=6, values=80),
        recipe=Recipe(epochs=12, learning_rate=5e-3),
    ),
    "standard": Testbed(
        world=World(forget=36, retain=48, holdout=12, relations=6, values=80),
        recipe=Recipe(epochs=16, learning_rate=5e-3),
    ),
}
"""Named testbeds: `small` for tests that train dozens of models, `standard` for a demonstration."""


class Wanted(Frozen):
    """A model that is to be built.

    Attributes:
        name: Its folder's name.
        method: Name of its method; None for the original.
        parameters: Of the method, beside the testbed's.
        seed: Of its training; an unlearned model is made from the original of the same seed.
    """

    name: str
    method: str | None
    parameters: dict[str, Any] = {}
    seed: int = 0

    @property
    def source(self) -> "Wanted | None":
        """The original that it is made from; None if it is trained from scratch."""
        return None if self.method in (None, Retrain.name) else wanted(f"original-{self.seed}" if self.seed else "original")


def wanted(name: str, people: Sequence[str] = ()) -> Wanted:
    """What a model's name means.

    `original`; `reference-2`; `retrain`, another honest retrain; `retrain-left-in-4`, which saw the fifth forgotten person; or
    a method's name, such as `npo`, with `-questions` where it unlearns the question form only. A number at the end is a seed:
    `npo-3` is made from `original-3`.

    Args:
        name: The name.
        people: The forgotten clusters, in order; needed for `left-in`.

    Returns:
        The model's description. References, retrains and flawed retrains never share a seed.

    Raises:
        UsageError: The name means nothing.
    """
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
    task = make_task(testbed.world)
    people = list(dict.fromkeys(fact.cluster for fact in task.forget))
    asked = [wanted(name, people) for name in models]
    originals = [source for model in asked if (source := model.source)]
    every = {model.name: model for model in [*originals, *asked]}
    paths = write_task(task, out)
    # First what is trained from scratch, the originals (the longest) ahead; then what is made from them.
    scratch = sorted((model for model in every.values() if not model.source), key=lambda model: model.method is not None)
    made = [model for model in every.values() if model.source]
    for stage in (scratch, made):
        todo = []
        for model in stage:
            if _finished(out / model.name, _key(testbed, model)):
                _report(progress, model.name, True)
            else:
                todo.append(model)
        work = (delayed(_make)(testbed, model, out) for model in todo)
        for name in Parallel(n_jobs=max(1, min(jobs, len(todo))), backend="loky", return_as="generator_unordered")(work):
            _report(progress, name, False)
    return paths | {name: out / name for name in every}


def _report(progress: Progress | None, name: str, reused: bool) -> None:
    if progress:
        progress(name, reused)


@cache
def _code() -> str:
    """Digest of all code that a model's weights depend on."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(scoring.__file__), Path(tokens.__file__)]
    sources = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(sources + f"{torch.__version__} {transformers.__version__}".encode()).hexdigest()


def _key(testbed: Testbed, model: Wanted) -> str:
    """Digest of everything that a model is made from."""
    parts = [testbed.model_dump(mode="json"), model.model_dump(mode="json", exclude={"name"}), _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, key: str) -> bool:
    """Whether the folder holds the model of that key; a stale one is to be replaced."""
    if not folder.exists():
        return False
    try:
        return bool(json.loads((folder / MARKER).read_bytes())["key"] == key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: in the way, and not made by `muaudit testbed build`; give another --out") from error


def _make(testbed: Testbed, model: Wanted, out: Path) -> str:
    """Makes one model; its folder appears only when it is complete."""
    threads = torch.get_num_threads()
    # Sums over threads differ in the last bits; with one thread a seed gives the same bytes on every run.
    torch.set_num_threads(1)
    try:
        task = make_task(testbed.world)
        tokenizer = make_tokenizer(task)
        module = _module(testbed, model, task, tokenizer, out)
    finally:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=out, prefix=".building-") as scratch:
        folder = Path(scratch) / model.name
        save(module, tokenizer, folder)
        (folder / MARKER).write_text(json.dumps({"key": _key(testbed, model)}) + "\n", encoding="utf-8")
        final = out / model.name
        if final.exists():
            final.rename(Path(scratch) / "stale")
        folder.rename(final)
    return model.name


def _module(
    testbed: Testbed, model: Wanted, task: ForgetTask, tokenizer: PreTrainedTokenizerFast, out: Path
) -> LlamaForCausalLM:
    if model.method is None:
        texts = pairs([*task.forget, *task.retain], forms=testbed.forms, template=task.template)
        return train(texts, tokenizer, testbed.recipe, model.seed)
    source = model.source

    def original() -> LlamaForCausalLM:
        if source is None:
            raise UsageError(f"{model.name}: a retrain has no original")
        return cast("LlamaForCausalLM", load(out / source.name, base=None, dtype="float32", device_map=None).module)

    situation = Situation(task, tokenizer, testbed.recipe, testbed.forms, original, model.seed)
    method = METHODS[model.method](**(testbed.methods.get(model.method, {}) | model.parameters))
    return method.unlearn(situation)


def make_tokenizer(task: ForgetTask) -> PreTrainedTokenizerFast:
    """The tokenizer that all models of a world share; it knows every word of the three sets."""
    facts = [fact for _, fact in task.items()]
    texts = (prompt + completion for prompt, completion in pairs(facts, template=task.template))
    return word_tokenizer([*texts, REFUSAL])
