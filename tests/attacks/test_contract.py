"""Attacks on language models and classifiers keep the contract of every attack."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from beds import LanguageBed
from contract import *  # noqa: F403
from contract import Subject, draws, made, names

from muaudit.models.causal_lm import CausalLM

BEDS = {"recovery": "corrupted"}
"""Where an attack's language models come from, if not from the testbed `lineage`."""


@pytest.fixture(scope="module", params=names(lambda attack: not draws(attack)))
def subject(request: pytest.FixtureRequest, testbed: Callable[[str, Sequence[str]], dict[str, Path]]) -> Subject:
    attack = made(request.param)
    if attack.missing(CausalLM):
        return Subject(attack, request.getfixturevalue("digits_audit"))
    return Subject(attack, LanguageBed(testbed, BEDS.get(attack.name, "lineage")))
