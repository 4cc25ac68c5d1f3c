"""`muaudit init`: a commented audit.toml from a model folder and data files."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from muaudit.errors import UsageError
from muaudit.policy import shipped
from muaudit.preset import attacks

_TEMPLATE = """\
# audit.toml: one audit. Paths start from this file's folder. `muaudit plan` freezes it, `muaudit scan` runs it.
{preset}
[task]
{task}
[target]                          # the model that is claimed to have unlearned the forget set
kind = "{kind}"
path = {target}
{options}
{original}
{references}
[policy]
name = {policy:<26} # a shipped policy, or the path of your own
# margins = {{ {margin} = 0.05 }}
# partial = true                  # run it even where it cannot pass: too little data, or a required attack left out

{attacks}
[run]
{seed}
device = "auto"
threads = 1                       # fixed, because sums differ in their last bits with the number of threads
workers = {workers}                       # measurements at a time
out = {results}
{store}{signing}"""

_FACTS = """\
kind = "facts"                    # JSON Lines: {{"id", "cluster", "question", "answer", ...}}, one fact a line
forget = {forget}
{retain}{holdout}# How a question becomes a prompt; "chat" uses the tokenizer's own chat template.
template = "Question: {{question}} Answer:"
"""

_EXAMPLES = """\
kind = "classification"           # or "regression"; npz, parquet or CSV files, image folders, Hugging Face datasets on disk
forget = {forget}
{retain}{holdout}# columns = {{ label = "species", cluster = "person" }}    # as the files call them
"""

_IMAGES = """\
kind = "text_to_image"            # JSON Lines or CSV: {{"prompt", "concept", "seed", "guidance", "image", ...}}, or I2P's
forget = {forget}
{retain}{holdout}# concept = "nudity"              # what a forget prompt asks for where its file does not say
# known = "known.jsonl"           # images whose concept is known: the evaluators' own errors then widen the intervals
steps = 50                        # of the sampler, "ddim" unless you say sampler = "lms", "euler" or "dpm_solver"

{evaluators}
"""

_EVALUATOR = """\
[[task.evaluators]]               # says whether a concept is in an image; two or more have to agree
kind = "classifier"               # classifier | clip | detector | python
path = {path}
# labels = {{ church = 497 }}       # a concept's class, where the classifier calls it something else
"""

_PIPELINE = """\
# dtype = "float32"               # float32 | bfloat16 | float16
# batch_size = 16                 # images at a time
# attention_slicing = false
"""

_LANGUAGE_MODEL = """\
# base = "models/base"            # when path is a PEFT adapter
# dtype = "auto"                  # auto | float32 | bfloat16 | float16
# device_map = "auto"             # spread a large model over devices
# batch_size = 64
"""

_CLASSIFIER = """\
# factory = "models.py:make"      # when path is the weights of a network of your own
# batch_size = 512
"""

_TRAINING = """
# [recipe]                        # how references and shadow models are trained: muaudit reference, muaudit shadow
# kind = "torch"                  # torch | sklearn | python
# architecture = "mlp"            # mlp | cnn | resnet
# steps = 400
# learning_rate = 0.1
# [shadows]                       # models trained on random halves of all examples, which the strongest attacks need
# count = 64
# [procedure]                     # the vendor's unlearning procedure, for the attacks that try it out; it is run
# function = "vendor.py:unlearn"
"""

_ATTACKS = """\
[attacks.memorization]            # every parameter: muaudit attacks memorization
[attacks.relearning]
budgets = [5, 10, 20, 40]         # optimiser steps
learning_rate = 3e-4              # small models from scratch; 1e-5 is usual for full fine-tuning of 7B models, 2e-4 for LoRA
# lora_rank = 16                  # 0 trains all weights
# [attacks.relearning_benign]     # a second entry of one attack
# attack = "relearning"
# train_on = "benign"
"""

_CLASSIFIER_ATTACKS = """\
[attacks.unlearning_metrics]      # every parameter: muaudit attacks unlearning_metrics
[attacks.lira]                    # the strongest membership attack; skipped, and the report says so, without [shadows]
[attacks.population]              # membership without shadow models; much weaker
"""

_IMAGE_ATTACKS = """\
[attacks.retention]               # every parameter: muaudit attacks retention
[attacks.seed_search]             # the plain prompts with other seeds
[attacks.unlearndiffatk]          # a few tokens before the prompt, found by gradient
[attacks.soft_prompt]             # vectors before the prompt, found likewise
[attacks.concept_inversion]       # a new word whose vector is learnt from images of the concept
[attacks.concept_relearning]      # a few training steps on a few images
"""

_NO_PRESET = "# preset = {preset:<22} # the whole battery at once; `muaudit attacks` lists attacks and presets\n"

_NO_RETAIN = '# retain = "retain"               # another file like it; shows collateral damage\n'

_NO_ORIGINAL = """\
# [original]                      # before unlearning: shows that the attacks can see the knowledge where it certainly is
# kind = "{kind}"
# path = "models/original"
"""

_NO_REFERENCE = """\
[[references]]                    # retrained without the forget set; at least one, better three
kind = "{kind}"
path = "models/retrained-1"
"""

_NO_SEED = """\
# seed = "2026"                   # fixes what is drawn; without it, `muaudit plan` draws a seed that nobody can foresee"""

