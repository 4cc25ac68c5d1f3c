"""Networks of classifiers and regressors: right numbers, layers that add up, and nothing opened that could run code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from muaudit.errors import EnvironmentFault, ModelError, NotApplicable, UsageError
from muaudit.examples import Examples

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file, save_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from muaudit.models import Classifies, ClassifiesInputs, ExposesLayers, HoldsModule, Model, Predicts  # noqa: E402
from muaudit.models.classifier import Classifier, Regressor  # noqa: E402
from muaudit.models.opening import classifier_family, open_classifier  # noqa: E402
from muaudit.training.networks import Network, Provenance, save_network  # noqa: E402

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs)) {}

def make():
    return Net()

def tied():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    return net

def number():
    return 7

def broken():
    raise KeyError("no such layer")
"""


def _examples(inputs: NDArray[Any] | None, labels: NDArray[Any] | None = None, count: int = 7) -> Examples:
    ids = tuple(f"e{place}" for place in range(count))
    labels = np.arange(count) % 3 if labels is None else labels
    return Examples(ids, ids, labels, None if inputs is None else inputs.astype(np.float32))


def _draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def _saved(folder: Path, **fields: Any) -> Network:
    kind: Any = fields.pop("outputs_kind", "classes")
    network = Network(**{"outputs": 3, **fields})
    torch.manual_seed(3)
    module = network.build()
    for buffer in module.buffers():  # running statistics that differ from a batch's own
        if buffer.is_floating_point():
            buffer.add_(torch.rand(buffer.shape))
    save_network(module, network, folder, Provenance(outputs_kind=kind))
    return network


def _vendor(folder: Path, tail: str = "", function: str = "make", save: Callable[..., None] = save_model) -> tuple[Path, Any]:
    """A factory's file and its weights; returns the weights' path and the network."""
    folder.mkdir(exist_ok=True)
    code = FACTORY.format(tail)
    (folder / "models.py").write_text(code)
    scope: dict[str, Any] = {"__name__": "vendor"}
    exec(code, scope)  # noqa: S102 - the test's own code
    torch.manual_seed(4)
    module = scope[function]()
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(torch.rand(buffer.shape))
    save(module, folder / "weights.safetensors")
    return folder / "weights.safetensors", module.eval()


def _open(path: Path, factory: str = "models.py:make", **keywords: Any) -> Classifier:
    return Classifier.open(path, factory=factory, base=path.parent, device="cpu", **keywords)


