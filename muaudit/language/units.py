"""What attacks on facts share: which facts are scored, and how a measurement's columns are put together."""

from typing import Literal, NamedTuple

import numpy as np

from muaudit.task import Fact, ForgetTask

Scored = Literal["forget", "retain"]


class Unit(NamedTuple):
    """A fact that is scored, with the set that it comes from."""

    set: Scored
    fact: Fact


def choose(task: ForgetTask, retain_clusters: int, rng: np.random.Generator) -> tuple[list[Unit], list[str]]:
    """All forget facts, and the retain facts of whole clusters drawn by the seed.

    Args:
        task: The sets.
        retain_clusters: At most so many clusters of the retain set.
        rng: Draws them.

    Returns:
        The units, and notes on what was left out.
    """
    clusters = list(dict.fromkeys(fact.cluster for fact in task.retain))
    notes = []
    if len(clusters) > retain_clusters:
        notes.append(
            f"collateral damage is measured on {retain_clusters} of {len(clusters)} retain clusters, drawn by the seed"
        )
        clusters = [clusters[index] for index in sorted(rng.choice(len(clusters), retain_clusters, replace=False))]
    kept = set(clusters)
    retain = [Unit("retain", fact) for fact in task.retain if fact.cluster in kept]
    return [*(Unit("forget", fact) for fact in task.forget), *retain], notes


def chance_corrected(share: float, chance: float) -> float:
    """A share of right answers above what guessing gives, rescaled to [0, 1]; 0 at chance and below.

    Args:
        share: Probability or share of right answers, in [0, 1].
        chance: What guessing gives, in [0, 1).
    """
    return max(0.0, (share - chance) / (1 - chance))
