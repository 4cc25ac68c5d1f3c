"""Diffusion pipelines: diffusers' own pipelines and plain loops are the truth."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_pipelines import STABLE, pixel_pipeline, text_encoder, unet, vae, word_tokenizer, write_stable, write_xl
from torch import Tensor

from muaudit.diffusion.pipeline import Conditioning, Pipeline, PromptEncoder
from muaudit.errors import ModelError, UsageError
from muaudit.models import Denoises, GeneratesImages, ImageQuery, Model, ReadsPrompts, Sampling
from muaudit.models.diffusion import Diffusion, DiffusionXL, ImageGenerator

PROMPTS = ["one red two", "of", "two of one of two of one of two of one of two of one"]
SEEDS = [5, 6, 2**40]
WORDS = ["a photo of three", "two", "red drawing of one", "zero", "a small five"]
FIVE = [1, 2, 3, 4, 5]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable(tmp_path_factory.mktemp("stable"))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xl(tmp_path_factory.mktemp("xl"))


def theirs(pipe: Any, scheduler: str, guidance: float, steps: int) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    drawn = pipe(PROMPTS, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np")
    return np.asarray(drawn.images).transpose(0, 3, 1, 2)


def queries(sampler: str, guidance: float, steps: int) -> list[ImageQuery]:
    how = Sampling(sampler=sampler, steps=steps)  # type: ignore[arg-type]
    return [ImageQuery(str(seed), text, seed, guidance, how) for text, seed in zip(PROMPTS, SEEDS, strict=True)]


SOLVERS = [
    ("ddim", "DDIMScheduler"), ("lms", "LMSDiscreteScheduler"), ("euler", "EulerDiscreteScheduler"),
    ("dpm_solver", "DPMSolverMultistepScheduler"),
]  # fmt: skip


@pytest.mark.parametrize(("sampler", "scheduler"), SOLVERS)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_images_are_those_of_stable_diffusion_pipeline(stable: Path, sampler: str, scheduler: str, guidance: float) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(stable, safety_checker=None, requires_safety_checker=False)
    truth = theirs(pipe, scheduler, guidance, 7)
    drawn = Diffusion.open(stable, batch_size=2).images(queries(sampler, guidance, 7))
    assert np.abs(drawn - truth).max() < 1e-5
    assert np.abs(truth[0] - truth[1]).max() > 0.1


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("zeros", [True, False])
def test_images_are_those_of_stable_diffusion_xl_pipeline(tmp_path: Path, guidance: float, zeros: bool) -> None:
    folder = write_xl(tmp_path, zeros=zeros)
    truth = theirs(diffusers.StableDiffusionXLPipeline.from_pretrained(folder), "DDIMScheduler", guidance, 6)
    drawn = DiffusionXL.open(folder, batch_size=2).images(queries("ddim", guidance, 6))
    assert np.abs(drawn - truth).max() < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_outdated_scheduler_files_are_set_right_as_diffusers_does(tmp_path: Path) -> None:
    folder = write_stable(tmp_path, scheduler=diffusers.DDIMScheduler(clip_sample=True, steps_offset=0))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    truth = theirs(pipe, "DDIMScheduler", 3.0, 5)
    assert np.abs(Diffusion.open(folder).images(queries("ddim", 3.0, 5)) - truth).max() < 1e-5


def test_the_prompt_matters_to_the_latents(stable: Path) -> None:
    pipeline = Diffusion.open(stable).pipeline()
    how = Sampling(steps=5)
    one, other = (pipeline.sample(pipeline.conditioning([text]), [1], [7.5], how) for text in ("one", "red two of"))
    assert (one - other).abs().max() > 0.01


def test_eta_is_the_noise_of_ddim(stable: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(stable, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    truth = pipe(PROMPTS, num_inference_steps=5, guidance_scale=3.0, generator=generators, eta=0.7, output_type="latent").images
    pipeline = Diffusion.open(stable).pipeline()
    drawn = pipeline.sample(pipeline.conditioning(PROMPTS), SEEDS, [3.0] * 3, Sampling(steps=5), eta=0.7)
    assert torch.allclose(drawn, truth, atol=1e-5)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("euler", 0.0)])
def test_steps_in_two_parts_are_the_steps_in_one(sampler: str, eta: float) -> None:
    pipeline, how = pixel_pipeline(batch_size=2, **STABLE), Sampling(sampler=sampler, steps=9)  # type: ignore[arg-type]
    told, guidance = pipeline.conditioning(WORDS), [2.0, 1.0, 0.0, 7.5, 1.0]
    whole = pipeline.sample(told, FIVE, guidance, how, eta=eta)
    first = pipeline.sample(told, FIVE, guidance, how, end=4, eta=eta)
    second = pipeline.sample(told, FIVE, guidance, how, begin=4, start=first, eta=eta)
    assert (first - whole).abs().max() > 0.1
    assert torch.allclose(whole, second, atol=1e-5)


def test_a_later_start_of_lms_begins_at_first_order() -> None:
    """From one step before the end all solvers of the same differential equation are Euler's."""
    pipeline = pixel_pipeline(**STABLE)
    told, start = pipeline.conditioning(WORDS), pipeline.noise(FIVE)
    lms, euler = (
        pipeline.sample(told, FIVE, [2.0] * 5, Sampling(sampler=sampler, steps=9), begin=8, start=start)  # type: ignore[arg-type]
        for sampler in ("lms", "euler")
    )
    assert torch.allclose(lms, euler, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "lms", "euler", "dpm_solver"])
