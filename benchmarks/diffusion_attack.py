"""Speed of UnlearnDiffAtk on the testbed's pipeline: `python benchmarks/diffusion_attack.py`.

Speed does not depend on what the weights are, so that the pipeline of `sketches` is timed untrained, with evaluators that find
nothing: every search goes on to its last step. One thread. Two ratios, each of numbers from one run:

- prompts attacked per minute, together against one by one (limit: 5 times);
- gradient steps, with text encoder, optimiser and projection, against a bare forward and backward pass of the same network, as
  in its training, with gradients of its weights (limit: 85 % of its rate). Passes back to the context alone, which is all that
  a step needs of the network, are set beside: what is missing there is mostly the text encoder, which weighs far more in so
  small a pipeline than in Stable Diffusion.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muaudit import compute
from muaudit.attack import Bench, Prepared
from muaudit.attacks.unlearndiffatk import SimplexRows, UnlearnDiffAtk
from muaudit.diffusion.insertion import Insertion, allowed
from muaudit.diffusion.pipeline import Pipeline
from muaudit.diffusion.prompt_search import Adam, Denoising, Search
from muaudit.diffusion.schedule import Draws
from muaudit.image_task import ImagePrompt, ImageTask
from muaudit.models import Sampling
from muaudit.models.diffusion import Diffusion
from muaudit.testbed.diffusion.build import PRESETS
from muaudit.testbed.diffusion.data import World, make_prompts, make_world, place_of
from muaudit.testbed.diffusion.training import untrained

TOGETHER, RATE = 5.0, 0.85
ALONE = 3
"""Prompts that are attacked one by one; the others would take as long."""

Steps = Callable[[int], None]

ATTACK = UnlearnDiffAtk(
    tokens=3, timesteps=4, steps=25, learning_rate=0.05, weight_decay=0.0, images=5, baselines=False, forget_prompts=40
)


class Blind:
    """Evaluators that find nothing."""

    digest, errors = "blind", None

    def present(self, images: NDArray[np.float32], concepts: Sequence[str]) -> NDArray[np.bool_]:
        """Nothing in any image."""
        return np.zeros(len(images), dtype=np.bool_)


def task(world: World) -> ImageTask:
    """The testbed's forget prompts with their images."""
    forget = make_prompts(world)["forget"]
    judge: Any = Blind()
    pictures = {one.id: world.images[place_of(one.id)] for one in forget}
    return ImageTask(forget, (), (), Sampling(steps=20), judge, pictures)


def minutes(model: Diffusion, given: ImageTask, prompts: Sequence[ImagePrompt]) -> float:
    """Minutes that attacking some prompts takes."""
    given = replace(given, forget=tuple(prompts))
    bare = ATTACK.prepare(Bench(given, np.random.default_rng(0), frozenset()))
    prepared = Prepared.model_validate(bare.model_dump()).with_task(given)
    start = time.perf_counter()
    ATTACK.measure(model, prepared, np.random.default_rng(0))
    return (time.perf_counter() - start) / 60


def stepping(pipeline: Pipeline, given: ImageTask) -> tuple[Steps, Steps, Steps]:
    """Three ways to go some steps: the attack's, passes of the network alone, and passes back to the context alone."""
    encoder, units = pipeline.encoders[0], given.forget
    insertion, among = Insertion.into(encoder, [one.prompt for one in units], 3), allowed(encoder)
    latents = pipeline.latents(given.images(units))
    search = Search(
        Denoising(pipeline, insertion, latents), SimplexRows(encoder.table[among], among, len(units), 3), Adam(0.05, 0.0),
        Draws(range(len(units)), pipeline.device, pipeline.dtype), prompts=torch.arange(len(units)),
    )  # fmt: skip
    told, noise = pipeline.conditioning([one.prompt for one in units]).context, torch.randn_like(latents)
    trainable = pipeline.copied().unet.requires_grad_(True)

    def whole(steps: int) -> None:
        for _ in range(steps):
            predicted = trainable(latents, 500, encoder_hidden_states=told).sample
            (predicted - noise).square().mean().backward()
            trainable.zero_grad(set_to_none=True)

    def frozen(steps: int) -> None:
        for _ in range(steps):
            context = told.clone().requires_grad_()
            predicted = pipeline.unet(latents, 500, encoder_hidden_states=context).sample
            torch.autograd.grad((predicted - noise).square().mean(), context)

    return (lambda steps: search.block(500, steps)), whole, frozen


def rate(go: Steps, steps: int = 20) -> float:
    """Steps a second."""
    start = time.perf_counter()
    go(steps)
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Prints both ratios beside their limits."""
    world = make_world(PRESETS["sketches"].population)
    given = task(world)
    pipeline = untrained(PRESETS["sketches"].recipe, world.tokenizer, 0)
    pipeline.unet.requires_grad_(False)
    pipeline.encoders[0].module.requires_grad_(False)
    model = Diffusion(pipeline, digest="untrained")
    with compute.settled(1):
        minutes(model, given, given.forget[:1])  # what is done once only, such as choosing kernels, is not counted
        alone = ALONE / sum(minutes(model, given, [one]) for one in given.forget[:ALONE])
        together = len(given.forget) / minutes(model, given, given.forget)
        ways = stepping(pipeline, given)
        for go in ways:
            go(3)
        # Rounds take turns, so that whatever else the machine does falls on all alike; the middle one counts.
        rates = np.array([[rate(go) for go in ways] for _ in range(15)])
        share, of_frozen = (float(np.median(rates[:, 0] / rates[:, other])) for other in (1, 2))
    passed = [together / alone >= TOGETHER, share >= RATE]
    marks = ["ok" if one else "TOO SLOW" for one in passed]
    print(
        f"prompts a minute: {together:.0f} together, {alone:.1f} one by one: {together / alone:.1f} times "
        f"(limit {TOGETHER:.0f})   {marks[0]}"
    )
    print(
        f"gradient steps: {share:.0%} of the rate of the network's own passes (limit {RATE:.0%}), {of_frozen:.0%} of passes "
        f"back to the context alone   {marks[1]}"
    )
    raise SystemExit(not all(passed))


if __name__ == "__main__":
    main()
