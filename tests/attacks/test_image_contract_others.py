"""The other half of the attacks on image generators, in a file of its own so that pytest-xdist runs both halves at once."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from beds import ImagesBed
from contract import *  # noqa: F403
from contract import Subject, draws, made, names, test_it_finds_what_a_method_only_hides  # noqa: F401


@pytest.fixture(scope="module", params=names(draws)[1::2])
def subject(request: pytest.FixtureRequest, sketches_audit: ImagesBed) -> Subject:
    return Subject(made(request.param), sketches_audit)
