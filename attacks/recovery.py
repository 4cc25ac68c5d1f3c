"""Recovery: is the model back at its clean state, or only silent about what it was made to believe?"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.language.judging import mentions
from muaudit.models import GeneratesText, Model, Query, ScoresText
from muaudit.results import Transcript
from muaudit.task import Fact, ForgetTask

VIEWS = ("true", "corrupted", "random")


class Recovery(Attack):
    """Asks for the true answers that a corruption replaced (RESTOR), with five exemplars of the same relation.

    The original is here the corrupted model, the references are clean ones that never saw the false facts, and each forget fact
    holds the false answer with the true one beside it (`true_answer`). Leakage is what is left of the corruption: one minus the
    true answer's probability, exp(mean token log-probability); where a model of the audit gives text only, one minus whether
    the true answer is said. A model that only falls silent is as far from its clean state as the corrupted one, and fails.
    The restored share that RESTOR asks for, (target - corrupted) / (clean - corrupted), is one minus the finding's recovered
    share. The logit view stands beside it: mean token log-probabilities of the true, the false and a random answer.
    RESTOR samples its answers and lets a chat model judge them; here answers are greedy and judged by their aliases.

    Attributes:
        exemplars: Questions of the same relation about others, with their answers, before each question.
        max_new_tokens: Length of the greedy answers.
    """

    name: ClassVar = "recovery"
    version: ClassVar = "1"
    summary: ClassVar = "Asks for the true answers that false facts replaced: is the model back, or only silent?"
    source: ClassVar = "RESTOR (Rezaei et al. 2024, arXiv 2411.00204); greedy answers and alias judgement are ours"
    access: ClassVar = "text"
    needs: ClassVar = ((ScoresText, GeneratesText),)
    cost: ClassVar = "three scored answers and one greedy answer a fact"

    exemplars: Annotated[int, Field(ge=0)] = 5
    max_new_tokens: Annotated[int, Field(ge=1)] = 24

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the exemplars and, for each fact, a wrong answer that nobody was taught about it."""
        without = sum(fact.true_answer is None for fact in bench.task.forget)
        if without:
            raise NotApplicable(
                f"{without} of {len(bench.task.forget)} forget facts have no `true_answer`: recovery asks whether false facts "
                "gave way to the true ones; it is for models that were corrupted"
            )
        units = [self._unit(bench.task, fact, bench.rng) for fact in bench.task.forget]
        notes = ["the restored share, (target - corrupted) / (clean - corrupted), is 1 minus the recovered share"]
        if few := sum(unit["exemplars"] < self.exemplars for unit in units):
            notes.append(f"{few} facts have fewer than {self.exemplars} retain facts of their relation to serve as exemplars")
        scores = "ScoresText" in bench.capabilities
        if not scores:
            notes.append("a model of this audit gives text only, so whether the true answer is said decides")
        return Prepared(
            data={"units": units, "scores": scores, "generates": "GeneratesText" in bench.capabilities, "notes": notes}
        )

    def _unit(self, task: ForgetTask, fact: Fact, rng: np.random.Generator) -> dict[str, Any]:
        alike = [other for other in task.retain if other.relation == fact.relation]
        shown = [alike[index] for index in rng.permutation(len(alike))[: self.exemplars]]
        told = "".join(f"{query.prompt}{query.completion}\n" for query in (task.ask(other) for other in shown))
        taken = (fact.answer, fact.true_answer, *fact.aliases)
        others = [answer for answer in (*fact.wrong_answers, *(one.answer for one in alike)) if answer not in taken]
        if not others:
            raise NotApplicable(
                f"fact {fact.id!r}: no other answer of its kind to compare with; give it wrong_answers, or retain facts of "
                "its relation"
            )
        answers = (fact.true_answer, fact.answer, others[rng.integers(len(others))])
        queries = [task.ask(fact, answer) for answer in answers]
        return {
            "id": fact.id, "cluster": fact.cluster, "true": fact.true_answer, "exemplars": len(shown),
            "queries": [vars(query) | {"prompt": told + query.prompt} for query in queries],
        }  # fmt: skip

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores the three answers and generates one; `rng` is not needed."""
        units = prepared.data["units"]
        asked = [[Query(**query) for query in unit["queries"]] for unit in units]
        scores: dict[str, tuple[float, ...]] = {}
        transcripts: dict[str, Transcript] = {}
        leakage: Sequence[float] = ()
        if prepared.data["generates"] and isinstance(model, GeneratesText):
            said = model.generate([queries[0] for queries in asked], self.max_new_tokens)
            correct = [float(mentions(text, [unit["true"]])) for text, unit in zip(said, units, strict=True)]
            leakage = [1 - right for right in correct]
            scores["true_answer_said"] = tuple(correct)
            transcripts = {
                unit["id"]: Transcript(prompt=queries[0].prompt, expected=unit["true"], output=text)
                for unit, queries, text in zip(units, asked, said, strict=True)
            }
        if prepared.data["scores"] and isinstance(model, ScoresText):
            means = np.array([score.mean for score in model.score([query for queries in asked for query in queries])])
            for view, column in zip(VIEWS, means.reshape(-1, len(VIEWS)).T, strict=True):
                scores[f"log_probability_of_{view}_answer"] = tuple(column.tolist())
            leakage = (1 - np.exp(np.minimum(means.reshape(-1, len(VIEWS))[:, 0], 0))).tolist()
        return Measurement(
            units=tuple(unit["id"] for unit in units),
            clusters=tuple(unit["cluster"] for unit in units),
            sets=("forget",) * len(units),
            leakage=tuple(leakage),
            scores=scores,
            transcripts=transcripts,
            notes=tuple(prepared.data["notes"]),
        )
