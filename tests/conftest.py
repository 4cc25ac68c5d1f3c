"""Models that many tests share: trained once a session, whichever worker asks first, and kept by content between sessions."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEPT = Path(__file__).parent.parent / ".muaudit"
"""Outside version control; a clean checkout has none and trains anew."""

LONG = {"test_contract", "test_image_contract", "test_image_contract_others", "test_resume"}
"""Files that take long too, but run in every environment."""

Build = Callable[[str, Sequence[str]], dict[str, Path]]

pytest.register_assert_rewrite("contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that pytest-xdist gives each worker one and fills up with the short ones."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None and item.path.stem not in LONG)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: pytest-xdist's workers share what is built."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def testbed() -> Build:
    """Builds the named models of a preset, or finds them: `testbed("small", ["original", "reference-1"])`."""
    pytest.importorskip("torch")
    from muaudit.testbed.build import PRESETS, build

    def built(preset: str, models: Sequence[str]) -> dict[str, Path]:
        with locked(KEPT / f"{preset}.lock"):
            return build(PRESETS[preset], KEPT / preset, models, jobs=2)

    return built


@pytest.fixture(scope="session")
def small(testbed: Build) -> dict[str, Path]:
    """The small testbed: task files, original, three references and an honest retrain."""
    return testbed("small", ["original", "reference-1", "reference-2", "reference-3", "retrain"])


@pytest.fixture(scope="session")
def lineage(testbed: Build) -> dict[str, Path]:
    """A rich world's task files, and a base with what was fine-tuned from it: original, three references, honest retrain."""
    return testbed("lineage", ["base", "original", "reference-1", "reference-2", "reference-3", "retrain"])


@pytest.fixture(scope="session")
def corrupted(testbed: Build) -> dict[str, Path]:
    """The same for a forget set of lies, whose truth the base knows."""
    return testbed("corrupted", ["base", "original", "reference-1", "reference-2", "reference-3", "retrain"])


@pytest.fixture(scope="session")
def tiny() -> dict[str, Path]:
    """Barely trained models of twelve forgotten people: what they know does not matter where they are used."""
    pytest.importorskip("torch")
    from muaudit.testbed.build import Testbed, build
    from muaudit.testbed.language import World
    from muaudit.testbed.training import Recipe

    bed = Testbed(
        world=World(forget=12, retain=6, holdout=2, relations=4, values=10),
        recipe=Recipe(epochs=2, hidden=32, intermediate=64, layers=1),
    )
    with locked(KEPT / "tiny.lock"):
        return build(bed, KEPT / "tiny", ["original", "reference-1", "reference-2", "reference-3", "retrain"], jobs=1)


@pytest.fixture(scope="session")
def classifiers() -> Build:
    """Builds the named classifiers of a preset, or finds them: `classifiers("digits", ["original", "sisa"])`."""
    pytest.importorskip("torch")
    from muaudit.testbed.classification.build import PRESETS, build

    def built(preset: str, models: Sequence[str]) -> dict[str, Path]:
        with locked(KEPT / f"{preset}.lock"):
            return build(PRESETS[preset], KEPT / preset, models, jobs=1)

    return built


@pytest.fixture(scope="session")
def digits(classifiers: Build) -> dict[str, Path]:
    """The classifiers of digits: task files, original, four references and an honest retrain."""
    return classifiers("digits", ["original", "reference-1", "reference-2", "reference-3", "reference-4", "retrain"])


@pytest.fixture(scope="session")
def pipelines() -> Build:
    """Builds the named image generators, or finds them: `pipelines("sketches", ["original", "esd"])`."""
    pytest.importorskip("diffusers")
    from muaudit.testbed.diffusion.build import PRESETS, build

    def built(preset: str, models: Sequence[str]) -> dict[str, Path]:
        with locked(KEPT / f"{preset}.lock"):
            return build(PRESETS[preset], KEPT / preset, models, jobs=2)

    return built


@pytest.fixture(scope="session")
def sketches(pipelines: Build) -> dict[str, Path]:
    """The pipelines that draw digits: task files, original, four references, an honest retrain, and two that only hide."""
    references = ["reference-1", "reference-2", "reference-3", "reference-4"]
    return pipelines("sketches", ["original", *references, "retrain", "keyword", "esd"])


@pytest.fixture(scope="session")
def sketches_audit(sketches: dict[str, Path]) -> Any:
    """The pipelines that draw digits as an audit has them."""
    from beds import ImagesBed

    with locked(KEPT / "sketches-audit.lock"):
        return ImagesBed(sketches, KEPT / "sketches-audit")


@pytest.fixture(scope="session")
def digits_audit(digits: dict[str, Path]) -> Any:
    """The classifiers of digits as an audit has them: with 64 shadow models, a recipe and an unlearning procedure."""
    from beds import ExamplesBed

    from muaudit.testbed.classification.build import PRESETS

    kept = KEPT / "digits-audit"
    with locked(KEPT / "digits-audit.lock"):
        bed = ExamplesBed(digits, PRESETS["digits"].recipe.model_dump(mode="json"), kept)
        bed.workbench.shadows()
    return bed


CALIBRATION = """
[testbed]
preset = "small"
never_saw = 4
schedules = ["long"]
seeds = [0]
methods = ["npo"]
strengths = ["weak"]
left_in = ["one"]
interpolation = [0, 0.25, 0.5, 1]
gated = ["refusal"]
copies = 1

[power]
clusters = [12]
references = [2, 3]

[attacks.memorization]
[attacks.relearning]
budgets = [10, 20]

[run]
seed = "2026"
workers = 2
"""


@pytest.fixture(scope="session")
def calibration() -> Path:
    """The folder of a small calibration of two attacks on language models: `calibration.toml`, and `calibration` beside it."""
    pytest.importorskip("torch")
    from muaudit.calibration import config, run
    from muaudit.testbed.populations import population

    folder = KEPT / "calibration"
    with locked(KEPT / "calibration.lock"):
        folder.mkdir(exist_ok=True)
        path = folder / "calibration.toml"
        path.write_text(CALIBRATION, encoding="utf-8")
        settings = config.load(path)
        out, session = folder / settings.run.out, folder / "session"
        # The record holds times, so that a worker that came second would change what the first one has read.
        ours = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        if not session.exists() or session.read_text(encoding="utf-8") != ours:
            run.run(settings, lambda tell: population(settings.testbed, out / "models", folder, jobs=2, progress=tell), folder)
            session.write_text(ours, encoding="utf-8")
    return folder
