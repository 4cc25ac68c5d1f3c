"""Recipes: training as written out by hand, the vendor's functions, and what any trained model gives."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits_pool import digits  # noqa: E402
from torch import nn  # noqa: E402

from muaudit.augmentation import augmented  # noqa: E402
from muaudit.compute import seed_of  # noqa: E402
from muaudit.errors import ModelError, UsageError  # noqa: E402
from muaudit.examples import Examples  # noqa: E402
from muaudit.training import fitting, recipes, vendor  # noqa: E402
from muaudit.training.recipes import Procedure, PythonRecipe, SklearnRecipe, TorchRecipe, logits_from, train  # noqa: E402

HERE = Path()

TRAIN = """
import numpy as np
from torch import nn, optim, randn, tensor

def linear(inputs, labels, *, seed, steps=20):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = optim.SGD(module.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(tensor(inputs)), tensor(labels)).backward()
        optimizer.step()
    return module

def odd(inputs, labels, *, seed, bad):
    return lambda shown: np.full((len(shown), 10), np.nan if seed in bad else seed % 7, dtype=np.float64)

def fails(inputs, labels, *, seed):
    raise KeyError("no such column")

def tune(model, forget, retain, *, seed, rate=0.1):
    assert model.training
    assert all(value.requires_grad for value in model.parameters())
    loss = -nn.functional.cross_entropy(model(tensor(forget.inputs)), tensor(forget.labels))
    loss.backward()
    for value in model.parameters():
        value.data -= rate * value.grad
    model.told = forget.ids, retain.ids, seed
    return model

def nothing(model, forget, retain, *, seed):
    return None

