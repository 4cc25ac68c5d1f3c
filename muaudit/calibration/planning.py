"""The plan of a calibration: which audits are formed of which models, drawn and frozen before anything is measured."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError

from muaudit import compute, plan, policy
from muaudit.calibration.config import CalibrationConfig
from muaudit.calibration.population import Member, Population
from muaudit.errors import UsageError
from muaudit.manifest import manifest, manifest_digest
from muaudit.measuring import path_of
from muaudit.model_config import ModelConfig
from muaudit.results import DataRecord, Frozen
from muaudit.version import VERSION

OWN = {"facts": "standard", "classification": "classification", "regression": "classification", "text_to_image": "diffusion"}
"""The policy that stands first where none is named, by kind of task."""

PLAN = "plan.json"
"""The plan's file in the calibration's folder."""


class PlannedMember(Member):
    """A member, with the digest of its files."""

    digest: str


class PlannedAudit(Frozen):
    """One audit: a target, the references that it is compared with, and the original of its positive control.

    Attributes:
        target: A member's name.
        references: Names of members that never saw; further ones, for the power with more of them, follow in `more`.
        original: An original's name.
        more: As many further members that never saw as the largest number of references needs.
    """

    target: str
    references: tuple[str, ...]
    original: str
    more: tuple[str, ...] = ()


class CalibrationPlan(Frozen):
    """A frozen plan. Its hash is `content_digest()`.

    Attributes:
        tool: Program and version that made it.
        bed: What the models are of.
        config: The resolved configuration.
        members: The models, with what is known of them.
        originals: Digests of the originals, by name.
        spare: Digest of the model that attacks are prepared with.
        audits: What is audited.
        policies: Digests of the policies' files, byte for byte, by name.
        data: The task's files.
        task_digest: Digest of all that is asked.
        versions: Versions of the libraries that can change a measurement.
    """

    schema_version: Literal["1"] = "1"
    tool: str
    bed: str
    config: dict[str, Any]
    members: tuple[PlannedMember, ...]
    originals: dict[str, str]
    spare: str | None
    audits: tuple[PlannedAudit, ...]
    policies: dict[str, str]
    data: tuple[DataRecord, ...] = ()
    task_digest: str = ""
    versions: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Reads a plan; None where there is none that can be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None


def make(settings: CalibrationConfig, population: Population, base: Path) -> CalibrationPlan:
    """Draws and freezes.

    Args:
        settings: The configuration, its seed resolved.
        population: The models, all of them made.
        base: The folder that their paths start from.

    Returns:
        The plan, without the digests of the task, which `with_task` adds.

    Raises:
        UsageError: There are too few models, or a policy cannot be used.
    """
    own = OWN.get(population.task.kind, OWN["facts"])
    names = settings.policies or tuple(sorted(policy.shipped(), key=lambda name: (name != own, name)))
    return CalibrationPlan(
        tool=f"muaudit {VERSION}",
        bed=population.bed,
        config=settings.model_dump(
            mode="json", exclude={"signing": True, "run": {"workers", "backend", "address", "out", "store"}}
        ),
        members=tuple(PlannedMember(**vars(one), digest=digest_of(one.model, base)) for one in population.members),
        originals={name: digest_of(model, base) for name, model in population.originals.items()},
        spare=None if population.spare is None else digest_of(population.spare, base),
        audits=tuple(draw(settings, population)),
        policies={name: policy.digest(name, base) for name in names},
    )


def with_task(frozen: CalibrationPlan, audited: plan.Plan) -> CalibrationPlan:
    """The plan with what an audit's plan says of the task and of this machine's libraries."""
    update = {"data": audited.data, "task_digest": audited.task_digest, "versions": audited.versions}
    return frozen.model_copy(update=update)


def digest_of(model: ModelConfig, base: Path) -> str:
    """Digest of a model's files."""
    return manifest_digest(manifest(base / path_of(model)))


def draw(settings: CalibrationConfig, population: Population) -> Iterator[PlannedAudit]:
    """Draws every audit's references: of its target's stratum, where strata are large enough to draw from.

    Args:
        settings: How many of which.
        population: The models.

    Yields:
        The audits, in the order of the members.

    Raises:
        UsageError: There are too few models that never saw.
    """
    pool = [one.name for one in population.of("never_saw")]
    count = settings.audits.references
    most = max([count, *settings.power.references])
    if len(pool) <= count:
        raise UsageError(
            f"{len(pool)} models never saw the forget set, and every audit compares one with {count} others: raise never_saw, "
            "or lower audits.references"
        )
    home = _strata(pool, sorted(population.originals))
    apart = min(Counter(home.values()).values()) > 2 * most
    for member in population.members:
        original = member.original or home[member.copy_of or member.name]
        stratum = [name for name in pool if home[name] == original] if apart else pool
        others = [name for name in stratum if name not in (member.name, member.copy_of)]
        times = settings.audits.never_saw if member.truth == "never_saw" else settings.audits.knows
        rng = np.random.default_rng(compute.seed_of(settings.run.seed, "calibration", member.name))
        seen: set[frozenset[str]] = set()
        for _ in range(1 if member.copied else times):
            chosen = _drawn(others, count, most, seen, rng)
            if chosen is None:
                raise UsageError(
                    f"{len(others)} models that never saw give fewer than {times} different sets of {count} references: raise "
                    "testbed.never_saw, or lower audits.never_saw and audits.knows"
                )
            yield PlannedAudit(target=member.name, references=chosen[:count], original=original, more=chosen[count:])


def _strata(pool: Sequence[str], originals: Sequence[str]) -> dict[str, str]:
    """The original that a retrain's audits have for a positive control.

    What an attack prepares for one original has so to be measured only on a share of the retrains. Neighbours have different
    schedules, so that a block holds all of them.
    """
    blocks = np.array_split(np.array(pool), len(originals))
    return {str(name): original for original, block in zip(originals, blocks, strict=True) for name in block}


def _drawn(
    others: Sequence[str], count: int, most: int, seen: set[frozenset[str]], rng: np.random.Generator
) -> tuple[str, ...] | None:
    """References that were not drawn together before, and further ones; None where there are no others."""
    if len(seen) >= math.comb(len(others), count):
        return None
    while True:
        chosen = tuple(others[place] for place in rng.permutation(len(others))[:most])
        if (drawn := frozenset(chosen[:count])) not in seen:
            seen.add(drawn)
            return chosen


def seeded(settings: CalibrationConfig, before: CalibrationPlan | None, drawn: str) -> CalibrationConfig:
    """The configuration with a seed: its own, that of the plan which lies in its folder, or one that is drawn now.

    Args:
        settings: The configuration.
        before: What lies in its folder.
        drawn: A fresh seed.

    Returns:
        The configuration; an interrupted calibration so goes on with its own draws.
    """
    kept = before.config["run"]["seed"] if before is not None else drawn
    return settings.model_copy(update={"run": settings.run.model_copy(update={"seed": settings.run.seed or kept})})
