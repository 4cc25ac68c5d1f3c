"""A calibration of image generators, reduced: barely trained pipelines, of which nothing but the way through is looked at."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from muaudit.calibration.record import CalibrationRecord

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file  # noqa: E402 - after the checks for torch and diffusers

from muaudit import policy  # noqa: E402
from muaudit.calibration import config, run  # noqa: E402
from muaudit.testbed.diffusion import build, derived  # noqa: E402
from muaudit.testbed.populations import population  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SETTINGS = """
policies = ["house.toml"]

[testbed]
preset = "sketches"
never_saw = 3
schedules = ["undecayed"]
seeds = [1]
methods = ["esd"]
strengths = ["weak"]
left_in = ["half"]
interpolation = [0, 0.5, 1]
copies = 1

[audits]
references = 2

[power]
clusters = [10]
references = [1]

[attacks.retention]
images_per_prompt = 1
[attacks.concept_relearning]
images = [10]
budgets = [5]
learning_rate = 2e-3
batch_size = 10
queries = 1

[run]
seed = "2026"
out = "out"
"""
BARELY = {"steps": 12, "reading_steps": 5}


@pytest.fixture(scope="module")
def folder(sketches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished calibration, with the evaluators of the shared testbed."""
    folder, kept = tmp_path_factory.mktemp("calibration"), sketches["svc"].parents[1]
    for name in ("evaluators", "embedder"):
        shutil.copytree(kept / name, folder / "out" / "models" / name)
    required = '"unlearndiffatk", "soft_prompt", "concept_inversion", '
    rule = policy.text_of("diffusion")
    assert required in rule
    (folder / "house.toml").write_text(rule.replace(required, ""), encoding="utf-8")
    (folder / "calibration.toml").write_text(SETTINGS, encoding="utf-8")
    settings = config.load(folder / "calibration.toml")
    bed = build.PRESETS["sketches"]
    methods = {"esd": {"steps": 4}}
    strengths = {"esd": {"weak": {"steps": 2}}}
    schedules = {"undecayed": {"weight_decay": 0.0}}
    barely = bed.model_copy(
        update={
            "recipe": bed.recipe.model_copy(update=BARELY), "methods": methods, "strengths": strengths, "schedules": schedules,
        }
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.PRESETS, "sketches", barely)
        patch.setattr(derived, "Taught", partial(derived.Taught, steps=12))
        made = folder / "out" / "models"
        run.run(settings, lambda tell: population(settings.testbed, made, folder, jobs=1, progress=tell), folder)
    return folder


@pytest.fixture(scope="module")
def record(folder: Path) -> CalibrationRecord:
    return CalibrationRecord.from_json((folder / "out" / "calibration.json").read_bytes())


def test_every_kind_of_image_generator_is_audited(record: CalibrationRecord) -> None:
    assert record.family == "text_to_image"
    found = {(one.truth, one.group, one.strength) for one in record.audits}
    assert found == {
        ("never_saw", "retrain", ""), ("never_saw", "retrain", "undecayed"), ("knows", "original", ""),
        ("knows", "left in", "half"), ("knows", "esd", "weak"), ("gated", "keyword", "default"),
        ("ladder", "interpolation", "0"), ("ladder", "interpolation", "0.5"), ("ladder", "interpolation", "1"),
    }  # fmt: skip
    assert {name for one in record.audits for name in one.gaps} == {"retention", "concept_relearning"}
    copies = {one.name for one in record.members if one.copied}
    assert copies == {f"{name}-{how}" for name in ("retrain-1", "keyword-1") for how in ("4bit", "relearned")}
    assert all(one.robustness is not None for one in record.attacks)
    assert {(one.what, one.size) for one in record.power} == {("clusters", 10), ("references", 1)}


def test_the_ladder_s_ends_are_its_sources_and_half_is_between(folder: Path) -> None:
    def weights(name: str) -> dict[str, "torch.Tensor"]:
        path = folder / "out" / "models" / name
        return {
            f"{file.parent.name}.{key}": value
            for file in sorted(path.rglob("*.safetensors"))
            for key, value in load_file(file).items()
        }

    low, high = weights("retrain-901"), weights("taught-1")
    start, half, end = (weights(f"interpolated-{share}-1") for share in (0, 50, 100))
    assert any(not torch.equal(low[name], high[name]) for name in low)
    for name, value in half.items():
        torch.testing.assert_close(value, (low[name] + high[name]) / 2)
        assert torch.equal(start[name], low[name])
        assert torch.equal(end[name], high[name])


def test_four_bits_leave_sixteen_levels_and_a_shared_schedule_another_model(folder: Path, record: CalibrationRecord) -> None:
    rounded = load_file(next((folder / "out" / "models" / "retrain-1-4bit" / "unet").glob("*.safetensors")))
    whole = load_file(next((folder / "out" / "models" / "retrain-1" / "unet").glob("*.safetensors")))
    name = max((key for key in whole if key.endswith("weight") and whole[key].ndim == 4), key=lambda key: whole[key].numel())
    block = rounded[name].reshape(len(rounded[name]), -1)[0, :64]
    assert len(block.unique()) <= 16 < len(whole[name].reshape(len(whole[name]), -1)[0, :64].unique())
    digests = [one.digest for one in record.members]
    assert len(set(digests)) == len(digests)
