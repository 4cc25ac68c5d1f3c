"""What the tests of audits share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small task of digits and its models; see `classifier_audits.models`. To be copied, not changed."""
    pytest.importorskip("torch")
    from classifier_audits import models

    return models(tmp_path_factory.mktemp("classifiers"))
