"""The unlearning methods: each forgets and keeps, repeats to the byte, and does what its paper says."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import LlamaForCausalLM  # noqa: E402

from muaudit.models import Query  # noqa: E402
from muaudit.models.causal_lm import CausalLM, state_digest  # noqa: E402
from muaudit.models.guarded import Guarded  # noqa: E402
from muaudit.testbed.build import METHODS, guarded, make_tokenizer  # noqa: E402
from muaudit.testbed.calibration import furthest, recall  # noqa: E402
from muaudit.testbed.eco import ECO  # noqa: E402
from muaudit.testbed.flat import FLAT  # noqa: E402
from muaudit.testbed.gate import train_gate  # noqa: E402
from muaudit.testbed.language import World, make_task, pairs  # noqa: E402
from muaudit.testbed.loku import Adapter, LoKU, inverted_hinge  # noqa: E402
from muaudit.testbed.method import Method, Situation  # noqa: E402
from muaudit.testbed.rmu import RMU  # noqa: E402
from muaudit.testbed.rocr import ROCR, edit  # noqa: E402
from muaudit.testbed.selective_amnesia import SelectiveAmnesia  # noqa: E402
from muaudit.testbed.task_vector import TaskVector, negated  # noqa: E402
from muaudit.testbed.tracing import indirect_effects, mentions  # noqa: E402
from muaudit.testbed.training import Recipe, encode_pairs, log_likelihoods, train  # noqa: E402
from muaudit.testbed.unlearn_smooth import UnlearnSmooth  # noqa: E402

RECIPE = Recipe(hidden=64, intermediate=128, epochs=40, batch_size=16, learning_rate=5e-3)
FORMS = ("question", "statement")
SETTINGS: dict[str, dict[str, Any]] = {
    "gradient_ascent": {"steps": 30},
    "gradient_difference": {"steps": 30},
    "rmu": {"steps": 70, "batch_size": 24},
    "flat": {"steps": 50, "batch_size": 24},
    "loku": {"steps": 25, "batch_size": 24},
    "task_vector": {"steps": 30, "batch_size": 24, "learning_rate": 3e-4, "kept": 0.8},
    "unlearn_smooth": {"steps": 30, "batch_size": 24},
    "selective_amnesia": {"steps": 40, "batch_size": 24},
    "rocr": {"kept": 0.8},
}
"""So small a world takes fewer steps."""

APPROXIMATE = ("rmu", "flat", "loku", "task_vector", "rocr", "eco", "guard", "unlearn_smooth", "selective_amnesia")
"""The others stand in test_language.py."""


@pytest.fixture(scope="module")
def situation() -> Situation:
    task = make_task(World(forget=6, retain=8, holdout=2, relations=3, values=30))
    tokenizer = make_tokenizer(task)
    texts = pairs([*task.forget, *task.retain], forms=FORMS, template=task.template)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    original = train(texts, tokenizer, RECIPE, 0)
    torch.set_num_threads(threads)
    return Situation(task, tokenizer, RECIPE, FORMS, lambda: copy.deepcopy(original), 0)


@pytest.fixture(scope="module")
def made(situation: Situation) -> Callable[[str], LlamaForCausalLM]:
    """A method's model; each is made once."""

    @cache
    def make(name: str) -> LlamaForCausalLM:
        return method(name).unlearn(situation)

    return make


def method(name: str) -> Method:
    return METHODS[name](**SETTINGS.get(name, {}))


def answers(model: CausalLM | Guarded, situation: Situation, facts: str) -> float:
    """Mean answer probability on a set's questions."""
    queries = [Query("u", "answer", *pair) for pair in pairs(getattr(situation.task, facts), forms=("question",))]
    scores = model.score(queries)
    return sum(math.exp(score.mean) for score in scores) / len(scores)


def difference(module: LlamaForCausalLM, situation: Situation) -> dict[str, Any]:
    """What changed, by weight; nothing that did not."""
    before = dict(situation.original().named_parameters())
    return {
        name: (weight - before[name]).detach()
        for name, weight in module.named_parameters()
        if not torch.equal(weight, before[name])
    }


@pytest.mark.parametrize("name", APPROXIMATE)
def test_a_method_forgets_and_keeps(name: str, situation: Situation, made: Callable[[str], LlamaForCausalLM]) -> None:
    inner = CausalLM(copy.deepcopy(made(name)), situation.tokenizer)
    guard = method(name).guard(situation)
    model = Guarded(inner, guard) if guard else inner
    assert (guard is not None) == guarded(name.replace("_", "-"))
    before = CausalLM(situation.original(), situation.tokenizer)
    assert answers(before, situation, "forget") > 0.9
    assert answers(model, situation, "forget") < 0.5
    assert answers(model, situation, "retain") > 0.7
    assert not inner.network().training


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"retrain"}))
def test_a_method_repeats_to_the_byte(name: str, situation: Situation) -> None:
    fewer = {"steps": 3} if "steps" in METHODS[name].model_fields else {}
    quick = METHODS[name](**(SETTINGS.get(name, {}) | fewer))
    first, second = (state_digest(quick.unlearn(situation)) for _ in range(2))
    assert first == second
    assert quick.guard(situation) == quick.guard(situation)


