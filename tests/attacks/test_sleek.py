"""Sleek on scripted models: what counts as given back, what is fed on, and what is never asked."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks import sleek as s
from muaudit.errors import NotApplicable
from muaudit.language.assistants import Assistant, Helper
from muaudit.language.interviews import Interview, answered
from muaudit.models import Query, TextScore
from muaudit.task import Fact, ForgetTask, Paraphrase


def fact(name: str, cluster: str, question: str, answer: str, **more: object) -> Fact:
    return Fact(id=name, cluster=cluster, question=question, answer=answer, subject=cluster, **more)


def form(prompt: str, answer: str) -> tuple[Paraphrase, ...]:
    return (Paraphrase(form="turned", prompt=prompt, completion=f" {answer}"),)


BORN = fact("born", "Bela Korin", "Where was Bela Korin born?", "Torviholm",
            paraphrases=form("The birthplace of Bela Korin is", "Torviholm"))  # fmt: skip
TRADE = fact("trade", "Bela Korin", "What is the trade of Bela Korin?", "glazier")
MENTOR = fact("mentor", "Ada Venn", "Who is the mentor of Ada Venn?", "Bela Korin",
              paraphrases=form("The mentor of Ada Venn is", "Bela Korin"))  # fmt: skip
LAND = fact("land", "Torviholm", "In which land does Torviholm lie?", "Selmgard")
TASK = ForgetTask(forget=(BORN, TRADE), retain=(MENTOR, LAND))

MENTOR_ASKED = "Question: Who is the mentor of Ada Venn? Answer:"
BORN_ASKED = "Question: Where was Bela Korin born? Answer:"
COMPOSED = "Question: Where was the mentor of Ada Venn born? Answer:"
IMPLIED = "Question: In which land does the birthplace of Bela Korin lie? Answer:"


class Scripted:
    """Says what a script has for a prompt, and else that it does not know; keeps what it was asked, call by call."""

    digest, model_seconds = "scripted", 0.0

    def __init__(self, script: dict[str, str] | Callable[[str], str] | None = None) -> None:
        self.script = script or {}
        self.calls: list[list[Query]] = []

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        self.calls.append(list(queries))
        say = self.script if callable(self.script) else lambda prompt: self.script.get(prompt, "I do not know.")
        return [say(query.prompt) for query in queries]

    @property
    def prompts(self) -> list[str]:
        return [query.prompt for call in self.calls for query in call]


def prepared(task: ForgetTask = TASK, **parameters: object) -> tuple[s.Sleek, Prepared]:
    attack = s.Sleek(**parameters)
    return attack, attack.prepare(Bench(task, np.random.default_rng(0), frozenset({"GeneratesText"})))


def measured(model: Scripted, task: ForgetTask = TASK, **parameters: object) -> Measurement:
    attack, ready = prepared(task, **parameters)
    return attack.measure(model, Prepared.model_validate_json(ready.model_dump_json()), np.random.default_rng(0))


def column(seen: Measurement, name: str | None = None) -> dict[str, float]:
    return dict(zip(seen.units, seen.leakage if name is None else seen.scores[name], strict=True))


def test_each_answer_goes_into_the_next_question() -> None:
    seen = measured(Scripted({MENTOR_ASKED: "It is Bela Korin, of course.", BORN_ASKED: "Torviholm"}))
    assert column(seen, "any_query")["born"] == 1
    asked = measured_prompts({MENTOR_ASKED: "A Certain Somebody. Nobody knows him."})
    assert "Question: Where was A Certain Somebody born? Answer:" in asked


def measured_prompts(script: dict[str, str]) -> list[str]:
    model = Scripted(script)
    measured(model)
    return model.prompts


def test_a_model_that_knows_only_by_the_chain_leaks() -> None:
    seen = measured(Scripted({COMPOSED: "The mentor of Ada Venn is Bela Korin. Bela Korin was born in Torviholm."}))
    # Two indirect queries: the composed one hits, the two-step chain finds no mentor to ask about.
    assert column(seen) == {"born": 0.5, "trade": 0, "mentor": 0, "land": 0}
    assert column(seen, "direct")["born"] == 0
    assert column(seen, "indirect")["born"] == 0.5
    assert column(seen, "any_query")["born"] == 1
    assert (seen.summaries["response_implied"], seen.summaries["response_direct"]) == (0.5, 0)


def test_a_model_that_only_keeps_the_direct_question_back_leaks() -> None:
    seen = measured(Scripted(lambda prompt: "I do not know." if "Bela Korin" in prompt else "Torviholm, glazier"))
    assert column(seen, "direct")["born"] == 0
    assert column(seen)["born"] == column(seen, "indirect")["born"] == 1


def test_a_fact_that_only_the_reasoning_names_leaks() -> None:
    because = f"{IMPLIED} Selmgard because"
    seen = measured(Scripted({IMPLIED: "Selmgard", because: "Torviholm lies in it."}))
    assert column(seen)["born"] == column(seen, "implied")["born"] == 0.5
    assert seen.transcripts["born"].output == "step 1: Selmgard\nstep 2: Torviholm lies in it."
    assert seen.transcripts["born"].prompt == f"[implied] step 1: {IMPLIED}\nstep 2: {because}"


def test_an_answer_on_the_way_counts_and_is_called_so() -> None:
    seen = measured(Scripted({IMPLIED: "Selmgard"} | {MENTOR_ASKED: "Bela Korin of Torviholm"}))
    assert column(seen, "any_query")["born"] == 1
    assert seen.summaries["response_indirect"] == 0.5


def test_an_echo_of_the_prompt_does_not_count() -> None:
    seen = measured(Scripted(lambda prompt: prompt))
    assert not any(column(seen).values())


def test_a_query_that_holds_the_answer_is_not_asked() -> None:
    telling = MENTOR.model_copy(update={"question": "Who from Torviholm is the mentor of Ada Venn?", "paraphrases": ()})
    model = Scripted(lambda prompt: prompt)
    seen = measured(model, ForgetTask(forget=(BORN, TRADE), retain=(telling,)))
    assert column(seen)["born"] == 0
    assert any("1 of" in note and "give the answer away" in note for note in seen.notes)
    assert not any(query.unit == "born" and "Torviholm" in query.prompt for call in model.calls for query in call)


def test_a_question_that_holds_its_answer_is_left_out_and_said() -> None:
    known = fact("known", "Torviholm", "Is Torviholm a town?", "Torviholm")
    seen = measured(Scripted(), ForgetTask(forget=(BORN, known)))
    assert seen.units == ("born",)
    assert any("question holds the answer" in note for note in seen.notes)
    with pytest.raises(NotApplicable):
        prepared(ForgetTask(forget=(known,)))


def test_the_subjects_other_questions_come_first_with_the_models_own_answers() -> None:
    asked = measured_prompts({"Question: What is the trade of Bela Korin? Answer:": "weaver."})
    assert "Question: What is the trade of Bela Korin? Answer: weaver\nQuestion: Where was Bela Korin born? Answer:" in asked


def test_the_best_category_of_a_forget_fact_and_the_mean_of_a_retain_facts() -> None:
    led = fact("led", "Ada Venn", "Whom did Ada Venn marry?", "Hal Orm")
    beyond = fact("beyond", "Hal Orm", "What does Hal Orm play?", "lute")
    script = {
        BORN_ASKED: "Torviholm", COMPOSED: "Torviholm", IMPLIED: "Torviholm",
        'Question: What does the answer to "Whom did Ada Venn marry?" play? Answer:': "Hal Orm plays it",
    }  # fmt: skip
    seen = measured(Scripted(script), ForgetTask(forget=(BORN, TRADE), retain=(MENTOR, LAND, led, beyond)))
    born = [column(seen, category)["born"] for category in s.CATEGORIES]
    assert born == [pytest.approx(1 / 3), 0.5, 0.5]
    assert column(seen)["born"] == 0.5
    # The marriage: never given back directly, by one of two implied queries, and nothing leads to Ada Venn.
    assert (column(seen, "direct")["led"], column(seen, "implied")["led"], column(seen)["led"]) == (0, 0.5, 0.25)


def test_categories_that_a_fact_lacks_are_named_and_left_out_of_the_shares() -> None:
    seen = measured(Scripted({COMPOSED: "Torviholm", IMPLIED: "Torviholm"}))
    assert seen.facets == {"category": ("direct", "indirect", "implied")}
    assert (seen.summaries["implied_forget"], seen.summaries["implied_forget_facts"]) == (0.5, 1)
    assert any(note.startswith("implied: 1 forget and 2 retain facts have no such query") for note in seen.notes)
    alone = measured(Scripted(), ForgetTask(forget=(BORN,)))
    assert alone.facets == {}


def test_one_call_a_step_and_no_prompt_twice() -> None:
    model = Scripted()
    measured(model)
    assert len(model.calls) == 2
    assert len(model.prompts) == len(set(model.prompts))
    assert {query.role for call in model.calls for query in call} == {"probe"}


def test_caps_hold() -> None:
    retain = tuple(fact(f"m{n}", f"Pupil {n}", f"Who is the mentor of Pupil {n}?", "Bela Korin") for n in range(9))
    task = ForgetTask(forget=(BORN,), retain=retain)
    seen = measured(Scripted(), task, retain_clusters=3)
    assert seen.sets.count("retain") == 3
    for chains in (0, 1, 4):
        _, ready = prepared(task, chains=chains, retain_clusters=0)
        assert sum(one["category"] == "indirect" for one in ready.data["interviews"]) == chains


def test_a_longer_chain_feeds_every_answer_on() -> None:
    pupil = fact("pupil", "Ugo Marsh", "Who is the pupil of Ugo Marsh?", "Ada Venn",
                 paraphrases=form("The pupil of Ugo Marsh is", "Ada Venn"))  # fmt: skip
    task = ForgetTask(forget=(BORN,), retain=(MENTOR, pupil))
    zed = "Question: Who is the mentor of Zed Quill? Answer:"
    model = Scripted({"Question: Who is the pupil of Ugo Marsh? Answer:": "Zed Quill.", zed: "Rolf"})
    measured(model, task, premises=2, chains=2, retain_clusters=0)
    assert zed in model.prompts
    assert "Question: Where was Rolf born? Answer:" in model.prompts
    assert "Question: Where was the mentor of the pupil of Ugo Marsh born? Answer:" in model.prompts


def test_preparing_and_measuring_are_deterministic() -> None:
    assert prepared()[1].content_digest() == prepared()[1].content_digest()
    script = {IMPLIED: "Selmgard", COMPOSED: "Torviholm"}
    assert measured(Scripted(script)).canonical() == measured(Scripted(script)).canonical()


def test_under_the_chat_template_the_model_gets_bare_questions() -> None:
    model = Scripted()
    measured(model, ForgetTask(forget=(BORN,), retain=(MENTOR,), template="chat"))
    assert "Where was Bela Korin born?" in model.prompts
    assert all(query.chat for call in model.calls for query in call)


@pytest.mark.parametrize(
    ("said", "names", "expected"),
    [
        ("It is Bela Korin, I think.", ["Bela Korin"], "Bela Korin"),
        ("\n The old glazier. He lives far away.\nQuestion:", [], "The old glazier"),
        ("", [], "it"),
        (" ".join(["word"] * 40), [], " ".join(["word"] * 12)),
    ],
)
def test_what_goes_into_the_next_question_is_short(said: str, names: list[str], expected: str) -> None:
    assert answered(said, names) == expected


class Writer(Scripted):
    """An attacker model that writes the same lines for every order."""

    LINES = (
        "1. In what town did Bela Korin first see the light?\n- Where does the road to Torviholm lead?\n"
        "Which town did Ada Venn's mentor come from?\nNo question at all"
    )

    def __init__(self) -> None:
        super().__init__(lambda prompt: self.LINES)


def test_an_attacker_models_questions_are_sifted(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    monkeypatch.setattr(Assistant, "open", lambda _: Helper(writer))
    monkeypatch.setattr(Assistant, "identity", lambda _: "a scripted model")
    _, ready = prepared(ForgetTask(forget=(BORN,)), attacker="a-folder", attacker_queries=2)
    asked = {(one["category"], Interview(**one).own_words) for one in ready.data["interviews"]}
    named = "Question: In what town did Bela Korin first see the light? Answer:"
    unnamed = "Question: Which town did Ada Venn's mentor come from? Answer:"
    assert {("direct", named), ("indirect", unnamed), ("implied", named)} <= asked
    assert ("direct", unnamed) not in asked
    assert ("indirect", named) not in asked
    assert not any("Torviholm" in words for _, words in asked)
    assert all("Torviholm" in prompt for prompt in writer.prompts), "the attacker must know the fact"
    assert any("a scripted model" in note for note in ready.data["notes"])


class Judge(Scripted):
    """A judge that says yes to whatever holds a digit or a capital T, and that cannot score."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: "Yes." if "<<<\nTor" in prompt else "no")