def _told(path: Path, opened: Callable[..., Any] = open_classifier, **keywords: Any) -> str:
    with pytest.raises(UsageError) as caught:
        opened(path, device="cpu", **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Built-in networks


@pytest.mark.parametrize(
    ("fields", "shape", "layers"),
    [
        ({"architecture": "mlp", "hidden": (8, 4)}, (6,), ("hidden1", "hidden2", "logits")),
        ({"architecture": "cnn", "width": 4}, (1, 8, 8), ("block1", "block2", "logits")),
        ({"architecture": "resnet", "width": 4}, (3, 8, 8), ("stem", "stage1", "stage2", "stage3", "stage4", "logits")),
        ({"architecture": "mlp", "hidden": (8,), "shards": 3}, (6,), ("logits",)),
    ],
)
def test_a_built_in_network_gives_what_it_gives_one_by_one(
    tmp_path: Path, fields: dict[str, Any], shape: tuple[int, ...], layers: tuple[str, ...]
) -> None:
    network = _saved(tmp_path / "m", input_shape=shape, mean=(0.5,), std=(2.0,), **fields)
    inputs = _draw(7, *shape)
    examples = _examples(inputs)
    model = open_classifier(tmp_path / "m", device="cpu", batch_size=3)
    truth = network.build()
    truth.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"))
    with torch.no_grad():
        one_by_one = np.concatenate([truth.eval()(torch.from_numpy(one[None])).numpy() for one in inputs])
    np.testing.assert_allclose(model.logits(examples), one_by_one, rtol=1e-5, atol=1e-6)
    assert model.logits(examples).dtype == np.float64
    np.testing.assert_array_equal(model.logits(examples), model.logits_of(inputs))
    whole = open_classifier(tmp_path / "m", device="cpu", batch_size=64)
    np.testing.assert_allclose(whole.logits_of(inputs), model.logits_of(inputs), rtol=1e-5, atol=1e-6)
    assert model.layers() == layers
    np.testing.assert_allclose(model.activations(inputs, layers[-1]), model.logits_of(inputs), rtol=1e-6)
    assert model.activations(inputs, layers[0]).ndim == 2
    assert model.model_seconds > 0


def test_what_a_classifier_and_a_regressor_can_do(tmp_path: Path) -> None:
    _saved(tmp_path / "m", input_shape=(6,))
    model = open_classifier(tmp_path / "m", device="cpu")
    for capability in (Model, Classifies, ClassifiesInputs, ExposesLayers, HoldsModule):
        assert isinstance(model, capability)
    assert not isinstance(model, Predicts)
    assert classifier_family(tmp_path / "m", regressor=False) is Classifier
    family = classifier_family(tmp_path / "m", regressor=True)
    assert family is Regressor
    assert issubclass(family, Predicts)
    assert not issubclass(family, Classifies | ClassifiesInputs)


def test_a_regressor_predicts_numbers(tmp_path: Path) -> None:
    network = _saved(tmp_path / "m", input_shape=(6,), outputs=2, outputs_kind="numbers")
    inputs = _draw(7, 6)
    model = open_classifier(tmp_path / "m", device="cpu", batch_size=2, regressor=True)
    assert isinstance(model, Regressor)
    truth = network.build()
    truth.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"))
    expected = truth.eval()(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(model.predictions(_examples(inputs, np.zeros((7, 2)))), expected, rtol=1e-5)
    with pytest.raises(ModelError, match="predicts 2 numbers an example, but the task's labels have 1"):
        model.predictions(_examples(inputs, np.zeros((7, 1))))
    assert "its outputs are numbers, and this task's are classes" in _told(tmp_path / "m")


def test_double_precision_is_computed_in_double(tmp_path: Path) -> None:
    _saved(tmp_path / "m", input_shape=(6,), dtype="float64")
    inputs = _draw(7, 6)
    single, double = (open_classifier(tmp_path / "m", device="cpu", dtype=dtype) for dtype in ("float32", "float64"))
    assert single.digest != double.digest
    gap = np.abs(single.logits_of(inputs) - double.logits_of(inputs)).max()
    assert 0 < gap < 1e-5
    assert np.any(double.logits_of(inputs) != double.logits_of(inputs).astype(np.float32))


def test_the_copy_is_a_copy(tmp_path: Path) -> None:
    _saved(tmp_path / "m", input_shape=(6,))
    model, inputs = open_classifier(tmp_path / "m", device="cpu"), _draw(4, 6)
    before = model.logits_of(inputs)
    copy = model.module()
    assert not copy.training
    np.testing.assert_allclose(copy(torch.from_numpy(inputs)).detach().numpy(), before, rtol=1e-6)
    copy(torch.from_numpy(inputs)).sum().backward()
    with torch.no_grad():
        for weight in copy.parameters():
            weight.sub_(weight.grad)
    np.testing.assert_array_equal(model.logits_of(inputs), before)
    assert np.abs(copy(torch.from_numpy(inputs)).detach().numpy() - before).max() > 0.1


def test_the_digest_is_of_files_and_dtype(tmp_path: Path) -> None:
    _saved(tmp_path / "m", input_shape=(6,))
    shutil.copytree(tmp_path / "m", tmp_path / "same")
    first = open_classifier(tmp_path / "m", device="cpu").digest
    assert open_classifier(tmp_path / "same", device="cpu").digest == first
    (tmp_path / "same" / "note.txt").write_text("anything")
    assert open_classifier(tmp_path / "same", device="cpu").digest != first
    module = open_classifier(tmp_path / "m", device="cpu").module()
    assert len({Classifier(module).digest, Classifier(nn.Linear(6, 3)).digest, first}) == 3


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ({"architecture": "transformer"}, ["classifier.json: architecture"]),
        ({"extra": 1}, ["classifier.json: extra", "save_network"]),
        ({"input_shape": [4]}, ["not the weights of the network that classifier.json builds", "size mismatch"]),
        ({"hidden": [256, 256]}, ["missing weights (first: hidden2", "so what would be audited is not this model"]),
        ({"shards": 2}, ["missing weights (first: logits.0"]),
    ],
)
def test_a_built_in_folder_that_does_not_fit_is_refused(tmp_path: Path, spoil: dict[str, Any], expected: list[str]) -> None:
    _saved(tmp_path / "m", input_shape=(6,))
    path = tmp_path / "m" / "classifier.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **spoil}))
    told = _told(tmp_path / "m")
    for part in expected:
        assert part in told


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "m", input_shape=(6,))
    weights = tmp_path / "m" / "model.safetensors"
    data = weights.read_bytes()
    for content in (b"", data[:100], b"\x80\x04."):
        weights.write_bytes(content)
        assert "model.safetensors: is " in _told(tmp_path / "m")
    weights.unlink()
    assert "model.safetensors: cannot be read" in _told(tmp_path / "m")
    (tmp_path / "m" / "model.pt").write_bytes(b"\x80\x04.")
    assert "model.pt is a pickle" in _told(tmp_path / "m")
    (tmp_path / "m" / "classifier.json").write_text("[" * 10)
    assert "classifier.json" in _told(tmp_path / "m")


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "m", input_shape=(6,))
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    weights["logits.bias"][1] = float("nan")
    save_file(weights, path)
    assert "weight logits.bias holds NaN or infinity" in _told(tmp_path / "m")


