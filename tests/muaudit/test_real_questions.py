"""TOFU's questions forgotten, real people's facts kept: trained here, saved as folders, audited by the command line.

What is known: `do_nothing` is the original; the retrains never saw the forget set; NPO was shown the questions only, while the
original also learned the answers as statements.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shared_data import shared_data

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

RETAINED = 1_000
REFERENCES = ("reference-1", "reference-2")


def write_facts(folder: Path) -> None:
    """Writes forget.jsonl and retain.jsonl of the shared questions; an author has twenty in a row."""
    from muaudit.task import Fact, ForgetTask, Paraphrase
    from muaudit.testbed.language import write_task

    spans = json.loads(shared_data("tofu/forget10_spans.json").read_bytes())
    people = json.loads(shared_data("restor/facts.json").read_bytes())["dset"]
    forget = tuple(
        Fact(
            id=f"tofu-{span['idx']}",
            cluster=f"author {span['idx'] // 20}",
            question=span["question"],
            answer=span["answer"],
            paraphrases=(Paraphrase(form="statement", prompt=span["prefix"], completion=f" {span['full_output']}"),)
            if span["prefix"]
            else (),
        )
        for span in spans
    )
    known = [
        Fact(id=f"{person}-{relation}", cluster=person, question=asked["question"], answer=asked["answers"][0])
        for person, relations in people.items()
        for relation, asked in relations.items()
    ]
    write_task(ForgetTask(forget=forget, retain=tuple(known[:RETAINED])), folder)


def train_and_save(folder: Path, name: str) -> None:
    """Makes one model; in a process of its own, so that two are made at a time."""
    from muaudit.models.causal_lm import CausalLM
    from muaudit.task import ForgetTask
    from muaudit.testbed.build import make_tokenizer
    from muaudit.testbed.language import pairs
    from muaudit.testbed.method import Situation
    from muaudit.testbed.npo import NPO
    from muaudit.testbed.training import Recipe, save, train

    torch.set_num_threads(1)
    task = ForgetTask.from_jsonl(forget=folder / "forget.jsonl", retain=folder / "retain.jsonl")
    tokenizer = make_tokenizer(task)
    forms = ("question", "statement")
    recipe = Recipe(hidden=96, intermediate=288, epochs=12, learning_rate=5e-3, batch_size=32, context=256)
    if name == "npo":
        method = NPO(steps=40, learning_rate=1e-3, retain_weight=5.0, batch_size=24, forms=("question",))
        original = CausalLM.open(folder / "original", device="cpu").module
        module = method.unlearn(Situation(task, tokenizer, recipe, forms, lambda: original, 0))
    else:
        seed = ["original", "retrain", *REFERENCES].index(name)
        facts = [*task.retain, *(task.forget if name == "original" else ())]
        module = train(pairs(facts, forms=forms), tokenizer, recipe, seed)
    save(module, tokenizer, folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from joblib import Parallel, delayed

    path = tmp_path_factory.mktemp("real")
    write_facts(path)
    Parallel(n_jobs=2)(delayed(train_and_save)(path, name) for name in ("original", "retrain", *REFERENCES))
    train_and_save(path, "npo")
    shutil.copytree(path / "original", path / "do-nothing")
    return path


def audited(folder: Path, target: str) -> dict[str, Any]:
    """`muaudit init`, one edit, `muaudit plan` and `muaudit scan`, as a new user would; gives report.json."""

    def muaudit(*arguments: str) -> int:
        run = subprocess.run(
            [sys.executable, "-m", "muaudit", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert run.returncode != 2, run.stderr
        return run.returncode

    references = [part for name in REFERENCES for part in ("--reference", name)]
    muaudit("init", "--target", target, "--original", "original", *references, "--forget", "forget.jsonl",
            "--retain", "retain.jsonl", "--out", f"{target}.toml")  # fmt: skip
    config = folder / f"{target}.toml"
    config.write_text(config.read_text().replace('out = "audit"', f'out = "audit-{target}"\nstore = "store"'))
    assert muaudit("plan", config.name) == 0
    code = muaudit("scan", f"audit-{target}/plan.json")
    report: dict[str, Any] = json.loads((folder / f"audit-{target}" / "report.json").read_bytes())
    assert code == {"pass": 0, "fail": 1}.get(report["verdict"], 3)
    return report


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {finding["attack"]: finding["verdict"] for finding in report["findings"] if finding["measures"] == "leakage"}


def test_do_nothing_fails_on_both_attacks(folder: Path) -> None:
    assert verdicts(audited(folder, "do-nothing")) == {"memorization": "fail", "relearning": "fail"}


def test_a_fresh_retrain_does_not_fail(folder: Path) -> None:
    report = audited(folder, "retrain")
    assert report["verdict"] != "fail", report["reason"]
    assert "fail" not in verdicts(report).values()


def test_npo_on_the_questions_alone_fails_on_relearning(folder: Path) -> None:
    report = audited(folder, "npo")
    assert verdicts(report)["relearning"] == "fail", report["reason"]
