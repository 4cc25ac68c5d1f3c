"""The lenses see what middle layers hold: also where the last layer refuses, and nothing where nothing is."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

causal_lm = pytest.importorskip("muaudit.models.causal_lm")
torch = pytest.importorskip("torch")

from muaudit import compute  # noqa: E402
from muaudit.attack import Bench, Measurement, Prepared  # noqa: E402
from muaudit.attacks.logit_lens import LogitLens, translated  # noqa: E402
from muaudit.errors import NotApplicable  # noqa: E402
from muaudit.models import Query  # noqa: E402
from muaudit.task import Fact, ForgetTask  # noqa: E402


def opened(path: Path) -> Any:
    return causal_lm.CausalLM.open(path, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def prepared(lineage: dict[str, Path]) -> Prepared:
    task = ForgetTask.from_jsonl(forget=lineage["forget"], retain=lineage["retain"])
    return LogitLens().prepare(Bench(task, np.random.default_rng(1), frozenset()))


def measured(prepared: Prepared, model: Any) -> Measurement:
    with compute.settled(1):
        return LogitLens().measure(model, prepared, np.random.default_rng(1))


def test_it_tells_who_knows(prepared: Prepared, lineage: dict[str, Path]) -> None:
    knows, never = (measured(prepared, opened(lineage[name])) for name in ("original", "retrain"))
    assert np.mean(knows.leakage) > 0.9
    assert np.mean(never.leakage) < 0.2
    assert set(knows.facets["lens"]) == {"logit_lens", "tuned_lens"}
    (shown,) = knows.heat_maps.values()
    assert [max(column) for column in zip(*shown.values, strict=True)] == pytest.approx(knows.leakage)


def test_a_model_that_refuses_at_its_last_layer_is_seen_through(prepared: Prepared, lineage: dict[str, Path]) -> None:
    """The last MLP is made to say one word whatever is asked: outside nothing is left, inside everything."""
    model = opened(lineage["original"])
    module = copy.deepcopy(model.module)
    word = module.get_output_embeddings().weight[model.tokenizer.convert_tokens_to_ids("unknown")].detach()
    down = module.model.layers[-1].mlp.down_proj
    down.register_forward_hook(lambda _, __, output: output * 0 + 1e4 * word)
    refusing = causal_lm.CausalLM(module, model.tokenizer, digest="refusing")
    task = ForgetTask.from_jsonl(forget=lineage["forget"])
    assert np.mean([np.exp(score.mean) for score in refusing.score([task.ask(fact) for fact in task.forget[:20]])]) < 1e-3
    seen = measured(prepared, refusing)
    assert np.mean(seen.leakage) > 0.6
    assert "layer 0 of 2" in seen.transcripts[seen.units[0]].output


def test_the_tuned_lens_is_ridge_regression() -> None:
    """Against scikit-free closed form: the primal solution with an intercept."""
    generator = torch.Generator().manual_seed(3)
    known, last, asked = (torch.randn(size, 5, generator=generator) for size in (40, 40, 7))
    centred = (known - known.mean(0)).double()
    penalty = 0.3 * centred.square().sum(1).mean()
    weights = torch.linalg.solve(
        centred.T @ centred + penalty * torch.eye(5, dtype=torch.float64), centred.T @ (last - last.mean(0)).double()
    )
    expected = (asked - known.mean(0)).double() @ weights + last.mean(0).double()
    torch.testing.assert_close(translated(asked, known, last, 0.3), expected.float())


def test_the_last_layer_reads_as_the_model_answers(prepared: Prepared, lineage: dict[str, Path]) -> None:
    model = opened(lineage["original"])
    seen = measured(prepared, model)
    best = dict.fromkeys(seen.units, 0.0)
    for unit in prepared.data["units"]:
        queries = [Query(**query) for query in unit["prompts"][0]]
        best[unit["id"]] = max(float(np.exp(score.mean)) for score in model.score(queries))
    told = np.array(seen.scores["first_token_probability"])
    assert (told >= np.array(list(best.values())) - 1e-4).all()  # these answers are one token long


def test_answers_without_rivals_are_refused() -> None:
    lone = ForgetTask(forget=(Fact(id="a", cluster="a", question="Who?", answer="Nobody"),))
    with pytest.raises(NotApplicable, match="nothing to compete with"):
        LogitLens().prepare(Bench(lone, np.random.default_rng(1), frozenset()))


def test_without_retained_facts_there_is_no_tuned_lens(lineage: dict[str, Path]) -> None:
    task = ForgetTask.from_jsonl(forget=lineage["forget"])
    alone = LogitLens().prepare(Bench(task, np.random.default_rng(1), frozenset()))
    seen = measured(alone, opened(lineage["original"]))
    assert seen.facets["lens"] == ("logit_lens",)
    assert "no tuned lens" in seen.notes[0]