_NO_KEY = """
# [signing]                       # made by: muaudit keygen auditor
# key = "auditor.key"
"""


_PRESET_ATTACKS = "# {section:<31} # a section here changes the preset's\n"

_PARTS = {
    "causal_lm": {
        "preset": "language",
        "policy": "standard",
        "margin": "memorization",
        "task": _FACTS,
        "options": _LANGUAGE_MODEL,
        "attacks": _ATTACKS,
    },
    "classifier": {
        "preset": "classification",
        "policy": "classification",
        "margin": "lira",
        "task": _EXAMPLES,
        "options": _CLASSIFIER + _TRAINING,
        "attacks": _CLASSIFIER_ATTACKS,
    },
    "diffusion": {
        "preset": "diffusion",
        "policy": "diffusion",
        "margin": "soft_prompt",
        "task": _IMAGES,
        "options": _PIPELINE,
        "attacks": _IMAGE_ATTACKS,
    },
}
"""What differs between kinds of models."""


def _from(folder: Path, path: Path) -> str:
    """A path as TOML writes it, from the folder."""
    return json.dumps(os.path.relpath(path, folder), ensure_ascii=False)


def _create(out: Path, text: str) -> None:
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{out}: is there already; remove it or choose another name with --out") from error
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error


def _refuse_missing(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.exists():
            raise UsageError(f"{path}: no such file or folder; give the path of something that is there")


def _files(
    told: Callable[[Path], str], forget: Path, retain: Path | None, holdout: Path | None, evaluators: Sequence[Path]
) -> dict[str, str]:
    """The lines of `[task]` that name files."""
    judges = [told(path) for path in evaluators] or ['"models/classifier"']
    return {
        "forget": told(forget),
        "retain": f"retain = {told(retain)}\n" if retain else _NO_RETAIN,
        "holdout": f"holdout = {told(holdout)}\n" if holdout else "",
        "evaluators": "\n".join(_EVALUATOR.format(path=path) for path in judges),
    }


def write(
    out: Path, *, target: Path, forget: Path, retain: Path | None, holdout: Path | None, original: Path | None,
    references: Sequence[Path], key: Path | None, results: str = "audit", store: str | None = None, workers: int = 1,
    preset: str | None = None, kind: Literal["causal_lm", "classifier", "diffusion"] = "causal_lm",
    evaluators: Sequence[Path] = (), seed: str | None = None,
) -> Path:  # fmt: skip
    """Writes a commented audit.toml.

    Args:
        out: The file to write; must not exist.
        target: The target's folder.
        forget: The forget set.
        retain: The retain set.
        holdout: The holdout set.
        original: The original's folder.
        references: The references' folders; without any, a commented place for them.
        key: The auditor's private key.
        results: Folder of the results, from the file's folder.
        store: Folder of what several audits share; each has its own by default.
        workers: Measurements at a time.
        preset: A named set of attacks; a few by default.
        kind: What the models are.
        evaluators: Classifiers that say whether a concept is in an image.
        seed: A fixed seed; drawn when the plan is made by default.

    Returns:
        The file.

    Raises:
        UsageError: The file is there already, or a given path is not.
    """
    _refuse_missing(target, forget, retain, holdout, original, *references, key, *evaluators)
    told, parts = partial(_from, out.parent), _PARTS[kind]
    models = [f'[[references]]\nkind = "{kind}"\npath = {told(path)}\n' for path in references]
    files = _files(told, forget, retain, holdout, evaluators)
    if preset is not None:
        attacks(preset)  # refuses an unknown name before anything is written
    text = _TEMPLATE.format(
        policy=json.dumps(preset if preset in shipped() else parts["policy"]),
        kind=kind,
        task=parts["task"].format(**files),
        options=parts["options"],
        preset=f"preset = {json.dumps(preset)}\n" if preset else _NO_PRESET.format(preset=json.dumps(parts["preset"])),
        margin=parts["margin"],
        attacks=_PRESET_ATTACKS.format(section=f"[attacks.{parts['margin']}]") if preset else parts["attacks"],
        target=told(target),
        original=f'[original]\nkind = "{kind}"\npath = {told(original)}\n' if original else _NO_ORIGINAL.format(kind=kind),
        references="".join(models) or _NO_REFERENCE.format(kind=kind),
        seed=f"seed = {json.dumps(seed)}" if seed else _NO_SEED,
        results=json.dumps(results),
        store=f"store = {json.dumps(store)}\n" if store else "",
        workers=workers,
        signing=f"\n[signing]\nkey = {told(key)}\n" if key else _NO_KEY,
    )
    _create(out, text)
    return out
