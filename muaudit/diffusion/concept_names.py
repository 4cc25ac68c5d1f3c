"""What prompts call a concept."""

from collections.abc import Mapping, Sequence

from muaudit.image_task import ImagePrompt


def names_of(one: ImagePrompt, names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What a prompt may call its concept: the longest first, so that no part of a name is taken for it.

    Args:
        one: The prompt.
        names: Further names, such as aliases, by concept.

    Returns:
        These, and the concept's own name, as it is and with spaces for underscores.
    """
    known = dict.fromkeys((*names.get(one.concept, ()), one.concept, one.concept.replace("_", " ")))
    return tuple(sorted(known, key=len, reverse=True))