# The auditor's own factory


@pytest.mark.parametrize("save", [save_model, lambda module, path: save_file(dict(module.state_dict()), path)])
def test_a_factory_builds_the_network(tmp_path: Path, save: Callable[..., None]) -> None:
    path, truth = _vendor(tmp_path / "v", save=save)
    inputs = _draw(7, 6)
    model = _open(path, batch_size=3)
    with torch.no_grad():
        one_by_one = np.concatenate([truth(torch.from_numpy(one[None])).numpy() for one in inputs])
    np.testing.assert_allclose(model.logits(_examples(inputs)), one_by_one, rtol=1e-5, atol=1e-6)
    (tmp_path / "folder").mkdir()
    shutil.copy(path, tmp_path / "folder")
    again = Classifier.open(tmp_path / "folder", factory="models.py:make", base=path.parent, device="cpu")
    np.testing.assert_allclose(again.logits_of(inputs), model.logits_of(inputs), rtol=1e-6)


def test_a_factory_in_an_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = _vendor(tmp_path / "v")
    shutil.copy(path.parent / "models.py", path.parent / "installed_vendor.py")
    monkeypatch.syspath_prepend(path.parent)
    assert _open(path, "installed_vendor:make").logits_of(_draw(2, 6)).shape == (2, 3)


def test_weights_that_are_shared_may_stand_in_the_file_once(tmp_path: Path) -> None:
    path, truth = _vendor(tmp_path / "v", function="tied")
    assert "1.weight" not in load_file(path)
    inputs = _draw(3, 6)
    expected = truth(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(_open(path, "models.py:tied").logits_of(inputs), expected, rtol=1e-6)


def test_a_factory_moves_no_other_draw(tmp_path: Path) -> None:
    path, _ = _vendor(tmp_path / "v")
    torch.manual_seed(9)
    _open(path)
    drawn = torch.rand(3)
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.rand(3))


def test_the_digest_is_of_the_factory_too(tmp_path: Path) -> None:
    path, _ = _vendor(tmp_path / "v")
    first = _open(path).digest
    assert _open(path).digest == first
    (path.parent / "models.py").write_text(FACTORY.format("* 2"))
    assert _open(path).digest != first
    assert len({first, _open(path, dtype="float64").digest}) == 2


