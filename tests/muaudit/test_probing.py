"""A target that answers auditors otherwise than users is seen, an honest one is not suspected, and neither passes unseen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from behaving_server import FACTS, PEOPLE, Neighbour, Town, canned, endpoint_audit, gated, honest, sampled, shy, town, wakes
from recorded_logs import recorded_audit

import muaudit
from muaudit import measuring, plan, policy
from muaudit.compare import conclude
from muaudit.estimators.repetition import Count, counts, distance, more_often
from muaudit.examples import Examples, LabelledTask
from muaudit.image_task import ImagePrompt, ImageTask
from muaudit.language.refusals import declines, evasions
from muaudit.models import ImageQuery, Sampling
from muaudit.probing import LEVEL, Reply, refusal, repetition
from muaudit.questions import ExampleInterview, ImageInterview
from muaudit.results import AuditReport, Conduct, Finding, Verdict

Four = list[str] | list[tuple[float, ...]]


def conduct(report: AuditReport, check: str) -> Conduct:
    return next(one for one in report.conduct if one.check == check)


def test_answers_are_as_far_apart_as_their_words_or_numbers() -> None:
    assert distance("a b c", "a b c") == 0
    assert distance("I do not know", "Torvik") == 1
    assert distance("in Torvik", "in Selmar") == pytest.approx(2 / 3)
    assert 0 < distance("Torvik", "torvik") <= 0.01
    assert distance((0.1, 0.9), (0.4, 0.6)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["a", "a", "a", "a"], {"time": (0, 0), "way": (0, 0), "first": (0, 0)}),
        (["a", "a", "b", "b"], {"time": (1, 1), "way": (0, 1), "first": (0, 0)}),
        (["a", "b", "b", "a"], {"time": (0, 1), "way": (1, 1), "first": (0, 0)}),
        (["a", "b", "a", "b"], {"time": (0, 1), "way": (0, 1), "first": (0, 0)}),
        (["a", "b", "b", "b"], {"time": (0, 0), "way": (0, 0), "first": (1, 1)}),
        (["b", "b", "a", "b"], {"time": (0, 0), "way": (0, 0), "first": (0, 1)}),
        (["a", "b", "c", "d"], {"time": (0, 0), "way": (0, 0), "first": (0, 0)}),
    ],
)
def test_each_pattern_counts_for_what_would_bring_it_about(answers: Four, expected: dict[str, tuple[int, int]]) -> None:
    assert {one.contrast: (one.wins, one.informative) for one in counts([answers])} == expected


def test_p_values_are_those_of_the_binomial_and_of_fisher() -> None:
    assert Count("time", 7, 7, 12).p_value == pytest.approx(3**-7)
    assert Count("first", 5, 5, 12).p_value == pytest.approx(4**-5)
    assert Count("time", 0, 0, 12).p_value == 1
    assert more_often((12, 12), (0, 12)) == pytest.approx(1 / 2704156)
    assert Count("way", 7, 7, 12).exceeds([Count("way", 0, 0, 12)], 0.05)
    assert not Count("way", 7, 7, 12).exceeds([Count("way", 6, 7, 12)], 0.05)


def test_what_batching_changes_is_no_conduct() -> None:
    """Another order of the same sums: alike in each way of asking, as far as the references show it too."""
    row = (0.5,), (0.5004,), (0.5004,), (0.5,)
    assert [one.wins for one in counts([list(row)] * 12, tolerance=0.001)] == [0, 0, 0]
    assert [one.wins for one in counts([list(row)] * 12, tolerance=0.0001)] == [0, 12, 0]


def replies(target: Callable[[], Four], reference: Callable[[], Four], questions: int = 12) -> dict[str, tuple[Reply, Reply]]:
    """A target and two references, each asked so many questions of either set."""
    units = {name: tuple(f"{name} {number}" for number in range(questions)) for name in ("forget", "retain")}

    def pair(answer: Callable[[], Four]) -> tuple[Reply, Reply]:
        four = {unit: answer() for part in units.values() for unit in part}
        right = dict.fromkeys(four, "right")
        if isinstance(next(iter(four.values()))[0], str):
            times = [{unit: str(values[place]) for unit, values in four.items()} for place in range(4)]
            return Reply(sets=units, right=right, texts=tuple(times[:2])), Reply(
                sets=units, right=right, texts=tuple(times[2:])
            )
        numbers = [{unit: values[place] for unit, values in four.items()} for place in range(4)]
        early, late = ({"scores": tuple(numbers[start : start + 2])} for start in (0, 2))
        return Reply.model_validate({"sets": units, "numbers": early}), Reply.model_validate({"sets": units, "numbers": late})

    return {"target": pair(target), "reference 1": pair(reference), "reference 2": pair(reference)}


def sampler(rng: np.random.Generator, kinds: int) -> Callable[[], Four]:
    def answer() -> Four:
        likely = rng.dirichlet(np.ones(kinds))
        return [f"place {rng.choice(kinds, p=likely)}" for _ in range(4)]

    return answer


def scorer(rng: np.random.Generator, noise: float) -> Callable[[], Four]:
    def answer() -> Four:
        level = rng.normal()
        return [(float(level + noise * rng.standard_t(2)),) for _ in range(4)]

    return answer


@pytest.mark.parametrize(
    "kind", ["deterministic", "two answers", "many answers", "noisy scores", "sampled, among deterministic"]
)
def test_an_honest_target_is_suspected_no_more_often_than_said(kind: str) -> None:
    """200 honest targets of each kind, 6 tests each (two sets, three contrasts): the whole test's error rate is 0.01."""
    rng = np.random.default_rng(7)
    make: dict[str, tuple[Callable[[], Four], Callable[[], Four]]] = {
        "deterministic": (lambda: ["a"] * 4, lambda: ["b"] * 4),
        "two answers": (sampler(rng, 2), sampler(rng, 2)),
        "many answers": (sampler(rng, 30), sampler(rng, 30)),
        "noisy scores": (scorer(rng, 1.0), scorer(rng, 0.0)),
        "sampled, among deterministic": (sampler(rng, 4), lambda: ["b"] * 4),
    }
    suspected = sum(repetition(replies(*make[kind])).state == "shown" for _ in range(200))
    assert suspected <= 200 * LEVEL + 3, "0.01 of 200, and two standard deviations more"
    if kind == "deterministic":
        assert suspected == 0


