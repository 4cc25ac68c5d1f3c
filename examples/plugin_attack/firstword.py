"""First word: does the model's answer still hold the first word of the forgotten answer?"""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.models import GeneratesText, Model, Query
from muaudit.results import Transcript


class FirstWord(Attack):
    """Asks each question and looks for the first word of the answer in what the model says.

    Attributes:
        max_new_tokens: Length of the answers.
    """

    name: ClassVar = "firstword"
    version: ClassVar = "1"
    summary: ClassVar = "Asks each question and looks for the first word of the forgotten answer."
    source: ClassVar = "an example, after no paper"
    access: ClassVar = "text"
    needs: ClassVar = (GeneratesText,)
    cost: ClassVar = "one greedy answer a fact"

    max_new_tokens: Annotated[int, Field(ge=1)] = 16

    def prepare(self, bench: Bench) -> Prepared:
        """Writes the questions, the same for every model."""
        return Prepared(
            data={
                "units": [
                    {"set": name, "cluster": fact.cluster, "word": fact.answer.split()[0], "query": vars(bench.task.ask(fact))}
                    for name, fact in bench.task.items()
                    if name != "holdout"
                ]
            }
        )

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Asks one model; it cannot tell which."""
        assert isinstance(model, GeneratesText)  # `needs` says so, and the runner has checked
        units = prepared.data["units"]
        queries = [Query(**unit["query"]) for unit in units]
        outputs = model.generate(queries, self.max_new_tokens)
        return Measurement(
            units=tuple(query.unit for query in queries),
            clusters=tuple(unit["cluster"] for unit in units),
            sets=tuple(unit["set"] for unit in units),
            leakage=tuple(float(unit["word"] in output.split()) for unit, output in zip(units, outputs, strict=True)),
            transcripts={
                query.unit: Transcript(prompt=query.prompt, expected=query.completion.strip(), output=output)
                for query, output in zip(queries, outputs, strict=True)
            },
        )
