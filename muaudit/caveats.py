"""What an audit's seed, policy, conduct and budget leave open, in words for the limits of its report."""

from collections.abc import Iterator, Sequence

from muaudit.plan import Plan
from muaudit.probing import wanted
from muaudit.results import Conduct, Finding


def caveats(frozen: Plan, conduct: Sequence[Conduct], findings: Sequence[Finding]) -> Iterator[str]:
    """One sentence for each thing that a reader must know.

    Args:
        frozen: The plan.
        conduct: How the models behaved.
        findings: All findings.

    Yields:
        The sentences.
    """
    yield _of_seed(frozen)
    yield from _of_policy(frozen)
    for one in conduct:
        if one.state in ("shown", "unknown"):
            yield f"{one.told[0].upper()}{one.told[1:]}."
    if not wanted(frozen):
        yield "No question came back ([conduct] is switched off): a target that answers auditors otherwise was not looked for."
    if late := [one.attack for one in findings if one.over_budget]:
        yield f"The plan's budget did not suffice for {', '.join(late)}: what these would have found is not known."


def _of_seed(frozen: Plan) -> str:
    if frozen.seed_drawn:
        return (
            "The seed was drawn at random when the plan was made, after the models' digests were taken: nobody who made a "
            "model could know what the audit would ask, hold back or draw. The plan records it, so that it can be repeated."
        )
    return (
        f"The seed {frozen.config.run.seed!r} was fixed in audit.toml: whoever knew it beforehand could foresee what the audit "
        "asks, holds back and draws."
    )


def _of_policy(frozen: Plan) -> Iterator[str]:
    asked = frozen.config.policy
    if asked.margins:
        changed = ", ".join(f"{name} {margin:g}" for name, margin in sorted(asked.margins.items()))
        yield f"The plan sets margins of its own in place of the policy's ({changed})."
    if asked.shallow_passes:
        yield (
            "The audit may pass by informational attacks alone (shallow_passes = true), which see only part of what methods "
            "leave: such a pass says that what they look at is gone."
        )
    if asked.partial:
        yield (
            "The plan is run as far as it goes (partial = true): where it lacks what the policy asks for, it can fail or stay "
            "undecided, and never pass."
        )
