"""Paraphrase: is an answer forgotten in one wording only, or in every wording that the task gives or a search can find?"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.language import prompts, rewording
from muaudit.language.judging import mentions, normalised
from muaudit.language.prompts import Prompt, Way
from muaudit.language.rewording import Hunt, Rewording
from muaudit.language.units import Unit, choose
from muaudit.models import GeneratesText, Model, ScoresText
from muaudit.task import Fact, ForgetTask

QUESTION, REWORDING, SPREAD = "question", "rewording", "spread_over_forms"
CONTROLS = 4
"""Other subjects that a multiple choice is put to, to see what guessing gives."""
VOCABULARY = 40
"""Most words that the search may insert: those most frequent in the task's questions and forms."""


class Paraphrase(Attack):
    """Scores every form in which the task states a fact, and hunts for a rewording of the question that brings the answer back.

    The forms are the question and the task's paraphrases (cloze, statement, multiple choice, reversed, other languages). An
    open form scores the answer probability, exp(mean token log-probability); a multiple choice the right option's share, less
    what guessing gives: the largest share that it gets on the same model when the prompt names other subjects, and at least one
    over the number of options. The search is TextAttack's. Its goal is that the forgotten answer becomes likely; it deletes
    words, swaps letters and neighbouring keys, takes synonyms, puts words of the task before a word and sentences before the
    question, leaves the subject's name alone and never holds the answer. It starts at the question of forget facts drawn from
    all clusters, with the same budget and seeds for every model. Leakage of a forget fact is the largest score over forms and
    rewording, that of a retain fact the mean over the forms. Where a model of the audit gives text only, an answer that names
    the fact counts 1, and nothing is searched.

    Attributes:
        search: "greedy" changes word after word by importance; "beam" keeps the best four wordings; "none" scores forms only.
        searched_facts: At most so many forget facts are searched, drawn by the seed, as evenly over clusters as can be.
        query_budget: Most wordings that are asked for a fact.
        success: The search for a fact ends at an answer probability of at least this.
        retain_clusters: At most so many clusters of the retain set are scored, drawn from the plan's seed.
        max_new_tokens: Length of the generated answers.
    """

    name: ClassVar = "paraphrase"
    version: ClassVar = "1"
    summary: ClassVar = "Asks for each forgotten fact in every form that the task gives, and searches for a wording that works."
    source: ClassVar = (
        "Form independence: ORT (arXiv 2506.07795), with form spread and worst form as our own summary; search: TextAttack "
        "(Morris et al. 2020, arXiv 2005.05909) with word importance of Jin et al. 2020 (arXiv 1907.11932); the goal function, "
        "synonyms and lead-ins are our own"
    )
    access: ClassVar = "text"
    needs: ClassVar = ((ScoresText, GeneratesText),)
    cost: ClassVar = "a few forward passes a fact, up to `query_budget` for each searched fact, and one greedy answer"

    search: Literal["greedy", "beam", "none"] = "greedy"
    searched_facts: Annotated[int, Field(ge=1)] = 60
    query_budget: Annotated[int, Field(ge=2)] = 40
    success: Annotated[float, Field(gt=0, le=1)] = 0.5
    retain_clusters: Annotated[int, Field(ge=0)] = 20
    max_new_tokens: Annotated[int, Field(ge=1)] = 24

    def prepare(self, bench: Bench) -> Prepared:
        """Gathers each fact's forms, and draws the facts that are searched."""
        chosen, notes = choose(bench.task, self.retain_clusters, bench.rng)
        forms = _forms(bench.task, chosen, notes)
        scores_text = "ScoresText" in bench.capabilities
        if not scores_text:
            notes.append("a model of this audit gives text only, so named answers decide instead of answer probability")
        searches = self._searches(bench, scores_text, notes)
        if any(prompt.wrong for given in forms for several in given.values() for prompt in several):
            notes += prompts.notes_on_guessing([unit.fact for unit in chosen])
        if all(len(given) == 1 for given in forms) and not searches:
            raise NotApplicable("no fact has a form but its question, and no search can be made: " + "; ".join(notes))
        units = [
            {"id": unit.fact.id, "cluster": unit.fact.cluster, "set": unit.set,
             "tries": {form: [one.model_dump() for one in several] for form, several in given.items()},
             "controls": {
                 form: [control.model_dump() for prompt in several for control in _controls(bench, prompt, unit)]
                 for form, several in given.items()
             }}
            for unit, given in zip(chosen, forms, strict=True)
        ]  # fmt: skip
        return Prepared(
            data={"units": units, "searches": searches, "vocabulary": _vocabulary(bench.task) if searches else [],
                  "scores": scores_text, "generates": "GeneratesText" in bench.capabilities, "notes": notes}
        )  # fmt: skip

    def _searches(self, bench: Bench, scores_text: bool, notes: list[str]) -> dict[str, dict[str, Any]]:
        """What is searched, by unit; for no model if some model could not be."""
        if self.search == "none" or not scores_text:
            notes.append(
                "no rewording was searched for: " + ("the search is off" if scores_text else "that needs probabilities")
            )
            return {}
        if not rewording.available():
            notes.append(
                "no rewording was searched for, on any model: TextAttack (pip install 'muaudit[text]') is not installed"
            )
            return {}
        facts = spread_over_clusters(bench.task.forget, self.searched_facts, bench.rng)
        if len(facts) < len(bench.task.forget):
            notes.append(
                f"rewordings were searched for {len(facts)} of {len(bench.task.forget)} forget facts, over all clusters"
            )
        return {fact.id: _search(bench.task, fact) for fact in facts}

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores all forms in one call, then searches fact by fact, with a seed each from `rng`."""
        data = prepared.data
        units = data["units"]
        sets = tuple(unit["set"] for unit in units)
        rows = prompts.ways(model, units, self.max_new_tokens, scored=data["scores"])
        scored = [{form: way.score(name) for form, way in row.items()} for row, name in zip(rows, sets, strict=True)]
        spread = tuple(max(row.values()) - min(row.values()) for row in scored)
        kept = [float(np.mean(list(row.values()))) for row in scored]
        found = self._rewordings(model, data, rng)
        forms = list(dict.fromkeys(form for row in rows for form in row)) + [REWORDING] * bool(found)
        for unit, row, values in zip(units, rows, scored, strict=True):
            if (best := found.get(unit["id"])) is not None:
                row[REWORDING] = Way([(best.likelihood, _worded(data["searches"][unit["id"]], best.question))], [])
                values[REWORDING] = best.likelihood
            for form in forms:  # where a form is lacking, or nothing was searched for, the question stands for it
                row.setdefault(form, row[QUESTION])
                values.setdefault(form, values[QUESTION])
        best_of = [max if name == "forget" else min for name in sets]
        worst = [pick(values, key=values.__getitem__) for pick, values in zip(best_of, scored, strict=True)]
        deciding = [row[form].deciding(name) for row, form, name in zip(rows, worst, sets, strict=True)]
        return Measurement(
            units=tuple(unit["id"] for unit in units),
            clusters=tuple(unit["cluster"] for unit in units),
            sets=sets,
            leakage=tuple(
                values[form] if name == "forget" else mean
                for values, form, mean, name in zip(scored, worst, kept, sets, strict=True)
            ),
            scores={form: tuple(values[form] for values in scored) for form in forms} | {SPREAD: spread},
            facets={"form": tuple(forms)},
            transcripts=prompts.transcripts(model, deciding, self.max_new_tokens) if data["generates"] else {},
            summaries=self._summaries(list(found.values())),
            notes=tuple(data["notes"]),
        )

    def _rewordings(self, model: Model, data: dict[str, Any], rng: np.random.Generator) -> dict[str, Rewording]:
        """The best wording of each searched fact; each step of a search is one call of the model."""
        found = {}
        for unit, search in data["searches"].items():
            assert isinstance(model, ScoresText)  # noqa: S101 - as above
            assert self.search != "none"  # noqa: S101 - then `prepare` plans no search
            scorer = model

            def likelihood(texts: Sequence[str], search: dict[str, Any] = search, scorer: ScoresText = scorer) -> list[float]:
                return prompts.likelihoods(scorer, [_worded(search, text) for text in texts])

            hunt = Hunt(
                search["question"],
                tuple(search["protected"]),
                tuple(search["forbidden"]),
                tuple(word for word in data["vocabulary"] if word not in search["forbidden"]),
                int(rng.integers(2**31)),
            )
            found[unit] = rewording.search(
                hunt, likelihood, method=self.search, query_budget=self.query_budget, success=self.success
            )
        return found

    def _summaries(self, found: Sequence[Rewording]) -> dict[str, float]:
        if not found:
            return {}
        return {
            "searches_that_succeeded": float(np.mean([one.likelihood >= self.success for one in found])),
            "queries_a_search": float(np.mean([one.queries for one in found])),
        }


def _forms(task: ForgetTask, chosen: Sequence[Unit], notes: list[str]) -> list[dict[str, list[Prompt]]]:
    """Each unit's prompts by form; says which forms some facts lack."""
    given = [_forms_of(task, unit.fact) for unit in chosen]
    for form in dict.fromkeys(form for one in given for form in one):
        if without := sum(form not in one for one in given):
            notes.append(
                f"form {form}: {without} of {len(given)} facts have none that can be scored; their question stands for it"
            )
    return given


