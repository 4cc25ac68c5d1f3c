"""Where the contract of every attack gets its models: a lineage of language models, or classifiers of digits."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from muaudit import plan, policy
from muaudit.attack import Attack, Bench, Prepared
from muaudit.config import parse
from muaudit.examples import LabelledTask
from muaudit.image_task import ImageTask
from muaudit.model_config import CausalLMConfig, ClassifierConfig, DiffusionConfig, ModelConfig
from muaudit.models import Model
from muaudit.models.causal_lm import state_digest
from muaudit.opening import open_model
from muaudit.policy import Policy
from muaudit.task import ForgetTask
from muaudit.workbench import Workbench

REFERENCES = ("reference-1", "reference-2", "reference-3")
CALIBRATION = "reference-4"
"""Set aside for attacks that calibrate, as the runner does with the last reference."""

TRAINED = ("original", *REFERENCES, CALIBRATION, "retrain")

HIDING = ("keyword", "esd")
"""Image generators that draw the forgotten concept no more when they are asked in plain words."""

CAPABILITIES = frozenset({"ScoresText", "GeneratesText", "ScoresTokens", "Finetunes", "ExposesWeights", "Quantizes"})
"""Of every language model here."""

Build = Callable[[str, Sequence[str]], dict[str, Path]]


def opened(config: ModelConfig) -> Model:
    """A model, as the runner opens it."""
    return open_model(config, Path(), "cpu", Path())


class Bed(Protocol):
    """Models of known truth, and what an attack may prepare with."""

    policy: Policy
    models: Mapping[str, ModelConfig]

    def bench(self, attack: Attack) -> Bench:
        """A fresh bench, the same each time."""
        ...

    def ready(self, attack: Attack, prepared: Prepared) -> Prepared:
        """The state with all that the runner attaches to it."""
        ...

    def fingerprint(self, model: Any) -> str:
        """Of everything in a model that an attack could change."""
        ...


class LanguageBed:
    """A lineage of causal language models."""

    def __init__(self, build: Build, preset: str) -> None:
        self.files = build(preset, TRAINED)
        self.policy = policy.load("standard")
        self.models = {name: CausalLMConfig(kind="causal_lm", path=str(self.files[name]), dtype="float32") for name in TRAINED}

    def bench(self, attack: Attack) -> Bench:
        task = ForgetTask.from_jsonl(forget=self.files["forget"], retain=self.files["retain"], holdout=self.files["holdout"])
        return Bench(
            task,
            np.random.default_rng(3),
            CAPABILITIES,
            open_original=lambda: opened(self.models["original"]),
            open_calibration=(lambda: opened(self.models[CALIBRATION])) if attack.calibrates else None,
        )

    def ready(self, attack: Attack, prepared: Prepared) -> Prepared:
        if not attack.reads_original:
            return prepared
        original = opened(self.models["original"])
        return prepared.with_original(lambda: original)

    def fingerprint(self, model: Any) -> str:
        return f"{state_digest(model.module, model.tokenizer)} {model.module.training}"


class ExamplesBed:
    """Classifiers, with the shadow models, the recipe and the procedure that an audit would give."""

    def __init__(self, files: Mapping[str, Path], recipe: Mapping[str, Any], kept: Path) -> None:
        self.policy = policy.load("classification")
        self.models = {name: ClassifierConfig(kind="classifier", path=str(files[name])) for name in TRAINED}
        values = {
            "task": {"kind": "classification"} | {name: str(files[name]) for name in ("forget", "retain", "holdout")},
            "target": self.models["retrain"].model_dump(),
            "original": self.models["original"].model_dump(),
            "references": [self.models[name].model_dump() for name in (*REFERENCES, CALIBRATION)],
            "preset": "classification",
            "recipe": recipe,
            "procedure": {"function": "muaudit.testbed.classification.fine_tune:unlearn"},
            "shadows": {"count": 64},
            "policy": {"name": "classification", "partial": True},
            "run": {"seed": "2026", "out": str(kept / "audit"), "store": str(kept / "store")},
        }
        frozen = plan.make(parse(values, "the contract's audit"), Path())
        self.workbench = Workbench(frozen, Path(), lambda done, total, what: None)

    def bench(self, attack: Attack) -> Bench:
        return self.workbench.of(attack.name, "prepare", "reference 4" if attack.calibrates else None)

    def ready(self, attack: Attack, prepared: Prepared) -> Prepared:
        assert isinstance(self.workbench.task, LabelledTask)
        prepared = prepared.with_task(self.workbench.task)
        original = opened(self.models["original"])
        return prepared.with_original(lambda: original) if attack.reads_original else prepared

    def fingerprint(self, model: Any) -> str:
        weights = model.module().state_dict() if hasattr(model, "module") else {}
        parts = "\n".join(f"{name} {value.numpy().tobytes().hex()}" for name, value in weights.items())
        return hashlib.sha256(parts.encode()).hexdigest()


class ImagesBed:
    """Pipelines that draw digits, with the evaluators that an audit would give."""

    def __init__(self, files: Mapping[str, Path], kept: Path) -> None:
        self.policy = policy.load("diffusion")
        names = (*TRAINED, *HIDING)
        self.models = {name: DiffusionConfig(kind="diffusion", path=str(files[name]), batch_size=512) for name in names}
        values = {
            "task": sketches_task(files),
            "target": self.models["retrain"].model_dump(),
            "original": self.models["original"].model_dump(),
            "references": [self.models[name].model_dump() for name in (*REFERENCES, CALIBRATION)],
            "preset": "diffusion",
            "policy": {"name": "diffusion", "partial": True},
            "run": {"seed": "2026", "out": str(kept / "audit"), "store": str(kept / "store"), "device": "cpu"},
        }
        frozen = plan.make(parse(values, "the contract's audit"), Path())
        self.workbench = Workbench(frozen, Path(), lambda done, total, what: None)

    def bench(self, attack: Attack) -> Bench:
        return self.workbench.of(attack.name, "prepare", "reference 4" if attack.calibrates else None)

    def ready(self, attack: Attack, prepared: Prepared) -> Prepared:
        assert isinstance(self.workbench.task, ImageTask)
        prepared = prepared.with_task(self.workbench.task).with_folder(Path())
        original = opened(self.models["original"])
        return prepared.with_original(lambda: original) if attack.reads_original else prepared

    def fingerprint(self, model: Any) -> str:
        pipeline = model.pipeline()
        networks = [pipeline.unet, *(encoder.module for encoder in pipeline.encoders)]
        parts = hashlib.sha256()
        for network in networks:
            for name, value in network.state_dict().items():
                parts.update(f"{name} {network.training}".encode() + value.numpy().tobytes())
            parts.update(str([parameter.requires_grad for parameter in network.parameters()]).encode())
        return parts.hexdigest()


def sketches_task(files: Mapping[str, Path]) -> dict[str, Any]:
    """`[task]` of the testbed of drawn digits."""
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    labels = {name: number for number, name in enumerate(digits)}
    evaluators = [
        {
            "kind": "classifier",
            "name": name,
            "path": str(files["forget"].parent / "evaluators" / f"{name}.skops"),
            "labels": labels,
        }
        for name in ("svc", "neighbours")
    ]
    sets = {name: str(files[name]) for name in ("forget", "retain", "holdout", "known")}
    return {"kind": "text_to_image", "evaluators": evaluators, "steps": 20, "guidance": 2.0, "image_mode": "L", **sets}
