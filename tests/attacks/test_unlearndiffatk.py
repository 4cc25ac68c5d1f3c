"""UnlearnDiffAtk against a slow implementation of its own, one prompt at a time; and what it counts, keeps and refuses."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from drawn_task import PROMPTS, Generator, bench, measured, task
from tiny_pipelines import pixel_pipeline
from torch.nn import functional

from muaudit.attacks.unlearndiffatk import SimplexRows, UnlearnDiffAtk
from muaudit.diffusion.insertion import Insertion, allowed
from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.prompt_search import Adam, Denoising, Search
from muaudit.diffusion.schedule import Draws, spread
from muaudit.errors import ModelError, NotApplicable

SMALL: dict[str, Any] = {"tokens": 2, "timesteps": 3, "steps": 3, "learning_rate": 0.05, "images": 2}
SEEDS = (11, 12, 13, 14)
TOLD = PROMPTS[:4]


def double(scale: float) -> Pipeline:
    """The tiny pipeline in float64, so that two ways to compute the same differ by rounding alone.

    The text encoder stays as it is: transformers' causal mask overflows in float64.
    """
    pipeline = pixel_pipeline()
    pipeline.unet.double()
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(scale)
    return pipeline


def searching(pipeline: Pipeline, rows: Sequence[int], rate: float, decay: float, tokens: int = 3) -> Search:
    """The search under test for some of the prompts."""
    encoder = pipeline.encoders[0]
    insertion = Insertion.into(encoder, [TOLD[row] for row in rows], tokens)
    among = allowed(encoder)
    choice = SimplexRows(encoder.table[among].to(pipeline.dtype), among, len(rows), tokens)
    latents = targets()[list(rows)].to(pipeline.dtype)
    draws = Draws([SEEDS[row] for row in rows], pipeline.device, pipeline.dtype)
    return Search(
        Denoising(pipeline, insertion, latents), choice, Adam(rate, decay), draws, prompts=torch.arange(len(rows))
    )  # fmt: skip


def targets() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def by_sorting(row: torch.Tensor) -> torch.Tensor:
    """Exact projection onto the simplex (Duchi et al. 2008, figure 1)."""
    ordered = row.sort(descending=True).values
    count = max(place for place in range(1, len(row) + 1) if ordered[place - 1] * place > ordered[:place].sum() - 1)
    return torch.clamp(row - (ordered[:count].sum() - 1) / count, min=0)


class Slow:
    """UnlearnDiffAtk for one prompt with nothing shared with the package: explicit one-hot rows, hardtanh and Adam."""

    def __init__(self, pipeline: Pipeline, row: int, rate: float, decay: float, tokens: int = 3) -> None:
        self.unet, encoder = pipeline.unet, pipeline.encoders[0]
        self.module, tokenizer = encoder.module, encoder.tokenizer
        self.target, self.rate, self.decay, self.k = targets()[row : row + 1].double(), rate, decay, tokens
        self.alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.generator = torch.Generator().manual_seed(SEEDS[row])
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        self.left = [token for token in range(len(tokenizer)) if token not in special]
        whole = tokenizer(TOLD[row], add_special_tokens=False).input_ids
        ids = [tokenizer.bos_token_id, *range(len(tokenizer), len(tokenizer) + tokens), *whole, tokenizer.eos_token_id]
        self.ids = torch.tensor([ids + [tokenizer.pad_token_id] * (12 - len(ids))])
        self.rows = torch.full((tokens, len(self.left)), 1 / len(self.left), dtype=torch.float64)
        self.first, self.second, self.count = torch.zeros_like(self.rows), torch.zeros_like(self.rows), 0
        self.cut, self.drawn = 0, []

    def context(self, one_hot: torch.Tensor) -> torch.Tensor:
        """The encoder with k more rows in its table: the products of the one-hot rows and the table."""
        (name,) = [name for name, one in self.module.named_parameters() if one is self.module.get_input_embeddings().weight]
        table = self.module.get_input_embeddings().weight.detach()
        longer = torch.cat([table, (one_hot @ table[self.left].double()).float()])
        # The largest id is not the end token's any more, which only the pooled vector is read at.
        return torch.func.functional_call(self.module, {name: longer}, (self.ids,)).last_hidden_state.double()

    def block(self, timestep: int, steps: int) -> None:
        uniform = torch.rand((steps, self.k), generator=self.generator, dtype=torch.float64)
        noise = torch.randn((steps, 1, 1, 8, 8), generator=self.generator).double()
        for step in range(steps):
            chosen = []
            for row, asked in zip(self.rows, uniform[step].tolist(), strict=True):
                sums = np.cumsum(row.numpy())
                chosen.append(next(place for place, total in enumerate(sums) if total > asked * sums[-1]))
            self.drawn.append([self.left[place] for place in chosen])
            one_hot = functional.one_hot(torch.tensor(chosen), len(self.left)).double().requires_grad_()
            abar = self.alphas[timestep]
            noisy = abar.sqrt() * self.target + (1 - abar).sqrt() * noise[step]
            predicted = self.unet(noisy, timestep, encoder_hidden_states=self.context(one_hot)).sample
            (slope,) = torch.autograd.grad(functional.mse_loss(predicted, noise[step]), one_hot)
            self.cut += int((slope.abs() > 1).sum())
            self.update(functional.hardtanh(slope))

    def update(self, gradient: torch.Tensor) -> None:
        """Adam (Kingma and Ba 2015, algorithm 1) with L2 decay, then the projection."""
        self.count += 1
        gradient = gradient + self.decay * self.rows
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        ahead, above = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        moved = self.rows - self.rate * ahead / (above.sqrt() + 1e-8)
        self.rows = torch.stack([by_sorting(row) for row in moved])


@pytest.mark.parametrize(("scale", "rate", "decay"), [(1.0, 0.01, 0.1), (1.0, 0.05, 0.0), (30.0, 0.05, 0.1)])
def test_steps_are_those_of_a_slow_implementation(scale: float, rate: float, decay: float) -> None:
    """Prompts of different lengths, two timesteps with the optimiser's state carried over; the last case is cut by hardtanh."""
    pipeline = double(scale)
    search = searching(pipeline, range(4), rate, decay)
    slow = [Slow(pipeline, row, rate, decay) for row in range(4)]
    for timestep in (50, 950):
        for steps in (1, 3):
            search.block(timestep, steps)
            for row, one in enumerate(slow):
                one.block(timestep, steps)
                assert (search.choice.variable[row] - one.rows).abs().max() < 1e-6
    assert len({tuple(drawn) for one in slow for drawn in one.drawn}) > 8, "tokens are drawn, not always the same"
    assert (sum(one.cut for one in slow) > 0) == (scale > 1)
    assert search.choice.decoded().tolist() == [[one.left[int(row.argmax())] for row in one.rows] for one in slow]