def _forms_of(task: ForgetTask, fact: Fact) -> dict[str, list[Prompt]]:
    """A fact's prompts by form, without those that give the answer away and choices whose options cannot be told."""
    forms = {QUESTION: [prompts.ask(task, fact)]}
    for given in fact.paraphrases:
        name = given.form if given.language is None else f"{given.form}_{given.language}"
        name = f"given_{name}" if name in (QUESTION, REWORDING, SPREAD) else name
        prompt = prompts.given_form(fact, given)
        question = "" if given.form == "reversed" else fact.question
        if prompt and (prompt.wrong or not prompts.given_away(prompt, question)):
            forms.setdefault(name, []).append(prompt)
    return forms


def _controls(bench: Bench, prompt: Prompt, unit: Unit) -> list[Prompt]:
    others = bench.task.forget if unit.set == "forget" else bench.task.retain
    return prompts.controls(prompt, unit.fact, others, CONTROLS, bench.rng) if prompt.wrong else []


def spread_over_clusters(facts: Sequence[Fact], count: int, rng: np.random.Generator) -> list[Fact]:
    """Draws facts as evenly over clusters as can be: one of each cluster before a second of any.

    Args:
        facts: What is drawn from.
        count: At most so many.
        rng: Draws.

    Returns:
        The drawn facts, in the order of `facts`.
    """
    rounds: dict[int, list[int]] = {}
    taken: Counter[str] = Counter()
    for index in (int(one) for one in rng.permutation(len(facts))):
        cluster = facts[index].cluster
        rounds.setdefault(taken[cluster], []).append(index)
        taken[cluster] += 1
    drawn = [index for turn in sorted(rounds) for index in rounds[turn]][:count]
    return [facts[index] for index in sorted(drawn)]


