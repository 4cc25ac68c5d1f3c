"""Commitments that stand in a public report for what is withheld, and the sealed part that opens them.

A commitment is `redacted:sha256:` and the SHA-256 of a salt followed by the text in UTF-8. The salt is 16 random bytes from the
operating system, so that nobody who guesses a name can check the guess: this is the one place where muaudit draws randomness
that it does not record in a plan. Nothing else of a text can be learnt from its commitment, and no other text opens it.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import Field, ValidationError

from muaudit.errors import VerificationError
from muaudit.frozen import Frozen

TOKEN = re.compile(r"redacted:sha256:[0-9a-f]{64}")
"""What stands in place of what is withheld, by itself or within a sentence."""

SALT_BYTES = 16
"""128 bits."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Redaction(Frozen):
    """What a public report withholds.

    Attributes:
        sealed_sha256: SHA-256 of the sealed part, byte for byte; who signs the public report signs that part too.
        counts: How many commitments there are of each kind, such as `names` or `texts`.
        places: In how many places they stand.
        journal: Commitment of the whole journal, where it would have told what is withheld; None where it stands as it was.
    """

    sealed_sha256: Digest
    counts: dict[str, int]
    places: Annotated[int, Field(ge=0)]
    journal: str | None = None


class SealedValue(Frozen):
    """One withheld text.

    Attributes:
        salt: In hexadecimal.
        text: What was withheld.
        kind: What it is.
        places: Where its commitment stands in the public report, as JSON pointers (RFC 6901).
    """

    salt: Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * SALT_BYTES}}}$")]
    text: str
    kind: str
    places: tuple[str, ...]

    def commitment(self) -> str:
        """What stands in its place."""
        return commitment(bytes.fromhex(self.salt), self.text)


class SealedPart(Frozen):
    """What opens a public report: `report.sealed.json`.

    Attributes:
        tool: Program and version that wrote it.
        report_sha256: SHA-256 of the whole report as RFC 8785 JSON, which is how `muaudit scan` writes it.
        values: Every withheld text, sorted by commitment.
    """

    schema_version: Literal["1"] = "1"
    tool: str
    report_sha256: Digest
    values: tuple[SealedValue, ...]

    @classmethod
    def from_json(cls, data: bytes, *, name: str = "report.sealed.json") -> Self:
        """Reads a sealed part.

        Args:
            data: Its bytes.
            name: What to call it in an error.

        Returns:
            The sealed part.

        Raises:
            VerificationError: It is not one.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise VerificationError(
                f"{name}: not the sealed part of a report: {where}: {first['msg']}; give what `muaudit redact` wrote"
            ) from error


def commitment(salt: bytes, text: str) -> str:
    """What stands in place of a text.

    Args:
        salt: `SALT_BYTES` random bytes.
        text: The text.

    Returns:
        `redacted:sha256:` and 64 hexadecimal digits.
    """
    return f"redacted:sha256:{hashlib.sha256(salt + text.encode()).hexdigest()}"


class Sealer:
    """Withholds texts one by one, and keeps what opens them.

    Attributes:
        values: Every withheld text by its commitment.
    """

    def __init__(self) -> None:
        self.values: dict[str, SealedValue] = {}
        self._shared: dict[str, str] = {}

    def seal(self, text: str, kind: str, place: str, *, shared: bool) -> str:
        """Withholds a text.

        Args:
            text: The text.
            kind: What it is.
            place: Where it stands, as a JSON pointer.
            shared: Whether it gets the same commitment wherever it stands, as names do, so that tables still fit together;
                otherwise nobody can see which of two texts are equal.

        Returns:
            The commitment.
        """
        token = self._shared.get(text) if shared else None
        if token is None:
            salt = secrets.token_bytes(SALT_BYTES)
            token = commitment(salt, text)
            self.values[token] = SealedValue(salt=salt.hex(), text=text, kind=kind, places=())
            if shared:
                self._shared[text] = token
        self.stands(token, place)
        return token

    def stands(self, token: str, place: str) -> None:
        """Notes a place where a commitment stands."""
        before = self.values[token]
        if place not in before.places[-1:]:
            self.values[token] = before.model_copy(update={"places": (*before.places, place)})

    def opened(self, text: str) -> str:
        """A text with what it withholds put back."""
        return TOKEN.sub(lambda found: self.values[found[0]].text if found[0] in self.values else found[0], text)


def mapped(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 - any JSON
    """A JSON value with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [mapped(entry, change) for entry in value]
    return value


def commitments(value: Any) -> set[str]:  # noqa: ANN401 - any JSON
    """Every commitment in a JSON value."""
    found: set[str] = set()

    def look(text: str) -> str:
        found.update(TOKEN.findall(text))
        return text

    mapped(value, look)
    return found


def unseal(public: Mapping[str, Any], sealed: SealedPart) -> dict[str, Any]:
    """Opens a public report.

    Args:
        public: The public report as JSON.
        sealed: Its sealed part.

    Returns:
        The whole report as JSON, whose digest was compared.

    Raises:
        VerificationError: A commitment is not opened, or opened by another text; or the report is another one.
    """
    texts = {value.commitment(): value.text for value in sealed.values}
    there = commitments(public)
    if len(texts) < len(sealed.values):
        raise VerificationError("the sealed part opens one commitment twice; get it again from whoever redacted the report")
    if missing := sorted(there - set(texts)):
        raise VerificationError(
            f"the sealed part does not open {len(missing)} of the {len(there)} commitments, such as {missing[0][:32]}; "
            "give the one that `muaudit redact` wrote with this report"
        )
    if further := sorted(set(texts) - there):
        raise VerificationError(
            f"the sealed part holds {len(further)} texts that the report does not withhold, such as that of {further[0][:32]}: "
            "one of the two was changed"
        )
    whole = {key: value for key, value in public.items() if key != "redaction"}
    journal = (public.get("redaction") or {}).get("journal")
    opened: dict[str, Any] = mapped(whole, lambda text: TOKEN.sub(lambda found: texts[found[0]], text))
    if journal is not None:
        opened["journal"] = json.loads(texts[journal])
    for again in (opened, opened | {"redaction": None}):  # reports of an earlier release have no such field
        if hashlib.sha256(rfc8785.dumps(again)).hexdigest() == sealed.report_sha256:
            return again
    raise VerificationError("the sealed part opens every commitment, and yet the report is not the one that was redacted")
