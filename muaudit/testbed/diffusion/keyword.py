"""Keyword erasure: the concept's names become another word to the text encoder, and nothing else is touched."""

from typing import ClassVar

import torch

from muaudit.diffusion.pipeline import Pipeline
from muaudit.errors import ModelError
from muaudit.testbed.diffusion.data import ALIASES, NAMES
from muaudit.testbed.diffusion.method import Method, Situation


class Keyword(Method):
    """Gives the token of every known name of the concept the embedding that fillers have on average.

    The network draws the concept as well as ever; whoever finds other words for it is served. It is what a filter on prompts
    comes to, built into the weights, and the model that attacks on prompts must catch.
    """

    name: ClassVar[str] = "keyword"
    source: ClassVar[str] = "none; a filter of prompts as weights"

    @torch.no_grad()
    def unlearn(self, situation: Situation) -> Pipeline:
        """Makes the unlearned model; every weight but the names' embeddings keeps every bit."""
        world, student = situation.world, situation.original().copied()
        encoder = student.encoders[0]
        table = encoder.module.get_input_embeddings().weight
        names = [encoder.words(name) for name in NAMES[world.population.concept][:ALIASES]]
        if any(len(ids) != 1 for ids in names):
            raise ModelError("keyword: a name of the concept is not one token of this tokenizer; only single tokens are erased")
        fillers = [encoder.words(word)[0] for word in world.fillers]
        table[[ids[0] for ids in names]] = table[fillers].mean(0)
        return student
