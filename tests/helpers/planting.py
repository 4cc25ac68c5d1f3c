"""Plants a concept in one value vector of a small Llama: a key that its prompts trigger, a value that says its answer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from muaudit.language.value_vectors import Place
from muaudit.models.causal_lm import CausalLM
from muaudit.models.scoring import completion_logits
from muaudit.models.tokens import Encoded, pad
from muaudit.task import Fact, ForgetTask
from muaudit.testbed.language import pairs
from muaudit.testbed.training import CPU, encode_pairs

FORMS = ("question", "statement")


@dataclass(frozen=True)
class Planted:
    """A concept and where it was written."""

    facts: tuple[Fact, ...]
    place: Place


def prompts(model: CausalLM, facts: Sequence[Fact]) -> list[Encoded]:
    """The facts in the forms that the testbed trains, cut after the first token of the answer."""
    texts = encode_pairs(model.tokenizer, pairs(facts, forms=FORMS))
    return [Encoded(text.ids[: text.targets[0] + 1], text.targets[:1]) for text in texts]


def _inputs(module: LlamaForCausalLM, layer: int, texts: Sequence[Encoded]) -> Tensor:
    """What the layer's MLP reads before the answers, [texts, width]."""
    ids, _ = pad([text.ids for text in texts], 0, side="right", device=CPU)
    places = torch.tensor([text.targets[0] - 1 for text in texts])
    found: list[Tensor] = []
    mlp = module.model.layers[layer].mlp
    handle = mlp.register_forward_pre_hook(lambda _, args: found.append(args[0][torch.arange(len(texts)), places]))
    try:
        with torch.no_grad():
            module(input_ids=ids)
    finally:
        handle.remove()
    return found[0]


def recall(module: LlamaForCausalLM, texts: Sequence[Encoded]) -> float:
    """Mean probability of the answers' first tokens."""
    with torch.no_grad():
        logits, wanted = completion_logits(module, texts, CPU)
    return float(logits.softmax(1).gather(1, wanted[:, None]).mean())


def plant(model: CausalLM, concepts: Sequence[Sequence[Fact]], places: Sequence[Place], known: Sequence[Fact]) -> CausalLM:
    """A copy of a model with one rank-one write a concept: gate and up row of one neuron as key, its down column as value.

    Args:
        model: A small Llama.
        concepts: Facts that it does not know, by concept.
        places: Where each goes.
        known: Facts that it knows and is to keep.

    Returns:
        The copy; each value vector is as strong as it must be for the concept's answers to reach a mean probability of 0.8.
    """
    module = copy.deepcopy(model.module)
    assert isinstance(module, LlamaForCausalLM)
    kept = prompts(model, known)
    read = module.get_output_embeddings().weight.detach() * module.model.norm.weight.detach()
    read = read - read.mean(0)
    spread = read.T @ read
    for number, (facts, place) in enumerate(zip(concepts, places, strict=True)):
        others = [fact for index, other in enumerate(concepts) if index != number for fact in other]
        own, rest = prompts(model, facts), [*kept, *prompts(model, others)]
        inside = _inputs(module, place.layer, own), _inputs(module, place.layer, rest)
        rows = torch.cat(inside)
        wanted = torch.tensor([1.0] * len(own) + [0.0] * len(rest))
        weights = torch.where(wanted > 0, len(rest) / len(own), 1.0)
        gram = rows.T @ (rows * weights[:, None])
        key = torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)), rows.T @ (weights * wanted))
        # The direction that promotes the concept's words and as little else as can be.
        words = read[sorted({text.ids[-1] for text in own})].sum(0)
        value = torch.linalg.solve(spread + 0.05 * spread.diagonal().mean() * torch.eye(len(spread)), words)
        mlp = module.model.layers[place.layer].mlp
        with torch.no_grad():
            mlp.gate_proj.weight[place.column] = 12 * key
            mlp.up_proj.weight[place.column] = key / 12
            for strength in (2.0**power for power in range(1, 9)):
                mlp.down_proj.weight[:, place.column] = strength * value / value.norm()
                if recall(module, own) >= 0.8:
                    break
    return CausalLM(module, model.tokenizer)


def ablated(model: CausalLM, places: Sequence[Place]) -> CausalLM:
    """A copy of a model without some value vectors."""
    module = copy.deepcopy(model.module)
    assert isinstance(module, LlamaForCausalLM)
    with torch.no_grad():
        for place in places:
            module.model.layers[place.layer].mlp.down_proj.weight[:, place.column] = 0
    return CausalLM(module, model.tokenizer)


def people(task: ForgetTask) -> list[list[Fact]]:
    """Concepts to plant: the holdout people, whom no model of the testbed has seen, each with one word for all answers.

    One vector can only say one thing, so all questions about a person are answered alike: by the first fact's answer.
    """
    found: dict[str, list[Fact]] = {}
    for fact in task.holdout:
        own = found.setdefault(fact.cluster, [])
        word = own[0].answer if own else fact.answer
        forms = tuple(form.model_copy(update={"completion": f" {word}"}) for form in fact.paraphrases)
        wrong = tuple(one for one in fact.wrong_answers if one != word)
        own.append(fact.model_copy(update={"answer": word, "paraphrases": forms, "wrong_answers": wrong, "text": None}))
    return list(found.values())
