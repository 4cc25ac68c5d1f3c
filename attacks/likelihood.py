"""Likelihood: does the denoising loss tell the forgotten images from images that no model saw?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from muaudit.attack import Attack, Bench, Measurement, Prepared
from muaudit.errors import NotApplicable, UsageError
from muaudit.estimators import likelihood_ratio, membership
from muaudit.estimators.likelihood_ratio import Gaussians, Hypotheses, Spread
from muaudit.estimators.roc_summary import summarise
from muaudit.image_task import ImagePrompt, ImageTask, chosen
from muaudit.models import Denoises, Model
from muaudit.results import Frozen

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Columns = dict[str, FloatArray]

KEPT = "keep.json"
"""The file in the folder of shadow pipelines that says which was trained on what."""

FEW = 64
"""With at most so many shadow models, half of them on either side of an image, the variance is pooled over the images."""

SMALLEST_LOSS = 1e-12
"""Floor of a loss before its logarithm is taken."""


class Likelihood(Attack):
    """Computes the denoising loss of forget and holdout images, and ranks each forget image among the holdout images.

    The loss is the mean squared error of the predicted noise at chosen timesteps, averaged over seeded noises that are the same
    for every model. An image's score is minus the logarithm of its loss, averaged over the timesteps, which gives each timestep
    the same weight. The leakage of a unit is the rank of its score among the holdout images' scores on the same model, in
    [0, 1], ties counted half; its mean over the forget set is the AUC. Both signs of the gap to the references give the forget
    set away.

    The loss is computed without a prompt and with the image's own. The published attacks on membership give the prompt. Erasure
    mostly works on what the network makes of the prompt, and then its prompted loss says little more than its images do, while
    the loss without a prompt tells whether it still knows what such images look like; so that decides by default, and the other
    stands beside it.

    What the rank says depends on the holdout images. Unseen images of the forgotten concept ask for membership: were these very
    images trained on? An honest retrain then lies near 0.5. Unseen images of other concepts ask for knowledge: are the
    forgotten images as likely as others of a kind that the model was taught? An honest retrain then lies below a model that
    knows the concept, since what it never learned it denoises worse. The gap to the references means the same either way.

    As ranks too stand beside it the score at every timestep and `discrepancy`, how much the prompt lowers the logarithm of the
    loss, which is more for images that were seen with it. With shadow pipelines the log likelihood ratio of the deciding losses
    decides (LiRA), from one normal distribution an image, timestep and side. AUC and true positive rates of what decides are in
    the summaries.

    Attributes:
        deciding: Whether the loss without a prompt decides (`unconditional`) or that with the image's own (`conditional`).
        timesteps: At which the loss is computed, of those the model was trained on.
        noises: Noises an image, each used at every timestep.
        holdout_images: At most so many holdout images, drawn from the plan's seed.
        shadows: Folder of pipelines, each trained on a known part of the task's images, with keep.json: `models` (their
            folders), `ids` (prompts) and `keep` (a row a model: whether it was trained on each). As with every path: relative
            to audit.toml.
        mode: With shadows: `online` needs every image in and out of some shadow pipelines, `offline` only out.
    """

    name: ClassVar = "likelihood"
    version: ClassVar = "1"
    summary: ClassVar = "Tells by the denoising loss whether forgotten images are more or less likely than unseen images."
    source: ClassVar = (
        "loss at a timestep: Matsumoto et al. 2023 (arXiv 2302.03262); LiRA on it: Carlini et al. 2023, Extracting Training "
        "Data from Diffusion Models, section 5 (arXiv 2301.13188); conditional discrepancy: Zhai et al. 2024 (arXiv 2405.14800)"
    )
    access: ClassVar = "weights"
    needs: ClassVar = (Denoises,)
    sided: ClassVar = "two"
    cost: ClassVar = "2 x timesteps x noises forward passes of the denoising network an image"

    deciding: Literal["unconditional", "conditional"] = "unconditional"
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = (100, 300, 500, 700)
    noises: Annotated[int, Field(ge=1)] = 4
    holdout_images: Annotated[int, Field(ge=2)] = 200
    shadows: str | None = None
    mode: Literal["online", "offline"] = "online"

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.timesteps or list(self.timesteps) != sorted(set(self.timesteps)):
            raise ValueError("timesteps must be ascending, each once, and one at least")
        return self

    def files(self) -> tuple[str, ...]:
        """The folder of shadow pipelines."""
        return () if self.shadows is None else (self.shadows,)

    def prepare(self, bench: Bench) -> Prepared:
        """Chooses holdout images and noises, and fits the shadow pipelines' losses where there are any."""
        task = bench.images
        if len(task.holdout) < 2:
            raise NotApplicable("likelihood needs images that no model saw: give them as task.holdout, two at least")
        holdout = chosen(task.holdout, self.holdout_images, bench.rng)
        units = [*task.forget, *holdout]
        task.images(units)
        seeds = bench.rng.integers(2**31, size=(len(units), self.noises)).tolist()
        data: dict[str, Any] = {"holdout": [one.id for one in holdout], "seeds": seeds, "notes": _drawn_by_original(units)}
        if self.shadows is not None:
            fits, told = self._fitted(bench.folder / self.shadows, task, units, seeds)
            data |= {"fits": fits, "notes": [*data["notes"], told]}
        return Prepared(data=data)

    def _fitted(
        self, folder: Path, task: ImageTask, units: Sequence[ImagePrompt], seeds: list[list[int]]
    ) -> tuple[list[dict[str, Any]], str]:
        """Both hypotheses by timestep, from the shadow pipelines' losses on the same noises."""
        from muaudit.models.diffusion import diffusion_family

        shadows = _Shadows.read(folder)
        member = shadows.member(units)
        if wrong := _one_sided(member, units, online=self.mode == "online"):
            raise UsageError(wrong)
        losses = []
        for name in shadows.models:
            model = diffusion_family(folder / name).open(folder / name)
            losses.append(self._scores(model, task, units, seeds, prompted=self.deciding == "conditional"))
        scores = np.stack(losses)
        spread: Spread = "fixed" if len(member) <= FEW else "per_example"
        fits = []
        for place in range(len(self.timesteps)):
            column = scores[:, :, place : place + 1]
            fit = {"outside": _plain(likelihood_ratio.fit_gaussians(column, ~member, spread=spread))}
            if self.mode == "online":
                fit["inside"] = _plain(likelihood_ratio.fit_gaussians(column, member, spread=spread))
            fits.append(fit)
        fewest = int(min(member.sum(0).min(), (~member).sum(0).min()) if self.mode == "online" else (~member).sum(0).min())
        return fits, (
            f"{len(member)} shadow pipelines, none of them audited here, and at least {fewest} on "
            f"{'either side of' if self.mode == 'online' else 'the outer side of'} each image; "
            + ("variance pooled over all images" if spread == "fixed" else "a variance of each image's own")
        )

    def _scores(
        self, model: Model, task: ImageTask, units: Sequence[ImagePrompt], seeds: list[list[int]], *, prompted: bool
    ) -> FloatArray:
        """Minus the logarithm of every image's loss at every timestep [n, T]."""
        from muaudit.diffusion.losses import denoising_losses

        assert isinstance(model, Denoises)  # noqa: S101 - the runner checked `needs`
        pipeline = model.pipeline()
        told = pipeline.conditioning([one.prompt for one in units]) if prompted else pipeline.nothing().repeated(len(units))
        lost = denoising_losses(pipeline, task.images(units), told, self.timesteps, seeds)
        scores: FloatArray = -np.log(np.maximum(lost, SMALLEST_LOSS))
        return scores

    def measure(self, model: Model, prepared: Prepared, rng: np.random.Generator) -> Measurement:
        """Computes all losses with and without prompt, and ranks them; `rng` is not needed, since nothing here is drawn."""
        task, data = prepared.images, prepared.data
        by_id = {one.id: one for one in task.holdout}
        units = [*task.forget, *(by_id[name] for name in data["holdout"])]
        told = self._scores(model, task, units, data["seeds"], prompted=True)
        free = self._scores(model, task, units, data["seeds"], prompted=False)
        scores = told if self.deciding == "conditional" else free
        columns = {"unconditional": free.mean(1), "conditional": told.mean(1), "discrepancy": (told - free).mean(1)}
        columns |= {f"timestep_{step}": scores[:, place] for place, step in enumerate(self.timesteps)}
        if "fits" in data:
            columns["likelihood_ratio"] = likelihood(scores, data["fits"])
        return self._measurement(task, units, columns, data["notes"])

    def _measurement(
        self, task: ImageTask, units: Sequence[ImagePrompt], columns: Columns, notes: Sequence[str]
    ) -> Measurement:
        inside, deciding = len(task.forget), "likelihood_ratio" if "likelihood_ratio" in columns else self.deciding
        ranked = {name: membership.ranks(column[:inside], column[inside:]).tolist() for name, column in columns.items()}
        sides = columns[deciding][:inside], columns[deciding][inside:]
        clusters = [one.cluster for one in units]
        summary = summarise(*sides, clusters[:inside], clusters[inside:])
        losses = {"forget": columns[self.deciding][:inside], "holdout": columns[self.deciding][inside:]}
        return Measurement(
            units=tuple(one.id for one in task.forget),
            clusters=tuple(clusters[:inside]),
            sets=("forget",) * inside,
            leakage=tuple(ranked[deciding]),
            scores={name: tuple(column) for name, column in ranked.items()},
            facets={
                "prompt": ("unconditional", "conditional"),
                "timestep": tuple(f"timestep_{step}" for step in self.timesteps),
            },
            curves={"roc": summary.roc},
            summaries=summary.numbers
            | {f"auc_{name}": float(np.mean(column)) for name, column in ranked.items()}
            | {f"geometric_mean_loss_{name}": float(np.exp(-column.mean())) for name, column in losses.items()},
            notes=(*notes, *summary.notes),
        )


