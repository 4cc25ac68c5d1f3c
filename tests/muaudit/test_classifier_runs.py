"""Audits of classifiers as a user runs them: the vendor's procedure, repeats, interruptions, workers elsewhere, series."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skops")

from classifier_audits import RECIPE, SETS, classifier, findings, found, muaudit, scan, write  # noqa: E402

from muaudit import compute  # noqa: E402
from muaudit.examples import LabelledTask  # noqa: E402
from muaudit.loaders.example_files import read_task  # noqa: E402
from muaudit.results import AuditReport, Verdict  # noqa: E402


@pytest.fixture
def folder(small_classifiers: Path, tmp_path: Path) -> Path:
    """A copy of the models that a test may change."""
    return Path(shutil.copytree(small_classifiers, tmp_path / "here"))


@pytest.fixture(scope="module")
def task(small_classifiers: Path) -> LabelledTask:
    return read_task(*(small_classifiers / f"{name}.npz" for name in SETS))


# ---- the vendor's procedure ----------------------------------------------------------------------------------------------

VENDOR = """
import torch


def unlearn(model, forget, retain, *, seed, steps):
    \"\"\"Goes on training on what is to be kept.\"\"\"
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    inputs, labels = torch.tensor(retain.inputs), torch.tensor(retain.labels)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def fail(model, forget, retain, *, seed):
    raise RuntimeError("no licence for <this> machine")
"""

SHORT = RECIPE | {"steps": 60}


def test_the_vendors_procedure_is_run_and_the_report_names_it(folder: Path) -> None:
    (folder / "vendor<b>.py").write_text(VENDOR)
    procedure = {"function": "vendor<b>.py:unlearn", "parameters": {"steps": 3}}
    attacks = {
        "u_lira": {"retain_examples": 20},
        "worst_case": {"rounds": 3, "random_subsets": 4, "size": 30, "references": 2},
    }
    trained = {"recipe": RECIPE, "shadows": {"path": "shadows"}, "procedure": procedure}
    report = scan(folder, **trained, attacks=attacks, target=classifier("original"))
    here = found(report)
    assert here["u_lira"].verdict is Verdict.FAIL, here["u_lira"].reason
    assert here["worst_case"].verdict is Verdict.FAIL, here["worst_case"].reason
    assert any("the audit's target is none of them" in note for note in here["worst_case"].notes)
    (code,) = report.code
    assert (code.role, code.function) == ("procedure", "vendor<b>.py:unlearn")
    assert any("procedure: vendor<b>.py:unlearn" in limit for limit in report.limits)
    page = (folder / "audit" / "report.html").read_text(encoding="utf-8")
    assert "Code from outside muaudit that was run" in page
    assert "vendor&lt;b&gt;.py:unlearn" in page
    assert code.sha256 in page
    assert "vendor<b>" not in page


def test_a_proxy_procedure_is_named_too(folder: Path) -> None:
    """It comes from an attack's parameters; a file of it that is not there is found before anything is run."""
    write(folder, recipe=SHORT, attacks={"u_lira": {"procedure": "proxy.py:unlearn"}})
    missing = muaudit("plan", "audit.toml", cwd=folder)
    assert missing.code == 2
    assert "proxy.py:unlearn: there is no file" in missing.line
    (folder / "proxy.py").write_text(VENDOR)
    planned = muaudit("plan", "audit.toml", "--json", cwd=folder)
    assert planned.code == 0, planned.err
    (code,) = json.loads(planned.out)["plan"]["code"]
    assert (code["role"], code["function"]) == ("u_lira proxy", "proxy.py:unlearn")
    (folder / "proxy.py").write_text(VENDOR + "# changed\n")
    changed = muaudit("scan", "audit/plan.json", cwd=folder)
    assert changed.code == 2
    assert "'code'" in changed.line


def test_a_procedure_that_fails_is_an_error_row_and_the_other_attacks_are_kept(folder: Path) -> None:
    (folder / "vendor.py").write_text(VENDOR)
    procedure = {"function": "vendor.py:fail"}
    attacks = {"unlearning_metrics": {}, "u_lira": {"shadows": 12, "retain_examples": 20}}
    here = found(scan(folder, code=3, recipe=SHORT, procedure=procedure, attacks=attacks))
    assert here["unlearning_metrics"].verdict is Verdict.PASS
    assert here["u_lira"].verdict is Verdict.ERROR
    assert here["u_lira"].reason == (
        "vendor.py:fail: raised RuntimeError: no licence for <this> machine; mend the function or its parameters"
    )


