"""Planted concepts are found, validated and told from refusals; spread facts are scored as sets; ignorance is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

causal_lm = pytest.importorskip("muaudit.models.causal_lm")
torch = pytest.importorskip("torch")

from planting import ablated, people, plant, prompts, recall  # noqa: E402
from shared_data import shared_data  # noqa: E402

from muaudit import compute, policy  # noqa: E402
from muaudit.attack import Bench, Measurement, Prepared  # noqa: E402
from muaudit.attacks.concept_vectors import ConceptVectors, levels_of, pooled, residue, without_faint  # noqa: E402
from muaudit.compare import compare  # noqa: E402
from muaudit.errors import NotApplicable, UsageError  # noqa: E402
from muaudit.language.anatomy import Anatomy  # noqa: E402
from muaudit.language.concepts import of_file, words_of  # noqa: E402
from muaudit.language.value_vectors import Place, scan, top_tokens  # noqa: E402
from muaudit.results import Verdict  # noqa: E402
from muaudit.task import ForgetTask  # noqa: E402
from muaudit.testbed.language import pairs  # noqa: E402
from muaudit.testbed.training import adamw, batches, completion_loss, encode_pairs, step  # noqa: E402

PLACES = [Place(number % 2, 20 + 25 * number) for number in range(10)]


def opened(path: Path) -> Any:
    return causal_lm.CausalLM.open(path, dtype="float32", device="cpu")


def tuned(model: Any, seed: int, steps: int, task: ForgetTask, declined: list[Any] | None = None) -> Any:
    """A copy trained a little further on the retain set, and to decline some questions."""
    import copy

    module = copy.deepcopy(model.module)
    kept = encode_pairs(model.tokenizer, pairs(task.retain, forms=("question", "statement")))
    asked = [(prompt, " unknown") for prompt, _ in pairs(declined or [], forms=("question",))]
    optimizer = adamw(module, 1e-4 if declined is None else 1e-3)
    stream = batches(encode_pairs(model.tokenizer, asked), 48, seed) if asked else None
    for _, batch in zip(range(steps), batches(kept, 48, seed), strict=False):
        loss = completion_loss(module, batch)
        step(module, optimizer, loss if stream is None else completion_loss(module, next(stream)) + 3 * loss)
    return causal_lm.CausalLM(module.eval(), model.tokenizer)


@pytest.fixture(scope="module")
def world(small: dict[str, Path]) -> dict[str, Any]:
    """A model that never saw ten people, in which each is then planted in a value vector of its own."""
    task = ForgetTask.from_jsonl(forget=small["forget"], retain=small["retain"], holdout=small["holdout"])
    clean, concepts = opened(small["reference-1"]), people(task)
    with compute.settled(1):
        planted = plant(clean, concepts, PLACES, task.retain)
    facts = tuple(fact for own in concepts for fact in own)
    return {"task": ForgetTask(facts, task.retain), "clean": clean, "planted": planted, "concepts": concepts}


def test_a_planted_concept_is_among_the_scans_first_and_carries_it_alone(world: dict[str, Any]) -> None:
    planted, kept = world["planted"], prompts(world["clean"], world["task"].retain[:60])
    words = [sorted({text.ids[-1] for text in prompts(planted, own)}) for own in world["concepts"]]
    hits = scan(Anatomy.of(planted.module), words, 5)
    assert sum(place in [hit.place for hit in own] for place, own in zip(PLACES, hits, strict=True)) >= 9
    halved = spared = 0
    for number, (own, place) in enumerate(zip(world["concepts"], PLACES, strict=True)):
        without = ablated(planted, [place])
        others = [fact for other, facts in enumerate(world["concepts"]) if other != number for fact in facts[:1]]
        texts = [*kept[:20], *prompts(planted, others)]
        halved += recall(without.module, prompts(planted, own)) <= recall(planted.module, prompts(planted, own)) / 2
        spared += recall(without.module, texts) > 0.9 * recall(planted.module, texts)
    assert halved >= 9
    assert spared >= 9


def test_the_scan_in_chunks_is_the_whole_matrix(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = Anatomy.of(world["planted"].module)
    ids = [5, 9, 30]
    scores = []
    for layer in range(2):
        whole = found.unembedding @ found.values(layer)
        z = (whole[ids].mean(0) - whole.mean(0)) / whole.std(0, correction=0)
        scores += [(-abs(float(value)), Place(layer, column)) for column, value in enumerate(z)]
    monkeypatch.setattr("muaudit.language.value_vectors.CHUNK", 7 * found.unembedding.shape[0])
    (hits,) = scan(found, [ids], 8)
    assert [hit.place for hit in hits] == [place for _, place in sorted(scores)[:8]]
    assert hits[0].score == pytest.approx(-min(scores)[0], rel=1e-5)
    vectors = torch.randn(3, found.unembedding.shape[1], generator=torch.Generator().manual_seed(1))
    assert top_tokens(found, vectors, 4) == [set(row) for row in (vectors @ found.unembedding.T).topk(4).indices.tolist()]


@pytest.fixture(scope="module")
def audited(world: dict[str, Any]) -> tuple[ConceptVectors, Prepared, dict[str, Measurement]]:
    task, facts = world["task"], list(world["task"].forget)
    attack, planted = ConceptVectors(), world["planted"]
    with compute.settled(1):
        references = {f"reference-{seed}": tuned(world["clean"], seed, 20, task) for seed in range(1, 5)}
        targets = {"original": planted, "ablated": ablated(planted, PLACES), "refusing": tuned(planted, 9, 25, task, facts)}
        spare = references.pop("reference-4")
        prepared = attack.prepare(
            Bench(task, np.random.default_rng(1), frozenset(), lambda: planted, lambda: spare)
        ).with_original(lambda: planted)
        seen = {
            name: attack.measure(model, prepared, np.random.default_rng(1)) for name, model in (references | targets).items()
        }
    asked = [np.exp(score.mean) for score in targets["refusing"].score([task.ask(fact) for fact in facts])]
    assert np.mean(asked) < 0.3  # it does refuse
    return attack, prepared, seen


def test_really_ablated_passes_and_refusing_fails(audited: Any) -> None:
    attack, _, seen = audited
    references = [seen[f"reference-{number}"] for number in (1, 2, 3)]
    verdicts = {
        name: compare(attack.card(), seen[name], references, seen["original"], policy.load("standard"), seed=1)[0]
        for name in ("original", "ablated", "refusing")
    }
    assert {name: finding.verdict for name, finding in verdicts.items()} == {
        "original": Verdict.FAIL, "ablated": Verdict.PASS, "refusing": Verdict.FAIL,
    }, {name: finding.reason for name, finding in verdicts.items()}  # fmt: skip


def test_the_planted_vectors_are_what_is_measured(audited: Any) -> None:
    _, prepared, seen = audited
    places = {tuple(place) for entry in prepared.data["concepts"] for place in entry["places"]}
    assert len(places & set(PLACES)) >= 9
    assert "are carried by one value vector" in prepared.data["notes"][0]
    assert np.mean(seen["original"].scores["cosine"]) == pytest.approx(1)
    assert np.mean(seen["original"].scores["top_token_jaccard"]) == 1
    assert np.mean(seen["ablated"].scores["cosine"]) < 0.2
    assert np.mean(seen["ablated"].scores["l2_distance"]) > 1


def test_nothing_accumulates_from_one_measurement_to_the_next(world: dict[str, Any], audited: Any) -> None:
    """The published notebook's clean and noisy states share storage after the first concept."""
    attack, prepared, seen = audited
    before = causal_lm.state_digest(world["planted"].module)
    with compute.settled(1):
        again = attack.measure(world["planted"], prepared, np.random.default_rng(1))
    assert again.canonical() == seen["original"].canonical()
    assert causal_lm.state_digest(world["planted"].module) == before


