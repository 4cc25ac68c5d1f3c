"""Models that were made to harm whoever opens them: each is refused with its reason, before any library has opened it."""

import io
import json
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_folders  # noqa: E402
from hostile_folders import ADAPTERS, GENERATOR, PICTURED, REFUSED, SHARDS, harmful, tokenizer  # noqa: E402
from tiny_folders import edited  # noqa: E402

from muaudit.errors import ModelError, MuauditError  # noqa: E402
from muaudit.manifest import manifest  # noqa: E402
from muaudit.models import Query  # noqa: E402
from muaudit.models import folder as folders  # noqa: E402
from muaudit.models.causal_lm import CausalLM  # noqa: E402
from muaudit.models.opening import open_classifier  # noqa: E402

QUERY = Query("one", "answer", "Question: Where was Ana born? Answer:", " Torvik")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    tiny_folders.language(made / "language")
    tiny_folders.gpt2(made / "gpt2")
    tiny_folders.sharded(made / "sharded")
    tiny_folders.adapter(made / "adapter", made / "language")
    tiny_folders.pictures(made / "pictures")
    return made


@pytest.fixture
def models(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(kept, tmp_path / "models"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what libraries were asked to open."""
    calls: list[str] = []

    def noting(kind: Any, name: str) -> None:
        before = getattr(kind, name)

        def note(*arguments: Any, **keywords: Any) -> Any:
            calls.append(f"{kind.__name__}.{name}")
            return before(*arguments, **keywords)

        monkeypatch.setattr(kind, name, note)

    for kind in (folders.AutoModelForCausalLM, folders.AutoTokenizer, folders.PeftConfig, folders.PeftModel):
        noting(kind, "from_pretrained")
    from transformers import AutoModelForImageClassification

    noting(AutoModelForImageClassification, "from_pretrained")
    return calls


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        CausalLM.open(path, device="cpu", **options)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


LATE = ("a tokenizer of an unknown class",)
"""What only the library itself can tell."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_language_model_is_refused_before_it_is_opened(models: Path, opened: list[str], name: str) -> None:
    spoil, message = REFUSED[name]
    spoil(models / "language")
    refused(models / "language", message)
    assert name in LATE or not any("Model" in call for call in opened), opened


def test_what_the_tokenizer_alone_shows_is_refused_before_the_weights_are_opened(models: Path, opened: list[str]) -> None:
    edited("tokenizer_config.json", tokenizer_class="EvilTokenizer")(models / "language")
    refused(models / "language", "the tokenizer cannot be opened")
    assert not any("Model" in call for call in opened)


def test_a_tokenizer_that_panics_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Rust regex engine gives up on catastrophic patterns by a panic, which is no Exception: a scan would end in it."""
    for name in ("folder", "inspection"):
        monkeypatch.setattr(f"muaudit.models.{name}.refuse_tokenizer", lambda folder: None)
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer(pre_tokenizer=split)(models / "language")
    refused(models / "language", "the tokenizer cannot be opened .*retry-limit")


def test_a_mask_of_all_positions_cannot_take_all_memory(models: Path) -> None:
    edited("config.json", n_positions=10**6, rope_theta=1.0)(models / "gpt2")
    refused(models / "gpt2", "n_positions is 1000000")


@pytest.mark.parametrize("name", ["language", "gpt2", "sharded"])
def test_honest_folders_of_each_shape_are_opened(models: Path, name: str) -> None:
    (models / name / "pytorch_model.bin").write_bytes(harmful())  # beside safetensors it is digested, and never read
    (models / name / "training_args.bin").write_bytes(harmful())
    model = CausalLM.open(models / name, device="cpu")
    assert np.isfinite(model.score([QUERY])[0].log_probability)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", SHARDS)
def test_hostile_shards_are_refused(models: Path, opened: list[str], name: str) -> None:
    spoil, message = SHARDS[name]
    spoil(models / "sharded")
    refused(models / "sharded", message)
    assert opened == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused_before_anything_is_opened(models: Path, opened: list[str], name: str) -> None:
    spoil, message = ADAPTERS[name]
    spoil(models / "adapter")
    refused(models / "adapter", message, base=models / "language")
    assert opened == []


@pytest.mark.parametrize("name", PICTURED)
def test_a_hostile_image_classifier_is_refused_before_it_is_opened(models: Path, opened: list[str], name: str) -> None:
    spoil, message = PICTURED[name]
    spoil(models / "pictures")
    with pytest.raises(ModelError, match=message):
        open_classifier(models / "pictures", device="cpu")
    assert opened == []
    assert not Path("ran").exists()


# Networks that are no transformer, estimators, ONNX


def test_a_description_larger_than_its_weights_is_refused(tmp_path: Path) -> None:
    from muaudit.training.networks import Network, Provenance, save_network

    network = Network(architecture="mlp", hidden=(8,), input_shape=(4,), outputs=2)
    save_network(network.blank(), network, tmp_path / "m", Provenance())
    assert open_classifier(tmp_path / "m", device="cpu").logits_of(np.zeros((1, 4), np.float32)).shape == (1, 2)
    path = tmp_path / "m" / "classifier.json"
    plain = path.read_text()
    for change in (
        {"hidden": [10**9]}, {"hidden": [16_000] * 50}, {"outputs": 10**9}, {"shards": 10**9}, {"input_shape": [10**12]},
    ):  # fmt: skip
        path.write_text(json.dumps({**json.loads(plain), **change}))
        with pytest.raises(ModelError, match=r"classifier\.json: describes a network that is far larger"):
            open_classifier(tmp_path / "m", device="cpu")


def bomb(name: str) -> bytes:
    """An archive of a megabyte that unpacks to a gigabyte."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open(name, "w") as part:
        for _ in range(1024):
            part.write(bytes(2**20))
    return packed.getvalue()


def test_archives_that_unpack_without_end_are_refused_unread(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    from muaudit.models.recorded_logits import RecordedLogits

    (tmp_path / "m.skops").write_bytes(bomb("schema.json"))
    with pytest.raises(ModelError, match="unpacks to 1073741824 bytes, far more than its own size"):
        open_classifier(tmp_path / "m.skops")
    (tmp_path / "logits.npz").write_bytes(bomb("logits.npy"))
    with pytest.raises(ModelError, match="unpacks to 1073741824 bytes, far more than its own size"):
        RecordedLogits.open(tmp_path / "logits.npz")


def test_a_pickle_under_the_name_of_skops_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skops")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.skops").write_bytes(harmful())
    with pytest.raises(ModelError, match="not a file of skops"):
        open_classifier(tmp_path / "m.skops")
    with zipfile.ZipFile(tmp_path / "m.skops", "w") as file:
        file.writestr("data.pkl", harmful())
    with pytest.raises(ModelError, match="not a file of skops"):
        open_classifier(tmp_path / "m.skops")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["weights.bin", "w" * 140 + ".bin", "../outside.bin", "/etc/hostname"])
@pytest.mark.parametrize("turned", [False, True])
def test_onnx_weights_beside_the_one_file_are_refused_however_they_are_named(tmp_path: Path, name: str, turned: bool) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=name)
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["logits"])], "net",
        [onnx.helper.make_tensor_value_info("x", floats, ["n", 3])],
        [onnx.helper.make_tensor_value_info("logits", floats, ["n", 2])], [weight],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    data = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    if turned:  # value before key, which a reader of the usual order overlooks
        entry = weight.external_data[0].SerializeToString()
        key, value = entry[: 2 + len("location")], entry[2 + len("location") :]
        assert data.count(entry) == 1
        data = data.replace(entry, value + key)
    (tmp_path / "m.onnx").write_bytes(data)
    if "/" not in name:
        (tmp_path / name).write_bytes(np.ones((3, 2), np.float32).tobytes())
    with pytest.raises(ModelError, match=r"keeps weights in|cannot open it"):
        open_classifier(tmp_path / "m.onnx")