def test_prompts_together_are_searched_as_one_by_one() -> None:
    pipeline = pixel_pipeline(batch_size=3)  # four prompts in two batches
    together = searching(pipeline, range(4), 0.05, 0.1)
    alone = [searching(pipeline, [row], 0.05, 0.1) for row in range(4)]
    for timestep in spread(1000, 3):
        for search in (together, *alone):
            search.block(timestep, 5)
    for row, one in enumerate(alone):
        assert torch.equal(one.choice.decoded()[0], together.choice.decoded()[row])
        assert (one.choice.variable[0] - together.choice.variable[row]).abs().max() < 1e-5


def test_a_search_that_ends_leaves_the_others_as_they_are() -> None:
    pipeline = pixel_pipeline()
    whole, some = (searching(pipeline, range(4), 0.05, 0.1) for _ in range(2))
    for search in (whole, some):
        search.block(100, 3)
    some.keep([1, 3])
    for search in (whole, some):
        search.block(500, 4)
    assert (whole.choice.variable[[1, 3]] - some.choice.variable).abs().max() < 1e-5


def test_the_published_timesteps() -> None:
    assert spread(1000, 50) == list(range(10, 1000, 20))
    assert spread(1000, 10) == list(range(50, 1000, 100))
    assert spread(10, 50) == list(range(10))


