"""Kinds of models that calibrations ask for besides a method's own: other schedules, shares of people left in, strengths."""

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from muaudit.errors import UsageError

SHARES: dict[str, float] = {"one": 0.0, "tenth": 0.1, "half": 0.5}
"""Shares of the forgotten clusters that are left in, by name; at least one cluster is."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "long": {"epochs": 20},
    "small-batches": {"batch_size": 24, "learning_rate": 3.5e-3},
    "slow": {"learning_rate": 3.5e-3, "epochs": 18},
    "decayed": {"weight_decay": 0.01},
}
"""How else the models are trained from scratch: what is changed of the recipe."""

LINEAGE_SCHEDULES: dict[str, dict[str, Any]] = {
    "long": {"documents": 8_000},
    "small-batches": {"tokens": 300, "rate": 2.4e-3},
    "slow": {"rate": 2.2e-3, "documents": 7_000},
    "emphatic": {"emphasis": 3.0},
}
"""How else models are fine-tuned from a base."""

STRENGTHS: dict[str, dict[str, dict[str, Any]]] = {
    "gradient_ascent": {"weak": {"steps": 6}, "strong": {"steps": 30}},
    "gradient_difference": {"weak": {"steps": 6}, "strong": {"steps": 40}},
    "npo": {"weak": {"steps": 15}, "strong": {"steps": 120}},
    "rmu": {"weak": {"steps": 40}, "strong": {"steps": 240}},
    "flat": {"weak": {"steps": 30}, "strong": {"steps": 200}},
    "loku": {"weak": {"steps": 25}, "strong": {"steps": 160}},
    "task_vector": {"weak": {"kept": 0.95}, "strong": {"kept": 0.7}},
    "unlearn_smooth": {"weak": {"steps": 15}, "strong": {"steps": 120}},
    "selective_amnesia": {"weak": {"steps": 25}, "strong": {"steps": 160}},
    "refusal": {"weak": {"steps": 25}, "strong": {"steps": 160}},
    "rocr": {"weak": {"kept": 0.95}, "strong": {"kept": 0.7}},
}
"""Parameters of every approximate method's weak and strong use: a third to two fifths of the steps and twice as many, or less
and more of the retain set given up."""

_LEFT_IN, _SCHEDULED = 3_000, 10_000
"""Seeds of models with a share left in, and of other schedules, so that none shares one with a retrain or a reference."""


def read(
    name: str,
    clusters: Sequence[Sequence[str]],
    schedules: Mapping[str, object],
    strengths: Mapping[str, Mapping[str, dict[str, Any]]],
) -> dict[str, Any] | None:
    """What a name of one of these kinds means.

    Args:
        name: A model's name.
        clusters: The forgotten clusters, in order: for each, what a retrain is told to have it left in.
        schedules: The testbed's other schedules, by name.
        strengths: Parameters by method and strength.

    Returns:
        Method, parameters, seed and schedule; None where the name is of no such kind.

    Raises:
        UsageError: A share is asked for and there are no clusters.
    """
    spelled = name.replace("_", "-")
    if match := re.fullmatch(rf"retrain-left-in-({'|'.join(SHARES)})(?:-(\d+))?", spelled):
        return left_in(match[1], int(match[2] or 0), clusters)
    if schedules and (match := re.fullmatch(rf"retrain-({'|'.join(map(re.escape, schedules))})(?:-(\d+))?", spelled)):
        seed = _SCHEDULED * (1 + list(schedules).index(match[1])) + int(match[2] or 0)
        return {"method": "retrain", "seed": seed, "schedule": match[1]}
    methods = {method.replace("_", "-"): method for method in strengths}
    if methods and (match := re.fullmatch(rf"({'|'.join(methods)})-(weak|strong)(?:-(\d+))?", spelled)):
        method = methods[match[1]]
        return {"method": method, "parameters": strengths[method][match[2]], "seed": int(match[3] or 0)}
    return None


def left_in(share: str, number: int, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A retrain that saw a share of the forgotten clusters, drawn by its number.

    Raises:
        UsageError: There are no clusters.
    """
    if not clusters:
        raise UsageError(
            f"model 'retrain-left-in-{share}': this testbed has no forgotten clusters to leave in; ask for another"
        )
    count = max(1, math.floor(SHARES[share] * len(clusters) + 0.5))
    drawn = random.Random(f"left in {share} {number}").sample(range(len(clusters)), count)  # noqa: S311 - repeatable, not secret
    chosen = tuple(part for place in sorted(drawn) for part in clusters[place])
    seed = _LEFT_IN + 100 * list(SHARES).index(share) + number
    return {"method": "retrain", "parameters": {"left_in": chosen}, "seed": seed}