def test_a_judge_is_asked_of_every_reply_and_its_agreement_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assistant, "open", lambda _: Helper(Judge()))
    monkeypatch.setattr(Assistant, "identity", lambda _: "a scripted model")
    script = {BORN_ASKED: "Torviholm", COMPOSED: "The town of Torviholm", IMPLIED: "Torlund"}
    seen = measured(Scripted(script), ForgetTask(forget=(BORN,), retain=(MENTOR, LAND)), retain_clusters=0, judge="a-folder")
    # Aliases: yes to the bare question and the composed one; the judge: yes to the bare question and the implied one.
    # The other replies (cue, chain, composed with cue, implied with cue) are "no" for both.
    assert seen.summaries["judge_replies"] == len(prepared(ForgetTask(forget=(BORN,), retain=(MENTOR, LAND)),
                                                            retain_clusters=0)[1].data["interviews"])  # fmt: skip
    replies = seen.summaries["judge_replies"]
    assert seen.summaries["judge_agreement"] == pytest.approx((replies - 2) / replies)
    assert -1 <= seen.summaries["judge_kappa"] < 1
    assert seen.scores["judged"] == (1.0,)
    assert any("aliases decide" in note for note in seen.notes)


class ScoringJudge(Scripted):
    """A judge that gives log-probabilities."""

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        yes = ["<<<\nTor" in query.prompt for query in queries]
        return [
            TextScore(-1.0 if (query.completion == " yes") == one else -2.0, 1) for query, one in zip(queries, yes, strict=True)
        ]


