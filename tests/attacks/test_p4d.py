"""P4D against a slow implementation of its own, one prompt at a time; its two published forms; what it keeps and refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from drawn_task import PROMPTS, Generator, bench, task
from tiny_pipelines import pixel_pipeline
from torch.nn import functional

from muaudit.attacks.p4d import P4D, NearestTokens, _originals
from muaudit.diffusion.checkpoints import Case, search_each
from muaudit.diffusion.insertion import Insertion, allowed
from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.prompt_search import Adam, Denoising, Search
from muaudit.errors import ModelError, NotApplicable

SMALL: dict[str, Any] = {
    "tokens": 2, "timesteps": 2, "steps": 2, "learning_rate": 0.1, "images": 1, "baselines": False,
}  # fmt: skip
SEEDS = (21, 22, 23, 24)


class Never:
    """Finds nothing in any image."""

    digest, errors = "never", None

    def present(self, images: np.ndarray, concepts: Any) -> np.ndarray:
        return np.zeros(len(images), dtype=bool)


def hopeless() -> Any:
    judge: Any = Never()
    return replace(task(), judge=judge)


def double(seed: int) -> Pipeline:
    """Float64 but for the text encoder, whose causal mask overflows there; other seeds are other networks."""
    pipeline = pixel_pipeline(seed)
    pipeline.unet.double()
    return pipeline


def case(model: Pipeline, count: int = 4) -> Case:
    given, encoder = hopeless(), model.encoders[0]
    units = given.forget[:count]
    insertion = Insertion.into(encoder, [one.prompt for one in units], 3)
    latents = model.latents(given.images(units))
    return Case(Generator(model), model, given, units, SEEDS[:count], insertion, allowed(encoder), latents)


def searching(one: Case, original: Pipeline, at_first: torch.Tensor, *, decoupled: bool) -> Search:
    wanted = _originals(Generator(original), one)  # type: ignore[arg-type]
    choice = NearestTokens(one.table.to(one.pipeline.dtype), one.among, at_first)
    return Search(
        Denoising(one.pipeline, one.insertion, one.latents, wanted), choice, Adam(0.1, 0.1, decoupled=decoupled), one.draws(),
        prompts=torch.arange(len(one.units)),
    )  # fmt: skip


class Slow:
    """P4D for one prompt with nothing shared with the package."""

    def __init__(self, target: Pipeline, original: Pipeline, row: int, at_first: list[int], *, decoupled: bool) -> None:
        self.target, self.original, self.decoupled = target.unet, original.unet, decoupled
        self.module, tokenizer = target.encoders[0].module, target.encoders[0].tokenizer
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        self.left = [token for token in range(len(tokenizer)) if token not in special]
        self.table = self.module.get_input_embeddings().weight.detach()[self.left].double()
        self.vectors = self.table[at_first].clone()
        self.first, self.second, self.count = torch.zeros_like(self.vectors), torch.zeros_like(self.vectors), 0
        self.generator = torch.Generator().manual_seed(SEEDS[row])
        self.alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.x0 = 2 * torch.from_numpy(task().pictures[task().forget[row].id])[None].double() - 1
        whole = tokenizer(PROMPTS[row], add_special_tokens=False).input_ids
        ids = [tokenizer.bos_token_id, *range(len(tokenizer), len(tokenizer) + 3), *whole, tokenizer.eos_token_id]
        self.ids = torch.tensor([ids + [tokenizer.pad_token_id] * (12 - len(ids))])
        plain = tokenizer([PROMPTS[row]], padding="max_length", max_length=12, return_tensors="pt").input_ids
        self.plain = original.encoders[0].module(plain).last_hidden_state.double()

    def nearest(self) -> list[int]:
        return [int(functional.cosine_similarity(vector[None], self.table).argmax()) for vector in self.vectors]

    def block(self, timestep: int | None, steps: int) -> None:
        torch.rand((steps, 3), generator=self.generator, dtype=torch.float64)
        noise = torch.randn((steps, 1, 1, 8, 8), generator=self.generator).double()
        times = [timestep] * steps
        if timestep is None:
            times = torch.randint(1000, (steps, 1), generator=self.generator).flatten().tolist()
        (name,) = [name for name, one in self.module.named_parameters() if one is self.module.get_input_embeddings().weight]
        for step, at in enumerate(times):
            projected = self.table[self.nearest()].clone().requires_grad_()
            longer = torch.cat([self.module.get_input_embeddings().weight.detach(), projected.float()])
            context = torch.func.functional_call(self.module, {name: longer}, (self.ids,)).last_hidden_state.double()
            noisy = self.alphas[at].sqrt() * self.x0 + (1 - self.alphas[at]).sqrt() * noise[step]
            found = self.target(noisy, at, encoder_hidden_states=context).sample
            wanted = self.original(noisy, at, encoder_hidden_states=self.plain).sample.detach()
            (slope,) = torch.autograd.grad(functional.mse_loss(found, wanted), projected)
            self.update(slope)

    def update(self, gradient: torch.Tensor) -> None:
        """Adam with L2 decay, or AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
        self.count += 1
        if self.decoupled:
            self.vectors = self.vectors - 0.1 * 0.1 * self.vectors
        else:
            gradient = gradient + 0.1 * self.vectors
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        ahead, above = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        self.vectors = self.vectors - 0.1 * ahead / (above.sqrt() + 1e-8)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("timesteps", [(50, 950), (None, None)])
def test_steps_are_those_of_a_slow_implementation(timesteps: tuple[int | None, ...], decoupled: bool) -> None:
    target, original = double(0), double(1)
    one = case(target)
    at_first = torch.randint(len(one.among), (4, 3), generator=torch.Generator().manual_seed(3))
    search = searching(one, original, at_first, decoupled=decoupled)
    slow = [Slow(target, original, row, at_first[row].tolist(), decoupled=decoupled) for row in range(4)]
    seen = set()
    for timestep in timesteps:
        search.block(timestep, 3)
        for row, other in enumerate(slow):
            other.block(timestep, 3)
            # The text encoder computes in float32, whose rounding Adam's division enlarges where a gradient is small.
            assert (search.choice.variable[row] - other.vectors).abs().max() < 1e-5
            assert search.choice.decoded()[row].tolist() == [other.left[place] for place in other.nearest()]
            seen.add(tuple(other.nearest()))
    assert len(seen) > 4, "the nearest tokens change on the way"


