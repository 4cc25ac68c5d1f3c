"""A series of targets in one audit: growing forget sets (scalability), or one request after another (sustainability).

Each step is an audit of its own, with its own target and, where given, its own references and forget set. The last step is the
audit's `target` itself; what came before it are the `[[series]]` of audit.toml, in order.
"""

from collections.abc import Mapping, Sequence

from muaudit.config import AuditConfig, ExamplesTask, FactsTask, ImagesTask
from muaudit.policy import Policy
from muaudit.results import Curve, CurveLine, Finding

LAST = "target"
"""What the last step is called."""


def earlier(settings: AuditConfig) -> list[tuple[str, AuditConfig]]:
    """The steps before the last, each as a configuration of its own.

    Args:
        settings: A configuration with its `series`.

    Returns:
        Name and configuration of each; what a step does not give stands as in the audit itself.
    """
    steps = []
    for step in settings.series:
        task = settings.task
        if isinstance(task, FactsTask | ExamplesTask | ImagesTask):
            files = {key: getattr(step, key) for key in ("forget", "retain", "holdout") if getattr(step, key) is not None}
            task = task.model_copy(update=files)
        changed = {
            "task": task,
            "target": step.target,
            "original": step.original or settings.original,
            "references": step.references or settings.references,
            "series": (),
        }
        steps.append((step.name, settings.model_copy(update=changed)))
    return steps


def labelled(findings: Sequence[Finding], step: str) -> list[Finding]:
    """A step's findings under names that tell them from the other steps'."""
    return [finding.model_copy(update={"attack": f"{finding.attack} @ {step}"}) for finding in findings]


def policy_for(policy: Policy, steps: Sequence[str]) -> Policy:
    """The policy, asking of every step what it asks of the last."""
    return policy.model_copy(
        update={
            key: (*getattr(policy, key), *(f"{name} @ {step}" for step in steps for name in getattr(policy, key)))
            for key in ("required", "skippable")
        }
    )


def curves(steps: Mapping[str, Sequence[Finding]]) -> tuple[Curve, ...]:
    """Mean leakage and retention along the series, a curve for each attack that every step could measure.

    Args:
        steps: The findings of every step by its name, in order, the last one included; with the attacks' own names.

    Returns:
        The curves; x counts the steps from 1, and the label names them.
    """
    if len(steps) < 2:
        return ()
    by_step = [{(one.attack, one.measures): one for one in findings} for findings in steps.values()]
    label = "step: " + ", ".join(f"{number} {name}" for number, name in enumerate(steps, 1))
    drawn = []
    for key in by_step[-1]:
        found = [step.get(key) for step in by_step]
        lines = [
            CurveLine(model=role, y=tuple(value for value in values if value is not None))
            for role in ("target", "references", "original")
            if None not in (values := [None if one is None else getattr(one, role) for one in found])
        ]
        if lines:
            what = "leakage of the forget set" if key[1] == "leakage" else "knowledge of the retain set"
            x = tuple(float(number) for number in range(1, len(steps) + 1))
            drawn.append(Curve(name=f"{key[0]}: {what}", x_label=label, y_label=f"mean {what}", x=x, lines=tuple(lines)))
    return tuple(drawn)