def test_latents_between_steps_have_the_scale_of_noised(sampler: str) -> None:
    """A network that always finds x_0 = 0 leaves only noise, whose share is sqrt(1 - abar) at every level."""
    pipeline = pixel_pipeline(**STABLE, prediction_type="sample")
    for parameter in pipeline.unet.parameters():
        torch.nn.init.zeros_(parameter)
    how, seen = Sampling(sampler=sampler, steps=5), []  # type: ignore[arg-type]

    def between(latents: Tensor, level: int) -> Tensor:
        seen.append((level, float(latents.norm())))
        return latents

    told, start = pipeline.conditioning(["two"]), pipeline.noise([3])
    levels = diffusers_timesteps(sampler, 5)
    share = (1 - pipeline.alphas[round(levels[0])]).sqrt()
    done = pipeline.sample(told, [3], [1.0], how, begin=0, start=start * share, between=between)
    assert [level for level, _ in seen] == [*(round(level) for level in levels[1:]), -1]
    for level, norm in seen[:-1]:
        assert norm == pytest.approx(float((1 - pipeline.alphas[level]).sqrt() * start.norm()), rel=0.02)
    assert done.norm() < 0.1 * start.norm()


def diffusers_timesteps(sampler: str, steps: int) -> list[float]:
    scheduler = getattr(diffusers, dict(SOLVERS)[sampler]).from_config(diffusers.DDIMScheduler(**STABLE).config)
    scheduler.set_timesteps(steps)
    return [float(one) for one in scheduler.timesteps]


def test_between_changes_what_the_next_step_sees() -> None:
    pipeline, how = pixel_pipeline(), Sampling(steps=4)
    told, known = pipeline.conditioning(WORDS), pipeline.latents(np.full((5, 1, 8, 8), 0.25, np.float32))
    noise = pipeline.noise(FIVE)

    def inpainted(latents: Tensor, level: int) -> Tensor:
        latents = latents.clone()
        latents[..., :4] = pipeline.noised(known, noise, torch.tensor(level))[..., :4]
        return latents

    done = pipeline.sample(told, FIVE, [2.0] * 5, how, between=inpainted)
    plain = pipeline.sample(told, FIVE, [2.0] * 5, how)
    assert torch.equal(done[..., :4], known[..., :4])
    assert (done[..., 4:] - plain[..., 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "lms", "euler", "dpm_solver"])
