"""Real data for golden values: beside the repository, or where MUAUDIT_TEST_DATA says."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("MUAUDIT_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def shared_data(name: str) -> Path:
    """One file of the shared data; without it the test is skipped, but never in CI.

    Args:
        name: Path below the data folder.

    Returns:
        The file.
    """
    path = FOLDER / name
    if not path.exists():
        reason = f"{path} is not here; MUAUDIT_TEST_DATA names the folder of the test data"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path
