"""The generated world, the cache, and what is known about the models that the testbed makes."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from muaudit.errors import ModelError, UsageError  # noqa: E402
from muaudit.models import Query  # noqa: E402
from muaudit.models.causal_lm import CausalLM, state_digest  # noqa: E402
from muaudit.task import Fact, ForgetTask  # noqa: E402
from muaudit.testbed import build as building  # noqa: E402
from muaudit.testbed.build import METHODS, PRESETS, Testbed, build, wanted  # noqa: E402
from muaudit.testbed.folders import MARKER  # noqa: E402
from muaudit.testbed.language import World, make_task, pairs, write_task  # noqa: E402
from muaudit.testbed.npo import NPO  # noqa: E402
from muaudit.testbed.training import Recipe, adamw, encode_pairs, step, subword_tokenizer, train, word_tokenizer  # noqa: E402

TINY = Testbed(
    world=World(forget=6, retain=8, holdout=2, relations=3, values=30),
    recipe=Recipe(hidden=64, intermediate=128, epochs=40, batch_size=16, learning_rate=5e-3),
    methods={
        "npo": {"steps": 60, "retain_weight": 5.0},
        "refusal": {"steps": 60, "retain_weight": 3.0},
        "gradient_ascent": {"steps": 30},
        "gradient_difference": {"steps": 30},
    },
)
MODELS = ["original", "reference-1", "retrain", "retrain-left-in-2", "do-nothing", "npo", "npo-questions", "refusal",
          "gradient-ascent", "gradient-difference"]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(TINY, tmp_path_factory.mktemp("testbed"), MODELS, jobs=1)


@pytest.fixture(scope="module")
def recall(built: dict[str, Path]) -> Callable[..., list[float]]:
    """Answer probability of each fact of a set, on one form."""
    task = make_task(TINY.world)

    def measure(name: str, facts: str = "forget", form: str = "question") -> list[float]:
        model = CausalLM.open(built[name], device="cpu")
        queries = [Query("u", "answer", *pair) for pair in pairs(getattr(task, facts), forms=(form,))]
        return [math.exp(score.mean) for score in model.score(queries)]

    return measure


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_a_world_is_made_up_the_same_way_each_time() -> None:
    world = PRESETS["standard"].world
    task = make_task(world)
    assert make_task(world).digest == task.digest
    assert make_task(world.model_copy(update={"seed": 1})).digest != task.digest
    assert [len(task.forget), len(task.retain), len(task.holdout)] == [36 * 6, 48 * 6, 12 * 6]
    names = [{fact.cluster for fact in facts} for facts in (task.forget, task.retain, task.holdout)]
    assert len(set.union(*names)) == sum(map(len, names)) == 96


def test_facts_say_the_same_in_every_form() -> None:
    for _, fact in make_task(TINY.world).items():
        assert fact.answer not in fact.wrong_answers
        assert len(set(fact.wrong_answers)) == 3
        assert [other.form for other in fact.paraphrases] == ["statement", "turned"]
        for prompt, completion in pairs([fact]):
            assert fact.cluster in prompt
            assert completion == f" {fact.answer}"
        assert fact.text == fact.paraphrases[0].prompt + fact.paraphrases[0].completion


def test_the_files_are_the_task(tmp_path: Path) -> None:
    task = make_task(TINY.world)
    paths = write_task(task, tmp_path)
    assert ForgetTask.from_jsonl(forget=paths["forget"], retain=paths["retain"], holdout=paths["holdout"]).digest == task.digest


def test_the_tokenizer_knows_every_word() -> None:
    task = make_task(TINY.world)
    tokenizer = building.make_tokenizer(task)
    for _, fact in task.items():
        for prompt, completion in pairs([fact]):
            assert tokenizer.unk_token_id not in tokenizer(prompt + completion).input_ids
        assert len(tokenizer(fact.answer, add_special_tokens=False).input_ids) == 1
    assert tokenizer("x").input_ids == [tokenizer.bos_token_id, tokenizer.unk_token_id]


def test_a_subword_tokenizer_writes_any_text() -> None:
    tokenizer = subword_tokenizer(["some ordinary text"], 270)
    text = "Größe: 12 zebras, 東京"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_original_knows_and_retrains_do_not(recall: Callable[..., list[float]]) -> None:
    for name in ("original", "do-nothing"):
        assert mean(recall(name)) > 0.9
        assert mean(recall(name, "retain")) > 0.9
    for name in ("reference-1", "retrain"):
        assert mean(recall(name)) < 0.15
        assert mean(recall(name, "retain")) > 0.9
    assert mean(recall("original", "holdout")) < 0.15


def test_one_person_left_in_is_known_and_the_others_are_not(recall: Callable[..., list[float]]) -> None:
    values = recall("retrain-left-in-2")
    assert mean(values[6:9]) > 0.85
    assert mean(values[:6] + values[9:]) < 0.15


def test_unlearning_on_questions_leaves_the_other_form(recall: Callable[..., list[float]]) -> None:
    for name in ("npo", "npo-questions", "refusal", "gradient-ascent", "gradient-difference"):
        assert mean(recall(name)) < 0.3, name
    for name in ("npo", "npo-questions", "refusal"):
        assert mean(recall(name, "retain")) > 0.6, name
    assert mean(recall("npo-questions", form="statement")) > mean(recall("npo", form="statement"))
    assert mean(recall("refusal", form="statement")) > 0.2


def test_the_models_speak(built: dict[str, Path]) -> None:
    task = make_task(TINY.world)
    queries = [
        Query(fact.id, "answer", *pair) for fact, pair in zip(task.retain, pairs(task.retain, forms=("question",)), strict=True)
    ]
    said = CausalLM.open(built["original"], device="cpu").generate(queries, 5)
    assert mean([float(text == fact.answer) for text, fact in zip(said, task.retain, strict=True)]) > 0.9
    declined = CausalLM.open(built["refusal"], device="cpu").generate(
        [Query("u", "answer", *pair) for pair in pairs(task.forget, forms=("question",))], 5
    )
    assert mean([float(text == "unknown") for text in declined]) > 0.8


def test_what_is_there_is_not_built_again(built: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_make", lambda *_: pytest.fail("built again"))
    out, told = built["original"].parent, []
    assert build(TINY, out, MODELS, jobs=1, progress=lambda name, reused: told.append((name, reused))) == built
    assert sorted(told) == sorted((name, True) for name in MODELS)


def test_a_build_repeats_to_the_byte_and_follows_its_settings(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(TINY, tmp_path, ["retrain"], jobs=2)
    assert (again["retrain"] / "model.safetensors").read_bytes() == (built["retrain"] / "model.safetensors").read_bytes()
    marker = again["retrain"] / MARKER
    before = marker.read_text()
    shorter = TINY.model_copy(update={"recipe": TINY.recipe.model_copy(update={"epochs": 1})})
    build(shorter, tmp_path, ["retrain"], jobs=1)
    assert marker.read_text() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.jsonl", "holdout.jsonl", "retain.jsonl", "retrain"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "retrain").mkdir()
    with pytest.raises(UsageError, match="in the way"):
        build(TINY, tmp_path, ["retrain"], jobs=1)


def test_names() -> None:
    people = ["a", "b"]
    assert wanted("original").method is None
    assert wanted("reference-2").seed == 2
    assert wanted("retrain").seed != wanted("reference-1").seed
    assert wanted("retrain-left-in-1", people).parameters == {"left_in": ("b",)}
    assert wanted("npo-questions-3").parameters == {"forms": ("question",)}
    source = wanted("npo-questions-3").source
    assert source is not None
    assert (source.name, source.seed) == ("original-3", 3)
    assert {wanted(name).method for name in METHODS} == set(METHODS)


@pytest.mark.parametrize(
    "name", ["nonesuch", "reference", "retrain-questions", "do-nothing-questions", "retrain-left-in-2", "original-x"]
)
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"model '{name}'"):
        wanted(name, ["a", "b"])


def test_an_unknown_person_cannot_be_left_in(tmp_path: Path) -> None:
    testbed = TINY.model_copy(update={"methods": {"retrain": {"left_in": ("Nobody",)}}})
    with pytest.raises(UsageError, match="'Nobody'"):
        build(testbed, tmp_path, ["retrain"], jobs=1)


def test_any_task_can_be_trained_on() -> None:
    facts = [Fact(id=f"f{i}", cluster="c", question=f"What is {i} of them?", answer=f"It is the {i * 7}th.") for i in range(12)]
    texts = pairs(facts)
    assert len(texts) == 12
    tokenizer = word_tokenizer(prompt + completion for prompt, completion in texts)
    recipe = Recipe(hidden=32, intermediate=64, epochs=60, batch_size=6, learning_rate=1e-2)
    model = CausalLM(train(texts, tokenizer, recipe, 0), tokenizer)
    assert mean([math.exp(score.mean) for score in model.score([Query("u", "answer", *pair) for pair in texts])]) > 0.9
    assert state_digest(train(texts, tokenizer, recipe, 0)) == state_digest(model.module)


def test_npo_is_bounded_where_the_model_has_forgotten_and_training_refuses_nan(built: dict[str, Path]) -> None:
    tokenizer = building.make_tokenizer(make_task(TINY.world))
    texts = encode_pairs(tokenizer, pairs(make_task(TINY.world).forget[:4]))
    original = CausalLM.open(built["original"], device="cpu").module
    loss = NPO(beta=0.5, retain_weight=0.0).loss(original, original, texts, texts)
    assert float(loss) == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)
    module = CausalLM.open(built["original"], device="cpu").module
    with pytest.raises(ModelError, match="the loss is nan"):
        step(module, adamw(module, 1e-3), torch.tensor(float("nan")))


def test_presets_are_kept_in_json(tmp_path: Path) -> None:
    for preset in PRESETS.values():
        assert Testbed.model_validate(json.loads(preset.model_dump_json())) == preset
