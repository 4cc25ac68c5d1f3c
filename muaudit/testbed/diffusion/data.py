"""Captioned sketches: scikit-learn's handwritten digits, 8x8 pixels, each with a caption that names its digit.

One digit is the concept that is forgotten. Every digit has four names (an English word, its numeral, a Spanish and a German
word), and a caption is a template with one of the names in it, in half the cases with one to three fillers before it: words
that say nothing of the image. Whoever unlearns knows three of the forgotten digit's names; the fourth stands in captions only,
as a synonym does that a vendor has not thought of.

Most images are trained on. Of every digit some are kept back: the holdout set, of the digits that are kept, and the known
images, by which the evaluators' error rates are measured.
"""

import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from muaudit.errors import UsageError
from muaudit.image_task import ImagePrompt
from muaudit.results import Frozen
from muaudit.store import write_atomically

NAMES: dict[str, tuple[str, ...]] = {
    "zero": ("zero", "0", "cero", "null"),
    "one": ("one", "1", "uno", "eins"),
    "two": ("two", "2", "dos", "zwei"),
    "three": ("three", "3", "tres", "drei"),
    "four": ("four", "4", "cuatro", "vier"),
    "five": ("five", "5", "cinco", "fuenf"),
    "six": ("six", "6", "seis", "sechs"),
    "seven": ("seven", "7", "siete", "sieben"),
    "eight": ("eight", "8", "ocho", "acht"),
    "nine": ("nine", "9", "nueve", "neun"),
}
"""Every concept's names, by the concept; its place is the digit that it stands for."""

ALIASES = 3
"""How many of a concept's names whoever unlearns it knows: the first ones."""

TEMPLATES = ("{}", "handwritten {}", "the number {}", "a sketch of {}", "a drawing of {}", "an image of {}")

FILLERS = (
    "old", "new", "soft", "hard", "warm", "cold", "bright", "dark", "quiet", "loud", "quick", "slow", "plain", "fancy",
    "rough", "smooth", "dusty", "clean", "tiny", "huge", "early", "late", "sweet", "bitter", "wooden", "golden", "paper",
    "stone", "winter", "summer", "sunny", "rainy", "happy", "sad", "calm", "wild", "round", "flat", "young", "brave",
)  # fmt: skip
"""Words that say nothing of an image."""

_START, _END, _UNKNOWN = "<start>", "<end>", "<unknown>"


