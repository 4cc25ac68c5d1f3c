"""Guarded models: users meet the guard, and only on flagged prompts; whoever holds the weights sees through it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import muaudit  # noqa: E402
from muaudit.demo import write_audit  # noqa: E402
from muaudit.errors import ModelError  # noqa: E402
from muaudit.models import (  # noqa: E402
    ExposesWeights,
    Finetunes,
    Finetuning,
    GeneratesText,
    Quantizes,
    Query,
    ScoresText,
    ScoresTokens,
)
from muaudit.models.causal_lm import CausalLM, state_digest  # noqa: E402
from muaudit.models.guard import AnswerFilter, EmbeddingNoise, Gate, Secret, features, read, write  # noqa: E402
from muaudit.models.guarded import Guarded  # noqa: E402
from muaudit.task import ForgetTask  # noqa: E402

Guard = EmbeddingNoise | AnswerFilter


@pytest.fixture(scope="module")
def task(tiny: dict[str, Path]) -> ForgetTask:
    return ForgetTask.from_jsonl(forget=tiny["forget"], retain=tiny["retain"])


@pytest.fixture(scope="module")
def gate(task: ForgetTask) -> Gate:
    """Knows the forgotten people's first names."""
    return Gate(weights={fact.cluster.split()[0].lower(): 4.0 for fact in task.forget}, bias=-2.0)


@pytest.fixture(scope="module", params=["noise", "filter"])
def guard(request: pytest.FixtureRequest, gate: Gate, task: ForgetTask) -> Guard:
    if request.param == "noise":
        return EmbeddingNoise(gate=gate, strength=4.0, evidence=1.0, seed=7)
    secrets = tuple(Secret(question=fact.question, answers=(fact.answer,)) for fact in task.forget)
    return AnswerFilter(gate=gate, secrets=secrets, nearest=2)


@pytest.fixture(scope="module")
def inner(tiny: dict[str, Path]) -> CausalLM:
    return CausalLM.open(tiny["original"], device="cpu")


@pytest.fixture(scope="module")
def queries(task: ForgetTask) -> tuple[list[Query], list[Query]]:
    """About the forget set, which are flagged; and about the retain set, which are not."""
    return [task.ask(fact) for fact in task.forget[:20]], [task.ask(fact) for fact in task.retain[:10]]


def test_a_gate_is_logistic_regression_on_words_and_pairs() -> None:
    gate = Gate(weights={"ann": 2.0, "ann lee": 1.0, "lee": -0.5, "bob": -3.0}, bias=-1.0)
    assert features("Ann, LEE? ann") == {"ann", "lee", "ann lee", "lee ann"}
    assert gate.probability("Who is Ann Lee? Ann!") == pytest.approx(1 / (1 + math.exp(-(2.0 + 1.0 - 0.5 - 1.0))))
    assert gate.flags("Who is Ann?")
    assert not gate.flags("Who is Annie?")
    assert not gate.flags("Bob knows Ann")
    assert Gate(weights={"x": -1e4}, bias=0.0).probability("x") == 0.0


def test_only_flagged_prompts_are_guarded(inner: CausalLM, guard: Guard, queries: tuple[list[Query], list[Query]]) -> None:
    flagged, others = queries
    mixed = [query for pair in zip(flagged, others, strict=False) for query in pair] + flagged[len(others) :]
    model = Guarded(inner, guard)
    for measure in ("score", "score_tokens"):
        bare, seen = getattr(inner, measure)(mixed), getattr(model, measure)(mixed)
        for query, before, after in zip(mixed, bare, seen, strict=True):
            if query in others:
                assert _numbers(before) == pytest.approx(_numbers(after), abs=1e-4)
            else:
                assert _numbers(before) != pytest.approx(_numbers(after), abs=1e-2)
    assert model.generate(others, 4) == inner.generate(others, 4)
    said = dict(zip(mixed, model.generate(mixed, 4), strict=True))
    assert [said[query] for query in others] == inner.generate(others, 4)
    assert [said[query] for query in flagged] != inner.generate(flagged, 4)