def test_rmu_turns_forgotten_states_to_the_steering_vector(
    situation: Situation, made: Callable[[str], LlamaForCausalLM]
) -> None:
    rmu, original, module = method("rmu"), situation.original(), made("rmu")
    assert isinstance(rmu, RMU)
    texts = {
        name: encode_pairs(situation.tokenizer, pairs(getattr(situation.task, name), forms=FORMS))
        for name in ("forget", "retain")
    }
    with torch.no_grad():
        target = rmu.steering(rmu.states(original, texts["forget"]))
        near = {
            name: [torch.cosine_similarity(rmu.states(model, found), target[None]).mean() for model in (original, module)]
            for name, found in texts.items()
        }
    assert abs(near["forget"][0]) < 0.5
    assert near["forget"][1] > near["forget"][0] + 0.2
    assert near["forget"][1] > near["retain"][1] + 0.1
    assert target.norm() == pytest.approx(2 * rmu.states(original, texts["forget"]).norm(dim=-1).mean().item(), rel=1e-4)
    assert all(name.endswith("mlp.down_proj.weight") for name in difference(module, situation))


def test_flat_is_the_bound_of_the_divergence() -> None:
    template, forget = torch.tensor([0.2, 0.6]), torch.tensor([0.9, 0.1])
    variation = [math.tanh(f) / 2 - math.tanh(t) / 2 for t, f in zip(template.tolist(), forget.tolist(), strict=True)]
    assert float(FLAT().loss(template, forget)) == pytest.approx(sum(variation) / 2, rel=1e-6)
    leibler = [math.exp(f - 1) - t for t, f in zip(template.tolist(), forget.tolist(), strict=True)]
    other = FLAT(divergence="kullback_leibler").loss(template, forget)
    assert float(other) == pytest.approx(sum(leibler) / 2, rel=1e-6)