def test_layers_are_those_that_are_used(tmp_path: Path) -> None:
    path, truth = _vendor(tmp_path / "v")
    model, inputs = _open(path, batch_size=3), _draw(7, 6)
    assert model.layers() == ("spare", "body.0", "body.1", "body.2", "head")  # as the network names them: no input was shown
    model.logits_of(inputs)
    assert model.layers() == ("body.0", "body.1", "body.2", "head")
    with torch.no_grad():
        np.testing.assert_allclose(
            model.activations(inputs, "body.2"), truth.body[:3](torch.from_numpy(inputs)).numpy(), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(model.activations(inputs, "head").astype(np.float64), model.logits_of(inputs))
    with pytest.raises(ModelError, match=r"no layer 'neck'; it has body\.0, body\.1, body\.2, head"):
        model.activations(inputs, "neck")
    with pytest.raises(ModelError, match="layer 'spare' is not used"):
        model.activations(inputs, "spare")


def test_a_network_that_goes_on_after_its_last_layer_has_one_more(tmp_path: Path) -> None:
    path, _ = _vendor(tmp_path / "v", tail="* 2")
    model, inputs = _open(path), _draw(4, 6)
    logits = model.logits_of(inputs)
    assert model.layers()[-2:] == ("head", "logits")
    np.testing.assert_allclose(model.activations(inputs, "logits"), logits, rtol=1e-6)
    np.testing.assert_allclose(model.activations(inputs, "head") * 2, logits, rtol=1e-6)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("models.py", "names no function"),
        ("models.py:absent", "has no function 'absent'"),
        ("gone.py:make", "there is no file"),
        ("no_such_module_here:make", "no module 'no_such_module_here' is installed"),
        ("models.py:number", "returns a int, and no torch.nn.Module"),
        ("models.py:broken", "raised KeyError"),
        ("models.py:tied", "size mismatch|unexpected|missing"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(tmp_path: Path, factory: str, expected: str) -> None:
    path, _ = _vendor(tmp_path / "v")
    with pytest.raises(UsageError, match=expected):
        _open(path, factory)


def test_missing_and_unexpected_weights_are_refused(tmp_path: Path) -> None:
    path, _ = _vendor(tmp_path / "v")
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if name != "head.bias"}, path)
    with pytest.raises(
        ModelError, match=r"1 missing weights \(first: head\.bias\), so what would be audited is not this model"
    ):
        _open(path)
    save_file({**weights, "head.scale": torch.ones(1)}, path)
    with pytest.raises(ModelError, match=r"1 unexpected weights \(first: head\.scale\)"):
        _open(path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.pkl", "model.joblib"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    path, _ = _vendor(tmp_path / "v")
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / name).write_bytes(b"\x80\x04.")
    for place in (folder, folder / name):
        for factory in (None, "models.py:make"):
            told = _told(place, factory=factory, base=path.parent)
            assert f"{name} is a pickle, and a pickle can run code" in told
            assert "save_model" in told


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path, _ = _vendor(tmp_path / "v")
    assert "no such file or folder" in _told(tmp_path / "gone")
    assert 'factory = "file.py:function"' in _told(path)
    shutil.copy(path, path.parent / "other.safetensors")
    assert "2 safetensors files" in _told(path.parent, factory="models.py:make", base=path.parent)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme").write_text("x")
    assert "no model that can be opened here" in _told(tmp_path / "empty")
    assert "0 safetensors files" in _told(tmp_path / "empty", factory="models.py:make", base=path.parent)
    (tmp_path / "link.safetensors").symlink_to(path)
    assert "symbolic link" in _told(tmp_path / "link.safetensors", factory="models.py:make", base=path.parent)
    for device, kind in (("cuda:77", EnvironmentFault), ("gpu", UsageError)):
        with pytest.raises(kind, match=f"{device}.*(use device = 'cpu'|CUDA|not a device)"):
            open_classifier(path, factory="models.py:make", base=path.parent, device=device)


# What a network must not give


