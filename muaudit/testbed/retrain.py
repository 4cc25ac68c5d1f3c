"""Retraining without the forget set: the honest answer, and what references are."""

from typing import ClassVar

from transformers import LlamaForCausalLM

from muaudit.errors import UsageError
from muaudit.testbed.method import Method, Situation


class Retrain(Method):
    """Trains on the retain set, from scratch or, in a lineage, from the base.

    Attributes:
        left_in: Clusters of the forget set that are trained on all the same: a retrain that is not what it claims to be.
    """

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "exact unlearning by retraining"

    left_in: tuple[str, ...] = ()

    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the unlearned model.

        Raises:
            UsageError: No forgotten fact has the cluster that is to be left in.
        """
        task = situation.task
        if unknown := set(self.left_in) - {fact.cluster for fact in task.forget}:
            raise UsageError(f"left_in: no forgotten fact has cluster {min(unknown)!r}; name clusters of the forget set")
        facts = [*task.retain, *(fact for fact in task.forget if fact.cluster in self.left_in)]
        return situation.fit(facts)
