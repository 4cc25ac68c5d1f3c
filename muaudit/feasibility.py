"""What a policy asks of an audit, and what the audit lacks for it: said before anything is run.

An audit that cannot pass under its policy, whatever the target has forgotten, is refused when it is planned. It may still be
run on purpose, with `partial = true` under `[policy]`: it can then fail or stay undecided.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from scipy import stats

from muaudit import registry
from muaudit.attack import Attack
from muaudit.config import AuditConfig
from muaudit.errors import UsageError
from muaudit.examples import LabelledTask
from muaudit.opening import family
from muaudit.policy import Policy
from muaudit.task_opening import Task


class Planned(Protocol):
    """What is read of a planned attack: its name in the plan, and the attack behind it."""

    @property
    def name(self) -> str:
        """Its section of `[attacks]`."""
        ...

    @property
    def attack(self) -> str:
        """The attack that stands behind that name."""
        ...


def applied(rule: Policy, settings: AuditConfig, base: Path) -> Policy:
    """A policy as it applies to an audit: what it requires by access becomes required by name, where the target gives that.

    Args:
        rule: The policy as it was read.
        settings: The audit.
        base: The folder that its paths start from.

    Returns:
        The policy; `required_by_access` stays as it was, for the report to show.

    Raises:
        UsageError: An attack stands under an access that is not its own, or is not known.
        ModelError: The target's folder holds no model.
    """
    kind = family(settings.target, base, numbers=settings.task.kind == "regression")
    needed = [name for name in _by_access(rule) if not _of(name, rule).missing(kind)]
    return rule.model_copy(update={"required": tuple(dict.fromkeys((*rule.required, *needed)))})


def _by_access(rule: Policy) -> Iterator[str]:
    for access, names in rule.required_by_access.items():
        for name in names:
            if (own := _of(name, rule).access) != access:
                raise UsageError(
                    f"policy {rule.name!r}: required_by_access.{access} names {name!r}, which needs access {own!r}: move it"
                )
            yield name


def _of(name: str, rule: Policy) -> Attack:
    found = registry.registered().get(name)
    if found is None:
        raise UsageError(
            f"policy {rule.name!r}: required_by_access names {name!r}, which is no attack here; `muaudit attacks` lists them"
        )
    if isinstance(found, registry.Broken):
        raise UsageError(f"policy {rule.name!r} requires {name!r}: {found.reason}; mend or remove that package")
    return found.attack.model_construct()


def smallest_bound(units: int, clusters: int, references: int, confidence: float) -> float:
    """The least upper bound of a gap that an audit of this size can show: no target that it looks at can come below.

    `muaudit.statistics.mean_gap` takes no unit for known better than 1/n, and its degrees of freedom are at most those of
    clusters and references together; so even a target that is its references, bit for bit, is left with this much.

    Args:
        units: Units n of the forget set, at least 1.
        clusters: Their clusters, at least 2.
        references: References, at least 1.
        confidence: One-sided level of the bound, in (0.5, 1).

    Returns:
        The bound, above 0.
    """
    return float(stats.t.ppf(confidence, clusters - 1 + references - 1)) / units


def shortfalls(rule: Policy, settings: AuditConfig, task: Task, planned: Sequence[Planned], base: Path) -> list[str]:
    """What stands between an audit and a `pass`, whatever its target has forgotten.

    Args:
        rule: The policy as it applies (see `applied`).
        settings: The audit.
        task: Its task.
        planned: Its attacks.
        base: The folder that its paths start from.

    Returns:
        One phrase each: what there is, what is needed, how to get there. Empty where a `pass` can be given.
    """
    return [
        *_too_small(rule, settings, task, planned),
        *_not_to_pass(rule, settings, planned, base),
        *_too_shallow(rule, settings, planned, base),
    ]


def refuse(rule: Policy, missing: Sequence[str]) -> None:
    """Refuses an audit that cannot pass.

    Raises:
        UsageError: Something is missing; the message says what.
    """
    if missing:
        raise UsageError(
            f"policy {rule.name!r} cannot be satisfied by this audit: {'; '.join(missing)}; or set partial = true under "
            "[policy] to run it all the same: it can then fail or stay undecided, never pass"
        )


def _too_small(rule: Policy, settings: AuditConfig, task: Task, planned: Sequence[Planned]) -> Iterator[str]:
    """Too few references, clusters or units, or no original where the policy wants one."""
    units, clusters = _sizes(task)
    references = len(settings.references)
    if references < rule.minimum_references:
        yield f"{_counted(references, 'reference')} where it asks for {rule.minimum_references}: retrain more"
    for have, least, what in ((clusters, rule.minimum_clusters, "cluster"), (units, rule.minimum_units, "unit")):
        if have < least:
            yield f"{_counted(have, what)} in the forget set where it asks for {least}: give more"
    if rule.positive_control and settings.original is None:
        yield "no original where it asks for a positive control: give the model before unlearning under [original]"
    if clusters < 2:
        return
    bound = smallest_bound(units, clusters, references, rule.equivalence_confidence)
    margins = {entry.name: rule.margin_of(entry.name, entry.attack) for entry in planned}
    decisive = {name: margins[name] for name in (rule.required or margins) if name in margins}
    for margin in sorted(set(decisive.values())):
        if bound >= margin:
            names = ", ".join(name for name, own in decisive.items() if own == margin)
            least = math.floor(bound * units / margin) + 1
            yield (
                f"{_counted(units, 'unit')} in {_counted(clusters, 'cluster')}, from which no gap below {bound:.3f} can be "
                f"shown at {rule.equivalence_confidence:.1%}, where it asks {names} for {margin:g}: give {least} units or more"
            )


def _not_to_pass(rule: Policy, settings: AuditConfig, planned: Sequence[Planned], base: Path) -> Iterator[str]:
    """Required attacks that are not planned, or that lack a model which they work with or the access that they need."""
    known = {entry.name: entry.attack for entry in planned}
    kind = family(settings.target, base, numbers=settings.task.kind == "regression")
    for name in rule.required:
        if name not in known:
            skipped = " (skipped, and the report says so, where the access is not there)" if name in rule.skippable else ""
            yield f"{name} is required and not planned: add [attacks.{name}]{skipped}"
            continue
        found = registry.registered().get(known[name])
        if name in rule.skippable or not isinstance(found, registry.Registered):
            continue
        if lacking := found.attack.model_construct().missing(kind):
            yield f"{name} is required, and a target of kind {settings.target.kind!r} does not give {', '.join(lacking)}"
        if found.attack.reads_original and settings.original is None:
            yield f"{name} is required and reads the original: give it under [original]"
        if found.attack.calibrates and len(settings.references) < 2:
            yield f"{name} is required and sets one reference aside: give two or more"


def _too_shallow(rule: Policy, settings: AuditConfig, planned: Sequence[Planned], base: Path) -> Iterator[str]:
    """Nothing to run but attacks that see only part of what methods leave."""
    kind = family(settings.target, base, numbers=settings.task.kind == "regression")
    known = [registry.registered().get(entry.attack) for entry in planned]
    attacks = [one.attack for one in known if isinstance(one, registry.Registered)]
    run = [one for one in attacks if not one.model_construct().missing(kind)]
    if run and not rule.shallow_passes and all(one.informational for one in run):
        yield (
            f"only {', '.join(one.name for one in run)} can be run, and a pass of that says too little (`muaudit attacks "
            f"{run[0].name}`): add an attack that sees more, or set shallow_passes = true under [policy], which the report says"
        )


def _sizes(task: Task) -> tuple[int, int]:
    """Units and clusters of the forget set."""
    clusters = task.forget.clusters if isinstance(task, LabelledTask) else tuple(one.cluster for one in task.forget)
    return len(clusters), len(set(clusters))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