class _Says(nn.Module):
    def __init__(self, said: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.said = said

    def forward(self, inputs: Tensor) -> Any:
        return self.said(inputs)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (lambda x: torch.where(x[:, :3] == x[4, :1], torch.nan, x[:, :3]), "example 'e4': the model gives NaN or infinity"),
        (lambda x: torch.where(x[:, :3] == x[5, :1], torch.inf, x[:, :3]), "example 'e5': the model gives NaN or infinity"),
        (lambda x: x[:, :3].softmax(1), "probabilities .* its last softmax"),
        (lambda x: x[:, :1], "1 score an example"),
        (lambda x: x[:, 0], "1 score an example"),
        (lambda x: x[:, :2], "example 'e2' is of class 2, but the model scores 2 classes"),
        (lambda x: x[:3], "outputs .* for 7 inputs"),
        (lambda x: x.sum(), "outputs .* for 7 inputs"),
        (lambda x: x[:, :, None], r"shape \[7, 6, 1\]"),
        (lambda x: {"logits": x}, "gives a dict where a tensor"),
        (lambda x: x @ torch.ones(5, 3), r"fails on inputs of shape \[7, 6\]"),
        (lambda _: [0][2:][0], r"fails on inputs of shape \[7, 6\] \(list index"),
    ],
)
def test_what_no_classifier_gives_is_refused(said: Callable[[Tensor], Any], expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        Classifier(_Says(said)).logits(_examples(_draw(7, 6)))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_refused_with_their_place() -> None:
    spoilt = _Says(lambda x: torch.where(x[:, :1] == x[4, :1], torch.nan, x[:, :1]))
    with pytest.raises(ModelError, match="input 4: the model gives NaN"):
        Classifier(_Says(lambda x: torch.where(x == x[4, :1], torch.nan, x))).logits_of(_draw(7, 6))
    with pytest.raises(ModelError, match="example 'e4': the model gives NaN"):
        Regressor(spoilt).predictions(_examples(_draw(7, 6), np.zeros((7, 1))))


def test_one_number_an_example_may_stand_alone() -> None:
    inputs = _draw(7, 6)
    predictions = Regressor(_Says(lambda x: x[:, 0])).predictions(_examples(inputs, np.zeros((7, 1))))
    np.testing.assert_array_equal(predictions, inputs[:, :1])


def test_examples_without_inputs_are_not_for_networks() -> None:
    with pytest.raises(NotApplicable):
        Classifier(nn.Linear(6, 3)).logits(_examples(None))


def test_no_examples_give_no_rows() -> None:
    nothing = _examples(_draw(0, 6), np.zeros(0, np.int64), 0)
    assert Classifier(nn.Linear(6, 3)).logits(nothing).shape == (0, 3)


# Hugging Face image-classification folders


def _vit(folder: Path, processor: dict[str, Any] | None = None, **fields: Any) -> ViTForImageClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(2)
    config = ViTConfig(image_size=8, patch_size=4, num_channels=3, **sizes, **{"num_labels": 4, **fields})
    network = ViTForImageClassification(config).eval()
    network.save_pretrained(folder, safe_serialization=True)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return network


def _pictures(count: int, size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(8).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def _as_inputs(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (pictures.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)


def test_an_image_classification_folder_is_prepared_for_as_its_processor_does(tmp_path: Path) -> None:
    network = _vit(tmp_path / "vit")
    processor = ViTImageProcessor(do_resize=False, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25])
    processor.save_pretrained(tmp_path / "vit")
    pictures = _pictures(5, 8)
    with torch.no_grad():
        truth = [network(**processor(one, return_tensors="pt")).logits.numpy() for one in pictures]
    model = open_classifier(tmp_path / "vit", device="cpu", batch_size=2)
    logits = model.logits(_examples(_as_inputs(pictures), np.arange(5) % 4, 5))
    np.testing.assert_allclose(logits, np.concatenate(truth), rtol=1e-4, atol=1e-5)
    layers = model.layers()
    assert layers[0].endswith("projection")
    assert layers[-1].endswith("classifier")
    np.testing.assert_allclose(model.activations(_as_inputs(pictures), layers[-1]), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.module()(torch.from_numpy(_as_inputs(pictures))).detach(), logits, rtol=1e-4, atol=1e-5)


def test_pictures_are_resized_as_the_processor_does(tmp_path: Path) -> None:
    network = _vit(tmp_path / "vit")
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, resample=2)
    processor.save_pretrained(tmp_path / "vit")
    pictures = _pictures(3, 19)
    taken: list[Tensor] = []
    model = open_classifier(tmp_path / "vit", device="cpu")
    hook = model._module.network.register_forward_pre_hook(
        lambda _, __, given: taken.append(given["pixel_values"]), with_kwargs=True
    )
    logits = model.logits_of(_as_inputs(pictures))
    hook.remove()
    truth = processor(list(pictures), return_tensors="pt")["pixel_values"]
    assert (taken[0] - truth).abs().max() < 1.01 * 2 / 255  # the processor rounds to bytes, and its std is a half
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(pixel_values=truth).logits.numpy(), atol=0.02)