def likelihood(scores: FloatArray, fits: Sequence[dict[str, Any]]) -> FloatArray:
    """LiRA's score [n], averaged over the timesteps: the log likelihood ratio, or the offline score without an inside.

    Args:
        scores: Of the model under attack [n, T].
        fits: The stored hypotheses of each timestep.
    """
    ratios = []
    for place, stored in enumerate(fits):
        fit = Hypotheses(_gaussians(stored["inside"]) if "inside" in stored else None, _gaussians(stored["outside"]))
        score = likelihood_ratio.offline_one_sided if fit.inside is None else likelihood_ratio.online
        ratios.append(score(scores[:, place : place + 1], fit))
    mean: FloatArray = np.mean(ratios, axis=0)
    return mean


class _Shadows(Frozen):
    """What keep.json says."""

    models: Annotated[tuple[str, ...], Field(min_length=2)]
    ids: tuple[str, ...]
    keep: tuple[tuple[bool, ...], ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.keep) != len(self.models) or any(len(row) != len(self.ids) for row in self.keep):
            raise ValueError("`keep` must be one row a model and one column an id")
        if any(Path(name).name != name for name in self.models):
            raise ValueError("`models` must name folders beside keep.json, not paths")
        return self

    @classmethod
    def read(cls, folder: Path) -> Self:
        try:
            return cls.model_validate(json.loads((folder / KEPT).read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(
                f"{folder / KEPT} cannot be read ({error.strerror}); the folder of shadow pipelines needs it, to say which was "
                "trained on what"
            ) from error
        except (ValueError, ValidationError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UsageError(f"{folder / KEPT}: {said}; it must hold `models`, `ids` and `keep`") from error

    def member(self, units: Sequence[ImagePrompt]) -> BoolArray:
        """Which shadow pipeline was trained on which unit [M, n]."""
        places = {name: place for place, name in enumerate(self.ids)}
        if unknown := [one.id for one in units if one.id not in places]:
            raise UsageError(
                f"{KEPT} does not say which shadow pipelines were trained on {unknown[0]!r} (and {len(unknown) - 1} more): "
                "give every forget and holdout prompt a column"
            )
        member: BoolArray = np.array(self.keep)[:, [places[one.id] for one in units]]
        return member


def _one_sided(member: BoolArray, units: Sequence[ImagePrompt], *, online: bool) -> str | None:
    """What is wrong where an image has no shadow pipeline on a side that is needed."""
    for side, word in ((~member, "without"), (member, "on")):
        lacking = [one.id for one, models in zip(units, side.sum(0), strict=True) if not models]
        if lacking and (online or word == "without"):
            return (
                f"no shadow pipeline was trained {word} {lacking[0]!r} (and {len(lacking) - 1} more), so there is nothing to "
                "compare its loss with: train shadow pipelines on random halves of the forget and holdout images"
                + ('; or set mode = "offline"' if word == "on" else "")
            )
    return None


def _drawn_by_original(units: Sequence[ImagePrompt]) -> list[str]:
    drawn = sum(one.image is None for one in units)
    if not drawn:
        return []
    return [
        f"{drawn} of {len(units)} images were drawn by the original, not trained on: their ranks say whether a model still "
        "knows the concept, and nothing about membership of images"
    ]


def _plain(fitted: Gaussians) -> dict[str, Any]:
    """Numbers that JSON holds."""
    return {"centre": fitted.centre.tolist(), "spread": fitted.spread.tolist(), "models": fitted.models.tolist()}


def _gaussians(stored: dict[str, Any]) -> Gaussians:
    return Gaussians(np.array(stored["centre"]), np.array(stored["spread"]), np.array(stored["models"]))
