"""The shadow trainer: what it keeps, what it finds again, and how it goes on after a kill."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skops")

from digits_pool import digits  # noqa: E402

from muaudit import compute  # noqa: E402
from muaudit.errors import ModelError, NotApplicable, UsageError  # noqa: E402
from muaudit.examples import Examples  # noqa: E402
from muaudit.models.classifier import Classifier  # noqa: E402
from muaudit.models.estimator import Estimator  # noqa: E402
from muaudit.training import stacked  # noqa: E402
from muaudit.training.networks import SavedNetwork  # noqa: E402
from muaudit.training.recipes import Procedure, PythonRecipe, SklearnRecipe, TorchRecipe, logits_from, rows_digest, train  # noqa: E402
from muaudit.training.shadows import Cohort, RecordedCohort, Trainer, open_cohort  # noqa: E402

CODE = """
from sklearn.base import clone
from torch import nn, optim, tensor

def linear(inputs, labels, *, seed):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return _steps(module, inputs, labels)

def tune(model, forget, retain, *, seed):
    return _steps(model, retain.inputs, retain.labels)

def wrap(model, forget, retain, *, seed):
    return nn.Sequential(model, nn.LogSoftmax(-1))

def refit(model, forget, retain, *, seed):
    return clone(model).fit(retain.inputs.reshape(len(retain), -1), retain.labels)

def _steps(module, inputs, labels):
    optimizer = optim.SGD(module.parameters(), 0.001)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(tensor(inputs)), tensor(labels)).backward()
        optimizer.step()
    return module
"""

NETWORK = TorchRecipe(hidden=(8,), steps=10, mode="stacked")
FOREST = SklearnRecipe(estimator="sklearn.ensemble.RandomForestClassifier", parameters={"n_estimators": 3})
VENDOR = PythonRecipe(function="code.py:linear")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the trainer computes, so that what is trained beside it can be compared to the bit."""
    with compute.settled(1):
        yield


@pytest.fixture(scope="module")
def pool() -> Examples:
    return digits(80)


@pytest.fixture
def trainer(tmp_path: Path, pool: Examples) -> Trainer:
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    return Trainer(recipe=NETWORK, pool=pool, folder=tmp_path / "kept", base=tmp_path)


def masks(pool: Examples, models: int) -> np.ndarray:
    return np.random.default_rng(models).random((models, len(pool))) < 0.5


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_cohort_is_its_models_with_rows_and_seeds(trainer: Trainer, pool: Examples) -> None:
    rows, seeds = masks(pool, 20), range(100, 120)
    cohort = trainer.train(rows, seeds)
    assert cohort.ids == pool.ids
    assert np.array_equal(cohort.rows, rows)
    assert cohort.seeds == tuple(seeds)
    assert cohort.retries == (0,) * 20
    assert cohort.forget is None
    assert not cohort.recorded
    assert [path.name for path in sorted(cohort.folder.iterdir())] == [
        "cohort.json", "stack-000.safetensors", "stack-001.safetensors"
    ]  # fmt: skip
    logits = cohort.logits(pool)
    assert logits.shape == (20, len(pool), 10)
    assert logits.dtype == np.float64
    assert np.array_equal(cohort.logits_of(pool.pictured()[:5]), logits[:, :5])
    for number in (0, 13):
        alone = train(NETWORK, pool, seeds[number], trainer.base, rows=rows[number])
        assert np.allclose(logits_from(alone, pool.pictured()), logits[number], atol=1e-4)
        assert np.array_equal(logits_from(cohort.member(number), pool.pictured()), logits[number])