def test_the_shorter_side_and_the_crop_of_a_processor_are_followed(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    network = ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "resnet")
    asked = {"do_resize": False, "do_center_crop": True, "crop_size": 8, "do_rescale": False, "do_normalize": False}
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(asked))
    pictures = _pictures(3, 13)
    model = open_classifier(tmp_path / "resnet", device="cpu")
    with torch.no_grad():
        cut = torch.from_numpy(pictures.transpose(0, 3, 1, 2)[:, :, 2:10, 2:10].astype(np.float32))
        truth = network(pixel_values=cut).logits.numpy()
    np.testing.assert_allclose(model.logits_of(_as_inputs(pictures)), truth, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="5x5 pixels cannot be cropped to 8x8"):
        model.logits_of(_as_inputs(_pictures(3, 5)))
    asked |= {"do_resize": True, "size": {"shortest_edge": 26}, "crop_size": 26}
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(asked))
    doubled = open_classifier(tmp_path / "resnet", device="cpu").module()
    assert doubled(torch.rand(1, 3, 13, 20)).shape == (1, 3)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"crop_pct": 0.9}, "crop_pct asks for a preparation that is not followed"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order asks"),
        ({"auto_map": {"AutoImageProcessor": "evil.Processor"}}, "auto_map asks to run code"),
        ({"resample": 1}, "resample"),
        ({"size": {"longest_edge": 4}}, r"size\.longest_edge"),
        ([], "not a JSON object"),
    ],
)
def test_a_preparation_that_is_not_followed_is_refused(tmp_path: Path, processor: Any, expected: str) -> None:
    _vit(tmp_path / "vit", processor)
    with pytest.raises(ModelError, match=expected):
        open_classifier(tmp_path / "vit", device="cpu")


def test_an_image_classification_folder_that_is_unsafe_or_damaged_is_refused(tmp_path: Path) -> None:
    network = _vit(tmp_path / "vit")
    config = tmp_path / "vit" / "config.json"
    kept, weights = config.read_text(), tmp_path / "vit" / "model.safetensors"
    config.write_text(json.dumps({**json.loads(kept), "auto_map": {"AutoModelForImageClassification": "evil.Net"}}))
    assert "auto_map asks to run code" in _told(tmp_path / "vit")
    config.write_text(json.dumps({**json.loads(kept), "num_hidden_layers": 3}))
    assert "missing weights" in _told(tmp_path / "vit")
    config.write_text(json.dumps({**json.loads(kept), "model_type": "llama"}))
    assert "cannot be opened" in _told(tmp_path / "vit")
    config.write_text(kept)
    spoilt = {name: value.clone() for name, value in load_file(weights).items()}
    spoilt["classifier.bias"][0] = torch.inf
    save_file(spoilt, weights, metadata={"format": "pt"})
    assert "classifier.bias holds NaN or infinity" in _told(tmp_path / "vit")
    weights.unlink()
    torch.save(network.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    assert "the weights are pickled (pytorch_model.bin)" in _told(tmp_path / "vit")