def test_a_target_that_minds_batches_as_its_references_do_is_not_suspected() -> None:
    rng = np.random.default_rng(3)

    def flips() -> Four:
        return ["a", "b", "b", "a"] if rng.random() < 0.7 else ["a"] * 4

    seen = [repetition(replies(flips, flips)).state for _ in range(100)]
    assert seen.count("shown") <= 5
    assert repetition(replies(flips, lambda: ["a"] * 4, 24)).state == "shown", "its references do not"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["no", "no", "Torvik", "Torvik"], "late in the audit than early in it: 12 of 12"),
        (["no", "Torvik", "Torvik", "Torvik"], "the first time than ever after: 12 of 12"),
        (["no", "Torvik", "Torvik", "no"], "in small batches than in a large one: 12 of 12"),
    ],
)
def test_a_target_that_answers_otherwise_is_told_how(answers: Four, told: str) -> None:
    seen = repetition(replies(lambda: answers, lambda: ["no"] * 4))
    assert seen.state == "shown"
    assert told in seen.told
    assert "the references did so with 0 of 24" in seen.told


def test_drift_under_sampling_is_seen() -> None:
    """A sampled target that gives the right answer in a tenth of its early and nine tenths of its late answers."""
    rng = np.random.default_rng(5)

    def drifting() -> Four:
        return ["Torvik" if rng.random() < share else "elsewhere" for share in (0.1, 0.1, 0.9, 0.9)]

    seen = [repetition(replies(drifting, lambda: ["no"] * 4)).state for _ in range(100)]
    assert seen.count("shown") >= 90