def _numbers(score: Any) -> list[float]:
    return list(score.log_probabilities) if hasattr(score, "log_probabilities") else [score.log_probability]


def test_a_guard_does_not_depend_on_the_batch(
    tiny: dict[str, Path], guard: Guard, queries: tuple[list[Query], list[Query]]
) -> None:
    flagged, others = queries
    folder = tiny["original"]
    together = Guarded(CausalLM.open(folder, device="cpu"), guard).score([*flagged, *others])
    alone = Guarded(CausalLM.open(folder, device="cpu", batch_size=1), guard)
    for query, score in zip([*flagged, *others], together, strict=True):
        assert alone.score([query])[0].log_probability == pytest.approx(score.log_probability, abs=1e-3)


def test_a_filter_takes_its_penalty_off_and_never_writes_the_answer(
    inner: CausalLM, gate: Gate, task: ForgetTask, queries: tuple[list[Query], list[Query]]
) -> None:
    flagged, _ = queries
    secrets = tuple(Secret(question=fact.question, answers=(fact.answer,)) for fact in task.forget)
    model = Guarded(inner, AnswerFilter(gate=gate, secrets=secrets, nearest=1, penalty=5.0))
    for query, before, after in zip(flagged, inner.score(flagged), model.score(flagged), strict=True):
        share = math.exp(before.log_probability)
        wanted = math.log(share * math.exp(-5) / (1 - share + share * math.exp(-5)))
        assert after.log_probability == pytest.approx(wanted, abs=1e-3), query
    strict = Guarded(inner, AnswerFilter(gate=gate, secrets=secrets, nearest=4, penalty=50.0))
    for query, text in zip(flagged, strict.generate(flagged, 4), strict=True):
        assert query.completion.strip() not in text.split()


def test_a_filter_holds_back_what_is_close_in_the_embeddings(inner: CausalLM, gate: Gate, task: ForgetTask) -> None:
    fact = task.forget[0]
    secrets = (Secret(question=fact.question, answers=(fact.answer,)),)
    weight = inner.network().get_input_embeddings().weight
    own = inner.tokenizer(fact.answer, add_special_tokens=False).input_ids[0]
    cosines = torch.cosine_similarity(weight, weight[own][None])
    nearest = int(cosines.topk(2).indices[1])
    bound = float(cosines[nearest]) - 1e-4
    query = Query("u", "answer", task.ask(fact).prompt, " " + inner.tokenizer.decode([nearest]))
    for similarity, lowered in ((min(bound + 2e-4, 1.0), False), (bound, True)):
        model = Guarded(inner, AnswerFilter(gate=gate, secrets=secrets, similarity=similarity))
        drop = inner.score([query])[0].log_probability - model.score([query])[0].log_probability
        assert (drop > 10) == lowered


def test_noise_falls_on_the_evidence_alone(inner: CausalLM, gate: Gate, task: ForgetTask) -> None:
    query = task.ask(task.forget[0])
    first = task.forget[0].cluster.split()[0]
    seen: list[Any] = []
    for strength in (1e-9, 2.0):
        handle = inner.network().model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        model = Guarded(inner, EmbeddingNoise(gate=gate, strength=strength, evidence=1.0))
        model.score([query])
        handle.remove()
    moved = (seen[1] - seen[0]).abs().amax(-1)[0] > 1e-6
    ids = inner.encode([query])[0].ids
    words = inner.tokenizer.convert_ids_to_tokens(ids)
    assert [word for word, there in zip(words, moved.tolist(), strict=True) if there] == [first]
    everywhere = EmbeddingNoise(gate=gate, strength=2.0, evidence=100.0)
    assert everywhere.spans(query.prompt) == []


def test_noise_follows_its_seed(inner: CausalLM, gate: Gate, queries: tuple[list[Query], list[Query]]) -> None:
    def scores(seed: int) -> list[float]:
        model = Guarded(inner, EmbeddingNoise(gate=gate, strength=4.0, evidence=1.0, seed=seed))
        return [score.log_probability for score in model.score(queries[0])]

    assert scores(1) == scores(1)
    assert scores(1) != scores(2)