def _search(task: ForgetTask, fact: Fact) -> dict[str, Any]:
    """What the search needs to know of a fact, as plain data."""
    accepted = (fact.answer, *fact.aliases)
    marker = "\N{OBJECT REPLACEMENT CHARACTER}"
    return {
        "question": fact.question,
        "prompt": prompts.ask(task, fact, marker).model_dump(),
        "marker": marker,
        "protected": [name] if (name := prompts.subject_of(fact)) else [],
        "forbidden": [answer for answer in accepted if not mentions(fact.question, [answer])],
    }


def _worded(search: dict[str, Any], question: str) -> Prompt:
    """The searched fact's prompt with another wording of the question."""
    prompt = Prompt(**search["prompt"])
    return prompt.model_copy(update={"text": prompt.text.replace(search["marker"], question)})


def _vocabulary(task: ForgetTask) -> list[str]:
    """The words that questions and forms are made of, most frequent first, without any subject's and any answer's."""
    facts = (*task.forget, *task.retain)
    names = {word for fact in facts for name in (fact.subject, fact.cluster, fact.answer, *fact.aliases, *fact.wrong_answers)
             for word in normalised(name or "").split()}  # fmt: skip
    texts = (text for fact in facts for text in (fact.question, *(form.prompt for form in fact.restatements)))
    counts = Counter(word.strip("?.,;:!\"'()") for text in texts for word in text.split())
    words = [word for word in sorted(counts, key=lambda word: (-counts[word], word)) if normalised(word)]
    return [word for word in words if not names & set(normalised(word).split())][:VOCABULARY]
