"""What a report cites of a calibration: its digest, and the measured error rates of the policy that the audit uses."""

from typing import Annotated

from pydantic import Field

from muaudit.frozen import Frozen

Share = Annotated[float, Field(ge=0, le=1)]


class Rate(Frozen):
    """How often something happened, with its exact interval (Clopper and Pearson).

    Attributes:
        hits: How often.
        total: Of how many.
        low: Lower end of the two-sided 95 % interval.
        high: Its upper end.
        bound: One-sided upper 95 % bound.
    """

    hits: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=1)]
    low: Share
    high: Share
    bound: Share

    @property
    def share(self) -> float:
        """Hits over total."""
        return self.hits / self.total


class Citation(Frozen):
    """A calibration record that an audit cites.

    Attributes:
        path: Where the record lay when the audit was planned.
        sha256: Digest of its bytes, which its signed statement is about.
        tool: Program and version that made it.
        bed: What its models are of: a testbed's preset, or "recipe".
        models: How many models it rests on.
        policy: Name of the policy that the rates are of: the audit's.
        false_alarm: Honest models that were failed; None where the record does not have this policy.
        passed: Honest models that were passed.
        detection: Models that know and were failed.
        missed: Models that know or hide and were passed.
        differs: In what the audit is not what was calibrated, one phrase each; empty where it is.
    """

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tool: str
    bed: str
    models: int
    policy: str
    false_alarm: Rate | None = None
    passed: Rate | None = None
    detection: Rate | None = None
    missed: Rate | None = None
    differs: tuple[str, ...] = ()
