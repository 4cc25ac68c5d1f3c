"""How attacks are found: by the entry-point group `muaudit.attacks`, so that others' packages add some without a fork."""

from collections.abc import Iterable, Iterator, Mapping
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


class Attacks(Mapping[str, Registered | Broken]):
    """All registered attacks by name, sorted; each is loaded when it is first asked for, since some import much."""

    def __init__(self, entries: Iterable[EntryPoint]) -> None:
        self._entries: dict[str, list[EntryPoint]] = {}
        for entry in sorted(entries, key=lambda entry: entry.name):
            self._entries.setdefault(entry.name, []).append(entry)
        self._loaded: dict[str, Registered | Broken] = {}

    def __getitem__(self, name: str) -> Registered | Broken:
        """One attack, loaded; two packages that register one name make that name `Broken`."""
        if name not in self._loaded:
            first, *others = [_load(entry) for entry in self._entries[name]]
            other = next((one for one in others if one != first), None)
            twice = other and Broken(name, other.package, f"{first.package} and {other.package} both register {name!r}")
            self._loaded[name] = twice or first
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@cache
def registered() -> Mapping[str, Registered | Broken]:
    """All registered attacks by name; one that cannot be used is `Broken`, with the reason.

    Returns:
        The attacks, sorted by name; looked up once a process.
    """
    return Attacks(entry_points(group=GROUP))


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