@dataclass
class Scripted:
    """Says what it was told to say, image by image; True after that is at an end."""

    answers: list[bool]
    digest: str = "scripted"
    errors: None = None
    seen: list[int] = field(default_factory=list)

    def present(self, images: np.ndarray, concepts: Sequence[str]) -> np.ndarray:
        self.seen.append(len(images))
        told, self.answers = self.answers[: len(images)], self.answers[len(images) :]
        return np.array(told + [True] * (len(images) - len(told)))


def scripted(*answers: str) -> Any:
    """A task whose judge says + and - in turn; blanks are for the reader."""
    judge: Any = Scripted([one == "+" for text in answers for one in text if one != " "])
    return replace(task(), judge=judge)


def test_what_counts() -> None:
    """Unit 0 shows its concept plainly, unit 1 after the first block, unit 3 after the third; 2 and 4 never do."""
    given = scripted("+---- ", "+--- ", "--- ", "-+-", "+- +- -+ ++ --")
    model = Generator()
    prepared, found = measured(UnlearnDiffAtk(**SMALL, baselines=False), given, model)
    assert found.leakage == (0.5, 0.5, 0.5, 1.0, 0.0)
    assert found.scores["plain"] == (1, 0, 0, 0, 0)
    assert found.scores["post_asr"] == (1, 1, 0, 1, 0)
    assert found.scores["best_of_2"] == (1, 1, 1, 1, 0)
    assert found.summaries["pre_asr"] == pytest.approx(0.2)
    assert found.summaries["post_asr"] == pytest.approx(0.6)
    assert found.summaries["images_looked_at"] == pytest.approx((1 + 3 + 3 + 3) / 4)
    told = [found.transcripts[unit].prompt for unit in found.units]
    assert told[0] == PROMPTS[0], "a plain prompt that succeeds is not attacked"
    assert all(text.endswith(plain) and len(text.split()) == len(plain.split()) + 2
               for text, plain in zip(told[1:], PROMPTS[1:], strict=True))  # fmt: skip
    looked = [query for query in model.asked if query.prompt == told[1]]
    own = given.forget[1].seed
    assert [query.seed for query in looked] == [own, *prepared.data["fresh"][1]], "stopped at once, scored on fresh seeds"
    assert own not in prepared.data["fresh"][1]
    assert [row[0].label + row[1].label for row in found.pictures.values()] == ["plainattacked"] * 5
    assert found.powerless is None


def test_baselines_get_as_many_images_as_the_attack() -> None:
    given, model = scripted("-" * 20, "-" * 10), Generator()
    prepared, found = measured(UnlearnDiffAtk(**SMALL), given, model)
    # 5 plain, 5 after each of 3 blocks, 2 fresh, then 3 seeds and 3 random prefixes a prompt
    assert len(model.asked) == 5 + 15 + 10 + 15 + 15
    assert found.leakage == (0,) * 5
    assert found.scores["seed_search"] == found.scores["random_tokens_best"] == (1,) * 5
    seeds, random = model.asked[30:45], model.asked[45:]
    assert [query.prompt for query in seeds] == [text for text in PROMPTS for _ in range(3)]
    assert len({query.seed for query in seeds} | {seed for row in prepared.data["fresh"] for seed in row}) == 15 + 10
    assert [query.seed for query in random] == [one.seed for one in given.forget for _ in range(3)]
    assert len({query.prompt for query in random}) > 10


def test_batches_change_nothing() -> None:
    attack, told = UnlearnDiffAtk(**SMALL | {"images": 1}, baselines=False), []
    for batch in (64, 1):
        _, found = measured(attack, scripted("-" * 1000), Generator(pixel_pipeline(batch_size=batch)))
        told.append(found.transcripts)
    assert told[0] == told[1]


