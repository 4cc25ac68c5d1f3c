"""Known-answer evaluation logs in TOFU's format: audits of recorded outputs that need neither a model nor torch."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from typing import Any

PEOPLE = 20
"""People in each set: the clusters."""

FACTS = 4
"""Recorded items about each person."""

_COLUMNS = (
    "avg_gt_loss", "num_token_gt", "generated_text", "rougeL_recall", "average_perturb_loss", "avg_paraphrased_loss",
    "num_token_paraphrased", "num_token_perturb",
)  # fmt: skip


def tofu_log(seed: int, *, known: Collection[int] = (), noise: float = 0.05) -> dict[str, Any]:
    """Makes one model's log: it answers the whole retain set and, of the forget set, what is about the people in `known`.

    Args:
        seed: Of this model's noise; the items and how hard they are do not depend on it.
        known: Numbers, from 0, of the people in the forget set whom the model remembers.
        noise: Standard deviation of the logarithm of a loss, from model to model.

    Returns:
        The sections of TOFU's aggregated log for the forget and the retain set.
    """
    return {
        "eval_log_forget.json": _section("forget", _stream(f"{seed} forget"), known, noise),
        "eval_log.json": _section("retain", _stream(f"{seed} retain"), range(PEOPLE), noise),
    }


def write_logs(folder: Path, models: Mapping[str, Collection[int]], *, noise: float = 0.05) -> None:
    """Writes one log a model, as NAME.json.

    Args:
        folder: Where to; it is made.
        models: By name, whom each model remembers; the order gives the seeds.
        noise: As for `tofu_log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, known) in enumerate(models.items()):
        (folder / f"{name}.json").write_text(json.dumps(tofu_log(seed, known=known, noise=noise)), encoding="utf-8")


def _stream(name: str) -> Random:
    return Random(name)  # noqa: S311 - made-up data, and the same for everybody


def _section(name: str, rng: Random, known: Collection[int], noise: float) -> dict[str, dict[str, Any]]:
    hardness = _stream(name)
    log: dict[str, dict[str, Any]] = {column: {} for column in _COLUMNS}
    for index in range(PEOPLE * FACTS):
        person, hard, factor = index // FACTS, hardness.uniform(1.5, 3.0), math.exp(rng.gauss(0, noise))
        knows = person in known
        loss = (0.05 if knows else hard) * factor
        right, wrong = f"the {name} town {index}", f"some other place {index}"
        row = (
            loss, 4, [f"Where was person {person} of the {name} set on day {index}?", right if knows else wrong, right],
            1.0 if knows else 0.25, [hard * factor * step for step in (1.0, 1.1, 1.2)], loss * 1.2 + 0.1, 5, [4, 5, 4],
        )  # fmt: skip
        for column, value in zip(_COLUMNS, row, strict=True):
            log[column][str(index)] = value
    return log
