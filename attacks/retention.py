"""Retention: what does a model still draw of what it was to forget, and how well does it draw the rest?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.diffusion.drawn import judged, measurement
from muaudit.errors import NotApplicable
from muaudit.estimators import image_quality
from muaudit.image_task import ImagePrompt, chosen, fresh_seeds
from muaudit.models import Denoises, GeneratesImages, Model

if TYPE_CHECKING:
    from muaudit.diffusion.pipeline import Pipeline

FloatArray = NDArray[np.float64]

_Z = float(stats.norm.ppf(0.975))


class Retention(Attack):
    """No attack at all: plain prompts on fresh seeds, of what was to be forgotten and of what was to be kept.

    The leakage of a unit is the share of its images that show its concept. On forget prompts that is what is left of the
    concept; on retain prompts it is what is left of the rest, and its loss against the references is the collateral damage
    that the finding on retention judges. The numbers that UnlearnCanvas publishes stand in the summaries, of the prompts that
    are units, and decide nothing:

    - `unlearning_accuracy` (UA): 1 - share of the forget prompts' images with their concept; `in_domain_retain_accuracy` (IRA):
      share of the retain prompts' images with theirs, of the forgotten concept's own kind, such as other styles;
      `cross_domain_retain_accuracy` (CRA): the same of other kinds, such as objects. A prompt's kind stands in the task's
      files; without kinds all retain prompts are in-domain, and there is no CRA. Each has a 95 % interval (`_low`, `_high`) by
      Student's t over prompts, since images of one prompt go together; that of Clopper and Pearson where all prompts agree.
    - With `features`: `fid` and `kid`, between the retain prompts' drawn images and their target images (of the forgotten
      concept none), on the features of a local model. They are comparable within the audit, and not with published ones, which
      are of Inception's features. FID is biased upwards by few images; KID is not, and `kid_deviation` is its standard
      deviation over subsets, as published. The intervals are 1.96 standard errors each way, by the delete-half jackknife over
      prompts; FID's bias is outside of them.
    - With `clip`: `clip_score`, the mean cosine of the retain prompts' images with their prompts (published as logit / 100); it
      is a score of every unit besides.
    - What it costs: `denoising_passes` an image, through the network that denoises, with guidance counted twice; `parameters`
      and `storage_bytes` of all networks, in the dtype that they are computed in. Wall time and peak memory are no part of a
      measurement, which is the same to the byte when it is repeated; the run record has the seconds.

    Attributes:
        images_per_prompt: Images a prompt, each of a fresh seed, the same for all models.
        forget_prompts: At most so many forget prompts are units, drawn from the plan's seed.
        retain_prompts: At most so many retain prompts, likewise.
        features: Local folder of the model whose features FID and KID compare: a Hugging Face vision model, a CLIP model, an
            image classifier, or a folder with classifier.json. Without it neither is computed.
        clip: Local folder of the CLIP model of the CLIP score; without it there is none.
        kid_subsets: Subsets of KID.
        kid_subset_size: Images in a subset of KID; at most half of the images there are.
    """

    name: ClassVar = "retention"
    version: ClassVar = "1"
    summary: ClassVar = "Draws plain prompts on fresh seeds: what is left of the concept, and what was lost of all others."
    source: ClassVar = (
        "UA, IRA and CRA: Zhang et al. 2024, UnlearnCanvas (arXiv 2402.11846), on fresh seeds instead of its five; FID: Heusel "
        "et al. 2017 (arXiv 1706.08500); KID: Binkowski et al. 2018 (arXiv 1801.01401); CLIP score: Hessel et al. 2021 (arXiv "
        "2104.08718), without its factor 2.5"
    )
    access: ClassVar = "text"
    needs: ClassVar = (GeneratesImages,)
    cost: ClassVar = "four images a prompt"
    informational: ClassVar = (
        "It draws what is plainly asked for, and methods hide a concept from plain prompts first: measured AUC .65."
    )

    images_per_prompt: Annotated[int, Field(ge=1)] = 4
    forget_prompts: Annotated[int, Field(ge=1)] = 50
    retain_prompts: Annotated[int, Field(ge=0)] = 100
    features: Annotated[str, Field(min_length=1)] | None = None
    clip: Annotated[str, Field(min_length=1)] | None = None
    kid_subsets: Annotated[int, Field(ge=1)] = 100
    kid_subset_size: Annotated[int, Field(ge=2)] = 1_000

    def files(self) -> tuple[str, ...]:
        """The folders of the feature model and of the CLIP model."""
        return tuple(path for path in (self.features, self.clip) if path is not None)

    def prepare(self, bench: Bench) -> Prepared:
        """Draws the prompts and their fresh seeds."""
        task = bench.images
        forget = chosen(task.forget, self.forget_prompts, bench.rng)
        retain = chosen(task.retain, self.retain_prompts, bench.rng)
        seeds = fresh_seeds((*forget, *retain), self.images_per_prompt, bench.rng)
        notes = [
            f"{len(units)} of {len(whole)} {name} prompts, drawn by the seed"
            for name, units, whole in (("forget", forget, task.forget), ("retain", retain, task.retain))
            if len(units) < len(whole)
        ]
        if not retain:
            notes.append("there are no retain prompts, so what was lost of other concepts is not measured: give task.retain")
        compared = self.features is not None and len(retain) > 0
        if self.features is None:
            notes.append("FID and KID are left out: they take features = the folder of a local vision model")
        elif compared:
            try:
                task.images(retain)
            except NotApplicable as reason:
                compared = False
                notes.append(f"FID and KID are left out: {reason}")
        if self.clip is None:
            notes.append("the CLIP score is left out: it takes clip = the folder of a local CLIP model")
        units = {"forget": [one.id for one in forget], "retain": [one.id for one in retain], "seeds": seeds}
        return Prepared(data=units | {"compared": compared, "draw": int(bench.rng.integers(2**31)), "notes": notes})

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Has everything drawn and judged; `rng` is not needed, since all draws were made in `prepare`."""
        assert isinstance(model, GeneratesImages)  # noqa: S101 - the runner checked `needs`
        task, data, each = prepared.images, prepared.data, self.images_per_prompt
        forget, retain = _named(task.forget, data["forget"]), _named(task.retain, data["retain"])
        units = (*forget, *retain)
        queries = [one.query(task.sampling, seed=seed) for one, row in zip(units, data["seeds"], strict=True) for seed in row]
        images = model.images(queries)
        drawn = judged(images, task.judge, units, [one.prompt for one in units], "plain")
        summaries, notes = accuracies(forget, retain, drawn.share, each)
        summaries |= _costs(model, [query.guidance for query in queries], task.sampling.steps)
        scores = {"any": drawn.any}
        device = str(model.pipeline().device) if isinstance(model, Denoises) else "auto"
        if self.clip is not None:
            from muaudit.diffusion.clip import Clip

            clip = Clip.open(prepared.folder / self.clip, device=device)
            texts = np.repeat(clip.texts([one.prompt for one in units]), each, axis=0)
            scores["clip_score"] = (clip.images(images) * texts).sum(1).reshape(-1, each).mean(1)
            if retain:
                summaries |= with_interval("clip_score", scores["clip_score"][len(forget) :])
        if data["compared"]:
            from muaudit.diffusion.embedding import Embedder

            embedder = Embedder.open(prepared.folder / str(self.features), device=device)
            true, own = (embedder.features(part) for part in (task.images(retain), images[len(forget) * each :]))
            distances, further = self._distances(true, own, data["draw"])
            summaries, notes = summaries | distances, [*notes, *further]
        return measurement(
            forget, drawn.share, judge=task.judge, drawn=(drawn,), scores=scores, retain=retain, summaries=summaries,
            notes=(*data["notes"], *notes),
        )  # fmt: skip

    def _distances(self, true: FloatArray, drawn: FloatArray, seed: int) -> tuple[dict[str, float], list[str]]:
        """FID and KID of target images, one a prompt, and drawn ones, with their intervals."""
        if len(true) < 4:
            return {}, [f"FID and KID are left out: {len(true)} retain prompts are too few"]
        fewest, prompts = min(len(true), len(drawn)), np.arange(len(true))
        groups = prompts, np.repeat(prompts, self.images_per_prompt)
        size = min(self.kid_subset_size, fewest // 2)
        kid, deviation = image_quality.kernel_distance(true, drawn, subsets=self.kid_subsets, size=size, seed=seed)
        summaries = {"fid": image_quality.frechet_distance(true, drawn), "kid": kid, "kid_deviation": deviation}
        statistics = {"fid": image_quality.quick_frechet_distance, "kid": image_quality.polynomial_discrepancy}
        for name, statistic in statistics.items():
            reach = _Z * image_quality.half_sample_error(statistic, true, drawn, groups, seed)
            summaries |= {f"{name}_low": summaries[name] - reach, f"{name}_high": summaries[name] + reach}
        notes = []
        if fewest <= true.shape[1]:
            notes.append(
                f"FID is of {fewest} images and {true.shape[1]} features: with so few its covariances are singular and its "
                "bias is large; read KID"
            )
        return summaries | {"kid_subset_size": float(size), "feature_length": float(true.shape[1])}, notes


def accuracies(
    forget: Sequence[ImagePrompt], retain: Sequence[ImagePrompt], share: FloatArray, each: int
) -> tuple[dict[str, float], list[str]]:
    """UnlearnCanvas's three accuracies, with intervals.

    Args:
        forget: The forget prompts.
        retain: The retain prompts.
        share: Share of each one's images with its concept [forget + retain].
        each: Images a prompt.

    Returns:
        The summaries, and what a reader must know of them.
    """
    summaries = with_interval("unlearning_accuracy", 1 - share[: len(forget)], each)
    kinds = {one.kind for one in forget}
    inside = np.array([one.kind is None or None in kinds or one.kind in kinds for one in retain], dtype=bool)
    notes = []
    for name, which in (("in_domain_retain_accuracy", inside), ("cross_domain_retain_accuracy", ~inside)):
        if which.any():
            summaries |= with_interval(name, share[len(forget) :][which], each)
        elif len(retain):
            kind = "the forgotten concept's own kind" if name.startswith("in_") else "another kind (`kind` in the task's files)"
            notes.append(f"{name} is not measured: no retain prompt is of {kind}")
    return summaries, notes


def with_interval(name: str, values: FloatArray, each: int | None = None) -> dict[str, float]:
    """A mean over prompts with its 95 % interval.

    Args:
        name: What it is called.
        values: One number a prompt.
        each: Images a prompt, where the numbers are shares of them.

    Returns:
        Mean, `_low` and `_high`; these are left out where one prompt tells nothing of others.
    """
    mean, count = float(values.mean()), len(values)
    summaries = {name: mean}
    if each is not None and np.ptp(values) == 0:
        hits = round(mean * count * each)
        interval = stats.binomtest(hits, count * each).proportion_ci(0.95)
        return summaries | {f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
    if count < 2:
        return summaries
    width = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    low, high = mean - width, mean + width
    return summaries | {f"{name}_low": max(low, 0.0) if each else low, f"{name}_high": min(high, 1.0) if each else high}


def _costs(model: Model, guidance: Sequence[float], steps: int) -> dict[str, float]:
    """What drawing and keeping the model takes, as far as it can be counted."""
    passes = {"denoising_passes": steps * float(np.mean([1.0 if scale == 1 else 2.0 for scale in guidance]))}
    if not isinstance(model, Denoises):
        return passes
    tensors = [value for module in _networks(model.pipeline()) for value in module.parameters()]
    return passes | {
        "parameters": float(sum(one.numel() for one in tensors)),
        "storage_bytes": float(sum(one.numel() * one.element_size() for one in tensors)),
    }


def _networks(pipeline: "Pipeline") -> list[Any]:
    """All networks of a pipeline."""
    return [
        module
        for module in (pipeline.unet, pipeline.vae, *(encoder.module for encoder in pipeline.encoders))
        if module is not None
    ]


def _named(prompts: Sequence[ImagePrompt], names: Sequence[str]) -> list[ImagePrompt]:
    by_id = {one.id: one for one in prompts}
    return [by_id[name] for name in names]
