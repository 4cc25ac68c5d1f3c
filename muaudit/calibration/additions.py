"""What each attack adds to a battery, and the smallest battery that detects nearly as much."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from muaudit.calibration.audits import Judged
from muaudit.calibration.record import Addition, Battery, Rate, Truth
from muaudit.calibration.tables import KNOWING, rate
from muaudit.results import Verdict

NEARLY = 0.02
"""By how much a smaller battery may detect less."""

LARGEST = 4_000
"""Most batteries that are tried one by one; beyond that, attacks are added greedily."""


@dataclass(frozen=True)
class Trial:
    """All audits of a calibration, of which batteries are tried.

    Attributes:
        judged: The audits under one policy.
        truths: What is known of each one's target.
        seconds: What each attack that gave numbers takes, a model.
    """

    judged: Sequence[Judged]
    truths: Sequence[Truth]
    seconds: Mapping[str, float]

    def failed(self, attacks: Iterable[str], *among: Truth) -> list[bool]:
        """Which audits of some truths a battery of these attacks fails."""
        out = set(self.seconds) - set(attacks)
        return [
            one.without(out).verdict is Verdict.FAIL
            for one, truth in zip(self.judged, self.truths, strict=True)
            if truth in among
        ]

    def battery(self, attacks: Sequence[str], how: str) -> Battery:
        """A battery with its rates."""
        return Battery(
            attacks=tuple(attacks),
            how=how,
            detection=_some(self.failed(attacks, *KNOWING)),
            false_alarm=_some(self.failed(attacks, "never_saw")),
            seconds=round(sum(self.seconds[name] for name in attacks), 3),
        )

    @property
    def attacks(self) -> list[str]:
        """Every attack that gave numbers."""
        return list(self.seconds)


def additions(trial: Trial) -> tuple[Addition, ...]:
    """What the battery loses and saves without each of its attacks.

    Args:
        trial: The audits; at least one of either kind.

    Returns:
        One row an attack; empty where there is but one.
    """
    names = trial.attacks
    if len(names) < 2 or not trial.failed(names, *KNOWING) or not trial.failed(names, "never_saw"):
        return ()
    whole = trial.failed(names, *KNOWING)
    found = []
    for name in names:
        rest = [other for other in names if other != name]
        flags = trial.failed(rest, *KNOWING)
        lost = sum(before and not after for before, after in zip(whole, flags, strict=True))
        false = _some(trial.failed(rest, "never_saw"))
        found.append(Addition(attack=name, detection=_some(flags), lost=lost, false_alarm=false, seconds=trial.seconds[name]))
    return tuple(found)


def batteries(trial: Trial) -> tuple[Battery, ...]:
    """The whole battery, and the smallest within 2 points of its detection.

    Smaller ones are tried one by one, by number of attacks, as long as there are not too many of a size; of those that reach
    the goal the one with the highest detection is taken, then the cheapest. A greedy search, which at each step adds the
    attack that detects most, is shown beside it, and stands alone where there are too many to try.

    Args:
        trial: The audits.

    Returns:
        The batteries, the whole one first; empty without audits of either kind.
    """
    names = trial.attacks
    if not names or not trial.failed(names, *KNOWING) or not trial.failed(names, "never_saw"):
        return ()
    whole = trial.battery(names, "whole")
    goal = whole.detection.share - NEARLY
    found = [whole, trial.battery(_greedy(trial, goal), "greedy")]
    tried = 0
    for size in range(1, len(found[1].attacks) + 1):
        every = list(combinations(names, size))
        tried += len(every)
        if tried > LARGEST:
            return tuple(found)
        reached = [(share, chosen) for chosen in every if (share := _share(trial, chosen)) >= goal]
        if reached:
            best = max(reached, key=lambda one: (one[0], -sum(trial.seconds[name] for name in one[1])))
            return (*found, trial.battery(best[1], "exhaustive"))
    return tuple(found)


def _share(trial: Trial, attacks: Iterable[str]) -> float:
    flags = trial.failed(attacks, *KNOWING)
    return sum(flags) / len(flags)


def _greedy(trial: Trial, goal: float) -> list[str]:
    chosen: list[str] = []
    while not chosen or (_share(trial, chosen) < goal and len(chosen) < len(trial.attacks)):
        left = [name for name in trial.attacks if name not in chosen]
        chosen.append(max(left, key=lambda name: (_share(trial, [*chosen, name]), -trial.seconds[name])))
    return chosen


def _some(flags: Sequence[bool]) -> Rate:
    found = rate(flags)
    assert found is not None  # noqa: S101 - callers have looked
    return found
