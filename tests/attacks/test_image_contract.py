"""Half of the attacks on image generators keep the contract; `test_image_contract_others` has the other half."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from beds import ImagesBed
from contract import *  # noqa: F403
from contract import Subject, draws, made, names, test_it_finds_what_a_method_only_hides  # noqa: F401


@pytest.fixture(scope="module", params=names(draws)[::2])
def subject(request: pytest.FixtureRequest, sketches_audit: ImagesBed) -> Subject:
    return Subject(made(request.param), sketches_audit)
