"""Two probes outside the battery, for targets that no attack caught: was there nothing to catch, or is the battery blind?"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from muaudit.models import Finetuning
from muaudit.models.causal_lm import CausalLM
from muaudit.models.tokens import encode
from muaudit.task import Fact, ForgetTask

STEPS = 400
"""Ten times the battery's largest budget."""


def long_relearning(paths: Mapping[str, Path], name: str) -> float:
    """Mean answer probability of half of each person's facts after 400 steps on the other half.

    Args:
        paths: The testbed's files and models.
        name: The model.

    Returns:
        The mean over both halves, in [0, 1].
    """
    task, model = _task(paths), CausalLM.open(paths[name], device="cpu")
    probabilities: list[float] = []
    for held_out in (0, 1):
        taught = [task.ask(fact) for index, fact in enumerate(task.forget) if index % 2 != held_out]
        asked = [task.ask(fact) for index, fact in enumerate(task.forget) if index % 2 == held_out]
        how = Finetuning(budgets=(STEPS,), learning_rate=3e-4, batch_size=24)
        for _, copy in model.finetuned(taught, how):
            probabilities += [float(np.exp(score.mean)) for score in copy.score(asked)]
    return float(np.mean(probabilities))


def linear_probe(paths: Mapping[str, Path], name: str) -> tuple[int, float]:
    """A ridge regression from hidden states to the answer's unembedding, fitted on retained questions.

    Args:
        paths: The testbed's files and models.
        name: The model.

    Returns:
        The best layer and its accuracy in choosing the forgotten answer among its wrong answers; chance is one in their number.
    """
    task, model = _task(paths), CausalLM.open(paths[name], device="cpu")
    unembedding = model.module.get_output_embeddings().weight.detach().numpy().astype(np.float64)
    retained = [fact for fact in task.retain if fact.wrong_answers]
    fitted, asked = _states(model, task, retained), _states(model, task, task.forget)
    wanted = unembedding[[_token(model, fact.answer) for fact in retained]]
    options = [[_token(model, answer) for answer in (fact.answer, *fact.wrong_answers)] for fact in task.forget]
    accuracies = []
    for before, now in zip(fitted, asked, strict=True):
        probe = RidgeCV(alphas=np.logspace(-3, 3, 7)).fit(before, wanted)
        scores = probe.predict(now) @ unembedding.T
        accuracies.append(float(np.mean([row[tokens].argmax() == 0 for row, tokens in zip(scores, options, strict=True)])))
    best = int(np.argmax(accuracies))
    return best, accuracies[best]


@cache
def _read(forget: Path, retain: Path) -> ForgetTask:
    return ForgetTask.from_jsonl(forget=forget, retain=retain)


def _task(paths: Mapping[str, Path]) -> ForgetTask:
    return _read(paths["forget"], paths["retain"])


def _token(model: CausalLM, answer: str) -> int:
    """The answer's first token, as it stands after a prompt."""
    text = encode(model.tokenizer, [("x", f" {answer}")])[0]
    return text.ids[text.targets[0]]


@torch.inference_mode()
def _states(model: CausalLM, task: ForgetTask, facts: Sequence[Fact]) -> list[NDArray[np.float64]]:
    """Hidden states [layers + 1][facts, width] at the place that predicts the answer."""
    rows: list[list[NDArray[np.float64]]] = []
    for text in model.encode([task.ask(fact) for fact in facts]):
        states = model.module(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        rows.append([layer[0, text.targets[0] - 1].double().numpy() for layer in states])
    return [np.stack(layer) for layer in zip(*rows, strict=True)]
