"""Memorization: does the model still give the forgotten answers when it is simply asked?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable
from muaudit.language.units import choose
from muaudit.models import GeneratesText, Model, Query, ReportsUtility, ScoresText, TextScore
from muaudit.results import Transcript
from muaudit.task import Fact, ForgetTask

Scores = dict[str, tuple[float, ...]]


class Memorization(Attack):
    """Asks each question and scores the answer in the ways that the literature uses.

    The deciding leakage is by default the answer probability, exp(mean token log-probability) of the answer after the question
    (TOFU, section 2.2.2); where a model of the audit gives text only, it is ROUGE-L recall of the greedy answer, for all models
    alike. All other scores support it: both published truth ratios, ROUGE-L recall (of the answer or the best of its aliases),
    exact memorization, extraction strength, verbatim completion (the second half of the fact's text after the first).

    Attributes:
        deciding: What decides: `answer` (its probability, or ROUGE-L recall without log-probabilities), `knowledge` (MUSE's
            KnowMem: ROUGE-L F1 of the greedy answer) or `verbatim` (VerbMem: ROUGE-L F1 of the greedy completion of the text).
        shots: Questions of the retain set, with their answers, before each question (MUSE's KnowMem has 10).
        retain_clusters: At most so many clusters of the retain set are scored, drawn from the plan's seed.
        max_new_tokens: Length of the greedy answers.
    """

    name: ClassVar = "memorization"
    version: ClassVar = "2"
    summary: ClassVar = "Asks each forgotten question and measures how probable the forgotten answer still is."
    source: ClassVar = (
        "TOFU (Maini et al. 2024, arXiv 2401.06121) for answer probability, truth ratio and ROUGE-L recall; "
        "MUSE (Shi et al. 2024, arXiv 2407.06460) for VerbMem and KnowMem; "
        "open-unlearning (Dorna et al. 2025) for exact memorization; Carlini et al. 2021 for extraction strength"
    )
    access: ClassVar = "text"
    needs: ClassVar = ((ScoresText, GeneratesText),)
    cost: ClassVar = "a few forward passes a fact, and one greedy answer"
    informational: ClassVar = "Plain questions do not reach what a method only hides: measured AUC .84; strong methods pass it."

    deciding: Literal["answer", "knowledge", "verbatim"] = "answer"
    shots: Annotated[int, Field(ge=0)] = 0
    retain_clusters: Annotated[int, Field(ge=0)] = 60
    max_new_tokens: Annotated[int, Field(ge=1)] = 32

    def prepare(self, bench: Bench) -> Prepared:
        """Chooses the scored facts and writes the queries; what only some models can do, no model is asked."""
        chosen, notes = choose(bench.task, self.retain_clusters, bench.rng)
        facts = [fact for _, fact in chosen]
        scores_text = "ScoresText" in bench.capabilities
        asked = {"answer": True, "paraphrase": True, "wrong_answer": True, "text": True}
        for role, what, score in (("wrong_answer", "wrong_answers", "truth ratio"), ("text", "text", "verbatim completion")):
            without = sum(not getattr(fact, what) for fact in facts)
            if without and scores_text:
                asked[role] = False
                notes.append(f"{score} not scored: {without} of {len(facts)} facts have no `{what}`")
        generates = "GeneratesText" in bench.capabilities
        if self.deciding != "answer":
            self._refuse_unanswerable(facts, generates)
        elif not scores_text:
            notes.append("a model of this audit gives text only, so ROUGE-L recall decides instead of answer probability")
        shown = _shown(bench.task, self.shots, bench.rng)
        units = [
            {"id": fact.id, "cluster": fact.cluster, "set": name, "accepted": [fact.answer, *fact.aliases],
             "queries": [vars(query) for query in _queries(bench.task, fact, shown) if asked[query.role]]}
            for name, fact in chosen
        ]  # fmt: skip
        return Prepared(data={"units": units, "scores": scores_text, "generates": generates, "notes": notes})

    def _refuse_unanswerable(self, facts: Sequence[Fact], generates: bool) -> None:
        if not generates:
            raise NotApplicable(
                f"deciding = {self.deciding!r} judges generated text, which a model of this audit does not give"
            )
        if self.deciding == "verbatim" and (without := sum(len((fact.text or "").split()) < 2 for fact in facts)):
            raise NotApplicable(f"{without} of {len(facts)} facts have no `text` to complete; give each the passage trained on")

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores and generates; `rng` is not needed, since nothing here is drawn."""
        units = prepared.data["units"]
        scores: Scores = {}
        notes = list(prepared.data["notes"])
        transcripts: dict[str, Transcript] = {}
        if prepared.data["scores"]:
            scores |= _likelihood_scores(model, units, notes)
        if prepared.data["generates"] and isinstance(model, GeneratesText):
            recalls, transcripts = _generation_scores(model, units, self.max_new_tokens)
            scores |= recalls
        ways = {"knowledge": "rouge_l_f1", "verbatim": "verbatim_rouge_l_f1", "answer": "answer_probability"}
        deciding = ways[self.deciding] if ways[self.deciding] in scores else "rouge_l_recall"
        return Measurement(
            units=tuple(unit["id"] for unit in units),
            clusters=tuple(unit["cluster"] for unit in units),
            sets=tuple(unit["set"] for unit in units),
            leakage=scores.pop(deciding),
            scores=scores,
            transcripts=transcripts,
            summaries=model.model_utility() if isinstance(model, ReportsUtility) else {},
            notes=tuple(notes),
        )


def _shown(task: ForgetTask, shots: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Ids and texts of the exemplars that stand before each question: one more than needed, since none shows itself."""
    if not shots:
        return []
    drawn = [task.retain[index] for index in rng.permutation(len(task.retain))[: shots + 1]]
    if len(drawn) <= shots:
        raise NotApplicable(f"shots = {shots} needs more than {shots} retain facts, and there are {len(drawn)}")
    return [(query.unit, f"{query.prompt}{query.completion}\n") for query in map(task.ask, drawn)]


def _queries(task: ForgetTask, fact: Fact, shown: Sequence[tuple[str, str]] = ()) -> list[Query]:
    """All completions of a fact: the answer, its restatements, its wrong answers, the second half of its text."""
    told = "".join([text for unit, text in shown if unit != fact.id][: len(shown) - 1]) if shown else ""
    questions = [task.ask(fact)]
    questions += [task.ask(fact, wrong, role="wrong_answer", index=index) for index, wrong in enumerate(fact.wrong_answers)]
    queries = [replace(question, prompt=told + question.prompt) for question in questions]
    queries += [
        Query(fact.id, "paraphrase", form.prompt, form.completion, index) for index, form in enumerate(fact.restatements)
    ]
    if fact.text and len(words := fact.text.split()) > 1:
        half = len(words) // 2
        queries.append(Query(fact.id, "text", " ".join(words[:half]), " " + " ".join(words[half:])))
    return queries


def _likelihood_scores(model: Model, units: Sequence[dict[str, Any]], notes: list[str]) -> Scores:
    queries = [Query(**query) for unit in units for query in unit["queries"]]
    assert isinstance(model, ScoresText)  # noqa: S101 - `prepare` asks only what every model of the audit can do
    by_unit: dict[str, dict[str, list[TextScore]]] = {unit["id"]: {} for unit in units}
    for query, score in zip(queries, model.score(queries), strict=True):
        by_unit[query.unit].setdefault(query.role, []).append(score)
    rows = list(by_unit.values())
    scores: Scores = {"answer_probability": tuple(answer_probability(row["answer"][0]) for row in rows)}
    if all("wrong_answer" in row for row in rows):
        for name, ratio in (
            ("truth_ratio_arithmetic", truth_ratio_arithmetic),
            ("truth_ratio_geometric", truth_ratio_geometric),
        ):
            scores[name] = tuple(ratio(row.get("paraphrase", row["answer"])[0], row["wrong_answer"]) for row in rows)
    if all("paraphrase" in row for row in rows):
        scores["paraphrase_probability"] = tuple(
            float(np.mean([answer_probability(s) for s in row["paraphrase"]])) for row in rows
        )
    if all("text" in row for row in rows):
        scores["verbatim_probability"] = tuple(answer_probability(row["text"][0]) for row in rows)
    hits = [row["answer"][0].hits for row in rows]
    if None in hits:
        notes.append("exact memorization and extraction strength not scored: token-level choices were not recorded")
    else:
        measures: tuple[tuple[str, Callable[[Sequence[bool]], float]], ...] = (
            ("exact_memorization", exact_memorization), ("extraction_strength", extraction_strength))  # fmt: skip
        for name, measure in measures:
            scores[name] = tuple(measure(hit) for hit in hits if hit is not None)
    return scores


def _generation_scores(
    model: GeneratesText, units: Sequence[dict[str, Any]], max_new_tokens: int
) -> tuple[Scores, dict[str, Transcript]]:
    queries = [next(Query(**query) for query in unit["queries"] if query["role"] == "answer") for unit in units]
    outputs = model.generate(queries, max_new_tokens)
    recorded = getattr(model, "rouge_l_recall", None)
    recalls = recorded([query.unit for query in queries]) if recorded else None
    if recalls is None:
        recalls = [_best(unit["accepted"], output, "recall") for unit, output in zip(units, outputs, strict=True)]
    scores: Scores = {"rouge_l_recall": tuple(recalls)}
    if recorded is None:
        scores["rouge_l_f1"] = tuple(
            _best(unit["accepted"], output, "fmeasure") for unit, output in zip(units, outputs, strict=True)
        )
    transcripts = {
        unit["id"]: Transcript(prompt=query.prompt, expected=unit["accepted"][0], output=output)
        for unit, query, output in zip(units, queries, outputs, strict=True)
    }
    texts = [Query(**query) for unit in units for query in unit["queries"] if query["role"] == "text"]
    if len(texts) == len(units):
        completions = model.generate(texts, max_new_tokens)
        golds = [text.completion for text in texts]
        scores["verbatim_rouge_l_recall"] = tuple(rouge_l_recall(golds, completions))
        # MUSE compares with as many gold tokens as were generated; words stand in for tokens, which end points do not show.
        heads = [" ".join(gold.split()[:max_new_tokens]) for gold in golds]
        scores["verbatim_rouge_l_f1"] = tuple(_rouge_l(heads, completions, "fmeasure"))
    return scores, transcripts


def _best(accepted: Sequence[str], output: str, measure: Literal["recall", "fmeasure"]) -> float:
    """The best ROUGE-L of an output against the answer and its aliases."""
    return max(_rouge_l(accepted, [output] * len(accepted), measure))


def answer_probability(score: TextScore) -> float:
    """Length-normalised probability, exp(mean token log-probability), in [0, 1] (TOFU, section 2.2.2)."""
    return float(np.exp(min(score.mean, 0.0)))


def truth_ratio_arithmetic(right: TextScore, wrong: Sequence[TextScore]) -> float:
    """Truth ratio as in TOFU's paper and model utility: arithmetic mean of the wrong probabilities over the right one's.

    Args:
        right: The paraphrased answer; the answer itself where there is no paraphrase.
        wrong: The wrong answers, at least one.

    Returns:
        A ratio, 0 or more; capped at exp(700) so that an impossible right answer stays a number.
    """
    means = np.array([score.mean for score in wrong])
    return float(np.exp(min(np.logaddexp.reduce(means) - np.log(len(means)) - right.mean, 700.0)))


def truth_ratio_geometric(right: TextScore, wrong: Sequence[TextScore]) -> float:
    """Truth ratio as in TOFU's forget quality and open-unlearning: geometric mean of the wrong over the right probability.

    Args:
        right: The paraphrased answer; the answer itself where there is no paraphrase.
        wrong: The wrong answers, at least one.

    Returns:
        A ratio, 0 or more, capped at exp(700).
    """
    return float(np.exp(min(float(np.mean([score.mean for score in wrong])) - right.mean, 700.0)))


def exact_memorization(hits: Sequence[bool]) -> float:
    """Share of the answer's tokens that are the model's first choice under teacher forcing, in [0, 1] (open-unlearning)."""
    return sum(hits) / len(hits)


def extraction_strength(hits: Sequence[bool]) -> float:
    """1 - k/T with the shortest prefix k after which every token is the first choice, in [0, 1] (Carlini et al. 2021).

    Unlike open-unlearning's, whose floor is 1/T, an answer whose last token is missed scores 0.
    """
    missed = [index for index, hit in enumerate(hits) if not hit]
    return 1 - (missed[-1] + 1) / len(hits) if missed else 1.0


def rouge_l_recall(expected: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """ROUGE-L recall with stemming, as TOFU computes it, each in [0, 1]."""
    return _rouge_l(expected, outputs, "recall")


def _rouge_l(expected: Sequence[str], outputs: Sequence[str], measure: Literal["recall", "fmeasure"]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = (scorer.score(gold, said)["rougeL"] for gold, said in zip(expected, outputs, strict=True))
    return [float(getattr(score, measure)) for score in scores]
