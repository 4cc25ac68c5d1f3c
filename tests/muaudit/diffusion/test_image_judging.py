"""Evaluators say what their networks say, together as configured; what cannot be right is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from planted_evaluators import LABELS, NAMES, lit, planted, write_clip
from tiny_pipelines import word_tokenizer
from transformers import (
    CLIPImageProcessor,
    ConditionalDetrImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from muaudit.diffusion.assessing import Assessment, Evaluator, fitted
from muaudit.diffusion.clip import Clip
from muaudit.diffusion.detectors import DetectorSize, box_scores
from muaudit.diffusion.judging import Judge, measured_errors, open_judge
from muaudit.errors import MuauditError, UsageError
from muaudit.evaluators import ClassifierEvaluator, ClipEvaluator, DetectorEvaluator, EvaluatorConfig, PythonEvaluator
from muaudit.results import EvaluatorErrors


def classifier(**further: Any) -> ClassifierEvaluator:
    return ClassifierEvaluator(**{"kind": "classifier", "path": "pixels", "labels": LABELS, **further})


def judge_of(base: Path, *evaluators: EvaluatorConfig, agreement: Any = "all", **further: Any) -> Judge:
    return open_judge(evaluators, agreement, base, "cpu", **{"concepts": NAMES, **further})


def function(base: Path, body: str, name: str = "shows") -> PythonEvaluator:
    (base / f"{name}.py").write_text(f"import numpy as np\ndef {name}(images, concepts):\n    {body}\n", encoding="utf-8")
    return PythonEvaluator(kind="python", function=f"{name}.py:{name}", name=name)


def test_a_classifier_finds_the_concept_of_its_highest_class(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    judge = judge_of(tmp_path, classifier())
    assert judge.present(lit(3, 3, 0), ["three", "two", "zero"]).tolist() == [True, False, True]
    share = np.exp(4) / (np.exp(4) + 3)
    np.testing.assert_allclose(judge.scores(lit(3, 3), ["three", "one"])["classifier"], [share, (1 - share) / 3], rtol=1e-6)
    assert judge.chosen(lit(2, 0)) == ["two", "zero"]
    assert judge.errors is None
    assert judge.present(lit(), []).shape == (0,)


def test_the_rule_of_a_classifier_is_top_or_threshold(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    images = np.array([[[[0.0, 0.5], [0.9, 1.0]]]], np.float32)
    found = {top: judge_of(tmp_path, classifier(top=top)).present(images.repeat(4, 0), NAMES).tolist() for top in (1, 2, 3)}
    assert found == {1: [False, False, False, True], 2: [False, False, True, True], 3: [False, True, True, True]}
    share = np.exp(4 * images[0, 0].reshape(-1).astype(float))
    share /= share.sum()
    for threshold in (share[2] - 1e-6, share[2] + 1e-6):
        judge = judge_of(tmp_path, classifier(threshold=float(threshold)))
        assert judge.present(images, ["two"]).tolist() == [bool(share[2] >= threshold)]
    both = judge_of(tmp_path, classifier(labels=LABELS | {"late": (2, 3)}, threshold=float(share[2:].sum()) - 1e-6))
    assert both.present(images, ["late"]).tolist() == [True]


def test_images_are_made_to_fit(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    judge = judge_of(tmp_path, classifier())
    large = lit(1, 3).repeat(4, 2).repeat(4, 3).repeat(3, 1)
    assert judge.chosen(large) == ["one", "three"]
    colours = np.zeros((1, 3, 1, 1), np.float32)
    colours[0, :, 0, 0] = (0.2, 0.4, 0.6)
    np.testing.assert_allclose(fitted(colours, "L", None), 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6, rtol=1e-6)
    assert fitted(lit(1), "RGB", None).shape == (1, 3, 2, 2)


def test_an_estimator_and_a_network_agree_or_not(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    neighbours = pytest.importorskip("sklearn.neighbors").KNeighborsClassifier(1)
    skops.dump(neighbours.fit(lit(0, 1, 2, 3).reshape(4, 4), [0, 1, 3, 3]), tmp_path / "near.skops")
    planted(tmp_path / "pixels")
    near = classifier(path="near.skops")
    both = {agreement: judge_of(tmp_path, classifier(), near, agreement=agreement) for agreement in ("all", "any")}
    images, asked = lit(2, 2, 3), ["two", "three", "three"]
    assert both["all"].present(images, asked).tolist() == [False, False, True]
    assert both["any"].present(images, asked).tolist() == [True, True, True]
    assert set(both["all"].scores(images, asked)) == {"classifier 1", "classifier 2"}
    assert both["all"].chosen(images) == ["two", "two", "three"]
    assert both["all"].digest != both["any"].digest


def test_a_hugging_face_folder_names_its_own_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(NAMES)),
        label2id=LABELS,
    )  # fmt: skip
    network = ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "resnet")
    processor = ViTImageProcessor(do_resize=False)
    processor.save_pretrained(tmp_path / "resnet")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        truth = network(**processor(list(pictures), return_tensors="pt")).logits.softmax(-1).numpy()
    judge = judge_of(tmp_path, classifier(path="resnet", labels={"late": "three"}))
    images = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(judge.scores(images, NAMES)["classifier"], truth.diagonal(), rtol=1e-4)
    np.testing.assert_array_equal(judge.present(images, NAMES), truth.argmax(1) == np.arange(4))
    np.testing.assert_allclose(judge.scores(images, ["late"] * 4)["classifier"], truth[:, 3], rtol=1e-4)
    with pytest.raises(UsageError, match=r"concept 'tree' is unknown.*did you mean 'three'\?"):
        judge_of(tmp_path, classifier(path="resnet", labels={}), concepts=("tree",))
    with pytest.raises(UsageError, match="given as its class 4, and it has 4"):
        judge_of(tmp_path, classifier(path="resnet", labels={"three": 4}))


def random_images(count: int, side: int, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(3).integers(0, 256, (count, channels, side, side))
    return pixels.astype(np.float32) / np.float32(255)


def prepared(processor: Any, images: np.ndarray) -> dict[str, Any]:
    pictures = [np.rint(one.transpose(1, 2, 0) * 255).astype(np.uint8) for one in images]
    return dict(processor(pictures, return_tensors="pt"))


def test_zero_shot_is_clips_own_softmax(tmp_path: Path) -> None:
    network, images = write_clip(tmp_path / "clip"), random_images(5, 16)
    said = [f"a photo of {name}" for name in NAMES] + ["a picture"]
    tokens = word_tokenizer()(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = prepared(CLIPImageProcessor.from_pretrained(tmp_path / "clip"), images)
        truth = network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **pixels)
    shares = truth.logits_per_image.softmax(-1).numpy()
    config = ClipEvaluator(kind="clip", path="clip", template="a photo of {}", others=("a picture",), batch_size=2)
    judge = judge_of(tmp_path, config)
    for number, name in enumerate(NAMES):
        np.testing.assert_allclose(judge.scores(images, [name] * 5)["clip"], shares[:, number], rtol=1e-4)
        np.testing.assert_array_equal(judge.present(images, [name] * 5), shares.argmax(1) == number)
    assert judge.chosen(images) == [[*NAMES, "a picture"][place] for place in shares.argmax(1)]
    clip = Clip.open(tmp_path / "clip", device="cpu", batch_size=2)
    np.testing.assert_allclose(clip.images(images) @ clip.texts(said).T, truth.logits_per_image / clip.scale, atol=1e-6)
    grey = random_images(2, 16, channels=1)
    np.testing.assert_array_equal(clip.images(grey), clip.images(grey.repeat(3, 1)))


def test_zero_shot_needs_texts_that_differ(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    with pytest.raises(UsageError, match="chooses between texts"):
        judge_of(tmp_path, ClipEvaluator(kind="clip", path="clip"), concepts=("three",))
    with pytest.raises(UsageError, match="reads 'a photo of a tench' and 'a photo of a church' alike"):
        judge_of(tmp_path, ClipEvaluator(kind="clip", path="clip"), concepts=("tench", "church"))
    given = ClipEvaluator(kind="clip", path="clip", texts={"tench": "three red", "church": "small blue"})
    judge = judge_of(tmp_path, given, concepts=("tench", "church"))
    with pytest.raises(UsageError, match="concept 'truck' is unknown"):
        judge.present(random_images(1, 16), ["truck"])


def write_yolos(folder: Path) -> YolosForObjectDetection:
    torch.manual_seed(2)
    config = YolosConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=[32, 32], patch_size=8,
        num_detection_tokens=6, id2label=dict(enumerate(NAMES)), label2id=LABELS, initializer_range=0.6,
    )  # fmt: skip
    network = YolosForObjectDetection(config).eval()
    network.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return network


def test_a_detector_finds_what_its_own_processor_finds(tmp_path: Path) -> None:
    network, images = write_yolos(tmp_path / "yolos"), random_images(12, 32)
    processor = YolosImageProcessor.from_pretrained(tmp_path / "yolos")
    with torch.no_grad():
        outputs = network(pixel_values=prepared(processor, images)["pixel_values"])
    boxes = processor.post_process_object_detection(outputs, threshold=0.3)
    judge = judge_of(tmp_path, DetectorEvaluator(kind="detector", path="yolos", threshold=0.3, batch_size=5))
    seen = 0
    for number, name in enumerate(NAMES):
        best = [max([float(s) for s, k in zip(b["scores"], b["labels"], strict=True) if k == number] or [0]) for b in boxes]
        assert judge.present(images, [name] * 12).tolist() == [score > 0 for score in best]
        scores = judge.scores(images, [name] * 12)["detector"]
        np.testing.assert_allclose(scores[np.array(best) > 0], [score for score in best if score > 0], rtol=1e-4)
        seen += sum(score > 0 for score in best)
    assert 0 < seen < 48, "the planted detector says the same of everything"
    either = DetectorEvaluator(kind="detector", path="yolos", threshold=0.3, labels={"late": ("two", 3)})
    both = [judge.present(images, [name] * 12) for name in ("two", "three")]
    np.testing.assert_array_equal(judge_of(tmp_path, either).present(images, ["late"] * 12), both[0] | both[1])


def test_boxes_without_a_no_object_column_have_sigmoids() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 3)))
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.rand(2, 5, 4))
    found = ConditionalDetrImageProcessor().post_process_object_detection(outputs, threshold=0.0, top_k=15)
    for row, one in enumerate(found):
        for label in range(3):
            best = max(float(s) for s, k in zip(one["scores"], one["labels"], strict=True) if k == label)
            assert float(box_scores(logits, 3)[row, :, label].max()) == pytest.approx(best)


def test_a_detectors_images_are_scaled_as_its_processor_does() -> None:
    size = DetectorSize(shortest_edge=32, longest_edge=64, multiple=16)
    processor = YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_pad=False)
    for height, width in ((16, 16), (50, 61), (20, 71), (90, 31)):
        made = processor(np.zeros((height, width, 3), np.uint8), return_tensors="pt")["pixel_values"]
        assert size.of(height, width) == tuple(made.shape[-2:])


def test_a_function_of_the_vendors_says_what_it_likes(tmp_path: Path) -> None:
    share = function(tmp_path, "return images[:, 0, 1, 1] * 0.6", "share")
    flag = function(tmp_path, "images[:] = 0; return np.array([c == 'three' for c in concepts])", "flag")
    judge = judge_of(tmp_path, share, flag)
    assert judge.present(lit(3, 3, 0), ["three", "two", "three"]).tolist() == [True, False, False]
    np.testing.assert_allclose(judge.scores(lit(3, 0), ["a", "b"])["share"], [0.6, 0], rtol=1e-6)
    assert judge.chosen(lit(3)) is None
    draws = function(tmp_path, "return np.random.random(len(images))", "draws")
    lucky = judge_of(tmp_path, draws)
    assert lucky.scores(lit(1, 2), ["a", "b"])["draws"].tolist() == lucky.scores(lit(1, 2), ["a", "b"])["draws"].tolist()
    (tmp_path / "flag.py").write_text("def flag(images, concepts): return [True] * len(images)\n", encoding="utf-8")
    assert judge_of(tmp_path, share, flag).digest != judge.digest


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return images.mean()", r"returns float32 of shape \[\] for 2 images"),
        ("return ['yes'] * len(images)", "must return one boolean"),
        ("return images[:, 0, 0, 0] * 0 + 3", r"outside \[0, 1\], or NaN"),
        ("return images[:, 0, 0, 0] * np.nan", r"outside \[0, 1\], or NaN"),
        ("return 1 / 0", "raised ZeroDivisionError"),
    ],
)
def test_what_a_function_may_not_return(tmp_path: Path, body: str, expected: str) -> None:
    judge = judge_of(tmp_path, function(tmp_path, body))
    with pytest.raises(MuauditError, match=expected):
        judge.present(lit(1, 2), ["one", "two"])


class Fixed(Evaluator):
    """Finds concepts by a table of the lit pixel."""

    def __init__(self, found: dict[str, set[int]]) -> None:
        self.name, self.digest, self._found = "fixed", "fixed", found

    def assess(self, images: np.ndarray, concepts: Sequence[str]) -> Assessment:
        places = images.reshape(len(images), -1).argmax(1).tolist()
        present = np.array([place in self._found[one] for place, one in zip(places, concepts, strict=True)])
        return Assessment(present, present.astype(np.float64))


def test_error_rates_are_counted_by_hand() -> None:
    # "two" is found on pixels 2 and 0, "three" on 3; pixel 1 shows "one", which is never found.
    judge = Judge([Fixed({"one": set(), "two": {2, 0}, "three": {3}})])
    images, shown = lit(2, 2, 3, 1, 0), ["two", "two", "three", "one", "scribble"]
    errors = measured_errors(judge, images, shown, forgotten=["two"], concepts=["one", "three"])
    # Asked for their own: two, two, three, one; the scribble is no concept of the task. Asked for "two": three, one, scribble.
    assert errors == EvaluatorErrors(present=4, found=3, absent=3, mistaken=1)
    several = measured_errors(judge, images, shown, forgotten=["three", "two"], concepts=["one"])
    assert several == EvaluatorErrors(present=4, found=3, absent=7, mistaken=1)


def test_evaluators_that_cannot_tell_are_refused() -> None:
    guess = Judge([Fixed({"two": {0, 1, 2, 3}, "three": {0, 1, 2, 3}})])
    with pytest.raises(UsageError, match="in 2 of 2 known images that show it and in 1 of 1 that do not: they cannot tell"):
        measured_errors(guess, lit(2, 3), ["two", "three"], forgotten=["two"], concepts=["three"])
    good = Judge([Fixed({"two": {2}})])
    with pytest.raises(UsageError, match="none of the 1 known images show anything but 'two'"):
        measured_errors(good, lit(2), ["two"], forgotten=["two"])
    with pytest.raises(UsageError, match="none of the 1 known images show a concept of the task"):
        measured_errors(good, lit(1), ["scribble"], forgotten=["two"])


def test_known_images_become_part_of_the_judge(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    bare = judge_of(tmp_path, classifier())
    judge = judge_of(tmp_path, classifier(), known=(lit(3, 3, 1, 0), ["three", "one", "one", "zero"]), forgotten=["three"])
    assert judge.errors == EvaluatorErrors(present=4, found=3, absent=3, mistaken=1)
    assert judge.digest != bare.digest


def test_the_digest_tells_evaluators_apart_and_not_where_they_lie(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    shutil.copytree(tmp_path / "pixels", tmp_path / "elsewhere")
    planted(tmp_path / "sharper", sharpness=5.0)
    digest = judge_of(tmp_path, classifier()).digest
    assert judge_of(tmp_path, classifier(path="elsewhere", batch_size=3)).digest == digest
    assert judge_of(tmp_path, classifier(path="sharper")).digest != digest
    assert judge_of(tmp_path, classifier(top=2)).digest != digest


def test_an_unknown_concept_is_named_with_the_mend(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    with pytest.raises(UsageError, match="evaluator classifier: concept 'four' is unknown to it, whose classes are numbers"):
        judge_of(tmp_path, classifier(), concepts=("four",))
    judge = judge_of(tmp_path, classifier(labels={"four": 4}), concepts=())
    with pytest.raises(UsageError, match="concept 'four' is its class 4, and it has 4"):
        judge.present(lit(1), ["four"])
    with pytest.raises(UsageError, match="two evaluators are called 'same 2 1'"):
        judge_of(tmp_path, classifier(name="same 2"), classifier(name="same 2", top=2), classifier(name="same 2 1"))
    with pytest.raises(UsageError, match="no evaluator says"):
        judge_of(tmp_path)


def test_images_that_are_none_are_refused(tmp_path: Path) -> None:
    planted(tmp_path / "pixels")
    judge = judge_of(tmp_path, classifier())
    broken = lit(1, 2)
    broken[1, 0, 0, 0] = np.nan
    for images, expected in (
        (broken, "image 1 has NaN"),
        (lit(1) * 255, r"pixels from 0 to 255, where \[0, 1\] belongs"),
        (lit(1, channels=2), "1 or 3"),
        (lit(1, 2, 3), "3 images for 2 concepts"),
    ):
        with pytest.raises(MuauditError, match=expected):
            judge.present(images, ["one", "two"][: max(1, min(2, len(images)))])


def test_folders_that_are_unsafe_or_not_what_is_asked_for_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    write_yolos(tmp_path / "yolos")
    detector, clip = DetectorEvaluator(kind="detector", path="yolos"), ClipEvaluator(kind="clip", path="clip")

    def refused(evaluator: EvaluatorConfig, expected: str) -> None:
        with pytest.raises(MuauditError, match=expected):
            judge_of(tmp_path, evaluator)

    refused(clip.model_copy(update={"path": "yolos"}), "a model of type 'yolos', where a CLIP model")
    (tmp_path / "clip" / "preprocessor_config.json").rename(tmp_path / "kept.json")
    refused(clip, "no preprocessor_config.json")
    nested = {"image_processor": json.loads((tmp_path / "kept.json").read_text()), "processor_class": "CLIPProcessor"}
    (tmp_path / "clip" / "processor_config.json").write_text(json.dumps(nested))
    assert judge_of(tmp_path, clip).present(random_images(1, 16), ["one"]).shape == (1,)
    (tmp_path / "clip" / "model.safetensors").rename(tmp_path / "clip" / "pytorch_model.bin")
    refused(clip, "pickle can run code")
    how = tmp_path / "yolos" / "preprocessor_config.json"
    how.write_text(json.dumps(json.loads(how.read_text()) | {"pad_size": {"height": 64, "width": 64}}))
    refused(detector, "pad_size")
    how.write_text(json.dumps({"auto_map": {"AutoImageProcessor": "evil.Processor"}}))
    refused(detector, "auto_map asks to run code")
    refused(classifier(path="nowhere"), "no such file or folder")
