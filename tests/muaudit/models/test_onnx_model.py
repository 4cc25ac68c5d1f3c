"""ONNX files: what torch gives, and nothing read or run that is not in the digested files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from muaudit.errors import ModelError
from muaudit.examples import Examples

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from muaudit.models import Classifies, ClassifiesInputs, ExposesLayers, HoldsModule, Model, Predicts  # noqa: E402
from muaudit.models.onnx_model import OnnxClassifier, OnnxRegressor  # noqa: E402
from muaudit.models.opening import classifier_family, open_classifier  # noqa: E402
from muaudit.training.trained import PROBABILITY_FLOOR  # noqa: E402

torch.manual_seed(6)
NET = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()


def _graph(**changes: Any) -> Any:
    """The network as an ONNX graph: Conv, Relu, Flatten, Gemm, and what `changes` put behind or in place of it."""
    weights = {name: value.detach().numpy() for name, value in NET.state_dict().items()}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    output = changes.get("output", "logits")
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "3.weight", "3.bias"], [changes.get("scores", output)], transB=1),
        *changes.get("more", ()),
    ]
    batch = changes.get("batch", "n")
    takes = [helper.make_tensor_value_info("x", changes.get("takes", TensorProto.FLOAT), [batch, 1, 4, 4])]
    gives = changes.get("gives") or [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 5])]
    graph = helper.make_graph(nodes, "net", takes, gives, tensors)
    domains = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in changes.get("domains", ()))]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


def _saved(path: Path, **changes: Any) -> Path:
    path.write_bytes(_graph(**changes).SerializeToString())
    return path


def _draw(count: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(count, 1, 4, 4)).astype(np.float32)


def _examples(inputs: NDArray[np.float32], labels: Any = None) -> Examples:
    ids = tuple(f"e{place}" for place in range(len(inputs)))
    return Examples(ids, ids, np.arange(len(inputs)) % 5 if labels is None else labels, inputs)


def _truth(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.no_grad():
        return np.concatenate([NET(torch.from_numpy(one[None])).double().numpy() for one in inputs])


def _told(path: Path, **keywords: Any) -> str:
    with pytest.raises(ModelError) as caught:
        open_classifier(path, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_logits_are_those_of_torch(tmp_path: Path, batch: Any) -> None:
    model = open_classifier(_saved(tmp_path / "m.onnx", batch=batch), batch_size=3)
    inputs = _draw()
    np.testing.assert_allclose(model.logits(_examples(inputs)), _truth(inputs), atol=1e-5)
    np.testing.assert_array_equal(model.logits_of(inputs), model.logits(_examples(inputs)))
    assert model.logits_of(inputs).dtype == np.float64
    assert model.model_seconds > 0


def test_what_onnx_models_can_do(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m.onnx")
    model = open_classifier(path)
    for capability in (Model, Classifies, ClassifiesInputs):
        assert isinstance(model, capability)
    for capability in (Predicts, ExposesLayers, HoldsModule):
        assert not isinstance(model, capability)
    assert classifier_family(path, regressor=False) is OnnxClassifier
    assert classifier_family(tmp_path, regressor=True) is OnnxRegressor
    assert open_classifier(path).digest == model.digest
    assert open_classifier(_saved(tmp_path / "n.onnx", output="scores")).digest != model.digest


def test_probabilities_by_name_become_logits(tmp_path: Path) -> None:
    softmax = helper.make_node("Softmax", ["s"], ["Probabilities"], axis=1)
    more = [softmax, helper.make_node("ArgMax", ["s"], ["label"], axis=1, keepdims=0)]
    gives = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("Probabilities", TensorProto.FLOAT, ["n", 5]),
    ]
    model = open_classifier(_saved(tmp_path / "m.onnx", scores="s", more=more, gives=gives))
    inputs = _draw() * 200
    truth = torch.from_numpy(_truth(inputs)).softmax(1).numpy()
    logits = model.logits_of(inputs)
    np.testing.assert_allclose(np.exp(logits), truth, atol=1e-5)
    assert logits.min() == np.log(PROBABILITY_FLOOR)


def test_probabilities_by_another_name_are_refused(tmp_path: Path) -> None:
    softmax = helper.make_node("Softmax", ["s"], ["y"], axis=1)
    model = open_classifier(_saved(tmp_path / "m.onnx", scores="s", output="y", more=[softmax]))
    with pytest.raises(ModelError, match="gives probabilities"):
        model.logits_of(_draw())


def test_a_regressor_predicts(tmp_path: Path) -> None:
    inputs = _draw()
    model = open_classifier(_saved(tmp_path / "m.onnx", output="y"), regressor=True)
    np.testing.assert_allclose(model.predictions(_examples(inputs, np.zeros((7, 5)))), _truth(inputs), atol=1e-5)
    with pytest.raises(ModelError, match="predicts 5 numbers an example, but the task's labels have 1"):
        model.predictions(_examples(inputs, np.zeros((7, 1))))


def test_numbers_that_are_none_are_told(tmp_path: Path) -> None:
    model = open_classifier(_saved(tmp_path / "m.onnx", scores="s", more=[helper.make_node("Log", ["s"], ["logits"])]))
    inputs = _draw()
    first = int((_truth(inputs) <= 0).any(axis=1).argmax())
    with pytest.raises(ModelError, match=f"example 'e{first}': the model gives NaN"):
        model.logits(_examples(inputs))


def test_classes_and_shapes_that_do_not_fit_are_told(tmp_path: Path) -> None:
    model = open_classifier(_saved(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="example 'e6' is of class 6, but the model scores 5 classes"):
        model.logits(_examples(_draw(), np.arange(7)))
    with pytest.raises(ModelError, match=r"fails on inputs of shape \[7, 1, 5, 4\] .* it takes \['n', 1, 4, 4\]") as caught:
        model.logits_of(np.zeros((7, 1, 5, 4), np.float32))
    assert "\n" not in str(caught.value)


def _with_external(location: str) -> Any:
    graph = _graph()
    weight = graph.graph.initializer[2]
    onnx.external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    return graph


def test_weights_beside_the_file_are_read_with_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    data = NET.state_dict()["3.weight"].numpy().tobytes()
    (folder / "weights.bin").write_bytes(data)
    (folder / "m.onnx").write_bytes(_with_external("weights.bin").SerializeToString())
    model = open_classifier(folder)
    np.testing.assert_allclose(model.logits_of(_draw()), _truth(_draw()), atol=1e-5)
    (folder / "weights.bin").write_bytes(data[::-1])
    assert open_classifier(folder).digest != model.digest
    assert "keeps weights in 'weights.bin', outside of what is digested" in _told(folder / "m.onnx")


@pytest.mark.parametrize("location", ["../weights.bin", "{folder}/weights.bin", "gone.bin", "x" * 200 + "/../../weights.bin"])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(NET.state_dict()["3.weight"].numpy().tobytes())
    (tmp_path / "m").mkdir()
    location = location.replace("{folder}", str(tmp_path))
    (tmp_path / "m" / "m.onnx").write_bytes(_with_external(location).SerializeToString())
    told = _told(tmp_path / "m")
    assert "outside of what is digested" in told or "External data path" in told


def test_operators_of_its_own_are_refused(tmp_path: Path) -> None:
    own = helper.make_node("Evil", ["s"], ["logits"], domain="my.ops")
    told = _told(_saved(tmp_path / "m.onnx", scores="s", more=[own], domains=["my.ops"]))
    assert "has an operator of its own" in told
    assert "my.ops:Evil" in told


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"garbage"])
def test_a_file_that_is_no_onnx_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "onnxruntime cannot open it" in _told(tmp_path / "m.onnx")


def test_inputs_and_outputs_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["raw"], ["x"], to=TensorProto.FLOAT)
    graph = _graph()
    graph.graph.input[0].name = "raw"
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    graph.graph.node.insert(0, cast)
    (tmp_path / "m.onnx").write_bytes(graph.SerializeToString())
    assert "takes raw: tensor(uint8), and has to take one tensor of floats" in _told(tmp_path / "m.onnx")
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in ("s", "t")]
    twice = _saved(tmp_path / "n.onnx", scores="s", more=[helper.make_node("Relu", ["s"], ["t"])], gives=gives)
    assert "s: tensor(float), t: tensor(float), and it is not plain which are the scores" in _told(twice)
    (tmp_path / "two").mkdir()
    for name in ("a.onnx", "b.onnx"):
        _saved(tmp_path / "two" / name)
    assert "2 .onnx files" in _told(tmp_path / "two")
    assert "leave factory out" in _told(twice, factory="m.py:make")


def test_inputs_are_flattened_for_a_graph_of_tables(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.arange(32, dtype=np.float64).reshape(16, 2), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "table",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, 16])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None, 2])],
        [weight],
    )
    (tmp_path / "m.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    inputs = _draw()
    expected = inputs.reshape(7, 16).astype(np.float64) @ np.arange(32.0).reshape(16, 2)
    np.testing.assert_allclose(open_classifier(tmp_path / "m.onnx").logits_of(inputs), expected, rtol=1e-12)