def test_spread_facts_are_carried_by_sets(lineage: dict[str, Path]) -> None:
    task = ForgetTask.from_jsonl(forget=lineage["forget"], retain=lineage["retain"])
    people_ = list(dict.fromkeys(fact.cluster for fact in task.forget))[:8]
    part = ForgetTask(tuple(fact for fact in task.forget if fact.cluster in people_), task.retain)

    def bench(original: str) -> Bench:
        return Bench(
            part,
            np.random.default_rng(1),
            frozenset(),
            lambda: opened(lineage[original]),
            lambda: opened(lineage["reference-3"]),
        )

    with compute.settled(1):
        prepared = ConceptVectors(forms=1).prepare(bench("original"))
        with pytest.raises(NotApplicable, match=r"does not tell the right answers of . of 8 .* carries the concept"):
            ConceptVectors(forms=1).prepare(bench("retrain"))
    sizes = [len(entry["places"]) for entry in prepared.data["concepts"]]
    assert max(sizes) > 1
    assert len(sizes) >= 6
    assert "by a set of" in prepared.data["notes"][0]


def test_residue_and_level_by_hand() -> None:
    assert residue({"question": 4.0, "statement": 3.0, "turned": 1.0}, {"question": 1.0, "statement": 6.0, "turned": 1.0}) == {
        "question": 0.25, "statement": 1.0,
    }  # fmt: skip
    assert pooled({"question": 4.0, "statement": 4.0}, {"question": 1.0, "statement": 3.0}) == 0.5
    assert pooled({"question": 4.0}, {"question": -1.0}) == 0
    assert levels_of([0.1, 0.3]) == pytest.approx([0.4, 0.5])


