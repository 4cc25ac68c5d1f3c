"""Audits of recorded outputs that are made in a moment."""

from collections.abc import Collection
from pathlib import Path

from muaudit.testbed.recorded import FACTS, PEOPLE, write_logs

MODEL = 'kind = "recorded"\nformat = "tofu"\npath = "{}.json"\n'

MODELS: dict[str, Collection[int]] = {
    "original": range(PEOPLE),
    "retrained-1": (),
    "retrained-2": (),
    "retrained-3": (),
    "honest": (),
    "suppressed": range(PEOPLE),
    "one-left": (7,),
}
"""An original, references, and targets that forgot all, nothing, and all but one person."""


def recorded_audit(folder: Path, target: str, *, noise: float = 0.05, sections: str = "") -> Path:
    """Writes the logs and an audit of one of the targets.

    Args:
        folder: Where to.
        target: A key of `MODELS`.
        noise: Of the losses from model to model.
        sections: Further text for audit.toml.

    Returns:
        The path of `TARGET.toml`; its output goes to `audit-TARGET`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_logs(folder, MODELS, noise=noise)
    text = f'[task]\nkind = "recorded"\ncluster_size = {FACTS}\n[run]\nseed = "2026"\nout = "audit-{target}"\n'
    text += "[target]\n" + MODEL.format(target) + "[original]\n" + MODEL.format("original")
    text += "".join("[[references]]\n" + MODEL.format(name) for name in MODELS if name.startswith("retrained"))
    shallow = "[policy]\nshallow_passes = true\n"  # recorded outputs are all that there is
    own = sections.replace("[policy]\n", shallow) if "[policy]" in sections else shallow + sections
    text += "[attacks.memorization]\n[attacks.relearning]\n" + own
    path = folder / f"{target}.toml"
    path.write_text(text, encoding="utf-8")
    return path
