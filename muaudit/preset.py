"""Presets: named sets of attacks with their parameters, which audit.toml takes by name."""

import tomllib
from difflib import get_close_matches
from importlib import resources
from typing import Any

from muaudit.errors import UsageError


def shipped() -> dict[str, str]:
    """The presets that ship with the package: what each is for, by name."""
    folder = resources.files("muaudit") / "presets"
    names = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {name: str(_read(name)["description"]) for name in names}


def attacks(name: str) -> dict[str, dict[str, Any]]:
    """A preset's sections of `[attacks]`.

    Args:
        name: Its name.

    Returns:
        Parameters by section, as in audit.toml.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in (known := shipped()):
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"preset {name!r}: no such preset; {hint}")
    return {section: dict(values) for section, values in _read(name)["attacks"].items()}


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("muaudit") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