# Image generators


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    from tiny_pipelines import write_stable

    return write_stable(tmp_path_factory.mktemp("pipelines") / "models" / "stable")


@pytest.mark.parametrize("name", GENERATOR)
def test_a_hostile_image_generator_is_refused(pipeline: Path, tmp_path: Path, monkeypatch: Any, name: str) -> None:
    from muaudit.models.diffusion import open_diffusion

    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(pipeline, tmp_path / "models" / "stable"))
    spoil, message = GENERATOR[name]
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        open_diffusion(folder, device="cpu")
    assert not Path("ran").exists()


# Read-only, and off the network


def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Has every attempt to reach another machine noted and refused."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def stamped(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_models_of_every_kind_are_opened_read_only_and_without_the_network(
    models: Path, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muaudit.models.diffusion import open_diffusion

    shutil.copytree(pipeline, models / "stable")
    # What an adapter says of its base would send peft to a hub.
    edited("adapter_config.json", base_model_name_or_path="somebody/elsewhere")(models / "adapter")
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before, digests = stamped(models), manifest(models)
    tried = no_network(monkeypatch)
    for name in ("language", "gpt2", "sharded"):
        CausalLM.open(models / name, device="cpu").score([QUERY])
    CausalLM.open(models / "adapter", base=models / "language", device="cpu").generate([QUERY], 2)
    open_classifier(models / "pictures", device="cpu").logits_of(np.zeros((1, 1, 8, 8), np.float32))
    open_diffusion(models / "stable", device="cpu")
    assert tried == []
    assert (stamped(models), manifest(models)) == (before, digests)
    assert not (tmp_path / "cache").exists()


