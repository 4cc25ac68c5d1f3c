"""How attacks are found: by the entry-point group `muaudit.attacks`, so that others' packages add some without a fork."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from muaudit.attack import Attack
from muaudit.errors import UsageError

GROUP = "muaudit.attacks"
"""The entry-point group in which attacks are registered."""


@dataclass(frozen=True)
class Broken:
    """A registered attack that does not load; it becomes an error row in the report, never a silent gap."""

    name: str
    package: str
    reason: str


@dataclass(frozen=True)
class Registered:
    """An attack's class and the package that registered it."""

    attack: type[Attack]
    package: str


def _load(entry: EntryPoint) -> Registered | Broken:
    package = entry.dist.name if entry.dist else "unknown package"
    try:
        attack = entry.load()
    except Exception as error:  # noqa: BLE001 - a third party's package may raise anything, and the audit must go on
        return Broken(entry.name, package, f"{package}: attack {entry.name!r} does not load: {type(error).__name__}: {error}")
    if not (isinstance(attack, type) and issubclass(attack, Attack)):
        return Broken(entry.name, package, f"{package}: entry point {entry.name!r} is not a subclass of muaudit.attack.Attack")
    if attack.name != entry.name:
        return Broken(entry.name, package, f"{package}: entry point {entry.name!r} names an attack called {attack.name!r}")
    return Registered(attack, package)


@cache
def registered() -> dict[str, Registered | Broken]:
    """All registered attacks by name; one that cannot be used is `Broken`, with the reason.

    Returns:
        The attacks, sorted by name; looked up once a process. Two packages that register one name make that name `Broken`.
    """
    found: dict[str, Registered | Broken] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        loaded = _load(entry)
        if (first := found.get(entry.name)) is not None and first != loaded:
            loaded = Broken(entry.name, loaded.package, f"{first.package} and {loaded.package} both register {entry.name!r}")
        found[entry.name] = loaded
    return found


def find(name: str) -> Registered | Broken:
    """One registered attack.

    Args:
        name: The attack's name.

    Returns:
        The attack, or why it cannot be used.

    Raises:
        UsageError: No package registers that name.
    """
    attacks = registered()
    if name not in attacks:
        near = get_close_matches(name, attacks, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(attacks) or 'none; is muaudit installed?'}"
        raise UsageError(f"attack {name!r}: no installed package registers it; {hint}")
    return attacks[name]