def test_loku_changes_each_matrix_by_a_low_rank(situation: Situation, made: Callable[[str], LlamaForCausalLM]) -> None:
    changed = difference(made("loku"), situation)
    assert {name.split(".")[-2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for name, change in changed.items():
        values = torch.linalg.svdvals(change.double())
        assert (values > 1e-4 * values[0]).sum() <= 2 * LoKU().rank, name


def test_an_adapter_is_the_best_product_in_the_weighted_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, importance = torch.randn(6, 5, generator=generator), torch.rand(6, generator=generator) + 0.1
    adapter = Adapter(weight, importance, 2)
    best = torch.linalg.svdvals(importance[:, None] * weight)[2:].norm()
    error = (importance[:, None] * (weight - adapter.product())).norm()
    assert float(error.detach()) == pytest.approx(float(best), rel=1e-5)


def test_the_inverted_hinge_compares_with_the_best_other_token() -> None:
    logits, targets = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    rows = [[math.exp(value) for value in row] for row in logits.tolist()]
    shares = [[value / sum(row) for value in row] for row in rows]
    wanted = (1 + shares[0][0] - shares[0][1] + 1 + shares[1][2] - shares[1][1]) / 2
    assert float(inverted_hinge(logits, targets)) == pytest.approx(wanted, rel=1e-5)


def test_a_task_vector_is_arithmetic(situation: Situation) -> None:
    original, tuned = situation.original(), TaskVector(steps=2).tuned(situation)
    module = negated(original, tuned, 3.0)
    for before, after, moved in zip(original.parameters(), tuned.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(moved, before - 3.0 * (after - before), rtol=0, atol=0)
    assert state_digest(negated(original, tuned, 0.0)) == state_digest(original)


def test_a_change_goes_as_far_as_the_retain_set_allows(situation: Situation) -> None:
    original, tuned = situation.original(), TaskVector(steps=10, learning_rate=1e-3).tuned(situation)
    texts = encode_pairs(situation.tokenizer, pairs(situation.task.retain, forms=("question",)))
    module = furthest(lambda scale: negated(original, tuned, scale), situation, 0.9, 20.0)
    assert recall(module, texts) < recall(original, texts)
    queries = [Query("u", "answer", *pair) for pair in pairs(situation.task.retain, forms=("question",))]
    scores = CausalLM(module, situation.tokenizer).score(queries)
    assert sum(math.exp(one.mean) for one in scores) / len(scores) >= 0.9 * answers(
        CausalLM(original, situation.tokenizer), situation, "retain"
    )


def test_rocr_adds_one_term_of_rank_one_a_subject(situation: Situation) -> None:
    for people in (1, 3):
        few = replace(situation.task, forget=situation.task.forget[: 3 * people])
        changed = difference(ROCR().unlearn(replace(situation, task=few)), situation)
        assert list(changed) == ["model.layers.0.mlp.down_proj.weight"]
        assert torch.linalg.matrix_rank(changed.popitem()[1].double(), rtol=1e-4) == people


def test_an_edit_moves_its_keys_and_spares_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, kept = torch.randn(2, 12, generator=generator), torch.randn(6, 12, generator=generator)
    moves = torch.randn(2, 5, generator=generator)
    change = edit(keys, moves, kept, 1e4)
    torch.testing.assert_close(keys @ change.T, moves, rtol=0, atol=1e-2)
    assert float((kept @ change.T).abs().max()) < 1e-2


def test_selective_amnesia_changes_only_the_traced_layers(
    situation: Situation, made: Callable[[str], LlamaForCausalLM]
) -> None:
    amnesia = method("selective_amnesia")
    assert isinstance(amnesia, SelectiveAmnesia)
    chosen = amnesia.chosen(situation.original(), situation)
    assert len(chosen) == amnesia.layers
    assert {name.rsplit(".", 2)[0] for name in difference(made("selective_amnesia"), situation)} == {
        f"model.layers.{index}.mlp" for index in chosen
    }


def test_tracing_gives_the_clean_answer_back_where_everything_passes(situation: Situation) -> None:
    module, task = situation.original(), situation.task
    traced = mentions(situation.tokenizer, task.forget, forms=("question",), template=task.template)
    for mention, fact in zip(traced, task.forget, strict=True):
        named = [situation.tokenizer.convert_ids_to_tokens(mention.text.ids[place]) for place in mention.places]
        assert " ".join(named).rstrip("?") == fact.cluster
    with torch.no_grad():
        clean = log_likelihoods(module, [mention.text for mention in traced]).exp().mean()
    assert indirect_effects(module, traced, 1e-9, 0).abs().max() < 1e-4
    effects = indirect_effects(module, traced, 3.0, 0)
    assert effects.shape == (2,)
    assert float(effects.max()) <= float(clean) + 1e-6
    # The last layer's output at the subject reaches no later token.
    assert abs(float(effects[1])) < 1e-6


def test_the_worst_gradient_is_that_of_a_model_moved_by_hand(situation: Situation) -> None:
    smooth, original = UnlearnSmooth(rho=0.1), situation.original()
    texts = encode_pairs(situation.tokenizer, pairs(situation.task.forget[:4], forms=FORMS))
    module = situation.original()
    worst = smooth.worst_gradient(module, original, texts)
    assert state_digest(module) == state_digest(original)
    moved = situation.original()
    smooth.forget_loss(moved, original, texts).backward()
    slopes = [weight.grad.clone() for weight in moved.parameters()]
    norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes))
    with torch.no_grad():
        for weight, slope in zip(moved.parameters(), slopes, strict=True):
            weight.add_(slope * (0.1 / norm))
    moved.zero_grad()
    smooth.forget_loss(moved, original, texts).backward()
    for found, weight in zip(worst, moved.parameters(), strict=True):
        torch.testing.assert_close(found, weight.grad, rtol=1e-3, atol=1e-5)


def test_the_gate_knows_the_names_in_other_wordings_and_nobody_else(situation: Situation) -> None:
    gate, task = train_gate(situation.task, 0.1), situation.task
    for form in ("question", "statement", "turned"):
        assert all(gate.flags(prompt) for prompt, _ in pairs(task.forget, forms=(form,)))
        assert not any(gate.flags(prompt) for prompt, _ in pairs([*task.retain, *task.holdout], forms=(form,)))
    assert not gate.flags("The most famous person of the village was born in")
    assert not gate.flags("")


def test_eco_takes_the_first_strength_that_is_enough(situation: Situation) -> None:
    inner = CausalLM(situation.original(), situation.tokenizer)
    eco = ECO(wanted=0.3)
    guard = eco.guard(situation)
    assert answers(Guarded(inner, guard), situation, "forget") <= 0.3
    weaker = [strength for strength in eco.strengths if strength < guard.strength]
    for strength in weaker:
        assert answers(Guarded(inner, guard.model_copy(update={"strength": strength})), situation, "forget") > 0.3