@pytest.mark.parametrize("recipe", [NETWORK, FOREST, VENDOR], ids=["torch", "sklearn", "python"])
def test_what_was_made_is_found_again_and_made_alike_anywhere(
    trainer: Trainer, pool: Examples, tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, told = masks(pool, 6), []
    first = replace(trainer, recipe=recipe, progress=lambda *said: told.append(said)).train(rows, range(6))
    assert told[-1] == (6, 6, "models trained")
    elsewhere = replace(trainer, recipe=recipe, folder=tmp_path / "other").train(rows, range(6))
    assert contents(elsewhere.folder) == contents(first.folder)
    assert elsewhere.digest == first.digest
    monkeypatch.setattr("muaudit.training.stacks.make", lambda *_: pytest.fail("it was made already"))
    assert replace(trainer, recipe=recipe).train(rows, range(6)).digest == first.digest


def test_whatever_changes_a_model_changes_where_it_is_kept(trainer: Trainer, pool: Examples) -> None:
    trainer = replace(trainer, recipe=VENDOR)
    rows = masks(pool, 2)
    flipped = rows.copy()
    flipped[1, 3] ^= True
    folders = [trainer.train(given, seeds).folder for given, seeds in ((rows, (0, 1)), (flipped, (0, 1)), (rows, (0, 2)))]
    relabelled = Examples(pool.ids, pool.clusters, (pool.labels + 1) % 10, pool.inputs)
    folders.append(replace(trainer, pool=relabelled).train(rows, (0, 1)).folder)
    (trainer.base / "code.py").write_text(CODE.replace("0.001", "0.002"), encoding="utf-8")
    folders.append(trainer.train(rows, (0, 1)).folder)
    assert len(set(folders)) == 5


def test_two_workers_make_the_same_bytes(trainer: Trainer, pool: Examples, tmp_path: Path) -> None:
    rows = masks(pool, 20)
    one = trainer.train(rows, range(20))
    two = replace(trainer, folder=tmp_path / "other", workers=2).train(rows, range(20))
    assert contents(two.folder) == contents(one.folder)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
import numpy as np
from digits_pool import digits
from muaudit.training.recipes import TorchRecipe
from muaudit.training.shadows import Trainer

def progress(done, total, what):
    if done == 14:
        os.kill(os.getpid(), signal.SIGKILL)

pool = digits(80)
rows = np.random.default_rng(40).random((40, 80)) < 0.5
recipe = TorchRecipe(hidden=(8,), steps=10, mode="stacked")
Trainer(recipe=recipe, pool=pool, folder=Path({folder!r}), base=Path({base!r}), progress=progress).train(rows, range(40))
"""


def test_a_killed_run_goes_on_where_it_was(trainer: Trainer, pool: Examples, tmp_path: Path) -> None:
    helpers = str(Path(__file__).parents[2] / "helpers")
    script = KILLED.format(helpers=helpers, folder=str(tmp_path / "killed"), base=str(tmp_path))
    threads = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=120, capture_output=True, env=threads)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted((tmp_path / "killed").rglob("stack-*"))
    assert [path.name for path in left] == ["stack-000.safetensors"]
    with pytest.raises(ModelError, match=r"stack-001\.safetensors"):
        Cohort.open(left[0].parent)
    told: list[int] = []
    resumed = replace(trainer, folder=tmp_path / "killed", progress=lambda done, *_: told.append(done))
    cohort = resumed.train(masks(pool, 40), range(40))
    assert told == [27, 40]
    assert contents(cohort.folder) == contents(trainer.train(masks(pool, 40), range(40)).folder)


@pytest.mark.parametrize("damage", [b"", b"not a stack", None], ids=["empty", "other", "another cohort's"])
def test_a_damaged_stack_is_refused_and_made_anew(trainer: Trainer, pool: Examples, damage: bytes | None) -> None:
    cohort = trainer.train(masks(pool, 3), range(3))
    other = trainer.train(masks(pool, 3), range(3, 6))
    path, digest = cohort.folder / "stack-000.safetensors", cohort.digest
    path.write_bytes((other.folder / path.name).read_bytes() if damage is None else damage)
    with pytest.raises(ModelError, match=path.name):
        Cohort.open(cohort.folder)
    assert trainer.train(masks(pool, 3), range(3)).digest == digest


@pytest.mark.parametrize(
    ("recipe", "function"),
    [(NETWORK, "code.py:tune"), (NETWORK, "code.py:wrap"), (FOREST, "code.py:refit"), (VENDOR, "code.py:tune")],
    ids=["torch", "another module", "sklearn", "python"],
)
def test_models_unlearn_by_the_vendors_procedure(trainer: Trainer, pool: Examples, recipe: Any, function: str) -> None:
    from muaudit.training import recipes

    procedure = Procedure(function=function)
    trainer = replace(trainer, recipe=recipe, procedure=procedure)
    rows = masks(pool, 5)
    forget = rows & (np.arange(len(pool)) % 4 == 0)
    cohort = trainer.train(rows, range(5))
    before, unlearned = cohort.logits(pool), trainer.unlearn(cohort, forget, range(50, 55))
    assert np.array_equal(unlearned.rows, rows)
    assert unlearned.forget is not None
    assert np.array_equal(unlearned.forget, forget)
    assert np.array_equal(cohort.logits(pool), before)
    for number in (0, 4):
        base = train(recipe, pool, number, trainer.base, rows=rows[number]) if recipe is VENDOR else cohort.member(number)
        parts = pool.take(forget[number]), pool.take(rows[number] & ~forget[number])
        alone = recipes.unlearn(procedure, base, *parts, 50 + number, trainer.base)
        assert np.array_equal(logits_from(alone, pool.pictured(), outputs=10), unlearned.logits(pool)[number])


def test_one_model_can_unlearn_many_subsets(trainer: Trainer, pool: Examples) -> None:
    trainer = replace(trainer, procedure=Procedure(function="code.py:tune"))
    original = trainer.train(np.ones((1, len(pool)), dtype=bool), [9])
    subsets = np.arange(len(pool)) % 6 == np.arange(6)[:, None]
    unlearned = trainer.unlearn(original.repeated(6), subsets, range(6))
    assert len(unlearned) == 6
    again = trainer.unlearn(original, subsets[[4]], [4])
    assert np.array_equal(unlearned.logits(pool)[4], again.logits(pool)[0])
    assert np.array_equal(unlearned.take([4, 2]).forget, subsets[[4, 2]])


def test_members_become_folders_that_an_audit_can_name(trainer: Trainer, pool: Examples, tmp_path: Path) -> None:
    rows = masks(pool, 3)
    trainer = replace(trainer, procedure=Procedure(function="code.py:tune"))
    cohort = trainer.train(rows, (5, 6, 2**63 - 1))
    cohort.save_member(2, tmp_path / "network")
    said = SavedNetwork.model_validate_json((tmp_path / "network" / "classifier.json").read_bytes())
    assert (said.seed, said.recipe, said.procedure) == (str(2**63 - 1), NETWORK.content_digest(), None)
    assert said.rows == rows_digest(np.array(pool.ids)[rows[2]].tolist())
    opened = Classifier.open(tmp_path / "network", device="cpu")
    assert np.allclose(opened.logits(pool), cohort.logits(pool)[2], atol=1e-5)
    forests = replace(trainer, recipe=FOREST).train(rows, range(3))
    forests.save_member(1, tmp_path / "forest")
    found = Estimator.open(tmp_path / "forest" / "estimator.skops")
    assert np.array_equal(found.logits(pool), forests.logits(pool)[1])


def test_a_saved_cohort_is_the_cohort(trainer: Trainer, pool: Examples, tmp_path: Path) -> None:
    out = tmp_path / "shadows"
    trainer.train(masks(pool, 17), range(17)).save(out)
    cohort = trainer.train(masks(pool, 3), range(3))
    assert len(list(out.iterdir())) > len(list(cohort.folder.iterdir()))
    cohort.save(out)
    assert contents(out) == contents(cohort.folder)
    opened = open_cohort(out)
    assert opened.digest == cohort.digest
    assert np.array_equal(opened.logits(pool), cohort.logits(pool))


def test_outputs_alone_are_kept_of_what_cannot_be_rebuilt(trainer: Trainer, pool: Examples) -> None:
    inputs = pool.pictured()
    mirrored = inputs[..., ::-1].copy()
    cohort = replace(trainer, recipe=VENDOR).train(masks(pool, 3), range(3))
    with pytest.raises(NotApplicable, match="only outputs on the task's own examples"):
        cohort.logits_of(mirrored)
    with pytest.raises(NotApplicable, match="cannot be kept"):
        cohort.member(0)
    asked = replace(trainer, recipe=VENDOR, queries=mirrored).train(masks(pool, 3), range(3))
    assert np.array_equal(asked.logits(pool), cohort.logits(pool))
    alone = train(VENDOR, pool, 1, trainer.base, rows=masks(pool, 3)[1])
    assert np.array_equal(asked.logits_of(mirrored)[1], logits_from(alone, mirrored))
    assert np.array_equal(asked.logits(pool.take([7, 3])), cohort.logits(pool)[:, [7, 3]])


def test_what_timing_chose_stands(trainer: Trainer, pool: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = replace(trainer, recipe=TorchRecipe(hidden=(4,), steps=3))
    monkeypatch.setattr(stacked, "_seconds_a_step", lambda trainee, *_: 1.0 if isinstance(trainee, stacked.Stack) else 0.01)
    cohort = trainer.train(masks(pool, 6), range(6))
    assert (cohort.description.way, cohort.description.sizes) == ("sequential", (3, 3))
    (cohort.folder / "stack-001.safetensors").unlink()
    monkeypatch.setattr(stacked, "_seconds_a_step", lambda trainee, *_: 0.01 if isinstance(trainee, stacked.Stack) else 1.0)
    again = trainer.train(masks(pool, 6), range(6))
    assert (again.description.way, again.digest) == ("sequential", cohort.digest)


def test_what_does_not_fit_is_refused(trainer: Trainer, pool: Examples) -> None:
    rows = masks(pool, 2)
    with pytest.raises(UsageError, match="seeds"):
        trainer.train(rows, [1, 2, 3])
    with pytest.raises(UsageError, match="model 1 has no example"):
        trainer.train(rows & np.array([[True], [False]]), [1, 2])
    cohort = trainer.train(rows, [1, 2])
    with pytest.raises(NotApplicable, match=r"add \[procedure\]"):
        trainer.unlearn(cohort, rows, [1, 2])
    trainer = replace(trainer, procedure=Procedure(function="code.py:tune"))
    with pytest.raises(UsageError, match="not trained on"):
        trainer.unlearn(cohort, ~rows, [1, 2])
    with pytest.raises(UsageError, match="other examples"):
        trainer.unlearn(replace(trainer, pool=digits(81)).train(np.ones((1, 81), dtype=bool), [1]), rows[:1], [1])


# ---- recorded ----------------------------------------------------------------------------------------------------------------


def record(path: Path, **changed: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"logits": rng.normal(size=(4, 5, 3)), "keep": rng.random((4, 5)) < 0.5, "ids": np.array(list("abcde"))}
    np.savez(path, **(arrays | changed))
    return path


def test_recorded_outputs_are_found_by_id(tmp_path: Path) -> None:
    path = record(tmp_path / "shadows.npz")
    cohort = open_cohort(path)
    assert isinstance(cohort, RecordedCohort)
    assert cohort.recorded
    assert cohort.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    names = ("d", "a")
    examples = Examples(names, names, np.array([0, 1]))
    with np.load(path) as file:
        assert np.array_equal(cohort.rows, file["keep"])
        assert np.array_equal(cohort.logits(examples), file["logits"][:, [3, 0]])
    for refused in (lambda: cohort.logits_of(np.zeros((1, 2), dtype=np.float32)), lambda: cohort.save_member(0, tmp_path)):
        with pytest.raises(NotApplicable, match="recorded shadow models"):
            refused()
    with pytest.raises(NotApplicable, match="example 'z'"):
        cohort.logits(Examples(("z",), ("z",), np.array([0])))


def test_recorded_queries_are_kept_apart(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(4, 5, 2, 3))
    cohort = RecordedCohort(record(tmp_path / "shadows.npz", logits=logits))
    examples = Examples(("b",), ("b",), np.array([0]))
    assert cohort.queries == 2
    assert np.array_equal(cohort.query_logits(examples), logits[:, [1]])
    assert np.array_equal(cohort.logits(examples), logits[:, [1], 0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"keep": np.ones((4, 4))}, "do not fit"),
        ({"ids": np.array(["a", "b", "c", "d", "a"])}, "stands twice"),
        ({"ids": np.array(list("abcde"), dtype=object)}, "pickle"),
        ({"keep": np.full((4, 5), 2)}, "0 or 1"),
        ({"logits": np.full((4, 5, 3), np.nan)}, "finite"),
    ],
)
def test_recordings_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        open_cohort(record(tmp_path / "shadows.npz", **changed))


def test_what_is_no_cohort_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.npz", b"PK\x03\x04"), ("b.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="give an npz"):
            open_cohort(tmp_path / name)
    with pytest.raises(ModelError, match=r"no cohort\.json"):
        open_cohort(tmp_path)
    (tmp_path / "cohort.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="not a description"):
        open_cohort(tmp_path)
