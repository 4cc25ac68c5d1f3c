"""The contract that every registered attack keeps, a third party's too: one test a rule, for modules that choose attacks."""

import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from beds import REFERENCES, Bed, opened

from muaudit import compute
from muaudit import registry as attacks
from muaudit.attack import Attack, Measurement, Prepared
from muaudit.compare import compare
from muaudit.model_config import ModelConfig
from muaudit.models.causal_lm import CausalLM
from muaudit.models.diffusion import Diffusion
from muaudit.results import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "test_it_does_not_change_the_model",
    "test_it_flags_no_reference",
    "test_it_flags_the_original",
    "test_it_is_deterministic_and_blind",
    "test_it_says_what_it_is",
    "test_leakage_is_a_share_of_every_forget_unit",
    "test_prepare_is_deterministic",
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "diffusion" / "audit.toml"

IMAGES = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["attacks"]

SIZES = IMAGES | {
    "worst_case": {"references": 4},
    "forgetting_quality": {"populations": 4, "models": 32},
    "retention": {"images_per_prompt": IMAGES["retention"]["images_per_prompt"]},
    "unlearndiffatk": IMAGES["unlearndiffatk"] | {"steps": 15, "baselines": False},
    "p4d": IMAGES["p4d"] | {"steps": 15, "baselines": False},
    "concept_relearning": IMAGES["concept_relearning"] | {"budgets": [40]},
    "concept_inversion": IMAGES["concept_inversion"] | {"budgets": [120]},
    "soft_prompt": IMAGES["soft_prompt"] | {"steps": 40, "batch": 1},
}
"""Attacks on image generators are as large as in the example, some a little smaller; those that train their own references
train one more here, for the honest retrain."""


HIDDEN = {
    "unlearndiffatk": "keyword",
    "p4d": "keyword",
    "ring_a_bell": "keyword",
    "soft_prompt": "keyword",
    "concept_inversion": "keyword",
    "concept_relearning": "esd",
}
"""Image generators that do not draw the concept when they are asked in plain words, and that an attack makes draw it."""


class Subject:
    """One attack, prepared on models of known truth, and its measurements of each model."""

    def __init__(self, attack: Attack, bed: Bed) -> None:
        self.attack, self.bed = attack, bed
        self.seen: dict[str, Measurement] = {}
        self.unchanged = True
        with compute.settled(1):
            bare = Prepared.model_validate_json(attack.prepare(bed.bench(attack)).model_dump_json())
            self.prepared = bed.ready(attack, bare)
            lineup = attack.lineup(bed.bench(attack), bare)
        self.models: Mapping[str, ModelConfig] = bed.models
        if lineup is not None:
            *compared, spare = lineup.references
            assert len(compared) == len(REFERENCES)
            assert lineup.original is not None
            self.models = dict(zip(REFERENCES, compared, strict=True)) | {"retrain": spare, "original": lineup.original}

    def measure(self, config: ModelConfig) -> Measurement:
        model = opened(config)
        before = self.bed.fingerprint(model)
        with compute.settled(1):
            measured = self.attack.measure(model, self.prepared, np.random.default_rng(7))
        self.unchanged &= self.bed.fingerprint(model) == before
        return measured

    def of(self, name: str) -> Measurement:
        if name not in self.seen:
            self.seen[name] = self.measure(self.models[name])
        return self.seen[name]

    def finding(self, target: str, references: Sequence[str], original: str | None = None) -> Finding:
        known = None if original is None else self.of(original)
        others = [self.of(name) for name in references]
        return compare(self.attack.card(), self.of(target), others, known, self.bed.policy, seed=1)[0]


def made(name: str) -> Attack:
    """A registered attack, as large as here."""
    found = attacks.registered()[name]
    assert isinstance(found, attacks.Registered)
    return found.attack.model_validate(SIZES.get(name, {}))


def names(of: Callable[[Attack], bool]) -> list[str]:
    """The registered attacks of which something holds."""
    return [name for name, found in attacks.registered().items() if isinstance(found, attacks.Registered) and of(made(name))]


def draws(attack: Attack) -> bool:
    """Whether it is for image generators."""
    return bool(attack.missing(CausalLM)) and not attack.missing(Diffusion)


def test_it_says_what_it_is(subject: Subject) -> None:
    card = subject.attack.card()
    assert all((card.summary, card.source, card.cost, card.version))
    assert "Attributes:" in (type(subject.attack).__doc__ or "")
    for field in type(subject.attack).model_fields:
        assert f"{field}:" in (type(subject.attack).__doc__ or ""), f"parameter {field} is not documented"


def test_prepare_is_deterministic(subject: Subject) -> None:
    with compute.settled(1):
        again = subject.attack.prepare(subject.bed.bench(subject.attack))
    assert again.content_digest() == subject.prepared.content_digest()


def test_it_is_deterministic_and_blind(subject: Subject, tmp_path: Path) -> None:
    """The same weights under another name, with nothing else to tell them by, measure the same to the byte."""
    disguised, known = tmp_path / "somebody-else", subject.models["retrain"]
    shutil.copytree(known.path, disguised)
    copy = known.model_copy(update={"path": str(disguised)})
    assert subject.measure(copy).canonical() == subject.of("retrain").canonical()


def test_it_does_not_change_the_model(subject: Subject) -> None:
    subject.of("retrain")
    assert subject.unchanged


def test_leakage_is_a_share_of_every_forget_unit(subject: Subject) -> None:
    seen = subject.of("retrain")
    assert set(seen.sets) >= {"forget"}
    assert all(0 <= leakage <= 1 for leakage in seen.leakage)
    assert seen.powerless is None


def test_it_flags_the_original(subject: Subject) -> None:
    found = subject.finding("original", REFERENCES)
    assert found.verdict is Verdict.FAIL, found.reason


def test_it_flags_no_reference(subject: Subject) -> None:
    for name in REFERENCES:
        found = subject.finding(name, [other for other in REFERENCES if other != name])
        assert found.verdict is not Verdict.FAIL, found.reason
    assert subject.finding("retrain", REFERENCES, "original").verdict is Verdict.PASS


def test_it_finds_what_a_method_only_hides(subject: Subject) -> None:
    """On the original an attack on prompts has nothing to search: the plain prompts draw the concept already."""
    if subject.attack.name not in HIDDEN:
        pytest.skip("brings nothing back: it looks at what a model draws or denoises as it is")
    found = subject.finding(HIDDEN[subject.attack.name], REFERENCES)
    assert found.verdict is Verdict.FAIL, found.reason
