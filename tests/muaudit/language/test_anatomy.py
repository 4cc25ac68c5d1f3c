"""The parts of the common architectures are found, and what is hooked in is what it says, and gone afterwards."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from muaudit.errors import ModelError  # noqa: E402
from muaudit.language import anatomy as parts  # noqa: E402
from muaudit.language.anatomy import Anatomy  # noqa: E402
from muaudit.models.tokens import Encoded  # noqa: E402

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
GPT2 = {"n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 2, "vocab_size": 40}
KINDS = {
    "Llama": SMALL, "Qwen2": SMALL, "Gemma2": SMALL | {"head_dim": 8, "num_key_value_heads": 1}, "Olmo": SMALL, "Olmo2": SMALL,
    "Phi": SMALL, "Phi3": SMALL | {"pad_token_id": 0}, "GPTNeoX": SMALL, "GPT2": GPT2,
}  # fmt: skip
TEXTS = [Encoded([1, 5, 9, 3], [2, 3]), Encoded([1, 7, 2], [2])]


def model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = getattr(transformers, f"{kind}Config")(**KINDS[kind] | changes)
    network = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")
    return network(settings).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_found(kind: str) -> None:
    found = Anatomy.of(model(kind))
    assert found.shape == (2, 16, 24)
    assert found.unembedding.shape == (40, 16)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX", "Gemma2"])
def test_the_lens_on_the_last_layer_is_the_model_itself(kind: str) -> None:
    network = model(kind)
    found, states = Anatomy.of(network), {}
    with parts.states_captured(found, TEXTS, states):
        parts.log_probabilities(found, TEXTS)
    whole = network(input_ids=torch.tensor([[1, 5, 9, 3]])).logits[0, 1:3].float()
    torch.testing.assert_close(found.read(states[1])[:2], whole)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_its_own_states_change_nothing_and_others_do(kind: str) -> None:
    found, other = Anatomy.of(model(kind)), Anatomy.of(model(kind, initializer_range=0.5))
    clean = parts.log_probabilities(found, TEXTS)
    for source, same in ((found, True), (other, False)):
        states: dict[int, Any] = {}
        with parts.states_captured(source, TEXTS, states):
            parts.log_probabilities(source, TEXTS)
        for layer in (0, 1):
            with parts.states_replaced(found, TEXTS, layer, states[layer]):
                assert torch.allclose(parts.log_probabilities(found, TEXTS), clean, atol=1e-6) is same
    assert torch.equal(parts.log_probabilities(found, TEXTS), clean)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX"])
def test_ablation_and_noise_are_as_if_the_weights_were_changed(kind: str) -> None:
    found = Anatomy.of(model(kind, initializer_range=0.5))
    clean, before = parts.log_probabilities(found, TEXTS), found.values(1).clone()
    masks = {1: torch.ones(2, 24)}
    masks[1][0, 3] = 0
    with parts.values_ablated(found, masks):
        ablated = parts.log_probabilities(found, TEXTS)
    noise = torch.zeros(16, 24)
    noise[:, 3] = 1.5
    for _ in range(2):  # noise does not accumulate
        with parts.values_disturbed(found, {1: noise}):
            noisy = parts.log_probabilities(found, TEXTS)
    assert torch.equal(found.values(1), before)
    found.values(1)[:, 3] = 0
    by_hand = parts.log_probabilities(found, TEXTS)
    found.values(1)[:, 3] = before[:, 3] + 1.5
    noisy_by_hand = parts.log_probabilities(found, TEXTS)
    torch.testing.assert_close(ablated, torch.stack([by_hand[0], clean[1]]))  # the second text was read with it
    torch.testing.assert_close(noisy, noisy_by_hand)


def test_attribution_is_the_derivative_of_the_log_probability() -> None:
    """Against finite differences: weakening a vector by a part of it lowers the score by that part of its attribution."""
    network = model("Llama", initializer_range=0.3).double()
    found = Anatomy.of(network)
    network.float = lambda: network
    attributed = parts.attribution(found, TEXTS)
    assert attributed.shape == (2, 2, 24)
    step = 1e-3
    for layer, column in ((0, 1), (1, 20)):
        scores = []
        for factor in (1 - step, 1 + step):
            mask = torch.ones(2, 24, dtype=torch.float64)
            mask[:, column] = factor
            with parts.values_ablated(found, {layer: mask}):
                scores.append(parts.log_probabilities(found, TEXTS).double())
        slope = (scores[1] - scores[0]) / (2 * step)
        torch.testing.assert_close(attributed[:, layer, column].double(), slope, rtol=2e-2, atol=2e-4)


def test_hooks_go_after_a_fault() -> None:
    found = Anatomy.of(model("Llama"))
    with pytest.raises(RuntimeError), parts.values_ablated(found, {0: torch.zeros(2, 24)}):
        raise RuntimeError
    assert not found.downs[0]._forward_pre_hooks


def test_unknown_architectures_are_refused() -> None:
    with pytest.raises(ModelError, match="no decoder layers"):
        Anatomy.of(transformers.BertLMHeadModel(transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=40, is_decoder=True,
        )))  # fmt: skip
    with pytest.raises(ModelError, match="another architecture"):
        parts.same_shape(Anatomy.of(model("Llama")), Anatomy.of(model("Llama", num_hidden_layers=1)))


def test_batches_hold_everything_in_order() -> None:
    texts = [Encoded([1] * length, [1]) for length in (5, 50, 3, 9, 200, 4)]
    found = list(parts.batches(texts, tokens=60, most=2))
    assert [text for part in found for text in texts[part]] == texts
    assert all(part.stop - part.start <= 2 for part in found)
    assert list(parts.batches([])) == []