value = 3
"""


@pytest.fixture(scope="module")
def pool() -> Examples:
    return digits()


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vendor")
    (folder / "code.py").write_text(TRAIN, encoding="utf-8")
    (folder / "broken.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    return folder


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


# ---- networks ----------------------------------------------------------------------------------------------------------------


def test_training_is_what_it_says_written_out_by_hand(pool: Examples) -> None:
    recipe = TorchRecipe(
        hidden=(12,), steps=30, batch_size=32, learning_rate=0.05, momentum=0.8, nesterov=True, weight_decay=0.01,
        schedule="cosine", warmup=0.2, dtype="float64",
    )  # fmt: skip
    rows, seed = np.arange(len(pool)) % 3 > 0, 41
    trained = train(recipe, pool, seed, HERE, rows=rows)

    torch.manual_seed(seed_of(str(seed), "weights"))
    module = recipe.network(pool).build()
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.8, nesterov=True, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed_of(str(seed), "order"))
    places = torch.from_numpy(np.flatnonzero(rows))
    order = torch.cat([places[torch.randperm(len(places), generator=generator)] for _ in range(10)])
    for step in range(30):
        batch = order[step * 32 : (step + 1) * 32]
        warm = 6
        factor = (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (30 - warm))) / 2
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(torch.tensor(pool.inputs)[batch]), torch.tensor(pool.labels)[batch]).backward()
        optimizer.step()
    for one, other in zip(trained.parameters(), module.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert not trained.training


def test_one_seed_gives_one_model_and_leaves_the_generators_alone(pool: Examples) -> None:
    recipe = TorchRecipe(architecture="cnn", width=4, steps=5, augmentation="mirror_shift", shift=1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, second, other = (train(recipe, pool, seed, HERE) for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_linear_network_finds_the_least_squares(pool: Examples) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(2, 3, size=(40, 3)).astype(np.float32)
    targets = np.stack([inputs @ [1.0, -2.0, 0.5] + 4, rng.normal(size=40)], axis=1)
    names = tuple(map(str, range(40)))
    recipe = TorchRecipe(hidden=(), steps=600, batch_size=40, labels="numbers", dtype="float64", schedule="constant")
    model = train(recipe, Examples(names, names, targets, inputs), 0, HERE)
    design = np.column_stack([inputs.astype(np.float64), np.ones(40)])
    wanted = design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    assert np.allclose(logits_from(model, inputs), wanted, atol=1e-6)


def test_classes_and_scale_come_from_the_whole_pool(pool: Examples) -> None:
    recipe, rows = TorchRecipe(hidden=(4,), steps=2), pool.labels < 4
    network = recipe.network(pool)
    assert network.outputs == 10
    assert network.mean == pytest.approx((float(pool.pictured().mean(dtype=np.float64)),))
    assert logits_from(train(recipe, pool, 0, HERE, rows=rows), pool.pictured()).shape == (len(pool), 10)
    table = digits(images=False)
    wide = recipe.network(table)
    constant = table.pictured().std(axis=0) == 0
    assert constant.any()
    assert np.allclose(np.array(wide.std)[~constant], table.pictured().std(axis=0, dtype=np.float64)[~constant])
    assert (np.array(wide.std)[constant] == 1).all()


def test_rates_follow_the_schedule() -> None:
    def rates(**values: Any) -> list[float]:
        return list(fitting.rates(TorchRecipe(learning_rate=2.0, steps=10, **values), 10))

    assert rates(schedule="constant") == [2.0] * 10
    assert rates(schedule="linear") == pytest.approx([2 - step / 5 for step in range(10)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 2.0)
    schedule, wanted = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), []
    for _ in range(10):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(schedule="cosine") == pytest.approx(wanted)
    assert rates(schedule="linear", warmup=0.4) == pytest.approx([0.4, 0.8, 1.2, 1.6, 2, 5 / 3, 4 / 3, 1, 2 / 3, 1 / 3])


def test_every_pass_takes_every_row_once_and_every_batch_is_full() -> None:
    count = 50
    names = tuple(map(str, range(count)))
    pool = Examples(names, names, np.arange(count), np.zeros((count, 1), dtype=np.float32))
    rows = np.stack([np.arange(count) < 30, np.arange(count) >= 45])
    taken = [labels for _, labels in fitting.Batches(TorchRecipe(steps=90, batch_size=20), pool, rows, [3, 4]).take(90)]
    assert all(labels.shape == (2, 20) for labels in taken)
    for place, mask in enumerate(rows):
        order = torch.cat([labels[place] for labels in taken]).tolist()
        size = int(mask.sum())
        passes = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        assert all(sorted(one) == np.flatnonzero(mask).tolist() for one in passes)
        assert passes[0] != passes[1]


@pytest.mark.parametrize("augmentation", ["mirror", "shift", "mirror_shift"])
def test_training_augments_as_the_queries_do(augmentation: Any) -> None:
    names = tuple(map(str, range(3)))
    inputs = np.random.default_rng(0).normal(size=(3, 2, 5, 4)).astype(np.float32)
    pool, shift = Examples(names, names, np.arange(3), inputs), 0 if augmentation == "mirror" else 1
    recipe = TorchRecipe(architecture="cnn", steps=40, batch_size=8, augmentation=augmentation, shift=shift)
    known = [{one[place].tobytes() for one in augmented(inputs, augmentation, shift)} for place in range(3)]
    seen: list[set[bytes]] = [set(), set(), set()]
    for shown, labels in fitting.Batches(recipe, pool, np.ones((1, 3), dtype=bool), [0]).take(40):
        for one, label in zip(shown[0], labels[0].tolist(), strict=True):
            seen[label].add(one.numpy().tobytes())
    assert seen == known


def test_epochs_are_steps_by_the_number_of_rows() -> None:
    recipe = TorchRecipe(epochs=3, batch_size=20)
    assert [recipe.steps_for(rows) for rows in (100, 97.5, 1)] == [15, 15, 1]
    assert TorchRecipe(steps=7).steps_for(1000) == 7


def test_a_training_that_diverges_thrice_is_an_error(pool: Examples) -> None:
    with pytest.raises(ModelError, match="diverged with seed 5 and with 2 more seeds"):
        train(TorchRecipe(hidden=(4,), steps=20, learning_rate=1e30), pool, 5, HERE)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "either steps or epochs"),
        ({"steps": 1, "epochs": 1}, "either steps or epochs"),
        ({"steps": 1, "optimizer": "adam", "momentum": 0.5}, "adam has none"),
        ({"steps": 1, "nesterov": True, "momentum": 0.0}, "nesterov needs momentum"),
        ({"steps": 1, "augmentation": "shift"}, "goes with"),
        ({"steps": 1, "shift": 2}, "goes with"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TorchRecipe(**values)


def test_a_recipe_that_does_not_suit_the_examples_says_so(pool: Examples) -> None:
    with pytest.raises(UsageError, match="takes images"):
        TorchRecipe(architecture="cnn", steps=1).network(digits(images=False))
    numbers = Examples(pool.ids, pool.clusters, pool.labels / 2, pool.inputs)
    for recipe in (TorchRecipe(steps=1), SklearnRecipe(estimator="sklearn.naive_bayes.GaussianNB")):
        with pytest.raises(UsageError, match="labels are not whole numbers"):
            train(recipe, numbers, 0, HERE)
    with pytest.raises(UsageError, match="no example at all"):
        train(TorchRecipe(steps=1), pool, 0, HERE, rows=np.zeros(len(pool), dtype=bool))


# ---- estimators --------------------------------------------------------------------------------------------------------------


def test_an_estimator_is_fitted_on_flat_inputs_from_the_seed(pool: Examples) -> None:
    from sklearn.ensemble import RandomForestClassifier

    recipe = SklearnRecipe(estimator="sklearn.ensemble.RandomForestClassifier", parameters={"n_estimators": 3})
    rows, flat = np.arange(len(pool)) < 150, pool.pictured().reshape(len(pool), -1)
    trained = train(recipe, pool, 2**40 + 9, HERE, rows=rows)
    wanted = RandomForestClassifier(3, random_state=(2**40 + 9) % 2**32).fit(flat[rows], pool.labels[rows])
    probabilities = wanted.predict_proba(flat)
    logits = logits_from(trained, pool.pictured())
    assert np.allclose(logits, np.log(np.maximum(probabilities, 1e-12)))
    assert (probabilities == 0).any()
    assert recipe.labels == "classes"


def test_a_class_that_an_estimator_never_saw_has_the_least_probability(pool: Examples) -> None:
    rows = (pool.labels != 3) & (pool.labels != 9)
    trained = train(SklearnRecipe(estimator="sklearn.linear_model.LogisticRegression"), pool, 0, HERE, rows=rows)
    logits = logits_from(trained, pool.pictured(), outputs=10)
    assert logits.shape == (len(pool), 10)
    assert np.all(logits[:, [3, 9]] == np.log(1e-12))
    assert np.allclose(np.exp(logits).sum(1), 1)


def test_decision_functions_serve_where_there_are_no_probabilities(pool: Examples) -> None:
    two = pool.take(pool.labels < 2)
    trained = train(SklearnRecipe(estimator="sklearn.svm.SVC"), two, 0, HERE)
    logits, flat = logits_from(trained, two.pictured()), two.pictured().reshape(len(two), -1)
    assert np.allclose(logits[:, 1] - logits[:, 0], trained.decision_function(flat))
    recipe = SklearnRecipe(estimator="sklearn.svm.SVC", parameters={"break_ties": True})
    many = train(recipe, pool, 0, HERE, rows=pool.labels > 0)
    wide = logits_from(many, pool.pictured(), outputs=10)
    assert np.array_equal(wide.argmin(1), np.zeros(len(pool)))
    assert np.array_equal(wide.argmax(1), many.predict(pool.pictured().reshape(len(pool), -1)))


def test_regressors_give_their_predictions(pool: Examples) -> None:
    targets = np.stack([pool.labels * 2.0, -pool.labels], axis=1)
    numbers = Examples(pool.ids, pool.clusters, targets, pool.inputs)
    recipe = SklearnRecipe(estimator="sklearn.neighbors.KNeighborsRegressor", parameters={"n_neighbors": 1})
    assert recipe.labels == "numbers"
    assert np.array_equal(logits_from(train(recipe, numbers, 0, HERE), pool.pictured()), targets)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"estimator": "os.system"}, "not scikit-learn's"),
        ({"estimator": "sklearnish.Model"}, "not scikit-learn's"),
        ({"estimator": "sklearn.utils.check_array"}, "no classifier or regressor"),
        ({"estimator": "sklearn.preprocessing.StandardScaler"}, "no classifier or regressor"),
        ({"estimator": "sklearn.linear_model.NoSuch"}, "no classifier or regressor"),
        ({"estimator": "sklearn.svm.SVC", "parameters": {"softness": 1}}, "cannot be made"),
        ({"estimator": "sklearn.svm.SVC", "parameters": {"C": -1}}, "cannot be made"),
        ({"estimator": "sklearn.svm.SVC", "parameters": {"random_state": 1}}, "comes from the seed"),
    ],
)
def test_only_estimators_of_scikit_learn_are_made(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SklearnRecipe(**values)


# ---- the vendor's functions --------------------------------------------------------------------------------------------------


def test_a_function_of_the_vendor_trains(pool: Examples, code: Path) -> None:
    recipe = PythonRecipe(function="code.py:linear", parameters={"steps": 40})
    before = torch.random.get_rng_state()
    first, second = (train(recipe, pool, 3, code) for _ in range(2))
    assert same(first, second)  # though the function ignores its seed
    assert not first.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (logits_from(first, pool.pictured(), batch=7).argmax(1) == pool.labels).mean() > 0.7


def test_a_function_that_diverges_is_called_again_with_named_seeds(pool: Examples, code: Path) -> None:
    first = seed_of("8", "retry", "1")
    made = recipes.fit(PythonRecipe(function="code.py:odd", parameters={"bad": [8]}), pool, 8, code)
    assert made.retries == 1
    assert logits_from(made.model, pool.pictured())[0, 0] == first % 7
    bad = [8, first, seed_of("8", "retry", "2")]
    with pytest.raises(ModelError, match="diverged"):
        train(PythonRecipe(function="code.py:odd", parameters={"bad": bad}), pool, 8, code)


def test_a_procedure_gets_a_copy_and_both_sets(pool: Examples, code: Path) -> None:
    model = train(TorchRecipe(hidden=(8,), steps=5), pool, 0, HERE)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    forget, retain = pool.take(range(10)), pool.take(range(10, 60))
    made = recipes.unlearn(Procedure(function="code.py:tune", parameters={"rate": 0.5}), model, forget, retain, 6, code)
    assert made.told == (forget.ids, retain.ids, 6)
    assert not made.training
    assert not same(made, model)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nowhere.py:train", "there is no file"),
        ("code.py:absent", "has no function 'absent'"),
        ("code.py:value", "has no function 'value'"),
        ("broken.py:train", "cannot be imported: ModuleNotFoundError"),
        ("no_such_module_at_all:train", "no module 'no_such_module_at_all' is installed"),
    ],
)
def test_a_function_that_is_not_there_is_named(function: str, said: str, code: Path) -> None:
    with pytest.raises(UsageError, match=said):
        PythonRecipe(function=function).load(code)


@pytest.mark.parametrize("function", ["train", "file.py", ":train", "a b:train", "file.py:not a name", "os;system:run"])
def test_what_names_no_function_is_refused(function: str) -> None:
    with pytest.raises(ValueError, match="names no function"):
        Procedure(function=function)


def test_a_function_that_fails_is_named_with_its_error(pool: Examples, code: Path) -> None:
    with pytest.raises(ModelError, match=r"code\.py:fails: raised KeyError"):
        train(PythonRecipe(function="code.py:fails"), pool, 0, code)
    model = train(TorchRecipe(hidden=(), steps=1), pool, 0, HERE)
    with pytest.raises(ModelError, match="returned None"):
        recipes.unlearn(Procedure(function="code.py:nothing"), model, pool, pool, 0, code)


def test_code_is_digested_by_content(code: Path, tmp_path: Path) -> None:
    files = Procedure(function="code.py:tune").files(code)
    assert files == (code / "code.py",)
    digest = vendor.code_digest(files)
    (tmp_path / "code.py").write_bytes(files[0].read_bytes())
    assert vendor.code_digest((tmp_path / "code.py",)) == digest  # wherever it lies
    (tmp_path / "code.py").write_bytes(files[0].read_bytes() + b"\n")
    assert vendor.code_digest((tmp_path / "code.py",)) != digest
    package = PythonRecipe(function="json.decoder:JSONDecoder").files(HERE)
    assert {path.name for path in package} == {"__init__.py", "decoder.py", "encoder.py", "scanner.py", "tool.py"}
    assert PythonRecipe(function="bisect:bisect").load(HERE)([1, 2, 3], 2) == 2
    with pytest.raises(UsageError, match="no Python file"):
        PythonRecipe(function="math:sqrt").files(HERE)


# ---- logits ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda shown: np.full((len(shown), 2), np.inf), "gives inf as a logit"),
        (lambda shown: np.zeros((3, 2)), "it must give"),
        (lambda shown: np.zeros((len(shown), 2, 2)), "it must give"),
        (lambda shown: 1 / 0, "ZeroDivisionError"),
        ("a text", "a str is no model"),
    ],
)
def test_what_is_no_logits_is_an_error(model: Callable[..., Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        logits_from(model, np.zeros((5, 2), dtype=np.float32))


def test_logits_are_the_same_in_any_batch_and_leave_the_model_as_it_was() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)).double()
    inputs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    whole, parts = logits_from(module, inputs), logits_from(module, inputs, batch=3)
    assert np.allclose(whole, parts, atol=1e-12)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert logits_from(module, inputs[:0]).shape == (0, 3)
