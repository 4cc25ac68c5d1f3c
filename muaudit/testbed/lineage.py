"""A lineage: a base that reads general facts and learns skills, from which all other models of a testbed are fine-tuned.

Real models are made this way, and attacks that compare weights or hidden states across models mean something only so: models
of one lineage share the basis of their hidden states, models trained from scratch with other seeds do not.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from muaudit.compute import flushed_denormals
from muaudit.models.tokens import Encoded
from muaudit.results import Frozen
from muaudit.task import Fact
from muaudit.testbed.language import Population
from muaudit.testbed.skills import Library, Mix, documents, encode_documents
from muaudit.testbed.training import Recipe, completion_loss, new_model, step


class Lineage(Frozen):
    """How the base is trained, and how the others are fine-tuned from it.

    Attributes:
        base_documents: Documents that the base reads, each once.
        base_mix: What they are made of.
        base_rate: Peak rate of AdamW, for the base.
        documents: Documents that each other model reads, each once.
        mix: What they are made of.
        rate: Peak rate of AdamW.
        embedding_rate: Times so much for the embeddings: new names are new words.
        emphasis: How often a new fact is told, and one that leads to it, relative to others that the base knows.
        tokens: Most tokens of a batch, padding included.
    """

    base_documents: int = Field(default=14_000, ge=1)
    base_mix: Mix = Mix()
    base_rate: float = 3e-3
    documents: int = Field(default=6_000, ge=1)
    mix: Mix = Mix()
    rate: float = 3e-3
    embedding_rate: float = 3.0
    emphasis: float = 2.0
    tokens: int = 450


def known_facts(population: Population) -> tuple[Fact, ...]:
    """What the base of a lineage reads: the general facts and the retain set."""
    return (*population.general, *population.task.retain)


def train_base(
    population: Population, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, lineage: Lineage, seed: int
) -> LlamaForCausalLM:
    """Trains the base from scratch.

    Args:
        population: All facts of the world; the base reads what `known_facts` gives.
        tokenizer: Of all models of the world.
        recipe: Its size.
        lineage: Its training.
        seed: Of the random start and of the documents.

    Returns:
        The base, in evaluation mode; the same inputs give the same weights on one machine with one thread.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = new_model(tokenizer, recipe)
    facts, rng = known_facts(population), _stream(f"base {seed}")
    written = documents(lineage.base_documents, facts, [1.0] * len(facts), Library.of(facts), lineage.base_mix, rng)
    return _descend(module, encode_documents(tokenizer, written), lineage.base_rate, 1.0, lineage.tokens, rng)


def fine_tune(
    base: LlamaForCausalLM,
    facts: Sequence[Fact],
    population: Population,
    tokenizer: PreTrainedTokenizerFast,
    lineage: Lineage,
    seed: int,
) -> LlamaForCausalLM:
    """Fine-tunes the base on facts, among what it knows already so that it loses none of that.

    Args:
        base: The base; it is changed.
        facts: What the model is to know.
        population: All facts of the world.
        tokenizer: Of all models of the world.
        lineage: How.
        seed: Of the documents.

    Returns:
        The fine-tuned model, in evaluation mode.
    """
    known = known_facts(population)
    asked = {(fact.question, fact.answer) for fact in known}
    new = [fact for fact in facts if (fact.question, fact.answer) not in asked]
    # What is to be learned may contradict what the base knows: the new fact takes the old one's place.
    questions = {fact.question for fact in new}
    kept = [fact for fact in known if fact.question not in questions]
    subjects = {fact.subject for fact in new}
    weights = [lineage.emphasis] * len(new) + [lineage.emphasis if fact.answer in subjects else 1.0 for fact in kept]
    rng = _stream(f"tuned {seed}")
    written = documents(lineage.documents, [*new, *kept], weights, Library.of([*new, *kept]), lineage.mix, rng)
    texts = encode_documents(tokenizer, written)
    return _descend(base, texts, lineage.rate, lineage.embedding_rate, lineage.tokens, rng)


@flushed_denormals()
def _descend(
    module: LlamaForCausalLM, texts: Sequence[Encoded], rate: float, embedding_rate: float, tokens: int, rng: random.Random
) -> LlamaForCausalLM:
    module.train().requires_grad_(True)
    embeddings = module.get_input_embeddings().weight
    others = [parameter for parameter in module.parameters() if parameter is not embeddings]
    groups = [{"params": others}, {"params": [embeddings]}]
    # In so few steps the second moment must forget the noisy start sooner than by default.
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    planned = list(_batches(texts, tokens, rng))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [rate, rate * embedding_rate], total_steps=len(planned), pct_start=0.15
    )
    for batch in planned:
        step(module, optimizer, completion_loss(module, batch))
        schedule.step()
    return module.eval()


def _batches(texts: Sequence[Encoded], tokens: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of texts of similar length; texts of one stretch of the stream come in random order."""
    stretch = 400
    for start in range(0, len(texts), stretch):
        batches: list[list[Encoded]] = [[]]
        for text in sorted(texts[start : start + stretch], key=lambda text: len(text.ids)):
            if batches[-1] and len(text.ids) * (len(batches[-1]) + 1) > tokens:
                batches.append([])
            batches[-1].append(text)
        rng.shuffle(batches)
        yield from batches


def _stream(name: str) -> random.Random:
    return random.Random(name)  # noqa: S311 - training needs repeatable numbers, not secret ones