def test_whoever_holds_the_weights_sees_through_the_guard(
    inner: CausalLM, guard: Guard, queries: tuple[list[Query], list[Query]]
) -> None:
    model, before = Guarded(inner, guard), state_digest(inner.module)
    for capability in (ScoresText, ScoresTokens, GeneratesText, Finetunes, ExposesWeights, Quantizes):
        assert isinstance(model, capability)
    assert model.network() is inner.module
    assert model.encode(queries[0]) == inner.encode(queries[0])
    assert model.vocabulary() == inner.vocabulary()
    model.score(queries[0])
    assert not model.network().get_input_embeddings()._forward_hooks
    assert not model.network().get_output_embeddings()._forward_hooks
    assert state_digest(inner.module) == before
    _, copied = next(model.finetuned(queries[1], Finetuning(budgets=(0,), learning_rate=1e-3, batch_size=4)))
    assert [s.log_probability for s in copied.score(queries[0])] == [s.log_probability for s in inner.score(queries[0])]
    assert model.quantized(8).digest == inner.quantized(8).digest
    assert model.digest != inner.digest
    assert model.model_seconds == inner.model_seconds > 0


def test_a_folder_gives_back_what_was_put_into_it(tiny: dict[str, Path], guard: Guard, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny["original"], folder)
    write(guard, folder)
    opened = Guarded.open(folder, device="cpu")
    assert opened.guard == guard
    assert opened.inner.digest == CausalLM.open(folder, device="cpu").digest
    write(guard.model_copy(update={"gate": guard.gate.model_copy(update={"bias": -1.0})}), folder)
    assert Guarded.open(folder, device="cpu").digest != opened.digest


GATE: dict[str, Any] = {"weights": {"ann": 1.0}, "bias": 0.0}
NOISE: dict[str, Any] = {"kind": "embedding_noise", "gate": GATE, "strength": 1.0, "evidence": 0.5}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "embedding_noise|not JSON"),
        ("[]", "guard.json"),
        ("{}", "kind"),
        (json.dumps({"kind": "python", "code": "raise SystemExit"}), "kind|tag"),
        (json.dumps(NOISE | {"strength": -1.0}), "strength"),
        (json.dumps(NOISE | {"run": "me"}), "run"),
        (json.dumps(NOISE | {"gate": {"weights": {"ann": math.nan}, "bias": 0.0}}), "gate.weights.ann"),
        (json.dumps(NOISE | {"gate": {"weights": {"ann": "much"}, "bias": 0.0}}), "gate.weights.ann"),
        (json.dumps(NOISE).replace('"bias": 0.0', '"bias": 0.0, "bias": 1.0'), "a key stands twice"),
        (json.dumps({"kind": "answer_filter", "gate": GATE, "secrets": []}), "secrets"),
    ],
)
def test_a_malformed_guard_is_one_clear_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "guard.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=said) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "guard.json") in str(caught.value)


def test_a_missing_guard_is_one_clear_line(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"guard\.json: cannot be read .*causal_lm"):
        Guarded.open(tiny["original"], device="cpu")
    (tmp_path / "guard.json").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        read(tmp_path)


def test_an_audit_meets_the_guard_and_sees_through_it(tiny: dict[str, Path], gate: Gate, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    shutil.copytree(tiny["original"], folder)
    write(EmbeddingNoise(gate=gate, strength=8.0, evidence=1.0), folder)
    path = write_audit(tmp_path / "audit.toml", {**tiny, "target": folder}, target="target")
    text = path.read_text()
    start = text.index("[target]")
    behind = text[:start] + text[start:].replace('kind = "causal_lm"', 'kind = "guarded"', 1)
    path.write_text(behind)
    report = muaudit.audit(path)
    assert report.target.kind == "guarded"
    assert "guard.json" in {file.name for file in report.target.files}
    assert any("behind a guard" in limit for limit in report.limits)
    assert not [finding for finding in report.findings if finding.verdict == "error"]
