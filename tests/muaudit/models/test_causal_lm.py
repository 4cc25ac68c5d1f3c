"""Scoring against a slow one-by-one truth, generation against a naive loop, fine-tuning, and all that a folder can lack."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from muaudit.errors import EnvironmentFault, ModelError  # noqa: E402
from muaudit.models import Finetunes, Finetuning, GeneratesText, Model, Query, ScoresText  # noqa: E402
from muaudit.models.causal_lm import CausalLM, state_digest  # noqa: E402
from muaudit.models.tokens import encode  # noqa: E402
from muaudit.testbed.training import Recipe, new_model, save, subword_tokenizer, train, word_tokenizer  # noqa: E402

PEOPLE = ["Ana", "Bo", "Cem", "Dea", "Eli", "Fay"]
TEXTS = [
    (f"Question: Where was {name} born? Answer:", f" {place}")
    for name, place in zip(PEOPLE, ["Torvik", "Old Selmar", "Ostby", "Torvik", "the far town of Brae", "Ostby"], strict=True)
]
QUERIES = [Query(f"unit-{i}", "answer", prompt, completion) for i, (prompt, completion) in enumerate(TEXTS)]
RECIPE = Recipe(hidden=32, intermediate=64, layers=2, heads=2, context=64, epochs=60, batch_size=6, learning_rate=1e-2)
HOW = Finetuning(budgets=(0, 2, 5), learning_rate=1e-2, batch_size=4, seed=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Llama that knows the six answers."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = word_tokenizer(prompt + completion for prompt, completion in TEXTS)
    save(train(TEXTS, tokenizer, RECIPE, 0), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def llama(trained: Path) -> CausalLM:
    return CausalLM.open(trained, device="cpu")


@pytest.fixture(scope="module")
def gpt2() -> CausalLM:
    """Another architecture: learned positions, dropout, byte-level BPE, no beginning-of-sequence mark."""
    tokenizer = subword_tokenizer([prompt + completion for prompt, completion in TEXTS], 300)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")  # noqa: S106
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=96, initializer_range=0.3)
    return CausalLM(GPT2LMHeadModel(config), tokenizer)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def slowly(model: CausalLM, query: Query) -> tuple[list[float], list[bool]]:
    """One text at a time, all logits, the boundary found by tokenising the prompt alone."""
    prompt = model.tokenizer(query.prompt).input_ids
    ids = model.tokenizer(query.prompt + query.completion).input_ids
    assert ids[: len(prompt)] == prompt
    with torch.no_grad():
        logits = model.module(torch.tensor([ids])).logits[0].double()
    start = max(1, len(prompt))
    values = [float(logits[at - 1].log_softmax(0)[ids[at]]) for at in range(start, len(ids))]
    return values, [int(logits[at - 1].argmax()) == ids[at] for at in range(start, len(ids))]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_equal_the_slow_truth_in_the_order_given(family: str, batch_size: int, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    batched = CausalLM(model.module, model.tokenizer, batch_size=batch_size)
    for query, score in zip(QUERIES, batched.score(QUERIES), strict=True):
        values, hits = slowly(model, query)
        assert score.log_probability == pytest.approx(sum(values), abs=1e-4)
        assert (score.tokens, score.hits) == (len(values), tuple(hits))


def test_scores_are_repeatable_to_the_byte_and_know_no_batch(llama: CausalLM) -> None:
    together = llama.score(QUERIES)
    assert together == llama.score(QUERIES)
    assert [score.log_probability for score in llama.score(QUERIES[::-1])][::-1] == pytest.approx(
        [score.log_probability for score in together], abs=1e-5
    )
    assert llama.score([]) == []


def test_only_completion_positions_reach_the_head(llama: CausalLM) -> None:
    seen = []
    handle = llama.module.get_output_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    scores = llama.score(QUERIES)
    handle.remove()
    assert sum(shape[0] * shape[1] for shape in seen) == sum(score.tokens for score in scores)


def test_the_boundary_follows_the_joint_text(gpt2: CausalLM) -> None:
    joined, apart = encode(gpt2.tokenizer, [("Answer:", " Torvik"), ("Answer: ", "Torvik")])
    assert joined.ids == apart.ids
    assert joined.targets == apart.targets
    assert gpt2.tokenizer.decode([joined.ids[at] for at in joined.targets]) == " Torvik"


def test_an_empty_prompt_is_scored_from_the_first_predictable_token(llama: CausalLM, gpt2: CausalLM) -> None:
    query = Query("u", "text", "", "Torvik Ostby")
    assert llama.score([query])[0].tokens == 2
    assert gpt2.score([query])[0].tokens == len(gpt2.tokenizer("Torvik Ostby").input_ids) - 1


def test_the_protocols_hold(llama: CausalLM) -> None:
    for protocol in (Model, ScoresText, GeneratesText, Finetunes):
        assert isinstance(llama, protocol)


@pytest.mark.parametrize(("completion", "message"), [("", "no token"), (" Ostby" * 70, "do not fit the model's context of 64")])
def test_a_query_that_cannot_be_scored_is_named(llama: CausalLM, completion: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"'odd'.*{message}"):
        llama.score([*QUERIES, Query("odd", "answer", "Question:", completion)])


def test_nan_names_the_unit(trained: Path) -> None:
    model = CausalLM.open(trained, device="cpu")
    weights = model.module.get_input_embeddings().weight
    weights[model.tokenizer.convert_tokens_to_ids("Cem")] = float("nan")
    untied = torch.nn.Linear(*reversed(weights.shape), bias=False)
    model.module.set_output_embeddings(untied.requires_grad_(False))
    with pytest.raises(ModelError, match=r"'unit-2'.*NaN"):
        model.score(QUERIES)
    with pytest.raises(ModelError, match=r"'unit-2'.*NaN"):
        model.generate(QUERIES, 3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_equals_a_naive_greedy_loop(family: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    expected = []
    for query in QUERIES:
        ids = model.tokenizer(query.prompt).input_ids
        new: list[int] = []
        while len(new) < 8 and (not new or new[-1] != model.tokenizer.eos_token_id):
            with torch.no_grad():
                new.append(int(model.module(torch.tensor([ids + new])).logits[0, -1].argmax()))
        expected.append(model.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert CausalLM(model.module, model.tokenizer, batch_size=4).generate(QUERIES, 8) == expected
    if family == "llama":
        assert expected == [completion.strip() for _, completion in TEXTS]


def test_generation_ignores_sampling_that_the_folder_asks_for(folder: Path, llama: CausalLM) -> None:
    path = folder / "generation_config.json"
    wild = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 9.0, "min_new_tokens": 6}
    path.write_text(json.dumps(json.loads(path.read_text()) | wild))
    assert CausalLM.open(folder, device="cpu").generate(QUERIES, 8) == llama.generate(QUERIES, 8)


def test_finetuning_changes_a_copy_only_and_learns(llama: CausalLM) -> None:
    before = state_digest(llama.module)
    query = Query("u", "answer", TEXTS[0][0], " Ostby")
    curve = {step: copied.score([query])[0].mean for step, copied in llama.finetuned([query], HOW)}
    assert curve[0] == pytest.approx(llama.score([query])[0].mean)
    assert curve[5] > curve[0] + 1
    assert state_digest(llama.module) == before
    assert not any(weight.requires_grad for weight in llama.module.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [0, 4])
def test_each_budget_equals_a_run_of_its_own(family: str, rank: int, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    how = HOW.model_copy(update={"lora_rank": rank})
    curve = {}
    for step, copied in model.finetuned(QUERIES, how):
        assert not copied.module.training
        torch.rand(step)  # what a caller draws must not matter
        curve[step] = state_digest(copied.module)
    for budget in (2, 5):
        alone = how.model_copy(update={"budgets": (budget,)})
        assert [state_digest(copied.module) for _, copied in model.finetuned(QUERIES, alone)] == [curve[budget]]
    assert len(set(curve.values())) == 3


def test_lora_trains_adapters_only(llama: CausalLM) -> None:
    before = state_digest(llama.module)
    how = HOW.model_copy(update={"lora_rank": 4, "budgets": (0, 20)})
    query = Query("u", "answer", TEXTS[0][0], " Ostby")
    curve = []
    for _, copied in llama.finetuned([query], how):
        curve.append(copied.score([query])[0].mean)
        # Frozen weights are shared, not copied.
        assert copied.module.get_input_embeddings().weight is llama.module.get_input_embeddings().weight
    assert curve[0] == pytest.approx(llama.score([query])[0].mean)
    assert curve[1] > curve[0] + 1
    assert state_digest(llama.module) == before


def test_digests_of_finetuned_copies_tell_them_apart(llama: CausalLM) -> None:
    other = HOW.model_copy(update={"learning_rate": 1e-3})
    digests = [copied.digest for how in (HOW, other) for _, copied in llama.finetuned(QUERIES, how)]
    assert len({*digests, llama.digest}) == 7


def test_time_inside_the_model_is_counted(llama: CausalLM) -> None:
    start = llama.model_seconds
    llama.score(QUERIES)
    scored = llama.model_seconds
    assert scored > start
    for _, copied in llama.finetuned(QUERIES, HOW):
        copied.score(QUERIES)
        assert copied.model_seconds == llama.model_seconds > scored


def test_finetuning_refuses_what_it_cannot_train_on(llama: CausalLM) -> None:
    with pytest.raises(ModelError, match="at least one text"):
        next(llama.finetuned([], HOW))
    with pytest.raises(ModelError, match=r"unit .empty."):
        next(llama.finetuned([QUERIES[0], Query("empty", "answer", "Question:", "")], HOW))


def test_chat_uses_the_tokenizers_own_template(trained: Path) -> None:
    model = CausalLM.open(trained, device="cpu")
    with pytest.raises(ModelError, match="no chat template"):
        model.chat("Who?")
    model.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}User: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Reply:{% endif %}"
    )
    assert model.chat("Who?") == "User: Who?\nReply:"
    model.tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(ModelError, match="no users"):
        model.chat("Who?")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_other_dtypes_score_nearly_alike(trained: Path, llama: CausalLM, dtype: Any) -> None:
    model = CausalLM.open(trained, dtype=dtype, device="cpu")
    assert model.module.dtype == (torch.float32 if dtype == "auto" else getattr(torch, dtype))
    assert (model.digest == llama.digest) == (dtype == "auto")
    means = [score.mean for score in model.score(QUERIES)]
    assert means == pytest.approx([score.mean for score in llama.score(QUERIES)], abs=0.3)
    _, copied = next(model.finetuned(QUERIES, HOW))
    assert copied.module.dtype == torch.float32


def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def edit_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def larger_tokenizer(folder: Path) -> None:
    word_tokenizer(f"word{i}" for i in range(200)).save_pretrained(folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    "unknown family": (edit_config(model_type="nonesuch"), "cannot be opened"),
    "own code": (edit_config(auto_map={"AutoModelForCausalLM": "evil.Model"}), "auto_map.*AutoModelForCausalLM"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "pickled weights": (pickle_weights, "pickle can run code"),
    "truncated weights": (truncate, "is cut short"),
    "missing weight": (edit_weights(lambda tensors: tensors.pop("model.norm.weight")), "1 missing weights .*model.norm.weight"),
    "further weight": (edit_weights(lambda tensors: tensors.update(odd=torch.zeros(2))), "1 unexpected weights .*odd"),
    "wrong shape": (edit_weights(lambda tensors: tensors.update({"model.norm.weight": torch.zeros(2)})), "opened|mismatched"),
    "deeper config": (edit_config(num_hidden_layers=3), "missing weights"),
    "no tokenizer": (no_tokenizer, "no tokenizer"),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text('{"version": 7}'), "tokenizer cannot be opened"),
    "wrong tokenizer": (larger_tokenizer, "another model's tokenizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(folder: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        CausalLM.open(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_shard_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00001-of-00001\.safetensors is missing"):
        CausalLM.open(folder, device="cpu")
    save_file(tensors, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    assert CausalLM.open(folder, device="cpu").score(QUERIES)


def test_a_pickle_beside_safetensors_is_never_read(folder: Path, llama: CausalLM) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    model = CausalLM.open(folder, device="cpu")
    assert model.score(QUERIES) == llama.score(QUERIES)
    assert model.digest != llama.digest


def test_devices(trained: Path) -> None:
    with pytest.raises(ModelError, match="not a device"):
        CausalLM.open(trained, device="abacus")
    with pytest.raises(EnvironmentFault, match="CUDA devices"):
        CausalLM.open(trained, device="cuda:99")


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(CausalLM.open(trained, device="cpu").module, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_into_its_base(adapter: Path, trained: Path, llama: CausalLM) -> None:
    from peft import PeftModel

    model = CausalLM.open(adapter, base=trained, device="cpu")
    wrapped = PeftModel.from_pretrained(CausalLM.open(trained, device="cpu").module, str(adapter))
    expected = CausalLM(wrapped.base_model.model, llama.tokenizer).score(QUERIES)
    found = model.score(QUERIES)
    assert [score.mean for score in found] == pytest.approx([score.mean for score in expected], abs=1e-4)
    assert [score.mean for score in found] != pytest.approx([score.mean for score in llama.score(QUERIES)], abs=1e-2)
    assert model.digest != llama.digest


def test_adapters_that_cannot_be_used_are_refused(adapter: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs its model"):
        CausalLM.open(adapter, device="cpu")
    with pytest.raises(ModelError, match="this is no adapter"):
        CausalLM.open(trained, base=trained, device="cpu")
    with pytest.raises(ModelError, match="as base"):
        CausalLM.open(adapter, base=tmp_path / "nowhere", device="cpu")
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, weights)
    with pytest.raises(ModelError, match="1 weights of the adapter do not fit"):
        CausalLM.open(adapter, base=trained, device="cpu")
    tensors[first] = tensors[first].new_zeros(1, 1)
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="cannot be merged"):
        CausalLM.open(adapter, base=trained, device="cpu")
    torch.save(tensors, adapter / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="pickle can run code"):
        CausalLM.open(adapter, base=trained, device="cpu")


def test_a_model_from_memory_has_a_digest_of_its_state() -> None:
    tokenizer = word_tokenizer(["a b"])
    torch.manual_seed(0)
    first, second = (CausalLM(new_model(tokenizer, RECIPE), tokenizer) for _ in range(2))
    assert first.digest != second.digest
    assert first.digest == CausalLM(first.module, tokenizer).digest


def test_scoring_leaves_the_callers_floats_alone(llama: CausalLM) -> None:
    """Denormals are flushed inside the model only: hypothesis and others refuse to work without them."""
    llama.score(QUERIES)
    next(llama.finetuned(QUERIES, HOW))
    assert sys.float_info.min / 2 > 0
