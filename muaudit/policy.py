"""Policies: margins, error rates and required attacks, as a TOML file that a compliance office can own."""

import hashlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from muaudit.errors import UsageError
from muaudit.results import Frozen

Fraction = Annotated[float, Field(gt=0, lt=1)]
Access = Literal["text", "logits", "weights", "training"]


class Policy(Frozen):
    """The decision rule of an audit, fixed before the data are seen.

    Attributes:
        name: What reports call it.
        description: One sentence on whom it is for.
        margin: Leakage difference below which target and reference count as equivalent.
        margins: Margins of single attacks, which override `margin`.
        cluster_margin: Smallest gap of a single cluster that can fail an audit.
        cluster_margins: Those of single attacks, which override `cluster_margin`.
        retention_margin: Loss on the retain set below which collateral damage is not called.
        confidence: Level of the two-sided interval, which `fail` needs above margin and noise floor.
        equivalence_confidence: One-sided level of the bound that `pass` needs below the margin.
        noise_confidence: Two-sided level of the noise floor, a prediction interval for one further reference.
        cluster_confidence: Quantile of the null of the largest cluster gap.
        required: Attacks that must pass for the audit to pass; those that the target's access does not allow must be
            named in `skippable`.
        required_by_access: Attacks that must pass too, by the access that they need: each where the target gives it and is of
            a kind that the attack is for. One policy can so serve language models, classifiers and image generators.
        skippable: Required attacks that may be skipped when the audit does not give what they need. One that did not fit into
            the budget is never passed over.
        minimum_references: Fewest references with which `pass` can be given.
        minimum_clusters: Fewest clusters with which `pass` can be given.
        minimum_units: Fewest units that a passing finding may rest on.
        positive_control: Whether `pass` needs the original, in which every passing attack has seen the knowledge.
        shallow_passes: Whether an audit may pass by informational attacks alone, which see part of what methods leave.
        pictures: Whether the report shows what image generators drew: as it is, blurred beyond recognition (for unsafe
            content), or not at all. What is blurred or left out is nowhere in the report.
    """

    name: str
    description: str
    margin: Fraction = 0.05
    margins: dict[str, Fraction] = {}
    cluster_margin: Fraction = 0.25
    cluster_margins: dict[str, Fraction] = {}
    retention_margin: Fraction = 0.1
    confidence: Fraction = 0.95
    equivalence_confidence: Fraction = 0.975
    noise_confidence: Fraction = 0.98
    cluster_confidence: Fraction = 0.99
    required: tuple[str, ...] = ()
    required_by_access: dict[Access, tuple[str, ...]] = {}
    skippable: tuple[str, ...] = ()
    minimum_references: Annotated[int, Field(ge=1)] = 1
    minimum_clusters: Annotated[int, Field(ge=2)] = 10
    minimum_units: Annotated[int, Field(ge=2)] = 2
    positive_control: bool = False
    shallow_passes: bool = False
    pictures: Literal["shown", "blurred", "left_out"] = "shown"

    def margin_of(self, name: str, attack: str | None = None) -> float:
        """The margin of one attack: by its name in the plan, else by the attack that stands behind that name."""
        return self.margins.get(name, self.margins.get(attack or name, self.margin))

    def cluster_margin_of(self, name: str, attack: str | None = None) -> float:
        """The cluster margin of one attack, likewise."""
        return self.cluster_margins.get(name, self.cluster_margins.get(attack or name, self.cluster_margin))


def shipped() -> list[str]:
    """Names of the policies that ship with the package."""
    folder = resources.files("muaudit") / "policies"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str, base: Path = Path()) -> Policy:
    """Reads a shipped policy by name, or one from a file.

    Args:
        name: A shipped policy's name, or the path of a TOML file.
        base: The folder that a relative path starts from.

    Returns:
        The policy.

    Raises:
        UsageError: There is no such policy, or its file cannot be used.
    """
    try:
        return Policy.model_validate(tomllib.loads(_bytes(name, base).decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise UsageError(f"policy {name!r}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"policy {name!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"policy {name!r}: not TOML: {error}") from error


def digest(name: str, base: Path = Path()) -> str:
    """SHA-256 of a policy's file, byte for byte, so that its owner can check it with `sha256sum`.

    Args:
        name: A shipped policy's name, or the path of a TOML file.
        base: The folder that a relative path starts from.

    Raises:
        UsageError: There is no such policy.
    """
    return hashlib.sha256(_bytes(name, base)).hexdigest()


def text_of(name: str) -> str:
    """A shipped policy as it is written, comments and all: what a house policy starts from.

    Raises:
        UsageError: No policy of that name ships.
    """
    if name not in shipped():
        raise UsageError(f"policy {name!r}: no such policy ships; known: {', '.join(shipped())}")
    return _bytes(name, Path()).decode("utf-8")


def _bytes(name: str, base: Path) -> bytes:
    if name in shipped():
        return (resources.files("muaudit") / "policies" / f"{name}.toml").read_bytes()
    try:
        return (base / name).read_bytes()
    except OSError as error:
        raise UsageError(f"policy {name!r}: no such policy; give the path of one or one of: {', '.join(shipped())}") from error
