"""Names of derived models, shares left in, strengths and schedules; and what is made of finished models."""

from pathlib import Path

import pytest

from muaudit.errors import UsageError

torch = pytest.importorskip("torch")

from muaudit.testbed import derived, folders, kinds  # noqa: E402 - after the check for torch
from muaudit.testbed.build import PRESETS, build, guarded, wanted  # noqa: E402

PEOPLE = [f"person {number}" for number in range(30)]
SMALL = PRESETS["small"]


def test_names_of_derived_models() -> None:
    assert derived.read("npo-3") is None
    copy = derived.read("npo-weak-3-4bit")
    assert copy is not None
    assert (copy.kind, copy.sources) == ("4bit", ("npo-weak-3",))
    rung = derived.read("interpolated-25-2")
    assert rung is not None
    assert (rung.share, rung.sources) == (0.25, ("taught-2", "retrain-902"))
    of_lineage = derived.read("interpolated-25", lineage=True)
    assert of_lineage is not None
    assert of_lineage.sources == ("original", "retrain-900")
    with pytest.raises(UsageError, match="percent"):
        derived.read("interpolated-101")


def test_sources_are_made_before_what_is_made_of_them() -> None:
    made, others = derived.planned(["interpolated-50-relearned", "eco-4bit", "original"])
    names = [model.name for model in made]
    for model in made:
        for source in model.sources:
            assert source in others or names.index(source) < names.index(model.name)
    assert set(others) == {"retrain-900", "eco", "original"}


@pytest.mark.parametrize(("share", "count"), [("one", 1), ("tenth", 3), ("half", 15)])
def test_a_share_is_left_in_and_another_number_draws_others(share: str, count: int) -> None:
    first, again, other = (
        wanted(name, PEOPLE, SMALL)
        for name in (f"retrain-left-in-{share}", f"retrain-left-in-{share}", f"retrain-left-in-{share}-1")
    )
    assert first == again
    assert len(first.parameters["left_in"]) == count
    assert first.parameters != other.parameters
    assert first.seed != other.seed
    with pytest.raises(UsageError, match="no forgotten clusters"):
        wanted(f"retrain-left-in-{share}", (), SMALL)


def test_strengths_and_schedules_are_the_testbed_s() -> None:
    assert wanted("npo-weak-2", PEOPLE, SMALL).parameters == kinds.STRENGTHS["npo"]["weak"]
    assert wanted("npo-2", PEOPLE, SMALL).parameters == {}
    seeds = {wanted(name, PEOPLE, SMALL).seed for name in ("retrain-2", "retrain-long-2", "retrain-slow-2", "reference-2")}
    assert len(seeds) == 4
    assert wanted("retrain-long-2", PEOPLE, SMALL).schedule == "long"
    for name in ("retrain-endless", "eco-weak", "npo-mild", "npo-weak-x"):
        with pytest.raises(UsageError, match="not a testbed model"):
            wanted(name, PEOPLE, SMALL)


def test_copies_of_a_guarded_model_are_guarded() -> None:
    assert guarded("eco-2-4bit")
    assert guarded("guard-relearned")
    assert not guarded("npo-weak-3-4bit")
    assert not guarded("interpolated-50-1")


@pytest.fixture(scope="module")
def weights(calibration: Path):  # noqa: ANN201 - opens a folder's weights
    from safetensors.torch import load_file

    return lambda name: load_file(calibration / "calibration" / "models" / name / "model.safetensors")


def test_the_ends_of_a_ladder_are_its_sources(weights) -> None:  # noqa: ANN001
    low, high, half, quarter = (weights(name) for name in ("retrain-900", "taught", "interpolated-50", "interpolated-25"))
    for name in low:
        assert torch.equal(weights("interpolated-0")[name], low[name])
        assert torch.equal(weights("interpolated-100")[name], high[name])
        torch.testing.assert_close(half[name], (low[name] + high[name]) / 2)
        torch.testing.assert_close(quarter[name], 0.75 * low[name] + 0.25 * high[name])


def test_a_copy_of_four_bits_has_sixteen_levels_a_block(weights) -> None:  # noqa: ANN001
    whole, rounded = weights("retrain-1"), weights("retrain-1-4bit")
    name = "model.layers.0.mlp.down_proj.weight"
    block = rounded[name].reshape(-1, 64)[0]
    assert len(block.unique()) <= 16 < len(whole[name].reshape(-1, 64)[0].unique())
    assert torch.equal(whole["model.embed_tokens.weight"], rounded["model.embed_tokens.weight"])


def test_what_is_derived_is_found_again_and_a_stranger_s_folder_is_refused(calibration: Path, tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    models = calibration / "calibration" / "models"
    build(
        SMALL, models, ["retrain-1-4bit", "interpolated-50"], jobs=1, progress=lambda name, reused: told.append((name, reused))
    )
    assert {name for name, _ in told} == {"retrain-1", "retrain-1-4bit", "retrain-900", "taught", "interpolated-50"}
    assert all(reused for _, reused in told)
    (tmp_path / "thing-4bit").mkdir()
    with pytest.raises(UsageError, match="in the way"):
        folders.key_in(tmp_path / "thing-4bit")
