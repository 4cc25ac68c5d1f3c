"""Doing nothing: the original, handed in as if it had been unlearned."""

from typing import ClassVar

from transformers import LlamaForCausalLM

from muaudit.testbed.method import Method, Situation


class DoNothing(Method):
    """Returns the original."""

    name: ClassVar[str] = "do_nothing"
    source: ClassVar[str] = "none"

    def unlearn(self, situation: Situation) -> LlamaForCausalLM:
        """Makes the model that is claimed to be unlearned."""
        return situation.original()