def test_a_row_alone_is_the_row_in_its_batch(sampler: str) -> None:
    pipeline, how = pixel_pipeline(batch_size=3, **STABLE), Sampling(sampler=sampler, steps=6)  # type: ignore[arg-type]
    told, guidance = pipeline.conditioning(WORDS), [1.0, 4.0, 0.0, 1.0, 2.0]
    whole = pipeline.sample(told, FIVE, guidance, how)
    for row in range(5):
        alone = pipeline.sample(pipeline.conditioning([WORDS[row]]), [FIVE[row]], [guidance[row]], how)
        assert torch.allclose(whole[row], alone[0], atol=1e-4, rtol=1e-4)


def test_guidance_of_one_asks_nothing_unconditional(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, seen = pixel_pipeline(), []
    forward = pipeline.unet.forward
    monkeypatch.setattr(pipeline.unet, "forward", lambda *args, **named: seen.append(len(args[0])) or forward(*args, **named))
    pipeline.sample(pipeline.conditioning(WORDS), FIVE, [1.0] * 5, Sampling(steps=1))
    pipeline.sample(pipeline.conditioning(WORDS), FIVE, [1.0, 3.0, 1.0, 1.0, 0.0], Sampling(steps=1))
    assert seen == [5, 7]


def test_nothing_replaces_the_empty_prompt() -> None:
    pipeline, how = pixel_pipeline(), Sampling(steps=3)
    told = pipeline.conditioning(WORDS)
    empty = pipeline.sample(told, FIVE, [3.0] * 5, how)
    same = pipeline.sample(told, FIVE, [3.0] * 5, how, nothing=pipeline.conditioning([""] * 5))
    other = pipeline.sample(told, FIVE, [3.0] * 5, how, nothing=pipeline.conditioning(["five"]))
    assert torch.allclose(empty, same, atol=1e-6)
    assert not torch.allclose(empty, other, atol=1e-3)


def test_spread_scales_the_first_noise() -> None:
    pipeline, how = pixel_pipeline(), Sampling(steps=3)
    told = pipeline.conditioning(WORDS)
    scaled = pipeline.sample(told, FIVE, [1.0] * 5, how, spread=1.5)
    assert torch.allclose(scaled, pipeline.sample(told, FIVE, [1.0] * 5, how, start=pipeline.noise(FIVE) * 1.5), atol=1e-6)


def test_noise_is_diffusers_own() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    pipeline = pixel_pipeline()
    truth = randn_tensor((2, 1, 8, 8), generator=[torch.Generator().manual_seed(seed) for seed in (3, 9)])
    assert torch.equal(pipeline.noise([3, 9]), truth)


def test_misuse_of_sample_is_refused() -> None:
    pipeline = pixel_pipeline()
    told = pipeline.conditioning(["two"])
    with pytest.raises(UsageError, match="do not match"):
        pipeline.sample(told, [1, 2], [1.0], Sampling(steps=2))
    with pytest.raises(UsageError, match="there are 2"):
        pipeline.sample(told, [1], [1.0], Sampling(steps=2), end=3)
    with pytest.raises(UsageError, match="needs the latents"):
        pipeline.sample(told, [1], [1.0], Sampling(steps=2), begin=1)
    with pytest.raises(UsageError, match="setting of DDIM"):
        pipeline.sample(told, [1], [1.0], Sampling(sampler="lms", steps=2), eta=0.5)
    few = pixel_pipeline(num_train_timesteps=10)
    with pytest.raises(ModelError, match="10 noise levels"):
        few.sample(few.conditioning(["two"]), [1], [1.0], Sampling(steps=11))


# What the network predicts


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predict_is_the_noise_whatever_the_network_predicts(prediction: str) -> None:
    pipeline = pixel_pipeline(prediction_type=prediction)
    told, noisy, times = pipeline.conditioning(WORDS), pipeline.noise(FIVE), torch.tensor([1, 100, 500, 900, 999])
    raw = pipeline.unet(noisy, times, encoder_hidden_states=told.context).sample
    predicted = pipeline.predict(noisy, times, told)
    for row, time in enumerate(times.tolist()):
        abar = float(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[time])
        x_t, out = noisy[row].double(), raw[row].double()
        truth = {
            "epsilon": out,
            "v_prediction": abar**0.5 * out + (1 - abar) ** 0.5 * x_t,
            "sample": (x_t - abar**0.5 * out) / (1 - abar) ** 0.5,
        }[prediction]
        assert torch.allclose(predicted[row].double(), truth, rtol=1e-3, atol=1e-3)


def test_noised_is_that_of_diffusers_and_the_plain_formula() -> None:
    pipeline = pixel_pipeline(**STABLE)
    x, noise, times = pipeline.noise(FIVE), pipeline.noise([6, 7, 8, 9, 10]), torch.tensor([0, 10, 400, 998, 999])
    noisy = pipeline.noised(x, noise, times)
    assert torch.allclose(noisy, diffusers.DDIMScheduler(**STABLE).add_noise(x, noise, times), atol=1e-6)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for row, time in enumerate(times.tolist()):
        abar = np.prod(1 - betas[: time + 1])
        truth = abar**0.5 * x[row].numpy() + (1 - abar) ** 0.5 * noise[row].numpy()
        assert np.allclose(noisy[row].numpy(), truth, atol=1e-5)
    assert torch.equal(pipeline.noised(x, noise, torch.tensor(-1)), x)


def test_loss_is_the_mean_squared_error_row_by_row() -> None:
    pipeline = pixel_pipeline(prediction_type="v_prediction")
    told, x, noise = pipeline.conditioning(WORDS), pipeline.noise(FIVE), pipeline.noise([6, 7, 8, 9, 10])
    times = torch.tensor([3, 50, 300, 700, 990])
    losses = pipeline.loss(x, noise, times, told)
    for row in range(5):
        part = slice(row, row + 1)
        predicted = pipeline.predict(pipeline.noised(x[part], noise[part], times[part]), times[part], told.take([row]))
        assert losses[row].item() == pytest.approx(float(((predicted - noise[part]) ** 2).mean()), rel=1e-4)


def test_the_loss_has_a_gradient_to_the_embeddings() -> None:
    pipeline = pixel_pipeline()
    encoder = pipeline.encoders[0]
    ids = encoder.ids(WORDS)
    embeddings = encoder.table[ids].clone().requires_grad_(True)
    told = pipeline.conditioned(encoder.encode(ids, embeddings))
    loss = pipeline.loss(pipeline.noise(FIVE), pipeline.noise([6, 7, 8, 9, 10]), torch.full((5,), 500), told).sum()
    (gradient,) = torch.autograd.grad(loss, embeddings)
    step = torch.zeros_like(embeddings)
    step[1, 2] = 1e-2
    with torch.no_grad():
        moved = [
            pipeline.loss(
                pipeline.noise(FIVE), pipeline.noise([6, 7, 8, 9, 10]), torch.full((5,), 500),
                pipeline.conditioned(encoder.encode(ids, embeddings + sign * step)),
            ).double().sum()
            for sign in (1, -1)
        ]  # fmt: skip
    slope = float(moved[0] - moved[1]) / 2e-2
    assert float(gradient[1, 2].sum()) == pytest.approx(slope, rel=0.05, abs=1e-4)
    assert gradient.abs().amax(dim=(1, 2)).min() > 0


# Prompts


def test_standing_in_embeddings_reproduce_the_ids() -> None:
    encoder = pixel_pipeline().encoders[0]
    ids = encoder.ids(WORDS)
    plain = encoder.encode(ids)
    assert torch.equal(encoder.encode(ids, encoder.table[ids]), plain)
    other = encoder.ids(["five"] * 5)
    assert torch.equal(encoder.encode(other, encoder.table[ids])[:, :6], plain[:, :6])
    assert torch.equal(encoder.encode(ids), plain)


def test_framed_words_are_the_ids_of_the_prompt(stable: Path) -> None:
    for encoder in (pixel_pipeline().encoders[0], Diffusion.open(stable).prompt_encoder()):
        for prompt in (*PROMPTS, "", "one! two", "unheard"):
            assert torch.equal(encoder.framed([encoder.words(prompt)]), encoder.ids([prompt]))
        assert encoder.ids(PROMPTS).shape == (3, encoder.length)
        assert encoder.text(encoder.words("one red two")) == "one red two"
        assert encoder.text(encoder.ids(["one red two"])[0].tolist()) == "one red two"
        assert len(encoder.vocabulary()) == len(encoder.table)
        assert not {int(one) for one in encoder.words("one red two")} & encoder.specials


def test_too_many_words_are_cut_before_the_end() -> None:
    encoder = pixel_pipeline().encoders[0]
    ids = encoder.framed([encoder.words("one two " * 10)])[0].tolist()
    assert len(ids) == 12
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert ids == encoder.ids(["one two " * 10])[0].tolist()


# Images and latents


def test_pixels_go_to_latents_and_back() -> None:
    pipeline, images = pixel_pipeline(), np.random.default_rng(0).random((20, 1, 8, 8)).astype(np.float32)
    latents = pipeline.latents(images)
    assert np.allclose(latents.numpy(), 2 * images - 1)
    assert np.allclose(pipeline.pictures(latents), images, atol=1e-6)
    assert pipeline.pictures(latents * 5).max() == 1
    assert np.isnan(pipeline.pictures(latents * float("nan"))).all()


def test_latents_of_a_vae_are_its_scaled_mean(stable: Path) -> None:
    pipeline = Diffusion.open(stable, batch_size=2).pipeline()
    assert pipeline.image_shape == (3, 16, 16)
    assert pipeline.latent_shape == (4, 8, 8)
    images = np.random.default_rng(0).random((3, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        truth = pipeline.vae.encode(torch.tensor(images * 2 - 1)).latent_dist.mode() * 0.5
        decoded = (pipeline.vae.decode(truth / 0.5).sample / 2 + 0.5).clamp(0, 1)
    latents = pipeline.latents(images)
    assert torch.allclose(latents, truth, atol=1e-5)
    assert np.allclose(pipeline.pictures(latents), decoded.numpy(), atol=1e-5)


def test_moments_of_the_codes_are_undone() -> None:
    moments = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 0.5, 1.0, 3.0]}
    tokenizer = word_tokenizer()
    made = [
        Pipeline(unet(4), one, [PromptEncoder(tokenizer, text_encoder(tokenizer))], diffusers.DDIMScheduler().config)
        for one in (vae(), vae(**moments))
    ]
    images = np.random.default_rng(0).random((2, 3, 16, 16)).astype(np.float32)
    plain, shifted = (pipeline.latents(images) for pipeline in made)
    mean, std = (torch.tensor(moments[name]).reshape(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    assert torch.allclose(shifted / 0.5 * std + mean, plain / 0.5, atol=1e-5)
    assert np.allclose(made[0].pictures(plain), made[1].pictures(shifted), atol=1e-5)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"1x16x16.*1x8x8.*resize"):
        pixel_pipeline().latents(np.zeros((1, 1, 16, 16), np.float32))


# The family


def test_conditioning_is_taken_and_repeated_row_by_row(xl: Path) -> None:
    told = DiffusionXL.open(xl).pipeline().conditioning(["one", "two"])
    assert told.added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    twice = told.repeated(2)
    assert torch.equal(twice.context, told.context[[0, 0, 1, 1]])
    assert torch.equal(twice.added["text_embeds"], told.added["text_embeds"][[0, 0, 1, 1]])
    assert torch.equal(twice.take([3]).context[0], told.context[1])
    assert torch.equal(Conditioning.joined([told, told]).context, told.context[[0, 1, 0, 1]])


def test_a_context_alone_does_not_condition_two_encoders(xl: Path) -> None:
    with pytest.raises(ModelError, match="two text encoders"):
        DiffusionXL.open(xl).pipeline().conditioned(torch.zeros(1, 12, 48))


def test_what_the_families_can_do(stable: Path, xl: Path) -> None:
    one, two = Diffusion.open(stable), DiffusionXL.open(xl)
    for model in (one, two):
        for protocol in (Model, GeneratesImages, Denoises):
            assert isinstance(model, protocol)
    assert isinstance(one, ReadsPrompts)
    assert not isinstance(two, ReadsPrompts)
    assert one.model_seconds == 0
    one.images(queries("ddim", 1.0, 1))
    assert one.model_seconds > 0


def test_queries_are_grouped_by_sampling_and_keep_their_order() -> None:
    model = Diffusion(pixel_pipeline(batch_size=2))
    hows = [Sampling(steps=2), Sampling(steps=3), Sampling(sampler="euler", steps=2)]
    asked = [ImageQuery("u", WORDS[place % 5], place, 1.0 + place % 2, hows[place % 3]) for place in range(9)]
    together = model.images(asked)
    assert together.shape == (9, 1, 8, 8)
    assert together.dtype == np.float32
    for query, image in zip(asked, together, strict=True):
        assert np.allclose(model.images([query])[0], image, atol=1e-4)
    assert model.images([]).shape == (0, 1, 8, 8)


def test_the_same_queries_give_the_same_bytes() -> None:
    asked = [ImageQuery("u", word, seed, 2.0, Sampling(steps=3)) for word, seed in zip(WORDS, FIVE, strict=True)]
    assert Diffusion(pixel_pipeline()).images(asked).tobytes() == Diffusion(pixel_pipeline()).images(asked).tobytes()


def test_nan_pixels_name_the_unit() -> None:
    pipeline = pixel_pipeline()
    pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"unit 'u7'.*NaN"):
        Diffusion(pipeline).images([ImageQuery("u7", "two", 1, 1.0, Sampling(steps=1))])


def test_training_a_copy_leaves_the_original_untouched(stable: Path) -> None:
    model = Diffusion.open(stable)
    pipeline, asked = model.pipeline(), queries("ddim", 2.0, 2)
    before = model.images(asked)
    copy = pipeline.copied()
    weights = [one for one in (*copy.unet.parameters(), *copy.encoders[0].module.parameters()) if one.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    told = copy.conditioned(copy.encoders[0].encode(copy.encoders[0].ids(PROMPTS)))
    loss = copy.loss(copy.noise(SEEDS), copy.noise([1, 2, 3]), torch.tensor([100, 500, 900]), told).mean()
    loss.backward()
    optimizer.step()
    assert model.images(asked).tobytes() == before.tobytes()
    assert not np.allclose(Diffusion(copy).images(asked), before, atol=1e-4)
    networks = [*pipeline.modules().values()]
    assert all(one.grad is None and not one.requires_grad for module in networks for one in module.parameters())
    assert not any(module.training for module in networks)


def test_a_copy_of_half_precision_is_trained_in_single(stable: Path) -> None:
    pipeline = Diffusion.open(stable, dtype="bfloat16").pipeline()
    assert pipeline.dtype == torch.bfloat16
    copy = pipeline.copied()
    assert copy.dtype == torch.float32
    assert copy.encoders[0].table.dtype == torch.float32
    assert pipeline.dtype == torch.bfloat16
    told = copy.conditioning(PROMPTS)
    assert copy.pictures(copy.sample(told, SEEDS, [2.0] * 3, Sampling(steps=2))).shape == (3, 3, 16, 16)


def test_the_digest_in_memory_is_of_weights_and_levels() -> None:
    digests = {
        Diffusion(one).digest
        for one in (pixel_pipeline(), pixel_pipeline(1), pixel_pipeline(**STABLE), pixel_pipeline(prediction_type="sample"))
    }
    assert len(digests) == 4
    assert Diffusion(pixel_pipeline()).digest == Diffusion(pixel_pipeline()).digest


def test_opening_the_other_family_is_refused(stable: Path, xl: Path) -> None:
    pairs: list[tuple[type[ImageGenerator], Path]] = [(DiffusionXL, stable), (Diffusion, xl)]
    for family, folder in pairs:
        with pytest.raises(ModelError, match="text encoders"):
            family.open(folder)