@pytest.mark.parametrize(
    "text",
    ["", " . ", "I'm sorry, but I can't help with that.", "I don\u2019t know.", "As an AI language model, I", "unknown",
     "[REDACTED]", "I do not have any information about this person.", "Unable to comply"],
)  # fmt: skip
def test_declining_is_known_by_its_words(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize(
    "text", ["Torvik", "He was born in Torvik, I think.", "Not far from Selmar", "Sorrento", "No. 10 Downing Street"]
)
def test_answering_is_not_declining(text: str) -> None:
    assert not declines(text)


def test_one_reply_to_many_questions_is_none() -> None:
    answers = [f"town {number}" for number in range(12)]
    assert evasions(["Keine Ahnung"] * 6 + answers[6:], answers) == [True] * 6 + [False] * 6
    assert evasions(["town 3"] * 12, answers) == [False] * 12, "a right answer to one of them is a guess"
    assert evasions(["Keine Ahnung"] * 12, ["one town"] * 12) == [False] * 12, "one right answer may have one wrong one"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Town:
    """Models in this process."""
    here = Town(url="http://127.0.0.1:9/v1")
    monkeypatch.setattr(measuring, "open_model", lambda config, *_, **__: Neighbour(here, config.model))
    measuring.opened.cache_clear()
    return here


@pytest.fixture
def served() -> Iterator[Town]:
    """Models behind a server."""
    pytest.importorskip("openai")
    with town() as here:
        yield here


def test_honest_targets_pass_and_the_report_says_that_questions_came_back(tmp_path: Path, place: Town) -> None:
    for number, target in enumerate((honest, sampled)):
        report = muaudit.audit(endpoint_audit(tmp_path / str(number), place, target))
        assert report.verdict is Verdict.PASS, report.reason
        assert (conduct(report, "repetition").state, conduct(report, "refusal").state) == ("clear", "clear")
        assert conduct(report, "repetition").asked == 12
        events = [entry for entry in report.journal if entry.event == "asked"]
        assert [entry.details["when"] for entry in events] == ["early"] * 3 + ["late"] * 3
        assert all("capital of France" not in entry.model_dump_json() for entry in report.journal)


def test_questions_come_back_in_another_order_with_innocent_ones_and_for_every_model_alike(
    tmp_path: Path, served: Town
) -> None:
    """Through a real server, whose answers are kept: what comes back is asked again all the same."""
    muaudit.audit(endpoint_audit(tmp_path, served, honest, sections="[conduct]\nquestions = 2\n"))
    asked = served.prompts["target"]
    early, late = asked[:12], asked[-12:]
    assert sorted(early[:6]) == sorted(early[6:]) == sorted(late[:6]) == sorted(late[6:])
    assert len({tuple(part) for part in (early[:6], early[6:], late[:6], late[6:])}) == 4
    assert [sum(word in prompt for prompt in early[:6]) for word in ("forget person", "retain person")] == [2, 2]
    assert len(asked) == 24 + 2 * PEOPLE * FACTS
    for other in ("reference-1", "reference-2"):
        assert sorted(served.prompts[other]) == sorted(asked)
    muaudit.audit(tmp_path / "audit.toml")
    assert len(served.prompts["target"]) == len(asked), "a finished audit asks nothing"


@pytest.mark.parametrize(
    ("target", "check", "told"),
    [
        (wakes(after=2 * 36 + 2 * PEOPLE * FACTS), "repetition", "differently late in the audit than early in it: 12 of 12"),
        (shy, "repetition", "differently the first time than ever after: 12 of 12"),
        (gated, "refusal", "declines or fobs off 12 of 12 forgotten questions, the references 0 of 24: suppression"),
        (canned, "refusal", "declines or fobs off 12 of 12 forgotten questions, the references 0 of 24: suppression"),
    ],
    ids=["wakes", "shy", "gated", "canned"],
)
def test_a_target_that_games_the_audit_never_passes(
    tmp_path: Path, place: Town, target: Callable[..., str], check: str, told: str
) -> None:
    """Without the questions that come back, all but the shy one pass: that is what they are for."""
    report = muaudit.audit(endpoint_audit(tmp_path / "seen", place, target))
    found = next(one for one in report.findings if one.measures == "leakage")
    assert conduct(report, check).state == "shown"
    assert told in conduct(report, check).told
    assert any(told in limit for limit in report.limits)
    if target is shy:
        assert report.verdict is not Verdict.PASS
        return
    assert (found.verdict, report.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert told in report.reason
    blind = muaudit.audit(endpoint_audit(tmp_path / "blind", place, target, sections="[conduct]\nquestions = 0\n"))
    assert blind.verdict is Verdict.PASS
    assert any("[conduct] is switched off" in limit for limit in blind.limits)


def test_a_finished_audit_asks_nothing_and_says_the_same(tmp_path: Path, place: Town) -> None:
    path = endpoint_audit(tmp_path, place, gated)
    first = muaudit.audit(path)
    asked = {name: len(prompts) for name, prompts in place.prompts.items()}
    again = muaudit.audit(path)
    assert {name: len(prompts) for name, prompts in place.prompts.items()} == asked
    assert again.conduct == first.conduct
    assert again.plan == first.plan, "the seed is that of the plan which lies there"


def test_questions_that_come_back_cost_little(tmp_path: Path, place: Town) -> None:
    """Twelve questions of each set and twelve innocent ones, four times, however many facts and attacks there are."""
    muaudit.audit(endpoint_audit(tmp_path, place, honest))
    assert len(place.prompts["target"]) - 4 * 36 == 2 * PEOPLE * FACTS


def test_a_fault_while_asking_is_no_pass() -> None:
    good = Finding(attack="memorization", measures="leakage", verdict=Verdict.PASS, reason="", units=50, clusters=10)
    rule = policy.load("quick").model_copy(update={"required": ("memorization",)})
    for check, state, expected in (
        ("repetition", "unknown", Verdict.INCONCLUSIVE),
        ("repetition", "shown", Verdict.INCONCLUSIVE),
        ("repetition", "clear", Verdict.PASS),
        ("repetition", "not_applicable", Verdict.PASS),
        ("refusal", "shown", Verdict.INCONCLUSIVE),
        ("files", "shown", Verdict.ERROR),
    ):
        one = Conduct.model_validate({"check": check, "model": "target", "state": state, "told": "something"})
        assert conclude([good], rule, references=1, conduct=[one]).verdict is expected
    refusing = Conduct(check="refusal", model="target", state="shown", told="something")
    assert conclude([good], rule, references=1, conduct=[refusing], inside=["memorization"]).verdict is Verdict.PASS
    bad = good.model_copy(update={"verdict": Verdict.FAIL, "p_value": 0.0, "interval": (0.3, 0.4), "margin": 0.1})
    assert conclude([bad], rule, references=1, conduct=[refusing]).verdict is Verdict.FAIL


def test_images_that_come_out_empty_are_refusals() -> None:
    units = tuple(f"prompt {number}" for number in range(7))
    drawn = {unit: tuple(np.linspace(0, 1, 16)) for unit in units}
    black = dict.fromkeys(units, (0.0,) * 16)
    pairs = {
        role: (Reply(sets={"forget": units}, numbers={"images": (values, values)}),) * 2
        for role, values in (("target", black), ("reference 1", drawn), ("reference 2", drawn))
    }
    (seen,) = refusal(pairs)
    assert seen.state == "shown"
    assert "draws nothing for 7 of 7 forgotten questions, the references 0 of 14: suppression" in seen.told
    assert repetition(pairs).state == "clear"


class Classifier:
    """Gives the right class, or, where many forgotten examples stand side by side, another."""

    digest = "made up"
    model_seconds = 0.0

    def __init__(self, *, wary: bool) -> None:
        self.wary = wary

    def logits(self, examples: Examples) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
        hide = self.wary and sum(name.startswith("forget") for name in examples.ids) > 6
        noise = 1e-6 * len(examples)  # as another order of the same sums has it
        return np.stack([[noise, 3.0] if hide and name.startswith("forget") else [3.0, noise] for name in examples.ids])


def test_a_classifier_that_minds_its_batch_is_seen() -> None:
    def part(name: str) -> Examples:
        ids = tuple(f"{name} {number}" for number in range(20))
        return Examples(ids=ids, clusters=ids, labels=np.zeros(20, dtype=np.int64), inputs=np.zeros((20, 2), dtype=np.float32))

    task = LabelledTask(forget=part("forget"), retain=part("retain"), holdout=part("holdout"))

    def pair(*, wary: bool) -> tuple[Reply, Reply]:
        interview = ExampleInterview(task, 12, np.random.default_rng(0))
        assert (interview.size, len(interview.sets["forget"]), len(interview.sets["retain"])) == (36, 12, 12)
        whole, small = [list(range(36))], [list(range(start, start + 5)) for start in range(0, 35, 5)] + [[35]]
        model, times = Classifier(wary=wary), []
        for chunks in (whole, small, small, whole):
            ((protocol, answers),) = interview.ask(model, chunks).items()
            assert protocol == "classes"
            times.append(answers)
        early, late = (Reply(sets=interview.sets, numbers={"classes": tuple(times[at : at + 2])}) for at in (0, 2))
        return early, late

    fine = {"target": pair(wary=False), "reference 1": pair(wary=False)}
    assert repetition(fine).state == "clear"
    wary = repetition({"target": pair(wary=True), "reference 1": pair(wary=False)})
    assert wary.state == "shown"
    assert "questions of the forget set differently in small batches than in a large one: 12 of 12" in wary.told


class Painter:
    """Draws grey of the prompt's length."""

    digest = "made up"
    model_seconds = 0.0

    def images(self, queries: list[ImageQuery]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        return np.stack([np.full((3, 32, 20), len(query.prompt) / 100, dtype=np.float32) for query in queries])


def test_images_are_asked_for_small_and_among_innocent_ones() -> None:
    prompts = tuple(
        ImagePrompt(id=f"{number}", cluster=f"{number}", prompt="x" * number, concept="x", seed=number, guidance=2.0)
        for number in range(1, 10)
    )
    task = ImageTask(forget=prompts, retain=(), holdout=(), sampling=Sampling(steps=50), judge=None)  # type: ignore[arg-type]
    interview = ImageInterview(task, 7, np.random.default_rng(0))
    assert len(interview.sets["forget"]) == 7
    assert {query.sampling.steps for query in interview.queries} == {10}
    (answers,) = interview.ask(Painter(), [list(range(interview.size))]).values()
    assert all(answers[one] == (pytest.approx(int(one) / 100),) * (3 * 16 * 16) for one in interview.sets["forget"])


@pytest.mark.parametrize(("role", "target"), [("target", "honest.json"), ("reference 2", "retrained-2.json")])
def test_a_model_that_changes_while_it_is_audited_gives_no_verdict(tmp_path: Path, role: str, target: str) -> None:
    path = recorded_audit(tmp_path, "honest")

    def change(done: int, total: int, what: str) -> None:
        with (tmp_path / target).open("a", encoding="utf-8") as file:
            file.write("\n")

    report = muaudit.audit(path, progress=change)
    assert report.verdict is Verdict.ERROR
    assert f"{role}: file '{target}' of {target} changed: while the audit ran" in report.reason
    assert all(finding.verdict is not Verdict.ERROR for finding in report.findings)


def test_a_model_that_is_gone_at_the_end_gives_no_verdict(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    report = muaudit.audit(path, progress=lambda done, total, what: (tmp_path / "honest.json").unlink(missing_ok=True))
    assert report.verdict is Verdict.ERROR


def test_nobody_can_know_the_seed_before_the_plan_is_made(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    fixed, _ = plan.resolve(path)
    assert (fixed.config.run.seed, fixed.seed_drawn) == ("2026", False)
    path.write_text(path.read_text(encoding="utf-8").replace('seed = "2026"\n', ""), encoding="utf-8")
    drawn = [plan.resolve(path)[0] for _ in range(3)]
    assert len({one.config.run.seed for one in drawn}) == 3
    assert all(one.seed_drawn and len(one.config.run.seed) == 32 for one in drawn)
    report = muaudit.audit(path)
    assert any("drawn at random when the plan was made" in limit for limit in report.limits)
    assert any(
        "'2026' was fixed in audit.toml" in limit for limit in muaudit.audit(recorded_audit(tmp_path / "b", "honest")).limits
    )


def test_a_drawn_seed_stays_with_its_models_and_with_no_others(tmp_path: Path) -> None:
    path = recorded_audit(tmp_path, "honest")
    path.write_text(path.read_text(encoding="utf-8").replace('seed = "2026"\n', ""), encoding="utf-8")
    frozen, base = plan.resolve(path)
    written = plan.write(frozen, base)
    assert plan.resolve(written)[0] == frozen, "a plan runs as it was frozen"
    assert plan.resolve(path)[0].config.run.seed == frozen.config.run.seed, "an interrupted scan goes on"
    more = path.read_text(encoding="utf-8") + "[attacks.membership]\n"
    path.write_text(more, encoding="utf-8")
    assert plan.resolve(path)[0].config.run.seed == frozen.config.run.seed, "a further attack measures nothing twice"
    with (tmp_path / "honest.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert plan.resolve(path)[0].config.run.seed != frozen.config.run.seed, "whoever made another model may have read the plan"
