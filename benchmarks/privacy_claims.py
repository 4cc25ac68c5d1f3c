"""Which claims of epsilon does `empirical_epsilon` refute? Mislabelled canaries, ten seeds.

Digits: 400 canaries with wrong labels, each put into the training set by its own fair coin, and 100 ordinary examples. Trained
without privacy and claiming epsilon 1, and by Opacus with honest claims of 1, 4 and 16 (delta 1e-5). References are trained on
the ordinary examples alone.
Run `python benchmarks/privacy_claims.py`; the table in docs/privacy-claims.md is its output.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muaudit import policy
from muaudit.attack import Bench
from muaudit.attacks.empirical_epsilon import EmpiricalEpsilon
from muaudit.compare import compare
from muaudit.compute import settled
from muaudit.examples import Examples, LabelledTask
from muaudit.models.classifier import Classifier
from muaudit.results import Finding
from muaudit.testbed.classification.data import Population, make_task
from muaudit.testbed.classification.differentially_private import DifferentiallyPrivate
from muaudit.training.recipes import TorchRecipe, train

RECIPE = TorchRecipe(steps=300, hidden=(128,))
CLAIMS = (1.0, 4.0, 16.0)
STRATEGIES = ("split", "one_run")


def rows(task: LabelledTask, *, canaries: bool) -> NDArray[np.bool_]:
    """What a model is trained on: the ordinary examples, and perhaps the canaries whose coins fell in."""
    mask = np.zeros(len(task.pool), dtype=bool)
    mask[task.rows("retain")] = True
    mask[task.rows("forget")] = canaries
    return mask


def targets(task: LabelledTask, seed: int) -> dict[str, tuple[float, Classifier]]:
    """The models under audit, each with its claim."""
    plain = train(RECIPE, task.pool, seed, Path(), rows=rows(task, canaries=True))
    found = {"no privacy, claims 1": (1.0, Classifier(plain))}
    for epsilon in CLAIMS:
        private = DifferentiallyPrivate(epsilon=epsilon, recipe=RECIPE)
        trained = private.fit(Examples.joined([task.forget, task.retain]), seed)
        found[f"Opacus, claims {epsilon:g}"] = (private.claim(task.forget, task.retain).epsilon, Classifier(trained))
    return found


def findings(task: LabelledTask, seed: int) -> dict[tuple[str, str], Finding]:
    """The claim's finding, by model and strategy."""
    references = [Classifier(train(RECIPE, task.pool, number, Path(), rows=rows(task, canaries=False))) for number in range(3)]
    found, rule = {}, policy.load("standard")
    for name, (epsilon, target) in targets(task, seed).items():
        for strategy in STRATEGIES:
            attack = EmpiricalEpsilon.model_validate(
                {"claim": {"epsilon": epsilon, "delta": 1e-5}, "game": "training", "strategy": strategy}
            )
            state = attack.prepare(Bench(task, np.random.default_rng(seed), frozenset({"Classifies"}))).with_task(task)
            first, *rest = (attack.measure(one, state, np.random.default_rng(0)) for one in (target, *references))
            found[name, strategy] = compare(attack.card(), first, rest, None, rule, seed=seed)[-1]
    return found


def main() -> None:
    """Prints the table of docs/privacy-claims.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--canaries", type=int, default=400)
    asked = parser.parse_args()
    seen: dict[tuple[str, str], list[Finding]] = {}
    with settled(1):
        for seed in range(asked.seeds):
            population = Population(by="canary", forget=asked.canaries, retain=100, holdout=20, wrong_labels=0.0, seed=seed)
            for key, finding in findings(make_task(population), seed).items():
                seen.setdefault(key, []).append(finding)
    print("| model | strategy | refuted | not refuted | too few | bound shown: mean (largest) | could be shown |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, strategy), found in seen.items():
        verdicts = Counter(finding.verdict.value for finding in found)
        shown = [finding.claim.lower_bound for finding in found if finding.claim is not None]
        could = np.mean([finding.claim.detectable for finding in found if finding.claim is not None])
        counts = " | ".join(str(verdicts[verdict]) for verdict in ("fail", "pass", "inconclusive"))
        print(f"| {name} | {strategy} | {counts} | {np.mean(shown):.2f} ({max(shown):.2f}) | {could:.2f} |")


if __name__ == "__main__":
    main()
