"""Has an audit cite a calibration: reads the record, refuses one of another family, and says in what else the audit differs."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from muaudit.calibration.record import CalibrationRecord, PolicyRates
from muaudit.citation import Citation
from muaudit.config import PolicyConfig
from muaudit.errors import UsageError
from muaudit.version import VERSION

LIMIT = 2**28
"""Bytes of a record beyond which it is not read: 256 MiB."""


class Planned(Protocol):
    """What is read of a planned attack."""

    @property
    def name(self) -> str:
        """Its section of `[attacks]`."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its parameters."""
        ...


def cite(
    path: str,
    expected: str | None,
    base: Path,
    *,
    family: str,
    policy: str,
    policy_sha256: str,
    own: PolicyConfig,
    attacks: Sequence[Planned],
    references: int,
) -> Citation:
    """Cites a record.

    Args:
        path: Where it lies.
        expected: The digest that it must have, if the audit says so.
        base: The folder that the path starts from.
        family: The audit's kind of task.
        policy: The name of its policy.
        policy_sha256: Digest of that policy's file.
        own: What the audit sets in place of the policy's.
        attacks: What it runs.
        references: How many references it has.

    Returns:
        The citation.

    Raises:
        UsageError: The record cannot be read, is not the expected one, or is of models of another family.
    """
    record, sha256 = _record(path, expected, base, family)
    rates = next((one for one in record.policies if one.sha256 == policy_sha256 and one.left_out is None), None)
    differs = [
        *_of_tool(record),
        *_of_policy(record, rates, policy, own),
        *_of_attacks(record, attacks, references),
    ]
    return Citation(
        path=path,
        sha256=sha256,
        tool=record.tool,
        bed=record.bed,
        models=len(record.members),
        policy=policy,
        false_alarm=None if rates is None else rates.false_alarm,
        passed=None if rates is None else rates.never_saw.get("pass"),
        detection=None if rates is None else rates.detection,
        missed=None if rates is None else rates.missed,
        differs=tuple(differs),
    )


def _record(path: str, expected: str | None, base: Path, family: str) -> tuple[CalibrationRecord, str]:
    """The record, and the digest of its bytes."""
    data = _bytes(base / path, path)
    sha256 = hashlib.sha256(data).hexdigest()
    if expected is not None and expected != sha256:
        raise UsageError(
            f"calibration.path {path!r}: its SHA-256 is {sha256}, and calibration.sha256 says {expected}; get that one"
        )
    record = CalibrationRecord.from_json(data, name=path)
    if record.family != family:
        raise UsageError(
            f"calibration.path {path!r}: was made on models of kind {record.family!r}, and the task is of kind {family!r}, so "
            "its error rates say nothing of this audit; cite one of that kind, or none"
        )
    return record, sha256


def _bytes(path: Path, shown: str) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(LIMIT + 1)
    except OSError as error:
        raise UsageError(
            f"calibration.path {shown!r}: cannot be read ({error.strerror}); give the calibration.json of `muaudit calibrate`"
        ) from error
    if len(data) > LIMIT:
        raise UsageError(f"calibration.path {shown!r}: has more than {LIMIT} bytes, more than any record; give another file")
    return data


def _of_tool(record: CalibrationRecord) -> Iterator[str]:
    if record.tool != f"muaudit {VERSION}":
        yield f"it was made with {record.tool}, and this audit runs muaudit {VERSION}"


def _of_policy(record: CalibrationRecord, rates: PolicyRates | None, policy: str, own: PolicyConfig) -> Iterator[str]:
    if rates is None:
        named = next((one for one in record.policies if one.policy == policy), None)
        if named is None:
            yield f"it says nothing of the policy {policy!r}"
        elif named.left_out is not None:
            yield f"its audits could not satisfy the policy {policy!r}, so it has no rates of it"
        else:
            yield f"its policy {policy!r} is another file than this audit's, so its rates are not given"
    if own.margins:
        yield "this audit sets margins of its own in place of the policy's"
    if own.shallow_passes:
        yield "this audit may pass by informational attacks alone, and those of the record could not"


def _of_attacks(record: CalibrationRecord, attacks: Sequence[Planned], references: int) -> Iterator[str]:
    run = {one.attack for one in record.attacks if one.left_out is None}
    names = {one.name for one in attacks}
    if further := sorted(names - run):
        yield f"it did not measure {', '.join(further)}"
    if fewer := sorted(run - names):
        yield f"it ran {', '.join(fewer)} besides"
    settled = record.parameters
    if changed := sorted(one.name for one in attacks if one.name in run and settled.get(one.name) != dict(one.parameters)):
        yield f"it ran {', '.join(changed)} with other parameters"
    if (had := int(record.config["audits"]["references"])) != references:
        yield f"its audits had {had} references, and this one has {references}"