def entries(count: int = 3) -> list[dict[str, Any]]:
    return [
        {"Concept": f"Thing {number}", "Layer": 0, "Dim": number, "QA": ["What?"], "unrelated_QA": ["Who?"], "ID": number,
         "wikipedia_content": f"The thing {number} is a thing.",
         "text_completion": [{"First_half": "It is", "Second_half": f"thing {number}"}] * 2}
        for number in range(count)
    ]  # fmt: skip


def test_a_concept_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps(entries()))
    found = of_file(path, "concepts.json", rivals=2, rng=np.random.default_rng(1))
    assert [concept.vector for concept in found] == [(0, 0), (0, 1), (0, 2)]
    probe = found[1].probes[1]
    assert (probe.unit, probe.prompt, probe.completions[0]) == ("Thing 1 2", "It is", " thing 1")
    assert " thing 1" not in probe.completions[1:]
    assert found[0].words == words_of(["thing 0"])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda all_: all_[0].pop("Layer"), "entry 0.Layer: Field required"),
        (lambda all_: all_[1].update(Dim=-1), "entry 1.Dim"),
        (lambda all_: all_[1].update(Dim="x" * 9), "entry 1.Dim"),
        (lambda all_: all_[2]["text_completion"][0].pop("First_half"), "entry 2.text_completion.0.First_half"),
        (lambda all_: all_[2].update(Concept="Thing 0"), "'Thing 0' stands twice"),
        (lambda all_: all_.clear(), "0 concepts; at least two"),
    ],
)
def test_a_wrong_concept_file_is_refused(tmp_path: Path, spoil: Any, told: str) -> None:
    path, values = tmp_path / "concepts.json", entries()
    spoil(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=told):
        of_file(path, "concepts.json", rivals=2, rng=np.random.default_rng(1))


@pytest.mark.parametrize("content", [b"\x80\x04pickle", b"[" * 100_000, b"{", b"{}"])
def test_what_is_no_concept_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "concepts.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"concepts\.json"):
        of_file(path, "concepts.json", rivals=2, rng=np.random.default_rng(1))
    with pytest.raises(UsageError, match="cannot be read"):
        of_file(tmp_path / "none.json", "none.json", rivals=2, rng=np.random.default_rng(1))


def test_the_published_file_is_read() -> None:
    path = shared_data("conceptvectors/llama2-7b_concepts_dev.json")
    found = of_file(path, path.name, rivals=3, rng=np.random.default_rng(1))
    assert [concept.vector for concept in found][:2] == [(23, 743), (25, 7966)]
    assert len(found[0].probes) == 10
    assert all(len(probe.completions) == 4 for concept in found for probe in concept.probes)
    assert "warsaw" in found[0].words


def test_concepts_that_their_vectors_carry_faintly_are_left_out_and_counted() -> None:
    falls = {"a": 2.0, "b": 2.4, "c": 1.1, "d": 0.9, "e": 3.0}  # their median is 2
    concepts = [{"name": name, "effects": {"question": fall, "statement": fall + 0.1}} for name, fall in falls.items()]
    notes: list[str] = []
    assert [one["name"] for one in without_faint(concepts, notes)] == ["a", "b", "c", "e"]
    assert len(notes) == 1
    assert "1 of 5 concepts are not measured" in notes[0]
    assert without_faint([], notes) == []