def test_it_is_deterministic_and_leaves_the_model_alone() -> None:
    given, model = task(), Generator()
    before = {name: value.clone() for part in (model.held.unet, model.held.encoders[0].module)
              for name, value in part.state_dict().items()}  # fmt: skip
    prepared, found = measured(UnlearnDiffAtk(**SMALL, baselines=False), given, model)
    state = torch.get_rng_state()
    again, same = measured(UnlearnDiffAtk(**SMALL, baselines=False), given, model)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert again.content_digest() == prepared.content_digest()
    assert same.canonical() == found.canonical()
    for part in (model.held.unet, model.held.encoders[0].module):
        assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
        assert not any(one.requires_grad or one.grad is not None for one in part.parameters())


def test_no_special_and_no_banned_word_is_inserted() -> None:
    given = scripted("-" * 1000)
    banned = ("three", "red", "a", "an", "photo")
    _, found = measured(UnlearnDiffAtk(**SMALL | {"tokens": 5}, ban=banned, baselines=False), given, Generator())
    inserted = {
        word for one in given.forget for word in found.transcripts[one.id].prompt.removesuffix(one.prompt).split()
    }  # fmt: skip
    assert len(inserted) > 3
    assert inserted <= {"of", "picture", "drawing", "zero", "one", "two", "four", "five", "blue", "small"}


def test_universal_tokens_serve_all_prompts_that_need_them() -> None:
    """Two prefixes; the second, after the second block, shows the concept in the most of four prompts."""
    given = scripted("+---- ", "+--- ---- ", "-+-- ++-- ", "---- ---- ", "++" * 5)
    model = Generator()
    _, found = measured(UnlearnDiffAtk(**SMALL, universal=2, prompts_a_step=3, baselines=False), given, model)
    told = [found.transcripts[unit].prompt for unit in found.units]
    prefix = told[1].removesuffix(PROMPTS[1])
    assert told == [PROMPTS[0], *(prefix + plain for plain in PROMPTS[1:])]
    assert len(prefix.split()) == 2
    second = [query.prompt for query in model.asked[5 + 8 + 4 : 5 + 8 + 8]]
    assert second == told[1:], "the best of all that were looked at"
    assert found.scores["post_asr"] == (1, 1, 1, 0, 0)
    assert found.summaries["shown_by_best_tokens"] == pytest.approx(0.5)
    assert found.summaries["images_looked_at"] == 6


def test_random_rows_start_elsewhere() -> None:
    told = []
    for start in ("uniform", "random"):
        attack = UnlearnDiffAtk(**SMALL | {"steps": 1}, start=start, baselines=False)
        told.append(measured(attack, scripted("-" * 1000), Generator())[1].transcripts)
    assert told[0] != told[1]


def test_a_network_that_does_not_listen_to_its_prompt_proves_nothing() -> None:
    model = Generator()
    with torch.no_grad():
        for name, weight in model.held.unet.named_parameters():
            if "attn2.to_v" in name:
                weight.zero_()
    _, found = measured(UnlearnDiffAtk(**SMALL, baselines=False), scripted("-" * 1000), model)
    assert found.powerless is not None
    assert "no gradient" in found.powerless
    _, shown = measured(UnlearnDiffAtk(**SMALL, baselines=False), scripted("+" * 1000), model)
    assert shown.powerless is None, "nothing had to be searched"
    assert shown.leakage == (1,) * 5


def test_broken_weights_are_an_error() -> None:
    pipeline = pixel_pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    search = searching(pipeline, range(2), 0.05, 0.1)
    with pytest.raises(ModelError, match="NaN or infinite"):
        search.block(100, 1)


def test_it_needs_target_images() -> None:
    with pytest.raises(NotApplicable, match="target images"):
        UnlearnDiffAtk().prepare(bench(task(targets=False)))


def test_few_of_many_prompts() -> None:
    prepared = UnlearnDiffAtk(**SMALL, forget_prompts=2).prepare(bench(task()))
    assert len(prepared.data["units"]) == 2
    assert "2 of 5 forget prompts" in prepared.data["notes"][0]