# ---- again, and on -------------------------------------------------------------------------------------------------------


def stacks(folder: Path) -> dict[str, int]:
    """Trained stacks of the audit's store, with the times when they were written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted((folder / "audit" / "store" / "trained").rglob("stack-*"))}


SHADOWED: dict[str, Any] = {
    "recipe": SHORT | {"mode": "sequential"},
    "shadows": {"count": 8},
    "attacks": {"unlearning_metrics": {}, "lira": {}, "population": {}},
}


def test_the_same_audit_finds_the_same_to_the_byte_with_any_number_of_workers(folder: Path) -> None:
    first = scan(folder, **SHADOWED)
    trained = stacks(folder)
    assert len(trained) == 2
    again = scan(folder, **SHADOWED)
    assert (again.run.computed, stacks(folder)) == (0, trained)
    assert findings(again) == findings(first)
    shutil.rmtree(folder / "audit")
    anew = scan(folder, **SHADOWED)
    assert anew.run.computed == first.run.computed
    assert findings(anew) == findings(first)
    shutil.rmtree(folder / "audit")
    spread = scan(folder, run={"workers": 2}, **SHADOWED)
    assert findings(spread) == findings(first)


def test_workers_that_were_started_elsewhere_find_everything(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a cluster are: paths in audit.toml start from its own folder, wherever that is computed."""
    (folder / "vendor.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n\n\n"
        "def train(inputs, labels, *, seed):\n"
        "    return LogisticRegression(max_iter=1000).fit(inputs.reshape(len(inputs), -1), labels)\n"
    )

    def elsewhere(work: Callable[..., Any], jobs: list[tuple[Any, ...]], **_: Any) -> list[Any]:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        with chdir(tmp_path / "elsewhere"):
            return [work(*job) for job in jobs]

    changed = {"recipe": {"kind": "python", "function": "vendor.py:train"}, "shadows": {"count": 8}, "run": {"workers": 2}}
    with monkeypatch.context() as patched:
        patched.setattr(compute, "spread", elsewhere)
        far = scan(folder, attacks={"lira": {}, "unlearning_metrics": {}}, **changed)
    assert not [one for one in found(far).values() if one.verdict in (Verdict.ERROR, Verdict.SKIPPED)]
    assert [(code.role, code.function) for code in far.code] == [("recipe", "vendor.py:train")]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_interrupted_scan_goes_on_without_training_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muaudit import runner

    whole = scan(folder, **SHADOWED)
    shutil.rmtree(folder / "audit")
    measure, left = runner.measure, [2]

    def interrupted(*arguments: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return measure(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "measure", interrupted)
        seen = muaudit("scan", "audit.toml", cwd=folder)
    assert (seen.code, seen.line) == (
        130, "muaudit: interrupted; what was measured is kept: run the same command again to go on",
    )  # fmt: skip
    trained = stacks(folder)
    assert trained
    resumed = scan(folder, **SHADOWED)
    assert stacks(folder) == trained
    assert (resumed.run.reused, resumed.run.computed) == (2, whole.run.computed - 2)
    assert findings(resumed) == findings(whole)


def test_a_series_of_classifiers_gives_one_report_and_a_curve(folder: Path, task: LabelledTask) -> None:
    """Two requests: the second half of the forget set was asked for later. The first was not honoured, the last is."""
    half = task.forget.take(range(30))
    np.savez(folder / "first.npz", ids=np.array(half.ids), labels=half.labels, inputs=half.pictured())
    step = {"name": "first request", "forget": "first.npz", "target": classifier("original")}
    attacks: dict[str, Any] = {"unlearning_metrics": {}, "population": {}}
    write(folder, series=[step], attacks=attacks)
    assert muaudit("plan", "audit.toml", cwd=folder).code == 0
    seen = muaudit("scan", "audit/plan.json", "--json", cwd=folder)
    assert seen.code == 1, seen.err
    report = AuditReport.from_json(seen.out.encode())
    here = found(report)
    assert list(here) == [f"{name}{at}" for at in ("", " @ first request") for name in attacks], "as audit.toml orders them"
    assert here["unlearning_metrics"].verdict is Verdict.PASS
    assert here["unlearning_metrics @ first request"].verdict is Verdict.FAIL
    assert {(one.role, one.units) for one in report.data} >= {("forget", 60), ("first request: forget", 30)}
    curve = next(one for one in report.series if "leakage" in one.name)
    target = next(line.y for line in curve.lines if line.model == "target")
    assert target[0] > target[1] + 0.3
