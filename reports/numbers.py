"""The numbers of a finding by name, for formats that machines read."""

from muaudit.results import Finding

FIELDS = (
    "gap", "interval", "upper_bound", "lower_bound", "margin", "noise_floor", "p_value", "units", "clusters", "target",
    "references", "original", "recovered_share", "smallest_detectable_gap", "needed_units",
)  # fmt: skip
CLAIM = ("epsilon", "delta", "lower_bound", "confidence", "detectable")


def numbers_of(finding: Finding) -> dict[str, float | tuple[float, float]]:
    """What was measured, without what was not.

    Args:
        finding: The finding.

    Returns:
        The finding's numbers under their names in report.json, those of a claim under `claim_` and their name; nothing where
        nothing was measured.
    """
    if not finding.units:
        return {}
    found = {name: getattr(finding, name) for name in FIELDS}
    if finding.claim is not None:
        found |= {f"claim_{name}": getattr(finding.claim, name) for name in CLAIM}
    return {name: value for name, value in found.items() if value is not None}
