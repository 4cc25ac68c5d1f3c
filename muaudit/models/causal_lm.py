"""Causal language models in the Hugging Face layout, opened from a local folder.

Nothing is downloaded, no code of the folder is run and no pickle is ever loaded: weights come from safetensors alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from muaudit.compute import Stopwatch
from muaudit.errors import EnvironmentFault, ModelError
from muaudit.models import Finetuning, Query, TextScore, TokenScores
from muaudit.models.finetuning import seeded, step, stream, trainable_copy
from muaudit.models.folder import Dtype, load, pick_device
from muaudit.models.quantized import SCHEMES, rounded_copy
from muaudit.models.scoring import score_batch, score_tokens_batch
from muaudit.models.tokens import Encoded, encode, encode_prompts, pad
from muaudit.models.weights_file import told

Scored = TypeVar("Scored")

_BATCH_TOKENS = 16_384
"""Most padded tokens in one batch, whatever the batch size: long passages would not fit otherwise."""


class CausalLM:
    """A causal language model with its tokenizer.

    Attributes:
        module: The network, in evaluation mode, its parameters frozen.
        tokenizer: Its tokenizer.
        batch_size: Most texts a forward pass.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        digest: str = "",
        batch_size: int = 64,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        """Wraps a network that is already in memory.

        Args:
            module: The network; it is put into evaluation mode and its parameters are frozen.
            tokenizer: Its tokenizer.
            digest: What identifies it; a digest of weights, configuration and vocabulary by default.
            batch_size: Most texts a forward pass; the results depend on it by float noise only.
            stopwatch: Counts the time spent inside the model.
        """
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._digest = digest
        self._stopwatch = stopwatch or Stopwatch()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        base: Path | str | None = None,
        dtype: Dtype = "float32",
        device: str = "auto",
        device_map: str | dict[str, Any] | None = None,
        batch_size: int = 64,
    ) -> Self:
        """Opens a local folder.

        Args:
            path: A Hugging Face folder (config.json, safetensors, tokenizer), or a PEFT adapter's folder.
            base: With an adapter: the folder of the model that it belongs to; the adapter is merged into it.
            dtype: What the weights are computed in; "auto" is what they were saved in.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
            device_map: Spreads a large model over devices (accelerate's); `device` is then not used.
            batch_size: Most texts a forward pass.

        Returns:
            The model.

        Raises:
            ModelError: The folder cannot be used; the message says what, why and how to mend it.
            EnvironmentFault: The device is not there.
        """
        place = None if device_map is not None else pick_device(device)
        folder = load(Path(path), base=None if base is None else Path(base), dtype=dtype, device_map=device_map)
        module = folder.module if place is None else cast("PreTrainedModel", folder.module.to(place))
        return cls(module, folder.tokenizer, digest=folder.digest, batch_size=batch_size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the folder's manifest (the base's too) and the dtype; for a model from memory, over its state."""
        return self._digest or state_digest(self.module, self.tokenizer)

    @property
    def model_seconds(self) -> float:
        """Seconds spent in scoring, generating and training, fine-tuned copies included."""
        return self._stopwatch.seconds

    @property
    def _device(self) -> torch.device:
        return torch.device(self.module.get_input_embeddings().weight.device)

    @property
    def _context(self) -> int | None:
        """Most tokens that the model takes; None where its configuration sets no limit."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    def chat(self, prompt: str) -> str:
        """Wraps a prompt as a user's turn in the tokenizer's own chat template.

        Args:
            prompt: What the user says.

        Returns:
            The prompt up to where the assistant's answer starts. A leading beginning-of-sequence mark is left out where
            the tokenizer adds it anyway.

        Raises:
            ModelError: The tokenizer has no chat template, or it fails.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(
                'task.template is "chat", but the tokenizer has no chat template; write the template out, such as '
                '"Question: {question} Answer:", or save the tokenizer with its template'
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template computes in a sandbox, and can raise whatever expressions raise
            line = told(error)
            raise ModelError(f"the tokenizer's chat template fails ({line}); write task.template out instead") from error
        mark = self.tokenizer.bos_token
        adds_mark = bool(mark) and self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]
        return str(text).removeprefix(mark) if adds_mark else str(text)

    def score(self, queries: Sequence[Query]) -> list[TextScore]:
        """Scores each completion after its prompt, in the order given.

        Prompt and completion are tokenised together, as the model would have seen them in training; a token that reaches
        into the completion belongs to it. The caller writes the space between them (as a rule the completion's first
        character). With an empty prompt and a tokenizer that marks no beginning, the first token cannot be predicted and
        is not scored.

        Args:
            queries: What to score.

        Returns:
            One score a query: natural log-probabilities, from a float32 softmax.

        Raises:
            ModelError: A completion has no token, a text is longer than the model's context, or a logit is not finite; the
                message names the unit.
        """
        return self._each(queries, score_batch, lambda score: score.log_probability)

    def score_tokens(self, queries: Sequence[Query]) -> list[TokenScores]:
        """Scores each completion's tokens, with the moments of the vocabulary's log-probabilities, in one pass.

        Args:
            queries: What to score, as with `score`.

        Returns:
            One entry a query; natural logarithms, from a float32 softmax.

        Raises:
            ModelError: As with `score`.
        """
        return self._each(queries, score_tokens_batch, lambda tokens: sum(tokens.log_probabilities))

    def _each(
        self,
        queries: Sequence[Query],
        measured: Callable[[PreTrainedModel, Sequence[Encoded], torch.device], list[Scored]],
        checked: Callable[[Scored], float],
    ) -> list[Scored]:
        """Batch by batch, in the order given; refuses a query whose checked number is not finite."""
        with self._stopwatch.running(), _memory():
            encoded = self.encode(queries)
            results: list[Scored | None] = [None] * len(queries)
            for batch in self._batches([len(text.ids) for text in encoded]):
                for index, result in zip(batch, measured(self.module, [encoded[i] for i in batch], self._device), strict=True):
                    # Every comparison with NaN is false, so this refuses NaN and both infinities.
                    if not abs(checked(result)) < float("inf"):
                        raise ModelError(f"unit {queries[index].unit!r}: {_NOT_FINITE}")
                    results[index] = result
        return cast("list[Scored]", results)

    def encode(self, queries: Sequence[Query]) -> list[Encoded]:
        """Each query as the network reads it when it scores it.

        Args:
            queries: What would be scored.

        Returns:
            Token ids and the places of the completion's tokens, one entry a query.

        Raises:
            ModelError: A completion has no token, or a text is longer than the model's context; the message names the unit.
        """
        encoded = encode(self.tokenizer, self._pairs(queries))
        for query, text in zip(queries, encoded, strict=True):
            self._refuse_misfit(query.unit, len(text.ids), bool(text.targets))
        return encoded

    def network(self) -> PreTrainedModel:
        """The network itself, in evaluation mode, its parameters frozen; whoever reads it must leave it as it was."""
        return self.module

    def vocabulary(self) -> list[str]:
        """The text of every token, by id; ids beyond the tokenizer's (padding of the matrix) are empty."""
        size = int(self.module.get_output_embeddings().weight.shape[0])
        known = min(size, len(self.tokenizer))
        return [str(text) for text in self.tokenizer.batch_decode([[i] for i in range(known)])] + [""] * (size - known)

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[str]:
        """Completes each prompt greedily, in the order given.

        Args:
            queries: Their prompts are completed; the completions are not looked at.
            max_new_tokens: Where to stop, if no end-of-sequence token comes first.

        Returns:
            The new text of each, without special tokens and surrounding white space.

        Raises:
            ModelError: Prompt and new tokens do not fit the model's context, or a logit is NaN; the message names the unit.
        """
        with self._stopwatch.running(), _memory():
            prompts = encode_prompts(self.tokenizer, [prompt for prompt, _ in self._pairs(queries)])
            for query, ids in zip(queries, prompts, strict=True):
                self._refuse_misfit(query.unit, len(ids) + max_new_tokens, bool(ids))
            texts = [""] * len(queries)
            for batch in self._batches([len(ids) + max_new_tokens for ids in prompts]):
                units = [queries[i].unit for i in batch]
                new = self._generate_batch([prompts[i] for i in batch], units, max_new_tokens)
                for index, text in zip(batch, new, strict=True):
                    texts[index] = text
        return texts

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], units: Sequence[str], max_new_tokens: int) -> list[str]:
        def refuse_nan(_: Tensor, logits: Tensor) -> Tensor:
            if (bad := logits.isnan().any(1)).any():
                raise ModelError(f"unit {units[int(bad.int().argmax())]!r}: {_NOT_FINITE}")
            return logits

        fill = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        # A fresh configuration: the folder's own may ask for sampling or for a repetition penalty.
        folder_eos = getattr(self.module.generation_config, "eos_token_id", None)
        eos = folder_eos if folder_eos is not None else self.tokenizer.eos_token_id
        greedy = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=fill)
        ids, mask = pad(prompts, fill, side="left", device=self._device)
        own, self.module.generation_config = self.module.generation_config, greedy
        try:
            output = self.module.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList([refuse_nan]))
        finally:
            self.module.generation_config = own
        new = self.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in new]

    def finetuned(self, texts: Sequence[Query], how: Finetuning) -> Iterator[tuple[int, "CausalLM"]]:
        """Trains a copy on the queries' completions after their prompts, and hands it out at each budget.

        AdamW, constant rate after the warm-up, gradients clipped to norm 1. Weights below float32 are trained in float32
        (in bfloat16 small steps round to nothing); with LoRA only the adapters are, and the copy shares the frozen weights.
        The result depends on texts and `how` alone; a budget's model does not depend on the other budgets.

        Args:
            texts: What to train on.
            how: Budgets, rate, batch, adapters, seed.

        Yields:
            Steps done and the copy, in evaluation mode; it is valid until the next is asked for.

        Raises:
            ModelError: There is nothing to train on, a text does not fit, or the loss is not finite.
        """
        pairs, encoded = self._pairs(texts), self.encode(texts)
        if not encoded:
            raise ModelError("fine-tuning needs at least one text, and got none")
        with self._stopwatch.running(), _memory():
            copied = trainable_copy(self.module, how, self._device)
            weights = [weight for weight in copied.parameters() if weight.requires_grad]
            optimizer = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=how.weight_decay)
            order = stream(len(encoded), how.seed)
        size, done = min(how.batch_size, len(encoded)), 0
        described = json.dumps([self.digest, how.model_dump(mode="json", exclude={"budgets"}), pairs])
        for budget in sorted(how.budgets):
            with self._stopwatch.running(), _memory():
                copied.train()
                for weight in weights:
                    weight.requires_grad_(True)
                for number in range(done, budget):
                    for group in optimizer.param_groups:
                        group["lr"] = how.learning_rate * min(1.0, (number + 1) / max(1, how.warmup))
                    batch = [encoded[next(order)] for _ in range(size)]
                    with seeded(how.seed, number, self._device):
                        step(copied, optimizer, batch, self._device)
                optimizer.zero_grad(set_to_none=True)
                done = max(done, budget)
            digest = hashlib.sha256(f"{described} {budget}".encode()).hexdigest()
            yield (
                budget,
                type(self)(copied, self.tokenizer, digest=digest, batch_size=self.batch_size, stopwatch=self._stopwatch),
            )

    def quantized(self, bits: Literal[4, 8]) -> Self:
        """A copy whose linear layers hold rounded weights; embeddings, head, norms and biases stay.

        Args:
            bits: 8 (symmetric, by row) or 4 (NormalFloat in blocks of 64); `muaudit.models.quantized` defines both.

        Returns:
            The copy, with a digest of its own; it shares the weights that are not rounded.

        Raises:
            ModelError: There is nothing to round, or it is rounded already.
        """
        with self._stopwatch.running(), _memory():
            module = rounded_copy(self.module, bits)
        digest = hashlib.sha256(f"{self.digest} {SCHEMES[bits]}".encode()).hexdigest()
        return type(self)(module, self.tokenizer, digest=digest, batch_size=self.batch_size, stopwatch=self._stopwatch)

    def _pairs(self, queries: Sequence[Query]) -> list[tuple[str, str]]:
        return [(self.chat(query.prompt) if query.chat else query.prompt, query.completion) for query in queries]

    def _refuse_misfit(self, unit: str, length: int, has_completion: bool) -> None:
        if not has_completion:
            raise ModelError(f"unit {unit!r}: the completion has no token that the model could predict; give it some text")
        if self._context is not None and length > self._context:
            raise ModelError(
                f"unit {unit!r}: {length} tokens do not fit the model's context of {self._context}; shorten the text"
            )

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches, longest text first, so that padding is little and too large a batch fails at once."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
            width = lengths[batch[0]] if batch else 0
            if batch and (len(batch) == self.batch_size or (len(batch) + 1) * width > _BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


_NOT_FINITE = "the model returned NaN or infinite logits; check its weights, and try dtype float32"


def state_digest(module: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """SHA-256 over every tensor of a network (name, dtype, shape, bytes) and, where given, the vocabulary."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if tokenizer is not None:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            "the device has too little memory for this batch; lower the model's batch_size or use dtype bfloat16"
        ) from error
