"""Scoring rate and memory beside a bare batched forward pass of the same model, measured in one run.

    python benchmarks/scoring_rate.py [FOLDER] [--device cuda] [--dtype bfloat16]

All take the same texts in the same length-sorted batches, in turn, and the median of the runs is printed. The bare pass gets
its tokens ready-made and computes the logits of all positions; scoring tokenises, picks and sums as an audit does, and token
scores hold the moments of the whole vocabulary beside it. Memory is what a process of its own needs at most, on the CPU its
resident set, on CUDA what torch allocated. Without a folder, a random Llama of 5 million parameters is made (8,192 words,
4 layers, width 256).
"""

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from muaudit.models import Query
from muaudit.models.causal_lm import CausalLM
from muaudit.models.tokens import encode, pad
from muaudit.testbed.training import Recipe, new_model, word_tokenizer

WORDS = [f"word{index}" for index in range(8_188)]


def random_model(device: str) -> CausalLM:
    """A Llama with random weights: the rate does not depend on what a model knows."""
    tokenizer = word_tokenizer(WORDS)
    torch.manual_seed(0)
    recipe = Recipe(hidden=256, intermediate=768, layers=4, heads=4, context=512)
    return CausalLM(new_model(tokenizer, recipe).to(device), tokenizer)


def questions(count: int) -> list[Query]:
    """Questions of 8 to 40 words with answers of 1 to 12."""
    rng = random.Random(0)  # noqa: S311 - repeatable, not secret

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [Query(str(index), "answer", text(8, 40), " " + text(1, 12)) for index in range(count)]


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds that the work takes, what it left running on the device included."""
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Prints rates and memory with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    model = CausalLM.open(options.folder, device=device, dtype=options.dtype) if options.folder else random_model(device)
    queries = questions(options.texts)
    encoded = sorted(
        encode(model.tokenizer, [(query.prompt, query.completion) for query in queries]), key=lambda text: -len(text.ids)
    )
    rows = [
        [text.ids for text in encoded[start : start + model.batch_size]] for start in range(0, len(encoded), model.batch_size)
    ]
    batches = [pad(batch, 0, side="right", device=torch.device(device)) for batch in rows]

    @torch.inference_mode()
    def bare() -> None:
        for ids, mask in batches:
            model.module(input_ids=ids, attention_mask=mask, use_cache=False)

    works = {
        "bare forward pass": bare,
        "muaudit scoring": lambda: model.score(queries),
        "muaudit token scores": lambda: model.score_tokens(queries),
    }
    if options.memory_of:
        print(peak_memory(works[options.memory_of], device))
        return
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(options.runs + 1):
        for name, work in works.items():
            seconds = timed(work, device)
            if run:  # the first is a warm-up
                times[name].append(seconds)
    rates = {name: len(queries) / statistics.median(seconds) for name, seconds in times.items()}
    memory = {name: in_a_process_of_its_own(name) for name in works}
    print(f"{'':22s}{'texts/s':>10s}{'ratio':>8s}{'memory':>12s}{'ratio':>8s}   (wanted: at least 0.90, at most 1.20)")
    for name, rate in rates.items():
        shares = rate / rates["bare forward pass"], memory[name] / memory["bare forward pass"]
        print(f"{name:22s}{rate:10.1f}{shares[0]:8.2f}{memory[name] / 2**20:8.0f} MiB{shares[1]:8.2f}")


def peak_memory(work: Callable[[], object], device: str) -> int:
    """Bytes that this process needs at most while it does the work; what imports needed before does not count."""
    status, peak = Path("/proc/self/status"), "VmHWM:"
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        work()
        return int(torch.cuda.max_memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # Linux: starts the high-water mark anew
    work()
    line = next(line for line in status.read_text().splitlines() if line.startswith(peak))
    return int(line.split()[1]) * 1024


def in_a_process_of_its_own(name: str) -> int:
    """The peak memory of one of the works, with this run's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
