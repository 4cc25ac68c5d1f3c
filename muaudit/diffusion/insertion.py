"""Tokens inserted into prompts: where they stand, which may be chosen, and what the prompt reads like afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from muaudit.diffusion.positions import Position, places
from muaudit.errors import NotApplicable

if TYPE_CHECKING:
    from muaudit.diffusion.pipeline import PromptEncoder

SHORT = 3
"""A banned word of at most so many letters bans the tokens that are it; a longer one those that contain it."""


@dataclass(frozen=True)
class Insertion:
    """n prompts with room for k further tokens each.

    Attributes:
        encoder: The text encoder that reads them.
        framed: Token ids with a stand-in at every inserted place [n, L].
        places: The inserted places [n, k], counted with the start token; -1 where a prompt has fewer than k.
    """

    encoder: "PromptEncoder"
    framed: Tensor
    places: Tensor

    @classmethod
    def into(cls, encoder: "PromptEncoder", prompts: Sequence[str], count: int, position: Position = "prefix") -> Self:
        """Makes room in prompts.

        Args:
            encoder: The text encoder.
            prompts: n prompts. A prompt that would become too long loses words at its end; no inserted token is ever cut.
            count: Tokens to insert in each.
            position: Where; see `places`.

        Raises:
            NotApplicable: The encoder reads fewer tokens than are to be inserted.
        """
        stand_in = next(token for token in range(len(encoder.table)) if token not in encoder.specials)
        full = encoder.framed([[stand_in] * encoder.length])[0].tolist()
        most, begin = full.count(stand_in), full.index(stand_in)
        rows, inserted = [], []
        for prompt in prompts:
            words = [] if position == "alone" else encoder.words(prompt)
            while len(words) + len(at := places(position, len(words), count)) > most:
                if not words:
                    raise NotApplicable(
                        f"the text encoder reads {most} tokens, too few for {count} inserted ones: lower the attack's `tokens`"
                    )
                words = words[:-1]
            row, held = iter(words), set(at)
            rows.append([stand_in if place in held else next(row) for place in range(len(words) + len(at))])
            inserted.append([begin + place for place in at])
        width = max(map(len, inserted))
        padded = [at + [-1] * (width - len(at)) for at in inserted]
        framed = encoder.framed(rows)
        return cls(encoder, framed, torch.tensor(padded, device=framed.device))

    def take(self, rows: Tensor) -> Self:
        """Some of the prompts, in the order given; one may be taken several times."""
        return type(self)(self.encoder, self.framed[rows], self.places[rows])

    def ids(self, tokens: Tensor) -> Tensor:
        """Token ids with tokens [n, k] inserted [n, L]."""
        return _put(self.framed, self.places, tokens)

    def embeddings(self, vectors: Tensor) -> Tensor:
        """Token embeddings with vectors [n, k, d] inserted [n, L, d], with gradient through them; for `encoder.encode`."""
        places = self.places.unsqueeze(-1).expand_as(vectors)
        return _put(self.encoder.table[self.framed].to(vectors.dtype), places, vectors)

    def texts(self, tokens: Tensor) -> list[str]:
        """The prompts with tokens [n, k] inserted, as strings: read again, they may fall into other tokens."""
        return [self.encoder.text(row) for row in self.ids(tokens).tolist()]


def _put(whole: Tensor, places: Tensor, parts: Tensor) -> Tensor:
    """Puts parts into their places along the second dimension; what has place -1 goes into one more, which is cut off again."""
    length = whole.shape[1]
    longer = torch.cat([whole, whole[:, :1]], 1)
    return longer.scatter(1, torch.where(places < 0, length, places), parts)[:, :length]


def allowed(encoder: "PromptEncoder", ban: Sequence[str] = ()) -> Tensor:
    """Ids of the tokens that an attack may choose, ascending.

    Special tokens are never among them. With banned words, only tokens that are words by themselves are, since pieces of words
    could join into a banned one.

    Args:
        encoder: The text encoder.
        ban: Words, such as the concept's names; of a name of several words each is banned. A word of up to three letters bans
            the tokens that are it, a longer one those that contain it; case does not matter.

    Returns:
        int64 [a].

    Raises:
        NotApplicable: No token is left.
    """
    known = min(len(encoder.table), len(encoder.vocabulary()))
    chosen = [token for token in range(known) if token not in encoder.specials]
    words = {word for name in ban for word in name.casefold().split()}
    if words:
        texts = [encoder.text([token]) for token in chosen]
        read = [encoder.words(text) for text in texts]
        chosen = [
            token
            for token, text, again in zip(chosen, texts, read, strict=True)
            if again == [token] and not _names(text.casefold(), words)
        ]
    if not chosen:
        raise NotApplicable("no token is left to choose from: the attack's `ban` names every word of the tokenizer")
    return torch.tensor(chosen, device=encoder.table.device)


def _names(text: str, words: set[str]) -> bool:
    return any(text == word if len(word) <= SHORT else word in text for word in words)


def random_tokens(among: Tensor, count: int, seeds: Sequence[int]) -> Tensor:
    """Tokens drawn uniformly, each row from a generator of its own.

    Args:
        among: Ids to draw from [a].
        count: Tokens a row.
        seeds: One a row.

    Returns:
        int64 [rows, count], on the device of `among`.
    """
    drawn = [torch.randint(len(among), (count,), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return among[torch.stack(drawn).to(among.device)]
