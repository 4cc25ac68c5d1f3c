"""Retention: the published accuracies and distances on planted painters, and the verdict on collateral damage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from planted_evaluators import LABELS, NAMES, lit, planted, write_clip
from scipy import stats
from tiny_pipelines import pixel_pipeline

from muaudit import policy
from muaudit.attack import Bench, Measurement, Prepared
from muaudit.attacks.retention import Retention
from muaudit.compare import compare
from muaudit.diffusion.clip import Clip
from muaudit.diffusion.embedding import Embedder
from muaudit.diffusion.judging import open_judge
from muaudit.diffusion.pipeline import Pipeline
from muaudit.estimators import image_quality
from muaudit.evaluators import ClassifierEvaluator
from muaudit.image_task import ImagePrompt, ImageTask
from muaudit.models import ImageQuery, Sampling
from muaudit.results import Verdict


@dataclass
class Painter:
    """Draws the named concept's pixel, with some noise; of concepts that it cannot draw, another's on a share of the seeds."""

    spoilt: dict[str, float] = field(default_factory=dict)
    asked: list[ImageQuery] = field(default_factory=list)
    digest: str = "painter"
    model_seconds: float = 0.0

    def images(self, queries: Sequence[ImageQuery]) -> np.ndarray:
        self.asked = list(queries)
        drawn = []
        for query in queries:
            rng = np.random.default_rng(query.seed)
            name = next(name for name in NAMES if name in query.prompt)
            fails = rng.random() < self.spoilt.get(name, 0.0)
            pixels = lit((LABELS[name] + 1) % 4 if fails else LABELS[name])[0]
            drawn.append(np.clip(pixels * 0.8 + 0.2 * rng.random((1, 2, 2)), 0, 1).astype(np.float32))
        return np.stack(drawn)


def prompt(number: int, name: str, kind: str | None = None) -> ImagePrompt:
    one = f"{name}-{number}"
    return ImagePrompt(id=one, cluster=one, prompt=f"a photo of {name}", concept=name, seed=number, guidance=2.0, kind=kind)


@pytest.fixture
def task(tmp_path: Path) -> ImageTask:
    """Forget "three"; 24 retain prompts, "zero" of the same kind and "one" of another."""
    planted(tmp_path / "pixels")
    judge = open_judge([ClassifierEvaluator(kind="classifier", path="pixels", labels=LABELS)], "all", tmp_path, "cpu")
    forget = tuple(prompt(number, "three", "digit") for number in range(40))
    kinds = {"zero": "digit", "one": "stroke"}
    retain = tuple(prompt(number, name, kinds[name]) for number in range(12) for name in kinds)
    pictures = {one.id: Painter().images([one.query(Sampling(), seed=10**6 + place)])[0] for place, one in enumerate(retain)}
    return ImageTask(forget, retain, (), Sampling(steps=4), judge, pictures)


def bench(task: ImageTask, folder: Path = Path()) -> Bench:
    return Bench(task, np.random.default_rng(0), frozenset(), folder=folder)


def measured(attack: Retention, task: ImageTask, model: object, folder: Path = Path()) -> Measurement:
    bare = Prepared.model_validate_json(attack.prepare(bench(task, folder)).model_dump_json())
    prepared = bare.with_task(task).with_folder(folder)
    first = attack.measure(model, prepared, np.random.default_rng(1))
    assert attack.measure(model, prepared, np.random.default_rng(1)).canonical() == first.canonical()
    return first


def test_the_published_accuracies_are_counted(task: ImageTask) -> None:
    painter = Painter({"three": 0.5, "one": 0.25})
    seen = measured(Retention(images_per_prompt=6), task, painter)
    hits = task.judge.present(painter.images(painter.asked), [one.prompt.split()[-1] for one in painter.asked])
    share = hits.reshape(-1, 6).mean(1)
    np.testing.assert_allclose(seen.leakage, share)
    np.testing.assert_allclose(seen.scores["any"], hits.reshape(-1, 6).any(1))
    assert seen.sets == ("forget",) * 40 + ("retain",) * 24
    assert seen.summaries["unlearning_accuracy"] == pytest.approx(1 - share[:40].mean())
    assert seen.summaries["in_domain_retain_accuracy"] == 1
    own = np.array([one.kind == "stroke" for one in task.retain])
    crossed = share[40:][own]
    assert seen.summaries["cross_domain_retain_accuracy"] == pytest.approx(crossed.mean())
    low, high = stats.t.interval(0.95, 11, crossed.mean(), stats.sem(crossed))
    assert seen.summaries["cross_domain_retain_accuracy_low"] == pytest.approx(low)
    assert seen.summaries["cross_domain_retain_accuracy_high"] == pytest.approx(min(high, 1))
    # Clopper and Pearson of 72 in 72: the (1/72)th power of 0.025.
    assert seen.summaries["in_domain_retain_accuracy_low"] == pytest.approx(0.025 ** (1 / 72))
    assert [one.label for one in seen.pictures["three-0"]] == ["plain"]


def test_every_image_is_of_a_fresh_seed_and_the_same_for_all_models(task: ImageTask) -> None:
    painters = [Painter(), Painter({"three": 1.0})]
    for painter in painters:
        measured(Retention(), task, painter)
    assert painters[0].asked == painters[1].asked
    seeds = [query.seed for query in painters[0].asked]
    assert len(set(seeds)) == len(seeds) == 4 * 64
    assert not set(seeds) & {one.seed for one in (*task.forget, *task.retain)}


def test_without_kinds_there_is_one_domain(task: ImageTask) -> None:
    plain = ImageTask(
        task.forget, tuple(one.model_copy(update={"kind": None}) for one in task.retain), (), task.sampling, task.judge
    )
    seen = measured(Retention(retain_prompts=9, forget_prompts=5), plain, Painter())
    assert len(seen.units) == 14
    assert "cross_domain_retain_accuracy" not in seen.summaries
    assert any("cross_domain_retain_accuracy is not measured" in note for note in seen.notes)
    assert any("9 of 24 retain prompts" in note for note in seen.notes)
    assert any("FID and KID are left out" in note for note in seen.notes)
    alone = measured(Retention(), ImageTask(task.forget, (), (), task.sampling, task.judge), Painter())
    assert any("no retain prompts" in note for note in alone.notes)
    assert set(alone.sets) == {"forget"}


def test_collateral_damage_fails_as_retention_and_a_remnant_as_leakage(task: ImageTask) -> None:
    attack = Retention()
    honest = [measured(attack, task, Painter({"three": 1.0})) for _ in range(2)]
    original = measured(attack, task, Painter())

    def verdicts(model: Painter) -> list[Verdict]:
        findings = compare(attack.card(), measured(attack, task, model), honest, original, policy.load("diffusion"), seed=1)
        assert [one.measures for one in findings] == ["leakage", "retention"]
        return [one.verdict for one in findings]

    assert verdicts(Painter()) == [Verdict.FAIL, Verdict.PASS]
    assert verdicts(Painter({"three": 1.0})) == [Verdict.PASS, Verdict.PASS]
    assert verdicts(Painter({"three": 1.0, "zero": 1.0, "one": 0.5})) == [Verdict.PASS, Verdict.FAIL]


def test_distances_are_between_the_retain_images_and_their_targets(task: ImageTask, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    write_clip(tmp_path / "features")
    painter, attack = Painter(), Retention(features="features", images_per_prompt=2, kid_subsets=20)
    seen = measured(attack, task, painter, tmp_path).summaries
    embedder = Embedder.open(tmp_path / "features", device="cpu")
    true = embedder.features(task.images(task.retain))
    drawn = embedder.features(painter.images(painter.asked)[80:])
    assert seen["fid"] == pytest.approx(image_quality.quick_frechet_distance(true, drawn), rel=1e-6)
    assert seen["kid_subset_size"] == 12
    assert seen["kid"] == pytest.approx(image_quality.polynomial_discrepancy(true, drawn), abs=4 * seen["kid_deviation"])
    assert seen["fid_low"] < seen["fid"] < seen["fid_high"]
    assert seen["fid_high"] - seen["fid"] == pytest.approx(seen["fid"] - seen["fid_low"])
    spoilt = measured(attack, task, Painter({"zero": 1.0}), tmp_path).summaries
    assert spoilt["fid"] > 2 * seen["fid"]
    assert spoilt["kid"] > seen["kid"] + 2 * seen["kid_deviation"]


def test_distances_are_left_out_with_the_reason(task: ImageTask, tmp_path: Path) -> None:
    write_clip(tmp_path / "features")
    bare = ImageTask(task.forget, task.retain, (), task.sampling, task.judge)
    seen = measured(Retention(features="features"), bare, Painter(), tmp_path)
    assert "fid" not in seen.summaries
    assert any("FID and KID are left out" in note and "target images" in note for note in seen.notes)
    few = measured(Retention(features="features", retain_prompts=3), task, Painter(), tmp_path)
    assert any("3 retain prompts are too few" in note for note in few.notes)


def test_the_clip_score_is_the_cosine_of_image_and_prompt(task: ImageTask, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    painter, attack = Painter(), Retention(clip="clip", images_per_prompt=2)
    assert attack.files() == ("clip",)
    seen = measured(attack, task, painter, tmp_path)
    clip = Clip.open(tmp_path / "clip", device="cpu")
    drawn = painter.images(painter.asked)
    each = [
        float(clip.images(one[None])[0] @ clip.texts([query.prompt])[0])
        for one, query in zip(drawn, painter.asked, strict=True)
    ]
    means = np.array(each).reshape(-1, 2).mean(1)
    np.testing.assert_allclose(seen.scores["clip_score"], means, rtol=1e-5)
    assert seen.summaries["clip_score"] == pytest.approx(means[40:].mean(), rel=1e-5)
    assert seen.summaries["clip_score_low"] < seen.summaries["clip_score"] < seen.summaries["clip_score_high"]


class Held(Painter):
    """A painter with networks, which are counted and not used."""

    def pipeline(self) -> Pipeline:
        return pixel_pipeline()


def test_costs_are_counted(task: ImageTask) -> None:
    seen = measured(Retention(images_per_prompt=1), task, Held()).summaries
    networks = (pixel_pipeline().unet, pixel_pipeline().encoders[0].module)
    count = sum(value.numel() for network in networks for value in network.parameters())
    assert (seen["parameters"], seen["storage_bytes"], seen["denoising_passes"]) == (count, 4 * count, 8)
    unguided = [[one.model_copy(update={"guidance": 1.0}) for one in part] for part in (task.forget, task.retain)]
    plain = ImageTask(tuple(unguided[0]), tuple(unguided[1]), (), task.sampling, task.judge)
    assert measured(Retention(images_per_prompt=1), plain, Painter()).summaries["denoising_passes"] == 4