def test_prompts_together_are_searched_as_one_by_one() -> None:
    target, original = pixel_pipeline(0, batch_size=3), pixel_pipeline(1)
    at_first = torch.randint(15, (4, 3), generator=torch.Generator().manual_seed(3))
    whole = case(target)
    together = searching(whole, original, at_first, decoupled=False)
    together.block(300, 6)
    for row in range(4):
        single = replace(
            whole, units=whole.units[row : row + 1], seeds=whole.seeds[row : row + 1], latents=whole.latents[row : row + 1],
            insertion=whole.insertion.take(torch.tensor([row])),
        )  # fmt: skip
        alone = searching(single, original, at_first[row : row + 1], decoupled=False)
        alone.block(300, 6)
        assert torch.equal(alone.choice.decoded()[0], together.choice.decoded()[row])
        assert (alone.choice.variable[0] - together.choice.variable[row]).abs().max() < 1e-4


def test_the_checkpoint_with_the_lowest_loss_is_kept() -> None:
    one = case(pixel_pipeline(), 2)
    search = searching(one, pixel_pipeline(1), torch.tensor([[0, 1, 2], [3, 4, 5]]), decoupled=False)
    told: list[list[list[int]]] = []
    losses = iter([[3.0, 1.0], [2.0, 5.0], [4.0, 3.0]])

    def compared(rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        assert rows.tolist() == [0, 1]
        told.append(tokens.tolist())
        return torch.tensor(next(losses))

    ended = search_each(one, search, [100, 500, 900], 4, compared)
    assert ended.texts == [
        one.insertion.take(torch.tensor([0])).texts(torch.tensor([told[1][0]]))[0],
        one.insertion.take(torch.tensor([1])).texts(torch.tensor([told[0][1]]))[0],
    ]
    assert told[0] != told[1]


def measured_with(attack: P4D, given: Any, model: Generator, original: Any) -> Any:
    """As `drawn_task.measured`, with the way to the original attached as the runner does."""
    prepared = attack.prepare(bench(given, original)).with_task(given).with_original(lambda: original)
    return attack.measure(model, prepared, np.random.default_rng(7))


def test_it_searches_where_target_and_original_differ_alone() -> None:
    """On the original itself the plain prompt is already best; the loss of every prompt is lower than on another network."""
    original = pixel_pipeline(1)
    same, other = case(pixel_pipeline(1)), case(pixel_pipeline(0))
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    at = torch.full((4,), 400)
    losses = []
    for one in (same, other):
        denoising = Denoising(one.pipeline, one.insertion, one.latents, _originals(Generator(original), one))  # type: ignore[arg-type]
        losses.append(denoising.loss(torch.arange(4), one.among[:3].expand(4, -1), noise, at))
    assert (losses[0] < losses[1]).all()


@pytest.mark.parametrize(
    ("form", "expected"),
    [({"position": "alone", "tokens": 6}, [6] * 5), ({"position": "every_three_words"}, [4 + 2, 3 + 2, 2 + 1, 5 + 2, 2 + 1])],
)
def test_the_published_forms(form: dict[str, Any], expected: list[int]) -> None:
    """P4D-N writes a prompt of its own; P4D-K puts one token before every three words."""
    attack = P4D(**SMALL | form, order="random", decoupled=True)
    found = measured_with(attack, hopeless(), Generator(), Generator(pixel_pipeline(1)))
    told = [found.transcripts[unit].prompt for unit in found.units]
    assert [len(text.split()) for text in told] == expected
    for text, plain in zip(told, PROMPTS, strict=True):
        if form["position"] != "alone":
            words = text.split()
            assert " ".join(word for place, word in enumerate(words) if place % 4) == plain


def test_it_is_deterministic_and_leaves_both_models_alone() -> None:
    model, original = Generator(), Generator(pixel_pipeline(1))
    before = [{name: value.clone() for name, value in one.held.unet.state_dict().items()} for one in (model, original)]
    first, again = (measured_with(P4D(**SMALL), task(), model, original) for _ in range(2))
    assert first.canonical() == again.canonical()
    for one, states in zip((model, original), before, strict=True):
        assert all(torch.equal(value, states[name]) for name, value in one.held.unet.state_dict().items())


def test_no_special_and_no_banned_word_is_inserted() -> None:
    attack = P4D(**SMALL | {"tokens": 5, "learning_rate": 0.001}, ban=("three", "red", "a", "photo"))
    given = hopeless()
    found = measured_with(attack, given, Generator(), Generator(pixel_pipeline(1)))
    inserted = {word for one in given.forget for word in found.transcripts[one.id].prompt.removesuffix(one.prompt).split()}
    assert len(inserted) > 3
    assert not inserted & {"three", "red", "a", "photo"}


def test_it_needs_an_original_of_the_same_shape() -> None:
    with pytest.raises(NotApplicable, match=r"\[original\]"):
        P4D().prepare(bench(task()))
    attack, other = P4D(**SMALL), pixel_pipeline(1)
    other.latent_shape = (1, 16, 16)
    with pytest.raises(ModelError, match="another shape"):
        measured_with(attack, hopeless(), Generator(), Generator(other))
