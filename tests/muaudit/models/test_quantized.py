"""Weight rounding against its definition in plain loops, and what a rounded copy shares and leaves alone."""

from pathlib import Path

import pytest

from muaudit.errors import ModelError
from muaudit.models import Query

torch = pytest.importorskip("torch")
q = pytest.importorskip("muaudit.models.quantized")
causal_lm = pytest.importorskip("muaudit.models.causal_lm")

SHAPES = [(3, 128), (5, 40), (1, 7), (96, 96)]


def weight(shape: tuple[int, int], seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_int8_is_its_definition(shape: tuple[int, int]) -> None:
    values = weight(shape)
    for row, rounded in zip(values.tolist(), q.int8(values).tolist(), strict=True):
        scale = max(abs(value) for value in row)
        assert rounded == pytest.approx([round(127 * value / scale) * scale / 127 for value in row], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_nf4_is_its_definition(shape: tuple[int, int]) -> None:
    flat, rounded = weight(shape).flatten().tolist(), q.nf4(weight(shape)).flatten().tolist()
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = max(abs(value) for value in block)
        nearest = [min(q.NF4, key=lambda level: abs(value / scale - level)) * scale for value in block]
        assert rounded[start : start + 64] == pytest.approx(nearest, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_moves_further_than_half_a_step(shape: tuple[int, int]) -> None:
    values = weight(shape)
    assert ((q.int8(values) - values).abs() <= values.abs().amax(1, keepdim=True) / 254 + 1e-6).all()
    widest = max(high - low for low, high in zip(q.NF4, q.NF4[1:], strict=False)) / 2
    assert ((q.nf4(values) - values).abs() <= values.abs().max() * widest + 1e-6).all()


@pytest.mark.parametrize("scheme", [q.int8, q.nf4])
def test_rounding_twice_is_rounding_once_and_zeros_stay(scheme: object) -> None:
    once = scheme(weight((8, 64)))  # type: ignore[operator]
    assert torch.allclose(scheme(once), once, rtol=1e-6)  # type: ignore[operator]
    assert not scheme(torch.zeros(2, 70)).any()  # type: ignore[operator]


def test_it_is_what_bitsandbytes_computes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    values = weight((96, 128))  # rows of whole blocks: its CPU kernel is wrong for others
    assert torch.equal(
        q.nf4(values), functional.dequantize_4bit(*functional.quantize_4bit(values, blocksize=64, quant_type="nf4"))
    )
    codes, scales, _ = functional.int8_vectorwise_quant(values)
    assert torch.equal(q.int8(values), functional.int8_vectorwise_dequant(codes, scales))


@pytest.fixture(scope="module")
def model(tiny: dict[str, Path]) -> "causal_lm.CausalLM":
    return causal_lm.CausalLM.open(tiny["original"], device="cpu")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_copy_has_rounded_linear_layers_and_all_else_as_it_was(model: "causal_lm.CausalLM", bits: int) -> None:
    before = causal_lm.state_digest(model.module, model.tokenizer)
    copied = model.quantized(bits)  # type: ignore[arg-type]
    scheme = q.int8 if bits == 8 else q.nf4
    rounded = 0
    for (name, old), new in zip(model.module.named_parameters(), copied.module.parameters(), strict=True):
        linear = name.endswith("proj.weight")
        rounded += linear
        assert torch.equal(new, scheme(old) if linear else old), name
        assert (new is old) is not linear
    assert rounded == 7
    assert copied.digest not in (model.digest, model.quantized(12 - bits).digest)  # type: ignore[arg-type]
    assert causal_lm.state_digest(model.module, model.tokenizer) == before
    query = Query("a", "answer", "Question: Where? Answer:", " Somewhere")
    assert copied.score([query]) == model.quantized(bits).score([query])  # type: ignore[arg-type]
    assert copied.score([query]) != model.score([query])


def test_conv1d_is_rounded_along_its_outputs() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    module = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    copied = q.rounded_copy(module, 8)
    old, new = module.transformer.h[0].mlp.c_fc.weight, copied.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(new.T, q.int8(old.T))
    assert torch.equal(copied.lm_head.weight, module.lm_head.weight)


def test_weights_that_are_rounded_already_are_refused(model: "causal_lm.CausalLM") -> None:
    stored = model.quantized(8).module
    layer = stored.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.ones(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="rounded already"):
        q.rounded_copy(stored, 4)
