"""How much memory an audit took."""

import subprocess
import sys

import pytest

TOLD = "from muaudit.compute import peak_memory; {}; print(peak_memory())"


@pytest.mark.skipif(sys.platform == "win32", reason="not counted there")
def test_the_peak_counts_what_was_held_once() -> None:
    """Of a new process each, since a process never tells less than it once held."""

    def told(held: str) -> int:
        return int(subprocess.run([sys.executable, "-c", TOLD.format(held)], capture_output=True, check=True).stdout)

    modest = told("pass")
    assert 5 * 2**20 < modest < 150 * 2**20
    large = told("held = b'x' * (200 * 2**20); del held")
    assert 190 * 2**20 < large - modest < 260 * 2**20
