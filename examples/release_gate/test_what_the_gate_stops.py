"""What the gate is for: a candidate that forgot everybody but one person does not get through."""

from collections.abc import Callable
from pathlib import Path

import pytest

from muaudit.results import AuditReport
from muaudit.testing import assert_unlearned

HERE = Path(__file__).parent


def test_the_gate_stops_a_candidate_that_remembers_one_person(audit: Callable[[Path], AuditReport]) -> None:
    with pytest.raises(AssertionError, match="cluster 'forget 008'"):
        assert_unlearned(audit(HERE / "leaky.toml"))
