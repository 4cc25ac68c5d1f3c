"""Built-in networks: shapes, layers, constants inside, and the folder that keeps one."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from muaudit.errors import ModelError  # noqa: E402
from muaudit.training.networks import Network, Provenance, SavedNetwork, save_network  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "table": {"architecture": "mlp", "hidden": (5, 4), "input_shape": (7,)},
    "linear": {"architecture": "mlp", "hidden": (), "input_shape": (7,)},
    "picture as a row": {"architecture": "mlp", "input_shape": (1, 8, 8)},
    "cnn": {"architecture": "cnn", "width": 4, "input_shape": (1, 8, 8)},
    "cnn with groups": {"architecture": "cnn", "width": 6, "norm": "group", "input_shape": (3, 9, 10)},
    "resnet": {"architecture": "resnet", "width": 4, "input_shape": (1, 8, 8)},
    "resnet in colour": {"architecture": "resnet", "width": 4, "norm": "group", "input_shape": (3, 32, 32)},
}


def seeded(network: Network) -> Any:
    torch.manual_seed(3)
    return network.build().eval()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_architecture_gives_outputs_and_names_its_layers(kind: str) -> None:
    network = Network(outputs=6, **KINDS[kind])
    module, seen = seeded(network), {}
    for name, child in module.named_children():
        child.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    inputs = torch.randn(3, *network.input_shape)
    logits = module(inputs)
    assert logits.shape == (3, 6)
    assert network.layers[-1] == "logits"
    assert [name for name in seen if name in network.layers] == list(network.layers)
    assert torch.equal(seen["logits"], logits)


def test_the_resnet_is_resnet_18() -> None:
    network = Network(architecture="resnet", width=64, input_shape=(3, 32, 32), outputs=10)
    # github.com/kuangliu/pytorch-cifar, models/resnet.py: ResNet18() for CIFAR-10 has 11,173,962 parameters.
    assert sum(value.numel() for value in network.blank().parameters()) == 11_173_962


@pytest.mark.parametrize("shape", [(2,), (2, 8, 8)])
def test_mean_and_standard_deviation_are_part_of_the_network(shape: tuple[int, ...]) -> None:
    plain = Network(input_shape=shape, outputs=3, hidden=(4,), dtype="float64")
    inside = plain.model_copy(update={"mean": (3.0, -1.0), "std": (0.5, 4.0)})
    one, other = seeded(plain), seeded(inside)
    inputs = torch.randn(5, *shape)
    broadcast = (2,) + (1,) * (len(shape) - 1)
    wanted = one((inputs.double() - torch.tensor([3.0, -1.0]).reshape(broadcast)) / torch.tensor([0.5, 4.0]).reshape(broadcast))
    assert torch.allclose(other(inputs), wanted, atol=1e-12)
    assert not any("normalise" in name for name in other.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_network_is_the_network(tmp_path: Path, dtype: str) -> None:
    network = Network(architecture="resnet", width=4, input_shape=(1, 8, 8), outputs=10, mean=(1 / 3,), std=(0.1,), dtype=dtype)
    torch.manual_seed(0)
    module = network.build()
    module(torch.randn(20, 1, 8, 8))  # running statistics that are not those of a new network
    module.eval()
    save_network(module, network, tmp_path, Provenance(recipe="ab", seed=str(2**63 - 1), rows="cd"))
    saved = SavedNetwork.model_validate_json((tmp_path / "classifier.json").read_bytes())
    assert saved.network == network
    assert (saved.outputs_kind, saved.recipe, saved.seed, saved.rows) == ("classes", "ab", str(2**63 - 1), "cd")
    assert (tmp_path / "classifier.json").read_bytes() == saved.canonical()
    again = saved.network.blank()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(again.eval()(inputs), module(inputs))


def test_only_the_described_network_is_saved(tmp_path: Path) -> None:
    network = Network(input_shape=(3,), outputs=2, hidden=(4,))
    other = network.model_copy(update={"hidden": (5,)})
    with pytest.raises(ModelError, match="only built-in networks are saved"):
        save_network(other.blank(), network, tmp_path, Provenance())
    assert not list(tmp_path.iterdir())


def test_weights_are_drawn_from_the_current_generator_and_blanks_from_none() -> None:
    network = Network(input_shape=(3,), outputs=2)
    first, second = seeded(network), seeded(network)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))
    wide = seeded(network.model_copy(update={"dtype": "float64"}))
    assert all(torch.equal(one.double(), two) for one, two in zip(first.parameters(), wide.parameters(), strict=True))
    before = torch.random.get_rng_state()
    network.blank()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "cnn", "input_shape": (7,)}, "takes images"),
        ({"architecture": "cnn", "input_shape": (1, 3, 8)}, "4 pixels"),
        ({"architecture": "mlp", "norm": "batch"}, "no norm 'batch'"),
        ({"mean": (1.0, 2.0), "std": (1.0, 1.0)}, "one a column"),
        ({"std": (0.0,)}, "greater than 0"),
    ],
)
def test_what_cannot_be_built_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Network(**({"input_shape": (3,), "outputs": 2} | changed))


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    network = Network(input_shape=(3,), outputs=2, hidden=(4,))
    save_network(network.blank(), network, tmp_path, Provenance(outputs_kind="numbers"))
    values = json.loads((tmp_path / "classifier.json").read_bytes())
    assert values == {
        "architecture": "mlp", "hidden": [4], "width": 16, "norm": None, "input_shape": [3], "outputs": 2, "mean": [0],
        "std": [1], "dtype": "float32", "outputs_kind": "numbers", "recipe": None, "seed": None, "rows": None,
        "procedure": None, "shards": 1,
    }  # fmt: skip
