"""Where tokens that an attack inserts stand in a prompt."""

from typing import Literal

Position = Literal["prefix", "suffix", "middle", "spread", "every_three_words", "alone"]


def places(position: Position, words: int, count: int) -> list[int]:
    """Where inserted tokens stand in a prompt, by the conventions of UnlearnDiffAtk and P4D.

    Args:
        position: `prefix` and `suffix`: before and after all words; `middle`: in their midst; `spread`: one after every
            words // (count + 1) words; `every_three_words`: one before every three words, however many that takes (P4D-K);
            `alone`: instead of the words (P4D-N).
        words: Tokens of the prompt.
        count: Tokens to insert; `every_three_words` takes words // 3 + 1 whatever it is.

    Returns:
        Places among all words, counted from 0, ascending.
    """
    if position == "every_three_words":
        return [4 * number for number in range(words // 3 + 1)]
    if position == "spread":
        apart = words // (count + 1)
        return [apart * (number + 1) + number for number in range(count)]
    begin = {"prefix": 0, "alone": 0, "middle": words // 2, "suffix": words}[position]
    return list(range(begin, begin + count))
