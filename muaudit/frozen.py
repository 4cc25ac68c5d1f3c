"""The base of every record that is stored or signed."""

import hashlib

import rfc8785
from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every stored record: immutable, unknown keys refused, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical(self) -> bytes:
        """The record as RFC 8785 canonical JSON."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def content_digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()
