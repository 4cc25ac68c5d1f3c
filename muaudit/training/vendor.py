"""Code that an audit is told to run: the vendor's functions by name, and scikit-learn's estimators."""

import hashlib
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from muaudit.errors import EnvironmentFault, ModelError, MuauditError, UsageError


def split(function: str) -> tuple[str, str]:
    """The two parts of "module:function" or "file.py:function".

    Raises:
        ValueError: It has no such parts.
    """
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier() or not (place.endswith(".py") or all(map(str.isidentifier, place.split(".")))):
        raise ValueError(f'{function!r} names no function; write "module:function", or "file.py:function"')
    return place, name


def files(function: str, folder: Path) -> tuple[Path, ...]:
    """The Python files whose digests identify a function: its file, or all of its module's package. Nothing is run.

    Args:
        function: "module:function" or "file.py:function".
        folder: That a file's path starts from.

    Returns:
        Their paths, sorted.

    Raises:
        UsageError: There is no such file or module.
    """
    place, _ = split(function)
    if place.endswith(".py"):
        path = folder / place
        if not path.is_file():
            raise UsageError(f"{function}: there is no file {path}; paths start from the folder of audit.toml")
        return (path,)
    top = place.split(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise UsageError(f'{function}: no module {top!r} is installed here; install it, or name its file: "file.py:function"')
    if spec.submodule_search_locations is not None:
        found = sorted({path for place in spec.submodule_search_locations for path in Path(place).rglob("*.py")})
    else:
        found = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    if not found:
        raise UsageError(f"{function}: module {top!r} has no Python file that could be digested; give the function's own file")
    return tuple(found)


def code_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of code files; where they lie does not matter."""
    parts = hashlib.sha256()
    for path in paths:
        parts.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return parts.hexdigest()


def load(function: str, folder: Path) -> Callable[..., Any]:
    """Imports a function, which runs its module.

    Args:
        function: "module:function" or "file.py:function".
        folder: That a file's path starts from.

    Returns:
        The function.

    Raises:
        UsageError: The file, the module or the function is not there, or the import fails.
    """
    place, name = split(function)
    paths = files(function, folder)
    try:
        module = _from_file(paths[0]) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise UsageError(f"{function}: cannot be imported: {type(error).__name__}: {error}; mend the code") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UsageError(f"{function}: {place} has no function {name!r}; write its name after the colon")
    return found  # type: ignore[no-any-return]


def _from_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(path.read_bytes() + str(path.resolve()).encode()).hexdigest()
    name = f"muaudit_vendor_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while the file runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def call(function: Callable[..., Any], name: str, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - the vendor's
    """Calls a vendor's function.

    Args:
        function: The function.
        name: What to call it in an error.
        *arguments: Its arguments.
        **keywords: The same, by name.

    Returns:
        What it returns.

    Raises:
        ModelError: It raises something.
    """
    try:
        return function(*arguments, **keywords)
    except MuauditError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: raised {type(error).__name__}: {error}; mend the function or its parameters") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every global generator, while it lasts: code that ignores its own seed is to give the same model twice.

    Args:
        seed: In [0, 2**63).

    Yields:
        Nothing; afterwards the generators go on as if nothing had been.
    """
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), None if torch is None else torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.random.set_rng_state(states[2])


def is_module(model: object) -> bool:
    """Whether a model is a torch module; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_estimator(model: object) -> bool:
    """Whether a model is an estimator of scikit-learn's make."""
    return hasattr(model, "get_params") and hasattr(model, "fit")


def estimator(name: str) -> type[Any]:
    """A classifier or regressor of scikit-learn, by its full name.

    Args:
        name: Such as "sklearn.linear_model.LogisticRegression".

    Returns:
        Its class.

    Raises:
        ValueError: scikit-learn has no such classifier or regressor.
        EnvironmentFault: scikit-learn is not installed.
    """
    module, _, kind = name.rpartition(".")
    if not (module == "sklearn" or module.startswith("sklearn.")) or not all(map(str.isidentifier, name.split("."))):
        raise ValueError(f"{name!r} is not scikit-learn's; for other code use kind = 'python' and a function that trains")
    try:
        from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    except ImportError:
        raise EnvironmentFault(f"{name}: scikit-learn is not installed; install it: pip install 'muaudit[models]'") from None
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ImportError:
        found = None
    if not isinstance(found, type) or not issubclass(found, BaseEstimator) or not found.__module__.startswith("sklearn."):
        found = None
    if found is None or not issubclass(found, ClassifierMixin | RegressorMixin):
        raise ValueError(f"scikit-learn has no classifier or regressor {name!r}; write its full name")
    return found