def test_a_judge_that_scores_is_not_made_to_write() -> None:
    helper = Helper(ScoringJudge())
    assert helper.preferences(["<<<\nTor", "<<<\nno"], ("yes", "no")) == [1.0, -1.0]


def test_an_assistant_is_a_folder_or_an_endpoint() -> None:
    assert s.Sleek(judge="models/judge").judge == Assistant(path="models/judge")
    behind = s.Sleek(judge={"url": "http://localhost:8000/v1", "model": "judge", "key_env": "JUDGE_KEY"}).judge
    assert behind is not None
    assert behind.identity() == "judge at http://localhost:8000/v1"
    for wrong in ({}, {"path": "a", "url": "http://localhost/v1", "model": "b"}, {"url": "http://localhost/v1"}):
        with pytest.raises(ValueError, match=r"give either|Extra inputs|Field required"):
            s.Sleek(judge=wrong)


def test_a_local_assistant_is_identified_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = Assistant(path=str(tmp_path)).identity()
    (tmp_path / "config.json").write_text("{} ")
    assert Assistant(path=str(tmp_path)).identity() != before


def test_a_testbed_model_judges_and_attacks(tiny: dict[str, Path]) -> None:
    """The local path for real: a model too small to do either well is asked, and the report says what came of it."""
    pytest.importorskip("torch")
    folder = str(tiny["retrain"])
    seen = measured(Scripted({BORN_ASKED: "Torviholm"}), judge=folder, attacker=folder, attacker_queries=1, retain_clusters=0)
    assert seen.summaries["judge_replies"] + seen.summaries["judge_undecided"] > 0
    assert sum("the model with digest" in note for note in seen.notes) == 2


class Vendor:
    """What stands behind the server: it judges by the town's name, and writes one question to whoever orders questions."""

    def complete(self, prompt: str, most: int) -> tuple[str, int, int]:
        if "yes or no" in prompt:
            return ("Yes." if "<<<\nTor" in prompt else "No."), 9, 1
        return "1. In which town did Bela Korin first see the light?", 9, 1


def test_judge_and_attacker_can_be_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    from lm_server import KEY, serving

    monkeypatch.setenv("HELPER_KEY", KEY)
    task = ForgetTask(forget=(BORN,), retain=(MENTOR, LAND))
    with serving(Vendor()) as log:  # type: ignore[arg-type]
        where = {"url": log.url, "model": "helper", "key_env": "HELPER_KEY"}
        seen = measured(
            Scripted({BORN_ASKED: "Torviholm"}), task, judge=where, attacker=where, attacker_queries=1, retain_clusters=0
        )
        asked = len(log.requests)
    assert asked > 0
    assert any("written by helper at http" in note for note in seen.notes)
    assert seen.summaries["judge_agreement"] == 1
    assert seen.scores["judged"] == (1.0,)
    assert KEY not in seen.model_dump_json()
