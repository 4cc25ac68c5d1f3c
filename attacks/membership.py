"""Membership: do the forgotten texts look trained on, more or less than texts that no model saw?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import EnvironmentFault, NotApplicable
from muaudit.estimators import membership
from muaudit.language.units import choose
from muaudit.models import ExposesWeights, Model, Query, ScoresTokens, TokenScores
from muaudit.results import Transcript
from muaudit.task import Fact, ForgetTask

Score = Literal["loss", "zlib", "min_k", "min_k_plus_plus", "recall", "neighbourhood", "gradient_norm"]
Columns = dict[str, NDArray[np.float64]]

BLIND_MARGIN = 0.05
"""How far the interval of the blind baseline's AUC must lie above 0.5 before the report warns."""


class Membership(Attack):
    """Scores forget and holdout texts by membership inference, and ranks each forget text among the holdout texts.

    The leakage of a unit is the rank of its score among the holdout units' scores on the same model, in [0, 1], ties counted
    half; its mean over the forget set is the AUC. A model that never saw either lies at 0.5 if both sets are alike; one that
    still knows the forget set lies above, one that avoids it lies below, and both give membership away. All scores are larger
    for members. One decides, the others support it, as ranks too.

    AUC, the true positive rate at 0.1 % and 1 % false positive rate (at most that; Clopper-Pearson intervals) and a lower
    bound of epsilon stand in the summaries. Epsilon's threshold is chosen on every second cluster and judged on the others, so
    it needs no correction; its interval takes facts for independent. A holdout set of m facts moves the AUC of an honest
    retrain by about 0.29/sqrt(m), so the standard policy gives this attack a margin of its own.

    Before any model is asked, a bag of words tries to tell forget from holdout texts by themselves (logistic regression,
    cross-validated over clusters). Where it can, the report warns: the gap to the references still counts, the AUC itself
    does not.

    Attributes:
        deciding: The score whose rank is the leakage; `reference` needs a reference model.
        scores: All scores that are computed, the deciding one included in any case.
        text: What is scored: the `answer` after its question, the `statement` (first restatement, as a whole) or the
            `passage` (the fact's text, as a whole).
        k: Share of the tokens in Min-K% and Min-K%++, at least one token.
        recall_shots: With ReCaLL: at most so many facts of one holdout cluster are its prefix; no score uses that cluster.
        neighbours: With `neighbourhood`: neighbours a text.
        neighbour_share: Share of the words that are swapped in a neighbour, at least one word.
        neighbour_model: Local folder of a masked or causal language model that proposes the swapped words; without it they are
            drawn from the retain texts (or the holdout texts where there are none). As with every path: relative to audit.toml.
        reference_model: Local folder of a language model that never saw the forget set, for the `reference` score; its digest
            is noted.
        retain_clusters: At most so many clusters of the retain set are scored, drawn from the plan's seed.
    """

    name: ClassVar = "membership"
    version: ClassVar = "1"
    summary: ClassVar = "Measures whether forgotten texts look trained on, compared with texts that no model saw."
    source: ClassVar = (
        "loss: Yeom et al. 2018; zlib and reference: Carlini et al. 2021 (arXiv 2012.07805); Min-K%: Shi et al. 2024 (arXiv "
        "2310.16789); Min-K%++: Zhang et al. 2025 (arXiv 2404.02936); ReCaLL: Xie et al. 2024 (arXiv 2406.15968); "
        "neighbourhood: Mattern et al. 2023 (arXiv 2305.18462); PrivLeak: MUSE (Shi et al. 2024, arXiv 2407.06460); "
        "gradient norm as in open-unlearning; scores as in MIMIR (Duan et al. 2024, arXiv 2402.07841), signs mended"
    )
    access: ClassVar = "logits"
    needs: ClassVar = (ScoresTokens,)
    sided: ClassVar = "two"
    cost: ClassVar = "one forward pass a text and neighbour; with gradient norms one backward pass a text"

    deciding: Score | Literal["reference"] = "loss"
    scores: tuple[Score, ...] = get_args(Score)
    text: Literal["answer", "statement", "passage"] = "answer"
    k: Annotated[float, Field(gt=0, le=1)] = 0.2
    recall_shots: Annotated[int, Field(ge=1)] = 1
    neighbours: Annotated[int, Field(ge=1)] = 10
    neighbour_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    neighbour_model: str | None = None
    reference_model: str | None = None
    retain_clusters: Annotated[int, Field(ge=0)] = 20

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.deciding == "reference" and self.reference_model is None:
            raise ValueError(
                'deciding = "reference" needs reference_model, the folder of a model that never saw the forget set'
            )
        return self

    def files(self) -> tuple[str, ...]:
        """The folders of the neighbour model and the reference model."""
        return tuple(path for path in (self.neighbour_model, self.reference_model) if path is not None)

    def prepare(self, bench: Bench) -> Prepared:
        """Writes the texts, the prefix and the neighbours, asks the reference model, and runs the blind baseline."""
        if not bench.task.holdout:
            raise NotApplicable("membership needs facts that no model saw: give them as task.holdout")
        wanted, notes = self._wanted(bench.capabilities)
        chosen, left = choose(bench.task, self.retain_clusters, bench.rng)
        holdout, prefix = list(bench.task.holdout), None
        if "recall" in wanted:
            holdout, prefix = self._prefix(bench.task, bench.rng)
            if prefix is None:
                wanted.remove("recall")
                left.append("recall not scored: its prefix takes one holdout cluster, and there is only one")
        facts = [(name, fact) for name, fact in chosen] + [("holdout", fact) for fact in holdout]
        texts = [_text(bench.task, fact, self.text) for _, fact in facts]
        units: list[dict[str, Any]] = [
            {"id": fact.id, "cluster": fact.cluster, "set": name, "query": vars(query)}
            for (name, fact), query in zip(facts, texts, strict=True)
        ]
        if "neighbourhood" in wanted:
            for unit, others in zip(units, self._neighbours(texts, units, bench), strict=True):
                unit["neighbours"] = others
        if self.reference_model is not None:
            for unit, score in zip(units, self._reference(bench.folder / self.reference_model, texts, notes), strict=True):
                unit["reference"] = score
            wanted.append("reference")
        notes += [*left, *_blind(units, int(bench.rng.integers(2**31))), *_few(len(holdout))]
        return Prepared(data={"units": units, "scores": wanted, "prefix": prefix, "notes": notes})

    def _wanted(self, capabilities: frozenset[str]) -> tuple[list[str], list[str]]:
        wanted, notes = [str(score) for score in get_args(Score) if score in (*self.scores, self.deciding)], []
        if "gradient_norm" in wanted and "ExposesWeights" not in capabilities:
            if self.deciding == "gradient_norm":
                raise NotApplicable("gradient_norm needs the weights of every model, and one of this audit does not give them")
            wanted.remove("gradient_norm")
            notes.append("gradient_norm not scored: a model of this audit does not give its weights")
        return wanted, notes

    def _prefix(self, task: ForgetTask, rng: np.random.Generator) -> tuple[list[Fact], str | None]:
        """ReCaLL's prefix, and the holdout facts that are left: none of the prefix's cluster, which it would favour."""
        clusters = list(dict.fromkeys(fact.cluster for fact in task.holdout))
        if len(clusters) < 2:
            if self.deciding == "recall":
                raise NotApplicable("recall takes one holdout cluster for its prefix, and there is only one: give more")
            return list(task.holdout), None
        taken = clusters[int(rng.integers(len(clusters)))]
        shown = [_text(task, fact, self.text) for fact in task.holdout if fact.cluster == taken][: self.recall_shots]
        left = [fact for fact in task.holdout if fact.cluster != taken]
        return left, " ".join(query.prompt + query.completion for query in shown)

    def _neighbours(self, texts: Sequence[Query], units: Sequence[dict[str, Any]], bench: Bench) -> list[list[str]]:
        """Completions with a few words swapped, drawn once, so that every model scores the same ones."""
        common = "retain" if any(unit["set"] == "retain" for unit in units) else "holdout"
        usual = [text.completion for text, unit in zip(texts, units, strict=True) if unit["set"] == common]
        vocabulary = sorted({word for completion in usual for word in _WORD.findall(completion)})
        spans = [[match.span() for match in _WORD.finditer(text.completion)] for text in texts]
        proposed = self._proposed(texts, spans, bench.folder)
        made = []
        for index, (text, found) in enumerate(zip(texts, spans, strict=True)):
            swapped = []
            for _ in range(self.neighbours if found else 0):
                completion = text.completion
                count = max(1, round(self.neighbour_share * len(found)))
                # From the back, so that the places in front stay where they are.
                for number in sorted(bench.rng.choice(len(found), count, replace=False).tolist(), reverse=True):
                    start, stop = found[number]
                    words = proposed.get((index, number)) or [word for word in vocabulary if word != completion[start:stop]]
                    if words:
                        completion = completion[:start] + words[int(bench.rng.integers(len(words)))] + completion[stop:]
                swapped.append(completion)
            made.append(swapped or [text.completion])
        return made

    def _proposed(
        self, texts: Sequence[Query], spans: Sequence[Sequence[tuple[int, int]]], folder: Path
    ) -> dict[tuple[int, int], list[str]]:
        """What the neighbour model would put in each word's place, by text and word; nothing without that model."""
        if self.neighbour_model is None:
            return {}
        from muaudit.models.neighbours import substitutes

        places = [(index, number) for index, found in enumerate(spans) for number in range(len(found))]
        gaps = []
        for index, number in places:
            (start, stop), text = spans[index][number], texts[index]
            gaps.append((text.prompt + text.completion[:start], text.completion[start:stop], text.completion[stop:]))
        return dict(zip(places, substitutes(folder / self.neighbour_model, gaps, 2 * self.neighbours), strict=True))

    def _reference(self, path: Path, texts: Sequence[Query], notes: list[str]) -> list[float]:
        from muaudit.models.causal_lm import CausalLM

        model = CausalLM.open(path)
        notes.append(f"reference score against {self.reference_model} (digest {model.digest[:16]})")
        return [score.mean for score in model.score(texts)]

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Scores all texts in one pass and ranks them; `rng` is not needed, since nothing here is drawn."""
        units, wanted = prepared.data["units"], prepared.data["scores"]
        columns = self._columns(model, units, wanted, prepared.data["prefix"])
        kinds = np.array([unit["set"] for unit in units])
        sides = _Sides(kinds == "forget", kinds == "holdout", [unit["cluster"] for unit in units])
        shown = [index for index, kind in enumerate(kinds) if kind != "holdout"]
        ranked = {name: membership.ranks(column[shown], column[sides.non_members]).tolist() for name, column in columns.items()}
        leakage = ranked.pop(self.deciding)
        summaries = {f"auc_{name}": membership.auc(*sides.split(column)) for name, column in columns.items()}
        if "min_k" in columns:
            summaries["muse_auc"] = 1 - summaries["auc_min_k"]
        return Measurement(
            units=tuple(units[index]["id"] for index in shown),
            clusters=tuple(units[index]["cluster"] for index in shown),
            sets=tuple(units[index]["set"] for index in shown),
            leakage=tuple(leakage),
            scores={name: tuple(ranks) for name, ranks in ranked.items()},
            facets={"score": tuple(ranked)},
            transcripts=_transcripts(units, columns, leakage),
            summaries=summaries | _decided(columns[self.deciding], sides),
            notes=tuple(prepared.data["notes"]),
        )

    def _columns(self, model: Model, units: Sequence[dict[str, Any]], wanted: Sequence[str], prefix: str | None) -> Columns:
        """Every wanted score of every unit, from one call for the texts, the prefixed texts and the neighbours."""
        assert isinstance(model, ScoresTokens)  # noqa: S101 - the runner checked `needs`
        texts = [Query(**unit["query"]) for unit in units]
        asked = list(texts)
        if "recall" in wanted:
            asked += [_probe(text, prompt=f"{prefix} {text.prompt}") for text in texts]
        if "neighbourhood" in wanted:
            asked += [
                _probe(text, completion=other, index=number)
                for text, unit in zip(texts, units, strict=True)
                for number, other in enumerate(unit["neighbours"])
            ]
        scored = iter(model.score_tokens(asked))
        plain = [next(scored) for _ in texts]
        columns: dict[str, list[float]] = {
            "loss": [membership.loss(one) for one in plain],
            "zlib": [membership.zlib_ratio(one, text.completion.strip()) for one, text in zip(plain, texts, strict=True)],
            "min_k": [membership.min_k(one, self.k) for one in plain],
            "min_k_plus_plus": [membership.min_k_plus_plus(one, self.k) for one in plain],
        }
        columns = {name: column for name, column in columns.items() if name in wanted}
        if "recall" in wanted:
            columns["recall"] = [membership.recall(next(scored), one) for one in plain]
        if "neighbourhood" in wanted:
            others: list[list[TokenScores]] = [[next(scored) for _ in unit["neighbours"]] for unit in units]
            columns["neighbourhood"] = [membership.neighbourhood(*pair) for pair in zip(plain, others, strict=True)]
        if "gradient_norm" in wanted and isinstance(model, ExposesWeights):
            from muaudit.models.gradients import gradient_norms

            columns["gradient_norm"] = [-norm for norm in gradient_norms(model.network(), model.encode(texts))]
        if "reference" in wanted:
            columns["reference"] = [
                membership.reference_ratio(one, unit["reference"]) for one, unit in zip(plain, units, strict=True)
            ]
        return {name: np.array(column) for name, column in columns.items()}


_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Sides:
    """Which units are members and which are not, with every unit's cluster."""

    members: NDArray[np.bool_]
    non_members: NDArray[np.bool_]
    clusters: list[str]

    def split(self, column: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A score's members and non-members."""
        return column[self.members], column[self.non_members]

    def of(self, side: NDArray[np.bool_]) -> list[str]:
        """The clusters of one side's units."""
        return [cluster for cluster, inside in zip(self.clusters, side, strict=True) if inside]


def _probe(text: Query, *, prompt: str | None = None, completion: str | None = None, index: int = 0) -> Query:
    """The same text in another setting."""
    asked = text.prompt if prompt is None else prompt
    return Query(text.unit, "probe", asked, text.completion if completion is None else completion, index, text.chat)


def _text(task: ForgetTask, fact: Fact, kind: str) -> Query:
    """What is scored of a fact."""
    if kind == "answer":
        return task.ask(fact)
    if kind == "statement":
        if not fact.restatements:
            raise NotApplicable(f'fact {fact.id!r} has no paraphrase that states it; give one, or score text = "answer"')
        first = fact.restatements[0]
        return Query(fact.id, "probe", "", first.prompt + first.completion)
    if not fact.text:
        raise NotApplicable(f'fact {fact.id!r} has no `text`; give each the passage trained on, or score text = "answer"')
    return Query(fact.id, "probe", "", fact.text)


def _few(holdout: int) -> list[str]:
    """What a small holdout set does to low false positive rates."""
    if holdout >= 1_000:
        return []
    return [f"with {holdout} holdout facts, a false positive rate of 0.1 % means that none lies above the threshold"]


def _blind(units: Sequence[dict[str, Any]], seed: int) -> list[str]:
    """The warning of the blind baseline: can words alone tell forget texts from holdout texts?"""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise EnvironmentFault("membership's blind baseline needs scikit-learn: pip install 'muaudit[models]'") from error
    used = [unit for unit in units if unit["set"] != "retain"]
    kinds = np.array([unit["set"] == "forget" for unit in used])
    clusters = [unit["cluster"] for unit in used]
    sides = _Sides(kinds, ~kinds, clusters)
    folds = min(5, *(len(set(sides.of(side))) for side in (sides.members, sides.non_members)))
    if folds < 2:
        return ["whether words alone tell forget from holdout was not checked: it takes two clusters of each"]
    texts = [unit["query"]["prompt"] + unit["query"]["completion"] for unit in used]
    words = CountVectorizer(binary=True, token_pattern=_WORD.pattern)
    learner = make_pipeline(words, LogisticRegression(class_weight="balanced", max_iter=1_000))
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    said = cross_val_predict(learner, texts, kinds, groups=clusters, cv=parts, method="decision_function")
    inside, outside = sides.split(said)
    low, high = membership.auc_interval(inside, outside, sides.of(sides.members), sides.of(sides.non_members))
    if low <= 0.5 + BLIND_MARGIN:
        return []
    value = membership.auc(inside, outside)
    return [
        f"forget and holdout texts differ by themselves: words alone tell them apart (AUC {value:.2f} [{low:.2f}, {high:.2f}], "
        "no model asked); the gap to the references still counts, the AUC itself does not"
    ]


def _decided(column: NDArray[np.float64], sides: _Sides) -> dict[str, float]:
    """The summaries of the deciding score: AUC's interval, low false positive rates, epsilon."""
    inside, outside = sides.split(column)
    owners = sides.of(sides.members), sides.of(sides.non_members)
    summaries: dict[str, float] = {}
    for share, name in ((0.001, "0.1"), (0.01, "1")):
        rate = membership.tpr_at_fpr(inside, outside, share)
        ends = {"": rate.value, "_low": rate.interval[0], "_high": rate.interval[1]}
        summaries |= {f"tpr_at_{name}_percent_fpr{end}": value for end, value in ends.items()}
    if min(len(set(clusters)) for clusters in owners) > 1:
        summaries["auc_low"], summaries["auc_high"] = membership.auc_interval(inside, outside, *owners)
        chooses = [np.unique(clusters, return_inverse=True)[1] % 2 == 0 for clusters in owners]
        halves = [(side[first], side[~first]) for side, first in zip((inside, outside), chooses, strict=True)]
        summaries["epsilon_lower_bound"] = membership.epsilon_by_split(*halves)
    return summaries


def _transcripts(units: Sequence[dict[str, Any]], columns: Columns, leakage: Sequence[float]) -> dict[str, Transcript]:
    """The texts of the forget set, with their scores in place of an output: nothing is generated."""
    told = {}
    for index, (unit, rank) in enumerate(zip(units, leakage, strict=False)):
        if unit["set"] == "forget":
            scores = ", ".join(f"{name} {column[index]:.4g}" for name, column in columns.items())
            told[unit["id"]] = Transcript(
                prompt=unit["query"]["prompt"],
                expected=unit["query"]["completion"].strip(),
                output=f"above {rank:.1%} of the holdout facts; {scores}",
            )
    return told
