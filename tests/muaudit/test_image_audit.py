"""Audits of image generators as a user runs them: from prompt files and pipeline folders to a signed page with pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from classifier_audits import findings, muaudit, toml
from tiny_pipelines import write_pixel, write_xl

from muaudit import runner
from muaudit.results import AuditReport, Verdict

EVALUATOR = """
def bright(images, concepts):
    return [image.mean() > 0.5 for image in images]
"""
SOFT = {"vectors": 2, "steps": 2, "batch": 1, "seeds": 2}


def models(folder: Path) -> Path:
    """Untrained pipelines; what they draw does not matter here."""
    for seed, name in enumerate(("target", "original", "reference-1", "reference-2", "reference-3")):
        write_pixel(folder / name, seed)
    (folder / "judge.py").write_text(EVALUATOR, encoding="utf-8")
    words = ("one", "two", "three", "four", "five")
    for role, concept in (("forget", "three"), ("retain", "two")):
        rows = [
            {"id": f"{role}-{word}", "prompt": f"a {word} {concept}", "concept": concept, "seed": place}
            for place, word in enumerate(words)
        ]
        (folder / f"{role}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "here"))


def write(folder: Path, **changed: Any) -> None:
    def model(name: str) -> dict[str, object]:
        return {"kind": "diffusion", "path": name}

    task = {
        "kind": "text_to_image", "forget": "forget.jsonl", "retain": "retain.jsonl", "steps": 3, "guidance": 2.0,
        "image_mode": "L", "evaluators": [{"kind": "python", "function": "judge.py:bright"}],
    }  # fmt: skip
    values: dict[str, Any] = {
        "task": task | changed.pop("task", {}),
        "target": model("target"),
        "original": model("original"),
        "references": [model(f"reference-{number}") for number in (1, 2, 3)],
        "policy": {"name": "diffusion", "partial": True},
        "attacks": {"seed_search": {"seeds": 3}},
        "run": {"seed": "2026", "device": "cpu"},
    }
    values |= changed
    (folder / "audit.toml").write_text(
        toml({key: value for key, value in values.items() if value is not None}), encoding="utf-8"
    )


def audited(folder: Path) -> AuditReport:
    """The audit in this process, which has its libraries already; the command line is tested by the first test and the last."""
    return runner.audit(folder / "audit.toml")


def test_from_prompts_to_a_signed_page_with_pictures(folder: Path) -> None:
    assert muaudit("keygen", "auditor", cwd=folder).code == 0
    write(folder, signing={"key": "auditor.key"}, attacks={"seed_search": {"seeds": 3}, "soft_prompt": SOFT})
    seen = muaudit("scan", "audit.toml", cwd=folder)
    assert seen.code in (0, 1, 3), seen.line
    report = AuditReport.from_json((folder / "audit" / "report.json").read_bytes())
    by_name = {finding.attack: finding for finding in report.findings}
    assert {finding.verdict for finding in by_name.values()} <= {Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE}
    rows = by_name["soft_prompt"].pictures
    assert all(set(row.models) == {"target", "reference 1", "original"} for row in rows)
    assert all([one.label for one in row.models["target"]] == ["plain", "attacked"] for row in rows)
    page = (folder / "audit" / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == sum(
        len(drawn) for finding in report.findings for row in finding.pictures for drawn in row.models.values()
    )
    (code,) = report.code
    assert (code.role, code.function) == ("evaluator python", "judge.py:bright")
    assert muaudit("verify", "audit/audit.intoto.json", "--key", "auditor.pub", "--model", "target", cwd=folder).code == 0


def test_a_second_scan_computes_nothing_and_workers_change_nothing(folder: Path) -> None:
    write(folder, attacks={"seed_search": {"seeds": 3}, "soft_prompt": SOFT})
    first = audited(folder)
    again = audited(folder)
    assert (first.run.reused, again.run.computed) == (0, 0)
    assert findings(again) == findings(first)
    shutil.rmtree(folder / "audit")
    write(
        folder, attacks={"seed_search": {"seeds": 3}, "soft_prompt": SOFT}, run={"seed": "2026", "device": "cpu", "workers": 2}
    )
    spread = audited(folder)
    assert spread.run.computed == first.run.computed
    assert findings(spread) == findings(first)


def test_the_original_draws_the_target_images_once(folder: Path) -> None:
    write(folder, attacks={"soft_prompt": SOFT})
    audited(folder)
    (kept,) = (folder / "audit" / "store" / "drawn").iterdir()
    before = kept.stat().st_mtime_ns
    audited(folder)
    assert kept.stat().st_mtime_ns == before


def test_without_original_and_images_white_box_attacks_are_skipped(folder: Path) -> None:
    write(folder, original=None, attacks={"seed_search": {"seeds": 3}, "soft_prompt": SOFT})
    report = audited(folder)
    skipped = {finding.attack: finding for finding in report.findings}["soft_prompt"]
    assert skipped.verdict is Verdict.SKIPPED
    assert "has none: name image files" in skipped.reason


def test_two_text_encoders_leave_attacks_on_tokens_out(folder: Path) -> None:
    for name in ("target", "original", "reference-1", "reference-2", "reference-3"):
        shutil.rmtree(folder / name)
        write_xl(folder / name)
    write(folder, task={"image_mode": "RGB"}, attacks={"seed_search": {"seeds": 2}, "soft_prompt": SOFT})
    report = audited(folder)
    by_name = {finding.attack: finding for finding in report.findings}
    assert by_name["soft_prompt"].verdict is Verdict.SKIPPED
    assert "ReadsPrompts" in by_name["soft_prompt"].reason
    assert by_name["seed_search"].verdict is not Verdict.SKIPPED


@pytest.mark.parametrize("how", ["blurred", "left_out"])
def test_a_policy_can_hide_pictures(folder: Path, how: str) -> None:
    shipped = Path(__file__).parents[2] / "muaudit" / "policies" / "diffusion.toml"
    house = shipped.read_text(encoding="utf-8").replace('pictures = "shown"', f'pictures = "{how}"')
    write(folder)
    shown = audited(folder)
    (folder / "house.toml").write_text(house, encoding="utf-8")
    write(folder, policy={"name": "house.toml", "partial": True})
    hidden = audited(folder)
    before, after = shown.findings[0].pictures, hidden.findings[0].pictures
    assert hidden.run.computed == 0
    assert len(before) == 5
    if how == "left_out":
        assert after == ()
    else:
        assert [row.unit for row in after] == [row.unit for row in before]
        seen = {one.png for row in before for drawn in row.models.values() for one in drawn}
        assert not seen & {one.png for row in after for drawn in row.models.values() for one in drawn}


def _unknown_concept(folder: Path) -> None:
    rows = [{"id": f"x{place}", "prompt": "a three", "concept": "unicorn"} for place in range(3)]
    (folder / "forget.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def _pickled_weights(folder: Path) -> None:
    (folder / "target" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "target" / "unet" / "diffusion_pytorch_model.bin"
    )


def _missing_part(folder: Path) -> None:
    shutil.rmtree(folder / "reference-2" / "text_encoder")


def _broken_image(folder: Path) -> None:
    (folder / "x.png").write_bytes(b"\x89PNG no")
    row = {"id": "x", "prompt": "a three", "concept": "three", "image": "x.png"}
    (folder / "forget.jsonl").write_text(json.dumps(row), encoding="utf-8")


def _nothing_to_forget(folder: Path) -> None:
    (folder / "forget.jsonl").write_text("\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_pickled_weights, "pickle"),
        (_missing_part, "text_encoder"),
        (_broken_image, "not a readable PNG or JPEG"),
        (_nothing_to_forget, "the forget set is empty"),
    ],
)
def test_bad_input_is_one_line(folder: Path, harm: Callable[[Path], None], told: str) -> None:
    harm(folder)
    write(folder)
    seen = muaudit("scan", "audit.toml", cwd=folder)
    assert seen.code == 2
    assert told in seen.line
    assert "Traceback" not in seen.err


def test_a_changed_evaluator_stops_a_frozen_plan(folder: Path) -> None:
    write(folder)
    assert muaudit("plan", "audit.toml", cwd=folder).code == 0
    (folder / "judge.py").write_text(EVALUATOR.replace("0.5", "0.4"), encoding="utf-8")
    seen = muaudit("scan", "audit/plan.json", cwd=folder)
    assert seen.code == 2
    assert "plan" in seen.line


def test_language_models_draw_nothing(folder: Path) -> None:
    write(folder, target={"kind": "causal_lm", "path": "target"})
    seen = muaudit("scan", "audit.toml", cwd=folder)
    assert seen.code == 2
    assert "is for models of kind diffusion" in seen.line


def test_init_writes_a_configuration_that_plans(folder: Path) -> None:
    arguments = [
        "init", "--kind", "diffusion", "--target", "target", "--forget", "forget.jsonl", "--retain", "retain.jsonl",
        "--reference", "reference-1", "--evaluator", "judge.py",
    ]  # fmt: skip
    assert muaudit(*arguments, cwd=folder).code == 0
    text = (folder / "audit.toml").read_text(encoding="utf-8")
    (folder / "audit.toml").write_text(
        text.replace("# partial = true ", "partial = true   ")
        .replace('kind = "classifier" ', 'kind = "python" ')
        .replace('path = "judge.py"', 'function = "judge.py:bright"'),
        encoding="utf-8",
    )
    seen = muaudit("plan", "audit.toml", cwd=folder)
    assert seen.code == 0, seen.line
