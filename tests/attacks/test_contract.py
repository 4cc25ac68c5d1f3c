"""The contract that every registered attack keeps, a third party's too: one test a rule, over all of them."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from muaudit import attack as attacks
from muaudit import compute, policy
from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.compare import compare
from muaudit.results import Finding, Verdict
from muaudit.task import ForgetTask

causal_lm = pytest.importorskip("muaudit.models.causal_lm")

Build = Callable[[str, Sequence[str]], dict[str, Path]]

NAMES = [name for name, found in attacks.registry().items() if isinstance(found, attacks.Registered)]
CAPABILITIES = frozenset({"ScoresText", "GeneratesText", "ScoresTokens", "Finetunes", "ExposesWeights", "Quantizes"})
REFERENCES = ["reference-1", "reference-2", "reference-3"]
CALIBRATION = "reference-4"
"""Set aside for attacks that calibrate, as the runner does with the last reference."""

BEDS = {"recovery": "corrupted"}
"""Where an attack's models come from, if not from the testbed `lineage`."""


class Subject:
    """One attack, prepared on a testbed of one lineage, and its measurements of each model."""

    def __init__(self, attack: Attack, prepared: Prepared, models: dict[str, Path]) -> None:
        self.attack, self.prepared, self.models = attack, prepared, models
        self.seen: dict[str, Measurement] = {}
        self.unchanged = True

    def measure(self, path: Path) -> Measurement:
        model = opened(path)
        before = causal_lm.state_digest(model.module, model.tokenizer)
        with compute.settled(1):
            measured = self.attack.measure(model, self.prepared, np.random.default_rng(7))
        same = causal_lm.state_digest(model.module, model.tokenizer) == before
        self.unchanged &= same and not model.module.training
        return measured

    def of(self, name: str) -> Measurement:
        if name not in self.seen:
            self.seen[name] = self.measure(self.models[name])
        return self.seen[name]

    def finding(self, target: str, references: list[str], original: str | None = None) -> Finding:
        known = None if original is None else self.of(original)
        rule = policy.load("standard")
        return compare(self.attack.card(), self.of(target), [self.of(name) for name in references], known, rule, seed=1)[0]


def opened(path: Path) -> causal_lm.CausalLM:
    return causal_lm.CausalLM.open(path, dtype="float32", device="cpu")


def bench(attack: Attack, models: dict[str, Path]) -> Bench:
    task = ForgetTask.from_jsonl(forget=models["forget"], retain=models["retain"], holdout=models["holdout"])
    return Bench(
        task,
        np.random.default_rng(3),
        CAPABILITIES,
        open_original=lambda: opened(models["original"]),
        open_calibration=(lambda: opened(models[CALIBRATION])) if attack.calibrates else None,
    )


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, testbed: Build) -> Subject:
    models = testbed(BEDS.get(request.param, "lineage"), ["original", *REFERENCES, CALIBRATION, "retrain"])
    found = attacks.registry()[request.param]
    assert isinstance(found, attacks.Registered)
    attack = found.attack()
    if attack.missing(causal_lm.CausalLM):
        pytest.skip(f"{attack.name} is not for language models")
    with compute.settled(1):
        prepared = Prepared.model_validate_json(attack.prepare(bench(attack, models)).model_dump_json())
    if attack.reads_original:
        original = opened(models["original"])
        prepared = prepared.with_original(lambda: original)
    return Subject(attack, prepared, models)


def test_it_says_what_it_is(subject: Subject) -> None:
    card = subject.attack.card()
    assert all((card.summary, card.source, card.cost, card.version))
    assert "Attributes:" in (type(subject.attack).__doc__ or "")
    for field in type(subject.attack).model_fields:
        assert f"{field}:" in (type(subject.attack).__doc__ or ""), f"parameter {field} is not documented"


def test_prepare_is_deterministic(subject: Subject) -> None:
    with compute.settled(1):
        again = subject.attack.prepare(bench(subject.attack, subject.models))
    assert again.content_digest() == subject.prepared.content_digest()


def test_it_is_deterministic_and_blind(subject: Subject, tmp_path: Path) -> None:
    """The same weights under another name, with nothing else to tell them by, measure the same to the byte."""
    disguised = tmp_path / "somebody-else"
    shutil.copytree(subject.models["retrain"], disguised)
    assert subject.measure(disguised).canonical() == subject.of("retrain").canonical()


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
    names = REFERENCES
    for name in names:
        found = subject.finding(name, [other for other in names if other != name])
        assert found.verdict is not Verdict.FAIL, found.reason
    assert subject.finding("retrain", names, "original").verdict is Verdict.PASS