def test_a_whole_audit_without_an_endpoint_uses_no_network(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from malformed import workplace

    import muaudit

    folder = workplace(tmp_path)
    for name in ("language", "reference"):
        shutil.copytree(kept / "language", folder / "models" / name)
    tried = no_network(monkeypatch)
    report = muaudit.audit(folder / "facts.toml")
    assert report.findings
    assert [(one.attack, one.reason) for one in report.findings if one.verdict in ("error", "skipped")] == []
    assert tried == []


def test_a_library_that_reaches_for_the_network_while_a_model_is_opened_is_stopped(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        socket.create_connection(("203.0.113.1", 443), timeout=5)

    monkeypatch.setattr(folders.AutoModelForCausalLM, "from_pretrained", fetch)
    refused(models / "language", "opened without the network")
    monkeypatch.setattr(folders.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: socket.getaddrinfo("localhost", 80))
    refused(models / "language", "opened without the network")
    assert socket.getaddrinfo("127.0.0.1", 80)  # outside of that, nothing is closed


def test_files_that_change_while_a_model_is_opened_are_noticed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folders.load_tokenizer

    def meddle(folder: Path) -> Any:
        (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
        return before(folder)

    monkeypatch.setattr(folders, "load_tokenizer", meddle)
    refused(models / "language", "config.json changed while it was being opened")


def test_a_chat_template_is_sandboxed(models: Path) -> None:
    for template, message in (
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template fails"),
        ("{{ cycler.__init__.__globals__.os.mkdir('ran') }}", "chat template fails"),
        ("{% for a in range(10**9) %}x{% endfor %}", "chat template fails"),
        ("{{ 1 / 0 }}", "chat template fails"),
        ("{{ messages[0].content.missing.deeper }}", "chat template fails"),
        ("{% include '/etc/passwd' %}", "chat template fails"),
        ("{% if %}", "chat template fails"),
    ):
        edited("tokenizer_config.json", chat_template=template)(models / "language")
        (models / "language" / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(MuauditError, match=message) as caught:
            CausalLM.open(models / "language", device="cpu").chat("hello")
        assert "\n" not in str(caught.value)
        assert not Path("ran").exists()
