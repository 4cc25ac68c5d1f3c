"""The gate: no release of a model in which the forgotten people can still be found."""

import pytest

from muaudit.testing import Judged, assert_unlearned


@pytest.mark.muaudit("audit.toml")
def test_the_candidate_has_unlearned(muaudit_finding: Judged) -> None:
    """Runs once for each attack that audit.toml plans, and once for the verdict over all of them."""
    assert_unlearned(muaudit_finding)