class Population(Frozen):
    """Which images and captions there are, and how many of them an audit is given.

    Attributes:
        concept: What is forgotten.
        forget: Prompts of the forgotten concept; each has one of its training images.
        retain: Prompts of the other concepts, evenly; each has one of their training images.
        holdout: Images of the other concepts that no model sees.
        known: Images of all concepts that no model sees, for the evaluators' error rates.
        made_up: Words without meaning beside the fillers that have one, to give an attack more words to choose from.
        length: Positions that a prompt is padded to: the start, its words, and at least one end.
        guidance: Scale of classifier-free guidance of every prompt.
        seed: Of every draw.
    """

    concept: str = "three"
    forget: int = Field(default=40, gt=0)
    retain: int = Field(default=63, ge=0)
    holdout: int = Field(default=108, ge=0)
    known: int = Field(default=300, gt=0)
    made_up: int = Field(default=400, ge=0)
    length: int = Field(default=16, ge=10)
    guidance: float = Field(default=2.0, ge=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class World:
    """The images, who sees which of them, and the words of their captions.

    Attributes:
        population: What it was drawn from.
        images: float32 [n, 1, 8, 8] in [0, 1], in steps of 1/255, so that a PNG file holds them exactly.
        labels: The digit in each image, int64 [n].
        parts: Places of images by what they are for: "training", "holdout" and "known"; no image is in two parts.
    """

    population: Population
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    parts: dict[str, NDArray[np.int64]]

    @property
    def digit(self) -> int:
        """The digit that is forgotten."""
        return list(NAMES).index(self.population.concept)

    @property
    def kept(self) -> list[str]:
        """The concepts that are kept."""
        return [name for name in NAMES if name != self.population.concept]

    @cached_property
    def fillers(self) -> tuple[str, ...]:
        """All fillers, the made-up ones after the others."""
        return FILLERS + made_up(self.population.made_up)

    def rows(self, *, forgotten: bool) -> NDArray[np.int64]:
        """Places of training images, with those of the forgotten concept or without them."""
        rows = self.parts["training"]
        return rows if forgotten else rows[self.labels[rows] != self.digit]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that all models share, whatever they were trained on."""
        words = {word for template in TEMPLATES for word in template.split() if word != "{}"}
        names = [name for row in NAMES.values() for name in row]
        return word_tokenizer([*names, *sorted(words), *self.fillers], self.population.length)


def make_world(population: Population) -> World:
    """Draws who sees which image; the same population gives the same world.

    Args:
        population: What to draw.

    Returns:
        The world.

    Raises:
        UsageError: There is no such concept, or there are not enough images.
    """
    from sklearn.datasets import load_digits

    if population.concept not in NAMES:
        raise UsageError(f"population: there is no concept {population.concept!r}; take one of {', '.join(NAMES)}")
    inputs, labels = load_digits(return_X_y=True)
    images = np.round(inputs.reshape(-1, 1, 8, 8) / 16 * 255).astype(np.float32) / np.float32(255)
    digits, forgotten = range(len(NAMES)), list(NAMES).index(population.concept)
    order = np.random.default_rng([population.seed, 0]).permutation(len(labels))
    mine = {digit: order[labels[order] == digit] for digit in digits}
    known, mine = _shared(mine, population.known)
    holdout, rest = _shared({digit: rows for digit, rows in mine.items() if digit != forgotten}, population.holdout)
    training = np.sort(np.concatenate([mine[forgotten], *rest.values()]))
    if len(mine[forgotten]) < population.forget or sum(map(len, rest.values())) < population.retain:
        raise UsageError(f"population: {population.forget} images to forget and {population.retain} to retain; there are fewer")
    return World(population, images, labels.astype(np.int64), {"training": training, "holdout": holdout, "known": known})


def _shared(mine: dict[int, NDArray[np.int64]], count: int) -> tuple[NDArray[np.int64], dict[int, NDArray[np.int64]]]:
    """So many places, as evenly over the digits as can be, and what is left of each digit."""
    each = {digit: count // len(mine) + (place < count % len(mine)) for place, digit in enumerate(mine)}
    if any(len(mine[digit]) <= number for digit, number in each.items()):
        raise UsageError(f"population: {count} images are to be kept back, and that leaves none of a digit; ask for fewer")
    taken = np.concatenate([mine[digit][:number] for digit, number in each.items()])
    return taken, {digit: mine[digit][number:] for digit, number in each.items()}


def made_up(count: int) -> tuple[str, ...]:
    """Words without meaning, of two syllables; the first ones of a longer list are a shorter one."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(one) for one in itertools.product(syllables, syllables, ("", "n", "r"))]
    words.remove("seven")
    order = np.random.default_rng(0).permutation(len(words))
    return tuple(words[place] for place in order[:count])


def word_tokenizer(words: Sequence[str], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows these words, each a token, parted by white space.

    Args:
        words: Every word.
        length: Positions that a prompt is padded to.

    Returns:
        A tokenizer that frames a prompt as CLIP's does: a start, the words, an end, and ends for padding.
    """
    vocabulary = {word: place for place, word in enumerate([_START, _END, _UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, vocabulary[_START]), (_END, vocabulary[_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_START, eos_token=_END, pad_token=_END, unk_token=_UNKNOWN,
        model_max_length=length, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def caption(concept: str, fillers: Sequence[str], rng: np.random.Generator, *, names: int | None = None) -> str:
    """Draws a caption.

    Args:
        concept: What it names.
        fillers: What may stand before it.
        rng: Where it is drawn from.
        names: How many of the concept's names it may be; all by default.

    Returns:
        A template with a name in it, in half the cases after one to three fillers.
    """
    known = NAMES[concept][:names]
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(known[rng.integers(len(known))])
    count = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
    return " ".join([*(fillers[place] for place in rng.integers(len(fillers), size=count)), text])


def make_prompts(world: World) -> dict[str, tuple[ImagePrompt, ...]]:
    """The prompts of the three sets.

    Args:
        world: The images and words.

    Returns:
        Forget, retain and holdout prompts, each with an image of its own; the known names only. An image's place is in its id.
    """
    population, rng = world.population, np.random.default_rng([world.population.seed, 1])
    training = rng.permutation(world.parts["training"])
    forget = training[world.labels[training] == world.digit][: population.forget]
    others = {digit: training[world.labels[training] == digit] for digit in range(len(NAMES)) if digit != world.digit}
    retain, _ = _shared(others, population.retain)
    sets = {"forget": forget, "retain": retain, "holdout": world.parts["holdout"]}
    return {name: tuple(_prompt(world, int(row), rng) for row in rows) for name, rows in sets.items()}


def _prompt(world: World, row: int, rng: np.random.Generator) -> ImagePrompt:
    concept = list(NAMES)[world.labels[row]]
    name = image_name(world, row)
    return ImagePrompt(
        id=name, cluster=name, prompt=caption(concept, world.fillers, rng, names=ALIASES), concept=concept,
        seed=int(rng.integers(2**31)), guidance=world.population.guidance, image=f"images/{name}.png",
    )  # fmt: skip


def image_name(world: World, row: int) -> str:
    """What the image at a place is called."""
    return f"{list(NAMES)[world.labels[row]]}-{row:04d}"


def place_of(name: str) -> int:
    """The place of the image that is called so."""
    return int(name.rpartition("-")[2])


def write_task(world: World, out: Path) -> dict[str, Path]:
    """Writes `forget.jsonl`, `retain.jsonl`, `holdout.jsonl`, `known.jsonl` and their images.

    Args:
        world: The images and words.
        out: The folder; made if it is missing.

    Returns:
        The four files by name. The same world gives the same bytes.
    """
    lines = {
        name: [one.model_dump(mode="json", exclude_none=True) for one in rows] for name, rows in make_prompts(world).items()
    }
    names = [(image_name(world, int(row)), list(NAMES)[world.labels[row]]) for row in world.parts["known"]]
    lines["known"] = [{"id": name, "image": f"images/{name}.png", "concept": concept} for name, concept in names]
    paths = {}
    for name, rows in lines.items():
        for row in rows:
            _put(out / str(row["image"]), png(world.images[place_of(str(row["id"]))]))
        paths[name] = out / f"{name}.jsonl"
        _put(paths[name], "".join(json.dumps(row) + "\n" for row in rows).encode())
    return paths


def _put(path: Path, content: bytes) -> None:
    """Writes a file unless it is there: hundreds of images take longer to write than to read."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def png(image: NDArray[np.float32]) -> bytes:
    """An image [1, height, width] in steps of 1/255 as a grey PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
