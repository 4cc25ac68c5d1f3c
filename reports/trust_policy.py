"""A verifier's own rules, as a TOML file: whose signatures count, as what, how many, how old, and which verdict will do.

Integrity comes first, and the verdict last and apart: an envelope can be all that the policy asks for and yet say `fail`.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from muaudit.errors import UsageError, VerificationError
from muaudit.reports import attestation, sigstore_bundles
from muaudit.reports import statement as statements
from muaudit.reports.attestation import Verified
from muaudit.reports.keys import PublicKey, load_public
from muaudit.reports.statement import PREDICATE_TYPE, Hex, Role
from muaudit.reports.timestamps import TimeStamp, load_roots
from muaudit.reports.timestamps import verify as verify_stamps
from muaudit.results import Verdict

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SKEW = timedelta(minutes=5)
"""How far clocks may be apart."""

SIZE_LIMIT = 2**20


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrustedKey(_Section):
    """`[[keys]]`: a key whose signatures count.

    Attributes:
        file: Its public file, relative to the policy.
        fingerprint: What the file's key must be, where the file could be swapped.
        roles: What it may sign as; as anything where none is given.
        valid_from: Signatures of before do not count.
        valid_until: Signatures of after do not count: the day on which the key was lost or retired. From then on those of
            before count with a time stamp alone, since without one they can be dated back.
    """

    file: Path
    fingerprint: Hex | None = None
    roles: tuple[Role, ...] = ()
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = None


class Identity(_Section):
    """`[[identities]]`: somebody whose Sigstore signatures count.

    Attributes:
        identity: The e-mail address or workflow in the certificate.
        issuer: Who vouched for it, as an OpenID Connect address.
        roles: What it may sign as; as anything where none is given.
    """

    identity: str
    issuer: str
    roles: tuple[Role, ...] = ()


class TimeStampRule(_Section):
    """`[time_stamp]`: which authorities are believed.

    Attributes:
        roots: Their root certificates as PEM, relative to the policy.
        required: Whether every signature needs a time stamp; where not, those that are there are verified all the same.
    """

    roots: Annotated[tuple[Path, ...], Field(min_length=1)]
    required: bool = True


class TrustPolicy(_Section):
    """A verification policy.

    Attributes:
        keys: Whose signatures count.
        identities: Whose Sigstore signatures count.
        threshold: How many different ones must have signed.
        required_roles: Roles of which each must have signed.
        predicate_types: Kinds of statement that are taken; this muaudit reads one.
        tool_versions: Versions of muaudit, as Python packages state them: ">=0.1,<0.3".
        maximum_age_days: How long ago it may have been signed.
        audit_policies: Names of the audit policies that will do, such as "strict".
        verdicts: Verdicts that will do; all where none is given.
        time_stamp: Which authorities are believed.
        sigstore_root: The TrustedRoot of a Sigstore of one's own, as JSON, relative to the policy.
    """

    keys: tuple[TrustedKey, ...] = ()
    identities: tuple[Identity, ...] = ()
    threshold: Annotated[int, Field(ge=1)] = 1
    required_roles: tuple[Role, ...] = ()
    predicate_types: Annotated[tuple[str, ...], Field(min_length=1)] = (PREDICATE_TYPE,)
    tool_versions: str | None = None
    maximum_age_days: Annotated[float, Field(gt=0, le=36525)] | None = None
    audit_policies: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    time_stamp: TimeStampRule | None = None
    sigstore_root: Path | None = None

    @field_validator("tool_versions")
    @classmethod
    def _specifier(cls, text: str | None) -> str | None:
        from packaging.specifiers import SpecifierSet

        if text is not None:
            SpecifierSet(text)  # InvalidSpecifier is a ValueError that names it
        return text


@dataclass(frozen=True)
class Trust:
    """A policy with its files read.

    Attributes:
        policy: What the file says.
        keys: The trusted keys with their rules, each once by fingerprint.
        roots: Certificates of time-stamp authorities.
        base: The policy's folder.
    """

    policy: TrustPolicy
    keys: Mapping[str, tuple[PublicKey, TrustedKey]]
    roots: tuple["Certificate", ...]
    base: Path

    def public_keys(self) -> list[PublicKey]:
        """The trusted keys."""
        return [key for key, _ in self.keys.values()]


@dataclass(frozen=True)
class Judged:
    """What a policy made of an envelope.

    Attributes:
        verified: What was established of the envelope.
        stamps: The time stamps that hold.
        acceptable: Whether the verdict is one that will do; all else that the policy asks for holds.
    """

    verified: Verified
    stamps: tuple[TimeStamp, ...]
    acceptable: bool


def load(path: Path) -> Trust:
    """Reads a policy and the files that it names.

    Args:
        path: The TOML file.

    Returns:
        The policy.

    Raises:
        UsageError: It or one of its files cannot be used, or it could never be met.
    """
    try:
        data = path.read_bytes()
        if len(data) > SIZE_LIMIT:
            raise UsageError(f"{path}: has more than {SIZE_LIMIT} bytes; give a verification policy")
        policy = TrustPolicy.model_validate(tomllib.loads(data.decode("utf-8-sig")))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; give a verification policy as TOML") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; see docs/signing.md") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not TOML: {error}; give a verification policy, see docs/signing.md") from error
    keys: dict[str, tuple[PublicKey, TrustedKey]] = {}
    for rule in policy.keys:
        key = load_public(path.parent / rule.file)
        if rule.fingerprint not in (None, key.fingerprint):
            raise UsageError(f"{path}: {rule.file} holds the key {key.fingerprint} and not the one that the policy names")
        if key.fingerprint in keys:
            raise UsageError(f"{path}: {rule.file} holds a key that stands there already; one key is one signer, name it once")
        keys[key.fingerprint] = key, rule
    _check_can_be_met(path, policy)
    stamps = policy.time_stamp
    roots = load_roots(path.parent / root for root in stamps.roots) if stamps is not None else []
    return Trust(policy, keys, tuple(roots), path.parent)


def verify(
    envelope: bytes,
    trust: Trust,
    *,
    now: datetime,
    stamps: Mapping[str, bytes] | None = None,
    report: bytes | None = None,
    model: Path | None = None,
) -> Judged:
    """Checks an envelope against a policy: signatures, statement, files, time stamps, age, and at last the verdict.

    Args:
        envelope: The bytes of `audit.intoto.json`.
        trust: The policy.
        now: The time, with its zone.
        stamps: Replies of time-stamp authorities by the fingerprint of the signer.
        report: The bytes of report.json.
        model: The target's folder or file.

    Returns:
        What holds, and whether the verdict will do.

    Raises:
        VerificationError: Anything but the verdict is not as the policy asks.
        UsageError: The policy trusts no key, or there is no model at the given path.
        EnvironmentFault: Time stamps are to be verified and rfc3161-client is not installed.
    """
    if not trust.keys:
        raise UsageError("the policy trusts no key; add [[keys]] with the auditor's public file")
    verified = attestation.verify(envelope, trust.public_keys(), report=report, model=model)
    rule = trust.policy.time_stamp
    believed: tuple[TimeStamp, ...] = ()
    if rule is not None:
        believed = _believed(verified, stamps or {}, trust.roots, required=rule.required)
    else:
        verified = _unbelieved(verified, stamps or {})
    times = {stamp.fingerprint: stamp.time for stamp in believed}
    for key in verified.signers:
        _check_signer(verified, key, trust.keys[key.fingerprint][1], times.get(key.fingerprint), now)
    signed_as = [verified.roles[key.fingerprint] for key in verified.signers]
    granted = [set(trust.keys[key.fingerprint][1].roles) for key in verified.signers]
    if not verified.predicate.roles:  # muaudit 0.1.0 did not ask for roles: the policy's own word stands
        check_signers(trust.policy, [roles or {attestation.ROLE} for roles in granted])
    else:
        check_signers(trust.policy, [{role} for role in signed_as])
    check_statement(trust.policy, verified, now)
    return Judged(verified, believed, acceptable(trust.policy, verified.verdict))


def verify_bundle(
    bundle: bytes, trust: Trust, *, now: datetime, report: bytes | None = None, model: Path | None = None
) -> Judged:
    """Checks a Sigstore bundle against a policy; see `verify`.

    The few minutes in which its certificate was valid stand in place of a time stamp: Sigstore's log vouches for them.

    Args:
        bundle: The bytes of `audit.sigstore.json`.
        trust: The policy.
        now: The time, with its zone.
        report: The bytes of report.json.
        model: The target's folder or file.

    Returns:
        What holds, and whether the verdict will do.

    Raises:
        VerificationError: Anything but the verdict is not as the policy asks.
        UsageError: The policy trusts no identity, or there is no model at the given path.
        EnvironmentFault: sigstore is not installed.
    """
    identities, root = trust.policy.identities, trust.policy.sigstore_root
    opened = sigstore_bundles.verify(
        bundle, [(one.identity, one.issuer) for one in identities], trust=trust.base / root if root is not None else None
    )
    verified = _of_bundle(opened, report, model)
    check_signers(trust.policy, [set(identities[opened.number].roles) or {attestation.ROLE}])
    check_statement(trust.policy, verified, now)
    return Judged(verified, (), acceptable(trust.policy, verified.verdict))


def verify_with_identity(
    bundle: bytes,
    identity: str,
    issuer: str,
    *,
    trust: Path | None = None,
    report: bytes | None = None,
    model: Path | None = None,
) -> Judged:
    """Checks a Sigstore bundle by one identity and no other rule; see `verify_bundle`.

    Args:
        bundle: The bytes of `audit.sigstore.json`.
        identity: The e-mail address or workflow in the certificate.
        issuer: Who vouched for it.
        trust: A TrustedRoot or ClientTrustConfig in JSON; the public Sigstore's where it is None.
        report: The bytes of report.json.
        model: The target's folder or file.

    Returns:
        What holds; every verdict will do.

    Raises:
        VerificationError: Anything differs.
        EnvironmentFault: sigstore is not installed.
    """
    opened = sigstore_bundles.verify(bundle, [(identity, issuer)], trust=trust)
    return Judged(_of_bundle(opened, report, model), (), acceptable=True)


def verify_with_keys(
    envelope: bytes,
    keys: Iterable[PublicKey],
    *,
    roots: Iterable["Certificate"] = (),
    stamps: Mapping[str, bytes] | None = None,
    report: bytes | None = None,
    model: Path | None = None,
) -> Judged:
    """Checks an envelope with keys that are trusted and no other rule.

    Args:
        envelope: The bytes of `audit.intoto.json`.
        keys: The trusted keys.
        roots: Certificates of time-stamp authorities; where there is one, every signature needs a time stamp.
        stamps: Replies of time-stamp authorities by the fingerprint of the signer.
        report: The bytes of report.json.
        model: The target's folder or file.

    Returns:
        What holds; every verdict will do.

    Raises:
        VerificationError: Anything differs.
        UsageError: No key is given, or there is no model at the given path.
        EnvironmentFault: Time stamps are to be verified and rfc3161-client is not installed.
    """
    verified, trusted = attestation.verify(envelope, keys, report=report, model=model), list(roots)
    if trusted:
        return Judged(verified, _believed(verified, stamps or {}, trusted, required=True), acceptable=True)
    return Judged(_unbelieved(verified, stamps or {}), (), acceptable=True)


def check_signers(policy: TrustPolicy, signed_as: list[set[str]]) -> None:
    """Refuses too few signers, or a role that nobody signed as.

    Args:
        policy: The policy.
        signed_as: The roles in which each different trusted signer signed.

    Raises:
        VerificationError: The policy asks for more.
    """
    if len(signed_as) < policy.threshold:
        raise VerificationError(
            f"the policy asks for {policy.threshold} signatures and the envelope carries {len(signed_as)}; "
            "ask for an envelope that more have signed"
        )
    if lacking := sorted(set(policy.required_roles) - set().union(*signed_as)):
        raise VerificationError(f"nobody whom the policy trusts signed as {', '.join(lacking)}; ask for an envelope with that")


def check_statement(policy: TrustPolicy, verified: Verified, now: datetime) -> None:
    """Refuses a statement of another kind, tool, audit policy or age than the policy takes.

    Args:
        policy: The policy.
        verified: What was established.
        now: The time, with its zone.

    Raises:
        VerificationError: The statement is not one that the policy takes.
    """
    predicate = verified.predicate
    if PREDICATE_TYPE not in policy.predicate_types:
        raise VerificationError(f"the policy does not take statements of {PREDICATE_TYPE}; see its predicate_types")
    if policy.tool_versions is not None and not _is_version(predicate.tool, policy.tool_versions):
        raise VerificationError(f"made by {predicate.tool!r}, and the policy asks for muaudit {policy.tool_versions}")
    if policy.audit_policies and predicate.policy not in policy.audit_policies:
        raise VerificationError(
            f"the audit went by the policy {predicate.policy!r}, and the verifier takes {', '.join(policy.audit_policies)}"
        )
    if verified.issued_at > now + SKEW:
        raise VerificationError(f"signed on {verified.issued_at.isoformat()}, which is yet to come; look at both clocks")
    if policy.maximum_age_days is not None and now - verified.issued_at > timedelta(days=policy.maximum_age_days):
        raise VerificationError(
            f"signed on {verified.issued_at.isoformat()}, more than {policy.maximum_age_days:g} days ago; ask for a fresh audit"
        )


def acceptable(policy: TrustPolicy, verdict: Verdict) -> bool:
    """Whether a verdict is one that the policy takes."""
    return not policy.verdicts or verdict in policy.verdicts


def _check_can_be_met(path: Path, policy: TrustPolicy) -> None:
    trusted = len(policy.keys) + len(policy.identities)
    if not trusted:
        raise UsageError(f"{path}: trusts nobody; add [[keys]] with the auditor's public file")
    if policy.threshold > trusted:
        raise UsageError(
            f"{path}: threshold {policy.threshold} is more than the {trusted} whom it trusts; lower it or add keys"
        )
    for role in policy.required_roles:
        allowed = [signer.roles for signer in policy.keys] + [one.roles for one in policy.identities]
        if not any(role in roles or not roles for roles in allowed):
            raise UsageError(f"{path}: nobody may sign as {role!r}, which required_roles asks for; give a key that role")


def _of_bundle(opened: sigstore_bundles.Opened, report: bytes | None, model: Path | None) -> Verified:
    statement = statements.read(opened.payload)
    if statement.predicate.signers:
        raise VerificationError("the signed statement asks for signatures by keys, which a Sigstore bundle does not carry")
    verified = attestation.established(statement, (opened.key,), report=report, model=model)
    if not opened.valid_from - SKEW <= verified.issued_at <= opened.valid_until + SKEW:
        raise VerificationError(
            f"said to be signed on {verified.issued_at.isoformat()}, and the certificate was valid from "
            f"{opened.valid_from.isoformat()} to {opened.valid_until.isoformat()}; ask the auditor"
        )
    return verified


def _believed(
    verified: Verified, replies: Mapping[str, bytes], roots: Iterable["Certificate"], *, required: bool
) -> tuple[TimeStamp, ...]:
    stamps = verify_stamps(replies, verified.signatures, roots)
    if required and (lacking := set(verified.signatures) - {stamp.fingerprint for stamp in stamps}):
        raise VerificationError(
            f"the signature of {sorted(lacking)[0][:16]} has no time stamp, which is asked for; "
            "put its .tsr file beside the envelope (muaudit timestamp)"
        )
    for stamp in stamps:
        if verified.issued_at > stamp.time + SKEW:
            raise VerificationError(
                f"said to be signed on {verified.issued_at.isoformat()}, after its own time stamp of {stamp.time.isoformat()}; "
                "ask the auditor"
            )
    return stamps


def _unbelieved(verified: Verified, replies: Mapping[str, bytes]) -> Verified:
    """Says of time stamps that lie there that nobody looked at them."""
    told = (f"time stamps: {len(replies)} lie beside it; say whose root you trust",) if replies else ()
    return replace(verified, unchecked=verified.unchecked + told)


def _check_signer(verified: Verified, key: PublicKey, rule: TrustedKey, stamped: datetime | None, now: datetime) -> None:
    role = verified.roles[key.fingerprint]
    if verified.predicate.roles and rule.roles and role not in rule.roles:
        raise VerificationError(f"{key.name} signed as {role}, and the policy lets it sign as {', '.join(rule.roles)} alone")
    time, told = (stamped, "by its time stamp") if stamped is not None else (verified.issued_at, "by its own word")
    if rule.valid_from is not None and time < rule.valid_from:
        raise VerificationError(f"{key.name} signed on {time.isoformat()} {told}, before its key was valid")
    if rule.valid_until is None:
        return
    if time > rule.valid_until:
        raise VerificationError(f"{key.name} signed on {time.isoformat()} {told}, when its key was no longer valid")
    if stamped is None and now > rule.valid_until:
        raise VerificationError(
            f"{key.name} signed on {time.isoformat()} {told} alone, with a key no longer valid: whoever has it now could "
            "have dated it back; ask for an envelope with a time stamp of before"
        )


def _is_version(tool: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    name, _, version = tool.partition(" ")
    try:
        return name == "muaudit" and SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def utc_now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)
