"""No unlearning at all: what an audit must never pass."""

from typing import ClassVar

from muaudit.diffusion.pipeline import Pipeline
from muaudit.testbed.diffusion.method import Method, Situation


class DoNothing(Method):
    """Hands the original out."""

    name: ClassVar[str] = "do_nothing"
    source: ClassVar[str] = "none"

    def unlearn(self, situation: Situation) -> Pipeline:
        """The original as it is."""
        return situation.original()
